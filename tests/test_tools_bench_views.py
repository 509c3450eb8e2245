"""Laws of the bench of live views: what it may say of numbers, and that it runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from minillm.errors import MinillmError
from minillm.tools import bench_views as views


def test_a_cost_is_of_the_run_without_views() -> None:
    """Catches shares of the wrong whole, and a noisy machine's median told without its spread."""
    said = views.cost([(2.0, 2.04, 0.01), (1.0, 1.1, 0.02), (1.0, 0.95, 0.005)])
    assert "in 1.00 s, 3 rounds" in said and "cost +2.0% (-5.0% … +10.0%)" in said
    assert "takes 0.5% (0.5% … 2.0%) of the run" in said


def test_the_bench_measures_both_ways_in_a_real_kernel(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a set-up that no longer runs, and ways that do not change places."""
    seen, found = [], []
    monkeypatch.setattr(views, "cost", lambda rounds: found.extend(rounds) or "cost")
    assert views.bench(str(tiny("llama")), 1, lambda *done: seen.append(done)) == "cost"
    ((without, watched, spent),) = found
    assert min(without, watched) > 0 and spent >= 0
    assert seen == [(0, 1), (1, 1)]


def test_what_fails_in_the_kernel_is_told(tmp_path: Path) -> None:
    """Catches a traceback of the bench instead of the kernel's own error."""
    with pytest.raises(MinillmError, match="wanted a decode in a notebook kernel, .*Checkpoint"):
        views.bench(str(tmp_path), 1, lambda *done: None)
