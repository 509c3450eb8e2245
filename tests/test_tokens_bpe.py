"""Byte-level BPE from scratch, held against the `tokenizers` library."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Library

from data.build.tokenizer import BOS, EOS, PIECES, sample_texts
from minillm.errors import CheckpointError, PromptError
from minillm.tokens.bpe import BPE, train

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "data" / "town" / "tokenizer.json"
TEXT = st.text(st.characters(exclude_categories=["Cs"]))
ODD = [
    "\U0001f469\u200d\U0001f469\u200d\U0001f467",
    "\U0001f3f3\ufe0f\u200d\U0001f308 \U0001f44d\U0001f3fd",
    "e\u0301 n\u0303 \u0e01\u0e47 \u0928\u092e\u0938\u094d\u0924\u0947", "<|end", "don't I'll 'S",
    "the key<|end|><|begin|>the", "  \n\n \t x \r\n", "a\x1cb\x85c\u200bd\u3000e",
    "\u0661\u0662 \u2463 \u2167 \xbd", "\x00\ufeff\U0010ffff",
]  # fmt: skip
BLOCKS = [(0x20, 0x24F), (0x370, 0x52F), (0x590, 0x6FF), (0x900, 0xDFF), (0x1000, 0x11FF),
          (0x2000, 0x2BFF), (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3),
          (0x10000, 0x1FAFF)]  # fmt: skip


@pytest.fixture(scope="module")
def bpe() -> BPE:
    return BPE.from_file(FILE)


@pytest.fixture(scope="module")
def library() -> Library:
    return Library.from_file(str(FILE))


def ids_of(library: Library, text: str) -> list[int]:
    return library.encode(text, add_special_tokens=False).ids


def test_the_exam_gets_the_librarys_ids(bpe, library):
    """Catches a rule that differs where the model is judged."""
    for line in (ROOT / "data" / "eval" / "skills.jsonl").read_text(encoding="utf-8").splitlines():
        question = json.loads(line)
        text = f"{question['prompt']} {question['answer']}"
        assert bpe.encode(text) == ids_of(library, text)
        assert bpe.decode(bpe.encode(text)) == text


def test_any_text_gets_the_librarys_ids(bpe, library):
    """Catches what the exam has not: marks in a text, joiners, combining marks, every script."""
    scripts = st.sampled_from(BLOCKS).flatmap(
        lambda block: st.text(st.characters(min_codepoint=block[0], max_codepoint=block[1]))
    )
    parts = st.lists(st.one_of(TEXT, scripts, st.sampled_from(ODD)), max_size=6)

    @settings(max_examples=400, deadline=None)
    @given(parts)
    @example(ODD)
    def equal(parts: list[str]) -> None:
        text = "".join(parts)
        assert bpe.encode(text) == ids_of(library, text)

    equal()


def pattern_of(path: Path) -> Regex:
    stored = json.loads(path.read_text(encoding="utf-8"))
    return Regex(stored["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"])


@pytest.mark.parametrize("name", [r"\p{L}", r"\p{N}", r"\s", r"\S", r"[^\s\p{L}\p{N}]"])
def test_every_character_is_of_the_librarys_class(bpe, name):
    """Catches letters, digits and spaces that this Python's Unicode does not know, or not so."""
    every = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000)
    theirs = pre_tokenizers.Split(Regex(f"{name}+"), "isolated").pre_tokenize_str(every)
    mine = BPE(bpe.vocab, [], f"{name}+").split(every)
    assert mine == [run for run, _ in theirs] and len(mine) > 20


def test_any_ids_decode_as_in_the_library(bpe, library):
    """Catches bytes cut in mid-character, marks that are shown, ids beyond the vocabulary."""

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.integers(0, len(bpe.vocab) + 9)))
    def equal(ids: list[int]) -> None:
        assert bpe.decode(ids) == library.decode(ids, skip_special_tokens=True)

    equal()


@pytest.mark.parametrize("text", [None, b"Mia", 7, "half a pair: \ud83d", "\udc00"])
def test_what_is_no_text_is_refused(bpe, text):
    """Catches ids for something that can never come back as text."""
    with pytest.raises(PromptError, match="wanted text"):
        bpe.encode(text)


@pytest.mark.parametrize("letter", ["e", " ", "é", "中"])
def test_a_megabyte_of_one_letter_takes_few_rounds(bpe, library, letter):
    """Catches a round for each merge: a million rounds of a million letters never end."""
    text = letter * (10**6 // len(letter.encode()))
    words = list(bpe.steps(text)) if letter != " " else []
    assert len(words) <= 20
    assert bpe.encode(text) == ids_of(library, text)


def test_a_long_piece_of_many_letters_is_as_the_librarys(bpe, library):
    """Catches merges that depend on where in a piece they are, which short pieces hide."""
    chance = random.Random(3)
    text = "".join(chance.choice("theandringost") for _ in range(20_000))
    assert bpe.encode(text) == ids_of(library, text)


def test_steps_show_each_merge_and_end_in_the_ids(bpe):
    """Catches a picture of merges that is another than what encode does."""
    words = list(bpe.steps("simply"))
    assert [bpe.tokens[ord(letter)] for letter in words[0]] == list("simply")
    assert all(len(after) < len(before) for before, after in zip(words, words[1:], strict=False))
    assert [*map(ord, words[-1])] == bpe.encode("simply")


def test_kept_pieces_are_few_short_and_change_nothing(bpe):
    """Catches a cache that grows with all that was ever read, by pieces or by their length."""
    small = BPE(bpe.vocab, bpe.merges, bpe.pattern, bpe.marks, kept=4)
    for text in ("one two three four five six one", "x" * 1000, "one"):
        assert small.encode(text) == bpe.encode(text)
    assert small.kept.cache_info().currsize == 4
    before = small.kept.cache_info()
    small.encode("y" * 65)
    assert small.kept.cache_info() == before


# -- training -----------------------------------------------------------------------------------


def library_of(texts: list[str], size: int, least: int) -> dict:
    """What the library's trainer learns with the settings of data/build: vocab and merges."""
    tokenizer = Library(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pattern_of(FILE), "isolated"),
         pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=size, min_frequency=least, special_tokens=[BOS, EOS], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))  # fmt: skip
    return json.loads(tokenizer.to_str())["model"]


def assert_learns_the_same(texts: list[str], size: int, least: int = 1) -> BPE:
    mine, theirs = train(texts, size, PIECES, [BOS, EOS], least), library_of(texts, size, least)
    assert list(mine.merges) == theirs["merges"]
    assert mine.vocab == theirs["vocab"]
    return mine


def test_the_course_s_texts_give_the_librarys_merges():
    """Catches a count that drifts after many merges; the shipped merges begin like these."""
    texts = list(sample_texts(100))[-4000:]
    assert len(assert_learns_the_same(texts, size=600).merges) == 600 - 258


def test_texts_full_of_ties_give_the_librarys_merges():
    """Catches another tie rule, and overlapping pairs that are counted or merged otherwise."""
    few = st.text("ab c", max_size=30)

    @settings(max_examples=150, deadline=None)
    @given(st.lists(few, max_size=6), st.integers(0, 3))
    @example(["aaa aaaa aaaaa"], 1)
    @example(["low lower newest widest"], 1)
    def equal(texts: list[str], least: int) -> None:
        assert_learns_the_same(texts, size=290, least=least)

    equal()


def test_of_equally_frequent_pairs_the_smaller_ids_win():
    """Catches the pair that came first ("zy", "yx"), or the one that is last in the alphabet."""
    assert train(["zyx zyx ab ab"], 257, PIECES, []).merges == [["a", "b"]]


def test_any_text_in_any_script_trains_as_the_library():
    """Catches bytes that are ordered by their value, not by the letter they are spelled with."""

    @settings(max_examples=60, deadline=None)
    @given(st.lists(TEXT, max_size=5))
    @example(["\x00\x00 \x00\x00 \xa0\xa0 ÿÿ zz"])
    def equal(texts: list[str]) -> None:
        assert_learns_the_same(texts, size=280)

    equal()


# -- files --------------------------------------------------------------------------------------


def changed(part: str, key: str, value) -> dict:
    stored = json.loads(FILE.read_text(encoding="utf-8"))
    parts = {"": stored, "model": stored["model"],
             "cut": stored["pre_tokenizer"]["pretokenizers"][0],
             "bytes": stored["pre_tokenizer"]["pretokenizers"][1]}  # fmt: skip
    parts[part][key] = value
    return stored


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [("", "normalizer", {"type": "NFC"}), ("", "pre_tokenizer", {"type": "ByteLevel"}),
     ("", "model", None), ("bytes", "use_regex", True), ("bytes", "add_prefix_space", True),
     ("cut", "invert", True), ("cut", "behavior", "Removed"), ("model", "ignore_merges", True),
     ("model", "merges", [["the", "nonsense"]]), ("model", "vocab", {"a": 0})],
)  # fmt: skip
def test_what_a_file_asks_beyond_this_is_refused(tmp_path, part, key, value):
    """Catches ids that differ in silence from the library's."""
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(changed(part, key, value)), encoding="utf-8")
    with pytest.raises(CheckpointError, match="wanted byte-level BPE"):
        BPE.from_file(path)


def test_of_two_marks_that_fit_the_longer_is_cut_out(tmp_path):
    """Catches marks that are tried in the order of the file."""
    mark = json.loads(FILE.read_text(encoding="utf-8"))["added_tokens"][0]
    more = [
        mark | {"id": 4096 + at, "content": text} for at, text in enumerate(("<a", "<a>", "a>"))
    ]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(changed("", "added_tokens", more)), encoding="utf-8")
    text = "the <a> key<a a>"
    assert BPE.from_file(path).encode(text) == ids_of(Library.from_file(str(path)), text)


def test_a_missing_or_damaged_file_is_named(tmp_path):
    """Catches a bare FileNotFoundError, and JSON that ends too soon."""
    (tmp_path / "cut.json").write_bytes(FILE.read_bytes()[:1000])
    for name in ("none.json", "cut.json"):
        with pytest.raises(CheckpointError, match=name):
            BPE.from_file(tmp_path / name)
