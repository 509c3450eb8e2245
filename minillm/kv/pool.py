"""The pool that pages come from: one block of HBM, which pages are free, who holds the others.

A page whose text is known by a key is kept when nobody holds it, until its room is needed.

Shapes: L layers, K kv heads, P page size, E head size.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

from minillm.config import ModelConfig
from minillm.machine import Machine

USED, EMPTY = "kv", "kv reserved"  # labels in HBM: pages in use, and the rest of the pool


class KnownPages:
    """Pages by a key that says which text they hold.

    >>> known = KnownPages()
    >>> known.enter(3, b"Mia")
    >>> known.page_of[b"Mia"], known.key_of[3]
    (3, b'Mia')

    unused: those that nobody holds, the one longest unused first.
    """

    def __init__(self) -> None:
        self.page_of: dict[bytes, int] = {}
        self.key_of: dict[int, bytes] = {}
        self.unused: OrderedDict[int, None] = OrderedDict()

    def enter(self, page: int, key: bytes) -> None:
        """The page holds what `key` says. Of two with the same text the first stays the known."""
        if self.page_of.setdefault(key, page) == page:
            self.key_of[page] = key

    def forget(self, page: int) -> None:
        """The page is not known any more, if it was."""
        self.unused.pop(page, None)
        self.page_of.pop(self.key_of.pop(page, None), None)


class PagePool:
    """Pages of `page_size` tokens, each with keys and values of all layers.

    >>> pool = PagePool(config, machine, torch.bfloat16, page_size=16, pages=8)
    >>> page = pool.take(); pool.count[page], len(pool.free)
    (1, 7)

    pages: given, they are taken at once (OutOfMemory if they do not fit), and stay as many. None:
    the pool begins empty and is resized, as far as HBM has room.
    layers: of each layer its pages, (pages, 2, K, P, E): keys, then values.
    known: pages that are kept for their text.
    """

    def __init__(
        self, config: ModelConfig, machine: Machine, dtype: torch.dtype, page_size: int,
        pages: int | None = None,
    ) -> None:  # fmt: skip
        L, K, E = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
        self.page_size, self.fixed = page_size, pages is not None
        self.nbytes_per_token = 2 * L * K * E * dtype.itemsize
        self.page_nbytes = page_size * self.nbytes_per_token
        self._machine, self.dtype, self._shape = machine, dtype, (L, K, E)
        self._block: Tensor | None = None  # (L, pages, 2, K, P, E)
        self.layers: list[Tensor] = []  # always the same list
        self.free: list[int] = []  # pages that nobody holds; the last is taken next
        self.count: list[int] = []  # of each page, in how many tables it stands
        self.known = KnownPages()
        if pages:
            self._allocate(pages)

    @property
    def held(self) -> int:
        """Pages that stand in a table."""
        return len(self.count) - len(self.free) - len(self.known.unused)

    @property
    def room(self) -> int:
        """Pages that can be taken."""
        return len(self.count) - self.held

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
        if not wanted and not self.held:
            self.close()
        room = self.most - (len(self.count) if self.held else 0)
        if min(wanted, room) > len(self.count):
            if not self.held:  # nothing to keep: the old pool's bytes serve the new one
                self.close()
            self._allocate(min(wanted, room))

    def _allocate(self, pages: int) -> None:
        L, K, E = self._shape
        old, before, used = self._block, len(self.count), self.held
        # On a card keys lie token by token, as its attention reads them; on a CPU head by head.
        by_head = self._machine.emulated
        inner = (K, self.page_size, E) if by_head else (self.page_size, K, E)
        block = self._machine.empty((L, pages, 2, *inner), self.dtype, "hbm", EMPTY)
        self._block = block if by_head else block.transpose(3, 4)
        if old is not None:
            self._block[:, :before] = old
            self._machine.free(old)
            self._machine.relabel(block, used * self.page_nbytes, EMPTY, USED)
        self.layers[:] = self._block
        self.free = [*range(pages - 1, before - 1, -1), *self.free]
        self.count += [0] * (pages - before)

    def take(self) -> int:
        """A page for new text, held once from now on."""
        if not self.free:  # the known page that was unused the longest
            self.forget(next(iter(self.known.unused)))
        page = self.free.pop()
        self.count[page] = 1
        self._relabel(EMPTY, USED)
        return page

    def share(self, page: int) -> None:
        """One more table holds the page; nobody may have held it if it is kept."""
        assert self.count[page] > 0 or page in self.known.unused, f"page {page} is free"
        if not self.count[page]:
            del self.known.unused[page]
            self._relabel(EMPTY, USED)
        self.count[page] += 1

    def drop(self, page: int) -> None:
        """One table less holds the page; held by none, it is free, or kept for its text."""
        assert self.count[page] > 0, f"page {page} is freed twice"
        self.count[page] -= 1
        if not self.count[page]:
            self._relabel(USED, EMPTY)
            if page in self.known.key_of:
                self.known.unused[page] = None
            else:
                self.forget(page)

    def forget(self, page: int) -> None:
        """A page that nobody holds is free, whatever text it was kept for."""
        self.known.forget(page)
        self.free.append(page)

    def copy(self, page: int) -> int:
        """A new page with the same keys and values, for who wants to write."""
        new = self.take()
        self._block[:, new] = self._block[:, page]
        return new

    def close(self) -> None:
        """Give the block back; a second call does nothing. Nobody may hold a page."""
        assert not self.held, "pages are in use"
        for page in list(self.known.unused):
            self.forget(page)
        if self._block is not None:
            self._machine.free(self._block)
        self._block, self.layers[:], self.free, self.count = None, [], [], []

    def _relabel(self, source: str, target: str) -> None:
        self._machine.relabel(self._block, self.page_nbytes, source, target)
