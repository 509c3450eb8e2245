"""Grouped-query attention: H query heads share K key-value heads.  Ainslie et al., 2023.

Shapes: B batch, T new tokens, S tokens seen, D width, H query heads, K kv heads, E head size.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from minillm.config import ModelConfig
from minillm.model.layers import Reduce, RMSNorm, identity, rotate


class Attention(nn.Module):
    """One layer's attention.  It owns weights; the past belongs to the `kv` it is handed.

    `forward(x (B, T, D), rope, kv, slots)` returns (B, T, D).  With `kv=None` the T tokens are
    the whole text and each sees itself and those before it: that is how training runs.
    """

    def __init__(self, config: ModelConfig, layer: int, reduce: Reduce = identity):
        super().__init__()
        D, E = config.hidden_size, config.head_dim
        H, K = config.num_attention_heads, config.num_key_value_heads
        self.layer, self.head_dim = layer, E
        self.q_proj = nn.Linear(D, H * E, bias=config.qkv_bias)
        self.k_proj = nn.Linear(D, K * E, bias=config.qkv_bias)
        self.v_proj = nn.Linear(D, K * E, bias=config.qkv_bias)
        self.o_proj = nn.Linear(H * E, D, bias=config.attention_out_bias)
        self.q_norm = RMSNorm(E, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(E, config.rms_norm_eps) if config.qk_norm else None
        self.reduce = reduce

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], kv=None, slots=None) -> Tensor:
        B, T, _ = x.shape
        heads = (B, T, -1, self.head_dim)
        q = self.q_proj(x).view(heads)  # (B, T, H, E)
        k = self.k_proj(x).view(heads)  # (B, T, K, E)
        v = self.v_proj(x).view(heads)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, *rope), rotate(k, *rope)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # (B, heads, T, E)
        if kv is not None:
            k, v = kv.update(self.layer, k, v, slots)  # (B, K, S, E): the past, then these
        out = attend(q, k, v, None if slots is None else slots.mask)
        return self.reduce(self.o_proj(out.transpose(1, 2).reshape(B, T, -1)))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q kᵀ / √E) v for q (B, H, T, E) and k, v (B, K, S, E) -> (B, H, T, E).

    `mask` (B, 1, T, S) is True where a query may look.  None: one query sees all S; T > 1
    queries see their own and earlier tokens, and then S must be T.
    """
    B, H, T, E = q.shape
    assert mask is not None or T in (1, k.shape[2]), (q.shape, k.shape)
    if T == 1:
        # The heads of a group ask as if they were T tokens of one head: k and v are read once.
        out = F.scaled_dot_product_attention(q.view(B, k.shape[1], -1, E), k, v, mask)
        return out.view(B, H, T, E)
    causal = mask is None
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=True)
