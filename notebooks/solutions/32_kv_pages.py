"""The exercises of lesson 32, solved.

Try them in the notebook first; `hint("32.1")` helps there.
"""

from minillm.lesson import Case, exercise, wrong

ALONE, TWICE = {7: 1, 8: 1}, {7: 2, 8: 2}


@exercise(
    "32.1",
    cases=[
        Case([], 0, 6, [9, 8, 7], {}, 4, expect=([7, 8], []),
             because="6 tokens take two pages of 4, and the last of `free` comes first"),
        Case([7, 8], 6, 8, [9], ALONE, 4, expect=([7, 8], []),
             because="two places of page 8 are still empty"),
        Case([7, 8], 8, 9, [9, 3], TWICE, 4, expect=([7, 8, 3], []),
             because="both pages are full and will only be read: they stay shared"),
        Case([7, 8], 6, 7, [9, 3], TWICE, 4, expect=([7, 3], [(8, 3)]),
             because="page 8 will be written and stands in another table too; page 7 is only read"),
        Case([7, 8], 6, 13, [9, 3, 5], TWICE, 4, expect=([7, 5, 3, 9], [(8, 5)]),
             because="one page is copied, and then two more are taken"),
        Case([7, 8], 2, 8, [9, 3], TWICE, 4, expect=([3, 9], [(7, 3), (8, 9)]),
             because="both pages will be written and stand in another table: each is copied"),
        Case([7, 8], 6, 13, [9, 3], TWICE, 4, expect=None,
             because="a copy and two new pages are three, and two are free"),
    ],
    hints=[
        "Pages from place length // P of the table on will be written; those before are only read.",
        "-(-stop // P) pages are needed in all. Count the copies and the new pages, and compare "
        "with len(free), before you take any.",
        "For each place of the table from length // P on: if its page is counted more than once, "
        "put free.pop() there and note (old, new). Then append free.pop() until the table is long "
        "enough.",
    ],
)  # fmt: skip
def grow(table, length, stop, free, count, P):
    """The block table with [length, stop) writable, and the copies made; None if there is no room.

    The usual wrong answer forgets the copy: both texts then write in one page, and each reads the
    other's words. Nothing complains.
    """
    shared = [at for at in range(length // P, len(table)) if count[table[at]] > 1]
    more = max(0, -(-stop // P) - len(table))
    if len(shared) + more > len(free):
        return None
    copies = []
    for at in shared:
        copies.append((table[at], free[-1]))
        table[at] = free.pop()
    return table + [free.pop() for _ in range(more)], copies


@wrong("32.1", says="Page 8 stands in another table too: what you write there, the other reads.")
def never_copies(table, length, stop, free, count, P):
    more = max(0, -(-stop // P) - len(table))
    return (table + [free.pop() for _ in range(more)], []) if more <= len(free) else None


@wrong("32.1", says="A page that is only read may stay in two tables: copy from length // P on.")
def copies_all_that_is_shared(table, length, stop, free, count, P):
    return grow(table, 0, stop, free, count, P)


@wrong("32.1", says="Not one page but each that will be written may stand in another table.")
def copies_one_at_most(table, length, stop, free, count, P):
    at = length // P
    return grow(table, length, stop, free, count | dict.fromkeys(table[at + 1 :], 1), P)


@wrong("32.1", says="stop tokens take ⌈stop ÷ P⌉ pages; stop // P + 1 is one too many where a page "
       "is just full.")  # fmt: skip
def takes_one_more(table, length, stop, free, count, P):
    return grow(table, length, (stop // P + 1) * P, free, count, P)


@wrong("32.1", says="A copy takes a free page too: count it before anything is taken.")
def forgets_the_copies_room(table, length, stop, free, count, P):
    if max(0, -(-stop // P) - len(table)) > len(free):
        return None
    return grow(table, length, stop, [0] * len(table) + free, count, P)


@exercise(
    "32.2",
    cases=[
        Case([1, 2, 3, 4, 5], set(), 2, expect=0, because="nothing is known yet"),
        Case([1, 2, 3, 4, 5], {(1, 2), (1, 2, 3, 4)}, 2, expect=4,
             because="two full pages are known, and a token is left to compute"),
        Case([1, 2, 3, 9, 5], {(1, 2), (1, 2, 3, 4)}, 2, expect=2,
             because="the second page differs; half a page is not shared"),
        Case([1, 2, 3, 4], {(1, 2), (1, 2, 3, 4)}, 2, expect=2,
             because="all of it is known, but the last token must be computed: its page is not "
             "taken"),
        Case([1, 2, 3, 4, 5], {(1, 2, 3, 4)}, 2, expect=0,
             because="the page of 1, 2 was given away, and without it 3, 4 is of no use"),
        Case([9, 2, 3, 4, 5], {(1, 2), (1, 2, 3, 4)}, 2, expect=0,
             because="3, 4 have looked at another first token: their keys and values differ"),
    ],
    hints=[
        "Begin with 0 tokens found, and try one page more each time.",
        "A page more ends at n + P. It counts if tuple(ids[:n + P]) is known, and if at least one "
        "token is left behind it.",
        "While n + P is below len(ids) and that tuple is in known, add P to n. n is the answer.",
    ],
)  # fmt: skip
def prefix_found(ids, known, P):
    """How many of the first tokens of a prompt lie in known pages.

    The usual wrong answer finds all of a prompt that is known whole. Then nothing is computed, and
    there are no scores to choose the next token from.
    """
    n = 0
    while n + P < len(ids) and tuple(ids[: n + P]) in known:
        n += P
    return n


@wrong("32.2", says="Leave a token to compute, or there are no scores: n + P must stay below "
       "len(ids).")  # fmt: skip
def finds_all(ids, known, P):
    n = 0
    while n + P <= len(ids) and tuple(ids[: n + P]) in known:
        n += P
    return n


@wrong("32.2", says="A page is known by all tokens up to its end, not by its own: they have looked "
       "at those before.")  # fmt: skip
def looks_at_each_page_alone(ids, known, P):
    own = {text[-P:] for text in known}
    return sum(P for n in range(0, len(ids) - P, P) if tuple(ids[n : n + P]) in own)


@wrong("32.2", says="The first page that is missing ends the search: nothing behind a gap counts.")
def jumps_over_a_gap(ids, known, P):
    return max((n for n in range(0, len(ids), P) if tuple(ids[:n]) in known), default=0)


@wrong("32.2", says="Only full pages are shared: a page half alike would be written by both.")
def counts_equal_tokens(ids, known, P):
    best = 0
    for text in known:
        n = 0
        while n < min(len(text), len(ids) - 1) and text[n] == ids[n]:
            n += 1
        best = max(best, n)
    return best


@exercise(
    "32.3",
    cases=[
        Case(1000, 10, 10, 0, 20, expect=5,
             because="ten pages of 10 tokens, and two for each text"),
        Case(1000, 10, 10, 0, 21, expect=3, because="21 tokens take three pages"),
        Case(1000, 10, 10, 40, 20, expect=3,
             because="four pages are the prefix, once; the other six serve three texts"),
        Case(1000, 10, 10, 45, 15, expect=3,
             because="four full pages are shared; 5 tokens of the prefix and 15 own take two"),
        Case(1050, 10, 10, 45, 20, expect=2,
             because="half a page is no page, and 5 + 20 tokens take three of the six that are "
             "left"),
    ],
    hints=[
        "How many pages are there? free // (token * P).",
        "prefix // P of them are full of the prefix, once for all. What is left of it, prefix % P, "
        "each text has in pages of its own.",
        "Each text takes ⌈(prefix % P + own) ÷ P⌉ pages. Divide the pages that are left by that.",
    ],
)  # fmt: skip
def texts_at_once(free, token, P, prefix, own):
    """Texts that fit at once, if what they have in common is stored once.

    The usual wrong answer shares the last, partial page of the prefix: each text goes on in it
    with words of its own.
    """
    pages = free // (token * P) - prefix // P
    return pages // -(-(prefix % P + own) // P)


@wrong("32.3", says="A partial page is not shared: prefix % P tokens stand in pages of each text.")
def shares_half_a_page(free, token, P, prefix, own):
    return (free // (token * P) - -(-prefix // P)) // -(-own // P)


@wrong("32.3", says="The prefix is stored once, not with every text.")
def stores_it_each_time(free, token, P, prefix, own):
    return free // (token * P) // -(-(prefix + own) // P)


@wrong("32.3", says="A text takes whole pages: round its tokens up to them.")
def counts_tokens(free, token, P, prefix, own):
    return (free // token - prefix) // own
