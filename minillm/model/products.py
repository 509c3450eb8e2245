"""x Wᵀ for many tokens: torch multiplies; in which type, and from where the weight comes.

Torch has two ways with weights that are not float32. "own": x is rounded to the weight's type,
fast where the processor has arithmetic for it. "float32": the weight is converted, some rows at a
time, into one buffer that stays in the cache. Which is faster differs between processors and with
the number of tokens, so it is measured, once for a shape, and kept.

A packed weight is first laid out as rows, in such a buffer, by torch: the C's threads and torch's,
taking turns at every product, would wait for each other.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.errors import MinillmError
from minillm.files import home, locked, read_json, write_json
from minillm.model import layers
from minillm.model.layers import COLUMNS, ROWS, Linear

BUFFER = 2**21  # numbers: 8 MiB of float32
KEPT = 64 * 2**20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's numbers
TOKENS = (1, 8, 16, 32, 128)  # how many at once are tried
MOST = 32  # tokens for which the C kernels are tried
REST = 2.0  # a layer in torch ÷ its products: norms, turns, and each sequence looked up by itself
Kernel = Callable[[Linear, int], Callable[[], object]]
"""(linear, tokens): what multiplies so many tokens in C."""


@dataclass(frozen=True)
class Choice:
    """What was fastest. own: of `TOKENS`, those where x is rounded. most: so many tokens or fewer
    are the C kernels' work."""

    own: tuple[int, ...]
    most: int

    def rounds(self, tokens: int) -> bool:
        """Whether a product with so many tokens is taken in the weight's own type."""
        return max((n for n in TOKENS if n <= tokens), default=TOKENS[0]) in self.own


class Products:
    """What a `Linear` multiplies with. Takes x (ΣT, K) in float32; other types go the plain way."""

    def __init__(self, choice: Choice):
        self.choice, self._lock = choice, threading.Lock()
        self._buffers: dict[torch.dtype, Tensor] = {}

    def __call__(self, x: Tensor, linear: Linear) -> Tensor:
        weight = linear.weight
        if x.dtype != torch.float32 or weight.device.type != "cpu":
            return layers.product(x, linear)
        own = weight.dtype == x.dtype or self.choice.rounds(len(x))
        if own and not linear.packed:
            return F.linear(x.to(weight.dtype), weight).float()
        return self._by_rows(x, linear, weight.dtype if own else torch.float32)

    def _by_rows(self, x: Tensor, linear: Linear, dtype: torch.dtype) -> Tensor:
        N, K = linear.weight.shape
        step = max(BUFFER // K // 32, 1) * 32
        x, y = x.to(dtype), torch.empty(len(x), N)
        with self._lock:
            for a in range(0, N, step):
                rows = linear.weight.data[a : a + step]
                if linear.packed:
                    rows = _unpack(rows, self._buffer(rows, rows.dtype))
                if rows.dtype != dtype:
                    rows = self._buffer(rows, dtype).copy_(rows)
                y[:, a : a + step] = F.linear(x, rows)
        return y

    def _buffer(self, like: Tensor, dtype: torch.dtype) -> Tensor:
        kept = self._buffers.get(dtype)
        if kept is None or kept.numel() < like.numel():
            kept = self._buffers[dtype] = torch.empty(like.numel(), dtype=dtype)
        return kept[: like.numel()].view_as(like)


def _unpack(packed: Tensor, out: Tensor) -> Tensor:
    """Packed rows as plain ones, moved 16 bytes at a time."""
    N, K = packed.shape
    source, target = packed.view(torch.complex128), out.view(torch.complex128)
    words = packed.itemsize * COLUMNS // torch.complex128.itemsize
    pieces = source.view(N // ROWS, K // COLUMNS, ROWS, words).transpose(1, 2)
    target.view(N // ROWS, ROWS, K // COLUMNS, words).copy_(pieces)
    return out


def keep_freed_memory() -> None:
    """Have the process keep up to KEPT bytes that were freed, where its allocator is glibc's.

    Else each product's result is new memory from Linux, page by page: half the time of a prefill.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(_M_TRIM_THRESHOLD, KEPT)
        mallopt(_M_MMAP_THRESHOLD, KEPT // 2)  # 32 MiB is the most that it takes


def choose(
    N: int, K: int, dtype: torch.dtype, where: str, kernel: Kernel | None = None
) -> Choice:
    """The fastest ways for weights (N, K): known from before, or measured now.

    where: names processor and threads. kernel: the C, if there is any.
    """
    key = f"{where} · {dtype} · {N} × {K} · {'C' if kernel else 'torch'}"
    path = home() / "kernels" / "choices.json"
    try:
        kept = _read(path)[key]
        return Choice(tuple(kept["own"]), int(kept["most"]))
    except (KeyError, TypeError, ValueError):
        found = _measure(N, K, dtype, kernel)
    with suppress(OSError, MinillmError):  # where it cannot be kept it is measured again
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path):
            write_json(path, _read(path) | {key: asdict(found)})
    return found


def _measure(N: int, K: int, dtype: torch.dtype, kernel: Kernel | None) -> Choice:
    """On a weight of zeros, as large as the model's but no larger than some caches."""
    linear = Linear(K, max(32, min(N, 2**23 // K) // 32 * 32)).requires_grad_(False)
    linear.weight.data = torch.zeros(linear.weight.shape, dtype=dtype)
    linear.packed = kernel is not None  # zeros are packed, too
    ways = [Products(Choice(own, 0)) for own in (TOKENS, ())]
    own, most = [], 8 if kernel else 0
    for tokens in TOKENS:
        x = torch.zeros(tokens, K)
        runs = [partial(way, x, linear) for way in ways]
        rounded, converted, *c = _seconds(*runs, *([kernel(linear, tokens)] if kernel else []))
        own += [tokens] * (rounded <= converted)
        if c and tokens <= MOST and c[0] <= REST * min(rounded, converted):
            most = max(most, tokens)
    return Choice(tuple(own), most)


def _seconds(*runs: Callable[[], object]) -> list[float]:
    """The best of some rounds, in each of which every one is run: three at least, for 4 ms."""
    best, end, rounds = [float("inf")] * len(runs), time.perf_counter() + 0.004, 0
    while rounds < 4 or time.perf_counter() < end:
        for i, run in enumerate(runs):
            begin = time.perf_counter()
            run()
            best[i] = min(best[i], time.perf_counter() - begin)
        rounds += 1
    return best


def _read(path: Path) -> dict:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
