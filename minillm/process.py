"""Two settings of the whole process, without which torch on a CPU waits more than it computes."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from functools import cache

import torch


@cache
def settle() -> None:
    """Make both, once in the life of the process."""
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
    torch.set_num_threads((os.cpu_count() or 1) + 1)
    torch.zeros(2**20).add_(1)
    made.set()
    threading.Event().wait()
