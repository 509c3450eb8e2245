# %% [markdown]
# # 33 · What when HBM is full?
#
# <img src="images/strip_model.png" width="672" alt="The five stages of the course. You are here:
# 3 model and KV cache, ids become scores.">
#
# A text grows, and its KV cache with it, until HBM has no room. We may forget a part, or move it:
# to DRAM, to the SSD. What does that cost, and when is it cheaper to compute it again? *Fifty
# minutes; the code behind it: [`kv/offload.py`](../minillm/kv/offload.py),
# [`kv/tiered.py`](../minillm/kv/tiered.py), [`kv/below.py`](../minillm/kv/below.py).*

# %% tags=["nbval-ignore-output"]
import inspect
import itertools
import json
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import torch
from IPython.display import display

import minillm
from minillm import Engine, EngineConfig, Machine, ModelConfig, SamplingParams, charts, predict
from minillm.lesson import check, compare, guess, guesses, hint, knob, recall, reveal

print(Machine.here().describe())

# %% [markdown]
# Six words:
#
# - **page**: keys and values of 16 tokens, of all layers; one layer of a page is a **part**.
# - **frame**: a place in HBM for a page.
# - **stream**: to bring pages that have no frame part by part, in every pass, as layers need them.
# - **policy**: says which page moves down when a frame is needed. LRU: the one that was seen the
#   longest ago.
# - **swap**: to move a text's pages down, and up when it is wanted.
# - **recompute**: to forget them, and to read the text again.

# %% [markdown]
# ## A small desk
#
# A scholar compares ten books, chapter by chapter. Four lie open on his desk. Of the other six a
# boy copies the chapter: he walks 2 minutes, and copies one in 1 minute. Meanwhile the scholar is
# at the chapter before (for the first, the copies lie there). How long do four chapters take, and
# which share of the boy's time does nobody wait for?

# %%
def reading(away: int, chapters: int, walk: float, copy: float, read: float) -> tuple:
    return chapters * max(walk + away * copy, read), min(1.0, read / (walk + away * copy))


print({read: reading(6, 4, walk=2, copy=1, read=read) for read in (10, 8, 4, 1)})

# %% [markdown]
# The boy needs 2 + 6 · 1 = 8 minutes; with a walk for each book, 18. Reading in 8 hides them, in 4
# half of them.
#
# Books are pages, chapters layers, the walk a link's latency: a pass takes **layers · max(latency +
# bytes ÷ link, compute)**.
#
# ## Predict
#
# A thousand tokens in 61 pages of 48 KiB, weights of 12 MB, on a scale model of an H100 (lesson
# 01): PCIe has a fiftieth of HBM's bandwidth. What has no frame streams. How long does a token
# take?

# %%
all_fit = guess("a token, frames for all 61 pages", unit="ms")
forty = guess("a token, 40 frames", unit="ms")
few = guess("a token, 28 frames", unit="ms")

# %% [markdown]
# The desk must hold the copies, too: if s pages stream, s parts that a layer reads, and between
# them the s that arrive for the next. In a frame L layers' parts lie side by side; so that a page
# has the same number in all of them, the window slides on by a part a layer. It takes
# 2 · s + L − 1 parts. With frames for all, a token takes at least the bytes that it reads ÷ the
# bandwidth of HBM.

# %% tags=["nbval-ignore-output"]
from minillm.probe import Profile, probe

profile = Profile.here() or probe(seconds=8)  # what the scale is made from
town, layers = Path(minillm.__file__).parents[1] / "data" / "town", 6
config, scale = ModelConfig.from_pretrained(town), Machine.scale_model("H100").scale
page, pcie = 16 * predict.kv_bytes_per_token(config), scale.wire("pcie")


def streamed(frames: int, pages: int = 61) -> int:
    """The fewest pages that stream, so that the others and the window have frames."""
    window = [0] + [-(-(2 * s + layers - 1) // layers) for s in range(1, pages + 1)]
    return next(s for s in range(pages + 1) if pages - s + window[s] <= frames)


least = {61: predict.decode_step(config, profile.hardware("cpu"), context=970).seconds}
for frames in (40, 28):
    least[frames] = layers * pcie.seconds(streamed(frames) * page / layers)
    print(f"{frames} frames: {streamed(frames)} of 61 pages stream, at least "
          f"{1e3 * least[frames]:.1f} ms a token, against {1e3 * least[61]:.1f} (predicted)")

# %% [markdown]
# ## Run
#
# `kv_hbm` is the room for frames, `kv_dram` for pages below. A question of *town*'s exam; what is
# asked was told at the beginning, a thousand tokens ago. Half of the tokens count, those
# that took the least: others use the machine, too.

# %% tags=["nbval-ignore-output"]
exam = [json.loads(line) for line in (town.parent / "eval" / "skills.jsonl").open()]
far = next(q for q in exam if q["distance"] > 940 and "David's cabin" in q["answer"])
prompt, greedy = far["prompt"], SamplingParams(max_tokens=16, temperature=0.0, stop=".")


def ask(frames: int) -> dict:
    """Of prefill, and of decode's faster half: passes, seconds of link a layer, share hidden."""
    machine, found = Machine.scale_model("H100", hbm="64 MiB"), {}
    engine = Engine.load(town, machine, EngineConfig(kv_hbm=frames * page, kv_dram="4 MiB"))
    engine.generate("Mia", SamplingParams(max_tokens=2))  # the first time warms up
    machine.trace.clear()
    text = engine.generate(prompt, greedy)[0].text + "."
    engine.close()
    print(f"{frames} frames: {prompt[:34]} …{text}")
    for name, most, skip in (("prefill", None, "0"), ("decode step", 6, "")):
        passes = sorted(machine.trace.select(name=name), key=lambda step: step.seconds)[:most]
        moves, waits = [], []
        for step in passes:
            events = [e for e in machine.trace.events if e.step == step.step]
            moves += [e.seconds for e in events if e.label == "kv" and e.target == "hbm"]
            late = [e.seconds for e in events if e.name == "wait for kv" and e.detail[6:7] > skip]
            waits += [sum(late) / len(late)] if late else []  # "layer 3 …": of each layer
        link, wait = (median(times or [0.0]) for times in (moves, waits))
        found[name] = passes, link, max(0.0, 1 - wait / link) if link else 1.0
    return found

# %% tags=["nbval-ignore-output"]
runs = {frames: ask(frames) for frames in (61, 52, 40, 28)}
for mine, frames in ((all_fit, 61), (forty, 40), (few, 28)):
    took = [1e3 * step.seconds for step in runs[frames]["decode step"][0]]
    reveal(mine, ceiling=1e3 * least[frames], measured=took, how="emulated")

# %% [markdown]
# The limit counts bytes alone; threads that hand over to each other, and a busy machine, come on
# top. What was hidden? When a prompt is read, a layer computes for a hundred tokens at once: the
# scholar reads long. At decode it computes for one. Predicted: compute ÷ link. Emulated: what the
# median pass did not wait. (The first layer of a prompt's pass is left out: other pages stream than
# before.) How it is done, in the package: before a layer computes, the next one's parts are asked
# for.

# %% tags=["nbval-ignore-output"]
for frames, name in ((28, "prefill"), (52, "decode step"), (28, "decode step")):
    (passes, link, share), bare = runs[frames][name], runs[61][name][0]
    compute = bare[1].seconds * len(bare) / len(passes) / layers  # bare[0]: a prompt's short rest
    print(f"{frames} frames, {name:11}: compute {1e3 * compute:5.2f} ms a layer, link "
          f"{1e3 * link:.2f}: {min(1, compute / link):4.0%} predicted, {share:4.0%} emulated")

# %%
from minillm.kv.offload import Window

print(inspect.getsource(Window.enter))

# %% [markdown]
# ## Squeeze
#
# Now on this machine, without slowed links, in float32, where no rounding decides (lesson 31). DRAM
# has room for 21 pages, the rest goes to a file on the SSD. Watch the slider below the picture go
# down, and what flows. Then press play, or drag the slider: each notch is a run.

# %% tags=["nbval-ignore-output"]
here, wide = Machine.here(hbm="64 MiB"), 2 * page  # bytes of a page in float32
up, numbers = {}, itertools.count()


def answer(forget=None, number=0, **rooms) -> tuple[int, ...]:
    engine = Engine.load(town, here, EngineConfig(dtype="float32", **rooms))
    engine.kv.forget, engine._numbers = forget, itertools.count(number)  # the trace knows it so
    found = engine.generate(prompt, greedy)[0]
    engine.close()
    return found.token_ids


def squeeze(frames: int) -> None:
    """The same answer, or an error; keeps the bytes that came up for a token."""
    rooms = {"kv_hbm": frames * wide, "kv_dram": 21 * wide, "kv_ssd": 80 * wide}
    assert answer(number=(mine := next(numbers)), **rooms) == expected
    steps = [step.step for step in here.trace.select(name="decode step", request=mine)]
    moves = here.trace.select(kind="transfer", label="kv", target="hbm", request=mine)
    found = [sum(e.nbytes for e in moves if e.step == step) for step in steps]
    assert found == [streamed(frames) * wide] * len(steps)  # moved = predicted, to the byte
    up[frames] = found[0]


expected = answer(number=next(numbers))

# %% tags=["nbval-ignore-output"]
def draw(frames=64):
    squeeze(frames)
    return charts.curve(
        f"{frames} frames: {streamed(frames)} of 61 pages stream, and the answer is the same",
        {"": lambda frames: streamed(frames) * wide / 1e6}, range(27, 70), at=frames, log="",
        x="frames in HBM", y="comes up, a token", unit="MB", note="predicted; points: the trace's",
        points=[(n, nbytes / 1e6, "") for n, nbytes in up.items()])  # fmt: skip


with charts.watch(here.trace, "machine"):
    turned = knob(draw, frames=[64, 48, 36, 28])
    shown = display(turned, display_id=True)
    for frames in (48, 36, 28):
        turned.sliders["frames"].value = frames
shown.update(turned)
assert len(up) == 4, turned.result

# %% [markdown]
# At each notch two things were asserted: the ids are those of a run with all pages in HBM, and each
# token moved what we predicted, to the byte.
#
# ## Break it: drop pages instead
#
# Why all that work? We might forget the oldest half of the prompt, once it was read, and move
# nothing.

# %%
from minillm.kv.pages import drop_oldest

dropped, tokenizer = answer(forget=drop_oldest(0.5)), minillm.Tokenizer.from_pretrained(town)
print(f"moved:   {tokenizer.decode(expected)}dropped: {tokenizer.decode(dropped)}".rstrip())
assert dropped != expected

# %% [markdown]
# The code was told in the half that went, and the model does not know that it forgot. What moves
# comes back; what is dropped is lost.
#
# ## First rung: one copy, or many
#
# A layer wants its parts of forty pages that lie in DRAM, 8 KiB each. We bring them by hand, on the
# scale model: each by itself, or gathered in DRAM first. The same bytes must arrive. Then we look
# how much of the link's bandwidth copies of any size get.

# %% tags=["nbval-ignore-output"]
machine, by = Machine.scale_model("H100", hbm="64 MiB"), {"label": "kv", "stage": "model"}
below = machine.empty((40, layers, page // layers), torch.uint8, "dram", "kv").random_()
window = machine.empty((40, page // layers), torch.uint8, "hbm", "kv")


def one_by_one() -> None:
    for part, place in zip(below[:, 3], window, strict=True):
        machine.copy(part, place, **by)


def gathered() -> None:
    machine.copy(below[:, 3].contiguous(), window, **by)


both = compare({"one by one": one_by_one, "gathered": gathered}, unit="ms")
assert torch.equal(window, below[:, 3])
print(both.sentence)
print(both.against("latency + bytes", 40 * pcie.seconds(page / layers), "one by one"))

# %% tags=["nbval-ignore-output"]
def rate(kib: int) -> float:
    """Bytes a second of a copy to HBM, the median of five."""
    source, target = (torch.empty(1024 * kib, dtype=torch.uint8) for _ in range(2))
    began = machine.trace.now()
    for _ in range(5):
        machine.carry(lambda: target.copy_(source), 1024 * kib, source="dram", target="hbm", **by)
    took = [e.seconds for e in machine.trace.select(kind="transfer") if e.start >= began]
    return 1024 * kib / median(took)


sizes = {8: "a part", 48: "a page", 320: "40 parts", 2928: "61 pages"}
charts.curve(
    f"A copy of {pcie.latency * pcie.bandwidth / 1024:.0f} KiB gets half of the link",
    {"": lambda kib: 1024 * kib / pcie.seconds(1024 * kib)}, [2 ** (n / 2) for n in range(4, 28)],
    points=[(kib, rate(kib), words) for kib, words in sizes.items()], ceiling=pcie.bandwidth,
    x="a copy (KiB)", y="bandwidth", unit="B/s", log="xy", note="predicted; points: emulated")

# %% [markdown]
# The knee is at latency · bandwidth bytes, on a real H100 too: 1 µs · 64 GB/s are 64 KB. So whole
# pages move, or gathered parts.
#
# ## Second rung, yours: count the moves
#
# Pages are asked for one by one, and each needs a frame. A page asked for the first time is new. If
# all frames are taken, the page goes that was asked for the longest ago. It is written down, unless
# it lies below already: nobody changes it. How many go down, how many come up?

# %%
def moved(asked: list, frames: int) -> tuple[int, int]:
    raise NotImplementedError  # (down, up); without your lines we go on with ours

moved = check("33.1", moved)
# hint("33.1")

# %%
from minillm.kv.tiered import TieredPool


def by_the_pool(asked: list, frames: int, choose=None) -> tuple[int, int]:
    """The same by the package's pool: pages that its trace saw move, down and up."""
    pool, seen = TieredPool(config, here, torch.bfloat16, 16, frames, dram=16, ssd=0), []
    here.trace.clear()
    if choose:  # a policy is any object with these two
        pool.policy = SimpleNamespace(used=seen.extend, victim=lambda held: choose(held, seen))
    known = {name: pool.take() for name in sorted(set(asked))}
    for name in asked:
        pool.policy.used([known[name]])
        pool.hbm.bring([known[name]], keep=[known[name]])
    for held in known.values():
        pool.drop(held)
    pool.close()
    moves = here.trace.select(kind="transfer", label="kv")
    down = sum(e.nbytes for e in moves if e.source == "hbm")
    return down // page, (sum(e.nbytes for e in moves) - down) // page


for asked in ([1, 2, 3, 1, 2, 3, 1], [1, 2, 3, 4] * 5):
    assert by_the_pool(asked, 3) == moved(asked, 3)
    print(asked[:7], "…", moved(asked, 3))

# %% [markdown]
# Four pages take turns in three frames: LRU moves the one that is wanted next, every time.
#
# ## Third rung, yours: a policy
#
# Page 0 is the rules of the house, which each text begins with; the others take turns. `held`:
# pages with a frame. `asked`: all askings so far, the last one last. Return the page of `held` that
# was asked for the *fewest* times; of several, the one asked for *last*.

# %%
def victim(held: list, asked: list) -> int:
    raise NotImplementedError  # one of held; without your lines we go on with ours

victim = check("33.2", victim)
# hint("33.2")

# %%
turns = [page for text in [1, 2, 3, 4] * 6 for page in (0, text)]
news = [0, 1] * 9 + [2, 3, 4] * 9  # what was wanted often is not wanted any more
for title, asked in (("taking turns", turns), ("something new", news)):
    print(title, "(down, up): LRU", by_the_pool(asked, 3), "yours", by_the_pool(asked, 3, victim))
assert sum(by_the_pool(turns, 3, victim)) < sum(by_the_pool(turns, 3))

# %% [markdown]
# No policy is best: yours beats LRU where favourites stay, and clings to them when they do not.
# (`engine.kv.pool.policy = …` puts it into an engine.)
#
# ## Four paths of a page
#
# A text that has ended leaves its pages, until others need the room. Somebody begins with the same
# text: its pages may be in HBM, in DRAM, on the SSD, or gone. Four texts of 500 tokens; HBM has
# room for one of them, DRAM for two. A comes, comes again, and then after others pushed it down.

# %% tags=["nbval-ignore-output"]
machine, one = Machine.scale_model("H100", hbm="64 MiB"), SamplingParams(max_tokens=1)
engine = Engine.load(town, machine, EngineConfig(
    kv_hbm=34 * page, kv_dram=64 * page, kv_ssd=256 * page))  # fmt: skip
texts = dict(zip("ABCD", (q["prompt"] for q in exam if 470 < q["distance"] < 500), strict=False))
engine.generate("Mia", one)


def first(name: str) -> tuple:
    """Seconds until the first token is there, and the pages' transfers until then."""
    began = machine.trace.now()
    took = float(engine.generate(texts[name], one)[0].ttft)
    moves = machine.trace.select(kind="transfer", label="kv")
    return took, [move for move in moves if move.start >= began]

# %% tags=["nbval-ignore-output"]
paths = {"recompute": "A", "HBM": "AAA", "DRAM": "BA", "SSD": "CDBA"}
with charts.watch(machine.trace, "machine"):
    ways = {path: [first(name) for name in names][-1] for path, names in paths.items()}
figures, known = engine.kv.restore.hardware, 31 * 16  # what the engine learned; tokens of A
wires = {"pcie": pcie, "nvme": scale.wire("nvme")}
promised = {"recompute": predict.prefill(config, figures, tokens=known).seconds}
for path, (took, moves) in ways.items():
    down = [m for m in moves if m.target in ("ssd", *["dram"] * (m.source == "hbm"))]
    rest = ways["HBM"][0] + sum(wires[m.link].seconds(m.nbytes) for m in down)
    if path in ("DRAM", "SSD"):
        rest += predict.restore(config, figures, known, path.lower()).parts["swap"]
        rest += 31 // 8 * wires["nvme"].latency * (path == "SSD")  # more rounds of eight reads
    told = 1e3 * promised.get(path, rest)
    print(f"{path:9}: {told:5.1f} ms predicted, {1e3 * took:5.1f} emulated")

# %% [markdown]
# Predicted: a hit in HBM; A's pages over the links, eight reads of the SSD sharing a latency; a
# copy for each page that makes room. To recompute, at the rate that the engine saw itself reach.
#
# ## Bring it up, or compute it again?
#
# To swap takes latency + tokens · kv ÷ link. To recompute takes 2 FLOP a weight and token, never
# less than HBM needs to read the weights, 2 bytes each. Which is shorter? If equal, swap.

# %%
def way(tokens, kv, link, latency, weights, flops, hbm) -> str:
    raise NotImplementedError  # "swap" or "recompute"; kv: bytes of a token

way = check("33.3", way)
# hint("33.3")

# %% [markdown]
# `predict.restore` does the same, and counts attention too. Which is sooner on the scale model,
# with pages on the SSD? Predicted, at the rate that the engine saw itself reach, and tried: a text
# is read, pushed down by taking all frames away for a moment, and asked for again.
#
# Then Llama-3-8B on a real H100, by its data sheets. Drag: up to how many tokens is the SSD sooner
# than computing, and from how many again?

# %% tags=["nbval-ignore-output"]
def measured(tokens: int):
    """The same text read anew, and brought back from the SSD."""
    def swap() -> float:
        kv.pool.hbm.widen(kv.pool.hbm.frames, set())
        kv.pool.hbm.widen(0, set())
        return float(engine.generate([text], one)[0].ttft)

    def recompute() -> float:
        text[0] += 1  # another text: nothing of it is known
        return float(engine.generate([text], one)[0].ttft)

    text = [100, *tokenizer.encode(texts["A"])[:tokens]]
    return compare({"recompute": recompute, "swap": swap}, rounds=3, unit="ms")


engine.close()
engine = Engine.load(town, machine, EngineConfig(kv_hbm=64 * page, kv_ssd=64 * page))
kv, engine.kv.restore.hardware = engine.kv, None  # None: always swap
for tokens in (16, 64, 192, 448):
    told = predict.restore(config, figures, tokens, "ssd").parts
    told = ", ".join(f"{path} {1e3 * seconds:.1f} ms" for path, seconds in told.items())
    print(f"{tokens} tokens, predicted: {told}")
    print("    emulated:", measured(tokens).sentence)
engine.close()

# %% tags=["nbval-ignore-output"]
llama = ModelConfig(vocab_size=128256, hidden_size=4096, intermediate_size=14336, dtype="bfloat16",
                    num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8)


def way_of(source: str, part: str):
    return lambda tokens: predict.restore(llama, "H100", round(tokens), source).parts[part]


def draw_server(tokens=1024):
    server = {"DRAM": way_of("dram", "swap"), "SSD": way_of("ssd", "swap"),
              "recompute": way_of("dram", "recompute")}  # fmt: skip
    names = sorted(server, key=lambda name: server[name](tokens))
    return charts.curve(
        f"{tokens:,} tokens: soonest {names[0]}, then {names[1]}, then {names[2]}", server,
        [2 ** (n / 2) for n in range(8, 35)], x="tokens", y="until they are in HBM", unit="s",
        at=tokens, log="xy", inks={"DRAM": "dram", "SSD": "ssd"},
        note="Llama-3-8B on one H100, by data sheets; predicted")  # fmt: skip


knob(draw_server, tokens=(16, 131072))

# %% [markdown]
# With the SSD the lines cross twice: for few tokens the weights must be read all the same, and for
# very many attention grows with the square.
#
# ## Where it loses: long texts, one token at a time
#
# A decode step at batch 1 is short, and a long text has many pages. On the H100, if all stream
# (predicted):

# %%
for tokens in (1_000, 10_000, 100_000):
    step = predict.decode_step(llama, "H100", context=tokens).seconds
    link = tokens * predict.kv_bytes_per_token(llama) / predict.find_hardware("H100").pcie.bandwidth
    share = min(1, step / link)
    print(f"{tokens:7,} tokens: {1e3 * link:5.1f} ms of link, at most {share:.0%} hidden")

# %% [markdown]
# A batch does not help, as it does with streamed weights (lesson 13): each text has pages of its
# own. So servers keep in HBM what runs, stream a little, and swap whole texts that wait.
#
# ## On paper: who comes back?
#
# A server keeps texts of `text` bytes; each is wanted once every `pause` seconds, in HBM. Those in
# HBM are there. From DRAM they come over PCIe, from the SSD over its link and PCIe. How many whole
# texts can be kept, so that places and links suffice?

# %%
def sessions(text, hbm, dram, ssd, pcie, nvme, pause) -> int:
    raise NotImplementedError  # bytes; bytes a second; seconds

sessions = check("33.4", sessions)
# hint("33.4")

# %%
text = 8_000 * predict.kv_bytes_per_token(llama)  # 8,000 tokens
for what, *rooms in (("HBM", 60e9, 0, 0), ("+ DRAM", 60e9, 256e9, 0), ("+ SSD", 60e9, 256e9, 4e12)):
    kept = [sessions(text, *rooms, 64e9, 7e9, pause) for pause in (60, 600)]
    print(f"{what:6}: {kept[0]:,} texts wanted every minute, {kept[1]:,} every ten (predicted)")

# %% [markdown]
# ## Five questions
#
# Answer each in your head, then open it.

# %% tags=["folded"]
recall(
    ("A pass needs pages that have no frame. When does nobody wait for them?",
     "When a layer's parts cross the link in no more time than the layer before computes."),
    ("Why are the parts of forty pages gathered before they cross?",
     "Each copy pays the latency; below latency · bandwidth bytes it is most of the time."),
    ("A page came up, was read, and its frame is wanted again. What is written?",
     "Nothing: it lies below already, unchanged. On an SSD that also saves wear."),
    ("Four texts take turns, HBM has room for three. What does LRU do?",
     "It moves the one that is wanted next, every time. A policy that keeps some finds those."),
    ("When is it right to recompute?",
     "When arithmetic makes keys and values sooner than the link brings them; short texts over "
     "long latencies, or a small model. By figures that are reached, not by data sheets."),
)

# %% [markdown]
# ## Three takeaways, with the numbers of your run, and your guesses

# %% tags=["nbval-ignore-output", "folded"]
print(f"1. 28 frames for 61 pages, the same answer: {streamed(28) * page / 1e6:.1f} MB a token.",
      f"2. Hidden, 28 frames: {runs[28]['prefill'][2]:.0%} as the prompt was read, "
      f"{runs[28]['decode step'][2]:.0%} at one token a pass (emulated, the median pass).",
      "3. First token: " + ", ".join(f"{n} {1e3 * s[0]:.0f} ms" for n, s in ways.items()) + ".",
      sep="\n")  # fmt: skip

# %%
guesses()

# %% [markdown]
# **Next:** `40_parallel_collectives`. One GPU is not enough. How do several agree on a sum?
