"""The tokenizer: text to ids and back, and what it refuses."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.errors import CheckpointError, PromptError
from minillm.tokens.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny) -> Tokenizer:
    return Tokenizer.from_pretrained(tiny("llama3"))


def test_any_text_round_trips(tokenizer):
    """Catches a normalizer or an alphabet that loses characters."""

    @settings(max_examples=100, deadline=None)
    @given(st.text(st.characters(exclude_categories=["Cs"])))
    def round_trips(text: str) -> None:
        assert tokenizer.decode(tokenizer.encode(text)) == text

    round_trips()


def test_special_marks_come_only_when_asked_for(tokenizer):
    """Catches a document without BOS, and an answer that begins with one."""
    plain = tokenizer.encode("the red key", add_special=False)
    assert tokenizer.encode("the red key") == [0, *plain]
    assert tokenizer.decode([0, *plain, 1]) == "the red key"


def test_every_id_lies_below_vocab_size(tokenizer):
    """Catches a count of entries where ids have gaps: the model's table would be too small."""
    library = tokenizer._library
    assert tokenizer.vocab_size == max(library.get_vocab(True).values()) + 1
    assert max(tokenizer.encode("Mia put the red key")) < tokenizer.vocab_size


def test_missing_tokenizer_is_named(tmp_path):
    """Catches a bare FileNotFoundError from inside a library."""
    with pytest.raises(CheckpointError, match="wanted .*tokenizer.json.*found no such file"):
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"model": 1}', b"\xff\xfe", b"null"])
def test_damaged_tokenizer_is_named(tmp_path, content):
    """Catches the library's plain Exception reaching the user."""
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="tokenizer.json"):
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", [None, b"Mia", 7, ["Mia"], "half a pair: \ud83d"])
def test_what_is_no_text_is_refused(tokenizer, text):
    """Catches bytes, or broken surrogates from a terminal, that fail deep inside."""
    with pytest.raises(PromptError, match="wanted text"):
        tokenizer.encode(text)
