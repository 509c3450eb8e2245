"""What one forward pass computes and reads, operator by operator.

Letters: D width, I inner width of the FFN, L layers, H query heads, K kv heads, E head size,
V vocabulary, ΣT tokens of the pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minillm.config import ModelConfig
from minillm.predict.sizes import dtype_bytes, kv_bytes_per_token, vectors


@dataclass(frozen=True)
class Operator:
    """One operator of a pass, all layers together.

    flops: a multiplication and an addition count as two. bytes: read from HBM, each once; what
    is written, and activations, are small beside them and left out.
    """

    name: str
    flops: int
    bytes: int

    @property
    def intensity(self) -> float:
        """FLOPs for each byte: the place on a roofline."""
        return self.flops / self.bytes


def operators(
    config: ModelConfig, starts: Sequence[int], counts: Sequence[int], *,
    wanted: int | None = None, dtype: object = None, kv_dtype: object = None,
) -> list[Operator]:  # fmt: skip
    """The operators of one pass over requests packed one after the other.

    starts: tokens of each request that are in the KV cache already; counts: those that run now.
    wanted: rows of logits, by default one a request. dtype, kv_dtype: of weights and KV cache, by
    default the checkpoint's.

    A product with a weight (N, K) takes 2 · N · K FLOPs a token and reads N · K numbers once, for
    however many tokens. Attention takes 4 · E FLOPs for each query head and token seen (q·k, then
    the weighted sum of v), and reads a request's keys and values once. The embedding is looked up,
    a row a token, which is left out; the head is read whole.
    Source: Kaplan et al., 2020, table 1; with causal attention, grouped heads and SwiGLU.

    >>> [op.name for op in operators(ModelConfig.from_pretrained("data/town"), [9], [1])]
    ['qkv', 'attention', 'o', 'gate and up', 'down', 'norms', 'head']
    """
    D, I, L = config.hidden_size, config.intermediate_size, config.num_hidden_layers  # noqa: E741
    H, K, E = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    size, tokens = dtype_bytes(dtype or config.dtype), sum(counts)
    rows = len(counts) if wanted is None else wanted

    def product(name: str, numbers: int, through: int) -> Operator:
        return Operator(name, 2 * through * numbers, size * numbers)

    spans = list(zip(starts, counts, strict=True))
    seen = sum(n * start + n * (n + 1) // 2 for start, n in spans)  # pairs of query and key
    cache = kv_bytes_per_token(config, kv_dtype) * sum(start + n for start, n in spans)
    return [
        product("qkv", L * D * (H + 2 * K) * E, tokens),
        Operator("attention", 4 * L * H * E * seen, cache),
        product("o", L * H * E * D, tokens),
        product("gate and up", L * D * 2 * I, tokens),
        product("down", L * I * D, tokens),
        product("norms", L * vectors(config) + D, tokens),
        product("head", config.vocab_size * D, rows),
    ]
