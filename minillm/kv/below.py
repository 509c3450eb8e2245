"""Where pages of the KV cache lie below HBM: which of them in DRAM, which on SSD, and who moves on.

Shapes: L layers; a part is one layer's keys and values of a page, as words of 8 bytes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minillm.errors import MinillmError
from minillm.kv.lower import KV, DramPages, SsdPages
from minillm.machine import Machine

if TYPE_CHECKING:
    from minillm.kv.tiered import TieredPool


class Below:
    """The tiers below HBM, the fastest first, with the pages that lie there.

    Those that have no frame, each in one tier; and copies of those that have one.
    """

    def __init__(self, pool: TieredPool, machine: Machine) -> None:
        self._pool, self._machine, self.tiers = pool, machine, list[DramPages | SsdPages]()

    def __contains__(self, page: int) -> bool:
        return any(page in tier.slots for tier in self.tiers)

    def has_room(self) -> bool:
        """Whether there is an empty slot, or one can be made."""
        pool, lie = self._pool, (page for tier in self.tiers for page in tier.slots)
        free = any(tier.free for tier in self.tiers)
        return free or any(not pool.count[p] or p in pool.hbm.slots for p in lie)

    def write(self, page: int, source: Tensor) -> None:
        """Keep a page in the first tier that has room. If none has, or it fails, it is lost."""
        number = next((n for n in range(len(self.tiers)) if self._make_room(n)), None)
        if number is not None:
            self._write(page, number, source)
        else:
            found = "wanted room for a page of the KV cache below HBM, found none"
            self._lose(page, MinillmError(f"{found}; give kv_dram or kv_ssd more"))

    def read(self, pages: Sequence[int], layers: slice, rows: Tensor) -> None:
        """Some layers of pages to HBM: to these rows of the pool's parts.

        rows: (pages, layers). What is lost is noted in the pool, and its parts are any bytes.
        """
        parts = self._pool.hbm.parts
        for tier in self.tiers:
            here = [at for at, page in enumerate(pages) if page in tier.slots]
            for begin in range(0, len(here), tier.many):
                some = here[begin : begin + tier.many]
                found, places, lost = tier.fetch([pages[at] for at in some], layers)
                self._pool.lost |= lost
                to = rows[some].flatten().to(parts.device)

                def move(found: Tensor = found, places: list[int] = places, to: Tensor = to):
                    taken = found[:, layers].index_select(0, torch.tensor(places))
                    parts.index_copy_(0, to, taken.flatten(0, 1).to(parts.device))

                nbytes = len(to) * parts[0].nbytes
                self._machine.carry(move, nbytes, source="dram", target="hbm", **KV)

    def source(self, pages: Collection[int]) -> str:
        """The slowest tier that pages come from, or would lie in: "dram" or "ssd"."""
        come = [tier for tier in self.tiers if any(page in tier.slots for page in pages)]
        return (come or self.tiers[:1])[-1].name

    def leave(self, page: int) -> None:
        """What lies here of a page is not needed any more, or not true any more."""
        for tier in self.tiers:
            tier.leave(page)

    def close(self) -> None:
        """Give everything back."""
        for tier in self.tiers:
            tier.close()
        self.tiers = []

    def _write(self, page: int, number: int, source: Tensor) -> None:
        tier = self.tiers[number]
        slot = tier.free.pop()
        try:
            tier.write(slot, source)
            tier.enter(page, slot)
        except MinillmError as error:  # nobody uses the slot again
            self._lose(page, error)

    def _lose(self, page: int, error: MinillmError) -> None:
        if self._pool.count[page]:
            self._pool.lost[page] = error
        else:
            self._pool.forget(page)

    def _make_room(self, number: int) -> bool:
        """Room in a tier, if need be of a page that has a frame too, moves on, or is forgotten."""
        if number == len(self.tiers):
            return False
        pool, tier = self._pool, self.tiers[number]
        here = [] if tier.free else list(tier.slots)
        twice = [p for p in here if p in pool.hbm.slots]
        unused = [p for p in here if not pool.count[p]]
        if twice:
            tier.leave(pool.policy.victim(twice))
        elif here and self._make_room(number + 1):
            page = pool.policy.victim(here)
            found, places, _ = tier.fetch([page], slice(None))
            tier.leave(page)
            self._write(page, number + 1, found[places[0]])
        elif unused:
            pool.forget(pool.policy.victim(unused))
        return bool(tier.free)
