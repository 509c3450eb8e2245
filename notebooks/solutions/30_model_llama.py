"""The exercises of lesson 30, solved.

Try them in the notebook first; `hint("30.1")` helps there.
"""

from minillm.lesson import Case, exercise, wrong


@exercise(
    "30.1",
    cases=[
        Case(4, 8, 2, 1, 2, [4], expect=(304, 32),
             because="qkv has 32 weights, o 16, the three of the FFN 96, the norms 8: 152, of 2 "
             "bytes; each of 4 tokens left a key and a value, of 2 numbers each"),
        Case(4, 8, 2, 1, 2, [4, 4, 1], expect=(304, 72),
             because="three texts share the weights, and each reads its own keys and values, of 9 "
             "tokens in all"),
        Case(2048, 8192, 32, 8, 64, [4096], expect=(121_643_008, 8_388_608),
             because="8 kv heads of 64 numbers, a key and a value, 2 bytes: 2,048 bytes a token"),
        Case(2560, 9728, 32, 8, 128, [1], expect=(201_861_120, 4_096),
             because="32 heads of 128 are 4,096 numbers, more than the width of 2,560: E is its "
             "own number, not D ÷ H"),
    ],
    hints=[
        "A product that makes N numbers of K has N · K weights. qkv makes (H + 2 · K) · E numbers "
        "of D; o makes D of H · E.",
        "gate and up make `inner` numbers of D each; down makes D of `inner`. Then two norms of D.",
        "Keys and values: 2 · K · E numbers for each token that is seen, of each text. Both counts "
        "times 2 bytes.",
    ],
)  # fmt: skip
def block_bytes(D, inner, H, K, E, seen):
    """Bytes that one block reads in a pass: of weights, and of keys and values; bf16.

    seen: of each text in the pass, how many tokens it sees.

    The usual wrong answer counts keys and values for the H query heads. There are only K of each:
    that is what grouped-query attention is for.
    """
    weights = D * (H + 2 * K) * E + H * E * D + 3 * D * inner + 2 * D
    return 2 * weights, 2 * 2 * K * E * sum(seen)


@wrong("30.1", says="Keys and values were counted for the H query heads. They have K heads: query "
       "heads of a group share one.")  # fmt: skip
def a_key_for_each_query_head(D, inner, H, K, E, seen):
    return block_bytes(D, inner, H, K, E, seen)[0], 4 * H * E * sum(seen)


@wrong("30.1", says="The weights were read anew for each text. All texts of a pass share one "
       "reading.")  # fmt: skip
def weights_for_each_text(D, inner, H, K, E, seen):
    weights, cache = block_bytes(D, inner, H, K, E, seen)
    return weights * len(seen), cache


@wrong("30.1", says="As if all texts shared keys and values: each reads those of its own tokens.")
def one_cache_for_all(D, inner, H, K, E, seen):
    return block_bytes(D, inner, H, K, E, [max(seen)])


@wrong("30.1", says="The FFN has three matrices: gate, up and down.")
def two_matrices(D, inner, H, K, E, seen):
    weights, cache = block_bytes(D, inner, H, K, E, seen)
    return weights - 2 * D * inner, cache


@wrong("30.1", says="The two norms were left out: each has D weights.")
def no_norms(D, inner, H, K, E, seen):
    weights, cache = block_bytes(D, inner, H, K, E, seen)
    return weights - 4 * D, cache


@wrong("30.1", says="D ÷ H was taken for the head's size. E is a number of its own: heads together "
       "may be wider than the model.")  # fmt: skip
def divides_the_width(D, inner, H, K, E, seen):
    return block_bytes(D, inner, H, K, D // H, seen)


@wrong("30.1", says="A key without its value: each token has both.")
def keys_alone(D, inner, H, K, E, seen):
    weights, cache = block_bytes(D, inner, H, K, E, seen)
    return weights, cache // 2


@exercise(
    "30.2",
    cases=[
        Case([0], [3], expect=[[True, False, False], [True, True, False], [True, True, True]],
             because="a prompt alone: each token sees itself and what is before it"),
        Case([2], [1], expect=[[True, True, True]],
             because="a decode step: the new token sees the two in the cache, and itself"),
        Case([0, 0], [2, 1],
             expect=[[True, False, False], [True, True, False], [False, False, True]],
             because="two prompts: no text sees the other"),
        Case([1], [2], expect=[[True, True, False], [True, True, True]],
             because="the rest of a prompt of which one token is in the cache"),
        Case([1, 0], [1, 2],
             expect=[[True, True, False, False], [False, False, True, False],
                     [False, False, True, True]],
             because="columns 0 and 1 are the first text's, 2 and 3 the second's"),
        Case([0, 1], [2, 1],
             expect=[[True, False, False, False], [True, True, False, False],
                     [False, False, True, True]],
             because="the token in the cache is the second text's, so its column comes third"),
    ],
    hints=[
        "Give each key a pair (text, position): text i has the positions 0 … start + count - 1. "
        "The columns are these pairs, text after text.",
        "The queries have pairs too: text i runs the positions start … start + count - 1.",
        "A query sees a key if the texts are the same and the key's position is not larger. Make "
        "both lists of pairs; then a row for each query, a value for each key.",
    ],
)  # fmt: skip
def mask(starts, counts):
    """Which keys each query of a packed step sees: a row of bools for each query.

    Of text i, starts[i] tokens are in the cache and counts[i] run now. Queries are the tokens that
    run, text after text; keys are all tokens of each text, text after text.

    The usual wrong answer is one triangle over everything: then the second text reads the first.
    """
    spans = list(enumerate(zip(starts, counts, strict=True)))
    queries = [(i, p) for i, (start, n) in spans for p in range(start, start + n)]
    keys = [(i, p) for i, (start, n) in spans for p in range(start + n)]
    return [[text == own and p <= at for text, p in keys] for own, at in queries]


def _pairs(starts, counts):
    spans = list(enumerate(zip(starts, counts, strict=True)))
    queries = [(i, p) for i, (start, n) in spans for p in range(start, start + n)]
    return queries, [(i, p) for i, (start, n) in spans for p in range(start + n)]


@wrong("30.2", says="One triangle over everything: the second text sees the first one.")
def one_triangle(starts, counts):
    queries, keys = _pairs(starts, counts)
    return [[keys.index(query) >= column for column in range(len(keys))] for query in queries]


@wrong("30.2", says="Tokens see what comes after them in their text. In training that would give "
       "the answer away, and at decode it is not there yet.")  # fmt: skip
def sees_its_whole_text(starts, counts):
    queries, keys = _pairs(starts, counts)
    return [[text == own for text, _ in keys] for own, _ in queries]


@wrong("30.2", says="What is in the cache is not seen: the tokens before `start` are keys, too.")
def forgets_the_cache(starts, counts):
    queries, keys = _pairs(starts, counts)
    return [[text == own and starts[own] <= p <= at for text, p in keys] for own, at in queries]


@wrong("30.2", says="A token sees itself, too: the first one would see nothing at all.")
def not_itself(starts, counts):
    queries, keys = _pairs(starts, counts)
    return [[text == own and p < at for text, p in keys] for own, at in queries]


@wrong("30.2", says="What is in the cache came first, of all texts, then what runs. The columns go "
       "text after text: each one's cache, then what of it runs.")  # fmt: skip
def caches_first(starts, counts):
    queries, keys = _pairs(starts, counts)
    keys.sort(key=lambda key: key[1] >= starts[key[0]])
    return [[text == own and p <= at for text, p in keys] for own, at in queries]


@exercise(
    "30.3",
    cases=[
        Case(100, 50, 8, 1, 10, 1000, expect=25.0,
             because="200 bytes of weights at 10 a second, then 50 of keys and values"),
        Case(100, 50, 8, 10, 10, 1000, expect=70.0,
             because="ten texts share the 20 s of the weights, and read 500 bytes of their own"),
        Case(100, 0, 8, 200, 10, 1000, expect=40.0,
             because="the products compute 40,000 FLOP at 1,000 a second: longer than 20 s"),
        Case(100, 50, 8, 1000, 10, 1000, expect=5200.0,
             because="arithmetic holds the products, 200 s, and memory attention, 5,000 s; one "
             "does not hide behind the other"),
        Case(100, 50, 400, 2, 10, 1000, expect=60.0,
             because="400 FLOP for each byte are beyond the ridge, which is at 100: attention "
             "takes 2 · 20,000 ÷ 1,000 s, after the 20 s of the products"),
    ],
    hints=[
        "There are two operators, one after the other. Each takes the longer of its bytes ÷ "
        "bandwidth and its FLOP ÷ flops. Add the two times.",
        "Products: 2 · weights bytes for all texts together, 2 · weights FLOP for each text.",
        "Attention: kv bytes for each text, and group FLOP for each of those bytes.",
    ],
)  # fmt: skip
def step_seconds(weights, kv, group, batch, bandwidth, flops):
    """The least time of a decode step: products with weights, then attention.

    weights: how many, of 2 bytes. kv: bytes of keys and values of one text. group: FLOP for each
    of these bytes, H ÷ K with bf16. bandwidth and flops: a second.

    The usual wrong answer adds up all bytes and all FLOP and takes the larger of two times. But
    operators run in turns: while one waits for memory, the arithmetic of another cannot go on.
    """
    products = max(2 * weights / bandwidth, 2 * weights * batch / flops)
    return products + batch * kv * max(1 / bandwidth, group / flops)


@wrong("30.3", says="All bytes and all FLOP were added up first. Each operator has its own limit, "
       "and they run one after the other: add their times.")  # fmt: skip
def adds_up_first(weights, kv, group, batch, bandwidth, flops):
    nbytes, work = 2 * weights + batch * kv, batch * (2 * weights + group * kv)
    return max(nbytes / bandwidth, work / flops)


@wrong("30.3", says="As if all texts shared keys and values: attention reads kv bytes for each.")
def shares_the_cache(weights, kv, group, batch, bandwidth, flops):
    products = max(2 * weights / bandwidth, 2 * weights * batch / flops)
    return products + kv * max(1 / bandwidth, group / flops)


@wrong("30.3", says="Attention's FLOP were counted for one text: each of the batch has its own.")
def computes_for_one(weights, kv, group, batch, bandwidth, flops):
    products = max(2 * weights / bandwidth, 2 * weights * batch / flops)
    return products + kv * max(batch / bandwidth, group / flops)


@wrong("30.3", says="Memory was taken to hold attention always. Beyond the ridge arithmetic does.")
def attention_by_memory(weights, kv, group, batch, bandwidth, flops):
    products = max(2 * weights / bandwidth, 2 * weights * batch / flops)
    return products + batch * kv / bandwidth


@wrong("30.3", says="The weights were read for each text: the batch shares one reading.")
def reads_for_each_text(weights, kv, group, batch, bandwidth, flops):
    return batch * step_seconds(weights, kv, group, 1, bandwidth, flops)


@wrong("30.3", says="Reading and computing overlap: an operator takes the longer of both, not the "
       "sum.")  # fmt: skip
def takes_turns(weights, kv, group, batch, bandwidth, flops):
    nbytes, work = 2 * weights + batch * kv, batch * (2 * weights + group * kv)
    return nbytes / bandwidth + work / flops
