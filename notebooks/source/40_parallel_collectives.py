# %% [markdown]
# # 40 · How do ranks agree on a sum?
#
# <img src="images/strip_parallel.png" width="672" alt="The five stages of the course. You are here:
# 4 parallel, ranks talk.">
#
# Each rank has a list of numbers, and all want the sum of the lists. How many bytes must each send,
# in how many steps, and how long does that take? *Forty-five minutes; the code behind it:
# [`parallel/ranks.py`](../minillm/parallel/ranks.py),
# [`parallel/worker.py`](../minillm/parallel/worker.py),
# [`parallel/collectives.py`](../minillm/parallel/collectives.py),
# [`predict/links.py`](../minillm/predict/links.py).*

# %% tags=["nbval-ignore-output"]
# %load_ext minillm.parallel.ranks
import inspect
import time
from statistics import median

from IPython.display import display

from minillm import Machine, charts, format_size, predict
from minillm.lesson import Comparison, check, guess, guesses, hint, knob, recall, reveal
from minillm.predict import HARDWARE

print(Machine.here().describe())

# %% [markdown]
# Six words; **rank**, alpha and beta are those of lesson 12:
#
# - **collective**: a call that all ranks make, and that ends only if all do.
# - **all-reduce**: each brings a list, and all get the sum of the lists.
# - **reduce-scatter**: each gets a part of that sum.
# - **all-gather**: each brings a part, and all get all of them.
# - **bus bandwidth**: bytes a second that a link carries in a collective, in one direction.
# - **deadlock**: each waits for something that comes after what another one waits for.

# %% [markdown]
# ## A sum passed round
#
# Four people at a round table, each with four numbers. Rank 0 has 1 2 3 4, rank 1 has 10 20 30 40,
# rank 2 hundreds, rank 3 thousands: each digit of a sum tells who has added to it. In a *step* each
# passes one number to the right, all at once. Six steps, slowly; later the slider is yours. The
# darker, the more have added.

# %%
def number(rank: int, part: int, step: int) -> int:
    """What rank holds of a part after so many steps of the ring."""
    comes = (rank - part - 1) % 4  # steps until a partial sum of it comes by
    added = comes + 1 if step >= comes else 1
    if step >= 3 + (comes + 1) % 4:
        added = 4
    return sum((part + 1) * 10 ** ((rank - before) % 4) for before in range(added))

# %% tags=["nbval-ignore-output"]
def draw(step: int = 0) -> charts.Chart:
    held = [[number(rank, part, step) for part in range(4)] for rank in range(4)]
    words = [[f"{n:,}" for n in row] for row in held]
    shades = [[sum(digit != "0" for digit in str(n)) / 4 for n in row] for row in held]
    whole = sum(n % 1111 == 0 for row in held for n in row)
    return charts.heatmap(f"After step {step}: {whole} of 16 numbers are whole sums", shades,
                          [f"rank {n}" for n in range(4)], [f"part {n}" for n in range(4)],
                          words=words, note="by hand")  # fmt: skip


turned = knob(draw, step=(0, 6))
shown = display(turned, display_id=True)
for step in range(1, 7):
    time.sleep(0.4)
    turned.sliders["step"].value = step
turned.sliders["step"].value = 3
shown.update(turned)

# %% [markdown]
# In three steps partial sums go round and grow: a *reduce-scatter*; after it each rank has one
# whole sum. In three more the whole sums go round: an *all-gather*. Each rank has sent six quarters
# of its list.
#
# Or each sends its whole list to the three others. A walk takes 2 minutes (alpha), a number 1
# minute (beta). How long for lists of 4, of 40, of 400?

# %%
def ring(n: float, N: int, alpha: float, beta: float) -> float:
    """2 (N - 1) steps, each with an N-th of the list."""
    return 2 * (N - 1) * (alpha + n / N / beta)


def to_all(n: float, N: int, alpha: float, beta: float) -> float:
    return (N - 1) * (alpha + n / beta)


for n in (4, 40, 400):
    print(f"{n:3} numbers: ring {ring(n, 4, 2, 1):.0f} minutes, to all {to_all(n, 4, 2, 1):.0f}")

# %% [markdown]
# Long lists pay for bytes, 2 (N − 1) ÷ N times the list in a ring, for any N less than twice. Short
# ones pay for steps, 2 (N − 1).
#
# ## Predict
#
# Four ranks, real processes on this machine, sum a tensor of 4 bytes, of 256 KiB, of 16 MiB. How
# long does each take?

# %%
tiny = guess("all-reduce of 4 bytes, 4 ranks", unit="ms")
middle = guess("all-reduce of 256 KiB, 4 ranks", unit="ms")
large = guess("all-reduce of 16 MiB, 4 ranks", unit="ms")

# %% [markdown]
# A cell that begins with `%%ranks 4` runs in four processes. They stay, with their variables, and
# what they print comes in their order. Each knows its `rank`, the number of ranks `world`, and
# `dist`, which is `torch.distributed`: what clusters use, here over the loopback network.
#
# First one step of the ring, and a clock that starts when all are there. (To begin takes some
# seconds.)

# %%
# %%ranks 4
import time
right, left = (rank + 1) % world, (rank - 1) % world

def swap(mine, room):
    """A step: `mine` goes to the right, while `room` is filled from the left."""
    sent = dist.isend(mine, right)
    dist.recv(room, left)
    sent.wait()

def seconds(do, *arguments, times=15):
    found = []
    for _ in range(1 + times):
        dist.barrier()
        start = time.perf_counter()
        do(*arguments)
        found.append(time.perf_counter() - start)
    return found[1:]

print(f"rank {rank} of {world}: sends to {right}, receives from {left}")

# %% [markdown]
# Alpha and beta of a step, from one number and from 4 MiB. A step is over when all ranks are done;
# `ranks.get` brings a variable of each.

# %% tags=["nbval-ignore-output"]
# %%ranks 4
steps = {}
for nbytes in (4, 2**22):
    part, room = torch.zeros(nbytes // 4), torch.empty(nbytes // 4)
    steps[nbytes] = seconds(swap, part, room)

# %% tags=["nbval-ignore-output"]
def slowest(name: str) -> dict:
    """Of each size, of each round: the seconds of the rank that took the longest."""
    every = ranks.get(name)
    return {n: list(map(max, *(one[n] for one in every))) for n in every[0]}


short, long = (median(times) for times in slowest("steps").values())
alpha, beta = short, (2**22 - 4) / max(long - short, 1e-6)
print(f"alpha {1e6 * alpha:.0f} µs, beta {beta / 1e9:.2f} GB/s (measured, four ranks at once)")

# %% [markdown]
# ## Run
#
# `dist.all_reduce`, by Gloo, the library that torch takes on a CPU. The prediction is the ring's
# arithmetic, with alpha and beta of one step.

# %% tags=["nbval-ignore-output"]
# %%ranks 4
whole = {}
for nbytes in (4, 2**18, 2**24):
    x = torch.zeros(nbytes // 4)
    whole[nbytes] = seconds(dist.all_reduce, x)

# %% [markdown]
# In each round the rank that took the longest counts:

# %% tags=["nbval-ignore-output"]
took = slowest("whole")

# %% tags=["nbval-ignore-output"]
for mine, nbytes in ((tiny, 4), (middle, 2**18), (large, 2**24)):
    predicted, times = 1e3 * ring(nbytes, 4, alpha, beta), [1e3 * t for t in took[nbytes]]
    reveal(mine, predicted=predicted, measured=times)

# %% [markdown]
# The prediction counts messages alone: no addition, and a step that starts when all are there. Gloo
# is written in C++, our step in Python. Where the two disagree, one of those is why.
#
# ## First rung: one step
#
# Now we build it. In step 1 rank r gives part r − 1 and takes part r − 2, which it adds to its own.
# (`parts[-1]` is the last one: the numbers go round by themselves.)

# %%
# %%ranks 4
x = torch.tensor([1, 2, 3, 4]) * 10**rank
parts, room = list(x.split(1)), torch.empty(1, dtype=x.dtype)
swap(parts[rank - 1], room)
parts[rank - 2] += room
print(x.tolist())

# %%
held = [x.tolist() for x in ranks.get("x")]
assert held == [[number(rank, part, 1) for part in range(4)] for rank in range(4)]

# %% [markdown]
# ## Second rung, yours: reduce-scatter
#
# On paper first. `lists[rank][part]` are numbers, as many parts as ranks. In each of N − 1 steps
# every rank gives one part to the right and adds what comes from the left: in step s rank r gives
# part r − s. Return the lists after the last step.

# %%
def reduce_scatter(lists: list) -> list:
    raise NotImplementedError  # your lines, or hint("40.1"); without them the lesson uses ours

reduce_scatter = check("40.1", reduce_scatter)

# %% [markdown]
# The same by four ranks, each of which knows its own list alone. Yours says what must come out.

# %%
# %%ranks 4
def scatter_sums(parts):
    for step in range(1, world):
        take = parts[rank - step - 1]
        room = torch.empty_like(take)
        swap(parts[rank - step], room)
        take += room

x = torch.tensor([1, 2, 3, 4]) * 10**rank
scatter_sums(list(x.split(1)))
print(x.tolist())

# %%
lists = [[part * 10**rank for part in (1, 2, 3, 4)] for rank in range(4)]
assert [x.tolist() for x in ranks.get("x")] == reduce_scatter(lists)

# %% [markdown]
# ## Third rung: all-gather, and any size
#
# What is whole goes round; nothing is added. A part may have one element more than another, or
# none. Held against `dist.all_reduce`, on integers, where no rounding hides a mistake.

# %%
# %%ranks 4
def all_reduce(x):
    parts = list(x.view(-1).tensor_split(world))
    scatter_sums(parts)
    for step in range(world - 1):
        swap(parts[rank - step], parts[rank - step - 1])
    return x

for shape in ((4,), (3, 5), (1,), (0,), (1000, 7)):
    mine = torch.randint(1000, shape, generator=torch.Generator().manual_seed(rank))
    theirs = mine.clone()
    dist.all_reduce(theirs)
    assert torch.equal(all_reduce(mine), theirs)
print("five shapes, equal to dist.all_reduce")

# %% [markdown]
# ## Meet the package
#
# The same, and one thing more: a part goes in messages of at most 2 MiB, and each is handed on as
# soon as it is added, while others are under way. A `Group` knows its neighbours. `traced` writes a
# collective into the rank's `trace`; `ranks.trace()` merges them on one clock.

# %%
from minillm.parallel import collectives

for function in (collectives.ring_all_reduce, collectives._pass_round):
    print(f"{function.__name__}:{inspect.getsource(function).split(chr(34) * 3)[-1].rstrip()}")

# %%
# %%ranks 4
from minillm.parallel.collectives import ring_all_reduce, tree_all_reduce
from minillm.parallel.mesh import Mesh

group = Mesh(trace, tp=world).tp
ours, theirs = torch.arange(10) * rank, torch.arange(10) * rank
dist.all_reduce(theirs)
ring_all_reduce(ours, group)
assert torch.equal(ours, theirs)
trace.clear()
with group.traced("all_reduce", x := torch.zeros(2**20)):
    ring_all_reduce(x, group)

# %% [markdown]
# Four records in one picture. Here four processes stand for four GPUs, and the loopback network for
# NVLink:

# %% tags=["nbval-ignore-output"]
merged = ranks.trace()
sent = [event.nbytes for event in merged.select(name="all_reduce")]
assert sent == [2 * 3 * 2**22 // 4] * 4  # 2 (N − 1) ÷ N of 4 MiB, by each
charts.machine(merged)

# %% [markdown]
# ## The sweep: do alpha and beta hold?
#
# Six sizes. `predict.fit` looks for the alpha and beta whose ring comes closest to all of them, by
# relative error. What is left over, the residual, says where the model fails.

# %% tags=["nbval-ignore-output"]
# %%ranks 4
sweep = {}
for power in range(4, 25, 4):
    x = torch.zeros(2**power // 4)
    sweep[2**power] = seconds(ring_all_reduce, x, group, times=9)

# %% tags=["nbval-ignore-output"]
sizes = {n: median(times) for n, times in slowest("sweep").items()}
found = predict.fit("all_reduce", 4, sizes)
off = {n: 1 + residual for n, residual in found.residuals.items()}
worst = max(off, key=lambda n: max(off[n], 1 / off[n]))
charts.curve(
    f"{format_size(worst)} took {off[worst]:.2f} × what alpha and beta say",
    {"alpha–beta": lambda kib: predict.all_reduce(1024 * kib, 4, found.link)},
    [2**k for k in range(-6, 15)], x="tensor (KiB)", y="all-reduce", unit="s", log="xy",
    points=[(n / 1024, s, "farthest off" * (n == worst)) for n, s in sizes.items()],
    note="fitted; points: measured")

# %% [markdown]
# Size by size:

# %% tags=["nbval-ignore-output"]
for n, seconds in sizes.items():
    fitted = predict.all_reduce(n, 4, found.link)
    print(f"{format_size(n):>9}: {1e3 * seconds:7.2f} ms measured, {1e3 * fitted:7.2f} fitted: "
          f"{off[n]:.2f} ×")  # fmt: skip
bad = [format_size(n) for n in off if not 0.8 < off[n] < 1.25]
print(f"more than a quarter off: {', '.join(bad) or 'no size, this time'}")

# %% [markdown]
# Two numbers are a model, not a law: caches, packets, and ranks that wait for one another are not
# in it. So nobody should read beta off one size, or alpha off a long message.
#
# ## Bus bandwidth
#
# A server's links carry 450 GB/s in one direction (NVLink of an H100; the data sheet's 900 GB/s
# counts both). An all-reduce of 1 GB, on paper: more GPUs, the same links.

# %%
link = HARDWARE["H100"].nvlink
for N in (2, 4, 8, 64):
    needs = predict.all_reduce(1e9, N, link)
    assert abs(needs - ring(1e9, N, link.latency, link.bandwidth)) < 1e-9  # by hand
    busbw = predict.bus_bandwidth("all_reduce", 1e9, needs, N)
    print(f"{N:2} GPUs: {1e3 * needs:.2f} ms; bytes ÷ time {1 / needs:3.0f} GB/s, bus bandwidth "
          f"{busbw / 1e9:.0f} GB/s")  # fmt: skip
print("source:", HARDWARE["H100"].sources["nvlink"])

# %% [markdown]
# Bytes ÷ time (*algbw* in NVIDIA's nccl-tests) falls, though no link became worse. Each rank sends
# 2 (N − 1) ÷ N times the tensor: (N − 1) ÷ N in the reduce-scatter, and as much in the all-gather.
# That is the 2, not "in and out". Multiplied by it, algbw becomes *busbw*, to be held against one
# link, in one direction. A figure above 450 is no ring over that link: it counts both directions,
# or a switch has added.

# %% tags=["nbval-ignore-output"]
first, *_, last = sizes
algbw = last / sizes[last]
busbw = predict.bus_bandwidth("all_reduce", last, sizes[last], 4)
print(f"here, {format_size(last)}: algbw {algbw / 1e9:.2f} GB/s, busbw {busbw / 1e9:.2f}; one step "
      f"alone had {beta / 1e9:.2f}: {busbw / beta:.0%} of it (measured)")  # fmt: skip

# %% [markdown]
# ## Turn the knob: how many ranks?
#
# A *tree* adds pairs, pairs of pairs, and sends the sum back: 2 log₂ N steps, each with the whole
# tensor. Latency and bandwidth as between H100s. Where do the lines cross, and where does the
# crossing go as ranks are added?

# %% tags=["nbval-ignore-output"]
def against(N: int = 8) -> charts.Chart:
    kib = [2**k for k in range(-4, 15)]
    lines = {way: lambda k, way=way: predict.all_reduce(1024 * k, N, link, way)
             for way in ("ring", "tree")}  # fmt: skip
    least = next((k for k in kib if lines["ring"](k) < lines["tree"](k)), None)
    said = f"the ring takes less from {least:,} KiB on" if least else "the tree takes less"
    return charts.curve(f"{N} ranks: {said}", lines, kib, x="tensor (KiB)", y="all-reduce",
                        unit="s", log="xy", span=(1e-6, 1e-2))  # fmt: skip


knob(against, N=[2, 4, 8, 16, 64, 256, 1024])

# %% [markdown]
# ## Where it loses
#
# A tensor of 4 bytes has six messages to wait for, and beta has nothing to do. Ring and tree on
# your machine: six steps against four.

# %% tags=["nbval-ignore-output"]
# %%ranks 4
both = {}
for nbytes in (4, 2**22):
    x = torch.zeros(nbytes // 4)
    for name, way in (("ring", ring_all_reduce), ("tree", tree_all_reduce)):
        both[f"{name}, {nbytes:,} bytes"] = seconds(way, x, group)

# %% tags=["nbval-ignore-output"]
times = slowest("both")
for nbytes in ("4", f"{2**22:,}"):
    two = {name: took for name, took in times.items() if name.endswith(f" {nbytes} bytes")}
    print(Comparison(two, unit="ms").sentence)

# %% [markdown]
# One token of a model is such a small tensor (lesson 41). NCCL, the library on NVIDIA's cards,
# takes trees for small tensors and rings for large ones; its trees are two, and pipelined, so that
# they lose less bandwidth.
#
# ## Break it: a deadlock
#
# A collective that one rank does not join never ends. Nor does this: each wants to receive before
# it sends. On a cluster such a job hangs until somebody looks. Here it ends after `--timeout`
# seconds, and the error names each rank's line.

# %% tags=["raises-exception"]
# %%ranks 2 --timeout 2
x, room = torch.full((3,), rank), torch.empty(3, dtype=torch.int64)
if rank == 0:
    dist.recv(room, 1)
    dist.send(x, 1)
else:
    dist.recv(room, 0)
    dist.send(x, 0)

# %% [markdown]
# ## Yours: find the deadlock
#
# Sending first is no cure: a message is delivered when *both* are there, and some libraries take
# short ones on credit, so that a program works until its tensors grow. `programs[rank]` is a list
# of `("send", to)` and `("recv", source)`. An operation is done when its partner has come to the
# matching one. Return, for each rank, the number of operations that it gets done.

# %%
def done(programs: list) -> list:
    raise NotImplementedError  # or hint("40.2")

done = check("40.2", done)

# %%
receive_first = [[("recv", 1), ("send", 1)], [("recv", 0), ("send", 0)]]
send_first = [[("send", 1), ("recv", 1)], [("send", 0), ("recv", 0)]]
mended = [[("send", 1), ("recv", 1)], [("recv", 0), ("send", 0)]]
print({name: done(programs) for name, programs in (
    ("receive first", receive_first), ("send first", send_first), ("mended", mended))})  # fmt: skip

# %% [markdown]
# One rank sends first, the other one receives first. On real ranks, with the program as a list:

# %%
# %%ranks 2
x, room = torch.full((3,), rank), torch.empty(3, dtype=torch.int64)
for what, other in ([("send", 1), ("recv", 1)], [("recv", 0), ("send", 0)])[rank]:
    dist.send(x, other) if what == "send" else dist.recv(room, other)
print("received", room.tolist())

# %% [markdown]
# Our ring needs no such order: `isend` begins to send and does not wait.
#
# ## On paper: a server
#
# A layer on N GPUs ends with an all-reduce of its activations: `tokens` rows of `width` numbers, 2
# bytes each. Links with `alpha` seconds and `beta` bytes a second, in one direction, by a ring.
# Return bytes of the tensor, seconds, and bus bandwidth.

# %%
def all_reduce_cost(tokens: int, width: int, N: int, alpha: float, beta: float) -> tuple:
    raise NotImplementedError  # (bytes, seconds, busbw); or hint("40.3")

all_reduce_cost = check("40.3", all_reduce_cost)

# %%
for tokens, what in ((1, "one token"), (64, "64 requests"), (4096, "a prompt of 4,096")):
    nbytes, needs, busbw = all_reduce_cost(tokens, 8192, 8, link.latency, link.bandwidth)
    print(f"{what:17}: {nbytes / 1024:8,.0f} KiB, {1e6 * needs:6.1f} µs, busbw {busbw / 1e9:3.0f} "
          f"GB/s; 80 layers, two each: {160e3 * needs:.1f} ms")  # fmt: skip
ranks.close()

# %% [markdown]
# That is Llama-3-70B's width on eight H100s (predicted). For one token nearly all of it is alpha:
# a link twice as wide would change nothing. So its bus bandwidth says little about the link, and
# the time says all.
#
# ## Five questions
#
# Answer each in your head, then open it.

# %% tags=["folded"]
recall(
    ("Eight ranks sum 80 MB in a ring. How much does each send?",
     "2 · 7 ÷ 8 · 80 MB = 140 MB: 70 in the reduce-scatter, 70 in the all-gather."),
    ("Where does the 2 in 2 (N − 1) ÷ N come from?",
     "From two halves: sums go round until each is whole, then the whole ones go round."),
    ("Twice the ranks, the same links, a long tensor: what happens to algbw and busbw?",
     "Algbw falls a little, towards half of the link. Busbw stays: it is about the link."),
    ("An all-reduce of 16 KiB is too slow. A link of twice the bandwidth is offered. Take it?",
     "Not for that: it waits for latency. Fewer steps help, as a tree's."),
    ("One rank of eight skips an all-reduce. What do you see?",
     "Nothing: the other seven wait. An error that names each rank's line says who is elsewhere."),
)

# %% [markdown]
# ## Three takeaways, with the numbers of your run, and your guesses

# %% tags=["nbval-ignore-output", "folded"]
print(f"1. A ring sends 2 (N − 1) ÷ N of the tensor: 4 MiB on 4 ranks, {sent[0]:,} bytes.")
print(f"2. {format_size(first)} took {1e3 * sizes[first]:.2f} ms, {format_size(last)} "
      f"{1e3 * sizes[last]:.0f} ms; alpha and beta are off by up to {off[worst]:.2f} ×.")
print(f"3. Bus bandwidth {busbw / 1e9:.0f} GB/s on paper, for a prompt on eight H100s.")

# %%
guesses()

# %% [markdown]
# **Next:** `41_parallel_tensor`. A layer is split over ranks: which two sums are needed, and why?
