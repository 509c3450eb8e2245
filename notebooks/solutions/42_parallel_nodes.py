"""The exercises of lesson 42, solved.

Try them in the notebook first; `hint("42.1")` helps there.
"""

from minillm.lesson import Case, exercise, wrong


@exercise(
    "42.1",
    cases=[
        Case([[1, 2], [10, 20], [100, 200], [1000, 2000]], expect=([[1111, 2222]] * 4, 4),
             because="each of four ranks sends its part, one number, to the other node"),
        Case([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]],
             expect=([[28, 32, 36, 40]] * 4, 8),
             because="a part is two numbers now: four ranks send two each"),
        Case([[1, 2], [3, 4]], expect=([[4, 6]] * 2, 4),
             because="a node of one rank has nothing to sum inside: its part is the whole list"),
        Case([[r + 1] * 3 for r in range(6)], expect=([[21] * 3] * 6, 6),
             because="nodes of three ranks: a part is a third of the list"),
    ],
    hints=[
        "gpus = len(lists) // 2. The parts of a list are list[i * n : (i + 1) * n], with n = "
        "len(list) // gpus. The rank at place i of its node works for part i.",
        "Sum part i over the lists of node 0, and over those of node 1: two short lists for each "
        "place. Partners swap them: n numbers each way.",
        "Both partners then have the same sum of part i. The parts of all places, one after the "
        "other, are the list that every rank ends with.",
    ],
)  # fmt: skip
def two_level(lists):
    """The sums over all ranks, on each of them, and the numbers that crossed between two nodes.

    The usual wrong answer sends whole lists to the other node: right sums, and a door that sees as
    much for each rank as in no hierarchy at all.
    """
    gpus = len(lists) // 2
    n, sums, crossed = len(lists[0]) // gpus, [], 0
    for place in range(gpus):
        cut = slice(place * n, (place + 1) * n)
        here, there = ([sum(column) for column in zip(*(each[cut] for each in node), strict=True)]
                       for node in (lists[:gpus], lists[gpus:]))  # fmt: skip
        crossed += len(here) + len(there)
        sums += [a + b for a, b in zip(here, there, strict=True)]
    return [list(sums) for _ in lists], crossed


@wrong("42.1", says="You send whole lists to the other node. After the sum inside, a rank is "
       "responsible for its part alone: only that crosses.")  # fmt: skip
def sends_whole_lists(lists):
    return two_level(lists)[0], len(lists) * len(lists[0])


@wrong("42.1", says="These are the sums of one node. Partners must send each other theirs.")
def stays_in_its_node(lists):
    gpus = len(lists) // 2
    halves = lists[:gpus], lists[gpus:]
    sums = [[sum(column) for column in zip(*half, strict=True)] for half in halves]
    return [list(sums[rank // gpus]) for rank in range(len(lists))], two_level(lists)[1]


@wrong("42.1", says="Each rank has the sum of its part, and the others of its node do not know it "
       "yet: gather at the end.")  # fmt: skip
def forgets_to_gather(lists):
    gpus, (sums, crossed) = len(lists) // 2, two_level(lists)
    n = len(lists[0]) // gpus
    return [sums[0][r % gpus * n : (r % gpus + 1) * n] for r in range(len(lists))], crossed


@wrong("42.1", says="Partners send to *each other*: what crosses counts in both directions.")
def counts_one_direction(lists):
    sums, crossed = two_level(lists)
    return sums, crossed // 2


@exercise(
    "42.2",
    cases=[
        Case([10], 3, expect=(30.0, 0.0),
             because="one stage never waits"),
        Case([10, 10], 1, expect=(20.0, 0.5),
             because="with one request one of two stages waits at any time"),
        Case([10, 10, 10, 10], 4, expect=(70.0, 3 / 7),
             because="the last stage begins after 30, and has four to do"),
        Case([10, 30], 2, expect=(70.0, 3 / 7),
             because="the slower stage begins after 10 and has 60 to do; the first one works 20"),
        Case([30, 10], 2, expect=(70.0, 3 / 7),
             because="the second stage waits for the first before each micro-batch"),
        Case([5, 20, 5], 3, expect=(70.0, 4 / 7),
             because="the slow stage in the middle sets the pace"),
    ],
    hints=[
        "Keep for each stage the time at which it is free again: free = [0] * len(stages). Go "
        "through the micro-batches, and for each through the stages.",
        "A micro-batch leaves stage s at max(left the stage before, free[s]) + stages[s]; that is "
        "free[s] from then on.",
        "All stages together work micro · sum(stages) seconds, of len(stages) · (the end).",
    ],
)  # fmt: skip
def pipeline(stages, micro):
    """When the last micro-batch leaves, and the share of that time in which stages are idle.

    The usual wrong answer is (micro + stages - 1) · the first stage's time: true if all stages are
    equal, and else the slowest one sets the pace.
    """
    free = [0] * len(stages)
    for _ in range(micro):
        left = 0
        for s, seconds in enumerate(stages):
            left = free[s] = max(left, free[s]) + seconds
    return left, 1 - micro * sum(stages) / (len(stages) * left)


@wrong("42.2", says="One micro-batch after the other: while it is in the second stage, the first "
       "one can begin the next.")  # fmt: skip
def one_after_the_other(stages, micro):
    return micro * sum(stages), 1 - 1 / len(stages)


@wrong("42.2", says="Stages need not be equal: a micro-batch waits where the one before it is not "
       "finished.")  # fmt: skip
def all_stages_equal(stages, micro):
    end = (micro + len(stages) - 1) * stages[0]
    return end, (len(stages) - 1) / (micro + len(stages) - 1)


@wrong("42.2", says="A stage has room for one micro-batch at a time: the next one waits until the "
       "stage is free.")  # fmt: skip
def stages_without_end(stages, micro):
    return sum(stages), 1 - 1 / len(stages)


@wrong("42.2", says="Nobody waits for the beat of the slowest: a stage begins as soon as its "
       "micro-batch is there and it is free.")  # fmt: skip
def all_in_step(stages, micro):
    end = (micro + len(stages) - 1) * max(stages)
    return end, 1 - micro * sum(stages) / (len(stages) * end)


@wrong("42.2", says="(S − 1) ÷ (M + S − 1) is for equal stages. The quick ones wait for longer.")
def bubble_of_equal_stages(stages, micro):
    return pipeline(stages, micro)[0], (len(stages) - 1) / (micro + len(stages) - 1)


@wrong("42.2", says="The share is of all stages' time: len(stages) · the end.")
def idle_of_one_stage(stages, micro):
    end, _ = pipeline(stages, micro)
    return end, 1 - micro * max(stages) / end


@exercise(
    "42.3",
    cases=[
        Case(8, 8, 40, 10, 0.1, 5, 1, expect=(8, 1),
             because="8 inside a node: 40 ÷ 8 + 20 · 0.1 = 7, and nothing else comes close"),
        Case(16, 8, 40, 10, 0.1, 5, 0.5, expect=(8, 2),
             because="16 would sum between nodes: 2.5 + 100; two stages of 8 take 5 + 2 + 0.5"),
        Case(16, 8, 40, 10, 0.1, 0.11, 2, expect=(16, 1),
             because="a network as good as NVLink, and slow hops: 2.5 + 2.2 against 7 + 2"),
        Case(4, 4, 40, 1, 1, 50, 0.1, expect=(4, 1),
             because="40 ÷ 4 + 2 = 12; four stages follow each other and need 40.3"),
        Case(4, 4, 1, 80, 0.1, 0.5, 0.01, expect=(1, 4),
             because="so small a model: 160 sums of 0.1 take longer than all of its work"),
        Case(6, 3, 60, 1, 1, 50, 1, expect=(3, 2),
             because="tp may be any divisor: 60 ÷ 3 + 2 + 1 = 23; tp = 2 has 30 + 2 + 2"),
        Case(2, 2, 10, 10, 0.3, 5, 2, expect=(2, 1),
             because="10 ÷ 2 + 20 · 0.3 = 11; two stages have no sums, but a hop: 10 + 2"),
        Case(4, 4, 40, 10, 1.2, 5, 0.1, expect=(4, 1),
             because="40 ÷ 4 + 20 · 1.2 = 34; two stages of 2 sum as often: 20 + 24 + 0.1"),
        Case(4, 4, 4, 10, 0.2, 5, 0.5, expect=(4, 1),
             because="4 ÷ 4 + 20 · 0.2 = 5; four stages hand on three times: 4 + 1.5"),
        Case(4, 2, 20, 10, 0.1, 0.65, 4, expect=(2, 2),
             because="20 ÷ 2 + 20 · 0.1 + 4 = 16; all four share a layer: 5 + 20 · 0.65 = 18"),
        Case(4, 2, 20, 10, 0.2, 0.3, 0.1, expect=(4, 1),
             because="20 ÷ 4 + 20 · 0.3 = 11; two stages of 2 take 10 + 4 + 0.1"),
    ],
    hints=[
        "Try every tp from 1 to gpus that divides it; pp = gpus // tp.",
        "Sums: 2 · layers · (inside if tp <= node else between), and none if tp is 1.",
        "min(…, key=…) over the pairs (tp, pp).",
    ],
)  # fmt: skip
def best_split(gpus, node, work, layers, inside, between, hop):
    """The (tp, pp) with the shortest token.

    The usual wrong answer divides the work by pp as well. Stages follow each other: for one token
    they are one GPU after another.
    """

    def seconds(split):
        tp, pp = split
        sums = 2 * layers * (inside if tp <= node else between) if tp > 1 else 0
        return work / tp + sums + (pp - 1) * hop

    return min(((tp, gpus // tp) for tp in range(1, gpus + 1) if gpus % tp == 0), key=seconds)


@wrong("42.3", says="Stages follow each other: a token passes all of them, and pp divides nothing.")
def divides_by_stages(gpus, node, work, layers, inside, between, hop):
    def seconds(split):
        tp, pp = split
        sums = 2 * layers * (inside if tp <= node else between) if tp > 1 else 0
        return work / tp / pp + sums + (pp - 1) * hop

    return min(((tp, gpus // tp) for tp in range(1, gpus + 1) if gpus % tp == 0), key=seconds)


@wrong("42.3", says="A tp that does not fit into a node sums over the network: `between`.")
def sums_always_inside(gpus, node, work, layers, inside, between, hop):
    return best_split(gpus, gpus, work, layers, inside, between, hop)


@wrong("42.3", says="Larger is not always better: each layer has two sums, however small the work.")
def always_the_node(gpus, node, work, layers, inside, between, hop):
    return node, gpus // node


@wrong("42.3", says="Sum twice in each layer: after attention and after the FFN.")
def one_sum_a_layer(gpus, node, work, layers, inside, between, hop):
    return best_split(gpus, node, work, layers / 20, inside, between, hop)


@wrong("42.3", says="A token crosses pp − 1 times to the next stage, each time for `hop` seconds.")
def forgets_the_hops(gpus, node, work, layers, inside, between, hop):
    return best_split(gpus, node, work, layers, inside, between, 0)


@wrong("42.3", says="pp stages have pp − 1 hops between them: a token takes each of them.")
def one_hop_for_all(gpus, node, work, layers, inside, between, hop):
    def seconds(split):
        tp, pp = split
        sums = 2 * layers * (inside if tp <= node else between) if tp > 1 else 0
        return work / tp + sums + (pp > 1) * hop

    return min(((tp, gpus // tp) for tp in range(1, gpus + 1) if gpus % tp == 0), key=seconds)


@wrong("42.3", says="The GPUs of a stage hand the state on at the same time: `hop` seconds, "
       "however large tp is.")  # fmt: skip
def hops_in_turns(gpus, node, work, layers, inside, between, hop):
    def seconds(split):
        tp, pp = split
        sums = 2 * layers * (inside if tp <= node else between) if tp > 1 else 0
        return work / tp + sums + (pp - 1) * hop * tp

    return min(((tp, gpus // tp) for tp in range(1, gpus + 1) if gpus % tp == 0), key=seconds)


@wrong("42.3", says="`between` is the whole time of a sum that crosses nodes: `inside` does not "
       "come on top.")  # fmt: skip
def both_kinds_of_sums(gpus, node, work, layers, inside, between, hop):
    return best_split(gpus, node, work, layers, inside, inside + between, hop)


@wrong("42.3", says="Each stage sums for its own layers, and a token passes all of them: `layers` "
       "is not divided by pp.")  # fmt: skip
def sums_of_one_stage(gpus, node, work, layers, inside, between, hop):
    def seconds(split):
        tp, pp = split
        sums = 2 * layers / pp * (inside if tp <= node else between) if tp > 1 else 0
        return work / tp + sums + (pp - 1) * hop

    return min(((tp, gpus // tp) for tp in range(1, gpus + 1) if gpus % tp == 0), key=seconds)


@wrong("42.3", says="With tp = 1 a GPU has the whole layer: there is nothing to sum.")
def sums_alone(gpus, node, work, layers, inside, between, hop):
    def seconds(split):
        tp, pp = split
        sums = 2 * layers * (inside if tp <= node else between)
        return work / tp + sums + (pp - 1) * hop

    return min(((tp, gpus // tp) for tp in range(1, gpus + 1) if gpus % tp == 0), key=seconds)


@exercise(
    "42.4",
    cases=[
        Case(1, 1, 1, 1, 1, 8, expect=(4, 4e-9),
             because="a key and a value, 2 bytes each, over 1 GB/s"),
        Case(1000, 80, 8, 128, 1, 400, expect=(327_680_000, 327_680_000 / 50e9),
             because="Llama-3-70B keeps 327,680 bytes a token; 400 Gb/s are 50 GB/s"),
        Case(1000, 80, 8, 128, 8, 400, expect=(327_680_000, 327_680_000 / 400e9),
             because="eight adapters carry an eighth each"),
    ],
    hints=[
        "Bytes of a token: 2 (keys and values) · layers · heads · size · 2 (bytes a number).",
        "Gb/s are gigabits: ÷ 8 for gigabytes.",
        "All adapters together: adapters · gigabits ÷ 8 · 1e9 bytes a second.",
    ],
)  # fmt: skip
def handover(tokens, layers, heads, size, adapters, gigabits):
    """Bytes of the cache, and the seconds they take over all adapters.

    The usual wrong answer takes 400 Gb/s for 400 GB/s: makers of networks count bits.
    """
    nbytes = tokens * 2 * layers * heads * size * 2
    return nbytes, nbytes / (adapters * gigabits / 8 * 1e9)


@wrong("42.4", says="Networks are sold in bits: 400 Gb/s are 50 GB/s.")
def takes_bits_for_bytes(tokens, layers, heads, size, adapters, gigabits):
    nbytes, seconds = handover(tokens, layers, heads, size, adapters, gigabits)
    return nbytes, seconds / 8


@wrong("42.4", says="Keys *and* values: twice as many numbers.")
def keys_alone(tokens, layers, heads, size, adapters, gigabits):
    nbytes, seconds = handover(tokens, layers, heads, size, adapters, gigabits)
    return nbytes // 2, seconds / 2


@wrong("42.4", says="Each adapter carries a part, at the same time.")
def one_adapter(tokens, layers, heads, size, adapters, gigabits):
    return handover(tokens, layers, heads, size, 1, gigabits)


@wrong("42.4", says="The figure of an adapter is one direction's already: do not double it.")
def both_directions(tokens, layers, heads, size, adapters, gigabits):
    nbytes, seconds = handover(tokens, layers, heads, size, adapters, gigabits)
    return nbytes, seconds / 2
