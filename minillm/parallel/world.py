"""All ranks of an engine: how they find each other, what rank 0 tells all, and who has failed.

What rank 0 decides goes through a group of its own, where a rank may wait for days. Data goes
through the groups of the mesh, where it may not: a rank that does not answer in time has failed,
as one has that ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
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
from minillm.machine import Machine
from minillm.machine.host import n_cores
from minillm.machine.interrupt import held
from minillm.parallel.mesh import Mesh
from minillm.process import has_ended, settle, this_process

_DAYS = timedelta(days=30)
_LOOK_SECONDS = 2.0  # for who has failed to say so, or to be gone


def connect(config: ParallelConfig) -> None:
    """Join the ranks that `torchrun` started, by Gloo and, on CUDA, NCCL, unless they are joined.

    Raises ConfigError unless it has started tp · pp of them.
    """
    ranks, found = config.tp * config.pp, int(os.environ.get("WORLD_SIZE", 1))
    if dist.is_initialized() or found == ranks == 1:
        return
    if found != ranks:
        raise ConfigError(
            f"wanted {ranks} ranks, for tp = {config.tp} and pp = {config.pp}, found {found}; "
            f"start them, by `torchrun --nproc-per-node {ranks} -m minillm …`"
        )
    settle()
    torch.set_num_threads(n_cores())  # torchrun says 1, so that who does not care is safe
    if cuda := torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and _on_main():
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    with _hushed():
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=config.timeout))


class World:
    """The ranks that share a model. Made by all of them together, in a process group.

    >>> world = World(ParallelConfig(tp=2), machine)   # on each rank
    >>> world.told("go on")                            # what rank 0 said, on each of them
    'go on'

    mesh: the grid, with its traced groups. rank: this one's number. broken: whether one has
    failed; then nobody listens any more.
    """

    def __init__(self, config: ParallelConfig, machine: Machine) -> None:
        self.broken, sizes = False, dict(tp=config.tp, pp=config.pp, nodes=config.nodes)
        with _hushed():
            self.mesh = Mesh(machine.trace, **sizes, scale=machine.scale)
            self.rank = self.mesh.rank
            self._group = dist.new_group(backend="gloo", timeout=_DAYS)
            self._processes = self.of_all(this_process())
        for group in (self.mesh.tp, self.mesh.pp):
            _set_pg_timeout(timedelta(seconds=config.timeout), group.process_group)
        self._key = f"minillm failed {self._group.group_name}"

    def told(self, value: Any = None) -> Any:
        """What rank 0 says, on all of them. All call it."""
        values = [value]
        dist.broadcast_object_list(values, group=self._group)
        return values[0]

    def of_all(self, value: Any) -> list[Any]:
        """What each of them says, in order of rank."""
        values = [None] * self.mesh.world
        dist.all_gather_object(values, value, group=self._group)
        return values

    @contextmanager
    def watched(self) -> Iterator[None]:
        """A part of the work in which ranks wait for each other: RankError if another has failed.

        An error of this rank's own is raised as it is, and is what the others are told.
        """
        try:
            yield
        except BaseException as error:
            found: dict[int, str] = {}
            with suppress(KeyboardInterrupt), held():
                found = self._failed(error)
            self.broken = bool(found)
            if found and self.rank not in found:
                if _on_main():  # torchrun ends all when one has gone: we say first which
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)
                raise RankError(found, "mend it, and start all ranks again") from error
            raise

    def _failed(self, error: BaseException) -> dict[int, str]:
        """Which rank has failed, and how: the first to find out tells the others."""
        found, store = {}, _get_default_store()
        lost = "gloo" in str(error) or isinstance(error, dist.DistError)
        if not (lost or isinstance(error, KeyboardInterrupt)):  # who ends them all sends that
            found[self.rank] = f"{type(error).__name__}: {error}"
        end = time.monotonic() + _LOOK_SECONDS * lost
        while not found and not store.check([self._key]):
            gone = (rank for rank, process in enumerate(self._processes) if has_ended(*process))
            found = dict.fromkeys(gone, "its process has ended")
            if not found and time.monotonic() >= end:
                others = set(range(self.mesh.world)) - {self.rank}
                return dict.fromkeys(others, f"no answer ({error})") if lost else {}
            time.sleep(0.01)
        told = json.loads(store.compare_set(self._key, "", json.dumps(found)))
        return {int(rank): what for rank, what in told.items()}


def _on_main() -> bool:
    """Whether signals may be handled here."""
    return threading.current_thread() is threading.main_thread()


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
