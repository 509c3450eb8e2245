# %% [markdown]
# # 01 · How fast is each tier of my machine?
#
# <img src="images/strip.png" width="672" alt="The five stages of the course: 1 load, weights come
# in; 2 tokens, text becomes ids; 3 model and KV cache, ids become scores; 4 parallel, GPUs share
# the work; 5 decode, scores become text.">
#
# A number means little alone. "3 GB/s" is splendid for an SSD and dreadful for HBM. Here we measure
# what each part of *your* machine can give at most. From then on, every speed in this course has
# its ceiling beside it. *Thirty-five minutes; the code behind it:
# [`minillm/probe/probe.py`](../minillm/probe/probe.py).*

# %% tags=["nbval-ignore-output"]
import time

import torch

from minillm import Engine, EngineConfig, Machine, SamplingParams, charts, format_size
from minillm.lesson import check, guess, hint, knob, recall, reveal

print(Machine.here(hbm="64 MiB").describe())

# %% [markdown]
# Six words:
#
# - **tier**: one level of memory. SSD, DRAM and HBM are the tiers of this course.
# - **bandwidth**: bytes a second, once they flow.
# - **latency**: seconds until the first byte comes.
# - **ceiling**: the most that a part can give, measured.
# - **FLOP**: one addition or multiplication of two numbers.
# - **roofline**: the lower of two ceilings, that of the memory and that of the arithmetic.
#
# And four names: an H100 is a GPU for servers; PCIe links a GPU to its host, NVLink GPUs with each
# other, InfiniBand servers.

# %% [markdown]
# ## A pipe of water
#
# Turn on a tap at the end of a long pipe. For 2 seconds nothing comes: latency. Then 5 litres a
# second: bandwidth. How long until we have 20 litres?

# %%
def seconds_for(amount: float, latency: float, bandwidth: float) -> float:
    return latency + amount / bandwidth


print(seconds_for(20, latency=2, bandwidth=5), "seconds for 20 litres")
print(seconds_for(1, latency=2, bandwidth=5), "seconds for 1 litre")

# %% [markdown]
# For a lot of water the pipe's width counts, for a cup only its length. It is the same with bytes:
# weights come by the gigabyte and feel the bandwidth; one token's id has eight bytes and feels the
# latency.

# %% [markdown]
# ## A ceiling by hand
#
# We measure one ourselves: how fast does this machine copy in DRAM? A block of 128 MiB, which no
# cache can hold, is copied into another; bytes ÷ seconds. Both blocks are touched before, and we
# take the best of eight runs. Why the best? Whatever disturbs a run makes it slower. (Only a cache
# makes it look faster. That is why the block is large.)

# %% tags=["nbval-ignore-output"]
source, target = torch.ones(2, 2**25)  # two blocks of 2**25 floats, 4 bytes each


def seconds_to_copy() -> float:
    start = time.perf_counter()
    target.copy_(source)
    return time.perf_counter() - start


runs = [seconds_to_copy() for _ in range(8)]
by_hand = source.nbytes / min(runs)
print(f"best {by_hand / 1e9:.1f} GB/s, slowest {source.nbytes / max(runs) / 1e9:.1f} GB/s")

# %% [markdown]
# ## Predict
#
# How many times faster than the SSD does DRAM give its bytes, when both are read in one long
# stream? The data sheets of a server tell a ratio for *their* machine, and it is a first
# prediction for yours. First yours:

# %%
mine = guess("DRAM bandwidth ÷ SSD bandwidth", unit="×")

# %% tags=["nbval-ignore-output"]
from minillm.predict import HARDWARE

server = HARDWARE["DDR5 server"]
predicted = server.dram_bandwidth / server.nvme.bandwidth
print(f"{server.dram_bandwidth / 1e9:.0f} GB/s ÷ {server.nvme.bandwidth / 1e9:.0f} GB/s = "
      f"{predicted:.0f} × (predicted, from data sheets)")

# %% [markdown]
# ## Run: measure every tier
#
# The package's `probe` does the same for each part of the machine, in some fifteen seconds. It
# writes a file and reads it past the system's page cache (the drive, or the host of a virtual
# machine, may have caches of its own), reads and copies DRAM with all cores, multiplies matrices,
# and more. Other programs disturb it: close what you can.

# %% tags=["nbval-ignore-output"]
from minillm.probe import Profile, probe

profile = probe(seconds=10, tell=print)

# %% [markdown]
# Each line has the median of the runs, then slowest … fastest, and how it was measured. *gemm* is
# the product of two matrices, *gemv* of a matrix and one row, and bfloat16 a number of two bytes.
# The page cache is DRAM in which the system keeps files; lesson 10 is about it. (Is your copy above
# 100 % of the probe's? Then the machine was busier a moment later. It happens.) Your guess:

# %% tags=["nbval-ignore-output"]
ssd, dram = profile["ssd.read"], profile["dram.read"]
print("copied by hand:", profile["dram.copy"].of(by_hand))
reveal(mine, predicted=predicted, measured=dram.best / ssd.best)

# %% [markdown]
# Far from the prediction? It was made for a socket with twelve memory channels. A few cores cannot
# have enough reads on their way to fill those (Exercise 1 counts them), and a laptop has two
# channels. A copy reads every byte and writes it, so it gives about half of a read.
#
# The probe keeps what it found in a file. The other lessons and every "% of ceiling" divide by it.

# %%
import inspect

from minillm.probe.measure import rates

print(inspect.getsource(rates).split('"""')[-1].strip("\n"))

# %% [markdown]
# That is the heart of every measurement in the package: the same work again and again, the first
# run not counted. How far do your runs lie apart? A slowest run of half the best says that the
# machine was busy, and that the other numbers deserve some doubt too.

# %% tags=["nbval-ignore-output"]
for name in ("ssd.read", "dram.read", "dram.copy"):
    found = profile[name]
    slowest = found.low / found.high
    print(f"{name:10} best {found.best / 1e9:6.2f} GB/s, slowest run {slowest:.0%} of it")

# %% [markdown]
# ## Latency: how long until the first byte?
#
# The probe also walked through a memory in which each place holds the address of the next, in
# random order. Nothing can guess where we go, so each step pays the whole latency. The larger the
# memory we walk through, the further away it is: first the caches, then DRAM. A random read of
# 4 KiB from the SSD is further still.

# %% tags=["nbval-ignore-output"]
steps = {n: found.best for n, found in profile.measurements.items() if "latency" in n}
steps.pop("loopback.latency", None)  # a network, which nobody reads from
fastest = min(steps.values())
for name, seconds in sorted(steps.items(), key=lambda item: item[1]):
    print(f"{name:26} {1e9 * seconds:12,.1f} ns   {seconds / fastest:10,.0f} ×")

# %% [markdown]
# If the fastest of these were one second of your life, how long would the SSD take? The last column
# says it in seconds. This is why nobody asks an SSD for 4 KiB and waits: readers ask for much at
# once, and keep several requests *in flight*, which means: asked for, and not yet answered.

# %% [markdown]
# ## Exercise 1: how many requests in flight?
#
# A request of `nbytes` waits for `latency` seconds, then its bytes flow at `bandwidth`. Meanwhile
# others may be under way. How many must be in flight, so that bytes flow all the time? Round up to
# a whole number.

# %%
def requests_in_flight(latency: float, bandwidth: float, nbytes: int) -> int:
    raise NotImplementedError  # your lines; without them the lesson goes on with ours


requests_in_flight = check("01.1", requests_in_flight)
# hint("01.1")

# %% tags=["nbval-ignore-output"]
latency = profile["ssd.latency"].median  # the fastest of thousands is luck
for nbytes in (4 * 2**10, 2**18, 4 * 2**20):
    count = requests_in_flight(latency, ssd.best, nbytes)
    print(f"SSD, reads of {format_size(nbytes):>9}: {count:4} in flight (predicted)")

# %% [markdown]
# (Large reads are an exception that is none: the system cuts them into several requests by itself.)
#
# A processor fetches DRAM in lines of 64 bytes, and one core keeps only a few dozen of them under
# way. So it takes several cores to fill a memory, as it takes several requests to fill an SSD. How
# many lines?

# %% tags=["nbval-ignore-output"]
far = max((s for name, s in steps.items() if name.startswith("latency")), default=1e-7)
count = requests_in_flight(far, dram.best, 64)
print(f"DRAM, lines of 64 bytes: {count:4} in flight (predicted)")

# %% [markdown]
# ## The ladder
#
# Now a real run, and all its tiers in one picture. The engine loads the model and writes a few
# words; the trace knows each transfer; the profile holds the ceilings.

# %% tags=["nbval-ignore-output"]
machine = Machine.here(hbm="64 MiB")  # its trace knows the profile's ceilings
greedy = SamplingParams(max_tokens=24, temperature=0.0)
with charts.watch(machine.trace, "machine"):
    engine = Engine.load("data/town", machine, EngineConfig(reader="direct"))
    text = engine.generate("Mia put the red key", greedy)[0].text
print(text)

# %% tags=["nbval-ignore-output"]
charts.ladder(engine.trace)

# %% [markdown]
# Look at the ceilings, the black lines: the SSD's stands furthest left. Bytes that are needed often
# must live high up, and there is little room there. The art of inference is to decide what lives
# where. What this small model *reaches* is another matter: its decode reads HBM far below the
# ceiling. It has little to read, and a cost for starting each operation that does not shrink.

# %% [markdown]
# ## The roofline
#
# Compute has two ceilings: the memory that feeds it, and its own arithmetic. Which one holds it
# back? That depends on how much is computed with each byte: the *intensity*, FLOP per byte. A
# part whose intensity is low waits for memory; one whose intensity is high waits for arithmetic.
#
# Decode multiplies each weight with one number: a multiplication and an addition for two bytes.
# Prefill multiplies it with one number for every token of the prompt.

# %%
prompt = "Mia put the red key in the box. " * 24
parameters = sum(p.numel() for p in engine.model.parameters())
tokens = len(engine.tokenizer.encode(prompt))
output = engine.model.model.embed_tokens.weight.numel()  # scores: for the last token only
flops = {"decode step": 2 * parameters, "prefill": 2 * (tokens * (parameters - output) + output)}
print(f"a decode step: {flops['decode step']:,} FLOP; "
      f"prefill of {tokens} tokens: {flops['prefill'] / flops['decode step']:.0f} × that")

# %% tags=["nbval-ignore-output"]
here = profile.hardware(machine.device.type)  # the card's ceilings on a card
engine.trace.clear()
engine.generate(prompt, greedy)
charts.roofline(engine.trace, flops, here.hbm_bandwidth, here.bf16_flops)

# %% [markdown]
# Prefill stands far to the right of decode: the same weights, read once, serve all tokens of the
# prompt. Where the two roofs meet is the *ridge*. Left of it more bandwidth helps, right of it
# more arithmetic.

# %% [markdown]
# ## Where it loses
#
# A roofline is a promise that nobody has to keep. Our model is so small that a large cache of the
# processor may hold it: its decode need not wait for DRAM at all, and it still stays below, because
# of the cost of starting each operation. Another reason shows in one product of a matrix with one
# row: stock torch on a CPU may not reach the memory's ceiling.

# %% tags=["nbval-ignore-output"]
for name in ("gemv float32", "gemv bfloat16"):
    print(f"{name}: {profile['dram.read'].of(profile[name].best)}")

# %% [markdown]
# ## Exercise 2: under which roof?
#
# Given FLOP and bytes of some work, and the two ceilings, how long does it take at least?

# %%
def seconds_at_least(flops: float, nbytes: float, peak_flops: float, bandwidth: float) -> float:
    raise NotImplementedError  # your line


seconds_at_least = check("01.2", seconds_at_least)
# hint("01.2")

# %% [markdown]
# ## Turn the knob: the batch
#
# With a batch of b prompts, a decode step reads the weights once and computes b times. Drag the
# slider: at which batch does this machine stop waiting for memory? And an H100, from its data
# sheet? (Weights only. The KV cache, which every prompt has for itself, comes in lesson 31.)

# %% tags=["nbval-ignore-output"]
h100 = HARDWARE["H100"]


def decode(batch: int) -> str:
    lines = []
    for name, server in (("this machine", here), ("H100", h100)):
        work, nbytes = 2 * 8.03e9 * batch, 2 * 8.03e9  # a model of 8 billion weights, in bf16
        seconds = seconds_at_least(work, nbytes, server.bf16_flops, server.hbm_bandwidth)
        bound = "memory" if nbytes / server.hbm_bandwidth >= seconds * 0.999 else "arithmetic"
        rate = f"at most {batch / seconds:,.1f} tokens/s"
        lines.append(f"{name}: {rate}, bound by {bound} (predicted)")
    return "\n".join(lines)


knob(decode, batch=(1, 1024))

# %% [markdown]
# ## A scale model of a server
#
# You may have no H100, but you can have its *proportions*: `Machine.scale_model("H100")` slows the
# links of this machine down until HBM : PCIe : SSD : NVLink : InfiniBand keep the proportions they
# have there. Your DRAM plays HBM, at full speed.
#
# *Kept:* the ratios of the links, latency too; real bytes, real waiting, real overlap of copies
# with compute. *Not kept:* sizes, and the arithmetic: your CPU computes as fast as it can. So every
# number from a scale model is labelled *emulated*.

# %% tags=["nbval-ignore-output"]
model = Machine.scale_model("H100", hbm="64 MiB")
scale = model.scale

# %% tags=["nbval-ignore-output"]
print(f"{scale.of}, everything {scale.slower:.0f} × slower than there:")
for name in ("nvme", "pcie", "nvlink", "infiniband"):
    here_rate, there = scale.wire(name).bandwidth, getattr(h100, name).bandwidth
    print(f"{name:10} {here_rate / 1e9:7.3f} GB/s here (emulated), {there / 1e9:5.0f} GB/s there")

# %% [markdown]
# Does it keep its word? 32 MiB over the slowed PCIe link, and the time by arithmetic:

# %% tags=["nbval-ignore-output"]
block = torch.ones(2**23)  # 4 bytes each: 32 MiB
placed = model.copy(block, "hbm", label="weights", stage="load")  # and so it is touched
start = time.perf_counter()
model.copy(block, placed, label="weights", stage="load")
took = time.perf_counter() - start
expected = scale.wire("pcie").seconds(block.nbytes)
print(f"32 MiB over the scaled PCIe: {1e3 * took:.1f} ms (emulated), "
      f"{1e3 * expected:.1f} ms predicted")
model.free(placed)

# %% [markdown]
# ## Five questions
#
# Answer each in your head, then open it.

# %%
recall(
    ("A transfer of eight bytes and one of a gigabyte: which ceiling does each feel?",
     "The small one latency, the large one bandwidth."),
    ("Why does a ceiling take the fastest run and not the average?",
     "Disturbance makes a run slower. The fastest shows what the part can give."),
    ("What helps against latency, if it cannot be made shorter?",
     "Several requests in flight: while one waits, others flow."),
    ("A decode step stands left of the ridge. Would twice the FLOP/s make it faster?",
     "No: it waits for memory. A larger batch moves it to the right."),
    ("What does the scale model keep, and what not?",
     "The links' proportions, with real bytes and real waiting. Not the speed of compute."),
)

# %% [markdown]
# ## Three takeaways, with the numbers of your run

# %% tags=["nbval-ignore-output"]
print(f"1. SSD {ssd.best / 1e9:.1f} GB/s, DRAM {dram.best / 1e9:.0f} GB/s:")
print(f"   {dram.best / ssd.best:.0f} × apart.")
print(f"2. A random read takes {1e6 * latency:.0f} µs from the SSD, {1e9 * fastest:.1f} ns from")
print("   the nearest cache: so ask early, ask for much, and ask for several at once.")

# %% tags=["nbval-ignore-output"]
ridge = here.bf16_flops / here.hbm_bandwidth
print(f"3. The ridge of this machine is at {ridge:.1f} FLOP per byte; decode stands at 1, and at")
print(f"   b with a batch of b. An H100's is at {h100.bf16_flops / h100.hbm_bandwidth:.0f} "
      "(predicted).")

# %% [markdown]
# **Next:** `10_load_safetensors`. We follow the weights from the start: what is in a checkpoint,
# byte by byte, and why is the second load so much faster?
