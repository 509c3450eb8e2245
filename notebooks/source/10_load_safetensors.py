# %% [markdown]
# # 10 · What is in a checkpoint, and why is the second load so much faster?
#
# <img src="images/strip_load.png" width="672" alt="The five stages of the course. You are here:
# 1 load, weights come in.">
#
# We open a checkpoint with nothing but Python, name each of its bytes, and then load it twice. The
# first time and the second time tell two different stories. *Thirty-five minutes; the code behind
# it: [`minillm/load/safetensors.py`](../minillm/load/safetensors.py) and
# [`minillm/load/readers.py`](../minillm/load/readers.py).*

# %% tags=["nbval-ignore-output"]
import json
import tempfile
import time
from pathlib import Path

import torch

from minillm import CheckpointError, Machine, ModelConfig, charts, format_size
from minillm.lesson import check, guess, hint, knob, recall, reveal
from minillm.load import READERS, Checkpoint, drop, read_header
from minillm.predict import load_time, parameters, weight_bytes

print(Machine.here().describe())

# %% [markdown]
# Six words:
#
# - **checkpoint**: the folder with a model's weights and settings.
# - **header**: the part of a file that says what the rest means.
# - **TensorInfo**: name, dtype, shape and place of one tensor in its file.
# - **page cache**: DRAM in which the system keeps what it has read from files.
# - **cold**, **warm**: a load that finds nothing in the page cache, or everything.
# - **mmap**: a file that appears in memory and is read when it is touched.

# %% [markdown]
# ## A checkpoint of 70 bytes
#
# The format is called *safetensors*. A file has three parts: eight bytes that say how long the
# header is; the header, a JSON text; then the numbers of all tensors, one after the other. We
# write one by hand. It holds one tensor, two numbers of four bytes.

# %%
import struct

numbers = struct.pack("<2f", 1.0, 2.0)  # little-endian, two floats
entry = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, len(numbers)]}}
header = json.dumps(entry, separators=(",", ":")).encode()
toy = struct.pack("<Q", len(header)) + header + numbers

print(toy[:8], toy[8 : 8 + len(header)].decode(), toy[8 + len(header) :], sep="\n")

# %% [markdown]
# Count along: eight bytes for the length, the header, and eight bytes of numbers. The offsets in
# the header count from the end of the header, so the first tensor begins at 0.
#
# Nothing in such a file can run as code. That is the "safe" in its name: an older format, pickle,
# is a program, and whoever loads it runs it.

# %%
print(len(toy), "bytes =", 8, "+", len(header), "+", len(numbers))
assert len(toy) == 8 + len(header) + len(numbers)

# %% [markdown]
# ## Exercise 1: read the header
#
# Write the other direction. `data` are the first bytes of a file; return what the JSON says, as a
# dict.

# %%
def parse_header(data: bytes) -> dict:
    raise NotImplementedError  # your lines; without them the lesson goes on with ours


parse_header = check("10.1", parse_header)
# hint("10.1")

# %%
print(parse_header(toy))

# %% [markdown]
# ## The real one
#
# The model of this course lies in `data/town`, in two such files, called shards. We read the first
# with the function you have just written.

# %%
import minillm

town = Path(minillm.__file__).parents[1] / "data" / "town"
shards = sorted(town.glob("*.safetensors"))
found = parse_header(shards[0].read_bytes())

for name in list(found)[:4]:
    print(name, found[name] if name != "__metadata__" else "(notes)")
print("…", len(found), "entries in", shards[0].name)

# %% [markdown]
# `BF16` is a number of two bytes: the upper half of a 32-bit float. It keeps the range and drops
# digits. So we can read a weight by hand: put two zero bytes below it, and it is a float again.

# %%
info = read_header(shards[0])["model.layers.0.input_layernorm.weight"]
two = shards[0].read_bytes()[info.start : info.start + 2]
by_hand = struct.unpack("<f", b"\0\0" + two)[0]
print(f"bytes {info.start} and {info.start + 1} of the file: {two.hex()} = {by_hand}")

# %% [markdown]
# Now the package and the library, as judges. Both must find the same numbers where we found them.

# %%
from safetensors.torch import load_file
theirs = load_file(shards[0])
assert set(read_header(shards[0])) == set(theirs) == set(found) - {"__metadata__"}
assert float(theirs[info.name][0]) == by_hand
print(f"{len(theirs)} tensors: ours and the library's are the same")

# %% [markdown]
# Where do the bytes go? We add them up by what they are for, and hold the sum against arithmetic:
# `parameters(config)` counts a model's numbers from its settings alone.

# %%
checkpoint = Checkpoint.open(town)
config = ModelConfig.from_pretrained(town)
assert checkpoint.nbytes == weight_bytes(config) == 2 * parameters(config)
print(f"predicted {parameters(config):,} numbers of 2 bytes; found {checkpoint.nbytes:,} bytes")

# %%
sizes = dict.fromkeys(("embed_tokens", "self_attn", "mlp", "norm"), 0)
for info in checkpoint.tensors.values():
    part = next(part for part in reversed(sizes) if part in info.name)
    sizes[part] += info.nbytes

for part, nbytes in sizes.items():
    print(f"{part:13} {format_size(nbytes):>9}  {'█' * round(40 * nbytes / checkpoint.nbytes)}")

# %% [markdown]
# ## A file that lies
#
# A header is a claim. It may be cut off, or say that a tensor lies beyond the end of the file. A
# parser that believes it reads other bytes as weights, or asks for memory without end. Ours checks
# everything before it reads a single number.

# %% tags=["nbval-ignore-output"]
folder = Path(tempfile.mkdtemp(prefix="minillm-"))
lies = {"cut short": toy[:-3], "a long header": struct.pack("<Q", 2**60) + b"{}"}
for title, data in lies.items():
    (folder / "toy.safetensors").write_bytes(data)
    try:
        read_header(folder / "toy.safetensors")
    except CheckpointError as error:
        print(f"{title}: {error}\n".replace(f"{folder}/", ""))

# %% [markdown]
# ## Something large enough to time
#
# Twelve megabytes are read before one has looked at the clock. So we write a checkpoint of a real
# model's shape, SmolLM2 with 135 million parameters, with random weights: the bytes are as many and
# lie as they would, only the answers would be nonsense.

# %% tags=["nbval-ignore-output"]
from minillm.load.make import make_checkpoint
make_checkpoint("135m", folder / "135m")
big = Checkpoint.open(folder / "135m")
print(f"{format_size(big.nbytes)} in {len(big.files)} file(s), {len(big.tensors)} tensors")

# %% [markdown]
# ## Predict
#
# *Cold*: all bytes come from the SSD, at most at the speed at which it can be read. *Warm*: they
# are in DRAM already and are copied from there. We measure both ceilings here: once each, on
# a file of our own.

# %% tags=["nbval-ignore-output"]
from minillm.probe import Profile, probe

profile = Profile.here() or probe(seconds=10)
here = profile.hardware()

# %% tags=["nbval-ignore-output"]
cold, warm = load_time(big.nbytes, here), load_time(big.nbytes, here, cached=True)
print(f"cold: {cold.seconds:.2f} s, bound by {cold.bound_by} (predicted)")
print(f"warm: {warm.seconds:.2f} s, bound by {warm.bound_by} (predicted)")

# %% [markdown]
# How many times longer than the warm load will the cold one take?

# %%
mine = guess("cold load ÷ warm load", unit="×")

# %% [markdown]
# ## Run
#
# `drop` asks the system to forget a file, which needs no special rights. Then the same load twice.
# The memory that the weights go to is made and touched before: that time is another story, told in
# lesson 11.

# %% tags=["nbval-ignore-output"]
from minillm.load.shard import allocate, bring

machine = Machine.here()
shapes = {name: torch.Size(info.shape) for name, info in big.tensors.items()}
block, places = allocate(shapes, machine, torch.bfloat16, "hbm")
block.zero_()  # touched: the pages are there


def seconds_to_load(reader: str, is_cold: bool) -> float:
    if is_cold:
        drop(big.files)
    start = time.perf_counter()
    bring(places, big, machine, reader)
    return time.perf_counter() - start

# %% tags=["nbval-ignore-output"]
with charts.watch(machine.trace, "machine", "timeline"):
    first = seconds_to_load("read", is_cold=True)
    second = seconds_to_load("read", is_cold=False)
print(f"cold {first:.2f} s, warm {second:.2f} s: the second load is {first / second:.1f} × faster")

# %% [markdown]
# Your guess, the arithmetic, and the clock:

# %% tags=["nbval-ignore-output"]
reveal(mine, predicted=cold.seconds / warm.seconds, measured=first / second)

# %% [markdown]
# The prediction knows the SSD's ceiling, and `read` does not reach it: the kernel fills its cache on
# the way, which costs time. But why is the second load faster at all? The file did not change, and
# neither did our code. What changed is where the bytes came from. The
# first load asked the SSD, and on the way the system kept a copy of every page in DRAM: the **page
# cache**. The second load never reached the SSD. The trace knows, for each read, how much of the
# file was in the cache when it was opened.

# %% tags=["nbval-ignore-output"]
reads = machine.trace.select(source="ssd", label="weights")
for event in (reads[0], reads[-1]):
    print(event.detail)

# %% [markdown]
# ## Three ways to read a file
#
# - `read`: the kernel copies from its page cache into our memory. One copy more than needed, and
#   the second time it is fast.
# - `mmap`: the cache's pages appear in our memory, each when it is first touched. No copy, but one
#   interruption, a page fault, for each piece of 4 KiB.
# - `direct`: the SSD writes into our memory itself (`O_DIRECT`). Nothing is kept.

# %% [markdown]
# Three ways, cold and warm, three rounds each, mixed, so that no way has the quiet moments to
# itself. Before you run it: which of the six will be slowest? Which two are equal?

# %% tags=["nbval-ignore-output"]
from statistics import median

times = {(reader, is_cold): [] for reader in READERS for is_cold in (True, False)}
for _ in range(3):
    for (reader, is_cold), seconds in times.items():
        seconds.append(seconds_to_load(reader, is_cold))

rates = {key: big.nbytes / median(seconds) for key, seconds in times.items()}

# %% [markdown]
# The median of each, and how far its three runs lie apart:

# %% tags=["nbval-ignore-output"]
for (reader, is_cold), rate in rates.items():
    bar = "█" * round(40 * rate / max(rates.values()))
    spread = max(times[reader, is_cold]) / min(times[reader, is_cold])
    state = "cold" if is_cold else "warm"
    print(f"{reader:7}{state}  {rate / 1e9:5.2f} GB/s  {bar}  slowest ÷ fastest {spread:.1f}")

ceiling = profile["ssd.read"].best
print(f"cold direct: {100 * rates['direct', True] / ceiling:.0f} % of what this SSD gives")

# %% [markdown]
# A cold `direct` comes close to the SSD's own speed: nothing stands between it and our memory. A
# warm `direct` is no faster, because it never asks the cache. A warm `read` or `mmap` is limited by
# DRAM alone.
#
# So what is right? A server that loads a model once, and gives its DRAM to something better, reads
# `direct`. A laptop on which you start the same model ten times a day is glad of the cache.

# %% [markdown]
# ## "Loaded in 2 milliseconds"
#
# With `mmap` some programs claim to load gigabytes at once. We look closer: opening the map is one
# thing, having the bytes another.

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
# Nothing had moved when the map was open. The bytes come one page at a time, when they are touched,
# and then the program waits without knowing why. `mmap` is good when few of the bytes are needed,
# or when many programs share them. Where it loses: a fast SSD that wants many requests at once.
# It gets one page fault after the other.

# %% [markdown]
# ## Turn the knob: how large is a read?
#
# An SSD answers each request after a fixed time, its latency; then bytes flow at its bandwidth. So
# a read of n bytes takes latency + n ÷ bandwidth. Drag the slider: where does half of the time go
# into waiting?

# %% tags=["nbval-ignore-output"]
wire = here.nvme


def one_read(kibibytes: int) -> str:
    seconds = wire.seconds(1024 * kibibytes)
    share = wire.latency / seconds
    rate = 1024 * kibibytes / seconds
    return (f"{kibibytes:,} KiB: {1e6 * seconds:,.0f} µs, of which waiting {share:.0%}; "
            f"{rate / 1e9:.2f} GB/s with one request at a time (predicted)")


knob(one_read, kibibytes=(4, 65536))

# %% [markdown]
# ## Exercise 2: how large must a read be?
#
# With one request at a time: how many bytes must it ask for, so that the rate is `share` of the
# SSD's bandwidth? Take the formula above and solve it for n.

# %%
def bytes_for_share(latency: float, bandwidth: float, share: float) -> float:
    raise NotImplementedError  # your line


bytes_for_share = check("10.2", bytes_for_share)
# hint("10.2")

# %% tags=["nbval-ignore-output"]
for share in (0.5, 0.9):
    size = bytes_for_share(wire.latency, wire.bandwidth, share)
    print(f"{share:.0%} of this SSD's rate: reads of {format_size(round(size))}, one at a time")

# %% [markdown]
# Or ask for several at once: while one waits, others flow. Our readers keep four requests of 8 MiB
# under way.

# %% tags=["nbval-ignore-output"]
import shutil
machine.free(block)
del pages
shutil.rmtree(folder)

# %% [markdown]
# ## Five questions
#
# Answer first, then unfold.

# %%
recall(
    ("What are the three parts of a safetensors file?",
     "Eight bytes with the header's length, the header (JSON), the numbers of all tensors."),
    ("Why is it called safe?",
     "It holds numbers and a description, no program; and every claim can be checked at once."),
    ("Why is the second load faster?",
     "The system kept the file's pages in DRAM. The SSD is not asked again."),
    ("Why is a second load with O_DIRECT not faster?",
     "It goes past the page cache: nothing is kept, and nothing is looked up there."),
    ("A program maps a file of 16 GB in 2 ms. What has it read?",
     "Nothing. Each page comes when it is touched, and then the program waits for it."),
)

# %% [markdown]
# ## Three takeaways, with the numbers of your run

# %% tags=["nbval-ignore-output"]
print(f"1. A checkpoint is arithmetic: {parameters(config):,} numbers × 2 bytes, nothing hidden.")
print(f"2. Cold took {first:.2f} s ({cold.seconds:.2f} s predicted), warm {second:.2f} s")
print(f"   ({warm.seconds:.2f} s predicted): the page cache is DRAM.")
print(f"3. Cold, direct reached {rates['direct', True] / 1e9:.2f} GB/s, mmap "
      f"{rates['mmap', True] / 1e9:.2f}: the same SSD.")

# %% [markdown]
# **Next:** `11_load_stream`. Two links, one after the other: how do both work at once? Then several
# GPUs share the weights, and a model larger than HBM runs all the same.
