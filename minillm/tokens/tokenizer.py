"""Text to token ids and back, on the CPU: the `tokenizers` library behind a small interface.

What a checkpoint's files store beside the vocabulary, and what becomes of it: as transformers'
fast tokenizer does (`PreTrainedTokenizerFast` of 5.23), or refused by name.

    tokenizer.json
      normalizer, pre_tokenizer, model,    read by the library; a key that it would pass over
      post_processor, decoder,             is refused
      added_tokens
      model's dropout                      off: it makes ids random, which is for training only
      truncation, padding                  off: they are a caller's wish, not the vocabulary's
      version, any other key               refused, unless the version is 1.0
    tokenizer_config.json
      bos_token, …, extra_special_tokens,  marks: never cut, and left out of decoded text; one that
      added_tokens_decoder                 tokenizer.json lacks gets the next id, and is refused if
                                           the file says another
      split_special_tokens                 obeyed
      add_bos_token, add_eos_token         not read: the post_processor knows which marks to put
      add_prefix_space                     refused if tokenizer.json does otherwise
      clean_up_tokenization_spaces         not done for BPE; refused for other models
      clean_up_…_corrupt_output,           refused
      fix_mistral_regex
      any other key                        not read (chat templates, lengths, sides, legacy, …)
    special_tokens_map.json,               read as part of tokenizer_config.json, unless that has
    added_tokens.json                      an added_tokens_decoder
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, models
from tokenizers import Tokenizer as Library

from minillm.config.huggingface import read_json
from minillm.errors import CheckpointError, PromptError

_MAX_BYTES = 2**27  # of tokenizer.json: four times the largest there is, of 262,144 tokens
_FILE = {"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
         "post_processor", "decoder", "model"}  # fmt: skip
_MARK = {"content", "single_word", "lstrip", "rstrip", "normalized", "special"}
_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token",
          "mask_token")  # fmt: skip
_MODEL = {"type", "vocab", "merges", "dropout", "unk_token", "unk_id", "fuse_unk", "byte_fallback",
          "ignore_merges", "continuing_subword_prefix", "end_of_word_suffix",
          "max_input_chars_per_word"}  # fmt: skip
# What older files say of Metaspace, in other words than the library's today.
_FORMER = {"add_prefix_space", "str_rep"}
_REFUSED = ("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
            "fix_mistral_regex")  # fmt: skip


class Tokenizer:
    """A checkpoint's `tokenizer.json`.

    >>> tokenizer = Tokenizer.from_pretrained("data/town")
    >>> tokenizer.decode(tokenizer.encode("the red key"))
    'the red key'

    vocab_size: one more than the largest id that `encode` can return. model_vocab_size: the same
    without added tokens, for a model need not have a row for each of those. token(id): the token as
    the vocabulary spells it ("Ġkey"); None if `decode` leaves it out.
    """

    def __init__(self, library: Library) -> None:
        self._library, added = library, library.get_added_tokens_decoder()
        known = library.get_vocab(with_added_tokens=False).values()
        self.model_vocab_size = max(known, default=-1) + 1
        self.vocab_size = max([self.model_vocab_size - 1, *added]) + 1
        ids = (n for n in range(self.vocab_size) if n not in added or not added[n].special)
        # Each id of an answer is asked for: a table answers before a call of the library begins.
        self.token = {n: library.id_to_token(n) for n in ids}.get

    @classmethod
    def from_pretrained(cls, directory: str | PathLike[str]) -> Tokenizer:
        """Read `directory/tokenizer.json`, and what lies beside it.

        CheckpointError if it is missing or unreadable, or asks for what is not implemented.
        """
        folder = Path(directory)
        path = folder / "tokenizer.json"
        stored = read_json(path, required=True, most=_MAX_BYTES)
        _refuse(path, stored.keys() - _FILE)
        library = _library(path)
        _check_read(path, stored, library)
        library.no_truncation()
        library.no_padding()
        if isinstance(library.model, models.BPE):
            library.model.dropout = None
        settings = read_json(folder / "tokenizer_config.json", required=False)
        if "added_tokens_decoder" not in settings:
            settings |= read_json(folder / "special_tokens_map.json", required=False)
            ids = read_json(folder / "added_tokens.json", required=False)
            settings["added_tokens_decoder"] = {str(token): text for text, token in ids.items()}
        _apply(library, settings, folder / "tokenizer_config.json")
        return cls(library)

    def check_fit(self, vocab_size: int, folder: Path) -> None:
        """CheckpointError if it has more entries than a model's vocabulary; folder: of both."""
        if self.model_vocab_size > vocab_size:
            raise CheckpointError(
                f"wanted a tokenizer of at most {vocab_size:,} entries, the model's, found "
                f"{self.model_vocab_size:,} in {folder}; take both from one model"
            )

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """The ids of `text`; `add_special` lets the tokenizer put its own marks (BOS) around it.

        PromptError if `text` is no text: not a `str`, or one with half a surrogate pair in it.
        """
        return self._library.encode(checked(text), add_special_tokens=add_special).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without marks (BOS); bytes that form no UTF-8 character are U+FFFD."""
        return self._library.decode(list(ids), skip_special_tokens=True)

    def join(self, tokens: Sequence[str]) -> str:
        """The text of tokens as `token` spells them."""
        decoder = self._library.decoder
        return " ".join(tokens) if decoder is None else decoder.decode(list(tokens))


def checked(text: str) -> str:
    """PromptError if `text` is no text: not a `str`, or one with half a surrogate pair in it."""
    if not isinstance(text, str):
        raise PromptError(f"wanted text (str), found {type(text).__name__}; pass a string")
    try:
        text.encode()
    except UnicodeError as error:
        found = "a string that has no UTF-8 form (half of a surrogate pair)"
        raise PromptError(f"wanted text, found {found}; decode bytes as UTF-8") from error
    return text


def _library(path: Path) -> Library:
    try:
        return Library.from_file(str(path))
    except BaseException as error:  # plain Exception for most bad files, for some a Rust panic
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise CheckpointError(
            f"wanted a tokenizer in {path}, found a file that cannot be read as one "
            f"({error}); fetch or build it again"
        ) from error


def _check_read(path: Path, stored: dict[str, Any], library: Library) -> None:
    """The library says nothing of keys that it passes over: hold the file against what it made."""
    _refuse(path, {f"model's {key}" for key in stored["model"].keys() - _MODEL})
    for token in stored.get("added_tokens") or ():
        _refuse(path, {f"added token's {key}" for key in token.keys() - _MARK - {"id"}})
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        made = getattr(library, part)
        if made is not None:
            lost = _lost(stored[part], json.loads(made.__getstate__()))
            _refuse(path, {f"{part}'s {key}" for key in lost})


def _lost(stored: Any, made: Any) -> Iterator[str]:
    """The keys of `stored`, at any depth, that `made` does not have."""
    if isinstance(stored, dict) and isinstance(made, dict):
        former = _FORMER if stored.get("type") == "Metaspace" else set()
        for key, value in stored.items():
            if key in made:
                yield from _lost(value, made[key])
            elif key not in former:
                yield key
    elif isinstance(stored, list) and isinstance(made, list):
        for one, other in zip(stored, made, strict=True):
            yield from _lost(one, other)


def _apply(library: Library, settings: dict[str, Any], path: Path) -> None:
    """What tokenizer_config.json adds; CheckpointError where the two files disagree."""
    try:
        _add_marks(library, settings, path)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        found = f"some that cannot be read ({error})"
        raise CheckpointError(f"wanted tokens in {path}, found {found}; fetch it again") from error
    library.encode_special_tokens = bool(settings.get("split_special_tokens"))
    _refuse(path, {f"{key} = true" for key in _REFUSED if settings.get(key)})
    if settings.get("clean_up_tokenization_spaces") and not isinstance(library.model, models.BPE):
        _refuse(path, {"clean_up_tokenization_spaces, without BPE"})
    prefix, does = settings.get("add_prefix_space"), _puts_space_first(library)
    if prefix is not None and bool(prefix) != does:
        _refuse(path, {f"add_prefix_space = {prefix}, and the other in tokenizer.json"})


def _add_marks(library: Library, settings: dict[str, Any], path: Path) -> None:
    named, marks = list(_named(settings)), []
    known = {mark.content: mark for mark in library.get_added_tokens_decoder().values()}
    special = {mark.content for mark in named}
    claimed = {int(token): mark for token, mark in settings["added_tokens_decoder"].items()}
    for _, mark in sorted(claimed.items()):
        if isinstance(mark, dict):  # where the two files differ in its flags, these count
            new = mark["content"] not in known and mark["content"] in special
            marks.append(_mark(mark, special=new or mark.get("special", False)))
        elif mark not in known:
            marks.append(AddedToken(mark, special=mark in special))
    contents = known.keys() | {mark.content for mark in marks}
    library.add_tokens(marks + [mark for mark in named if mark.content not in contents])
    for token, mark in claimed.items():
        content = mark["content"] if isinstance(mark, dict) else mark
        if (found := library.token_to_id(content)) != token:
            raise CheckpointError(
                f"wanted the id {token} for {content!r}, as {path} says, found {found} in "
                "tokenizer.json; take both files from one model"
            )


def _named(settings: dict[str, Any]) -> Iterator[AddedToken]:
    """The marks that have a name, in the order in which they get ids, and those in a list."""
    more = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or ()
    others = [name for name in settings if name.endswith("_token") and name not in _NAMES]
    named = [settings.get(name) for name in (*_NAMES, *others)]
    for value in (*named, *(more.values() if isinstance(more, dict) else more)):
        if value and isinstance(value, str | dict):
            yield _mark(value, special=True)


def _mark(token: str | dict[str, Any], **more: bool) -> AddedToken:
    token = {"content": token} if isinstance(token, str) else token
    return AddedToken(**{key: token[key] for key in token.keys() & _MARK} | more)


def _puts_space_first(library: Library) -> bool:
    text = "a" if library.normalizer is None else library.normalizer.normalize_str("a")
    if library.pre_tokenizer is not None:
        text = "".join(piece for piece, _ in library.pre_tokenizer.pre_tokenize_str(text))
    return len(text) > 1


def _refuse(path: Path, found: set[str]) -> None:
    if found:
        raise CheckpointError(
            f"wanted in {path} only what is known here, found {', '.join(sorted(found))}, which is "
            "not implemented; take another model"
        )
