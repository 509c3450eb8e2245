"""x Wᵀ for many tokens: torch multiplies; in which type, and from where the weight comes.

Torch has two ways with weights that are not float32. "own": x is rounded to the weight's type,
fast where the processor has arithmetic for it. "float32": the weight is converted, some rows at a
time, into one buffer that stays in the cache. Which is faster differs between processors and with
the number of tokens, so it is measured, once for a shape, and kept.
"""

from __future__ import annotations

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
from minillm.model.layers import Linear

BUFFER = 2**21  # numbers: 8 MiB of float32
TOKENS = (1, 8, 16, 32, 128)  # how many at once are tried
MOST = 32  # tokens for which the C kernels are tried
REST = 2.0  # a layer in torch ÷ its products: norms, turns, and each sequence looked up by itself
Unpack = Callable[[Linear, int, int, Tensor], object]
"""(linear, from, to, out): rows of a packed weight as plain ones, in the dtype of `out`."""
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
    """What a `Linear` multiplies with. Takes x (ΣT, K) in float32; other types go the plain way.

    unpack: for weights that are packed; None: layers.py does it, slowly.
    """

    def __init__(self, choice: Choice, unpack: Unpack | None = None):
        self.choice, self._unpack = choice, unpack
        self._buffer, self._lock = torch.empty(0), threading.Lock()

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
            if self._buffer.numel() < min(step, N) * K:
                self._buffer = torch.empty(min(step, N) * K)
            for a in range(0, N, step):
                b = min(N, a + step)
                rows = self._buffer.view(dtype)[: (b - a) * K].view(b - a, K)
                if not linear.packed:
                    rows.copy_(linear.weight[a:b])
                elif self._unpack:
                    self._unpack(linear, a, b, rows)
                else:
                    rows.copy_(linear.rows()[a:b])
                if dtype == torch.float32:
                    torch.mm(x, rows.t(), out=y[:, a:b])
                else:
                    y[:, a:b] = F.linear(x, rows)
        return y


def choose(
    N: int, K: int, dtype: torch.dtype, where: str, kernel: Kernel | None = None,
    unpack: Unpack | None = None,
) -> Choice:  # fmt: skip
    """The fastest ways for weights (N, K): known from before, or measured now.

    where: names processor and threads. kernel: the C, if there is any.
    """
    key = f"{where} · {dtype} · {N} × {K} · {'C' if kernel else 'torch'}"
    path = home() / "kernels" / "choices.json"
    try:
        kept = _read(path)[key]
        return Choice(tuple(kept["own"]), int(kept["most"]))
    except (KeyError, TypeError, ValueError):
        found = _measure(N, K, dtype, kernel, unpack)
    with suppress(OSError, MinillmError):  # where it cannot be kept it is measured again
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path):
            write_json(path, _read(path) | {key: asdict(found)})
    return found


def _measure(
    N: int, K: int, dtype: torch.dtype, kernel: Kernel | None, unpack: Unpack | None
) -> Choice:
    """On a weight of zeros, as large as the model's but no larger than some caches."""
    linear = Linear(K, max(32, min(N, 2**23 // K) // 32 * 32)).requires_grad_(False)
    linear.weight.data = torch.zeros(linear.weight.shape, dtype=dtype)
    linear.packed = kernel is not None  # zeros are packed, too
    ways = [Products(Choice(own, 0), unpack) for own in (TOKENS, ())]
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
