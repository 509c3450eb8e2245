"""The exercises of lesson 10, solved.

Try them in the notebook first; `hint("10.1")` helps there.
"""

import json
import struct

from minillm.lesson import Case, exercise, wrong


def _file(header: bytes, numbers: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + numbers


_ENTRY = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
_LONG = {f"layer {n}": {"dtype": "BF16", "shape": [1], "data_offsets": [2 * n, 2 * n + 2]}
         for n in range(40)}  # fmt: skip


@exercise(
    "10.1",
    cases=[
        Case(_file(b"{}"), expect={},
             because="a file of ten bytes: the length 2, and a header that names no tensor"),
        Case(_file(json.dumps(_ENTRY).encode(), bytes(8)), expect=_ENTRY,
             because="the numbers behind the header are no part of it: stop where it ends"),
        Case(_file(json.dumps(_LONG).encode(), bytes(80)), expect=_LONG,
             because="a header is often longer than 255 bytes, so all eight bytes count"),
        Case(_file(b'{"\xc3\xa9": 1}   '), expect={"é": 1},
             because="the text is UTF-8, and writers pad it with spaces, which JSON ignores"),
    ],
    hints=[
        "The first eight bytes are one number, the header's length. `struct.unpack(\"<Q\", …)` or "
        "`int.from_bytes(…, \"little\")` reads it.",
        "The header begins at byte 8. At which byte does it end?",
        "Cut the header out of `data` and give it to `json.loads`, which takes bytes too.",
    ],
)  # fmt: skip
def parse_header(data):
    """The JSON header of a safetensors file, as a dict, from the file's first bytes.

    The usual wrong answer reads to the end of `data`: right for a file without tensors, and an
    error for every real one, since numbers are no JSON. The length is there to say where to stop.
    Our own parser then checks each claim; see minillm/load/safetensors.py.
    """
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length])


# A length read the wrong way round is so large that a slice of it goes to the end: the same error.
_TOO_FAR = (
    "It reads the tensors' numbers as JSON. The first eight bytes say where the header ends, and "
    "they are little-endian: read highest byte first, they say a number beyond any file."
)


@wrong("10.1", says=_TOO_FAR)
def reads_to_the_end(data):
    return json.loads(data[8:])


@wrong("10.1", says="The length has eight bytes, the lowest first; one byte counts to 255 only.")
def takes_one_byte(data):
    return json.loads(data[8 : 8 + data[0]])


@wrong("10.1", says=_TOO_FAR)
def reads_big_endian(data):
    (length,) = struct.unpack(">Q", data[:8])
    return json.loads(data[8 : 8 + length])


@wrong("10.1", says="The header begins behind the eight bytes of its length, so it ends at 8 + "
       "length.")  # fmt: skip
def forgets_the_eight(data):
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8:length])


@exercise(
    "10.2",
    cases=[
        Case([1, 2, 3, 1, 2, 3], 3, expect=3,
             because="there is room for all three: the second time each is there"),
        Case([1, 2, 3, 1, 2, 3], 2, expect=6,
             because="page 1 was forgotten for page 3, page 2 for page 1: each goes before its "
                     "turn"),
        Case([1, 2, 1, 3, 1], 2, expect=3,
             because="page 3 drives out page 2: page 1 came first, but was used since"),
        Case([1, 2, 3, 2, 3, 2, 3], 2, expect=3, because="page 1 never comes back: it may go"),
        Case([], 4, expect=0, because="nothing was asked for"),
    ],
    hints=[
        "Go through `asked` one by one. Is the page in the cache? If not, that is a read.",
        "The cache must know in which order its pages were last used. A list will do, or a dict, "
        "which keeps the order of what was put in.",
        "A page that is asked for leaves its old place and goes to the end. If it was not found "
        "and there are `room` pages already, the one at the front goes first.",
    ],
)  # fmt: skip
def reads_of_ssd(asked, room):
    """Reads that go to the SSD, behind a cache of `room` pages.

    The usual wrong answer forgets the page that came *first*. A page that is found must move to
    the end of the line, or one that is used all the time is thrown out for having come early.
    """
    cache, reads = {}, 0  # a dict keeps the order in which its keys were put in
    for page in asked:
        if page in cache:
            del cache[page]
        else:
            reads += 1
            if len(cache) == room:
                del cache[next(iter(cache))]
        cache[page] = True
    return reads


@wrong("10.2", says="It forgets the page that came first. A page that is found counts as used: it "
       "moves to the end of the line.")  # fmt: skip
def forgets_the_first_that_came(asked, room):
    cache, reads = [], 0
    for page in asked:
        if page not in cache:
            reads += 1
            cache = [*cache, page][-room:]
    return reads


@wrong("10.2", says="That cache never forgets. It has room for `room` pages.")
def never_forgets(asked, room):
    return len(set(asked))


@wrong("10.2", says="That cache forgets nothing, and takes nothing new when it is full. What was "
       "just read is kept, and the page used longest ago goes.")  # fmt: skip
def keeps_the_first(asked, room):
    cache, reads = set(), 0
    for page in asked:
        if page not in cache:
            reads += 1
            if len(cache) < room:
                cache.add(page)
    return reads


@exercise(
    "10.3",
    cases=[
        Case([10e9], 20e9, 5e9, 10e9, expect=1.0,
             because="one model that fits is warm from the second time on: 10 GB at 10 GB/s"),
        Case([10e9], 5e9, 5e9, 10e9, expect=2.0,
             because="a model larger than the cache has pushed out its own beginning: all cold"),
        Case([10e9, 20e9], 30e9, 5e9, 10e9, expect=3.0, because="both fit, just: 30 GB at 10 GB/s"),
        Case([10e9, 20e9], 29e9, 5e9, 10e9, expect=6.0,
             because="one GB is missing, and what comes next was always dropped: 30 GB cold"),
    ],
    hints=[
        "Add the sizes up: do all models fit in the cache together?",
        "If they do, all bytes come out of it, in every later round.",
        "If not, the model that comes next is the one that was used longest ago, and was dropped.",
    ],
)  # fmt: skip
def round_seconds(models, room, ssd, cache):
    """Seconds of a round of loads, after the first one.

    The usual wrong answer counts what fits as warm, and the rest as cold. A cache that drops what
    was used longest ago does worse with loads in a circle: it always drops what comes next.
    """
    return sum(models) / (cache if sum(models) <= room else ssd)


@wrong("10.3", says="In a circle the one that comes next was dropped last: nothing of it is warm.")
def what_fits_is_warm(models, room, ssd, cache):
    warm = min(room, sum(models))
    return warm / cache + (sum(models) - warm) / ssd


@wrong("10.3", says="Each of them fits alone. They must fit together, or one drives out another.")
def looks_at_each_alone(models, room, ssd, cache):
    return sum(size / (cache if size <= room else ssd) for size in models)


@wrong("10.3", says="That is the first round. What was read stays in the cache, if there is room.")
def always_cold(models, room, ssd, cache):
    return sum(models) / ssd
