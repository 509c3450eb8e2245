"""A pool whose pages lie in HBM, in DRAM or on SSD, and come to HBM when they are needed.

A page is a number, as in any pool; here the number is not its place. HBM has room for some pages
(`frames.py`). When there are more, a policy says which one moves down (`below.py`). It is written
down once, and not again while it is unchanged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import ExitStack
from functools import cached_property

import torch

from minillm.config import ModelConfig
from minillm.files import StrPath
from minillm.kv.below import Below
from minillm.kv.frames import Frames
from minillm.kv.lower import WORD, DramPages, SsdPages
from minillm.kv.pool import PagePool
from minillm.machine import Machine


class LRU:
    """A policy: which page moves down? That which was seen the longest ago; of several the first.

    Any object with these two will do in its place:

    >>> class Newest:
    ...     def used(self, pages): "A pass sees these pages."
    ...     def victim(self, pages): return max(pages)  # one of these
    >>> engine.kv.pool.policy = Newest()
    """

    def __init__(self) -> None:
        self._passes, self._last = 0, {}  # and of each page the pass that saw it last

    def used(self, pages: Iterable[int]) -> None:
        self._passes += 1
        self._last |= dict.fromkeys(pages, self._passes)

    def victim(self, pages: Collection[int]) -> int:
        return min(pages, key=lambda page: self._last.get(page, 0))


class TieredPool(PagePool):
    """Pages of which `frames` fit into HBM at once; below are places for `dram`, then for `ssd`.

    hbm, below: where each page lies. policy: see `LRU`. lost: why a page cannot be brought back.
    writable: pages that a pass may write. places: of pages
    below. folder: of the file on SSD. settle: called before anything moves.
    """

    def __init__(
        self, config: ModelConfig, machine: Machine, dtype: torch.dtype, page_size: int,
        frames: int, dram: int, ssd: int, folder: StrPath | None = None,
    ) -> None:  # fmt: skip
        super().__init__(config, machine, dtype, page_size)
        self.fixed, self.policy, self.lost = True, LRU(), {}
        self.writable, self.places = max(1, frames // 4), dram + ssd
        self.count = [0] * (frames + self.places)
        self.free = list(range(len(self.count)))[::-1]
        L, part = self._shape[0], self.page_nbytes // self._shape[0] // WORD.itemsize
        self.below = Below(self, machine)
        with ExitStack() as stack:
            stack.callback(self.below.close)
            if dram:
                self.below.tiers.append(DramPages(machine, dram, L, part))
            if ssd:
                self.below.tiers.append(SsdPages(machine, ssd, L, part, folder))
            self.hbm = Frames(self, machine, frames, *self._shape)
            stack.pop_all()  # nothing failed: keep it all until we are closed
        self.layers, self.settle = self.hbm.layers, lambda: None

    @cached_property
    def most(self) -> int:
        """Pages that can be in use at once, with the widest window or a narrower one."""
        hbm, widest = self.hbm, self.hbm.frames - self.writable
        return max(hbm.frames - w + min(hbm.streams(w), self.places) for w in range(widest + 1))

    @property
    def room(self) -> int:
        """Pages that can be taken."""
        return self.most - self.held

    # -- pages, as in any pool ---------------------------------------------------------------------

    def copy(self, page: int) -> int:
        """A new page with the same keys and values, for who wants to write."""
        new = self.take()
        self.hbm.bring((page, new), (page, new))
        self.hbm.whole(new)[:] = self.hbm.whole(page)
        return new

    def forget(self, page: int) -> None:
        """A page that nobody holds is free, and so are its places."""
        self.settle()
        self.hbm.leave(page)
        self.below.leave(page)
        self.lost.pop(page, None)
        super().forget(page)

    # -- before a pass -----------------------------------------------------------------------------

    def arrange(self, seen: list[int], written: set[int]) -> list[int]:
        """Frames for what a pass sees: for all that it writes, and for the others while there are
        any. Returns those without. Nothing moves if the pass before saw and wrote the same."""
        hbm = self.hbm
        self.policy.used(seen)
        widths = range(hbm.frames)
        window = next(w for w in widths if hbm.frames - w + hbm.streams(w) >= len(seen))
        hbm.widen(window, written)
        hbm.bring(written, written)
        for page in written:
            self.below.leave(page)  # what lies there is of before the writing
        missing = [page for page in seen if page not in hbm.slots]
        room = hbm.frames - window - (len(seen) - len(missing))
        hbm.bring(missing[:room], set(seen))
        return missing[room:]

    def close(self) -> None:
        """Give everything back; a second call does nothing. Nobody may hold a page."""
        super().close()
        self.hbm.close()
        self.below.close()

    def _relabel(self, source: str, target: str) -> None:
        """Here frames and slots have labels, not pages."""
