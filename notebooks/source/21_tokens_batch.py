# %% [markdown]
# # 21 · What does the CPU hand to the GPU?
#
# <img src="images/strip_tokens.png" width="672" alt="The five stages of the course. You are here:
# 2 tokens, text becomes ids.">
#
# Eight people ask at once, and their texts differ in length. The GPU wants one tensor. How are
# texts put together, what does it cost, and how do the ids get there? *Forty minutes; the code
# behind it: [`tokens/batch.py`](../minillm/tokens/batch.py),
# [`engine/runner.py`](../minillm/engine/runner.py).*

# %% tags=["nbval-ignore-output"]
import inspect
import json
from contextlib import ExitStack
from itertools import pairwise
from random import Random

import torch

from minillm import Engine, EngineConfig, Machine, ModelConfig, SamplingParams, charts, predict
from minillm.files import locate
from minillm.lesson import check, compare, guess, guesses, hint, knob, recall, reveal

machine = Machine.here(hbm="512 MiB")
exam = [json.loads(line) for line in locate("data/eval/skills.jsonl").open()]
print(machine.describe())

# %% [markdown]
# Six words:
#
# - **batch**: texts that one pass runs together.
# - **padded**: each text is a row, filled up to the longest; what fills it is padding.
# - **mask**: says which places of a row hold a token.
# - **packed**: all tokens lie one after the other, and `cu_seqlens` says where each text begins.
# - **position**: where a token stands in its own text, from 0 on.
# - **staging buffer**: a place in DRAM that ids pass on their way to HBM. On a card it is *pinned*:
#   the card reads it by itself.

# %% [markdown]
# ## Four parties at an inn
#
# Parties of 6, 3, 2 and 1 come. The inn has tables for six only: 24 chairs for 12 guests,
# half of them empty. Or one long bench: 12 places, and chalk marks at 0, 6, 9, 11 and 12 say where
# a party begins and ends.
#
# The cook serves each place, whether somebody sits there or not. So the waste is
# **1 − Σn ÷ (B · longest)** for B parties of n guests, and tables take **1 ÷ (1 − waste)** times as
# long as the bench.

# %%
def places(parties: list) -> tuple[int, int]:
    """Chairs at equal tables, and on a bench."""
    return len(parties) * max(parties), sum(parties)

# %%
tables, bench = places([6, 3, 2, 1])
print(f"{tables} chairs or {bench}: waste {1 - bench / tables:.0%}, time × {tables / bench:.1f}")

# %% [markdown]
# ## Predict
#
# Eight questions of *town*'s exam, from 6 to 152 tokens. They run as one batch, padded, then
# packed. And one prompt of 510 tokens: of the time from Enter to its first word, which share does
# the tokenizer take?

# %% tags=["nbval-ignore-output"]
engine = Engine.load("data/town", machine, EngineConfig(dtype="float32", kernels="torch"))
tokenizer, model, config = engine.tokenizer, engine.model, engine.model_config
every = {len(ids): ids for ids in (tokenizer.encode(q["prompt"]) for q in exam)}
texts = [every[length] for length in (152, 88, 50, 39, 13, 9, 7, 6)]
print("tokens:", lengths := list(map(len, texts)))

# %% tags=["nbval-ignore-output"]
empty = guess("places that are padding", unit="%")
longer = guess("time, padded ÷ packed", unit="×")
share = guess("tokenizer, of the time to the first token", unit="%")

# %% [markdown]
# ## Run
#
# The model takes a flat row of ids, a position for each, and `attend`: who looks at whom. Padded,
# a mask for the whole rectangle. Packed, text by text. (Padding looks at itself, for a softmax over
# nothing is not a number; what comes of it, nobody reads.)

# %%
import torch.nn.functional as F

from minillm.model.attention import causal
from minillm.tokens.batch import Staging, buckets, pack, pad, padding_waste


def in_rows(mask):
    """Attention in a rectangle: at tokens of the same row, not later than oneself. mask (B, T)"""
    B, T = mask.shape
    seen = (torch.ones(T, T).tril().bool() & mask[:, None].bool()) | torch.eye(T).bool()
    seen = seen[:, None].to(machine.device)  # (B, 1, T, T): the same for all heads

    def attend(layer, q, k, v):
        q, k, v = (t.unflatten(0, (B, T)).transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, seen, enable_gqa=True)
        return out.transpose(1, 2).flatten(0, 1)

    return attend


def text_by_text(cu_seqlens):
    """Attention in a packed batch: causal, in each text by itself."""
    spans = [slice(*span) for span in pairwise(cu_seqlens.tolist())]
    return lambda layer, *qkv: torch.cat([causal(layer, *(t[s] for t in qkv)) for s in spans])

# %%
staging = Staging(machine, 4096, ExitStack())
model.prepare(512, machine.device)


@torch.no_grad()
def forward(ids, positions, attend, wanted):
    """Ids through the staging buffer to HBM, the model over them: logits of the wanted rows."""
    positions, wanted = (t.flatten().to(machine.device) for t in (positions, wanted))
    logits = model(staging.send(ids), positions, attend, wanted)
    machine.sync()
    return logits


def run_padded(texts):
    ids, mask, positions = pad(texts)
    last = mask.sum(1) - 1 + torch.arange(len(texts)) * ids.shape[1]
    return forward(ids.tolist(), positions, in_rows(mask), last)


def run_packed(texts):
    ids, cu_seqlens, positions = pack(texts)
    return forward([ids.tolist()], positions, text_by_text(cu_seqlens), cu_seqlens[1:].long() - 1)

# %% [markdown]
# Each text must get the logits that it gets alone. Then both ways take turns. Predicted: the inn's
# arithmetic, and the same with attention, which grows with the square of a row.

# %%
alone = torch.cat([run_packed([ids]) for ids in texts])
for run in (run_padded, run_packed):
    assert (run(texts) - alone).abs().max() < 1e-5 * alone.abs().max()
sent = [move.nbytes for move in machine.trace.select(kind="transfer", label="ids")][-2:]
print("ids sent: padded {:,} B, packed {:,} B".format(*sent))

# %% tags=["nbval-ignore-output"]
both = compare({"padded": lambda: run_padded(texts), "packed": lambda: run_packed(texts)},
               unit="ms")  # fmt: skip
square = predict.prefill(config, "H100", len(texts), max(lengths)).flops  # the same on any card
square /= sum(predict.prefill(config, "H100", 1, n).flops for n in lengths)
reveal(empty, predicted=100 * padding_waste(lengths), measured=100 * (1 - sent[1] / sent[0]))
reveal(longer, predicted=1 / (1 - padding_waste(lengths)), measured=both.ratio("padded", "packed"))
print(f"{both.sentence}; with attention {square:.2f} × predicted")

# %% [markdown]
# Bytes are exact, for the trace counts them. Time is near the prediction where places are what
# costs; starts of operations and a busy machine come on top.
#
# ## First rung, yours: pack
#
# Return three lists: the ids, one text after the other; `cu_seqlens`, where each text begins, and
# the end; the position of each token in its own text. `[[7, 8, 9], [5]]` gives
# `[7, 8, 9, 5]`, `[0, 3, 4]`, `[0, 1, 2, 0]`.

# %%
def packed(ids_lists: list) -> tuple[list, list, list]:
    raise NotImplementedError  # your lines, or hint("21.1"); without them the lesson uses ours

packed = check("21.1", packed)

# %%
mine = packed([list(ids) for ids in texts])  # copies: it may write into them
for one, theirs in zip(mine, pack(texts), strict=True):
    assert list(one) == theirs.tolist()
print("cu_seqlens:", mine[1])
print(f"def pack{inspect.getsource(pack).split('def pack')[1].split(chr(34) * 3)[0].rstrip()}",
      inspect.getsource(pack).split(chr(34) * 3)[-1].rstrip(), sep="")  # fmt: skip

# %% [markdown]
# ## Second rung: the rectangle
#
# The batch that was sent, drawn: a query is a row of the square, a key a column, and where they
# meet is a score. Each text looks at itself alone. What is white is not computed; pale is computed,
# and nobody wants it. Drag: take texts away, the shortest first, or pad on the other side.

# %% tags=["nbval-ignore-output"]
def squares(mask):
    """Padded: for each text a square as large as the longest needs; mask (B, T)."""
    T = mask.shape[1]
    real = mask[:, :, None] * mask[:, None] * torch.ones(T, T).tril()
    return torch.block_diag(*(0.3 + 0.7 * real)).numpy()


def draw(texts_sent=8, side="right"):
    some = texts[:texts_sent]
    bare = torch.block_diag(*(torch.ones(len(ids), len(ids)).tril() for ids in some)).numpy()
    return charts.looks(
        f"{len(some)} texts: {padding_waste(lengths[:texts_sent]):.0%} of the places are padding, "
        f"{1 - bare.sum() / len(some) / max(lengths) ** 2:.0%} of the scores are for nobody",
        {"padded": squares(pad(some, side).mask), "packed": bare},
        note="dark: wanted · pale: computed for nobody · by the masks of the batch")  # fmt: skip


knob(draw, texts_sent=(2, 8), side=["right", "left"])

# %% [markdown]
# Half a square is pale even in the longest text: a mask hides what comes later, and does not save
# it. Packed, attention is told that nobody looks ahead, and leaves most of that half out.
#
# ## Third rung: texts of like length
#
# Some models and cards want rectangles. Then put texts of like length together: `buckets` sorts
# them, and begins a new batch when a rectangle would have more than `most` places.

# %%
print(inspect.getsource(buckets).split(chr(34) * 3)[-1].rstrip())
groups = buckets(lengths, most=200)
padded = sum(len(group) * max(lengths[n] for n in group) for group in groups)
print([[lengths[n] for n in group] for group in groups])
print(f"places: {places(lengths)[0]:,} in one, {padded} in buckets, {sum(lengths)} packed")

# %% tags=["nbval-ignore-output"]
def run_buckets(texts):
    return [run_padded([texts[n] for n in group]) for group in groups]


ways = {"one rectangle": run_padded, "buckets": run_buckets, "packed": run_packed}
three = compare({name: lambda run=run: run(texts) for name, run in ways.items()}, 3, unit="ms")
for name, count in zip(ways, (places(lengths)[0], padded, sum(lengths)), strict=True):
    print(f"{name}: {count / sum(lengths):.2f} × the time of packed predicted, "
          f"{three.ratio(name, 'packed'):.2f} × measured")  # fmt: skip
print(three.sentence)

# %% [markdown]
# A bucket is a pass, and each pass reads all weights. Four hundred requests, most of them short,
# some very long. Drag the size of a bucket: what falls, what rises?

# %% tags=["nbval-ignore-output"]
chance = Random(21)
day = [min(2000, 1 + int(chance.lognormvariate(4.5, 1.1))) for _ in range(400)]


def rest(most: float) -> float:
    """Padding of all buckets, in percent of their places."""
    rows = [[day[n] for n in group] for group in buckets(day, int(most))]
    return 100 * (1 - sum(day) / sum(places(row)[0] for row in rows))


def draw_buckets(most=8192):
    return charts.curve(
        f"Buckets of {most:,} places: {rest(most):.0f} % padding, "
        f"{charts.counted(len(buckets(day, most)), 'pass')}",
        {"": rest}, [2 ** (n / 2) for n in range(22, 37)], at=most, unit="%",
        x="bucket (places)", y="padding")  # fmt: skip


knob(draw_buckets, most=(2048, 262144))

# %% [markdown]
# Small buckets: little padding, many passes, and a text waits until others of its length have come.
#
# ## Break it: pad on the left
#
# An answer grows at the end of its text. Padded on the right, that end lies in another column of
# each row; so many programs pad on the left. Then a text begins in mid-row. Three things can go
# wrong: the mask is forgotten; positions are counted from the edge of the row; or from the edge for
# the prompt, and by tokens for the answer.

# %%
def answers(ids, mask, positions, first=None, tokens=11):
    """Greedy, the rectangle anew for each token; first (B, 1): position of the first new one."""
    ids, mask, positions = map(torch.as_tensor, (ids, mask, positions))
    first = positions[:, -1:] + 1 if first is None else first
    for n in range(tokens):
        last = torch.arange(1, len(ids) + 1) * ids.shape[1] - 1
        logits = forward(ids.tolist(), positions, in_rows(mask), last)
        ids = torch.cat([ids, logits.argmax(1, keepdim=True).cpu()], 1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        positions = torch.cat([positions, first + n], 1)
    said = map(tokenizer.decode, ids[:, -tokens:].tolist())
    return [text.split("\n")[0].split(".")[0].strip() for text in said]


asked = [tokenizer.decode(texts[2]), "Which stage runs attention?", "What is KV short for?"]
rows = [tokenizer.encode(question) for question in asked]
greedy = SamplingParams(max_tokens=11, temperature=0.0, stop=".")
right = [one.text.strip() for one in engine.generate(rows, greedy)]

# %%
ids, mask, positions = pad(rows, "left")
edge, counted = torch.arange(ids.shape[1]).expand_as(ids), mask.sum(1, keepdim=True)
seen = {"as it should be": answers(ids, mask, positions),
        "no mask": answers(ids, torch.ones_like(mask), positions),
        "all from the edge": answers(ids, mask, edge),
        "prompt from the edge, answer by tokens": answers(ids, mask, edge, counted)}  # fmt: skip
for how, said in seen.items():
    print(f"{how}:", *said, sep="\n    ")
assert [said == right for said in seen.values()] == [True, False, True, False]
assert all(said[0] == right[0] for said in seen.values())  # the longest has no padding

# %% [markdown]
# No error, and the longest text, without padding, is right in all four. Without a mask the others
# read padding as text; one that is right only hides the fault.
#
# Why is the third right? With rotary positions a score depends on the *difference* of two:
# shifted all alike, nothing changes but rounding. With a learned vector for each position (GPT-2)
# it would be wrong. In the fourth, a prompt of n tokens ends at the edge, but its answer begins at
# n, before it or inside: wrong differences.

# %% [markdown]
# ## Fourth rung, yours: mend it
#
# Fill up with id 0 on the left. Return three lists of rows: ids; mask, 1 for a token and 0 for
# padding; positions, counted from the text's first token, and 0 for padding.

# %%
def left_padded(ids_lists: list) -> tuple[list, list, list]:
    raise NotImplementedError  # or hint("21.2")

left_padded = check("21.2", left_padded)

# %%
mine = left_padded([list(ids) for ids in rows])
assert answers(*mine) == right
for one, theirs in zip(mine, pad(rows, "left"), strict=True):
    assert torch.equal(torch.as_tensor(one), theirs.to(torch.int64))
print("mended:", *right, sep="\n    ")

# %% [markdown]
# ## Break it: a batch without marks
#
# Packed, `cu_seqlens` is the wall between people: with it, each gets what he gets alone. One tells
# a code; another asks for it, in the same batch. We forget the marks, so that all is one text.

# %%
tells = tokenizer.encode("Tom lives near the mill. The code of Mia's chest is 4713.")
asks = tokenizer.encode("\nWhat is the code of Mia's chest?")
one_row = torch.tensor([tells + asks])
leak = answers(one_row, torch.ones_like(one_row), torch.arange(one_row.shape[1])[None])
own = answers(*left_padded([asks]))
print(f"alone:         {own[0]}\nwithout marks: {leak[0]}")
assert "4713" in leak[0] and "4713" not in own[0]

# %% [markdown]
# Alone, the model invents a code. Without the marks it tells a stranger's.
#
# ## The way to HBM
#
# The engine packs. Before each pass it writes the ids of all requests into its staging buffer, one
# after the other, and copies it to HBM: the buffer is made once. Watch the five longest texts, four
# times each; then choose a word in the player: the strip below it shows where its time went, and
# below that, how many bytes of ids came in.

# %%
fast = Engine.load("data/town", machine, EngineConfig(prefix_cache=False))
fast.generate(exam[0]["prompt"], greedy)  # the first time warms up
print(inspect.getsource(Staging.send).split(chr(34) * 3)[-1].rstrip())

# %% tags=["nbval-ignore-output"]
machine.trace.clear()
with charts.watch(machine.trace, "timeline"):
    for ids in texts[:5] * 4:
        for _ in fast.stream(tokenizer.decode(ids), greedy):
            pass
cpu, run = ([e.seconds for e in machine.trace.select(name=n)] for n in ("tokenize", "prefill"))
watched = [100 * a / (a + b) for a, b in zip(cpu, run, strict=True)]

# %% [markdown]
# Now the prompt of 510 tokens, five times, and where its time to the first token goes. Predicted:
# the middle share that the tokenizer had of those that we watched, as if both parts grew alike
# with the text.

# %% tags=["nbval-ignore-output"]
prompt = next(q["prompt"] for q in exam if len(tokenizer.encode(q["prompt"])) == 510)
parts, shares = {}, []
for _ in range(5):
    machine.trace.clear()
    ttft = fast.generate(prompt, SamplingParams(max_tokens=1, temperature=0.0))[0].ttft
    events = [e for e in machine.trace.events if e.name not in ("attention", "ffn")]
    events = [e for e in events if e.kind != "counter"]
    parts = {e.name: (min(e.seconds, parts.get(e.name, (1, 0))[0]), e.nbytes) for e in events}
    shares.append(100 * next(e.seconds for e in events if e.name == "tokenize") / ttft)
reveal(share, predicted=sorted(watched)[len(watched) // 2], measured=shares)
for name, (seconds, nbytes) in parts.items():
    print(f"{name:22} {1e6 * seconds:8,.0f} µs" + f" {nbytes:11,} B" * bool(nbytes))
assert parts["copy ids dram->hbm"][1] == 8 * 510

# %% [markdown]
# The least of five each. Bytes of *prefill* are the weights and keys and values that it reads. 510
# ids of 8 bytes are 4 KB. What is that for a link? And what is the tokenizer's share where the
# model is large and the card is fast? The tokenizer's time is this machine's; the rest follows from
# data sheets.

# %%
pcie = predict.find_hardware("H100").pcie
print(f"PCIe of an H100: {1e6 * 8 * 510 / pcie.bandwidth:.2f} µs for the bytes, "
      f"{1e6 * pcie.latency:.1f} µs latency (predicted)")  # fmt: skip

# %% tags=["nbval-ignore-output"]
eight = ModelConfig(128256, 4096, 14336, 32, 32, 8, dtype="bfloat16")  # Llama-3-8B
for n in (510, 5100):
    least, cpu = predict.prefill(eight, "H100", tokens=n).seconds, parts["tokenize"][0] * n / 510
    print(f"Llama-3-8B, {n:,} tokens: prefill at least {1e3 * least:.1f} ms, tokenizer "
          f"{1e3 * cpu:.1f} ms, {cpu / (least + cpu):.0%} of both")  # fmt: skip

# %% [markdown]
# The latency is more than the time of the bytes, so one copy for the whole batch, and not one a
# request.
#
# ## Pinned or pageable
#
# The system may move a page of ordinary memory; then a card cannot read it by itself: the driver
# copies it into a pinned buffer first. A pinned page stays where it is.

# %% tags=["nbval-ignore-output"]
def copied(size: int):
    """Bytes to the card, from both kinds of memory, in turns."""
    on_card = machine.empty((size,), torch.uint8, "hbm", "ids")
    sources = {"pinned": machine.empty((size,), torch.uint8, "dram", "ids"),
               "pageable": torch.zeros(size, dtype=torch.uint8)}  # fmt: skip

    def once(source):
        machine.copy(source, on_card, label="ids", stage="tokens")
        machine.sync()

    found = compare({n: lambda s=s: once(s) for n, s in sources.items()}, rounds=15, unit="µs")
    machine.free(on_card), machine.free(sources["pinned"])
    return found


if machine.emulated:
    print("No card here: HBM is a part of DRAM, no memory is pinned, and nothing is measured.")
else:
    print(*(f"{size:,} B: {copied(size).sentence}" for size in (8 * 510, 2**26)), sep="\n")

# %% [markdown]
# ## Where it loses
#
# Packed texts need attention that knows where each begins: here a loop in Python, on a card one
# kernel that reads `cu_seqlens`. Thirty-two texts of 4 tokens have no padding either way:

# %% tags=["nbval-ignore-output"]
short = [[0, 100 + n, 200, 300] for n in range(32)]
assert torch.allclose(run_padded(short), run_packed(short), atol=1e-3)
equal = compare({"padded": lambda: run_padded(short), "packed": lambda: run_packed(short)}, 3,
                unit="ms")  # fmt: skip
print(f"waste {padding_waste([4] * 32):.0%}; {equal.sentence}")

# %% [markdown]
# ## On paper: what does padding cost?
#
# A server runs requests in order of arrival, `B` at a time (the last batch has what is left), each
# batch padded to its own longest. A card takes `rate` places a second, padding or not, and costs
# `price` dollars an hour. How many dollars does the padding cost?

# %%
def padding_dollars(lengths: list, B: int, rate: float, price: float) -> float:
    raise NotImplementedError  # or hint("21.3")

padding_dollars = check("21.3", padding_dollars)

# %%
million = Random(7).choices(day, k=1_000_000)  # as many requests as come in a day
for order, some in (("order of arrival", million), ("order of length", sorted(million))):
    lost = padding_dollars(some, B=32, rate=60_000, price=3.0)
    whole = sum(some) / 60_000 / 3600 * 3.0
    print(f"in {order}: ${lost:,.2f} for padding, ${whole:,.2f} for tokens")

# %% [markdown]
# ## Five questions
#
# Answer each in your head, then open it.

# %% tags=["folded"]
recall(
    ("Texts of 100, 50 and 30 tokens, padded: which share is padding?",
     "180 of 300 places hold a token: 40 % is padding."),
    ("The same, packed: what is cu_seqlens?", "0, 100, 150, 180."),
    ("A text is padded on the left, masked, its positions counted from the edge of the row. Does a "
     "model with rotary positions answer otherwise?",
     "No: only differences of positions count, as long as its answer is counted on from there."),
    ("What goes wrong if a packed batch is run without its marks?",
     "Texts look at those before them: a stranger's words are in the answer."),
    ("Why does nobody notice the bytes of the ids on PCIe?",
     "8 bytes a token: a prompt of 500 is 4 KB, which takes less than the link's latency."),
)

# %% [markdown]
# ## Three takeaways, with the numbers of your run, and your guesses

# %% tags=["nbval-ignore-output", "folded"]
print(f"1. Padding was {padding_waste(lengths):.0%} of the places; {both.sentence}.")
other = sum(a != b for a, b in zip(right, seen["no mask"], strict=True))
print(f"2. Mask and marks keep texts apart: without a mask {other} of 3 answers changed.")
print(f"3. Of the time to the first token the tokenizer took {sorted(shares)[2]:.1f} %; "
      f"the ids were {8 * 510:,} bytes.")  # fmt: skip

# %%
guesses()

# %% [markdown]
# **Next:** `30_model_llama`. The ids are in HBM: what do attention and FFN compute with them?
