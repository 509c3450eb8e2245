"""The exercises of lesson 01, solved.

Try them in the notebook first; `hint("01.1")` helps there.
"""

import math

from minillm.lesson import Case, exercise, wrong


@exercise(
    "01.1",
    cases=[
        Case(5, 3, 2, 1, expect=7,
             because="it is the table: the first flows from 2 to 3, and then the pipe is never "
             "idle"),
        Case(4, 1, 2, 1, expect=12,
             because="one at a time, each pays its 2 seconds and its 1 second"),
        Case(4, 2, 2, 1, expect=7,
             because="two are full at 3 and 4; the next two, asked for then, reach the tap at 5 "
             "and 6"),
        Case(4, 4, 2, 1, expect=6,
             because="all wait at the same time, 2 seconds, and then flow one by one"),
        Case(4, 8, 2, 1, expect=6,
             because="more people than cups changes nothing: the pipe was full before"),
        Case(3, 2, 0, 5, expect=15,
             because="without latency the pipe is always busy, and it serves one at a time"),
    ],
    hints=[
        "Keep a list of the times at which requests are done; request i looks at the one "
        "`in_flight` before it.",
        "A request can flow when its latency is over and the pipe is free: the later of the two.",
        "For each i: asked is done[i - in_flight], or 0; it is done at max(asked + latency, free) "
        "+ flows, and then the pipe is free. The last one's time is the answer.",
    ],
)  # fmt: skip
def seconds_to_read(count, in_flight, latency, flows):
    """When the last of `count` requests is done, `in_flight` of them at a time.

    latency and flows in seconds. Latency passes while others have the pipe; the pipe serves one
    request at a time. `ScaledLink._run` in minillm/machine/scale.py has the same two lines.

    The usual wrong answer shares the whole time of a request among those in flight: latency can
    be shared, the pipe cannot.
    """
    done, free = [], 0.0
    for i in range(count):
        asked = done[i - in_flight] if i >= in_flight else 0.0
        free = max(asked + latency, free) + flows
        done.append(free)
    return free


@wrong("01.1", says="One pipe for each: two cups flow at the same time. There is one pipe, so a "
       "request also waits until it is free.")  # fmt: skip
def forgets_the_pipe(count, in_flight, latency, flows):
    return math.ceil(count / in_flight) * (latency + flows)


@wrong("01.1", says="The pipe rests while a request waits. Latency passes while others flow: take "
       "the later of asked + latency and free.")  # fmt: skip
def waits_at_the_pipe(count, in_flight, latency, flows):
    return count * (latency + flows)


@wrong("01.1", says="As if everything were asked for at 0. With few in flight, request i is asked "
       "for only when request i - in_flight is done.")  # fmt: skip
def asks_for_all_at_once(count, in_flight, latency, flows):
    return latency + count * flows


class Disk:
    """A disk that gives so many bytes a second, by requests in flight: 1, 2, 4, …"""

    def __init__(self, *rates):
        self.rates = {2**i: rate for i, rate in enumerate(rates)}

    def __call__(self, in_flight):
        if in_flight not in self.rates:
            raise ValueError(f"{in_flight} in flight: try 1, 2, 4, … up to `most`")
        return self.rates[in_flight]

    def __repr__(self):
        return f"disk({', '.join(f'{k}: {rate}' for k, rate in self.rates.items())})"


@exercise(
    "01.2",
    cases=[
        Case(Disk(10, 20, 30, 30), 8, expect=4,
             because="8 in flight give no more than 4"),
        Case(Disk(10, 9, 20, 40), 8, expect=8,
             because="2 gave less than 1, and 8 gave most: a real disk's rates go up and down"),
        Case(Disk(28, 30, 29), 4, expect=1,
             because="28 is more than nine tenths of 30"),
        Case(Disk(26, 40, 28), 4, expect=2,
             because="the best is 40, and 26 is less than nine tenths of that"),
        Case(Disk(10, 20, 30, 60), 4, expect=4,
             because="no more than `most` may be tried"),
        Case(Disk(7), 1, expect=1, because="with one, there is nothing to choose from"),
    ],
    hints=[
        "First measure, then choose: keep each rate in a dict by k.",
        "A loop from k = 1 that doubles k as long as it is not above `most`.",
        "Of all k whose rate is at least 0.9 times the largest rate, the smallest.",
    ],
)  # fmt: skip
def fewest_in_flight(rate, most):
    """The smallest of 1, 2, 4, … up to `most` whose rate is at least nine tenths of the best.

    rate: a function of the requests in flight; bytes a second.

    The usual wrong answer climbs as long as it gets better. Rates are noisy, and often two in
    flight give no more than one, since both wait for the same processor; so it stops at the foot
    of the hill.
    """
    rates, k = {}, 1
    while k <= most:
        rates[k] = rate(k)
        k *= 2
    return min(k for k in rates if rates[k] >= 0.9 * max(rates.values()))


@wrong("01.2", says="This stops at the first that is no better. There may be a hill behind it: try "
       "all of them, then choose.")  # fmt: skip
def stops_at_the_first_dip(rate, most):
    k = 1
    while 2 * k <= most and rate(2 * k) > rate(k) / 0.9:
        k *= 2
    return k


@wrong("01.2", says="That is the best one. A smaller one that gives nearly as much makes each "
       "request wait less.")  # fmt: skip
def takes_the_best(rate, most):
    return max((2**i for i in range(most.bit_length())), key=rate)


@wrong("01.2", says="Nine tenths of the last one. The best may have been before it.")
def compares_with_the_last(rate, most):
    tried = [2**i for i in range(most.bit_length())]
    return min(k for k in tried if rate(k) >= 0.9 * rate(tried[-1]))


def requests_in_flight(latency, bandwidth, nbytes):
    """How many requests of `nbytes` must be under way so that the link is never idle.

    latency in seconds, bandwidth in bytes a second. A request takes latency + nbytes / bandwidth
    in all, and the link can finish one every nbytes / bandwidth: Little's law says how many are in
    the queue.
    """
    return math.ceil(1 + latency * bandwidth / nbytes)


@exercise(
    "01.3",
    cases=[
        Case(100, 10, 5, 2, 10, expect=(2, 4, 40),
             because="100 litres in 10 seconds are 10 a second, two pipes of 5; each pipe wants 2 "
             "buckets of 10 in flight"),
        Case(141 * 10**9, 10, 7e9, 1e-4, 2**20, expect=(3, 6, 6 * 2**20),
             because="14.1 GB/s are 2.01 drives, so 3; 1 MiB flows for 150 µs and waits for 100, "
             "so 2 on each"),
        Case(16 * 10**9, 10, 7e9, 1e-4, 4096, expect=(1, 172, 172 * 4096),
             because="one drive is enough, but requests of 4 KiB flow for 0.6 µs and wait for 100: "
             "171 wait while one flows"),
        Case(140 * 10**9, 10, 7e9, 1e-4, 2**20, expect=(2, 4, 4 * 2**20),
             because="two drives give just the 14 GB/s that are wanted"),
    ],
    hints=[
        "How many bytes a second are wanted in all? How many drives give them? A part of a drive "
        "cannot be bought.",
        "How many requests keep one drive busy? `requests_in_flight` knows.",
        "The drives each have that many in flight, and each request has a place of its own in "
        "DRAM for its answer.",
    ],
)  # fmt: skip
def plan_restart(weights, seconds, drive, latency, request):
    """(drives, requests in flight on all of them, bytes of DRAM those occupy).

    weights and request in bytes, drive in bytes a second, seconds and latency in seconds.

    The usual wrong answer plans for the bytes that are needed on average, 2.01 drives' worth, and
    rounds to the nearest whole: 2 drives, and the restart is late by a tenth of a second.
    """
    drives = math.ceil(weights / seconds / drive)
    requests = drives * requests_in_flight(latency, drive, request)
    return drives, requests, requests * request


@wrong("01.3", says="Rounded to the nearest whole: the drives are a little too slow. Round up.")
def rounds_the_drives(weights, seconds, drive, latency, request):
    drives = max(1, round(weights / seconds / drive))
    requests = drives * requests_in_flight(latency, drive, request)
    return drives, requests, requests * request


@wrong("01.3", says="That many keep one drive busy. Each of the drives needs as many.")
def fills_one_drive(weights, seconds, drive, latency, request):
    requests = requests_in_flight(latency, drive, request)
    return math.ceil(weights / seconds / drive), requests, requests * request


@wrong("01.3", says="One at a time on each drive: it rests while the next request waits.")
def asks_one_by_one(weights, seconds, drive, latency, request):
    drives = math.ceil(weights / seconds / drive)
    return drives, drives, drives * request
