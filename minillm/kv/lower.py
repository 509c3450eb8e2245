"""The places below HBM: whole pages of the KV cache in DRAM, or in one file on SSD.

A page goes down and comes back with all its layers in one piece, and pages come back together: a
small copy waits longer for the link than it takes. While a context larger than HBM runs, one
layer's part of many pages is read at once.

Shapes: L layers; a part is one layer's keys and values of a page, as words of 8 bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

import torch
from torch import Tensor

from minillm.errors import MinillmError, OutOfMemory
from minillm.files import StrPath, temporary_folder
from minillm.kv.pool import EMPTY, USED
from minillm.machine import Machine, Tier
from minillm.machine.disk import PAGE, free_disk, open_direct, read_at, write_at
from minillm.trace.record import Stamp

if TYPE_CHECKING:
    from minillm.kv.tiered import TieredPool

IN_FLIGHT = 8  # pages that are read from SSD at once: its latency is then paid once for all
WORD = torch.int64  # what pages move as: torch indexes rows of single bytes one by one
_KV = {"label": USED, "stage": "model"}


class Lower:
    """A tier that pages move down to, `size` bytes each.

    free: empty slots; pages: of each other slot its page. many: pages of a `fetch`, at most.
    """

    many = 2**31

    def __init__(self, tier: Tier, slots: int, size: int) -> None:
        self._tier, self.name, self.size = tier, tier.name, size
        self.free, self.pages = list(range(slots))[::-1], {}

    def enter(self, slot: int, page: int) -> None:
        """From now on the slot holds a page."""
        self.pages[slot] = page
        self._tier.relabel(self.size, EMPTY, USED)

    def leave(self, slot: int) -> None:
        """The page in the slot is not needed any more."""
        del self.pages[slot]
        self.free.append(slot)
        self._tier.relabel(self.size, USED, EMPTY)


class DramPages(Lower):
    """Pages in DRAM: a block of `slots` of them, taken now. OutOfMemory if it does not fit."""

    def __init__(self, machine: Machine, slots: int, layers: int, part: int) -> None:
        super().__init__(machine.dram, slots, layers * part * WORD.itemsize)
        self._machine = machine
        self._block = machine.empty((slots, layers, part), WORD, "dram", EMPTY)

    def write(self, slot: int, page: Tensor) -> None:
        """Keep a page (L, part)."""
        self._machine.copy(page, self._block[slot], **_KV)

    def fetch(self, slots: Sequence[int], layers: slice) -> tuple[Tensor, list[int], dict]:
        """Where layers of pages lie in DRAM: a tensor (…, L, part), rows of it; what is lost."""
        return self._block, list(slots), {}

    def close(self) -> None:
        """Give everything back."""
        self._machine.free(self._block)
        self._block = None


class SsdPages(Lower):
    """Pages in one file on SSD, whose blocks are all taken now. OutOfMemory if it does not fit.

    It is written and read past the page cache where the system can, so a part begins at a whole
    block of the disk. What comes back must have the checksum of what went. The file goes with the
    process; what a killed one left is swept by the next.

    written: bytes so far, for writing wears a disk.
    """

    many = IN_FLIGHT

    def __init__(
        self, machine: Machine, slots: int, layers: int, part: int, folder: StrPath
    ) -> None:
        self.stride = -(-part * WORD.itemsize // PAGE) * PAGE  # bytes of a part in the file
        super().__init__(machine.ssd, slots, layers * self.stride)
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
        machine.ssd.reserve(self._bytes, EMPTY)

    def write(self, slot: int, page: Tensor) -> None:
        """Keep a page (L, part) that lies in HBM or DRAM. MinillmError if the disk cannot."""
        room, at, machine = self._rooms[0], slot * self.size, self._machine
        if machine.tier_of(page) is machine.hbm:
            machine.copy(page, room[:, : self._part], **_KV)
        else:
            room[:, : self._part] = page
        self._sums[slot] = [crc32(row) for row in room.numpy()]
        do = partial(write_at, self._fd, memoryview(room.numpy()).cast("B"), at)
        try:
            machine.carry(do, self.size, source="dram", target="ssd", **_KV)
        except OSError as error:
            wanted = f"wanted to write a page of the KV cache to SSD, found “{error.strerror}”"
            do = "free room on that disk, or choose another ssd_dir"
            raise MinillmError(f"{wanted}; {do}") from error
        self.written += self.size

    def fetch(self, slots: Sequence[int], layers: slice) -> tuple[Tensor, list[int], dict]:
        """Layers of pages in DRAM until the next call: a tensor (…, L, part), rows of it; and of
        each slot that is lost, why. Several are read at once."""
        bring = partial(self._bring, layers, self._machine.trace.at.stamp)
        errors = self._threads.map(bring, slots, self._rooms)
        lost = {slot: error for slot, error in zip(slots, errors, strict=True) if error}
        return self._rooms[..., : self._part], list(range(len(slots))), lost

    def _bring(self, layers: slice, stamp: Stamp, slot: int, room: Tensor) -> MinillmError | None:
        """Layers of a page into a buffer (L, stride); what went wrong, if anything."""
        room, at, machine = room[layers], slot * self.size, self._machine
        at += range(len(self._sums[slot]))[layers].start * self.stride
        do = partial(read_at, self._fd, memoryview(room.numpy()).cast("B"), at)
        try:
            with machine.trace.at(stamp):
                got = machine.carry(do, room.nbytes, source="ssd", target="dram", **_KV)
            found = f"the file's end after {got:,} bytes" if got < room.nbytes else ""
            if not found and [crc32(row) for row in room.numpy()] != self._sums[slot][layers]:
                found = "other bytes than were written (the checksum differs)"
        except OSError as error:
            found = f"“{error.strerror}”"
        if not found:
            return None
        room.zero_()
        wanted = "wanted a page of the KV cache back from SSD"
        return MinillmError(f"{wanted}, found {found}; check the disk, or choose another ssd_dir")

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


class Below:
    """Where pages lie below HBM: those that have no frame, and copies of those that have one.

    slots: of each page that lies here, its slot by number of the tier. `page in below` asks it.
    """

    def __init__(self, pool: TieredPool, machine: Machine, tiers: list[DramPages | SsdPages]):
        self._pool, self._machine, self.tiers = pool, machine, tiers
        self.slots: dict[int, dict[int, int]] = {}

    def __contains__(self, page: int) -> bool:
        return page in self.slots

    def has_room(self) -> bool:
        """Whether there is an empty slot, or one can be made."""
        pool, free = self._pool, any(tier.free for tier in self.tiers)
        return free or any(
            not pool.count[p] or pool.frame[p] is not None or len(slots) > 1
            for p, slots in self.slots.items()
        )

    def write(self, page: int, source: Tensor) -> None:
        """Keep a page in the first tier that has room. If none has, or it fails, it is lost."""
        for tier in range(len(self.tiers)):
            slot = self._empty_slot(tier)
            if slot is not None:
                self._write(page, tier, slot, source)
                return
        found = "wanted room for a page of the KV cache below HBM, found none"
        self._lose(page, MinillmError(f"{found}; give kv_dram or kv_ssd more"))

    def read(self, pages: Sequence[int], layers: slice, rows: Tensor) -> None:
        """Some layers of pages, in the order of `sort`, to HBM: to these rows of the pool's parts.

        rows: (pages, layers). What is lost is noted in the pool, and its parts are zero.
        """
        parts, done = self._pool.parts, 0
        for tier, pages_of in groupby(pages, self._tier):
            here, lower = list(pages_of), self.tiers[tier]
            for at in range(0, len(here), lower.many):
                some = here[at : at + lower.many]
                slots = {self.slots[page][tier]: page for page in some}
                found, at_rows, lost = lower.fetch(list(slots), layers)
                self._pool.lost |= {slots[slot]: error for slot, error in lost.items()}
                to = rows[done : done + len(some)].flatten().to(parts.device)

                def move(found: Tensor = found, at_rows: list[int] = at_rows, to: Tensor = to):
                    taken = found[:, layers].index_select(0, torch.tensor(at_rows))
                    parts.index_copy_(0, to, taken.flatten(0, 1).to(parts.device))

                nbytes = len(to) * parts[0].nbytes
                self._machine.carry(move, nbytes, source="dram", target="hbm", **_KV)
                done += len(some)

    def sort(self, pages: Iterable[int]) -> list[int]:
        """Pages by the tier that they come from, the fastest first."""
        return sorted(pages, key=self._tier)

    def source(self, pages: Iterable[int]) -> str:
        """The slowest tier that pages come from, or would lie in: "dram" or "ssd"."""
        return self.tiers[max(map(self._tier, pages), default=0)].name

    def _tier(self, page: int) -> int:
        return min(self.slots.get(page, {0}))

    def leave(self, page: int) -> None:
        """What lies here of a page is not needed any more, or not true any more."""
        for tier, slot in self.slots.pop(page, {}).items():
            self.tiers[tier].leave(slot)

    def close(self) -> None:
        """Give everything back."""
        for tier in self.tiers:
            tier.close()
        self.tiers = []

    def _leave(self, page: int, tier: int) -> None:
        slots = self.slots[page]
        self.tiers[tier].leave(slots.pop(tier))
        if not slots:
            del self.slots[page]

    def _write(self, page: int, tier: int, slot: int, source: Tensor) -> None:
        try:
            self.tiers[tier].write(slot, source)
        except MinillmError as error:  # nobody uses the slot again
            self._lose(page, error)
        else:
            self.slots.setdefault(page, {})[tier] = slot
            self.tiers[tier].enter(slot, page)

    def _lose(self, page: int, error: MinillmError) -> None:
        if self._pool.count[page]:
            self._pool.lost[page] = error
        else:
            self._pool.forget(page)

    def _empty_slot(self, tier: int) -> int | None:
        """Room, if need be of a page that lies elsewhere too, moves on, or is forgotten."""
        if tier == len(self.tiers):
            return None
        pool, lower = self._pool, self.tiers[tier]
        here = [] if lower.free else list(lower.pages.values())
        twice = [p for p in here if pool.frame[p] is not None or len(self.slots[p]) > 1]
        unused = [p for p in here if not pool.count[p]]
        if twice:
            self._leave(pool.policy.victim(twice), tier)
        elif here and (slot := self._empty_slot(tier + 1)) is not None:
            page = pool.policy.victim(here)
            found, rows, _ = lower.fetch([self.slots[page][tier]], slice(None))
            self._write(page, tier + 1, slot, found[rows[0]])
            if page in self.slots:
                self._leave(page, tier)
        elif unused:
            pool.forget(pool.policy.victim(unused))
        return lower.free.pop() if lower.free else None
