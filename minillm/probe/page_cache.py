"""How much of a file the page cache holds: what is read from there never asks the SSD."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable


def cached(fd: int, size: int) -> float | None:
    """The share of a file's pages that the page cache holds (0 to 1); None where nobody tells.

    A large file is sampled, 64 pages in each of 64 places: asking for all costs a GB 20 ms. The
    kernel tells only who owns the file or may write it, for it shows what others have read; to
    anybody else it says "all of it", which is not believed.
    """
    mincore = None if os.name == "nt" else getattr(ctypes.CDLL(None), "mincore", None)
    if mincore is None or not size or not _may_ask(fd) or _tells_all(mincore):
        return None
    try:
        pages, length = mmap.mmap(fd, size, access=mmap.ACCESS_COPY), 64 * mmap.PAGESIZE
    except (OSError, ValueError):  # some network file systems map no files; it became shorter
        return None
    found, address = [], ctypes.addressof(ctypes.c_char.from_buffer(pages))
    for place in range(0, size, max(length, size // 64 // mmap.PAGESIZE * mmap.PAGESIZE)):
        here = _in_memory(mincore, address + place, min(length, size - place))
        if not here:
            return None
        found += here
    return sum(found) / len(found)


def _may_ask(fd: int) -> bool:
    """Whether this process, as what it now acts as, owns the file or may write it."""
    acts = os.access in os.supports_effective_ids
    may_write = os.access(f"/proc/self/fd/{fd}", os.W_OK, effective_ids=acts)
    return may_write or os.fstat(fd).st_uid == os.geteuid()


def _tells_all(mincore: Callable[..., int]) -> bool:
    """Whether memory that nobody has touched is in memory, too: some sandboxes always say so."""
    with mmap.mmap(-1, mmap.PAGESIZE, access=mmap.ACCESS_COPY) as untouched:
        address = ctypes.addressof(ctypes.c_char.from_buffer(untouched))
        return _in_memory(mincore, address, mmap.PAGESIZE) != [0]


def _in_memory(mincore: Callable[..., int], address: int, nbytes: int) -> list[int]:
    """For each page from `address` on, at most 64, whether it is; [] where nobody tells."""
    answer = (ctypes.c_ubyte * 64)()
    if mincore(ctypes.c_void_p(address), ctypes.c_size_t(nbytes), answer):
        return []
    return [byte & 1 for byte in answer[: -(-nbytes // mmap.PAGESIZE)]]
