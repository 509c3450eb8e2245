"""The exercises of lesson 33, solved.

Try them in the notebook first; `hint("33.1")` helps there.
"""

from minillm.lesson import Case, exercise, wrong


@exercise(
    "33.1",
    cases=[
        Case([1, 2, 1], 2, expect=(0, 0),
             because="both have a frame: nothing moves"),
        Case([1, 2, 3], 2, expect=(1, 0),
             because="3 takes the frame of 1, which is written down; nothing comes up, for a new "
             "page has nothing below"),
        Case([1, 2, 3, 1], 2, expect=(2, 1),
             because="then 1 comes up again, and 2 goes down for it"),
        Case([1, 2, 3, 1, 2], 2, expect=(3, 2),
             because="then 2 comes up, and 3 goes down for it"),
        Case([1, 2, 3, 1, 2, 3], 2, expect=(3, 3),
             because="1 goes a second time, and lies below already: it is not written again"),
        Case([1, 2, 1, 3, 1], 2, expect=(1, 0),
             because="2 goes, for 1 was asked for after it"),
    ],
    hints=[
        "Keep two things: the pages that have a frame, the one asked for the longest ago first; "
        "and the set of pages that lie below.",
        "For each page: if it has a frame, take it out of the list and put it at the end. If not, "
        "and all frames are taken, the first of the list goes: down + 1 unless it lies below.",
        "A page without a frame comes up (up + 1) only if it lies below; else it is new. What went "
        "down once stays in the set of those below.",
    ],
)  # fmt: skip
def moved(asked, frames):
    """Pages that go down and that come up, with LRU, each written down once.

    The usual wrong answer writes a page each time it goes. Nobody has changed it since, and what
    lies below is as true as before.
    """
    held, below, down, up = [], set(), 0, 0
    for page in asked:
        if page in held:
            held.remove(page)
        else:
            if len(held) == frames:
                gone = held.pop(0)
                down += gone not in below
                below.add(gone)
            up += page in below
        held.append(page)
    return down, up


@wrong("33.1", says="A page that lies below already is not written again: nobody has changed it.")
def writes_each_time(asked, frames):
    held, below, down, up = [], set(), 0, 0
    for page in asked:
        if page in held:
            held.remove(page)
        else:
            if len(held) == frames:
                below.add(held.pop(0))
                down += 1
            up += page in below
        held.append(page)
    return down, up


@wrong("33.1", says="A page that is asked for the first time is new: there is nothing below to "
       "bring up.")  # fmt: skip
def brings_up_new_pages(asked, frames):
    held, below, down, up = [], set(), 0, 0
    for page in asked:
        if page in held:
            held.remove(page)
        else:
            if len(held) == frames:
                gone = held.pop(0)
                down += gone not in below
                below.add(gone)
            up += 1
        held.append(page)
    return down, up


@wrong("33.1", says="That is first in, first out. A page that has a frame and is asked for again "
       "was seen just now: it goes to the end of the line.")  # fmt: skip
def first_in_first_out(asked, frames):
    held, below, down, up = [], set(), 0, 0
    for page in asked:
        if page not in held:
            if len(held) == frames:
                gone = held.pop(0)
                down += gone not in below
                below.add(gone)
            up += page in below
            held.append(page)
    return down, up


@exercise(
    "33.2",
    cases=[
        Case([1, 2], [1, 1, 2], expect=2,
             because="1 was asked for twice, 2 once"),
        Case([0, 1, 2], [0, 1, 0, 2, 0], expect=2,
             because="1 and 2 were asked for once each; 2 was the last of them"),
        Case([0, 1, 3], [0, 1, 0, 2, 0, 3, 0, 2], expect=3,
             because="2 has no frame any more; of 1 and 3, asked for once each, 3 came last"),
        Case([4, 7], [7, 4, 4, 7], expect=7,
             because="both were asked for twice, and 7 was the last"),
        Case([2, 5, 9], [5, 9, 2, 9, 5, 5], expect=2,
             because="2 was asked for once, though the others came before it"),
    ],
    hints=[
        "Only pages of `held` may go. Two things decide: how often, and when last.",
        "`asked.count(page)` says how often; the last place of a page in the list says when.",
        "Go through `asked` from its end to find each page's last place. Then take the page with "
        "the smallest count and, among those, the latest last place: a `min` over pairs does it.",
    ],
)  # fmt: skip
def victim(held, asked):
    """The page of `held` that was asked for the fewest times; of several, the one asked for last.

    The usual wrong answer takes the oldest of several. In a loop that is the page which is wanted
    next.
    """
    last = {page: place for place, page in enumerate(asked)}
    return min(held, key=lambda page: (asked.count(page), -last[page]))


@wrong("33.2", says="Of several with the same count you take the oldest. In a loop that one is "
       "wanted next: take the one asked for last.")  # fmt: skip
def oldest_of_several(held, asked):
    last = {page: place for place, page in enumerate(asked)}
    return min(held, key=lambda page: (asked.count(page), last[page]))


@wrong("33.2", says="That is LRU, which looks only at when. Count how often each was asked for.")
def the_longest_ago(held, asked):
    last = {page: place for place, page in enumerate(asked)}
    return min(held, key=lambda page: last[page])


@wrong("33.2", says="The page that was asked for last may be the one that everybody needs: count "
       "first, and let the place decide only between equals.")  # fmt: skip
def the_latest(held, asked):
    last = {page: place for place, page in enumerate(asked)}
    return max(held, key=lambda page: last[page])


@exercise(
    "33.3",
    cases=[
        Case(1000, 100_000, 10e9, 0.0, 10**9, 100e12, 2e12, expect="swap",
             because="100 MB over the link take 10 ms; 2 · 10⁹ · 1,000 FLOP take 20 ms"),
        Case(1000, 100_000, 4.8e9, 0.0, 10**9, 100e12, 2e12, expect="recompute",
             because="over the slower link they take 20.8 ms; computing takes 20 ms, and in 1 ms "
             "of them the weights are read"),
        Case(10, 100_000, 4e9, 0.0, 10**9, 100e12, 2e12, expect="swap",
             because="1 MB takes 0.25 ms, less than it takes to read the weights"),
        Case(10, 100_000, 1.25e9, 0.0, 10**9, 100e12, 2e12, expect="swap",
             because="1 MB takes 0.8 ms; ten tokens take 0.2 ms of arithmetic, but the weights, "
             "2 GB, are read in 1 ms"),
        Case(1000, 100_000, 10e9, 0.015, 10**9, 100e12, 2e12, expect="recompute",
             because="15 ms of latency and 10 ms of bytes are more than 20 ms"),
        Case(1000, 100_000, 5e9, 0.0, 10**9, 100e12, 2e12, expect="swap",
             because="both take 20 ms, and what is equal is swapped"),
    ],
    hints=[
        "Work out the seconds of both ways, and compare.",
        "Swap: latency + tokens · kv ÷ link. Recompute: 2 · weights · tokens ÷ flops, but reading "
        "the weights takes 2 · weights ÷ hbm.",
        "The longer of those two is the time to recompute. Return \"swap\" if its time is not more "
        "than that.",
    ],
)  # fmt: skip
def way(tokens, kv, link, latency, weights, flops, hbm):
    """Whether a text's keys and values are in HBM sooner by moving or by computing them.

    The usual wrong answer forgets that a pass reads all weights, however few its tokens are: it
    recomputes short texts for which the link is done long before.
    """
    swap = latency + tokens * kv / link
    recompute = max(2 * weights * tokens / flops, 2 * weights / hbm)
    return "swap" if swap <= recompute else "recompute"


@wrong("33.3", says="However few the tokens are, a pass reads all the weights: 2 · weights ÷ hbm "
       "is the least it takes.")  # fmt: skip
def forgets_the_weights(tokens, kv, link, latency, weights, flops, hbm):
    return "swap" if latency + tokens * kv / link <= 2 * weights * tokens / flops else "recompute"


@wrong("33.3", says="A transfer takes the link's latency too.")
def forgets_the_latency(tokens, kv, link, latency, weights, flops, hbm):
    recompute = max(2 * weights * tokens / flops, 2 * weights / hbm)
    return "swap" if tokens * kv / link <= recompute else "recompute"


@wrong("33.3", says="A prompt is read in one pass: the weights are read once, not once a token.")
def reads_the_weights_each_time(tokens, kv, link, latency, weights, flops, hbm):
    recompute = tokens * max(2 * weights / flops, 2 * weights / hbm)
    return "swap" if latency + tokens * kv / link <= recompute else "recompute"


@wrong("33.3", says="The weights are read while arithmetic goes on: a pass takes the longer of the "
       "two, not their sum.")  # fmt: skip
def adds_up(tokens, kv, link, latency, weights, flops, hbm):
    recompute = 2 * weights * tokens / flops + 2 * weights / hbm
    return "swap" if latency + tokens * kv / link <= recompute else "recompute"


@wrong("33.3", says="A weight is 2 bytes here: 2 · weights ÷ hbm.")
def a_byte_a_weight(tokens, kv, link, latency, weights, flops, hbm):
    recompute = max(2 * weights * tokens / flops, weights / hbm)
    return "swap" if latency + tokens * kv / link <= recompute else "recompute"


@exercise(
    "33.4",
    cases=[
        Case(10, 100, 0, 0, 10, 10, 60, expect=10,
             because="HBM has room for 10, and there is nothing below"),
        Case(10, 105, 58, 0, 10, 10, 60, expect=15,
             because="HBM has room for 10 whole ones and DRAM for 5; the link could bring 60 a "
             "minute"),
        Case(10, 100, 50, 0, 0.5, 10, 60, expect=13,
             because="half a byte a second brings 3 texts a minute: more must not lie below"),
        Case(10, 100, 50, 1000, 10, 1, 60, expect=21,
             because="the SSD keeps 100, but its link brings only 6 of them a minute"),
        Case(10, 100, 50, 1000, 1, 2, 60, expect=16,
             because="the SSD's texts cross PCIe as well: 6 a minute, from DRAM and SSD together"),
    ],
    hints=[
        "In HBM there is room for hbm ÷ text of them, and those cost no link.",
        "A link brings link · pause ÷ text of them in a pause. DRAM: at most what fits. SSD: the "
        "smaller of what fits and what its own link brings.",
        "All that comes from below crosses PCIe: DRAM's and SSD's together are at most "
        "pcie · pause ÷ text. Round each down.",
    ],
)  # fmt: skip
def sessions(text, hbm, dram, ssd, pcie, nvme, pause):
    """Texts that a server can keep, each wanted again once every `pause` seconds.

    The usual wrong answer counts places alone. What is kept must also come up in time.
    """
    below = dram // text + min(ssd // text, nvme * pause // text)
    return int(hbm // text + min(below, pcie * pause // text))


@wrong("33.4", says="Those are the places. But each text must come up once in every pause: what "
       "can the links bring?")  # fmt: skip
def counts_places(text, hbm, dram, ssd, pcie, nvme, pause):
    return int(hbm // text + dram // text + ssd // text)


@wrong("33.4", says="What comes from the SSD crosses PCIe as well: both share it.")
def links_by_themselves(text, hbm, dram, ssd, pcie, nvme, pause):
    from_dram = min(dram // text, pcie * pause // text)
    return int(hbm // text + from_dram + min(ssd // text, nvme * pause // text))


@wrong("33.4", says="Texts in HBM are there already: no link limits them.")
def all_over_the_link(text, hbm, dram, ssd, pcie, nvme, pause):
    below = dram // text + min(ssd // text, nvme * pause // text)
    return int(min(hbm // text + below, pcie * pause // text))


@wrong("33.4", says="What is left over in two places does not hold a text: round each place down.")
def adds_up_what_is_left(text, hbm, dram, ssd, pcie, nvme, pause):
    below = dram / text + min(ssd / text, nvme * pause / text)
    return int(hbm / text + min(below, pcie * pause / text))
