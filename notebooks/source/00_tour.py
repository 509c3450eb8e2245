# %% [markdown]
# # 00 · What happens between pressing Enter and the first word?
#
# We type a question to a language model and press Enter. A moment later the first word appears. In
# this tour we follow that one request, and the weights it needs, through the whole machine, and we
# look at every byte that moves.
#
# Run the next cell (Shift + Enter) and watch your machine do it. *Fifteen to twenty minutes in all;
# the code behind it: [`minillm/engine/engine.py`](../minillm/engine/engine.py).*

# %% tags=["nbval-ignore-output"]
import time
from minillm import Engine, EngineConfig, Machine, SamplingParams, charts

machine = Machine.here(hbm="64 MiB")
story = SamplingParams(max_tokens=40, temperature=0.7, seed=4)

with charts.watch(machine.trace):
    engine = Engine.load("data/town", machine, EngineConfig(reader="direct"))
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
from minillm import OutOfMemory, Trace, format_size
from minillm.kv import drop_oldest
from minillm.lesson import check, guess, hint, knob, recall, reveal

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
# ## A model of sixteen weights
#
# Before the real one, a toy that we can follow by hand. It knows four words. For each of them it
# holds four scores: how well does each word come next? To write, it looks at the last word, takes
# the word with the highest score, and repeats.

# %%
words = ["Mia", "has", "a", "key"]
scores = {"Mia": [0, 9, 1, 2], "has": [1, 0, 8, 3], "a": [2, 0, 1, 7], "key": [4, 3, 2, 0]}

text = ["Mia"]
while len(text) < 4:
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
# that.

# %%
toy_bytes, toy_bandwidth = 16 * 2, 16  # bytes, bytes per second
print(f"{toy_bytes / toy_bandwidth:.0f} seconds for each token, at least")

# %% [markdown]
# ## Stage 1: load
#
# The model of this course, *town*, was trained to tell stories of a small town and to answer
# questions about them. Its weights lie in two files on the SSD. `Engine.load` brought them
# SSD → DRAM → HBM. (`reader="direct"` says: ask the SSD itself, and not the copy that the system
# may still have in DRAM; see lesson 10.)
#
# Did every weight arrive in HBM, once? The trace has seen each copy. (An SSD gives whole blocks of
# 4,096 bytes, so a little more was read.)

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
# measure that bandwidth by adding up a block that no cache can hold.
#
# *Room.* For each token the KV cache keeps a key and a value, in each layer and for each kv head:
# 2 · layers · kv heads · head size · bytes per number.

# %% tags=["nbval-ignore-output"]
import torch

block = torch.ones(64 * 2**20, device=machine.device)  # 256 MiB


def seconds_to_read() -> float:
    start = time.perf_counter()
    float(block.sum())
    return time.perf_counter() - start


bandwidth = block.nbytes / min(seconds_to_read() for _ in range(8))
floor = weight_bytes / bandwidth
engine.trace.meta["ceilings"] = {"hbm": bandwidth}  # the charts hold what we see against it
print(f"measured {bandwidth / 1e9:.0f} GB/s, so predicted: at least {1e3 * floor:.2f} ms per token")

# %%
model = engine.model_config
kv_bytes = 2 * model.num_hidden_layers * model.num_key_value_heads * model.head_dim * 2
assert kv_bytes == engine.kv_bytes_per_token
print(f"predicted: {kv_bytes:,} bytes of KV cache per token")

# %% [markdown]
# Now your guess. How many milliseconds will one token really take on this machine? Write a number.
# A bit further down it stands beside the prediction and the measurement.

# %%
mine = guess("time per token", unit="ms")

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
# Nothing in these pictures is drawn by hand: they read the trace. Rows are resources, white is
# waiting. Look at the row *compute*. The wide block is *prefill*: all
# tokens of the prompt go through the model together, then the first token is out. Each narrow block
# is a *decode step*: one more token. Below, the KV cache stands on top of the weights.

# %% [markdown]
# The SSD rests during the request: the weights are in HBM and stay there. Between HBM and DRAM
# almost nothing moves: the id of the newest token goes in, its logits come out. We can count it.

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

# %% tags=["nbval-ignore-output"]
from statistics import median

steps = engine.trace.select(name="decode step", request=1)
assert len(steps) == len(pieces) - 1  # prefill gave the first token
measured = median(step.seconds for step in steps)

reveal(mine, predicted=1e3 * floor, measured=1e3 * measured)

# %% [markdown]
# Is your measured step several times the prediction? On our two-core machine it is. The model is
# small, so reading it is soon done, and what remains does not shrink with it: a step starts well
# over a hundred small operations, and each has to get going. A much larger model reads for much
# longer, while that cost grows only with its number of layers. There the bytes decide, and the
# measurement comes closer to the prediction.

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

# %% tags=["nbval-ignore-output"]
charts.stages(engine.trace)

# %% [markdown]
# The map from the beginning, with the time that each stage has taken (*load* also opens files and
# builds the model). Stage 4 has nothing to do: one device has nobody to share the work with.
#
# The bytes of *load* count the way to DRAM and the way to HBM. Those of *model* are
# predicted: the least that the steps must read. They are many times the size of the model, because
# each token reads all of it again.

# %% [markdown]
# ## The loop
#
# This is all of it in code: one token for each round. The comments say where the bytes go.

# %%
import inspect

print(inspect.getsource(Engine.step).rstrip())

# %% [markdown]
# ## Your turn: another prompt
#
# Change the text and run the cell again. `temperature=0.7` lets the model choose among good
# tokens, `seed` says how the dice fall. What happens to prefill when your prompt is ten times as
# long? Look at the row *compute*.

# %% tags=["nbval-ignore-output"]
my_prompt = "The code of Leo's box is 8051. Mia"

with charts.watch(engine.trace, "timeline"):
    for piece in engine.stream(my_prompt, SamplingParams(max_tokens=40, temperature=0.7, seed=1)):
        print(piece.text, end="", flush=True)

# %% [markdown]
# ## Two prompts at once
#
# A step reads all weights for one token. With two prompts in a *batch* it reads them once for
# both, and both have their next token.

# %%
before = len(engine.trace.select(name="decode step"))
both = engine.generate(["What is 23 plus 45?", "What does HBM stand for?"], greedy)
steps_together = 1 + len(engine.trace.select(name="decode step")) - before

for completion in both:
    print(completion.text.strip())
written = [len(completion.token_ids) for completion in both]
assert steps_together == max(written)
print(f"{sum(written)} tokens in {steps_together} steps")

# %% tags=["nbval-ignore-output"]
for_two = median(step.seconds for step in engine.trace.select(name="decode step")[before:])
print(f"a step for one {1e3 * measured:.2f} ms, for two {1e3 * for_two:.2f} ms")

# %% [markdown]
# ## Turn the knob: less HBM
#
# Now we make HBM small, until the weights no longer fit. What would you want to be told? The error
# says what was wanted, what was found, and what to do. It comes before a single weight is read.

# %%
try:
    Engine.load("data/town", Machine.here(hbm="8 MiB"))
except OutOfMemory as error:
    print(error)

# %% [markdown]
# A budget for the weights and a hundred tokens is enough to load, but not for our prompt. The KV
# cache is what fails now. This is the common case on real servers: the model fits, and the
# *conversations* do not.

# %%
tight = Engine.load("data/town", Machine.here(hbm=weight_bytes + 100 * kv_bytes))
try:
    next(tight.stream(prompt, greedy))
except OutOfMemory as error:
    print(error)
tight.close()

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
# How much can it lose before it forgets? Drag the slider: each time it comes to rest, the engine
# reads the whole prompt anew, forgets that share of the cache, and answers.

# %% tags=["nbval-ignore-output"]
def ask(dropped_percent: int) -> str:
    engine.kv.forget = drop_oldest(dropped_percent / 100)
    [kept] = engine.generate(prompt, greedy)
    engine.kv.forget = None
    return kept.text.strip()


knob(ask, dropped_percent=(0, 100, 5))

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

# %%
again = Trace.load(folder / "tour_run.json")
print("the same events:", again.events == engine.trace.events)

# %% [markdown]
# ## Exercise 1: the speed that nothing passes
#
# A step takes at least weight bytes ÷ bandwidth. A batch shares that step. So how many tokens a
# second can a memory feed at most? (With a large batch arithmetic sets a lower limit: lesson 01.)
# Replace the line with `raise`, and run the cell.

# %% tags=["nbval-ignore-output"]
def tokens_per_second_at_most(weight_bytes, bandwidth, batch):
    raise NotImplementedError  # your line; without it the lesson goes on with ours


tokens_per_second_at_most = check("00.1", tokens_per_second_at_most)
# hint("00.1")

# %% tags=["nbval-ignore-output"]
for batch in (1, 8, 64):
    limit = tokens_per_second_at_most(weight_bytes, bandwidth, batch)
    print(f"batch {batch:2}: at most {limit:,.0f} tokens/s from this memory (predicted)")

# %% [markdown]
# ## Exercise 2: how many tokens fit?
#
# HBM holds the weights first, and the KV cache takes what is left. How many tokens is that? Sizes
# are in bytes, the answer is a whole number.

# %%
def tokens_that_fit(hbm_bytes, weight_bytes, layers, kv_heads, head_dim, bytes_per_number):
    raise NotImplementedError  # your lines


tokens_that_fit = check("00.2", tokens_that_fit)
# hint("00.2")

# %%
fit = tokens_that_fit(machine.hbm.capacity, weight_bytes, model.num_hidden_layers,
                      model.num_key_value_heads, model.head_dim, 2)  # fmt: skip
print(f"{format_size(machine.hbm.capacity)} of HBM keep {fit:,} tokens of this model")

# %% [markdown]
# ## Five questions
#
# Answer each in your head, then open it.

# %%
recall(
    ("Which bytes move once, and which again for every token?",
     "The weights go SSD → DRAM → HBM once. For every token they are read from HBM again."),
    ("Why does the first token take longer than the later ones?",
     "Prefill runs all tokens of the prompt through the model. A later step runs one."),
    ("What is the least time that a decode step can take?",
     "Weight bytes ÷ bandwidth of the memory they lie in, and the KV cache is read too."),
    ("A prompt grows to twice its length. What grows with it?",
     "The part of the KV cache that holds the prompt. The weights stay as they are."),
    ("Why does a batch of two cost hardly more than one prompt?",
     "Both use the same weights, and a step reads them once."),
)

# %% [markdown]
# ## Three takeaways, with the numbers of your run

# %% tags=["nbval-ignore-output"]
first = engine.trace.select(request=1, token=0)
wait = max(event.end for event in first) - min(event.start for event in first)
weights, cache = format_size(weight_bytes), format_size(most)
print(f"1. {weights} of weights moved to HBM once. {len(pieces)} tokens read them")
print(f"   {len(pieces)} times: {format_size(len(pieces) * weight_bytes)} (predicted).")
prefill = engine.trace.select(name="prefill", request=1)[0].seconds
print(f"2. The first token came after {1e3 * wait:.1f} ms, {prefill / wait:.0%} of it prefill.")
print(f"   A step took {1e3 * measured:.2f} ms; weights need {1e3 * floor:.2f} of it (predicted).")
print(f"3. HBM held {weights} of weights and {cache} of KV cache:")
print(f"   {kv_bytes:,} bytes for each of {kept_tokens} tokens, in whole pages.")

# %% [markdown]
# **Next:** `01_machine_tiers`. How fast is each tier of *your* machine? There we measure the
# ceilings that every number of the course is held against.
