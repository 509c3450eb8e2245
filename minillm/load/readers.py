"""One file, read in one of three ways. Each has its price:

    read    the kernel copies out of its page cache, which it fills from SSD where it must. The
            second load comes from DRAM; the first pays for filling the cache, 4 KiB by 4 KiB.
    mmap    the page cache's own memory appears in ours: nothing is copied, but each page costs a
            fault, and a file that is cut short under us ends the process (SIGBUS).
    direct  O_DIRECT: the SSD writes right into our buffer and the CPU is free. Nothing is kept,
            so the second load is no faster; all must be whole blocks.

What the page cache holds when a file is opened is measured, and goes into the trace: "fast" means
something else when the SSD was never asked.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from minillm.load.chunks import BLOCK, Piece, room
from minillm.load.safetensors import damaged, opened
from minillm.machine.disk import drop_cache, open_direct, read_at

READERS = ("read", "mmap", "direct")
_MANY = 1000  # buffers in one request: systems take 1,024


class WeightFile:
    """An open file, and how to bring bytes of it to DRAM. `fetch` may be called by any thread.

    how: one of READERS. note: for the trace, by what way the bytes come. warm: when it was opened
    the page cache held all of it, so the SSD is not asked; False where nobody tells. Raises
    CheckpointError if there is no such file, or it should be mapped and cannot be. Holds a file
    descriptor until `close`.
    """

    def __init__(self, path: Path, how: str):
        assert how in READERS, how
        self.path, self.how = path, how
        with opened(path) as (_, size):
            file = open_direct(path, how == "direct")
        self.fd, self.step, self.note = file.fd, BLOCK if file.direct else 1, file.how
        if how == "read" and hasattr(os, "posix_fadvise"):  # the kernel may read ahead by more
            with suppress(OSError):  # advice: where nobody takes it, nothing is lost
                os.posix_fadvise(file.fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        held = None if file.direct else cached(file.fd, size)
        self.warm = held is not None and held > 0.99  # all but the header, perhaps
        if not file.direct:
            share = "an unknown share" if held is None else f"{held:.0%}"
            self.note += f", which held {share} of the file"
        self.pages = self._mapped(size) if how == "mmap" else None

    def close(self) -> None:
        """Tensors that `fetch` made of a mapped file stay good for as long as they are held."""
        self.pages = None
        os.close(self.fd)

    def _mapped(self, size: int) -> Tensor:
        try:
            return _map(self.fd, size)
        except OSError as error:  # some network file systems
            self.close()
            found, do = f"“{error.strerror}”", 'take reader="read"'
            raise damaged(self.path, "a file that can be mapped", found, do=do) from error

    def ranges(self, pieces: list[Piece], gap: int) -> list[tuple[int, int]]:
        """What is asked for to bring `pieces`: one range of whole steps, or one for each run."""
        first, step = pieces[0], self.step
        ranges = [(first.start, pieces[-1].end)]
        if first.rows > 1 and (self.how == "mmap" or first.info.stride - first.run > gap):
            starts = range(first.start, first.end, first.info.stride)
            ranges = [(start, start + first.run) for start in starts]
        return [(start // step * step, -(-end // step) * step) for start, end in ranges]

    def fetch(
        self, pieces: list[Piece], ranges: list[tuple[int, int]], slot: Tensor | None
    ) -> list[Tensor]:
        """The bytes of each piece, uint8, one row a run; in `slot`, or the page cache if mapped.

        Raises CheckpointError for a file that has become shorter, OSError for one that the disk
        cannot read.
        """
        if self.pages is not None:
            return [self._touch(piece) for piece in pieces]
        first = pieces[0]
        if len(ranges) > 1:
            return [self._gather(first, ranges, slot)]
        self._read(slot, ranges[0], pieces[-1])
        return [_view(slot, piece, piece.start - ranges[0][0]) for piece in pieces]

    def scatter(self, pieces: list[Piece], targets: list[Tensor]) -> None:
        """Fill each target with the bytes of its piece, right out of the page cache.

        With a single request if the pieces adjoin, for they are often many and small. Errors as
        in `fetch`. A target is uint8 and flat, a piece one run.
        """
        adjoin = all(one.end == two.start for one, two in pairwise(pieces))
        if adjoin and len(pieces) < _MANY:
            views = [memoryview(target.numpy()) for target in targets]
            if read_at(self.fd, views, pieces[0].start) == pieces[-1].end - pieces[0].start:
                return
        for piece, target in zip(pieces, targets, strict=True):
            self._read(target, (piece.start, piece.end), piece)

    def _read(self, slot: Tensor, asked: tuple[int, int], last: Piece, end: int = 0) -> None:
        """Fill `slot`, from its beginning on, with the bytes `asked` for, up to `end` at least."""
        start, stop = asked
        need, done = (end or last.end) - start, 0
        with memoryview(slot.numpy())[: stop - start] as window:
            while done < need:
                got = read_at(self.fd, window[done:], start + done)
                if done + got < need and got < self.step:
                    raise self._cut_short(last, start + done + got)
                done += got if done + got >= need else got // self.step * self.step

    def _gather(self, piece: Piece, ranges: list[tuple[int, int]], slot: Tensor) -> Tensor:
        """Read run by run, and close the runs up: (rows, run)."""
        apart = piece.run if self.step == 1 else room(piece.run)
        for row, asked in enumerate(ranges):
            start = piece.start + row * piece.info.stride
            self._read(slot[row * apart :], asked, piece, start + piece.run)
        with memoryview(slot.numpy()) as window:
            for row, (begin, _) in enumerate(ranges if self.step > 1 else ()):
                at = row * apart + piece.start + row * piece.info.stride - begin
                window[row * piece.run :][: piece.run] = window[at : at + piece.run]
        return slot[: piece.nbytes].view(piece.rows, piece.run)

    def _touch(self, piece: Piece) -> Tensor:
        size = min(os.fstat(self.fd).st_size, len(self.pages))
        if size < piece.end:  # touching its pages would end the process
            raise self._cut_short(piece, size)
        raw = _view(self.pages, piece, piece.start)
        # One byte of each page, so that the SSD is waited for here, on the clock, and not unseen
        # inside the copy to HBM.
        raw[..., :: mmap.PAGESIZE].sum()
        return raw

    def _cut_short(self, piece: Piece, end: int) -> Exception:
        found = f"the file's end at {end:,} (it was longer a moment ago)"
        wanted = f"bytes {piece.start:,} to {piece.end:,}"
        return damaged(self.path, wanted, found, piece.info.name)


def _view(whole: Tensor, piece: Piece, at: int) -> Tensor:
    """The piece that begins at byte `at` of `whole`: (run,), or (rows, run) if it has several."""
    if piece.rows == 1:
        return whole[at : at + piece.run]
    size, stride = (piece.rows, piece.run), (piece.info.stride, 1)
    return whole.as_strided(size, stride, whole.storage_offset() + at)


def _map(fd: int, size: int) -> Tensor:
    # A private map: a stray write goes to a copy of the page, never to the file.
    try:
        return torch.frombuffer(mmap.mmap(fd, size, access=mmap.ACCESS_COPY), dtype=torch.uint8)
    except ValueError:  # the file has become shorter, or is empty: `_touch` will say so
        return torch.empty(0, dtype=torch.uint8)


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
        pages, length = _map(fd, size), 64 * mmap.PAGESIZE
    except OSError:  # some network file systems map no files
        return None
    found = []
    for place in range(0, size, max(length, size // 64 // mmap.PAGESIZE * mmap.PAGESIZE)):
        here = _in_memory(mincore, pages.data_ptr() + place, min(length, size - place))
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


def drop(files: list[Path]) -> bool:
    """Have the page cache forget these files, so that the next load is cold. No root needed.

    False where the system cannot. Pages that somebody has mapped stay.
    """
    dropped = True
    for file in files:
        with opened(file) as (stream, _):
            dropped &= drop_cache(stream.fileno())
    return dropped
