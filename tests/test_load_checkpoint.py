"""Folders of shards, and parameters filled from them: all of them, exactly, or nothing at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
import weakref
from pathlib import Path

import pytest
import torch
from conftest import random_ids, reference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file, save_model
from torch import nn

from minillm.config import EngineConfig, ModelConfig
from minillm.engine.weights import Streamed
from minillm.errors import CheckpointError, ConfigError, OutOfMemory
from minillm.load import READERS, Checkpoint, load, stream
from minillm.machine import Machine
from minillm.model import Llama

BF16 = torch.bfloat16


class Small(nn.Module):
    """Four parameters in the spelling of a Llama checkpoint."""

    def __init__(self):
        super().__init__()
        self.embed_tokens = nn.Embedding(10, 4)
        self.proj = nn.Linear(4, 6)
        self.norm = nn.RMSNorm(4)


NAMES = ["embed_tokens.weight", "proj.weight", "proj.bias", "norm.weight"]
NBYTES = (40 + 24 + 6 + 4) * 2  # in bfloat16
HELD = 128 + 64 + 64 + 64  # the same, each at a multiple of 64


def on_meta() -> Small:
    with torch.device("meta"):
        return Small()


def random_tensors(dtype: torch.dtype = BF16) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    shapes = {name: p.shape for name, p in on_meta().named_parameters()}
    return {n: torch.randn(s, generator=generator).to(dtype) for n, s in shapes.items()}


def save(folder: Path, *shards: dict[str, torch.Tensor], **listed: str) -> Path:
    """One shard: model.safetensors. Several: s0.safetensors, … and an index, plus `listed`."""
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors")
        return folder
    weight_map = {}
    for number, shard in enumerate(shards):
        save_file(shard, folder / f"s{number}.safetensors")
        weight_map |= dict.fromkeys(shard, f"s{number}.safetensors")
    index(folder, weight_map | listed)
    return folder


def index(folder: Path, weight_map: object) -> None:
    text = json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)


def two_shards() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    tensors = random_tensors()
    return {n: tensors[n] for n in NAMES[:2]}, {n: tensors[n] for n in NAMES[2:]}


def refused(folder: Path, *says: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(folder)
    for text in says:
        assert text in str(caught.value)


# -- loading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, BF16, torch.float16])
def test_loaded_parameters_equal_the_files(tmp_path, machine, reader, shards, dtype):
    """Would catch a reused staging buffer that a parameter looks into, and mixed-up names."""
    save(tmp_path, *(two_shards() if shards == 2 else [random_tensors()]))
    model = on_meta()
    load(model, Checkpoint.open(tmp_path), machine, dtype, reader)
    expected = random_tensors()
    for name, parameter in model.named_parameters():
        assert parameter.dtype == dtype and not parameter.requires_grad
        assert torch.equal(parameter, expected[name].to(dtype)), name


@pytest.mark.parametrize("reader", READERS)
def test_hbm_holds_exactly_the_weights_and_dram_nothing(tmp_path, machine, reader):
    """Would catch weights counted twice, or staging that is kept; and free() that frees less."""
    arena = load(on_meta(), Checkpoint.open(save(tmp_path, *two_shards())), machine, BF16, reader)
    assert machine.hbm.by_label == {"weights": HELD}
    assert machine.dram.used == 0 and machine.dram.peak <= 64 * 2**10  # no more than it takes
    arena.close()
    assert machine.hbm.used == 0


def test_each_byte_moves_once_over_each_link(tmp_path, machine, cold):
    """Would catch a copy that the trace does not know, and a tensor that is read twice."""
    checkpoint = Checkpoint.open(save(tmp_path, *two_shards()))
    load(on_meta(), checkpoint, machine, BF16)
    for source, target in [("ssd", "dram"), ("dram", "hbm")]:
        moved = machine.trace.select(source=source, target=target, stage="load", label="weights")
        assert sum(event.nbytes for event in moved) == checkpoint.nbytes == NBYTES


def test_spare_tensors_are_not_read(tmp_path, machine):
    """Would catch RoPE's frequencies, which old checkpoints store, taken for a tensor too many."""
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    tensors = random_tensors() | {name: torch.ones(9)}
    load(on_meta(), Checkpoint.open(save(tmp_path, tensors)), machine, BF16)
    assert not [event for event in machine.trace.events if name in event.detail]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"norm.weight": None}, "'norm.weight'"),
        ({"extra.weight": torch.ones(1)}, "'extra.weight'"),
        ({"my.lm_head.weight": torch.ones(1)}, "'my.lm_head.weight'"),
        ({"norm.weight": torch.ones(5)}, "shape [4]"),
        ({"proj.weight": torch.ones(4, 6)}, "tensor 'proj.weight'"),
        ({"norm.weight": torch.ones(4, dtype=torch.int8)}, "tensor 'norm.weight'"),
        ({"norm.weight": torch.ones(4).to(torch.float8_e4m3fn)}, "quantized"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_before_a_byte_is_read(
    tmp_path, machine, change, says
):
    """Would catch a parameter left random, a tensor left over, and a reshape by accident."""
    tensors = {n: t for n, t in (random_tensors() | change).items() if t is not None}
    model = on_meta()
    with pytest.raises(CheckpointError) as caught:
        load(model, Checkpoint.open(save(tmp_path, tensors)), machine, BF16)
    assert says in str(caught.value) and str(tmp_path) in str(caught.value)
    assert not machine.trace.select(kind="transfer")
    assert machine.hbm.used == 0 and model.norm.weight.is_meta


def test_too_little_hbm_is_told_before_a_byte_is_read(tmp_path):
    """Would catch an error that asks for the last tensor's bytes instead of the model's."""
    machine = Machine.here(hbm=HELD - 1, device="cpu")
    with pytest.raises(OutOfMemory) as caught:
        load(on_meta(), Checkpoint.open(save(tmp_path, random_tensors())), machine, BF16)
    assert (caught.value.asked, caught.value.free) == (HELD, HELD - 1)
    assert not machine.trace.select(kind="transfer") and machine.hbm.used == 0


@pytest.mark.parametrize("reader", READERS)
def test_failed_load_leaves_memory_and_model_as_they_were(tmp_path, machine, reader):
    """Would catch HBM that leaks with each try, and a model that is half filled."""
    checkpoint = Checkpoint.open(save(tmp_path, *two_shards()))
    os.truncate(tmp_path / "s1.safetensors", 20)
    model = on_meta()
    with pytest.raises(CheckpointError, match="s1.safetensors"):
        load(model, checkpoint, machine, BF16, reader)
    assert machine.hbm.used == machine.dram.used == 0
    assert all(parameter.is_meta for parameter in model.parameters())


def test_an_unknown_reader_is_told_and_nothing_is_kept(tmp_path, machine):
    """Would catch a bare assertion where a word was misspelt."""
    checkpoint = Checkpoint.open(save(tmp_path, random_tensors()))
    with pytest.raises(ConfigError, match="read, mmap, direct, found 'dirct'"):
        load(on_meta(), checkpoint, machine, BF16, "dirct")
    assert machine.hbm.used == machine.dram.used == 0


@pytest.mark.parametrize("reader", READERS)
def test_interrupt_in_mid_load_leaves_nothing_behind(tmp_path, machine, monkeypatch, reader):
    """Would catch `except Exception`, which a reader's Ctrl-C passes by; and a last error, which
    notebooks keep, that holds on to all of HBM."""
    held = []

    def interrupted(*arguments):
        places = next(given for given in arguments if isinstance(given, dict))
        held.append(weakref.ref(places["norm.weight"].untyped_storage()))
        raise KeyboardInterrupt

    monkeypatch.setattr(stream, "put", interrupted)
    try:
        load(on_meta(), Checkpoint.open(save(tmp_path, random_tensors())), machine, BF16, reader)
    except KeyboardInterrupt as error:
        kept = error
    assert kept and held and held[0]() is None
    assert machine.hbm.used == machine.dram.used == 0


def test_some_names_of_a_checkpoint_keep_the_order_of_the_bytes(tmp_path):
    """Would catch a disk made to seek back and forth."""
    checkpoint = Checkpoint.open(save(tmp_path, *two_shards()))
    wanted = ["norm.weight", "embed_tokens.weight"]
    part = checkpoint.only(wanted)
    assert list(part.tensors) == [name for name in checkpoint.tensors if name in wanted]
    assert part.nbytes == (40 + 4) * 2 and len(part.files) == 2


# -- what config.json says, against what the files hold ------------------------------------------

INPUT, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
Q = "model.layers.0.self_attn.q_proj"


def changed(tiny_folder: Path, folder: Path, config: dict, tensors: dict) -> Path:
    """The tiny checkpoint with other settings and tensors; None deletes."""
    shutil.copytree(tiny_folder, folder, dirs_exist_ok=True)
    file = folder / "model.safetensors"
    held = {n: t for n, t in (load_file(file) | tensors).items() if t is not None}
    save_file(held, file, metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | config))
    return folder


def loaded(folder: Path, machine: Machine, streams: bool = False, reader: str = "read") -> Llama:
    with torch.device("meta"):
        model = Llama(ModelConfig.from_pretrained(folder))
    parts = model, Checkpoint.open(folder), machine, torch.float32
    Streamed(*parts, EngineConfig(reader=reader)) if streams else load(*parts, reader)
    return model


def assert_as_transformers(folder: Path, machine: Machine) -> None:
    ids = random_ids(1, 30)
    model = loaded(folder, machine)
    with torch.no_grad():
        expected = reference(folder)(ids).logits[0]
        torch.testing.assert_close(model(ids[0]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kept", ["input", "output", "both", "safetensors"])
def test_a_tied_table_is_found_under_either_of_its_names(tiny, tmp_path, machine, kept):
    """Would catch a model refused whose file holds only lm_head.weight: save_model keeps one of
    two names, and not the one that we would."""
    table = load_file(tiny("llama3") / "model.safetensors")[INPUT]
    names = {"input": [INPUT], "output": [OUTPUT]}.get(kept, [INPUT, OUTPUT])
    tables = dict.fromkeys([INPUT, OUTPUT]) | {name: table.clone() for name in names}
    folder = changed(tiny("llama3"), tmp_path, {}, tables)
    if kept == "safetensors":
        save_model(reference(folder), str(folder / "model.safetensors"), {"format": "pt"})
        assert INPUT not in load_file(folder / "model.safetensors")
    assert_as_transformers(folder, machine)


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("reader", READERS)
def test_a_tied_model_of_two_tables_is_refused(tiny, tmp_path, machine, streams, reader):
    """Would catch the second of them left out without a word. (Transformers uses both.)"""
    table = load_file(tiny("llama3") / "model.safetensors")[INPUT]
    other = table.clone()
    other[-1, -1] += 1
    folder = changed(tiny("llama3"), tmp_path / "tied", {}, {OUTPUT: other})
    with pytest.raises(CheckpointError, match=f'tie_word_embeddings.*{OUTPUT}.*": false'):
        loaded(folder, machine, streams, reader)
    assert machine.hbm.used == machine.dram.used == 0
    assert_as_transformers(
        changed(folder, tmp_path / "untied", {"tie_word_embeddings": False}, {}), machine
    )


@pytest.mark.parametrize(("family", "config", "tensors", "says"), [
    ("llama", {}, {OUTPUT: None}, f'none for .{OUTPUT}.*tie_word_embeddings": true'),
    ("llama", {}, {INPUT: None}, f'none for .{OUTPUT}.*tie_word_embeddings": true'),
    ("llama3", {}, {INPUT: None, OUTPUT: None}, f"none for .{INPUT}"),
    ("llama3", {"tie_word_embeddings": False}, {}, f"none for .{OUTPUT}"),
    ("llama-bias", {"attention_bias": False}, {}, f"also .*{Q}.bias"),
    ("llama-bias", {"mlp_bias": False}, {}, "also .*down_proj.bias"),
    ("llama", {"attention_bias": True}, {}, f"none for .*{Q}.bias"),
    ("llama", {"mlp_bias": True}, {}, "none for .*gate_proj.bias"),
    ("mistral", {"attention_bias": True}, {f"{Q}.bias": torch.ones(64)}, f"also .*{Q}.bias"),
    ("qwen2", {}, {f"{Q}.bias": None}, f"none for .*{Q}.bias"),
    ("qwen2", {}, {Q.replace("q_", "o_") + ".bias": torch.ones(64)}, "also .*o_proj.bias"),
    ("llama", {}, {"model.layers.1.self_attn.q_norm.weight": torch.ones(16)}, "also .*q_norm"),
    ("qwen3", {}, {"model.layers.0.self_attn.k_norm.weight": None}, "none for .*k_norm"),
    ("qwen3", {"head_dim": 16}, {}, "shape .*_proj"),
    ("llama", {"num_key_value_heads": 4}, {}, "shape .*[kv]_proj"),
    ("llama", {"num_hidden_layers": 2}, {}, "also .*layers.2"),
    ("llama", {"num_hidden_layers": 4}, {}, "none for .*layers.3"),
    ("llama", {"vocab_size": 400}, {}, f"shape .400.*{INPUT}"),
    ("llama", {"intermediate_size": 64}, {}, "shape .64.*gate_proj"),
    ("llama", {}, {f"{Q}.weight_scale": torch.ones(1)}, "also .*weight_scale"),
])  # fmt: skip
def test_a_config_that_the_files_do_not_bear_out_is_refused(
    tiny, tmp_path, machine, family, config, tensors, says
):
    """Would catch a bias or a norm that is in the files and in no sum, and the other way round."""
    folder = changed(tiny(family), tmp_path, config, tensors)
    with pytest.raises(CheckpointError, match=says):
        loaded(folder, machine)
    assert machine.hbm.used == 0 and not machine.trace.select(kind="transfer")


# -- folders and indexes ------------------------------------------------------------------------


def test_folder_without_weights_says_what_is_there(tmp_path):
    """Would catch a bare "not found", and pickle that is loaded for lack of better."""
    refused(tmp_path / "absent", "absent", "check the path")
    (tmp_path / "config.json").write_text("{}")
    refused(tmp_path / "config.json", "a file, not a folder")
    refused(tmp_path, "'config.json'")
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    refused(tmp_path, "'pytorch_model.bin'", "pickle is never loaded")


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_a_link_that_leads_nowhere_is_named(tmp_path, name):
    """Would catch "wanted model.safetensors, found model.safetensors": a hub's cache cut in two."""
    (tmp_path / name).symlink_to("../../blobs/1234")
    refused(tmp_path, f"/{name}", "a link to ../../blobs/1234, which is not there")


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    """Would catch a PermissionError; not by chmod, for root may read everything."""
    def deny(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "listdir", deny)
    refused(tmp_path, "Permission denied", "check that you may read it")


@pytest.mark.parametrize(
    "file",
    ["../out.safetensors", "/etc/passwd", "sub/s.safetensors", "..", "", "s\0.safetensors",
     "s.bin", "a\\b.safetensors", "C:s.safetensors", "\ud800.safetensors", "s.safetensors\n",
     3, None, ["s"]],
)  # fmt: skip
def test_index_names_only_files_beside_it(tmp_path, file):
    """Would catch a downloaded index that makes us open a file elsewhere."""
    save_file(random_tensors(), tmp_path / "out.safetensors")
    (tmp_path / "in" / "sub").mkdir(parents=True)
    save_file(random_tensors(), tmp_path / "in" / "sub" / "s.safetensors")
    index(tmp_path / "in", {"norm.weight": file})
    refused(tmp_path / "in", "index.json", "tensor 'norm.weight'")


def test_links_are_followed_to_files_anywhere(tmp_path, machine):
    """Would catch a model refused because its owner keeps the large files on another disk."""
    home, disk = tmp_path / "home", tmp_path / "disk"
    home.mkdir()
    disk.mkdir()
    save(disk, *two_shards())
    for name in ("s0.safetensors", "s1.safetensors", "model.safetensors.index.json"):
        (home / name).symlink_to(disk / name)
    load(on_meta(), Checkpoint.open(home), machine, BF16)
    save_file(random_tensors(), disk / "whole")
    (home / "model.safetensors").symlink_to("../disk/whole")
    assert Checkpoint.open(home).files == [home / "model.safetensors"]
    load(on_meta(), Checkpoint.open(home), machine, BF16)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_hub_cache_and_linked_folder_are_legal(tmp_path, machine, elsewhere):
    """Would catch a rule so strict that no model a hub has cached can be opened, here or with its
    `blobs` on another disk."""
    blobs, snapshot = tmp_path / "models--a" / "blobs", tmp_path / "models--a" / "snapshots" / "0f"
    snapshot.mkdir(parents=True)
    if elsewhere:
        (tmp_path / "disk").mkdir()
        blobs.symlink_to(tmp_path / "disk")
    else:
        blobs.mkdir()
    save_file(random_tensors(), blobs / "1234")
    (snapshot / "model.safetensors").symlink_to("../../blobs/1234")
    (tmp_path / "shortcut").symlink_to(snapshot)
    for folder in (snapshot, tmp_path / "shortcut"):
        load(on_meta(), Checkpoint.open(folder), machine, BF16)


def test_a_tensor_that_the_index_lists_must_be_there(tmp_path):
    """Would catch a shard from another download: a tensor gone, or moved."""
    first, second = two_shards()
    save(tmp_path, first, second, absent="s1.safetensors")
    refused(tmp_path, "s1.safetensors, tensor 'absent'")
    save(tmp_path, first, second, **{"norm.weight": "s0.safetensors"})
    refused(tmp_path, "s0.safetensors, tensor 'norm.weight'")
    save(tmp_path, first, second, other="s2.safetensors")
    refused(tmp_path, "s2.safetensors")
    index(tmp_path, dict.fromkeys(first, "s0.safetensors"))
    assert list(Checkpoint.open(tmp_path).tensors) == list(first)


@pytest.mark.parametrize("newer", ["s0.safetensors", "s1.safetensors"])
def test_of_a_tensor_in_two_shards_the_index_says_which(tmp_path, machine, newer):
    """Would catch a shard laid over an older one taken for damage, or the wrong of the two read;
    and a tensor that no shard should have, found in the model after all."""
    first, second = two_shards()
    changed = {"proj.weight": torch.full((6, 4), 7, dtype=BF16), "left.over": torch.ones(1)}
    save(tmp_path, first, second | changed, **{"proj.weight": newer})
    index_file = tmp_path / "model.safetensors.index.json"
    weight_map = json.loads(index_file.read_text())["weight_map"]
    index(tmp_path, {name: file for name, file in weight_map.items() if name != "left.over"})
    model = on_meta()
    load(model, Checkpoint.open(tmp_path), machine, BF16)
    expected = first if newer == "s0.safetensors" else changed
    assert torch.equal(model.proj.weight, expected["proj.weight"])


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a"', "\0"]
)
def test_damaged_index_is_named(tmp_path, text):
    """Would catch a KeyError or a JSONDecodeError that reaches the reader."""
    (tmp_path / "model.safetensors.index.json").write_text(text)
    refused(tmp_path, "model.safetensors.index.json")


def test_name_told_twice_in_the_index_is_refused(tmp_path):
    """Would catch the last of two files silently winning."""
    text = '{"weight_map": {"a": "s0.safetensors", "a": "s1.safetensors"}}'
    (tmp_path / "model.safetensors.index.json").write_text(text)
    refused(tmp_path, "'a' comes twice")


@pytest.mark.parametrize("target", ["loop", "folder", "/dev/zero", "pipe", "absent"])
def test_what_a_shard_links_to_must_be_a_file(tmp_path, target):
    """Would catch a load that never ends: /dev/zero has no end, and a pipe waits for a writer."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "folder").mkdir()
    os.mkfifo(home / "pipe")
    (home / "loop").symlink_to("s0.safetensors")
    (home / "s0.safetensors").symlink_to(target)
    index(home, dict.fromkeys(NAMES, "s0.safetensors"))
    leads = target in ("folder", "/dev/zero", "pipe")
    refused(home, "s0.safetensors", f"a link to {home / target}, a folder" if leads else "")


def test_an_index_as_large_as_a_disk_is_not_read(tmp_path):
    """Would catch memory taken for an index before its size is looked at."""
    with open(tmp_path / "model.safetensors.index.json", "wb") as stream:
        stream.truncate(2**40)  # a hole, which takes no disk
    refused(tmp_path, "index.json", "at most")


WEIRD = ["s0.safetensors", "s1.safetensors", "../s0.safetensors", "./s0.safetensors", "..", "",
         ".safetensors", "S0.safetensors", "s0.safetensors/", "s0.safetensors\0"]  # fmt: skip
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
maps = st.dictionaries(st.sampled_from([*NAMES, "x", ""]), st.sampled_from(WEIRD) | anything)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.fixed_dictionaries({"weight_map": maps | anything}) | anything)
def test_fuzzed_indexes(tmp_path_factory, content):
    """Would catch any error of another class, and a file opened that the folder does not hold."""
    folder = tmp_path_factory.getbasetemp() / "fuzzed-index"
    if not folder.exists():
        folder.mkdir()
        save(folder, *two_shards())
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    try:
        checkpoint = Checkpoint.open(folder)
    except CheckpointError as error:
        assert str(folder) in str(error) and len(str(error)) < 2 * len(str(folder)) + 600
        return
    files = {path.name for path in checkpoint.files}
    assert files <= {"s0.safetensors", "s1.safetensors"}
    assert {info.name: info.file.name for info in checkpoint.tensors.values()} == content[
        "weight_map"
    ]
