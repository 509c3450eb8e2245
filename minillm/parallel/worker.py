"""The life of a rank: it does what comes through its pipe, until that is closed.

Two threads share the work: the main one runs what is asked, the other one listens. So a rank that
waits for another, deep inside of Gloo, can still tell at which line, and can still end; and one
that is watched tells what it records. (Signals would do the same on Linux and macOS, but not on
Windows, and not while C code is at work.)
"""

from __future__ import annotations

import atexit
import faulthandler
import io
import linecache
import os
import queue
import re
import signal
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from minillm.machine.host import n_cores
from minillm.process import settle
from minillm.trace import Event, Trace

_PATIENCE = timedelta(days=1)  # of Gloo; whoever runs the ranks has a patience of his own
_LOOK_SECONDS = 0.2  # a rank looks so often whether who began it is there, and tells what is new
_LEAVE_SECONDS = 0.5  # for one that is not at work to tidy up
WHERE, _END = b"where", b""  # instead of a function and its arguments
_PATHS = ("stdlib", "platstdlib", "purelib", "platlib")
_FOREIGN = (__file__, "<frozen", "<string>", *map(sysconfig.get_path, _PATHS))
_names: dict[str, Any] = {"__name__": "__main__"}  # what the cells of this rank know


class Answer(NamedTuple):
    """What a rank says at the end of its work, when it is asked where it is, or to who watches."""

    good: bool | None  # None: it is at work, all is well
    value: Any = None  # what was returned, or else what went wrong
    said: str = ""  # what was printed
    ready: bool = True  # for more
    new: Sequence[tuple[Event, float]] = ()  # what it recorded since, and the origin of its trace


class _Worker:
    """The two threads, and what is between them."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe, self.sending = pipe, threading.Lock()
        self.jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.said, self.cells = io.StringIO(), 0
        self.new: queue.SimpleQueue[tuple[Event, float]] = queue.SimpleQueue()  # if it is watched
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self) -> None:
        """Until the pipe is closed, or the process that began us is gone: a fork may hold it."""
        parent = os.getppid()
        with suppress(EOFError, OSError):
            while os.getppid() == parent:
                if not self.pipe.poll(_LOOK_SECONDS):
                    self.send(Answer(None))
                elif (job := self.pipe.recv_bytes()) == WHERE:
                    self.send(Answer(False, _where(), self.said.getvalue(), ready=False))
                else:
                    self.jobs.put(job)
        self.jobs.put(_END)
        time.sleep(_LEAVE_SECONDS)
        os._exit(1)  # it is still at work

    def send(self, answer: Answer) -> None:
        """With what is new; that all is well is told only then."""
        with self.sending, suppress(OSError):  # then nobody is there any more
            new = [self.new.get() for _ in range(self.new.qsize())]
            if new or answer.good is not None:
                self.pipe.send_bytes(ForkingPickler.dumps(answer._replace(new=new)))

    def work(self) -> None:
        while (job := self.jobs.get()) != _END:
            self.said = said = io.StringIO()
            try:
                with redirect_stdout(said), redirect_stderr(said), ExitStack() as stack:
                    do, arguments, watched = ForkingPickler.loads(job)
                    if watched:
                        stack.callback(self.watch(_names["trace"]))
                    value = self.run(do) if isinstance(do, str) else do(*arguments)
                self.send(Answer(True, value, said.getvalue()))
            except BaseException as error:  # `exit()` too, and a value that cannot be sent
                lines = _lines(traceback.extract_tb(error.__traceback__))
                what = f"{type(error).__name__}: {error}{lines and ' at '}{lines}"
                self.send(Answer(False, what, said.getvalue()))

    def watch(self, trace: Trace) -> Callable[[], object]:
        """What is recorded from now on is told; returns the undo."""
        return trace.subscribe(lambda event: self.new.put((event, trace.origin)))

    def run(self, cell: str) -> None:
        self.cells += 1
        name = f"<cell {self.cells}>"
        linecache.cache[name] = len(cell), None, cell.splitlines(True), name  # for tracebacks
        exec(compile(cell, name, "exec"), _names)


def last_words(folder: str, rank: int) -> Path:
    """The file of what a rank writes past Python, as a library does that ends its process."""
    return Path(folder) / f"stderr-{rank}"


def serve(rank: int, count: int, folder: str, pipe: Connection) -> None:
    """A rank's life, with the environment that `torchrun` gives to its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one that asked decides
    worker = _Worker(pipe)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count), "MINILLM_RANKS_FOLDER": folder,
    }  # fmt: skip
    if sys.platform != "win32":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    settle()
    torch.set_num_threads(n_cores())
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Gloo tells that it has found the others
    os.dup2(os.open(last_words(folder, rank), os.O_WRONLY | os.O_CREAT), 2)
    faulthandler.enable()  # of a crash too we are told where
    store = dist.FileStore(str(Path(folder) / "meet"), count)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=_PATIENCE)
    _names.update(rank=rank, world=count, torch=torch, dist=dist, trace=Trace())
    worker.send(Answer(True, None))
    worker.work()
    dist.destroy_process_group()
    atexit._run_exitfuncs()  # temporary files go; what is left, taking torch apart, costs a second
    os._exit(0)


def _where() -> str:
    """The line at which this rank's main thread is."""
    frame = sys._current_frames()[threading.main_thread().ident]
    waits = " waiting" if "distributed" in frame.f_code.co_filename else ""
    return f"still{waits} at {_lines(traceback.extract_stack(frame))}"


def _lines(frames: list[traceback.FrameSummary]) -> str:
    """Those of cells, or of other code that is the reader's: not of Python, torch or this file.

    'line 4: ring(x), line 2: dist.recv(x, 0)', the inner ones last.
    """
    own = [f for f in frames if not f.filename.startswith(_FOREIGN)]
    lines = ", ".join(f"{Path(f.filename).name} line {f.lineno}: {f.line}" for f in own)
    return re.sub(r"<cell \d+> ", "", lines)


def saved(name: str) -> bytes:
    """A variable of the cells as `torch.save` writes it, which needs no memory shared."""
    torch.save(_names.get(name), raw := io.BytesIO())
    return raw.getvalue()


def recorded() -> tuple:
    trace = _names["trace"]
    return trace.events, trace.meta, (trace.origin, trace.wall)
