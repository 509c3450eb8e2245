# %% [markdown]
# # 12 · How do several GPUs get their parts?
#
# <img src="images/strip_load.png" width="672" alt="The five stages of the course. You are here:
# 1 load, weights come in.">
#
# A model that is too large or too slow for one GPU is cut, and each GPU keeps a part. Does each
# read its own, or does one read and send? *Fifty minutes; the code behind it:
# [`minillm/load/shard.py`](../minillm/load/shard.py),
# [`minillm/parallel/shards.py`](../minillm/parallel/shards.py) and
# [`minillm/parallel/ranks.py`](../minillm/parallel/ranks.py).*

# %% tags=["nbval-ignore-output"]
import inspect
from functools import cache
from statistics import fmean

import torch

from minillm import Machine, ModelConfig, charts
from minillm.files import temporary_folder
from minillm.lesson import check, compare, guess, guesses, hint, knob, recall, reveal
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
# - **broadcast**: a message from one rank after which all ranks hold the same bytes.
# - **alpha**: seconds that a message takes, however short it is.
# - **beta**: bytes a second of a long message.

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
# By rows, its 12 bytes are one range. By columns they are four ranges of 3, with holes between. One
# request is better than many for a disk, so short holes are read over: from 3 to 24, 21 bytes.
# Rank 0 reads 21 as well.
#
# Or rank 0 reads all 24 and broadcasts them; each rank cuts out its own. Why all, and not the
# other's half? One broadcast serves eight ranks as well as two, and nobody has to know who keeps
# what.

# %%
def each_its_own(read_by_all: int, disk: float) -> float:
    return read_by_all / disk  # they share one disk


def one_for_all(nbytes: int, disk: float, messages: int, alpha: float, beta: float) -> tuple:
    read, send = nbytes / disk, messages * alpha + nbytes / beta
    return max(read, send), read + send  # seconds: side by side, and in turns


print("each its own, 42 bytes:        ", each_its_own(42, disk=3), "seconds")
for n, what in ((4, "a row at a time: "), (1, "all in a message:")):
    least, most = one_for_all(24, disk=3, messages=n, alpha=2, beta=6)
    print(f"one for all, {what} {least} seconds side by side, {most} in turns")

# %% [markdown]
# Count along. The disk gives 3 bytes a second: 42 bytes are 14 seconds for both, 24 bytes are 8.
# Four messages are 4 · 2 seconds of alpha, and 24 ÷ 6 of sending: 12. One message: 6. If rank 0
# reads ahead while it sends (lesson 11), the longer of the two counts; if not, their sum. Ours
# reads ahead. But where cores are few, reading and sending share them: we predict the sum.

# %% [markdown]
# ## Predict
#
# A checkpoint of a small Llama's shape, with random weights, for two ranks on this machine. In each
# layer the matrices that *read* the hidden state are cut by rows, and the two that *add* to it,
# `o_proj` and `down_proj`, by columns (lesson 41 shows why). Norms are everyone's.

# %% tags=["nbval-ignore-output"]
from minillm.probe import Profile, probe
from minillm.tools.make_checkpoint import SHAPES, make_checkpoint

shape = {"hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4}
disk = temporary_folder(writable_folder())  # goes with the kernel
make_checkpoint(SHAPES["135m"] | shape, disk.name)
whole, config = Checkpoint.open(disk.name), ModelConfig.from_pretrained(disk.name)
ssd = (Profile.here() or probe(seconds=10))["ssd.read"].best
print(f"{whole.nbytes / 1e6:.1f} MB in {len(whole.tensors)} tensors; "
      f"the SSD gives {ssd / 1e9:.2f} GB/s at best (measured)")

# %% [markdown]
# How long does loading take? If rank 0 reads for both, it may send each tensor alone, or
# neighbours together until a message has 8 MiB.

# %%
own = guess("each its own", unit="ms")
alone = guess("one for all, each tensor alone", unit="ms")
packed = guess("one for all, 8 MiB a message", unit="ms")

# %% [markdown]
# The prediction needs alpha and beta. Two processes begin, real ones: what one sends to the other
# passes through the system's network, by `torch.distributed`. We let them broadcast 4 KiB, and
# 8 MiB, fifty times, and take the mean.

# %% tags=["nbval-ignore-output"]
from minillm.parallel.ranks import Ranks
from minillm.parallel.shards import broadcast, read_for_all, read_own, send_seconds, together

ranks, mib = Ranks(2), 2**20  # two processes, which end with this one
short, long = (fmean(ranks.run(send_seconds, n, 50)[1]) for n in (4096, 8 * mib))
alpha, beta = short, (8 * mib - 4096) / max(long - short, 1e-6)
print(f"alpha {1e6 * alpha:.0f} µs, beta {beta / 1e9:.2f} GB/s (measured)")

# %% [markdown]
# Now as in the toy: half of every matrix is kept; what is cut by columns is read nearly whole, by
# both.

# %% tags=["nbval-ignore-output"]
sizes = dict.fromkeys(("rows", "columns", "all"), 0)
for name, info in whole.tensors.items():
    by_columns = "o_proj" in name or "down_proj" in name
    sizes["columns" if by_columns else "all" if "norm" in name else "rows"] += info.nbytes
kept = (sizes["rows"] + sizes["columns"]) // 2 + sizes["all"]
both = sizes["rows"] + 2 * sizes["columns"] + 2 * sizes["all"]
messages = {"alone": len(whole.tensors), "packed": round(whole.nbytes / (8 * mib))}

# %% tags=["nbval-ignore-output"]
least = {"own": each_its_own(both, ssd)}
predicted = dict(least)
print(f"each its own: {1e3 * least['own']:.0f} ms (predicted)")
for way, n in messages.items():
    least[way], predicted[way] = one_for_all(whole.nbytes, ssd, n, alpha, beta)
    print(f"one for all, {n:3} messages: {1e3 * predicted[way]:.0f} ms (predicted), "
          f"side by side {1e3 * least[way]:.0f}")

# %% [markdown]
# ## Run
#
# *Own*, *alone* and *packed*, several rounds of all three; a way takes as long as its slower rank.

# %% tags=["nbval-ignore-output"]
gots = {}


def load(way: str, *how) -> float:
    gots[way] = ranks.run(*how)
    return max(got.seconds for got in gots[way])


took = compare({"own": lambda: load("own", read_own, disk.name),
                "alone": lambda: load("alone", read_for_all, disk.name, 1),
                "packed": lambda: load("packed", read_for_all, disk.name, 8 * mib)},
               rounds=4, unit="ms")  # fmt: skip
print(took.sentence)

# %% tags=["nbval-ignore-output"]
for mine, way in ((own, "own"), (alone, "alone"), (packed, "packed")):
    reveal(mine, predicted=1e3 * predicted[way], measured=[1e3 * s for s in took.seconds[way]],
           ceiling=1e3 * least[way])  # fmt: skip

# %% [markdown]
# What does alpha leave out? It was measured while nothing else ran. In a load both ranks, their
# readers and their copies share this machine's cores, and a rank that waits for a core lets the
# other wait too, once a message. The two loads tell what a message took there. The bytes, at least,
# are exact.

# %% tags=["nbval-ignore-output"]
more = (took.median("alone") - took.median("packed")) / (messages["alone"] - messages["packed"])
print(f"a message more: {1e6 * more:.0f} µs in a load, {1e6 * alpha:.0f} while nothing else ran"
      if took.faster("alone", "packed") == "packed" else "These loads do not tell it.")  # fmt: skip
for way in gots:
    for rank, got in enumerate(gots[way]):
        print(f"{way:6} rank {rank}: keeps {got.kept / 1e6:.1f} MB, reads {got.read / 1e6:5.1f}, "
              f"sends {sum(got.sent) / 1e6:5.1f} in {len(got.sent):3} messages")
digests = {way: [got.digest for got in gots[way]] for way in gots}
assert digests["own"] == digests["alone"] == digests["packed"] and len(set(digests["own"])) == 2
assert gots["own"][0].kept == kept and sum(gots["packed"][0].sent) == whole.nbytes
asked, sent = sum(got.read for got in gots["own"]), whole.nbytes
print(f"own, both: read {asked / 1e6:.1f} MB; predicted {both / 1e6:.1f}, to keep {kept / 1e6:.1f}")

# %% [markdown]
# The asserts compare *digests*, a few letters computed from all the bytes that a rank kept: each
# way leaves the same weights. What is read is a little beside the prediction: the first stripe and
# the last have a hole on one side only, and short holes between two slices are read over too.
#
# ## First rung: a slice of rows
#
# Now we build both ways. A slice of rows is one range: go to its beginning, and read.

# %%
def read_ranges(path, ranges: list) -> bytes:
    parts = []
    with open(path, "rb") as stream:
        for begin, end in ranges:
            stream.seek(begin)
            parts.append(stream.read(end - begin))
    return b"".join(parts)


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
# Is it what the package keeps? `megatron` is the usual cut, named after its paper. (The paper
# stores a matrix the other way round, and calls our cut by columns *row-parallel*.) And the two
# halves, put together: are they the original, bit for bit?

# %%
name = "model.layers.0.mlp.down_proj.weight"
tensor = whole.tensors[name]
cut = [column_ranges(tensor.start, *tensor.shape, 2, rank, 2) for rank in (0, 1)]
for rank in (0, 1):
    theirs = slices(whole, rank, 2, megatron(config)).tensors[name]
    assert [tuple(pair) for pair in cut[rank]] == [tuple(pair) for pair in theirs.ranges]
raw = [read_ranges(tensor.file, mine) for mine in (*cut, [(tensor.start, tensor.end)])]
left, right, original = (torch.tensor(list(r)).view(tensor.shape[0], -1) for r in raw)
assert torch.equal(torch.cat([left, right], dim=1), original)
print(f"{len(cut[1])} ranges each, {cut[1][:2]} …; put side by side, they are the original")

# %% [markdown]
# ## Third rung, yours: what goes together
#
# In the other way alpha counts, so messages should be few. Tensors come in the order of the file,
# as (name, bytes). Put neighbours together as long as a group has at most `most` bytes. A tensor
# with more goes alone, and the order stays: bytes are sent as they arrive. Return the names, a list
# for each message.

# %%
def pack(tensors: list, most: int) -> list:
    raise NotImplementedError  # your lines

pack = check("12.2", pack)
# hint("12.2")

# %%
tensors = [(info.name, info.nbytes) for info in whole.tensors.values()]
groups, theirs = pack(tensors, 8 * mib), together(whole.tensors.values(), 8 * mib)
assert groups == [[info.name for info in group] for group in theirs]
assert len(groups) == len(gots["packed"][0].sent)  # what the ranks did above
print(f"{len(tensors)} tensors in {len(groups)} messages")

# %% [markdown]
# This is the loop that the ranks ran. `send` is the broadcast: rank 0 gives its bytes, the others
# get them. Each rank then cuts its own out of whole tensors.

# %%
print("        for group" + inspect.getsource(broadcast).rpartition("for group")[2].rstrip())

# %% [markdown]
# ## Turn the knob: bytes a message
#
# The dashed lines are the toy's. The black point is a real load, with the messages that you chose.
# Drag: from where on does alpha no longer matter?

# %% tags=["nbval-ignore-output"]
def bounds(kib: int) -> tuple:
    return one_for_all(whole.nbytes, ssd, len(pack(tensors, 1024 * kib)), alpha, beta)


@cache
def loaded(kib: int) -> float:
    return min(load("knob", read_for_all, disk.name, 1024 * kib) for _ in range(3))


def draw(kib: int = 2048):
    return charts.curve(
        f"{kib:,} KiB a message: {1e3 * loaded(kib):.0f} ms",
        {"in turns": lambda k: bounds(k)[1], "side by side": lambda k: bounds(k)[0]},
        [2**n for n in range(6, 16)], x="a message (KiB)", y="time to load", unit="s", at=kib,
        points=[(kib, loaded(kib), "loaded")], span=(0, 2.5 * bounds(64)[1]),
        note="measured: black, the best of 3; predicted: dashed")  # fmt: skip


knob(draw, kib=(64, 32768))

# %% [markdown]
# A message of alpha · beta bytes takes alpha twice: once to begin, once for its bytes. Shorter ones
# are mostly alpha; of much longer ones it is a small part.
#
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
#
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
# So servers often cut a checkpoint ahead of time, into one file a rank, which reads it whole. That
# takes another copy on disk for each number of ranks.
#
# ## On paper: eight GPUs, one storage
#
# A node of eight H100 loads from storage that all share. Give the seconds of both ways, as a pair.
# *Each its own*: a share `striped` of the bytes is read whole by every rank, of the rest each
# reads its part. *One for all*: `messages` broadcasts, and rank 0 reads ahead.

# %%
def two_ways(nbytes, striped, ranks, storage, messages, alpha, beta) -> tuple[float, float]:
    raise NotImplementedError  # striped: 0 to 1; storage and beta in bytes a second

two_ways = check("12.3", two_ways)
# hint("12.3")

# %%
for storage, count in ((10e9, 723), (100e9, 723), (100e9, 16_800)):
    apart, one = two_ways(141e9, 0.34, 8, storage, count, 50e-6, 50e9)
    print(f"Llama-3-70B, storage {storage / 1e9:3.0f} GB/s, {count:6,} messages: "
          f"each its own {apart:4.1f} s, one for all {one:4.1f} s (predicted)")

# %% [markdown]
# The 70B model has 723 tensors, most of them large: alpha is small change, unless they are cut into
# messages of 8 MiB. And with a drive for each rank, each reads 42 % of the bytes, and nobody sends.
#
# ## Five questions
#
# Answer each in your head, then open it.

# %% tags=["folded"]
recall(
    ("Why is a slice of columns more work to read than one of rows?",
     "It is a stripe in every row: many small ranges in place of one long."),
    ("Each reads its own, from one SSD. Does twice the number of ranks halve the time?",
     "No: the SSD gives all that they ask for together, and stripes are asked for by everyone."),
    ("272 messages became 25. What was saved, and what was not?",
     "247 times alpha. The bytes are the same, and so is their time, bytes ÷ beta."),
    ("When is it better that one rank reads and sends on?",
     "When the ranks share a disk that is slower than the network between them."),
    ("A slice was cut at the wrong byte. Who complains?",
     "Nobody: each value is a valid weight. Compare with the original, or a digest."),
)

# %% [markdown]
# ## Three takeaways, with the numbers of your run

# %% tags=["nbval-ignore-output", "folded"]
print(f"1. Two ranks kept {kept / 1e6:.1f} MB each. On their own they read {asked / 1e6:.1f}; "
      f"one for all read {gots['packed'][0].read / 1e6:.1f} and sent {sent / 1e6:.1f}.")
print(f"2. A message took {1e6 * alpha:.0f} µs, however short: as long as the bytes of "
      f"{alpha * beta / 1024:.0f} KiB. {len(tensors)} messages became {len(groups)}.")
print(f"3. {took.sentence}.")

# %% [markdown]
# ## Your guesses
#
# How far were they, here and in the lessons before?

# %%
guesses()

# %% [markdown]
# **Next:** `13_load_larger`. What if there is one GPU only, and the model does not fit?
