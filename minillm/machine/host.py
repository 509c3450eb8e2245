"""What the operating system tells about this machine: memory, cores, processor, devices."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from minillm.errors import ConfigError
from minillm.machine.cgroups import cpu_quota, memory_room, read
from minillm.units import format_size, parse_size


def available_dram() -> int:
    """Bytes of DRAM that this process can still take: what the machine has free, or less if the
    memory limit of its control group, or of one above, leaves less.

    The page cache counts as free: the kernel gives it up when memory is asked for. A rank has its
    part: those of one machine share it.
    """
    return int(min(_host_dram(), memory_room().amount)) // _ranks()


def _host_dram() -> int:
    if told := re.search(r"^MemAvailable: *([0-9]{1,30})\b", read("/proc/meminfo"), re.MULTILINE):
        return int(told[1]) * 1024
    with suppress(AttributeError, OSError, ValueError):
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        if pages > 0 and size > 0:  # they are -1 where it does not know
            return pages * size // 2  # a careful guess: macOS does not say how much is free
    return 4 * 2**30  # Windows says neither without a library


def find_device(device: str) -> torch.device:
    """The CPU or a CUDA device that is here; "auto" prefers CUDA. Raises ConfigError."""
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        device = "cuda" if cards else "cpu"
    with suppress(RuntimeError):  # no device of torch's
        where = torch.device(device)
        if where.type == "cuda" and where.index is None and cards:
            return torch.device("cuda", torch.cuda.current_device())
        if where.type == "cpu" or (where.type == "cuda" and where.index in range(cards)):
            return where
    raise ConfigError(
        f"wanted the device {device!r}, found the CPU and {cards} CUDA devices; "
        'take "auto" or "cpu"'
    )


def n_cores() -> int:
    """Cores that this process may keep busy, which can be fewer than the machine has.

    As many as it may run on, and as its CPU quota pays for: the least of its control group and
    all above. A part of a core is left out, for with one thread more than the quota pays for the
    kernel stops them all, several times a second. Of ranks, each has its part.
    """
    return max(1, int(min(_affinity(), cpu_quota().amount)) // _ranks())


def _ranks() -> int:
    """Ranks that share this machine: `torchrun` says it to them, and so does `Ranks`."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def _affinity() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except (AttributeError, OSError):
        return os.cpu_count() or 1


def limits() -> list[str]:
    """What this process may use less of than the machine has, and by what: for a report.

    >>> limits()
    ['1 of 2 cores: CPU quota of the container, 1.5 in /sys/fs/cgroup']
    """
    found, cores, quota, room = [], os.cpu_count() or 1, cpu_quota(), memory_room()
    if n_cores() < cores:
        why = "affinity of the process"
        if quota.amount < _affinity():
            why = f"CPU quota of the container, {quota.amount:.3g} in {quota.group}"
        found.append(f"{n_cores()} of {cores} cores: {why}")
    if room.amount < (free := _host_dram()):
        amounts = f"{format_size(int(room.amount))} of {format_size(free)} DRAM free"
        found.append(f"{amounts}: memory limit of the container, in {room.group}")
    return found


@contextmanager
def torch_threads(n: int) -> Iterator[None]:
    """Have torch compute with `n` threads (at least one) inside, and with as many as before after.

    >>> with torch_threads(1):
    ...     torch.get_num_threads()
    1
    """
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, n))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def limit_threads() -> None:
    """Take from torch the threads that the CPU quota does not pay for; without one, none."""
    if cpu_quota().amount < torch.get_num_threads():
        torch.set_num_threads(n_cores())


def cpu_name() -> str:
    """What the processor calls itself."""
    told = re.findall(r"^model name\s*: *(.*\S)", read("/proc/cpuinfo"), re.MULTILINE)
    found = (*told[:1], platform.processor(), platform.machine(), "unknown CPU")
    return next(filter(None, found))


_HUGE = 2 * 2**20  # bytes of a huge page
_MADV_HUGEPAGE = 14  # Linux's number


def huge_pages(tensor: Tensor) -> Tensor:
    """Ask Linux to back a tensor in DRAM with huge pages; returns it. Elsewhere nothing happens.

    Memory comes into being page by page, when it is first written: with pages of 4 KiB that costs
    more than filling it from a fast disk, with pages of 2 MiB a quarter as much. To be called
    before the first write.
    """
    begin = -(-tensor.data_ptr() // _HUGE) * _HUGE
    nbytes = (tensor.data_ptr() + tensor.nbytes) // _HUGE * _HUGE - begin
    if nbytes > 0 and sys.platform == "linux":
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(nbytes), _MADV_HUGEPAGE)
    return tensor


def cache_bytes() -> int:
    """Bytes of the largest cache between the cores and DRAM; 32 MiB where nobody tells."""
    told = (read(f"/sys/devices/system/cpu/cpu0/cache/index{n}/size").strip() for n in range(8))
    sizes = [parse_size(f"{size}iB") for size in told if re.fullmatch(r"[0-9]{1,9}[KMG]", size)]
    return max(sizes, default=0) or 32 * 2**20
