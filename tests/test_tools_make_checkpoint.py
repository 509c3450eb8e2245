"""Checkpoints made of noise: real names and shapes, readable by all, and never half of one."""

from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import safetensors.torch
import torch

from minillm import Engine, EngineConfig, SamplingParams
from minillm.config import ModelConfig
from minillm.errors import ConfigError, MinillmError, OutOfMemory
from minillm.load import Checkpoint
from minillm.predict import parameters
from minillm.tools import make_checkpoint as make
from minillm.tools.make_checkpoint import SHAPES, make_checkpoint, tensor_shapes

TINY = SHAPES["135m"] | {
    "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
}  # fmt: skip
UNTIED = TINY | {"tie_word_embeddings": False}
BIASED = TINY | {"attention_bias": True, "mlp_bias": True}
QWEN2 = {k: v for k, v in TINY.items() if not k.endswith("bias")} | {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2",
}  # fmt: skip
QWEN3 = QWEN2 | {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 32,
    "attention_bias": True,
}  # fmt: skip


@pytest.mark.parametrize("settings", [*SHAPES.values(), TINY, UNTIED, BIASED, QWEN2, QWEN3])
def test_names_and_shapes_are_the_models(settings):
    """Would catch a tensor forgotten, and one with its sides exchanged."""
    config = ModelConfig.from_dict(settings)
    shapes = tensor_shapes(config)
    assert sum(shape.numel() for shape in shapes.values()) == parameters(config)
    inner, width = settings["intermediate_size"], settings["hidden_size"]
    assert shapes["model.layers.0.mlp.down_proj.weight"] == (width, inner)
    assert ("lm_head.weight" in shapes) != settings["tie_word_embeddings"]


def test_the_shapes_are_those_of_the_models_they_are_named_after():
    """Would catch a wrong digit: the models' own pages say how many parameters they have."""
    count = {name: parameters(ModelConfig.from_dict(s)) for name, s in SHAPES.items()}
    assert count == {
        "135m": 134_515_008, "360m": 361_821_120, "1b": 1_235_814_400, "8b": 8_030_261_248,
    }  # fmt: skip


@pytest.mark.parametrize("settings", [TINY, UNTIED])
def test_others_read_it_too_and_its_numbers_are_sensible(tmp_path, settings):
    """Would catch a header that only we understand, and weights that overflow a forward pass."""
    nbytes = make_checkpoint(settings, tmp_path / "new" / "m")
    tensors = safetensors.torch.load_file(tmp_path / "new" / "m" / "model.safetensors")
    assert sum(tensor.nbytes for tensor in tensors.values()) == nbytes
    assert nbytes == Checkpoint.open(tmp_path / "new" / "m").nbytes
    for name, tensor in tensors.items():
        if "norm" in name:
            assert tensor.eq(1).all()
        else:
            assert tensor.dtype == torch.bfloat16 and abs(tensor.float().std() - 0.02) < 0.002, name
    one, two = (tensors[f"model.layers.{i}.mlp.up_proj.weight"] for i in (0, 1))
    assert not torch.equal(one, two)


@pytest.mark.parametrize("settings", [TINY, BIASED, QWEN2, QWEN3])
def test_the_engine_runs_it(tmp_path, machine, settings):
    """Would catch a checkpoint that its own engine refuses: no tokenizer, a bias or a q/k norm
    that is missing, or NaN in its logits."""
    make_checkpoint(settings, tmp_path)
    engine = Engine.load(tmp_path, machine, EngineConfig(reader="direct"))
    (completion,) = engine.generate("Mia", SamplingParams(max_tokens=3, ignore_eos=True))
    assert len(completion.token_ids) == 3
    engine.close()


def test_progress_counts_bytes_up_to_all_of_them(tmp_path, monkeypatch):
    """Would catch a bar that never ends, or runs past its end."""
    monkeypatch.setattr(make, "_WRITE", 4096)
    told = []
    nbytes = make_checkpoint(TINY, tmp_path, tell=lambda *step: told.append(step))
    done = [step[0] for step in told]
    assert done == sorted(done) and done[-1] == nbytes and len(done) > 20
    assert {step[1] for step in told} == {nbytes}


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    """Would catch somebody's own model overwritten."""
    (tmp_path / "model.safetensors").write_text("mine")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        with pytest.raises(MinillmError, match="an empty folder|File exists"):
            make_checkpoint(TINY, path)
    assert (tmp_path / "model.safetensors").read_text() == "mine"


@pytest.mark.parametrize("shape", ["7b", ["135m"], {"135m"}, None])
def test_an_unknown_shape_is_told_what_there_is(tmp_path, shape):
    """Would catch a KeyError, and the TypeError of what cannot be a key."""
    with pytest.raises(ConfigError, match="135m, 360m, 1b, 8b, found ") as caught:
        make_checkpoint(shape, tmp_path)
    assert repr(shape) in str(caught.value)


@pytest.mark.parametrize("below", ["", "a/b"])
def test_a_link_that_leads_nowhere_is_refused_and_stays(tmp_path, below):
    """Would catch gigabytes in the place of a disk that is not mounted, and a link removed."""
    link = tmp_path / "link"
    link.symlink_to("/nonexistent/disk")
    with pytest.raises(MinillmError, match="into .*link.*, found File exists; give another name"):
        make_checkpoint(TINY, link / below)
    assert link.is_symlink() and os.readlink(link) == "/nonexistent/disk"


def test_room_is_measured_where_the_bytes_will_lie(tmp_path, monkeypatch):
    """Would catch the parent's disk judged in place of the one that a link leads to, or that is
    mounted on the folder itself."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    usage, asked = namedtuple("usage", "total used free"), []
    monkeypatch.setattr(shutil, "disk_usage", lambda p: asked.append(p) or usage(10**9, 0, 10**6))
    monkeypatch.chdir(tmp_path)
    for folder in ("disk", "link", "disk/new/er", "link/new", "new"):
        with pytest.raises(OutOfMemory):
            make_checkpoint(TINY, folder)
    disk = tmp_path.resolve() / "disk"
    assert [path.resolve() for path in asked] == [disk, disk, disk, disk, disk.parent]


def test_a_disk_without_room_is_told_before_a_byte_is_written(tmp_path, monkeypatch):
    """Would catch a disk filled to its last byte."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 0, 10**6))
    with pytest.raises(OutOfMemory, match="of SSD") as caught:
        make_checkpoint("8b", tmp_path / "new")
    assert caught.value.asked > 16 * 10**9 and not (tmp_path / "new").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
@pytest.mark.parametrize("there", [True, False])
def test_what_is_not_finished_is_removed(tmp_path, monkeypatch, error, there):
    """Would catch gigabytes left behind by an interrupt or by a full disk."""
    folder, synced, fsync = tmp_path / "a" / "b", [], os.fsync
    if there:
        folder.mkdir(parents=True)

    def fail(fd):  # a full disk may be found only when the page cache is written
        synced.append(fd)
        if len(synced) == 20:
            raise error
        fsync(fd)

    monkeypatch.setattr(os, "fsync", fail)
    told = MinillmError if isinstance(error, OSError) else type(error)
    with pytest.raises(told, match="No space left on device; .* make room|^$"):
        make_checkpoint(TINY, folder)
    assert len(synced) == 20 and not any(folder.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError()])
def test_what_others_put_beside_it_meanwhile_stays(tmp_path, error):
    """Would catch a clean-up that takes a whole folder, since it was not there at the start."""
    models = tmp_path / "new" / "models"

    def meanwhile(done, total):
        if done > total // 2:
            (models / "mine.txt").write_text("mine")
            (models / "a" / "notes").mkdir()
            (models / "a" / "notes" / "mine.txt").write_text("mine too")
            make_checkpoint(TINY, models / "b")
            raise error

    with pytest.raises(type(error)):
        make_checkpoint(TINY, models / "a", tell=meanwhile)
    files = {path.relative_to(models).as_posix() for path in models.rglob("*") if path.is_file()}
    finished = {f"b/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")}
    assert files == {"mine.txt", "a/notes/mine.txt"} | finished


def test_of_two_runs_into_one_folder_the_slower_gives_way(tmp_path):
    """Would catch a finished checkpoint deleted, or mixed with that of a run that came second."""
    others = []

    def overtaken(done, total):
        if not others:
            others.append(make_checkpoint(TINY, tmp_path / "a"))

    with pytest.raises(ConfigError, match="an empty folder"):
        make_checkpoint(UNTIED, tmp_path / "a", tell=overtaken)
    assert Checkpoint.open(tmp_path / "a").nbytes == others[0]
    assert len(list((tmp_path / "a").iterdir())) == 3


def test_a_folder_that_cannot_be_made_is_what_the_error_names(tmp_path, monkeypatch):
    """Would catch a clean-up that fails on its own, of what was never there."""

    def refuse(folder, **more):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(MinillmError, match="into .*b, found Permission denied"):
        make_checkpoint(TINY, tmp_path / "a" / "b")


def test_config_is_one_that_others_know(tmp_path):
    """Would catch a config.json of our own invention."""
    make_checkpoint(TINY, tmp_path)
    from transformers import AutoConfig

    theirs = AutoConfig.from_pretrained(tmp_path)
    assert theirs.num_key_value_heads == 2 and theirs.model_type == "llama"
    assert json.loads((tmp_path / "config.json").read_text()) == TINY
