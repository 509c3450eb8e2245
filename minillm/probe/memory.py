"""Ceilings of DRAM and the caches: how fast they are read and copied, and how late they answer.

Bandwidth and latency are two things. Reading in order, the processor fetches ahead and many
requests are in flight: bandwidth. Following pointers, it learns the next address only from the
last answer, so each step waits for one whole request: latency.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch

from minillm.compile import NoLibrary, library
from minillm.machine.cgroups import read
from minillm.machine.disk import PAGE
from minillm.machine.host import available_dram, cache_bytes, n_cores, torch_threads
from minillm.probe.measure import Measurement, NotHere, rates, summary
from minillm.probe.ssd import aligned

_LINE = 64  # bytes that DRAM delivers at a time
_MIB = 2**20
# chase.c as a compiler makes it for x86-64: mov rdi,[rdi]; dec rsi; jnz; mov rax,rdi; ret.
_CHASE_X86 = bytes.fromhex("488b3f 48ffce 75f8 4889f8 c3")


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
    threads = source.threads
    with torch_threads(threads):
        found = [("torch's copy_", rates(lambda: b.copy_(a), source.nbytes, seconds / 2))]
    with ThreadPoolExecutor(threads) as pool:
        copy = lambda at, n: ctypes.memmove(target.address + at, source.address + at, n)  # noqa: E731
        samples = rates(lambda: source.each(pool, copy), source.nbytes, seconds / 2)
        found.append(("memcpy", samples))
    of = {name: summary("dram.copy", "bytes/s", rate, "") for name, rate in found}
    name = max(of, key=lambda name: of[name].median)
    how = f"{name}, {threads} threads, {source.nbytes // _MIB} MiB; bytes that arrive"
    return summary("dram.copy", "bytes/s", dict(found)[name], how)


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
    64 bytes once a round, so that nothing can be fetched ahead. NotHere where no such loop can be
    had: Python itself takes longer for a step than a cache does.
    """
    largest = min(max(64 * _MIB, 4 * cache_bytes()), max(available_dram() // 8, 2**14))
    sizes = [n for n in (2**14 * 4**i for i in range(12)) if n < largest] + [largest]
    chase, how = _chase()
    for nbytes in sizes:
        lines = nbytes // _LINE
        memory, base = _cycle(lines)
        steps = max(lines // 4, 20_000)
        walk = partial(chase, base, steps)
        samples = [1 / rate for rate in rates(walk, steps, seconds / len(sizes))]
        name = f"{nbytes // _MIB} MiB" if nbytes >= _MIB else f"{nbytes // 1024} KiB"
        yield summary(f"latency {name}", "s", samples, how)
        del memory


def _chase() -> tuple[Callable[[int, int], int], str]:
    """The loop: in C by this machine's compiler, or else in machine code."""
    try:
        chase = library(Path(__file__).with_name("chase.c")).chase
    except NoLibrary:
        return _assembled()
    chase.argtypes, chase.restype = (ctypes.c_void_p, ctypes.c_long), ctypes.c_void_p
    return chase, "a pointer chase in C"


def _assembled() -> tuple[Callable[[int, int], int], str]:
    """The loop as the bytes a compiler would make of it, for x86-64."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise NotHere("needs a C compiler, for a loop that does nothing but follow pointers")
    try:
        code = mmap.mmap(-1, PAGE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError as error:
        raise NotHere("needs a C compiler: this system runs no code made by a program") from error
    code.write(_CHASE_X86)
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    loop = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long)(address)
    return lambda at, n, code=code: loop(at, n), "a pointer chase in machine code"  # keeps `code`


def _cycle(lines: int) -> tuple[mmap.mmap, int]:
    """Memory in which each line holds the address of another, all in one random round."""
    memory = aligned(lines * _LINE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    order = torch.randperm(lines)
    slots = torch.frombuffer(memory, dtype=torch.int64)[: lines * 8].view(lines, 8)
    slots[order, 0] = base + order.roll(-1) * _LINE
    return memory, base
