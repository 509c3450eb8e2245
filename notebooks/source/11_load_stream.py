# %% [markdown]
# # 11 · How do weights reach HBM at the speed of the disk?
#
# <img src="images/strip_load.png" width="672" alt="The five stages of the course. You are here:
# 1 load, weights come in.">
#
# Bytes go SSD → DRAM → HBM, over two links. If one waits for the other, the times add up. If both
# work at once, only the slower one counts. *Forty minutes; the code behind it:
# [`minillm/load/stream.py`](../minillm/load/stream.py) and
# [`minillm/load/place.py`](../minillm/load/place.py).*

# %% tags=["nbval-ignore-output"]
import inspect
import time

import torch

from minillm import Machine, charts, format_size
from minillm.files import temporary_folder
from minillm.lesson import check, compare, guess, hint, knob, recall, reveal
from minillm.load import Checkpoint, Reader, drop
from minillm.machine.disk import writable_folder

print(Machine.here().describe())

# %% [markdown]
# Six words:
#
# - **staging**: a small buffer in DRAM through which all weights pass, a piece at a time.
# - **chunk**: the piece that one read brings.
# - **slot**: the place of one chunk in staging, filled and emptied again and again.
# - **overlap**: two links busy at the same time.
# - **latency**: the time from asking until the first byte flows.
# - **in flight**: asked for, and not there yet.

# %% [markdown]
# ## Two people, eight loads of water
#
# Ann fills a bucket in 2 seconds and hands it to Ben, who empties it into the tank in 1 second. And
# the tap is slow: from the moment that Ann asks, water comes after half a second. With a single
# bucket they take turns. With two, Ann asks for the next while Ben carries.

# %%
def finish(loads: int, wait: float, fill: float, carry: float, buckets: int) -> float:
    flowed, emptied = 0.0, [0.0] * buckets  # when each bucket was full, and empty again
    for _ in range(loads):
        asked = emptied[-buckets]  # as soon as there is an empty bucket
        flowed = max(asked + wait, flowed) + fill  # one tap
        emptied.append(max(flowed, emptied[-1]) + carry)  # one Ben
    return emptied[-1]

# %%
print("one bucket: ", finish(8, 0.5, 2, 1, buckets=1), "seconds")
print("two buckets:", finish(8, 0.5, 2, 1, buckets=2), "seconds")

# %% [markdown]
# Count along. In turns each load waits, is filled, is carried: 8 · (0.5 + 2 + 1). With two buckets
# the tap never rests: half a second of waiting, 8 · 2 of filling, and at the end one last carrying.
#
# Two different things were won. *Overlap*: Ben works while water flows. *Requests in flight*: the
# next was asked for before the tap was free, so its waiting passed meanwhile.

# %% [markdown]
# ## Exercise 1: how many buckets?
#
# Let the waiting grow, and two buckets no longer do: the tap rests until somebody asks again.
# Return the smallest number of buckets with which the tap never rests after the first drop, for any
# number of loads. A bucket is away for `wait` + `fill` + `carry`, and `fill` ≥ `carry`.

# %%
def buckets_needed(wait: float, fill: float, carry: float) -> int:
    raise NotImplementedError  # your lines; without them the lesson goes on with ours


buckets_needed = check("11.1", buckets_needed)
# hint("11.1")

# %%
for wait in (0, 0.5, 7):
    n = buckets_needed(wait, 2, 1)
    print(f"wait {wait}: {n} buckets, {finish(100, wait, 2, 1, n)} seconds for 100 loads, "
          f"with one less {finish(100, wait, 2, 1, n - 1)}")

# %% [markdown]
# ## Predict
#
# Our machine is a scale model (lesson 01): the links of an H100 server, slowed until they keep the
# proportions that they have there. The weights lie on four drives that are read side by side (one
# GPU alone may use four of its server's eight), so the SSD is not much slower than PCIe, and it
# matters whether the two take turns. The checkpoint has the shape of SmolLM2, 135 million
# parameters, and random weights.

# %% tags=["nbval-ignore-output"]
from minillm.tools.make_checkpoint import make_checkpoint
disk = temporary_folder(writable_folder())  # goes with the kernel
make_checkpoint("135m", disk.name)
checkpoint = Checkpoint.open(disk.name)
infos, nbytes = list(checkpoint.tensors.values()), checkpoint.nbytes

# %%
one = guess("one bucket", unit="s")
two = guess("two buckets", unit="s")
seven = guess("seven buckets", unit="s")

# %% [markdown]
# To help: the links are those of four drives and of PCIe 5, slowed until HBM is as fast as this
# machine's memory. Then the times of a chunk are arithmetic, and the toy does the rest.

# %% tags=["nbval-ignore-output"]
from dataclasses import replace
from minillm.predict.hardware import HARDWARE, Wire
from minillm.probe import Profile, probe

profile = Profile.here() or probe(seconds=10)  # what the scale is made from
h100 = HARDWARE["H100"]
drives = Wire(4 * h100.nvme.bandwidth, h100.nvme.latency)
machine = Machine.scale_model(replace(h100, name="H100, 4 drives", nvme=drives), hbm="2 GiB")
nvme, pcie = machine.scale.wire("nvme"), machine.scale.wire("pcie")

# %% tags=["nbval-ignore-output"]
size = 8 * 2**20  # bytes of a chunk
count, wait, read, copy = nbytes / size, nvme.latency, size / nvme.bandwidth, pcie.seconds(size)
predicted = {n: finish(round(count), wait, read, copy, n) for n in (1, 2, 7)}
print(f"{count:.1f} chunks, each {1e3 * wait:.0f} ms of waiting, {1e3 * read:.0f} ms on the SSD, "
      f"{1e3 * copy:.0f} ms on PCIe")
for buckets, seconds in predicted.items():
    print(f"{buckets} buckets: {seconds:.2f} s (predicted)")

# %% [markdown]
# ## First rung: one bucket
#
# A `Reader` has as many buckets, *slots* of staging, as we give it. `reader.chunks` yields what has
# arrived; `put` copies it to its places in HBM. With one slot they take turns. Watch both links:
# are they ever busy at the same time?

# %% tags=["nbval-ignore-output"]
from minillm.load.place import put
from minillm.machine.arena import Arena
wanted = {info.name: (info.shape, info.dtype) for info in infos}
arena = Arena(machine, wanted, "hbm", "weights")
block, places = arena.block, arena.places

# %% tags=["nbval-ignore-output"]
def load(buckets: int) -> float:
    machine.trace.clear()
    machine.trace.count("ssd", "weights", nbytes)  # they lie there: the picture shows it
    block.zero_()  # touched: see below what that costs
    with Reader(machine, "direct", infos, slots=buckets) as reader:
        for arrived in reader.chunks(infos):  # a bucket is full,
            put(arrived, places, machine)  # now it is empty again
    moves = machine.trace.select(kind="transfer", label="weights")
    return max(e.end for e in moves) - min(e.start for e in moves)

# %% [markdown]
# What will the two rows of the timeline look like, one below the other?

# %% tags=["nbval-ignore-output"]
with charts.watch(machine.trace, "machine", "timeline"):
    took = {1: load(buckets=1)}
expected = block.clone()

# %% [markdown]
# ## Second rung, yours: two buckets
#
# Write what a reader does. `links.fill(slot, chunk)` asks for a chunk, to be put into a slot, and
# returns at once. `links.empty(slot)` waits until that slot is full, and carries it to HBM. There
# are two slots, 0 and 1. Bring chunks 0 to `chunks` − 1, in order, so that a fill is under way
# while you empty.

# %%
def two_buckets(chunks: int, links) -> tuple:
    ...
    raise NotImplementedError  # your lines, and at the end: return links.done()


two_buckets = check("11.2", two_buckets)
# hint("11.2")

# %% [markdown]
# Your loop runs, with real threads and real links: `fill` reads a chunk of the file over the SSD's
# link, `empty` copies it to HBM.

# %% tags=["nbval-ignore-output"]
from concurrent.futures import ThreadPoolExecutor
file = checkpoint.files[0]
data = torch.from_file(str(file), shared=False, size=file.stat().st_size, dtype=torch.uint8)
parts = data.split(size)
data[::4096].sum()  # in DRAM now: here the scaled link takes the time, not this disk

# %% tags=["nbval-ignore-output"]
target = machine.empty((len(data),), torch.uint8, "hbm", "by hand").zero_()
buckets = [machine.empty((size,), torch.uint8, "dram", "by hand").zero_() for _ in range(2)]

# %% [markdown]
# Each of the two lends its memory to `Links`, which does what your loop says.

# %% tags=["nbval-ignore-output"]
class Links:
    def __init__(self):
        self.coming, self.pool, self.start = {}, ThreadPoolExecutor(2), time.perf_counter()

    def fill(self, slot: int, chunk: int) -> None:
        into = buckets[slot][: len(parts[chunk])]
        ends = {"source": "ssd", "target": "dram", "stage": "load", "label": "by hand"}
        read = machine.carry, lambda: into.copy_(parts[chunk]), into.nbytes
        self.coming[slot] = chunk, into, self.pool.submit(*read, **ends)

    def empty(self, slot: int) -> None:
        chunk, into, filled = self.coming.pop(slot)
        filled.result()
        place = target[chunk * size :][: len(into)]
        machine.copy(into, place, label="by hand", stage="load")

    def done(self) -> float:
        return time.perf_counter() - self.start

# %% tags=["nbval-ignore-output"]
by_hand = two_buckets(len(parts), Links())
assert torch.equal(target, data)
print(f"two buckets by hand: {by_hand:.2f} s (emulated), {predicted[2]:.2f} s predicted")

# %% [markdown]
# ## Third rung: the package
#
# The `Reader` with two slots, and with seven. An SSD answers now early, now late; with some more a
# full one is at hand. The bytes must be the same each time.

# %% tags=["nbval-ignore-output"]
took[2] = load(buckets=2)
assert torch.equal(block, expected)
with charts.watch(machine.trace, "machine", "timeline"):
    took[7] = load(buckets=7)
assert torch.equal(block, expected)

# %% [markdown]
# Each timeline fills its width, so look at their axes. Here are your guesses, and all on one axis:

# %% tags=["nbval-ignore-output"]
floor = nbytes / nvme.bandwidth  # the least: the SSD never rests
for mine, n in ((one, 1), (two, 2), (seven, 7)):
    reveal(mine, predicted=predicted[n], measured=took[n], ceiling=floor, how="emulated")
for name, s in {**took, "SSD alone": floor}.items():
    print(f"{name!s:>9} {s:.2f} s {floor / s:4.0%} of its rate {'█' * round(40 * s / took[1])}")

# %% [markdown]
# What did overlap win, and what did requests in flight? The toy can tell them apart: without
# waiting, only overlap is left.

# %% tags=["nbval-ignore-output"]
n = round(count)
overlap = finish(n, 0, read, copy, 1) - finish(n, 0, read, copy, 7)
print(f"saved {took[1] - took[7]:.2f} s (emulated); {predicted[1] - predicted[7]:.2f} predicted, "
      f"of which overlap {overlap:.2f}, the rest is waiting that passed meanwhile")

# %% tags=["nbval-ignore-output"]
staged = max(e.nbytes for e in machine.trace.select(kind="counter", name="dram", label="staging"))
print(f"{format_size(nbytes)} of weights passed through {format_size(staged)} of staging")

# %% [markdown]
# The last line is the other half of the trick. DRAM never holds the model: staging is a handful of
# chunks, made once and used again and again. A model of 100 GB would pass through no more. And this
# is the package's loop. A slot is filled anew when its bytes have been used, which is when the next
# are asked for.

# %%
print(inspect.getsource(Reader.chunks).split('"""')[-1].strip("\n"))

# %% [markdown]
# ## Turn the knob: the size of a chunk
#
# Large chunks: the last one is copied while no other is being read. Small chunks: each pays the
# SSD's latency, unless others are in flight. Drag, and find the best size for one slot, two, seven.

# %% tags=["nbval-ignore-output"]
def rate(kib: int, slots: int) -> float:
    """Of the SSD's bandwidth, what a load in such chunks reaches: 0 to 1."""
    chunk = min(1024 * kib, nbytes)
    loads = max(1, round(nbytes / chunk))
    few = min(loads, 400)  # a pipeline of more chunks goes on as it began
    times = nvme.latency, chunk / nvme.bandwidth, pcie.seconds(chunk)
    seconds = finish(few, *times, slots) * loads / few
    return nbytes / nvme.bandwidth / seconds

# %% tags=["nbval-ignore-output"]
def draw(chunk_kib: int = 8192, slots: int = 7):
    share = rate(chunk_kib, slots)
    chart = charts.Chart(f"{chunk_kib:,} KiB, {slots} slots: {share:.0%} of the SSD's rate",
                         note="predicted")  # fmt: skip
    ax = chart.add_axes((0.1, 0.17, 0.84, 0.6))
    x = [2**n for n in range(5, 18)]
    ax.plot(x, [rate(kib, slots) for kib in x], "--", color="#6B7280")
    ax.plot(chunk_kib, share, "o", color="#D55E00")
    ax.set(xscale="log", xlabel="chunk (KiB, log)", ylabel="share of the SSD's rate",
           ylim=(0, 1.05))  # fmt: skip
    return chart


knob(draw, chunk_kib=(32, 131072), slots=[1, 2, 4, 7])

# %% [markdown]
# ## Break it: a bucket that is not empty
#
# Chunk 0 is in its bucket, and we bring chunk 2 there before the bucket was emptied.

# %% tags=["nbval-ignore-output"]
links = Links()
links.fill(0, 0)
links.coming[0][2].result()
buckets[0].copy_(parts[2])  # what an impatient reader does
links.empty(0)

# %%
print("chunk 0 arrived:", torch.equal(target[:size], parts[0]))
print("chunk 2 is there instead:", torch.equal(target[:size], parts[2]))

# %% [markdown]
# No error, and valid weights in the wrong place. That is why a slot is filled anew only when its
# bytes were used, and why our asserts compare all of them.

# %% [markdown]
# ## At the speed of *your* disk?
#
# Now without a model of anything: the same `Reader`, your SSD, cold, held against the ceiling of
# lesson 01. One slot, two, and the package's seven, in turns.

# %% tags=["nbval-ignore-output"]
real = Machine.here()
there = Arena(real, wanted, "hbm", "weights")
there.block.zero_()


def cold(slots: int) -> float:
    drop(checkpoint.files)
    with Reader(real, "direct", infos, slots=slots) as reader:
        start = time.perf_counter()
        reader.fill(there.places, infos)
        return time.perf_counter() - start

# %% [markdown]
# How much will the second slot bring on your disk, and how much the other five?

# %% tags=["nbval-ignore-output"]
ways = {f"{n} slot{'s' * (n > 1)}": lambda n=n: cold(n) for n in (1, 2, 7)}
disk_speed = compare(ways, rounds=5, unit="ms")
assert torch.equal(there.block.cpu(), expected)
print(disk_speed.sentence)

# %% tags=["nbval-ignore-output"]
best = nbytes / min(disk_speed.seconds["7 slots"])
print(f"7 slots, best of 5: {profile['ssd.read'].of(best)}")

# %% [markdown]
# If that is well below the ceiling, what takes it away? The ceiling was read into memory and left
# there. Here every byte is also copied to "HBM", by the same cores that serve the disk, through
# the same DRAM. Let us see what the copy alone takes, and whether it could have been hidden.

# %% tags=["nbval-ignore-output"]
copies = real.trace.select(kind="transfer", resource="copy", label="weights")
copying = sum(e.seconds for e in copies) / 18  # loads, the warm-up among them
print(f"copies {1e3 * copying:.0f} ms a load, the SSD at its ceiling "
      f"{1e3 * nbytes / profile['ssd.read'].best:.0f} ms, the load {1e3 * nbytes / best:.0f} ms")

# %% [markdown]
# ## Where it loses: memory that was never touched
#
# There is a third time that nobody asks for. Memory that was never touched does not exist: the
# system finds a page for it, and clears it, when the first byte is written, one page at a time. We
# fill a block of DRAM that is new, and the same block again.

# %% tags=["nbval-ignore-output"]
def touch(twice: bool) -> float:
    fresh = torch.empty(64 * 2**20, dtype=torch.uint8)
    if twice:
        fresh.fill_(0)
    start = time.perf_counter()
    fresh.fill_(1)
    return time.perf_counter() - start

# %% tags=["nbval-ignore-output"]
touched = compare({"first touch": lambda: touch(False), "again": lambda: touch(True)}, unit="ms")
print(touched.sentence)
for name in touched.seconds:
    print(f"{name}: {64 * 2**20 / touched.median(name) / 1e9:.1f} GB/s")
print(f"this SSD: {profile['ssd.read'].best / 1e9:.1f} GB/s")

# %% [markdown]
# On a virtual machine the first touch may be slower than the disk: its host has to find the page
# too. So staging is made once, on large pages, and touched before the first read.
#
# For a GPU it is also *pinned*: the system promises not to move it, so the card fetches by itself
# while the CPU goes on. Out of ordinary memory the driver first copies to a pinned buffer of its
# own, and nothing overlaps. (GPUDirect Storage leaves DRAM out altogether.)

# %% [markdown]
# ## On paper: staging for a real server
#
# An H100 loads from eight drives, 56 GB/s together, over PCIe at 64 GB/s. A request waits 100 µs
# before its bytes flow. Chunks are `chunk` bytes. How many bytes of staging keep the drives busy?
# Use `buckets_needed`: a bucket is a chunk.

# %%
def staging_bytes(chunk: int, latency: float, drives: float, pcie: float) -> int:
    raise NotImplementedError  # latency in seconds, drives and pcie in bytes a second


staging_bytes = check("11.3", staging_bytes)
# hint("11.3")

# %%
for chunk in (2**16, 2**20, 2**23):
    need = staging_bytes(chunk, 100e-6, 56e9, 64e9)
    print(f"{format_size(chunk)}: {need // chunk} buckets, {format_size(need)} (predicted)")

# %% [markdown]
# ## Five questions
#
# Answer each in your head, then open it.

# %% tags=["folded"]
recall(
    ("Two links, one after the other, take 3 s and 1 s for all bytes. Overlapped?",
     "A little over 3 s: the slower link sets the time."),
    ("Why does loading need only a few dozen megabytes of DRAM?",
     "Weights pass through staging in chunks, and a chunk's place is used again."),
    ("Overlap and requests in flight: what does each of them hide?",
     "Overlap hides the faster link behind the slower; requests in flight hide latency."),
    ("When may a slot be filled again?",
     "When its bytes have been used. Earlier, others' weights arrive, and nobody complains."),
    ("Why is staging touched before the clock starts?",
     "The first write to a page makes the system find and clear it, once a page."),
)

# %% [markdown]
# ## Three takeaways, with the numbers of your run

# %% tags=["nbval-ignore-output", "folded"]
print(f"1. One bucket {took[1]:.2f} s, two {took[2]:.2f}, seven {took[7]:.2f} (emulated); "
      f"predicted {predicted[1]:.2f}, {predicted[2]:.2f}, {predicted[7]:.2f}.")
print(f"2. {format_size(nbytes)} passed through {format_size(staged)} of staging.")
print(f"3. Your SSD gave {profile['ssd.read'].of(best)}.")

# %% [markdown]
# **Next:** `12_load_shard`. Several GPUs share one model: who reads which bytes?
