# %% [markdown]
# # 01 · How fast is each tier of my machine?
#
# <img src="images/strip.png" width="672" alt="The five stages of the course: 1 load, weights come
# in; 2 tokens, text becomes ids; 3 model and KV cache, ids become scores; 4 parallel, GPUs share
# the work; 5 decode, scores become text.">
#
# *You are here: before stage 1, at the machine on which all five run. Forty minutes. The code
# behind it: [`probe/ssd.py`](../minillm/probe/ssd.py),
# [`probe/memory.py`](../minillm/probe/memory.py),
# [`machine/scale.py`](../minillm/machine/scale.py).*

# %% tags=["nbval-ignore-output"]
import inspect
import time
from contextlib import ExitStack

import torch

from minillm import Engine, EngineConfig, Machine, SamplingParams, charts, format_size
from minillm.lesson import Comparison, check, guess, hint, knob, recall, reveal

print(Machine.here(hbm="64 MiB").describe())

# %% [markdown]
# Six words:
#
# - **tier**: one level of memory. SSD, DRAM and HBM are the tiers of this course.
# - **latency**: seconds from a request until its first byte comes.
# - **bandwidth**: bytes a second, once they flow.
# - **in flight**: asked for, and not yet answered.
# - **ceiling**: the most that a part can give, measured.
# - **scale model**: this machine with its links slowed, in a server's proportions.
#
# A *cache* is a small memory between the cores and DRAM. PCIe links a GPU to its host, NVLink GPUs
# with each other, InfiniBand servers.

# %% [markdown]
# ## A pipe of water
#
# Turn on a tap at the end of a long pipe. For 2 seconds nothing comes: latency. Then 5 litres a
# second: bandwidth. We want a cup of 1 litre, close the tap, and ask for the next one only when the
# first is full. How much water do we get a second? And with buckets of 10, with barrels of 1,000?

# %%
def rate_alone(amount: float, latency: float, bandwidth: float) -> float:
    """How much comes a second, if each request waits for the one before."""
    return amount / (latency + amount / bandwidth)


for litres in (1, 10, 1_000):
    print(f"{litres:5} litres at a time: {rate_alone(litres, 2, 5):.2f} litres a second")

# %% [markdown]
# The same pipe, and eleven times as much water. For a cup only the length counts, for a barrel only
# the width. In between lies the bucket: it waits as long as it flows, and gets half.

# %% [markdown]
# ## Predict
#
# An SSD is such a pipe. We read a file from yours, one request after the other, each asked for when
# the last is answered, past every cache of the system. Requests of 4 KiB, of 256 KiB, of 8 MiB: how
# many megabytes a second?

# %%
sizes = {4 * 2**10: "4 KiB", 2**18: "256 KiB", 8 * 2**20: "8 MiB"}
mine = {n: guess(f"SSD, {name} at a time", unit="MB/s") for n, name in sizes.items()}

# %% [markdown]
# ## Run
#
# The package's `probe` measures each part of this machine once, in some fifteen seconds, and keeps
# what it finds: from then on every "% of ceiling" of the course divides by it. Other programs
# disturb it: close what you can.

# %% tags=["nbval-ignore-output"]
from minillm.probe import probe

profile = probe(seconds=10, tell=print)

# %% [markdown]
# Each line: the median of the runs, then slowest … fastest, and how it was measured. *gemm* is a
# product of matrices, for lesson 02. *O_DIRECT* reads past the page cache, the DRAM in which the
# system keeps files. The drive, or the host of a virtual machine, may still have a cache of its
# own.
#
# The pipe's length is `ssd.latency`, its width `ssd.read`. So the toy predicts all three. Then we
# read a file of our own:

# %% tags=["nbval-ignore-output"]
from minillm.machine.disk import writable_folder
from minillm.probe.ssd import aligned, read_all, scratch_file

latency, bandwidth = profile["ssd.latency"].median, profile["ssd.read"].best
predicted = {n: rate_alone(n, latency, bandwidth) for n in sizes}
stack = ExitStack()  # the file has lost its name already: it goes with the kernel
file = stack.enter_context(scratch_file(writable_folder(), 2**28, seconds=3)).reader.fd


def disk_rate(nbytes: int, in_flight: int) -> float:
    """Bytes a second, in requests of `nbytes`: past the page cache, from the file's start on."""
    memory, total = memoryview(aligned(in_flight * nbytes)), min(600 * nbytes, 2**26)
    buffers = [memory[i * nbytes : (i + 1) * nbytes] for i in range(in_flight)]
    start = time.perf_counter()
    read_all(file, total, buffers)  # one request for each buffer
    return total / (time.perf_counter() - start)

# %% tags=["nbval-ignore-output"]
alone = {n: [disk_rate(n, in_flight=1) / 1e6 for _ in range(5)] for n in sizes}
for n, samples in alone.items():
    reveal(mine[n], predicted=predicted[n] / 1e6, measured=samples, ceiling=bandwidth / 1e6)

# %% [markdown]
# Where the measured mark stands left of the predicted one, the pipe is not the only thing that
# takes time: each request also costs the system and the drive some work of their own. Where it
# stands right of it, the drive had read ahead.
#
# Against a long pipe there are two remedies. The first we have seen: ask for much. The second:
# ask again before the answer has come.

# %% [markdown]
# ## Build it: several in flight
#
# Two seconds of pipe, and cups that flow for 1 second each. Three people share the tap. Each asks,
# waits until the 2 seconds are over *and* the pipe is free, fills a cup, and asks anew.
#
# | cup | asked at | reached the tap | flows | full at |
# |---|---|---|---|---|
# | 1, 2, 3 | 0, 0, 0 | 2, 2, 2 | 2–3, 3–4, 4–5 | 3, 4, 5 |
# | 4 | 3 (cup 1 is full) | 5 | 5–6 | 6 |
# | 5 | 4 (cup 2 is full) | 6 | 6–7 | 7 |
#
# From second 2 on the pipe is never idle.

# %% [markdown]
# ## Exercise 1: the queue at the pipe
#
# Write the loop of that table: `count` requests, `in_flight` at a time, each with a `latency` and a
# time `flows` in which it has the pipe for itself. When is the last one done? Request `i` is asked
# for when request `i - in_flight` is done; the first ones at 0.

# %%
def seconds_to_read(count: int, in_flight: int, latency: float, flows: float) -> float:
    raise NotImplementedError  # your lines, or hint("01.1"); without them we go on


seconds_to_read = check("01.1", seconds_to_read)

# %%
assert seconds_to_read(5, 3, latency=2, flows=1) == 7  # the table
one_litre = [100 / seconds_to_read(100, 1, 2, 1 / 5), rate_alone(1, 2, 5)]
assert abs(one_litre[0] - one_litre[1]) < 1e-9  # one in flight is the toy
for k in (1, 2, 3, 4, 8):
    print(f"{k} in flight: 300 cups in {seconds_to_read(300, k, 2, 1):4.0f} seconds")

# %% [markdown]
# Two more rungs. A real disk, with `read_all` of the package, which gives each buffer a thread that
# asks again and again. And your loop, with the latency and the bandwidth of that disk: 256 KiB at a
# time.

# %% tags=["nbval-ignore-output"]
size, counts = 2**18, (1, 2, 4, 8)
samples = {k: [] for k in counts}
for _ in range(5):
    for k in counts:  # in turns, so that a busy moment meets all of them
        samples[k].append(size / disk_rate(size, k))

queue = {"alone": samples[1], "with 8 in flight": samples[8]}
print(Comparison(queue, unit="µs", what="256 KiB").sentence)

# %% tags=["nbval-ignore-output"]
from minillm.charts.style import INK, TEXT, amount, log_axis, quiet


def curve(title: str, x: list, y: list, points: dict, ceiling: float, named: str,
          how: str = "predicted") -> charts.Chart:  # fmt: skip
    """A line and points under a ceiling; rates in bytes/s."""
    chart = charts.Chart(title, note=f"dashed line: {how}; black: the ceiling, measured")
    ax = chart.add_axes((0.13, 0.13, 0.8, 0.63))
    quiet(ax, named)
    low = min([*y, *points.values()]) / 1.8
    log_axis(ax.xaxis, min(x) / 1.2, max(x) * 1.6, lambda v: f"{v:,.0f}")
    log_axis(ax.yaxis, low, max(ceiling, *y, *points.values()) * 1.8, lambda v: amount(v, "B/s"))
    ax.plot(x, y, "--", color=INK["prediction"].colour)
    ax.axhline(ceiling, color=TEXT, linewidth=1.4)
    ax.text(min(x), ceiling * 1.08, f"ceiling {amount(ceiling, 'B/s')}", size=8, color=TEXT)
    for at, rate in points.items():
        ax.plot(at, rate, "o", color=INK["ssd"].colour, markersize=8)
        ax.annotate(amount(rate, "B/s"), (at, rate), xytext=(6, -13), size=8, color=TEXT,
                    textcoords="offset points")  # fmt: skip
    return chart

# %% [markdown]
# The dashed line is your loop, the points are the disk:

# %% tags=["nbval-ignore-output"]
flows = size / bandwidth
line = [200 * size / seconds_to_read(200, k, latency, flows) for k in range(1, 17)]
got = {k: size / min(samples[k]) for k in counts}
most, share = max(got, key=got.get), 100 * max(got.values()) / bandwidth
curve(f"256 KiB at a time: {most} in flight reach {share:.0f} % of the ceiling",
      list(range(1, 17)), line, got, max(bandwidth, *got.values()),
      "requests in flight (log axis)")  # fmt: skip

# %% [markdown]
# ## The package's queue
#
# Your loop stands in the package. It runs the *scale model*: a link that is slowed down until it
# behaves like a server's. `asked + latency` or `free`, whichever is later, and then the bytes flow:

# %%
from minillm.machine.scale import ScaledLink

print("\n".join(inspect.getsource(ScaledLink._run).splitlines()[1:6]))

# %% [markdown]
# You may have no H100, but you can have its *proportions*. `Machine.scale_model("H100")` slows this
# machine's links until HBM : PCIe : SSD : NVLink : InfiniBand keep the ratios that they have there.
# Your DRAM plays HBM, at full speed.
#
# *Kept:* ratios, latencies, real bytes, real waiting. *Not kept:* sizes, and arithmetic: your CPU
# computes as fast as it can. Every number from it is labelled *emulated*.

# %% tags=["nbval-ignore-output"]
from minillm.predict import HARDWARE

model, h100 = Machine.scale_model("H100", hbm="64 MiB"), HARDWARE["H100"]
scale = model.scale
print(f"{scale.of}, everything {scale.slower:.0f} × slower than there:")
for name in ("nvme", "pcie", "nvlink", "infiniband"):
    here_rate, there = scale.wire(name).bandwidth, getattr(h100, name).bandwidth
    print(f"{name:10} {here_rate / 1e9:7.3f} GB/s here (emulated), {there / 1e9:5.0f} GB/s there")

# %% [markdown]
# Does it keep its word? 8 MiB over the slowed PCIe link, beside the time by arithmetic:

# %% tags=["nbval-ignore-output"]
block = torch.ones(2**21)  # 4 bytes each: 8 MiB
placed = model.copy(block, "hbm", label="weights", stage="load")
took = []
for _ in range(4):
    start = time.perf_counter()
    model.copy(block, placed, label="weights", stage="load")
    took.append(time.perf_counter() - start)
model.free(placed)
print(Comparison({"8 MiB": took}, unit="ms").against(
    "predicted", scale.wire("pcie").seconds(block.nbytes)))  # fmt: skip

# %% [markdown]
# ## Exercise 2: how many in flight?
#
# Without a loop: a request of `nbytes` waits for `latency` seconds, then its bytes flow at
# `bandwidth`. How many must be in flight so that bytes flow all the time? Round up to a whole
# number.

# %%
def requests_in_flight(latency: float, bandwidth: float, nbytes: int) -> int:
    raise NotImplementedError  # your lines, or hint("01.2")


requests_in_flight = check("01.2", requests_in_flight)

# %% [markdown]
# DRAM is a pipe too. The probe walked through memory in which each place holds the address of the
# next, in random order: nothing can be fetched ahead, so a step pays the whole latency. A processor
# fetches DRAM in lines of 64 bytes, and one core keeps only a few dozen under way. That is why it
# takes several cores to fill a memory:

# %% tags=["nbval-ignore-output"]
dram = profile["dram.read"]
far = max((m.best for n, m in profile.measurements.items() if n[:8] == "latency "), default=1e-7)
for name, wait, rate, nbytes in (
    ("SSD", latency, bandwidth, 4 * 2**10), ("SSD", latency, bandwidth, 8 * 2**20),
    ("DRAM", far, dram.best, 64),
):  # fmt: skip
    count = requests_in_flight(wait, rate, nbytes)
    print(f"{name:4} in requests of {format_size(nbytes):>9}: {count:5} in flight (predicted)")

# %% [markdown]
# ## Turn the knob
#
# How large must a request be, if so many are in flight? Drag the slider: the point is 64 KiB. Where
# does it touch the ceiling? The arithmetic is your loop's.

# %% tags=["nbval-ignore-output"]
kib = [4 * 2**i for i in range(12)]


def disk_curve(in_flight: int = 1) -> charts.Chart:
    def rate(nbytes: int) -> float:
        return 100 * nbytes / seconds_to_read(100, in_flight, latency, nbytes / bandwidth)

    at = rate(64 * 2**10)
    title = f"{in_flight} in flight: requests of 64 KiB give {amount(at, 'B/s')} (predicted)"
    return curve(title, kib, [rate(1024 * k) for k in kib], {64: at}, bandwidth,
                 "size of a request (KiB, log axis)")  # fmt: skip


knob(disk_curve, in_flight=(1, 32))

# %% [markdown]
# ## Break it: a ceiling that is none
#
# How fast is DRAM? Read a block again and again, and divide. That goes wrong if the block is small:
# a cache holds it, and DRAM is never asked. The probe did it with blocks of many sizes; the last is
# four times as large as all caches of this machine together.

# %% tags=["nbval-ignore-output"]
blocks = {int(n.split()[1]): m.best for n, m in profile.measurements.items() if n[:5] == "read "}
small, rate = next(iter(blocks.items()))
curve(f"A block of {small} MiB gives {rate / dram.best:.1f} × what DRAM gives",
      list(blocks), list(blocks.values()), {small: rate}, dram.best,
      "size of the block (MiB, log axis)", "measured")  # fmt: skip

# %% [markdown]
# The ceiling here is DRAM's. Where the line stands above it, a cache answers. A part of memory that
# is small and read often comes from there: keep it in mind for lesson 02, where a whole model may
# fit.

# %% [markdown]
# ## The ladder
#
# Now a real run, with all its tiers on one axis. The engine loads the model and writes a few words;
# the trace knows each transfer; the profile holds the ceilings. For the model's weights it is that
# of a block of their size.

# %% tags=["nbval-ignore-output"]
machine = Machine.here(hbm="64 MiB")
greedy = SamplingParams(max_tokens=24, temperature=0.0)
engine = Engine.load("data/town", machine, EngineConfig(reader="direct"))
print(engine.generate("Mia put the red key", greedy)[0].text)

# %% tags=["nbval-ignore-output"]
weights = sum(parameter.nbytes for parameter in engine.model.parameters())
ceilings = profile.ceilings(machine.device.type)
if machine.emulated:
    ceilings |= {"hbm": profile.read_ceiling(weights)}
charts.ladder(engine.trace, ceilings)

# %% [markdown]
# Bytes that are needed often must live high up, and there is little room there. The art of
# inference is to decide what lives where. How near each link came to its ceiling is in the right
# column; what keeps the last row from it, lesson 02 finds out.

# %% [markdown]
# ## Where it loses
#
# More in flight is not always better. Once the pipe is full, more requests only stand in line: the
# rate stays, and each of them waits longer. Somebody who wants *one* answer soon loses.

# %% tags=["nbval-ignore-output"]
enough = requests_in_flight(latency, bandwidth, size)
for k in sorted({1, enough, 8 * enough, 64 * enough}):
    seconds = seconds_to_read(1_000, k, latency, flows)
    print(f"{k:4} in flight: {1e-6 * size / seconds:5.2f} GB/s, "
          f"and each waits {k * seconds:6.2f} ms (predicted)")

# %% [markdown]
# ## Exercise 3: a server, on paper
#
# A server must be back in 10 seconds after a crash. Its model has 141 GB of weights. A drive gives
# 7 GB/s and answers after 100 µs; you read in requests of 1 MiB. How many drives does it need, how
# many requests must be in flight on all of them together, and how many bytes of DRAM do those
# occupy? Write it for any such server.

# %%
def plan_restart(
    weights: int, seconds: float, drive: float, latency: float, request: int
) -> tuple[int, int, int]:
    raise NotImplementedError  # (drives, requests in flight, bytes of DRAM); or hint("01.3")


plan_restart = check("01.3", plan_restart)

# %%
drives, requests, staging = plan_restart(141 * 10**9, 10, 7e9, 1e-4, 2**20)
print(f"{drives} drives, {requests} requests in flight, {format_size(staging)} of DRAM")

# %% [markdown]
# ## Five questions
#
# Answer each in your head, then open it.

# %% tags=["folded"]
recall(
    ("A transfer of eight bytes and one of a gigabyte: what does each wait for?",
     "The small one for latency, the large one for bandwidth."),
    ("What two remedies are there against a latency that cannot be made shorter?",
     "Larger requests, and several in flight: while one waits, others flow."),
    ("Why does a ceiling take the fastest run and not the average?",
     "Disturbance makes a run slower. The fastest shows what the part can give."),
    ("A benchmark reads 1 MiB of DRAM again and again. What does it measure?",
     "A cache. The block must be larger than all of them together."),
    ("What does the scale model keep, and what not?",
     "The links' proportions, with real bytes and real waiting. Not the speed of compute."),
)

# %% [markdown]
# ## Three takeaways, with the numbers of your run

# %% tags=["nbval-ignore-output", "folded"]
print(f"1. SSD {bandwidth / 1e9:.1f} GB/s, DRAM {dram.best / 1e9:.0f} GB/s, a cache "
      f"{max(blocks.values()) / 1e9:.0f} GB/s.")
print(f"2. Alone, 4 KiB come at {max(alone[4096]):.0f} MB/s from the SSD, 8 MiB at "
      f"{max(alone[8 * 2**20]):,.0f}: ask for much.")
print(f"3. {enough} requests of 256 KiB in flight fill it (predicted): and ask early.")

# %% [markdown]
# **Next:** `02_machine_roofline`. What holds a computation back: the memory that feeds it, or its
# own arithmetic?
