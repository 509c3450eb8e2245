"""The exercises of lesson 20, solved.

Try them in the notebook first; `hint("20.1")` helps there.
"""

from collections import Counter
from itertools import pairwise

from minillm.lesson import Case, exercise, wrong


@exercise(
    "20.1",
    cases=[
        Case([1, 2, 3], (1, 2), 9, expect=[9, 3], because="1, 2 becomes 9, and 3 stays"),
        Case([1, 2, 5, 1, 2], (1, 2), 9, expect=[9, 5, 9], because="the pair stands there twice"),
        Case([7, 7, 7], (7, 7), 9, expect=[9, 7],
             because="pairs do not overlap, and the left one comes first"),
        Case([7, 7, 7, 7], (7, 7), 9, expect=[9, 9], because="two pairs stand side by side"),
        Case([2, 1, 1, 3], (1, 2), 9, expect=[2, 1, 1, 3], because="2, 1 is another pair"),
        Case([5, 1], (1, 2), 9, expect=[5, 1], because="the last id has no neighbour"),
        Case([21, 2, 1, 23, 1, 2], (1, 2), 300, expect=[21, 2, 1, 23, 300],
             because="21, 2 and 1, 23 look like the pair in text, and are other pairs"),
        Case([], (1, 2), 9, expect=[], because="nothing to merge"),
    ],
    hints=[
        "Go through the ids from left to right and build a new list.",
        "If ids[at] and ids[at + 1] are the pair, append new and go on two places further; else "
        "append ids[at] and go on one.",
        "Or: append each id; but if the last one of the new list and this id are the pair, put new "
        "in the place of the last one.",
    ],
)  # fmt: skip
def merge_pair(ids, pair, new):
    """The ids with `new` in every place of the pair, from left to right.

    The usual wrong answer steps on by one after a merge: of "aaa" it makes two, and a letter is
    used twice.
    """
    merged, at = [], 0
    while at < len(ids):
        here = tuple(ids[at : at + 2]) == tuple(pair)
        merged.append(new if here else ids[at])
        at += 1 + here
    return merged


@wrong("20.1", says='A merged id is used up: go on behind the pair, or "aaa" is merged twice.')
def overlaps(ids, pair, new):
    merged, at = [], 0
    while at < len(ids):
        if tuple(ids[at : at + 2]) == tuple(pair):
            merged.append(new)
            at += 1 + (at + 2 >= len(ids))
        else:
            merged.append(ids[at])
            at += 1
    return merged


@wrong("20.1", says="All places are merged, not the first alone.")
def merges_the_first(ids, pair, new):
    for at in range(len(ids) - 1):
        if (ids[at], ids[at + 1]) == tuple(pair):
            return [*ids[:at], new, *ids[at + 2 :]]
    return ids


@wrong("20.1", says="From left to right: of three, the first two become one.")
def from_the_right(ids, pair, new):
    return merge_pair(ids[::-1], pair[::-1], new)[::-1]


@wrong("20.1", says="Order counts: (1, 2) is not (2, 1).")
def either_order(ids, pair, new):
    return merge_pair(merge_pair(ids, pair, new), pair[::-1], new)


@wrong("20.1", says="Compare ids, not their digits: 21, 2 is not the pair 1, 2.")
def in_the_digits(ids, pair, new):
    text = ", ".join(map(str, ids)).replace(", ".join(map(str, pair)), str(new))
    return [int(one) for one in text.split(", ") if one]


@wrong("20.1", says="An id may be larger than a byte: a new one always is.")
def in_bytes(ids, pair, new):
    return [*bytes(ids).replace(bytes(pair), bytes([new]))]


@exercise(
    "20.2",
    cases=[
        Case([([1, 2, 3], 1), ([1, 2], 1)], expect=(1, 2), because="1, 2 comes twice, 2, 3 once"),
        Case([([1, 2], 2), ([5, 6], 9)], expect=(5, 6),
             because="a piece that comes nine times counts nine times"),
        Case([([5, 6], 3), ([8, 9], 3), ([2, 9], 3)], expect=(2, 9),
             because="all three come three times, and 2 is the smallest first id"),
        Case([([2, 7], 3), ([2, 5], 3)], expect=(2, 5),
             because="both come three times and begin with 2, and 5 is smaller than 7"),
        Case([([10, 5], 3), ([9, 4], 3)], expect=(9, 4),
             because="both come three times, and of the first ids 9 is the smaller"),
        Case([([5, 6], 2), ([5, 6, 7], 2), ([1, 2], 3)], expect=(5, 6),
             because="5, 6 comes twice in each of two pieces: four times in all"),
        Case([([1, 2], 3), ([4, 4, 4], 2)], expect=(4, 4),
             because="4, 4, 4 has the pair in two places: two, times two, is four"),
        Case([([1], 5), ([2], 5), ([3, 4], 1)], expect=(3, 4),
             because="no pair reaches from one piece into the next"),
        Case([([1], 5)], expect=None, because="one id has no neighbour"),
    ],
    hints=[
        "Count in a Counter: for each piece, each id and the one behind it.",
        "A piece that comes `times` times adds `times` for each of its pairs.",
        "min(count, key=lambda pair: (-count[pair], pair)) is the most frequent, and of those the "
        "smallest. An empty count has none.",
    ],
)  # fmt: skip
def next_pair(words):
    """The pair that is learned next.

    The usual wrong answer takes `count.most_common(1)`: of equally frequent pairs that is the one
    that was seen first, and depends on the order of the text.
    """
    count = Counter()
    for ids, times in words:
        for pair in zip(ids, ids[1:], strict=False):
            count[pair] += times
    return min(count, key=lambda pair: (-count[pair], pair), default=None)


def _counted(words, weigh=True, once=False):
    count = Counter()
    for ids, times in words:
        for pair in set(pairwise(ids)) if once else pairwise(ids):
            count[pair] += times if weigh else 1
    return count


@wrong("20.2", says="A tie goes to the smaller ids, not to the pair that was seen first.")
def first_seen(words):
    count = _counted(words)
    return count.most_common(1)[0][0] if count else None


@wrong("20.2", says="A tie goes to the smaller ids: max takes the larger ones.")
def larger_ids(words):
    count = _counted(words)
    return max(count, key=lambda pair: (count[pair], pair), default=None)


@wrong("20.2", says="If the first ids are the same, the smaller second id decides.")
def ties_by_the_first_id(words):
    count = _counted(words)
    return min(count, key=lambda pair: (-count[pair], pair[0]), default=None)


@wrong("20.2", says="A tie goes by the first id, then the second; not by their sum.")
def ties_by_the_sum(words):
    count = _counted(words)
    return min(count, key=lambda pair: (-count[pair], sum(pair)), default=None)


@wrong("20.2", says="Compare ids as numbers: as text, 10 comes before 9.")
def ties_as_text(words):
    count = _counted(words)
    return min(count, key=lambda pair: (-count[pair], str(pair)), default=None)


@wrong("20.2", says="A pair in several pieces: add up what it has in each.")
def most_in_one_piece(words):
    count = Counter()
    for piece in words:
        count |= _counted([piece])
    return min(count, key=lambda pair: (-count[pair], pair), default=None)


@wrong("20.2", says="Each piece counts as often as it comes: add times, not 1.")
def forgets_times(words):
    count = _counted(words, weigh=False)
    return min(count, key=lambda pair: (-count[pair], pair), default=None)


@wrong("20.2", says="Every place in a piece counts: 4, 4, 4 has the pair twice.")
def once_a_piece(words):
    count = _counted(words, once=True)
    return min(count, key=lambda pair: (-count[pair], pair), default=None)


@wrong("20.2", says="A pair lies within one piece: count each by itself.")
def over_the_border(words):
    every = [(token, times) for ids, times in words for token in ids]
    count = Counter()
    for (left, times), (right, _) in pairwise(every):
        count[left, right] += times
    return min(count, key=lambda pair: (-count[pair], pair), default=None)


@exercise(
    "20.3",
    cases=[
        Case(1000, 2000, 10, 2, 1, 10, 100, expect=20,
             because="1,000 rows of 10 numbers of 2 bytes are 20,000 bytes; a text saves 1,000"),
        Case(1000, 2000, 10, 2, 2, 10, 100, expect=40,
             because="there are two tables, one for what comes in and one for what goes out"),
        Case(1000, 2000, 10, 2, 1, 10, 150, expect=14,
             because="20,000 ÷ 1,500 is 13.3, and thirteen texts do not pay yet"),
        Case(32000, 128256, 4096, 2, 2, 1200, 131072, expect=11,
             because="1.58 GB of tables more, and 157 MB of KV cache less for each text"),
    ],
    hints=[
        "How many rows are new? Each has hidden numbers of nbytes, in each of the tables.",
        "A text saves saved · token bytes of KV cache.",
        "Divide, and round up: -(-more // less).",
    ],
)  # fmt: skip
def texts_to_pay(small, large, hidden, nbytes, tables, saved, token):
    """Texts at once whose smaller KV caches pay for the larger tables.

    The usual wrong answer counts one table: unless the weights are tied, the output has its own.
    """
    more = (large - small) * hidden * nbytes * tables
    return -(-more // (saved * token))


@wrong("20.3", says="Only the new rows cost: large − small.")
def counts_all_rows(small, large, hidden, nbytes, tables, saved, token):
    return texts_to_pay(0, large, hidden, nbytes, tables, saved, token)


@wrong("20.3", says="The output has its own table, if the weights are not tied: times tables.")
def counts_one_table(small, large, hidden, nbytes, tables, saved, token):
    return texts_to_pay(small, large, hidden, nbytes, 1, saved, token)


@wrong("20.3", says="Round up: at the number below, the tables have not paid yet.")
def rounds_down(small, large, hidden, nbytes, tables, saved, token):
    return (large - small) * hidden * nbytes * tables // (saved * token)


@wrong("20.3", says="Numbers are not bytes: each takes nbytes.")
def forgets_bytes(small, large, hidden, nbytes, tables, saved, token):
    return texts_to_pay(small, large, hidden, 1, tables, saved, token)
