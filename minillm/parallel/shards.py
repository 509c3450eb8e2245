"""How each rank gets its part of a checkpoint.

    each reads its own      every rank opens the files and reads its slices
    one reads for all       one rank reads everything and sends it on, the others cut out theirs:
                            the files cross the disk once, but everything crosses the network

Nobody ever holds the whole: what is not a rank's own passes through staging, some tensors at a
time. `read_own`, `read_for_all` and `send_seconds` are called by every rank, as `Ranks.run` does.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from minillm.config import ModelConfig
from minillm.load.checkpoint import Checkpoint, bring
from minillm.load.chunks import CHUNK, Part
from minillm.load.place import move, put
from minillm.load.safetensors import TensorInfo
from minillm.load.shard import megatron, slices
from minillm.load.stream import Reader
from minillm.machine import Machine
from minillm.machine.arena import Arena


@dataclass(frozen=True)
class Got:
    """What a rank did. kept, read: bytes; sent: bytes of each broadcast; digest: of all it kept."""

    seconds: float
    kept: int
    read: int
    sent: list[int]
    digest: str


def read_own(folder: str | Path, reader: str = "direct") -> Got:
    """Each rank reads its own slices."""
    return _timed(folder, reader, None)


def read_for_all(folder: str | Path, size: int = CHUNK, reader: str = "direct") -> Got:
    """Rank 0 reads every tensor and sends it to all, up to `size` bytes in one broadcast."""
    return _timed(folder, reader, size)


def send_seconds(nbytes: int, times: int = 20) -> list[float]:
    """What each of some broadcasts from rank 0 takes."""
    raw, seconds = torch.zeros(nbytes, dtype=torch.uint8), []
    dist.barrier()
    for _ in range(times):
        start = time.perf_counter()
        dist.broadcast(raw, src=0)
        seconds.append(time.perf_counter() - start)
    return seconds


def _timed(folder: str | Path, reader: str, size: int | None) -> Got:
    """Load between two barriers; memory is made and touched before the clock starts."""
    rank, ranks, sent = dist.get_rank(), dist.get_world_size(), []
    machine = Machine.here(device="cpu")
    whole = Checkpoint.open(folder)
    own = slices(whole, rank, ranks, megatron(ModelConfig.from_pretrained(folder)))
    wanted = {name: (info.shape, info.dtype) for name, info in own.tensors.items()}
    arena = Arena(machine, wanted, "hbm", "weights")
    arena.block.zero_()

    def send(raw: Tensor) -> None:
        dist.broadcast(raw, src=0)
        sent.append(raw.nbytes)

    dist.barrier()
    start = time.perf_counter()
    if size is None:
        bring(arena.places, own, machine, reader)
    else:
        groups = together(whole.tensors.values(), size)
        broadcast(arena.places, groups, own, machine, send, rank == 0, reader)
    seconds = time.perf_counter() - start
    read = sum(event.nbytes for event in machine.trace.select(name=reader, label="weights"))
    digest = hashlib.sha256(arena.block.numpy()).hexdigest()
    arena.close()
    return Got(seconds, own.nbytes, read, [] if rank else sent, digest)


def together(infos: Iterable[TensorInfo], size: int) -> Iterator[list[TensorInfo]]:
    """Tensors that are sent as one: neighbours up to `size` bytes; what is larger goes alone.

    >>> groups = together(checkpoint.tensors.values(), 8 * 2**20)
    """
    group: list[TensorInfo] = []
    for info in infos:
        if group and sum(each.nbytes for each in group) + info.nbytes > size:
            yield group
            group = []
        group.append(info)
    if group:
        yield group


def broadcast(
    places: Mapping[str, Tensor], groups: Iterable[list[TensorInfo]], own: Checkpoint,
    machine: Machine, send: Callable[[Tensor], object], reads: bool, reader: str = "read",
) -> None:  # fmt: skip
    """One rank (`reads`) reads whole tensors, ahead of sending; each keeps its `own` part of them.

    send(bytes): called by every rank once a group with a uint8 tensor in DRAM of equal size; on
    return all of them hold the reader's bytes (`torch.distributed.broadcast`). If one rank fails,
    the others wait in `send`, which must give up by itself. Fills `places`, by name, as `bring`.
    Peak in DRAM: the largest group; and for the rank that reads, a Reader's staging.

    >>> groups = together(checkpoint.tensors.values(), 8 * 2**20)
    >>> own = slices(checkpoint, rank, 2, megatron(config))
    >>> broadcast(arena.places, groups, own, machine, send, reads=rank == 0)
    """
    groups = list(groups)
    wholes = [whole for group in groups for whole in group]
    with ExitStack() as stack:
        size = max((sum(whole.nbytes for whole in group) for group in groups), default=0)
        buffer = machine.empty((size,), torch.uint8, "dram", "staging")
        stack.callback(machine.free, buffer)
        if reads:
            source = stack.enter_context(Reader(machine, reader, wholes))
            arriving = stack.enter_context(closing(source.chunks(wholes)))
            parts = (part for arrived in arriving for part in arrived)
        for group in groups:
            sizes = [whole.nbytes for whole in group]
            message, at = buffer[: sum(sizes)], 0
            while reads and at < len(message):  # in the order in which they are sent
                part, piece = next(parts)
                move(piece, message[at : at + len(piece)], machine, part.label)
                at += len(piece)
            send(message)
            for whole, raw in zip(group, message.split(sizes), strict=True):
                if whole.name not in places:  # another stage's
                    continue
                mine = own.tensors[whole.name]
                part = Part(mine, 0, mine.start, mine.run, mine.rows)
                put([(part, _cut(raw, whole, mine))], places, machine)


def _cut(raw: Tensor, whole: TensorInfo, own: TensorInfo) -> Tensor:
    """What of a whole tensor's bytes is in a rank's own slice, one row a run."""
    at = own.start - whole.start
    if own.rows == 1:
        return raw[at : at + own.nbytes]
    return raw.view(own.rows, own.stride)[:, at : at + own.run]
