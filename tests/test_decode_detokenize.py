"""The detokenizer: pieces that join to the text, and show nothing that could still change."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.decode.detokenize import Detokenizer
from minillm.tokens.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny) -> Tokenizer:
    return Tokenizer.from_pretrained(tiny("llama3"))


def pieces(tokenizer: Tokenizer, ids: list[int], stop: tuple[str, ...] = ()) -> list[str]:
    """One piece an id, up to a stop string, then what `finish` gives."""
    detokenizer = Detokenizer(tokenizer, stop)
    out = []
    for token_id in ids:
        out.append(detokenizer.add(token_id))
        if detokenizer.stopped:
            break
    return [*out, detokenizer.finish()]


def test_pieces_join_to_the_decoded_text(tokenizer):
    """Catches lost, doubled or reordered text, for any ids: broken UTF-8 and specials too."""

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.integers(0, 383), max_size=40))
    def joins(ids: list[int]) -> None:
        assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)

    joins()


def test_a_character_appears_whole(tokenizer):
    """Catches U+FFFD shown for a character whose last byte is in a later token."""
    ids = tokenizer.encode("a€🔑é", add_special=False)
    assert len(ids) > 4, "the tiny vocabulary splits these characters"
    shown = pieces(tokenizer, ids)
    assert [piece for piece in shown if piece] == ["a", "€", "🔑", "é"]


def test_text_comes_as_soon_as_it_is_certain(tokenizer):
    """Catches a detokenizer that waits for the end: the text would not stream."""
    ids = tokenizer.encode("Where is the key?", add_special=False)
    *before, rest = pieces(tokenizer, ids, stop=("\n",))
    assert all(before)
    assert rest == ""


def test_an_unfinished_character_at_the_end_is_shown_as_decode_shows_it(tokenizer):
    """Catches a tail that `finish` forgets."""
    ids = tokenizer.encode("key 🔑", add_special=False)[:-1]
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)
    assert tokenizer.decode(ids).endswith("\ufffd")


def test_text_ends_before_the_stop_string_that_ends_first(tokenizer):
    """Catches a stop string that is shown, or found only inside one token; for any text.

    "Ends first", for a text that streams cannot wait to see whether a longer one would come.
    """
    alphabet = st.text("ab\n", max_size=12)

    @settings(max_examples=200, deadline=None)
    @given(alphabet, st.lists(st.text("ab\n", min_size=1, max_size=3), min_size=1, max_size=3))
    def stops(text: str, stop: list[str]) -> None:
        ends = range(len(text) + 1)
        found = [(end, end - len(s)) for end in ends for s in stop if text[:end].endswith(s)]
        wanted = text[: min(found)[1]] if found else text
        ids = tokenizer.encode(text, add_special=False)
        assert "".join(pieces(tokenizer, ids, tuple(stop))) == wanted

    stops()


def test_the_beginning_of_a_stop_string_is_held_back(tokenizer):
    """Catches text that is shown and then would have to be taken back."""
    detokenizer = Detokenizer(tokenizer, stop="abc")
    a, b, c, x = (tokenizer.encode(letter, add_special=False)[0] for letter in "abcx")
    assert [detokenizer.add(i) for i in (x, a, b)] == ["x", "", ""]
    assert detokenizer.add(a) == "ab"
    assert [detokenizer.add(i) for i in (b, c)] == ["", ""]
    assert detokenizer.stopped
    assert detokenizer.finish() == ""


def test_a_long_text_is_decoded_in_short_windows(tokenizer, monkeypatch):
    """Catches decoding all ids again for each token, which grows with the square."""
    longest = 0
    decode = tokenizer.decode

    def watched(ids, *more):
        nonlocal longest
        longest = max(longest, len(ids))
        return decode(ids, *more)

    monkeypatch.setattr(tokenizer, "decode", watched)
    ids = tokenizer.encode("Mia put the red key in the chest. " * 20, add_special=False)
    "".join(pieces(tokenizer, ids))
    assert longest <= 8
