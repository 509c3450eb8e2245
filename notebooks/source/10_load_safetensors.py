# %% [markdown]
# # 10 · What is in a checkpoint, and why is the second load so much faster?
#
# <img src="images/strip_load.png" width="672" alt="The five stages of the course. You are here:
# 1 load, weights come in.">
#
# We open a checkpoint with nothing but Python, name each of its bytes, and then load one twice. The
# first time and the second time tell two different stories. *Forty-five minutes; the code
# behind it: [`minillm/load/safetensors.py`](../minillm/load/safetensors.py) and
# [`minillm/load/readers.py`](../minillm/load/readers.py).*

# %% tags=["nbval-ignore-output"]
import json
import struct
import time
from pathlib import Path

from safetensors.torch import load_file

import minillm
from minillm import CheckpointError, Machine, ModelConfig, charts, format_size
from minillm.lesson import (Comparison, check, compare, guess, guesses, hint, knob, recall,
                            reveal)  # fmt: skip
from minillm.load import Checkpoint, Reader, drop, read_header
from minillm.predict import load_time, parameters

print(Machine.here().describe())

# %% [markdown]
# Six words:
#
# - **checkpoint**: the folder with a model's weights and settings.
# - **header**: the part of a file that says what the rest means.
# - **dtype**: how a number is stored, such as F32 in four bytes or BF16 in two.
# - **page cache**: DRAM in which the system keeps what it has read from files, page by page.
# - **cold**, **warm**: a load that finds nothing in the page cache, or everything.
# - **direct**: a way to read that goes past the page cache; the ordinary one, `read`, uses it.

# %% [markdown]
# ## A checkpoint of 70 bytes
#
# The format is called *safetensors*. A file has three parts: eight bytes that say how long the
# header is; the header, a JSON text; then the numbers of all tensors, one after the other. We
# write one by hand. It holds one tensor, two numbers of four bytes.

# %%
numbers = struct.pack("<2f", 1.0, 2.0)  # little-endian, two floats
entry = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, len(numbers)]}}
header = json.dumps(entry, separators=(",", ":")).encode()
toy = struct.pack("<Q", len(header)) + header + numbers

print(toy[:8], header.decode(), numbers, sep="\n")
print(len(toy), "bytes =", 8, "+", len(header), "+", len(numbers))

# %% [markdown]
# Count along. The offsets in the header count from the end of the header, so the first tensor
# begins at 0. Nothing in such a file can run as code. That is the "safe" in its name: an older
# format, pickle, is a program, and whoever loads it runs it.
#
# ## Exercise 1: read the header
#
# Write the other direction. `data` are the first bytes of a file; return what the JSON says, as a
# dict.


# %%
def parse_header(data: bytes) -> dict:
    raise NotImplementedError  # your lines, or hint("10.1"); without them we go on with ours


parse_header = check("10.1", parse_header)

# %% [markdown]
# ## The real one
#
# The model of this course lies in `data/town`, in two such files, called shards. We read the first
# with the function you have just written.

# %%
town = Path(minillm.__file__).parents[1] / "data" / "town"
shard = min(town.glob("*.safetensors"))
raw = shard.read_bytes()
found = parse_header(raw)
for name in list(found)[:4]:
    print(name, found[name] if name != "__metadata__" else "(notes)")
print("…", len(found), "entries in", shard.name)

# %% [markdown]
# `BF16` is a number of two bytes: the upper half of a 32-bit float. It keeps the range and drops
# digits. So we can read a weight by hand: put two zero bytes below it, and it is a float again. The
# library that everybody uses is the judge.

# %%
name = "model.layers.0.input_layernorm.weight"
start = 8 + int.from_bytes(raw[:8], "little") + found[name]["data_offsets"][0]
by_hand = struct.unpack("<f", b"\0\0" + raw[start : start + 2])[0]
assert by_hand == float(load_file(shard)[name][0])
print(f"bytes {start} and {start + 1} of the file: {raw[start : start + 2].hex()} = {by_hand}")

# %% [markdown]
# What are the bytes for? We add up those of both shards, and check the sum against arithmetic:
# `parameters(config)` counts a model's numbers from its settings alone. The MLP, which lesson 30
# calls the feed-forward network, holds most.

# %%
checkpoint, config = Checkpoint.open(town), ModelConfig.from_pretrained(town)
sizes = dict.fromkeys(("embed_tokens", "self_attn", "mlp", "norm"), 0)
for info in checkpoint.tensors.values():
    part = "norm" if "norm" in info.name else next(p for p in sizes if p in info.name)
    sizes[part] += info.nbytes

for part, nbytes in sizes.items():
    print(f"{part:13} {format_size(nbytes):>9}  {'█' * round(40 * nbytes / checkpoint.nbytes)}")
assert checkpoint.nbytes == 2 * parameters(config)
print(f"{parameters(config):,} numbers of 2 bytes predicted; {checkpoint.nbytes:,} bytes found")

# %% [markdown]
# ## Break it: a file that lies
#
# A header is a claim. It may be cut off, or say that a tensor lies beyond the end of the file. A
# parser that believes it reads other bytes as weights, or asks for memory without end. Ours checks
# everything before it reads a single number.

# %%
from minillm.files import temporary_folder

scratch = temporary_folder()
file = Path(scratch.name) / "toy.safetensors"
lies = {"cut short": toy[:-3], "a long header": struct.pack("<Q", 2**60) + b"{}"}
for title, data in lies.items():
    file.write_bytes(data)
    try:
        read_header(file)
    except CheckpointError as error:
        print(f"{title}: {error}\n".replace(f"{file.parent}/", ""))

# %% [markdown]
# ## Predict
#
# Twelve megabytes are read before one has looked at the clock. So we write a checkpoint of a real
# model's shape, SmolLM2 with 360 million parameters, with random weights: only the answers would
# be nonsense. It lies here, beside the notebooks, if this folder is on a disk and takes files.
#
# Lesson 01 has measured what this machine gives at most. (If it did not, that is done now, in some
# fifteen seconds.)

# %% tags=["nbval-ignore-output"]
from minillm.machine.disk import writable_folder
from minillm.probe import Profile, probe
from minillm.tools.make_checkpoint import make_checkpoint

disk = temporary_folder(writable_folder())  # goes with the kernel
make_checkpoint("360m", disk.name)
big = Checkpoint.open(disk.name)
machine, profile = Machine.here(), Profile.here() or probe(seconds=10)
here = profile.hardware(machine.device.type)
rates = {"SSD": here.nvme.bandwidth, "out of the page cache": here.page_cache,
         "to HBM": here.pcie.bandwidth}  # fmt: skip
print(f"{big.nbytes / 1e6:,.0f} MB in {len(big.tensors)} tensors; at most",
      ", ".join(f"{title} {rate / 1e6:,.0f} MB/s" for title, rate in rates.items()))  # fmt: skip

# %% [markdown]
# By hand, with round numbers: 12 GB, an SSD of 3 GB/s, 12 GB/s out of the cache, 12 to HBM.
#
# | load | first leg | second leg | time |
# |---|---|---|---|
# | cold | SSD, 4 s | to HBM, 1 s, meanwhile | 4 s: the longer leg |
# | warm, a GPU | cache, 1 s | to HBM, 1 s, meanwhile | 1 s |
# | warm, no GPU | cache, 1 s | to "HBM", 1 s, by the same cores | 2 s: the sum |
#
# Now your machine, with the line above. Cold and warm with `read`, and cold with `direct`: is that
# quicker than with `read`, the same, slower?

# %%
by_read = guess("cold, read", unit="ms")
by_cache = guess("warm, read", unit="ms")
by_direct = guess("cold, direct", unit="ms")

# %% tags=["nbval-ignore-output"]
cold, warm = load_time(big.nbytes, here), load_time(big.nbytes, here, cached=True)
for title, load in (("cold, both ways", cold), ("warm", warm)):
    parts = ", ".join(f"{part} {1e3 * seconds:.0f} ms" for part, seconds in load.parts.items())
    print(f"{title}: {1e3 * load.seconds:.0f} ms (predicted), of {parts}")

# %% [markdown]
# ## Run
#
# `drop` asks the system to forget a file, which needs no special rights. The memory for the
# weights is made and touched before: that time is another story, told in lesson 11. So is
# *staging*, the buffers in DRAM through which a `Reader` brings the bytes. First the cold load:
# watch the SSD.


# %% tags=["nbval-ignore-output"]
from minillm.machine.arena import Arena

infos = list(big.tensors.values())
arena = Arena(machine, {i.name: (i.shape, i.dtype) for i in infos}, "hbm", "weights")
arena.block.zero_()  # touched: the memory is there
if not drop(big.files):
    print("This system cannot be told to forget a file: what is called cold below is warm.")


def seconds_to_load(how: str, is_cold: bool) -> float:
    if is_cold:
        drop(big.files)
    with Reader(machine, how, infos) as reader:  # makes staging
        start = time.perf_counter()
        reader.fill(arena.places, infos)
        return time.perf_counter() - start


# %% tags=["nbval-ignore-output"]
machine.trace.count("ssd", "weights", big.nbytes)
with charts.watch(machine.trace, "machine"):
    first = seconds_to_load("read", is_cold=True)
    machine.trace.count("dram", "page cache", big.nbytes)  # the system's, so we tell the trace

# %% [markdown]
# And the same again. Watch the SSD, and what DRAM holds.

# %% tags=["nbval-ignore-output"]
machine.trace.clear()
machine.trace.count("ssd", "weights", big.nbytes)
machine.trace.count("dram", "page cache", big.nbytes)
with charts.watch(machine.trace, "machine"):
    second = seconds_to_load("read", is_cold=False)

# %% [markdown]
# The file did not change, and neither did our code. What changed is where the bytes came from. The
# first load asked the SSD, and on the way the system kept each page in DRAM. A `Reader` asks how
# much of a file is there when it opens it, and the trace knows:

# %% tags=["nbval-ignore-output"]
(event, *_) = machine.trace.select(name="read", label="weights")
print(f"the second load: {event.detail.split('; ')[1]}")
twice = f"{1e3 * first:.0f} ms, then {1e3 * second:.0f} ms"
print(f"{twice}: the second was {first / second:.1f} × as fast" if second < first else
      f"{twice}: no faster. The file was warm before, or another was at work: run it again")

# %% [markdown]
# ## Three ways to read a file
#
# - `read`: the system copies out of its page cache into staging; from there we copy to HBM.
# - `mmap`: the file appears in our memory. Its pages are those of the cache, and come when they
#   are first touched. A copy less; instead each page interrupts the program, a *page fault*.
# - `direct`: the SSD writes into staging (`O_DIRECT`), and from there we copy to HBM. Usually it
#   passes the cache by.
#
# Of the six, which will take longest? Which two will be alike?

# %% tags=["nbval-ignore-output"]
from functools import partial

order = ("cold read", "warm read", "warm mmap", "warm direct", "cold mmap", "cold direct")
ways = {w: partial(seconds_to_load, w.split()[1], w.startswith("cold")) for w in order}
result = compare(ways, rounds=5, unit="ms")  # in turns; `cold read` has filled the cache

took = {name: 1e3 * result.median(name) for name in ways}
for name, seconds in result.seconds.items():
    bar, spread = "█" * round(40 * took[name] / max(took.values())), max(seconds) / min(seconds)
    print(f"{name:12} {took[name]:5.0f} ms  {bar}  longest ÷ shortest {spread:.1f}")
for pair in order[0::5], order[3::2], order[1:3]:
    print(Comparison({name: result.seconds[name] for name in pair}, "ms").sentence)

# %% [markdown]
# Medians of five. Linux's `O_DIRECT` does not ask the cache, so to `direct` a warm file is a cold
# one (macOS looks there too). Your guesses, beside the arithmetic:

# %% tags=["nbval-ignore-output"]
of = {"cold read": (by_read, cold), "warm read": (by_cache, warm), "cold direct": (by_direct, cold)}
for name, (mine, load) in of.items():
    samples = [1e3 * seconds for seconds in result.seconds[name]]
    reveal(mine, predicted=1e3 * load.seconds, measured=samples)

# %% [markdown]
# What may keep a load from the prediction? The SSD's ceiling was read with several requests in
# flight, and left in DRAM. `direct` asks with six threads, and goes on to HBM. `read` asks with
# two, and page by page the system finds room in DRAM, fills it, copies it. And one thread copies
# to HBM, where lesson 01 used all.
#
# ## Break it: loaded in no time
#
# With `mmap` some programs claim to load gigabytes at once. Opening the map is one thing, having
# the bytes another.

# %% tags=["nbval-ignore-output"]
import mmap

drop(big.files)
with big.files[0].open("rb") as file:
    start = time.perf_counter()
    pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    opened = time.perf_counter()
    total = sum(pages[i] for i in range(0, len(pages), 4096))  # one byte of each page
    touched = time.perf_counter()

print(f"mapped in {1e3 * (opened - start):.2f} ms; all pages here after {touched - start:.2f} s")

# %% [markdown]
# Nothing had moved when the map was open. The bytes come when they are touched, and then the
# program waits without knowing why. `mmap` is good when few of the bytes are needed, or when many
# programs share them.
#
# ## Exercise 2: a page cache
#
# Build it. `asked` are the pages that a program reads, in order; the cache has room for `room` of
# them (one or more). If it is full, it forgets the page that was used longest ago. How many reads
# go to the SSD?


# %%
def reads_of_ssd(asked: list, room: int) -> int:
    raise NotImplementedError  # your lines, or hint("10.2")


reads_of_ssd = check("10.2", reads_of_ssd)

# %%
once = list(range(12))  # a file of twelve pages
for room in (16, 12, 11, 6):
    again = reads_of_ssd(once + once, room) - reads_of_ssd(once, room)
    print(f"room for {room:2}: the first load asks the SSD for 12 pages, the second for {again}")

# %% [markdown]
# ## Where it loses
#
# One page too few, and nothing is left: page 0 was forgotten to make room for the last, page 1
# to make room for page 0, and so on round. Page caches forget by finer rules than ours, so there
# the cliff is a slope; but it stands at the same place, and every other program takes room.
#
# ## Turn the knob
#
# Several models of that size are loaded in turns, again and again. Your cache decides what is
# warm, `load_time` how long it takes.


# %%
def later_load(models: int, room: int) -> float:
    """Seconds of a load after the first round; room in MiB."""
    block = 16 * 2**20  # bytes of a page here, so that there are few
    once = list(range(models * round(big.nbytes / block)))
    misses = reads_of_ssd(once + once, max(1, room * 2**20 // block)) - len(once)
    share = misses / len(once)
    return share * cold.seconds + (1 - share) * warm.seconds


# %% tags=["nbval-ignore-output"]
def draw(models: int = 2, room: int = 1024):
    took = later_load(models, room)
    finding = f"{models} × {format_size(big.nbytes)}, {room:,} MiB of cache: {1e3 * took:.0f} ms"
    return charts.curve(finding, {"": partial(later_load, models)}, range(128, 4097, 64),
                        x="page cache (MiB)", y="time of a load", unit="s", at=room, log="",
                        span=(0, 1.1 * max(cold.seconds, warm.seconds)), inks={"": "dram"},
                        note="each load after the first round · predicted")  # fmt: skip


knob(draw, models=(1, 5), room=(128, 4096))

# %% [markdown]
# ## Exercise 3, on paper: one server, several models
#
# A server's SSD gives `ssd` bytes a second, its page cache `cache`. It loads `models`, a list of
# sizes in bytes, in turns, again and again, with `room` bytes for a cache like yours. Seconds of a
# round, after the first?


# %%
def round_seconds(models: list, room: float, ssd: float, cache: float) -> float:
    raise NotImplementedError  # your lines, or hint("10.3")


round_seconds = check("10.3", round_seconds)

# %%
for room in (30e9, 64e9):
    print(f"{room / 1e9:.0f} GB of cache: {round_seconds([16e9, 16e9, 16e9], room, 7e9, 20e9):.1f}"
          " s a round of three models of 8B (predicted)")  # fmt: skip

# %% [markdown]
# So which way should you use? A server that loads a model once reads `direct`, and its DRAM is free
# for something better. A laptop on which you start the same model ten times a day is glad of the
# cache.
#
# ## Five questions
#
# Answer each in your head, then open it.

# %% tags=["folded"]
recall(
    ("What are the three parts of a safetensors file?",
     "Eight bytes with the header's length, the header (JSON), the numbers of all tensors."),
    ("Why is it called safe?",
     "It holds numbers and a description, no program; and every claim can be checked at once."),
    ("Where do the bytes of a second load come from?",
     "Out of the page cache: the system kept the pages in DRAM. The SSD is not asked again."),
    ("A program maps a file of 16 GB in 2 ms. What has it read?",
     "Nothing. Each page comes when it is touched, and then the program waits for it."),
    ("A model is 1 GB larger than the page cache. How much of its second load is warm?",
     "If the cache forgets what was used longest ago, nothing: each page went before its turn."),
)  # fmt: skip

# %% [markdown]
# ## Three takeaways, with the numbers of your run, and your guesses

# %% tags=["nbval-ignore-output", "folded"]
print(f"1. A checkpoint is arithmetic: {big.nbytes // 2:,} numbers × 2 bytes, and a header.")
print(f"2. Cold `read` took {took['cold read']:.0f} ms ({1e3 * cold.seconds:.0f} predicted), "
      f"warm {took['warm read']:.0f} ms ({1e3 * warm.seconds:.0f} predicted).")
print(f"3. `direct` took {took['cold direct']:.0f} ms cold and {took['warm direct']:.0f} warm: "
      "it asks the SSD each time.")

# %%
guesses()

# %% [markdown]
# **Next:** `11_load_stream`. Two links, one after the other: how do both work at once?
