# %% [markdown]
# # 10 · What is in a checkpoint, and why is the second load so much faster?
#
# <img src="images/strip_load.png" width="672" alt="The five stages of the course. You are here:
# 1 load, weights come in.">
#
# We open a checkpoint with nothing but Python, name each of its bytes, and then load it twice. The
# first time and the second time tell two different stories. *Sixty minutes; the code behind
# it: [`minillm/load/safetensors.py`](../minillm/load/safetensors.py) and
# [`minillm/load/readers.py`](../minillm/load/readers.py).*

# %% tags=["nbval-ignore-output"]
import json
import time
from pathlib import Path

import torch

from minillm import CheckpointError, Machine, ModelConfig, charts, format_size
from minillm.files import temporary_folder
from minillm.machine.disk import writable_folder
from minillm.lesson import Comparison, check, compare, guess, hint, knob, recall, reveal
from minillm.load import READERS, Checkpoint, Reader, drop, read_header
from minillm.predict import load_time, parameters, weight_bytes

print(Machine.here().describe())

# %% [markdown]
# Six words:
#
# - **checkpoint**: the folder with a model's weights and settings.
# - **header**: the part of a file that says what the rest means.
# - **dtype**: how a number is stored, such as F32 in four bytes or BF16 in two.
# - **page cache**: DRAM in which the system keeps what it has read from files.
# - **cold** (or warm): a load that finds nothing in the page cache (or everything).
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
with shards[0].open("rb") as file:
    size = file.read(8)
    found = parse_header(size + file.read(int.from_bytes(size, "little")))

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
# What are the bytes for? We add them up, and check the sum against arithmetic: `parameters(config)`
# counts a model's numbers from its settings alone.

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
scratch = temporary_folder()
folder = Path(scratch.name)
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
# model's shape, SmolLM2 with 360 million parameters, with random weights: size and layout are the
# real ones, only the answers would be nonsense. It lies here, beside the notebooks, if this folder
# takes files and lies on a disk: the system's own temporary folder may be in memory, and then there
# is no disk to measure.

# %% tags=["nbval-ignore-output"]
from minillm.tools.make_checkpoint import make_checkpoint

disk = temporary_folder(writable_folder())  # goes with the kernel
make_checkpoint("360m", disk.name)
big = Checkpoint.open(disk.name)
print(f"{format_size(big.nbytes)} in {len(big.files)} file(s), {len(big.tensors)} tensors")

# %% [markdown]
# ## Predict
#
# *Cold*: all bytes come from the SSD, at most at the speed at which it can be read. *Warm*: they
# are in DRAM already and are copied from there. How long will each take, with the kernel's `read`?
# And cold, past the page cache?

# %%
by_read = guess("cold, read", unit="ms")
by_cache = guess("warm, read", unit="ms")
by_direct = guess("cold, direct", unit="ms")

# %% [markdown]
# Lesson 01 measured both ceilings and kept them; if it did not, we do it now. Time = bytes ÷ bytes
# per second.

# %% tags=["nbval-ignore-output"]
from minillm.probe import Profile, probe

profile = Profile.here() or probe(seconds=10)
machine = Machine.here()
here = profile.hardware(machine.device.type)

# %% tags=["nbval-ignore-output"]
cold, warm = load_time(big.nbytes, here), load_time(big.nbytes, here, cached=True)
for title, load in (("cold", cold), ("warm", warm)):
    rate = big.nbytes / load.seconds / 1e9
    bound = f"{rate:.1f} GB/s of the {load.bound_by}"
    print(f"{title}: {1e3 * load.seconds:.0f} ms, at {bound} (predicted)")

# %% [markdown]
# ## Run
#
# `drop` asks the system to forget a file, which needs no special rights. The memory that the
# weights go to is made and touched before: that time is another story, told in lesson 11. First the
# cold load. Watch the SSD, and what DRAM holds afterwards.

# %% tags=["nbval-ignore-output"]
from minillm.machine.arena import Arena

infos = list(big.tensors.values())
wanted = {info.name: (info.shape, info.dtype) for info in infos}
arena = Arena(machine, wanted, "hbm", "weights")
arena.block.zero_()  # touched: the pages are there
if not drop(big.files):
    print("This system cannot be told to forget a file: what is called cold below is warm.")


def seconds_to_load(how: str, is_cold: bool) -> float:
    if is_cold:
        drop(big.files)
    with Reader(machine, how, infos) as reader:  # makes the buffers that it needs
        start = time.perf_counter()
        reader.fill(arena.places, infos)
        return time.perf_counter() - start

# %% tags=["nbval-ignore-output"]
machine.trace.count("ssd", "weights", big.nbytes)
with charts.watch(machine.trace, "machine"):
    first = seconds_to_load("read", is_cold=True)
    machine.trace.count("dram", "page cache", big.nbytes)  # the system's, so we tell the trace
print(f"cold {1e3 * first:.0f} ms, {1e3 * cold.seconds:.0f} ms predicted")

# %% [markdown]
# And the same again. Watch the SSD.

# %% tags=["nbval-ignore-output"]
machine.trace.clear()
machine.trace.count("ssd", "weights", big.nbytes)
machine.trace.count("dram", "page cache", big.nbytes)
with charts.watch(machine.trace, "machine"):
    second = seconds_to_load("read", is_cold=False)
print(f"warm {1e3 * second:.0f} ms, {1e3 * warm.seconds:.0f} ms predicted")

# %% [markdown]
# The file did not change, and neither did our code. What changed is where the bytes came from. The
# first load asked the SSD, and on the way the system kept each page in DRAM: the *page cache*. The
# trace knows, for it looked how much of the file was in the cache when it was opened.

# %% tags=["nbval-ignore-output"]
(event, *_) = machine.trace.select(name="read", label="weights")
print(f"busy: {event.resource}; {event.detail.split('; ')[1]}")
twice = f"{1e3 * first:.0f} ms, then {1e3 * second:.0f} ms"
print(f"{twice}: the second was {first / second:.1f} × as fast" if second < first else
      f"{twice}: no faster. The file was warm before, or another was at work: run it again")

# %% [markdown]
# ## Three ways to read a file
#
# - `read`: the kernel copies out of its page cache, straight into an emulated HBM. For a real GPU
#   it copies into a buffer first: a copy more.
# - `mmap`: the cache's pages appear in our memory when they are first touched. No copy, but many
#   interruptions, the page faults.
# - `direct`: the SSD writes into a buffer of ours (`O_DIRECT`), and from there the bytes go to HBM.
#   Usually it passes the cache by.

# %% [markdown]
# Three ways, cold and warm, five rounds each, mixed, so that no way has the quiet moments to
# itself. Before you run it: which of the six will be slowest? Which two are equal?

# %% tags=["nbval-ignore-output"]
def way(reader: str, is_cold: bool):
    def load() -> float:
        if not is_cold:
            seconds_to_load("read", is_cold=False)  # fills the cache: `direct` may not
        return seconds_to_load(reader, is_cold)

    return load

# %% tags=["nbval-ignore-output"]
ways = {f"{'cold' if is_cold else 'warm'} {reader}": way(reader, is_cold)
        for reader in READERS for is_cold in (True, False)}  # fmt: skip
result = compare(ways, rounds=5, unit="ms")

# %% [markdown]
# The median of each, and how far its five runs lie apart:

# %% tags=["nbval-ignore-output"]
slowest = max(map(result.median, ways))
for name, seconds in result.seconds.items():
    bar = "█" * round(40 * result.median(name) / slowest)
    spread = max(seconds) / min(seconds)
    print(f"{name:12} {1e3 * result.median(name):5.0f} ms  {bar}  slowest ÷ fastest {spread:.1f}")

# %% [markdown]
# Some pairs tell most. Does the cache help `direct`? Cold, does it pay to go past the cache? Warm,
# is it better to copy or to map? The samples write the sentences.

# %% tags=["nbval-ignore-output"]
for one, two in (("cold direct", "warm direct"), ("cold direct", "cold read"),
                 ("warm read", "warm mmap")):  # fmt: skip
    print(Comparison({name: result.seconds[name] for name in (one, two)}, "ms").sentence)

# %% [markdown]
# Linux's `O_DIRECT` does not ask the cache (macOS looks there too). The warm bytes never leave
# DRAM, so DRAM limits them. Your guesses, beside the arithmetic, and the best of our runs:

# %% tags=["nbval-ignore-output"]
for mine, name, load in ((by_read, "cold read", cold), (by_cache, "warm read", warm),
                         (by_direct, "cold direct", cold)):  # fmt: skip
    reveal(mine, predicted=1e3 * load.seconds, measured=1e3 * min(result.seconds[name]))

# %% [markdown]
# The cold ceiling was measured in the way of `direct`, with many requests in flight. Is it a fair
# one for `read`? Our reader for it has fewer threads; and the kernel finds a page in DRAM for every
# piece, and copies it on.

# %% tags=["nbval-ignore-output"]
from minillm.load import chunks, stream

for name in ("cold read", "cold direct"):
    threads = stream.THREADS[name.split()[1]]
    print(f"{threads} threads: {result.against('the SSD', cold.seconds, name)}")

# %% [markdown]
# Which should you use? A server that loads a model once, and gives its DRAM to something better,
# reads `direct`: it fills no cache. A laptop on which you start the same model ten times a day is
# glad of the cache.

# %% [markdown]
# ## Break it: "loaded in 2 milliseconds"
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
# Nothing had moved when the map was open. The bytes come when they are touched, and then the
# program waits without knowing why. `mmap` is good when few of the bytes are needed, or when many
# programs share them.
#
# ## Where it loses: one stretch ahead
#
# Touched in order by one thread, a cold map has little in flight: the kernel guesses ahead by one
# stretch, often 128 KiB. Whether that is enough depends on the SSD. Here, beside six threads of
# `direct`:

# %% tags=["nbval-ignore-output"]
one_thread = touched - start
direct = result.median("cold direct")
print(f"mmap, one thread: {profile['ssd.read'].of(big.nbytes / one_thread)}")
print(f"direct, six threads: {profile['ssd.read'].of(big.nbytes / direct)}")
print(f"one thread took {one_thread / direct:.1f} × as long" if one_thread > direct else
      "one thread was no slower: here the kernel's guess is enough")

# %% [markdown]
# ## Turn the knob: how large is a read?
#
# An SSD answers each request after a fixed time, its latency; then bytes flow at its bandwidth. So
# a read of n bytes takes latency + n ÷ bandwidth. Drag the slider: where does half of the time go
# into waiting?

# %% tags=["nbval-ignore-output"]
def share_of(kibibytes: int) -> float:
    nbytes = 1024 * kibibytes
    return nbytes / here.nvme.bandwidth / here.nvme.seconds(nbytes)

# %% tags=["nbval-ignore-output"]
def draw(kibibytes: int = 256):
    share = share_of(kibibytes)
    chart = charts.Chart(f"{kibibytes:,} KiB at a time: {1 - share:.0%} of the time is waiting",
                         note="one request at a time, this SSD · predicted")  # fmt: skip
    ax = chart.add_axes((0.1, 0.17, 0.84, 0.6))
    x = [2**n for n in range(2, 17)]
    ax.plot(x, [share_of(kib) for kib in x], "--", color="#6B7280")
    ax.plot(kibibytes, share, "o", color="#D55E00")
    ax.set(xscale="log", xlabel="one read (KiB, log)", ylabel="share of the SSD's rate",
           ylim=(0, 1.05))  # fmt: skip
    return chart


knob(draw, kibibytes=(4, 65536))

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
    size = bytes_for_share(here.nvme.latency, here.nvme.bandwidth, share)
    print(f"{share:.0%} of this SSD's rate: reads of {format_size(round(size))}, one at a time")

# %% [markdown]
# Or ask for several at once: while one waits, others flow. Our readers do both.

# %% tags=["nbval-ignore-output"]
print(f"direct: {stream.THREADS['direct']} in flight, of {format_size(chunks.CHUNK)} at most")

# %% [markdown]
# ## On paper: cold and warm on a server
#
# A server has an SSD of `ssd` bytes a second, and copies out of its page cache at `cache`. It loads
# `models`, a list of sizes in bytes, one after the other, again and again. The cache holds `room`
# bytes and keeps what was used last. If all fit together, every load after the first round is warm.
# Else the next one is always the one that was dropped: all are cold. Seconds of a later round?

# %%
def round_seconds(models: list, room: float, ssd: float, cache: float) -> float:
    raise NotImplementedError  # your lines


round_seconds = check("10.3", round_seconds)
# hint("10.3")

# %%
for room in (30e9, 64e9):
    print(f"{room / 1e9:.0f} GB of cache: {round_seconds([16e9, 16e9, 16e9], room, 7e9, 20e9):.1f}"
          " s a round of three models of 8B (predicted)")

# %% [markdown]
# ## Five questions
#
# Answer each in your head, then open it.

# %% tags=["folded"]
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

# %% tags=["nbval-ignore-output", "folded"]
print(f"1. A checkpoint is arithmetic: {parameters(config):,} numbers × 2 bytes, nothing hidden.")
took = {name: 1e3 * min(seconds) for name, seconds in result.seconds.items()}
print(f"2. Cold took {took['cold direct']:.0f} ms ({1e3 * cold.seconds:.0f} predicted), warm "
      f"{took['warm read']:.0f} ms ({1e3 * warm.seconds:.0f} predicted).")
slow = max(READERS, key=lambda how: result.median(f"cold {how}"))
print(f"3. The same SSD, cold: {slow} was the slowest way, {result.median(f'cold {slow}'):.2f} s.")

# %% [markdown]
# **Next:** `11_load_stream`. Two links, one after the other: how do both work at once?
