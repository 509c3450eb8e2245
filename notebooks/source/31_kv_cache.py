# %% [markdown]
# # 31 · Why does decode need a cache?
#
# <img src="images/strip_model.png" width="672" alt="The five stages of the course. You are here:
# 3 model and KV cache, ids become scores.">
#
# A new token looks back on all tokens before it. What it needs of them can be computed anew each
# time, or kept. What does keeping save, what does it not save, and what does it cost? *Fifty
# minutes; the code behind it: [`kv/contiguous.py`](../minillm/kv/contiguous.py),
# [`kv/plan.py`](../minillm/kv/plan.py), [`kv/attention.py`](../minillm/kv/attention.py),
# [`predict/sizes.py`](../minillm/predict/sizes.py).*

# %% tags=["nbval-ignore-output"]
import inspect
import time
from collections import Counter
from dataclasses import replace
from statistics import median

import torch
from torch.nn.functional import scaled_dot_product_attention

from minillm import Engine, EngineConfig, Machine, ModelConfig, SamplingParams, charts, predict
from minillm.kv import ContiguousKV, Plan, Step, drop_oldest
from minillm.lesson import check, guess, guesses, hint, knob, recall, reveal

machine = Machine.here(hbm="1 GiB")
print(machine.describe())

# %% [markdown]
# Six words:
#
# - **query**, **key**, **value**: numbers that a layer makes of each token. A query times a key, a
#   *dot product*, says how much of that token's value is taken.
# - **KV cache**: keys and values of a text, kept in HBM; *KV reserved*: room set aside for more.
# - **context**: the tokens that a query sees, its own included.
# - **KV head**: a layer looks back in H ways at once, its *query heads*. They share K KV heads,
#   sets of keys and values.
#
# *Prefill*, *decode step*: as in lesson 02.

# %% [markdown]
# ## A clerk and his notes
#
# For each word that he writes, a clerk reads a rule book of 60 pages, and all his notes: 2 pages
# for each word so far. He reads 10 pages a minute. How long does he take for word 1, 30, 120?

# %%
def minutes(word: int, book: float = 60, note: float = 2, pages_a_minute: float = 10) -> float:
    return (book + note * word) / pages_a_minute

print({word: minutes(word) for word in (1, 30, 120)})

# %% [markdown]
# At word 30 the notes are as long as the book, at word 120 they are most of the work. Book:
# *weights*. Notes: *KV cache*. Pages: bytes. **(weights + bytes a token · context) ÷ bandwidth.**
#
# ## Predict
#
# A model has 36.6 MB of weights, and 9,216 bytes of cache a token: SmolLM2-135M cut to 4 layers,
# with a KV head for each query head. How long does this machine take for a token at these contexts?
# Lesson 01 showed you its bandwidth. (Without that profile the second cell measures one: 20 s.)

# %%
contexts = (128, 2048, 6144)
mine = {n: guess(f"a token, context {n:,}", unit="ms") for n in contexts}

# %% tags=["nbval-ignore-output"]
from minillm.files import temporary_folder
from minillm.machine.disk import writable_folder
from minillm.probe import Profile, probe
from minillm.tools.make_checkpoint import SHAPES, make_checkpoint

profile = Profile.here() or probe(seconds=10)
here = profile.hardware(machine.device.type)
shape = SHAPES["135m"] | {"num_hidden_layers": 4, "num_key_value_heads": 9, "vocab_size": 4096}
with temporary_folder(writable_folder()) as folder:
    make_checkpoint(shape, f"{folder}/model")
    large = Engine.load(f"{folder}/model", Machine.here(hbm="1 GiB"))
floor = {n: predict.decode_step(large.model_config, here, 1, n) for n in contexts}
for n, step in floor.items():
    print(f"context {n:5,}: {step.bytes / 1e6:4.1f} MB ÷ {here.hbm_bandwidth / 1e9:.0f} GB/s = "
          f"{1e3 * step.seconds:5.2f} ms (predicted)")  # fmt: skip

# %% [markdown]
# ## Run
#
# A prefill of 6,144 tokens would take this machine long. The time of a step depends on how many
# numbers there are, and not on which. So we take a cache of the package and fill it with random
# ones; then one token at each context in turn, for five seconds. A ceiling is the best that the
# probe saw; so beside it we set the best round, which other programs disturbed least.

# %% tags=["nbval-ignore-output"]
kv = ContiguousKV(large.model_config, large.machine, torch.bfloat16, capacity=6144, requests=1)
kv.find(0, [])  # request 0 comes in, with a text of which nothing is known
assert kv.reserve(0, stop=6144)
for keys_and_values in kv.resident:  # of each layer
    keys_and_values.normal_()
large.model.prepare(6144, large.machine.device)


@torch.no_grad()
def a_step(context: int) -> float:
    """Seconds of a decode step that sees so many tokens."""
    kv.commit(0, range(context - 1))  # so many are in the cache, and one comes
    plan = kv.plan(Step(requests=(0,), starts=(context - 1,), counts=(1,), wanted=(1,)))
    began = time.perf_counter()
    large.model(plan.ints([7]).long(), plan.place, attend=plan)
    large.machine.sync()
    return time.perf_counter() - began

rounds, end = [], time.perf_counter() + 5
while time.perf_counter() < end:
    rounds.append([a_step(n) for n in contexts])
took = dict(zip(contexts, zip(*rounds, strict=True), strict=True))
best = {n: min(times) for n, times in took.items()}
for n in contexts:
    reveal(mine[n], predicted=1e3 * floor[n].seconds, measured=1e3 * best[n])

# %% tags=["nbval-ignore-output"]
off = {n: best[n] / floor[n].seconds - 1 for n in contexts}
noise = max(median(took[n]) / best[n] for n in contexts)
print(f"best of {len(rounds)} rounds:", ", ".join(f"{off[n]:+.0%} at {n:,}" for n in contexts))
print("Bytes alone explain every step to within 25 %." if max(map(abs, off.values())) <= 0.25
      else "Here bytes do not explain every step to within 25 %: see below.",
      f"A median round took up to {noise:.1f} × the best.")  # fmt: skip
least, *_, most = contexts
more, longer = floor[most].bytes - floor[least].bytes, best[most] - best[least]
charts.curve(
    f"{most - least:,} tokens more: {more / 1e6:.0f} MB in {1e3 * longer:.1f} ms, "
    f"{100 * more / longer / here.hbm_bandwidth:.0f} % of the ceiling",
    {"": lambda n: predict.decode_step(large.model_config, here, 1, int(n)).seconds},
    range(64, 6145, 160), x="context (tokens)", y="a token", unit="s", log="",
    note="line: predicted; points: measured, the best round",
    points=[(n, best[n], f"{1e3 * best[n]:.1f} ms") for n in contexts])

# %% [markdown]
# The line is straight: every token of context costs the same bytes. The title takes the shortest
# context from the longest. A point above the line paid for more than bytes: other programs, if a
# median round took twice the best. Below it, a processor's cache helped.
#
# ## First rung: keep nothing
#
# *town*, the model of this course, in float32. `attend` is given from outside: it gets a layer's
# queries, keys, values. Ours counts dot products; a hook counts tokens that pass the projections,
# the products that make these.

# %%
from minillm.model.attention import causal

plain = EngineConfig(dtype="float32", kv="contiguous", kernels="torch")
exact, count = Engine.load("data/town", machine, plain), Counter()
attention = exact.model.blocks[0].self_attn  # each layer does the same: one is enough
attention.register_forward_hook(lambda module, given, out: count.update(passes=len(out)))


def anew(layer, q, k, v):
    """The model's default, which needs the whole text; counted."""
    count.update(dots=int(torch.ones(len(q), len(k)).tril().sum()) if layer == 0 else 0)
    return causal(layer, q, k, v)

# %% [markdown]
# By hand, a text of 4 tokens, one more a pass. Tokens through the projections: 1 + 2 + 3 + 4 =
# 10. Dot products: a text of n tokens takes 1 + … + n, so 1 + 3 + 6 + 10 = 20. In general
# **N(N+1)/2** and **N(N+1)(N+2)/6**. The model writes, and we count:

# %%
from minillm.machine.host import torch_threads


@torch.no_grad()
@torch_threads(1)  # small products: a second thread would mostly wait
def write(model, text, passes, attend, cache):
    """Greedy: `text` with `passes` tokens more, and the scores of each pass."""
    ids, scores, start = list(text), [], 0
    for _ in range(passes):
        new = torch.tensor(ids[start:], device=machine.device)
        places = torch.arange(start, len(ids), device=machine.device)
        scores.append(model(new, places, attend)[-1])
        start = len(ids) if cache else 0
        ids.append(int(scores[-1].argmax()))
    return ids, torch.stack(scores)


N, begin = 100, exact.tokenizer.encode("The", add_special=False)  # one token
count.clear()
exact.model.prepare(512, machine.device)
text, scores = write(exact.model, begin, N, anew, cache=False)
assert count == {"passes": N * (N + 1) // 2, "dots": N * (N + 1) * (N + 2) // 6}
print(f"keeping nothing: {count['passes']:,} tokens projected, {count['dots']:,} dot products")

# %% [markdown]
# ## Second rung, yours: append
#
# Old tokens do not see new ones, so their keys and values stay as they are. Keep them. Given those
# so far, and those of the T new tokens: return all keys, all values, and what each new token sees,
# a tensor of T rows with `True` or `False` for each token of the text. Your lines become an
# `attend` with a memory. (A key has its position turned in when it comes: an old one needs nothing
# more.)

# %%
def extend(past, k, v):  # past: None, or (keys, values); a row a token
    raise NotImplementedError  # return keys, values, sees; hint("31.1") helps

extend = check("31.1", extend)

# %%
def appending():
    """An `attend` that keeps the keys and values of one text."""
    past = {}

    def attend(layer, q, k, v):
        *past[layer], sees = extend(past.get(layer), k, v)
        count.update(dots=int(sees.sum()) if layer == 0 else 0)
        heads = [t.transpose(0, 1)[None] for t in (q, *past[layer])]  # (1, heads, tokens, size)
        out = scaled_dot_product_attention(*heads, sees.to(q.device), enable_gqa=True)
        return out[0].transpose(0, 1)

    return attend


count.clear()
same, close = write(exact.model, begin, N, appending(), cache=True)
assert same == text and torch.allclose(close, scores, atol=1e-5 * float(scores.abs().max()))
assert count == {"passes": N, "dots": N * (N + 1) // 2}
print(f"appending: {count['passes']:,} tokens projected, {count['dots']:,} dot products; same text")

# %% [markdown]
# Two counters, two answers. **Projections**, and the *FFN*, what a layer does to each token by
# itself: from N(N+1)/2 to N; each token passes once. **Dot products**: the repetition is gone, and
# N(N+1)/2 stay. Token n looks at n tokens, with a cache too. It saves the work *on* old tokens, not
# the looking back.
#
# ## Third rung: the package
#
# Its `attend` is a `Plan`. It knows from a `Step` which tokens are new, and from the cache where
# the old ones lie.

# %%
print("Plan.__call__:", inspect.getsource(Plan.__call__).split('"""')[-1].rstrip())
told = exact.generate([begin], SamplingParams(max_tokens=N, temperature=0.0))[0]
assert list(told.token_ids) == text[1:]
likely = scores.log_softmax(-1).amax(-1).cpu()  # of each token that was chosen
assert torch.allclose(torch.tensor(told.logprobs), likely, atol=1e-3)

# %% [markdown]
# ## The first token that flips
#
# In float32 the scores agree to some 1 in a million. In bf16, the type of most deployments, a
# number keeps 8 binary digits. With a cache the same products are added up in another order, so the
# last digit may differ. How long do the texts agree? (Three texts, 40 tokens each.)

# %% tags=["nbval-ignore-output"]
half = Engine.load("data/town", machine, EngineConfig(dtype="bfloat16", kernels="torch"))
model, decode = half.model, half.tokenizer.decode
model.prepare(512, machine.device)
model.embed = lambda ids: type(model).embed(model, ids).bfloat16()  # all of it in bf16, as on a GPU
flips = []
for opening in ("Mia put the red key", "Once upon a time", "Ben went to the river because"):
    ids = half.tokenizer.encode(opening)
    whole, kept = (write(model, ids, 40, how, cache=how != anew) for how in (anew, appending()))
    flips += [(i, whole, kept) for i in range(len(whole[0])) if whole[0][i] != kept[0][i]][:1]

# %% tags=["nbval-ignore-output"]
for at, *ways in flips[:1]:
    for ids, rows in ways:
        told = [f"{decode([i[at]])!r} {float(rows[at - len(i)][i[at]]):.3f}" for i, _ in ways]
        print(f"… {decode(ids[at - 9 : at + 3])!r}; scores: {', '.join(told)}")
print(f"{len(flips)} of 3 texts part." + " Above: one of them, anew, and kept." * bool(flips))

# %% [markdown]
# Where texts part, neither is the wrong one: two words score almost alike, and the last digit
# chooses. So "a cache changes nothing" is tested in float32; in bf16 equal *words* are luck.
#
# ## Prefill against decode
#
# A prompt's tokens pass together and fill the cache; then it is one token a pass. What the engine's
# trace counts, byte for byte as predicted; and then four texts at once, each with a cache of its
# own:

# %% tags=["nbval-ignore-output"]
settings = EngineConfig(kv_hbm="8 MiB", prefix_cache=False)  # each run reads its prompt
engine = Engine.load("data/town", Machine.here(hbm="64 MiB"), settings)
prompt, shape = "Mia put the red key in the box. " * 30, engine.model_config
for _ in range(2):  # the first time warms up
    engine.trace.clear()
    n = engine.generate(prompt, SamplingParams(16, temperature=0.0))[0].prompt_tokens
first, *steps = engine.trace.select(name="prefill") + engine.trace.select(name="decode step")
ahead = [predict.prefill(shape, here, tokens=n)]
ahead += [predict.decode_step(shape, here, 1, n + 1 + i) for i in range(len(steps))]
assert [e.nbytes for e in (first, *steps)] == [p.bytes for p in ahead]
for event, p, tokens in ((first, ahead[0], n), (steps[-1], ahead[-1], 1)):
    print(f"{event.name}, tokens {tokens}: {event.nbytes:,} bytes, {p.flops / p.bytes:.1f} FLOP a "
          f"byte; {1e6 * event.seconds / tokens:.0f} µs a token (measured)")  # fmt: skip

# %% tags=["nbval-ignore-output"]
texts = ["Mia put the red key", "Once upon a time", "Ben went to the river", "Nora was happy"]
wild = [SamplingParams(max_tokens=320, temperature=1.0, seed=seed) for seed in range(4)]
with charts.watch(engine.trace, "machine", "memory"):
    engine.generate(texts, wild)

# %% [markdown]
# Both read all weights once; a prefill shares them among its tokens. In the pictures the KV cache
# grows with each token of each text, within the 8 MiB set aside, and comes free when a text ends.
#
# ## Exercise 2: bytes a token, from config.json
#
# Each layer keeps for each token a key and a value in every KV head, 2 bytes a number. A config may
# leave out `num_key_value_heads` (each query head has its own) and `head_dim` (width ÷ query
# heads).

# %%
def token_bytes(config: dict) -> int:
    raise NotImplementedError  # of the names in config.json; hint("31.2") helps

token_bytes = check("31.2", token_bytes)

# %% [markdown]
# Real models, and a riddle. In print one finds 512 MiB, 640 MiB and 10 GiB for 4,096 tokens of
# Llama-3-70B; and for one token of Qwen3-0.6B 57,344 bytes, of Qwen3-4B 92,160. Which of the five
# are right? What was counted in the others?

# %%
sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
         "num_attention_heads", "num_key_value_heads", "head_dim")  # fmt: skip
files = {"Llama-2-7B": (32000, 4096, 11008, 32, 32, None, None),
         "Llama-3-8B": (128256, 4096, 14336, 32, 32, 8, None),
         "Llama-3-70B": (128256, 8192, 28672, 80, 64, 8, None),
         "Qwen3-0.6B": (151936, 1024, 3072, 28, 16, 8, 128),
         "Qwen3-4B": (151936, 2560, 9728, 36, 32, 8, 128)}  # fmt: skip
files = {name: {size: figure for size, figure in zip(sizes, figures, strict=True) if figure}
         for name, figures in files.items()}  # fmt: skip
models = {name: ModelConfig(**file, dtype="bfloat16") for name, file in files.items()}
cost = {name: predict.kv_bytes_per_token(model) for name, model in models.items()}
assert cost == {name: token_bytes(file) for name, file in files.items()}
for name, a_token in cost.items():
    print(f"{name:11} {a_token:7,} bytes a token, {4096 * a_token / 2**20:5,.0f} MiB for 4,096")

# %% tags=["folded"]
recall(
    ("512 MiB?", "That is Llama-3-8B: 131,072 bytes a token."),
    ("640 MiB?", "Keys only. The values are as many bytes again: 1,280 MiB, 1.34 GB."),
    ("10 GiB?", "All 64 query heads were counted; they share 8 KV heads."),
    ("57,344 and 92,160?", "hidden_size ÷ heads was taken for `head_dim`, which Qwen3 names: 128."))

# %% [markdown]
# None of the five is right.
#
# ## Turn the knob: users and context
#
# Each user brings a cache. The ceiling is all of the HBM of an H100, with no weights in it. How far
# does each model get? Which one is dearest, and which small one is dear?

# %% tags=["nbval-ignore-output"]
h100 = predict.HARDWARE["H100"]


def draw(users: int = 8, context: int = 8192) -> charts.Chart:
    lines = {name: lambda tokens, each=each: users * each * tokens / 1e9
             for name, each in cost.items() if name != "Qwen3-4B"}  # fmt: skip
    return charts.curve(
        f"{users} × {context:,} tokens: Llama-3-70B keeps {lines['Llama-3-70B'](context):,.1f} GB",
        lines, [2 ** (i / 2) for i in range(14, 35)], x="context (tokens)", y="KV cache",
        unit="GB", at=context, log="xy", span=(1e-2, 1e4), ceiling=h100.hbm_bytes / 1e9)


knob(draw, users=(1, 64), context=(128, 131072))

# %% [markdown]
# Llama-2-7B is the dearest, with 32 KV heads. The small one is Qwen3-0.6B: a token costs 7/8 of
# Llama-3-8B's bytes. (Qwen3-4B, just above that one, is left out.)
#
# ## Fewer KV heads: GQA
#
# What if Llama-3-8B had a KV head for each of its 32 query heads, or one for all? In *grouped-query
# attention* H/K query heads look at the same keys, which are read once.

# %%
for heads in (32, 8, 1):
    other = replace(models["Llama-3-8B"], num_key_value_heads=heads)
    attention = {op.name: op for op in predict.operators(other, [8191], [1])}["attention"]
    print(f"K = {heads:2}: {attention.bytes / 8192:7,.0f} bytes a token, "
          f"{attention.intensity:2.0f} FLOP a byte at decode")  # fmt: skip

# %% [markdown]
# Attention's intensity at decode is H/K, and no batch changes it: no two texts share a cache.
# (Those that begin alike can: lesson 32.) An H100's ridge is at 295: memory sets the time of all
# three.
#
# ## Break it: forget the oldest
#
# Could a full cache drop its oldest half? Twelve questions on a code early in the prompt, twelve on
# one late in it. `forget` names the positions that nobody sees any more. Many models rest their
# attention on the first, so one way keeps it.

# %% tags=["nbval-ignore-output"]
from minillm.tools.evaluate import beyond_half, evaluate, read_lines

early = beyond_half(engine, read_lines())[:12]  # the code stands in the older half
late = [line._replace(prompt="It was time for tea. " * 12 + line.prompt) for line in early]
ways = {"nothing": None, "the oldest half": lambda tokens: range(tokens // 2),
        "that, but not token 0": drop_oldest(0.5)}  # fmt: skip
right = {way: [evaluate(engine, lines, forget=rule) for lines in (early, late)]
         for way, rule in ways.items()}  # fmt: skip
for way, (old, new) in right.items():
    print(f"forget {way:23}: code early {old}, code late {new} right")
assert right["the oldest half"][0].right < right["nothing"][0].right
wrong = next(result for result in right["the oldest half"][0] if not result.right)
print(f"{wrong.line.prompt} → {wrong.text}")

# %% [markdown]
# Where the last two rows agree, this small model does not lean on its first token, as large ones do
# (Xiao et al., 2023). Read the answer again: a whole sentence, and its code is made up. Nothing in
# it tells. What is forgotten is gone, however well the rest reads.
#
# ## Where it loses: HBM
#
# With users and context the cache grows until the weights are the small part. Llama-3-70B on four
# H100:

# %%
for batch, context in ((1, 8192), (64, 8192), (8, 131072)):
    held = predict.plan(models["Llama-3-70B"], h100, batch=batch, context=context, gpus=4)
    print(f"{batch:2} × {context:7,} tokens: {held.devices['hbm:0']['kv'] / 1e9:5.1f} of "
          f"{held.used('hbm:0') / 1e9:5.1f} GB a GPU are cache: "
          f"{'fits' if held.fits else 'does not fit'} (predicted)")  # fmt: skip

# %% [markdown]
# ## Exercise 3: users of a server, on paper
#
# `gpus` GPUs of `hbm` bytes share the weights evenly, and the KV heads as wholes: with more GPUs
# than heads, a head lies on several. Each user has a prompt and gets an answer. How many fit at
# once, when all answers are at their end? Numbers have 2 bytes.

# %%
def users(hbm, gpus, weights, layers, heads, size, prompt, answer) -> int:
    raise NotImplementedError  # weights: bytes; heads: KV heads; size: of a head; or hint("31.3")

users = check("31.3", users)

# %%
for gpus in (4, 8, 16):
    fit = users(80e9, gpus, 141.1e9, 80, 8, 128, prompt=6000, answer=2000)
    print(f"Llama-3-70B, {gpus:2} H100, 8,000 tokens each: {fit} users (predicted)")

# %% [markdown]
# With 16 GPUs each of the 8 heads lies twice. How many users would two servers of 8 hold?
#
# ## Five questions
#
# Answer each in your head, then open it.

# %% tags=["folded"]
recall(
    ("A text of 1,000 tokens, with a cache. How often did token 1 pass the projections?",
     "Once, in the first pass. Keeping nothing, 1,000 times."),
    ("What does the cache not save?",
     "The looking back: token n takes n dot products in each head, with a cache too."),
    ("A test in bf16 finds other words with a cache than without. Is the cache wrong?",
     "Not for that: sums in another order differ in the last digit. Test it in float32."),
    ("What of a config.json gives the bytes of a token?",
     "2 · layers · KV heads · head_dim (if it is named) · the bytes of a number."),
    ("A batch shares the reading of the weights. Why not that of the cache?",
     "Each text has keys and values of its own, so those bytes grow with the batch."),
)

# %% [markdown]
# ## Three takeaways, with the numbers of your run, and your guesses

# %% tags=["nbval-ignore-output", "folded"]
print(f"1. {N} tokens: {N * (N + 1) // 2:,} pass the projections if nothing is kept, {N} with a "
      f"cache; {N * (N + 1) // 2:,} dot products stay.")  # fmt: skip
print(f"2. A token of Llama-3-70B costs {cost['Llama-3-70B']:,} bytes in the cache.")
print(f"3. (weights + cache) ÷ bandwidth: at {most:,} tokens {1e3 * floor[most].seconds:.1f} ms "
      f"predicted, {1e3 * best[most]:.1f} ms measured at best.")  # fmt: skip

# %%
guesses()

# %% [markdown]
# **Next:** `32_kv_pages`. One block as long as the longest text is mostly empty while texts are
# short. What if the cache came in pages?
