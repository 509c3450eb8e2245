"""The places below HBM: whole pages of the KV cache in DRAM, or in one file on SSD.

A page goes down and comes back with all its layers in one piece, for small copies wait longer for
the link than they take. While a context larger than HBM runs, one layer's part of many pages is
read at once.

Shapes: L layers; a part is one layer's keys and values of a page, as bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
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

if TYPE_CHECKING:
    from minillm.kv.tiered import TieredPool

_KV = {"label": "kv", "stage": "model"}


class Lower:
    """A tier that pages move down to, `size` bytes each.

    free: empty slots; pages: of each other slot its page.
    """

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

    def write(self, slot: int, page: Tensor) -> None:
        """Keep a page (L, part) that lies in HBM or DRAM. MinillmError if it cannot be kept."""
        raise NotImplementedError

    def read(self, slots: Sequence[int], layers: slice, out: Tensor) -> dict[int, MinillmError]:
        """Some layers of n pages to HBM: out (n, layers, part). Why one is lost, by its slot."""
        raise NotImplementedError

    def raw(self, slot: int) -> Tensor:
        """A page (L, part) in DRAM, for a moment. MinillmError if it is lost."""
        raise NotImplementedError

    def close(self) -> None:
        """Give everything back."""
        raise NotImplementedError


class DramPages(Lower):
    """Pages in DRAM: a block of `slots` of them, taken now. OutOfMemory if it does not fit."""

    def __init__(self, machine: Machine, slots: int, layers: int, part: int) -> None:
        super().__init__(machine.dram, slots, layers * part)
        self._machine = machine
        self._block = machine.empty((slots, layers, part), torch.uint8, "dram", EMPTY)

    def write(self, slot: int, page: Tensor) -> None:
        self._machine.copy(page, self._block[slot], **_KV)

    def read(self, slots: Sequence[int], layers: slice, out: Tensor) -> dict[int, MinillmError]:
        found = self._block[slots[0], None, layers]
        if len(slots) > 1:  # gathered, for one copy
            found = self._block[:, layers].index_select(0, torch.tensor(slots))
        self._machine.copy(found, out, source="dram", **_KV)
        return {}

    def raw(self, slot: int) -> Tensor:
        return self._block[slot]

    def close(self) -> None:
        self._machine.free(self._block)
        self._block = None


class SsdPages(Lower):
    """Pages in one file on SSD, whose blocks are all taken now. OutOfMemory if it does not fit.

    It is written and read past the page cache where the system can, so a part begins at a whole
    block of the disk. What comes back must have the checksum of what went. The file goes with the
    process; what a killed one left is swept by the next.

    written: bytes so far, for writing wears a disk.
    """

    def __init__(
        self, machine: Machine, slots: int, layers: int, part: int, folder: StrPath
    ) -> None:
        self.stride = -(-part // PAGE) * PAGE  # bytes of a part in the file
        super().__init__(machine.ssd, slots, layers * self.stride)
        self._machine, self._part, self._layers, self.written = machine, part, layers, 0
        self._sums: dict[int, list[int]] = {}
        room = machine.empty((self.size + PAGE,), torch.uint8, "dram", "staging").zero_()
        begin = -room.data_ptr() % PAGE
        self._room = room[begin : begin + self.size].view(layers, self.stride)
        self._folder = temporary_folder(folder)
        path = Path(self._folder.name) / "pages"
        try:
            _preallocate(path, slots * self.size)
            self._fd = open_direct(path, write=True).fd
        except OSError as error:
            self._give_back()
            free = free_disk(folder)
            raise OutOfMemory("ssd", slots * self.size, free, {}) from error
        self._held = slots * self.size
        machine.ssd.reserve(self._held, EMPTY)

    def write(self, slot: int, page: Tensor) -> None:
        kept = self._room[:, : self._part]
        if self._machine.tier_of(page) is self._machine.hbm:
            self._machine.copy(page, kept, **_KV)
        else:
            kept.copy_(page)
        self._sums[slot] = [crc32(row) for row in self._room.numpy()]
        view, at = memoryview(self._room.numpy()).cast("B"), slot * self.size
        try:
            self._machine.carry(
                lambda: write_at(self._fd, view, at), self.size, source="dram", target="ssd", **_KV
            )
        except OSError as error:
            raise MinillmError(
                f"wanted to write a page of the KV cache to SSD, found “{error.strerror}”; free "
                "room on that disk, or choose another ssd_dir"
            ) from error
        self.written += self.size

    def read(self, slots: Sequence[int], layers: slice, out: Tensor) -> dict[int, MinillmError]:
        lost = {}
        for row, slot in zip(out, slots, strict=True):
            try:
                self._machine.copy(self._fetch(slot, layers), row, source="dram", **_KV)
            except MinillmError as error:
                lost[slot] = error
                row.zero_()
        return lost

    def raw(self, slot: int) -> Tensor:
        return self._fetch(slot, slice(0, self._layers))

    def _fetch(self, slot: int, layers: slice) -> Tensor:
        """Some layers of a page, in the staging buffer: (layers, part)."""
        room = self._room[layers]
        view, at = memoryview(room.numpy()).cast("B"), slot * self.size + layers.start * self.stride
        found = ""
        try:
            got = self._machine.carry(
                lambda: read_at(self._fd, view, at), room.nbytes, source="ssd", target="dram", **_KV
            )
            if got < room.nbytes:
                found = f"the file's end after {got:,} bytes"
        except OSError as error:
            found = f"“{error.strerror}”"
        if not found and [crc32(row) for row in room.numpy()] != self._sums[slot][layers]:
            found = "other bytes than were written (the checksum differs)"
        if found:
            raise MinillmError(
                f"wanted a page of the KV cache back from SSD, found {found}; check the disk, or "
                "choose another ssd_dir"
            )
        return room[:, : self._part]

    def close(self) -> None:
        os.close(self._fd)
        self._machine.ssd.release(self._held, EMPTY)
        self._give_back()

    def _give_back(self) -> None:
        self._machine.free(self._room)
        self._room = None
        self._folder.cleanup()


def _preallocate(path: Path, nbytes: int) -> None:
    """A file whose blocks are there: a full disk is told now, not in the middle of an answer."""
    with path.open("wb") as file:
        file.truncate(nbytes)
        if hasattr(os, "posix_fallocate"):
            with suppress(NotImplementedError):
                os.posix_fallocate(file.fileno(), 0, nbytes)


class Below:
    """Where pages lie below HBM, those that have no frame and copies of those that have one.

    `page in below`: whether it lies there.
    """

    def __init__(self, pool: TieredPool, tiers: list[Lower]) -> None:
        self._pool, self.tiers = pool, tiers
        self.slots: dict[int, dict[int, int]] = {}  # of each page: its slot by number of the tier

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

    def read(self, pages: list[int], layers: slice, out: Tensor) -> None:
        """Some layers of n pages to HBM, out (n, layers, part); they lie in one tier."""
        tier = min(self.slots[pages[0]])
        slots = {self.slots[page][tier]: page for page in pages}
        lost = self.tiers[tier].read(list(slots), layers, out)
        self._pool.lost |= {slots[slot]: error for slot, error in lost.items()}

    def by_tier(self, pages: list[int]) -> list[list[int]]:
        """Pages in groups, each of one tier, the fastest first."""
        def tier(page: int) -> int:
            return min(self.slots[page])

        return [list(group) for _, group in groupby(sorted(pages, key=tier), tier)]

    def source(self, pages: Iterable[int]) -> str:
        """The slowest tier that pages come from, or would lie in: "dram" or "ssd"."""
        return self.tiers[max((min(self.slots.get(page, {0})) for page in pages), default=0)].name

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
            self._write(page, tier + 1, slot, lower.raw(self.slots[page][tier]))
            if page in self.slots:
                self._leave(page, tier)
        elif unused:
            pool.forget(pool.policy.victim(unused))
        return lower.free.pop() if lower.free else None
