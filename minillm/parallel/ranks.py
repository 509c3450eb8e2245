"""Ranks: processes beside this one that can send tensors to each other.

A notebook asks, the ranks do: each runs the same function, or the same cell, and may call what
`torch.distributed` offers. They end with the `with` block, or with the process that began them,
even if it is killed: a rank whose pipe is closed has nobody to work for.

    %load_ext minillm.parallel.ranks
    %%ranks 2 --timeout 20
    x = torch.ones(2) * rank
    dist.all_reduce(x)
    print(x)
"""

from __future__ import annotations

import io
import multiprocessing
import os
import re
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch

from minillm.errors import ConfigError, MinillmError, RankError
from minillm.files import temporary_folder
from minillm.parallel.worker import WHERE, Answer, last_words, recorded, saved, serve
from minillm.trace import Trace

_START_SECONDS = 180.0  # on a machine that is busy; else two
_GRACE_SECONDS = 1.0  # for the others to come to their end, when one has failed
_TELL_SECONDS = 0.5  # for a rank to say where it is
_WORDS = 2000  # characters of what it wrote as it crashed
_END_SECONDS = 2.0
_MUTE = Answer(False, "says nothing, at work outside of Python", ready=False)
_NO_MAIN = 'before it began: make Ranks under `if __name__ == "__main__":`, for it reads that file'


class Ranks(AbstractContextManager):
    """`count` processes in one Gloo group, on this machine. Takes a second or two to begin.

    They share its cores and its DRAM: each has an equal part. A failure ends them all.

    >>> with Ranks(2) as ranks:
    ...     ranks.run("x = rank + 1; dist.barrier(); print(x)")
    ...     ranks.run(dist.get_world_size), ranks.get("x")
    [rank 0] 1
    [rank 1] 2
    ([2, 2], [1, 2])
    """

    def __init__(self, count: int) -> None:
        assert count >= 1, count
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            raise SystemExit  # this is a rank, and reads the script that makes it: `_NO_MAIN`
        self._folder, self._owner = temporary_folder(), os.getpid()
        self._pipes: list[Connection] = []
        self._processes: list[BaseProcess] = []
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        for rank in range(count):
            here, there = context.Pipe()
            work = rank, count, self._folder.name, there
            self._processes.append(context.Process(target=serve, args=work, daemon=True))
            self._processes[-1].start()
            there.close()
            self._pipes.append(here)
        self._tell(self._gather(_START_SECONDS))

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """How many of them run: none, once they were closed or one has failed."""
        return len(self._pipes)

    def run(
        self, do: Callable[..., Any] | str, *arguments: Any, timeout: float = 60.0,
        live: Trace | None = None,
    ) -> list[Any]:  # fmt: skip
        """What `do(*arguments)` returned in each rank, in order of rank; so is what they print.

        do: a function of a module, for a new process cannot see one of a notebook. Or the text of
        a cell: it knows `rank`, `world`, `torch`, `dist`, `trace` and what earlier cells made, and
        returns None. RankError if a rank fails, or is not done after `timeout` seconds; then all
        are ended, for others may wait for it. If all made the same mistake, they go on.

        live: what `trace` gave before, for `watch`: what they record is added as they go on.
        """
        if isinstance(do, str):
            compile(do, "<cell>", "exec")  # a SyntaxError is raised here, and they go on
        if not self._pipes:
            do = "run the %%ranks cells above once more, or make new Ranks"
            raise MinillmError(f"wanted ranks that run, found them closed; {do}")
        _post(self._pipes, ForkingPickler.dumps((do, arguments, live is not None)))
        return self._tell(self._gather(timeout, live))

    def get(self, name: str) -> list[Any]:
        """This variable of each rank, None where it has none: a tensor, a number, a text, or a list
        or dict of them. A rank's own classes are not ours."""
        return [torch.load(io.BytesIO(raw), weights_only=True) for raw in self.run(saved, name)]

    def trace(self) -> Trace:
        """What the ranks recorded in their `trace`, merged: on one clock, each with its rank."""
        return Trace.merge([Trace.of(*recorded) for recorded in self.run(recorded)])

    def _gather(self, timeout: float, live: Trace | None = None) -> list[Answer]:
        """The answer of each rank, in order; of one that has none, where it is."""
        answers: dict[int, Answer] = {}
        try:
            if silent := self._hear(answers, timeout, live):
                _post(silent, WHERE)
                self._hear(answers, _TELL_SECONDS, live)
        except BaseException:  # an interrupt
            self.close(now=True)
            raise
        return [answers.get(rank, _MUTE) for rank in range(len(self._pipes))]

    def _hear(self, got: dict[int, Answer], seconds: float, live: Trace | None) -> list[Connection]:
        """Take what comes for so long, or until soon after a bad answer; the pipes still silent."""
        end, ready = time.monotonic() + seconds, self._pipes
        while (silent := [pipe for n, pipe in enumerate(self._pipes) if n not in got]) and ready:
            ready = wait(silent, max(0.0, end - time.monotonic()))
            for rank in map(self._pipes.index, ready):
                answer = _answer(self._pipes[rank], self._processes[rank], self._folder.name, rank)
                for event, origin in answer.new if live else ():
                    live.add(event, rank, origin)
                if answer.good is not None:
                    got[rank] = answer
                if answer.good is False:
                    end = min(end, time.monotonic() + _GRACE_SECONDS)
        return silent

    def _tell(self, answers: list[Answer]) -> list[Any]:
        """Print what they printed, and give back what they returned, or raise what went wrong."""
        for rank, answer in enumerate(answers):
            for line in answer.said.splitlines():
                print(f"[rank {rank}] {line}")
        failed = {rank: answer.value for rank, answer in enumerate(answers) if not answer.good}
        if not failed:
            return [answer.value for answer in answers]
        same = len(set(failed.values())) == 1 and len(failed) == len(answers)
        if same and all(answer.ready for answer in answers):
            raise RankError(failed, "mend it: the ranks go on, with all their variables")
        self.close(now=True)
        raise RankError(failed, "mend it and begin again: all ranks were ended")

    def close(self, now: bool = False) -> None:
        """End them. now: also those that are at work."""
        while self._pipes:
            self._pipes.pop().close()
        if self._owner != os.getpid():
            return  # a fork of the process whose they are
        for process in self._processes:
            process.join(0 if now else _END_SECONDS)
            process.kill()  # if it has not ended
            process.join()
        self._processes.clear()
        self._folder.cleanup()


def _post(pipes: Iterable[Connection], data: bytes) -> None:
    for pipe in pipes:
        with suppress(OSError):  # its process has ended: `_answer` will see
            pipe.send_bytes(data)


def _answer(pipe: Connection, process: BaseProcess, folder: str, rank: int) -> Answer:
    try:
        return pipe.recv()
    except (EOFError, OSError):
        process.join(_TELL_SECONDS)
        words = last_words(folder, rank)
        said = words.read_text(errors="replace")[:_WORDS] if words.exists() else _NO_MAIN
        what = f"its process ended, with exit code {process.exitcode} {said}"
        return Answer(False, what.strip(), ready=False)


def load_ipython_extension(shell: Any) -> None:
    """`%load_ext minillm.parallel.ranks`: a cell that begins with `%%ranks N` runs in N ranks.

    They begin with the first such cell, and go on to the next; the notebook knows them as `ranks`.
    """

    def run(line: str, cell: str) -> None:
        wanted = re.fullmatch(r"\s*([1-9]\d*)(?:\s+--timeout\s+(\d+\.?\d*))?\s*", line)
        if not wanted:
            raise ConfigError(f"wanted %%ranks N or %%ranks N --timeout SECONDS, found {line!r}")
        ranks = shell.user_ns.get("ranks")
        if not isinstance(ranks, Ranks) or len(ranks) != int(wanted[1]):
            if isinstance(ranks, Ranks):
                ranks.close()
            ranks = shell.user_ns["ranks"] = Ranks(int(wanted[1]))
        ranks.run(cell, timeout=float(wanted[2] or 60))

    shell.register_magic_function(run, "cell", "ranks")
