"""The benches of loading, streaming and offload say what they measured, and leave nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_tools_make_checkpoint import TINY

from minillm import Engine
from minillm.__main__ import main
from minillm.load import Checkpoint
from minillm.machine import Machine
from minillm.machine.arena import Arena
from minillm.tools import bench_load as load
from minillm.tools import bench_offload as offload
from minillm.tools import bench_stream as stream
from minillm.tools import make_checkpoint as make
from minillm.tools.bench_load import OURS, RAW, STOCK
from minillm.tools.make_checkpoint import make_checkpoint


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    make_checkpoint(TINY, folder)
    return folder


def test_every_way_is_measured_in_every_round(small):
    """Would catch a way that is left out of a round: ratios would be taken between rounds."""
    machine, told = Machine.here(hbm="64 MiB", device="cpu"), []
    checkpoint = Checkpoint.open(small)
    seconds = load.measure(checkpoint, 2, lambda *step: told.append(step), machine)
    assert set(seconds) == {RAW, STOCK, *OURS}
    assert all(len(each) == 2 and min(each) > 0 for each in seconds.values())
    assert told == [(0, 2), (1, 2), (2, 2)]
    assert machine.hbm.used == machine.dram.used == 0


@pytest.mark.parametrize("way", [STOCK, *OURS])
def test_each_way_brings_the_weights(small, way):
    """Would catch a way that wins since it does less."""
    machine, checkpoint = Machine.here(hbm="64 MiB", device="cpu"), Checkpoint.open(small)
    shapes = {name: (info.shape, info.dtype) for name, info in checkpoint.tensors.items()}
    arena = Arena(machine, shapes, "hbm", "weights")
    arena.block.zero_()
    load.ways(checkpoint, arena, machine)[way]()
    wanted = {k: t for file in small.glob("*.safetensors") for k, t in load_file(file).items()}
    assert arena.places.keys() == wanted.keys()
    assert all(torch.equal(arena.places[name], wanted[name]) for name in wanted)


def test_streaming_is_measured_beside_the_same_in_hbm(small, monkeypatch):
    """Would catch traffic that is counted for the model that is not streamed, or not at all."""
    monkeypatch.setattr(stream, "WORK", {"prefill": (8, 0, 1), "decode step": (1, 1, 2)})
    for way, config in stream.WAYS.items():
        engine = Engine.load(small, Machine.here(hbm="64 MiB", device="cpu"), config)
        for work, counts in stream.WORK.items():
            seconds, moving, hidden = stream.measure(engine, "weights", work, *counts)
            assert seconds > 0 and 0 <= hidden <= 1
            assert (moving > 0) == (way != "in HBM")
            assert len(engine.trace.select(name=work)) == counts[2]
        engine.close()
    rows = stream.bench(small, 1, lambda *step: None).splitlines()
    assert rows[0] == small.name and len(rows) == 2 + 2 * len(stream.WAYS)
    assert rows[3].startswith("prefill from DRAM")
    assert all(("%" in row) == ("in HBM" not in row) for row in rows[2:])


def test_a_context_larger_than_hbm_is_measured_beside_the_same_in_hbm(small, monkeypatch):
    """Would catch pages that are counted as moving where all have frames, or none where not."""
    monkeypatch.setattr(offload, "CONTEXT", 7 * 16)
    ways = dict(zip(offload.WAYS, ((20, 1, 0), (7, 20, 0), (7, 9, 0), (7, 0, 20)), strict=True))
    monkeypatch.setattr(offload, "WAYS", ways)
    for way, (frames, *_) in ways.items():
        engine = offload.load(small, way)
        seconds, moving, share = stream.measure(engine, "kv", "decode step", 7 * 16, 2, 6)
        assert len(engine.trace.select(name="decode step")) == 6
        engine.close()
        assert seconds > 0 and 0 <= share <= 1
        assert (moving > 0) == (frames < 8), way
    rows = offload.bench(small, 1, lambda *step: None).splitlines()
    assert rows[0] == f"{small.name}, scale model of H100 (emulated)" and len(rows) == 2 + len(ways)
    assert ["%" in row for row in rows[2:]] == [frames < 8 for frames, *_ in ways.values()]


def test_the_commands_are_there(small, tmp_path, capsys, monkeypatch):
    """Would catch a bench that only its test can start."""
    assert main(["bench", "load", "--model", str(small), "--rounds", "1"]) == 0
    assert RAW in capsys.readouterr().out
    assert main(["make-checkpoint", "--shape", "135m", "--out", str(small)]) == 2
    assert "an empty folder" in capsys.readouterr().err
    monkeypatch.setitem(make.SHAPES, "135m", TINY | {"vocab_size": 20_000})
    assert main(["make-checkpoint", "--shape", "135m", "--out", str(tmp_path / "new")]) == 0
    told = capsys.readouterr()
    assert "GB of random weights" in told.out and told.err.count("\n") == told.err.count("MB ") == 1
    assert (tmp_path / "new" / "config.json").exists()
