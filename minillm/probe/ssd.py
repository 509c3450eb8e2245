"""Ceilings of the disk: how fast it streams, how late it answers, what the page cache gives.

A file of random bytes is written, pushed out of the page cache, and read back with O_DIRECT. On a
virtual machine the host may still hold it in a memory of its own: no guest can know.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from minillm.errors import OutOfMemory
from minillm.machine.disk import PAGE, Scratch, aligned, drop_cache, read_all, read_at, scratch_file
from minillm.machine.host import n_cores
from minillm.probe.measure import Measurement, rates, summary

BLOCK = 8 * 2**20  # bytes of one request, as a load asks for them: its latency hardly counts
IN_FLIGHT = 4
_FILE = 1024 * 2**20
_LEAST = 64 * 2**20


def disk(directory: str | Path, seconds: float = 5.0, nbytes: int = _FILE) -> Iterator[Measurement]:
    """Sequential reading cold (one request, then several in flight), latency, the page cache.

    Takes about `seconds`, of which half to write the file: up to `nbytes`, less on a slow or
    crowded disk. Raises OutOfMemory where not even 64 MiB have room, and leaves no file behind.
    """
    nbytes = _size(directory, nbytes)
    with scratch_file(directory, nbytes, seconds / 2, min(nbytes, _LEAST)) as scratch:
        memory = memoryview(aligned(IN_FLIGHT * BLOCK))
        buffers = [memory[i * BLOCK : (i + 1) * BLOCK] for i in range(IN_FLIGHT)]
        each = seconds / 8
        # One after the other and not mixed: a file just written may still be in a memory of the
        # drive or the host, and so the first reads of it are too fast to be a ceiling.
        for name, some in (("ssd.read one", buffers[:1]), ("ssd.read", buffers)):
            yield _cold(scratch, name, some, each)
        yield _latency(scratch, buffers[0], each)
        yield _page_cache(scratch, each)


def _page_cache(scratch: Scratch, seconds: float) -> Measurement:
    """Read the file out of the page cache, into buffers that no cache of the processor holds."""
    threads = min(IN_FLIGHT, n_cores())
    memory = memoryview(aligned(threads * _LEAST))
    buffers = [memory[i * _LEAST : (i + 1) * _LEAST] for i in range(threads)]
    samples = rates(
        lambda: read_all(scratch.plain, scratch.nbytes, buffers), scratch.nbytes, seconds
    )
    how = f"read() of a file that the page cache holds, {threads} threads"
    return summary("page cache.read", "bytes/s", samples, how)


def _size(directory: str | Path, nbytes: int) -> int:
    """What half of the free disk has room for."""
    free = shutil.disk_usage(directory).free
    size = min(nbytes, free // 2 // PAGE * PAGE)
    if size < min(nbytes, _LEAST):
        raise OutOfMemory("ssd", 2 * min(nbytes, _LEAST), free, {})
    return size


def _cold(
    scratch: Scratch, name: str, buffers: list[memoryview], seconds: float
) -> Measurement:
    """Read the whole file, again and again, from the disk each time."""
    reader, nbytes = scratch.reader, scratch.nbytes
    how = f"{reader.how}, {len(buffers)} of {BLOCK >> 20} MiB in flight, {nbytes >> 20} MiB"
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < 3 or time.perf_counter() < end:
        if not reader.direct and drop_cache(scratch.plain) and not samples:
            how += ", dropped from the cache before"
        begin = time.perf_counter()
        read_all(reader.fd, nbytes, buffers)
        samples.append(nbytes / (time.perf_counter() - begin))
    return summary(name, "bytes/s", samples, how)


def _latency(scratch: Scratch, buffer: memoryview, seconds: float) -> Measurement:
    """One page at a time, anywhere in the file: from the question to the answer."""
    pages = list(range(0, scratch.nbytes, PAGE))
    random.shuffle(pages)  # no page twice: the second time even a disk may remember it
    if not scratch.reader.direct:
        drop_cache(scratch.plain)
    samples: list[float] = []
    end = time.perf_counter() + min(seconds, 1.0)
    for offset in pages:
        begin = time.perf_counter()
        read_at(scratch.reader.fd, buffer[:PAGE], offset)
        now = time.perf_counter()
        samples.append(now - begin)
        if now > end:
            break
    return summary("ssd.latency", "s", samples, f"{scratch.reader.how}, 4 KiB anywhere, one by one")
