"""How Hugging Face's config.json spells a Llama-family model, and what each family leaves unsaid.

Whatever is not implemented is refused by name. A key that is silently ignored would show up as
a model that talks nonsense, hours later.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from minillm import files
from minillm.errors import CheckpointError, ConfigError

ARCHITECTURES = {  # the class named in config.json, and its model_type
    "LlamaForCausalLM": "llama",
    "LLaMAForCausalLM": "llama",  # as the first conversions spelled it
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}

# What a family assumes where config.json is silent, as transformers 5.23 does.
_LLAMA = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": None,
    "head_dim": None, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "sliding_window": None,
}  # fmt: skip
_QWEN2 = _LLAMA | {
    "vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32,
    "max_position_embeddings": 32768, "bos_token_id": None, "eos_token_id": None,
    "sliding_window": 4096,
}  # fmt: skip
_DEFAULTS = {
    "llama": _LLAMA,
    "mistral": _LLAMA | {"intermediate_size": 14336, "num_key_value_heads": 8,
                         "max_position_embeddings": 131072, "sliding_window": 4096},
    "qwen2": _QWEN2,
    "qwen3": _QWEN2 | {"head_dim": 128},
}  # fmt: skip

# Keys that this file reads.
_READ = frozenset(_LLAMA) | {
    "architectures", "model_type", "torch_dtype", "dtype", "attention_bias", "mlp_bias",
    "rope_theta", "rope_scaling", "rope_parameters", "use_sliding_window", "max_window_layers",
    "layer_types",
}  # fmt: skip

# Keys that cannot change what a forward pass yields: notes, training, other programs' sampling,
# and what is only another order of the same sums (pretraining_tp).
_HARMLESS = frozenset(
    """
    transformers_version use_cache initializer_range attention_dropout hidden_dropout
    pad_token_id sep_token_id decoder_start_token_id tokenizer_class id2label label2id num_labels
    problem_type task_specific_params finetuning_task output_attentions output_hidden_states
    return_dict return_dict_in_generate torchscript tf_legacy_loss use_bfloat16 is_llama_config
    max_sequence_length transformers.js_config unsloth_fixed unsloth_version name_or_path
    attn_implementation pretraining_tp
    do_sample temperature top_k top_p typical_p epsilon_cutoff eta_cutoff repetition_penalty
    encoder_repetition_penalty max_length min_length num_beams num_beam_groups num_return_sequences
    early_stopping length_penalty diversity_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size exponential_decay_length_penalty bad_words_ids suppress_tokens
    begin_suppress_tokens forced_bos_token_id forced_eos_token_id remove_invalid_values
    output_scores
    """.split()
)

# Keys that are harmless at these values; at any other they would change the result.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),  # two names of one function
    "partial_rotary_factor": (1,),
    "rope_interleaved": (False,),
    "use_mrope": (False,),
    "is_decoder": (False, True),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,),
    "chunk_size_feed_forward": (0,),
    "pruned_heads": ({},),
    "prefix": ("",),
}

_MAX_JSON = 4 * 2**20  # bytes; a label for each of many classes makes the largest files there are
_LLAMA3_ROPE = {
    "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
}  # fmt: skip


def read_json(path: Path, required: bool, most: int = _MAX_JSON) -> dict[str, Any]:
    """The JSON object in `path`; {} if it is missing and not required. Raises CheckpointError.

    most: bytes that it may have."""
    try:
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe would have us wait for ever
            raise ValueError("a folder or a device")
        if os.path.getsize(path) > most:
            raise ValueError(f"more than {most:,} bytes")
        content = files.read_json(path)
    except FileNotFoundError:
        if os.path.islink(path):
            do = f"wanted the file {path}, found a link to {os.readlink(path)}, which is not there"
            raise CheckpointError(f"{do}; copy or download it again") from None
        if not required:
            return {}
        raise CheckpointError(
            f"wanted {path.name} in {path.parent}, found no such file; "
            "point to a directory in Hugging Face layout"
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"wanted JSON in {path}, found what cannot be read ({error}); fetch the file again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"wanted a JSON object in {path}, found {type(content).__name__}; fetch the file again"
        )
    return content


def model_fields(settings: dict[str, Any], generation: dict[str, Any]) -> dict[str, Any]:
    """The arguments of ModelConfig that a config.json and a generation_config.json amount to."""
    family = _family(settings)
    _refuse_unknown(settings)
    get = (_DEFAULTS[family] | settings).get
    theta, scaling = _rope(settings, get("max_position_embeddings"))
    vocabulary, eos = get("vocab_size"), generation.get("eos_token_id")
    eos = get("eos_token_id") if eos is None else eos
    ends = [_known(token, vocabulary) for token in (eos if isinstance(eos, list) else [eos])]
    # What a family's code does not read changes nothing. If the files hold a bias all the same, the
    # loader finds a tensor too many.
    bias = family in ("llama", "qwen3") and (settings.get("attention_bias") or False)
    return {name: get(name) for name in _LLAMA if name != "eos_token_id"} | {
        "model_type": family,
        "sliding_window": _window(settings, family, get("sliding_window")),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "qkv_bias": True if family == "qwen2" else bias,
        "attention_out_bias": bias,
        "mlp_bias": family == "llama" and (settings.get("mlp_bias") or False),
        "qk_norm": family == "qwen3",
        "dtype": _dtype(settings),
        "bos_token_id": _known(get("bos_token_id"), vocabulary),
        "eos_token_ids": tuple(token for token in ends if token is not None),
    }


def _family(settings: dict[str, Any]) -> str:
    named, kind = settings.get("architectures") or [], settings.get("model_type")
    if named:
        family = next((f for name, f in ARCHITECTURES.items() if named == [name]), None)
    else:
        family = kind if kind in list(_DEFAULTS) else None
    if family is None or kind not in (None, family):
        found = f"architectures {named} with model_type {kind!r}"
        raise ConfigError(
            f"wanted one of the architectures {', '.join(ARCHITECTURES)}, found {found}; "
            "take a model of one of these families"
        )
    return family


def _refuse_unknown(settings: dict[str, Any]) -> None:
    """A key that is null says nothing, whatever its name."""
    for key, value in settings.items():
        known = key in _READ or key in _HARMLESS or key.startswith("_")
        if value is None or known or value in _NEUTRAL.get(key, ()):
            continue
        if key in _NEUTRAL:
            wanted = " or ".join(json.dumps(v) for v in _NEUTRAL[key])
            _refuse(f"{key} {wanted} in config.json", repr(value))
        _refuse("only settings that are known here", f"{key} = {value!r}")


def _rope(settings: dict[str, Any], context: int) -> tuple[float, dict | None]:
    """(rope_theta, fields of RopeScaling or None), from either spelling. As in transformers, what
    stands inside rope_scaling or rope_parameters goes before a rope_theta beside them."""
    rope = settings.get("rope_scaling") or settings.get("rope_parameters") or {}
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        _refuse("one set of RoPE settings for all layers", repr(rope))
    rope = {key: value for key, value in rope.items() if value is not None}
    kind = rope.pop("type", "default")  # the older name
    kind = rope.pop("rope_type", kind)
    theta = rope.pop("rope_theta", settings.get("rope_theta"))
    theta = 10_000.0 if theta is None else theta
    if rope.pop("partial_rotary_factor", 1) != 1:
        _refuse("RoPE over the whole head", "a partial_rotary_factor")
    if kind == "llama3":
        rope.setdefault("original_max_position_embeddings", context)
        if set(rope) != _LLAMA3_ROPE:
            _refuse(f"llama3 RoPE scaling with {sorted(_LLAMA3_ROPE)}", repr(sorted(rope)))
        return theta, rope
    if not _stretches(kind, rope):
        return theta, None
    _refuse('RoPE scaling of type "default" or "llama3"', f"{kind!r} {rope}")


def _stretches(kind: Any, rope: dict[str, Any]) -> bool:
    """Whether these settings change an angle within the model's context."""
    factor = rope.get("factor")
    if rope.keys() - {"factor", "original_max_position_embeddings"}:
        return True
    if kind == "linear":
        return factor != 1
    if kind == "dynamic":  # begins to stretch behind max_position_embeddings, where the engine ends
        return not isinstance(factor, int | float)
    return kind != "default" or factor not in (None, 1)


def _window(settings: dict[str, Any], family: str, window: Any) -> int | None:
    """The sliding window, or None where no layer uses one (and a llama's code knows of none)."""
    kinds = settings.get("layer_types")
    full_or_sliding = (None, "full_attention", "sliding_attention")
    if not isinstance(kinds, list | None) or any(k not in full_or_sliding for k in kinds or ()):
        _refuse("layers of full or sliding attention", f"layer_types {kinds}")
    if family == "llama":
        return None
    if family in ("qwen2", "qwen3"):
        if not settings.get("use_sliding_window") or (kinds and "sliding_attention" not in kinds):
            return None
        layers = settings.get("num_hidden_layers", 32)
        first = settings.get("max_window_layers", 28)  # the layers before it see everything
        if not kinds and isinstance(first, int) and isinstance(layers, int) and first >= layers:
            return None
    return window


def _dtype(settings: dict[str, Any]) -> str:
    """"float32" where neither spelling is there: torch's own default."""
    dtype = settings.get("dtype") or settings.get("torch_dtype") or "float32"
    return dtype.removeprefix("torch.") if isinstance(dtype, str) else dtype


def _known(token: Any, vocabulary: Any) -> Any:
    """The id, or None if it is that of no token of the model: then it is never chosen."""
    outside = isinstance(token, int) and isinstance(vocabulary, int)
    return None if outside and not 0 <= token < vocabulary else token


def _refuse(wanted: str, found: str) -> None:
    raise ConfigError(
        f"wanted {wanted}, found {found}, which is not implemented; take another model"
    )
