"""The exercises of lesson 50, solved.

Try them in the notebook first; `hint("50.1")` helps there.
"""

import math

from minillm.lesson import Case, exercise, wrong


@exercise(
    "50.1",
    cases=[
        Case([0.5, 0.3, 0.2], 0.6, expect=[0, 1],
             because="before token 1 are 0.5, less than 0.6; before token 2 are 0.8"),
        Case([0.5, 0.3, 0.2], 0.5, expect=[0],
             because="before token 1 are 0.5, and that is not less than 0.5"),
        Case([0.1, 0.6, 0.3], 0.8, expect=[1, 2],
             because="token 1 is the likeliest, then comes token 2; before token 0 are 0.9"),
        Case([0.2, 0.5, 0.3], 1e-9, expect=[1],
             because="before the likeliest there is nothing, and 0 is less than any p"),
        Case([0.25, 0.25, 0.25, 0.25], 0.5, expect=[2, 3],
             because="of equals the higher id goes first: before 3 is 0, before 2 are 0.25"),
        Case([0.2, 0.5, 0.3], 1.0, expect=[0, 1, 2],
             because="before the last there are 0.8"),
    ],
    hints=[
        "Put the ids in order: the likeliest first, of equals the higher id first. `sorted` takes "
        "a key, and the key may be a pair.",
        "Go through them with a running sum of the chances before. A token stays if that sum is "
        "less than p; only then add its own chance.",
        "At the end `sorted` once more, for the ids are wanted in ascending order.",
    ],
)  # fmt: skip
def nucleus(probs, p):
    """The ids that top-p keeps.

    The usual wrong answer asks whether the sum *with* the token is within p. Then the one that
    crosses p is lost, and where the likeliest alone has more than p, nothing is left.
    """
    kept, before = [], 0.0
    for token in sorted(range(len(probs)), key=lambda token: (-probs[token], -token)):
        if before < p:
            kept.append(token)
        before += probs[token]
    return sorted(kept)


@wrong("50.1", says="You ask for the sum with the token. The one that crosses p stays: ask for "
       "what is before it.")  # fmt: skip
def drops_the_one_that_crosses(probs, p):
    kept, total = [], 0.0
    for token in sorted(range(len(probs)), key=lambda token: (-probs[token], -token)):
        total += probs[token]
        if total <= p:
            kept.append(token)
    return sorted(kept)


@wrong("50.1", says="Those before it have p already: less than p is asked for, not as much as p.")
def keeps_one_more(probs, p):
    kept, before = [], 0.0
    for token in sorted(range(len(probs)), key=lambda token: (-probs[token], -token)):
        if before <= p:
            kept.append(token)
        before += probs[token]
    return sorted(kept)


@wrong("50.1", says="Of equals the higher id goes first: the key of your sort needs a second part.")
def lower_ids_first(probs, p):
    kept, before = [], 0.0
    for token in sorted(range(len(probs)), key=lambda token: -probs[token]):
        if before < p:
            kept.append(token)
        before += probs[token]
    return sorted(kept)


@wrong("50.1", says="The one that crosses p stays, but not its equals: who goes first decides.")
def all_equals_stay(probs, p):
    least = min(probs[token] for token in nucleus(probs, p))
    return [token for token, chance in enumerate(probs) if chance >= least]


@wrong("50.1", says="The ids are wanted in ascending order: sort what stays once more.")
def likeliest_first(probs, p):
    return sorted(nucleus(probs, p), key=lambda token: (-probs[token], -token))


@wrong("50.1", says="You go through the tokens by id. The likeliest come first.")
def by_id(probs, p):
    kept, before = [], 0.0
    for token, chance in enumerate(probs):
        if before < p:
            kept.append(token)
        before += chance
    return kept


@exercise(
    "50.2",
    cases=[
        Case([50, 50], [0.5, 0.5], expect=0.0,
             because="50 of each were expected, and came"),
        Case([60, 40], [0.5, 0.5], expect=4.0,
             because="each is 10 away from 50: 100 ÷ 50, twice"),
        Case([30, 60, 10], [0.5, 0.4, 0.1], expect=18.0,
             because="400 ÷ 50 and 400 ÷ 40; the third is as expected"),
        Case([600, 400], [0.5, 0.5], expect=40.0,
             because="the same shares in ten times as many draws are ten times as suspicious"),
        Case([100, 0], [0.5, 0.5], expect=100.0,
             because="50 were expected of the second, and none came: 2500 ÷ 50, twice"),
        Case([50, 50, 0], [0.5, 0.5, 0.0], expect=0.0,
             because="what cannot come, and did not, adds nothing"),
        Case([50, 49, 1], [0.5, 0.5, 0.0], expect=math.inf,
             because="the third cannot come, and came"),
    ],
    hints=[
        "`sum(counts)` is the number of draws; times the chance it is what to expect.",
        "For a token with chance 0 the formula would divide by zero: look at its count instead.",
        "Ask for the chance of each token first. Where it is 0, the count decides between nothing "
        "and math.inf; where it is not, the formula holds, also for a count of 0.",
    ],
)  # fmt: skip
def chi_square(counts, target):
    """How far counts are from a target, in the measure of chance.

    The usual wrong answer leaves out what has chance 0. Then a sampler that draws it now and then
    looks right.
    """
    draws, total = sum(counts), 0.0
    for count, chance in zip(counts, target, strict=True):
        if chance == 0:
            if count:
                return math.inf
        else:
            total += (count - draws * chance) ** 2 / (draws * chance)
    return total


@wrong("50.2", says="A token that cannot come and came is the worst there is: math.inf, and not "
       "left out.")  # fmt: skip
def leaves_out_the_impossible(counts, target):
    draws = sum(counts)
    return sum((c - draws * t) ** 2 / (draws * t) for c, t in zip(counts, target, strict=True) if t)


@wrong("50.2", says="A token that was expected and never came counts too: leave out by the chance, "
       "not by the count.")  # fmt: skip
def leaves_out_what_never_came(counts, target):
    draws, total = sum(counts), 0.0
    for count, chance in zip(counts, target, strict=True):
        if count:
            if not chance:
                return math.inf
            total += (count - draws * chance) ** 2 / (draws * chance)
    return total


@wrong("50.2", says="Divide by what was expected, not by what came.")
def divides_by_counts(counts, target):
    draws = sum(counts)
    if any(c and not t for c, t in zip(counts, target, strict=True)):
        return math.inf
    return sum((c - draws * t) ** 2 / c for c, t in zip(counts, target, strict=True) if c)


@wrong("50.2", says="Compare counts, not shares: ten of a hundred may be chance, a hundred of a "
       "thousand is not.")  # fmt: skip
def compares_shares(counts, target):
    draws = sum(counts)
    if any(c and not t for c, t in zip(counts, target, strict=True)):
        return math.inf
    return sum((c / draws - t) ** 2 / t for c, t in zip(counts, target, strict=True) if t)


@wrong("50.2", says="The difference is squared: 20 away is four times as bad as 10.")
def does_not_square(counts, target):
    draws = sum(counts)
    if any(c and not t for c, t in zip(counts, target, strict=True)):
        return math.inf
    return sum(abs(c - draws * t) / (draws * t) for c, t in zip(counts, target, strict=True) if t)


@exercise(
    "50.3",
    cases=[
        Case([2.0, -2.0, 4.0], [0], 2.0, expect=[1.0, -2.0, 4.0],
             because="token 0 was seen: 2 ÷ 2"),
        Case([2.0, -2.0, 4.0], [1], 2.0, expect=[2.0, -4.0, 4.0],
             because="token 1 was seen, and its logit is below 0: −2 · 2"),
        Case([2.0, -2.0, 4.0], [0, 0, 1], 2.0, expect=[1.0, -4.0, 4.0],
             because="token 0 was seen twice, and is punished once"),
        Case([3.0, 1.0], [], 2.0, expect=[3.0, 1.0],
             because="nothing was seen"),
        Case([3.0, 0.0, -1.0], [2, 1, 0], 1.5, expect=[2.0, 0.0, -1.5],
             because="3 ÷ 1.5 and −1 · 1.5; 0 stays 0, either way"),
    ],
    hints=[
        "What has been seen, each once, is a set.",
        "Less likely means a smaller logit. Dividing −2 by 2 makes it larger.",
        "For each token of set(seen): a logit below 0 is multiplied, another divided.",
    ],
)  # fmt: skip
def penalize(logits, seen, penalty):
    """Logits after the repetition penalty.

    The usual wrong answer divides all of them: a token with a negative logit becomes likelier each
    time it is punished.
    """
    logits = list(logits)
    for token in set(seen):
        logits[token] = logits[token] * penalty if logits[token] < 0 else logits[token] / penalty
    return logits


@wrong("50.3", says="Divided by 2, −2 becomes −1, which is likelier: a logit below 0 is "
       "multiplied.")  # fmt: skip
def always_divides(logits, seen, penalty):
    return [x / penalty if token in seen else x for token, x in enumerate(logits)]


@wrong("50.3", says="Each once, however often it came: go through set(seen).")
def each_time(logits, seen, penalty):
    logits = list(logits)
    for token in seen:
        logits[token] = logits[token] * penalty if logits[token] < 0 else logits[token] / penalty
    return logits


@wrong("50.3", says="That is the presence penalty, which is taken off. This one divides, or "
       "multiplies.")  # fmt: skip
def takes_it_off(logits, seen, penalty):
    return [x - penalty if token in seen else x for token, x in enumerate(logits)]


@wrong("50.3", says="To take a share off is another rule: a logit above 0 is divided by the "
       "penalty.")  # fmt: skip
def takes_off_a_share(logits, seen, penalty):
    return [x - abs(x) * (penalty - 1) if n in seen else x for n, x in enumerate(logits)]


@exercise(
    "50.4",
    cases=[
        Case(1024, 4.096e6, 0.0, 10.24e6, 1, 10.5e-3, expect=5,
             because="a row takes 1 ms over the link (4,096 bytes) and 1 ms to sort (10,240 "
             "comparisons): 2 ms each"),
        Case(1024, 4.096e6, 0.0, 10.24e6, 4, 11.3e-3, expect=8,
             because="four at a time are sorted: 8 rows take 8 + 2 ms, 9 rows 9 + 3 ms, for the "
             "ninth begins a third round"),
        Case(1024, 4.096e6, 2e-3, 10.24e6, 4, 10.5e-3, expect=6,
             because="2 ms of latency once, 6 ms of bytes, two rounds of 1 ms"),
        Case(1024, 4.096e6, 0.0, 10.24e6, 100, 10.5e-3, expect=9,
             because="a hundred cores sort in one round of 1 ms; the link brings 9 in the rest"),
        Case(1024, 4096.0, 1.0, 10240.0, 1, 9.0, expect=4,
             because="a slow machine: 1 s, and 2 s a row; what takes 9 s fits in 9 s"),
        Case(1024, 4.096e6, 0.0, 10.24e6, 4, 1.5e-3, expect=0,
             because="one row takes 2 ms"),
    ],
    hints=[
        "A row has 4 · vocab bytes; sorting it takes vocab · log₂(vocab) ÷ compares seconds.",
        "For n rows: latency + n · bytes ÷ link + ⌈n ÷ cores⌉ · sort. -(-n // cores) rounds up.",
        "Begin with n = 0, and take one more while n + 1 rows still fit the budget.",
    ],
)  # fmt: skip
def most_rows(vocab, link, latency, compares, cores, budget):
    """Rows that can be copied and sorted within a budget.

    The usual wrong answer shares the sorting evenly. A row is sorted by one core, and the ninth row
    on four cores begins a third round.
    """
    sort, rows = vocab * math.log2(vocab) / compares, 0
    while True:
        more = rows + 1
        if latency + more * 4 * vocab / link + -(-more // cores) * sort > budget:
            return rows
        rows = more


def _rows(takes, budget):
    rows = 0
    while takes(rows + 1) <= budget:
        rows += 1
    return rows


@wrong("50.4", says="A row is sorted by one core: n rows take ⌈n ÷ cores⌉ rounds.")
def shares_evenly(vocab, link, latency, compares, cores, budget):
    sort = vocab * math.log2(vocab) / compares
    return _rows(lambda n: latency + n * 4 * vocab / link + n / cores * sort, budget)


@wrong("50.4", says="The cores work side by side: ⌈n ÷ cores⌉ rounds, not n.")
def one_core(vocab, link, latency, compares, cores, budget):
    sort = vocab * math.log2(vocab) / compares
    return _rows(lambda n: latency + n * (4 * vocab / link + sort), budget)


@wrong("50.4", says="The logits must come over the link first: 4 · vocab bytes a row.")
def forgets_the_copy(vocab, link, latency, compares, cores, budget):
    return int(budget // (vocab * math.log2(vocab) / compares)) * cores


@wrong("50.4", says="All rows are copied at once: the latency is paid once, and it is paid.")
def forgets_the_latency(vocab, link, latency, compares, cores, budget):
    sort = vocab * math.log2(vocab) / compares
    return _rows(lambda n: n * 4 * vocab / link + -(-n // cores) * sort, budget)


@wrong("50.4", says="The latency is paid once, however many rows are copied.")
def a_latency_for_each_row(vocab, link, latency, compares, cores, budget):
    sort = vocab * math.log2(vocab) / compares
    return _rows(lambda n: n * (latency + 4 * vocab / link) + -(-n // cores) * sort, budget)


@wrong("50.4", says="First the copy, then the sort: their times add up.")
def copies_while_it_sorts(vocab, link, latency, compares, cores, budget):
    sort = vocab * math.log2(vocab) / compares
    return _rows(lambda n: max(latency + n * 4 * vocab / link, -(-n // cores) * sort), budget)


@wrong("50.4", says="What takes exactly the budget fits.")
def wants_time_left(vocab, link, latency, compares, cores, budget):
    sort, rows = vocab * math.log2(vocab) / compares, 0
    while latency + (rows + 1) * 4 * vocab / link + -(-(rows + 1) // cores) * sort < budget:
        rows += 1
    return rows


@wrong("50.4", says="A logit is a float32, 4 bytes.")
def two_bytes(vocab, link, latency, compares, cores, budget):
    sort = vocab * math.log2(vocab) / compares
    return _rows(lambda n: latency + n * 2 * vocab / link + -(-n // cores) * sort, budget)
