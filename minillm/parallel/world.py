"""All ranks of an engine: how they find each other, what one tells all, and which one has failed.

Rank 0 decides, the others follow: what they need to know goes as JSON through a group of its own,
where a rank may wait for days. Data goes through the groups of the mesh, where it may not: a rank
that does not answer in time has failed, as one has that ended.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_default_store, _set_pg_timeout

from minillm.config import ParallelConfig
from minillm.errors import ConfigError, RankError
from minillm.files import has_ended, this_process
from minillm.machine.host import n_cores
from minillm.machine.interrupt import held
from minillm.parallel.mesh import Mesh
from minillm.trace import Trace

_DAYS = timedelta(days=30)
_LOOK_SECONDS = 2.0  # for whoever has failed to say why, or to be gone


def connect(config: ParallelConfig) -> None:
    """Join the ranks that `torchrun` started, by Gloo and, on CUDA, NCCL; once is enough.

    Raises ConfigError unless it has started tp · pp of them.
    """
    if dist.is_initialized():
        return
    ranks, found = config.tp * config.pp, int(os.environ.get("WORLD_SIZE", 1))
    if found != ranks:
        raise ConfigError(
            f"wanted {ranks} ranks, for tp = {config.tp} and pp = {config.pp}, found {found}; "
            f"start them, by `torchrun --nproc-per-node {ranks} -m minillm …`"
        )
    torch.set_num_threads(n_cores())  # torchrun says 1, so that who does not care is safe
    if cuda := torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    with _hushed():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(seconds=config.timeout)
        )


class World:
    """The ranks that share a model. Made by all of them together, in a process group.

    >>> world = World(ParallelConfig(tp=2), machine.trace)   # on each rank
    >>> world.share({"steps": 3})                            # what rank 0 said, on each of them
    {'steps': 3}

    mesh: the grid, with its traced groups. rank: this one's number; size: how many there are.
    broken: whether one has failed; then nobody listens any more.
    """

    def __init__(self, config: ParallelConfig, trace: Trace) -> None:
        self.broken = False
        with _hushed():
            self.mesh = Mesh(trace, tp=config.tp, pp=config.pp, nodes=config.nodes)
            self._group = dist.new_group(backend="gloo", timeout=_DAYS)
            for group in (self.mesh.tp, self.mesh.pp):
                if group.size < dist.get_world_size():
                    _set_pg_timeout(timedelta(seconds=config.timeout), group._group)
            self.rank, self.size = dist.get_rank(), dist.get_world_size()
            self._processes = self.of_all(this_process())
        self._key = f"minillm failed {self._group.group_name}"

    def share(self, value: Any = None, source: int = 0) -> Any:
        """What rank `source` says, as JSON can, on all of them. All call it."""
        raw = torch.empty(0, dtype=torch.uint8)
        if self.rank == source:
            raw = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        size = torch.tensor([len(raw)])
        dist.broadcast(size, source, group=self._group)
        raw = raw if self.rank == source else torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(raw, source, group=self._group)
        return value if self.rank == source else json.loads(bytes(raw.numpy()))

    def of_all(self, value: Any) -> list[Any]:
        """What each of them says, in order of rank."""
        return [self.share(value, source) for source in range(self.size)]

    @contextmanager
    def watched(self) -> Iterator[None]:
        """A part of the work in which ranks wait for each other: RankError if another has failed.

        An error of this rank's own is raised as it is, and is what the others are told.
        """
        try:
            yield
        except BaseException as error:
            self.broken = True
            with held():
                found = self._who(error)
            if found and self.rank not in found:
                raise RankError(found, "mend it, and start all ranks again") from error
            raise

    def _who(self, error: BaseException) -> dict[int, str]:
        """Which rank has failed, and how: what is found first is what all of them are told."""
        waits = "gloo" in str(error) or isinstance(error, dist.DistError)
        found = {self.rank: f"{type(error).__name__}: {error}"}
        end = time.monotonic() + _LOOK_SECONDS * waits
        if waits or isinstance(error, KeyboardInterrupt):  # which whoever ends all sends, too
            found = self._gone()
        with suppress(dist.DistError, RuntimeError):  # where it was kept has gone as well
            store = _get_default_store()
            while not found and not store.check([self._key]) and time.monotonic() < end:
                time.sleep(0.01)
                found = self._gone()
            if found or store.check([self._key]):
                told = store.compare_set(self._key, "", json.dumps(found))
                return {int(rank): what for rank, what in json.loads(told).items()}
        others = (rank for rank in range(self.size) if rank != self.rank)
        return found or (dict.fromkeys(others, f"no answer ({error})") if waits else {})

    def _gone(self) -> dict[int, str]:
        ended = (rank for rank, process in enumerate(self._processes) if has_ended(*process))
        return dict.fromkeys(ended, "its process has ended")


@contextmanager
def _hushed() -> Iterator[None]:
    """Gloo tells on standard output that it has found the others; there goes the text alone."""
    sys.stdout.flush()
    kept, quiet = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(quiet)
