r"""Byte-level BPE from scratch: training, encoding, decoding, every merge to be seen.

The rules are those of the `tokenizers` library, and so are the ids; the engine uses the library.
Marks ("<|begin|>") are cut out of the text first. A regex splits the rest into pieces. A piece
becomes its UTF-8 bytes; then, of the pairs that stand side by side, the one learned first is
merged, again and again. Training learns the most frequent pair; of equally frequent ones that with
the smaller ids. (Sennrich et al., 2016; on bytes: GPT-2, 2019.)

While it is merged, a piece is a *word*: a string with the character `chr(id)` for each id. So to
merge a pair is `str.replace`. It goes from left to right: of "aaa" it takes the first two.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from tokenizers import Regex, normalizers

from minillm.config.huggingface import read_json
from minillm.errors import CheckpointError
from minillm.tokens.tokenizer import checked

# A file spells a byte as a letter that can be seen: itself if it prints, else one from 256 on. In
# the order of these letters training gives the bytes their ids.
_ORDER = [*range(33, 127), *range(161, 173), *range(174, 256), *range(33), *range(127, 161), 173]
ALPHABET = {chr(byte if at < 188 else 68 + at): byte for at, byte in enumerate(_ORDER)}


class BPE:
    """A vocabulary and its merges, spelled as in a tokenizer.json: "Ġkey" is " key".

    vocab: token to id. merges: two tokens each, in the order in which they were learned. pattern:
    of the pieces. marks: tokens that are cut out of a text; of two that fit, the longer. kept: of
    how many pieces, none longer than 64 characters, the ids are kept; None: of all, without end.
    tokens: id to token, without marks.

    >>> bpe = BPE.from_file(Path("data/town/tokenizer.json"))
    >>> [bpe.tokens[token] for token in bpe.encode("the red key, 42")]
    ['the', 'Ġred', 'Ġkey', ',', 'Ġ4', '2']
    """

    def __init__(self, vocab: Mapping[str, int], merges: Sequence[Sequence[str]], pattern: str,
                 marks: Collection[str] = (), kept: int | None = 2**16) -> None:  # fmt: skip
        self.vocab, self.merges, self.pattern = vocab, merges, pattern
        self.tokens = {token: text for text, token in vocab.items() if text not in marks}
        self.marks = sorted(marks, reverse=True)  # of two that begin alike the longer comes first
        self._of_byte = {byte: vocab[letter] for letter, byte in ALPHABET.items()}
        made = [(chr(vocab[a]) + chr(vocab[b]), chr(vocab[a + b])) for a, b in self.merges]
        self._made = {pair: (order, letter) for order, (pair, letter) in enumerate(made)}
        self.kept = lru_cache(kept)(self.merge)  # its cache_info() counts

    @classmethod
    def from_file(cls, path: Path) -> BPE:
        """What a tokenizer.json says. CheckpointError if it asks for more than is done here."""
        stored = read_json(path, required=True, most=2**27)
        try:
            model, (cut, level) = stored["model"], stored["pre_tokenizer"]["pretokenizers"]
            odd = level["use_regex"], level["add_prefix_space"], cut["invert"], stored["normalizer"]
            if any(odd) or model["ignore_merges"] or cut["behavior"] != "Isolated":
                raise ValueError("a normalizer, ignore_merges or another way to split")
            marks = {mark["content"]: mark["id"] for mark in stored["added_tokens"]}
            return cls(model["vocab"] | marks, model["merges"], cut["pattern"]["Regex"], marks)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            found = f"wanted byte-level BPE as data/town's, found another in {path} ({error!r})"
            raise CheckpointError(f"{found}; minillm.Tokenizer reads more") from error

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without BOS. PromptError if it is no text, or has no UTF-8 form."""
        ids: list[int] = []
        for part in re.split(f"({'|'.join(map(re.escape, self.marks)) or '(?!)'})", checked(text)):
            for piece in [part] if part in self.marks else self.split(part):
                ids += (self.kept if len(piece) <= 64 else self.merge)(piece)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids` that are in `tokens`; bytes that form no UTF-8 character are U+FFFD."""
        text = "".join(self.tokens.get(token, "") for token in ids)
        return bytes(map(ALPHABET.get, text)).decode(errors="replace")

    def split(self, text: str) -> list[str]:
        """The pieces of a text without marks: what the pattern finds, and what lies between.

        >>> bpe.split("the red key, 42")
        ['the', ' red', ' key', ',', ' 4', '2']
        """
        return [piece for piece in _compiled(self.pattern).split(text) if piece]

    def steps(self, piece: str) -> Iterator[str]:
        """The words of a piece or mark: of its bytes, then after each merge.

        A round looks for the pairs that are there, and merges the first of them everywhere: of a
        million times one letter nothing is left to merge after some twenty rounds.
        """
        word = piece.encode().decode("latin-1").translate(self._of_byte)
        yield (word := chr(self.vocab[piece]) if piece in self.marks else word)
        while found := self._made.keys() & set(map("".join, pairwise(word))):
            pair = min(found, key=self._made.__getitem__)
            yield (word := word.replace(pair, self._made[pair][1]))

    def merge(self, piece: str) -> list[int]:
        """The ids of a piece or mark."""
        return [*map(ord, deque(self.steps(piece), maxlen=1).pop())]


def train(texts: Iterable[str], size: int, pattern: str, marks: list[str], least: int = 1) -> BPE:
    """Learn merges until there are `size` tokens, or no pair comes `least` times.

    Ids: of marks, then of bytes in the order of ALPHABET, then one for each merge.

    >>> train(["low lower"], 257, " ?[a-z]+", marks=[]).merges  # "lo" and "ow" come twice each
    [['l', 'o']]
    """
    tokens, merges = [*marks, *ALPHABET], []
    start = BPE({token: at for at, token in enumerate(tokens)}, merges, pattern)
    words = Counter(next(start.steps(piece)) for text in texts for piece in start.split(text))
    while len(tokens) < size:
        count: Counter[str] = Counter()
        for word, times in words.items():
            for pair in map("".join, pairwise(word)):
                count[pair] += times
        best = min(count, key=lambda pair: (-count[pair], pair), default="")
        if count[best] < max(least, 1):
            break
        merges.append([tokens[ord(letter)] for letter in best])
        words = {word.replace(best, chr(len(tokens))): times for word, times in words.items()}
        tokens.append("".join(merges[-1]))
    return BPE({token: at for at, token in enumerate(tokens)}, merges, pattern, marks)


@lru_cache
def _compiled(pattern: str) -> re.Pattern:
    r"""For Python's `re`, which knows no \p{L}, and another \s: classes become ranges, "A-Za-zªµ…".

    By the library's own table. That of `unicodedata` is as old as the Python: 3.11 does not know
    9,272 of the letters.
    """
    name = r"\\p\{\w+\}|\\[sS]"
    pattern = re.sub(rf"\[.*?\]|{name}", lambda part: f"[{part[0].strip('[]')}]", pattern)
    every = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x110000)]))
    for found in {*re.findall(name, pattern)}:
        codes = {*map(ord, normalizers.Replace(Regex(f"[^{found}]+"), "").normalize_str(every))}
        first, last = (sorted(codes - {code + by for code in codes}) for by in (1, -1))
        pattern = pattern.replace(found, "".join(map(r"\U{:08x}-\U{:08x}".format, first, last)))
    return re.compile(f"({pattern})")
