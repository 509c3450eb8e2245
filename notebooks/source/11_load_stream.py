# %% [markdown]
# # 11 · How do weights reach HBM at the speed of the disk?
#
# <img src="images/strip_load.png" width="672" alt="The five stages of the course. You are here:
# 1 load, weights come in.">
#
# Bytes go SSD → DRAM → HBM, over two links. If one waits for the other, the times add up. If both
# work at once, only the slower one counts. Then we share the weights out over several GPUs, and run
# a model that is larger than HBM. *Forty minutes; the code behind it:
# [`minillm/load/stream.py`](../minillm/load/stream.py) and
# [`minillm/load/shard.py`](../minillm/load/shard.py).*

# %% tags=["nbval-ignore-output"]
import time
from pathlib import Path

import torch
import minillm
from minillm import Engine, EngineConfig, Machine, SamplingParams, charts, format_size
from minillm.files import temporary_folder
from minillm.machine.disk import writable_folder
from minillm.lesson import check, guess, hint, knob, recall, reveal
from minillm.load import Checkpoint, Reader, drop

town = Path(minillm.__file__).parents[1] / "data" / "town"
print(Machine.here().describe())

# %% [markdown]
# Six words:
#
# - **staging**: a small buffer in DRAM through which all weights pass, a piece at a time.
# - **chunk**: the piece that one read brings.
# - **overlap**: two links busy at the same time.
# - **rank**: one of several processes, each of which drives one GPU.
# - **prefetch**: to send for something before it is needed.
# - **hidden fraction**: the part of a transfer's time for which compute did not have to wait.

# %% [markdown]
# ## Two people, eight loads of water
#
# Ann fills a bucket in 2 seconds and hands it to Ben, who empties it into the tank in 1 second.
# With a single bucket they take turns. With two buckets Ann fills one while Ben carries the other.

# %%
def finish(loads: int, fill: float, carry: float, spare: bool) -> float:
    filled = emptied = 0.0
    for _ in range(loads):
        filled = (filled if spare else emptied) + fill  # Ann needs an empty bucket
        emptied = max(filled, emptied) + carry  # Ben needs a full one, and free hands
    return emptied


print("taking turns:", finish(8, 2, 1, spare=False), "seconds")
print("overlapped:  ", finish(8, 2, 1, spare=True), "seconds")

# %% [markdown]
# Overlapped, Ann never waits: 8 fillings of 2 seconds, and at the end one last carrying. The faster
# of the two is nearly free. This is the whole idea; what follows is doing it with real bytes.

# %% [markdown]
# ## Exercise 1: the time of a pipeline
#
# Find the formula: so many chunks, each `read` seconds on the first link and `copy` seconds on the
# second, overlapped.

# %%
def pipeline_seconds(chunks: int, read: float, copy: float) -> float:
    raise NotImplementedError  # your line; without it the lesson goes on with ours


pipeline_seconds = check("11.1", pipeline_seconds)
# hint("11.1")

# %%
assert pipeline_seconds(8, 2, 1) == finish(8, 2, 1, spare=True) == 17
print(pipeline_seconds(1000, 2, 1), "seconds for 1,000 loads: Ben's work is hidden")

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

# %% tags=["nbval-ignore-output"]
from dataclasses import replace
from minillm.predict.hardware import HARDWARE, Wire
h100 = HARDWARE["H100"]
drives = Wire(4 * h100.nvme.bandwidth, h100.nvme.latency)
machine = Machine.scale_model(replace(h100, name="H100, 4 drives", nvme=drives), hbm="1 GiB")

# %% [markdown]
# Both links are known, so the times are arithmetic.

# %% tags=["nbval-ignore-output"]
nvme, pcie = machine.scale.wire("nvme"), machine.scale.wire("pcie")
size = 8 * 2**20  # bytes of a chunk
count = round(nbytes / size)
read, copy = size / nvme.bandwidth, pcie.seconds(size)
print(f"{count} chunks, {1e3 * read:.0f} ms on the SSD and {1e3 * copy:.0f} ms on PCIe each")

# %%
mine = guess("time to load the weights, overlapped", unit="s")

# %% [markdown]
# In turns, each chunk waits for the SSD's latency and for both links. Overlapped, it is your
# formula, and the latency of the first chunk.

# %% tags=["nbval-ignore-output"]
in_turns = count * (nvme.latency + read + copy)
together = nvme.latency + pipeline_seconds(count, read, copy)
print(f"in turns {in_turns:.2f} s, overlapped {together:.2f} s (predicted)")

# %% [markdown]
# ## Run, first rung: take turns
#
# A `Reader` has as many buckets, *slots* of staging, as we give it. With one, the loop reads a
# chunk, waits, copies it to HBM, waits. Watch both links: are they ever busy at the same time?

# %% tags=["nbval-ignore-output"]
from minillm.load.place import put
from minillm.machine.arena import Arena

wanted = {info.name: (info.shape, info.dtype) for info in infos}
arena = Arena(machine, wanted, "hbm", "weights")
block, places = arena.block, arena.places
block.zero_()  # touched: see below what that costs


def load_by_hand(buckets: int) -> None:
    with Reader(machine, "direct", infos, slots=buckets) as reader:
        for arrived in reader.chunks(infos):  # a bucket is full,
            put(arrived, places, machine)  # now it is empty again


def seconds() -> float:
    moves = machine.trace.select(kind="transfer", label="weights")
    return max(e.end for e in moves) - min(e.start for e in moves)

# %% tags=["nbval-ignore-output"]
with charts.watch(machine.trace, "machine", "timeline"):
    load_by_hand(buckets=1)
turns, expected = seconds(), block.clone()
print(f"in turns: {turns:.2f} s (emulated), {in_turns:.2f} s predicted")

# %% [markdown]
# ## Second rung: two buckets
#
# The same loop with two: while we copy one, the next is being filled.

# %% tags=["nbval-ignore-output"]
machine.trace.clear()
block.zero_()
load_by_hand(buckets=2)
assert torch.equal(block, expected)
print(f"two buckets: {seconds():.2f} s (emulated)")

# %% [markdown]
# ## Third rung: the package
#
# `Reader.fill` is this loop, with some slots more: where an SSD answers now early, now late, a full
# one is always at hand. An engine loads so. Watch the links again.

# %% tags=["nbval-ignore-output"]
machine.trace.clear()
block.zero_()
with charts.watch(machine.trace, "machine", "timeline"):
    with Reader(machine, "direct", infos) as reader:
        reader.fill(places, infos)
measured = seconds()
assert torch.equal(block, expected)

# %% tags=["nbval-ignore-output"]
reveal(mine, predicted=together, measured=measured, how="emulated")

# %% [markdown]
# How much time did it save, by overlap and by latency that is waited for only once? And how much
# DRAM did it need? On this even link two buckets were enough.

# %% tags=["nbval-ignore-output"]
staged = max(e.nbytes for e in machine.trace.select(kind="counter", name="dram", label="staging"))
print(f"saved {turns - measured:.2f} s of {turns:.2f} s (emulated)")
reads = machine.trace.select(kind="transfer", resource="ssd", label="weights")
print(f"the SSD was busy {sum(e.seconds for e in reads) / measured:.0%} of the time (emulated)")
print(f"{format_size(nbytes)} of weights passed through {format_size(staged)} of staging")

# %% [markdown]
# The last line is the other half of the trick. DRAM never holds the model: staging is a handful of
# chunks, made once and used again and again. A model of 100 GB would pass through no more. And this
# is the other end of the loop: what `reader.chunks` does. A slot is filled anew when its bytes have
# been used, which is when the next are asked for.

# %%
import inspect

print(inspect.getsource(Reader.chunks).split('"""')[-1].strip("\n"))

# %% [markdown]
# ## At the speed of *your* disk
#
# Now without a model of anything: the same `Reader`, your SSD, cold, held against the ceiling of
# lesson 01.

# %% tags=["nbval-ignore-output"]
from minillm.probe import Profile, probe

profile = Profile.here() or probe(seconds=10)
real = Machine.here()
there = Arena(real, wanted, "hbm", "weights")
there.block.zero_()
speeds = []
for _ in range(5):
    drop(checkpoint.files)
    with Reader(real, "direct", infos) as reader:
        start = time.perf_counter()
        reader.fill(there.places, infos)
        speeds.append(nbytes / (time.perf_counter() - start))

# %% tags=["nbval-ignore-output"]
assert torch.equal(there.block.cpu(), expected)
print(f"best of 5: {profile['ssd.read'].of(max(speeds))}; slowest {min(speeds) / 1e9:.2f} GB/s")

# %% [markdown]
# ## Turn the knob: the size of a chunk
#
# Large chunks: the last one is copied while no other is being read. Small chunks: each read pays
# the SSD's latency, which a scale model stretches like everything else. Drag, and find the best.
# With several in flight, latencies pass together, as in lesson 01. How small may chunks be then?

# %% tags=["nbval-ignore-output"]
def efficiency(chunk_kib: int, in_flight: int = 1) -> str:
    size = min(1024 * chunk_kib, nbytes)
    count = max(1, round(nbytes / size))
    alone, copy = nvme.seconds(size), pcie.seconds(size)
    each = max(size / nvme.bandwidth, alone / min(in_flight, count), copy)
    seconds = alone + (count - 1) * each + copy
    share = f"{nbytes / nvme.bandwidth / seconds:.0%} of the SSD's rate"
    return f"{count:,} chunks of {chunk_kib:,} KiB: {seconds:,.2f} s, {share} (predicted)"


knob(efficiency, chunk_kib=(64, 65536), in_flight=[1, 2, 4, 8])

# %% [markdown]
# ## What it costs to have memory
#
# There is a third time that nobody asks for. Memory that was never touched does not exist: the
# system finds a page for it, and clears it, when the first byte is written, one page at a time. We
# fill a block of DRAM that is new, and the same block again.

# %% tags=["nbval-ignore-output"]
fresh = torch.empty(256 * 2**20, dtype=torch.uint8)
times = []
for _ in range(2):
    start = time.perf_counter()
    fresh.fill_(1)
    times.append(time.perf_counter() - start)
del fresh
for title, took in zip(("first touch", "again"), times, strict=True):
    print(f"{title:11} {256 * 2**20 / took / 1e9:5.1f} GB/s")
print(f"this SSD    {profile['ssd.read'].best / 1e9:5.1f} GB/s")

# %% [markdown]
# On a virtual machine the first touch may be slower than the disk: its host has to find the page
# too. So staging is made once, on large pages, and touched before the first read.
#
# For a GPU it is also *pinned*: the system promises not to move it, so the card fetches by itself
# while the CPU goes on. Out of ordinary memory the driver first copies to a pinned buffer of its
# own, and nothing overlaps. (GPUDirect Storage leaves DRAM out altogether.)

# %% [markdown]
# ## Sharing: each rank reads its own
#
# Four GPUs share a model by cutting its matrices (lesson 41 shows why in this way). A slice of
# *rows* lies in one piece of the file. A slice of *columns* is a stripe in every row. Let us look
# at a matrix of 4 × 6 numbers of one byte, stored row by row, and mark what rank 1 of 2 needs.

# %%
rows, columns = 4, 6
file = list(range(rows * columns))
print("rows:   ", " ".join(f"[{b}]" if b // columns >= rows // 2 else f"{b}" for b in file))
print("columns:", " ".join(f"[{b}]" if b % columns >= columns // 2 else f"{b}" for b in file))

# %% [markdown]
# ## Exercise 2: which bytes does rank 1 of 4 read?
#
# A matrix of `rows` × `columns` lies in the file from byte `start` on, row by row, `size` bytes a
# number. It is split by columns. Return the (begin, end) pairs of this rank's bytes: those that it
# keeps.

# %%
def column_ranges(start: int, rows: int, columns: int, size: int, rank: int, ranks: int) -> list:
    raise NotImplementedError  # your lines


column_ranges = check("11.2", column_ranges)
# hint("11.2")

# %% [markdown]
# The package cuts like this too. `megatron` says which matrix is split by rows and which by
# columns, as is usual since the paper of that name; `slices` is the checkpoint as one rank sees it.
# Rows and columns here are those of the file. The paper writes X·A, with A stored the other way
# round, so it calls our cut by columns *row-parallel*.

# %%
from minillm.load.shard import broadcast, megatron, slices

config = minillm.ModelConfig.from_pretrained(town)
whole = Checkpoint.open(town)
name = "model.layers.0.mlp.down_proj.weight"  # the last matrix of a layer's FFN, cut by columns
owns = [slices(whole, rank, 2, megatron(config)) for rank in (0, 1)]

tensor, own = whole.tensors[name], owns[1].tensors[name]
yours = column_ranges(tensor.start, *tensor.shape, 2, rank=1, ranks=2)
assert own.ranges == [tuple(pair) for pair in yours]
print(f"{name}: {list(tensor.shape)}")
print(f"rank 1 of 2 keeps {len(own.ranges)} ranges: {own.ranges[:2]} …")

# %% [markdown]
# Now both ranks load, each with a machine of its own, and past the page cache. What does each keep,
# and what did it *read*? A hole between two stripes that is shorter than 128 KiB is read over,
# since another request would take longer.

# %%
from minillm.load.checkpoint import bring


def read_by(rank: int) -> tuple[dict[str, torch.Tensor], int]:
    """What a rank keeps, by name, and how many bytes it read."""
    mine = Machine.here(hbm="64 MiB", device="cpu")
    wanted = {name: (info.shape, info.dtype) for name, info in owns[rank].tensors.items()}
    places = Arena(mine, wanted, "hbm", "weights").places
    bring(places, owns[rank], mine, "direct")
    read = sum(event.nbytes for event in mine.trace.select(name="direct", label="weights"))
    print(f"rank {rank} keeps {owns[rank].nbytes:,} bytes and read {read:,}")
    return places, read


kept, asked = zip(read_by(0), read_by(1), strict=True)

# %% [markdown]
# Together they keep a little more than the file (norms are everyone's), and they read more than
# they keep. Here "each reads its own" loses: the narrower the stripes, the more of a row is read
# for nothing.
#
# The other way: one rank reads everything once and sends it on, and each cuts out its own. We let
# rank 0 do it, and count what it sends.

# %%
one = Machine.here(hbm="64 MiB", device="cpu")
wanted = {name: (info.shape, info.dtype) for name, info in owns[0].tensors.items()}
places = Arena(one, wanted, "hbm", "weights").places
sent = []
broadcast(places, whole, owns[0], one, lambda raw: sent.append(raw.nbytes), reads=True)

assert all(torch.equal(places[name], kept[0][name]) for name in places)
print(f"one reads {whole.nbytes:,} bytes, and {sum(sent):,} cross the network")

# %% [markdown]
# What is faster? By arithmetic, for two H100 servers: with an SSD each, both read at once; an SSD
# that they share has to give all that both ask for; and what one reads it sends on meanwhile.

# %% tags=["nbval-ignore-output"]
ssd, network = h100.nvme.bandwidth, h100.infiniband.bandwidth
ways = {"each its own, an SSD each": max(asked) / ssd, "each its own, one SSD": sum(asked) / ssd,
        "one for all": max(whole.nbytes / ssd, sum(sent) / network)}  # fmt: skip
for title, took in ways.items():
    print(f"{title:26} {1e3 * took:.2f} ms (predicted)")

# %% [markdown]
# Each rank receives everything and keeps a part: sending each only its own would send less. And
# ranks of one server that read through the page cache ask the SSD only once. So it depends on the
# link that is slowest: the disk, or the network between the ranks.
#
# And the two halves, put together: do they give the original, bit for bit?

# %%
full = Machine.here(hbm="64 MiB", device="cpu")
places = Arena(full, {name: (tensor.shape, tensor.dtype)}, "hbm", "weights").places
bring(places, whole, full)
assert torch.equal(halves := torch.cat([kept[0][name], kept[1][name]], dim=1), places[name])
print("two halves, put together:", tuple(halves.shape), "equal to the original")

# %% [markdown]
# ## A model larger than HBM
#
# The weights of *town* are 11.6 MiB. We give it an HBM of 6 MiB. `weights="stream"` keeps the
# layers in DRAM and brings each to HBM when its turn comes: two slots, one in which a layer
# computes, and one into which the next arrives.

# %%
greedy = SamplingParams(max_tokens=48, temperature=0.0)
with_room = Engine.load(town, Machine.here(hbm="64 MiB"))
for _ in range(2):  # the first time warms up
    resident = with_room.generate("Mia put the red key", greedy)[0]
print(resident.text)

# %% tags=["nbval-ignore-output"]
small = Machine.here(hbm="6 MiB")
engine = Engine.load(town, small, EngineConfig(weights="stream"))
with charts.watch(small.trace, "machine", "timeline", "memory"):
    streamed = engine.generate("Mia put the red key", greedy)[0]

# %% [markdown]
# Half of the memory. And the words?

# %%
assert streamed.token_ids == resident.token_ids
print(streamed.text)

# %% [markdown]
# The same. Every token now moves all layers over the link. Most of that is hidden here, because the
# small model spends most of a step on starting operations, and copies pass meanwhile. Hidden is not
# free: without a card the copies take a core, and memory's time, from compute.

# %% tags=["nbval-ignore-output"]
from minillm.machine.prefetch import hidden
found = hidden(small.trace, "weights")
print(f"{found.share:.0%} of the transfers' time was hidden behind compute, which waited "
      f"{1e3 * found.waited:.0f} ms in all")
print(f"{1e3 * streamed.tpot:.1f} ms a token, resident {1e3 * resident.tpot:.1f} ms")
engine.close()

# %% [markdown]
# ## Where it loses
#
# On a real server the link is PCIe, many times slower than HBM. Decode at batch 1 reads each weight
# once; compute is over long before the next layer has arrived, and nothing is left to hide behind.
# The scale model has the links of an H100 but the compute of this CPU, which lasts far longer. So
# we set the arithmetic beside it: how long HBM needs to read a layer, and PCIe to bring it.

# %% tags=["nbval-ignore-output"]
slow = Machine.scale_model("H100", hbm="6 MiB")
engine = Engine.load(town, slow, EngineConfig(weights="stream"))
slow.trace.clear()
assert engine.generate("Mia put the red key", greedy)[0].token_ids == resident.token_ids
lost = hidden(slow.trace, "weights")
print(f"{lost.share:.0%} hidden, compute waited {1e3 * lost.waited:.0f} ms (emulated)")
most = h100.pcie.bandwidth / h100.hbm_bandwidth
print(f"on the H100 itself at most {most:.0%} (predicted)")
engine.close()

# %% [markdown]
# And the model you would want to run so, by arithmetic:

# %% tags=["nbval-ignore-output"]
big = 16.06e9  # Llama-3-8B in bf16, bytes
rates = {"from HBM": h100.hbm_bandwidth, "over PCIe": h100.pcie.bandwidth,
         "from SSD": h100.nvme.bandwidth}  # fmt: skip
for title, bandwidth in rates.items():
    print(f"weights {title:9}: at most {bandwidth / big:6.2f} tokens/s at batch 1 (predicted)")
need = h100.bf16_flops / h100.pcie.bandwidth  # a weight is 2 bytes, and 2 FLOP for each token
print(f"PCIe is hidden from about {need:,.0f} tokens a step on (predicted)")

# %% [markdown]
# A larger batch shares each crossing, so tokens a second grow with it; the link is hidden only far
# later. So streaming suits work that is large and in no hurry. Otherwise: fewer bytes (lesson 34),
# or more GPUs (lesson 41).

# %% [markdown]
# ## Exercise 3: place the layers
#
# HBM is fastest, then DRAM, then SSD. Layers of equal size go to the fastest tier that still has
# room; the SSD has room for all. Return how many layers lie in each.

# %%
def place(layers: int, layer_bytes: int, hbm_free: int, dram_free: int) -> tuple[int, int, int]:
    raise NotImplementedError  # your lines


place = check("11.3", place)
# hint("11.3")

# %%
layer = 436_224_000  # bytes: a layer of Llama-3-8B in bf16
print("HBM 8 GB free, DRAM 4 GB free:", place(32, layer, 8 * 10**9, 4 * 10**9), "layers")

# %% [markdown]
# ## Five questions
#
# Answer each in your head, then open it.

# %%
recall(
    ("Two links, one after the other, take 3 s and 1 s for all bytes. Overlapped?",
     "A little over 3 s: the slower link sets the time."),
    ("Why does loading need only a few dozen megabytes of DRAM?",
     "Weights pass through staging in chunks, and a chunk's place is used again."),
    ("Why is a slice of columns more work to read than one of rows?",
     "It is a stripe in every row: many small ranges in place of one long."),
    ("When is it better that one rank reads and sends on?",
     "When the ranks share a disk that is slower than the network between them."),
    ("Streaming weights at batch 1 is slow. Why does a large batch help?",
     "The weights cross the link once a step, and a step then serves many prompts."),
)

# %% [markdown]
# ## Three takeaways, with the numbers of your run

# %% tags=["nbval-ignore-output"]
print(f"1. Overlapped, the load took {measured:.2f} s, in turns {turns:.2f} s (emulated).")
print(f"2. {format_size(nbytes)} passed through {format_size(staged)} of staging; your SSD gave")
print(f"   {profile['ssd.read'].of(max(speeds))}.")
print(f"3. A model of {format_size(whole.nbytes)} ran in an HBM of 6 MiB, with the same words;")
print(f"   {found.share:.0%} hidden here, {lost.share:.0%} over the scaled links (emulated),")
print(f"   {most:.0%} on an H100 (predicted).")

# %% [markdown]
# **Next:** `20_tokens_bpe`. The weights are where they belong. Now the text must become numbers.
