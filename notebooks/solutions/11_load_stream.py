"""The exercises of lesson 11, solved.

Try them in the notebook first; `hint("11.1")` helps there.
"""

from minillm.lesson import Case, exercise, wrong


@exercise(
    "11.1",
    cases=[
        Case(1, 2, 1, expect=3, because="a single chunk is read and then copied: nothing overlaps"),
        Case(8, 2, 1, expect=17,
             because="8 reads of 2 seconds follow each other, and then the last copy of 1"),
        Case(8, 1, 2, expect=17,
             because="now the copies follow each other: the first read of 1, then 8 copies of 2"),
        Case(100, 1, 1, expect=101, because="equal links: both are busy but for one chunk's time"),
    ],
    hints=[
        "Draw it: one row for the reads, one for the copies. Which row has no gaps?",
        "The slower link works without a gap, once for each chunk. What is left is one turn of the "
        "faster link, before or after.",
        "All but one of the chunks cost the longer of the two times. One costs both.",
    ],
)  # fmt: skip
def pipeline_seconds(chunks, read, copy):
    """Seconds for `chunks` that pass two links, overlapped.

    The usual wrong answer is chunks · max(read, copy): nearly right for many chunks, and wrong by
    what cannot overlap, one turn of the faster link. That is why chunks should be small against
    the whole.
    """
    return (chunks - 1) * max(read, copy) + read + copy


@wrong("11.1", says="Before the first copy, or after the last read, one link works alone.")
def forgets_the_ends(chunks, read, copy):
    return chunks * max(read, copy)


@wrong("11.1", says="That is taking turns: one link rests while the other works.")
def takes_turns(chunks, read, copy):
    return chunks * (read + copy)


@wrong("11.1", says="Here the reads set the pace whatever they take. The slower link does.")
def thinks_of_reads_only(chunks, read, copy):
    return chunks * read + copy


@exercise(
    "11.2",
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


@wrong("11.2", says="Counted in numbers. A number has `size` bytes, and a file counts bytes.")
def counts_numbers(start, rows, columns, size, rank, ranks):
    part = columns // ranks
    begins = (start + r * columns + rank * part for r in range(rows))
    return [(begin, begin + part) for begin in begins]


@wrong("11.2", says="One range in one piece is a slice of rows. Columns are a stripe in every row.")
def reads_rows(start, rows, columns, size, rank, ranks):
    part = rows * columns * size // ranks
    return [(start + rank * part, start + (rank + 1) * part)]


@wrong("11.2", says="The matrix does not begin at byte 0 of the file: add `start`.")
def forgets_the_start(start, rows, columns, size, rank, ranks):
    row = columns * size
    part = row // ranks
    return [(r * row + rank * part, r * row + (rank + 1) * part) for r in range(rows)]


@exercise(
    "11.3",
    cases=[
        Case(4, 10, 100, 100, expect=(4, 0, 0), because="all four fit in HBM, so nothing is left"),
        Case(4, 10, 25, 100, expect=(2, 2, 0),
             because="25 bytes hold two whole layers; the other two go to DRAM"),
        Case(10, 10, 25, 35, expect=(2, 3, 5),
             because="two in HBM, three in DRAM, and the SSD takes the rest"),
        Case(3, 10, 9, 0, expect=(0, 0, 3), because="no tier above the SSD has room for a layer"),
    ],
    hints=[
        "How many whole layers fit in HBM? Never more than there are.",
        "The same question for DRAM, with the layers that are left.",
        "What is left after that lies on the SSD. The three numbers add up to `layers`.",
    ],
)  # fmt: skip
def place(layers, layer_bytes, hbm_free, dram_free):
    """How many layers lie in HBM, in DRAM and on the SSD, each as high up as there is room.

    The usual wrong answer gives HBM all it could hold, also when there are fewer layers, and then
    a tier below ends up with a negative number of them.
    """
    in_hbm = min(layers, hbm_free // layer_bytes)
    in_dram = min(layers - in_hbm, dram_free // layer_bytes)
    return in_hbm, in_dram, layers - in_hbm - in_dram


@wrong("11.3", says="There are not that many layers: take the smaller of what fits and what there "
       "is.")  # fmt: skip
def forgets_the_layers(layers, layer_bytes, hbm_free, dram_free):
    in_hbm, in_dram = hbm_free // layer_bytes, dram_free // layer_bytes
    return in_hbm, in_dram, layers - in_hbm - in_dram


@wrong("11.3", says="A layer is in one place. What does not fit in HBM and DRAM lies on the SSD.")
def forgets_the_ssd(layers, layer_bytes, hbm_free, dram_free):
    in_hbm = min(layers, hbm_free // layer_bytes)
    return in_hbm, layers - in_hbm, 0


@wrong("11.3", says="HBM is the fastest: fill it first, and DRAM after it.")
def fills_dram_first(layers, layer_bytes, hbm_free, dram_free):
    in_dram = min(layers, dram_free // layer_bytes)
    in_hbm = min(layers - in_dram, hbm_free // layer_bytes)
    return in_hbm, in_dram, layers - in_hbm - in_dram
