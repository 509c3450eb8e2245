"""x Wᵀ for many tokens: torch multiplies; in which type, and from where the weight comes.

Torch has two ways with weights that are not float32. "own": x is rounded to the weight's type,
fast where the processor has arithmetic for it. "float32": the weight is converted. Which is faster
differs between processors and with the number of tokens, so it is measured, once for a shape, and
kept.

What must be converted comes in pieces. For few tokens they are small enough to stay in the cache;
for many the product takes so long that it matters more how often torch's threads wait for each
other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from minillm.files import kept
from minillm.model.layers import Linear
from minillm.probe.measure import rates

FEW, MANY, ALL = 16, 128, 2**31  # tokens
PIECE = 2**21  # numbers: 8 MiB of float32
REST = 2.0  # a layer in torch ÷ its products: norms, turns, and each sequence looked up by itself
# (x (ΣT, K), linear, the weight (K,) of a norm): norms and multiplies in C.
Kernel = Callable[[Tensor, Linear, Tensor], Tensor]


@dataclass(frozen=True)
class Products:
    """What a `Linear` multiplies with: x (ΣT, K) -> (ΣT, N), each in float32 or the weight's type.

    own: for fewer tokens x is rounded to the weight's type, and the result is of it: between a norm
    and the sum that follows nothing is converted again. most: so many tokens or fewer are the C
    kernels' work.
    """

    own: int
    most: int

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        dtype = weight.dtype if x.shape[0] < self.own else torch.float32
        x = x.to(dtype)
        if dtype == weight.dtype:
            return F.linear(x, weight)
        step = max(PIECE * min(max(1, len(x) // 64), 8) // x.shape[1] // 32, 1) * 32
        parts = [F.linear(x, part.to(dtype)) for part in weight.split(step)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def choose(N: int, K: int, dtype: torch.dtype, where: str, kernel: Kernel | None) -> Products:
    """The fastest ways for weights (N, K): known from before, or measured now.

    where: names processor and threads. kernel: the C, if there is any.
    """
    key = f"{where} · {dtype} · {N} × {K} · {'C' if kernel else 'torch'}"
    make = partial(_measure, N, K, dtype, kernel)
    return kept("choices", key, lambda found: Products(*map(int, found)), make)


def _measure(N: int, K: int, dtype: torch.dtype, kernel: Kernel | None) -> tuple[int, int]:
    """The fields of `Products`; on a weight of zeros, no larger than some caches."""
    linear = Linear(K, max(32, min(N, 2**23 // K) // 32 * 32)).requires_grad_(False)
    linear.weight.data = torch.zeros(linear.weight.shape, dtype=dtype)

    def way(own: int, tokens: int) -> Callable[[], Tensor]:
        return partial(Products(own, 0), torch.zeros(tokens, K), linear.weight)

    # For few, to convert the weight takes longer than the product.
    own = ALL if _as_fast(way(ALL, MANY), way(0, MANY)) >= 1 else FEW
    most = 2 * FEW if kernel else 0
    run = partial(kernel, torch.zeros(most, K), linear, linear.weight[0]) if kernel else None
    if run and REST * _as_fast(run, way(own, most)) < 1:
        most = FEW // 2
    return own, most


def _as_fast(*two: Callable[[], object]) -> float:
    """How many times as fast the first is; in turns, so that a rival does not take one's time."""
    found = ([max(rates(run, 1, 0.004)) for run in two] for _ in range(5))
    first, second = map(max, zip(*found, strict=True))
    return first / second
