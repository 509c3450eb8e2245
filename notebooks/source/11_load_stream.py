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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch

from minillm import Machine, charts, format_size
from minillm.files import temporary_folder
from minillm.lesson import check, compare, guess, guesses, hint, knob, recall, reveal
from minillm.load import Checkpoint, Reader, drop
from minillm.machine.disk import writable_folder

print(Machine.here().describe())

# %% [markdown]
# Four new words, and two of lesson 01:
#
# - **staging**: a small buffer in DRAM through which all weights pass.
# - **chunk**: the bytes that one read brings.
# - **slot**: the place of one chunk in staging, filled and emptied again and again.
# - **overlap**: two links busy at the same time.
# - **latency**: the time from asking until the first byte flows.
# - **in flight**: asked for, and not there yet.

# %% [markdown]
# ## Two people, eight buckets of water
#
# Ann fills a bucket in 2 seconds and hands it to Ben, who empties it into the tank in 1 second. And
# the tap has a long pipe: from the moment that Ann asks, water comes after 3 seconds. She may ask
# as soon as there is an empty bucket to put under the tap.

# %%
def finish(loads: int, wait: float, fill: float, carry: float, buckets: int) -> float:
    flowed, emptied = 0.0, [0.0] * buckets  # when each bucket was full, and empty again
    for _ in range(loads):
        asked = emptied[-buckets]  # as soon as there is an empty bucket
        flowed = max(asked + wait, flowed) + fill  # one tap
        emptied.append(max(flowed, emptied[-1]) + carry)  # one Ben
    return emptied[-1]


for buckets in (1, 2, 3):
    print(f"buckets: {buckets}, seconds: {finish(8, 3, 2, 1, buckets)}")

# %% [markdown]
# Count along. With one bucket each load waits, is filled, is carried: 8 · (3 + 2 + 1). With three
# the tap never rests after the first drop: 3 of waiting, 8 · 2 of filling, one last carrying.
#
# Two different things were won. *Overlap*: Ben works while water flows. *Requests in flight*: the
# next was asked for early, so its waiting passed meanwhile.
#
# ## Exercise 1: how many buckets?
#
# The smallest number with which the tap never rests, for any number of loads? `fill` ≥ `carry`.

# %%
def buckets_needed(wait: float, fill: float, carry: float) -> int:
    raise NotImplementedError  # your lines, or hint("11.1"); without them we go on with ours


buckets_needed = check("11.1", buckets_needed)

# %% [markdown]
# ## Predict
#
# Our machine is a scale model (lesson 01): the links of an H100 server, slowed until they keep the
# proportions that they have there. The weights lie on four drives that are read side by side, so
# the tap is the SSD, and Ben is PCIe. The checkpoint has the shape of SmolLM2, 135 million
# parameters, and random weights. A bucket is a chunk of 2 MiB.

# %% tags=["nbval-ignore-output"]
from minillm.predict.hardware import HARDWARE, Wire
from minillm.probe import Profile, probe
from minillm.tools.make_checkpoint import make_checkpoint

disk = temporary_folder(writable_folder())  # goes with the kernel
make_checkpoint("135m", disk.name)
checkpoint = Checkpoint.open(disk.name)
infos, nbytes, size = list(checkpoint.tensors.values()), checkpoint.nbytes, 2 * 2**20
profile, h100 = Profile.here() or probe(seconds=10), HARDWARE["H100"]  # the scale's two ends
drives = Wire(4 * h100.nvme.bandwidth, h100.nvme.latency)
machine = Machine.scale_model(replace(h100, name="H100, 4 drives", nvme=drives), hbm="2 GiB")
nvme, pcie = machine.scale.wire("nvme"), machine.scale.wire("pcie")
wait, read, copy = nvme.latency, size / nvme.bandwidth, pcie.seconds(size)
print(f"{nbytes / size:.0f} chunks, each {1e3 * wait:.1f} ms of waiting, "
      f"{1e3 * read:.1f} ms on the SSD, {1e3 * copy:.1f} ms on PCIe")  # fmt: skip

# %% [markdown]
# How long does a load take with one bucket, with two, with as many as the package has, seven? The
# toy's sums give the answer.

# %%
one = guess("one bucket", unit="s")
two = guess("two buckets", unit="s")
seven = guess("seven buckets", unit="s")

# %% tags=["nbval-ignore-output"]
count = round(nbytes / size)
predicted = {n: finish(count, wait, read, copy, n) for n in (1, 2, 7)}
for buckets, seconds in predicted.items():
    print(f"buckets: {buckets}, {seconds:.2f} s (predicted)")
print(f"{buckets_needed(wait, read, copy)} would be enough")

# %% [markdown]
# ## First rung: one bucket
#
# Here are the two links. `fill(slot, chunk)` asks for a chunk of the file, to be put into a slot of
# staging, and returns at once. `empty(slot)` waits until that slot is full, and copies it to its
# place in HBM. Real threads, real bytes; the scaled links take the time.

# %% tags=["nbval-ignore-output"]
file = checkpoint.files[0]
data = torch.from_file(str(file), shared=False, size=file.stat().st_size, dtype=torch.uint8)
target = machine.empty((len(data),), torch.uint8, "hbm", "weights").zero_()
staging = machine.empty((2, size), torch.uint8, "dram", "staging").zero_()  # two slots
parts, places = data.split(size), target.split(size)  # chunks, here and there

# %%
class Links:
    def __init__(self):
        machine.trace.clear()
        machine.trace.count("ssd", "weights", nbytes)  # they lie there: the picture shows it
        self.coming, self.pool, self.start = {}, ThreadPoolExecutor(2), time.perf_counter()

    def fill(self, slot: int, chunk: int) -> None:
        part, into = parts[chunk], staging[slot][: len(parts[chunk])]
        ends = {"source": "ssd", "target": "dram", "stage": "load", "label": "weights"}
        reading = self.pool.submit(machine.carry, lambda: into.copy_(part), len(part), **ends)
        self.coming[slot] = chunk, into, reading

    def empty(self, slot: int) -> None:
        chunk, into, reading = self.coming.pop(slot)
        reading.result()  # waits
        machine.copy(into, places[chunk], label="weights", stage="load")

    def done(self) -> float:
        return time.perf_counter() - self.start


# %% [markdown]
# With one bucket they take turns. What will the two rows of the timeline look like, one below the
# other?

# %% tags=["nbval-ignore-output"]
def one_bucket(chunks: int, links) -> float:
    for chunk in range(chunks):
        links.fill(0, chunk)
        links.empty(0)
    return links.done()


with charts.watch(machine.trace, "machine", "timeline"):
    took = {1: one_bucket(len(parts), Links())}
assert torch.equal(target, data)

# %% [markdown]
# ## Second rung, yours: two buckets
#
# Write the loop for two slots, 0 and 1: bring chunks 0 to `chunks` − 1, in order, so that a fill is
# under way while you empty.

# %%
def two_buckets(chunks: int, links) -> float:
    raise NotImplementedError  # your lines, or hint("11.2"); at the end: return links.done()


two_buckets = check("11.2", two_buckets)

# %% tags=["nbval-ignore-output"]
target.zero_()
with charts.watch(machine.trace, "timeline"):
    took[2] = two_buckets(len(parts), Links())
assert torch.equal(target, data)

# %% [markdown]
# ## Third rung: the package
#
# A `Reader` has as many slots as we give it, and threads that fill them. Its loop, `chunks`, yields
# what has arrived. When the next is asked for, a slot has been emptied and is filled anew:

# %%
print(inspect.getsource(Reader.chunks).split('"""')[-1].strip("\n"))

# %% tags=["nbval-ignore-output"]
from minillm.load.place import put
from minillm.machine.arena import Arena

wanted = {info.name: (info.shape, info.dtype) for info in infos}
arena = Arena(machine, wanted, "hbm", "weights")  # one block of HBM, a place for each tensor
arena.block.zero_()
with Reader(machine, "direct", infos, chunk=size, slots=7) as reader:
    machine.trace.clear()
    start = time.perf_counter()
    with charts.watch(machine.trace, "timeline"):
        for arrived in reader.chunks(infos):
            put(arrived, arena.places, machine)  # into HBM
        took[7] = time.perf_counter() - start
    staged = reader.slots * reader.chunk

# %% [markdown]
# Each timeline fills its width, so look at their axes. And a bar goes from asking to the last byte,
# latency included: a row that is full need not be a full rate. Your guesses, and all on one axis:

# %% tags=["nbval-ignore-output"]
for i in infos:
    assert torch.equal(arena.places[i.name].view(torch.uint8).flatten(), data[i.start : i.end])
floor = nbytes / nvme.bandwidth  # the least: the SSD never rests
for mine, n in ((one, 1), (two, 2), (seven, 7)):
    reveal(mine, predicted=predicted[n], measured=took[n], ceiling=floor, how="emulated")
bars = {"one": took[1], "two": took[2], "seven": took[7], "SSD alone": floor}
for name, s in bars.items():
    print(f"{name:9} {s:.2f} s {floor / s:4.0%} of its rate {'█' * round(40 * s / took[1])}")

# %% [markdown]
# What did overlap win, and what did requests in flight? The toy can tell them apart: without
# waiting, only overlap is left. And the last line is the other half of the trick: DRAM never holds
# the model. A model of 100 GB would pass through no more.

# %% tags=["nbval-ignore-output"]
overlap = finish(count, 0, read, copy, 1) - finish(count, 0, read, copy, 7)
print(f"saved {took[1] - took[7]:.2f} s (emulated); {predicted[1] - predicted[7]:.2f} predicted, "
      f"of which overlap {overlap:.2f}, the rest is waiting that passed meanwhile")
print(f"{format_size(nbytes)} of weights passed through {format_size(staged)} of staging")

# %% [markdown]
# ## Turn the knob: the size of a chunk
#
# Large chunks: the last one is copied while no other is being read. Small chunks: each pays the
# SSD's latency, unless others are in flight. Drag: what size is best for one slot, two, seven?

# %% tags=["nbval-ignore-output"]
def rate(kib: int, slots: int) -> float:
    """Of the SSD's bandwidth, what a load in such chunks reaches: in percent."""
    chunk = min(1024 * kib, nbytes)
    loads = max(1, round(nbytes / chunk))
    few = min(loads, 400)  # a pipeline of more chunks goes on as it began
    times = nvme.latency, chunk / nvme.bandwidth, pcie.seconds(chunk)
    return 100 * nbytes / nvme.bandwidth / (finish(few, *times, slots) * loads / few)


def draw(chunk_kib: int = 2048, slots: int = 2):
    share = f"{rate(chunk_kib, slots):.0f} % of the SSD's rate"
    finding = f"{slots} × {chunk_kib:,} KiB of staging: {share}"
    return charts.curve(finding, {"": lambda kib: rate(kib, slots)}, [2**n for n in range(5, 18)],
                        x="chunk (KiB)", y="share of the SSD's rate", unit="%", at=chunk_kib,
                        span=(0, 100), inks={"": "ssd"})  # fmt: skip


knob(draw, chunk_kib=(32, 131072), slots=[1, 2, 3, 7])

# %% [markdown]
# One slot wants the largest chunk there is, and stays below 70 %: it takes turns. Two want 8 MiB.
# Seven are content with 512 KiB: what one wait costs is hidden by six others.
#
# ## Break it: a bucket that is not empty
#
# Chunk 0 is in its slot, and an impatient reader brings chunk 2 there before it was emptied.

# %% tags=["nbval-ignore-output"]
links = Links()
links.fill(0, 0)
links.coming[0][2].result()  # chunk 0 is there,
staging[0].copy_(parts[2])  # and chunk 2 on top of it
links.empty(0)

# %%
print("chunk 0 arrived:", torch.equal(places[0], parts[0]))
print("chunk 2 is there instead:", torch.equal(places[0], parts[2]))

# %% [markdown]
# No error, and valid weights in the wrong place. That is why a slot is filled anew only when its
# bytes were used, and why our asserts compare all of them.
#
# ## At the speed of *your* disk?
#
# Now without a model of anything: your SSD, cold, chunks of up to 8 MiB as the package takes them.
# One slot, two, seven, in turns. How much will the second slot bring, and how much the other five?

# %% tags=["nbval-ignore-output"]
real = Machine.here()
there = Arena(real, wanted, "hbm", "weights")
there.block.zero_()


def cold(slots: int) -> float:
    drop(checkpoint.files)
    real.trace.clear()
    with Reader(real, "direct", infos, slots=slots) as reader:
        start = time.perf_counter()
        reader.fill(there.places, infos)
        return time.perf_counter() - start


# %% tags=["nbval-ignore-output"]
ways = {name: lambda n=n: cold(n) for name, n in (("one", 1), ("two", 2), ("seven", 7))}
disk_speed = compare(ways, rounds=5, unit="ms")
assert torch.equal(there.block.cpu(), arena.block)
limit = nbytes / profile["ssd.read"].best
near = disk_speed.against("the SSD at its ceiling", limit, "seven")
print(disk_speed.sentence, near, sep="\n")

# %% [markdown]
# If that is well below the ceiling, what takes it away? The ceiling was read into memory and left
# there. Here every byte is also copied to "HBM", without a GPU by the same cores that serve the
# disk, through the same DRAM. In the last load with seven slots:

# %% tags=["nbval-ignore-output"]
copies = real.trace.select(kind="transfer", resource="copy", label="weights")
copying = sum(e.seconds for e in copies)
turns, least = limit + copying, max(limit, copying)
last = disk_speed.seconds["seven"][-1]
hidden = f"{min(1, (turns - last) / (turns - least)):.0%} of what overlap can hide was hidden"
print(f"SSD at its ceiling {1e3 * limit:.0f} ms, copies {1e3 * copying:.0f}: in turns "
      f"{1e3 * turns:.0f} ms, overlapped {1e3 * least:.0f}. The load took {1e3 * last:.0f} ms:",
      hidden if last < turns else "something else takes time, too")  # fmt: skip

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


touched = compare({"first touch": lambda: touch(False), "again": lambda: touch(True)}, unit="ms")
print(touched.sentence)
first = 64 * 2**20 / touched.median("first touch")
print(f"first touch: {first / 1e9:.1f} GB/s; this SSD: {profile['ssd.read'].best / 1e9:.1f} GB/s")

# %% [markdown]
# On a virtual machine the first touch may be slower than the disk: its host has to find the page
# too. So staging is made once, on large pages, and touched before the first read.
#
# For a GPU it is also *pinned*: the system promises not to move it, so the card fetches by itself
# while the CPU goes on. Out of ordinary memory the driver first copies to a pinned buffer of its
# own, and nothing overlaps. (GPUDirect Storage leaves DRAM out altogether.)

# %% [markdown]
# ## Exercise 3, on paper: staging for a real server
#
# An H100 loads from eight drives, 56 GB/s together, over PCIe at 64 GB/s. A request waits 100 µs
# before its bytes flow. Chunks are `chunk` bytes. How many bytes of staging keep the drives busy?

# %%
def staging_bytes(chunk: int, latency: float, drives: float, pcie: float) -> int:
    raise NotImplementedError  # latency in seconds, drives and pcie in bytes a second


staging_bytes = check("11.3", staging_bytes)  # or hint("11.3")

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
)  # fmt: skip

# %% [markdown]
# ## Three takeaways, with the numbers of your run, and your guesses

# %% tags=["nbval-ignore-output", "folded"]
print(f"1. One bucket {took[1]:.2f} s, two {took[2]:.2f}, seven {took[7]:.2f} (emulated); "
      f"predicted {predicted[1]:.2f}, {predicted[2]:.2f}, {predicted[7]:.2f}.")
print(f"2. {format_size(nbytes)} passed through {format_size(staged)} of staging.")
print(f"3. Your disk: {near}.")

# %%
guesses()

# %% [markdown]
# **Next:** `12_load_shard`. Several GPUs share one model: who reads which bytes?
