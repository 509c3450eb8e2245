"""The exercises of lesson 21, solved.

Try them in the notebook first; `hint("21.1")` helps there.
"""

from minillm.lesson import Case, exercise, wrong


@exercise(
    "21.1",
    cases=[
        Case([[7, 8, 9], [5]], expect=([7, 8, 9, 5], [0, 3, 4], [0, 1, 2, 0]),
             because="the second text begins behind three tokens, and all end at 4; its token is "
             "the first of its own text"),
        Case([[4]], expect=([4], [0, 1], [0]),
             because="one text begins at 0 and ends at 1"),
        Case([[1, 2], [3, 4], [5, 6, 7]],
             expect=([1, 2, 3, 4, 5, 6, 7], [0, 2, 4, 7], [0, 1, 0, 1, 0, 1, 2]),
             because="texts begin at 0, 2 and 4, and three texts have four marks"),
        Case([[0, 5, 5], [0, 5]], expect=([0, 5, 5, 0, 5], [0, 3, 5], [0, 1, 2, 0, 1]),
             because="an id may come again: 3 tokens, then 2, whichever they are"),
    ],
    hints=[
        "Go through the texts once, with three lists that grow.",
        "cu_seqlens begins with 0. After each text its last number plus the text's length follows, "
        "so B texts have B + 1 marks.",
        "The positions of a text of n tokens are 0 … n − 1, whatever came before: list(range(n)).",
    ],
)  # fmt: skip
def packed(ids_lists):
    """One text after the other, where each begins, and the positions.

    The usual wrong answer counts positions on from text to text: then the second text begins in
    the middle, and a model that learned a vector for each position reads another text.
    """
    ids, cu_seqlens, positions = [], [0], []
    for text in ids_lists:
        ids += text
        cu_seqlens.append(cu_seqlens[-1] + len(text))
        positions += range(len(text))
    return ids, cu_seqlens, positions


@wrong("21.1", says="Positions begin at 0 again with each text: they say where a token stands in "
       "its own.")  # fmt: skip
def counts_on(ids_lists):
    ids, cu_seqlens, _ = packed(ids_lists)
    return ids, cu_seqlens, list(range(len(ids)))


@wrong("21.1", says="The last mark is missing: without the end, nobody knows where the last text "
       "stops. B texts have B + 1 marks.")  # fmt: skip
def forgets_the_end(ids_lists):
    ids, cu_seqlens, positions = packed(ids_lists)
    return ids, cu_seqlens[:-1], positions


@wrong("21.1", says="Those are the lengths. cu_seqlens adds them up, from 0 on: the c is for "
       "cumulative.")  # fmt: skip
def gives_lengths(ids_lists):
    ids, _, positions = packed(ids_lists)
    return ids, [0, *map(len, ids_lists)], positions


@wrong("21.1", says="The first mark is missing: the first text begins at 0.")
def forgets_the_beginning(ids_lists):
    ids, cu_seqlens, positions = packed(ids_lists)
    return ids, cu_seqlens[1:], positions


@wrong("21.1", says="That looks up ids, and an id may come again. Marks and positions follow from "
       "the lengths.")  # fmt: skip
def looks_ids_up(ids_lists):
    ids, _, _ = packed(ids_lists)
    positions = [text.index(token) for text in ids_lists for token in text]
    return ids, [ids.index(text[0]) for text in ids_lists] + [len(ids)], positions


@exercise(
    "21.2",
    cases=[
        Case([[7, 8, 9], [5]],
             expect=([[7, 8, 9], [0, 0, 5]], [[1, 1, 1], [0, 0, 1]], [[0, 1, 2], [0, 0, 0]]),
             because="the row of 5 has two places of padding in front, and 5 is its first token"),
        Case([[3, 4], [5, 6, 7, 8]],
             expect=([[0, 0, 3, 4], [5, 6, 7, 8]], [[0, 0, 1, 1], [1, 1, 1, 1]],
                     [[0, 0, 0, 1], [0, 1, 2, 3]]),
             because="3 stands in the third column, and is at position 0 of its text"),
        Case([[0, 9], [0]], expect=([[0, 9], [0, 0]], [[1, 1], [0, 1]], [[0, 1], [0, 0]]),
             because="id 0 begins a text here, so it is a token: padding is where no token is, "
             "whatever its id"),
    ],
    hints=[
        "The longest text says how long all rows are; what a row lacks comes in front.",
        "For a text of n tokens and rows of T there are T − n places of padding: T − n zeros, then "
        "the ids; T − n zeros, then n ones.",
        "Positions: T − n zeros, then 0 … n − 1.",
    ],
)  # fmt: skip
def left_padded(ids_lists):
    """Rows of equal length, filled up on the left; mask; positions from a text's first token.

    The usual wrong answer finds the padding by its id. Here id 0 also begins each text.
    """
    T = max(map(len, ids_lists))
    front = [[0] * (T - len(text)) for text in ids_lists]
    ids = [zeros + list(text) for zeros, text in zip(front, ids_lists, strict=True)]
    mask = [zeros + [1] * (T - len(zeros)) for zeros in front]
    return ids, mask, [zeros + list(range(T - len(zeros))) for zeros in front]


@wrong("21.2", says="That is padding on the right: then the ends of the texts, where answers grow, "
       "lie in different columns.")  # fmt: skip
def pads_right(ids_lists):
    T = max(map(len, ids_lists))
    back = [[0] * (T - len(text)) for text in ids_lists]
    ids = [list(text) + zeros for zeros, text in zip(back, ids_lists, strict=True)]
    mask = [[1] * (T - len(zeros)) + zeros for zeros in back]
    return ids, mask, [list(range(T - len(zeros))) + zeros for zeros in back]


@wrong("21.2", says="The mask lets everybody look at padding: the model reads it as text.")
def masks_nothing(ids_lists):
    ids, mask, positions = left_padded(ids_lists)
    return ids, [[1] * len(row) for row in mask], positions


@wrong("21.2", says="The mask is the other way round: 1 is for a token, 0 for padding.")
def masks_tokens(ids_lists):
    ids, mask, positions = left_padded(ids_lists)
    return ids, [[1 - place for place in row] for row in mask], positions


@wrong("21.2", says="Positions from the edge of the row change with the company. Count from the "
       "text's first token, or an answer that counts tokens lies elsewhere.")  # fmt: skip
def counts_from_the_edge(ids_lists):
    ids, mask, _ = left_padded(ids_lists)
    return ids, mask, [list(range(len(row))) for row in ids]


@wrong("21.2", says="A token may have the id of the padding: id 0 begins texts here. The mask "
       "follows from the lengths.")  # fmt: skip
def finds_padding_by_its_id(ids_lists):
    ids, _, positions = left_padded(ids_lists)
    return ids, [[int(token != 0) for token in row] for row in ids], positions


@exercise(
    "21.3",
    cases=[
        Case([100, 50], 2, 10, 36.0, expect=0.05,
             because="50 places of padding at 10 a second take 5 s, at a cent a second"),
        Case([100, 100], 2, 10, 36.0, expect=0.0,
             because="texts of one length need no padding"),
        Case([10, 20, 100, 90], 2, 10, 36.0, expect=0.02,
             because="each batch is padded to its own longest: 10 places in each"),
        Case([10, 20, 70], 2, 10, 36.0, expect=0.01,
             because="the last batch has one text, and no padding"),
        Case([10, 40, 20, 30, 20], 3, 10, 36.0, expect=0.06,
             because="30 + 20 places are padding in the batch of three, 10 in the last, of two"),
        Case([100, 10, 20, 90], 2, 10, 36.0, expect=0.16,
             because="in order of arrival 90 and 70 places are padding, though sorted it were 20"),
    ],
    hints=[
        "Cut the list into batches of B, in the order as it is: lengths[i : i + B].",
        "A batch has len(batch) · max(batch) places, of which sum(batch) hold a token.",
        "Places of padding ÷ rate are seconds; an hour has 3,600 of them.",
    ],
)  # fmt: skip
def padding_dollars(lengths, B, rate, price):
    """What padding costs: places without a token, in seconds, in dollars.

    The usual wrong answer pads all texts to the longest of the whole day. Each batch has its own
    longest; that is why it helps to sort.
    """
    batches = [lengths[i : i + B] for i in range(0, len(lengths), B)]
    padding = sum(len(batch) * max(batch) - sum(batch) for batch in batches)
    return padding / rate / 3600 * price


@wrong("21.3", says="Each batch is padded to its own longest text, not to the longest of all.")
def pads_to_the_longest_of_all(lengths, B, rate, price):
    return (len(lengths) * max(lengths) - sum(lengths)) / rate / 3600 * price


@wrong("21.3", says="Those are all places. Padding is what holds no token: take the tokens off.")
def counts_tokens_too(lengths, B, rate, price):
    batches = [lengths[i : i + B] for i in range(0, len(lengths), B)]
    return sum(len(batch) * max(batch) for batch in batches) / rate / 3600 * price


@wrong("21.3", says="The last batch has what is left: nobody fills it up with rows of padding.")
def fills_up_the_last_batch(lengths, B, rate, price):
    batches = [lengths[i : i + B] for i in range(0, len(lengths), B)]
    padding = sum(B * max(batch) - sum(batch) for batch in batches)
    return padding / rate / 3600 * price


@wrong("21.3", says="The last batch runs too, full or not, and its padding costs as well.")
def drops_the_last_batch(lengths, B, rate, price):
    return padding_dollars(lengths[: len(lengths) // B * B], B, rate, price)


@wrong("21.3", says="Longest less shortest is the padding of one text. Each text is filled up, by "
       "what it lacks.")  # fmt: skip
def fills_up_only_the_shortest(lengths, B, rate, price):
    batches = [lengths[i : i + B] for i in range(0, len(lengths), B)]
    return sum(max(batch) - min(batch) for batch in batches) / rate / 3600 * price


@wrong("21.3", says="That sorts the requests first. They come in the order of the list.")
def sorts_first(lengths, B, rate, price):
    return padding_dollars(sorted(lengths), B, rate, price)


@wrong("21.3", says="A price for an hour, and seconds: divide by 3,600.")
def takes_seconds_for_hours(lengths, B, rate, price):
    return 3600 * padding_dollars(lengths, B, rate, price)
