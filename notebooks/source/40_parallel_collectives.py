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

import torch
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
# - **bus bandwidth**: bytes a second that each rank sends in a ring: what its link carries, one
#   way.
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
# Or each sends its whole list to the three others, one after the other. A walk takes 2 minutes
# (alpha), and 1 number a minute is handed over (beta). How long for lists of 4, of 40, of 400?

# %%
def ring(n: float, N: int, alpha: float, beta: float) -> float:
    """2 (N - 1) steps, each with an N-th of the list."""
    return 2 * (N - 1) * (alpha + n / N / beta)


def to_all(n: float, N: int, alpha: float, beta: float) -> float:
    return (N - 1) * (alpha + n / beta)


for n in (4, 40, 400):
    print(f"{n:3} numbers: ring {ring(n, 4, 2, 1):.0f} minutes, to all {to_all(n, 4, 2, 1):.0f}")

# %% [markdown]
# Long lists pay for bytes: in a ring 2 (N − 1) ÷ N times the list, for any N less than twice. Short
# ones pay for steps: 2 (N − 1) in the ring, N − 1 to all.
#
# ## Predict
#
# Four ranks, real processes on this machine, sum a tensor of 4 bytes, of 256 KiB, of 16 MiB by a
# ring. Alpha and beta of a message from process to process: as in lesson 12. How long does each
# take?

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

def seconds(do, *arguments):
    dist.barrier()
    start = time.perf_counter()
    do(*arguments)
    return time.perf_counter() - start

print(f"rank {rank} of {world}: sends to {right}, receives from {left}")

# %% [markdown]
# ## Run
#
# Alpha and beta of a step, from one number and from 4 MiB. Then `ring_all_reduce`, the package's
# ring; below we build it. Six sizes: three you guessed, all six we need later. Nine rounds, each
# with all of them, so that a busy moment of the machine strikes all alike. A `Group` is the ranks
# that take part, and knows who is whose neighbour.

# %% tags=["nbval-ignore-output"]
# %%ranks 4
from minillm.parallel.collectives import ring_all_reduce, tree_all_reduce
from minillm.parallel.mesh import Mesh

group = Mesh(trace, tp=world).tp
xs = {2**power: torch.zeros(2**power // 4) for power in (2, 10, 15, 18, 21, 24)}
parts = {n: (torch.zeros(n // 4), torch.empty(n // 4)) for n in (4, 2**22)}
steps, sweep = {n: [] for n in parts}, {n: [] for n in xs}
for _ in range(9):
    for n, (part, room) in parts.items():
        steps[n].append(seconds(swap, part, room))
    for n, x in xs.items():
        sweep[n].append(seconds(ring_all_reduce, x, group))

# %% tags=["nbval-ignore-output"]
def slowest(name: str) -> dict:
    """Of each size, of each round: the seconds of the rank that took the longest."""
    every = ranks.get(name)  # of each rank its variable
    return {n: list(map(max, *(one[n] for one in every))) for n in every[0]}


one_step, took = slowest("steps"), slowest("sweep")

# %% [markdown]
# Guessed, predicted and measured. The prediction is the toy's arithmetic, with alpha and beta of
# one step.

# %% tags=["nbval-ignore-output"]
short, long = map(median, one_step.values())
alpha, beta = short, (2**22 - 4) / max(long - short, 1e-6)
print(f"alpha {1e6 * alpha:.0f} µs, beta {beta / 1e9:.2f} GB/s (measured, four ranks at once)")

# %% tags=["nbval-ignore-output"]
for mine, nbytes in ((tiny, 4), (middle, 2**18), (large, 2**24)):
    predicted, times = 1e3 * ring(nbytes, 4, alpha, beta), [1e3 * t for t in took[nbytes]]
    reveal(mine, predicted=predicted, measured=times)

# %% [markdown]
# The prediction counts messages alone: no addition, and each step starts when all are there. In the
# ring a rank that is late need not hold up all others at once; and where ranks are more than cores,
# they take turns. If prediction and measurement disagree, look there.
#
# ## First rung: one step
#
# Now we build it. In step 1 rank r gives part r − 1 and takes part r − 2, which it adds to its own.
# (`parts[-1]` is the last one: the numbers go round by themselves.)

# %%
# %%ranks 4
x = torch.tensor([1, 2, 3, 4]) * 10**rank
parts = list(x.split(1))
swap(parts[rank - 1], room := torch.empty_like(parts[rank - 2]))
parts[rank - 2] += room

# %%
held = [x.tolist() for x in ranks.get("x")]
print(*held, sep="\n")
assert held == [[number(rank, part, 1) for part in range(4)] for rank in range(4)]

# %% [markdown]
# ## Second rung, yours: reduce-scatter
#
# All N − 1 steps, as one rank does them. `parts` is its list, cut into `world` tensors. In step s
# rank r gives part r − s, and adds what comes to part r − s − 1. `swap` is the step above. Return
# `parts`.
#
# The check plays the other ranks. Keep the function in one piece, so that it can be sent to them.

# %%
def reduce_scatter(parts: list, rank: int, world: int, swap) -> list:
    raise NotImplementedError  # your lines, or hint("40.1"); without them the lesson uses ours


reduce_scatter = check("40.1", reduce_scatter)

# %% [markdown]
# And now on real ones: your function (ours, as long as yours is not right) in four processes.

# %%
text = inspect.getsource(reduce_scatter)
print(len(ranks.run(text[text.index("def reduce_scatter"):])), "ranks have it")

# %%
# %%ranks 4
x = torch.tensor([1, 2, 3, 4]) * 10**rank
parts = reduce_scatter(list(x.split(1)), rank, world, swap)
assert parts[rank] == 1111 * (rank + 1)
print(torch.cat(parts).tolist())

# %% [markdown]
# ## Third rung: all-gather, and any size
#
# What is whole goes round; nothing is added. A part may have one element more than another, or
# none. Held against `dist.all_reduce` of Gloo, the library that torch takes on a CPU; on integers,
# where no rounding hides a mistake.

# %%
# %%ranks 4
def all_reduce(x):
    parts = list(x.view(-1).tensor_split(world))
    parts = reduce_scatter(parts, rank, world, swap)
    for step in range(world - 1):
        swap(parts[rank - step], parts[rank - step - 1])
    return torch.cat(parts).view(x.shape)

for shape in ((4,), (3, 5), (1,), (0,), (1000, 7)):
    mine = torch.randint(1000, shape, generator=torch.Generator().manual_seed(rank))
    dist.all_reduce(theirs := mine.clone())
    assert torch.equal(all_reduce(mine), theirs)
print("five shapes, equal to dist.all_reduce")

# %% [markdown]
# ## Meet the package
#
# The same, and one thing more: a part goes in messages of at most 2 MiB, and each is handed on as
# soon as it is added, while others are under way. `traced` writes a collective into the rank's
# `trace`; `ranks.trace()` merges them on one clock.

# %%
from minillm.parallel import collectives

for function in (collectives.ring_all_reduce, collectives._pass_round):
    print(f"{function.__name__}:{inspect.getsource(function).split(chr(34) * 3)[-1].rstrip()}")

# %%
# %%ranks 4
trace.clear()
with group.traced("all_reduce", x := torch.ones(2**20)):
    ring_all_reduce(x, group)
assert x.eq(world).all()

# %% [markdown]
# Four records in one picture. Here four processes stand for four GPUs, and the loopback network for
# NVLink:

# %% tags=["nbval-ignore-output"]
merged = ranks.trace()
sent = [event.nbytes for event in merged.select(name="all_reduce")]
assert sent == [2 * 3 * 2**22 // 4] * 4  # 2 (N − 1) ÷ N of 4 MiB, by each
charts.machine(merged)

# %% [markdown]
# ## Do alpha and beta hold?
#
# The six sizes again. `predict.fit` looks for the alpha and beta whose ring comes closest to all of
# them, by relative error. What is left over, the residual, says where the model fails.

# %% tags=["nbval-ignore-output"]
sizes = {n: median(times) for n, times in took.items()}
found = predict.fit("all_reduce", 4, sizes)
off = {n: 1 + residual for n, residual in found.residuals.items()}
worst = max(off, key=lambda n: max(off[n], 1 / off[n]))
print("measured ÷ fitted:", ", ".join(f"{format_size(n)} {r:.2f}" for n, r in off.items()))
bad = [format_size(n) for n in off if not 0.8 < off[n] < 1.25]
print(f"more than a quarter off: {', '.join(bad) or 'no size, this time'}")
charts.curve(
    f"{format_size(worst)} took {off[worst]:.2f} × what alpha and beta say",
    {"alpha–beta": lambda kib: predict.all_reduce(1024 * kib, 4, found.link)},
    [2**k for k in range(-8, 15)], x="tensor (KiB)", y="all-reduce", unit="s", log="xy",
    points=[(n / 1024, s, "farthest off" * (n == worst)) for n, s in sizes.items()],
    note="fitted; points: measured")  # fmt: skip

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
# your machine: six steps against four. Gloo's own stands beside them; it is written in C++. The
# three in turns:

# %% tags=["nbval-ignore-output"]
# %%ranks 4
ways = {"ring": ring_all_reduce, "tree": tree_all_reduce}
ways["Gloo"] = lambda x, group: dist.all_reduce(x)
both = {f"{name}, {n:,} bytes": [] for n in (4, 2**22) for name in ways}
for n in (4, 2**22):
    x = torch.zeros(n // 4)
    for _ in range(9):
        for name, way in ways.items():
            both[f"{name}, {n:,} bytes"].append(seconds(way, x, group))

# %% tags=["nbval-ignore-output"]
times = slowest("both")
for nbytes in ("4", f"{2**22:,}"):
    three = {name: took for name, took in times.items() if name.endswith(f" {nbytes} bytes")}
    print(Comparison(three, unit="ms").sentence)

# %% [markdown]
# One token of a model is such a small tensor (lesson 41). NCCL, NVIDIA's library, has trees for it
# between nodes: two, pipelined, at about α log₂ N + 2 n ÷ β; our plain tree costs
# 2 log₂ N (α + n ÷ β).
#
# ## Break it: a deadlock
#
# A collective that one rank does not join never ends. Nor does this ring: each receives before it
# sends. On a cluster a watchdog ends it (torch's after 10 minutes with NCCL, 30 with Gloo); here
# `--timeout` does, and the error names each rank's line.

# %% tags=["raises-exception"]
# %%ranks 4 --timeout 2
x, room = torch.full((3,), rank), torch.empty(3, dtype=torch.int64)
dist.recv(room, (rank - 1) % world)
dist.send(x, (rank + 1) % world)

# %% [markdown]
# ## Yours: find the deadlock
#
# Sending first is no cure. A send may wait until its receiver is there; some libraries take short
# messages on credit, so that a program works until its tensors grow. Who is safe counts on no
# credit.
#
# `programs[rank]` is a list of `("send", to)` and `("recv", source)`. An operation is done when its
# partner has come to the matching one. Return, for each rank, the number of operations that it gets
# done: for the ring above, none.

# %%
def done(programs: list) -> list:
    raise NotImplementedError  # or hint("40.2")


done = check("40.2", done)
receive_first = [[("recv", (r - 1) % 4), ("send", (r + 1) % 4)] for r in range(4)]
send_first = [program[::-1] for program in receive_first]
mended = [(receive_first if r % 2 else send_first)[r] for r in range(4)]
print({name: done(programs) for name, programs in (
    ("receive first", receive_first), ("send first", send_first), ("mended", mended))})  # fmt: skip

# %%
# %%ranks 2
x, room = torch.full((3,), rank), torch.empty(3, dtype=torch.int64)
for what in ("recv", "send") if rank else ("send", "recv"):
    dist.send(x, 1 - rank) if what == "send" else dist.recv(room, 1 - rank)
print("received", room.tolist())

# %% [markdown]
# The mended one, on real ranks: even ranks send first, odd ones receive first. Our own ring needs
# no such order: `isend` begins to send and does not wait.
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
first, *_, last = sizes
print(f"2. {format_size(first)} took {1e3 * sizes[first]:.2f} ms, {format_size(last)} "
      f"{1e3 * sizes[last]:.0f} ms; {format_size(worst)} is farthest off: {off[worst]:.2f} ×.")
busbw = predict.bus_bandwidth("all_reduce", last, sizes[last], 4)
print(f"3. {format_size(last)}: algbw {last / sizes[last] / 1e9:.2f} GB/s, busbw "
      f"{busbw / 1e9:.2f}; beta of one step was {beta / 1e9:.2f}.")  # fmt: skip

# %%
guesses()

# %% [markdown]
# **Next:** `41_parallel_tensor`. A layer is split over ranks: which two sums are needed, and why?
