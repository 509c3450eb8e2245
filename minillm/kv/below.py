"""Where pages of the KV cache lie below HBM: which of them in DRAM, which on SSD, and who moves on.

Shapes: L layers; a part is one layer's keys and values of a page, as words of 8 bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minillm.errors import MinillmError
from minillm.kv.lower import KV, DramPages, SsdPages
from minillm.machine import Machine

if TYPE_CHECKING:
    from minillm.kv.tiered import TieredPool


class Below:
    """Where pages lie below HBM: those that have no frame, and copies of those that have one.

    slots: of each page that lies here, the number of its tier, and its slot there.
    """

    def __init__(self, pool: TieredPool, machine: Machine, tiers: list[DramPages | SsdPages]):
        self._pool, self._machine, self.tiers = pool, machine, tiers
        self.slots: dict[int, tuple[int, int]] = {}

    def __contains__(self, page: int) -> bool:
        return page in self.slots

    def has_room(self) -> bool:
        """Whether there is an empty slot, or one can be made."""
        pool, free = self._pool, any(tier.free for tier in self.tiers)
        return free or any(
            not pool.count[page] or pool.hbm.frame[page] is not None for page in self.slots
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
        parts, done = self._pool.hbm.parts, 0
        for tier, pages_of in groupby(pages, self._tier):
            here, lower = list(pages_of), self.tiers[tier]
            for at in range(0, len(here), lower.many):
                some = here[at : at + lower.many]
                slots = {self.slots[page][1]: page for page in some}
                found, at_rows, lost = lower.fetch(list(slots), layers)
                self._pool.lost |= {slots[slot]: error for slot, error in lost.items()}
                to = rows[done : done + len(some)].flatten().to(parts.device)

                def move(found: Tensor = found, at_rows: list[int] = at_rows, to: Tensor = to):
                    taken = found[:, layers].index_select(0, torch.tensor(at_rows))
                    parts.index_copy_(0, to, taken.flatten(0, 1).to(parts.device))

                nbytes = len(to) * parts[0].nbytes
                self._machine.carry(move, nbytes, source="dram", target="hbm", **KV)
                done += len(some)

    def sort(self, pages: Iterable[int]) -> list[int]:
        """Pages by the tier that they come from, the fastest first."""
        return sorted(pages, key=self._tier)

    def source(self, pages: Iterable[int]) -> str:
        """The slowest tier that pages come from, or would lie in: "dram" or "ssd"."""
        return self.tiers[max(map(self._tier, pages), default=0)].name

    def _tier(self, page: int) -> int:
        return self.slots.get(page, (0, 0))[0]

    def leave(self, page: int) -> None:
        """What lies here of a page is not needed any more, or not true any more."""
        if page in self.slots:
            tier, slot = self.slots.pop(page)
            self.tiers[tier].leave(slot)

    def close(self) -> None:
        """Give everything back."""
        for tier in self.tiers:
            tier.close()
        self.tiers = []

    def _write(self, page: int, tier: int, slot: int, source: Tensor) -> None:
        try:
            self.tiers[tier].write(slot, source)
        except MinillmError as error:  # nobody uses the slot again
            self._lose(page, error)
        else:
            self.slots[page] = tier, slot
            self.tiers[tier].enter(slot, page)

    def _lose(self, page: int, error: MinillmError) -> None:
        if self._pool.count[page]:
            self._pool.lost[page] = error
        else:
            self._pool.forget(page)

    def _empty_slot(self, tier: int) -> int | None:
        """Room, if need be of a page that has a frame too, moves on, or is forgotten."""
        if tier == len(self.tiers):
            return None
        pool, lower = self._pool, self.tiers[tier]
        here = [] if lower.free else list(lower.pages.values())
        twice = [p for p in here if pool.hbm.frame[p] is not None]
        unused = [p for p in here if not pool.count[p]]
        if twice:
            self.leave(pool.policy.victim(twice))
        elif here and (slot := self._empty_slot(tier + 1)) is not None:
            page = pool.policy.victim(here)
            found, rows, _ = lower.fetch([self.slots[page][1]], slice(None))
            self.leave(page)  # its bytes stay until others are written there
            self._write(page, tier + 1, slot, found[rows[0]])
        elif unused:
            pool.forget(pool.policy.victim(unused))
        return lower.free.pop() if lower.free else None
