"""Text to token ids and back, on the CPU: the `tokenizers` library behind a small interface."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path

from tokenizers import Tokenizer as Library

from minillm.errors import CheckpointError, PromptError


class Tokenizer:
    """A checkpoint's `tokenizer.json`.

    >>> tokenizer = Tokenizer.from_pretrained("data/town")
    >>> tokenizer.decode(tokenizer.encode("the red key"))
    'the red key'
    """

    def __init__(self, library: Library) -> None:
        self._library = library

    @classmethod
    def from_pretrained(cls, directory: str | PathLike[str]) -> Tokenizer:
        """Read `directory/tokenizer.json`; CheckpointError if it is missing or unreadable."""
        path = Path(directory) / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(
                f"wanted the tokenizer {path}, found no such file; "
                "point to a directory in Hugging Face layout that has a tokenizer.json"
            )
        try:
            return cls(Library.from_str(path.read_text(encoding="utf-8")))
        except Exception as error:  # the library raises plain Exception for any bad file
            raise CheckpointError(
                f"wanted a tokenizer in {path}, found a file that cannot be read as one "
                f"({error}); fetch or build it again"
            ) from error

    @property
    def vocab_size(self) -> int:
        """One more than the largest id that `encode` can return."""
        return max(self._library.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """The ids of `text`; `add_special` lets the tokenizer put its own marks (BOS) around it.

        PromptError if `text` is no text: not a `str`, or one with half a surrogate pair in it.
        """
        if not isinstance(text, str):
            raise PromptError(f"wanted text (str), found {type(text).__name__}; pass a string")
        try:
            return self._library.encode(text, add_special_tokens=add_special).ids
        except (UnicodeError, TypeError) as error:
            raise PromptError(
                "wanted text, found a string that has no UTF-8 form (half of a surrogate pair); "
                "decode the bytes it came from as UTF-8"
            ) from error

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without marks (BOS); bytes that form no UTF-8 character are U+FFFD."""
        return self._library.decode(list(ids), skip_special_tokens=True)

    def token(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it ("Ġkey"); None if `decode` leaves it out."""
        return None if token_id in self._marks else self._library.id_to_token(token_id)

    def join(self, tokens: Sequence[str]) -> str:
        """The text of tokens as `token` spells them."""
        decoder = self._library.decoder
        return " ".join(tokens) if decoder is None else decoder.decode(list(tokens))

    @cached_property
    def _marks(self) -> frozenset[int]:
        added = self._library.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)
