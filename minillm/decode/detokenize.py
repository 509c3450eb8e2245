"""Token ids back to text, one at a time: nothing is shown that a later token could still change.

Two things may change it. A character of UTF-8 is up to four bytes, and a token may end inside one.
And text that is the beginning of a stop string must not be shown before we know how it goes on.
"""

from __future__ import annotations

from minillm.tokens.tokenizer import Tokenizer

_UNFINISHED = "\ufffd"  # what a decoder writes for bytes that are no whole character (yet)


class Detokenizer:
    """The text of a growing list of ids, in pieces.

    The pieces joined are `tokenizer.decode(ids)`, cut before the stop string that ends first.

    >>> detokenizer = Detokenizer(tokenizer, stop=("\\n",))
    >>> text = "".join(detokenizer.add(id) for id in ids) + detokenizer.finish()
    """

    def __init__(self, tokenizer: Tokenizer, stop: str | tuple[str, ...] = ()) -> None:
        self.stopped = False  # True once a stop string has appeared
        self._tokenizer = tokenizer
        self._stop = (stop,) if isinstance(stop, str) else tuple(stop)
        # We decode a short window of ids, not all of them: the cost of a token stays constant.
        # Its first ids are shown already; they stay because some decoders treat a first id
        # differently (they drop its leading space).
        self._window: list[int] = []
        self._fresh = 0  # ids of the window that come after the last clean cut
        self._shown = 0  # characters of the window's text that have been passed on
        self._held = ""  # whole characters that may begin a stop string

    def add(self, token_id: int) -> str:
        """The text that is now certain; often "" and sometimes more than this token's own."""
        assert not self.stopped, "the text has ended at a stop string"
        self._window.append(token_id)
        self._fresh += 1
        text = self._tokenizer.decode(self._window)
        whole = len(text) - _unfinished(text)
        certain = text[self._shown : whole]
        self._shown = max(self._shown, whole)
        if certain and whole == len(text):
            self._slide()
        return self._cut(certain)

    def finish(self) -> str:
        """What was still held back; call it once, after the last `add`."""
        if self.stopped:
            return ""
        rest = self._tokenizer.decode(self._window)[self._shown :]
        text = self._cut(rest)
        text, self._held = text + self._held, ""
        return text

    def _slide(self) -> None:
        self._window = self._window[-self._fresh :]
        self._fresh = 0
        self._shown = len(self._tokenizer.decode(self._window))

    def _cut(self, certain: str) -> str:
        """Pass text on: up to a stop string, and without an ending that may become one."""
        text = self._held + certain
        # Of several stop strings the one that is complete first ends the text, however it was cut
        # into tokens; of those complete at once, the longest.
        found = [(text.find(stop) + len(stop), -len(stop)) for stop in self._stop if stop in text]
        if found:
            self.stopped, self._held = True, ""
            return text[: sum(min(found))]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _unfinished(text: str) -> int:
    """How many characters at the end may be an unfinished one: at most three bytes' worth."""
    count = 0
    while count < 3 and text.endswith(_UNFINISHED, 0, len(text) - count):
        count += 1
    return count


def _overlap(text: str, stop: str) -> int:
    """The length of the longest ending of `text` that begins `stop`, `stop` itself excluded."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
