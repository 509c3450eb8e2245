"""The exercises of lesson 40, solved.

Try them in the notebook first; `hint("40.1")` helps there.
"""

import torch

from minillm.lesson import Case, exercise, wrong

SEND_FIRST = [[("send", 1), ("recv", 1)], [("send", 0), ("recv", 0)]]
RECEIVE_FIRST = [[("recv", 1), ("send", 1)], [("recv", 0), ("send", 0)]]
MENDED = [[("send", 1), ("recv", 1)], [("recv", 0), ("send", 0)]]
LATE = [[("recv", 1), ("send", 1)], [("recv", 2), ("send", 0), ("recv", 0)], [("send", 1)]]
MISSED = [[("send", 1)], [("recv", 0), ("recv", 2)], [("send", 1), ("recv", 0)]]
LONG = [[("send", 1)] * 5, [("recv", 0)] * 5]
ASTRAY = [[("send", 2)], [("recv", 0)], [("recv", 1)]]


class Swap:
    """The other ranks, as `rank` meets them: holds what it gives, and brings what comes.

    lists: of each rank its parts, before the first step.
    """

    def __init__(self, lists, rank):
        self.lists, self.rank, self.step = lists, rank, 0

    def __repr__(self):
        return "swap"

    def given(self, rank):
        """What a rank gives in this step: of one part, the sum of the ranks that it has passed."""
        world = len(self.lists)
        passed = [self.lists[(rank - n) % world] for n in range(self.step)]
        return sum(row[(rank - self.step) % world] for row in passed)

    def __call__(self, mine, room):
        self.step += 1
        if self.step == len(self.lists):
            raise EOFError(f"step {self.step}: the other ranks are done")
        wanted, comes = self.given(self.rank), self.given((self.rank - 1) % len(self.lists))
        if mine.tolist() != wanted.tolist():
            own = self.lists[self.rank][(self.rank - self.step) % len(self.lists)]
            kind = ArithmeticError if mine.tolist() == own.tolist() else ValueError
            raise kind(f"step {self.step}: gave {mine.tolist()}, wanted {wanted.tolist()}")
        if room.shape != comes.shape:
            raise IndexError(f"step {self.step}: room for {len(room)} numbers, {len(comes)} come")
        room.copy_(comes)


def case(rank, mine, expect, because):
    """Rank `rank` with these parts; other ranks have the same digits, ten times those before."""
    world = len(mine)
    lists = [[torch.tensor(n) * 10**r // 10**rank for n in mine] for r in range(world)]
    expect = [torch.tensor(part) for part in expect]
    others = Swap([[part.clone() for part in row] for row in lists], rank)
    return Case(lists[rank], rank, world, others, expect=expect, because=because)


@exercise(
    "40.1",
    cases=[
        case(0, [[1]], [[1]], because="one rank has the sum already: no step at all"),
        case(0, [[1], [2]], [[11], [2]],
             because="rank 0 gives part 1, the 2, and takes part 0, the 10"),
        case(1, [[10, 20], [30]], [[10, 20], [33]],
             because="rank 1 gives all of part 0, and takes part 1, the 3"),
        case(0, [[1], [2], [3], [4]], [[1111], [2202], [3003], [4]],
             because="it gives parts 3, 2, 1, and takes 2, 1, 0, which grow on their way"),
        case(2, [[100], [200], [300], [400]], [[110], [200], [3333], [444]],
             because="it gives parts 1, 0, 3, and takes 0, 3, 2, which grow on their way"),
    ],
    hints=[
        "Follow one part in the picture: it starts at one rank, goes to the right, and grows at "
        "each. Then follow one rank: what it takes in a step it gives in the next.",
        "A step needs a room for what comes, as large as the part that it is added to: "
        "torch.empty_like. First swap, then add.",
        "For each step from 1 to world - 1: make room like parts[rank - step - 1]; swap "
        "parts[rank - step] with it; add it to parts[rank - step - 1].",
    ],
)  # fmt: skip
def reduce_scatter(parts, rank, world, swap):
    """The parts after N - 1 steps: of rank r part r is the whole sum, the others half summed.

    The usual wrong answer passes on each rank's own number. Then a sum has two terms at the end.
    """
    for step in range(1, world):
        take = parts[rank - step - 1]
        room = torch.empty_like(take)
        swap(parts[rank - step], room)
        take += room
    return parts


@wrong("40.1", says="What goes round must grow: give on the sum that arrived in the step before, "
       "not your own number.")  # fmt: skip
def gives_its_own(parts, rank, world, swap):
    own = [part.clone() for part in parts]
    for step in range(1, world):
        room = torch.empty_like(parts[rank - step - 1])
        swap(own[rank - step], room)
        parts[rank - step - 1] += room
    return parts


@wrong("40.1", says="What arrives is added to the number that is there; you put it in its place.")
def puts_in_place(parts, rank, world, swap):
    for step in range(1, world):
        swap(parts[rank - step], parts[rank - step - 1])
    return parts


@wrong("40.1", says="N - 1 steps are enough. In one more each sum goes on to where it began, and "
       "is added to a number that is in it already.")  # fmt: skip
def a_step_too_many(parts, rank, world, swap):
    for step in range(1, world + 1):
        room = torch.empty_like(parts[(rank - step - 1) % world])
        swap(parts[(rank - step) % world], room)
        parts[(rank - step - 1) % world] += room
    return parts


@wrong("40.1", says="Step 1 comes first, and gives part rank - 1. You begin with part rank: that "
       "is the one which ends here.")  # fmt: skip
def begins_with_its_own_part(parts, rank, world, swap):
    for step in range(world - 1):
        room = torch.empty_like(parts[rank - step - 1])
        swap(parts[rank - step], room)
        parts[rank - step - 1] += room
    return parts


@wrong("40.1", says="What comes is of the part rank - step - 1. You add it to the one that you "
       "have just given.")  # fmt: skip
def adds_to_what_it_gave(parts, rank, world, swap):
    for step in range(1, world):
        room = torch.empty_like(parts[rank - step])
        swap(parts[rank - step], room)
        parts[rank - step] += room
    return parts


@wrong("40.1", says="Parts may differ in size: make the room like the part that it is added to.")
def one_room_for_all(parts, rank, world, swap):
    for step in range(1, world):
        room = torch.empty_like(parts[0])
        swap(parts[rank - step], room)
        parts[rank - step - 1] += room
    return parts


@wrong("40.1", says="In each step another part goes on: the one that came in the step before.")
def gives_the_same_part(parts, rank, world, swap):
    for _ in range(1, world):
        room = torch.empty_like(parts[rank - 2])
        swap(parts[rank - 1], room)
        parts[rank - 2] += room
    return parts


@wrong("40.1", says="range(1, world - 1) ends one step too early: N - 1 steps.")
def a_step_too_few(parts, rank, world, swap):
    for step in range(1, world - 1):
        room = torch.empty_like(parts[rank - step - 1])
        swap(parts[rank - step], room)
        parts[rank - step - 1] += room
    return parts


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
        Case(LONG, expect=[5, 5], because="five messages, one after the other"),
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


@wrong("40.2", says="You look as often as there are ranks. Programs may be longer than that: look "
       "until nothing moves.")  # fmt: skip
def looks_once_for_each_rank(programs):
    at = [0] * len(programs)
    here = [[*program, None] for program in programs]
    for rank in [*range(len(programs))] * len(programs):
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
