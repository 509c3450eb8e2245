"""This process and others: which one is alive, its streams; and two settings of all of it, without
which torch on a CPU waits more than it computes.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
import zlib
from contextlib import suppress
from functools import cache


def this_process() -> tuple[str, int, int]:
    """Where it runs, its number there and when it began: what `has_ended` asks of others."""
    return _place(), os.getpid(), _start(os.getpid()) or 0


def _place() -> str:
    """Where a process id means something: this machine, and the container in it."""
    with suppress(OSError):
        return f"{zlib.crc32((platform.node() + os.readlink('/proc/self/ns/pid')).encode()):08x}"
    return f"{zlib.crc32(platform.node().encode()):08x}"


def has_ended(place: str, pid: int, start: int) -> bool:
    """Whether a process is over; False of one elsewhere, and where the system does not tell."""
    if os.name != "posix" or place != _place():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:  # another user's, and alive
        return False
    began = _start(pid)  # another process may have got the number
    return began is not None and start > 0 and began != start


def _start(pid: int) -> int | None:
    """When a process began, in the system's ticks: -1 if it has ended and nobody asked how, None
    where nobody tells."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stream:
            state, *fields = stream.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return -1 if state in (b"Z", b"X") else int(fields[18])


def open_what_is_closed() -> None:
    """Whoever starts us with `>&-` gives us no such stream, and the next file would take its
    number: a library that prints would write into it."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    sys.stdout = sys.stdout or open(os.devnull, "w")
    sys.stderr = sys.stderr or open(os.devnull, "w")


def hush(status: int) -> int:
    """What is left in the streams goes nowhere: at exit Python would fail to write it once more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
    return status


@cache
def settle() -> None:
    """Make both, once in the life of the process."""
    import torch

    _keep_freed_memory()
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & set(os.environ):
        before, made = torch.get_num_threads(), threading.Event()
        threading.Thread(None, _keep_a_team, "openmp-team", (made,), daemon=True).start()
        made.wait()
        torch.set_num_threads(before)


def _keep_freed_memory() -> None:
    """Have the process keep 64 MiB that were freed, where its allocator is glibc's.

    Else each product's result is new memory from Linux, page by page: half the time of a prefill.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(-1, 2**26)  # M_TRIM_THRESHOLD
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD: it takes no more


def _keep_a_team(made: threading.Event) -> None:
    """For ever: so that torch's threads soon sleep, not spin, while they wait for each other.

    GNU's OpenMP spins for milliseconds after each part of a product; beside one busy program that
    made a prompt of 140 tokens 60 times slower. Where torch came after us, `minillm/__init__.py`
    has set a limit: a higher one without a C compiler, for then torch decodes too, and would have
    to wake its threads for each of a hundred small products. (Beside busy programs it costs half of
    the speed.) Else this: with more OpenMP threads than cores it spins hardly at all, so one thread
    of ours has such a team and never calls it again.
    Source: libgomp, config/linux/wait.h, gomp_throttled_spin_count_var.
    """
    import torch

    torch.set_num_threads((os.cpu_count() or 1) + 1)
    torch.zeros(2**20).add_(1)
    made.set()
    threading.Event().wait()
