"""The places below HBM: whole pages of the KV cache in DRAM, or in one file on SSD.

A page goes down and comes back with all its layers in one piece, and pages come back together: a
small copy waits longer for the link than it takes. While a context larger than HBM runs, one
layer's part of many pages is read at once.

Shapes: L layers; a part is one layer's keys and values of a page, as words of 8 bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from zlib import crc32

import torch
from torch import Tensor

from minillm.errors import MinillmError, OutOfMemory
from minillm.files import StrPath, temporary_folder
from minillm.kv.pool import EMPTY, USED
from minillm.machine import Machine
from minillm.machine.disk import PAGE, free_disk, open_direct, read_at, writable_folder, write_at
from minillm.trace.record import Stamp

IN_FLIGHT = 8  # pages that are read from SSD at once: its latency is then paid once for all
WORD = torch.int64  # what pages move as: torch indexes rows of single bytes one by one
KV = {"label": USED, "stage": "model"}


class Places:
    """A tier's places for pages, `size` bytes each, and who lies there.

    slots: of each page that lies here, its slot; free: the other slots, the last is taken next.
    relabel: says of so many bytes that their label has changed, as `Tier.relabel`.
    """

    def __init__(self, name: str, slots: int, size: int, relabel: Callable) -> None:
        self.name, self.size, self._relabel = name, size, relabel
        self.slots, self.free = dict[int, int](), list(range(slots))[::-1]

    def enter(self, page: int, slot: int) -> None:
        """The page lies in the slot now, which was free."""
        self.slots[page] = slot
        self._relabel(self.size, EMPTY, USED)

    def leave(self, page: int) -> None:
        """A page, if it lies here, need not any more; its bytes stay until others come."""
        if page in self.slots:
            self.free.append(self.slots.pop(page))
            self._relabel(self.size, USED, EMPTY)


class DramPages(Places):
    """Pages in DRAM: a block of `slots` of them, taken now. OutOfMemory if it does not fit.

    many: pages of a `fetch`, at most.
    """

    many = 2**31

    def __init__(self, machine: Machine, slots: int, layers: int, part: int) -> None:
        self._machine = machine
        self._block = machine.empty((slots, layers, part), WORD, "dram", EMPTY)
        relabel = partial(machine.relabel, self._block)
        super().__init__("dram", slots, layers * part * WORD.itemsize, relabel)

    def write(self, slot: int, page: Tensor) -> None:
        """Fill a slot with a page (L, part)."""
        self._machine.copy(page, self._block[slot], **KV)

    def fetch(self, pages: Sequence[int], layers: slice) -> tuple[Tensor, list[int], dict]:
        """Where layers of pages lie in DRAM: a tensor (…, L, part), rows of it; what is lost."""
        return self._block, [self.slots[page] for page in pages], {}

    def close(self) -> None:
        """Give everything back."""
        self._machine.free(self._block)
        self._block = self._relabel = None


class SsdPages(Places):
    """Pages in one file on SSD, whose blocks are all taken now. OutOfMemory if it does not fit.

    It is written and read past the page cache where the system can, so a part begins at a whole
    block of the disk. What comes back must have the checksum of what went. The file goes with the
    process; what a killed one left is swept by the next.

    written: bytes so far, for writing wears a disk.
    """

    many = IN_FLIGHT

    def __init__(
        self, machine: Machine, slots: int, layers: int, part: int, folder: StrPath | None
    ) -> None:
        folder = folder or writable_folder()
        self.stride = -(-part * WORD.itemsize // PAGE) * PAGE  # bytes of a part in the file
        super().__init__("ssd", slots, layers * self.stride, machine.ssd.relabel)
        self._machine, self._part, self.written = machine, part, 0
        self._sums: dict[int, list[int]] = {}  # of each slot: of each part
        room = machine.empty((IN_FLIGHT * self.size + PAGE,), torch.uint8, "dram", "staging")
        room = room.zero_()[-room.data_ptr() % PAGE :][: IN_FLIGHT * self.size]
        self._rooms = room.view(WORD).view(IN_FLIGHT, layers, -1)
        self._threads = ThreadPoolExecutor(IN_FLIGHT, "minillm-pages")
        self._folder, self._bytes = temporary_folder(folder), slots * self.size
        path = Path(self._folder.name) / "pages"
        try:
            _preallocate(path, self._bytes)
            self._fd = open_direct(path, write=True).fd
        except OSError as error:
            self._give_back()
            raise OutOfMemory("ssd", self._bytes, free_disk(folder), {}) from error
        # The file is there, perhaps on another disk than the one that the tier was measured on.
        machine.ssd.capacity = max(machine.ssd.capacity, machine.ssd.used + self._bytes)
        machine.ssd.reserve(self._bytes, EMPTY)

    def write(self, slot: int, page: Tensor) -> None:
        """Fill a slot with a page (L, part) in HBM or DRAM. MinillmError if the disk cannot."""
        room, at, machine = self._rooms[0], slot * self.size, self._machine
        if machine.tier_of(page) is machine.hbm:
            machine.copy(page, room[:, : self._part], **KV)
        else:
            room[:, : self._part] = page
        self._sums[slot] = [crc32(row) for row in room.numpy()]
        do = partial(write_at, self._fd, memoryview(room.numpy()).cast("B"), at)
        try:
            machine.carry(do, self.size, source="dram", target="ssd", **KV)
        except OSError as error:
            wanted = f"wanted to write a page of the KV cache to SSD, found “{error.strerror}”"
            do = "free room on that disk, or choose another ssd_dir"
            raise MinillmError(f"{wanted}; {do}") from error
        self.written += self.size

    def fetch(self, pages: Sequence[int], layers: slice) -> tuple[Tensor, list[int], dict]:
        """Layers of pages in DRAM until the next call: a tensor (…, L, part), rows of it; and of
        each page that is lost, why. Several are read at once."""
        bring = partial(self._bring, layers, self._machine.trace.at.stamp)
        errors = self._threads.map(bring, map(self.slots.get, pages), self._rooms)
        lost = {page: error for page, error in zip(pages, errors, strict=True) if error}
        return self._rooms[..., : self._part], list(range(len(pages))), lost

    def _bring(self, layers: slice, stamp: Stamp, slot: int, room: Tensor) -> MinillmError | None:
        """Layers of a page into a buffer (L, stride); what went wrong, if anything."""
        room, at, machine = room[layers], slot * self.size, self._machine
        at += range(len(self._sums[slot]))[layers].start * self.stride
        do = partial(read_at, self._fd, memoryview(room.numpy()).cast("B"), at)
        try:
            with machine.trace.at(stamp):
                got = machine.carry(do, room.nbytes, source="ssd", target="dram", **KV)
            found = f"the file's end after {got:,} bytes" if got < room.nbytes else ""
            if not found and [crc32(row) for row in room.numpy()] != self._sums[slot][layers]:
                found = "other bytes than were written (the checksum differs)"
        except OSError as error:
            found = f"“{error.strerror}”"
        wanted = "wanted a page of the KV cache back from SSD"
        says = f"{wanted}, found {found}; check the disk, or choose another ssd_dir"
        return MinillmError(says) if found else None

    def close(self) -> None:
        """Give everything back."""
        os.close(self._fd)
        self._machine.ssd.release(self._bytes, EMPTY)
        self._give_back()

    def _give_back(self) -> None:
        self._threads.shutdown()
        self._machine.free(self._rooms)
        self._rooms = None
        self._folder.cleanup()


def _preallocate(path: Path, nbytes: int) -> None:
    """A file whose blocks are there: a full disk is told now, not in the middle of an answer."""
    with path.open("wb") as file:
        file.truncate(nbytes)
        if hasattr(os, "posix_fallocate"):
            with suppress(NotImplementedError):
                os.posix_fallocate(file.fileno(), 0, nbytes)
