"""How much there is of a model: parameters, bytes of weights, bytes of KV cache.

Letters: D width, I inner width of the FFN, L layers, H query heads, K kv heads, E head size,
V vocabulary.
"""

from __future__ import annotations

from minillm.config import ModelConfig
from minillm.errors import ConfigError

_DTYPE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


def parameters(config: ModelConfig) -> int:
    """How many numbers the model learned; an embedding that is also the output counts once.

    >>> parameters(ModelConfig.from_pretrained("data/town"))
    6065408
    """
    width = config.hidden_size  # D
    layers = config.num_hidden_layers * (_matrices(config) + vectors(config))
    embedding = config.vocab_size * width * (1 if config.tie_word_embeddings else 2)
    return embedding + layers + width  # the last norm


def _matrices(config: ModelConfig) -> int:
    """Weights of one layer's matrices: q, k, v, o and the three of the FFN. Ranks share them."""
    queries = config.num_attention_heads * config.head_dim  # H · E
    keys = config.num_key_value_heads * config.head_dim  # K · E
    attention = config.hidden_size * (queries + keys + keys + queries)
    return attention + 3 * config.hidden_size * config.intermediate_size


def vectors(config: ModelConfig) -> int:
    """Weights of one layer's norms and biases."""
    width, inner = config.hidden_size, config.intermediate_size
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    norms = 2 * width + (2 * config.head_dim if config.qk_norm else 0)
    biases = heads * config.head_dim if config.qkv_bias else 0
    biases += width if config.attention_out_bias else 0
    return norms + biases + (2 * inner + width if config.mlp_bias else 0)


def dtype_bytes(dtype: object) -> int:
    """Bytes of one element; dtype is a name, "bfloat16", or torch's. ConfigError if unknown."""
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPE_BYTES:
        known = ", ".join(_DTYPE_BYTES)
        raise ConfigError(f"wanted a dtype of {known}, found {dtype!r}; take one of these")
    return _DTYPE_BYTES[name]


def weight_bytes(config: ModelConfig, dtype: object = None) -> int:
    """Bytes of all weights as `dtype`, by default the checkpoint's; also what decode reads a step.

    >>> weight_bytes(ModelConfig.from_pretrained("data/town"), "bfloat16")
    12130816
    """
    return parameters(config) * dtype_bytes(dtype or config.dtype)


def kv_bytes_per_token(config: ModelConfig, dtype: object = None) -> int:
    """Bytes of KV cache for one token of one request: a key and a value for each kv head."""
    heads = config.num_hidden_layers * config.num_key_value_heads
    return 2 * heads * config.head_dim * dtype_bytes(dtype or config.dtype)


def at_least_one(**counts: int) -> None:
    """ConfigError for a count, given by its name, that is no int above zero."""
    for name, value in counts.items():
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"wanted {name} to be an int > 0, found {value!r}; correct it")
