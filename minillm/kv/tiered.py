"""A pool whose pages lie in HBM, in DRAM or on SSD, and come to HBM when they are needed.

A page is a number, as in any pool; here the number is not its place. HBM is cut into frames, each
of a page with all its layers. When there are more pages than frames, a policy says which page
moves down. It is written down once, and not again while it is unchanged.

A pass may see more pages than there are frames. Then the last frames are a window, through which
one layer's part of each of the others comes when the layer's turn has come: see `offload.py`.

Shapes: M frames, L layers, K kv heads, P page size, E head size; a part is one layer of a page.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Protocol

import torch
from torch import Tensor

from minillm.config import ModelConfig
from minillm.kv.lower import WORD, Below, DramPages, SsdPages
from minillm.kv.pool import EMPTY, USED, PagePool
from minillm.machine import Machine
from minillm.machine.prefetch import waiting


class Policy(Protocol):
    """Which page moves down. Any object with these two will do.

    >>> class Newest:
    ...     def used(self, pages): ...
    ...     def victim(self, pages): return max(pages)
    >>> engine.kv.pool.policy = Newest()
    """

    def used(self, pages: Iterable[int]) -> None:
        """A pass sees these pages."""

    def victim(self, pages: Collection[int]) -> int:
        """One of these pages, to be moved down."""


class LRU:
    """The page that was seen the longest ago moves down; of several the first."""

    def __init__(self) -> None:
        self._passes, self._last = 0, {}  # and of each page the pass that saw it last

    def used(self, pages: Iterable[int]) -> None:
        self._passes += 1
        self._last |= dict.fromkeys(pages, self._passes)

    def victim(self, pages: Collection[int]) -> int:
        return min(pages, key=lambda page: self._last.get(page, 0))


class TieredPool(PagePool):
    """Pages of which `frames` fit into HBM at once; the others lie in `lower`: DRAM, then SSD.

    frame: of each page the frame it lies in, or None. lost: why a page cannot be brought back.
    window: frames at the end that hold no pages. policy: see `Policy`. settle: called before
    anything moves. most: pages that can be in use at once. writable: pages that a pass may write.
    """

    def __init__(
        self, config: ModelConfig, machine: Machine, dtype: torch.dtype, page_size: int,
        frames: int, lower: list[DramPages | SsdPages],
    ) -> None:  # fmt: skip
        self.L, self.frames, self.window, self.policy = config.num_hidden_layers, frames, 0, LRU()
        super().__init__(config, machine, dtype, page_size, frames)
        self.below, self.lost = Below(self, machine, lower), {}
        self.writable, places = max(1, frames // 4), sum(len(tier.free) for tier in lower)
        widths = range(frames - self.writable + 1)
        self._most = max(frames - w + min(self.streams(w), places) for w in widths)
        self.page_at: list[int | None] = [None] * frames
        self.count = [0] * (frames + places)
        self.free = list(range(len(self.count)))[::-1]
        self.frame: list[int | None] = [None] * len(self.count)
        self.settle: Callable[[], None] = lambda: None

    @property
    def most(self) -> int:
        return self._most

    def _allocate(self, pages: int) -> None:
        L, K, E = self._shape
        inner = (K, self.page_size, E) if self._machine.emulated else (self.page_size, K, E)
        block = self._machine.empty((pages * L, 2, *inner), self.dtype, "hbm", EMPTY)
        self.parts = block.view(pages * L, -1).view(WORD)  # (M · L, part)
        self._block = block if self._machine.emulated else block.transpose(2, 3)
        # Each begins at its own part of frame 0, so that a frame has the same index in all.
        self.layers[:] = [self._block[layer:] for layer in range(L)]

    def streams(self, window: int) -> int:
        """Of how many pages a window of so many frames holds a layer's part, and the next one's."""
        return max(0, (window * self.L - self.L + 1) // 2)

    # -- pages, as in any pool ---------------------------------------------------------------------

    def take(self) -> int:
        """A page for new text, held once from now on; it gets a frame when it is written."""
        if not self.free:
            self.forget(next(iter(self.known.unused)))
        page = self.free.pop()
        self.count[page] = 1
        return page

    def share(self, page: int) -> None:
        """One more table holds the page; nobody may have held it if it is kept."""
        assert self.count[page] > 0 or page in self.known.unused, f"page {page} is free"
        self.known.unused.pop(page, None)
        self.count[page] += 1

    def drop(self, page: int) -> None:
        """One table less holds the page; held by none, it is free, or kept for its text."""
        assert self.count[page] > 0, f"page {page} is freed twice"
        self.count[page] -= 1
        if not self.count[page]:
            self.known.unused[page] = None
            if page not in self.known.key_of:
                self.forget(page)

    def copy(self, page: int) -> int:
        """A new page with the same keys and values, for who wants to write."""
        new = self.take()
        self.bring((page, new), (page, new))
        self._whole(new)[:] = self._whole(page)
        return new

    def forget(self, page: int) -> None:
        """A page that nobody holds is free, and so are its places."""
        self.settle()
        del self.known.unused[page]
        if page in self.known.key_of:
            self.known.forget(page)
        self._lift(page)
        self.below.leave(page)
        self.lost.pop(page, None)
        self.free.append(page)

    def close(self) -> None:
        """Give everything back; a second call does nothing. Nobody may hold a page."""
        while self.known.unused:
            self.forget(next(iter(self.known.unused)))
        self.widen(0, set(), set())
        self.below.close()
        self.parts = None
        super().close()

    # -- frames ------------------------------------------------------------------------------------

    def bring(
        self, pages: Collection[int], keep: Collection[int], rather: Collection[int] = ()
    ) -> None:
        """A frame for each of these pages; what lies below comes up, all of it together.

        If no frame is empty, another page moves down: none of `keep`, which these must be in, and
        of `rather` only if it must.
        """
        missing, frames = [page for page in pages if self.frame[page] is None], {}
        for page in missing:
            self.settle()
            frames[page] = self._empty_frame(keep, rather)
            self._occupy(frames[page], page)
        if coming := self.below.sort(page for page in missing if page in self.below):
            rows = torch.tensor([frames[page] for page in coming])[:, None] * self.L
            fields = {"stage": "model", "resource": "cpu", "label": USED}
            with self._machine.trace.span(waiting(USED), **fields):
                self.below.read(coming, slice(0, self.L), rows + torch.arange(self.L))
        for page, frame in frames.items():  # not before: till now it lay below alone
            self.frame[page] = frame

    def widen(self, window: int, keep: Collection[int], rather: Collection[int]) -> None:
        """Have a window of so many frames; pages in them move to others, or down, as in `bring`."""
        hbm = self._machine.hbm
        if self.window != window:
            self.settle()
        while self.window > window:
            self.window -= 1
            hbm.relabel(self.page_nbytes, USED, EMPTY)
        while self.window < window:
            top = self.frames - self.window - 1
            page = self.page_at[top]
            if page is not None:
                frame = self._empty_frame(keep, rather)
                if frame != top:
                    before = self._whole(page)
                    self._lift(page)
                    self._occupy(frame, page)
                    self.frame[page] = frame
                    self._whole(page)[:] = before
            self.window += 1
            hbm.relabel(self.page_nbytes, EMPTY, USED)

    def room(self, keep: Collection[int]) -> int:
        """How many pages could get a frame, and none of `keep` would have to go."""
        held = self.page_at[: self.frames - self.window]
        return sum(page is None or page not in keep for page in held)

    def _whole(self, page: int) -> Tensor:
        """The bytes of a page in its frame, (L, part)."""
        return self.parts[self.frame[page] * self.L :][: self.L]

    def _occupy(self, frame: int, page: int) -> None:
        self.page_at[frame] = page
        self._machine.hbm.relabel(self.page_nbytes, EMPTY, USED)

    def _lift(self, page: int) -> None:
        """A page leaves its frame, if it has one."""
        if self.frame[page] is not None:
            self.page_at[self.frame[page]], self.frame[page] = None, None
            self._machine.hbm.relabel(self.page_nbytes, USED, EMPTY)

    def _empty_frame(self, keep: Collection[int], rather: Collection[int]) -> int:
        held = self.page_at[: self.frames - self.window]
        if None in held:
            return held.index(None)
        held = [page for page in held if page not in keep]
        if not self.below.has_room():  # only what lies below already, or what may be forgotten
            held = [page for page in held if page in self.below or not self.count[page]] or held
        page = self.policy.victim([page for page in held if page not in rather] or held)
        frame = self.frame[page]
        if page not in self.below:
            self.below.write(page, self._whole(page))
        self._lift(page)
        return frame
