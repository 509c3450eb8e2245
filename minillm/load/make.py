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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from minillm.config import ModelConfig
from minillm.disk import PAGE, aligned
from minillm.errors import ConfigError, OutOfMemory

_LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
    "torch_dtype": "bfloat16", "attention_bias": False, "mlp_bias": False,
}  # fmt: skip
_LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 8192}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "135m": _LLAMA | {  # SmolLM2-135M
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "head_dim": 64, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0, "tie_word_embeddings": True,
    },
    "360m": _LLAMA | {  # SmolLM2-360M
        "vocab_size": 49152, "hidden_size": 960, "intermediate_size": 2560,
        "num_hidden_layers": 32, "num_attention_heads": 15, "num_key_value_heads": 5,
        "head_dim": 64, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0, "tie_word_embeddings": True,
    },
    "1b": _LLAMA | {  # Llama-3.2-1B
        "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 64, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "rope_scaling": _LLAMA3 | {"factor": 32.0},
        "tie_word_embeddings": True,
    },
    "8b": _LLAMA | {  # Llama-3.1-8B
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 128, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0, "rope_scaling": _LLAMA3 | {"factor": 8.0},
        "tie_word_embeddings": False,
    },
}  # fmt: skip
"""Name to config.json."""
SHARD = 5 * 10**9  # bytes of one file at most, as on the hub
_BLOCK = 32 * 2**20  # bytes drawn at random
_WRITE = 8 * 2**20  # bytes of one write

Tell = Callable[[int, int], None]


def make_checkpoint(
    shape: str | dict[str, Any], folder: str | Path, *, shard: int = SHARD, tell: Tell | None = None
) -> int:
    """Write config.json, a tokenizer of single bytes and safetensors; returns the weights' bytes.

    shape: one of SHAPES, or a config.json of the Llama type. folder: new, or empty. tell(done,
    total) hears of each write, in bytes. Takes 40 MiB of memory, whatever the model. ConfigError
    for another shape or a folder with something in it, OutOfMemory if the disk has no room. After
    an error or an interrupt nothing that we wrote is left.

    >>> make_checkpoint("1b", "models/1b")
    2471645184
    """
    settings, folder = _settings(shape), Path(folder)
    config = ModelConfig.from_dict(settings)
    tensors = tensor_shapes(config)
    total = sum(2 * math.prod(size) for size in tensors.values())
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    _check_folder(folder, total)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(folder, tensors, shard, tell or (lambda done, total: None))
        (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
        _byte_tokenizer().save(str(folder / "tokenizer.json"))
    except BaseException:  # an interrupt too: half a checkpoint is worth nothing
        for path in made[-1:] or list(folder.iterdir()):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        raise
    return total


def _settings(shape: str | dict[str, Any]) -> dict[str, Any]:
    if isinstance(shape, dict):
        return shape
    if shape not in SHAPES:
        raise ConfigError(f"wanted a shape of {', '.join(SHAPES)}, found {shape!r}; take one")
    return SHAPES[shape]


def _check_folder(folder: Path, nbytes: int) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            f"wanted a new or an empty folder, found something at {folder}; give another name, "
            "or delete it first"
        )
    above = next(path for path in folder.absolute().parents if path.is_dir())
    room, needed = shutil.disk_usage(above).free, nbytes + nbytes // 100 + 2**26
    if room < needed:  # some room must be left to others
        raise OutOfMemory("ssd", needed, room, {})


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in a Llama checkpoint, in the order of the computation.

    >>> tensor_shapes(ModelConfig.from_pretrained("data/town"))["model.norm.weight"]
    (256,)
    """
    width, inner = config.hidden_size, config.intermediate_size  # D, I
    queries = config.num_attention_heads * config.head_dim  # H · E
    keys = config.num_key_value_heads * config.head_dim  # K · E
    layer = {
        "input_layernorm": (width,), "self_attn.q_proj": (queries, width),
        "self_attn.k_proj": (keys, width), "self_attn.v_proj": (keys, width),
        "self_attn.o_proj": (width, queries), "post_attention_layernorm": (width,),
        "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner),
    }  # fmt: skip
    shapes = {"model.embed_tokens.weight": (config.vocab_size, width)}
    for number in range(config.num_hidden_layers):
        shapes |= {f"model.layers.{number}.{name}.weight": size for name, size in layer.items()}
    shapes["model.norm.weight"] = (width,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, width)
    return shapes


def write_weights(
    folder: Path, tensors: dict[str, tuple[int, ...]], shard: int, tell: Tell
) -> None:
    """Safetensors of random bfloat16 in `folder`, on disk (not only in the page cache) at the end.

    Matrices are normal with deviation 0.02, as at the beginning of a training; norms are ones.
    """
    block = torch.frombuffer(aligned(_BLOCK), dtype=torch.bfloat16)
    block.normal_(0, 0.02, generator=torch.Generator().manual_seed(0))
    shards = list(_shards(tensors, shard))
    total, done = sum(map(_nbytes, tensors.values())), 0
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        file = "model.safetensors" if len(shards) == 1 else file
        weight_map |= dict.fromkeys(names, file)
        part = {name: tensors[name] for name in names}
        header, size = _header(part), sum(map(_nbytes, part.values()))
        for written in _write_random(folder / file, len(header) + size, block):
            tell(done + min(written, size), total)
        done += size
        with open(folder / file, "r+b") as stream:
            stream.truncate(len(header) + size)
            stream.write(header)
            for shape in part.values():
                if len(shape) == 1:
                    stream.write(torch.ones(shape, dtype=torch.bfloat16).view(torch.uint8).numpy())
                else:
                    stream.seek(_nbytes(shape), os.SEEK_CUR)
            stream.flush()
            os.fsync(stream.fileno())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _write_random(path: Path, nbytes: int, block: Tensor) -> Iterator[int]:
    """Fill a new file, past the page cache where the system can; yields bytes written so far.

    Whole blocks are written, so it may become a little longer than asked.
    """
    source = memoryview(block.view(torch.uint8).numpy())
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
    try:
        fd = os.open(path, flags | getattr(os, "O_DIRECT", 0), 0o644)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        path.unlink(missing_ok=True)  # Linux makes the file, and then finds that it cannot open it
        fd = os.open(path, flags, 0o644)

    def write(offset: int) -> int:
        begin = offset * 3 % (_BLOCK - _WRITE) // PAGE * PAGE
        data = source[begin:][: min(_WRITE, -(-(nbytes - offset) // PAGE) * PAGE)]
        done = 0
        while done < len(data):
            done += os.pwrite(fd, data[done:], offset + done)
        return offset + done

    pool = ThreadPoolExecutor(4)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, nbytes)
        yield from pool.map(write, range(0, nbytes, _WRITE))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OutOfMemory("ssd", nbytes, shutil.disk_usage(path.parent).free, {}) from error
    finally:
        pool.shutdown(cancel_futures=True)
        os.close(fd)


def _nbytes(shape: tuple[int, ...]) -> int:
    return 2 * math.prod(shape)


def _shards(tensors: dict[str, tuple[int, ...]], limit: int) -> Iterator[list[str]]:
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


def _header(tensors: dict[str, tuple[int, ...]]) -> bytes:
    """The first two parts of a file; spaces bring the tensors to a multiple of 64."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in tensors.items():
        end = at + _nbytes(shape)
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, end]}
        at = end
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
