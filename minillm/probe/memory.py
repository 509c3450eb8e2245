"""Ceilings of DRAM and the caches: how fast they are read and copied, and how late they answer.

Bandwidth and latency are two things. Reading in order, the processor fetches ahead and many
requests are in flight: bandwidth. Following pointers, it learns the next address only from the
last answer, so each step waits for one whole request: latency.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median

import torch

from minillm.compile import NoLibrary, library
from minillm.machine.cgroups import read
from minillm.machine.disk import PAGE
from minillm.machine.host import available_dram, cache_bytes, n_cores, torch_threads
from minillm.probe.measure import Measurement, NotHere, rates, summary
from minillm.probe.ssd import aligned

_LINE = 64  # bytes that DRAM delivers at a time
_MIB = 2**20


def working_set() -> int:
    """Bytes to read so that no cache can hold them: four times all caches, if DRAM has room."""
    size = min(max(256 * _MIB, 4 * all_caches()), available_dram() // 6)
    return max(size // (PAGE * n_cores()), 1) * PAGE * n_cores()


def all_caches() -> int:
    """Bytes of the caches before DRAM, together: a large server has one for each few cores."""
    shared = (f"/sys/devices/system/cpu/cpu{cpu}/cache/index3/shared_cpu_list"
              for cpu in range(os.cpu_count() or 1))  # fmt: skip
    return cache_bytes() * max(1, len(set(map(read, shared)) - {""}))


def dram_bandwidth(seconds: float = 0.5) -> Measurement:
    """How fast all cores together read DRAM.

    The C library's `memchr` looks for a byte that is not there: vector loads and nothing else, one
    thread a core. It was the equal of hand-written AVX-512 here, and torch's own reductions
    do not always use every core.
    """
    return _read("dram.read", working_set(), seconds)


def cache_bandwidths(seconds: float = 0.5) -> Iterator[Measurement]:
    """How fast all cores read a working set again and again: "read 1 MiB" and on, each twice the
    last, up to what no cache can hold. A model that fits a cache is read faster than DRAM."""
    most = working_set()
    sizes = [n for n in (_MIB << i for i in range(12)) if n < most]
    for nbytes in sizes:
        yield _read(f"read {nbytes // _MIB} MiB", nbytes, seconds / len(sizes))


def _read(name: str, nbytes: int, seconds: float) -> Measurement:
    """Each core its own part; a small one many times in a run, or starting would be what counts."""
    memory = _Memory(nbytes)
    times = max(1, 64 * _MIB // memory.nbytes)

    def read(at: int, n: int) -> None:
        for _ in range(times):
            memory.read(at, n)

    how = f"{memory.reader}, {memory.threads} threads, {memory.nbytes / _MIB:.0f} MiB"
    with ThreadPoolExecutor(memory.threads) as pool:
        samples = rates(lambda: memory.each(pool, read), times * memory.nbytes, seconds)
    return summary(name, "bytes/s", samples, how)


def copy_bandwidth(seconds: float = 0.5) -> Measurement:
    """How fast all cores together copy within DRAM: bytes that arrive, a second.

    Each is read and written, so the memory moves twice that. Of torch's `copy_` and the C
    library's `memcpy`, the faster.
    """
    source, target = (_Memory(working_set() // 2) for _ in range(2))
    a, b = (torch.frombuffer(m.memory, dtype=torch.uint8) for m in (source, target))
    copy = lambda at, n: ctypes.memmove(target.address + at, source.address + at, n)  # noqa: E731
    with torch_threads(source.threads), ThreadPoolExecutor(source.threads) as pool:
        ways = {"torch's copy_": lambda: b.copy_(a), "memcpy": lambda: source.each(pool, copy)}
        found = {way: rates(run, source.nbytes, seconds / 2) for way, run in ways.items()}
    way = max(found, key=lambda way: median(found[way]))
    how = f"{way}, {source.threads} threads, {source.nbytes // _MIB} MiB; bytes that arrive"
    return summary("dram.copy", "bytes/s", found[way], how)


class _Memory:
    """Zeros in DRAM, in one part a core."""

    def __init__(self, nbytes: int):
        self.threads = n_cores()
        self.part = max(nbytes // self.threads // PAGE, 1) * PAGE
        self.nbytes = self.part * self.threads
        self.memory = aligned(self.nbytes)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self.reader, self.read = self._reader()

    def _reader(self) -> tuple[str, Callable[[int, int], object]]:
        try:
            memchr = ctypes.CDLL(None).memchr  # ctypes lets go of the GIL: threads run at once
        except (AttributeError, OSError, TypeError):  # Windows
            numbers = torch.frombuffer(self.memory, dtype=torch.int32)
            return "torch's amax", lambda at, n: numbers[at // 4 : (at + n) // 4].amax()
        memchr.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t)
        memchr.restype = ctypes.c_void_p
        return "memchr", lambda at, n: memchr(self.address + at, 1, n)

    def each(self, pool: ThreadPoolExecutor, work: Callable[[int, int], object]) -> None:
        """`work(at, n)` for each part, all at once."""
        list(pool.map(lambda part: work(part * self.part, self.part), range(self.threads)))


def latencies(seconds: float = 2.0) -> Iterator[Measurement]:
    """How long one dependent load takes, for working sets from 16 KiB to past every cache.

    Steps in this curve are the caches; its last value is DRAM. A random cycle visits each line of
    64 bytes once a round, so that nothing can be fetched ahead. NotHere without a C compiler:
    Python itself takes longer for a step than a cache does.
    """
    largest = min(max(64 * _MIB, 4 * cache_bytes()), max(available_dram() // 8, 2**14))
    sizes = [n for n in (2**14 * 4**i for i in range(12)) if n < largest] + [largest]
    chase = _chase()
    for nbytes in sizes:
        lines = nbytes // _LINE
        memory, base = _cycle(lines)
        steps = max(lines // 4, 20_000)
        walk = partial(chase, base, steps)
        samples = [1 / rate for rate in rates(walk, steps, seconds / len(sizes))]
        name = f"{nbytes // _MIB} MiB" if nbytes >= _MIB else f"{nbytes // 1024} KiB"
        yield summary(f"latency {name}", "s", samples, "a pointer chase in C")
        del memory


def _chase() -> Callable[[int, int], int]:
    """The loop of chase.c: from an address, so many steps; where they lead to."""
    try:
        chase = library(Path(__file__).with_name("chase.c")).chase
    except NoLibrary as error:
        raise NotHere(f"a loop that only follows pointers needs a C compiler: {error}") from error
    chase.argtypes, chase.restype = (ctypes.c_void_p, ctypes.c_long), ctypes.c_void_p
    return chase


def _cycle(lines: int) -> tuple[mmap.mmap, int]:
    """Memory in which each line holds the address of another, all in one random round."""
    memory = aligned(lines * _LINE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    order = torch.randperm(lines)
    slots = torch.frombuffer(memory, dtype=torch.int64)[: lines * 8].view(lines, 8)
    slots[order, 0] = base + order.roll(-1) * _LINE
    return memory, base
