"""The bench of collectives measures both ways in each round, and says so."""

from __future__ import annotations

from minillm.__main__ import main
from minillm.tools import bench_collectives


def test_the_ring_stands_beside_gloo_and_the_loopback(capsys, monkeypatch) -> None:
    """Catches a way that is left out of a round, and a size that is not measured."""
    monkeypatch.setattr(bench_collectives, "SIZES", (0.001, 0.125))
    assert main(["bench", "collectives", "--rounds", "2"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert "ring by Gloo" in head and "ring by loopback" in head
    assert [line.split()[0] for line in lines] == ["0.001", "0.125"]
    assert all(line.count("…") == 4 for line in lines)
