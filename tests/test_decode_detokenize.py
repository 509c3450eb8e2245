"""The detokenizer: pieces that join to the text, and show nothing that could still change."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from os.path import commonprefix

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as Library
from transformers.convert_slow_tokenizer import bytes_to_unicode

from minillm.decode.detokenize import Detokenizer
from minillm.tokens.tokenizer import Tokenizer

MIXED = "Key 你😀 k. žluť नमस्ते don't, \ufffd!  🧑‍🚒\n"
MARKS = [0, 1, 2]
_LLAMA2 = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
DECODERS = {
    "byte-level": decoders.ByteLevel(),
    "metaspace": decoders.Metaspace(),
    "llama2": decoders.Sequence([*_LLAMA2, decoders.Strip(" ", 1, 0)]),
    "gemma": decoders.Sequence(_LLAMA2),
    "wordpiece": decoders.WordPiece(),
    "bpe-suffix": decoders.BPEDecoder(),
    "no-decoder": None,
}
KINDS = list(DECODERS)


@dataclass(frozen=True)
class Kind:
    """A tokenizer of one kind: ids 0 to 2 are marks, bytes[b] is the id of the byte b."""

    tokenizer: Tokenizer
    bytes: list[int]
    ids: range
    fallback: bool

    def id(self, token: str) -> int:
        return self.tokenizer._library.token_to_id(token)

    def spell(self, text: bytes) -> list[int]:
        return [self.bytes[byte] for byte in text]


def _vocabulary(kind: str) -> list[str]:
    """Every slice of MIXED of up to three places as this kind of tokenizer spells it."""
    if kind == "byte-level":
        letters, raw = bytes_to_unicode(), MIXED.encode()
        slices = [raw[i : i + n] for n in (2, 3, 4) for i in range(len(raw))]
        return ["".join(letters[byte] for byte in piece) for piece in slices]
    text = MIXED.replace(" ", "" if kind == "wordpiece" else "▁")
    slices = [text[i : i + n] for n in (1, 2, 3) for i in range(len(text))]
    more = {"wordpiece": ["##" + piece for piece in slices] + ["'s", "n't", "do not", ""],
            "bpe-suffix": [piece + "</w>" for piece in slices]}  # fmt: skip
    return [*slices, "▁", "▁▁", "<think>", *more.get(kind, [])]


def make(kind: str) -> Kind:
    letters = bytes_to_unicode()
    single = [letters[b] if kind == "byte-level" else f"<0x{b:02X}>" for b in range(256)]
    marks = ["<unk>", "<s>", "</s>"]
    tokens = dict.fromkeys([*marks, *single, *_vocabulary(kind)])
    library = Library(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token="<unk>"))
    library.add_special_tokens(marks)
    library.add_tokens([AddedToken("日本 é", special=False)])
    if DECODERS[kind] is not None:
        library.decoder = DECODERS[kind]
    size = library.get_vocab_size()
    ids = range(size + 1)  # the last one has no token
    return Kind(Tokenizer(library), list(range(3, 259)), ids, kind in ("llama2", "gemma"))


@pytest.fixture(scope="module")
def kinds() -> dict[str, Kind]:
    return {name: make(name) for name in KINDS}


@pytest.fixture(scope="module", params=KINDS)
def kind(request, kinds) -> Kind:
    return kinds[request.param]


def id_lists(kind: Kind) -> st.SearchStrategy[list[int]]:
    """Ids of any kind: text, marks, whole characters as bytes, unfinished ones, invalid bytes."""
    spelled = st.sampled_from([*MIXED, "é\ufffd", " ", "▁"]).map(lambda c: kind.spell(c.encode()))
    parts = [
        st.sampled_from(kind.ids).map(lambda one: [one]),
        st.sampled_from(MARKS).map(lambda one: [one]),
        st.sampled_from([0x00, 0x20, 0x41, 0x80, 0xC0, 0xE4, 0xED, 0xF0, 0xF4, 0xFF])
        .map(lambda byte: [kind.bytes[byte]]),
        spelled,
        st.tuples(spelled, st.integers(1, 3)).map(lambda cut: cut[0][: cut[1]]),
    ]  # fmt: skip
    return st.lists(st.one_of(parts), max_size=10).map(lambda lists: sum(lists, []))


def pieces(tokenizer: Tokenizer, prompt: list[int], ids: list[int], stop=()) -> list[str]:
    """One piece an id, up to a stop string, then what `finish` gives."""
    detokenizer = Detokenizer(tokenizer, prompt, stop)
    out = []
    for token_id in ids:
        out.append(detokenizer.add(token_id))
        if detokenizer.stopped:
            break
    return [*out, detokenizer.finish()]


def answer(tokenizer: Tokenizer, prompt: list[int], ids: list[int]) -> str:
    """The law: the whole text after what it has in common with the prompt's."""
    before, whole = tokenizer.decode(prompt), tokenizer.decode(prompt + ids)
    return whole[len(commonprefix([before, whole])) :]


def test_pieces_join_to_the_whole_text_without_the_prompts(kind):
    """Catches lost, doubled or changed text and lost spaces: any ids, any prompt before them."""

    @settings(max_examples=150, deadline=None)
    @given(id_lists(kind), id_lists(kind))
    def joins(prompt: list[int], ids: list[int]) -> None:
        shown = "".join(pieces(kind.tokenizer, prompt, ids))
        assert shown == answer(kind.tokenizer, prompt, ids)

    joins()


def test_a_text_may_be_cut_anywhere(kind):
    """Catches a wrong character where prompt, answer and its end part a text of many scripts."""
    ids = []
    for part in ("Key 你😀 k.", "नम 🧑‍🚒", " é\ufffd"):
        ids += [MARKS[1], *kind.spell(part.encode()), kind.ids[-2], kind.ids[300]]
    for start in range(len(ids) + 1):
        for end in range(start, len(ids) + 1):
            prompt, rest = ids[:start], ids[start:end]
            shown = "".join(pieces(kind.tokenizer, prompt, rest))
            assert shown == answer(kind.tokenizer, prompt, rest), (start, end)


def test_shown_is_all_that_no_later_token_can_change(kind):
    """Catches text that is held too long (invalid bytes, a true U+FFFD) or shown too early."""

    @settings(max_examples=100, deadline=None)
    @given(id_lists(kind))
    def certain(ids: list[int]) -> None:
        shows_all_that_is_certain(kind, ids)

    certain()


def shows_all_that_is_certain(kind: Kind, ids: list[int]) -> None:
    """After each id the text shown is the one that everything that may follow has in common.

    Only a true U+FFFD in a run of byte tokens is held without need: broken, it looks the same.
    """
    same = tuple(kind.spell("\ufffd".encode())) if kind.fallback else None
    # What may follow: nothing, a text, a broken byte, or bytes that end whatever has begun.
    futures = [[], [kind.id("y.") or kind.bytes[0x79]], [kind.bytes[0xFF]]]
    futures += [kind.spell(bytes([b]) * n) for b in (0x80, 0x90, 0xA0, 0xBF) for n in (1, 2, 3)]
    detokenizer, shown = Detokenizer(kind.tokenizer, []), ""
    for count, token_id in enumerate(ids, start=1):
        shown += detokenizer.add(token_id)
        texts = [kind.tokenizer.decode(ids[:count] + more) for more in futures]
        certain = commonprefix(texts)
        if same in zip(ids, ids[1:], ids[2:], strict=False):
            certain = shown + certain[len(shown) :].lstrip("\ufffd")
        assert shown == certain, ids[:count]
    assert shown + detokenizer.finish() == kind.tokenizer.decode(ids)


@pytest.mark.parametrize("name", ["byte-level", "gemma"])
def test_every_kind_of_invalid_byte_is_read_as_the_library_does(name, kinds):
    """Catches a Python codec that differs: it waits for the third byte of a surrogate."""
    edges = b"A\x80\x8f\x90\x9f\xa0\xbf\xc1\xc2\xe0\xe4\xed\xf0\xf4\xf5"
    for three in itertools.product(edges, repeat=3):
        shows_all_that_is_certain(kinds[name], kinds[name].spell(bytes(three)))


def test_a_character_appears_whole(kinds):
    """Catches U+FFFD shown for a character whose last byte is in a later token."""
    kind = kinds["byte-level"]
    shown = pieces(kind.tokenizer, [], kind.spell("a€🔑é".encode()))
    assert [piece for piece in shown if piece] == ["a", "€", "🔑", "é"]


@pytest.mark.parametrize("name", ["llama2", "gemma"])
def test_a_run_of_bytes_appears_when_it_ends(name, kinds):
    """Catches characters that the decoder takes back when a later byte breaks their run."""
    kind = kinds[name]
    run, text = kind.spell("你😀".encode()), kind.id("▁k.")
    assert pieces(kind.tokenizer, [text], [*run, text]) == [*[""] * 7, "你😀 k.", ""]
    broken = kind.spell("你".encode() + b"\xff\xff")
    assert pieces(kind.tokenizer, [text], [*broken, text]) == [
        "", "", "", "\ufffd" * 4, "\ufffd", " k.", "",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["metaspace", "llama2", "gemma", "wordpiece"])
def test_the_first_space_of_an_answer_is_kept(name, kinds):
    """Catches an answer decoded without its prompt: decoders drop a text's first space."""
    kind = kinds[name]
    first, spaced = kind.id("k."), kind.id("k." if name == "wordpiece" else "▁k.")
    assert pieces(kind.tokenizer, [first], [spaced]) == [" k.", ""]
    assert pieces(kind.tokenizer, [first, *MARKS], [MARKS[2], spaced]) == ["", " k.", ""]


@pytest.mark.parametrize("name", ["byte-level", "llama2", "gemma"])
def test_a_character_that_the_prompt_leaves_unfinished_is_the_answers(name, kinds):
    """Catches half a character, or U+FFFD twice, where prompt and answer meet."""
    kind = kinds[name]
    key, after = kind.spell("🔑".encode()), kind.spell(b"a")
    for cut in (1, 2, 3):
        assert "".join(pieces(kind.tokenizer, key[:cut], key[cut:])) == "🔑"
    # In the prompt's own text it is U+FFFD already; what follows does not repeat it. (A broken
    # run of a byte-fallback decoder takes the "a" with it.)
    wanted = "a" if name == "byte-level" else "\ufffd"
    assert "".join(pieces(kind.tokenizer, key[:1], after)) == wanted


def test_text_comes_as_soon_as_it_is_certain(tiny):
    """Catches a detokenizer that waits for the end: the text would not stream."""
    tokenizer = Tokenizer.from_pretrained(tiny("llama3"))
    ids = tokenizer.encode("Where is the key?")
    *before, rest = pieces(tokenizer, ids[:1], ids[1:], stop=("\n",))
    assert all(before)
    assert rest == ""


def test_text_ends_before_the_stop_string_that_ends_first(kind):
    """Catches a stop string that is shown, or found only inside one token; for any text.

    "Ends first", for a text that streams cannot wait to see whether a longer one would come.
    """
    stops = st.lists(st.text("Ky .\ufffd你", min_size=1, max_size=3), min_size=1, max_size=3)

    @settings(max_examples=75, deadline=None)
    @given(id_lists(kind), id_lists(kind), stops)
    def ends(prompt: list[int], ids: list[int], stop: list[str]) -> None:
        text = answer(kind.tokenizer, prompt, ids)
        places = range(len(text) + 1)
        found = [(end, end - len(s)) for end in places for s in stop if text[:end].endswith(s)]
        wanted = text[: min(found)[1]] if found else text
        assert "".join(pieces(kind.tokenizer, prompt, ids, tuple(stop))) == wanted

    ends()


def test_a_stop_string_is_looked_for_in_the_answer_alone(kinds):
    """Catches an answer that ends at once since the prompt ends like a stop string's beginning."""
    kind = kinds["byte-level"]
    a, b, c = kind.spell(b"abc")
    assert "".join(pieces(kind.tokenizer, [a, b], [c, a, b, a, b, c, a], stop="abc")) == "cab"


def test_the_beginning_of_a_stop_string_is_held_back(kinds):
    """Catches text that is shown and then would have to be taken back."""
    kind = kinds["byte-level"]
    detokenizer = Detokenizer(kind.tokenizer, [], stop="abc")
    x, a, b, c = kind.spell(b"xabc")
    assert [detokenizer.add(i) for i in (x, a, b)] == ["x", "", ""]
    assert detokenizer.add(a) == "ab"
    assert [detokenizer.add(i) for i in (b, c)] == ["", ""]
    assert detokenizer.stopped
    assert detokenizer.finish() == ""


TAILS = {
    "invalid": [0xFF],
    "begun": [0xF0],
    "valid": [0xE4, 0xBD, 0xA0],
    "broken late": [0xE4, 0xBD, 0xA0, 0xE4, 0xBD],
}


@pytest.mark.parametrize("tail", [*TAILS, "marks", "text", "spaces"])
def test_a_token_costs_the_same_in_a_long_text(kind, tail, monkeypatch):
    """Catches decoding that grows with the text, a run of bytes, or a prompt at each token."""
    more = {"marks": MARKS, "text": [kind.ids[300]], "spaces": [kind.id("▁") or kind.bytes[0x20]]}
    unit = kind.spell(bytes(TAILS[tail])) if tail in TAILS else more[tail]
    many = unit * (600 // len(unit))
    sizes = []
    for name in ("join", "decode"):
        call = getattr(kind.tokenizer, name)
        watched = lambda some, call=call: sizes.append(len(some)) or call(some)  # noqa: E731
        monkeypatch.setattr(kind.tokenizer, name, watched)
    detokenizer = Detokenizer(kind.tokenizer, [*kind.spell(b"key"), *many])
    for token_id in [kind.bytes[0x79], *many]:
        before = len(sizes)
        detokenizer.add(token_id)
        assert len(sizes) - before <= 2, "at most two calls a token"
    detokenizer.finish()
    assert sum(sizes) <= 20 * len(many), "of a few tokens each"


def test_a_long_prompt_is_not_read(kind, monkeypatch):
    """Catches a start that costs as much as the prompt is long: its last tokens are enough."""
    reads = []
    token = kind.tokenizer.token
    monkeypatch.setattr(kind.tokenizer, "token", lambda one: reads.append(one) or token(one))
    Detokenizer(kind.tokenizer, [kind.ids[300]] * 1000 + MARKS)
    assert len(reads) <= len(MARKS) + 3
