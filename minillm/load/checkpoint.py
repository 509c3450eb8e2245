"""A checkpoint is a folder of shards: which file holds which tensor, and where each one goes.

Shards are safetensors files. An index beside them says which holds what:

    model.safetensors.index.json   {"weight_map": {"lm_head.weight": "model-00002-of-00002.…", …}}

What the index says counts: a shard may hold more than it lists, older tensors that another shard
has anew. It comes from outside, so it may name files of its own folder only; a link there, which
somebody made on this machine, is followed wherever it leads.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from minillm.errors import CheckpointError
from minillm.load.safetensors import (
    TensorInfo,
    damaged,
    opened,
    parse_json,
    read_header,
    short,
)
from minillm.load.stream import Reader
from minillm.machine import Machine
from minillm.machine.arena import Arena
from minillm.machine.interrupt import held

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_MAX_INDEX = 32 * 2**20  # bytes: a line for each of 300,000 tensors
_WEIGHTS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Tensors that some checkpoints carry and no model needs: RoPE's frequencies, which are computed,
# and an output layer that is the embedding again (only where the model has none of its own).
_SPARE = re.compile(r".*\brotary_emb\.inv_freq|lm_head\.weight")
_INPUT, _OUTPUT = "model.embed_tokens.weight", "lm_head.weight"  # of a tied model: one tensor


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a folder, by name: where each lies, nothing of it read yet.

    >>> checkpoint = Checkpoint.open("data/town")
    >>> checkpoint.tensors["model.norm.weight"].ranges
    [(12129360, 12129872)]
    """

    folder: Path
    tensors: dict[str, TensorInfo]

    @classmethod
    def open(cls, folder: str | Path) -> Checkpoint:
        """Read the header of `model.safetensors`, or else of each shard that the index names.

        A tied model's one table may be under either of its names: it is found as the embedding.
        Raises CheckpointError if there are no such files, or a tensor is not where the index says.
        """
        folder = Path(folder)
        if os.path.exists(folder / _SINGLE):
            return cls(folder, _either_name(read_header(folder / _SINGLE)))
        if not os.path.exists(folder / _INDEX):
            raise _no_weights(folder)
        tensors: dict[str, TensorInfo] = {}
        for file, listed in sorted(_read_index(folder / _INDEX).items()):
            held = read_header(folder / file)
            for name in sorted(listed - held.keys()):
                wanted = f"what {_INDEX} lists in each shard"
                raise damaged(folder / file, wanted, "no such tensor", name)
            tensors |= {name: info for name, info in held.items() if name in listed}
        return cls(folder, _either_name(tensors))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, as stored."""
        return sum(info.nbytes for info in self.tensors.values())

    @property
    def files(self) -> list[Path]:
        """The files that hold them, in order."""
        return list(dict.fromkeys(info.file for info in self.tensors.values()))

    def only(self, names: Collection[str]) -> Checkpoint:
        """The same folder, with these of its tensors, in the order of the files' bytes."""
        return Checkpoint(self.folder, {n: i for n, i in self.tensors.items() if n in names})


Fill = Callable[[Mapping[str, Tensor], Checkpoint, Machine, str], None]


def load(
    model: nn.Module,
    checkpoint: Checkpoint,
    machine: Machine,
    dtype: torch.dtype,
    reader: str = "read",
    fill: Fill | None = None,
) -> Arena:
    """Put every parameter of `model` into HBM as `dtype`, filled from `checkpoint`.

    The model may be on the meta device, where it costs no memory. Returns the arena in HBM that
    all parameters are places of: its `close` gives the memory back. Before a byte is read:
    CheckpointError unless names and shapes agree, nothing missing and nothing left over; and
    OutOfMemory unless all of it fits. If a tied model's files hold its table twice, both are read
    once more: CheckpointError unless they are equal. Whatever fails, all is as it was before.
    Peak: the weights once in HBM, and at most 64 MiB of staging in DRAM.
    reader: one of READERS. fill: what brings them, as `bring` does and by default.
    """
    before = dict(model.named_parameters())
    shapes = {name: p.shape for name, p in before.items()}
    check_fit(shapes, checkpoint)
    arena = None
    try:
        with held():
            wanted = {name: (shape, dtype) for name, shape in shapes.items()}
            arena = Arena(machine, wanted, "hbm", "weights")
            (fill or bring)(arena.places, checkpoint, machine, reader)
            assign(model, arena.places)
            assert not any(p.is_meta for p in model.parameters())
    except BaseException:  # an interrupt too
        if arena is not None:
            assign(model, before)
            arena.close()
        raise
    return arena


def bring(
    places: Mapping[str, Tensor],
    checkpoint: Checkpoint,
    machine: Machine,
    reader: str = "read",
) -> None:
    """Fill each of `places` with the checkpoint's tensor of that name."""
    if _INPUT in places and _OUTPUT not in places and _OUTPUT in checkpoint.tensors:
        _check_tied(checkpoint.only((_INPUT, _OUTPUT)), machine, reader)
    infos = list(checkpoint.only(places).tensors.values())
    with Reader(machine, reader, infos) as source:
        source.fill(places, infos)


def _check_tied(tables: Checkpoint, machine: Machine, reader: str) -> None:
    """The output layer that a tied model has no place for is the embedding again, byte for byte."""
    infos = list(tables.tensors.values())
    digests = {info.name: hashlib.sha256(repr((info.dtype, info.shape)).encode()) for info in infos}
    with Reader(machine, reader, infos) as source, closing(source.chunks(infos)) as arriving:
        for part, raw in (both for arrived in arriving for both in arrived):
            digests[part.info.name].update(raw.numpy())
    if digests[_INPUT].digest() != digests[_OUTPUT].digest():
        wanted = f"{_INPUT} once more, for config.json says tie_word_embeddings"
        do = 'if they are two tables, write "tie_word_embeddings": false there'
        raise damaged(tables.tensors[_OUTPUT].file, wanted, "other numbers", _OUTPUT, do)


def assign(model: nn.Module, places: Mapping[str, Tensor]) -> None:
    """Make `places` the model's parameters, by name; those without a place stay as they are."""
    model.requires_grad_(False).load_state_dict(places, strict=False, assign=True)


def check_fit(shapes: Mapping[str, torch.Size], checkpoint: Checkpoint) -> None:
    """The checkpoint holds the model's parameters, with these shapes, as floats, and no others."""
    do = "check that config.json belongs to these weights"
    tensors = checkpoint.tensors
    missing = [name for name in shapes if name not in tensors]
    if missing:
        if missing == [_OUTPUT]:
            do = 'if the model is tied, write "tie_word_embeddings": true in config.json'
        wanted = f"a tensor for each of {len(shapes)} parameters"
        raise damaged(checkpoint.folder, wanted, f"none for {_list(missing)}", do=do)
    extra = [name for name in tensors if name not in shapes and not _SPARE.fullmatch(name)]
    if extra:
        wanted = f"tensors for the model's {len(shapes)} parameters only"
        raise damaged(checkpoint.folder, wanted, f"also {_list(extra)}", do=do)
    for name, shape in shapes.items():
        info = tensors[name]
        if info.shape != shape:
            raise damaged(info.file, f"shape {list(shape)}", f"{list(info.shape)}", name, do)
        if info.dtype not in _WEIGHTS:
            do = "take a checkpoint that is not quantized"
            raise damaged(info.file, "weights of 16, 32 or 64 bits", f"{info.dtype}", name, do)


def _list(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(short(name) for name in names[:3]) + more


def _read_index(index: Path) -> dict[str, set[str]]:
    """Shard's file name → names of the tensors in it."""
    with opened(index) as (stream, size):
        if size > _MAX_INDEX:
            raise damaged(index, f"at most {_MAX_INDEX:,} bytes", f"{size:,}")
        files = parse_json(index, stream.read(size)).get("weight_map")
    if not isinstance(files, dict):
        raise damaged(index, '"weight_map", tensor name to file name', short(files))
    tensors_of: dict[str, set[str]] = defaultdict(set)
    for name, file in files.items():
        if not isinstance(file, str) or not re.fullmatch(r"[\w .+=-]+\.safetensors", file, re.A):
            raise damaged(index, "the name of a .safetensors file beside it", short(file), name)
        tensors_of[file].add(name)
    return tensors_of


def _either_name(tensors: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    """An output layer without an embedding becomes the embedding: what writes a tensor of two names
    only once may keep either. An untied model then lacks its output layer, and is refused."""
    if _INPUT in tensors or _OUTPUT not in tensors:
        return tensors
    infos = (replace(i, name=_INPUT) if i.name == _OUTPUT else i for i in tensors.values())
    return {info.name: info for info in infos}


def _no_weights(folder: Path) -> CheckpointError:
    wanted = f"{_SINGLE} or {_INDEX}"
    if not os.path.isdir(folder):
        found = "a file, not a folder," if os.path.exists(folder) else "nothing"
        return damaged(folder, wanted, found, do="check the path")
    for name in (_SINGLE, _INDEX):
        if os.path.islink(folder / name):
            found = f"a link to {os.readlink(folder / name)}, which is not there"
            return damaged(folder / name, "a file", found)
    try:
        names = sorted(name for name in os.listdir(folder) if os.path.exists(folder / name))
    except OSError as error:
        do = "check that you may read it"
        return damaged(folder, wanted, f"“{error.strerror}”", do=do)
    do = "take a folder in the Hugging Face layout"
    if any(name.endswith((".bin", ".pt", ".pth", ".pkl")) for name in names):
        do = "pickle is never loaded, for it can run code: save the model as safetensors"
    return damaged(folder, wanted, f"{_list(names)}" if names else "no file", do=do)
