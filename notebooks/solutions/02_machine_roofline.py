"""The exercises of lesson 02, solved.

Try them in the notebook first; `hint("02.1")` helps there.
"""

import math

from minillm.lesson import Case, exercise, wrong


@exercise(
    "02.1",
    cases=[
        Case([(4, 3), (2, 4)], (6, 2), 1, expect=(64, 64),
             because="20 weights in the layers and 12 in the output: 2 FLOP and 2 bytes for each"),
        Case([(4, 3), (2, 4)], (6, 2), 5, expect=(224, 64),
             because="the layers' 20 weights work for 5 tokens, 200 FLOP, the output's 12 for one, "
             "24; all 32 are read once"),
        Case([], (6, 2), 5, expect=(24, 24),
             because="without layers there is only the output, and it scores one token"),
        Case([(576, 576)] * 2, (49152, 576), 200, expect=(322_043_904, 57_950_208),
             because="with a large vocabulary the output is most of the bytes, and little of the "
             "FLOP"),
    ],
    hints=[
        "How many weights has a matrix of N rows and K columns? Add them up.",
        "Bytes do not depend on the tokens: each weight is read once, 2 bytes.",
        "FLOP: 2 for each weight of the layers and each token, and 2 for each weight of the "
        "output, once.",
    ],
)  # fmt: skip
def work(layers, output, tokens):
    """(FLOP, bytes) of a pass that reads `tokens` tokens and scores the last one.

    layers: (N, K) of each matrix; output: (N, K) of the one with the vocabulary. Weights are bf16,
    2 bytes. Attention's own products are left out: they are few, as long as the text is short.

    The usual wrong answer reads the weights anew for each token. That every token shares one
    reading is why prefill is fast.
    """
    inside, scores = sum(N * K for N, K in layers), output[0] * output[1]
    return 2 * inside * tokens + 2 * scores, 2 * (inside + scores)


@wrong("02.1", says="The weights are read anew for each token. All tokens of a pass share one "
       "reading: bytes do not grow with them.")  # fmt: skip
def reads_for_each_token(layers, output, tokens):
    flops, nbytes = work(layers, output, tokens)
    return flops, nbytes * tokens


@wrong("02.1", says="All tokens are scored here. Only the last one's scores are wanted: the output "
       "works once.")  # fmt: skip
def scores_every_token(layers, output, tokens):
    nbytes = work(layers, output, tokens)[1]
    return nbytes * tokens, nbytes


@wrong("02.1", says="One FLOP for each weight. It is multiplied, and the product is added: two.")
def counts_one_flop(layers, output, tokens):
    flops, nbytes = work(layers, output, tokens)
    return flops // 2, nbytes


@exercise(
    "02.2",
    cases=[
        Case(100, 0, 60, 20, expect=3,
             because="without a KV cache the intensity is the batch, and the ridge is at 60 ÷ 20"),
        Case(100, 0, 50, 20, expect=3,
             because="the ridge is at 2.5, and there is no half a text"),
        Case(100, 20, 60, 20, expect=5,
             because="at a batch of 4 there are 800 FLOP for 280 bytes, 2.9 for each; at 5, 1000 "
             "for 300"),
        Case(100, 100, 60, 20, expect=None,
             because="each text brings 200 FLOP and 100 bytes: the intensity stays below 2, and "
             "the ridge is at 3"),
        Case(100, 50, 80, 20, expect=None,
             because="it comes ever nearer to 4, where the ridge is, and never reaches it"),
        Case(8_030_000_000, 0, 989.4e12, 3350e9, expect=296,
             because="the ridge of an H100 is at 295.3 FLOP per byte"),
    ],
    hints=[
        "FLOP of a step: 2 · weights · b. Bytes: 2 · weights + b · kv.",
        "Arithmetic holds it back once FLOP ÷ flops is at least bytes ÷ bandwidth. Both sides grow "
        "with b: which one grows faster?",
        "Bring b to one side: b · (2 · weights ÷ flops - kv ÷ bandwidth) is at least 2 · weights ÷ "
        "bandwidth. If the bracket is not above zero, it never happens. Else divide, round up.",
    ],
)  # fmt: skip
def batch_at_ridge(weights, kv, flops, bandwidth):
    """The smallest batch whose decode step is held back by arithmetic; None if there is none.

    weights: how many, of 2 bytes. kv: bytes that are read for each text. flops and bandwidth: a
    second, of the machine.

    The usual wrong answer forgets the KV cache, of which every text brings its own: no batch
    makes its reading any cheaper. With long texts decode never leaves the memory's roof.
    """
    gain = 2 * weights * bandwidth - kv * flops  # the bracket, times flops and bandwidth
    return math.ceil(2 * weights * flops / gain) if gain > 0 else None


@wrong("02.2", says="The KV cache is left out. Each text reads its own, and no batch shares that.")
def forgets_the_cache(weights, kv, flops, bandwidth):
    return math.ceil(flops / bandwidth)


@wrong("02.2", says="As if all texts shared one KV cache: each brings `kv` bytes of its own.")
def shares_the_cache(weights, kv, flops, bandwidth):
    return math.ceil((2 * weights + kv) * flops / (2 * weights * bandwidth))


@wrong("02.2", says="Rounded down: that batch is still under the memory's roof. Round up.")
def rounds_down(weights, kv, flops, bandwidth):
    gain = 2 * weights * bandwidth - kv * flops
    return int(2 * weights * flops / gain) if gain > 0 else None


@exercise(
    "02.3",
    cases=[
        Case(100, 50, 10, 500, 1000, 1e9, expect=6,
             because="200 bytes of weights leave 300 for the texts, 50 each"),
        Case(100, 50, 10, 1e9, 40, 1e9, expect=4,
             because="in 10 seconds 400 bytes are read, 200 of them weights: 4 texts' worth is "
             "left"),
        Case(100, 50, 10, 1e9, 1e9, 60, expect=3,
             because="600 FLOP in 10 seconds, 200 for each user"),
        Case(100, 50, 10, 150, 1000, 1e9, expect=0,
             because="not even the weights fit"),
        Case(70_600_000_000, 8_000 * 327_680, 0.05, 640e9, 26.8e12, 7915.2e12, expect=190,
             because="the memory's size is what runs out first; its bandwidth would serve 457, the "
             "arithmetic 2,802"),
    ],
    hints=[
        "Find the most users for each of the three alone; the smallest of the three counts.",
        "Size: what the weights leave of `hbm`, divided by kv. Bandwidth: what a step may read in "
        "`seconds`, less the weights, divided by kv.",
        "Arithmetic: seconds · flops FLOP in a step, 2 · weights for each user. Round down, and "
        "not below 0.",
    ],
)  # fmt: skip
def most_users(weights, kv, seconds, hbm, bandwidth, flops):
    """How many users a server holds, each of whom gets a token every `seconds`.

    weights: how many, of 2 bytes. kv: bytes of one user's keys and values. hbm: bytes; bandwidth
    and flops: a second; all of the whole server.

    The usual wrong answer looks at one limit, often the arithmetic, which data sheets print
    largest. It is the last to run out here.
    """
    size = (hbm - 2 * weights) / kv
    read = (seconds * bandwidth - 2 * weights) / kv
    computed = seconds * flops / (2 * weights)
    return max(0, math.floor(min(size, read, computed)))


@wrong("02.3", says="Only the arithmetic is asked. The memory's size and its bandwidth can run out "
       "before.")  # fmt: skip
def asks_the_arithmetic(weights, kv, seconds, hbm, bandwidth, flops):
    return max(0, math.floor(seconds * flops / (2 * weights)))


@wrong("02.3", says="The weights are forgotten: they take room too, and are read in every step.")
def forgets_the_weights(weights, kv, seconds, hbm, bandwidth, flops):
    computed = seconds * flops / (2 * weights)
    return max(0, math.floor(min(hbm / kv, seconds * bandwidth / kv, computed)))


@wrong("02.3", says="Only what fits is counted. In `seconds` a step must also read all of it.")
def asks_the_size(weights, kv, seconds, hbm, bandwidth, flops):
    return max(0, math.floor((hbm - 2 * weights) / kv))
