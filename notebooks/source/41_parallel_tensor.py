# %% [markdown]
# # 41 · How is one layer split over GPUs?
#
# <img src="images/strip_parallel.png" width="672" alt="The five stages of the course. You are here:
# 4 parallel, ranks talk.">
#
# Two GPUs share each matrix of a model. What must they tell each other, how often, and does a token
# come sooner? *Forty-five minutes; the code behind it:
# [`parallel/tensor.py`](../minillm/parallel/tensor.py),
# [`load/shard.py`](../minillm/load/shard.py), [`parallel/mesh.py`](../minillm/parallel/mesh.py),
# [`engine/ranks.py`](../minillm/engine/ranks.py).*

# %% tags=["nbval-ignore-output"]
# %load_ext minillm.parallel.ranks
import inspect
from statistics import median

from minillm import Engine, Machine, ModelConfig, SamplingParams, charts, predict
from minillm.files import locate
from minillm.lesson import check, compare, guess, guesses, hint, knob, recall, reveal
from minillm.load import Checkpoint
from minillm.load.shard import megatron, slices
from minillm.predict import HARDWARE

machine = Machine.here(hbm="64 MiB", device="cpu")
config = ModelConfig.from_pretrained(locate("data/town"))
print(machine.describe())

# %% [markdown]
# Five words; *rank*, *all-reduce*, *all-gather* and alpha are those of lesson 40:
#
# - **tensor parallel**, **tp**: ranks share each matrix, and all work on each token.
# - **split by rows**: a rank has some rows of W: some of the outputs.
# - **split by columns**: a rank has some columns: it takes some of the inputs.
# - **part**: what a rank adds to a sum; it has the full width.
# - **half**: a layer has two, attention and FFN.
#
# W is stored as (outputs, inputs). The paper, Megatron-LM, turns it: our rows are its
# "column-parallel".

# %% [markdown]
# ## Two people, two matrices
#
# x = (1, 2) goes through `up`, four rows; what is negative becomes 0 (ReLU; we say *bent*); `down`
# makes two numbers of it again. That is an FFN, but for its size and a smoother bend, SiLU.

# %%
up, down, x = [[1, 1], [2, -2], [-1, 1], [1, -1]], [[1, 2, 3, 4], [5, 6, 7, 8]], [1, 2]


def times(W: list, x: list) -> list:
    return [sum(w * a for w, a in zip(row, x, strict=True)) for row in W]


def bend(x: list) -> list:
    return [max(a, 0) for a in x]


def add(*parts: list) -> list:
    return [sum(column) for column in zip(*parts, strict=True)]


# %%
inside = bend(times(up, x))
print("up x:", times(up, x), " bent:", inside, " down:", times(down, inside))

# %% [markdown]
# Ann takes the first two rows of `up`, Ben the last two. Each knows x, and gets two of the four
# numbers, bent. Now the trick: `down` is split by *columns*, the first two for Ann. What she needs
# for them is what she has. Each gets a part, of full width; the parts are added.

# %%
def columns(W: list, begin: int, end: int) -> list:
    return [row[begin:end] for row in W]


parts = []
for who, begin in (("Ann", 0), ("Ben", 2)):
    inside = bend(times(up[begin : begin + 2], x))
    parts.append(times(columns(down, begin, begin + 2), inside))
    print(f"{who}: {inside}, part {parts[-1]}")
print("sum:", add(*parts))

# %% [markdown]
# One sum, of two numbers. Why not the other way round? `up` by columns: Ann knows the first number
# of x, Ben the second. `down` by rows.

# %%
parts = [times(columns(up, n, n + 1), x[n : n + 1]) for n in (0, 1)]
print("Ann:", parts[0], " Ben:", parts[1])
print("bent, then added:", add(*map(bend, parts)), "  added, then bent:", bend(add(*parts)))
print("then each has one number:", [times([row], bend(add(*parts))) for row in down])

# %% [markdown]
# Look at the second number: 2 and −4, bent 2 and 0. But 2 − 4, bent, is 0: the bend of a sum is not
# the sum of bends. So the four numbers must be added in the middle, and at the end each has one
# number of two, which are gathered. Two exchanges, the first as wide as the FFN inside. **Rows,
# then columns** needs one.

# %% [markdown]
# ## Predict
#
# Attention is alike: a head is computed by itself. q, k, v are split by rows, whole heads; o by
# columns. Every rank has all norms, and all of x. So each half ends with one sum of D numbers.
#
# The vocabulary is split too. A rank looks up the tokens that it knows, zeros for others: one sum
# more, before the first layer. At the end each rank scores its own tokens, and tells its best:
# three numbers of 8 bytes.

# %% [markdown]
# The town model has 6 layers and D = 256, 4 bytes each on a CPU. Two ranks; in an all-reduce each
# sends 2 (N − 1) ÷ N of the tensor. How many sums for a token, and how many KB (1,000 bytes) does a
# rank send? And the two share this machine's cores: how fast are they, if one rank with all cores
# has 100 %?

# %%
sums = guess("all-reduces for a token", unit="sums")
sent_kb = guess("sent by a rank for a token", unit="KB")
speed = guess("two ranks; one rank has 100", unit="%")

# %% [markdown]
# ## Run
#
# First one rank, the notebook's own process, with all cores:

# %%
asked = "Mia put the red key in the box. Where is the red key?"
greedy = SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True)


def alone() -> tuple:
    machine.trace.clear()
    engine = Engine.load("data/town", machine)
    done, tokens = engine.generate([asked], greedy)[0], len(engine.tokenizer.encode(asked)) + 23
    engine.close()
    return done, tokens

# %%
whole, tokens = alone()
print(f"{tokens} tokens went through the model: {whole.text!r}")

# %% [markdown]
# Now two. A `%%ranks 2` cell runs in two processes (lesson 40; to begin takes some seconds). Both
# load: each reads its slices (lesson 12). Then rank 0 is asked, as always, and tells the other
# which tokens run and where they lie. That one `follow`s, until rank 0 closes.

# %%
# %%ranks 2
import minillm

asked = "Mia put the red key in the box. Where is the red key?"

def answer(count=24):
    trace.clear()
    machine = minillm.Machine.here(hbm="64 MiB", device="cpu", trace=trace)
    split = minillm.ParallelConfig(tp=world)
    engine = minillm.Engine.load("data/town", machine, parallel=split)
    if rank > 0:
        return engine.follow()
    greedy = minillm.SamplingParams(max_tokens=count, temperature=0.0, ignore_eos=True)
    done = engine.generate([asked], greedy)[0]
    engine.close()
    return done

# %%
# %%ranks 2 --timeout 240
done = answer()
text, tpot = (done.text, done.tpot) if rank == 0 else (None, None)
print(repr(text) if rank == 0 else "followed")

# %% [markdown]
# The same text? And what both recorded, merged on one clock, to count in:

# %%
assert ranks.get("text")[0] == whole.text
merged = ranks.trace()

# %% [markdown]
# A longer text, to watch: two GPUs, NVLink between them (here two processes, and the loopback
# network). What they record comes here as they go on. Afterwards press play, or choose a word:

# %% tags=["nbval-ignore-output"]
live = ranks.trace()
with charts.watch(live, "machine", "timeline"):
    ranks.run("answer(160)", timeout=240, live=live)

# %% [markdown]
# Counted in the first answer, and predicted. The sums are 2 a layer and one for the embedding;
# `bus_bytes` is lesson 40's 2 (N − 1) ÷ N.

# %% tags=["nbval-ignore-output"]
state = 4 * config.hidden_size
a_token = predict.tensor_bytes(config, 2, "float32") + predict.bus_bytes("all_reduce", state, 2)
for rank in (0, 1):
    events = {n: merged.select(name=n, rank=rank) for n in ("all_reduce", "all_gather")}
    nbytes = {name: sum(event.nbytes for event in found) for name, found in events.items()}
    assert nbytes == {"all_reduce": tokens * a_token, "all_gather": 24 * 24}  # a best each
per_pass = len(events["all_reduce"]) / 24
assert per_pass == 2 * config.num_hidden_layers + 1
reveal(sums, predicted=2 * config.num_hidden_layers + 1, measured=per_pass)
reveal(sent_kb, predicted=(a_token + 24) / 1000,
       measured=(nbytes["all_reduce"] / tokens + nbytes["all_gather"] / 24) / 1000)  # fmt: skip

# %% [markdown]
# Bytes are exact. And the time? Two ranks read the same weights together as one, and do the same
# arithmetic, on the same cores. So we predict: what one rank takes, plus 16 messages to all: 13
# sums, a gather, and two in which rank 0 tells what runs. A sum of 1 KiB between idle ranks first;
# then one rank and two, in turns.

# %%
# %%ranks 2
import time

x, alphas = torch.zeros(256), []
for _ in range(100):
    start = time.perf_counter()
    dist.all_reduce(x)
    alphas.append(time.perf_counter() - start)

# %% tags=["nbval-ignore-output"]
def two() -> float:
    ranks.run("done = answer(); tpot = done.tpot if rank == 0 else None", timeout=240)
    return ranks.get("tpot")[0]


a_sum = median(max(both) for both in zip(*ranks.get("alphas"), strict=True))
took = compare({"one rank": lambda: alone()[0].tpot, "two ranks": two}, rounds=3, unit="ms",
               what="a token")  # fmt: skip

# %% [markdown]
# Your guess, then the prediction, then the three rounds:

# %% tags=["nbval-ignore-output"]
least = took.median("one rank") + 16 * a_sum
reveal(speed, predicted=100 * took.median("one rank") / least,
       measured=[100 * a / b for a, b in zip(*took.seconds.values(), strict=True)])  # fmt: skip
print(took.sentence)

# %% [markdown]
# What the prediction leaves out: a sum is there when the *later* rank is. Idle ranks come at once;
# ranks at work share the cores with all else that runs here.
#
# ## Where the time goes
#
# A token on rank 0, in three: *layers*, its halves; *sums*, until they are there, waiting for the
# other rank included; and the rest: scores, choice, text, and telling the others. Dashed: one rank.
# Of the last round only, so they may differ from the medians above.

# %% tags=["nbval-ignore-output"]
def spent(trace, tpot: float, **who) -> dict:
    steps = {event.step for event in trace.select(name="decode step", **who)}
    kinds = {"layers": ("attention", "ffn"), "sums": ("all_reduce", "all_gather")}
    found = {kind: sum(e.seconds for name in names for e in trace.select(name=name, **who)
                       if e.step in steps) / len(steps) for kind, names in kinds.items()}
    return found | {"the rest": max(0.0, tpot - sum(found.values()))}  # fmt: skip


tpots = [seconds[-1] for seconds in took.seconds.values()]  # whose traces are here
one, both = spent(machine.trace, tpots[0]), spent(ranks.trace(), tpots[1], rank=0)
said = f"sums: {both['sums'] / tpots[1]:.0%} of a token's time on two ranks"
longest = max(sum(one.values()), sum(both.values()))
charts.bars(said, {kind: s / longest for kind, s in both.items()},
            before={kind: s / longest for kind, s in one.items()},
            note="measured, last round; of the longer of the two tokens")  # fmt: skip

# %% tags=["nbval-ignore-output"]
gain, paid = one["layers"] - both["layers"], both["sums"]
print(f"last round: {1e3 * gain:+.2f} ms saved in layers; sums: {1e3 * paid:.2f} ms paid, "
      f"{1e6 * paid / 14:.0f} µs each; {1e6 * a_sum:.0f} between idle ranks (measured)")
says = {"one rank": "does not pay", "two ranks": "pays", None: "makes no clear difference"}
print(f"on this machine the split {says[took.faster(*took.seconds)]}")

# %% [markdown]
# Two ranks on one machine share its cores and its DRAM: they bring nothing that one would not have.
# A second *GPU* brings its own HBM and its own arithmetic. Then each half may take half the time,
# and the sums are the price. Below we ask when that pays.
#
# ## First rung: the FFN
#
# The town's FFN has two matrices in place of `up`, `gate` and `up`; both by rows, and the bend is
# SiLU. Random weights, the same on both ranks, and three tokens.

# %%
# %%ranks 2
import torch.nn.functional as F

torch.manual_seed(41)
D, wide = 256, 832
x, down = torch.randn(3, D), torch.randn(D, wide) / wide**0.5
gate, up = torch.randn(2, wide, D) / D**0.5
whole = (F.silu(x @ gate.T) * (x @ up.T)) @ down.T

mine = slice(rank * wide // world, (rank + 1) * wide // world)
part = (F.silu(x @ gate[mine].T) * (x @ up[mine].T)) @ down[:, mine].T
total = part.clone()
dist.all_reduce(total)
assert torch.allclose(total, whole, rtol=1e-5, atol=1e-5)
print(f"{mine.stop - mine.start} of {wide} inside; the sum is the plain FFN")

# %% [markdown]
# ## Second rung, yours: any number of ranks
#
# As Ann and Ben, with lists. `up` has as many rows as `down` has columns, and `ranks` divides that
# number. Return the part of rank `rank`: neighbours' rows, in order of rank. (`times`, `bend` and
# `columns` from above are there.)

# %%
def ffn_part(x: list, up: list, down: list, rank: int, ranks: int) -> list:
    raise NotImplementedError  # your lines, or hint("41.1"); without them the lesson uses ours

ffn_part = check("41.1", ffn_part)

# %%
alone_ffn = times(down, bend(times(up, x)))
for ranks_ in (1, 2, 4):
    parts = [ffn_part(x, up, down, rank, ranks_) for rank in range(ranks_)]
    assert add(*parts) == alone_ffn
    print(f"{ranks_} ranks: parts {parts}, sum {add(*parts)}")

# %% [markdown]
# ## Third rung: attention, by heads
#
# The package's `Attention` knows nothing of ranks. `rank_config` gives it fewer heads; q, k, v get
# their rows, o its columns. The town has 4 query heads and 2 kv heads.

# %%
# %%ranks 2
from minillm.files import locate
from minillm.model.attention import Attention, causal
from minillm.model.layers import rope_table
from minillm.parallel.tensor import rank_config

config = minillm.ModelConfig.from_pretrained(locate("data/town"))
plain, own = Attention(config, 0), Attention(rank_config(config, world), 0)
for name, weight in own.named_parameters():
    print(name, list(plain.get_parameter(name).shape), "->", list(weight.shape))

# %%
# %%ranks 2
with torch.no_grad():
    for name, weight in plain.named_parameters():
        by_columns = int(name == "o_proj.weight")
        own.get_parameter(name).copy_(weight.normal_(std=1 / 16).chunk(world, by_columns)[rank])
    turns = rope_table(config, len(x))
    heads, total = plain(x, turns, causal), own(x, turns, causal)
dist.all_reduce(total)
assert torch.allclose(total, heads, rtol=1e-5, atol=1e-5)
print("the sum is the plain attention")

# %% [markdown]
# ## Meet the package
#
# A layer is `Block.forward`. On one GPU `reduce` gives back what it gets; `TensorParallel` puts the
# group's all-reduce there, and itself at both ends of the model. Nothing else changes.

# %%
from minillm.model.llama import Block
from minillm.parallel.tensor import TensorParallel

for function in (Block.forward, TensorParallel.embed, TensorParallel.output):
    print(inspect.getsource(function).rstrip())

# %% [markdown]
# ## The best token of two ranks
#
# `output` gathers all scores (`whole`) for who wants to sample. Greedy needs less: each rank's best
# token, its score, and the logarithm of the sum of exponentials, with which a probability is made
# of a score. By hand, for 4,096 tokens:

# %%
# %%ranks 2
torch.manual_seed(7)
scores = 3 * torch.randn(4096)
own = scores.chunk(world)[rank]
best = torch.stack((own.argmax() + rank * len(own), own.max(), own.logsumexp(0))).double()
every = [torch.empty_like(best) for _ in range(world)]
dist.all_gather(every, best)
every = torch.stack(every)
token, score, _ = every[every[:, 1].argmax()]
chance = (score - every[:, 2].logsumexp(0)).exp()
assert token == scores.argmax() and torch.allclose(chance.float(), scores.softmax(0).max())
print(f"token {token:.0f} with {chance:.1%}: {best.nbytes} bytes a rank, not {own.nbytes:,}")

# %% [markdown]
# Of equal scores one rank takes the lowest id. So do several: they stand in order, and the first of
# equals counts.

# %% [markdown]
# ## Yours: more ranks than kv heads
#
# The town has 2 kv heads. On 4 ranks each has one query head, and needs the kv head that goes with
# it. So each kv head is held by two ranks, twice in all. `k_proj` has K heads of E rows. Return the
# rows of rank `rank`, as (begin, end), end excluded; `None` if neither of K and `ranks` divides the
# other: a rank has whole heads.

# %%
def kv_rows(rank: int, ranks: int, K: int, E: int):
    raise NotImplementedError  # or hint("41.2")

kv_rows = check("41.2", kv_rows)

# %% [markdown]
# Held against what the package reads from the file:

# %%
files, name = Checkpoint.open(locate("data/town")), "model.layers.0.self_attn.k_proj.weight"
k_proj = files.tensors[name]
for count in (1, 2, 4):
    rows = []
    for rank in range(count):
        ((begin, end),) = slices(files, rank, count, megatron(config)).tensors[name].ranges
        rows.append(((begin - k_proj.start) // 512, (end - k_proj.start) // 512))  # 2 · D bytes
    assert rows == [kv_rows(rank, count, K=2, E=64) for rank in range(count)]
    print(f"tp {count}: rows {rows}, together {sum(end - begin for begin, end in rows)} of 128")

# %% [markdown]
# The KV cache goes with the heads. From tp = K on it does not shrink any further on a rank: each
# rank more brings a copy.
#
# ## Break it: a bias on each rank
#
# Llama has no biases, others do. `down` is split by columns: each rank has a part of *every*
# output. Add its bias where it is computed, as one GPU would:

# %%
# %%ranks 2
bias = torch.full((D,), 5.0)
total = part + bias
dist.all_reduce(total)
print(f"a bias of {bias.mean():.1f}: {(total - whole).mean():.1f} were added")

# %% [markdown]
# N ranks add it N times, and nobody complains: every shape fits. So in the package it comes after
# the sum, once: `add`, which you saw called in `Block.forward`.

# %%
from minillm.model import llama

print(inspect.getsource(llama.add).split('"""')[-1].strip())

# %% [markdown]
# ## Yours: which bias where?
#
# Both matrices have one now. Return the FFN's output for `ranks` ranks: all parts, added. Each rank
# has the slices of `up` and `down` as before. Which entries of `up_bias` does it add, and when? And
# `down_bias`?

# %%
def ffn_of_ranks(x, up, up_bias, down, down_bias, ranks: int) -> list:
    raise NotImplementedError  # or hint("41.3")

ffn_of_ranks = check("41.3", ffn_of_ranks)

# %%
for count in (1, 2, 4):
    print(count, "ranks:", ffn_of_ranks(x, up, [1, 0, -2, 3], down, [100, 200], count))

# %% [markdown]
# ## Turn the knob: where it pays
#
# H100s with NVLink, by data sheets: a decode step of one GPU (context 1,000), divided by tp, plus
# the sums. How much sooner is a token there? Drag the number of requests: what changes, and for
# which model? The town model has 4 heads: more than 4 GPUs do not help it. (70B does not fit one
# GPU: there "one" is arithmetic.)

# %% tags=["nbval-ignore-output"]
def llama_like(layers: int, width: int, inside: int, heads: int) -> ModelConfig:
    return ModelConfig(vocab_size=128256, hidden_size=width, intermediate_size=inside,
                       num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=8,
                       dtype="bfloat16")  # fmt: skip


def seconds(model: ModelConfig, tp: float, requests: int) -> float:
    tp = min(tp, model.num_attention_heads)  # a rank has whole heads
    step = predict.decode_step(model, H100, requests, 1000).seconds / tp
    state = 2 * model.hidden_size * requests
    return step + (tp > 1) * 2 * model.num_hidden_layers * predict.all_reduce(state, tp, link)


H100, link = HARDWARE["H100"], HARDWARE["H100"].nvlink
models = {"70B": llama_like(80, 8192, 28672, 64), "8B": llama_like(32, 4096, 14336, 32),
          "town": config}  # fmt: skip

# %% tags=["nbval-ignore-output"]
def gains(requests: int = 1) -> charts.Chart:
    lines = {name: lambda tp, m=m: seconds(m, 1, requests) / seconds(m, tp, requests)
             for name, m in models.items()}  # fmt: skip
    found = ", ".join(f"{name} {line(8):.2g} ×" for name, line in lines.items())
    return charts.curve(f"Up to 8 GPUs, {requests} at once: {found}",
                        {"as many times": lambda tp: tp, **lines}, [1, 2, 4, 8],
                        x="tp (GPUs)", y="speed, one GPU is 1", unit="×", at=8, log="xy",
                        span=(0.05, 10), note="predicted: H100, NVLink, ring")  # fmt: skip


knob(gains, requests=[1, 8, 64, 512])

# %% [markdown]
# ## Where it loses
#
# A layer has two sums, each of 2 (N − 1) messages, and for one token a message is nearly all
# latency. More ranks make the reading less, and the waiting more:

# %%
for name, model, tp in zip(models, models.values(), (8, 8, 4), strict=True):
    read = predict.decode_step(model, H100, 1, 1000).seconds / tp
    wait = seconds(model, tp, 1) - read
    print(f"{name:4} on {tp} H100s: {1e6 * read:7.1f} µs to read, {1e6 * wait:6.1f} µs for "
          f"{2 * model.num_hidden_layers:3} sums: {wait / (read + wait):.0%} waiting (predicted)")

# %% [markdown]
# A pipeline (lesson 42) sends once between stages, but does not make a token come sooner.

# %% [markdown]
# ## On paper: a real server
#
# A token reads `weights` bytes, tp-th parts at once, from memory that gives `hbm` bytes a second.
# Each of `layers` layers has two all-reduces of `width` numbers, 2 bytes each: rings of 2 (N − 1)
# messages, each `alpha` seconds and an N-th of the bytes at `beta`. tp may be one of `choices`.
# Return the tp with the shortest token, the bytes that a rank then sends for a token, and the
# microseconds that the sums of *one layer* take.

# %%
def best_tp(weights, hbm, layers, width, alpha, beta, choices) -> tuple:
    raise NotImplementedError  # (tp, bytes, µs a layer); or hint("41.4")

best_tp = check("41.4", best_tp)

# %%
links = link.latency, link.bandwidth
for name, most in (("70B", 8), ("70B", 64), ("8B", 32), ("town", 4)):
    model, choices = models[name], [2**n for n in range(7) if 2**n <= most]
    sizes = model.num_hidden_layers, model.hidden_size
    nbytes = predict.weight_bytes(model)
    tp, each, micro = best_tp(nbytes, H100.hbm_bandwidth, *sizes, *links, choices)
    print(f"{name:4}, up to {most:2} H100s: tp {tp:2}, {each:9,.0f} bytes, {micro:4.1f} µs a layer")
ranks.close()

# %% [markdown]
# Predicted, with no more ranks than heads. NVLink joins eight GPUs in a DGX H100; of newer ones,
# racks of 72. 4.6 MB are 10 µs on such a link; yet 80 layers wait more than a millisecond, for
# latency. So servers fuse the sum with what is around it, send each part to all at once, or let a
# switch add.
#
# ## Five questions
#
# Answer each in your head, then open it.

# %% tags=["folded"]
recall(
    ("Why is `up` split by rows, and `down` by columns?",
     "Then what a rank computes inside is what its columns of down need: one sum, at the end."),
    ("`up` is split by columns. Why may a rank not bend its part, and add later?",
     "The bend of a sum is not the sum of bends: the parts must be added first."),
    ("How many sums has a token in a model of 80 layers, and how wide is each?",
     "160, and one for a split embedding; each has D numbers, whatever the width inside."),
    ("8 kv heads, 16 ranks. What does a rank hold?",
     "One whole kv head, and so does its neighbour: the cache is there twice. 12 are refused."),
    ("A bias after a split by columns: where is it added?",
     "After the sum, once. On each rank before the sum it would count N times."),
)

# %% [markdown]
# ## Three takeaways, with the numbers of your run, and your guesses

# %% tags=["nbval-ignore-output", "folded"]
print(f"1. Rows, then columns: {per_pass:.0f} sums a token, {a_token + 24:,.0f} bytes a rank.")
print(f"2. {took.sentence}.")
gain = {name: seconds(model, 1, 1) / seconds(model, 8, 1) for name, model in models.items()}
print(f"3. Up to 8 H100s, by data sheets: 70B is {gain['70B']:.2g} × as fast as on one, "
      f"the town model {gain['town']:.2g} ×.")  # fmt: skip

# %%
guesses()

# %% [markdown]
# **Next:** `42_parallel_nodes`. Eight GPUs are not enough, and the next eight stand in another
# node: what changes?
