# %% [markdown]
# # 51 · How do ids become text again, and what is kept?
#
# <img src="images/strip_decode.png" width="672" alt="The five stages of the course. You are here:
# 5 decode, scores become text.">
#
# The model has chosen an id. It is not a letter yet, it may be a part of one, and the answer may
# have ended without saying so. And when we stop tonight: what must be kept so that we go on
# tomorrow with the same words? *Forty minutes; the code behind it:
# [`decode/detokenize.py`](../minillm/decode/detokenize.py),
# [`decode/session.py`](../minillm/decode/session.py),
# [`engine/log.py`](../minillm/engine/log.py).*

# %% tags=["nbval-ignore-output"]
import inspect
import json
import subprocess
import sys
import time
from pathlib import Path

import minillm
from minillm import Engine, EngineConfig, Machine, ModelConfig, SamplingParams, charts, predict
from minillm.lesson import check, compare, guess, guesses, hint, knob, recall, reveal

print(Machine.here().describe())

# %% [markdown]
# Six words:
#
# - **token bytes**: the bytes that a token stands for; in UTF-8 a character has one to four.
# - **U+FFFD**: the mark �, which a decoder writes for bytes that are no character.
# - **stop string**: a text that ends the answer, and is not a part of it.
# - **session**: the ids of a conversation with its KV cache, in a file.
# - **restore**: to bring a session to HBM; **anew**: to read its ids again, a prefill.
# - **break-even**: the length from which restoring is sooner.

# %% [markdown]
# ## A small bakery
#
# Dough for tomorrow can lie in the cellar, or be made anew. The way to the cellar takes 12 minutes,
# there and back, and a minute a loaf to carry. Dough made anew takes 2 minutes to begin, and 3 a
# loaf. How many loaves make the way worth it?

# %%
def bakery(loaves: int, way=12, carry=1, begin=2, make=3) -> tuple:
    return way + carry * loaves, begin + make * loaves


print({loaves: bakery(loaves) for loaves in (1, 4, 5, 6, 20)})

# %% [markdown]
# The way costs 12 − 2 minutes more, and each loaf makes up 3 − 1: equal at 10 ÷ 2 = 5 loaves, and
# from 6 on the cellar is sooner.
#
# Loaves are tokens, the cellar is the SSD. Either way is **start + tokens × cost of one**: bytes ÷
# link, or FLOP ÷ compute.
#
# ## Predict
#
# A conversation of 976 tokens, 3 KB of keys and values each. How long until its *next* token, if it
# is restored from the SSD? If its ids are read anew? And of 30 tokens anew?

# %%
restored = guess("next token of 976, restored", unit="ms")
all_anew = guess("next token of 976, read anew", unit="ms")
few_anew = guess("next token of 30, read anew", unit="ms")

# %% [markdown]
# ## Run
#
# We answer a question of *town*'s exam, whose fact was told a thousand tokens ago.

# %% tags=["nbval-ignore-output"]
from minillm.files import temporary_folder
from minillm.machine.disk import drop_cache, writable_folder

town = Path(minillm.__file__).parents[1] / "data" / "town"
config = ModelConfig.from_pretrained(town)
folder = temporary_folder(writable_folder())  # on a disk; it goes with this kernel
tonight, log = Path(folder.name) / "tonight.safetensors", Path(folder.name) / "log.jsonl"
exam = [json.loads(line) for line in (town.parent / "eval" / "skills.jsonl").open()]
prompt = next(q["prompt"] for q in exam if q["distance"] > 940 and "cabin" in q["answer"])
machine, settings = Machine.here(hbm="64 MiB"), EngineConfig(log=str(log))
engine = Engine.load(town, machine, settings)


def greedy(tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)


def said(prompt, tokens: int, save=None) -> str:
    return "".join(piece.text for piece in engine.stream(prompt, greedy(tokens), save))

# %% [markdown]
# The answer is cut after eight tokens and saved: `stream(…, save=file)`. Watch what flows when it
# ends: pages from HBM to DRAM, and the file to the SSD. That is the last stage of the journey.

# %% tags=["nbval-ignore-output"]
never_stopped = said(prompt, 24)
machine.trace.clear()
with charts.watch(machine.trace, "machine"):
    first_part = said(prompt, 8, save=tonight)

# %% tags=["nbval-ignore-output"]
written = machine.trace.select(kind="transfer", target="ssd", label="session")
assert sum(move.nbytes for move in written) == tonight.stat().st_size  # traced = the file's bytes
print(f"{prompt[-40:]!r} … {first_part!r}, and {tonight.stat().st_size:,} bytes on SSD")

# %% [markdown]
# Now throw all of it away: a new process, which knows nothing but the file. It goes on, and we
# compare its words with those of the run that never stopped.

# %%
program = """
import sys
from minillm import Engine, Machine, SamplingParams
engine = Engine.load("data/town", Machine.here(hbm="64 MiB"))
session = engine.resume(sys.argv[1])
params = SamplingParams(max_tokens=16, temperature=0.0, ignore_eos=True)
print("".join(piece.text for piece in engine.stream(session, params)), end="")
"""


def tomorrow(file) -> str:
    command = [sys.executable, "-c", program, str(file)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


assert first_part + tomorrow(tonight) == never_stopped
print("the same words, from another process")

# %% [markdown]
# What does it cost? A file that was just written lies in the page cache (lesson 10); we have the
# operating system forget it first. The time runs from opening the file to the next token. A race
# runs both ways in turns.

# %%
def restore(file) -> float:
    """Seconds from the file to the next token."""
    with file.open("rb") as opened:
        drop_cache(opened.fileno())
    began = time.perf_counter()
    next(engine.stream(engine.resume(file), greedy(1)))
    return time.perf_counter() - began


def anew(ids) -> float:
    began = time.perf_counter()
    next(engine.stream(ids, greedy(1)))
    return time.perf_counter() - began

# %%
ids = list(engine.resume(tonight))
assert len(ids) == 976


def race(tokens: int, rounds: int = 3):
    """Both ways to the next token of a conversation of so many."""
    file = tonight if tokens == len(ids) else tonight.with_name(f"{tokens}.safetensors")
    if not file.exists():
        said(ids[: tokens - 1], 1, save=file)
    ways = {"restore": lambda: restore(file), "anew": lambda: anew(ids[:tokens])}
    return compare(ways, rounds, unit="ms")

# %% [markdown]
# Of each way the peaks of this machine give a **limit**: bytes and arithmetic at their best. No
# start is in it: no file opened, no bit checked, no layer begun. For a prediction we time two small
# orders, as the baker would: sessions of 8 and of 256 tokens. What they differ by is the cost of
# 248 tokens, and what is left is the start. No token costs less than its limit.

# %% tags=["nbval-ignore-output"]
from minillm.probe import Profile, probe

figures = (Profile.here() or probe(seconds=8)).hardware("cpu")
tried = {tokens: race(tokens, rounds=5) for tokens in (8, 256)}
least, start, cost = predict.restore(config, figures, 256, "ssd").parts, {}, {}
for way, limit in (("restore", "swap"), ("anew", "recompute")):
    few, many = (tried[n].median(way) for n in (8, 256))
    cost[way] = max((many - few) / 248, least[limit] / 256)
    start[way] = max(0.0, few - 8 * cost[way])
    print(f"{way}: {1e3 * start[way]:.1f} ms to start, {1e6 * cost[way]:.0f} µs a token")


def predicted(tokens: int) -> dict[str, float]:
    both = bakery(tokens, start["restore"], cost["restore"], start["anew"], cost["anew"])
    return dict(zip(("restore", "anew"), both, strict=True))

# %% tags=["nbval-ignore-output"]
# Now the long one, beside your guess, the prediction and the limit.
both = tried[976] = race(976)
short = compare({"anew": lambda: anew(ids[:30])}, unit="ms")
print(both.sentence)
for mine, found, tokens, way, limit in (
    (restored, both, 976, "restore", "swap"),
    (all_anew, both, 976, "anew", "recompute"),
    (few_anew, short, 30, "anew", "recompute"),
):
    at_least = predict.restore(config, figures, tokens, "ssd").parts[limit]
    reveal(mine, predicted=1e3 * predicted(tokens)[way], ceiling=1e3 * at_least,
           measured=[1e3 * second for second in found.seconds[way]])  # fmt: skip

# %% [markdown]
# What is over the limit? The start; the checks of every bit; products smaller than the one whose
# best moment is the peak; and whatever else runs on this machine now.
#
# ## First rung: each id alone
#
# Back to the words. *town*'s vocabulary has bytes for what it has no letters for, so an emoji is
# four tokens. We decode each id alone.

# %%
tokenizer = minillm.Tokenizer.from_pretrained(town)
emoji = tokenizer.encode("Mia 😀 smiles", add_special=False)
print([tokenizer.token(token) for token in emoji])
print("".join(tokenizer.decode([token]) for token in emoji))

# %% [markdown]
# Four times the mark �, and no smile: bytes of one character were decoded apart. (Each letter of
# such a token is one byte's name, as in GPT-2; `_spelled` gives the bytes.)
#
# ## Second rung: wait for the mark
#
# A rule that many servers have had: decode all bytes so far; while the text ends in �, wait. The
# smile comes whole. Then a model writes a byte that is no character, or means the mark itself.

# %%
from minillm.decode.detokenize import _spelled


def waiting(pieces: list) -> list:
    """What is shown after each piece of bytes, by that rule."""
    held, shown = b"", []
    for piece in pieces:
        text = (held + piece).decode("utf-8", "replace")
        held, text = (held + piece, "") if text.endswith("\ufffd") else (b"", text)
        shown.append(text)
    return shown

# %%
print(waiting([_spelled(tokenizer.token(token)) for token in emoji]))
print(waiting([b"ok ", b"\xff", b"\xfe", b"\xff"]), waiting(["Not a letter: \ufffd".encode()]))

# %% [markdown]
# The smile is whole. But bytes that are invalid for good wait for ever, and a text whose last
# letter *is* U+FFFD is never shown. The text cannot tell the two apart; the bytes can.
#
# ## Third rung, yours: ask the bytes
#
# Return the text that is certain, and the bytes at its end that may still become a character. What
# can become none any more is certain too: it is shown as U+FFFD.

# %%
def certain(data: bytes) -> tuple[str, bytes]:
    raise NotImplementedError  # (text, bytes that wait); without your lines we go on with ours

certain = check("51.1", certain)
# hint("51.1")

# %% [markdown]
# Piece by piece, as tokens come. What still waits at the end was never finished.

# %%
def asking(pieces: list) -> list:
    held, shown = b"", []
    for piece in pieces:
        text, held = certain(held + piece)
        shown.append(text)
    return [*shown, held.decode("utf-8", "replace")]

# %%
print(asking([_spelled(tokenizer.token(token)) for token in emoji]))
print(asking([b"ok ", b"\xff", b"\xfe", b"\xff"]), asking(["Not a letter: \ufffd".encode()]))
for text in ("Mia 😀 smiles", "žluť, 你好, 🧑‍🚒", "\ufffd"):
    tokens = [_spelled(tokenizer.token(t)) for t in tokenizer.encode(text, add_special=False)]
    assert "".join(asking(tokens)) == text

# %% [markdown]
# ## Fourth rung, yours: a stop string
#
# An answer shall end before "\nTom:". The tokens come one by one, and what was shown cannot be
# taken back. Return what may be shown of the text so far, and what waits; `None` if the stop string
# has come.

# %%
def before_stop(text: str, stop: str) -> tuple:
    raise NotImplementedError  # (shown, waits or None); without your lines we go on with ours

before_stop = check("51.2", before_stop)
# hint("51.2")

# %%
shown, held = [], ""
for piece in ["Mia left.", "\n", "Then", " she", "\nT", "om", ": no", " more"]:
    text, held = before_stop(held + piece, "\nTom:")
    shown.append(text)
    if held is None:
        break
print(shown)
assert "".join(shown) == "Mia left.\nThen she"

# %% [markdown]
# The line break waits for a moment, and comes with "Then". Of the stop string not one letter was
# seen. The package does both, for every kind of tokenizer; this is its reader of bytes:

# %%
from minillm.decode.detokenize import _Bytes

print(inspect.getsource(_Bytes.add) + "\n" + inspect.getsource(_Bytes.held))

# %% [markdown]
# ## What is in the file?
#
# A session is a safetensors file (lesson 10): pages, and in its metadata what must agree. Of 976
# tokens 975 are in it: the last was chosen, and never read. Its pass gives the next token.

# %%
from minillm.load.safetensors import read_header

pages, data = read_header(tonight), tonight.read_bytes()
head = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
facts = json.loads(head["__metadata__"]["session"])
print({name: facts[name] for name in ("format", "dtype", "page_size", "tokens")})
print({name: pages[name].shape for name in ("page.0", "page.1", "checksum")}, "…")

# %% [markdown]
# A page: layers, keys and values, kv heads, its tokens, numbers a head. The checksum's four bytes
# are written as two numbers of two. The text itself is short: how many bytes of cache has a byte of
# it? A token is about four letters; two larger models, by arithmetic:

# %%
def llama(layers: int, width: int, ffn: int, heads: int) -> ModelConfig:
    return ModelConfig(vocab_size=128256, hidden_size=width, intermediate_size=ffn,
                       num_hidden_layers=layers, num_attention_heads=heads, dtype="bfloat16",
                       num_key_value_heads=8)  # fmt: skip


large = llama(80, 8192, 28672, 64)
models = {"town": config, "Llama-3-8B": llama(32, 4096, 14336, 32), "Llama-3-70B": large}

# %%
letters = len(prompt.encode()) / len(tokenizer.encode(prompt))
for name, model in models.items():
    nbytes = predict.kv_bytes_per_token(model)
    print(f"{name:11}: {nbytes:7,} bytes a token, {nbytes / letters:7,.0f} × its text")
assert predict.kv_bytes_per_token(large) / letters > 1e4

# %% [markdown]
# Why keep ten thousand times the text? Because the text must be computed into that again: we store
# time.
#
# ## Break it
#
# A cache that fits almost is worse than none: the answers would be wrong, and nobody would know. So
# we flip one bit, cut the file, and ask an engine of another dtype.

# %%
from minillm.errors import SessionError
from minillm.files import save


def refused(data: bytes, other=None) -> str:
    broken = tonight.with_name("broken.safetensors")
    save(broken, data)
    try:
        (other or engine).resume(broken)
    except SessionError as error:
        return str(error).partition(" in ")[0]
    raise AssertionError("it was taken")


wide, flipped = EngineConfig(dtype="float32"), bytearray(data)
flipped[len(data) // 2] ^= 1
print("one bit:", refused(flipped), "\ncut:", refused(data[:-1000]))
print("fp32:", refused(data, Engine.load(town, Machine.here(hbm="64 MiB"), wide)))

# %% [markdown]
# A full disk is no danger to what was there before: a new file is written beside the old one, put
# on disk, and then takes its name. Of two writers one is last, and its file is whole.
#
# ## From which length on?
#
# `fixed`: what restoring costs more at its start, as the way to the cellar; `restore`, `anew`: the
# cost of a token each way; all in the same unit. Return the fewest tokens for which restoring is
# sooner, or `None`.

# %%
def break_even(fixed: float, restore: float, anew: float):
    raise NotImplementedError  # an int or None; without your lines we go on with ours

break_even = check("51.3", break_even)
# hint("51.3")

# %% [markdown]
# Predicted from the two short sessions; then we try lengths around it.

# %% tags=["nbval-ignore-output"]
fixed = max(0.0, start["restore"] - start["anew"])
even = break_even(fixed, cost["restore"], cost["anew"])
from_here = f"from length {even} on" if even else "at no length"
print(f"predicted: restoring pays {from_here}")

# %% tags=["nbval-ignore-output"]
tried |= {tokens: race(tokens) for tokens in (16, 32, 64)}
print(*(f"{n:4} tokens: {found.sentence}" for n, found in sorted(tried.items())), sep="\n")
sooner = [n for n, found in sorted(tried.items()) if found.faster("restore", "anew") == "restore"]
print(f"predicted {from_here}; found: {sooner[0] if sooner else 'no length'} is the shortest tried "
      "at which restoring was sooner, beyond the noise")

# %% [markdown]
# Drag the length: where do the lines cross, and how far apart are they for a long talk? Where a
# point leaves its line, look for what is not straight: few tokens may take another product (in C),
# attention grows with the square of the length, and a busy machine is not even.

# %% tags=["nbval-ignore-output"]
def draw(tokens=64):
    lines = {way: lambda n, way=way: max(1e-5, predicted(n)[way]) for way in start}
    way = min(lines, key=lambda way: lines[way](tokens))
    return charts.curve(
        f"{tokens} tokens: {way} is predicted sooner; restoring pays {from_here}", lines,
        [2 ** (n / 2) for n in range(6, 21)], at=tokens, log="xy", unit="s",
        x="tokens of the conversation", y="until its next token", inks={"restore": "ssd"},
        points=[(n, found.median(way), "") for n, found in tried.items() for way in lines],
        note="lines: predicted from 8 and 256 tokens; points: measured")  # fmt: skip


knob(draw, tokens=(8, 1024))

# %% [markdown]
# ## The log
#
# Each request of this lesson has left a line on the SSD, and no word of what was said. Six
# questions come together, and a seventh whose reader leaves. Here is its line (times in seconds;
# bytes: 4,096 logits down, ids up), and the last ones as a picture: dark until the first token,
# light for the others.

# %% tags=["nbval-ignore-output"]
engine.generate([q["prompt"] for q in exam[:6]],
                SamplingParams(max_tokens=20, temperature=0.0, stop="."))  # fmt: skip
leaving = engine.stream(prompt, greedy(20))
print(repr(next(leaving).text), "is enough")
leaving.close()
line = json.loads(log.read_text().splitlines()[-1])
print({name: line[name] for name in line if name != "settings"})
assert line["finish_reason"] == "abort" and "cabin" not in log.read_text()
charts.requests(log, most=7)

# %% [markdown]
# If the disk is full, lines are counted, not written (`engine.log.lost`). At 16 MiB a new
# file begins; one older is kept.
#
# ## Where it loses: a server
#
# A 70B model on eight GPUs, a session of 8,192 tokens saved to NVMe. `kv`: bytes of a token;
# `weights`: how many; `drive`, `pcie`: bytes a second of one; `flops`: what a GPU reaches. Drives
# and PCIe work at the same time, on different pieces. Return the seconds to restore, and to read
# anew (2 FLOP a weight and token; attention left out).

# %%
def both_ways(tokens, kv, weights, drive, drives, pcie, gpus, flops) -> tuple:
    raise NotImplementedError  # (restore, anew); without your lines we go on with ours

both_ways = check("51.4", both_ways)
# hint("51.4")

# %%
kv, weights, reached = predict.kv_bytes_per_token(large), 70_600_000_000, 0.5 * 989e12
for drives in (1, 2, 4):
    bring, compute = both_ways(8192, kv, weights, 7e9, drives, 55e9, 8, reached)
    print(f"{8192 * kv / 1e9:.2f} GB, {drives} × 7 GB/s: restore {1e3 * bring:.0f} ms, "
          f"anew {1e3 * compute:.0f} ms: {'restore' if bring < compute else 'anew'}")

# %% [markdown]
# (At half of the data sheet's FLOP/s.) One drive brings a token in 47 µs, and to compute it
# takes 36. Length helps late: attention, left out above, adds work to each token that grows with
# the text. And each save wears the drive, at a thousand such sessions an hour:

# %%
for tokens in (8192, 32768, 131072):
    work = predict.prefill(large, "H100", tokens=tokens).flops
    print(f"{tokens:7,} tokens: {1e6 * work / tokens / (8 * reached):.0f} µs a token to compute, "
          f"with attention; {1e6 * kv / 7e9:.0f} to bring from one drive")
written = 1000 * 24 * 8192 * kv
print(f"{written / 1e12:.0f} TB a day; a drive of 4 TB that may be written once a day takes "
      f"{written / 4e12:.0f} drives")

# %% [markdown]
# ## Five questions
#
# Answer each in your head, then open it.

# %% tags=["folded"]
recall(
    ("A text ends in U+FFFD. Does it wait for bytes?",
     "The text cannot tell. If the last bytes begin a character, yes; if they are invalid for "
     "good, or are U+FFFD itself, no."),
    ("Why is the beginning of a stop string held back?",
     "What was shown cannot be taken back, and the next token may complete it."),
    ("A session has the keys and values of all tokens but one. Which, and why?",
     "The last: it was chosen, and never read. Its pass gives the next token."),
    ("Why is a session of another dtype refused, and not converted?",
     "The answers would differ from going on without a stop, and nobody would see why."),
    ("When does no length make restoring worth it?",
     "When a token takes longer to bring over the link than to compute, attention included."),
)

# %% [markdown]
# ## Three takeaways, with the numbers of your run, and your guesses

# %% tags=["nbval-ignore-output", "folded"]
print(f"1. {len(emoji)} tokens, {len('Mia 😀 smiles')} letters: bytes first, then characters.",
      f"2. {tonight.stat().st_size / 1e6:.1f} MB on SSD, and another process said the same words.",
      f"3. {both.sentence}; predicted to pay {from_here}.", sep="\n")  # fmt: skip

# %%
guesses()

# %% [markdown]
# The journey ends here: weights off the SSD, a prompt through HBM, words on the screen, and a cache
# back on the SSD. Ask `00_tour` the same question again: which of its pictures do you read
# differently now?
