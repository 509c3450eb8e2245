# %% [markdown]
# # 20 · How does text become numbers?
#
# <img src="images/strip_tokens.png" width="672" alt="The five stages of the course. You are here:
# 2 tokens, text becomes ids.">
#
# A model knows no letters, only ids: rows of a table. Which part of a text gets an id, who decides
# that, and what does a text cost by it? At the end you have built a tokenizer that gives the ids of
# a library. *Forty-five minutes; the code behind it:
# [`tokens/bpe.py`](../minillm/tokens/bpe.py),
# [`tokens/tokenizer.py`](../minillm/tokens/tokenizer.py).*

# %% tags=["nbval-ignore-output"]
import inspect
import json
import time
from collections import Counter
from pathlib import Path

from IPython.display import display
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

import minillm
from minillm import Engine, EngineConfig, Machine, ModelConfig, SamplingParams, charts, predict
from minillm.lesson import check, compare, guess, guesses, hint, knob, recall, reveal
from minillm.tokens.bpe import ALPHABET, BPE, train

print(Machine.here().describe())

# %% [markdown]
# Six words:
#
# - **token**: a part of a text that has an id; all of them are the **vocabulary**.
# - **byte**: a text in UTF-8 is a row of them: one for "e", two for "é", three for "猫", four for
#   "😀".
# - **piece** (others say pre-token): what a text is split into first, such as a word with the
#   space before it.
# - **merge**: two neighbours, a *pair*, become one token. BPE, byte-pair encoding, is a list of
#   merges.
# - **mark** (special token): a token that stands for no text: `<|end|>`.

# %% [markdown]
# ## Thirteen bytes, by hand
#
# `low low lower` has three pieces: `low`, `␣low`, `␣lower`. Count neighbours: `l`+`o` comes three
# times, `o`+`w` too. A **tie**: we take the pair with the smaller ids, here `l`+`o`, for ids follow
# the alphabet. It becomes `lo`, everywhere. Now `lo`+`w` comes three times, and then `␣`+`low`
# twice.
#
# Each merge in a place takes one token away: **tokens = bytes − merges made**.

# %%
three = train(["low low lower"], size=256 + 3, pattern=r" ?\p{L}+", marks=[])  # pieces: words
ids = three.encode("low low lower")
assert len(ids) == 13 - (3 + 3 + 2)
print([three.tokens[token] for token in ids], "(Ġ is how files spell a space)")

# %% [markdown]
# ## Predict
#
# Forty characters each: an English sentence as in the stories that *town* was trained on; a line of
# Python; a Japanese sentence (`english` says the same). *town* has 4,096 tokens, all learned from
# English stories and a glossary. How many tokens is each of the three?

# %%
japanese = "猫が箱の中で赤い鍵を見つけた。それは古い家の鍵だったので、みんながとても喜んだ。"
texts = {"a story": "Tom put the red key under the big stone.",
         "Python": "def area(x, y):\n    return 3.142 * x * y", "Japanese": japanese}
english = "The cat found the red key in the box. It was of an old house, and all were very happy."
mine = {name: guess(f"{name}, 40 characters", unit="tokens") for name in texts}

# %% [markdown]
# ## Run
#
# The prediction is the arithmetic of above, piece by piece. A piece of n bytes that is in the
# vocabulary has had n − 1 merges. Of any other we know only that it has had none or more. So what
# is predicted is an upper limit. Below it the library's ids, which have to be ours.

# %% tags=["nbval-ignore-output"]
folder = Path(minillm.__file__).parents[1] / "data" / "town"
town = BPE.from_file(folder / "tokenizer.json")
letter = {byte: one for one, byte in ALPHABET.items()}  # as files spell bytes


def at_most(text: str) -> int:
    pieces = ["".join(letter[byte] for byte in piece.encode()) for piece in town.split(text)]
    return sum(len(p) - (len(p) - 1 if p in town.vocab else 0) for p in pieces)  # bytes − merges


for name, one in texts.items():
    reveal(mine[name], predicted=at_most(one), measured=len(town.encode(one)))
    assert len(town.encode(one)) <= at_most(one)

# %%
library = Tokenizer.from_file(str(folder / "tokenizer.json"))
for name, one in texts.items():
    ids = library.encode(one, add_special_tokens=False).ids
    assert town.encode(one) == ids and town.decode(ids) == one
    print(f"{name:9}{len(one):3} characters {len(one.encode()):4} bytes {len(ids):4} tokens")

# %% [markdown]
# ## Your text
#
# A piece that is known whole costs one token; what was never learned costs a token a byte. And the
# ids are the library's, one by one.
#
# Now write a text of your own into the second of these cells and run it. `·` is a space, `↵` a new
# line; what is no whole letter, or no Latin one, is shown as its bytes.

# %%
def readable(token: int) -> str:
    raw = bytes(ALPHABET[one] for one in town.tokens.get(token, ""))
    words = raw.decode(errors="replace").replace(" ", "·").replace("\n", "↵")
    plain = words.isprintable() and all(ord(one) < 0x250 for one in words)
    return words if plain and words else raw.hex(" ").upper() or "mark"

# %% tags=["nbval-ignore-output"]
text = ("Mia put the red key in the box, and Ben's code is 4713. "
        "Übung macht den Meister! 猫は鍵を見つけた。 😀")  # fmt: skip
ids, size = town.encode(text), charts.counted(len(text.encode()), "byte")
said = f"{charts.counted(len(text), 'character')}, {size}, {charts.counted(len(ids), 'token')}"
charts.pieces(said, [*map(readable, ids)], ids, note="below each token its id")

# %% [markdown]
# ## First rung: characters
#
# Let every character that was seen have an id. We take the first stories of *town*'s exam, and hold
# the ids against the library's `WordLevel`, a table of ids. What becomes of a character that was
# not seen?

# %%
exam = [json.loads(line)["prompt"] for line in (folder.parent / "eval" / "skills.jsonl").open()]
story, unseen = ("\n".join(exam[at : at + 24]) for at in (0, 24))
characters = {one: number for number, one in enumerate(sorted({*story}))}


def by_character(text: str) -> list:
    return [characters.get(one, len(characters)) for one in text]


rung = Tokenizer(models.WordLevel(characters | {"[?]": len(characters)}, unk_token="[?]"))
rung.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
for name, one in texts.items():
    assert by_character(one) == rung.encode(one).ids
    unknown = by_character(one).count(len(characters))
    print(f"{name}: {unknown} of {len(one)} characters get the id of [?]")

# %% [markdown]
# What has the id of `[?]` can never come back. And Unicode has some 160,000 characters: a row in
# the model's table for each, though most are rare.
#
# ## Second rung: bytes
#
# There are 256, and any text is made of them. Nothing is unknown; but the text is long, and each
# token costs.

# %%
bytes_only = BPE({one: at for at, one in enumerate(ALPHABET)}, [], town.pattern)
rung = Tokenizer(models.BPE(vocab=bytes_only.vocab, merges=[]))
rung.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
for one in (story, *texts.values()):
    ids = bytes_only.encode(one)
    assert ids == rung.encode(one).ids and bytes_only.decode(ids) == one
    print(f"{len(one):6,} characters {len(ids):6,} tokens, {len(town.encode(one)):6,} with merges")

# %% [markdown]
# ## Third rung, yours: the merge step
#
# `ids` of a piece, a `pair`, and the id it becomes, which is new. Merge everywhere, from left to
# right; pairs do not overlap: `aaa` has one.

# %%
def merge_pair(ids: list, pair: tuple, new: int) -> list:
    raise NotImplementedError  # your lines, or hint("20.1"); without them the lesson uses ours

merge_pair = check("20.1", merge_pair)

# %% [markdown]
# ## Yours, too: what to learn
#
# `words`: of each different piece its ids, and how often it comes. Which pair is learned next? The
# one that comes most often. A tie: the smaller first id, and if that is the same, the smaller
# second. Within a piece every place counts, so `aaa` counts twice, though only one can be merged.
# `None`: no pair.

# %%
def next_pair(words: list):
    raise NotImplementedError  # a tuple of two ids, or None; or hint("20.2")

next_pair = check("20.2", next_pair)

# %% [markdown]
# Both in a loop are the training of BPE. It starts with bytes, numbered in the order of their
# letters. Then the library's trainer on the same stories: are its merges yours?

# %%
def learn(story: str, merges: int, choose) -> list:
    """The pairs in the order in which they are learned, as ids."""
    number, learned = {byte: at for at, byte in enumerate(ALPHABET.values())}, []
    words = [([number[byte] for byte in piece.encode()], times)
             for piece, times in Counter(town.split(story)).items()]  # fmt: skip
    for new in range(256, 256 + merges):
        learned.append(choose(words))
        words = [(merge_pair(ids, learned[-1], new), times) for ids, times in words]
    return learned


def spelled(learned: list) -> list:
    """The same as a file spells it: ["Ġ", "t"]."""
    tokens, merges = list(ALPHABET), []
    for left, right in learned:
        merges.append([tokens[left], tokens[right]])
        tokens.append("".join(merges[-1]))
    return merges

# %%
trainer = trainers.BpeTrainer(vocab_size=256 + 150, show_progress=False,
                              initial_alphabet=list(ALPHABET))  # fmt: skip
theirs = Tokenizer(models.BPE())
theirs.pre_tokenizer = library.pre_tokenizer
theirs.train_from_iterator([story], trainer)
learned = spelled(learn(story, 150, next_pair))
assert learned == json.loads(theirs.to_str())["model"]["merges"]
assert learned == train([story], 256 + 150, town.pattern, marks=[]).merges
print("150 merges, all as the library's:", ["".join(pair) for pair in learned[:12]], "…")

# %% [markdown]
# ## Meet the package
#
# `steps` gives what a piece is after each merge. While it is merged, a piece is a string with a
# character for each id; so the merge step is Python's `str.replace`, which goes from left to right
# and does not overlap. `_made` has for each pair its place in the list of merges, and what it
# becomes: the pair that was *learned* first is merged first, not the leftmost and not the longest.

# %%
print(inspect.getsource(BPE.steps).split('"""')[-1].rstrip())
for word in town.steps(" simpler"):
    print(" | ".join(readable(ord(one)) for one in word))

# %% [markdown]
# ## Merges, live
#
# Your text, with the first merges of *town* only. Watch the blocks grow together; then the slider
# is yours. Which parts never do?

# %% tags=["nbval-ignore-output"]
def first(merges: int) -> BPE:
    return BPE(town.vocab, town.merges[:merges], town.pattern, town.marks)


def draw(merges=0) -> charts.Chart:
    ids = first(merges).encode(text)
    said = f"{charts.counted(merges, 'merge')}: {charts.counted(len(ids), 'token')}"
    note = f"{charts.counted(len(text.encode()), 'byte')}; town has 3,838 merges"
    return charts.pieces(said, [*map(readable, ids)], ids, note=note)


turned = knob(draw, merges=[0, 1, 3, 10, 30, 100, 300, 1000, 2000, 3838])
shown = display(turned, display_id=True)
for merges in (1, 3, 10, 30, 100, 300, 1000, 2000, 3838):
    turned.sliders["merges"].value = merges
    time.sleep(0.05)
shown.update(turned)

# %% [markdown]
# ## Turn the knob: tokens a character
#
# The first merges are the most frequent pairs. Of what? Of the stories. Drag to the end, and look
# at German and at numbers (*town* splits off every digit). A Japanese character says more than a
# letter does, so Japanese is compared below, sentence by sentence.

# %% tags=["nbval-ignore-output"]
more = texts | {"German": "Der rote Schlüssel liegt in einer Kiste.",
                "numbers": "4713 + 1290 = 6003; 3.1416 * 2 = 6.2832."}  # fmt: skip
steps = [1, 4, 16, 64, 256, 1024, 3838]
rates = {name: {n: len(first(n).encode(one)) / len(one) for n in steps}
         for name, one in more.items() if name != "Japanese"}  # fmt: skip


def draw_rates(merges=3838) -> charts.Chart:
    said = ", ".join(f"{name} {rate[merges]:.2f}" for name, rate in rates.items())
    dots = [(n, rate[n], "") for rate in rates.values() for n in steps]
    return charts.curve(f"{charts.counted(merges, 'merge')}, tokens a character: {said}",
                        {name: rate.get for name, rate in rates.items()}, steps, points=dots,
                        at=merges, x="merges", y="tokens a character", log="x",
                        note="dots: counted")  # fmt: skip


knob(draw_rates, merges=steps)

# %% [markdown]
# What was never in the stories is never merged: a tokenizer shows what it was trained on.
#
# ## What a prompt costs
#
# Each text six times, and `english`. If tokens are what counts, times go as their numbers do. Watch
# the first: text becomes ids on the CPU, ids go through DRAM to HBM, then come the layers. Then
# seconds until the first token, of each in turn, five times.

# %% tags=["nbval-ignore-output"]
machine = Machine.here(hbm="256 MiB")
engine = Engine.load(folder, machine, EngineConfig(prefix_cache=False))
prompts = {name: one * 6 for name, one in (texts | {"English": english}).items()}
with charts.watch(machine.trace, "machine"):
    engine.generate(prompts["a story"], SamplingParams(max_tokens=400, ignore_eos=True))

# %% tags=["nbval-ignore-output"]
def first_token(prompt: str) -> float:
    return float(engine.generate(prompt, SamplingParams(max_tokens=1))[0].ttft)


cost = compare({name: lambda one=one: first_token(one) for name, one in prompts.items()}, unit="ms")
tokens = {name: len(town.encode(prompt)) + 1 for name, prompt in prompts.items()}  # and BOS
for name, count in tokens.items():
    print(f"{name:8} {count:4} tokens, {count / tokens['a story']:4.1f} × predicted, "
          f"{cost.ratio(name, 'a story'):4.1f} × measured; {count / cost.median(name):6,.0f} tok/s")
print(cost.sentence)
made, passed = (machine.trace.select(name=name)[-1].seconds for name in ("tokenize", "prefill"))
print(f"English: {1e6 * made:.0f} µs for the ids, {1e3 * passed:.1f} ms for the last pass")

# %% [markdown]
# The two ratios need not be equal: a pass has a price of its own, and attention looks at all tokens
# before. Who writes what the tokenizer has not learned pays more tokens for the same: large models
# train theirs on many languages.
#
# ## How fast is it? A cache of pieces
#
# The ids of a piece are kept for when it comes again. Every eighth prompt of the exam, in CPU time:
# up to 65,536 pieces kept, none kept, and the library, which also notes where each token stands.

# %% tags=["nbval-ignore-output"]
def keeps(kept: int | None) -> BPE:
    return BPE(town.vocab, town.merges, town.pattern, town.marks, kept=kept)


some, ways = exam[::8], {"kept": town, "none kept": keeps(0), "the library": library}
speed = compare({name: lambda way=way: [*map(way.encode, some)] for name, way in ways.items()},
                unit="ms", clock=time.process_time)  # fmt: skip
rate = {name: sum(len(one.encode()) for one in some) / 1e6 / speed.median(name) for name in ways}
print(", ".join(f"{name}: {mb:.2f} MB/s" for name, mb in rate.items()), "(measured)")
print(speed.sentence)

# %% [markdown]
# ## Break it: a cache without an end
#
# How many different pieces has the exam? And a server reads for months, and somebody sends words
# that never come twice. Two caches: one without a limit, and one of 1,000 pieces. At last a word of
# 100,000 letters.

# %%
endless, bounded = keeps(None), keeps(1000)
[endless.encode(prompt) for prompt in exam]
found = endless.kept.cache_info()
print(f"the exam: {found.hits + found.misses:,} pieces, {found.misses:,} of them different")
for number in range(5000):
    word = "".join(chr(97 + number // 26**place % 26) for place in range(4))
    assert endless.encode(word) == bounded.encode(word)
before = bounded.kept.cache_info()
bounded.encode("x" * 100_000)
assert bounded.kept.cache_info() == before
print(f"5,000 words later: {endless.kept.cache_info().currsize:,} pieces, and growing; "
      f"with a limit {before.currsize:,}")  # fmt: skip

# %% [markdown]
# The same ids; only memory differs. The word of 100,000 letters was merged, and not kept: a limit
# on the number of pieces is none on their length.
#
# ## Break it: another tie rule
#
# Of equally frequent pairs the one with the *larger* ids; everything else stays. (minbpe, a
# well-known teaching code, takes the pair that was *seen first*: a third vocabulary.) How often
# does a tie decide, and what is learned then?

# %%
def larger_ids(words: list) -> tuple:
    count = Counter()
    for ids, times in words:
        for pair in zip(ids, ids[1:], strict=False):
            count[pair] += times
    best = max(count, key=lambda pair: (count[pair], pair))
    ties.append([*count.values()].count(count[best]))
    return best

# %%
ties = []
other = spelled(learn(story, 150, larger_ids))
print(f"{sum(many > 1 for many in ties)} of 150 merges were ties, of up to {max(ties)} pairs")
missing = sorted({"".join(pair) for pair in learned} - {"".join(pair) for pair in other})
print(f"of our 150 tokens {len(missing)} are not learned now: {missing[:6]}")

# %% [markdown]
# Encoding knows no ties: the file lists the merges in order. The rule decides in training, and no
# file says which it was. Who trains again by another rule gets another vocabulary; and a model
# reads nonsense in it, for ids are rows of *its* table.
#
# ## Break it: no pieces
#
# Why split first? Here a whole line is one piece, so pairs may reach over words. We encode stories
# that were not in training. Look for *the*.

# %%
for name, pattern in {"whole lines": "[^\n]+", "words": town.pattern}.items():
    bpe = train([story], 256 + 150, pattern, marks=[])
    pieces, the = bpe.split(unseen), [one for one in bpe.tokens.values() if "the" in one]
    print(f"{name}: {len(bpe.encode(unseen)):,} tokens; 'the' is in {the}; "
          f"{len({*pieces})} of {len(pieces):,} pieces differ")  # fmt: skip

# %% [markdown]
# Pairs that reach over a space may save tokens. The price: the model meets a word in many
# disguises, each with an id of its own, and has to learn every one. And a cache of whole lines
# finds few of them again.
#
# ## Where it loses
#
# Numbers, if digits merge: `4713` may be `47` + `13`, and the next number `471` + `4`. *town*
# splits off each digit. Letters: a model does not see that `simpler` has seven. Names and other
# scripts: many tokens. And a large vocabulary is a large table.

# %% [markdown]
# ## On paper: a larger vocabulary
#
# A model's vocabulary grows from `small` to `large` tokens: rows of `hidden` numbers of `nbytes`
# each, in `tables` tables (2 if the output has its own). A text then has `saved` tokens less, each
# of `token` bytes in the KV cache. How many texts at once pay for the larger tables?

# %%
def texts_to_pay(small, large, hidden, nbytes, tables, saved, token) -> int:
    raise NotImplementedError  # a whole number; or hint("20.3")

texts_to_pay = check("20.3", texts_to_pay)

# %%
llama = ModelConfig(128256, 4096, 14336, 32, 32, 8, dtype="bfloat16")  # Llama-3-8B
kv = predict.kv_bytes_per_token(llama)
for saved in (0.05, 0.15, 0.50):
    many = texts_to_pay(32_000, 128_256, 4096, 2, 2, round(saved * 8000), kv)
    print(f"8B, {saved:.0%} of 8,000 tokens saved: {many} texts at once pay for 96,256 rows more")

# %% [markdown]
# From 32,000 to 128,256 is the step from Llama 2 to Llama 3; its makers report up to 15 % fewer
# tokens. For languages that were costly before it is more. And every token saved in an answer is a
# decode step saved, though each step reads the larger output table.
#
# ## Five questions
#
# Answer each in your head, then open it.

# %% tags=["folded"]
recall(
    ("A text of 30 bytes, and 22 merges were made in it. How many tokens?",
     "8: each merge in a place takes one away."),
    ("Why is no text unknown to byte-level BPE?",
     "It begins with all 256 bytes, and any text is made of them."),
    ("`ab` and `bc` come five times each. Which is learned, and why does it matter?",
     "`ab`, its ids are smaller. With another rule the vocabulary differs, and ids with it."),
    ("A piece of a million times one letter: how many rounds of merges?",
     "Some twenty at most: each round merges a pair everywhere, and halves what is left."),
    ("Two prompts of 240 characters: why do their prefills differ?",
     "Time goes by tokens. What the vocabulary has never seen takes a token a byte."),
)

# %% [markdown]
# ## Three takeaways, with the numbers of your run, and your guesses

# %% tags=["nbval-ignore-output", "folded"]
counts = ", ".join(f"{name} {len(town.encode(one))} tokens" for name, one in texts.items())
print(f"1. Forty characters: {counts}.\n2. Time to the first token: {cost.sentence}.")
print(f"3. {found.misses:,} different pieces of {found.hits + found.misses:,}: "
      f"{rate['kept']:.1f} MB/s with a cache, {rate['none kept']:.2f} without (measured).")
guesses()

# %% [markdown]
# **Next:** `21_tokens_batch`. Many texts of many lengths: what does the CPU hand to the GPU?
