"""Settings: what a model is (ModelConfig), how the engine runs it, how words are chosen.

Every setting is checked when it is made and frozen from then on. `ModelConfig.from_pretrained`
reads the `config.json` of a checkpoint; `minillm.hf_config` knows how the families differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short  # a number may have thousands of digits
from typing import Any

from minillm.errors import ConfigError, format_size, parse_size
from minillm.hf_config import model_fields, read_json

__all__ = [
    "DTYPES", "EngineConfig", "ModelConfig", "RopeScaling", "SamplingParams", "format_size",
    "parse_size",
]  # fmt: skip

DTYPES = ("float32", "bfloat16", "float16")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    small = _is_int(value) and abs(value) < 2**63  # torch takes no larger one
    return small or (isinstance(value, float) and math.isfinite(value))


# A rule is what a value must satisfy, and how the error message says it.
_Rule = tuple[Callable[[Any], bool], str]
_COUNT: _Rule = (lambda v: _is_int(v) and v > 0, "an int > 0")
_POSITIVE: _Rule = (lambda v: _is_number(v) and v > 0, "a number > 0")
_FLAG: _Rule = (lambda v: isinstance(v, bool), "true or false")


def _up_to(most: int, *others: None) -> _Rule:
    wanted = f"an int from 1 to {most:,}" + ", or None" * len(others)
    return lambda v: v in others or (_is_int(v) and 0 < v <= most), wanted


_BYTES_OR_NONE: _Rule = (
    lambda v: v is None or (parse_size(v) > 0 if isinstance(v, str) else _is_int(v) and v > 0),
    'bytes, as a number or as in "32 MiB", or None',
)

# Far above every model there is, and far below what only to describe takes minutes and memory.
_SIZE, _SIZE_OR_NONE = _up_to(2**31), _up_to(2**31, None)


def _one_of(*values: str) -> _Rule:
    return lambda v: v in values, f"one of {', '.join(values)}"


def _check(settings: object, **rules: _Rule) -> None:
    """Hold each named attribute of `settings` against its rule. Raises ConfigError."""
    for name, (holds, wanted) in rules.items():
        value = getattr(settings, name)
        if not holds(value):
            raise ConfigError(f"wanted {name} to be {wanted}, found {short(value)}; correct it")


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
        _check(
            self, factor=(lambda v: _is_number(v) and v >= 1, "a number >= 1"),
            low_freq_factor=_POSITIVE, high_freq_factor=_POSITIVE,
            original_max_position_embeddings=_SIZE,
        )  # fmt: skip
        low = self.low_freq_factor
        _check(self, high_freq_factor=(lambda v: v > low, f"above low_freq_factor = {low}"))


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
        _check(
            self, vocab_size=_SIZE, hidden_size=_SIZE, intermediate_size=_SIZE,
            num_hidden_layers=_up_to(2000), num_attention_heads=_SIZE,
            num_key_value_heads=_SIZE_OR_NONE, head_dim=_up_to(2**16, None),
            max_position_embeddings=_SIZE, rms_norm_eps=_POSITIVE, rope_theta=_POSITIVE,
            tie_word_embeddings=_FLAG, qkv_bias=_FLAG, attention_out_bias=_FLAG, mlp_bias=_FLAG,
            qk_norm=_FLAG, sliding_window=_SIZE_OR_NONE, dtype=_one_of(*DTYPES),
        )  # fmt: skip
        heads, vocab = self.num_attention_heads, self.vocab_size
        if self.num_key_value_heads is None:
            object.__setattr__(self, "num_key_value_heads", heads)
        if self.head_dim is None:
            multiple = f"a multiple of num_attention_heads = {heads}, or head_dim given"
            _check(self, hidden_size=(lambda v: v % heads == 0, multiple))
            object.__setattr__(self, "head_dim", self.hidden_size // heads)
        _check(
            self,
            num_key_value_heads=(lambda v: heads % v == 0, f"a divisor of {heads} query heads"),
            head_dim=(lambda v: v in range(2, 2**16 + 1, 2), "even, for RoPE, and at most 65,536"),
        )
        widest = max(vocab, self.intermediate_size, heads * self.head_dim)
        most = 2**48 // (widest * self.num_hidden_layers)  # matrices of a petabyte
        _check(self, hidden_size=(lambda v: v <= most, f"at most {most:,}, the rest so large"))
        if self.sliding_window is not None:
            context = min(self.max_position_embeddings, self.sliding_window)
            object.__setattr__(self, "max_position_embeddings", context)
        known = f"below vocab_size = {vocab}"
        is_token = lambda v: _is_int(v) and 0 <= v < vocab  # noqa: E731
        _check(
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


@dataclass(frozen=True)
class EngineConfig:
    """How the engine runs a model.

    dtype: of the weights and the KV cache in memory; "auto" takes the checkpoint's.
    max_context: tokens of prompt and answer together; None takes the model's.
    max_batch_tokens: tokens that one forward pass takes, of all requests together: longer prompts
    are read in chunks, which bounds activation memory and how long others wait.
    max_running: requests that run at once; the others wait.
    kv: "paged", or "contiguous": a block for each request, as long as the context.
    page_size: tokens of a page of the KV cache.
    kv_hbm: HBM for the KV cache, such as "32 MiB"; None takes what the requests can need.
    reader: how weights are read from SSD: "read" (through the page cache), "mmap" or "direct"
    (past it); see `minillm.load.readers`.
    weights: "resident", all of them in HBM, or "stream": each layer is brought to HBM when its
    turn comes, so that a model larger than HBM runs.
    stream_from: where streamed layers wait: "dram", "ssd", or "auto": in DRAM if they fit.
    """

    dtype: str = "auto"
    max_context: int | None = None
    max_batch_tokens: int = 512
    max_running: int = 64
    kv: str = "paged"
    page_size: int = 16
    kv_hbm: int | str | None = None
    reader: str = "read"
    weights: str = "resident"
    stream_from: str = "auto"

    def __post_init__(self) -> None:
        _check(
            self, dtype=_one_of("auto", *DTYPES), max_context=_SIZE_OR_NONE,
            max_batch_tokens=_COUNT, max_running=_COUNT, kv=_one_of("paged", "contiguous"),
            page_size=_SIZE, kv_hbm=_BYTES_OR_NONE, reader=_one_of("read", "mmap", "direct"),
            weights=_one_of("resident", "stream"), stream_from=_one_of("auto", "dram", "ssd"),
        )  # fmt: skip


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen, and when to stop.

    temperature: 0 always takes the most likely token (greedy); 1 samples as the model says.
    top_k, top_p, min_p: keep the k likeliest tokens; the likeliest that together reach p; those
    at least min_p times as likely as the likeliest. 0, 1.0 and 0.0 switch them off.
    seed: of this request's own random generator; None draws a fresh one.
    stop: a text, or several, before which the answer ends. ignore_eos: go on to max_tokens.

    >>> SamplingParams(stop="\\n").stop
    ('\\n',)
    """

    max_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.stop, (str, list)):
            stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
            object.__setattr__(self, "stop", stop)
        _check(
            self,
            max_tokens=_COUNT,
            temperature=(lambda v: _is_number(v) and v >= 0, "a number >= 0"),
            top_k=(lambda v: _is_int(v) and v >= 0, "an int >= 0"),
            top_p=(lambda v: _is_number(v) and 0 < v <= 1, "a number in (0, 1]"),
            min_p=(lambda v: _is_number(v) and 0 <= v <= 1, "a number in [0, 1]"),
            seed=(lambda v: v is None or _is_int(v), "an int, or None"),
            stop=(_are_texts, "texts that are not empty"),
            ignore_eos=_FLAG,
        )


def _are_texts(stop: object) -> bool:
    return isinstance(stop, tuple) and all(isinstance(text, str) and text for text in stop)
