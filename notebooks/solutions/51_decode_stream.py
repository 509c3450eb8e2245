"""The exercises of lesson 51, solved.

Try them in the notebook first; `hint("51.1")` helps there.
"""

import codecs
import math

from minillm.lesson import Case, exercise, wrong


@exercise(
    "51.1",
    cases=[
        Case(b"Mia", expect=("Mia", b""),
             because="all of it is certain, and nothing waits"),
        Case(b"a\xf0\x9f\x98", expect=("a", b"\xf0\x9f\x98"),
             because="three bytes of four may still become an emoji: they wait"),
        Case(b"\xf0\x9f\x98\x80!", expect=("😀!", b""),
             because="the fourth byte completes it"),
        Case(b"ok\xff", expect=("ok\ufffd", b""),
             because="no character has the byte FF in it: what is invalid for good does not wait"),
        Case("x\ufffd".encode(), expect=("x\ufffd", b""),
             because="these are the three bytes of U+FFFD itself, a whole character"),
        Case(b"\xe4\xbdA", expect=("\ufffdA", b""),
             because="A ends what E4 BD had begun: it never becomes a character"),
        Case(b"\xff\xf0\x9f", expect=("\ufffd", b"\xf0\x9f"),
             because="FF is invalid for good, and the two bytes after it may become an emoji"),
        Case(b"a\xe0\x80", expect=("a\ufffd\ufffd", b""),
             because="after E0 only A0 to BF go on with a character: these two never become one"),
        Case(b"\x9f\x98", expect=("\ufffd\ufffd", b""),
             because="no character begins with 9F or 98, so neither waits"),
    ],
    hints=[
        "What does the text look like? Do not ask that: ask the bytes. Those at the end that begin "
        "a character, and do not complete it, wait.",
        "The standard library has a decoder that does it: "
        "`codecs.getincrementaldecoder(\"utf-8\")(\"replace\")` makes one.",
        "Its `decode(data)` gives the text that is certain. Its `getstate()` gives a pair; the "
        "first of it is the bytes that it holds.",
    ],
)  # fmt: skip
def certain(data):
    """The text that is certain, and the bytes that wait for others.

    The usual wrong answer looks at the text: if it ends in U+FFFD, all of it waits. So a byte that
    is invalid for good, or a true U+FFFD, is shown late or never.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return decoder.decode(data), decoder.getstate()[0]


@wrong("51.1", says="A text may end in U+FFFD and wait for nothing: when a byte is invalid for "
       "good, or when U+FFFD was meant. Only the bytes tell.")  # fmt: skip
def waits_for_the_mark(data):
    text = data.decode("utf-8", "replace")
    return ("", data) if text.endswith("\ufffd") else (text, b"")


@wrong("51.1", says="What begins a character must wait for its other bytes, and not be shown as "
       "U+FFFD.")  # fmt: skip
def shows_it_broken(data):
    return data.decode("utf-8", "replace"), b""


@wrong("51.1", says="Bytes that are left out are lost: those that begin a character wait, those "
       "that never become one are shown as U+FFFD.")  # fmt: skip
def leaves_them_out(data):
    return data.decode("utf-8", "ignore"), b""


@wrong("51.1", says="All bytes above 7F wait here, also those that can become nothing any more.")
def holds_all_that_is_not_ascii(data):
    end = len(data)
    while end and data[end - 1] > 0x7F:
        end -= 1
    return data[:end].decode("utf-8", "replace"), data[end:]


@wrong("51.1", says="You look at the first fault alone. Bytes that are invalid for good may stand "
       "before others that wait.")  # fmt: skip
def asks_the_first_fault(data):
    try:
        return data.decode("utf-8"), b""
    except UnicodeDecodeError as fault:
        if fault.reason == "unexpected end of data":
            return data[: fault.start].decode("utf-8"), data[fault.start :]
        return data.decode("utf-8", "replace"), b""


@wrong("51.1", says="You count by the first byte alone. Not every byte may follow it: after E0, 80 "
       "makes no character, however many come.")  # fmt: skip
def counts_by_the_first_byte(data):
    for size in range(1, min(4, len(data) + 1)):
        first = data[-size]
        if first >= 0xC0:
            wants = 2 if first < 0xE0 else 3 if first < 0xF0 else 4 if first < 0xF8 else 0
            rest = data[len(data) - size + 1 :]
            if size < wants and all(0x80 <= byte < 0xC0 for byte in rest):
                return data[:-size].decode("utf-8", "replace"), data[-size:]
    return data.decode("utf-8", "replace"), b""


@wrong("51.1", says="Bytes from 80 to BF go on with a character and begin none: without a "
       "beginning before them they wait for nothing.")  # fmt: skip
def waits_for_a_beginning(data):
    return ("", data) if 0x80 <= min(data) <= max(data) < 0xC0 else certain(data)


@exercise(
    "51.2",
    cases=[
        Case("Mia went", "\nTom:", expect=("Mia went", ""),
             because="no ending of it begins the stop string"),
        Case("Mia\nTo", "\nTom:", expect=("Mia", "\nTo"),
             because="\\nTo may become \\nTom: and waits"),
        Case("Mia\nTom: hello", "\nTom:", expect=("Mia", None),
             because="the stop string is there: it and what follows are not shown, nothing waits"),
        Case("Hi\nTom: Hi\nTom: Hi", "\nTom:", expect=("Hi", None),
             because="the answer ends before the first of two stop strings"),
        Case("no\nTim", "\nTom:", expect=("no\nTim", ""),
             because="\\nTim can not become it: show it"),
        Case("aab", "aabaac", expect=("", "aab"),
             because="all of it begins the stop string"),
        Case("aabaab", "aabaac", expect=("aab", "aab"),
             because="the longest ending that begins the stop string is aab"),
        Case("xaa", "aab", expect=("x", "aa"),
             because="aa may become aab, so both letters wait"),
    ],
    hints=[
        "First: is the stop string in the text? Then show what stands before it, and None says "
        "that nothing waits any more.",
        "Else try endings of the text, the longest first: `stop.startswith(ending)` says whether "
        "one may become the stop string.",
        "The longest ending that matters has one letter less than the stop string. If none begins "
        "it, all is shown and \"\" waits.",
    ],
)  # fmt: skip
def before_stop(text, stop):
    """What may be shown of a text, and what waits; None if the stop string has come.

    The usual wrong answer shows all until the stop string is complete: its beginning was shown.
    """
    if stop in text:
        return text[: text.index(stop)], None
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-size:]):
            return text[:-size], text[-size:]
    return text, ""


@wrong("51.2", says="The beginning of the stop string was shown before it was complete: hold back "
       "an ending that may become it.")  # fmt: skip
def shows_until_complete(text, stop):
    return (text[: text.index(stop)], None) if stop in text else (text, "")


@wrong("51.2", says="You hold back as many letters as the stop string has, whatever they are. "
       "Only an ending that may become it waits.")  # fmt: skip
def holds_a_fixed_length(text, stop):
    if stop in text:
        return text[: text.index(stop)], None
    at = max(0, len(text) - len(stop) + 1)
    return text[:at], text[at:]


@wrong("51.2", says="You take the shortest ending that fits. A longer one may also become the stop "
       "string, and must not be shown: try the longest first.")  # fmt: skip
def the_shortest_ending(text, stop):
    if stop in text:
        return text[: text.index(stop)], None
    for size in range(1, min(len(text), len(stop) - 1) + 1):
        if stop.startswith(text[-size:]):
            return text[:-size], text[-size:]
    return text, ""


@wrong("51.2", says="The answer ends where the stop string comes first; you look for the last.")
def before_the_last(text, stop):
    return (text[: text.rindex(stop)], None) if stop in text else before_stop(text, stop)


@wrong("51.2", says="The stop string itself was shown. It ends the answer and is no part of it.")
def shows_the_stop_string(text, stop):
    if stop in text:
        return text[: text.index(stop) + len(stop)], None
    return before_stop(text, stop)


@exercise(
    "51.3",
    cases=[
        Case(10.0, 1.0, 3.0, expect=6,
             because="at 5 both take 15; from 6 on, 16 against 18, restoring is sooner"),
        Case(10.0, 1.0, 4.0, expect=4,
             because="at 3 it is 13 against 12, at 4 it is 14 against 16"),
        Case(11.0, 1.0, 4.0, expect=4,
             because="at 3 it is 14 against 12, at 4 it is 15 against 16"),
        Case(0.0, 3.0, 2.0, expect=None,
             because="no fixed cost, but each token takes longer to bring than to compute"),
        Case(0.0, 1.0, 2.0, expect=1,
             because="without a fixed cost one token is enough"),
        Case(10.0, 3.0, 3.0, expect=None,
             because="each token takes as long either way, and the fixed cost is never made up"),
        Case(1.0, 5.0, 2.0, expect=None,
             because="a token takes longer to bring than to compute: more of them make it worse"),
    ],
    hints=[
        "Restoring n tokens takes fixed + n · restore, reading them anew n · anew.",
        "Each token makes up anew - restore seconds. If that is not above zero, there is no such "
        "length: None.",
        "Both are equal at n = fixed ÷ (anew - restore). The answer is the next whole number above "
        "it, also where it is whole itself.",
    ],
)  # fmt: skip
def break_even(fixed, restore, anew):
    """The fewest tokens for which restoring is sooner than reading anew; None if there are none.

    The usual wrong answer divides where nothing is made up, and finds a negative length.
    """
    return None if anew <= restore else math.floor(fixed / (anew - restore)) + 1


@wrong("51.3", says="Where a token takes as long to bring as to compute, or longer, no length "
       "makes the fixed cost up: the answer is None.")  # fmt: skip
def finds_one_always(fixed, restore, anew):
    return math.floor(fixed / ((anew - restore) or 1e-9)) + 1


@wrong("51.3", says="A token does not make up all the time that computing it takes: bringing it "
       "takes some as well.")  # fmt: skip
def forgets_to_bring_them(fixed, restore, anew):
    return None if anew <= restore else math.floor(fixed / anew) + 1


@wrong("51.3", says="There both take equally long, or restoring takes longer still: we ask for the "
       "first whole number above.")  # fmt: skip
def rounds_down(fixed, restore, anew):
    return None if anew <= restore else math.floor(fixed / (anew - restore))


@wrong("51.3", says="Rounded to the nearest: the first whole number above 3.7 is 4, as above 3.3.")
def rounds_to_the_nearest(fixed, restore, anew):
    return None if anew <= restore else round(fixed / (anew - restore)) + 1


@wrong("51.3", says="Without a fixed cost one token is enough only if it takes less to bring "
       "than to compute.")  # fmt: skip
def one_without_a_fixed_cost(fixed, restore, anew):
    return break_even(fixed, restore, anew) if fixed else 1


@exercise(
    "51.4",
    cases=[
        Case(1000, 100_000, 10**9, 1e9, 1, 1e9, 1, 20e12, expect=(0.1, 0.1),
             because="100 MB at 1 GB/s, and 2 · 10⁹ · 1,000 FLOP at 20 TFLOP/s"),
        Case(1000, 100_000, 10**9, 1e9, 4, 1e9, 1, 20e12, expect=(0.1, 0.1),
             because="four drives give 4 GB/s, but one PCIe link takes 1"),
        Case(1000, 100_000, 10**9, 1e9, 4, 1e9, 8, 20e12, expect=(0.025, 0.0125),
             because="the drives set the time now, 4 GB/s; and eight GPUs compute"),
        Case(2000, 100_000, 10**9, 1e9, 2, 2e9, 2, 20e12, expect=(0.1, 0.1),
             because="twice the tokens, twice the drives and the GPUs"),
    ],
    hints=[
        "The session has tokens · kv bytes. They cross two kinds of link, drives and PCIe, at the "
        "same time: while one piece is read another is copied.",
        "The slower kind sets the time: bytes ÷ (drives · drive) and bytes ÷ (gpus · pcie), the "
        "larger of the two.",
        "To compute anew takes 2 FLOP a weight and token, shared by all GPUs. Give both times.",
    ],
)  # fmt: skip
def both_ways(tokens, kv, weights, drive, drives, pcie, gpus, flops):
    """Seconds to restore a session from its drives, and to read it anew.

    The usual wrong answer adds the links up, as if a page waited for the whole file.
    """
    nbytes = tokens * kv
    restore = max(nbytes / (drives * drive), nbytes / (gpus * pcie))
    return restore, 2 * weights * tokens / (gpus * flops)


@wrong("51.4", says="Drives and PCIe work at the same time, on different pieces: the slower sets "
       "the time, they do not add up.")  # fmt: skip
def in_turns(tokens, kv, weights, drive, drives, pcie, gpus, flops):
    nbytes = tokens * kv
    restore = nbytes / (drives * drive) + nbytes / (gpus * pcie)
    return restore, 2 * weights * tokens / (gpus * flops)


@wrong("51.4", says="What the drives give must cross PCIe as well, and one link may be the narrow "
       "place.")  # fmt: skip
def drives_alone(tokens, kv, weights, drive, drives, pcie, gpus, flops):
    return tokens * kv / (drives * drive), 2 * weights * tokens / (gpus * flops)


@wrong("51.4", says="All GPUs compute, each its part: divide by gpus · flops.")
def one_computes(tokens, kv, weights, drive, drives, pcie, gpus, flops):
    nbytes = tokens * kv
    return max(nbytes / (drives * drive), nbytes / (gpus * pcie)), 2 * weights * tokens / flops


@wrong("51.4", says="A weight and a token cost two operations: a product and a sum.")
def one_operation(tokens, kv, weights, drive, drives, pcie, gpus, flops):
    nbytes = tokens * kv
    restore = max(nbytes / (drives * drive), nbytes / (gpus * pcie))
    return restore, weights * tokens / (gpus * flops)
