"""The benches of loading and streaming run, say what they measured, and leave nothing behind."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_tools_make_checkpoint import TINY

from minillm.__main__ import main
from minillm.errors import CheckpointError
from minillm.machine import Machine
from minillm.tools import bench_load as load
from minillm.tools import bench_stream as stream
from minillm.tools import make_checkpoint as make
from minillm.tools.bench_load import ALL, COPIED, OURS, RAW, STOCK, LoadReport
from minillm.tools.bench_memory import private_memory
from minillm.tools.make_checkpoint import make_checkpoint


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    make_checkpoint(TINY, folder, shard=100_000)
    return folder


def test_every_way_is_measured_in_every_round_cold_and_warm(small):
    """Would catch a way that is left out of a round: ratios would be taken between rounds."""
    machine, told = Machine.here(hbm="64 MiB", device="cpu"), []
    report = load.bench(small, 2, lambda *step: told.append(step), machine)
    expected = {(way, "cold") for way in (RAW, STOCK, COPIED, *OURS, *ALL)}
    expected |= {(way, "warm") for way in (RAW, STOCK, COPIED, *OURS)}
    assert set(report.seconds) == expected
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in report.seconds.values())
    assert len(report.overlap) == 2 and all(0 < share <= 1 for share in report.overlap)
    assert told == [(0, 2), (1, 2), (2, 2)] and report.arena > 0
    assert all(way in str(report) for way, _ in expected)
    assert machine.hbm.used == machine.dram.used == 0


def test_a_checkpoint_without_weights_is_refused(tmp_path):
    """Would catch a StopIteration, or a division by no bytes."""
    for tensors in ({}, {"empty": torch.empty(0)}):
        save_file(tensors, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match="wanted weights to load"):
            load.bench(tmp_path, 1, lambda *step: None)


def test_ratios_are_taken_within_a_round():
    """Would catch a median over a median: a machine that was busy for one round would show."""
    seconds = {("direct", "cold"): [1.0, 10.0, 1.0], (RAW, "cold"): [0.5, 5.0, 0.5]}
    assert LoadReport(1, "", seconds).times_as_fast("direct", "cold", RAW) == 0.5


def test_private_memory_is_seen_at_its_peak():
    """Would catch a peak that is over before anyone looks."""
    with private_memory() as peak:
        threading.Event().wait(0.01)
        if peak() == 0 and not Path("/proc/self/statm").exists():
            pytest.skip("needs /proc")
        block = torch.ones(2**26, dtype=torch.uint8)
        threading.Event().wait(0.05)
        del block
        threading.Event().wait(0.02)
        assert 0.8 * 2**26 < peak() < 2 * 2**26


def test_streaming_is_measured_beside_the_same_in_hbm(small, monkeypatch):
    """Would catch traffic that is counted for the model that is not streamed, or not at all."""
    monkeypatch.setattr(stream, "PROMPT", 8)
    monkeypatch.setattr(stream, "TOKENS", 2)
    report = stream.bench(small, 1, lambda *step: None)
    assert {way for way, _ in report.rounds} == set(stream.WAYS)
    for (way, _), ((seconds, moving, hidden),) in report.rounds.items():
        assert seconds > 0 and 0 <= hidden <= 1
        assert (moving > 0) == (way != "in HBM")
    assert report.hbm["from DRAM"] == report.hbm["from SSD"] < report.hbm["in HBM"]
    assert "from SSD" in str(report)


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
