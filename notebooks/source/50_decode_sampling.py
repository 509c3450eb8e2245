# %% [markdown]
# # 50 · How is the next word chosen?
#
# <img src="images/strip_decode.png" width="672" alt="The five stages of the course. You are here:
# 5 decode, scores become text.">
#
# The model has given 4,096 scores, one for each token it knows. Somebody must choose. Which tokens
# may come, how often, and how do we find out that a sampler does it wrong? *Forty-five minutes; the
# code behind it: [`decode/sampling.py`](../minillm/decode/sampling.py),
# [`engine/chooser.py`](../minillm/engine/chooser.py).*

# %% tags=["nbval-ignore-output"]
import inspect
import json
import math
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from IPython.display import display

from minillm import Engine, EngineConfig, Machine, SamplingParams, charts
from minillm.decode.sampling import draw, filtered, generator, penalized, probabilities
from minillm.lesson import check, guess, guesses, hint, knob, recall, reveal

print((machine := Machine.here(hbm="64 MiB")).describe())

# %% [markdown]
# Six words:
#
# - **logit**: the model's score of a token; e to its power is the token's weight.
# - **softmax**: each weight by the sum of all; then they are chances.
# - **temperature**: T divides the logits, before softmax. **Greedy**, T = 0, takes the likeliest.
# - **top-p**: keeps the likeliest tokens that together reach p. Its kin are top-k and min-p.
# - **seed**: a number that all chance of a request comes from.
# - **entropy**: how unsure the model is, in bits; 3 bits are eight words that are equally likely.

# %% [markdown]
# ## Seven orders
#
# A guest had tea 4 times, milk twice, water once. The waiter draws by these weights: tea at 4 of 7.
# Logits are logarithms of weights, so **temperature T raises each weight to 1 ÷ T**: T = ½ squares
# them, 16 : 4 : 1; T = 2 takes roots.
#
# **Top-p keeps a drink if the likelier ones together have less than p.** At p = 0.75: before tea
# comes 0, before milk 4/7, before water 6/7. So water is out; the others share anew, 4 : 2. Milk,
# which crosses p, stays.

# %%
def weigh(weights: list, T: float = 1, p: float = 1) -> list:
    """Chances after temperature, and then top-p. The largest weight comes first."""
    warm = [weight ** (1 / T) for weight in weights]
    chances, before, kept = [weight / sum(warm) for weight in warm], 0.0, []
    for chance in chances:
        kept.append(chance if before < p else 0.0)
        before += chance
    return [chance / sum(kept) for chance in kept]

# %%
for T, p in ((1, 1), (0.5, 1), (2, 1), (1, 0.75), (0.5, 0.75)):
    print(f"T = {T}, p = {p}:", " ".join(f"{chance:.0%}" for chance in weigh([4, 2, 1], T, p)))

# %% [markdown]
# In the last line tea alone is left: squared, it has 16 of 21, and that is more than p.
#
# ## Predict
#
# *In the morning* … what comes next? Here are the model's own chances. `logprobs` asks the engine
# for the logarithms of as many as we like: here of all.

# %%
engine = Engine.load("data/town", machine, EngineConfig(dtype="float32"))
V, word, morning = engine.model_config.vocab_size, engine.tokenizer.decode, "In the morning"


def own(prompt: str) -> dict:
    """Each token's log-probability, the likeliest first."""
    first = SamplingParams(max_tokens=1, temperature=0.0, logprobs=V)
    return engine.generate(prompt, first)[0].top_logprobs[0]

# %%
likely = {word([token]): math.exp(x) for token, x in own(morning).items()}
print(", ".join(f"{name!r} {chance:.1%}" for name, chance in list(likely.items())[:8]))

# %% [markdown]
# Four hundred requests ask for one word each, with seeds 0 to 399. How many get the comma?

# %%
cold = guess("commas of 400, T = 0.5", unit="commas")
hot = guess("commas of 400, T = 2", unit="commas")
cut = guess("commas of 400, T = 1, top-p 0.5", unit="commas")

# %% [markdown]
# ## Run
#
# The prediction is the waiter's arithmetic, with 4,096 weights instead of three. Chance has its
# share, too: of n draws with chance c the count strays by √(n · c · (1 − c)), and hardly ever by
# four times that.

# %%
def commas(n: int = 400, **asked) -> int:
    params = [SamplingParams(max_tokens=1, seed=seed, **asked) for seed in range(n)]
    return [done.text for done in engine.generate([morning] * n, params)].count(",")

# %% tags=["nbval-ignore-output"]
weights = list(likely.values())
for mine, T, p in ((cold, 0.5, 1.0), (hot, 2.0, 1.0), (cut, 1.0, 0.5)):
    chance, came = weigh(weights, T, p)[0], commas(temperature=T, top_p=p)
    reveal(mine, predicted=400 * chance, measured=came)
    assert abs(came - 400 * chance) < 4 * math.sqrt(400 * chance * (1 - chance))

# %% [markdown]
# ## Turn the knobs
#
# The same prompt. Dashed: the model's own chances. Solid: what is left for a draw. Watch the
# sliders move; then they are yours. At which temperature is the comma no more likely than all the
# tokens that are not shown?

# %% tags=["nbval-ignore-output"]
ids = list(own(morning))
scores = torch.tensor([list(own(morning).values())]).double()  # (1, V), the likeliest first
names = [repr(word([token])) for token in ids[:11]]


def bars_of(chances: torch.Tensor) -> dict:
    shown = dict(zip(names, chances[0].tolist(), strict=False))
    return shown | {"all others": max(0.0, 1 - sum(shown.values()))}


def draw_bars(temperature=1.0, top_p=1.0):
    left = probabilities(scores, [SamplingParams(temperature=temperature, top_p=top_p)])
    finding = f"T = {temperature}, p = {top_p}: {int((left > 0).sum()):,} of {V:,} tokens may come"
    return charts.bars(finding, bars_of(left), before=bars_of(scores.exp()))


turned = knob(draw_bars, temperature=[0.2, 0.4, 0.7, 1.0, 1.5, 2.0, 2.5],
              top_p=[0.05, 0.3, 0.5, 0.6, 0.8, 0.9, 0.95, 1.0])  # fmt: skip
shown = display(turned, display_id=True)
for name, values in (("temperature", (0.4, 0.7, 1.5, 2.0, 1.0)), ("top_p", (0.9, 0.6, 0.8))):
    for value in values:
        turned.sliders[name].value = value
        time.sleep(0.15)
shown.update(turned)

# %% [markdown]
# ## First rung: weights, and a draw
#
# Lay the chances side by side, in the order of ids: a stick from 0 to 1. A number u between 0 and 1
# falls on one of them. That is all chance there is: one number a token. T = 0 would divide by zero,
# so greedy goes its own way: the largest logit, the first of equals.

# %%
def warm(logits: list, T: float) -> list:
    most = max(logits)  # taken off first: e to the power of 1,000 is no number
    weights = [math.exp((logit - most) / T) for logit in logits]
    whole = sum(weights)
    return [weight / whole for weight in weights]


def pick(chances: list, u: float) -> int:
    end = 0.0
    for token, chance in enumerate(chances):
        end += chance
        if u < end:
            return token


for T in (0.5, 1.0, 2.0):
    mine = warm(scores[0].tolist(), T)
    theirs = probabilities(scores, [SamplingParams(temperature=T)])
    assert torch.allclose(torch.tensor(mine).double(), theirs[0])
    for seed in range(50):
        u = torch.rand((), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert pick(mine, u) == draw(theirs, [torch.Generator().manual_seed(seed)])
print("the package's chances, and its draws: 150 of 150")

# %% [markdown]
# ## Second rung, yours: top-p
#
# `probs[i]` is the chance of token i. Return the ids that stay, in ascending order. A token stays
# if those *before* it, the likelier ones, together have less than p. Of equals someone must be
# asked first: the higher id goes before the lower, as in transformers, which sorts upwards.

# %%
def nucleus(probs: list, p: float) -> list:
    raise NotImplementedError  # your lines; without them the lesson goes on with ours

nucleus = check("50.1", nucleus)
# hint("50.1")

# %% [markdown]
# The package, for rows of logits: `filtered` gives what stays its score, and −∞ to the others.

# %%
def stays(row: torch.Tensor = scores, **asked) -> list:
    return filtered(row, [SamplingParams(**asked)])[0].isfinite().nonzero()[:, 0].tolist()

# %%
probs = probabilities(scores, [SamplingParams()])[0].tolist()
for p in (0.05, 0.3, 0.5, 0.8, 0.9, 0.95, 0.99):
    assert nucleus(probs, p) == stays(top_p=p)
print("p = 0.5 keeps", nucleus([0.25] * 4, 0.5), "of four equals")

# %% [markdown]
# ## Three filters, three kinds of moment
#
# Top-k keeps the k likeliest, and all that equal the k-th. Min-p keeps what is at least so many
# times as likely as the likeliest. What do they leave where the model is sure, and where it is not?

# %%
kinds = {"top_k": 10, "top_p": 0.9, "min_p": 0.1}
for prompt in ("Once", morning, "Tom went to the"):
    row = torch.tensor([list(own(prompt).values())]).double()
    left = {f"{name} {value}": len(stays(row, **{name: value})) for name, value in kinds.items()}
    print(f"{prompt + ' …':18} likeliest {row.max().exp():.0%}; left: {left}")

# %% [markdown]
# A fixed number is too many for a sure model, and too few for an unsure one. The others ask the
# model how sure it is.
#
# ## The order trap
#
# T = 2 and p = 0.6. Temperature first, and top-p looks at warmed chances; or top-p first, and what
# it left is warmed. Both exist: transformers begins with temperature, and the default chain of
# llama.cpp ends with it. The same two settings; who stays?

# %%
first, last = stays(temperature=2.0, top_p=0.6), stays(top_p=0.6)
for name, kept in (("temperature, then top-p", first), ("top-p, then temperature", last)):
    print(f"{name}: {len(kept)} stay:", *[repr(word([ids[n]])) for n in kept[:9]])
assert set(last) < set(first)

# %% [markdown]
# So "T = 2, p = 0.6" says nothing without the order. The package's is transformers', and a test
# holds every mask against it: bias, penalties, temperature, top-k, top-p, min-p. Here is its top-p,
# for many rows at once, each with its own p:

# %%
from minillm.decode.sampling import _top_p

print(inspect.getsource(_top_p).split('"""')[-1].rstrip())

# %% [markdown]
# It sums from the least likely up: near p = 1 a sum from the top, rounded, may never reach p, and
# nothing would be cut. And it does not sort what cannot stay.
#
# ## Third rung, yours: a judge
#
# One draw proves nothing. Draw many, and hold the counts against a target that we know: chi-square,
# the sum of **(count − expected)² ÷ expected**, with expected = chance · all draws. What has chance
# 0 and does not come adds nothing; if it comes, the answer is `math.inf`.

# %%
def chi_square(counts: list, target: list) -> float:
    raise NotImplementedError

chi_square = check("50.2", chi_square)
# hint("50.2")

# %% [markdown]
# Five weights, T = 2, p = 0.83. The target is worked out by `weigh`, as the waiter would, and stays
# what it is. Four samplers; the first is the package's. Four tokens may come, and the table of
# chi-square (three degrees of freedom: the fourth count follows from the others) says: a right
# sampler is beyond 16.3 once in a thousand times.

# %%
heat, sieve = SamplingParams(temperature=2.0), SamplingParams(top_p=0.83)
both, orders = SamplingParams(temperature=2.0, top_p=0.83), [16, 4, 2, 1, 0.5]
five, target = torch.tensor([orders]).double().log(), weigh(orders, T=2, p=0.83)
whole, right = probabilities(five, [heat]), probabilities(five, [both])
rules = {
    "right": right,
    "filter before temperature": probabilities(filtered(five, [sieve]), [heat]),
    "drop the one that crosses": whole * (whole.cumsum(-1) <= 0.83),
    "do not renormalise": whole * (right > 0),
}

# %%
u = torch.rand(4000, generator=torch.Generator().manual_seed(0)).tolist()
for name, chances in rules.items():
    stick = chances if name == "do not renormalise" else chances / chances.sum()
    drawn = [pick(stick[0].tolist(), number) for number in u]
    drawn = [4 if token is None else token for token in drawn]  # beyond the end: the last there is
    found = chi_square([drawn.count(token) for token in range(5)], target)
    print(f"{name:26} chi-square {found:8.1f}: {'accepted' if found < 16.3 else 'rejected'}")
    assert (found < 16.3) == (name == "right")

# %% [markdown]
# A check that a wrong answer passes is no check. This one has been tried on three.
#
# ## Where the model hesitates
#
# Entropy is −Σ chance · log₂ chance. A story, told at T = 1, word by word as it comes: the bars are
# the model's own chances *before* the word. Later drag the slider back through it.

# %% tags=["nbval-ignore-output"]
def entropy(piece) -> float:
    return sum(-math.exp(x) * x for x in piece.top_logprobs.values()) / math.log(2)


def draw_word(token: int = 0):
    piece, chances = pieces[min(token, len(pieces) - 1)], {}
    for other, x in list(piece.top_logprobs.items())[:10]:
        chances[repr(word([other]))] = math.exp(x)
    bits = entropy(piece)
    many = round(2**bits)
    alike = "one word were certain" if many == 1 else f"{many} words were equally likely"
    return charts.bars(f"{word([piece.token_id])!r} came; before it {bits:.1f} bits, as if {alike}",
                       chances)  # fmt: skip


story = engine.stream("Once there was", SamplingParams(max_tokens=40, seed=52, logprobs=V))
pieces = [next(story)]
turned = knob(draw_word, token=(0, 39))
shown = display(turned, display_id=True)
for piece in story:
    pieces.append(piece)
    turned.sliders["token"].value = piece.index
turned.sliders["token"].value = pieces.index(max(pieces, key=entropy))
shown.update(turned)
print("Once there was" + "".join(piece.text for piece in pieces))

# %% [markdown]
# Beside it the answers to four questions of *town*'s exam, one after the other. What they ask for
# stands in the prompt.

# %% tags=["nbval-ignore-output"]
file = Path(inspect.getfile(Engine)).parents[2] / "data" / "eval" / "skills.jsonl"
exam = [json.loads(line) for line in file.open()]
exam = [q for q in exam if q["skill"] == "recall" and q["distance"] < 200][:32]
params = SamplingParams(max_tokens=16, temperature=0.0, stop="\n", logprobs=V)
asked = [piece for q in exam[:4] for piece in engine.stream(q["prompt"], params)]
bits = {"story": [*map(entropy, pieces)], "answers": [*map(entropy, asked)]}
length = min(map(len, bits.values()))
mean = {name: sum(row[:length]) / length for name, row in bits.items()}
charts.curve(
    f"{mean['story']:.2f} bits a token in the story, {mean['answers']:.2f} in the answers",
    {name: lambda n, row=row: row[int(n)] for name, row in bits.items()}, range(length), log="",
    points=[(p.index, entropy(p), word([p.token_id]).strip()) for p in pieces if entropy(p) > 1],
    x="token", y="entropy", unit="bits", note="the model's own; points: words of the story")

# %% [markdown]
# Who chooses between ten baskets hesitates; who finishes a word, or says what the prompt has said,
# has little to choose.
#
# ## Seeds and company
#
# A request draws from its own generator, one number a token. So its text must be the same alone,
# and in a batch with fifteen others who draw, filter and punish as they like. A batch may sum in
# another order and round otherwise: that moves a chance by a hair, and another token comes only
# where u falls within it.

# %% tags=["nbval-ignore-output"]
mine = SamplingParams(max_tokens=24, temperature=1.0, top_p=0.95, seed=7)
others = [SamplingParams(max_tokens=9 + n, seed=n, top_k=n, repetition_penalty=1 + n / 20)
          for n in range(15)]  # fmt: skip
alone = engine.generate("Once there was", mine)[0]
together = engine.generate(["Once there was"] + [morning] * 15, [mine, *others])[0]
assert together.token_ids == alone.token_ids
print("alone, and with fifteen others:", alone.text)

# %% [markdown]
# ## Break it: one generator for all
#
# Now all requests draw from the same generator, seeded with 7 each time.

# %% tags=["nbval-ignore-output"]
from minillm.engine import request as inside


def shared(prompts: list, params: list) -> str:
    chance = torch.Generator().manual_seed(7)
    inside.generator = lambda params: chance
    try:
        return engine.generate(prompts, params)[0].text
    finally:
        inside.generator = generator


lonely = shared(["Once there was"], [mine])
crowded = shared(["Once there was"] + [morning] * 15, [mine, *others])
print(f"alone:   {lonely}\ncrowded: {crowded}")
assert lonely == alone.text != crowded

# %% [markdown]
# Whoever asks at a busy hour gets another text than at night, from the same seed. No bug report of
# that kind can be repeated.
#
# ## What choosing costs
#
# The trace has a span *sample* for each token, beside the model's *decode step*. Where a kernel
# makes the logits, it notes the largest on its way; greedy reads that. Temperature goes through all
# V numbers a few times; top-p sorts those that may stay. One call serves the batch, in
# [`Chooser`](../minillm/engine/chooser.py). All run in turns; of each the median of five.

# %% tags=["nbval-ignore-output"]
from statistics import median


def costs(batch: int, **asked) -> tuple:
    """Microseconds a step: the model's, and of choosing for all requests."""
    params = [SamplingParams(max_tokens=8, seed=n, ignore_eos=True, **asked) for n in range(batch)]
    machine.trace.clear()
    engine.generate([morning] * batch, params)
    steps = machine.trace.select(name="decode step")
    chosen = sum(event.seconds for event in machine.trace.select(name="sample") if event.token)
    return tuple(1e6 * all / len(steps) for all in (sum(step.seconds for step in steps), chosen))


ways = {"greedy": {"temperature": 0.0}, "T = 1": {}, "top-p 0.9": {"top_p": 0.9}}
runs = [{(name, batch): costs(batch, **ways[name]) for batch in (1, 16) for name in ways}
        for _ in range(5)]  # fmt: skip
cost = {key: tuple(map(median, zip(*(run[key] for run in runs), strict=True))) for key in runs[0]}
for (name, batch), (model, chosen) in sorted(cost.items(), key=lambda item: item[0][1]):
    print(f"batch {batch:2}, {name:9}: model {model:6,.0f} µs, choosing {chosen:6,.0f} µs a step: "
          f"{chosen / (model + chosen):3.0%} (measured)")  # fmt: skip

# %% [markdown]
# The model has 6 million weights. A larger one reads more, and chooses among no more; a larger
# batch adds rows, a larger vocabulary columns.
#
# ## Yours: a penalty
#
# Greedy text goes round in circles. The repetition penalty makes what has appeared, in prompt or
# answer, less likely: **a positive logit is divided by it, another multiplied**, each once, however
# often the token came.

# %%
def penalize(logits: list, seen: list, penalty: float) -> list:
    raise NotImplementedError

penalize = check("50.3", penalize)
# hint("50.3")

# %% [markdown]
# Held against the package's, and in a text:

# %%
punished = SamplingParams(repetition_penalty=1.3)
text = SimpleNamespace(params=punished, ids=[5, 9, 5, 2], token_ids=[])
raw = torch.randn(1, 12, generator=torch.Generator().manual_seed(0)).double()
assert penalize(raw[0].tolist(), text.ids, 1.3) == penalized(raw, [text])[0].tolist()

# %%
for penalty in (1.0, 1.3):
    greedy = SamplingParams(max_tokens=28, temperature=0.0, repetition_penalty=penalty)
    print(f"{penalty}: Once there was{engine.generate('Once there was', greedy)[0].text}")

# %% [markdown]
# ## Where it loses
#
# A penalty does not know a chorus from a code. Thirty-two questions whose answers, names and digits
# stand in the prompt: how many are right? And at higher temperatures, which make rare tokens less
# rare, at every single step?

# %% tags=["nbval-ignore-output"]
def exam_right(**asked) -> tuple:
    """How many are right, and the first that is wrong."""
    params = [SamplingParams(max_tokens=16, stop="\n", seed=n, **asked) for n in range(len(exam))]
    found = [done.text.strip() for done in engine.generate([q["prompt"] for q in exam], params)]
    wrong = [text for q, text in zip(exam, found, strict=True) if q["answer"].strip() != text]
    return len(exam) - len(wrong), "".join(wrong[:1])


tries = [{"temperature": 0.0, "repetition_penalty": 1 + n / 4} for n in range(5)]
tries += [{"temperature": 1.0}, {"temperature": 2.0}, {"temperature": 2.0, "top_p": 0.9}]
marks = [exam_right(**asked) for asked in tries]
for asked, (good, wrong) in zip(tries, marks, strict=True):
    said = ", ".join(f"{name} {value}" for name, value in asked.items())
    print(f"{said}: {good} of {len(exam)}" + f"; the first that is wrong: {wrong}" * bool(wrong))

# %% [markdown]
# Names, digits, brackets: what must come again is punished for it. Heat acts at every token; where
# the model knows, few tokens have nearly all, and top-p cuts the rest.
#
# ## A real server, on paper
#
# A row of logits, 4 bytes each of `vocab`, comes over the link: `latency` seconds once, `link`
# bytes a second. Sorting it takes vocab · log₂ vocab comparisons; a core does `compares` a second,
# and one core sorts a row. All rows are copied, then sorted. How many are done in `budget` seconds?

# %%
def most_rows(vocab, link, latency, compares, cores, budget) -> int:
    raise NotImplementedError

most_rows = check("50.4", most_rows)
# hint("50.4")

# %%
size, link, compares = 128_256, 64e9, 200e6  # Llama 3's vocabulary; bytes and compares a second
nbytes, sort = 64 * size * 4, size * math.log2(size) / compares
print(f"batch 64: {nbytes / 1e6:.1f} MB a step to DRAM, {1e3 * nbytes / link:.2f} ms at 64 GB/s; "
      f"a row is sorted in {1e3 * sort:.1f} ms (predicted)")  # fmt: skip
done = {cores: most_rows(size, link, 1e-5, compares, cores, 15e-3) for cores in (1, 16, 64)}
print("cores, and the rows they do in 15 ms:", done)

# %% [markdown]
# The copy is small, the sort is not. So servers choose on the GPU, or do not sort: they look for
# the threshold, as `_top_p` above leaves aside what cannot stay.
#
# ## Five questions
#
# Answer each in your head, then open it.

# %% tags=["folded"]
recall(
    ("Weights 4 : 2 : 1. What does temperature ½ make of them?",
     "16 : 4 : 1. T raises each weight to 1 ÷ T."),
    ("p = 0.75, chances 4/7, 2/7, 1/7. Which stay, and what are their chances then?",
     "The first two: before the second are 4/7 < 0.75, before the third 6/7. Then 2/3 and 1/3."),
    ("Two engines have the same T and the same p, and other words come. Why?",
     "Their order differs: a filter that sees warmed chances keeps other tokens."),
    ("How do you prove that a sampler is right?",
     "Many draws against one fixed target, with a judge that is seen to reject the usual wrong "
     "rules."),
    ("Why has each request its own generator?",
     "So that its text depends on its seed alone, and not on who shares the batch."),
)

# %% [markdown]
# ## Three takeaways, with the numbers of your run, and your guesses

# %% tags=["nbval-ignore-output", "folded"]
model, chosen = cost["top-p 0.9", 16]
print(f"1. T = 2, p = 0.6: {len(first)} tokens stay with temperature first, {len(last)} with it "
      f"last.\n2. Batch 16, top-p: choosing took {chosen / (chosen + model):.0%} of a step "
      f"(measured).\n3. Right of {len(exam)}: {marks[0][0]} without a penalty, {marks[4][0]} with "
      "one of 2.")  # fmt: skip

# %%
guesses()

# %% [markdown]
# **Next:** `51_decode_stream`. The token is chosen. How does it become text again, and what is
# kept?
