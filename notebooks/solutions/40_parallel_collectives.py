"""The exercises of lesson 40, solved.

Try them in the notebook first; `hint("40.1")` helps there.
"""

from minillm.lesson import Case, exercise, wrong

SEND_FIRST = [[("send", 1), ("recv", 1)], [("send", 0), ("recv", 0)]]
RECEIVE_FIRST = [[("recv", 1), ("send", 1)], [("recv", 0), ("send", 0)]]
MENDED = [[("send", 1), ("recv", 1)], [("recv", 0), ("send", 0)]]
LATE = [[("recv", 1), ("send", 1)], [("recv", 2), ("send", 0), ("recv", 0)], [("send", 1)]]
MISSED = [[("send", 1)], [("recv", 0), ("recv", 2)], [("send", 1), ("recv", 0)]]
ASTRAY = [[("send", 2)], [("recv", 0)], [("recv", 1)]]


@exercise(
    "40.1",
    cases=[
        Case([[5]], expect=[[5]], because="one rank has the sum already: no step at all"),
        Case([[1, 2], [10, 20]], expect=[[11, 2], [10, 22]],
             because="rank 0 gives part 1, the 2, and takes part 0, the 10; rank 1 the other way"),
        Case([[1, 2, 3], [10, 20, 30], [100, 200, 300]],
             expect=[[111, 202, 3], [10, 222, 33], [110, 200, 333]],
             because="in step 2 rank 0 takes part 0 from rank 2, which has 110 of it by then"),
        Case([[1, 2, 3, 4], [10, 20, 30, 40], [100, 200, 300, 400], [1000, 2000, 3000, 4000]],
             expect=[[1111, 2202, 3003, 4], [10, 2222, 3033, 44], [110, 200, 3333, 444],
                     [1110, 2200, 3000, 4444]],
             because="as in the picture after three steps: rank r has all of part r"),
    ],
    hints=[
        "Follow one part: it starts at one rank, goes to the right, and grows at each. Look at the "
        "picture, from step to step, at one column.",
        "In step s rank r gives part r - s. Its left neighbour is rank r - 1; which part does that "
        "one give? That is the part which r adds to its own.",
        "Copy the lists. For each step from 1 to N - 1, for each rank: to "
        "lists[rank][rank - step - 1] add the same part of lists[rank - 1].",
    ],
)  # fmt: skip
def reduce_scatter(lists):
    """The lists after N - 1 steps: rank r has the whole sum of part r, and others half summed.

    The usual wrong answer passes on each rank's own number. Then a sum has two terms at the end.
    """
    N, lists = len(lists), [list(row) for row in lists]
    for step in range(1, N):
        for rank in range(N):
            lists[rank][rank - step - 1] += lists[rank - 1][rank - step - 1]
    return lists


@wrong("40.1", says="What goes round must grow: give on the sum that arrived in the step before, "
       "not your own number.")  # fmt: skip
def gives_its_own(lists):
    N, sums = len(lists), [list(row) for row in lists]
    for step in range(1, N):
        for rank in range(N):
            sums[rank][rank - step - 1] += lists[rank - 1][rank - step - 1]
    return sums


@wrong("40.1", says="What arrives is added to the number that is there; you put it in its place.")
def puts_in_place(lists):
    N, lists = len(lists), [list(row) for row in lists]
    for step in range(1, N):
        for rank in range(N):
            lists[rank][rank - step - 1] = lists[rank - 1][rank - step - 1]
    return lists


@wrong("40.1", says="N - 1 steps are enough. In one more each sum goes on to where it began, and "
       "is added to a number that is in it already.")  # fmt: skip
def a_step_too_many(lists):
    N, lists = len(lists), [list(row) for row in lists]
    for step in range(1, N + 1):
        for rank in range(N):
            lists[rank][(rank - step - 1) % N] += lists[rank - 1][(rank - step - 1) % N]
    return lists


@wrong("40.1", says="That is an all-reduce. After a reduce-scatter each rank has one whole sum; "
       "the rest of its list is half summed, as the steps left it.")  # fmt: skip
def sums_everywhere(lists):
    return [[sum(column) for column in zip(*lists, strict=True)] for _ in lists]


@wrong("40.1", says="Those are the whole sums. Return the lists, with the half summed parts too: "
       "the ranks below are held against them.")  # fmt: skip
def only_the_sums(lists):
    return [sum(column) for column in zip(*lists, strict=True)]


@exercise(
    "40.2",
    cases=[
        Case(MENDED, expect=[2, 2], because="0 sends and 1 receives; then the other way round"),
        Case(RECEIVE_FIRST, expect=[0, 0], because="each waits for a message that is sent later"),
        Case(SEND_FIRST, expect=[0, 0],
             because="each waits for a receiver, and the other one receives later"),
        Case(LATE, expect=[2, 3, 1],
             because="rank 2 can begin; then 1 sends to 0, and 0 sends back"),
        Case(MISSED, expect=[1, 2, 1],
             because="all messages arrive, but rank 2 then waits for one that nobody sends"),
        Case(ASTRAY, expect=[0, 0, 0],
             because="0 sends to 2, but 2 waits for 1, who waits for 0"),
    ],
    hints=[
        "Keep for each rank how far it is. Two ranks move on together: one is at a send, and the "
        "other one at the receive that fits.",
        "It fits if rank r is at (\"send\", o) and rank o is at (\"recv\", r). Take care of ranks "
        "that are at their end.",
        "Go through all ranks again and again, as long as a pair moves on. When none does, how far "
        "each has come is the answer.",
    ],
)  # fmt: skip
def done(programs):
    """Operations that each rank gets done; fewer than it has, if it waits for ever.

    The usual wrong answer lets a send end at once. Such a program passes its tests, and hangs when
    tensors grow.
    """
    at, moved = [0] * len(programs), True
    here = [[*program, None] for program in programs]
    while moved:
        moved = False
        for rank in range(len(programs)):
            what, other = here[rank][at[rank]] or ("end", rank)
            if what == "send" and here[other][at[other]] == ("recv", rank):
                at[rank], at[other], moved = at[rank] + 1, at[other] + 1, True
    return at


@wrong("40.2", says="You let a send end before anybody receives it. A message is delivered when "
       "both are there.")  # fmt: skip
def sends_on_credit(programs):
    at, moved, under_way = [0] * len(programs), True, []
    while moved:
        moved = False
        for rank, program in enumerate(programs):
            if at[rank] == len(program):
                continue
            what, other = program[at[rank]]
            if what == "send":
                under_way.append((rank, other))
            elif (other, rank) in under_way:
                under_way.remove((other, rank))
            else:
                continue
            at[rank], moved = at[rank] + 1, True
    return at


@wrong("40.2", says="You look once at each rank. When a pair has moved on, others may go on: look "
       "again until nothing moves.")  # fmt: skip
def looks_once(programs):
    at = [0] * len(programs)
    here = [[*program, None] for program in programs]
    for rank in range(len(programs)):
        what, other = here[rank][at[rank]] or ("end", rank)
        if what == "send" and here[other][at[other]] == ("recv", rank):
            at[rank], at[other] = at[rank] + 1, at[other] + 1
    return at


@wrong("40.2", says="A receive names its source: one that waits for rank 1 does not take what "
       "rank 0 sends.")  # fmt: skip
def takes_from_anybody(programs):
    at, moved = [0] * len(programs), True
    here = [[*program, None] for program in programs]
    while moved:
        moved = False
        for rank in range(len(programs)):
            what, other = here[rank][at[rank]] or ("end", rank)
            if what == "send" and (here[other][at[other]] or ("end",))[0] == "recv":
                at[rank], at[other], moved = at[rank] + 1, at[other] + 1, True
    return at


@wrong("40.2", says="What was done before the deadlock stays done: count it. That is how you see "
       "where it hangs.")  # fmt: skip
def all_or_nothing(programs):
    at = done(programs)
    return at if at == [len(program) for program in programs] else [0] * len(programs)


@exercise(
    "40.3",
    cases=[
        Case(1, 1000, 2, 0.0, 1e9, expect=(2000, 2e-6, 1e9),
             because="two steps of 1,000 bytes; without latency the links are full all the time"),
        Case(1000, 1000, 4, 0.0, 1e9, expect=(2_000_000, 3e-3, 1e9),
             because="six steps of 500,000 bytes; a longer list, more ranks, the same links"),
        Case(1, 1000, 4, 1e-6, 1e9, expect=(2000, 9e-6, 3000 / 9e-6),
             because="six steps, each 1 µs of latency and 0.5 µs of bytes: a third of the link"),
    ],
    hints=[
        "Bytes: tokens · width · 2.",
        "A ring has 2 (N - 1) steps; in each a message of an N-th of the bytes takes "
        "alpha + its bytes ÷ beta.",
        "Bus bandwidth is 2 (N - 1) ÷ N · bytes ÷ seconds: what each rank sends, over the time.",
    ],
)  # fmt: skip
def all_reduce_cost(tokens, width, N, alpha, beta):
    """Bytes of the activations, seconds of their all-reduce in a ring, and its bus bandwidth.

    The usual wrong answer pays alpha once. For one token that is nearly all of the time, forgotten.
    """
    nbytes = 2 * tokens * width
    seconds = 2 * (N - 1) * (alpha + nbytes / N / beta)
    return nbytes, seconds, 2 * (N - 1) / N * nbytes / seconds


@wrong("40.3", says="Each of the 2 (N - 1) steps pays the latency, not the whole of it once.")
def pays_alpha_once(tokens, width, N, alpha, beta):
    nbytes = 2 * tokens * width
    seconds = alpha + 2 * (N - 1) / N * nbytes / beta
    return nbytes, seconds, 2 * (N - 1) / N * nbytes / seconds


@wrong("40.3", says="That is the reduce-scatter alone. The sums must go round too: 2 (N - 1) "
       "steps.")  # fmt: skip
def forgets_the_all_gather(tokens, width, N, alpha, beta):
    nbytes = 2 * tokens * width
    seconds = (N - 1) * (alpha + nbytes / N / beta)
    return nbytes, seconds, (N - 1) / N * nbytes / seconds


@wrong("40.3", says="A step carries an N-th of the tensor, not all of it.")
def carries_all_of_it(tokens, width, N, alpha, beta):
    nbytes = 2 * tokens * width
    seconds = 2 * (N - 1) * (alpha + nbytes / beta)
    return nbytes, seconds, 2 * (N - 1) / N * nbytes / seconds


@wrong("40.3", says="Bytes ÷ seconds is algbw. A rank sends 2 (N - 1) ÷ N times the tensor: count "
       "that, and it can be held against the link.")  # fmt: skip
def algorithm_bandwidth(tokens, width, N, alpha, beta):
    nbytes, seconds, _ = all_reduce_cost(tokens, width, N, alpha, beta)
    return nbytes, seconds, nbytes / seconds


@wrong("40.3", says="An activation takes 2 bytes here.")
def a_byte_a_number(tokens, width, N, alpha, beta):
    nbytes = tokens * width
    seconds = 2 * (N - 1) * (alpha + nbytes / N / beta)
    return nbytes, seconds, 2 * (N - 1) / N * nbytes / seconds
