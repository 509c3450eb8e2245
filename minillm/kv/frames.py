"""HBM, cut into frames of a page each, and who lies in them.

A pass may see more pages than there are frames. Then the last frames are a window, through which
one layer's part of each of the others comes when the layer's turn has come: see `offload.py`.

Shapes: M frames, L layers, K kv heads, P page size, E head size; a part is one layer of a page.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minillm.kv.lower import WORD
from minillm.kv.pool import EMPTY, USED
from minillm.machine import Machine
from minillm.machine.prefetch import waiting

if TYPE_CHECKING:
    from minillm.kv.tiered import TieredPool


class Frames:
    """`frames` pages of HBM, each with all its layers; those of `window` at the end hold none.

    frame: of each page the frame it lies in, or None; page_at: the other way round.
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
        self.L, self.frames, self.window = L, frames, 0
        self.page_at: list[int | None] = [None] * frames
        self.frame: list[int | None] = [None] * len(pool.count)
        self._pool, self._machine = pool, machine

    def close(self) -> None:
        """Give the memory back; a second call does nothing."""
        if self.parts is not None:
            self.widen(0, set(), set())
            self._machine.free(self.parts)
        self.parts, self.layers = None, []

    def streams(self, window: int) -> int:
        """Of how many pages a window of so many frames holds a layer's part, and the next one's."""
        return max(0, (window * self.L - self.L + 1) // 2)

    def bring(
        self, pages: Collection[int], keep: Collection[int], rather: Collection[int] = ()
    ) -> None:
        """A frame for each of these pages; what lies below comes up, all of it together.

        If no frame is empty, another page moves down: none of `keep`, which these must be in, and
        of `rather` only if it must.
        """
        missing, frames = [page for page in pages if self.frame[page] is None], {}
        for page in missing:
            self._pool.settle()
            frames[page] = self._empty_frame(keep, rather)
            self._occupy(frames[page], page)
        if coming := [page for page in missing if page in self._pool.below]:
            rows = torch.tensor([frames[page] for page in coming])[:, None] * self.L
            fields = {"stage": "model", "resource": "cpu", "label": USED}
            with self._machine.trace.span(waiting(USED), **fields):
                self._pool.below.read(coming, slice(0, self.L), rows + torch.arange(self.L))
        for page, frame in frames.items():  # not before: till now it lay below alone
            self.frame[page] = frame

    def widen(self, window: int, keep: Collection[int], rather: Collection[int]) -> None:
        """Have a window of so many frames; pages in them move to others, or down, as in `bring`."""
        relabel = partial(self._machine.relabel, self.parts, self._pool.page_nbytes)
        if self.window != window:
            self._pool.settle()
        while self.window > window:
            self.window -= 1
            relabel(USED, EMPTY)
        while self.window < window:
            top = self.frames - self.window - 1
            page = self.page_at[top]
            if page is not None:
                frame = self._empty_frame(keep, rather)
                if frame != top:
                    before = self.whole(page)
                    self.lift(page)
                    self._occupy(frame, page)
                    self.frame[page] = frame
                    self.whole(page)[:] = before
            self.window += 1
            relabel(EMPTY, USED)

    def room(self, keep: Collection[int]) -> int:
        """How many pages could get a frame, and none of `keep` would have to go."""
        held = self.page_at[: self.frames - self.window]
        return sum(page is None or page not in keep for page in held)

    def whole(self, page: int) -> Tensor:
        """The bytes of a page in its frame, (L, part)."""
        return self.parts[self.frame[page] * self.L :][: self.L]

    def _occupy(self, frame: int, page: int) -> None:
        self.page_at[frame] = page
        self._machine.relabel(self.parts, self._pool.page_nbytes, EMPTY, USED)

    def lift(self, page: int) -> None:
        """A page leaves its frame, if it has one."""
        if self.frame[page] is not None:
            self.page_at[self.frame[page]], self.frame[page] = None, None
            self._machine.relabel(self.parts, self._pool.page_nbytes, USED, EMPTY)

    def _empty_frame(self, keep: Collection[int], rather: Collection[int]) -> int:
        pool, held = self._pool, self.page_at[: self.frames - self.window]
        if None in held:
            return held.index(None)
        held = [page for page in held if page not in keep]
        if not pool.below.has_room():  # only who lies below already, or may be forgotten
            held = [p for p in held if p in pool.below or not pool.count[p]] or held
        page = pool.policy.victim([page for page in held if page not in rather] or held)
        frame = self.frame[page]
        if page not in pool.below:
            pool.below.write(page, self.whole(page))
        self.lift(page)
        return frame
