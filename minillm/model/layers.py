"""The parts of a layer that are not attention: Linear, RMSNorm, rotary positions, the FFN.

Shapes: ΣT packed tokens of all sequences, D width, E head size, I width inside the FFN.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.config import ModelConfig

Reduce = Callable[[Tensor], Tensor]


def identity(x: Tensor) -> Tensor:
    """What `reduce` is on one GPU: a layer's part is already the whole sum."""
    return x


class Linear(nn.Module):
    """y = x Wᵀ + b: the one place that knows how W (N, K) lies in memory, which is row by row.

    deferred: the product is a part of a sum over ranks. Whoever owns the sum adds the bias, once,
    after it.
    product: what `forward` multiplies with; kernels put theirs in its place.
    """

    def __init__(self, n_in: int, n_out: int, bias: bool = False, deferred: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_out, n_in))
        self.bias = nn.Parameter(torch.empty(n_out)) if bias else None
        self.deferred = deferred
        self.product: Callable[[Tensor, Tensor], Tensor] = product

    def look_up(self, ids: Tensor) -> Tensor:
        """Rows `ids` (ΣT,) of the weight, as an embedding takes them: (ΣT, K)."""
        return F.embedding(ids, self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x (ΣT, K) -> (ΣT, N), in the dtype of the product; without the bias if it is deferred."""
        y = self.product(x, self.weight)
        return y if self.bias is None or self.deferred else y + self.bias.to(y.dtype)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x Wᵀ in the dtype of x: exact, and slow where the weight must be converted each time."""
    return F.linear(x, weight.to(x.dtype))


def together(x: Tensor, *linears: Linear) -> Tensor:
    """Linears that take the same x (ΣT, K), their results side by side: (ΣT, ΣN).

    One product, where their weights lie one after the other in one block, as loaders lay them out.
    """
    if not torch.is_grad_enabled():
        first, K = linears[0].weight, x.shape[1]
        block, end, apart = first.untyped_storage(), first.data_ptr(), False
        for linear in linears:
            apart |= linear.bias is not None or linear.weight.data_ptr() != end
            end += linear.weight.nbytes
        if not apart and end <= block.data_ptr() + block.nbytes():
            N = (end - first.data_ptr()) // (K * first.itemsize)
            return linears[0].product(x, first.as_strided((N, K), (K, 1)))
    return torch.cat([linear(x) for linear in linears], 1)


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x²) + eps) · weight over the last axis; the mean is taken in float32.

    Takes and returns (..., size), in the dtype of x.  Zhang and Sennrich, 2019.
    """

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def rope_table(config: ModelConfig, length: int) -> Tensor:
    """The turn of every position 0 … length - 1, (length, 2, E) float32, on the CPU.

    Coordinates j and j + E/2 of a head form a plane; position p turns it by the angle
    a = p · frequency[j].  Row 0 holds cos a, cos a; row 1 holds -sin a, sin a: what `rotate`
    multiplies with.  Su et al., 2021.
    """
    angle = torch.arange(length, device="cpu")[:, None].float() * rope_frequencies(config)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)), 1)


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turn each head of x (ΣT, heads, E) by its position; `turns` (ΣT, 2, E) of `rope_table`.

    (a, b) -> (a·cos - b·sin, b·cos + a·sin); row 1 brings the minus sign along.  Computed in
    the dtype of turns, returned in that of x.
    """
    half, wide = x.shape[-1] // 2, x.to(turns.dtype)
    out = wide * turns[:, :1]
    out[..., :half].addcmul_(wide[..., half:], turns[:, 1:, :half])
    out[..., half:].addcmul_(wide[..., :half], turns[:, 1:, half:])
    return out.to(x.dtype)


def rope_frequencies(config: ModelConfig) -> Tensor:
    """Radians per position of each plane, (E/2,) float32, always on the CPU (never on meta).

    Llama 3 stretches long waves by `factor`, keeps short ones, and blends in between, so that
    a model trained on `original_max_position_embeddings` tokens reads longer texts.
    """
    E = config.head_dim
    plane = torch.arange(0, E, 2, dtype=torch.float32, device="cpu")
    frequency = 1.0 / config.rope_theta ** (plane / E)
    scaling = config.rope_scaling
    if scaling is None:
        return frequency
    waves = scaling.original_max_position_embeddings * frequency / (2 * torch.pi)  # in the text
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((waves - low) / (high - low)).clamp(0, 1)  # 0: stretch, 1: keep
    return frequency * (keep + (1 - keep) / scaling.factor)


class MLP(nn.Module):
    """One rank's FFN: x (ΣT, D) -> its part of down(silu(gate(x)) · up(x)), (ΣT, D).

    SwiGLU, Shazeer, 2020.  The part is neither summed over ranks nor is down's bias in it.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        D, width, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = Linear(D, width, bias)
        self.up_proj = Linear(D, width, bias)
        self.down_proj = Linear(width, D, bias, deferred=True)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = together(x, self.gate_proj, self.up_proj).chunk(2, 1)
        return self.down_proj(F.silu(gate) * up)
