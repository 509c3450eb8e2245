"""The exercises of lesson 01, solved.

Try them in the notebook first; `hint("01.1")` helps there.
"""

import math

from minillm.lesson import Case, exercise, wrong


@exercise(
    "01.1",
    cases=[
        Case(2.0, 5.0, 10, expect=1,
             because="in 2 seconds 10 litres could have flowed, and one request asks for as many"),
        Case(2.0, 5.0, 2, expect=5,
             because="the same 10 litres in cups of 2 are 5 cups on their way"),
        Case(2.0, 5.0, 3, expect=4,
             because="3 cups of 3 are 9 litres and leave the pipe empty for a moment, so 4"),
        Case(2.0, 5.0, 1_000, expect=1,
             because="a barrel keeps the pipe full for long, but it has to be asked for once"),
        Case(0.5, 3e9, 1_500_000, expect=1_000,
             because="half a second at 3 GB/s is 1.5 GB on its way, a thousand times 1.5 MB"),
    ],
    hints=[
        "How many bytes could flow in the time that one request waits?",
        "That many bytes must always be on their way. How many requests of `nbytes` are they?",
        "Divide, and round up: half a request cannot be made. And it is never less than one.",
    ],
)  # fmt: skip
def requests_in_flight(latency, bandwidth, nbytes):
    """How many requests of `nbytes` must be under way so that the link is never idle.

    latency in seconds, bandwidth in bytes a second. What is on its way is latency · bandwidth
    bytes: Little's law, as it is called where queues are studied.

    The usual wrong answer rounds down. Then the pipe is empty for a part of each round, and the
    link shows less than its bandwidth, forever.
    """
    return max(1, math.ceil(latency * bandwidth / nbytes))


@wrong("01.1", says="Rounded down: a part of the time nothing is on its way. Round up.")
def rounds_down(latency, bandwidth, nbytes):
    return max(1, int(latency * bandwidth // nbytes))


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
