"""What the operating system tells about this machine: memory, cores, processor, devices."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from pathlib import Path

import torch
from torch import Tensor

from minillm.errors import ConfigError, parse_size


def available_dram() -> int:
    """Bytes of DRAM that this process can still take: the kernel's figure, or the container's.

    The page cache counts as free: the kernel gives it up when memory is asked for.
    """
    free = _host_dram()
    group = Path("/sys/fs/cgroup")  # a container's limit can be far below what the host has
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free = min(free, limit - used + int(stat["file"]))
    except (OSError, ValueError, KeyError):  # no such file, or "max": no limit
        pass
    return max(free, 0)


def _host_dram() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(s.split()[1]) * 1024 for s in lines if s.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        # macOS says how much there is and not how much is free: half is a careful guess.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return 4 * 2**30  # Windows says neither without a library


def find_device(device: str) -> torch.device:
    """The CPU or a CUDA device that is here; "auto" prefers CUDA. Raises ConfigError."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        where = torch.device(device)
    except RuntimeError:
        where = torch.device("meta")
    if where.type == "cuda" and torch.cuda.is_available():
        index = torch.cuda.current_device() if where.index is None else where.index
        if index < torch.cuda.device_count():
            return torch.device("cuda", index)
    if where.type != "cpu":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        raise ConfigError(
            f"wanted the device {device!r}, found the CPU and {found} CUDA devices; "
            'take "auto" or "cpu"'
        )
    return where


def n_cores() -> int:
    """Cores that this process may use, which can be fewer than the host has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_name() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(s.split(":", 1)[1].strip() for s in lines if s.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine() or "unknown CPU"



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
    try:
        kinds = Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
        return max(parse_size(path.read_text().strip() + "iB") for path in kinds)
    except (OSError, ValueError, ConfigError):  # ValueError: there is no such folder
        return 32 * 2**20
