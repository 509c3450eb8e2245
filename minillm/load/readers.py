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

import mmap
import os
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from minillm.load.chunks import BLOCK, Part
from minillm.load.safetensors import damaged, opened
from minillm.machine.disk import drop_cache, open_direct, read_at
from minillm.probe.page_cache import cached

READERS = ("read", "mmap", "direct")


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

    def asked(self, chunk: list[Part]) -> tuple[int, int]:
        """The bytes of the file that are asked for to bring a chunk, in whole steps: from, to."""
        return chunk[0].start // self.step * self.step, -(-chunk[-1].end // self.step) * self.step

    def fetch(self, chunk: list[Part], slot: Tensor | None) -> list[Tensor]:
        """The bytes of each part, uint8, one row a run; in `slot`, or the page cache if mapped.

        Raises CheckpointError for a file that has become shorter, or that the disk cannot read.
        """
        if self.pages is not None:
            return [self._touch(part) for part in chunk]
        (start, stop), last, done = self.asked(chunk), chunk[-1], 0
        need = last.end - start
        with memoryview(slot.numpy())[: stop - start] as window:
            while done < need:
                try:
                    got = read_at(self.fd, window[done:], start + done)
                except OSError as error:
                    raise self._unreadable(chunk, error) from error
                if done + got < need and got < self.step:
                    raise self._cut_short(last, start + done + got)
                done += got if done + got >= need else got // self.step * self.step
        return [_view(slot, part, part.start - start) for part in chunk]

    def _touch(self, part: Part) -> Tensor:
        size = min(os.fstat(self.fd).st_size, len(self.pages))
        if size < part.end:  # touching its pages would end the process
            raise self._cut_short(part, size)
        raw = _view(self.pages, part, part.start)
        # One byte of each page, so that the SSD is waited for here, on the clock, and not unseen
        # inside the copy to HBM.
        raw[..., :: mmap.PAGESIZE].sum()
        return raw

    def _unreadable(self, chunk: list[Part], error: OSError) -> Exception:
        do = 'check the disk, or take reader="read"' if self.step > 1 else "check the disk"
        wanted = "bytes {:,} to {:,}".format(*self.asked(chunk))
        return damaged(self.path, wanted, f"“{error.strerror}”", chunk[0].info.name, do)

    def _cut_short(self, part: Part, end: int) -> Exception:
        found = f"the file's end at {end:,} (it was longer a moment ago)"
        wanted = f"bytes {part.start:,} to {part.end:,}"
        return damaged(self.path, wanted, found, part.info.name)


def _view(whole: Tensor, part: Part, at: int) -> Tensor:
    """The part that begins at byte `at` of `whole`: (run,), or (rows, run) if it has several."""
    if part.rows == 1:
        return whole[at : at + part.run]
    size, stride = (part.rows, part.run), (part.info.stride, 1)
    return whole.as_strided(size, stride, whole.storage_offset() + at)


def _map(fd: int, size: int) -> Tensor:
    # A private map: a stray write goes to a copy of the page, never to the file.
    try:
        return torch.frombuffer(mmap.mmap(fd, size, access=mmap.ACCESS_COPY), dtype=torch.uint8)
    except ValueError:  # the file has become shorter, or is empty: `_touch` will say so
        return torch.empty(0, dtype=torch.uint8)


def drop(files: list[Path]) -> bool:
    """Have the page cache forget these files, so that the next load is cold. No root needed.

    False where the system cannot. Pages that somebody has mapped stay.
    """
    dropped = True
    for file in files:
        with opened(file) as (stream, _):
            dropped &= drop_cache(stream.fileno())
    return dropped
