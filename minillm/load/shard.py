"""Several ranks, one checkpoint: which bytes each of them needs, and two ways to get them there.

    each reads its own      every rank opens the files and reads its slices: a slice of rows is one
                            range of bytes, a slice of columns one range in each row
    one reads for all       one rank reads everything and sends it on, the others cut out theirs:
                            the files cross the disk once, but everything crosses the network

Nobody ever holds the whole: what is not a rank's own passes through a few MiB of staging.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minillm.config import ModelConfig
from minillm.errors import ConfigError
from minillm.load.checkpoint import Checkpoint
from minillm.load.chunks import Piece, chunks
from minillm.load.place import Arrived
from minillm.load.safetensors import TensorInfo
from minillm.load.stream import Reader, chunk_size
from minillm.machine import Machine


@dataclass(frozen=True)
class Split:
    """How a tensor is shared: its axis 0 (rows) or 1 (columns) falls into `parts` equal parts.

    A rank gets parts / ranks of them, next to each other; a part is never cut. shared: where there
    are fewer parts than ranks, several ranks get the same part (else that is an error).
    """

    axis: int
    parts: int
    shared: bool = False


How = Callable[[str], Split | None]
"""A tensor's name to its split; None: every rank has all of it."""


def megatron(config: ModelConfig) -> How:
    """The usual split of a Llama: the fewest sums between ranks.  Shoeybi et al., 2019.

    Rows of what reads the hidden state (q, k, v by heads; gate and up; the embedding and the
    output by vocabulary), then columns of what adds to it (o by heads; down). Norms, and biases
    that are added after the sum, are everyone's. With fewer kv heads than ranks, neighbours have
    the same one.

    >>> megatron(config)("model.layers.0.mlp.down_proj.weight")
    Split(axis=1, parts=832, shared=False)
    """
    heads, inner = config.num_attention_heads, config.intermediate_size
    keys, words = Split(0, config.num_key_value_heads, shared=True), Split(0, config.vocab_size)
    rows = {
        "q_proj": Split(0, heads), "k_proj": keys, "v_proj": keys, "gate_proj": Split(0, inner),
        "up_proj": Split(0, inner), "embed_tokens": words, "lm_head": words,
    }  # fmt: skip
    columns = {"o_proj": Split(1, heads), "down_proj": Split(1, inner)}

    def how(name: str) -> Split | None:
        before, _, kind = name.rpartition(".")
        module = before.rpartition(".")[2]
        return rows.get(module) or (columns.get(module) if kind == "weight" else None)

    return how


def slices(checkpoint: Checkpoint, rank: int, ranks: int, how: How) -> Checkpoint:
    """The same checkpoint as one rank sees it: local shapes, and the byte ranges of its slices.

    Loads like any other, into a model of the local shapes. Nothing is read. Raises ConfigError if
    the parts of a tensor cannot be shared equally among the ranks.

    >>> slices(checkpoint, 1, 4, megatron(config)).tensors["model.layers.0.mlp.down_proj.weight"]
    """
    if not 0 <= rank < ranks:
        raise ConfigError(f"wanted a rank from 0 to {ranks - 1}, found {rank}; correct it")
    tensors = {
        name: info if (split := how(name)) is None else _slice(info, rank, ranks, split)
        for name, info in checkpoint.tensors.items()
    }
    return Checkpoint(checkpoint.folder, tensors)


def _slice(info: TensorInfo, rank: int, ranks: int, split: Split) -> TensorInfo:
    axis, parts = split.axis, split.parts
    if axis >= len(info.shape) or info.shape[axis] % parts:
        raise ConfigError(
            f"wanted axis {axis} of {info.name} to fall into {parts} equal parts, found shape "
            f"{list(info.shape)}; check that the split belongs to this model"
        )
    if parts % ranks and not (split.shared and ranks % parts == 0):
        raise ConfigError(
            f"wanted {parts} parts of {info.name} shared equally among the ranks, found {ranks} "
            "ranks; take a number of ranks that divides it"
        )
    if ranks == 1:
        return info
    each = info.shape[axis] // parts  # rows or columns of a part
    first, mine = rank * parts // ranks * each, max(1, parts // ranks) * each
    shape = (*info.shape[:axis], mine, *info.shape[axis + 1 :])
    if not info.nbytes:
        return replace(info, shape=shape)
    nbytes = info.nbytes * mine // info.shape[axis]
    if axis == 0:
        return replace(info, shape=shape, start=info.start + nbytes // mine * first, nbytes=nbytes)
    rows = info.shape[0]
    stride = info.nbytes // rows
    start = info.start + stride // info.shape[1] * first
    return replace(info, shape=shape, start=start, nbytes=nbytes, rows=rows, stride=stride)


def broadcast(
    checkpoint: Checkpoint, own: Checkpoint, machine: Machine, send: Callable[[Tensor], object],
    reads: bool, reader: str = "read",
) -> Generator[Arrived, None, None]:  # fmt: skip
    """One rank (`reads`) reads every tensor of `checkpoint` and sends it on; each keeps its `own`.

    send(bytes): called by every rank equally often with a uint8 tensor in DRAM of equal size; on
    return all of them hold the reader's bytes (`torch.distributed.broadcast`). What comes out is
    for `bring(..., arriving=)`. If one rank fails, the others wait in `send`, which must give up by
    itself. Staging: as a Reader's; without reading, one chunk.

    >>> own = slices(checkpoint, rank, 2, megatron(config))
    >>> arriving = broadcast(checkpoint, own, machine, send, reads=rank == 0)
    >>> bring(places, own, machine, arriving=arriving)
    """
    # Whole rows, so that a slice by columns can be cut out of each piece.
    infos = [_by_rows(checkpoint.tensors[name], info) for name, info in own.tensors.items()]
    with closing((_read if reads else _receive)(infos, machine, reader)) as arriving:
        for arrived in arriving:
            for _, raw in arrived:
                send(raw.view(-1))
            cut = [_cut(piece, raw, own.tensors[piece.info.name]) for piece, raw in arrived]
            yield [mine for mine in cut if mine is not None]


def _by_rows(whole: TensorInfo, own: TensorInfo) -> TensorInfo:
    """The whole tensor as rows without gaps, if a rank's own slice is by columns."""
    return whole if own.rows == 1 else replace(whole, rows=own.rows, stride=own.stride)


def _read(infos: list[TensorInfo], machine: Machine, how: str) -> Generator[Arrived, None, None]:
    with Reader(machine, how, infos, gap=0) as reader:
        yield from reader.chunks(infos)


def _receive(infos: list[TensorInfo], machine: Machine, how: str) -> Generator[Arrived, None, None]:
    """The same pieces in the same order, in memory for the bytes that will be received."""
    size = chunk_size(infos)
    with ExitStack() as stack:
        buffer = machine.empty((2 * size,), torch.uint8, "dram", "staging")
        stack.callback(machine.free, buffer)
        for chunk in chunks(infos, size, gap=0):
            sizes = [piece.nbytes for piece in chunk]
            yield list(zip(chunk, buffer[: sum(sizes)].split(sizes), strict=True))


def _cut(piece: Piece, raw: Tensor, own: TensorInfo) -> tuple[Piece, Tensor] | None:
    """What of a piece of the whole tensor lies in a rank's own slice; None if nothing does."""
    row = piece.at // own.stride if own.rows > 1 else 0
    lo = own.start + row * own.stride  # byte of the file at which the slice's run begins
    if piece.rows > 1:
        at = lo - piece.start
        part = raw.view(piece.rows, own.stride)[:, at : at + own.run]
        return replace(piece, at=row * own.run), part
    begin, end = max(piece.start, lo), min(piece.end, lo + own.run)
    if begin >= end:
        return None
    at = row * own.run + begin - lo
    return replace(piece, at=at), raw.view(-1)[begin - piece.start : end - piece.start]
