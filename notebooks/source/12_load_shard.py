# %% [markdown]
# # 12 · How do several GPUs get their parts?
#
# <img src="images/strip_load.png" width="672" alt="The five stages of the course. You are here:
# 1 load, weights come in.">
#
# A model that is too large or too slow for one GPU is cut, and each GPU keeps a part. Who reads
# which bytes, and what crosses the network between them? *Forty-five minutes; the code behind it:
# [`minillm/load/shard.py`](../minillm/load/shard.py),
# [`minillm/parallel/shards.py`](../minillm/parallel/shards.py) and
# [`minillm/parallel/ranks.py`](../minillm/parallel/ranks.py).*

# %% tags=["nbval-ignore-output"]
import inspect

import torch

from minillm import Machine, ModelConfig, charts, format_size
from minillm.files import temporary_folder
from minillm.lesson import check, compare, guess, hint, knob, recall, reveal
from minillm.load import Checkpoint
from minillm.load.shard import megatron, slices
from minillm.machine.disk import writable_folder

print(Machine.here().describe())

# %% [markdown]
# Six words:
#
# - **rank**: one of several processes, each of which drives one GPU.
# - **slice**: the part of a tensor that one rank keeps.
# - **range**: bytes of a file that follow each other, from `begin` up to and without `end`.
# - **gap**: a hole between two ranges that is short enough to be read over.
# - **broadcast**: one rank sends, and all hold the same afterwards.
# - **digest**: a few letters computed from many bytes; equal bytes have equal digests.

# %% [markdown]
# ## A matrix of 24 bytes, cut in two
#
# We store 4 × 6 numbers of one byte, row by row, as a file does. Rank 1 of 2 wants its half. Either
# the lower half of the *rows*, or the right half of the *columns*. We mark what it keeps.

# %%
rows, columns, file = 4, 6, range(24)
print("rows:   ", " ".join(f"[{b}]" if b // columns >= rows // 2 else f"{b}" for b in file))
print("columns:", " ".join(f"[{b}]" if b % columns >= columns // 2 else f"{b}" for b in file))

# %% [markdown]
# Count along. By rows, 12 bytes lie in one range. By columns, 12 bytes lie in four ranges of 3,
# with holes of 3 between them. A request to a disk costs more than a few bytes do, so the holes are
# read over: from the first wanted byte to the last.

# %%
begin, end = columns // 2, rows * columns
print("by rows:    keeps 12 bytes, reads 12")
print(f"by columns: keeps 12 bytes, reads {end - begin}: {begin} to {end}")
print(f"one reads for both: reads {len(file)}, sends {len(file)}")

# %% [markdown]
# Those three lines are all the arithmetic of this lesson: a slice of rows costs what it keeps; a
# slice of columns costs nearly the whole matrix; and who reads for all reads each byte once, and
# sends it.

# %% [markdown]
# ## Predict
#
# A checkpoint of a small Llama's shape, with random weights, for two ranks. In each layer the
# matrices that *read* the hidden state are cut by rows, and the two that *add* to it, `o_proj` and
# `down_proj`, by columns (lesson 41 shows why). Norms are everyone's.

# %% tags=["nbval-ignore-output"]
from minillm.tools.make_checkpoint import SHAPES, make_checkpoint

shape = {"hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4}
disk = temporary_folder(writable_folder())  # goes with the kernel
folder = disk.name
nbytes = make_checkpoint(SHAPES["135m"] | shape, folder)
print(f"{nbytes / 1e6:.1f} MB of weights, for two ranks")

# %%
keeps = guess("what one rank keeps", unit="MB")
reads = guess("what both read, if each reads its own", unit="MB")
sends = guess("what rank 0 sends, if it reads for both", unit="MB")

# %% [markdown]
# Now as in the toy: half of every matrix; but what is cut by columns is read nearly whole, by both.

# %% tags=["nbval-ignore-output"]
whole, config = Checkpoint.open(folder), ModelConfig.from_pretrained(folder)
sizes = dict.fromkeys(("rows", "columns", "all"), 0)
for name, info in whole.tensors.items():
    by_columns = "o_proj" in name or "down_proj" in name
    sizes["columns" if by_columns else "all" if "norm" in name else "rows"] += info.nbytes

kept = (sizes["rows"] + sizes["columns"]) // 2 + sizes["all"]
both = sizes["rows"] + 2 * sizes["columns"] + 2 * sizes["all"]
print(f"a rank keeps {kept / 1e6:.1f} MB, both read {both / 1e6:.1f}, "
      f"sent are {whole.nbytes / 1e6:.1f} (predicted)")

# %% [markdown]
# ## Run
#
# Two processes, each with a machine of its own. They are real ones: what one sends to the other
# passes through the system's network, by `torch.distributed`. We ask both to load, in both ways.

# %% tags=["nbval-ignore-output"]
from minillm.parallel.ranks import Ranks
from minillm.parallel.shards import link_rate, read_for_all, read_own

ranks = Ranks(2)  # two processes, which end with this one
own, sent = ranks.run(read_own, folder), ranks.run(read_for_all, folder)
for title, gots in (("each reads its own", own), ("one reads for all", sent)):
    for rank, got in enumerate(gots):
        print(f"{title:18}  rank {rank} keeps {got.kept / 1e6:5.1f} MB, reads "
              f"{got.read / 1e6:5.1f}, sends {got.sent / 1e6:5.1f}")

# %% [markdown]
# Both ways must leave the same bytes in each rank, and the two ranks must hold different ones.

# %%
assert [got.digest for got in own] == [got.digest for got in sent]
assert own[0].digest != own[1].digest and own[0].kept == kept
assert sent[0].sent == whole.nbytes and sent[1].read == 0
print("both ways, the same weights in each rank")

# %% tags=["nbval-ignore-output"]
reveal(keeps, predicted=kept / 1e6, measured=own[0].kept / 1e6)
reveal(reads, predicted=both / 1e6, measured=sum(got.read for got in own) / 1e6)
reveal(sends, predicted=whole.nbytes / 1e6, measured=sent[0].sent / 1e6)

# %% [markdown]
# What is read is a little beside the prediction. The first and the last stripe have a hole on one
# side only; `O_DIRECT` reads whole blocks; and between the slices of two small matrices that
# follow each other in the file the hole may be short too, and is read over.

# %% [markdown]
# ## First rung: a slice of rows
#
# Now we build it. Rows first: one range. We open the file, go to its beginning, and read.

# %%
def read_ranges(path, ranges: list) -> bytes:
    parts = []
    with open(path, "rb") as stream:
        for begin, end in ranges:
            stream.seek(begin)
            parts.append(stream.read(end - begin))
    return b"".join(parts)

# %%
gate = whole.tensors["model.layers.0.mlp.gate_proj.weight"]  # cut by rows
half = gate.nbytes // 2
lower = read_ranges(gate.file, [(gate.start + half, gate.start + gate.nbytes)])
print(f"{list(gate.shape)}: rank 1 keeps {len(lower):,} bytes, in one range")

# %% [markdown]
# ## Second rung, yours: a slice of columns
#
# A matrix of `rows` × `columns` lies in the file from byte `start` on, row by row, `size` bytes a
# number. It is cut by columns. Return the (begin, end) pairs of this rank's bytes: those that it
# keeps, in order.

# %%
def column_ranges(start: int, rows: int, columns: int, size: int, rank: int, ranks: int) -> list:
    raise NotImplementedError  # your lines; without them the lesson goes on with ours


column_ranges = check("12.1", column_ranges)
# hint("12.1")

# %% [markdown]
# Is it what the package keeps? And the two halves, put together: are they the original, bit for
# bit?

# %%
name = "model.layers.0.mlp.down_proj.weight"
tensor = whole.tensors[name]
cut = [column_ranges(tensor.start, *tensor.shape, 2, rank, 2) for rank in (0, 1)]
for rank in (0, 1):
    theirs = slices(whole, rank, 2, megatron(config)).tensors[name]
    assert [tuple(pair) for pair in cut[rank]] == [tuple(pair) for pair in theirs.ranges]
print(f"rank 1 keeps {len(cut[1])} ranges: {cut[1][:2]} …")

# %%
raw = [read_ranges(tensor.file, mine) for mine in (*cut, [(tensor.start, tensor.end)])]
left, right, original = (torch.tensor(list(r)).view(tensor.shape[0], -1) for r in raw)
assert torch.equal(torch.cat([left, right], dim=1), original)
print("two halves, put side by side, are the original")

# %% [markdown]
# ## Third rung, yours: read over the holes
#
# That were hundreds of small requests for one matrix. Return fewer: two ranges become one, if the
# hole between them has at most `gap` bytes. `ranges` come in order and never touch each other.

# %%
def merge(ranges: list, gap: int) -> list:
    raise NotImplementedError  # your lines


merge = check("12.2", merge)
# hint("12.2")

# %%
for gap in (0, 128 * 2**10):
    asked = merge(cut[1], gap)
    total = sum(end - begin for begin, end in asked)
    print(f"gap {gap:7,}: {len(asked):4} requests, {total:9,} bytes for {tensor.nbytes // 2:,}")

# %% [markdown]
# ## Fourth rung: one reads, and sends
#
# In the other way the cut is made in DRAM: a whole tensor arrives, and each rank copies its rows or
# columns out of it. This is the core, as the ranks ran it above. `send` is a broadcast: rank 0
# gives its bytes, the others get them.

# %%
print(inspect.getsource(read_for_all))

# %% [markdown]
# And how is a tensor cut in the package? `megatron` says which axis, after the paper of that name.
# Rows and columns are those of the file. The paper writes X·A with A stored the other way round, so
# it calls our cut by columns *row-parallel*.

# %%
for part in ("q_proj", "o_proj", "gate_proj", "down_proj", "input_layernorm"):
    split = megatron(config)(f"model.layers.0.{part}.weight")
    print(f"{part:16}", split and ("rows", "columns")[split.axis] or "everyone has all of it")

# %% [markdown]
# ## Which is faster here?
#
# Both in turns, several rounds; a way takes as long as its slower rank. What could it be at best?
# One SSD has to give all that is asked for; and what one reads it sends on meanwhile. So we need
# the link's own speed: `link_rate` lets the ranks broadcast a chunk of DRAM, and nothing else.

# %% tags=["nbval-ignore-output"]
ways = {"each its own": lambda: max(got.seconds for got in ranks.run(read_own, folder)),
        "one for all": lambda: max(got.seconds for got in ranks.run(read_for_all, folder))}
side_by_side = compare(ways, rounds=5, unit="ms")
print(side_by_side.sentence)

# %% tags=["nbval-ignore-output"]
from minillm.probe import Profile, probe

profile = Profile.here() or probe(seconds=10)
ssd, link = profile["ssd.read"].best, ranks.run(link_rate)[1]
print(f"the SSD gives {ssd / 1e9:.2f} GB/s at best, a broadcast {link / 1e9:.2f} (measured)")
least = {"each its own": both / ssd, "one for all": max(nbytes / ssd, nbytes / link)}
for title, seconds in least.items():
    print(side_by_side.against(f"{title}, predicted", seconds, title))

# %% [markdown]
# Where a way stays far below its ceiling, look at what the ceiling leaves out. Both ranks, their
# readers and their copies share the cores of this machine; and a checkpoint has many small tensors,
# each of which is a broadcast of its own, where all ranks wait for each other.

# %% [markdown]
# ## Turn the knob: how many ranks?
#
# Llama-3-70B on servers with an H100's links. A third of its bytes is cut by columns. Three ways:
# an SSD for each rank; one storage for all that gives what one such SSD gives; or one rank reads
# from it and sends over InfiniBand. Drag, and watch which curve grows.

# %% tags=["nbval-ignore-output"]
from minillm.predict.hardware import HARDWARE

h100 = HARDWARE["H100"]
layer = 2 * (2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672)  # bytes
striped = 80 * 2 * (8192 * 8192 + 8192 * 28672)  # bytes cut by columns
total = 80 * layer + 2 * 2 * 128256 * 8192


def seconds_of(ranks: int) -> dict[str, float]:
    each = (total - striped) / ranks + striped
    return {"an SSD each": each / h100.nvme.bandwidth,
            "one storage": ranks * each / h100.nvme.bandwidth,
            "one for all": max(total / h100.nvme.bandwidth, total / h100.infiniband.bandwidth)}

# %% tags=["nbval-ignore-output"]
def draw(ranks: int = 8):
    here = seconds_of(ranks)
    best = min(here, key=here.get)
    chart = charts.Chart(f"{ranks} ranks: {best} takes {here[best]:.0f} s", note="predicted")
    ax = chart.add_axes((0.1, 0.17, 0.68, 0.6))
    marks = dict(zip(here, (("#D55E00", "-"), ("#D55E00", ":"), ("#CC79A7", "-")), strict=True))
    for way, (colour, style) in marks.items():
        ax.plot(range(1, 65), [seconds_of(n)[way] for n in range(1, 65)], style, color=colour)
        ax.plot(ranks, here[way], "o", color=colour)
        ax.annotate(f"{way} {here[way]:.0f} s", (1.02, min(0.95, seconds_of(64)[way] / 120)),
                    xycoords="axes fraction", size=8, va="center", color=colour)
    ax.set(xlabel="ranks", ylabel="time to load (s)", xlim=(1, 64), ylim=(0, 120))
    return chart


knob(draw, ranks=(1, 64))

# %% [markdown]
# ## Break it: count in numbers, not in bytes
#
# The usual slip: a range that forgets how many bytes a number has. We cut so, and look whether
# anything complains.

# %%
slip = column_ranges(tensor.start, *tensor.shape, 1, 1, 2)  # size 1, but bf16 has 2
broken = read_ranges(tensor.file, slip)
values = torch.frombuffer(bytearray(broken), dtype=torch.bfloat16)
print(f"{len(broken):,} bytes, wanted {tensor.nbytes // 2:,}; finite: {values.isfinite().all()}")

# %% [markdown]
# Every value is a valid weight, of another place. Only the number of bytes gives it away. That is
# why a load checks shapes before it reads a byte, and why we compared digests.

# %% [markdown]
# ## Where it loses: thin stripes
#
# With more ranks a stripe gets thinner, and what is read for nothing grows. How much of what a rank
# reads does it keep? We let the package plan, for a `down_proj` of this model; nothing is read.

# %%
for count in (2, 4):
    mine = slices(whole, 1, count, megatron(config)).tensors[name]
    print(f"{count} ranks: stripes of {mine.run:,} bytes, reads {mine.end - mine.start:,} to keep "
          f"{mine.nbytes:,}: {mine.nbytes / (mine.end - mine.start):.0%}")

# %% [markdown]
# So servers often cut a checkpoint once, ahead of time, into one file a rank: then every rank reads
# what it keeps, and nothing else. It costs a second copy on disk for each number of ranks.

# %% [markdown]
# ## On paper: eight GPUs, one storage
#
# A node of eight H100 loads a model from storage that all share. Give the seconds of both ways, as
# a pair: *each its own* (a part `striped` of the bytes is read whole by every rank, of the rest
# each reads its share), and *one for all* (reading and sending overlap, the slower sets the time).
# `storage` and `network` are bytes a second.

# %%
def two_ways(nbytes, striped, ranks, storage, network) -> tuple[float, float]:
    raise NotImplementedError  # your lines: striped is a share, 0 to 1


two_ways = check("12.3", two_ways)
# hint("12.3")

# %%
own_way, one_way = two_ways(total, striped / total, 8, 10e9, 50e9)
print(f"Llama-3-70B, storage 10 GB/s, network 50 GB/s: {own_way:.0f} s or {one_way:.0f} s "
      "(predicted)")

# %% [markdown]
# ## Five questions
#
# Answer each in your head, then open it.

# %% tags=["folded"]
recall(
    ("Why is a slice of columns more work to read than one of rows?",
     "It is a stripe in every row: many small ranges in place of one long."),
    ("Why does a rank read bytes that it does not keep?",
     "A hole that is short takes less time to read over than another request does."),
    ("Each reads its own, from one SSD. Does twice the number of ranks halve the time?",
     "No: the SSD gives all that they ask for together, and stripes are asked for by everyone."),
    ("When is it better that one rank reads and sends on?",
     "When the ranks share a disk that is slower than the network between them."),
    ("A slice was cut at the wrong byte. Who complains?",
     "Nobody: each value is a valid weight. Compare with the original, or a digest."),
)

# %% [markdown]
# ## Three takeaways, with the numbers of your run

# %% tags=["nbval-ignore-output", "folded"]
asked = sum(got.read for got in own)
print(f"1. Two ranks kept {own[0].kept / 1e6:.1f} MB each, and read {asked / 1e6:.1f} together.")
print(f"2. One for all read {sent[0].read / 1e6:.1f} MB, and sent {sent[0].sent / 1e6:.1f}.")
print(f"3. {side_by_side.sentence}.")
ranks.close()

# %% [markdown]
# **Next:** `13_load_larger`. What if there is one GPU only, and the model does not fit?
