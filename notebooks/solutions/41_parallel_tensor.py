"""The exercises of lesson 41, solved.

Try them in the notebook first; `hint("41.1")` helps there.
"""

from minillm.lesson import Case, exercise, wrong

UP, DOWN = [[1, 1], [2, -2], [-1, 1], [1, -1]], [[1, 2, 3, 4], [5, 6, 7, 8]]


@exercise(
    "41.1",
    cases=[
        Case([1, 2], UP, DOWN, 0, 1, expect=[6, 22], because="one rank has all: no sum is needed"),
        Case([1, 2], UP, DOWN, 0, 2, expect=[3, 15],
             because="two rows of up give 3 and -2, bent 3 and 0; times 1 2 and 5 6 of down"),
        Case([1, 2], UP, DOWN, 1, 2, expect=[3, 7],
             because="the last two rows give 1 and -1, bent 1 and 0; times columns 3 4 and 7 8"),
        Case([1, 2], UP, DOWN, 2, 4, expect=[3, 7],
             because="rank 2 of 4 has one row, the third, and column 3 7 of down"),
        Case([1, 2], UP, [[-1, 2, 3, 4], [5, 6, -7, 8]], 0, 2, expect=[-3, 15],
             because="parts may be negative: nothing is bent after down"),
    ],
    hints=[
        "A rank has len(up) // ranks rows. Where does its first one stand?",
        "Its rows of up, times x, bent: as Ann and Ben did. That is a list as long as its rows.",
        "Then the same places of every row of down, from begin to end, times that list.",
    ],
)  # fmt: skip
def ffn_part(x, up, down, rank, ranks):
    """What rank `rank` adds to the FFN's sum: as wide as the whole output.

    The usual wrong answer cuts both matrices the same way. Then what is inside does not fit to what
    `down` needs, or fits by accident and is something else.
    """
    each = len(up) // ranks
    begin, end = rank * each, (rank + 1) * each
    products = [sum(w * a for w, a in zip(row, x, strict=True)) for row in up[begin:end]]
    inside = [max(a, 0) for a in products]
    return [sum(w * a for w, a in zip(row[begin:end], inside, strict=True)) for row in down]


@wrong("41.1", says="Those are columns of `down` from the left, the same for each rank. A rank "
       "needs those that belong to its rows of `up`.")  # fmt: skip
def takes_the_first_columns(x, up, down, rank, ranks):
    each = len(up) // ranks
    own = up[rank * each : (rank + 1) * each]
    products = [sum(w * a for w, a in zip(row, x, strict=True)) for row in own]
    return [sum(w * max(a, 0) for w, a in zip(row[:each], products, strict=True)) for row in down]


@wrong("41.1", says="You took every N-th row and column. The sum is right as well! But a slice of "
       "neighbours is one range in the file: take neighbours.")  # fmt: skip
def takes_every_nth(x, up, down, rank, ranks):
    products = [sum(w * a for w, a in zip(row, x, strict=True)) for row in up[rank::ranks]]
    inside = [max(a, 0) for a in products]
    return [sum(w * a for w, a in zip(row[rank::ranks], inside, strict=True)) for row in down]


@wrong("41.1", says="The bend is missing between the two matrices.")
def forgets_to_bend(x, up, down, rank, ranks):
    each = len(up) // ranks
    begin, end = rank * each, (rank + 1) * each
    products = [sum(w * a for w, a in zip(row, x, strict=True)) for row in up[begin:end]]
    return [sum(w * a for w, a in zip(row[begin:end], products, strict=True)) for row in down]


@wrong("41.1", says="You bent what `down` gives: the bend is between the two matrices, once.")
def bends_the_part(x, up, down, rank, ranks):
    return [max(a, 0) for a in ffn_part(x, up, down, rank, ranks)]


@wrong("41.1", says="That is the whole FFN, on each rank: N times in the sum. A rank has its own "
       "rows and columns only.")  # fmt: skip
def computes_all(x, up, down, rank, ranks):
    return ffn_part(x, up, down, 0, 1)


@exercise(
    "41.2",
    cases=[
        Case(1, 2, 2, 64, expect=(64, 128), because="two heads for two ranks: one each"),
        Case(1, 2, 8, 128, expect=(512, 1024), because="eight heads for two ranks: four each"),
        Case(1, 4, 2, 64, expect=(0, 64),
             because="ranks 0 and 1 have the first two query heads, which look at kv head 0"),
        Case(2, 4, 2, 64, expect=(64, 128), because="ranks 2 and 3 hold kv head 1"),
        Case(5, 16, 8, 128, expect=(256, 384), because="two ranks a head: rank 5 has head 2"),
        Case(3, 4, 1, 64, expect=(0, 64), because="one kv head: everybody holds it"),
        Case(0, 12, 8, 128, expect=None, because="8 and 12 do not divide: a head would be cut"),
        Case(1, 3, 8, 128, expect=None, because="8 heads are not shared by 3 ranks"),
        Case(1, 16, 24, 64, expect=None,
             because="16 divides the 1,536 rows, but not the 24 heads, nor they 16"),
    ],
    hints=[
        "First who divides whom: K % ranks, or ranks % K. If neither is 0, the answer is None.",
        "The first head of a rank: with as many heads as ranks it would be `rank`. With K heads, "
        "it is rank * K // ranks.",
        "It has max(1, K // ranks) heads, and each head has E rows.",
    ],
)  # fmt: skip
def kv_rows(rank, ranks, K, E):
    """The rows of k_proj, and of v_proj, that a rank holds: (begin, end), or None.

    The usual wrong answer divides rows, not heads: half a head has no scores of its own. The next
    one deals heads out in turn; then a rank's kv head is not the one its query heads look at.
    """
    if K % ranks and ranks % K:
        return None
    first = rank * K // ranks
    return first * E, (first + max(1, K // ranks)) * E


@wrong("41.2", says="You divide rows, and cut a head in two. A rank has whole heads; with more "
       "ranks than heads several hold the same one.")  # fmt: skip
def cuts_heads(rank, ranks, K, E):
    if K % ranks and ranks % K:
        return None
    return rank * K * E // ranks, (rank + 1) * K * E // ranks


@wrong("41.2", says="Heads dealt out in turn do not go with the query heads: neighbouring query "
       "heads share a kv head, so neighbouring ranks hold the same one.")  # fmt: skip
def deals_in_turn(rank, ranks, K, E):
    if K % ranks and ranks % K:
        return None
    first = rank % K if ranks > K else rank * K // ranks
    return first * E, (first + max(1, K // ranks)) * E


@wrong("41.2", says="Where ranks and heads do not divide, one the other, no rank has whole heads "
       "of its own: return None.")  # fmt: skip
def never_refuses(rank, ranks, K, E):
    first = rank * K // ranks
    return first * E, (first + max(1, K // ranks)) * E


@wrong("41.2", says="You ask whether the rows divide. Heads must: K and `ranks`, one the other.")
def asks_rows(rank, ranks, K, E):
    return None if K * E % ranks else never_refuses(rank, ranks, K, E)


@wrong("41.2", says="More ranks than heads are fine if K divides their number: ranks / K of them "
       "hold the same head.")  # fmt: skip
def refuses_more_ranks(rank, ranks, K, E):
    return None if K % ranks else (rank * K // ranks * E, (rank + 1) * K // ranks * E)


@wrong("41.2", says="That is every head, on every rank: right, and a cache as large as one GPU's. "
       "A rank needs the heads that its query heads look at.")  # fmt: skip
def holds_all(rank, ranks, K, E):
    return None if K % ranks and ranks % K else (0, K * E)


@exercise(
    "41.3",
    cases=[
        Case([1, 2], UP, [0, 0, 0, 0], DOWN, [100, 200], 1, expect=[106, 222],
             because="one rank, and down's bias on top of 6 and 22"),
        Case([1, 2], UP, [0, 0, 0, 0], DOWN, [100, 200], 2, expect=[106, 222],
             because="two ranks: the parts 3 15 and 3 7, and the bias once"),
        Case([1, 2], UP, [1, 0, -2, 3], DOWN, [0, 0], 2, expect=[12, 36],
             because="inside is 4, -2, -1, 2, bent 4 0 0 2: each row has its own bias, then bends"),
        Case([1, 2], UP, [1, 0, -2, 3], DOWN, [100, 200], 4, expect=[112, 236],
             because="the number of ranks changes nothing"),
        Case([1, 2], UP, [0, 0, 0, 0], DOWN, [-100, 200], 2, expect=[-94, 222],
             because="an output may be negative: nothing is bent after down"),
    ],
    hints=[
        "`up` is split by rows: each output has one rank, which adds the bias of it, before the "
        "bend. Which entries are those?",
        "`down` is split by columns: each output has a part on every rank. What is added on each "
        "of them is added N times.",
        "Loop over the ranks: slice up and up_bias from begin to end, bend, slice down's columns; "
        "add the parts up. After the loop: down_bias.",
    ],
)  # fmt: skip
def ffn_of_ranks(x, up, up_bias, down, down_bias, ranks):
    """What all ranks have after the sum, and down's bias.

    The usual wrong answer adds `down_bias` to each part, as one GPU would, and has it N times.
    """
    each, total = len(up) // ranks, list(down_bias)
    for begin in range(0, len(up), each):
        inside = []
        for row, bias in zip(up[begin:][:each], up_bias[begin:][:each], strict=True):
            inside.append(max(0, sum(w * a for w, a in zip(row, x, strict=True)) + bias))
        for n, row in enumerate(down):
            total[n] += sum(w * a for w, a in zip(row[begin:][:each], inside, strict=True))
    return total


@wrong("41.3", says="`down_bias` is in the sum N times: add it once, after the sum.")
def adds_it_on_each_rank(x, up, up_bias, down, down_bias, ranks):
    whole = ffn_of_ranks(x, up, up_bias, down, [0] * len(down), ranks)
    return [a + ranks * b for a, b in zip(whole, down_bias, strict=True)]


@wrong("41.3", says="Each rank took the first entries of `up_bias`. They are split as rows are: "
       "from begin to end.")  # fmt: skip
def takes_the_first_entries(x, up, up_bias, down, down_bias, ranks):
    each = len(up) // ranks
    return ffn_of_ranks(x, up, up_bias[:each] * ranks, down, down_bias, ranks)


@wrong("41.3", says="`up_bias` belongs to the product: before the bend, not after it.")
def adds_after_the_bend(x, up, up_bias, down, down_bias, ranks):
    late = [sum(w * b for w, b in zip(row, up_bias, strict=True)) for row in down]
    late = [a + b for a, b in zip(late, down_bias, strict=True)]
    return ffn_of_ranks(x, up, [0] * len(up), down, late, ranks)


@wrong("41.3", says="You bent the output as well: the bend is between the two matrices, once.")
def bends_the_output(x, up, up_bias, down, down_bias, ranks):
    return [max(a, 0) for a in ffn_of_ranks(x, up, up_bias, down, down_bias, ranks)]


@wrong("41.3", says="A bias is missing: both matrices have one.")
def forgets_down_bias(x, up, up_bias, down, down_bias, ranks):
    return ffn_of_ranks(x, up, up_bias, down, [0] * len(down), ranks)


@exercise(
    "41.4",
    cases=[
        Case(8e9, 1e12, 10, 1000, 0.0, 1e9, (1, 2), expect=(2, 40_000.0, 4.0),
             because="no latency: a sum of 2,000 bytes is two messages of 1,000, 1 µs each, and a "
             "layer has two sums; with one GPU reading takes 4 ms more"),
        Case(8e9, 1e12, 10, 1000, 1.25e-4, 1e9, (1, 2), expect=(1, 0.0, 0.0),
             because="a latency of 125 µs: 20 sums of two messages are 5 ms, to save 4"),
        Case(8e9, 1e12, 10, 1000, 0.0, 8e6, (1, 2), expect=(1, 0.0, 0.0),
             because="a slow link: 20 sums of two messages of 125 µs are 5 ms, to save 4"),
        Case(80e9, 1e12, 40, 4000, 1e-5, 1e9, (1, 2, 4, 8, 16), expect=(8, 1_120_000.0, 308.0),
             because="tp 8: 10 ms to read and 12.3 for the sums; tp 16 reads in 5, and waits 25"),
    ],
    hints=[
        "An all-reduce has 2 * width bytes, and takes 2 (N - 1) · (alpha + 2 * width / N / beta) "
        "seconds.",
        "A token with tp = N takes weights / N / hbm, and layers times two of those. Take the N "
        "of the choices with the shortest.",
        "A rank sends 2 (N - 1) / N of the bytes of each sum, two sums a layer. With N = 1 both "
        "are 0.",
    ],
)  # fmt: skip
def best_tp(weights, hbm, layers, width, alpha, beta, choices):
    """The tp with the shortest token; bytes a rank sends for it; microseconds of a layer's sums.

    The usual wrong answer takes as many GPUs as there are. Reading gets less with each, waiting
    gets more: somewhere the next one costs more than it gains.
    """

    def layer(N):
        return 2 * 2 * (N - 1) * (alpha + 2 * width / N / beta)

    N = min(choices, key=lambda N: weights / N / hbm + layers * layer(N))
    return N, layers * 2 * 2 * (N - 1) / N * 2 * width, 1e6 * layer(N)


@wrong("41.4", says="A layer has two sums, one after attention and one after the FFN.")
def one_sum_a_layer(weights, hbm, layers, width, alpha, beta, choices):
    N, nbytes, micro = best_tp(weights, hbm, layers / 2, width, alpha, beta, choices)
    return N, nbytes, micro / 2


@wrong("41.4", says="Each of the 2 (N - 1) messages waits for the latency, not each sum once.")
def pays_alpha_once(weights, hbm, layers, width, alpha, beta, choices):
    def layer(N):
        return 2 * (N > 1) * (alpha + 2 * (N - 1) * 2 * width / N / beta)

    N = min(choices, key=lambda N: weights / N / hbm + layers * layer(N))
    return N, layers * 2 * 2 * (N - 1) / N * 2 * width, 1e6 * layer(N)


@wrong("41.4", says="You chose by latency alone: the bytes of a message take time as well.")
def chooses_by_latency(weights, hbm, layers, width, alpha, beta, choices):
    N, _, _ = best_tp(weights, hbm, layers, width, alpha, float("inf"), choices)
    return best_tp(weights, hbm, layers, width, alpha, beta, (N,))


@wrong("41.4", says="You chose with one sum a layer: a layer has two, in the token's time too.")
def chooses_by_one_sum(weights, hbm, layers, width, alpha, beta, choices):
    N, _, _ = best_tp(weights, hbm, layers / 2, width, alpha, beta, choices)
    return best_tp(weights, hbm, layers, width, alpha, beta, (N,))


@wrong("41.4", says="More GPUs are not always better: each makes the reading less and the waiting "
       "more. Compare the whole token for each of the choices.")  # fmt: skip
def takes_all_gpus(weights, hbm, layers, width, alpha, beta, choices):
    return best_tp(weights, hbm, layers, width, alpha, beta, choices[-1:])


@wrong("41.4", says="Fewest sums are none: that forgets what a token reads. With tp GPUs each "
       "reads a tp-th part, at the same time.")  # fmt: skip
def forgets_the_reading(weights, hbm, layers, width, alpha, beta, choices):
    return best_tp(0, hbm, layers, width, alpha, beta, choices)


@wrong("41.4", says="In a ring a rank sends 2 (N - 1) ÷ N times the tensor, not the tensor once.")
def sends_each_tensor_once(weights, hbm, layers, width, alpha, beta, choices):
    N, _, micro = best_tp(weights, hbm, layers, width, alpha, beta, choices)
    return N, layers * 2 * 2.0 * width * (N > 1), micro
