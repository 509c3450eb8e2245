"""Checkpoints of a real model's shape with random weights: gigabytes to load, without a download.

The numbers mean nothing, but names, shapes and dtype are the real ones, so every byte moves as it
would. They are in one file, where a hub cuts at some gigabytes. Drawing billions of random numbers
would take longer than writing them: one block of 32 MiB is drawn and repeated, from another place
of it for each piece that is written.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from minillm.config import ModelConfig
from minillm.config.shapes import SHAPES
from minillm.errors import ConfigError, MinillmError, OutOfMemory
from minillm.files import temporary_folder
from minillm.load.safetensors import header
from minillm.machine.disk import drop_cache
from minillm.model.llama import Llama

_BLOCK = 32 * 2**20  # bytes drawn at random
_WRITE = 8 * 2**20  # bytes of one write

Tell = Callable[[int, int], object]
Shapes = dict[str, torch.Size]  # by tensor's name


def make_checkpoint(
    shape: str | dict[str, Any], folder: str | Path, tell: Tell = lambda done, total: None
) -> int:
    """Write config.json, a tokenizer of single bytes and safetensors; returns the weights' bytes.

    shape: one of SHAPES, or a config.json of the Llama family. folder: new, or empty. tell(done,
    total) hears of each write, in bytes. Takes 64 MiB of memory, whatever the model. ConfigError
    for another shape or a folder with something in it, OutOfMemory if the disk has no room,
    MinillmError if it cannot be written after all. The files come into the folder when all of them
    are whole: an error or an interrupt leaves none.

    >>> make_checkpoint("1b", "models/1b")
    2471645184
    """
    if not isinstance(shape, dict) and shape not in list(SHAPES):
        raise ConfigError(f"wanted a shape of {', '.join(SHAPES)}, found {shape!r}; take one")
    settings, folder = SHAPES[shape] if isinstance(shape, str) else shape, Path(folder)
    tensors = tensor_shapes(ModelConfig.from_dict(settings))
    total = sum(map(_nbytes, tensors.values()))
    needed = total + total // 100 + 2**26  # some room must be left to others
    try:
        room = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.is_dir())).free
        if room < needed:
            raise OutOfMemory("ssd", needed, room, {})
        folder.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder) as work:
            _check_empty(folder)
            _write_weights(Path(work) / "model.safetensors", tensors, total, tell)
            (Path(work) / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
            _byte_tokenizer().save(f"{work}/tokenizer.json")
            _check_empty(folder)  # still: another run may have been faster
            for path in Path(work).iterdir():
                path.rename(folder / path.name)
    except OSError as error:
        why = f"found {error.strerror or error}; give another name, or make room"
        raise MinillmError(f"wanted to write a checkpoint into {folder}, {why}") from error
    return total


def _check_empty(folder: Path) -> None:
    if any(not path.name.startswith(".minillm") for path in folder.iterdir()):
        raise ConfigError(f"wanted a new or an empty folder, found {folder}; give another name")


def tensor_shapes(config: ModelConfig) -> Shapes:
    """Name and shape of every tensor in a checkpoint of this model, layer by layer.

    >>> tensor_shapes(ModelConfig.from_pretrained("data/town"))["model.norm.weight"]
    torch.Size([256])
    """
    with torch.device("meta"):  # names and shapes, no memory
        return {name: p.shape for name, p in Llama(config).named_parameters()}


def _write_weights(path: Path, tensors: Shapes, total: int, tell: Tell) -> None:
    """Random bfloat16 as safetensors, on disk (not only in the page cache) at the end.

    Norms are ones, all else normal with deviation 0.02, as at the beginning of a training.
    """
    block = torch.empty(_BLOCK // 2, dtype=torch.bfloat16)
    block.normal_(0, 0.02, generator=torch.Generator().manual_seed(0))
    noise, ones = (memoryview(t.view(torch.uint8).numpy()) for t in (block, torch.ones_like(block)))
    done = end = 0
    with open(path, "xb") as stream:
        stream.write(header("BF16", tensors))
        for name, shape in tensors.items():
            source = ones if name.endswith("norm.weight") else noise
            end += _nbytes(shape)
            while done < end:
                begin = done // 7 * 2 % (_BLOCK - _WRITE)  # even: a number has two bytes
                done += stream.write(source[begin:][: min(_WRITE, end - done)])
                tell(done, total)
            # Out of the page cache at once: all of it at the end would be a long wait.
            stream.flush()
            os.fsync(stream.fileno())
            drop_cache(stream.fileno())


def _nbytes(shape: torch.Size) -> int:
    return 2 * shape.numel()


def _byte_tokenizer() -> Tokenizer:
    """A token for each byte, so that the engine can run the model: what it says is noise anyway."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
