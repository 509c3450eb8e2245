# %% [markdown]
# # 02 · What holds a computation back, memory or arithmetic?
#
# <img src="images/strip.png" width="672" alt="The five stages of the course: 1 load, weights come
# in; 2 tokens, text becomes ids; 3 model and KV cache, ids become scores; 4 parallel, GPUs share
# the work; 5 decode, scores become text.">
#
# *You are here: before stage 1, at the machine on which all five run. Forty minutes. The code
# behind it: [`probe/compute.py`](../minillm/probe/compute.py),
# [`charts/roofs.py`](../minillm/charts/roofs.py).*

# %% tags=["nbval-ignore-output"]
import inspect
from statistics import median

from minillm import Engine, EngineConfig, Machine, SamplingParams, charts, format_size
from minillm.files import temporary_folder
from minillm.lesson import check, compare, guess, guesses, hint, knob, recall, reveal
from minillm.machine.disk import writable_folder
from minillm.predict import HARDWARE
from minillm.probe import Profile, probe
from minillm.tools.make_checkpoint import SHAPES, make_checkpoint

machine = Machine.here(hbm="2 GiB")
print(machine.describe())

# %% [markdown]
# Six words:
#
# - **FLOP**: one addition or multiplication of two numbers.
# - **intensity**: FLOP that are done with each byte read.
# - **roofline**: the lower of two ceilings, that of the memory and that of the arithmetic.
# - **ridge**: the intensity at which the two meet.
# - **decode step**: the model reads all its weights and makes the next token of each text.
# - **prefill**: the model reads a whole prompt at once.
#
# An H100 is a GPU for servers; *bf16* is a number of two bytes, the type of our weights.

# %% [markdown]
# ## A cook and a boy
#
# A boy brings 2 potatoes a second. A cook makes 6 cuts a second. Both work at the same time, so the
# slower of the two sets the pace. How long do 12 potatoes take, with 1 cut each? And with 2, 4, 12?

# %%
def seconds_at_least(cuts: float, potatoes: float, cuts_a_second: float, brought: float) -> float:
    return max(cuts / cuts_a_second, potatoes / brought)


for each in (1, 2, 4, 12):
    print(f"{each:2} cuts a potato: {seconds_at_least(12 * each, 12, 6, 2):4.0f} seconds")

# %% [markdown]
# One cut or two: the boy sets the time, and a faster cook would change nothing. At 3 cuts a potato,
# 6 ÷ 2, both are busy: the *ridge*. Beyond it the cook holds everything back. For potatoes read
# bytes and for cuts FLOP: cuts a potato are the intensity.
#
# ## Predict
#
# In a decode step each weight is read, multiplied with one number and added: 2 FLOP for 2 bytes. So
# it takes at least bytes ÷ bandwidth, if memory is the slower side. How long here, for 12, 113, 269
# MB?

# %%
names = {"town": "12 MB", "135m, 8 layers": "113 MB", "135m": "269 MB"}
mine = {n: guess(f"decode step, {n} ({size})", unit="ms") for n, size in names.items()}

# %% [markdown]
# `town` is the model of this course. The two others have the shape of SmolLM2-135M and random
# weights, one cut down to 8 layers; they are written to disk now and loaded. The ceilings are those
# of lesson 01. (Without a profile this cell measures them, in some fifteen seconds.) A model that
# fits a cache may be read faster than DRAM: its ceiling is that of a block of its size.

# %% tags=["nbval-ignore-output"]
profile = Profile.here() or probe(seconds=10)
here = profile.hardware(machine.device.type)


def bandwidth(nbytes: float) -> float:
    """The most bytes a second at which so many are read, again and again."""
    return profile.read_ceiling(nbytes) if machine.emulated else here.hbm_bandwidth

# %% tags=["nbval-ignore-output"]
shapes = {"135m, 8 layers": SHAPES["135m"] | {"num_hidden_layers": 8}, "135m": SHAPES["135m"]}
engines = {"town": Engine.load("data/town", machine)}
for name, shape in shapes.items():
    with temporary_folder(writable_folder()) as folder:
        make_checkpoint(shape, f"{folder}/model")
        engines[name] = Engine.load(f"{folder}/model", machine)

nbytes = {n: sum(p.nbytes for p in e.model.parameters()) for n, e in engines.items()}
floor = {n: size / bandwidth(size) for n, size in nbytes.items()}
for n, size in nbytes.items():
    print(f"{n:14} {size / 1e6:5.0f} MB ÷ {bandwidth(size) / 1e9:5.1f} GB/s = "
          f"{1e3 * floor[n]:6.2f} ms (predicted)")  # fmt: skip

# %% [markdown]
# ## Run
#
# One call a model: it writes 8 tokens, and the trace knows how long each step took and how many
# bytes it had to read. Three rounds, in turns.

# %% tags=["nbval-ignore-output"]
def passes(engine: Engine, prompts: list[str], kind: str, tokens: int = 8) -> list:
    """The passes of that kind while the engine goes on writing, from its trace."""
    engine.trace.clear()
    engine.generate(prompts, SamplingParams(max_tokens=tokens, temperature=0.0))
    return engine.trace.select(name=kind)


prompt = ["Mia put the red key"]
steps = {n: [] for n in engines}
for _ in range(3):
    for n, engine in engines.items():
        steps[n] += [e.seconds for e in passes(engine, prompt, "decode step")]

# %% tags=["nbval-ignore-output"]
for n, seconds in steps.items():
    reveal(mine[n], predicted=1e3 * floor[n], measured=[1e3 * second for second in seconds])

# %% [markdown]
# How near does each come to its ceiling, and what is left over? A part of that does not depend on
# the model's size: Python, the start of each layer, cores that wait for each other. A part does:
# other programs use the memory too, and a kernel need not reach the ceiling.

# %% tags=["nbval-ignore-output"]
took = {n: median(seconds) for n, seconds in steps.items()}
for n in engines:
    print(f"{n:14} {1e3 * (took[n] - floor[n]):7.2f} of {1e3 * took[n]:7.2f} ms are left over")
over = {n: took[n] / floor[n] for n in engines}
nearer = "nearer to" if over["135m"] < over["town"] else "no nearer to"
charts.curve(
    f"135m, {nbytes['135m'] / nbytes['town']:.0f} × the bytes of town, is {nearer} its ceiling",
    {"": lambda mb: 1e6 * mb / bandwidth(1e6 * mb)}, [6 * 1.1**i for i in range(46)],
    x="weights (MB)", y="a decode step", unit="s", log="xy",
    points=[(nbytes[n] / 1e6, took[n], f"{n}\n{over[n]:.1f} ×") for n in engines],
    span=(min(floor.values()) / 2, 8 * max(took.values())),
    note="dashed: bytes ÷ bandwidth of a block of that size; points: measured, so many × that",
)  # fmt: skip

# %% [markdown]
# ## Build it: count the work
#
# Where does a pass stand under the roof? A layer is a handful of matrices; one of N rows and K
# columns makes N numbers of each token's K: a multiplication and an addition for each weight. Two
# of them, (4, 3) and (2, 4), are 20 weights, 40 bytes, 200 FLOP for 5 tokens.
#
# ## Exercise 1: the work of a pass
#
# Given the matrices of all layers, and the output matrix, used for the last token only: FLOP and
# bytes of a pass.

# %%
def work(layers: list[tuple[int, int]], output: tuple[int, int], tokens: int) -> tuple[int, int]:
    raise NotImplementedError  # (FLOP, bytes); hint("02.1") helps, and without you we go on


work = check("02.1", work)

# %% [markdown]
# Against the package: the matrices of a real model, and the bytes that its engine says it must read
# for a decode step. (The rest: norms, and the keys and values of the text so far.)

# %% tags=["nbval-ignore-output"]
def matrices(engine: Engine) -> tuple[list[tuple[int, int]], tuple[int, int]]:
    named = dict(engine.model.named_parameters())
    table = named.pop("model.embed_tokens.weight")
    return [tuple(p.shape) for p in named.values() if p.dim() == 2], tuple(table.shape)


for n, engine in engines.items():
    flops, counted = work(*matrices(engine), tokens=1)
    told = passes(engine, prompt, "decode step")[0].nbytes
    assert 0.98 * told < counted <= told and flops == counted
    print(f"{n:14} {flops / 1e6:5.0f} MFLOP, {counted:,} of {told:,} bytes")

# %% [markdown]
# FLOP = bytes: an intensity of 1, whatever the model. With T tokens it is nearly T.
#
# ## The roofline
#
# Both ceilings in one picture, and three passes of the largest model: a decode step, one for eight
# texts at once, and the prefill of a prompt of some 200 tokens.

# %% tags=["nbval-ignore-output"]
large, long = engines["135m"], "Mia put the red key in the box. " * 6
layers, output = matrices(large)
length = len(large.tokenizer.encode(long))
found = {
    "decode, 1 text": (passes(large, prompt, "decode step"), 1, 1),
    "decode, 8 texts": (passes(large, prompt * 8, "decode step"), 8, 8),
    f"prefill, {length} tokens": (passes(large, [long], "prefill", 1), length, 1),
}


def point(events: list, tokens: int, wanted: int) -> tuple[float, float, float]:
    """FLOP, bytes and seconds of one such pass; `wanted`: for how many tokens there are scores."""
    flops = work(layers, output, tokens)[0] + (wanted - 1) * 2 * output[0] * output[1]
    return flops, median(e.nbytes for e in events), median(e.seconds for e in events)

# %% tags=["nbval-ignore-output"]
points = {name: point(*of) for name, of in found.items()}
roof = bandwidth(nbytes["135m"])
charts.roofline(None, points, roof, here.bf16_flops)

# %% [markdown]
# On the slope memory holds back, on the flat roof arithmetic. One text: intensity 1. Eight texts
# share each weight that is read. A prompt shares it among all its tokens. What the picture says of
# your machine:

# %% tags=["nbval-ignore-output"]
ridge = here.bf16_flops / roof
for name, (flops, read, seconds) in points.items():
    side = "memory" if flops / read < ridge else "arithmetic"
    share = seconds_at_least(flops, read, here.bf16_flops, roof) / seconds
    print(f"{name:22} {flops / read:6.1f} FLOP per byte, held by {side}; {share:.0%} of the roof")

# %% [markdown]
# A pass whose bytes come from DRAM cannot stand above the roof. (If one does, other programs kept
# the probe from measuring the ceiling: probe again when it is quiet.) Below it lies what the last
# part of this lesson names.
#
# ## The package's roof
#
# The flat roof is the fastest product of two matrices that was found, with `F.linear`, which a
# model calls, and with `mm`, in several sizes. On a CPU without bf16 instructions float32 may give
# more; then the engine converts its weights, and that is the roof.

# %%
from minillm.probe import compute

print(inspect.getsource(compute._ways).split('"""')[-1].strip("\n"))

# %% tags=["nbval-ignore-output"]
for name in ("gemm float32", "gemm bfloat16"):
    if name in profile:
        print(f"{name}: {profile[name].best / 1e9:.0f} GFLOP/s; {profile[name].how}")

# %% [markdown]
# ## Exercise 2: the batch at the ridge
#
# With a batch of b texts, a decode step reads the weights once, and for each text also the keys and
# values of what was said so far, `kv` bytes. It computes 2 FLOP for each weight and text. From
# which batch on does arithmetic hold it back? Return `None` if that never happens.

# %%
def batch_at_ridge(weights: int, kv: float, flops: float, bandwidth: float) -> int | None:
    raise NotImplementedError  # weights: how many, 2 bytes each; or hint("02.2")


batch_at_ridge = check("02.2", batch_at_ridge)

# %% tags=["nbval-ignore-output"]
h100, eight = HARDWARE["H100"], 8_030_000_000
for kv in (0, 10**6, 10**8):
    batch = batch_at_ridge(eight, kv, h100.bf16_flops, h100.hbm_bandwidth)
    print(f"H100, 8 billion weights, {kv:11,} bytes of KV cache a text: batch {batch} (predicted)")

# %% [markdown]
# ## Turn the knob: the batch
#
# The same curve for this machine and an H100, with the model of 8 billion weights and no KV cache:
# tokens a second, at most. Where does each line bend?

# %% tags=["nbval-ignore-output"]
servers = {"this machine": (here.bf16_flops, bandwidth(2 * eight)),
           "H100": (h100.bf16_flops, h100.hbm_bandwidth)}  # fmt: skip


def tokens_a_second(batch: float, flops: float, memory: float) -> float:
    return batch / seconds_at_least(2 * eight * batch, 2 * eight, flops, memory)


def batch_curve(batch: int = 8) -> charts.Chart:
    rates = {n: lambda b, of=of: tokens_a_second(b, *of) for n, of in servers.items()}
    said = ", ".join(f"{n} {rate(batch):,.0f} tokens/s" for n, rate in rates.items())
    return charts.curve(
        f"Batch {batch}: {said}", rates, [2 ** (i / 4) for i in range(45)], x="batch",
        y="tokens/s, at most", at=batch, log="xy", note="predicted; 8 billion weights",
    )  # fmt: skip


knob(batch_curve, batch=(1, 2048))

# %% [markdown]
# Each line bends at its ridge. From there on arithmetic sets the rate, and a larger batch only
# makes every step longer.
#
# ## Break it: take the kernel away
#
# The engine computes decode steps in C, in an order that reads each weight once, as one stream, by
# all cores. Take that away: `kernels="torch"` leaves every product to torch. Same model, in turns:

# %% tags=["nbval-ignore-output"]
with temporary_folder(writable_folder()) as folder:
    make_checkpoint(shapes["135m, 8 layers"], f"{folder}/model")
    plain = Engine.load(f"{folder}/model", machine, EngineConfig(kernels="torch"))


def step(engine: Engine) -> float:
    return median(e.seconds for e in passes(engine, prompt, "decode step"))


ways = {"the engine": engines["135m, 8 layers"], "torch alone": plain}
result = compare({n: lambda e=e: step(e) for n, e in ways.items()}, rounds=3, unit="ms")
plain.close()

# %% tags=["nbval-ignore-output"]
print(result.sentence)
for name in ways:
    print(result.against("predicted", floor["135m, 8 layers"], name))

# %% [markdown]
# A roofline says what is possible, not what a program does. Between the two lies the work of those
# who write kernels. (Without a C compiler both ways are torch's.)
#
# ## Where it loses
#
# Two numbers cannot say everything. The roof leaves out each start of an operation (the smallest
# model above), products of attention, whatever goes on in turns and not at the same time, and
# *which* memory the bytes come from. One model, and the prediction for two memories:

# %% tags=["nbval-ignore-output"]
size = nbytes["town"]
for where, most in (("a block of its size", bandwidth(size)), ("DRAM", here.hbm_bandwidth)):
    share = size / most / took["town"]
    print(f"town from {where:19}: at least {1e3 * size / most:5.2f} ms (predicted), "
          f"measured {1e3 * took['town']:.2f} ms: {share:.0%} of that ceiling")

# %% [markdown]
# ## Exercise 3: a server, on paper
#
# Eight H100 hold a model together: their memories and their arithmetic add up. Each user wants a
# token every `seconds`, and has `kv` bytes of keys and values. All are decoded in one batch, so a
# step reads the weights once, and the keys and values of every user. How many users fit? Three
# things can run out: the memory's size, its bandwidth, the arithmetic.

# %%
def most_users(
    weights: int, kv: float, seconds: float, hbm: float, bandwidth: float, flops: float
) -> int:
    raise NotImplementedError  # weights: how many, 2 bytes each; or hint("02.3")


most_users = check("02.3", most_users)

# %%
server = 8 * h100.hbm_bytes, 8 * h100.hbm_bandwidth, 8 * h100.bf16_flops
for tokens in (1_000, 8_000, 64_000):
    users = most_users(70_600_000_000, 327_680 * tokens, 0.05, *server)
    print(f"70.6 billion weights, texts of {tokens:6,} tokens: {users} users (predicted)")

# %% [markdown]
# ## Five questions
#
# Answer each in your head, then open it.

# %% tags=["folded"]
recall(
    ("What is the intensity of a decode step with bf16 weights and one text?",
     "About 1: a multiplication and an addition for the two bytes of a weight."),
    ("It stands left of the ridge. Would twice the FLOP/s make it faster?",
     "No: it waits for memory. A larger batch moves it to the right."),
    ("Why is a prompt of 200 tokens not 200 times as slow as one token?",
     "Each weight is read once for all of them; until the ridge they cost no more bytes."),
    ("A small model stands far below its roof. What takes the time?",
     "What does not shrink with it: the start of each operation, and cores that wait. And a kernel "
     "may be slower than the cache that holds the weights."),
    ("A run stands above the roof. What do you conclude?",
     "The ceiling was measured too low, or the bytes came from a nearer memory, such as a cache."),
)

# %% [markdown]
# ## Three takeaways, with the numbers of your run, and your guesses

# %% tags=["nbval-ignore-output", "folded"]
print(f"1. Time is at least bytes ÷ bandwidth: 135m {1e3 * floor['135m']:.1f} ms predicted, "
      f"{1e3 * took['135m']:.1f} ms measured.")  # fmt: skip
print(f"2. The ridge is at {ridge:.0f} FLOP per byte here, at "
      f"{h100.bf16_flops / h100.hbm_bandwidth:.0f} on an H100 (predicted).")
print("3. Decode stands at 1, at b with a batch of b; prefill at its number of tokens.")

# %%
guesses()

# %% [markdown]
# **Next:** `10_load_safetensors`. We follow the weights from the start: what is in a checkpoint,
# byte by byte, and why is the second load so much faster?
