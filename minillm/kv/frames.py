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

from minillm.kv.lower import WORD, Places
from minillm.kv.pool import EMPTY, USED
from minillm.machine import Machine
from minillm.machine.prefetch import waiting

if TYPE_CHECKING:
    from minillm.kv.tiered import TieredPool


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
