"""minillm/config: model.py and huggingface.py: what a config.json means, and what is refused."""

import json
import os
import random
import shutil
from dataclasses import replace

import pytest
import torch
import transformers
from conftest import ours, random_ids, reference

from minillm.config import EngineConfig, ModelConfig, RopeScaling, SamplingParams
from minillm.errors import CheckpointError, ConfigError
from minillm.units import format_size, parse_size

# What the hubs hold, key for key, apart from notes that say nothing about the model.
LLAMA_3_2_1B = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 128000, "eos_token_id": 128001, "head_dim": 64, "hidden_act": "silu",
    "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 8192,
    "max_position_embeddings": 131072, "mlp_bias": False, "model_type": "llama",
    "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
    "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers_version": "4.45.0",
    "use_cache": True, "vocab_size": 128256,
}  # fmt: skip
LLAMA_2_7B = {
    "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
    "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 11008, "max_position_embeddings": 4096, "model_type": "llama",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None,
    "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.31.0",
    "use_cache": True, "vocab_size": 32000, "_name_or_path": "a/b",
}  # fmt: skip
MISTRAL_7B_V01 = {
    "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
    "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 14336, "max_position_embeddings": 32768, "model_type": "mistral",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True,
    "vocab_size": 32000,
}  # fmt: skip
MISTRAL_7B_V03 = MISTRAL_7B_V01 | {
    "rope_theta": 1000000.0, "sliding_window": None, "vocab_size": 32768, "head_dim": 128,
}  # fmt: skip
QWEN2_5_0_5B = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
    "eos_token_id": 151643, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
    "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24,
    "model_type": "qwen2", "num_attention_heads": 14, "num_hidden_layers": 24,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    "transformers_version": "4.40.1", "use_cache": True, "use_mrope": False,
    "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
QWEN3_0_6B = {
    "architectures": ["Qwen3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 1024, "initializer_range": 0.02, "intermediate_size": 3072,
    "max_position_embeddings": 40960, "max_window_layers": 28, "model_type": "qwen3",
    "num_attention_heads": 16, "num_hidden_layers": 28, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000, "sliding_window": None,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers_version": "4.51.0",
    "use_cache": True, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
SMOLLM2_135M = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576,
    "initializer_range": 0.041666666666666664, "intermediate_size": 1536,
    "is_llama_config": True, "max_position_embeddings": 8192, "mlp_bias": False,
    "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30,
    "num_key_value_heads": 3, "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_interleaved": False, "rope_scaling": None, "rope_theta": 100000,
    "tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers_version": "4.42.3",
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}, "use_cache": True,
    "vocab_size": 49152,
}  # fmt: skip
TINYLLAMA = LLAMA_2_7B | {
    "hidden_size": 2048, "intermediate_size": 5632, "max_position_embeddings": 2048,
    "num_hidden_layers": 22, "num_key_value_heads": 4, "rope_theta": 10000.0,
    "attention_bias": False, "torch_dtype": "bfloat16",
}  # fmt: skip
HUB = {
    "llama-3.2-1b": LLAMA_3_2_1B, "llama-2-7b": LLAMA_2_7B, "mistral-7b-v0.1": MISTRAL_7B_V01,
    "mistral-7b-v0.3": MISTRAL_7B_V03, "qwen2.5-0.5b": QWEN2_5_0_5B, "qwen3-0.6b": QWEN3_0_6B,
    "smollm2-135m": SMOLLM2_135M, "tinyllama": TINYLLAMA,
}  # fmt: skip
FAMILIES = {
    "LlamaForCausalLM": transformers.LlamaConfig, "MistralForCausalLM": transformers.MistralConfig,
    "Qwen2ForCausalLM": transformers.Qwen2Config, "Qwen3ForCausalLM": transformers.Qwen3Config,
}  # fmt: skip


# What LlamaConfig().to_dict() holds in transformers 4.45 beside the keys above.
SAVED_WHOLE = {
    "add_cross_attention": False, "bad_words_ids": None, "begin_suppress_tokens": None,
    "chunk_size_feed_forward": 0, "cross_attention_hidden_size": None,
    "decoder_start_token_id": None, "diversity_penalty": 0.0, "do_sample": False,
    "early_stopping": False, "encoder_no_repeat_ngram_size": 0,
    "exponential_decay_length_penalty": None, "finetuning_task": None,
    "forced_bos_token_id": None, "forced_eos_token_id": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "is_decoder": False,
    "is_encoder_decoder": False, "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "length_penalty": 1.0,
    "max_length": 20, "min_length": 0, "no_repeat_ngram_size": 0, "num_beam_groups": 1,
    "num_beams": 1, "num_return_sequences": 1, "output_attentions": False,
    "output_hidden_states": False, "output_scores": False, "pad_token_id": None, "prefix": None,
    "problem_type": None, "pruned_heads": {}, "remove_invalid_values": False,
    "repetition_penalty": 1.0, "return_dict": True, "return_dict_in_generate": False,
    "sep_token_id": None, "suppress_tokens": None, "task_specific_params": None,
    "temperature": 1.0, "tf_legacy_loss": False, "tie_encoder_decoder": False,
    "tokenizer_class": None, "top_k": 50, "top_p": 1.0, "torchscript": False, "typical_p": 1.0,
    "use_bfloat16": False,
}  # fmt: skip
# Family, and what may stand in its config.json without a change of one logit.
NEUTRAL = {
    "saved whole": ("llama", SAVED_WHOLE),
    "other order of sums": ("llama", {"pretraining_tp": 2}),
    "first spelling": ("llama", {"architectures": ["LLaMAForCausalLM"]}),
    "ids of no token": ("llama", {"bos_token_id": 384, "eos_token_id": [384, -1]}),
    "pad of no token": ("llama", {"pad_token_id": -1}),
    "linear 1": ("llama", {"rope_scaling": {"type": "linear", "factor": 1.0}}),
    "linear 1, int": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 1}}),
    "linear 1, new": ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 1.0,
                                                    "rope_theta": 10000.0}}),
    "linear 1, mixed": ("llama", {"rope_parameters": {"type": "linear", "factor": 1.0}}),
    "newer name": ("llama", {"rope_scaling": {"rope_type": "default", "type": "linear"}}),
    "dynamic 1": ("llama", {"rope_scaling": {"type": "dynamic", "factor": 1.0}}),
    "dynamic 2.5": ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.5}}),
    "window": ("llama", {"sliding_window": 8, "use_sliding_window": True,
                         "layer_types": ["sliding_attention"] * 3}),
    "no biases": ("mistral", {"attention_bias": True, "mlp_bias": True}),
    "its biases": ("qwen2", {"attention_bias": False, "mlp_bias": True}),
    "swish": ("qwen3", {"hidden_act": "swish", "mlp_bias": True}),
}  # fmt: skip


def assert_equal_to_transformers(config: ModelConfig, settings: dict) -> None:
    theirs = FAMILIES[settings["architectures"][0]](**json.loads(json.dumps(settings)))
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                 "num_attention_heads", "num_key_value_heads", "rms_norm_eps",
                 "tie_word_embeddings", "bos_token_id"):  # fmt: skip
        assert getattr(config, name) == getattr(theirs, name), name
    width = theirs.hidden_size // theirs.num_attention_heads
    assert config.head_dim == (getattr(theirs, "head_dim", None) or width)
    rope = theirs.rope_parameters
    assert config.rope_theta == rope["rope_theta"]
    if rope["rope_type"] == "llama3":
        assert vars(config.rope_scaling).items() <= rope.items()
    else:
        assert config.rope_scaling is None
    window = theirs.sliding_window if "mistral" in config.model_type else None
    assert config.sliding_window == window
    context = min(theirs.max_position_embeddings, window or theirs.max_position_embeddings)
    assert config.max_position_embeddings == context


@pytest.mark.parametrize("name", HUB)
def test_a_hub_config_means_what_transformers_takes_it_to_mean(name):
    """Catches a wrong key, a lost RoPE setting, a head size computed where it is given."""
    assert_equal_to_transformers(ModelConfig.from_dict(HUB[name]), HUB[name])


@pytest.mark.parametrize("name", HUB)
def test_a_config_as_transformers_saves_it_today_means_the_same(name, tmp_path):
    """Catches reading only one spelling: `rope_parameters` and `dtype`, `layer_types` added."""
    theirs = FAMILIES[HUB[name]["architectures"][0]](**json.loads(json.dumps(HUB[name])))
    theirs.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert "rope_parameters" in saved and "dtype" in saved
    assert ModelConfig.from_pretrained(tmp_path) == ModelConfig.from_dict(HUB[name])


@pytest.mark.parametrize("architecture", FAMILIES)
def test_what_config_json_leaves_out_is_as_in_transformers(architecture):
    """Catches a family's default that drifted, such as the 8 kv heads of Mistral."""
    settings = {"architectures": [architecture]}
    assert_equal_to_transformers(ModelConfig.from_dict(settings), settings)


def test_each_family_has_its_biases_and_norms():
    """Catches Qwen2 without its q, k, v bias: no key in config.json speaks of it."""
    qwen2, qwen3 = ModelConfig.from_dict(QWEN2_5_0_5B), ModelConfig.from_dict(QWEN3_0_6B)
    assert (qwen2.qkv_bias, qwen2.attention_out_bias, qwen2.qk_norm) == (True, False, False)
    assert (qwen3.qkv_bias, qwen3.attention_out_bias, qwen3.qk_norm) == (False, False, True)
    llama = ModelConfig.from_dict(LLAMA_2_7B | {"attention_bias": True, "mlp_bias": True})
    assert (llama.qkv_bias, llama.attention_out_bias, llama.mlp_bias) == (True, True, True)


def test_a_window_is_kept_only_where_a_layer_uses_it():
    """Catches a context cut for Qwen, whose config names a window that it switches off."""
    assert ModelConfig.from_dict(QWEN2_5_0_5B).max_position_embeddings == 32768
    windowed = QWEN2_5_0_5B | {"use_sliding_window": True, "sliding_window": 4096}
    assert ModelConfig.from_dict(windowed).sliding_window is None  # layers 24 and up: there is none
    windowed["max_window_layers"] = 12
    assert ModelConfig.from_dict(windowed).max_position_embeddings == 4096
    assert ModelConfig.from_dict(MISTRAL_7B_V01).max_position_embeddings == 4096


def test_end_tokens_come_from_the_generation_config_first(tmp_path):
    """Catches answers that run on: Llama 3 instruct names its turn's end only there."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_2_1B))
    assert ModelConfig.from_pretrained(tmp_path).eos_token_ids == (128001,)
    generation = {"eos_token_id": [128001, 128008, 128009], "temperature": 0.6}
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert ModelConfig.from_pretrained(tmp_path).eos_token_ids == (128001, 128008, 128009)
    none = ModelConfig.from_dict({"model_type": "qwen2"})
    assert none.eos_token_ids == () and none.bos_token_id is None


@pytest.mark.parametrize("change, named", [
    ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, "GPT2LMHeadModel"),
    ({"architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe"}, "Qwen2MoeForCausalLM"),
    ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
    ({"architectures": "LlamaForCausalLM"}, "LlamaForCausalLM"),
    ({"architectures": [["LlamaForCausalLM"]]}, "architectures"),
    ({"model_type": "mistral"}, "mistral"),
    ({"model_type": ["llama"]}, "model_type"),
    ({"hidden_act": "gelu"}, "gelu"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
    ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "linear"),
    ({"rope_scaling": {"factor": 4.0}}, "factor"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
    ({"rope_scaling": {"rope_type": "default", "mrope_section": [1]}}, "mrope_section"),
    ({"rope_scaling": "llama3"}, "llama3"),
    ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}, "rope_scaling": None},
     "full_attention"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"rope_interleaved": True}, "rope_interleaved"),
    ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0, "alpha": 1000.0}}, "alpha"),
    ({"rope_scaling": {"type": "default", "rope_type": "linear", "factor": 2.0}}, "linear"),
    ({"rope_scaling": {"type": "dynamic"}}, "dynamic"),
    ({"is_encoder_decoder": True}, "is_encoder_decoder"),
    ({"prefix": "Answer: "}, "prefix"),
    ({"per_layer_config": {"0": {"hidden_size": 8}}}, "per_layer_config"),
    ({"layer_types": ["full_attention", "chunked_attention"]}, "chunked_attention"),
    ({"num_experts": 8}, "num_experts"),
    ({"logit_scale": 0.5}, "logit_scale"),
    ({"num_key_value_heads": 5}, "num_key_value_heads"),
    ({"head_dim": 63}, "head_dim"),
    ({"head_dim": None, "hidden_size": 100}, "hidden_size"),
    ({"vocab_size": 0}, "vocab_size"),
    ({"vocab_size": "many"}, "vocab_size"),
    ({"num_hidden_layers": True}, "num_hidden_layers"),
    ({"num_attention_heads": 0}, "num_attention_heads"),
    ({"max_position_embeddings": "long"}, "max_position_embeddings"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ({"rope_theta": -1}, "rope_theta"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ({"torch_dtype": "float8_e4m3fn"}, "float8_e4m3fn"),
    ({"torch_dtype": 16}, "16"),
    ({"eos_token_id": "</s>"}, "eos_token_id"),
    ({"num_hidden_layers": 10**7}, "num_hidden_layers.* 2,000, found 10000000"),
    ({"vocab_size": 2**62}, "vocab_size"),
    ({"vocab_size": 10**30}, "vocab_size"),
    ({"intermediate_size": 2**62}, "intermediate_size"),
    ({"head_dim": 2**50}, "head_dim"),
    ({"head_dim": None, "hidden_size": 2**30}, "head_dim"),
    ({"vocab_size": 2**31, "hidden_size": 2**31}, "hidden_size.* the rest so large"),
    ({"num_attention_heads": 2**31, "head_dim": 2**16}, "hidden_size.* the rest so large"),
    ({"rope_theta": 10**400}, "rope_theta"),
    ({"rms_norm_eps": 10**400}, "rms_norm_eps"),
    ({"rope_scaling": LLAMA_3_2_1B["rope_scaling"] | {"factor": 10**400}}, "factor"),
])  # fmt: skip
def test_what_is_not_implemented_is_refused_by_name(change, named):
    """Catches the worst failure of all: a model that loads, and then talks nonsense."""
    with pytest.raises(ConfigError, match=named):
        ModelConfig.from_dict(LLAMA_3_2_1B | change)


def test_a_value_of_any_kind_is_taken_or_refused_and_never_breaks_the_reader():
    """Catches a TypeError from comparing or hashing what a config.json should not hold."""
    draw = random.Random(1)
    values = [None, 0, 1, -1, 1.5, 10**30, float("nan"), True, "", "x", [], ["a"], [[1]], {},
              {"rope_type": [1]}, {"rope_type": "llama3", "factor": "x"}]  # fmt: skip
    keys = sorted({key for settings in HUB.values() for key in settings} | {"layer_types", "dtype"})
    for _ in range(3000):
        settings = dict(draw.choice(list(HUB.values())))
        for key in draw.sample(keys, 3):
            settings[key] = draw.choice(values)
        try:
            assert ModelConfig.from_dict(settings, {"eos_token_id": draw.choice(values)})
        except ConfigError as error:
            assert "wanted" in str(error) and "\n" not in str(error)


@pytest.mark.parametrize("name", NEUTRAL)
def test_what_changes_no_logit_is_taken(tiny, tmp_path, name):
    """Catches a model refused for a key that says nothing, and one that is read and should not be;
    up to the last position, where a dynamic RoPE has still to be the plain one."""
    family, change = NEUTRAL[name]
    shutil.copytree(tiny(family), tmp_path, dirs_exist_ok=True)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | change))
    ids = random_ids(1, 256)
    with torch.no_grad():
        theirs, with_it = reference(tiny(family)), reference(tmp_path)
        assert torch.equal(with_it(ids, use_cache=False).logits, theirs(ids).logits)
        expected = ours(theirs, tiny(family))(ids[0])
        assert torch.equal(ours(with_it, tmp_path)(ids[0]), expected)


def test_a_config_saved_whole_by_transformers_4_means_the_same():
    """Catches any of its 48 further keys taken for an unknown one, which refuses the model."""
    assert ModelConfig.from_dict(LLAMA_3_2_1B | SAVED_WHOLE) == ModelConfig.from_dict(LLAMA_3_2_1B)
    null = dict.fromkeys(["quantization_config", "auto_map", "a_key_of_next_year"])
    assert ModelConfig.from_dict(LLAMA_3_2_1B | null) == ModelConfig.from_dict(LLAMA_3_2_1B)


@pytest.mark.parametrize("architecture", FAMILIES)
def test_every_key_that_transformers_knows_is_taken_at_its_default(architecture):
    """Catches a key that a new version of transformers writes into every config.json."""
    settings = json.loads(FAMILIES[architecture]().to_json_string(use_diff=False))
    config = ModelConfig.from_dict(settings | {"architectures": [architecture]})
    assert config == ModelConfig.from_dict({"architectures": [architecture]})


def test_ids_of_no_token_are_left_out():
    """Catches a model refused for an end that it can never choose, and a real end lost with it."""
    change = {"bos_token_id": 128256, "eos_token_id": [128001, 128256, -1]}
    config = ModelConfig.from_dict(LLAMA_3_2_1B | change)
    assert (config.bos_token_id, config.eos_token_ids) == (None, (128001,))
    assert ModelConfig.from_dict(LLAMA_3_2_1B, {"eos_token_id": 999999}).eos_token_ids == ()
    with pytest.raises(ConfigError, match="eos_token_id"):
        ModelConfig.from_dict(LLAMA_3_2_1B | {"eos_token_id": "</s>"})


@pytest.mark.parametrize("content", [None, "", "{", "[1]", "nul", "[" * 100_000])
def test_a_missing_or_damaged_config_file_is_a_checkpoint_error(tmp_path, content):
    """Catches a traceback of the JSON parser, or of the file system, reaching the user."""
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        ModelConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "large", "link"])
def test_a_config_that_is_no_file_or_as_large_as_a_disk_is_not_read(tmp_path, kind, name):
    """Catches a wait for ever on a pipe, and memory for a file of 1 TiB of nothing."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_2_1B))
    path = tmp_path / name
    path.unlink(missing_ok=True)
    if kind == "pipe":
        if not hasattr(os, "mkfifo"):
            pytest.skip("no pipes with names here")
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "large":
        with open(path, "wb") as file:
            file.truncate(2**40)
    else:
        path.symlink_to(tmp_path / "nowhere")
    says = {"large": "more than 4,194,304 bytes", "link": "not there"}.get(kind, "a device")
    with pytest.raises(CheckpointError, match=f"{name}.*{says}"):
        ModelConfig.from_pretrained(tmp_path)


def test_a_number_of_any_length_is_refused_in_a_short_message():
    """Catches an OverflowError, and a message of 4,000 digits."""
    for digits in (30, 400, 4000):
        with pytest.raises(ConfigError) as caught:
            ModelConfig(vocab_size=10**digits, hidden_size=64, intermediate_size=64,
                        num_hidden_layers=1, num_attention_heads=1)  # fmt: skip
        assert len(str(caught.value)) < 200


def test_a_config_can_be_typed_in_from_a_paper():
    """Catches required fields that a paper leaves out, and ints left as None."""
    config = ModelConfig(vocab_size=32000, hidden_size=4096, intermediate_size=11008,
                         num_hidden_layers=32, num_attention_heads=32)  # fmt: skip
    assert (config.num_key_value_heads, config.head_dim) == (32, 128)
    with pytest.raises(ConfigError, match="factor"):
        RopeScaling(0.5, 1.0, 4.0, 8192)


def test_sizes_are_read_in_both_systems_of_units():
    """Catches GB taken for GiB, 7 % that decide whether a model fits."""
    assert parse_size("64 MiB") == parse_size("64mib") == 64 * 2**20
    assert (parse_size("1.5 GB"), parse_size("1 GiB")) == (1_500_000_000, 2**30)
    assert (parse_size(4096), parse_size("4096"), parse_size("10 B")) == (4096, 4096, 10)
    for bad in ("", "big", "-1 GB", "1 GiBB", "1 XB", -1, True, None, 1.5, "١ GB!", "9" * 400):
        with pytest.raises(ConfigError, match="64 MiB"):
            parse_size(bad)
    assert [format_size(n) for n in (0, 1023, 1024, 64 * 2**20, 2**20 - 1, 5 * 2**50)] == [
        "0 B", "1023 B", "1.0 KiB", "64.0 MiB", "1.0 MiB", "5120.0 TiB",
    ]  # fmt: skip


@pytest.mark.parametrize("bad", [
    {"max_tokens": 0}, {"max_tokens": 1.0}, {"temperature": -0.1}, {"temperature": float("inf")},
    {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}, {"min_p": -0.1}, {"min_p": 2}, {"seed": "a"},
    {"seed": True}, {"stop": ("a", "")}, {"stop": ""}, {"stop": 3}, {"stop": None},
    {"repetition_penalty": 0}, {"repetition_penalty": "1"}, {"presence_penalty": 2.1},
    {"frequency_penalty": float("nan")}, {"logit_bias": {"a": 1}}, {"logit_bias": {-1: 1}},
    {"logit_bias": {3: 101}}, {"logit_bias": None}, {"logprobs": -1}, {"logprobs": True},
    {"logit_bias": (5,)}, {"logit_bias": ((1, 2, 3),)},
])  # fmt: skip
def test_sampling_out_of_range_is_refused(bad):
    """Catches a sampler that divides by zero or keeps no token at all."""
    with pytest.raises(ConfigError, match=next(iter(bad))):
        SamplingParams(**bad)


def test_stop_becomes_a_tuple_so_that_params_can_be_a_key():
    """Catches a stop string taken apart into its letters."""
    assert SamplingParams(stop="end").stop == SamplingParams(stop=["end"]).stop == ("end",)
    assert hash(SamplingParams(stop=["a", "b"], logit_bias={3: 1.0}))


def test_a_bias_is_kept_as_pairs_and_settings_can_be_changed_from_settings():
    """Catches settings that change with the dict they were made from, or refuse their own."""
    bias = {3: 1.0}
    params = SamplingParams(logit_bias=bias)
    bias[4] = 2.0
    assert params.logit_bias == replace(params, seed=1).logit_bias == ((3, 1.0),)


@pytest.mark.parametrize("bad", [
    {"kv": "ring"}, {"page_size": 0}, {"kv_hbm": 0}, {"kv_hbm": True}, {"max_running": 0},
    {"dtype": "int8"}, {"max_context": 0}, {"max_batch_tokens": 0}, {"max_batch_tokens": None},
    {"reader": "gds"},
])  # fmt: skip
def test_an_engine_setting_out_of_range_is_refused(bad):
    """Catches settings that fail only deep inside a run."""
    with pytest.raises(ConfigError, match=next(iter(bad))):
        EngineConfig(**bad)
