"""Ceilings of compute, on the CPU or on a card: matrix times matrix, and matrix times vector.

A product of matrices uses each number it reads many times: arithmetic sets its pace, in flop/s. A
matrix times one vector uses each number once: memory sets the pace, in bytes/s. Prefill is the
first, decode at batch 1 the second.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from minillm.machine.host import cache_bytes, n_cores, torch_threads
from minillm.probe.measure import Measurement, rates, summary

DTYPES = ("float32", "bfloat16")
_MATRIX = 64 * 2**20, 2**30  # bytes, at least and at most, of the matrix that a vector meets


def compute(device: torch.device, seconds: float = 3.0) -> Iterator[Measurement]:
    """GEMM and GEMV for each dtype. Names begin with "cuda." on a card: "gemm bfloat16"."""
    with torch_threads(n_cores()):
        for name in DTYPES:
            dtype = getattr(torch, name)
            yield _gemm(device, dtype, name, seconds / 4)
            yield _gemv(device, dtype, name, seconds / 4)


def _gemm(device: torch.device, dtype: torch.dtype, name: str, seconds: float) -> Measurement:
    """Square matrices, large enough that arithmetic is all that counts."""
    size = 512 if device.type == "cpu" else 4096
    first = rates(_product(device, dtype, size), 2 * size**3, 0.0, 1)[0]
    while 2 * (2 * size) ** 3 / first < seconds / 5 and size < (2048 if size < 4096 else 16384):
        size *= 2
    samples = rates(_product(device, dtype, size), 2 * size**3, seconds)
    how = f"torch's matmul, {size} × {size}{_workers(device)}"
    return summary(f"{_prefix(device)}gemm {name}", "flop/s", samples, how)


def _product(device: torch.device, dtype: torch.dtype, size: int) -> Callable[[], None]:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return finished(lambda: torch.mm(a, b, out=out), device)


def _gemv(device: torch.device, dtype: torch.dtype, name: str, seconds: float) -> Measurement:
    """One row times a matrix that no cache holds; what is counted are the matrix's bytes."""
    width, (least, most) = 4096, _MATRIX
    nbytes = 4 * cache_bytes() if device.type == "cpu" else most
    rows = min(max(nbytes, least), most) // (width * dtype.itemsize)
    weight = torch.randn(rows, width, device=device).to(dtype)
    x = torch.randn(1, width, device=device).to(dtype)
    samples = rates(finished(lambda: F.linear(x, weight), device), weight.nbytes, seconds)
    how = f"torch's linear, one row × {weight.nbytes >> 20} MiB{_workers(device)}"
    return summary(f"{_prefix(device)}gemv {name}", "bytes/s", samples, how)


def finished(work: Callable[[], object], device: torch.device) -> Callable[[], None]:
    """`work`, and on a card wait until it is done, so that a clock around it sees all of it."""

    def run() -> None:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def _prefix(device: torch.device) -> str:
    return "cuda." if device.type == "cuda" else ""


def _workers(device: torch.device) -> str:
    return f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
