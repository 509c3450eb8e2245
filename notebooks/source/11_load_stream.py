# %% [markdown]
# # 11 · How do weights reach HBM at the speed of the disk?
#
# <img src="images/strip_load.png" width="672" alt="The five stages of the course. You are here:
# 1 load, weights come in.">
#
# Bytes go SSD → DRAM → HBM, over two links. Taken in turns, the times add up. Taken together, only
# the slower link counts. Then we share the weights out over several GPUs, and run a model that is
# larger than HBM. *Forty minutes; the code behind it:
# [`minillm/load/stream.py`](../minillm/load/stream.py) and
# [`minillm/load/share.py`](../minillm/load/share.py).*

# %% tags=["nbval-ignore-output"]
import shutil
import tempfile
import time
from pathlib import Path

import torch
import minillm
from minillm import Engine, EngineConfig, Machine, SamplingParams, charts, format_size
from minillm.lesson import check, guess, hint, knob, recall, reveal

town = Path(minillm.__file__).parents[1] / "data" / "town"
print(Machine.here().describe())

# %% [markdown]
# Six words:
#
# - **staging**: a small buffer in DRAM through which all weights pass, a piece at a time.
# - **chunk**: the piece that one read brings.
# - **overlap**: two links busy at the same time.
# - **slice**: the part of a tensor that one rank needs; a **rank** is one of several GPUs.
# - **prefetch**: to send for something before it is needed.
# - **hidden fraction**: the part of a transfer's time in which compute was busy anyway.

# %% [markdown]
# ## Two people and eight buckets
#
# Ann fills a bucket in 2 seconds and hands it to Ben, who empties it into the tank in 1 second.
# With a single bucket they take turns. With two buckets Ann fills one while Ben carries the other.

# %%
def finish(buckets: int, fill: float, carry: float, spare: bool) -> float:
    filled = emptied = 0.0
    for _ in range(buckets):
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
print(pipeline_seconds(1000, 2, 1), "seconds for 1,000 buckets: Ben's work is hidden")

# %% [markdown]
# ## Predict
#
# Our machine is a scale model of an H100 server: its links are slowed until they stand to each
# other as there (lesson 01). The checkpoint has the shape of SmolLM2, 135 million parameters, and
# random weights: the bytes are real, its answers would be nonsense. Both links are known, so both
# times are arithmetic.

# %% tags=["nbval-ignore-output"]
from minillm.load.make import make_checkpoint

folder = Path(tempfile.mkdtemp(prefix="minillm-"))
nbytes = make_checkpoint("135m", folder / "135m")

machine = Machine.scale_model("H100", hbm="512 MiB")
machine.trace.meta["ceilings"] = machine.scale.ceilings()
nvme, pcie = machine.scale.wire("nvme"), machine.scale.wire("pcie")
in_turns = nvme.seconds(nbytes) + pcie.seconds(nbytes)
together = max(nvme.seconds(nbytes), pcie.seconds(nbytes))
print(f"SSD {nvme.seconds(nbytes):.2f} s, PCIe {pcie.seconds(nbytes):.2f} s (predicted)")

# %%
mine = guess("time to load 135 million weights over the scaled links", unit="s")

# %% [markdown]
# ## Run
#
# Watch both links of the diagram: are they busy at the same time?

# %% tags=["nbval-ignore-output"]
with charts.watch(machine.trace, "machine", "timeline"):
    engine = Engine.load(folder / "135m", machine)

# %% tags=["nbval-ignore-output"]
moves = engine.trace.select(kind="transfer", label="weights")
measured = max(e.end for e in moves) - min(e.start for e in moves)
reveal(mine, predicted=together, measured=measured)

# %% [markdown]
# How much of the two links' time did the overlap save?

# %% tags=["nbval-ignore-output"]
print(f"predicted: in turns {in_turns:.2f} s, overlapped {together:.2f} s")
print(f"measured {measured:.2f} s", end="; ")
print(f"overlap efficiency: {together / measured:.0%}")
assert sum(e.nbytes for e in moves if e.target == "hbm") == nbytes
staged = max(e.nbytes for e in engine.trace.select(kind="counter", name="dram", label="staging"))

# %% tags=["nbval-ignore-output"]
print(f"{format_size(nbytes)} of weights passed through {format_size(staged)} of staging")
engine.close()
shutil.rmtree(folder)

# %% [markdown]
# The last line is the other half of the trick. DRAM never holds the model: staging is a handful of
# chunks, made once and used again and again. A model of 100 GB would pass through no more.

# %% [markdown]
# ## Turn the knob: the size of a chunk
#
# Large chunks: the last one is copied while no other is being read. Small chunks: each read pays
# the SSD's latency. Drag, and find the best. (Predicted for one request at a time; our reader keeps
# several in flight, which is how it can afford large ones.)

# %% tags=["nbval-ignore-output"]
def efficiency(chunk_kib: int) -> str:
    size = min(1024 * chunk_kib, nbytes)
    count = max(1, round(nbytes / size))
    seconds = pipeline_seconds(count, nvme.seconds(size), pcie.seconds(size))
    efficient = f"{together / seconds:.0%} efficient"
    return f"{count:,} chunks of {chunk_kib:,} KiB: {seconds:,.2f} s, {efficient} (predicted)"


knob(efficiency, chunk_kib=(64, 65536))

# %% [markdown]
# ## What it costs to have memory
#
# There is a third time that nobody asks for. Memory that was never touched does not exist: the
# system finds a page for it when the first byte is written, one page at a time. We fill a block
# that is new, and the same block again.

# %% tags=["nbval-ignore-output"]
real = Machine.here()
block = real.empty((256 * 2**20,), torch.uint8, "hbm", "weights")
times = []
for _ in range(2):
    start = time.perf_counter()
    block.fill_(1)
    real.sync()
    times.append(time.perf_counter() - start)
real.free(block)
del block
print(f"first touch {256 / 1024 / times[0]:.1f} GiB/s, second {256 / 1024 / times[1]:.1f} GiB/s")

# %% [markdown]
# On a busy server the first touch can cost more than the disk. So staging is made once, on large
# pages, and touched before the first read; so is the place for the weights.

# %% [markdown]
# ## Sharing: each rank reads its own
#
# Four GPUs share a model by cutting its matrices (lesson 41 shows why just so). A slice of *rows*
# lies in one piece of the file. A slice of *columns* is a stripe in every row. Let us look at a
# matrix of 4 × 6 numbers of one byte, stored row by row, and mark what rank 1 of 2 needs.

# %%
rows, columns = 4, 6
file = list(range(rows * columns))
print("rows:   ", " ".join(f"[{b}]" if b // columns >= rows // 2 else f"{b}" for b in file))
print("columns:", " ".join(f"[{b}]" if b % columns >= columns // 2 else f"{b}" for b in file))

# %% [markdown]
# ## Exercise 2: which bytes does rank 1 of 4 read?
#
# A matrix of `rows` × `columns` lies in the file from byte `start` on, row by row, `size` bytes a
# number. It is split by columns. Return the (begin, end) pairs of this rank's bytes.

# %%
def column_ranges(start: int, rows: int, columns: int, size: int, rank: int, ranks: int) -> list:
    raise NotImplementedError  # your lines


column_ranges = check("11.2", column_ranges)
# hint("11.2")

# %%
from minillm.load import Checkpoint
from minillm.load.share import megatron, slices

config = minillm.ModelConfig.from_pretrained(town)
whole = Checkpoint.open(town)
name = "model.layers.0.mlp.down_proj.weight"
own = slices(whole, 1, 2, megatron(config)).tensors[name]

tensor = whole.tensors[name]
assert own.ranges == column_ranges(tensor.start, *tensor.shape, 2, rank=1, ranks=2)
print(f"{name}: {list(tensor.shape)}")
print(f"rank 1 of 2 reads {len(own.ranges)} ranges: {own.ranges[:2]} …")

# %% [markdown]
# Each rank asks for its own bytes only, and all ranks together read the file about once. Or one
# rank reads everything and sends it on. What is better depends on which link is faster, the disk or
# the network between the ranks. Here are the bytes of both.

# %%
each = [slices(whole, rank, 2, megatron(config)).nbytes for rank in (0, 1)]
print("each reads its own:    ", " + ".join(f"{n:,}" for n in each), "bytes off disks")
print(f"one reads and sends on: {whole.nbytes:,} bytes off the disk,")
print(f"                        {whole.nbytes:,} bytes over the network")

# %% [markdown]
# Together the ranks read a little more than the file: norms are everyone's. And if we put the
# slices back together, do we get the original, bit for bit?

# %%
from minillm.load.shard import allocate, bring

there = Machine.here(hbm="64 MiB", device="cpu")


def tensor_of(checkpoint: Checkpoint) -> torch.Tensor:
    shape = torch.Size(checkpoint.tensors[name].shape)
    _, places = allocate({name: shape}, there, torch.bfloat16, "hbm")
    bring(places, checkpoint, there)
    return places[name]


halves = [tensor_of(slices(whole, rank, 2, megatron(config))) for rank in (0, 1)]
assert torch.equal(torch.cat(halves, dim=1), tensor_of(whole))
print("two halves, put together:", tuple(torch.cat(halves, dim=1).shape), "equal to the original")

# %% [markdown]
# ## A model larger than HBM
#
# The weights of *town* are 11.6 MiB. We give it an HBM of 6 MiB. `weights="stream"` keeps the
# layers in DRAM and brings each to HBM when its turn comes: two slots, one in which a layer
# computes, and one into which the next arrives.

# %%
greedy = SamplingParams(max_tokens=12, temperature=0.0)
with_room = Engine.load(town, Machine.here(hbm="64 MiB"))
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
# The same. The link from DRAM to HBM works all the time now: each
# token needs each layer, so the weights cross it once for every token.

# %% tags=["nbval-ignore-output"]
from minillm.engine.stream import hidden
found = hidden(small.trace)
print(f"{found.share:.0%} of the transfers' time was hidden behind compute; it waited "
      f"{1e3 * found.waited:.0f} ms in all")
engine.close()

# %% [markdown]
# ## Where it loses
#
# On a real server the link is PCIe. Decode at batch 1 reads each weight once: from HBM at its
# bandwidth, or over PCIe at *its* bandwidth. Compute is over long before the next layer has
# arrived, and nothing is left to hide behind.

# %% tags=["nbval-ignore-output"]
from minillm.predict import HARDWARE
h100, big = HARDWARE["H100"], 16.06e9  # Llama-3-8B in bf16, bytes
rates = {"from HBM": h100.hbm_bandwidth, "over PCIe": h100.pcie.bandwidth,
         "from SSD": h100.nvme.bandwidth}  # fmt: skip
for title, bandwidth in rates.items():
    print(f"weights {title:9}: at most {bandwidth / big:6.2f} tokens/s at batch 1 (predicted)")

# %% [markdown]
# With hundreds of prompts in a batch it is another matter: the weights still cross once a step, and
# a step takes longer to compute. So streaming suits work that is large and in no hurry. Otherwise:
# fewer bytes (lesson 34), or more GPUs (lesson 41).

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
# Answer first, then unfold.

# %%
recall(
    ("Two links, one after the other, take 3 s and 1 s for all bytes. Overlapped?",
     "A little over 3 s: the slower link sets the time."),
    ("Why does loading need only some dozen megabytes of DRAM?",
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
print(f"1. Overlapped, the load took {measured:.2f} s; in turns it would take")
print(f"   {in_turns:.2f} s (predicted).")
print(f"2. {format_size(nbytes)} passed through {format_size(staged)} of staging.")
print(f"3. Weights of {format_size(whole.nbytes)} ran in {format_size(small.hbm.capacity)} of HBM:")
print("   the same words, and every token pays for the link.")

# %% [markdown]
# **Next:** `20_tokens_bpe`. The weights are where they belong. Now the text must become numbers.
