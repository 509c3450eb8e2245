"""Ranks: processes beside this one that can send tensors to each other.

A notebook asks, the ranks do: each runs the same function, and may call what
`torch.distributed` offers. They end with the `with` block, or with the process that began them,
even if it is killed: a rank whose pipe is closed has nobody to work for.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from minillm.errors import MinillmError
from minillm.files import temporary_folder

_PATIENCE = timedelta(seconds=60)  # that a rank waits for another before it gives up
_END_SECONDS = 5.0


class Ranks:
    """`count` processes in one Gloo group, on this machine. Takes a second or two to begin.

    >>> with Ranks(2) as ranks:
    ...     ranks.run(dist.get_world_size)
    [2, 2]
    """

    def __init__(self, count: int) -> None:
        assert count >= 1, count
        self._folder = temporary_folder()
        self._pipes: list[Connection] = []
        self._processes: list[multiprocessing.process.BaseProcess] = []
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        meet = str(Path(self._folder.name) / "meet")
        for rank in range(count):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(rank, count, meet, there), daemon=True)
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, do: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What `do(*arguments)` returned in each rank, in order of rank.

        do: a function of a module; a process that begins anew cannot see one of a notebook. If one
        rank fails, its error is raised here, and all ranks are ended: others may wait for it.
        """
        if not self._pipes:
            raise MinillmError("wanted ranks that run, found them closed; make new ones")
        answers: dict[int, Any] = {}
        try:
            for pipe in self._pipes:
                pipe.send((do, arguments))
            while len(answers) < len(self._pipes):
                for pipe in wait([p for n, p in enumerate(self._pipes) if n not in answers]):
                    rank = self._pipes.index(pipe)
                    answers[rank] = self._answer(rank)
        except BaseException:  # an interrupt too
            self.close(now=True)
            raise
        return [answers[rank] for rank in range(len(answers))]

    def _answer(self, rank: int) -> Any:
        try:
            good, answer = self._pipes[rank].recv()
        except (EOFError, OSError):
            raise MinillmError(
                f"wanted an answer of rank {rank}, found that its process had ended; begin again"
            ) from None
        if not good:
            raise MinillmError(f"wanted rank {rank} to go on, found {answer}; mend that first")
        return answer

    def close(self, now: bool = False) -> None:
        """End them. now: also those that are at work."""
        while self._pipes:
            self._pipes.pop().close()
        for process in self._processes:
            if not now:
                process.join(_END_SECONDS)
            if process.is_alive():
                process.kill()
            process.join()
        self._processes.clear()
        self._folder.cleanup()


def _serve(rank: int, count: int, meet: str, pipe: Connection) -> None:
    """A rank's life: do what comes through the pipe, until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one that asked decides
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    torch.set_num_threads(1)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)  # Gloo tells on standard output that it has found the others
    os.dup2(quiet, 2)
    store = dist.FileStore(meet, count)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=_PATIENCE)
    with suppress(EOFError, OSError):
        while True:
            do, arguments = pipe.recv()
            try:
                answer = True, do(*arguments)
            except Exception as error:
                answer = False, f"{type(error).__name__}: {error}"
            pipe.send(answer)
    dist.destroy_process_group()
