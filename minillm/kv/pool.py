"""The pool that pages come from: one block of HBM, which pages are free, who holds the others.

Shapes: L layers, K kv heads, P page size, E head size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minillm.config import ModelConfig
from minillm.machine import Machine

USED, EMPTY = "kv", "kv reserved"  # labels in HBM: pages in use, and the rest of the pool


class PagePool:
    """Pages of `page_size` tokens, each with keys and values of all layers.

    >>> pool = PagePool(config, machine, torch.bfloat16, page_size=16, pages=8)
    >>> page = pool.take(); pool.count[page], len(pool.free)
    (1, 7)

    pages: given, they are taken at once (OutOfMemory if they do not fit), and stay as many. None:
    the pool begins empty and is resized, as far as HBM has room.
    layers: of each layer its pages, (pages, 2, K, P, E): keys, then values.
    """

    def __init__(
        self, config: ModelConfig, machine: Machine, dtype: torch.dtype, page_size: int,
        pages: int | None = None,
    ) -> None:  # fmt: skip
        L, K, E = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
        self.page_size, self.fixed = page_size, pages is not None
        self.nbytes_per_token = 2 * L * K * E * dtype.itemsize
        self.page_nbytes = page_size * self.nbytes_per_token
        self._machine, self._dtype, self._shape = machine, dtype, (L, K, E)
        self._block: Tensor | None = None  # (L, pages, 2, K, P, E)
        self.layers: list[Tensor] = []  # always the same list
        self.free: list[int] = []  # pages that nobody holds; the last is taken next
        self.count: list[int] = []  # of each page, in how many tables it stands
        if pages:
            self._allocate(pages)

    @property
    def idle(self) -> bool:
        """Whether nobody holds a page."""
        return len(self.free) == len(self.count)

    @property
    def most(self) -> int:
        """Pages that there are, or could be with all of HBM that is free."""
        more = 0 if self.fixed else self._machine.hbm.free // self.page_nbytes
        return len(self.count) + more

    def resize(self, wanted: int) -> None:
        """Grow to `wanted` pages, or as far as HBM has room; with none wanted, go back if idle.

        What is in use stays as it is. A pool in use moves, so for a moment there are two.
        """
        if self.fixed:
            return
        if not wanted and self.idle:
            self.close()
        room = self.most - (0 if self.idle else len(self.count))
        if min(wanted, room) > len(self.count):
            if self.idle:  # nothing to keep: the old pool's bytes serve the new one
                self.close()
            self._allocate(min(wanted, room))

    def _allocate(self, pages: int) -> None:
        L, K, E = self._shape
        old, before = self._block, len(self.count)
        # On a card keys lie token by token, as its attention reads them; on a CPU head by head.
        by_head = self._machine.emulated
        inner = (K, self.page_size, E) if by_head else (self.page_size, K, E)
        block = self._machine.empty((L, pages, 2, *inner), self._dtype, "hbm", EMPTY)
        self._block = block if by_head else block.transpose(3, 4)
        if old is not None:
            self._block[:, :before] = old
            self._machine.free(old)
        self.layers[:] = self._block
        self.free = [*range(pages - 1, before - 1, -1), *self.free]
        self.count += [0] * (pages - before)

    def take(self) -> int:
        """A free page, held once from now on."""
        page = self.free.pop()
        self.count[page] = 1
        self._machine.hbm.relabel(self.page_nbytes, EMPTY, USED)
        return page

    def share(self, page: int) -> None:
        """One more table holds the page."""
        assert self.count[page] > 0, f"page {page} is free"
        self.count[page] += 1

    def drop(self, page: int) -> None:
        """One table less holds the page; held by none, it is free."""
        assert self.count[page] > 0, f"page {page} is freed twice"
        self.count[page] -= 1
        if not self.count[page]:
            self.free.append(page)
            self._machine.hbm.relabel(self.page_nbytes, USED, EMPTY)

    def copy(self, page: int) -> int:
        """A new page with the same keys and values, for who wants to write."""
        new = self.take()
        self._block[:, new] = self._block[:, page]
        return new

    def close(self) -> None:
        """Give the block back; a second call does nothing. Nobody may hold a page."""
        assert self.idle, "pages are in use"
        if self._block is not None:
            self._machine.free(self._block)
        self._block, self.layers[:], self.free, self.count = None, [], [], []
