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
        Case([(0, 4)], 8, expect=[(0, 4)], because="a single range has no hole"),
        Case([(3, 6), (9, 12), (15, 18)], 3, expect=[(3, 18)],
             because="each hole has 3 bytes, which is not more than the gap: one request"),
        Case([(3, 6), (9, 12), (15, 18)], 2, expect=[(3, 6), (9, 12), (15, 18)],
             because="each hole has 3 bytes, more than the gap: nothing is merged"),
        Case([(0, 4), (6, 8), (100, 104), (105, 110)], 10, expect=[(0, 8), (100, 110)],
             because="the hole of 92 bytes stays; the two short ones are read over"),
    ],
    hints=[
        "Go through the ranges in order, and keep a list of what you have so far.",
        "The hole before a range is its begin − the end of the last one in your list.",
        "If the hole is at most `gap`, the last one in the list gets a new end. Else append.",
    ],
)  # fmt: skip
def merge(ranges, gap):
    """The requests that bring `ranges`, where holes of at most `gap` bytes are read over.

    The usual wrong answer compares each range with its neighbour in the list that was given, and
    forgets that the neighbour may have grown: of three near ranges it makes two that overlap, and
    reads the middle one twice.
    """
    merged = []
    for begin, end in ranges:
        if merged and begin - merged[-1][1] <= gap:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((begin, end))
    return merged


@wrong("12.2", says="Three near ranges are one request: the last one in your list has grown.")
def merges_neighbours(ranges, gap):
    pairs = zip(ranges, ranges[1:])  # noqa: B905
    merged = [(one[0], two[1]) for one, two in pairs if two[0] - one[1] <= gap]
    return merged or list(ranges)


@wrong("12.2", says="A hole that is longer than the gap is not read over: there begins a new "
       "request.")  # fmt: skip
def reads_everything(ranges, gap):
    return [(ranges[0][0], ranges[-1][1])]


@wrong("12.2", says="A hole of exactly `gap` bytes is read over too.")
def leaves_the_equal(ranges, gap):
    return merge(ranges, gap - 1)


@exercise(
    "12.3",
    cases=[
        Case(80e9, 0.0, 8, 10e9, 50e9, expect=(8.0, 8.0),
             because="without stripes the ranks together ask for each byte once, as one rank does"),
        Case(80e9, 0.5, 8, 10e9, 50e9, expect=(36.0, 8.0),
             because="40 GB by rows are read once, 40 GB of stripes 8 times: 360 GB at 10 GB/s"),
        Case(80e9, 0.5, 2, 100e9, 10e9, expect=(1.2, 8.0),
             because="on a fast storage the network is the slower link of “one for all”"),
    ],
    hints=[
        "How many bytes do all ranks ask of the storage, if each reads its own?",
        "What is cut by rows is asked for once in all; the stripes once by every rank.",
        "One for all: nbytes ÷ storage and nbytes ÷ network overlap. Which of them counts?",
    ],
)  # fmt: skip
def two_ways(nbytes, striped, ranks, storage, network):
    """Seconds of "each its own" and of "one for all", from a storage that all ranks share.

    The usual wrong answer divides by the number of ranks, as if each had a disk of its own. What
    they share gives to all of them together what it gives to one.
    """
    asked = nbytes * (1 - striped) + ranks * nbytes * striped
    return asked / storage, max(nbytes / storage, nbytes / network)


@wrong("12.3", says="The storage is shared: it gives all ranks together what it gives to one.")
def a_storage_each(nbytes, striped, ranks, storage, network):
    asked = nbytes * (1 - striped) / ranks + nbytes * striped
    return asked / storage, max(nbytes / storage, nbytes / network)


@wrong("12.3", says="What one rank reads it sends on meanwhile: the slower link counts, not the "
       "sum.")  # fmt: skip
def in_turns(nbytes, striped, ranks, storage, network):
    asked = nbytes * (1 - striped) + ranks * nbytes * striped
    return asked / storage, nbytes / storage + nbytes / network


@wrong("12.3", says="A rank has a stripe in every row, and reads over the holes: every rank asks "
       "for all of what is cut by columns.")  # fmt: skip
def forgets_the_holes(nbytes, striped, ranks, storage, network):
    return nbytes / storage, max(nbytes / storage, nbytes / network)
