"""Token ids back to text, one at a time: nothing is shown that a later token could still change.

Three things may change it. A character of UTF-8 is up to four bytes, and a token may end inside
one. A byte-fallback decoder (Llama 2's) judges a whole run of byte tokens at once. And text that
is the beginning of a stop string must not be shown before we know how it goes on.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Sequence
from os.path import commonprefix

from minillm.tokens.tokenizer import Tokenizer

_INVALID = "\ufffd"  # what decoders write for bytes that are no character, or not yet


class Detokenizer:
    """The text of an answer whose ids come one by one, in pieces.

    The pieces joined are `tokenizer.decode(prompt_ids + ids)` after what it has in common with
    `tokenizer.decode(prompt_ids)`, cut before the stop string that ends first. So a space between
    prompt and answer is the answer's, and a character that the prompt leaves unfinished is shown
    whole by the answer that ends it. A piece comes as soon as no later id can change it.

    >>> detokenizer = Detokenizer(tokenizer, prompt_ids, stop=("\\n",))
    >>> text = "".join(detokenizer.add(id) for id in ids) + detokenizer.finish()
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt_ids: Sequence[int], stop: str | tuple[str, ...] = ()
    ) -> None:
        self.stopped = False  # True once a stop string has appeared
        self._stop = (stop,) if isinstance(stop, str) else tuple(stop)
        self._token = tokenizer.token
        byte_level = tokenizer.join(["ĠÃ", "©Ġ"]) == " é "
        self._reader = _Bytes() if byte_level else _Tokens(tokenizer.join)
        for token in self._tail(prompt_ids):
            self._reader.add(token)
        self._prompt = self._reader.held()  # the prompt's own text that may be repeated
        self._held = ""  # whole characters that may begin a stop string

    def add(self, token_id: int) -> str:
        """The text that is now certain; often "" and sometimes more than this token's own."""
        assert not self.stopped, "the text has ended at a stop string"
        token = self._token(token_id)
        if token is None:
            return ""
        text = self._reader.add(token)
        text = self._answer(text) if self._prompt else text
        return self._cut(text) if self._stop else text

    def finish(self) -> str:
        """What was still held back; call it once, after the last `add`."""
        if self.stopped:
            return ""
        text = self._cut(self._answer(self._reader.held()))
        text, self._held = text + self._held, ""
        return text

    def _tail(self, prompt_ids: Sequence[int]) -> list[str]:
        """The prompt's last tokens: as few as decide how the text goes on."""
        tail: list[str] = []  # backwards
        for token in map(self._token, reversed(prompt_ids)):
            if token is not None:
                tail.append(token)
                if self._reader.enough(tail):
                    break
        return tail[::-1]

    def _answer(self, text: str) -> str:
        """`text` without its beginning, as far as the prompt's text has it already."""
        common = len(commonprefix([text, self._prompt]))
        self._prompt = self._prompt[common:] if common == len(text) else ""
        return text[common:]

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


class _Bytes:
    """Reads byte-level tokens (GPT-2's, Llama 3's, Qwen's): bytes first, then characters.

    A text that ends in U+FFFD may wait for bytes or be invalid for good: only the bytes tell.
    """

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: str) -> str:
        """The text that is certain with this token."""
        return _decode(self._utf8, _spelled(token))

    def held(self) -> str:
        """The text of what is held back, if nothing followed."""
        unfinished, _ = self._utf8.getstate()
        return _INVALID if unfinished else ""

    def enough(self, tail: list[str]) -> bool:
        """Whether a prompt's last tokens, backwards, decide how it goes on: three bytes do."""
        return sum(len(_spelled(token)) for token in tail) >= 3


class _Tokens:
    """Reads tokens that are pieces of text, and byte tokens ("<0xE2>") if the decoder knows them.

    A run of byte tokens is one thing to its decoder: its characters if all of it is valid UTF-8,
    else one U+FFFD for each byte, whole characters before the fault included. So a run that is
    valid so far is held to its end; from the first byte that breaks it, each byte is certain.
    """

    def __init__(self, join: Callable[[Sequence[str]], str]) -> None:
        self._join = join
        self._fallback = join(["a", "<0x62>"]) == "ab"
        # Decoders treat a text's first token differently (they drop its space), so a token is
        # decoded after one or a few before it; `_skip` characters are theirs.
        self._context: list[str] = []
        self._skip = 0
        self._run: list[str] = []  # byte tokens, valid so far
        self._broken = False  # the run is not valid, and shown
        self._utf8 = codecs.getincrementaldecoder("utf-8")("strict")

    def add(self, token: str) -> str:
        """The text that is certain with this token."""
        if self._is_byte(token):
            return self._add_byte(token)
        tokens, self._run, self._broken = [*self._run, token], [], False
        self._utf8.reset()
        text = self._join([*self._context, *tokens])[self._skip :]
        if alone := self._join([token]):
            self._context, self._skip = [token], len(alone)
        elif not self._skip:  # nothing but lost spaces so far
            self._context, self._skip = [*self._context, *tokens], len(text)
        return text

    def held(self) -> str:
        """The text of what is held back, if nothing followed."""
        return self._join([*self._context, *self._run])[self._skip :] if self._run else ""

    def enough(self, tail: list[str]) -> bool:
        """Whether a prompt's last tokens, backwards, decide how it goes on: a text, then a run."""
        return not self._is_byte(tail[-1]) and self._join(tail[-1:]) != ""

    def _is_byte(self, token: str) -> bool:
        return self._fallback and _BYTE.fullmatch(token) is not None

    def _add_byte(self, token: str) -> str:
        if self._broken:
            return _INVALID
        self._run.append(token)
        try:
            _decode(self._utf8, bytes.fromhex(token[3:5]))
        except UnicodeDecodeError:
            text, self._run, self._broken = _INVALID * len(self._run), [], True
            self._context, self._skip = ["a"], 1  # any text will do, for text was shown
            return text
        return ""


def _decode(utf8: codecs.IncrementalDecoder, data: bytes) -> str:
    """The text that is certain with `data`: Python's, but for the beginning of a surrogate.

    Python waits for its third byte, which for UTF-8 can make no character of it.
    """
    text = utf8.decode(data)
    unfinished, _ = utf8.getstate()
    surrogate = unfinished[:1] == b"\xed" and unfinished[1:2] >= b"\xa0"
    return text + utf8.decode(b"", final=True) if surrogate else text


_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")


def _alphabet() -> dict[str, int]:
    """GPT-2's letter for each byte: printable bytes are themselves, others follow from U+0100."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + n): byte for n, byte in enumerate(others)
    }


_ALPHABET = _alphabet()


def _spelled(token: str) -> bytes:
    """The bytes that a byte-level token spells; an added one with other letters is plain text."""
    try:
        return bytes([_ALPHABET[letter] for letter in token])
    except KeyError:
        return token.encode()


def _overlap(text: str, stop: str) -> int:
    """The length of the longest ending of `text` that begins `stop`, `stop` itself excluded."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
