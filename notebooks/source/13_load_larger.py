# %% [markdown]
# # 13 · How does a model larger than HBM run?
#
# <img src="images/strip_load.png" width="672" alt="The five stages of the course. You are here:
# 1 load, weights come in.">
#
# The weights do not fit. So they wait in DRAM, or on the SSD, and each layer comes to HBM when its
# turn comes. What does that cost, and how much of it can be hidden? *Fifty minutes; the code
# behind it: [`minillm/machine/prefetch.py`](../minillm/machine/prefetch.py) and
# [`minillm/engine/weights.py`](../minillm/engine/weights.py).*

# %% tags=["nbval-ignore-output"]
import inspect
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch

import minillm
from minillm import Engine, EngineConfig, Machine, SamplingParams, charts, format_size
from minillm.lesson import check, compare, guess, guesses, hint, knob, recall, reveal
from minillm.load import Checkpoint
from minillm.machine.prefetch import Prefetch, hidden
from minillm.predict.hardware import HARDWARE

print(Machine.here().describe())

# %% [markdown]
# Six words:
#
# - **layer**: one of the equal blocks that a model is a stack of; they compute one after the other.
# - **pass**: once through all layers; at decode it makes one token.
# - **resident**: a model that lies in HBM as a whole.
# - **slot**: a place in HBM for one layer, used for one after the other.
# - **prefetch**: to send for something before it is needed.
# - **hidden**: the part of a transfer's time for which compute did not have to wait.

# %% [markdown]
# ## A cook with a small table
#
# Six dishes are cooked in a fixed order. A helper brings the ingredients of one, which takes 3
# minutes; cooking takes 1. With one place on the table they take turns. With two places the helper
# brings the next ones while the cook is at work, and must wait only until a place is free.

# %%
def finish(layers: int, bring: float, compute: float, slots: int) -> float:
    there, done = 0.0, [0.0] * slots  # when the last one arrived; when each was cooked
    for _ in range(layers):
        there = max(there, done[-slots]) + bring  # the helper, and a place, must be free
        done.append(max(there, done[-1]) + compute)
    return done[-1]


print("bring 3, cook 1: in turns", finish(6, 3, 1, slots=1), "two places", finish(6, 3, 1, slots=2))
print("bring 1, cook 3: in turns", finish(6, 1, 3, slots=1), "two places", finish(6, 1, 3, slots=2))

# %% [markdown]
# Count along: in turns 6 · (3 + 1). With two places the slower of the two sets the pace, six times,
# and one turn of the faster is left. Then the next pass begins, with the same first dish: over many
# passes the time of one is **layers · max(bring, compute)**. Hidden is at most compute ÷ bring.

# %% [markdown]
# ## Predict
#
# The weights of *town*, the model of this course, are 11.6 MiB. We give it an HBM of 6 MiB, on a
# scale model (lesson 01): the links of an H100 server, slowed until they have the same proportion
# to this machine's memory. How long does one token take, if the weights lie in HBM, come from DRAM,
# come from the SSD?

# %%
in_hbm = guess("a token, resident in HBM", unit="ms")
from_dram = guess("a token, layers from DRAM", unit="ms")
from_ssd = guess("a token, layers from the SSD", unit="ms")

# %% [markdown]
# The arithmetic. A pass reads each weight once. Over a link it takes the bytes of all six layers ÷
# bandwidth, and each layer its latency. From HBM the same is a floor that so small a model does not
# come near: it also starts a hundred operations (lesson 02).

# %% tags=["nbval-ignore-output"]
from minillm.probe import Profile, probe

profile = Profile.here() or probe(seconds=10)  # what the scale is made from
town = Path(minillm.__file__).parents[1] / "data" / "town"
weights = Checkpoint.open(town)
layer = sum(info.nbytes for name, info in weights.tensors.items() if ".layers.0." in name)
scale = Machine.scale_model("H100").scale
pcie, nvme, layers = scale.wire("pcie"), scale.wire("nvme"), 6
least = {"HBM": weights.nbytes / scale.hbm_bandwidth, "DRAM": layers * pcie.seconds(layer),
         "SSD": layers * nvme.seconds(layer)}  # fmt: skip
for place, seconds in least.items():
    print(f"from {place}: at least {1e3 * seconds:.2f} ms a token (predicted)")

# %% [markdown]
# ## Run
#
# `weights="stream"` keeps the layers outside, and takes two slots of HBM. The same question, to
# three engines, each on a machine of its own. Greedy, so that the words must be the same.

# %% tags=["nbval-ignore-output"]
greedy = SamplingParams(max_tokens=12, temperature=0.0)


def ask(hbm: str, **how: str):
    machine = Machine.scale_model("H100", hbm=hbm)
    engine = Engine.load(town, machine, EngineConfig(**how))
    engine.generate("Mia", SamplingParams(max_tokens=2))  # the first time warms up
    machine.trace.clear()
    text = engine.generate("Mia put the red key", greedy)[0].text
    steps = machine.trace.select(name="decode step")  # from one to the next is a token
    engine.close()
    return text, [b.start - a.start for a, b in pairwise(steps)], machine

# %% tags=["nbval-ignore-output"]
text, whole, roomy = ask("64 MiB")
same, dram, tight = ask("6 MiB", weights="stream", stream_from="dram")
again, ssd, _ = ask("6 MiB", weights="stream", stream_from="ssd", reader="direct")
assert text == same == again and tight.hbm.peak <= 6 * 2**20
most, peak = format_size(roomy.hbm.peak), format_size(tight.hbm.peak)
print(f"HBM at its peak: resident {most}, streamed {peak}; three times the same words:{text}")

# %% [markdown]
# Your guesses, the arithmetic, and the clock:

# %% tags=["nbval-ignore-output"]
reveal(in_hbm, ceiling=1e3 * least["HBM"], measured=[1e3 * s for s in whole])
reveal(from_dram, predicted=1e3 * least["DRAM"], measured=[1e3 * s for s in dram], how="emulated")
reveal(from_ssd, predicted=1e3 * least["SSD"], measured=[1e3 * s for s in ssd], how="emulated")

# %% [markdown]
# The same words, in half the memory. Every token moves all layers over the link. How much of that
# did compute not notice? The toy says: at most compute ÷ bring.

# %% tags=["nbval-ignore-output"]
found = hidden(tight.trace, "weights")
computed = sum(e.seconds for name in ("attention", "ffn") for e in tight.trace.select(name=name))
print(f"hidden: {computed / found.moving:.0%} by the toy's compute ÷ bring, found "
      f"{found.share:.0%}; compute waited {1e3 * found.waited:.0f} ms in all (emulated)")

# %% [markdown]
# The toy leaves two things out. Between two passes the logits go out, a token is chosen, its id
# comes in, and meanwhile the first layers of the next pass are on their way: that is hidden too.
# And a layer that a busy core brings late is waited for.
#
# Watch some passes: which of the two is ever idle, the link or compute?

# %% tags=["nbval-ignore-output"]
from minillm.trace import busy_seconds

small = Machine.scale_model("H100", hbm="6 MiB")
engine = Engine.load(town, small, EngineConfig(weights="stream"))
with charts.watch(small.trace, "machine", "timeline"):
    engine.generate("Mia put the red key", SamplingParams(max_tokens=48, temperature=0.0))
engine.close()
moves = [move for move in small.trace.select(kind="transfer", label="weights") if move.request == 0]
lasted = max(move.end for move in moves) - min(move.start for move in moves)
print(f"the link was busy with weights {busy_seconds(moves) / lasted:.0%} of the time (emulated)")

# %% [markdown]
# ## First rung: take turns
#
# Now by hand. Eight layers, each one matrix in DRAM; two slots in HBM; compute is a product. `send`
# begins a copy over the link, `join` waits until it is there.

# %% tags=["nbval-ignore-output"]
machine, size = Machine.scale_model("H100"), (1024, 1024)
home = [machine.empty(size, torch.float32, "dram", "weights").normal_(0, 1 / 32) for _ in range(8)]
slots = [machine.empty(size, torch.float32, "hbm", "weights") for _ in range(2)]
start = torch.ones(64, 1024)

# %% tags=["nbval-ignore-output"]
def bring(layer: int):
    return machine.send(home[layer], slots[layer % 2], label="weights", stage="load")


def in_turns() -> torch.Tensor:
    x = start
    for layer in range(8):
        bring(layer).join()
        x = x @ slots[layer % 2]
    return x


expected = in_turns()

# %% [markdown]
# ## Second rung, yours: ask ahead
#
# Write the order in which things are done, as pairs: `("ask", layer)` sends for a layer, `("take",
# layer)` waits for it, `("compute", layer)` uses it. There are two slots: layers 0, 2, 4 … share
# one, 1, 3, 5 … the other. Ask for the next layer as early as its slot allows.

# %%
def order(layers: int) -> list:
    raise NotImplementedError  # your lines; without them the lesson goes on with ours

order = check("13.1", order)
# hint("13.1")

# %% [markdown]
# Your order is run as it is. The result must be that of the first rung, bit for bit.

# %% tags=["nbval-ignore-output"]
def run(plan: list) -> torch.Tensor:
    x, coming = start, {}
    for verb, layer in plan:
        if verb == "ask":
            coming[layer] = bring(layer)
        elif verb == "take":
            coming[layer].join()
        else:
            x = x @ slots[layer % 2]
    return x


assert torch.equal(run(order(8)), expected)

# %% tags=["nbval-ignore-output"]
both = compare({"in turns": in_turns, "asked ahead": lambda: run(order(8))}, rounds=7, unit="ms")
print(both.sentence)
link = 8 * pcie.seconds(home[0].nbytes)
print(both.against("the link alone, predicted", link, "asked ahead"))

# %% [markdown]
# ## Third rung: the package
#
# `Prefetch` does the same for slots of any kind, with the sending on a thread of its own. Before a
# layer computes we ask for it (it is on its way already), ask for the one after it, take it, and
# lend it the slot's memory as its weights. `take` waits, and the waiting is on record. That record
# is what `hidden` reads: 1 − waited ÷ moving.

# %%
from minillm.engine.weights import Streamed

for function in (Streamed._before, Prefetch.take):
    print(f"{function.__name__}:{inspect.getsource(function).split(chr(34) * 3)[-1].rstrip()}")

# %% [markdown]
# ## Turn the knob: how many tokens share a pass?
#
# Llama-3-8B on one H100, layers from DRAM. A pass moves all layers, whether it computes for one
# token or for a thousand. Compute grows with the tokens: 2 FLOP a weight and token, and never less
# than HBM needs to read the weights. Drag: where is the link hidden?

# %% tags=["nbval-ignore-output"]
h100, big = HARDWARE["H100"], 16.06e9  # bytes: Llama-3-8B in bf16


def pass_of(tokens: int) -> tuple[float, float]:
    """Seconds, and the share of the link's time that is hidden."""
    link = big / h100.pcie.bandwidth
    compute = max(big / h100.hbm_bandwidth, big * tokens / h100.bf16_flops)  # 2 bytes, 2 FLOP
    return max(link, compute), min(1.0, compute / link)

# %% tags=["nbval-ignore-output"]
def draw(tokens: int = 64):
    seconds, share = pass_of(tokens)
    return charts.curve(
        f"{charts.counted(tokens, 'token')} a pass: {share:.0%} hidden, {tokens / seconds:,.0f} "
        "tokens/s at most",
        {"": lambda n: 100 * pass_of(n)[1]}, [2 ** (n / 2) for n in range(31)], x="tokens a pass",
        y="hidden", unit="%", at=tokens, span=(0, 100), inks={"": "hbm"},
        note="Llama-3-8B streamed to one H100 · predicted")  # fmt: skip


knob(draw, tokens=(1, 32768))

# %% [markdown]
# ## Break it: ask too early
#
# Two slots, and we ask for layer 2 before layer 0 has computed. Both live in slot 0.

# %%
early = [("ask", 0), ("ask", 1), ("take", 0), ("ask", 2), ("take", 2), ("compute", 0)]
rest = [step for step in order(8) if step not in early]
broken = run(early + rest)
print("the same result:", torch.equal(broken, expected))

# %% [markdown]
# No error: the shapes are right, and layer 0 computed with the weights of layer 2. That is what the
# waiting is for. `Prefetch` cannot be asked so: it holds a slot until its layer was used.
#
# ## Where it loses: one token at a time
#
# And on *this* machine, without slowed links? Its "HBM" is DRAM, and the link a copy within it.
# Resident and streamed, in turns, so that both meet the same busy moments.

# %% tags=["nbval-ignore-output"]
engines = {"resident": Engine.load(town, Machine.here(hbm="64 MiB")),
           "streamed": Engine.load(town, Machine.here(hbm="6 MiB"),
                                   EngineConfig(weights="stream"))}  # fmt: skip


def token_of(name: str) -> float:
    return float(engines[name].generate("Mia put the red key", greedy)[0].tpot)


here = compare({name: lambda name=name: token_of(name) for name in engines}, unit="ms")
print("a token:", here.sentence)
for engine in engines.values():
    engine.close()

# %% [markdown]
# What you see depends on the machine: a copy beside compute takes memory's time, and without a
# card a core; a small model leaves both idle while it starts its operations. On the H100 nothing is
# left to hide behind: decode at batch 1 reads each weight once, at HBM's pace.

# %% tags=["nbval-ignore-output"]
rates = {"from HBM": h100.hbm_bandwidth, "over PCIe": h100.pcie.bandwidth,
         "from SSD": h100.nvme.bandwidth}  # fmt: skip
for title, bandwidth in rates.items():
    print(f"8B {title:9}: at most {bandwidth / big:6.2f} tokens/s at batch 1 (predicted)")
print(f"hidden: at most {h100.pcie.bandwidth / h100.hbm_bandwidth:.1%} (predicted)")

# %% [markdown]
# So streaming suits work that is large and in no hurry: a batch shares each crossing. Otherwise:
# fewer bytes a weight, or more GPUs (lesson 41).
#
# ## On paper: 70B on one GPU
#
# An H100 holds `resident` bytes of a model; the other `streamed` bytes come over PCIe in every
# pass. Transfers and compute overlap. Compute has to read every weight from HBM, and does 2 FLOP a
# token for each weight of 2 bytes. How many tokens a second, for `tokens` in a pass?

# %%
def tokens_per_second(resident, streamed, tokens, link, hbm, flops) -> float:
    raise NotImplementedError  # bytes; bytes a second; FLOP a second

tokens_per_second = check("13.2", tokens_per_second)
# hint("13.2")

# %%
for tokens in (1, 64, 4096):
    rate = tokens_per_second(70e9, 71e9, tokens, 64e9, 3350e9, 989e12)
    print(f"Llama-3-70B, {tokens:5,} tokens a pass: {rate:8,.1f} tokens/s (predicted)")

# %% [markdown]
# ## Five questions
#
# Answer each in your head, then open it.

# %% tags=["folded"]
recall(
    ("A layer takes 3 ms to arrive and 1 ms to compute. With two slots, a pass of 32 layers?",
     "About 32 · 3 ms: the link sets the pace, and a third of its time is hidden."),
    ("Why two slots, and not one?",
     "While a layer computes in one, the next arrives in the other."),
    ("What goes wrong if a slot is filled too early, and what tells you?",
     "A layer computes with another's weights; nothing complains, only the words are wrong."),
    ("Streaming weights at batch 1 is slow. Why does a large batch help?",
     "The weights cross the link once a pass, and a pass then serves many tokens."),
    ("Would a third slot make decode at batch 1 faster on a server?",
     "No: the link is busy all the time, and it is the slower one."),
)

# %% [markdown]
# ## Three takeaways, with the numbers of your run

# %% tags=["nbval-ignore-output", "folded"]
print(f"1. {format_size(weights.nbytes)} of weights ran in {peak} of HBM, with the same words.")
print(f"2. Over the scaled link a token took {1e3 * median(dram):.1f} ms "
      f"({1e3 * least['DRAM']:.1f} predicted), {found.share:.0%} hidden (emulated).")
print(f"3. By hand: {both.sentence}.")

# %% [markdown]
# ## Your guesses
#
# How far were they, here and in the lessons before?

# %%
guesses()

# %% [markdown]
# **Next:** `20_tokens_bpe`. The weights are where they belong. Now the text must become numbers.
