"""The shapes of a few real models, each as the config.json that it comes with."""

from __future__ import annotations

from typing import Any

_LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
          "torch_dtype": "bfloat16", "attention_bias": False, "mlp_bias": False,
          "rms_norm_eps": 1e-5}  # fmt: skip
_SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
          "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings",
          "rope_theta", "tie_word_embeddings")  # fmt: skip


def _llama(*sizes: float, stretch: float | None = None) -> dict[str, Any]:
    """The config.json of a Llama in bfloat16; `stretch` is the factor of Llama 3's RoPE."""
    scaling = {"rope_type": "llama3", "factor": stretch, "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # fmt: skip
    more = {"rope_scaling": scaling} if stretch else {}
    return _LLAMA | dict(zip(_SIZES, sizes, strict=True)) | more


SHAPES = {
    "135m": _llama(49152, 576, 1536, 30, 9, 3, 64, 8192, 1e5, True),  # SmolLM2-135M
    "360m": _llama(49152, 960, 2560, 32, 15, 5, 64, 8192, 1e5, True),  # SmolLM2-360M
    # Llama-3.2-1B and Llama-3.1-8B
    "1b": _llama(128256, 2048, 8192, 16, 32, 8, 64, 131072, 5e5, True, stretch=32.0),
    "8b": _llama(128256, 4096, 14336, 32, 32, 8, 128, 131072, 5e5, False, stretch=8.0),
}
"""Name to config.json."""
