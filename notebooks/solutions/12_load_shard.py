"""The exercises of lesson 12, solved.

Try them in the notebook first; `hint("12.1")` helps there.
"""

from minillm.lesson import Case, exercise, wrong


@exercise(
    "12.1",
    cases=[
        Case(0, 2, 4, 1, 0, 1, expect=[(0, 4), (4, 8)],
             because="one rank alone needs every row, and each row is a range"),
        Case(0, 4, 6, 1, 1, 2, expect=[(3, 6), (9, 12), (15, 18), (21, 24)],
             because="the matrix of the text above: the right half of each row"),
        Case(100, 2, 8, 2, 1, 4, expect=[(104, 108), (120, 124)],
             because="rows of 16 bytes from byte 100 on; rank 1 has the columns 2 and 3"),
        Case(100, 1, 8, 2, 3, 4, expect=[(112, 116)],
             because="the last rank's part ends where the row ends"),
    ],
    hints=[
        "How many bytes has a row? How many of them are this rank's?",
        "Row r begins at start + r · (bytes of a row). Where in it does this rank's part begin?",
        "Make a list with one (begin, end) for each row; end is begin + the bytes of the part.",
    ],
)  # fmt: skip
def column_ranges(start, rows, columns, size, rank, ranks):
    """The byte ranges of a rank's columns in a matrix stored row by row: one for each row.

    start: byte of the file at which the matrix begins; size: bytes of a number.

    The usual wrong answer counts in numbers and not in bytes. For bf16 it reads half as much as
    it should, from the wrong place, and nothing complains: the bytes are valid weights, of others.
    """
    row = columns * size
    part = row // ranks
    begins = (start + r * row + rank * part for r in range(rows))
    return [(begin, begin + part) for begin in begins]


@wrong("12.1", says="Counted in numbers. A number has `size` bytes, and a file counts bytes.")
def counts_numbers(start, rows, columns, size, rank, ranks):
    part = columns // ranks
    begins = (start + r * columns + rank * part for r in range(rows))
    return [(begin, begin + part) for begin in begins]


@wrong("12.1", says="One range in one piece is a slice of rows. Columns are a stripe in every row.")
def reads_rows(start, rows, columns, size, rank, ranks):
    part = rows * columns * size // ranks
    return [(start + rank * part, start + (rank + 1) * part)]


@wrong("12.1", says="The matrix does not begin at byte 0 of the file: add `start`.")
def forgets_the_start(start, rows, columns, size, rank, ranks):
    row = columns * size
    part = row // ranks
    return [(r * row + rank * part, r * row + (rank + 1) * part) for r in range(rows)]


@exercise(
    "12.2",
    cases=[
        Case([("a", 4)], 8, expect=[["a"]], because="a single tensor is one message"),
        Case([("a", 4), ("b", 4), ("c", 1)], 8, expect=[["a", "b"], ["c"]],
             because="4 + 4 is 8, which is not more than 8; one more byte would be"),
        Case([("a", 2), ("b", 9), ("c", 2)], 8, expect=[["a"], ["b"], ["c"]],
             because="b has more than 8 bytes: it goes alone, and nobody goes with it"),
        Case([("a", 5), ("b", 6), ("c", 3)], 8, expect=[["a"], ["b"], ["c"]],
             because="a and c would fit together, but b comes between them"),
        Case([("a", 9)], 8, expect=[["a"]], because="a large one at the beginning goes alone too"),
    ],
    hints=[
        "Keep the group that grows, and how many bytes it has.",
        "Would the next tensor make it more than `most`? Then the group is done: begin a new one.",
        "Only a group that has something in it is done; and the last one is not to be forgotten.",
    ],
)  # fmt: skip
def pack(tensors, most):
    """The names of the tensors that go in one message: neighbours up to `most` bytes together.

    The usual wrong answer looks at the size after adding: a group then ends only when it is too
    large already, and the buffer that was made for `most` bytes is written past its end.
    """
    groups, full = [], most
    for name, nbytes in tensors:
        if not groups or full + nbytes > most:
            groups.append([])
            full = 0
        groups[-1].append(name)
        full += nbytes
    return groups


@wrong("12.2", says="A group may have exactly `most` bytes.")
def leaves_the_equal(tensors, most):
    return pack([(name, nbytes) for name, nbytes in tensors], most - 1)


@wrong("12.2", says="Look before you add: with this tensor the group would have more than `most`.")
def looks_too_late(tensors, most):
    groups, full = [[]], 0
    for name, nbytes in tensors:
        if full >= most:
            groups.append([])
            full = 0
        groups[-1].append(name)
        full += nbytes
    return groups


@wrong("12.2", says="A tensor that comes later may not go first: bytes are sent in the order of "
       "the file.")  # fmt: skip
def fills_the_holes(tensors, most):
    groups = []
    for name, nbytes in tensors:
        for group in groups:
            if sum(n for _, n in group) + nbytes <= most:
                group.append((name, nbytes))
                break
        else:
            groups.append([(name, nbytes)])
    return [[name for name, _ in group] for group in groups]


@wrong("12.2", says="The first group begins empty: a large tensor must not leave it so.")
def leaves_an_empty_group(tensors, most):
    groups, full = [[]], 0
    for name, nbytes in tensors:
        if full + nbytes > most:
            groups.append([])
            full = 0
        groups[-1].append(name)
        full += nbytes
    return groups


@exercise(
    "12.3",
    cases=[
        Case(80e9, 0.0, 8, 10e9, 0, 0.0, 50e9, expect=(8.0, 8.0),
             because="without stripes the ranks together ask for each byte once, as one rank does"),
        Case(80e9, 0.5, 8, 10e9, 100, 1e-4, 50e9, expect=(36.0, 8.0),
             because="40 GB by rows are read once, 40 GB of stripes 8 times: 360 GB at 10 GB/s"),
        Case(80e9, 0.5, 2, 100e9, 100, 1e-2, 10e9, expect=(1.2, 9.0),
             because="on a fast storage sending counts: 100 times alpha, and 80 GB at 10 GB/s"),
    ],
    hints=[
        "How many bytes do all ranks ask of the storage, if each reads its own?",
        "What is cut by rows is asked for once in all; the stripes once by every rank.",
        "One for all: reading and sending overlap. Sending is messages · alpha + nbytes ÷ beta.",
    ],
)  # fmt: skip
def two_ways(nbytes, striped, ranks, storage, messages, alpha, beta):
    """Seconds of "each its own" and of "one for all", from a storage that all ranks share.

    The usual wrong answer divides by the number of ranks, as if each had a disk of its own. What
    they share gives to all of them together what it gives to one.
    """
    asked = nbytes * (1 - striped) + ranks * nbytes * striped
    return asked / storage, max(nbytes / storage, messages * alpha + nbytes / beta)


@wrong("12.3", says="The storage is shared: it gives all ranks together what it gives to one.")
def a_storage_each(nbytes, striped, ranks, storage, messages, alpha, beta):
    asked = nbytes * (1 - striped) / ranks + nbytes * striped
    return asked / storage, max(nbytes / storage, messages * alpha + nbytes / beta)


@wrong("12.3", says="Rank 0 reads ahead while it sends: the longer of the two counts, not the sum.")
def in_turns(nbytes, striped, ranks, storage, messages, alpha, beta):
    asked = nbytes * (1 - striped) + ranks * nbytes * striped
    return asked / storage, nbytes / storage + messages * alpha + nbytes / beta


@wrong("12.3", says="A rank has a stripe in every row, and reads over the holes: every rank asks "
       "for all of what is cut by columns.")  # fmt: skip
def forgets_the_holes(nbytes, striped, ranks, storage, messages, alpha, beta):
    return nbytes / storage, max(nbytes / storage, messages * alpha + nbytes / beta)


@wrong("12.3", says="Each message takes alpha, however short it is.")
def forgets_alpha(nbytes, striped, ranks, storage, messages, alpha, beta):
    return two_ways(nbytes, striped, ranks, storage, 0, alpha, beta)
