"""Weights that pass through HBM a layer at a time: the same text, in less memory."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
import torch
from conftest import TINY, random_ids

from minillm.config import EngineConfig, ModelConfig, SamplingParams
from minillm.engine.engine import Engine
from minillm.engine.weights import Streamed
from minillm.errors import CheckpointError, ConfigError, OutOfMemory
from minillm.load import READERS, readers
from minillm.load.checkpoint import Checkpoint, load
from minillm.machine import Machine
from minillm.machine.arena import Arena
from minillm.machine.prefetch import waiting
from minillm.model.llama import Llama

GREEDY = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)
PROMPTS = ["Mia put the red key in the chest.", "Where", "The code of the chest is"]
HOMES = ["dram", "ssd"]


def streamed(folder: Path, machine: Machine, home: str = "dram", **more) -> Engine:
    config = EngineConfig(weights="stream", stream_from=home, **more)
    return Engine.load(folder, machine, config)


def answers(engine: Engine) -> list[list[int]]:
    return [completion.token_ids for completion in engine.generate(PROMPTS, GREEDY)]


@pytest.fixture(scope="module")
def expected(tiny):
    """What the resident model says."""
    found = {}

    def ids(family: str) -> list[list[int]]:
        if family not in found:
            engine = Engine.load(tiny(family), Machine.here(hbm="64 MiB", device="cpu"))
            found[family] = answers(engine)
            engine.close()
        return found[family]

    return ids


@pytest.mark.parametrize("family", sorted(TINY))
@pytest.mark.parametrize("home", HOMES)
def test_streamed_and_resident_say_the_same(tiny, machine, expected, family, home):
    """Would catch a layer that computes with another's weights, or with half of its own."""
    engine = streamed(tiny(family), machine, home)
    assert answers(engine) == expected(family)
    assert answers(engine) == expected(family)  # the second time begins with a slot in use
    engine.close()


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("home", HOMES)
def test_any_reader_will_do_and_prompts_in_chunks_too(tiny, machine, expected, reader, home):
    """Would catch a second pass of one prompt that finds the first one's last layers."""
    engine = streamed(tiny("llama"), machine, home, reader=reader, max_batch_tokens=4)
    assert answers(engine) == expected("llama")
    engine.close()


def test_two_layers_and_the_rest_are_all_that_hbm_holds(tiny):
    """Would catch weights that stay, so that a model larger than HBM does not run after all."""
    machine = Machine.here(hbm="64 MiB", device="cpu")
    resident = Engine.load(tiny("llama"), machine)
    sizes = [sum(p.nbytes for p in layer.parameters()) for layer in resident.model.blocks]
    weights, everything = machine.hbm.by_label["weights"], machine.hbm.used
    resident.close()
    kv = 200 * resident.kv_bytes_per_token
    budget = everything - sizes[0] + kv  # of three layers, two fit
    machine = Machine.here(hbm=budget, device="cpu")
    engine = streamed(tiny("llama"), machine)
    assert machine.hbm.by_label["weights"] == weights - sizes[0]
    answers(engine)
    assert machine.hbm.peak <= budget
    assert machine.dram.by_label["weights"] == sum(sizes)
    engine.close()
    assert machine.hbm.used == machine.dram.used == 0


def streams(model: Llama) -> Streamed:
    """What brings the layers of a streamed model: it hangs at each of them."""
    (before,) = model.blocks[0]._forward_pre_hooks.values()
    return before.__self__


def alone(folder: Path, machine: Machine, home: str) -> tuple[Llama, Arena | Streamed]:
    """A model without an engine, its weights streamed from `home`; or in HBM, if that is "hbm"."""
    with torch.device("meta"):
        model = Llama(ModelConfig.from_pretrained(folder)).eval()
    parts = model, Checkpoint.open(folder), machine, torch.float32
    if home == "hbm":
        return model, load(*parts)
    return model, Streamed(*parts, EngineConfig(stream_from=home))


@torch.no_grad()
@pytest.mark.parametrize("family", sorted(TINY))
@pytest.mark.parametrize("home", HOMES)
def test_streamed_layers_give_the_same_logits_at_every_pass(tiny, machine, family, home):
    """Would catch a slot that a pass changes, and a layer computed with another one's weights."""
    ids, found = random_ids(7), []
    for place in ("hbm", home):
        model, weights = alone(tiny(family), machine, place)
        found += [model(ids) for _ in range(3)]
        weights.close()
    assert all(torch.equal(found[0], other) for other in found)
    assert machine.hbm.used == machine.dram.used == 0


@pytest.mark.parametrize("home", HOMES)
def test_every_step_moves_every_layer_once(tiny, machine, cold, home):
    """Would catch a layer fetched twice, or a slot that is mistaken for the layer's home."""
    engine = streamed(tiny("llama"), machine, home)
    layers = engine.model.blocks
    layer = sum(p.nbytes for p in layers[0].parameters())
    engine.trace.clear()
    engine.generate("Mia", GREEDY)
    for _, wait in streams(engine.model)._prefetch._coming.values():  # what was sent for last
        wait()
    engine.close()
    steps = GREEDY.max_tokens
    to_hbm = engine.trace.select(kind="transfer", target="hbm", label="weights")
    to_hbm = [event for event in to_hbm if event.token is not None]  # the load itself is not
    assert sum(event.nbytes for event in to_hbm) == steps * len(layers) * layer
    assert sum(event.nbytes for event in to_hbm if event.token == 2) == len(layers) * layer
    from_ssd = engine.trace.select(kind="transfer", source="ssd")
    assert bool(from_ssd) == (home == "ssd")
    assert len(engine.trace.select(name=waiting("weights"))) == steps * len(layers)


def test_a_layer_arrives_while_the_one_before_computes(tiny, machine, monkeypatch):
    """Would catch prefetching in name only: sent for when needed, or on the computing thread."""
    engine = streamed(tiny("llama"), machine)
    arrived, home = {}, streams(engine.model)._home
    bring = home.bring
    events = {n: threading.Event() for n in range(3)}

    def bringing(layer, slot):
        bring(layer, slot)
        arrived[layer] = threading.current_thread().name
        events[layer].set()

    monkeypatch.setattr(home, "bring", bringing)
    layers = engine.model.blocks
    for one, two in zip(layers, layers[1:], strict=False):

        def compute(module, arguments, two=two):  # layer `one` cannot end before `two` is there
            assert events[two.layer].wait(20), "nobody sent for the next layer"

        one.register_forward_hook(lambda module, arguments, output, c=compute: c(module, arguments))
    engine.generate("Mia", SamplingParams(max_tokens=1, temperature=0.0))
    assert {1, 2} <= set(arrived)
    assert all(name.startswith("minillm-prefetch") for name in arrived.values())
    engine.close()


@pytest.mark.parametrize("kernels", ["torch", "auto"])
@pytest.mark.parametrize("weights", ["stream", "resident"])
def test_a_step_of_few_tokens_leaves_the_link_a_core(tiny, machine, weights, kernels):
    """Would catch copies that starve beside compute, and a core that is never given back."""
    config = EngineConfig(weights=weights, kernels=kernels)
    engine = Engine.load(tiny("llama"), machine, config)
    cores, before = [], torch.get_num_threads()
    layer, in_c = engine.model.blocks[0], engine._runner._kernels

    def look(*_: object) -> None:
        few = in_c is not None and len(cores) > 0  # the first pass reads the prompt
        cores.append(in_c.threads if few else torch.get_num_threads())
        assert torch.get_num_threads() == 1 or not few

    layer.register_forward_hook(look)
    torch.set_num_threads(3)
    try:
        engine.generate([[2] * 40], SamplingParams(max_tokens=3, ignore_eos=True))
        layer.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.generate([[2]], GREEDY)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
        engine.close()
    assert cores == ([3, 2, 2, 2] if weights == "stream" else [3, 3, 3, 3])


def test_a_pass_that_was_broken_off_leaves_the_next_one_right(tiny, machine, expected):
    """Would catch a layer taken for another because it was the one that was on its way."""
    engine = streamed(tiny("llama"), machine)
    hook = engine.model.blocks[1].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        engine.generate("Mia", GREEDY)
    hook.remove()
    assert answers(engine) == expected("llama")
    engine.close()


def test_a_disk_that_fails_in_mid_run_is_named_and_may_recover(
    tiny, machine, expected, monkeypatch
):
    """Would catch an error on the other thread that nobody hears, or that sticks for ever."""
    engine = streamed(tiny("llama"), machine, "ssd")
    read_at = readers.read_at

    def unreadable(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(readers, "read_at", unreadable)
    with pytest.raises(
        CheckpointError, match="Input/output error.*tensor 'model.layers"
    ):
        engine.generate("Mia", GREEDY)
    monkeypatch.setattr(readers, "read_at", read_at)
    assert answers(engine) == expected("llama")
    engine.close()
    assert machine.hbm.used == machine.dram.used == 0


def ours() -> set[threading.Thread]:
    """Our threads that run: also those of an engine that another test dropped without `close`."""
    return {t for t in threading.enumerate() if t.name.startswith("minillm")}


@pytest.mark.parametrize("home", HOMES)
def test_close_leaves_nothing(tiny, machine, home):
    """Would catch a prefetching thread, files or staging that outlive the engine."""
    before = ours()
    engine = streamed(tiny("llama"), machine, home)
    engine.generate("Mia", GREEDY)
    engine.close()
    engine.close()
    assert machine.hbm.used == machine.dram.used == 0
    assert not ours() - before


@pytest.mark.parametrize("home", HOMES)
def test_too_little_memory_is_told_and_nothing_is_kept(tiny, home):
    """Would catch slots, or a home in DRAM, that stay behind when the rest does not fit."""
    before = ours()
    machine = Machine.here(hbm="150 KiB", device="cpu")
    with pytest.raises(OutOfMemory, match="of HBM"):
        streamed(tiny("llama"), machine, home)
    assert machine.hbm.used == machine.dram.used == 0
    machine = Machine.here(hbm="64 MiB", device="cpu")
    machine.dram.reserve(machine.dram.free - 1000, "others")
    with pytest.raises(OutOfMemory, match="of DRAM"):
        streamed(tiny("llama"), machine, home, reader="direct")
    assert machine.hbm.used == 0 and list(machine.dram.by_label) == ["others"]
    assert not ours() - before


def test_auto_keeps_layers_in_dram_if_they_fit(tiny, machine):
    """Would catch a model read from disk at every token though memory is free, or the reverse."""
    engine = streamed(tiny("llama"), machine, "auto")
    assert "weights" in machine.dram.by_label
    engine.close()
    machine.dram.reserve(machine.dram.free - 2**25, "others")
    engine = streamed(tiny("llama"), machine, "auto", reader="direct")
    assert "weights" not in machine.dram.by_label and "staging" in machine.dram.by_label
    engine.close()


def test_damage_is_told_before_memory_is_taken(tiny, machine, tmp_path):
    """Would catch a checkpoint that fits no model, found out at its last layer."""
    for file in tiny("llama").iterdir():
        os.symlink(file, tmp_path / file.name) if "safetensors" not in file.name else None
    (tmp_path / "model.safetensors").write_bytes((tiny("qwen2") / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError):
        streamed(tmp_path, machine)
    assert machine.hbm.peak == 0


@pytest.mark.parametrize("setting", [{"weights": "half"}, {"stream_from": "hbm"}, {"weights": 1}])
def test_an_unknown_place_for_weights_is_told(setting):
    """Would catch a typing error that silently loads all of the model into HBM."""
    with pytest.raises(ConfigError, match=f"wanted {next(iter(setting))} to be one of"):
        EngineConfig(**setting)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
@pytest.mark.parametrize("home", HOMES)
def test_on_a_card_streamed_and_resident_say_the_same(tiny, home):
    """Would catch a slot overwritten while the card still reads it."""
    machine = Machine.here(hbm="256 MiB", device="cuda")
    resident = Engine.load(tiny("llama"), machine)
    expected = answers(resident)
    resident.close()
    engine = streamed(tiny("llama"), machine, home)
    for _ in range(3):
        assert answers(engine) == expected
    engine.close()
    assert machine.hbm.used == machine.dram.used == 0
