"""The parts of a layer that are not attention: RMSNorm, rotary positions, the FFN.

Shapes: B batch, T tokens, D width, E head size, I width inside the FFN.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minillm.config import ModelConfig

Reduce = Callable[[Tensor], Tensor]


def identity(x: Tensor) -> Tensor:
    """What `reduce` is on one GPU: a layer's output is already the whole sum."""
    return x


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight over the last axis; the mean is taken in float32.

    Takes and returns (..., size), in the dtype of x.  Zhang and Sennrich, 2019.
    """

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class RoPE(nn.Module):
    """The rotation that gives every position its own angle.  Su et al., 2021.

    Coordinates j and j + E/2 of a head form a plane; position p turns it by p · frequency[j].
    `forward(positions (B, T), dtype)` returns the `cos` and `sin` (B, T, 1, E) of `rotate`.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        # A buffer follows the model to its device; it is no parameter and in no checkpoint.
        self.register_buffer("frequency", rope_frequencies(config), persistent=False)

    def _apply(self, fn: Callable, recurse: bool = True) -> nn.Module:
        # `.to(bfloat16)` would round the frequencies and `.to_empty()` lose them: compute anew.
        super()._apply(fn, recurse)
        self.frequency = rope_frequencies(self.config).to(self.frequency.device)
        return self

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        frequency = self.frequency.to(positions.device)  # nothing to do once the model moved
        angle = positions[:, :, None, None].float() * frequency  # (B, T, 1, E/2)
        cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
        return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each head of x (B, T, heads, E) by its position's angle; `cos`, `sin` from RoPE.

    (a, b) -> (a·cos - b·sin, b·cos + a·sin): rolled by E/2, x is (b, a), and `sin` brings the
    minus sign along.  Returns the dtype of x.
    """
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin).to(x.dtype)


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
    waves = scaling.original_max_position_embeddings * frequency / (2 * math.pi)  # in the text
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((waves - low) / (high - low)).clamp(0, 1)  # 0: stretch, 1: keep
    return frequency * (keep + (1 - keep) / scaling.factor)


class MLP(nn.Module):
    """The FFN: x (B, T, D) -> down(silu(gate(x)) · up(x)), (B, T, D).  SwiGLU, Shazeer, 2020."""

    def __init__(self, config: ModelConfig, reduce: Reduce = identity):
        super().__init__()
        D, width, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(D, width, bias=bias)
        self.up_proj = nn.Linear(D, width, bias=bias)
        self.down_proj = nn.Linear(width, D, bias=bias)
        self.reduce = reduce

    def forward(self, x: Tensor) -> Tensor:
        return self.reduce(self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x)))
