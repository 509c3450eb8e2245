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
import math
import time
from contextlib import ExitStack
from statistics import median

from minillm import Engine, EngineConfig, Machine, SamplingParams, charts, format_size
from minillm.lesson import check, compare, guess, guesses, hint, knob, recall, reveal
from minillm.machine.disk import writable_folder
from minillm.machine.scale import ScaledLink
from minillm.predict import HARDWARE
from minillm.probe import probe
from minillm.probe.ssd import aligned, read_all, scratch_file

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
# A *cache* lies between cores and DRAM. PCIe links a GPU to its host, NVLink GPUs with each other,
# InfiniBand servers; *NVMe* is an SSD.

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
#
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
# disturb it: close what you can. We look at five of its measurements.

# %% tags=["nbval-ignore-output"]
profile = probe(seconds=10, tell=lambda measurement: print(measurement.name, end=" · "))
print("\n")
for name in ("ssd.latency", "ssd.read one", "ssd.read", "dram.copy", "dram.read"):
    print(profile[name])

# %% [markdown]
# Each line: the median of the runs, then slowest … fastest, and how it was measured. What disturbs
# a run only takes time from it, so the best of them is the *ceiling*. *O_DIRECT* reads past the
# page cache, the DRAM in which the system keeps files. (The drive, or the host of a virtual
# machine, may still have a cache of its own.)
#
# The pipe's length is `ssd.latency`, its width the best of both `ssd.read`. So the toy predicts all
# three.

# %% tags=["nbval-ignore-output"]
latency = profile["ssd.latency"].median
bandwidth = max(profile["ssd.read one"].best, profile["ssd.read"].best)
predicted = {n: rate_alone(n, latency, bandwidth) for n in sizes}
stack = ExitStack()  # the file has lost its name already: it goes with the kernel
file = stack.enter_context(scratch_file(writable_folder(), 2**28, seconds=3)).reader.fd

# %% [markdown]
# This reads it, in requests of any size, several of them in flight:

# %%
def disk_rate(nbytes: int, in_flight: int) -> float:
    """Bytes a second, in requests of `nbytes`: past the page cache, from the file's start on."""
    memory, total = memoryview(aligned(in_flight * nbytes)), min(600 * nbytes, 2**26)
    buffers = [memory[i * nbytes : (i + 1) * nbytes] for i in range(in_flight)]
    start = time.perf_counter()
    read_all(file, total, buffers)  # one request for each buffer
    return total / (time.perf_counter() - start)

# %% tags=["nbval-ignore-output"]
alone = {n: [disk_rate(n, in_flight=1) / 1e6 for _ in range(5)] for n in sizes}
ceiling = max(bandwidth / 1e6, *map(max, alone.values()))
print("A run passed the ceiling of the probe: it is raised." if ceiling > bandwidth / 1e6 else
      "No run passed the ceiling of the probe.")  # fmt: skip
for n, samples in alone.items():
    reveal(mine[n], predicted=predicted[n] / 1e6, measured=samples, ceiling=ceiling)

# %% [markdown]
# Where a bar ends left of the prediction, each request also costs the system and the drive work of
# their own. One remedy we have seen: ask for much. The other: ask again before the answer has come.
#
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
assert abs(100 / seconds_to_read(100, 1, 2, 1 / 5) - rate_alone(1, 2, 5)) < 1e-9  # the toy
for k in (1, 2, 3, 4, 8):
    print(f"{k} in flight: 300 cups in {seconds_to_read(300, k, 2, 1):4.0f} seconds")

# %% [markdown]
# Two more rungs: a real disk, with `read_all` of the package, which gives each buffer a thread that
# asks again and again; and your loop, with the latency and the bandwidth of that disk. 256 KiB at a
# time; the points are the disk, the dashed line is your loop.

# %% tags=["nbval-ignore-output"]
size, counts = 2**18, (1, 2, 4, 8)
queue = compare({f"{k} in flight": lambda k=k: size / disk_rate(size, k) for k in counts},
                unit="µs", what="256 KiB")  # fmt: skip
print(queue.sentence)

# %% tags=["nbval-ignore-output"]
got = {k: size / min(queue.seconds[f"{k} in flight"]) for k in counts}
most = max(got, key=got.get)
bandwidth = max(1e6 * ceiling, got[most])  # what is beaten is raised
flows = size / bandwidth
charts.curve(
    f"256 KiB at a time: {most} in flight reach {got[most] / bandwidth:.0%} of the ceiling",
    {"your loop": lambda k: 200 * size / seconds_to_read(200, round(k), latency, flows)},
    range(1, 17), x="requests in flight", y="bytes per second", unit="B/s", log="xy",
    points=[(k, rate, "") for k, rate in got.items()], ceiling=bandwidth,
    note="dashed: predicted; points: measured",
)  # fmt: skip

# %% [markdown]
# Below the line a request keeps more than the pipe busy: a thread asks, the system answers, and
# where cores are few these stand in line as well. So measure.
#
# ## Exercise 2: ask the disk
#
# `rate(k)` reads with k in flight, and tells bytes a second. Try 1, 2, 4, … up to `most`. Return
# the smallest that gives at least nine tenths of the best: more only makes each wait longer. Real
# rates go up and down: do not stop at the first that is no better.

# %%
def fewest_in_flight(rate, most: int) -> int:
    raise NotImplementedError  # your lines, or hint("01.2")


fewest_in_flight = check("01.2", fewest_in_flight)

# %% tags=["nbval-ignore-output"]
enough = fewest_in_flight(lambda k: disk_rate(size, k), 16)
print(f"256 KiB at a time: {enough} in flight give nine tenths of the best (measured)")

# %% [markdown]
# ## The package's queue: a scale model
#
# Your loop stands in the package: `asked + latency` or `free`, whichever is later, and then the
# bytes flow. It runs the links of `Machine.scale_model("H100")`: you may have no H100, but you can
# have its *proportions*. This machine's links are slowed until HBM : PCIe : SSD : NVLink :
# InfiniBand keep the ratios that they have there. Your DRAM plays HBM, at full speed.
#
# *Kept:* ratios, latencies, real bytes, real waiting. *Not kept:* sizes, and arithmetic. Every
# number from it is labelled *emulated*.

# %%
print("\n".join(inspect.getsource(ScaledLink._run).splitlines()[1:6]))

# %% tags=["nbval-ignore-output"]
scale = Machine.scale_model("H100", hbm="64 MiB").scale
print(f"{scale.of}, everything takes {scale.slower:.0f} × the time")
for name in ("nvme", "pcie", "nvlink", "infiniband"):
    here_rate, there = scale.wire(name).bandwidth, getattr(HARDWARE["H100"], name).bandwidth
    print(f"{name:10} {here_rate / 1e9:7.3f} GB/s here (emulated), {there / 1e9:5.0f} GB/s there")

# %% [markdown]
# ## How many in flight?
#
# Without a loop: while one request waits, latency · bandwidth bytes could flow. So many must be
# asked for, and one more request that flows meanwhile (*Little's law*).
#
# DRAM is a pipe too. The probe walked through memory in which each place holds the address of the
# next, in random order: each step pays the whole latency. A processor fetches DRAM in lines of 64
# bytes, and a core keeps a few dozen of them in flight. How many would fill it?

# %%
def requests_in_flight(latency: float, bandwidth: float, nbytes: int) -> int:
    return math.ceil(1 + latency * bandwidth / nbytes)

# %% tags=["nbval-ignore-output"]
dram = profile["dram.read"].best
far = max((m.best for n, m in profile.measurements.items() if n[:8] == "latency "), default=1e-7)
pipes = {"SSD, 4 KiB": (latency, bandwidth, 4096), "SSD, 8 MiB": (latency, bandwidth, 2**23),
         "DRAM, 64 bytes": (far, dram, 64)}  # fmt: skip
for name, pipe in pipes.items():
    print(f"{name:15} at a time: {requests_in_flight(*pipe):5} in flight (predicted)")

# %% [markdown]
# ## Turn the knob
#
# How large must a request be, if so many are in flight? Drag the slider: the point is 64 KiB. Where
# does it touch the ceiling? By Little's law at latency · bandwidth ÷ (in flight − 1) bytes; the
# curve is your loop's.

# %% tags=["nbval-ignore-output"]
def disk_curve(in_flight: int = 1) -> charts.Chart:
    def rate(kib: float) -> float:
        return 102_400 * kib / seconds_to_read(100, in_flight, latency, 1024 * kib / bandwidth)

    title = f"{in_flight} in flight: 64 KiB at a time give {rate(64) / 1e9:.2f} GB/s (predicted)"
    return charts.curve(
        title, {"": rate}, [4 * 2**i for i in range(12)], x="size of a request (KiB)",
        y="bytes per second", unit="B/s", log="xy", at=64, ceiling=bandwidth,
        span=(4096 / latency / 3, 2 * bandwidth),
    )  # fmt: skip


knob(disk_curve, in_flight=(1, 32))

# %% [markdown]
# ## Break it: a ceiling that is none
#
# How fast is DRAM? Read a block again and again, and divide. That goes wrong if the block is small:
# a cache holds it, and DRAM is never asked. The probe did it with blocks of many sizes. Its
# ceiling, `dram.read`, is that of a block which all caches together cannot hold.

# %% tags=["nbval-ignore-output"]
blocks = {int(n.split()[1]): m.best for n, m in profile.measurements.items() if n[:5] == "read "}
small = max(blocks, key=blocks.get)
charts.curve(
    f"A block of {small} MiB gives {blocks[small] / dram:.1f} × what DRAM gives",
    {"DRAM": lambda mib: dram}, list(blocks), x="size of the block (MiB)",
    y="bytes per second", unit="B/s", log="xy", points=[(n, r, "") for n, r in blocks.items()],
    note="dashed: DRAM's ceiling for every block; points: measured",
)  # fmt: skip

# %% [markdown]
# Where a point stands above the line, a cache answers. A part of memory that is small and read
# often comes from there: keep it in mind for lesson 02, where a whole model may fit.
#
# ## The ladder
#
# Now a real run, with all its tiers on one axis. The engine loads the model and writes a few words;
# the trace knows each transfer; the profile holds the ceilings. For the model's weights it is that
# of a block of their size.

# %% tags=["nbval-ignore-output"]
machine = Machine.here(hbm="64 MiB")
engine = Engine.load("data/town", machine, EngineConfig(reader="direct"))
engine.generate("Mia put the red key", SamplingParams(max_tokens=24, temperature=0.0))
weights = sum(parameter.nbytes for parameter in engine.model.parameters())

# %% tags=["nbval-ignore-output"]
ceilings = profile.ceilings(machine.device.type) | {"ssd": bandwidth}
if machine.emulated:
    ceilings |= {"hbm": profile.read_ceiling(weights)}
charts.ladder(engine.trace, ceilings)

# %% [markdown]
# Bytes that are needed often must live high up, and there is little room there. The art of
# inference is to decide what lives where. How near each link came to its ceiling is in the right
# column; what keeps the last row from it, lesson 02 finds out.
#
# ## Where it loses
#
# More in flight is not always better. Once the pipe is full, more requests only stand in line: the
# rate stays, and each of them waits longer. Somebody who wants *one* answer soon loses.

# %% tags=["nbval-ignore-output"]
full = requests_in_flight(latency, bandwidth, size)
for k in sorted({1, full, 8 * full, 64 * full}):
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
def plan_restart(weights, seconds, drive, latency, request):
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
# ## Three takeaways, with the numbers of your run, and your guesses

# %% tags=["nbval-ignore-output", "folded"]
print(f"1. SSD {bandwidth / 1e9:.1f} GB/s, DRAM {dram / 1e9:.0f} GB/s, a cache "
      f"{max(blocks.values()) / 1e9:.0f} GB/s.")
slow, fast = (median(alone[n]) for n in (4096, 8 * 2**20))
print(f"2. One by one, 4 KiB come at {slow:.0f} MB/s from the SSD, 8 MiB at {fast:,.0f}.")
print(f"3. Of 256 KiB, {full} in flight fill it (predicted); with {enough} it gave nine tenths of "
      "its best (measured).")  # fmt: skip

# %%
guesses()

# %% [markdown]
# **Next:** `02_machine_roofline`. What holds a computation back: the memory that feeds it, or its
# own arithmetic?
