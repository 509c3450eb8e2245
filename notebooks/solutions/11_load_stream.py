"""The exercises of lesson 11, solved.

Try them in the notebook first; `hint("11.1")` helps there.
"""

import math

from minillm.lesson import Case, exercise, wrong


@exercise(
    "11.1",
    cases=[
        Case(0, 2, 1, expect=2, because="while Ben is away with one, the other is under the tap"),
        Case(0.5, 2, 1, expect=2,
             because="a bucket is away for 3.5 seconds, and two buckets are 4 seconds of filling"),
        Case(1, 2, 1, expect=2, because="4 seconds away, 4 seconds of filling: it just fits"),
        Case(7, 2, 1, expect=5,
             because="a bucket is away for 10 seconds, in which the tap fills five"),
        Case(7.5, 2, 1, expect=6, because="five would be back half a second late: one more"),
    ],
    hints=[
        "A bucket is asked for, filled, carried: then it can be asked for again. How long is that?",
        "In that time the tap must always have another bucket to fill. Each takes `fill` seconds.",
        "Divide one by the other, and round up: a part of a bucket holds no water.",
    ],
)  # fmt: skip
def buckets_needed(wait, fill, carry):
    """The fewest buckets with which the tap never rests.

    The usual wrong answer counts waiting ÷ filling, the requests in flight, and forgets that a
    bucket is also filled and carried before it can be asked for again.
    """
    return math.ceil((wait + fill + carry) / fill)


@wrong("11.1", says="A bucket is also filled and carried before it can be asked for again.")
def counts_the_waiting(wait, fill, carry):
    return max(1, math.ceil(wait / fill))


@wrong("11.1", says="If it does not come out even, one bucket more is needed: round up.")
def rounds_down(wait, fill, carry):
    return int((wait + fill + carry) // fill)


@wrong("11.1", says="Two are enough only while the waiting is short.")
def always_two(wait, fill, carry):
    return 2


class Links:
    """Two links on paper: a chunk takes 2 seconds on the first, and 1 on the second."""

    def __init__(self, chunks):
        self.chunks = chunks
        self.now, self.free, self.full, self.arrived = 0, 0, {}, []

    def fill(self, slot, chunk):
        if slot not in (0, 1):
            raise ValueError(f"there are slots 0 and 1, not {slot}")
        if chunk not in range(self.chunks):
            raise ValueError(f"there is no chunk {chunk}: the last is {self.chunks - 1}")
        self.free = max(self.now, self.free) + 2
        self.full[slot] = chunk, self.free

    def empty(self, slot):
        if slot not in self.full:
            raise ValueError(f"slot {slot} is emptied, and nothing was asked for into it")
        chunk, when = self.full.pop(slot)
        self.now = max(self.now, when) + 1
        self.arrived.append(chunk)

    def done(self):
        return self.arrived, self.now

    def __repr__(self):
        return "links"


@exercise(
    "11.2",
    cases=[
        Case(1, Links(1), expect=([0], 3), because="one chunk is read for 2 s and copied for 1 s"),
        Case(2, Links(2), expect=([0, 1], 5),
             because="chunk 1 is read while chunk 0 is copied: 2 + 2 + 1 seconds"),
        Case(8, Links(8), expect=([*range(8)], 17),
             because="the first link never rests: 8 · 2 seconds, and one last copy"),
    ],
    hints=[
        "Before the loop both slots are empty: ask for chunk 0 into slot 0, chunk 1 into slot 1.",
        "In the loop, empty the slot of chunk n. From then on the slot is free: for which chunk?",
        "Chunk n lives in slot n % 2. After it was emptied, fill that slot with chunk n + 2, if "
        "there is one.",
    ],
)  # fmt: skip
def two_buckets(chunks, links):
    """Bring chunks 0 to chunks - 1 through two slots; returns links.done().

    The usual wrong answer fills and empties in turns: right, and as slow as one bucket. The
    dangerous one fills a slot again before it was emptied: fast, and a chunk is lost.
    """
    for chunk in range(min(2, chunks)):
        links.fill(chunk, chunk)
    for chunk in range(chunks):
        links.empty(chunk % 2)
        if chunk + 2 < chunks:
            links.fill(chunk % 2, chunk + 2)
    return links.done()


@wrong("11.2", says="That is taking turns: no fill is under way while you empty.")
def takes_turns(chunks, links):
    for chunk in range(chunks):
        links.fill(chunk % 2, chunk)
        links.empty(chunk % 2)
    return links.done()


@wrong("11.2", says="At the end there is nothing left to ask for: it asked for a chunk that the "
       "file does not have.")  # fmt: skip
def asks_beyond_the_end(chunks, links):
    links.fill(0, 0)
    for chunk in range(chunks):
        links.fill((chunk + 1) % 2, chunk + 1)
        links.empty(chunk % 2)
    return links.done()


@wrong("11.2", says="A slot was filled again before it was emptied: what it held is lost.")
def fills_too_early(chunks, links):
    links.fill(0, 0)
    for chunk in range(chunks):
        for ahead in (chunk + 1, chunk + 2):
            if ahead < chunks:
                links.fill(ahead % 2, ahead)
        if chunk % 2 in links.full:
            links.empty(chunk % 2)
    return links.done()


@wrong("11.2", says="The last chunk was asked for and never emptied.")
def forgets_the_last(chunks, links):
    links.fill(0, 0)
    for chunk in range(1, chunks):
        links.fill(chunk % 2, chunk)
        links.empty((chunk - 1) % 2)
    return links.done()


@exercise(
    "11.3",
    cases=[
        Case(100, 0.0, 100.0, 100.0, expect=200,
             because="without waiting two buckets of 100 bytes overlap equal links"),
        Case(100, 9.0, 100.0, 200.0, expect=1100,
             because="a bucket is away for 9 + 1 + 0.5 s, in which the drives fill 10.5: eleven"),
        Case(2**20, 100e-6, 56e9, 64e9, expect=8 * 2**20,
             because="100 + 18.7 + 16.4 µs away, 18.7 µs each: eight buckets of 1 MiB"),
        Case(2**16, 100e-6, 56e9, 64e9, expect=88 * 2**16,
             because="small chunks take 1.2 µs each, so 88 must be on their way"),
    ],
    hints=[
        "How long does a chunk take on the drives, and how long on PCIe?",
        "`buckets_needed(latency, fill, carry)` says how many are on their way.",
        "Each bucket holds a chunk: multiply.",
    ],
)  # fmt: skip
def staging_bytes(chunk, latency, drives, pcie):
    """Bytes of staging that keep the drives busy.

    The usual wrong answer is latency · bandwidth, what flows while one waits: it forgets the
    buckets under the tap and in the second pair of hands.
    """
    fill = chunk / drives
    return chunk * math.ceil((latency + fill + chunk / pcie) / fill)


@wrong("11.3", says="So much flows while one waits. A bucket is also filled and carried, and is "
       "whole.")  # fmt: skip
def latency_times_bandwidth(chunk, latency, drives, pcie):
    return round(latency * drives)


@wrong("11.3", says="That is the number of buckets. Each holds a chunk: multiply.")
def counts_buckets(chunk, latency, drives, pcie):
    return staging_bytes(chunk, latency, drives, pcie) // chunk


@wrong("11.3", says="A bucket is away while it is carried over PCIe, too.")
def forgets_pcie(chunk, latency, drives, pcie):
    fill = chunk / drives
    return chunk * math.ceil((latency + fill) / fill)
