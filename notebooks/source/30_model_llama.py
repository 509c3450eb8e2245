# %% [markdown]
# # 30 · What do attention and FFN compute, and what limits each?
#
# <img src="images/strip_model.png" width="672" alt="The five stages of the course. You are here:
# 3 model and KV cache, ids become scores.">
#
# A model is a stack of equal blocks. We take one apart: what does each of its operators compute,
# how many bytes does it read, and which limit holds it on this machine? *Forty-five minutes; the
# code behind it: [`model/llama.py`](../minillm/model/llama.py),
# [`model/attention.py`](../minillm/model/attention.py),
# [`model/kernels.c`](../minillm/model/kernels.c),
# [`predict/operators.py`](../minillm/predict/operators.py).*

# %% tags=["nbval-ignore-output"]
import torch

from minillm import Engine, Machine, ModelConfig, SamplingParams, charts
from minillm.kv import PagedKV, Step
from minillm.lesson import check, compare, guess, guesses, hint, knob, recall, reveal
from minillm.model.attention import causal
from minillm.model.kernels import SOURCE, install
from minillm.model.layers import identity, rope_table, rotate
from minillm.model.llama import Block, Llama
from minillm.predict import HARDWARE, operators
from minillm.probe import Profile, compute, links, memory
from minillm.tools.evaluate import read_lines
from minillm.tools.make_checkpoint import SHAPES

print((machine := Machine.here(hbm="2 GiB")).describe())

# %% [markdown]
# Six words:
#
# - **operator**: a step of the computation, such as a product with a matrix.
# - **block**: attention, then FFN; each adds its part to what came in.
# - **attention**: a token's *query* meets the *keys* of all tokens so far; of those that fit it
#   takes the *values*.
# - **head**: queries, keys and values of E numbers. H query heads share K heads of the others.
# - **FFN**: *gate and up* widen a token from D to I numbers, *down* brings it back.
# - **packed**: several texts in one pass, one after the other.

# %% [markdown]
# ## A small block on a slow machine
#
# Four products have weights: *qkv* makes queries, keys and values, *o* mixes what the heads found,
# then *gate and up*, and *down*. Let D = 4, H = 2, K = 1, E = 2, I = 8; a number has 2 bytes. The
# machine reads 10 bytes and does 40 FLOP a second: its ridge is at 4. Each text has 4 tokens so
# far. Attention reads a key and a value of each, for 4 · H · E FLOP: q · k, then the weighted sum.

# %%
weights = {"qkv": 4 * (2 + 1 + 1) * 2, "o": 2 * 2 * 4, "gate and up": 4 * 2 * 8, "down": 8 * 4}
for texts in (1, 8):
    work = {name: (2 * n * texts, 2 * n) for name, n in weights.items()}  # FLOP, bytes
    work["attention"] = (4 * 2 * 2) * 4 * texts, 2 * (2 * 1 * 2) * 4 * texts
    for name, (flops, nbytes) in work.items():
        limit = "memory" if nbytes / 10 > flops / 40 else "arithmetic"
        print(f"batch {texts}, {name:11}: {flops:4} FLOP, {nbytes:3} bytes, "
              f"at least {max(nbytes / 10, flops / 40):4.1f} s, limit: {limit}")  # fmt: skip

# %% [markdown]
# Check a line. With a batch of eight, one token of each of eight texts, the products do eight times
# the FLOP on the same bytes, and cross the ridge. Attention does not: each text brings keys and
# values of its own, so it stays at H ÷ K FLOP for each byte, whatever the batch.
#
# ## Exercise 1: count a block's bytes
#
# Of any block, with its two norms of D weights each. `inner` is I; `seen` lists how many tokens
# each text sees.

# %%
def block_bytes(D: int, inner: int, H: int, K: int, E: int, seen: list[int]) -> tuple[int, int]:
    raise NotImplementedError  # bytes of weights, bytes of keys and values; or hint("30.1")


block_bytes = check("30.1", block_bytes)

# %% [markdown]
# ## Predict
#
# We build one block of Llama-3.2-1B: D = 2048, I = 8192, H = 32, K = 8, E = 64. How long does it
# take on this machine: the FFN's three products for one token; the same for 256 tokens; attention
# of one token that sees 4,096? Then the toy's arithmetic answers, with your machine's two ceilings.
# They are measured now; a saved profile counts where it found more.

# %%
asked = {"FFN, 1 token": ("decode", "gate and up", "down"),
         "FFN, 256 tokens": ("prefill", "gate and up", "down"),
         "attention, 1 token sees 4,096": ("decode", "attention")}  # fmt: skip
mine = {name: guess(name, unit="ms") for name in asked}

# %% tags=["nbval-ignore-output"]
shape = SHAPES["1b"] | {"num_hidden_layers": 1, "vocab_size": 16384}  # a block, and a small head
config, card, saved = ModelConfig.from_dict(shape), not machine.emulated, Profile.here()
jobs = {"decode": (4095, 1), "prefill": (0, 256)}  # tokens in the cache, tokens that run
counted = {job: {op.name: op for op in operators(config, [start], [tokens])}
           for job, (start, tokens) in jobs.items()}  # fmt: skip
found = [memory.dram_bandwidth(), *compute.compute(machine.device, 1.5)]
found += links.cuda_memory(machine.device, 2.0) if card else memory.cache_bandwidths()
found += saved.measurements.values() if saved else []
ceilings = {one.name: one for one in sorted(found, key=lambda one: one.best)}  # the larger of two
profile = Profile(machine.describe(), "now", {}, ceilings)
size = sum(op.bytes for op in counted["decode"].values())  # caches may hold a part
bandwidth = ceilings["hbm.read"].best if card else profile.read_ceiling(size)
gemm = "cuda.gemm" if card else "gemm"
arithmetic = max(one.best for one in found if one.name.startswith(gemm))


def least(flops: float, nbytes: float) -> float:
    return max(nbytes / bandwidth, flops / arithmetic)


predicted = {}
for name, (job, *parts) in asked.items():
    work = [(counted[job][part].flops, counted[job][part].bytes) for part in parts]
    predicted[name] = 1e3 * sum(least(*each) for each in work)
    print(f"{name:30} at least {predicted[name]:6.2f} ms (predicted)")

# %% [markdown]
# ## Run
#
# Each operator by itself, in turns, so that none finds its weights in a cache. For the clock all
# weights may be alike. The engine's C multiplies few tokens, torch many. To time attention alone we
# take a block of width 16: its products all but vanish, its keys and values stay.

# %% tags=["nbval-ignore-output"]
def block_of(width: int):
    with torch.device("meta"):
        model = Llama(ModelConfig.from_dict(shape | {"hidden_size": width})).bfloat16()
    model.requires_grad_(False).to_empty(device=machine.device)
    for weight in model.parameters():
        weight.fill_(0.01)
    model.prepare(4096, machine.device)
    return model, *install(model, torch.get_num_threads())  # and what computes it in C, if that can


def past(start: int, tokens: int):
    """The plan of a pass over a text whose beginning lies in the pages of a KV cache."""
    kv.release(0)
    kv.find(0, ())
    kv.reserve(0, start + tokens)
    kv.commit(0, [0] * start)
    return kv.plan(Step((0,), (start,), (tokens,), (1,)))


torch.set_grad_enabled(False)
(model, kernels, told), (thin, *_) = block_of(2048), block_of(16)
kv = PagedKV(thin.config, machine, torch.bfloat16)
kv.make_room([4096])

# %%
def calls(start: int, tokens: int) -> dict[str, list]:
    """What computes each operator of such a pass."""
    like = {"dtype": torch.float32 if machine.emulated else torch.bfloat16}

    def ones(tokens: int, width: int) -> torch.Tensor:
        return torch.ones(tokens, width, device=machine.device, **like)

    def product(linear, tokens: int = tokens):
        few, x = kernels and tokens <= kernels.most, ones(tokens, linear.weight.shape[1])
        norm = linear.weight[0]  # the C norms first; by what does not matter to the clock
        return lambda: kernels.multiply(x, linear, norm) if few else linear(x)

    (b,), x, y = model.blocks, ones(tokens, 2048), ones(tokens, 16)
    a, f, look, plan = b.self_attn, b.mlp, thin.blocks[0].attention_half, past(start, tokens)
    norms = b.input_layernorm, b.post_attention_layernorm, model.model.norm
    parts = {"qkv": (a.q_proj, a.k_proj, a.v_proj), "o": (a.o_proj,),
             "gate and up": (f.gate_proj, f.up_proj), "down": (f.down_proj,)}  # fmt: skip
    runs = {name: [product(linear) for linear in each] for name, each in parts.items()}
    runs["head"] = [product(model.head, 1)]  # it scores one token
    runs["attention"] = [lambda: look(y, thin.angles[plan.place], plan)]
    return runs | {"norms": [lambda norm=norm: norm(x) for norm in norms]}

# %% [markdown]
# Of each we keep the least time, as of a ceiling the best: what disturbs a run makes it longer. The
# products also for a growing batch, one token a text, batches in turns. And a ceiling is what
# no run beats: one that was beaten, since it was measured in a busy moment or in another way, is
# raised to what was reached. Then your guesses. What we predict is the least time: what a run takes
# beyond it, our two counts do not see.

# %% tags=["nbval-ignore-output"]
def fastest(runs: dict[str, list], rounds: int) -> dict[str, float]:
    ways = {name: lambda fs=fs: ([f() for f in fs], machine.sync()) for name, fs in runs.items()}
    return {name: min(seconds) for name, seconds in compare(ways, rounds).seconds.items()}


took = {job: fastest(calls(*of), 60 if of[1] == 1 else 6) for job, of in jobs.items()}
dots = {job: {name: (op.flops, op.bytes, took[job][name]) for name, op in counted[job].items()}
        for job in jobs}  # fmt: skip
of = {}
for some, rounds in (((2, 4, 8, 16, 32), 16), ((64, 128), 4)):
    growing = {(batch, name): run for batch in some for name, run in calls(0, batch).items()
               if name in weights}  # fmt: skip
    of |= fastest(growing, rounds)
for batch, job in ((1, "decode"), (256, "prefill")):  # these ran already
    of |= {(batch, name): took[job][name] for name in weights}
nbytes, batches = sum(counted["decode"][name].bytes for name in weights), [2**n for n in range(9)]
swept = {batch: (nbytes * batch, nbytes, sum(of[batch, name] for name in weights))
         for batch in batches}  # fmt: skip

# %% tags=["nbval-ignore-output"]
every = [dot for of in (*dots.values(), swept) for dot in of.values()]
reached = [max(dot[i] / dot[2] for dot in every) for i in (1, 0)]  # bytes a second, FLOP a second
for name, was, now in zip(("memory", "arithmetic"), (bandwidth, arithmetic), reached, strict=True):
    if now > was:
        print(f"{name}: its ceiling of {was / 1e9:.1f} G/s was beaten, and is now {now / 1e9:.1f}")
bandwidth, arithmetic = max(bandwidth, reached[0]), max(arithmetic, reached[1])
for name, (job, *parts) in asked.items():
    measured = 1e3 * sum(took[job][part] for part in parts)
    reveal(mine[name], predicted=predicted[name], measured=measured)

# %% [markdown]
# ## Every operator under the roof
#
# Two counts predict an operator's place: its FLOP for each byte, and the roof above. The dot is
# measured. First one token, which sees 4,096: products stand at 1, attention at H ÷ K = 4, since
# four query heads share each key and value. Norms read almost nothing: what they take is their
# start. `head`, no head of attention, is the product that scores words. Then decode against
# prefill, where 256 tokens share one reading. Of attention's work, softmax and copying are timed
# but not counted.

# %% tags=["nbval-ignore-output"]
for name, (flops, nbytes, seconds) in dots["decode"].items():
    limit = "memory" if nbytes / bandwidth >= flops / arithmetic else "arithmetic"
    share = least(flops, nbytes) / seconds
    print(f"{name:11} {1e6 * seconds:6.0f} µs, {share:5.1%} of what {limit} allows")
charts.roofline(None, dots["decode"], bandwidth, arithmetic)

# %% tags=["nbval-ignore-output"]
both = {f"{job}: attention": dots[job]["attention"] for job in jobs}
for job in jobs:
    products = [dots[job][name] for name in weights]  # the four of the toy
    both[f"{job}: products"] = tuple(map(sum, zip(*products, strict=True)))
charts.roofline(None, both, bandwidth, arithmetic)

# %% [markdown]
# ## Build it: four tokens by hand
#
# The toy's block, with numbers of one digit. First rung: the norm brings a token's numbers to a
# common size; three products make queries, keys, values; the token's position turns each pair of
# numbers by an angle, so that q · k depends on how far apart two tokens are.

# %%
sizes = {"hidden_size": 4, "intermediate_size": 8, "num_attention_heads": 2}
tiny = ModelConfig.from_dict(shape | sizes | {"num_key_value_heads": 1, "head_dim": 2})
small, chance = Block(tiny, 0), torch.Generator().manual_seed(0)
for weight in small.parameters():
    weight.data = torch.randint(-5, 6, weight.shape, generator=chance) / 10
x = torch.randint(-5, 6, (4, 4), generator=chance) / 10  # four tokens of D numbers


def normed(x, norm):
    return x / (x.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight


def turned(pairs):  # (4 tokens, heads, 2): token p by p radians
    (a, b), p = pairs.unbind(-1), torch.arange(4.0)[:, None]
    return torch.stack((a * p.cos() - b * p.sin(), b * p.cos() + a * p.sin()), -1)


at, n = small.self_attn, normed(x, small.input_layernorm)
q = turned((n @ at.q_proj.weight.T).view(4, 2, 2))  # two query heads of two numbers
k = turned((n @ at.k_proj.weight.T).view(4, 1, 2))  # one kv head
v = (n @ at.v_proj.weight.T).view(4, 1, 2)
package = at.q_proj(small.input_layernorm(x)).view(4, 2, 2)
torch.testing.assert_close(q, rotate(package, rope_table(tiny, 4)))

# %% [markdown]
# ## Second rung, yours: who sees whom
#
# Every query meets every key; a mask says which of them count. In a packed step, of text i
# `starts[i]` tokens are in the cache and `counts[i]` run now. Queries are the tokens that run, text
# after text; keys are all tokens of each text, text after text. Return a row of bools for each
# query: it sees its own text, up to itself. With it a head is two lines, equal to the package's.

# %%
def mask(starts: list[int], counts: list[int]) -> list[list[bool]]:
    raise NotImplementedError  # or hint("30.2"); without you we go on with ours


mask = check("30.2", mask)

# %%
hidden = ~torch.tensor(mask([0], [4]))
scores = [(head @ k[:, 0].T / 2**0.5).masked_fill(hidden, -torch.inf) for head in q.unbind(1)]
seen = torch.stack([score.softmax(-1) @ v[:, 0] for score in scores], 1)
torch.testing.assert_close(seen, causal(0, q, k, v))
print("\n".join("".join(" ■"[sees] for sees in row) for row in mask([2, 0, 0], [1, 3, 2])))

# %% [markdown]
# The picture is a packed step: a decode step with two tokens in the cache, and two prompts. No
# text sees another.
#
# Third rung: the rest of the block. `o` mixes the heads, and what attention found is *added* to the
# token. Then the FFN, token by token, added too: up, weighted by gate, and down. If the cell is
# silent, the package's block gives the same.

# %%
y = x + seen.reshape(4, 4) @ at.o_proj.weight.T
n = normed(y, small.post_attention_layernorm)
gate, up = n @ small.mlp.gate_proj.weight.T, n @ small.mlp.up_proj.weight.T
y = y + (gate * gate.sigmoid() * up) @ small.mlp.down_proj.weight.T
torch.testing.assert_close(y, small(x, rope_table(tiny, 4), causal, identity))

# %% [markdown]
# ## The package: each weight once
#
# `Block` is those lines. At decode the engine runs them in C, so that each weight is read once.
# The loop: 16 numbers of each of four rows (`UNIT`), times C tokens, before it moves on. What lies
# `ahead` bytes on, the next four rows, is sent for in the order in which it lies. A `v8` is eight
# numbers at once.

# %%
code = SOURCE.read_text(encoding="utf-8")
begin = code.index("INLINE void tile(")
print(code[begin : code.index("\n}\n", begin) + 2])

# %% tags=["nbval-ignore-output"]
read = {name: nbytes / seconds for name, (_, nbytes, seconds) in dots["decode"].items()}
best = max(weights, key=read.get)
print(f"{best}, by {'the C' if kernels else told}: {read[best] / 1e9:.1f} GB/s, "
      f"{read[best] / bandwidth:.0%} of the ceiling of {bandwidth / 1e9:.1f} GB/s")  # fmt: skip

# %% [markdown]
# ## Counted, and predicted
#
# Now the whole model of the course, with two texts. Its trace counts the bytes of each pass. They
# equal what `operators` predicts; and six times your count, with the head and the last norm: to the
# byte. Then watch four prompts of some 400 tokens, and decode. Which half of a block takes longer,
# attention (with qkv and `o`) or the FFN? Say it for both kinds of pass, then run.

# %%
def halves(kind: str) -> str:
    """Of the time in blocks, what each half took, over all prompts or over all of decode."""
    decode = {event.step for event in engine.trace.select(name="decode step")}
    took = {half: sum(event.seconds for event in engine.trace.select(name=half)
                      if (event.step in decode) == (kind == "decode"))
            for half in ("attention", "ffn")}  # fmt: skip
    whole = sum(took.values()) or 1.0  # a card may run a step as one: then its halves have no time
    return f"{kind}: attention {took['attention'] / whole:.0%}, FFN {took['ffn'] / whole:.0%}"


engine = Engine.load("data/town", machine)
town, texts = engine.model_config, ["Mia put the red key in the box.", "Once Tom"]
engine.trace.clear()
engine.generate(texts, SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True))
starts, counts = [0, 0], [len(engine.tokenizer.encode(text)) for text in texts]
for event in [e for e in engine.trace.events if e.name in ("prefill", "decode step")]:
    lengths = [start + count for start, count in zip(starts, counts, strict=True)]
    block, head = sum(block_bytes(256, 832, 4, 2, 64, lengths)), 2 * (town.vocab_size * 256 + 256)
    told_by = sum(op.bytes for op in operators(town, starts, counts))
    assert event.nbytes == told_by == 6 * block + head
    starts, counts = lengths, [1, 1]
    print(f"{event.name:11}: {event.nbytes:,} bytes, counted = predicted")

# %% tags=["nbval-ignore-output"]
engine.trace.clear()
with charts.watch(engine.trace, "timeline"):
    stories = [f"{name} put the red key in the box. " * 45 for name in ("Mia", "Tom", "Eva", "Ben")]
    engine.generate(stories, SamplingParams(max_tokens=300, temperature=0.0, ignore_eos=True))
print(halves("prompts"), halves("decode"), sep="\n")

# %% [markdown]
# ## Turn the knob: the batch
#
# The products of the 1B block, each batch as it was measured; batch 1 and 256 are the decode and
# prefill of above. Dashed is predicted: products climb along the memory's roof until the ridge,
# attention stays at H ÷ K = 4. A dot far below its line is held by what no count knows: the
# kernel's own arithmetic, or other programs.

# %% tags=["nbval-ignore-output"]
def draw(batch: int = 1) -> charts.Chart:
    flops, nbytes, seconds = swept[batch]
    share, limit = least(flops, nbytes) / seconds, "memory"
    if flops / arithmetic > nbytes / bandwidth:
        limit = "arithmetic"
    roofs = {"products": lambda b: min(b * bandwidth, arithmetic),
             "attention": lambda b: min(4 * bandwidth, arithmetic)}  # fmt: skip
    return charts.curve(
        f"Batch {batch}: {flops / seconds / 1e9:,.0f} GFLOP/s, {share:.0%} of what {limit} allows",
        roofs, [2 ** (n / 4) for n in range(33)], x="batch: FLOP for each byte of weights",
        y="speed", unit="FLOP/s", at=batch, log="xy",
        points=[(b, flops / s, "") for b, (flops, _, s) in swept.items()],
        note=f"dashed: predicted · black: measured · the ridge is at {arithmetic / bandwidth:.0f}",
    )  # fmt: skip


knob(draw, batch=(1, 256))

# %% [markdown]
# ## What attention is for
#
# A question from `data/eval/skills.jsonl`, up to the word that answers it. The model takes a
# function for attention; ours keeps what each head of each layer looked at, with your mask. A
# *finder* is a head that gives more than half of the last token's attention to the fact. The
# picture shows the strongest: each row is a token that looks back, a dark cell what it looks at.

# %%
line = next(e for e in read_lines() if e.prompt.startswith("Ben's secret word is thunder"))
before, _, word = line.answer.rpartition(" ")
ids = engine.tokenizer.encode(line.prompt + before)
fact = ids.index(engine.tokenizer.encode(line.prompt + line.answer)[len(ids)])
print(line.prompt + before, "…")

# %% tags=["nbval-ignore-output"]
def keeps(layer, q, k, v):
    hidden = ~torch.tensor(mask([0], [len(q)]), device=q.device)
    scores = torch.einsum("thd,shd->hts", q, k.repeat_interleave(2, 1)) / 64**0.5
    looked[layer] = scores.masked_fill(hidden, -torch.inf).softmax(-1)  # (H, T, T)
    return causal(layer, q, k, v)


looked = {}
engine.model(torch.tensor(ids, device=machine.device), attend=keeps)
share = {(n, h): looked[n][h, -1, fact].item() for n in looked for h in range(4)}
finders = [place for place, found in share.items() if found > 0.5]
layer, head = max(share, key=share.get)
print("finders, as (layer, head):", finders)
tokens = [engine.tokenizer.decode([i]) or "start" for i in ids]
charts.heatmap(f"Layer {layer}, head {head}: the last token gives {share[layer, head]:.0%} of its "
               f"attention to {word.rstrip('.')!r}", looked[layer][head, -13:].tolist(),
               tokens[-13:], tokens, at=(12, fact), note="measured · town")  # fmt: skip

# %% [markdown]
# ## Break it
#
# Take heads away: what they found becomes zeros. First the one in the picture, then all finders,
# then as many of those that look at the fact least.

# %% tags=["nbval-ignore-output"]
def without(heads: list[tuple[int, int]]):
    def attend(layer, q, k, v):
        found = causal(layer, q, k, v)
        found[:, [head for n, head in heads if n == layer]] = 0.0
        return found

    return attend


def answer(heads: list[tuple[int, int]]) -> str:
    text = engine.tokenizer.encode(line.prompt)
    for _ in range(7):
        scores = engine.model(torch.tensor(text, device=machine.device), attend=without(heads))
        text.append(int(scores[-1].argmax()))
    return engine.tokenizer.decode(text[-7:]).rstrip()


others = sorted(share, key=share.get)[: len(finders)]
assert answer([]) == line.answer != answer(finders) and answer(finders).startswith(before)
for name, heads in {"nothing": [], "the picture's head": [(layer, head)],
                    "all finders": finders, "as many others": others}.items():  # fmt: skip
    print(f"without {name:18}:{answer(heads)}")

# %% [markdown]
# An answer that survives the loss of a head has others that do its work. Without all finders the
# sentence is still fluent: the model knows what an answer looks like, and cannot find this one. The
# FFN works on each token alone; attention brings the fact to where it is asked for.
#
# ## Where it loses
#
# A roofline knows bytes and FLOP, not starts, nor a kernel's pace. *town* is small, and may lie in
# a cache. What do its counts predict, and what did a decode step take?

# %% tags=["nbval-ignore-output"]
engine.generate("Mia", SamplingParams(max_tokens=100, ignore_eos=True))
step = min(engine.trace.select(name="decode step")[-99:], key=lambda event: event.seconds)
most = bandwidth if card else profile.read_ceiling(step.nbytes)  # a cache may hold it
print(f"{step.nbytes:,} bytes ÷ {most / 1e9:.0f} GB/s = {1e6 * step.nbytes / most:.0f} µs "
      f"(predicted); the shortest of 99 took {1e6 * step.seconds:.0f} µs (measured)")

# %% [markdown]
# And batching has a limit of its own: the longer the texts, the more of a step is attention, which
# no batch shares.
#
# ## On paper: 70B on eight H100
#
# Llama-3-70B has `weights` numbers of 2 bytes; each text has `kv` bytes of keys and values, and
# attention does `group` = H ÷ K FLOP for each of these. Products and attention run one after the
# other. How long does a decode step of `batch` texts take, at least?

# %%
def step_seconds(weights, kv, group, batch, bandwidth, flops) -> float:
    raise NotImplementedError  # bytes a second, FLOP a second; or hint("30.3")


step_seconds = check("30.3", step_seconds)

# %%
server = 8 * HARDWARE["H100"].hbm_bandwidth, 8 * HARDWARE["H100"].bf16_flops
for context in (1_000, 8_000, 24_000):
    whole, alone = (step_seconds(n, 327_680 * context, 8, 64, *server) for n in (70_600_000_000, 0))
    print(f"64 texts of {context:6,} tokens: {1e3 * whole:5.1f} ms, {alone / whole:4.0%} attention")

# %% [markdown]
# ## Five questions
#
# Answer each in your head, then open it. Then three takeaways, with the numbers of your run.

# %% tags=["folded"]
recall(
    ("A product with a weight, one token: how many FLOP for each byte? With 16 texts?",
     "1, and 16: all texts share one reading of the weight."),
    ("Attention at decode: how many FLOP for each byte, and what does the batch change?",
     "H ÷ K with bf16, whatever the batch: each text reads keys and values of its own."),
    ("Why does the FFN of a block take longer than `o` at decode?",
     "It has more bytes: three matrices of D · I against one of H · E · D."),
    ("The embedding and the head are tables of the same size. Which of them is read whole?",
     "The head: it scores all words. Of the embedding a pass looks up one row a token."),
    ("You take away one head, and the answer stays right. Is the head useless?",
     "No: others may do the same work. Take them all, and see."),
)

# %% tags=["nbval-ignore-output", "folded"]
ffn = sum(counted["decode"][name].bytes for name in ("gate and up", "down"))
print(f"1. The FFN holds {ffn / swept[1][1]:.0%} of the block's weights: most of a token's bytes.")
print(f"2. The ridge: {arithmetic / bandwidth:.0f} texts together reach it; attention stays at 4.")
print(f"3. {best} ran at {read[best] / bandwidth:.0%} of memory's ceiling; bytes are as predicted.")
guesses()

# %% [markdown]
# **Next:** `31_kv_cache`. Decode looks at keys and values that are there already. Why keep them,
# and what do they cost?
