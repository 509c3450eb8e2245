"""How each rank gets its part of a checkpoint: it reads its own, or one reads and sends.

Both are called by every rank of a group, as `Ranks.run` does.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from minillm.config import ModelConfig
from minillm.load.checkpoint import Checkpoint, bring
from minillm.load.shard import broadcast, megatron, slices
from minillm.machine import Machine
from minillm.machine.arena import Arena


@dataclass(frozen=True)
class Got:
    """What a rank did. kept, read, sent: bytes; digest: of all that it kept."""

    seconds: float
    kept: int
    read: int
    sent: int
    digest: str


def read_own(folder: str | Path, reader: str = "direct") -> Got:
    """Each rank reads its own slices."""
    return _timed(folder, reader, None)


def read_for_all(folder: str | Path, reader: str = "direct") -> Got:
    """Rank 0 reads every tensor and sends it to all; each cuts out its own."""
    sent = []

    def send(raw: Tensor) -> None:
        dist.broadcast(raw, src=0)
        sent.append(raw.nbytes)

    return _timed(folder, reader, (send, sent))


def link_rate(nbytes: int = 8 * 2**20, times: int = 8) -> float:
    """Bytes a second of a broadcast from rank 0: the best of several."""
    raw = torch.zeros(nbytes, dtype=torch.uint8)
    seconds = []
    for _ in range(times):
        dist.barrier()
        start = time.perf_counter()
        dist.broadcast(raw, src=0)
        seconds.append(time.perf_counter() - start)
    return nbytes / min(seconds)


def _timed(folder: str | Path, reader: str, sending: tuple | None) -> Got:
    """Load between two barriers; memory is made and touched before the clock starts."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    machine = Machine.here(hbm="2 GiB", device="cpu")
    whole = Checkpoint.open(folder)
    own = slices(whole, rank, ranks, megatron(ModelConfig.from_pretrained(folder)))
    wanted = {name: (info.shape, info.dtype) for name, info in own.tensors.items()}
    arena = Arena(machine, wanted, "hbm", "weights")
    arena.block.zero_()
    send, sent = sending or (None, [])
    dist.barrier()
    start = time.perf_counter()
    if send is None:
        bring(arena.places, own, machine, reader)
    else:
        broadcast(arena.places, whole, own, machine, send, rank == 0, reader)
    seconds = time.perf_counter() - start
    read = machine.trace.select(name=reader, label="weights")
    digest = hashlib.sha256(arena.block.numpy()).hexdigest()
    kept = own.nbytes
    arena.close()
    return Got(seconds, kept, sum(e.nbytes for e in read), sum(sent) if rank == 0 else 0, digest)
