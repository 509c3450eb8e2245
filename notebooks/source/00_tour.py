# %% [markdown]
# # 00 · What happens between pressing Enter and the first word?
#
# We type a question to a language model and press Enter. A moment later the first word appears. We
# follow that request through the whole machine, and look at every byte that moves.
#
# *Forty-five minutes. The code behind it:
# [`minillm/engine/engine.py`](../minillm/engine/engine.py).*
#
# Guess first; your numbers stay on this machine. A model is a long list of numbers, its *weights*.
# Run the next cell and fill it in. Then run the one after it (Shift + Enter), and watch.

# %%
from minillm.lesson import guess

readings = guess("times all weights are read for 40 words", unit="times")
mine = guess("time for one word", unit="ms")
longer = guess("a prompt ten times as long takes", unit="times")

# %% tags=["nbval-ignore-output"]
import time
import minillm
from minillm import charts

trace = minillm.Trace()
story = minillm.SamplingParams(max_tokens=40, temperature=0.7, seed=4)
with charts.watch(trace, "machine"):
    machine = minillm.Machine.here(hbm="64 MiB", trace=trace)
    engine = minillm.Engine.load("data/town", machine, minillm.EngineConfig(reader="direct"))
    for piece in engine.stream("Mia put the red key", story):
        print(piece.text, end="", flush=True)
        time.sleep(0.05)  # a pause to read, as if we were typing along

# %% [markdown]
# That was a language model at work. Its weights came from the SSD through DRAM into HBM. Your text,
# the *prompt*, became numbers. Then, for every word, all weights were read again, and the CPU chose
# what to write. Press play to see it again, slower; drag the slider to any moment; point at a box.
#
# The picture has five stages, and every notebook of this course lives in one of them:
#
# <img src="images/strip.png" width="672" alt="The five stages of the course: 1 load, weights come
# in; 2 tokens, text becomes ids; 3 model and KV cache, ids become scores; 4 parallel, GPUs share
# the work; 5 decode, scores become text.">

# %% tags=["nbval-ignore-output"]
import torch
from minillm import Engine, Machine, OutOfMemory, SamplingParams, format_size
from minillm.lesson import Comparison, check, compare, guesses, hint, knob, recall, reveal
from minillm.machine.disk import writable_folder
print(machine.describe())

# %% [markdown]
# Your machine, and six words:
#
# - **weights**: the numbers a model has learned. They wait on the SSD.
# - **HBM**: the fast memory of a GPU. Without a GPU, a part of DRAM with a budget.
# - **token**: a piece of text, often a word; its number is its *id*.
# - **logits**: a score for every token that could be next.
# - **KV cache**: what the model keeps of the text so far.
# - **trace**: a record of all bytes moved and all work.
#
# In the picture weights pass through *staging*, a strip of DRAM.

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
# weights, so it reads them all.
#
# Say the toy does that too. Sixteen weights of 2 bytes are 32 bytes; a memory that gives 16 bytes a
# second needs 2 seconds for them. No compute unit, however fast, makes a token shorter than that.
# *Time ≥ bytes ÷ bandwidth* is the one law of this course.

# %% [markdown]
# ## Exercise 1: two texts, one reading
#
# Two people use the toy at once: `texts` is a list of lists of words. `memory.read()` gives the
# four rows of scores (as above, but by name: `scores["Mia"]["has"]` is 9) and counts 32 bytes. The
# toy has no other place to keep them: the next step reads again. Let every text grow by one word in
# each step, with as few bytes as can be. Return the texts and `memory.nbytes`.

# %% tags=["nbval-ignore-output"]
def write_together(memory, texts, steps):
    raise NotImplementedError  # your lines; without them the lesson goes on with ours

write_together = check("00.1", write_together)
# hint("00.1")

# %% [markdown]
# ## Stage 1: load
#
# The model of this course, *town*, was trained to tell stories of a small town and to answer
# questions about them. Its weights lie in two files on the SSD. `Engine.load` brought them SSD →
# DRAM → HBM. (`reader="direct"` says: ask the SSD itself, and not the copy that the system may
# still have in DRAM; see lesson 10.) Did every weight arrive in HBM, once? The trace has seen each
# copy.

# %%
transfers = engine.trace.select(kind="transfer", label="weights", target="hbm")
weight_bytes = machine.hbm.by_label["weights"]
assert sum(event.nbytes for event in transfers) == weight_bytes
print(f"into HBM, once: {weight_bytes:,} bytes, {format_size(weight_bytes)}")

# %% [markdown]
# ## Predict
#
# Your three guesses, by arithmetic. *Readings*: one for each word, as in the toy, so 40. *The long
# prompt*: ten times the tokens are ten times the work, so 10. (If reading weights takes the time,
# it is nearer to 1: all tokens share one reading.) *Time*: a token reads all weights, so it takes
# at least weight bytes ÷ bandwidth of the memory. We measure that by adding up blocks, each four
# times in a row: a small one may stay in a cache, as our weights may.

# %%
def rate(block: torch.Tensor) -> float:
    start = time.perf_counter()
    float(block.sum())
    return block.nbytes / (time.perf_counter() - start)

# %% tags=["nbval-ignore-output"]
blocks = [torch.ones(mib * 2**18, device=machine.device) for mib in (16, 64, 256)]
bandwidth = max(rate(block) for _ in range(20) for block in blocks for _ in range(4))
floor = weight_bytes / bandwidth
engine.trace.meta["ceilings"] = {"hbm": bandwidth}  # the charts hold what we see against it
print(f"measured {bandwidth / 1e9:.0f} GB/s, so predicted: at least {1e3 * floor:.3f} ms per token")

# %% [markdown]
# ## Press Enter
#
# Now the request that we follow. First the model is told a code. Then life in the town goes on for
# a while, and someone tells another code. At the end we ask for the first one. `temperature=0.0`
# means: always take the token with the highest score. The CPU turns text into ids (*tokenize*),
# chooses the next token (*sample*), and makes text of it (*detokenize*).

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
# White is waiting. In the row *compute* the wide block is *prefill*: the whole prompt goes through
# the model, then the first token is out. Each narrow block is a *decode step*: one more token. A
# model is a pile of layers; *attention*, half of each, looks back at the text, and *ffn* works on
# each token alone. *Rest of decode step*: ids become numbers before them, logits come after them,
# and Python.
#
# Between HBM and DRAM only the newest id goes in, and its logits come out:

# %%
into, out = engine.trace.select(kind="transfer", request=1, token=1)
assert (into.label, into.target, out.label, out.target) == ("ids", "hbm", "logits", "dram")
assert out.nbytes == 4 * engine.model_config.vocab_size  # a score for each token
print(f"for one token: {into.nbytes} bytes of ids in, {out.nbytes:,} bytes of logits out")

# %% [markdown]
# ## Where did this token's microseconds go?
#
# The whole run again, from the first weight to the last word. Choose a word of the text: everything
# moves to its step, and below it stands where its microseconds went, and which bytes moved for it.
# Each instant counts once, so the parts of a token add up to its time.
#
# It is yours to take along: `tour_run.html` plays in any browser, without Python or a network, and
# `tour_run.json` opens in [ui.perfetto.dev](https://ui.perfetto.dev), down to single microseconds.

# %% tags=["nbval-ignore-output"]
player, folder = charts.replay(engine.trace), writable_folder()  # this one, if it takes files
player.save(folder / "tour_run.html")
engine.trace.save(folder / "tour_run.json")
player

# %% [markdown]
# ## Guess, predicted, measured
#
# How often were the weights read for the 40 words of the story? A *pass* is one way of some tokens
# through all weights: prefill was one, each decode step another. And how long does a token
# take, after the one before? Nobody watches this time, since to draw takes processor time too: the
# same question runs ten times without a picture.

# %% tags=["nbval-ignore-output"]
story_run = engine.trace.select(request=0)
passes = [event for event in story_run if event.name in ("prefill", "decode step")]
reveal(readings, predicted=40, measured=len(passes))

# %% tags=["nbval-ignore-output"]
later = [engine.generate(prompt, greedy)[0].tpot for _ in range(10)]  # means, each of a run
alone = Comparison({"a token": later}, unit="ms")
reveal(mine, predicted=1e3 * floor, measured=[1e3 * s for s in later])
print(alone.against("predicted", floor))

# %% [markdown]
# What is on top of the reading? Ids go in, numbers are multiplied, attention looks at the KV cache,
# cores wait for each other, logits come out, a token is chosen. Lesson 02 looks for the size of a
# model at which a step comes close to its floor.
#
# And the prompt ten times as long? 13 tokens and 130 run in turns, so that a busy moment of the
# machine meets both.

# %% tags=["nbval-ignore-output"]
def prefill_seconds(tokens: int) -> float:
    ids = engine.tokenizer.encode(prompt)[:tokens]
    engine.generate([ids], SamplingParams(max_tokens=1))
    return engine.trace.select(name="prefill")[-1].seconds


prompts = compare({"the short prompt": lambda: prefill_seconds(13),
                   "the long one": lambda: prefill_seconds(130)}, unit="ms")  # fmt: skip
reveal(longer, predicted=10, measured=prompts.ratio("the long one", "the short prompt"))
print(prompts.sentence)
low, high = prompts.spread("the long one", "the short prompt")
print("Under ten times: the tokens share what a pass pays once." if high < 10 else
      "Over ten times: more text to look back at, other code for many tokens, or a busy machine."
      if low > 10 else
      "Ten lies within the noise: that all tokens share one reading does not show.")  # fmt: skip

# %% [markdown]
# ## What fills the memory
#
# On top of the weights stands the KV cache. For each token it keeps a key and a value, in each
# layer, for each *kv head* (a layer looks back at the text in several ways at once): 2 · layers ·
# kv heads · head size · 2 bytes. It grows a *page* at a time, room for 16 tokens, and all pages
# come free at the end. The last token was chosen and never read, so it has no place. Here is the
# sum.

# %%
model = engine.model_config
kv_bytes = 2 * model.num_hidden_layers * model.num_key_value_heads * model.head_dim * 2
kept_tokens = len(engine.tokenizer.encode(prompt)) + len(pieces) - 1
pages, page_bytes = -(-kept_tokens // 16), 16 * kv_bytes  # pages are rounded up
most = max(event.nbytes for event in engine.trace.select(kind="counter", label="kv"))
assert kv_bytes == engine.kv_bytes_per_token and most == pages * page_bytes
assert "kv" not in machine.hbm.by_label
print(f"{kv_bytes:,} bytes a token; {kept_tokens} tokens in {pages} pages of "
      f"{format_size(page_bytes)}: {format_size(most)}")  # fmt: skip

# %% [markdown]
# ## The loop
#
# This is all of it in code: one token for each round. The comments say where the bytes go.

# %%
import inspect

print(inspect.getsource(Engine.step).rstrip())

# %% [markdown]
# ## Break it: forget a part of the cache
#
# The code of Mia's chest was told at the beginning. We forget the keys and values of the first half
# of the prompt once it is read (but the very first, on which models rest), and ask the same
# question. The weights are untouched. What will the model say?

# %%
def ask(forgotten: int) -> str:
    engine.kv.forget = lambda tokens: range(1, 1 + forgotten)
    [kept] = engine.generate(prompt, greedy)
    engine.kv.forget = None
    return kept.text.strip()


for forgotten in (0, 70):
    print(f"{forgotten:2} tokens forgotten: {ask(forgotten)}")
assert "4713" in ask(0) and "4713" not in ask(70)

# %% [markdown]
# How few are enough? The digits are the tokens 8 to 11. If each that is forgotten were one digit
# lost, the answers would follow the dashed line. The points are answers. Drag the slider: the
# engine reads the whole prompt anew, forgets so many tokens, and what it says stands above.

# %% tags=["nbval-ignore-output"]
def right_digits(text: str) -> int:
    return sum(a == b for a, b in zip(text.rstrip(".")[-4:], "4713", strict=False))


found = [(n, right_digits(ask(n)), "") for n in (0, 4, 7, 8, 9, 10, 11, 16)]


def draw(forgotten=8):
    text = ask(forgotten)
    return charts.curve(
        text or "It says nothing", {"": lambda n: 4 - min(4, max(0, n - 7))}, range(17),
        points=[*found, (forgotten, right_digits(text), "this answer")], log="", span=(-0.4, 4.4),
        x="tokens forgotten", y="digits right (of 4)", note="dashed: digits that the cache holds",
    )  # fmt: skip


knob(draw, forgotten=(0, 16))

# %% [markdown]
# The model does not know that it forgot: it answers in the same calm voice. Whatever we do with the
# cache in this course, we check the *answers* too.
#
# ## Where it loses: less HBM
#
# Now we make HBM so small that the weights do not fit. The error comes before a single weight is
# read. A budget for the weights and a hundred tokens is enough to load, but not for our prompt.
# That is the common case on real servers: the model fits, and the *conversations* do not.

# %%
for budget in (8 * 2**20, weight_bytes + 100 * kv_bytes):
    try:
        small = Engine.load("data/town", Machine.here(hbm=budget))
        next(small.stream(prompt, greedy))
    except OutOfMemory as error:
        print(error)
small.close()

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
#
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
# ## Three takeaways, with the numbers of your run, and your guesses

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

# %%
guesses()

# %% [markdown]
# **Next:** `01_machine_tiers`. How fast is each tier of *your* machine? There we measure the
# ceilings that every number of the course is held against.
