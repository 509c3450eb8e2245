"""Ceilings of arithmetic, on the CPU or on a card: the fastest product of two matrices.

A product of large matrices uses each number it reads many times: arithmetic sets its pace, in
flop/s. Which way is fastest differs between processors: with weights as they lie (rows of W, as
`F.linear` takes them, and as the engine multiplies) or turned, with few tokens or many. A ceiling
is what no run beats, so all are tried, and the best is measured longer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F

from minillm.machine.host import n_cores, torch_threads
from minillm.probe.measure import Measurement, rates, summary

DTYPES = ("float32", "bfloat16")
# (tokens, K, N): x (tokens, K) times W (N, K), from what fits a core's cache to a large layer.
_CPU = ((256, 256, 256), (512, 512, 512), (128, 1024, 4096), (512, 1024, 2048), (2048,) * 3)
_CARD = ((1024, 4096, 4096), (4096, 4096, 4096), (8192,) * 3, (16384,) * 3)


class Way(NamedTuple):
    """One way to multiply: how it is said, its FLOP, and what does it."""

    how: str
    flops: int
    run: Callable[[], object]


def compute(device: torch.device, seconds: float = 3.0) -> Iterator[Measurement]:
    """The fastest product for each dtype: "gemm bfloat16", on a card "cuda.gemm bfloat16"."""
    with torch_threads(n_cores()):
        for name in DTYPES:
            yield _gemm(device, name, seconds / len(DTYPES))


def _gemm(device: torch.device, name: str, seconds: float) -> Measurement:
    """Every way is tried; then the best alone. The largest shape only where it is soon done."""
    best: tuple[float, Way] | None = None
    *shapes, largest = _CPU if device.type == "cpu" else _CARD
    for shape in (*shapes, largest):
        if shape == largest and 6 * _flops(shape) / best[0] > seconds:
            break
        for way in _ways(device, getattr(torch, name), shape):
            rate = max(rates(way.run, way.flops, seconds / 100, 2))
            if best is None or rate > best[0]:
                best = rate, way
    rate, way = best
    samples = [rate, *rates(way.run, way.flops, seconds / 2)]
    on_card = device.type == "cuda"
    workers = "" if on_card else f", {torch.get_num_threads()} threads"
    return summary(f"{'cuda.' * on_card}gemm {name}", "flop/s", samples, way.how + workers)


def _ways(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int]) -> Iterator[Way]:
    """Both layouts of the weight: rows of W, and W turned."""
    tokens, K, N = shape
    x, w = (torch.randn(rows, K, device=device).to(dtype) for rows in (tokens, N))
    turned, out = w.t().contiguous(), torch.empty(tokens, N, device=device, dtype=dtype)
    said = f"{tokens} × {K} × {N}"
    linear, mm = lambda: F.linear(x, w), lambda: torch.mm(x, turned, out=out)
    yield Way(f"torch's linear, {said}", _flops(shape), finished(linear, device))
    yield Way(f"torch's mm, {said}", _flops(shape), finished(mm, device))


def _flops(shape: tuple[int, int, int]) -> int:
    tokens, K, N = shape
    return 2 * tokens * K * N


def finished(work: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """`work`, and on a card wait until it is done, so that a clock around it sees all of it."""

    def run() -> None:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run
