# %% [markdown]
# # 00 · What happens between pressing Enter and the first word?
#
# We type a question to a language model and press Enter. A moment later the first word appears. We
# follow that one request through the whole machine, and look at every byte that moves.
#
# *Forty minutes. The code behind it: [`minillm/engine/engine.py`](../minillm/engine/engine.py).*
#
# Guess first, in numbers; nobody sees them. A model is a file of numbers, its *weights*. To write
# 40 words, how many times is that file read? How long does one word take?

# %%
from minillm.lesson import guess

readings = guess("times the weights are read for 40 words", unit="times")
mine = guess("time for one word", unit="ms")

# %% [markdown]
# Now run the next cell (Shift + Enter) and watch your machine do it.

# %% tags=["nbval-ignore-output"]
import time
import minillm
from minillm import charts

trace = minillm.Trace()
story = minillm.SamplingParams(max_tokens=40, temperature=0.7, seed=4)
with charts.watch(trace):
    machine = minillm.Machine.here(hbm="64 MiB", trace=trace)
    engine = minillm.Engine.load("data/town", machine, minillm.EngineConfig(reader="direct"))
    for piece in engine.stream("Mia put the red key", story):
        print(piece.text, end="", flush=True)
        time.sleep(0.05)  # a pause to read, as if we were typing along

# %% [markdown]
# That was a language model at work, and this is what it did: weights came from the SSD through DRAM
# into HBM. Your text became numbers. Then, for every word, all the weights were read again, and the
# CPU chose what to write.
#
# Press play to see it again, slower. Drag the slider to any moment. Point at a box or a link and
# read its figures.

# %% [markdown]
# The picture has five stages. Every notebook of this course lives in one of them:
#
# <img src="images/strip.png" width="672" alt="The five stages of the course: 1 load, weights come
# in; 2 tokens, text becomes ids; 3 model and KV cache, ids become scores; 4 parallel, GPUs share
# the work; 5 decode, scores become text.">

# %% tags=["nbval-ignore-output"]
import torch
from minillm import Engine, Machine, OutOfMemory, SamplingParams, format_size
from minillm.kv import drop_oldest
from minillm.lesson import Comparison, check, compare, hint, knob, recall, reveal

print(machine.describe())

# %% [markdown]
# That line is your machine. Six words are enough:
#
# - **weights**: the numbers a model has learned. They wait on the SSD.
# - **HBM**: the fast memory of a GPU. Without a GPU we emulate it: a part of DRAM, with a budget.
# - **token**: a piece of text, often a word; each has a number, its id.
# - **logits**: one score for every token that could come next.
# - **KV cache**: what the model keeps of the text so far.
# - **trace**: a record of every byte moved and every second of work.

# %% [markdown]
# On the pictures, *staging* is a strip of DRAM that the SSD fills and HBM is filled from, the *copy
# engine* is what moves bytes between them, and the *compute unit* is what calculates.

# %% [markdown]
# ## A model of sixteen weights
#
# Before the real one, a toy that we can follow by hand. It knows four words. For each of them it
# holds four scores: how well does each word come next? To write, it looks at the last word, takes
# the word with the highest score, and repeats.

# %%
words = ["Mia", "has", "a", "key"]
scores = {"Mia": [0, 9, 1, 2], "has": [1, 0, 8, 3], "a": [2, 0, 1, 7], "key": [4, 3, 2, 0]}

text = ["Mia"]
for _ in range(3):
    logits = scores[text[-1]]
    text.append(words[logits.index(max(logits))])
print(" ".join(text))

# %% [markdown]
# Every language model writes like this: scores in, one token out, again from the start. Ours
# chooses among 4,096 tokens and looks at the whole text. To score one token it uses *all* its
# weights, so it must read them all.
#
# Say the toy does that too. Sixteen weights of 2 bytes are 32 bytes. A memory that gives 16 bytes
# a second needs 2 seconds for them. No compute unit, however fast, makes the step shorter than
# that. *Time ≥ bytes ÷ bandwidth* is the one law of this course.

# %%
toy_bytes, toy_bandwidth = 16 * 2, 16  # bytes, bytes per second
print(f"{toy_bytes / toy_bandwidth:.0f} seconds for each token, at least")

# %% [markdown]
# ## Exercise 1: two texts, one reading
#
# Two people use the toy at once. `memory.read()` gives the four rows of scores (as above, but by
# name: `scores["Mia"]["has"]` is 9) and counts 32 bytes. The toy has no other place to keep them:
# the next step must read again. Let every text grow by one word in each step, with as few bytes as
# can be. Return the texts and `memory.nbytes`.

# %% tags=["nbval-ignore-output"]
def write_together(memory, texts, steps):
    raise NotImplementedError  # your lines; without them the lesson goes on with ours

write_together = check("00.1", write_together)
# hint("00.1")

# %% [markdown]
# ## Stage 1: load
#
# The model of this course, *town*, was trained to tell stories of a small town and to answer
# questions about them. Its weights lie in two files on the SSD. `Engine.load` brought them
# SSD → DRAM → HBM. (`reader="direct"` says: ask the SSD itself, and not the copy that the system
# may still have in DRAM; see lesson 10.)
#
# Did every weight arrive in HBM, once? The trace has seen each copy. (Our reader asks the SSD for
# whole blocks of 4,096 bytes, so a little more was read.)

# %% tags=["nbval-ignore-output"]
transfers = engine.trace.select(kind="transfer", label="weights")
read = sum(event.nbytes for event in transfers if event.source == "ssd")
arrived = sum(event.nbytes for event in transfers if event.target == "hbm")
weight_bytes = machine.hbm.by_label["weights"]

assert arrived == weight_bytes
print(f"off the SSD {read:,} bytes, into HBM {arrived:,} bytes: {format_size(weight_bytes)}")

# %% [markdown]
# ## Predict
#
# Two numbers follow from arithmetic, before anything runs.
#
# *Time.* A step reads all weights, so it takes at least weight bytes ÷ bandwidth of the memory. We
# measure that bandwidth by adding up blocks of memory, small and large, and take the best.

# %%
def rate(block: torch.Tensor) -> float:
    start = time.perf_counter()
    float(block.sum())
    return block.nbytes / (time.perf_counter() - start)


# %% tags=["nbval-ignore-output"]
blocks = [torch.ones(mib * 2**18, device=machine.device) for mib in (16, 64, 256)]
bandwidth = max(rate(block) for _ in range(20) for block in blocks)
floor = weight_bytes / bandwidth
engine.trace.meta["ceilings"] = {"hbm": bandwidth}  # the charts hold what we see against it
print(f"measured {bandwidth / 1e9:.0f} GB/s, so predicted: at least {1e3 * floor:.2f} ms per token")

# %% [markdown]
# *Room.* For each token the KV cache keeps a key and a value, in each layer, for each *kv head* (a
# layer looks back at the text in several ways at once): 2 · layers · kv heads · head size · bytes
# per number.

# %%
model = engine.model_config
kv_bytes = 2 * model.num_hidden_layers * model.num_key_value_heads * model.head_dim * 2
assert kv_bytes == engine.kv_bytes_per_token
print(f"predicted: {kv_bytes:,} bytes of KV cache per token")

# %% [markdown]
# A third guess. Before the first word, all tokens of a prompt go through the model together. How
# many times as long does that take if the prompt has ten times the tokens?

# %%
longer = guess("reading a prompt ten times as long takes", unit="times")

# %% [markdown]
# ## Press Enter
#
# Now the request that we follow. First the model is told a code. Then life in the town goes on for
# a while, and someone tells another code. At the end we ask for the first one. `temperature=0.0`
# means: always take the token with the highest score.

# %%
prompt = """The code of Mia's chest is 4713. Lily put the orange book in the basket. \
Somewhere a dog barked. Leo and Noah talked about pirates. Now the blue lamp is under the bed. \
The school clock struck twelve. Lily wrote a short note to an old friend. Noah went to the forge. \
The sky turned pink and then dark blue. Leo hid the white book on the chair. It was time for tea. \
The teacher opened the shop on Sunday. Noah prepared breakfast. Jam cost six coins. \
The code of Leo's gate is 2926. Lily bought four shoes for Noah. Somewhere a door closed.
What is the code of Mia's chest?"""

# %% tags=["nbval-ignore-output"]
greedy = SamplingParams(max_tokens=32, temperature=0.0, stop="\n")
pieces = []

with charts.watch(engine.trace, "timeline", "memory"):
    for piece in engine.stream(prompt, greedy):
        pieces.append(piece)
        print(piece.text, end="", flush=True)

answer = "".join(piece.text for piece in pieces)
assert "4713" in answer

# %% [markdown]
# Rows are resources, white is waiting. Look at the row *compute*. The wide block is *prefill*: all
# tokens of the prompt go through the model together, then the first token is out. Each narrow block
# is a *decode step*: one more token. Below, the KV cache stands on top of the weights.
#
# The SSD rests: the weights are in HBM and stay there. Between HBM and DRAM almost nothing moves:
# the id of the newest token goes in, its logits come out. We can count it.

# %%
into, out = engine.trace.select(kind="transfer", request=1, token=1)
assert (into.label, into.target, out.label, out.target) == ("ids", "hbm", "logits", "dram")
assert out.nbytes == 4 * model.vocab_size  # one score of 4 bytes for each token it could choose
print(f"for one token: {into.nbytes} bytes of ids in, {out.nbytes:,} bytes of logits out")

# %% [markdown]
# ## Where did this token's microseconds go?
#
# The whole run again, from the first weight to the last word. Choose a word of the text: everything
# moves to its step, and below it stands where its microseconds went, and which bytes moved for it.
# Each instant counts once, so the parts of a token add up to its time.

# %% tags=["nbval-ignore-output"]
charts.replay(engine.trace)

# %% [markdown]
# ## Guess, predicted, measured
#
# First the easy one: how many times were the weights read for the 40 words of the story? A *pass*
# is one way of some tokens through all weights. Prefill was one, each decode step another.

# %% tags=["nbval-ignore-output"]
passes = [event for event in engine.trace.select(request=0)
          if event.name in ("prefill", "decode step")]  # fmt: skip
reveal(readings, predicted=40, measured=len(passes))

# %% [markdown]
# Now the time of a step. Nobody watches this time: to draw takes processor time too. So the same
# question runs five times without a picture. What is not reading? Ids go in, attention looks at
# the cache, cores wait for each other between layers, logits come out, a token is chosen. A larger
# model has more bytes for each of these, so its share of reading grows: lesson 02 looks for the
# size at which a step comes close to its floor.

# %%
def decode_seconds(prompts, params=greedy) -> list[float]:
    """The decode steps of one run, without a picture."""
    before = len(engine.trace.select(name="decode step"))
    engine.generate(prompts, params)
    return [step.seconds for step in engine.trace.select(name="decode step")[before:]]


# %% tags=["nbval-ignore-output"]
alone = Comparison({"a step": sum((decode_seconds(prompt) for _ in range(5)), [])}, unit="ms")
measured = alone.median("a step")
reveal(mine, predicted=1e3 * floor, measured=1e3 * measured)
print(alone.against("predicted", floor))
print("Most of the step is reading weights." if floor / measured > 0.5 else
      "Less than half of the step is reading weights.")  # fmt: skip

# %% [markdown]
# And the prompt ten times as long? Arithmetic alone says: ten times the tokens, ten times the work.
# But both prompts read the weights once. 14 tokens and 140 run in turns, so that a busy moment of
# the machine meets both.

# %%
def prefill_seconds(tokens: int) -> float:
    ids = engine.tokenizer.encode(prompt)[:tokens]
    engine.generate([ids], SamplingParams(max_tokens=1))
    return engine.trace.select(name="prefill")[-1].seconds


# %% tags=["nbval-ignore-output"]
prompts = compare({"the short prompt": lambda: prefill_seconds(14),
                   "the long one": lambda: prefill_seconds(140)}, unit="ms")  # fmt: skip
print(prompts.sentence)
reveal(longer, predicted=10, measured=prompts.ratio("the long one", "the short prompt"))

# %% [markdown]
# Below ten times, the long prompt had something for nothing: one reading of the weights for all
# its tokens. Near ten, it is arithmetic that takes the time, already at 14 tokens. Which of the two
# limits a pass is the question of lesson 02.

# %% [markdown]
# ## What fills the memory
#
# The weights lie at the bottom of HBM and stay. The KV cache stands on top of them and grows with
# the text, a *page* at a time: room for the keys and values of 16 tokens. At the end all pages come
# free. The last token was chosen and never read, so it has no place. Here is the sum.

# %%
kept_tokens = len(engine.tokenizer.encode(prompt)) + len(pieces) - 1
pages, page_bytes = -(-kept_tokens // 16), 16 * kv_bytes  # pages are rounded up
most = max(event.nbytes for event in engine.trace.select(kind="counter", label="kv"))
assert most == pages * page_bytes and "kv" not in machine.hbm.by_label
print(f"{kept_tokens} tokens in {pages} pages of {format_size(page_bytes)}: {format_size(most)}")

# %% [markdown]
# ## The loop
#
# This is all of it in code: one token for each round. The comments say where the bytes go.

# %%
import inspect

print(inspect.getsource(Engine.step).rstrip())

# %% [markdown]
# ## Two prompts at once
#
# A step reads all weights for one token. With two prompts in a *batch* it reads them once for
# both, and both have their next token.

# %%
before = len(engine.trace.select(name="decode step"))
both = engine.generate(["What is 23 plus 45?", "What does HBM stand for?"], greedy)
steps_together = 1 + len(engine.trace.select(name="decode step")) - before

# %%
for completion in both:
    print(completion.text.strip())
written = [len(completion.token_ids) for completion in both]
assert steps_together == max(written)
print(f"{sum(written)} tokens in {steps_together} steps")

# %% [markdown]
# If reading weights were all that a step does, eight prompts would take the time of one. They also
# bring eight times the arithmetic. Which is it here? One, two and eight run in turns, none watched.

# %% tags=["nbval-ignore-output"]
from statistics import median

twelve = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
batches = compare({f"batch {n}": lambda n=n: median(decode_seconds(["Mia has a"] * n, twelve))
                   for n in (1, 2, 8)}, unit="ms", what="one step")  # fmt: skip
print(batches.sentence)
for n in (1, 2, 8):
    print(f"batch {n}: {batches.amount(batches.median(f'batch {n}') / n)} for each token")

# %% [markdown]
# ## Turn the knob: less HBM
#
# Now we make HBM small, until the weights no longer fit. What would you want to be told? The error
# says what was wanted, what was found, and what to do. It comes before a single weight is read.
#
# A budget for the weights and a hundred tokens is enough to load, but not for our prompt: the KV
# cache is what fails. This is the common case on real servers: the model fits, and the
# *conversations* do not.

# %%
for budget in (8 * 2**20, weight_bytes + 100 * kv_bytes):
    try:
        small = Engine.load("data/town", Machine.here(hbm=budget))
        next(small.stream(prompt, greedy))
    except OutOfMemory as error:
        print(error)
small.close()

# %% [markdown]
# ## Break it: forget half of the cache
#
# The code of Mia's chest was told at the beginning, so its keys and values lie in the older half
# of the KV cache. We forget that half once the prompt is read, and ask the same question. The
# weights are untouched. What will the model say?

# %%
for share in (0.0, 0.5):
    engine.kv.forget = drop_oldest(share)
    [kept] = engine.generate(prompt, greedy)
    print(f"{share:4.0%} of the cache forgotten: {kept.text.strip()}")
engine.kv.forget = None
assert "4713" in answer and "4713" not in kept.text

# %% [markdown]
# How much can it lose before it forgets? The curve counts the digits of the code that are right,
# for each share of the cache that is dropped. Drag the slider: the engine reads the whole prompt
# anew, forgets that share, and its answer stands above the curve.

# %%
def ask(dropped_percent: int) -> str:
    engine.kv.forget = drop_oldest(dropped_percent / 100)
    [kept] = engine.generate(prompt, greedy)
    engine.kv.forget = None
    return kept.text.strip()


# %% tags=["nbval-ignore-output"]
def right_digits(text: str) -> int:
    return sum(a == b for a, b in zip(text.rstrip(".")[-4:], "4713", strict=False))


curve = {percent: right_digits(ask(percent)) for percent in range(0, 101, 10)}


def draw(dropped_percent=50):
    text = ask(dropped_percent)
    chart = charts.Chart(text or "It says nothing", size=(7, 2.8))
    axes = chart.add_axes((0.1, 0.2, 0.85, 0.58), ylim=(-0.2, 4.4))
    axes.plot(curve.keys(), curve.values(), color="#4B5563")
    axes.plot(dropped_percent, right_digits(text), "o", color="#D55E00")
    axes.set(xlabel="dropped from the KV cache (%)", ylabel="digits right (of 4)")
    return chart


knob(draw, dropped_percent=(0, 100, 5))

# %% [markdown]
# The model does not know that it forgot. It answers in the same calm voice, and wrong. So whatever
# we do with the cache in this course, paging it, moving it to the SSD, making its numbers smaller,
# we check the *answers* too, and not only the speed.

# %% [markdown]
# ## Take the run with you
#
# `tour_run.html` is one file with everything in it: open it in any browser, without Python and
# without a network, and press play. `tour_run.json` is the trace in a common format: drop it on
# [ui.perfetto.dev](https://ui.perfetto.dev) and zoom in to single microseconds. Or read it back.

# %%
from minillm.machine.disk import writable_folder
folder = writable_folder()  # this one, if it takes files
engine.trace.save(folder / "tour_run.json")
charts.replay(engine.trace).save(folder / "tour_run.html")
again = minillm.Trace.load(folder / "tour_run.json")
print("the same events:", again.events == engine.trace.events)

# %% [markdown]
# ## Exercise 2: a server, on paper
#
# An H100 has 80 GB of HBM, read at 3.35 TB/s. A model of 8 billion weights takes 16.06 GB and keeps
# 131,072 bytes for each token. Every conversation is to have 4,096 tokens.
#
# How many whole conversations fit beside the weights? When all are decoded together, a step reads
# the weights once and every conversation's KV cache: how many seconds does it take at least? And
# how many tokens a second does the server write at most? Return the three.

# %% tags=["nbval-ignore-output"]
def serve(hbm_bytes, bandwidth, weight_bytes, bytes_per_token, context):
    raise NotImplementedError  # your lines: return conversations, seconds, tokens_per_second

serve = check("00.2", serve)
# hint("00.2")

# %%
for context in (1024, 4096, 16_384):
    fit, seconds, speed = serve(80 * 10**9, 3350 * 10**9, 16_060 * 10**6, 131_072, context)
    print(f"{context:6,} tokens each: {fit:3} conversations, a step of {1e3 * seconds:.1f} ms, "
          f"{speed:6,.0f} tokens/s at most (predicted)")  # fmt: skip

# %% [markdown]
# The step takes nearly as long in all three: HBM is full, and a step reads all of it once. Longer
# conversations share it among fewer. So a server's tokens are paid in KV cache, and much of this
# course is about spending it well. (Large batches also meet the limit of arithmetic: lesson 02.)

# %% [markdown]
# ## Five questions
#
# Answer each in your head, then open it.

# %% tags=["folded"]
recall(
    ("Which bytes move once, and which again for every token?",
     "The weights go SSD → DRAM → HBM once. For every token they are read from HBM again."),
    ("Why does the first token take longer than the later ones?",
     "Prefill runs all tokens of the prompt through the model. A later step runs one."),
    ("What is the least time that a decode step can take?",
     "Weight bytes ÷ bandwidth of the memory they lie in, and the KV cache is read too."),
    ("A prompt grows to twice its length. What grows with it?",
     "The part of the KV cache that holds the prompt. The weights stay as they are."),
    ("What does a batch share, and what does each of its prompts pay for itself?",
     "One reading of the weights serves all. Arithmetic and KV cache are each prompt's own."),
)

# %% [markdown]
# ## Three takeaways, with the numbers of your run

# %% tags=["nbval-ignore-output", "folded"]
first = engine.trace.select(request=1, token=0)
wait = max(event.end for event in first) - min(event.start for event in first)
weights, cache = format_size(weight_bytes), format_size(most)
print(f"1. {weights} of weights moved to HBM once. {len(pieces)} tokens read them")
print(f"   {len(pieces)} times: {format_size(len(pieces) * weight_bytes)} (predicted).")
prefill = engine.trace.select(name="prefill", request=1)[0].seconds
print(f"2. The first token came after {1e3 * wait:.1f} ms, {prefill / wait:.0%} of it prefill.")
print(f"   {alone.against('Predicted', floor)}.")
print(f"3. HBM held {weights} of weights and {cache} of KV cache:")
print(f"   {kv_bytes:,} bytes for each of {kept_tokens} tokens, in whole pages.")

# %% [markdown]
# **Next:** `01_machine_tiers`. How fast is each tier of *your* machine? There we measure the
# ceilings that every number of the course is held against.
