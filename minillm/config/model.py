"""What a model is: its shape, under the names that config.json uses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.config import rules
from minillm.config.huggingface import model_fields, read_json


@dataclass(frozen=True)
class RopeScaling:
    """How Llama 3 stretches RoPE to contexts longer than it was first trained on (type llama3).

    Wavelengths longer than original_max_position_embeddings / low_freq_factor are divided by
    `factor`, those shorter than original_max_position_embeddings / high_freq_factor are kept,
    and those in between are blended.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        rules.check(
            self, factor=(lambda v: rules.is_number(v) and v >= 1, "a number >= 1"),
            low_freq_factor=rules.POSITIVE, high_freq_factor=rules.POSITIVE,
            original_max_position_embeddings=rules.SIZE,
        )  # fmt: skip
        low = self.low_freq_factor
        rules.check(self, high_freq_factor=(lambda v: v > low, f"above low_freq_factor = {low}"))


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a Llama-family model, under the names that config.json uses.

    >>> config = ModelConfig(vocab_size=4096, hidden_size=320, intermediate_size=864,
    ...                      num_hidden_layers=6, num_attention_heads=5, num_key_value_heads=1)
    >>> config.head_dim
    64

    Left out (None), num_key_value_heads is num_attention_heads and head_dim is
    hidden_size / num_attention_heads; after construction both are ints. Attributes that
    config.json leaves to the architecture are spelled out: `qkv_bias` (a bias on q, k and v),
    `attention_out_bias`, `mlp_bias`, `qk_norm` (RMSNorm over each head of q and k).

    sliding_window: tokens that attention looks back on; it caps max_position_embeddings. Up to
    that length a windowed model and a full one see the same tokens, so results are exact, and
    what is longer the engine refuses.
    dtype: of the weights on disk. eos_token_ids: any of them ends a text.
    Raises ConfigError for a value out of range.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int = None  # type: ignore[assignment]  # filled in, see above
    head_dim: int = None  # type: ignore[assignment]
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    dtype: str = "float32"
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    model_type: str = "llama"

    def __post_init__(self) -> None:
        size, positive, flag = rules.SIZE, rules.POSITIVE, rules.FLAG
        rules.check(
            self, vocab_size=size, hidden_size=size, intermediate_size=size,
            num_hidden_layers=rules.up_to(2000), num_attention_heads=size,
            num_key_value_heads=rules.SIZE_OR_NONE, head_dim=rules.up_to(2**16, None),
            max_position_embeddings=size, rms_norm_eps=positive, rope_theta=positive,
            tie_word_embeddings=flag, qkv_bias=flag, attention_out_bias=flag, mlp_bias=flag,
            qk_norm=flag, sliding_window=rules.SIZE_OR_NONE, dtype=rules.one_of(*rules.DTYPES),
        )  # fmt: skip
        heads, vocab = self.num_attention_heads, self.vocab_size
        if self.num_key_value_heads is None:
            object.__setattr__(self, "num_key_value_heads", heads)
        if self.head_dim is None:
            multiple = f"a multiple of num_attention_heads = {heads}, or head_dim given"
            rules.check(self, hidden_size=(lambda v: v % heads == 0, multiple))
            object.__setattr__(self, "head_dim", self.hidden_size // heads)
        rules.check(
            self,
            num_key_value_heads=(lambda v: heads % v == 0, f"a divisor of {heads} query heads"),
            head_dim=(lambda v: v in range(2, 2**16 + 1, 2), "even, for RoPE, and at most 65,536"),
        )
        widest = max(vocab, self.intermediate_size, heads * self.head_dim)
        most = 2**48 // (widest * self.num_hidden_layers)  # matrices of a petabyte
        rules.check(self, hidden_size=(lambda v: v <= most, f"at most {most:,}, the rest so large"))
        if self.sliding_window is not None:
            context = min(self.max_position_embeddings, self.sliding_window)
            object.__setattr__(self, "max_position_embeddings", context)
        known = f"below vocab_size = {vocab}"
        is_token = lambda v: rules.is_int(v) and 0 <= v < vocab  # noqa: E731
        rules.check(
            self,
            bos_token_id=(lambda v: v is None or is_token(v), f"a token id {known}, or None"),
            eos_token_ids=(lambda v: all(map(is_token, v)), f"token ids {known}"),
        )

    @classmethod
    def from_dict(
        cls, settings: dict[str, Any], generation: dict[str, Any] | None = None
    ) -> ModelConfig:
        """Read the contents of a config.json, and of a generation_config.json where there is one.

        Raises ConfigError, by name, for what is not implemented.
        """
        found = model_fields(settings, generation or {})
        if found["rope_scaling"] is not None:
            found["rope_scaling"] = RopeScaling(**found["rope_scaling"])
        return cls(**found)

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> ModelConfig:
        """Read `directory`/config.json, and generation_config.json where there is one.

        Raises CheckpointError for a missing or unreadable file, ConfigError as `from_dict`.
        """
        settings = read_json(Path(directory) / "config.json", required=True)
        generation = read_json(Path(directory) / "generation_config.json", required=False)
        return cls.from_dict(settings, generation)
