"""The exercises of lesson 01, solved.

Try them in the notebook first; `hint("01.1")` helps there.
"""

import math

from minillm.lesson import Case, exercise, wrong


@exercise(
    "01.1",
    cases=[
        Case(2.0, 5.0, 10, expect=2,
             because="10 litres flow for 2 seconds, as long as the next 10 wait: two take turns"),
        Case(2.0, 5.0, 2, expect=6,
             because="while one cup of 2 flows, the 2 seconds' wait has room for 5 more"),
        Case(2.0, 5.0, 3, expect=5,
             because="10 litres could flow in the wait: 3 cups of 3 are not enough, so 4, and one "
             "more that flows"),
        Case(2.0, 5.0, 1_000, expect=2,
             because="a barrel flows for long, but the next must be asked for before it is empty"),
        Case(0.5, 3e9, 1_500_000, expect=1_001,
             because="half a second at 3 GB/s is 1.5 GB that wait, a thousand times 1.5 MB, and "
             "one flows"),
    ],
    hints=[
        "While one request flows, the others wait. How long does one wait?",
        "How many bytes could flow in that time? That many must be waiting. How many requests of "
        "`nbytes` are they?",
        "Divide, add the one that flows, and round up: half a request cannot be made.",
    ],
)  # fmt: skip
def requests_in_flight(latency, bandwidth, nbytes):
    """How many requests of `nbytes` must be under way so that the link is never idle.

    latency in seconds, bandwidth in bytes a second. A request takes latency + nbytes / bandwidth
    in all, and the link can finish one every nbytes / bandwidth: Little's law says how many are in
    the queue.

    The usual wrong answer forgets the one that flows. With requests as large as
    latency · bandwidth it asks for a single one, and the link rests half of the time.
    """
    return math.ceil(1 + latency * bandwidth / nbytes)


@wrong("01.1", says="So many must be waiting. And one more flows meanwhile: add it.")
def forgets_the_one_that_flows(latency, bandwidth, nbytes):
    return max(1, math.ceil(latency * bandwidth / nbytes))


@wrong("01.1", says="Rounded down: a part of the time nothing is on its way. Round up.")
def rounds_down(latency, bandwidth, nbytes):
    return int(1 + latency * bandwidth / nbytes)


@wrong("01.1", says="So many bytes must be on their way. How many requests are they?")
def gives_bytes(latency, bandwidth, nbytes):
    return math.ceil(latency * bandwidth)


@wrong("01.1", says="That is how long the bytes flow, compared with the wait. It is the other way "
       "round.")  # fmt: skip
def turns_it_over(latency, bandwidth, nbytes):
    return max(1, math.ceil(nbytes / (latency * bandwidth)))


@exercise(
    "01.2",
    cases=[
        Case(100, 10, 50, 10, expect=2.0,
             because="arithmetic takes 2 seconds and memory 1, and both work at the same time"),
        Case(100, 40, 50, 10, expect=4.0,
             because="now memory takes 4 seconds; arithmetic is done in 2 and waits"),
        Case(0, 40, 50, 10, expect=4.0,
             because="a copy computes nothing, and its bytes still have to come"),
        Case(16.06e9, 16.06e9, 989e12, 3.35e12, expect=16.06e9 / 3.35e12,
             because="a decode step of 8 billion weights on an H100 waits for its memory"),
    ],
    hints=[
        "How long does the arithmetic take by itself? And the bytes by themselves?",
        "They happen at the same time: while one part is computed, the next bytes come.",
        "Of two things that go on at once, the slower one sets the time.",
    ],
)  # fmt: skip
def seconds_at_least(flops, nbytes, peak_flops, bandwidth):
    """The roofline as a time: the longer of the arithmetic and the bytes.

    The usual wrong answer adds the two. That is what happens without overlap; hardware is built
    so that bytes come while others are computed with.
    """
    return max(flops / peak_flops, nbytes / bandwidth)


@wrong("01.2", says="Added up: as if no byte came while others are computed with. They overlap.")
def adds_them(flops, nbytes, peak_flops, bandwidth):
    return flops / peak_flops + nbytes / bandwidth


@wrong("01.2", says="The faster of the two does not set the time; it waits for the other.")
def takes_the_faster(flops, nbytes, peak_flops, bandwidth):
    return min(flops / peak_flops, nbytes / bandwidth)


@wrong("01.2", says="Only the arithmetic counts here. Without its bytes nothing can be computed.")
def forgets_the_bytes(flops, nbytes, peak_flops, bandwidth):
    return flops / peak_flops
