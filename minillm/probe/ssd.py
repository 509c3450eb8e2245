"""Ceilings of the disk: how fast it streams, how late it answers, what the page cache gives.

A file of random bytes is written, pushed out of the page cache, and read back with O_DIRECT. On a
virtual machine the host may still hold it in a memory of its own: no guest can know.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

from minillm.errors import OutOfMemory
from minillm.machine.disk import PAGE, Opened, drop_cache, open_direct, read_at
from minillm.machine.host import huge_pages, n_cores
from minillm.probe.measure import Measurement, rates, summary

BLOCK = 8 * 2**20  # bytes of one request, as a load asks for them: its latency hardly counts
IN_FLIGHT = 4
_FILE = 1024 * 2**20
_LEAST = 64 * 2**20
_RESERVE = 256 * 2**20  # bytes of disk that a scratch file leaves free


def disk(directory: str | Path, seconds: float = 5.0, nbytes: int = _FILE) -> Iterator[Measurement]:
    """Sequential reading cold (one request, then several in flight), latency, the page cache.

    Takes about `seconds`, of which half to write the file: up to `nbytes`, less on a slow disk or
    where that is more than half of what is free. Raises OutOfMemory as `scratch_file`, and leaves
    no file behind.
    """
    nbytes = min(nbytes, shutil.disk_usage(directory).free // 2 // PAGE * PAGE)
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


def aligned(nbytes: int) -> mmap.mmap:
    """Zeroed memory for `open_direct`: whole pages, huge ones where the system has them, touched.

    Touched, since the first write to a page costs more than a disk needs to fill it.
    """
    size = -(-nbytes // PAGE) * PAGE
    # Private: what processes share lies in tmpfs, which has no huge pages unless told by root.
    kind = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    memory = mmap.mmap(-1, max(size, PAGE), **kind)
    huge_pages(torch.frombuffer(memory, dtype=torch.uint8))
    memory[::PAGE] = bytes(len(memory) // PAGE)
    return memory


def read_all(fd: int, nbytes: int, buffers: Sequence[memoryview]) -> None:
    """Read the first `nbytes` of a file, one request for each buffer in flight, and keep nothing.

    The buffers are of one size, and aligned: slices of whole pages of `aligned` memory.
    """
    block = len(buffers[0])
    offsets = iter(range(0, nbytes, block))  # `next` is atomic: each offset is read once

    def work(buffer: memoryview) -> None:
        for offset in offsets:
            want = min(block, nbytes - offset)
            if read_at(fd, buffer[:want], offset) != want:
                raise OSError(errno.EIO, "the file ended early")

    if len(buffers) == 1:
        return work(buffers[0])
    with ThreadPoolExecutor(len(buffers)) as pool:
        list(pool.map(work, buffers))


class Scratch(NamedTuple):
    """A file of random bytes: its reader, and a plain descriptor of the same file."""

    reader: Opened
    plain: int
    nbytes: int


@contextmanager
def scratch_file(
    directory: str | os.PathLike[str], nbytes: int, seconds: float = 5.0, least: int = 16 * 2**20,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Scratch]:  # fmt: skip
    """A file of up to `nbytes` random bytes in `directory`, on disk and out of the page cache.

    Writing stops after `seconds`, on a slow disk, but not before `least` bytes. OutOfMemory if
    the disk has not room for it and some to spare. The file loses its name before the first byte
    is written, so that nothing is left whatever happens; where a file in use must keep its name,
    it is removed at the end.
    """
    free = shutil.disk_usage(directory).free
    if free < nbytes + _RESERVE:
        raise OutOfMemory("ssd", nbytes + _RESERVE, free, {})
    plain, path = tempfile.mkstemp(prefix=".minillm-", dir=directory)
    reader = None
    try:
        os.truncate(plain, PAGE)  # or there would be nothing to read on trial
        reader = open_direct(path)
        if os.name == "posix":
            os.unlink(path)
        written = _write_random(plain, nbytes, least, clock() + seconds, clock)
        os.fsync(plain)
        drop_cache(plain)
        yield Scratch(reader, plain, written)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OutOfMemory("ssd", nbytes, shutil.disk_usage(directory).free, {}) from error
    finally:
        os.close(plain)
        if reader is not None:
            os.close(reader.fd)
        if os.path.exists(path):
            os.unlink(path)


def _write_random(
    fd: int, nbytes: int, least: int, deadline: float, clock: Callable[[], float]
) -> int:
    """Random, since some disks compress. Every block differs in its first bytes."""
    block = bytearray(os.urandom(4 * 2**20))
    done = 0
    while done < nbytes and (done < least or clock() < deadline):
        block[:8] = done.to_bytes(8, "little")
        done += os.write(fd, block[: nbytes - done])
    return done // PAGE * PAGE
