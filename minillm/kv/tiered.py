"""A pool whose pages lie in HBM, in DRAM or on SSD, and come to HBM when they are needed.

A page is a number, as in any pool; here the number is not its place. HBM has frames for some pages.
When there are more, a policy says which one moves down (`below.py`). It is written down once, and
not again while it is unchanged.

A pass may see more pages than there are frames. Then the last frames are a window, through which
one layer's part of each of the others comes when the layer's turn has come: see `offload.py`.

Shapes: M frames, L layers, K kv heads, P page size, E head size; a part is one layer of a page.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from contextlib import ExitStack
from functools import cached_property, partial

import torch
from torch import Tensor

from minillm.config import ModelConfig
from minillm.files import StrPath
from minillm.kv.below import Below
from minillm.kv.lower import WORD, DramPages, Places, SsdPages
from minillm.kv.pool import EMPTY, USED, PagePool
from minillm.machine import Machine
from minillm.machine.prefetch import waiting


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


class Frames(Places):
    """`frames` pages of HBM, each with all its layers; those of `window` at the end hold none.

    parts: all of it, (M · L, part). layers: of each its pool, (parts, 2, K, P, E), which begins at
    its part of the first frame, so that a page has the same index in all.
    """

    def __init__(
        self, pool: TieredPool, machine: Machine, frames: int, L: int, K: int, E: int
    ) -> None:
        inner = (K, pool.page_size, E) if machine.emulated else (pool.page_size, K, E)
        block = machine.empty((frames * L, 2, *inner), pool.dtype, "hbm", EMPTY)
        self.parts: Tensor | None = block.view(frames * L, -1).view(WORD)
        block = block if machine.emulated else block.transpose(2, 3)
        self.layers = [block[layer:] for layer in range(L)]
        super().__init__("hbm", frames, pool.page_nbytes, partial(machine.relabel, self.parts))
        self.L, self.frames, self.window = L, frames, 0
        self._pool, self._machine = pool, machine

    def close(self) -> None:
        """Give the memory back; a second call does nothing."""
        if self.parts is not None:
            self._machine.free(self.parts)
        self.parts = self._relabel = None
        self.layers = []

    def streams(self, window: int) -> int:
        """Of how many pages a window of so many frames holds a layer's part, and the next one's."""
        return max(0, (window * self.L - self.L + 1) // 2)

    def bring(self, pages: Collection[int], keep: Collection[int]) -> None:
        """A frame for each of these pages; what lies below comes up, all of it together.

        If no frame is empty, another page moves down: none of `keep`, which these must be in.
        """
        missing, frames = [page for page in pages if page not in self.slots], {}
        if missing:
            self._pool.settle()
        for page in missing:
            if not self.free:
                self._move_down(keep)
            frames[page] = self.free.pop()
        if coming := [page for page in missing if page in self._pool.below]:
            rows = torch.tensor([frames[page] for page in coming])[:, None] * self.L
            fields = {"stage": "model", "resource": "cpu", "label": USED}
            with self._machine.trace.span(waiting(USED), **fields):
                self._pool.below.read(coming, slice(0, self.L), rows + torch.arange(self.L))
        for page, frame in frames.items():  # not before: till now it lay below alone
            self.enter(page, frame)

    def widen(self, window: int, keep: Collection[int]) -> None:
        """Have a window of so many frames; pages in them move to others, or down, as in `bring`."""
        if window == self.window:
            return
        self._pool.settle()
        rest = self.frames - window
        while len(self.slots) > rest:
            self._move_down(keep)
        self.free = sorted(set(range(rest)).difference(self.slots.values()), reverse=True)
        for page in [page for page, frame in self.slots.items() if frame >= rest]:
            before = self.whole(page)
            self.slots[page] = self.free.pop()
            self.whole(page)[:] = before
        labels = (EMPTY, USED) if window > self.window else (USED, EMPTY)
        self._relabel(abs(window - self.window) * self.size, *labels)
        self.window = window

    def whole(self, page: int) -> Tensor:
        """The bytes of a page in its frame, (L, part)."""
        return self.parts[self.slots[page] * self.L :][: self.L]

    def _move_down(self, keep: Collection[int]) -> None:
        """The page that the policy names has no frame any more, and lies below."""
        pool, held = self._pool, [page for page in self.slots if page not in keep]
        if not pool.below.has_room():  # only who lies below already, or may be forgotten
            held = [p for p in held if p in pool.below or not pool.count[p]] or held
        page = pool.policy.victim(held)
        if page not in pool.below:
            pool.below.write(page, self.whole(page))
        self.leave(page)


class TieredPool(PagePool):
    """Pages of which `frames` fit into HBM at once; below are places for `dram`, then for `ssd`.

    hbm, below: where each page lies. policy: see `LRU`. lost: why a page cannot be brought back.
    writable: how many pages a pass may write. places: how many pages fit below. folder: of the
    file on SSD. settle: called before anything moves.
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
        any. Returns the pages that got none. If the pass before saw and wrote the same pages,
        nothing moves."""
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
