"""Grouped-query attention: H query heads share K key-value heads.  Ainslie et al., 2023.

The past is a function put on from outside: a layer computes q, k and v of its new tokens, and
`attend` answers with what they see. By default that is plain causal attention, as in training;
with a KV cache it is a `Plan` of `minillm.kv`.

Shapes: ΣT packed tokens of all sequences, D width, H query heads, K kv heads, E head size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from minillm.config import ModelConfig
from minillm.model.layers import Linear, RMSNorm, rotate, together

# (layer, q (ΣT, H, E), k (ΣT, K, E), v (ΣT, K, E)) -> what each query sees, (ΣT, H, E).
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class Attention(nn.Module):
    """One rank's attention, of H_r query and K_r kv heads.

    `forward(x (ΣT, D), turns (ΣT, 2, E), attend)` returns its part of (ΣT, D): neither summed
    over ranks nor with o's bias in it.
    """

    def __init__(self, config: ModelConfig, layer: int):
        super().__init__()
        D, E = config.hidden_size, config.head_dim
        H, K = config.num_attention_heads, config.num_key_value_heads
        self.layer, self.head_dim = layer, E
        self.q_proj = Linear(D, H * E, config.qkv_bias)
        self.k_proj = Linear(D, K * E, config.qkv_bias)
        self.v_proj = Linear(D, K * E, config.qkv_bias)
        self.o_proj = Linear(H * E, D, config.attention_out_bias, deferred=True)
        self.q_norm = RMSNorm(E, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(E, config.rms_norm_eps) if config.qk_norm else None

    def forward(self, x: Tensor, turns: Tensor, attend: Attend) -> Tensor:
        heads = together(x, self.q_proj, self.k_proj, self.v_proj).unflatten(1, (-1, self.head_dim))
        K = self.k_proj.weight.shape[0] // self.head_dim  # K_r; before them are H_r of q
        qk, v = heads[:, :-K], heads[:, -K:]
        if self.q_norm is not None:
            qk = torch.cat((self.q_norm(qk[:, :-K]), self.k_norm(qk[:, -K:])), 1)
        qk = rotate(qk, turns)
        seen = attend(self.layer, qk[:, :-K], qk[:, -K:], v)  # (ΣT, H_r, E)
        return self.o_proj(seen.flatten(1))


def causal(layer: int, q: Tensor, k: Tensor, v: Tensor, rows: int = 1) -> Tensor:
    """The default `attend`: the ΣT tokens are `rows` whole texts of equal length, one by one."""
    q, k, v = (t.unflatten(0, (rows, -1)).transpose(1, 2) for t in (q, k, v))
    out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    return out.transpose(1, 2).flatten(0, 1)
