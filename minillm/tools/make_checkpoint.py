"""Checkpoints of a real model's shape with random weights: gigabytes to load, without a download.

The numbers mean nothing, but names, shapes, dtype and files are the real ones, so every byte
moves as it would. Drawing billions of random numbers would take longer than writing them: one
block of 32 MiB is drawn and repeated, from another place of it for each piece that is written.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from minillm.config import ModelConfig
from minillm.errors import ConfigError, OutOfMemory
from minillm.machine.disk import drop_cache

_LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 8192}  # fmt: skip


def _llama(
    vocabulary: int, width: int, inner: int, layers: int, heads: int, kv_heads: int, head: int,
    theta: float, context: int = 8192, tied: bool = True, stretch: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The config.json of a Llama in bfloat16; `stretch` is the factor of Llama 3's RoPE."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "torch_dtype": "bfloat16", "attention_bias": False, "mlp_bias": False,
        "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "head_dim": head, "max_position_embeddings": context, "rms_norm_eps": 1e-5,
        "rope_theta": theta, "tie_word_embeddings": tied,
    } | ({"rope_scaling": _LLAMA3 | {"factor": stretch}} if stretch else {})  # fmt: skip


SHAPES = {
    "135m": _llama(49152, 576, 1536, 30, 9, 3, 64, 1e5),  # SmolLM2-135M
    "360m": _llama(49152, 960, 2560, 32, 15, 5, 64, 1e5),  # SmolLM2-360M
    "1b": _llama(128256, 2048, 8192, 16, 32, 8, 64, 5e5, 131072, stretch=32.0),  # Llama-3.2-1B
    "8b": _llama(128256, 4096, 14336, 32, 32, 8, 128, 5e5, 131072, False, 8.0),  # Llama-3.1-8B
}
"""Name to config.json."""
SHARD = 5 * 10**9  # bytes of one file at most, as on the hub
_BLOCK = 32 * 2**20  # bytes drawn at random
_WRITE = 8 * 2**20  # bytes of one write

Tell = Callable[[int, int], None]
Shape = tuple[int, ...]
Shapes = dict[str, Shape]  # by tensor's name


def make_checkpoint(
    shape: str | dict[str, Any], folder: str | Path, *, shard: int = SHARD, tell: Tell | None = None
) -> int:
    """Write config.json, a tokenizer of single bytes and safetensors; returns the weights' bytes.

    shape: one of SHAPES, or a config.json of the Llama family. folder: new, or empty. tell(done,
    total) hears of each write, in bytes. Takes 40 MiB of memory, whatever the model. ConfigError
    for another shape or a folder with something in it, OutOfMemory if the disk has no room. After
    an error or an interrupt what we made is gone, and nothing else.

    >>> make_checkpoint("1b", "models/1b")
    2471645184
    """
    settings, folder = _settings(shape), Path(folder)
    tensors = tensor_shapes(ModelConfig.from_dict(settings))
    total = sum(map(_nbytes, tensors.values()))
    _check_folder(folder, total)
    own: list[Path] = []  # files and folders of ours: all that may be removed again
    try:
        _make_folder(folder, own)
        write_weights(folder, tensors, shard, tell or (lambda done, total: None), own)
        _write_text(folder / "config.json", json.dumps(settings, indent=2), own)
        _write_text(folder / "tokenizer.json", _byte_tokenizer().to_str(pretty=True), own)
    except BaseException as error:  # an interrupt too: half a checkpoint is worth nothing
        for path in reversed(own):
            with suppress(OSError):  # a folder into which somebody else has put something stays
                path.rmdir() if path.is_dir() else path.unlink()
        if isinstance(error, FileExistsError):  # another run was at it too, and was faster
            raise _taken(folder) from error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfMemory("ssd", total, _room(folder), {}) from error
        raise
    return total


def _make_folder(folder: Path, own: list[Path]) -> None:
    for path in reversed((folder, *folder.parents)):
        if not path.exists():
            with suppress(FileExistsError):  # somebody else makes it at this moment
                path.mkdir()
                own.append(path)


def _new_file(path: Path, own: list[Path]) -> BinaryIO:
    """To be written. FileExistsError if it is there: then it is not ours."""
    stream = open(path, "xb")
    own.append(path)
    return stream


def _write_text(path: Path, text: str, own: list[Path]) -> None:
    with _new_file(path, own) as stream:
        stream.write(f"{text}\n".encode())


def _settings(shape: str | dict[str, Any]) -> dict[str, Any]:
    if isinstance(shape, dict):
        return shape
    if not isinstance(shape, str) or shape not in SHAPES:
        raise ConfigError(f"wanted a shape of {', '.join(SHAPES)}, found {shape!r}; take one")
    return SHAPES[shape]


def _check_folder(folder: Path, nbytes: int) -> None:
    lost = [path for path in (folder, *folder.parents) if path.is_symlink() and not path.exists()]
    if lost:
        raise _taken(lost[0], "a link that leads nowhere")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise _taken(folder)
    needed = nbytes + nbytes // 100 + 2**26  # some room must be left to others
    if _room(folder) < needed:
        raise OutOfMemory("ssd", needed, _room(folder), {})


def _taken(path: Path, found: str = "something") -> ConfigError:
    do = "give another name, or delete it first"
    return ConfigError(f"wanted a new or an empty folder, found {found} at {path}; {do}")


def _room(folder: Path) -> int:
    """Bytes free on the disk that a folder is on, or will be."""
    real = folder.resolve()  # it may be a link to another disk, or a disk's own top folder
    return shutil.disk_usage(next(p for p in (real, *real.parents) if p.is_dir())).free


def tensor_shapes(config: ModelConfig) -> Shapes:
    """Name and shape of every tensor in a checkpoint of this model, layer by layer.

    >>> tensor_shapes(ModelConfig.from_pretrained("data/town"))["model.norm.weight"]
    (256,)
    """
    width, inner = config.hidden_size, config.intermediate_size  # D, I
    queries = config.num_attention_heads * config.head_dim  # H · E
    keys = config.num_key_value_heads * config.head_dim  # K · E
    weights = {
        "input_layernorm": (width,), "self_attn.q_proj": (queries, width),
        "self_attn.k_proj": (keys, width), "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, queries), "post_attention_layernorm": (width,),
        "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }  # fmt: skip
    if config.qk_norm:
        weights |= dict.fromkeys(("self_attn.q_norm", "self_attn.k_norm"), (config.head_dim,))
    biased = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"] * config.qkv_bias
    biased += ["self_attn.o_proj"] * config.attention_out_bias
    biased += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"] * config.mlp_bias
    layer = {f"{name}.weight": size for name, size in weights.items()}
    layer |= {f"{name}.bias": weights[name][:1] for name in biased}
    shapes = {"model.embed_tokens.weight": (config.vocab_size, width)}
    for number in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{number}.{name}": size for name, size in layer.items()}
    shapes["model.norm.weight"] = (width,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, width)
    return shapes


def write_weights(folder: Path, tensors: Shapes, shard: int, tell: Tell, own: list[Path]) -> None:
    """Safetensors of random bfloat16 in `folder`, on disk (not only in the page cache) at the end.

    Norms are ones, all else normal with deviation 0.02, as at the beginning of a training. `own`
    grows by each file as it is made.
    """
    block = torch.empty(_BLOCK // 2, dtype=torch.bfloat16)
    block.normal_(0, 0.02, generator=torch.Generator().manual_seed(0))
    noise = memoryview(block.view(torch.uint8).numpy())
    shards = list(_shards(tensors, shard))
    total, done, weight_map = sum(map(_nbytes, tensors.values())), 0, {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        file = "model.safetensors" if len(shards) == 1 else file
        weight_map |= dict.fromkeys(names, file)
        with _new_file(folder / file, own) as stream:
            stream.write(_header({name: tensors[name] for name in names}))
            for name in names:
                for data in _numbers(name, tensors[name], noise, done):
                    stream.write(data)
                    done += len(data)
                    tell(done, total)
                _to_disk(stream)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_text(folder / "model.safetensors.index.json", json.dumps(index, indent=2), own)


def _numbers(name: str, shape: Shape, noise: memoryview, at: int) -> Iterator[memoryview]:
    """The bytes of a tensor, some at a time; `at` moves what is taken of the noise."""
    if name.endswith("norm.weight"):
        yield memoryview(torch.ones(shape, dtype=torch.bfloat16).view(torch.uint8).numpy())
        return
    for offset in range(0, size := _nbytes(shape), _WRITE):
        begin = (at + offset) // 7 * 2 % (_BLOCK - _WRITE)  # even: a number has two bytes
        yield noise[begin:][: min(_WRITE, size - offset)]


def _to_disk(stream: BinaryIO) -> None:
    """Out of the page cache at once: all of it at the end would be a wait without end or Ctrl-C."""
    stream.flush()
    os.fsync(stream.fileno())
    drop_cache(stream.fileno())


def _nbytes(shape: Shape) -> int:
    return 2 * math.prod(shape)


def _shards(tensors: Shapes, limit: int) -> Iterator[list[str]]:
    """Names in order, cut where the next tensor would make a file larger than `limit`."""
    names: list[str] = []
    size = 0
    for name, shape in tensors.items():
        if names and size + _nbytes(shape) > limit:
            yield names
            names, size = [], 0
        names.append(name)
        size += _nbytes(shape)
    yield names


def _header(tensors: Shapes) -> bytes:
    """The first two parts of a file; spaces bring the tensors to a multiple of 64."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in tensors.items():
        begin, at = at, at + _nbytes(shape)
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, at]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)
    return len(text).to_bytes(8, "little") + text


def _byte_tokenizer() -> Tokenizer:
    """A token for each byte, so that the engine can run the model: what it says is noise anyway."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
