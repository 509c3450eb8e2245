"""The tokenizer: text to ids and back, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from minillm import Engine, SamplingParams
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


# -- what files store beside the vocabulary -----------------------------------------------------

LONG = "Mia put the red key in the chest. The code of the chest is 4713. Where is the key? " * 3
TEXTS = [
    "Mia put the red key", "a <eos> b", "<bos>the key [PAD] <new>", " two  spaces , too .", "é😀",
]  # fmt: skip


def metaspace() -> Library:
    """As Llama 2's: pieces of words after "▁", and bytes for what is no piece."""
    library = Library(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    marks = ["<unk>", "<bos>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256))]
    library.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trainer = trainers.BpeTrainer(vocab_size=384, special_tokens=marks[:3], show_progress=False)
    library.train_from_iterator([LONG, *marks[3:]], trainer)
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    return library


def word_level() -> Library:
    words = {word: number for number, word in enumerate(["<unk>", *sorted(set(LONG.split()))])}
    library = Library(models.WordLevel(words, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    return library


def written(folder: Path, file: dict, config: dict | None = None, **others: dict) -> Path:
    """A folder with these as tokenizer.json, tokenizer_config.json and NAME.json."""
    others |= {"tokenizer": file} | ({} if config is None else {"tokenizer_config": config})
    for name, content in others.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def stored(make: Callable[[], Library] = tiny_tokenizer) -> dict:
    return json.loads(make().to_str())


def mark(content: str, **flags: bool) -> dict:
    plain = dict.fromkeys(["lstrip", "rstrip", "single_word", "normalized"], False)
    return {"content": content} | plain | flags


TRUNCATION = {"direction": "Right", "max_length": 16, "strategy": "LongestFirst", "stride": 0}
PADDING = {"strategy": {"Fixed": 200}, "direction": "Left", "pad_to_multiple_of": None,
           "pad_id": 1, "pad_type_id": 0, "pad_token": "<eos>"}  # fmt: skip


@pytest.mark.parametrize("asks", [{"truncation": TRUNCATION}, {"padding": PADDING},
                                  {"truncation": TRUNCATION, "padding": PADDING}])  # fmt: skip
def test_stored_truncation_and_padding_are_not_obeyed(tmp_path, asks):
    """Catches a prompt cut to the length at which somebody once trained, or filled up to it."""
    ids = Tokenizer(tiny_tokenizer()).encode(LONG)
    assert 16 < len(ids) < 200
    assert Tokenizer.from_pretrained(written(tmp_path, stored() | asks)).encode(LONG) == ids


def test_dropout_is_for_training(tmp_path):
    """Catches ids that differ from call to call: BPE's dropout leaves merges out at random."""
    file = stored()
    file["model"]["dropout"] = 0.5
    tokenizer = Tokenizer.from_pretrained(written(tmp_path, file))
    assert {tuple(tokenizer.encode(LONG)) for _ in range(20)} == {
        tuple(Tokenizer(tiny_tokenizer()).encode(LONG))
    }


NAMES = {"bos_token": "<bos>", "eos_token": "<eos>"}
CONFIGS = {
    "none": {},
    "names": NAMES,
    "add neither": NAMES | {"add_bos_token": False, "add_eos_token": False},
    "add both": NAMES | {"add_bos_token": True, "add_eos_token": True},
    "a mark out of the vocabulary": {"eos_token": "Mia"},
    "new marks": NAMES | {"pad_token": "[PAD]", "unk_token": mark("<new>", __type="AddedToken")},
    "listed marks": {"additional_special_tokens": ["[PAD]", "<new>"]},
    "marks by name": {"extra_special_tokens": {"image_token": "<new>"}, "x_token": "[PAD]"},
    "numbered marks": {"added_tokens_decoder": {
        "1": mark("<eos>", lstrip=True, special=True), "0": mark("<bos>", special=True),
        "{size}": mark("[PAD]", special=True), "{size+1}": mark("<new>", rstrip=True)}},
    "cut marks": NAMES | {"split_special_tokens": True},
    "not cleaned": NAMES | {"clean_up_tokenization_spaces": True},
    "lengths and sides": NAMES | {
        "model_max_length": 4, "padding_side": "left", "truncation_side": "left",
        "max_length": 5, "stride": 1, "pad_to_multiple_of": 8, "legacy": False,
        "add_prefix_space": None, "use_default_system_prompt": True, "sp_model_kwargs": {},
        "chat_template": "{{ messages }}", "errors": "replace", "a_key_of_next_year": 1},
}  # fmt: skip


@pytest.mark.parametrize("make", [tiny_tokenizer, metaspace])
@pytest.mark.parametrize("name", CONFIGS)
def test_tokenizer_config_means_what_transformers_takes_it_to_mean(tmp_path, make, name):
    """Catches a mark that is cut into letters or shown in the answer, and a BOS that is put twice
    or not at all."""
    file, config = stored(make), CONFIGS[name]
    if name == "numbered marks":
        ids = {token["content"]: str(token["id"]) for token in file["added_tokens"]}
        size = len(file["model"]["vocab"])
        numbers = [ids["<eos>"], ids["<bos>"], str(size), str(size + 1)]
        marks = config["added_tokens_decoder"].values()
        config = {"added_tokens_decoder": dict(zip(numbers, marks, strict=True))}
    compare(written(tmp_path, file, config))


def test_the_files_of_older_checkpoints_are_read_too(tmp_path):
    """Catches marks that are named only in special_tokens_map.json and added_tokens.json."""
    file = stored()
    size = len(file["model"]["vocab"])
    named = {"eos_token": mark("<eos>"), "pad_token": "[PAD]"}
    added = {"[PAD]": size, "<new>": size + 1, "<bos>": 0}
    compare(written(tmp_path, file, {}, special_tokens_map=named, added_tokens=added))


def compare(folder: Path) -> None:
    ours = Tokenizer.from_pretrained(folder)
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs.encode(text), text
        assert ours.encode(text, add_special=False) == theirs.encode(text, add_special_tokens=False)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("change, named", [
    (lambda file: file.update(version="2.0"), "version"),
    (lambda file: file.update(a_key=None), "a_key"),
    (lambda file: file["model"].update(alpha=0.5), "model's alpha"),
    (lambda file: file["added_tokens"][0].update(a_key=1), "added token's a_key"),
    (lambda file: file["pre_tokenizer"].update(a_key=1), "pre_tokenizer's a_key"),
    (lambda file: file["decoder"].update(a_key=1), "decoder's a_key"),
    (lambda file: file["post_processor"]["single"][0]["SpecialToken"].update(a_key=1),
     "post_processor's a_key"),
    (lambda file: file.update(normalizer={"type": "Sequence", "normalizers": [
        {"type": "NFC"}, {"type": "NFC", "a_key": 1}]}), "normalizer's a_key"),
    (lambda file: file.update(normalizer={"type": "Precompiled", "precompiled_charsmap": ""}),
     "cannot be read"),
])  # fmt: skip
def test_what_the_library_would_pass_over_is_refused_by_name(tmp_path, change, named):
    """Catches a setting that a newer version writes, and ids that are not the model's; and a panic
    of the library, which is no Exception."""
    file = stored()
    change(file)
    with pytest.raises(CheckpointError, match=f"tokenizer.json.*{named}"):
        Tokenizer.from_pretrained(written(tmp_path, file))


@pytest.mark.parametrize("config, named", [
    ({"add_prefix_space": True}, "add_prefix_space"),
    ({"fix_mistral_regex": True}, "fix_mistral_regex"),
    ({"clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": True}, "clean_up"),
    ({"added_tokens_decoder": {"7": mark("<eos>")}}, "the id 7 for '<eos>'.*found 1 in"),
    ({"added_tokens_decoder": {"9999": mark("<new>")}}, "the id 9999 for '<new>'"),
    ({"added_tokens_decoder": {"one": mark("<eos>")}}, "cannot be read"),
    ({"added_tokens_decoder": [3]}, "cannot be read"),
    ({"added_tokens_decoder": {"1": {"content": 3}}}, "cannot be read"),
])  # fmt: skip
def test_two_tokenizer_files_that_disagree_are_refused(tmp_path, config, named):
    """Catches the silent choice of one of them."""
    with pytest.raises(CheckpointError, match=named):
        Tokenizer.from_pretrained(written(tmp_path, stored(), config))


def test_a_tokenizer_config_of_any_kind_is_taken_or_refused(tmp_path):
    """Catches a TypeError from what a file should not hold."""
    file = stored()
    odd = [None, 0, True, "x", [], ["a"], [[1]], {}, {"content": 1}, {"1": {}}, {"x": "y"}, [{}]]
    for key in ["bos_token", "x_token", "added_tokens_decoder", "additional_special_tokens",
                "extra_special_tokens", "split_special_tokens", "add_prefix_space"]:  # fmt: skip
        for value in odd:
            older = {"added_tokens": {"a": value}}, {"special_tokens_map": {key: value}}
            for others in ({}, *older):
                written(tmp_path, file, {key: value}, **others)
                try:
                    assert Tokenizer.from_pretrained(tmp_path).encode("Mia")
                except CheckpointError as error:
                    assert str(tmp_path) in str(error)


def test_spaces_are_cleaned_up_for_no_model(tmp_path):
    """Catches decoded text that differs from what transformers shows, without a word."""
    config = {"clean_up_tokenization_spaces": True}
    with pytest.raises(CheckpointError, match="clean_up_tokenization_spaces"):
        Tokenizer.from_pretrained(written(tmp_path, stored(word_level), config))
    compare(written(tmp_path, stored(word_level), {}))


def test_older_words_for_metaspace_are_no_unknown_keys(tmp_path):
    """Catches a checkpoint of 2023 refused: its file spells prepend_scheme otherwise."""
    file = stored(metaspace)
    former = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True, "str_rep": "▁"}
    file |= {"normalizer": None, "pre_tokenizer": former, "decoder": former}
    compare(written(tmp_path, file, {"add_prefix_space": True}))


def test_a_mark_beyond_the_model_is_refused_only_in_a_prompt(tiny, tmp_path, machine):
    """Catches a model refused for a padding mark that no prompt of ours has."""
    folder = shutil.copytree(tiny("llama3"), tmp_path / "model")
    marks = [f"[mark {number}]" for number in range(200)]
    written(folder, stored(), {"extra_special_tokens": marks})
    engine = Engine.load(folder, machine)
    tokenizer, rows = engine.tokenizer, engine.model_config.vocab_size
    assert tokenizer.model_vocab_size <= rows < tokenizer.vocab_size
    engine.generate("Mia [mark 0]", SamplingParams(max_tokens=1))
    with pytest.raises(PromptError, match=f"found {tokenizer.vocab_size - 1}"):
        engine.generate("Mia [mark 199]")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    """Catches a load that never ends, and "no such file" for what is there."""
    written(tmp_path, stored(), {})
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match=f"{name}.*a device"):
        Tokenizer.from_pretrained(tmp_path)
