"""HBM, cut into frames of a page each, and who lies in them.

A pass may see more pages than there are frames. Then the last frames are a window, through which
one layer's part of each of the others comes when the layer's turn has come: see `offload.py`.

Shapes: M frames, L layers, K kv heads, P page size, E head size; a part is one layer of a page.
"""

from __future__ import annotations

from collections.abc import Collection
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
            self.widen(0, set())
            self._machine.free(self.parts)
        self.parts, self.layers = None, []

    def streams(self, window: int) -> int:
        """Of how many pages a window of so many frames holds a layer's part, and the next one's."""
        return max(0, (window * self.L - self.L + 1) // 2)

    def bring(self, pages: Collection[int], keep: Collection[int]) -> None:
        """A frame for each of these pages; what lies below comes up, all of it together.

        If no frame is empty, another page moves down: none of `keep`, which these must be in.
        """
        missing, frames = [page for page in pages if self.frame[page] is None], {}
        if missing:
            self._pool.settle()
        for page in missing:
            if None not in self.page_at[: self.frames - self.window]:
                self._move_down(keep)
            frames[page] = self.page_at.index(None)
            self._occupy(frames[page], page)
        if coming := [page for page in missing if page in self._pool.below]:
            rows = torch.tensor([frames[page] for page in coming])[:, None] * self.L
            fields = {"stage": "model", "resource": "cpu", "label": USED}
            with self._machine.trace.span(waiting(USED), **fields):
                self._pool.below.read(coming, slice(0, self.L), rows + torch.arange(self.L))
        for page, frame in frames.items():  # not before: till now it lay below alone
            self.frame[page] = frame

    def widen(self, window: int, keep: Collection[int]) -> None:
        """Have a window of so many frames; pages in them move to others, or down, as in `bring`."""
        if window == self.window:
            return
        self._pool.settle()
        rest = self.frames - window
        while len(self.page_at) - self.page_at.count(None) > rest:
            self._move_down(keep)
        for page in [page for page in self.page_at[rest:] if page is not None]:
            before = self.whole(page)
            self.lift(page)
            self.frame[page] = self.page_at.index(None)
            self._occupy(self.frame[page], page)
            self.whole(page)[:] = before
        labels = (EMPTY, USED) if window > self.window else (USED, EMPTY)
        nbytes = abs(window - self.window) * self._pool.page_nbytes
        self._machine.relabel(self.parts, nbytes, *labels)
        self.window = window

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

    def _move_down(self, keep: Collection[int]) -> None:
        """The page that the policy names has no frame any more, and lies below."""
        pool, held = self._pool, [p for p in self.page_at if p is not None and p not in keep]
        if not pool.below.has_room():  # only who lies below already, or may be forgotten
            held = [p for p in held if p in pool.below or not pool.count[p]] or held
        page = pool.policy.victim(held)
        if page not in pool.below:
            pool.below.write(page, self.whole(page))
        self.lift(page)
