"""A pool of pages in HBM, and a block table for each request: the memory manager of the KV cache.

A page holds the keys and values of P tokens. A text has as many pages as it needs, anywhere in
the pool, so at most P - 1 places of it stand empty; the table says in which order.  Kwon et al.,
2023.

Shapes: L layers, K kv heads, P page size, E head size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from minillm.config import ModelConfig
from minillm.errors import ConfigError, OutOfMemory
from minillm.kv.plan import Hidden, Plan, Step
from minillm.machine import Machine

USED, EMPTY = "kv", "kv reserved"  # labels in HBM: pages in use, and the rest of the pool

Forget = Callable[[int], range]
"""A policy: of a prompt of so many tokens, the positions that nobody sees once it was read."""


def drop_oldest(share: float) -> Forget:
    """Forget the oldest `share` of a prompt, from 0 to 1; all but its first token.

    Position 0 stays, since models rest their attention there when nothing else matters.

    >>> engine.kv.forget = drop_oldest(0.5)
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"wanted a share from 0 to 1, found {share}; 0.5 is half")
    return lambda tokens: range(1, max(1, int(tokens * share)))


class PagedKV:
    """Pages in HBM, counted: a page may be in several tables, and is written only if in one.

    >>> kv = PagedKV(config, machine, torch.bfloat16, page_size=16)
    >>> kv.make_room([40]); kv.find(0, ids); kv.reserve(0, len(ids))
    0
    True

    pages: of the pool; given, it is taken at once (OutOfMemory if it does not fit), and stays as
    it is. None: the pool grows to what is asked for by `make_room`, as far as HBM has room.
    forget: what is forgotten of each prompt that is taken in from now on; None: nothing.
    """

    def __init__(
        self, config: ModelConfig, machine: Machine, dtype: torch.dtype, page_size: int = 16,
        pages: int | None = None,
    ) -> None:  # fmt: skip
        L, K, E = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
        self.page_size, self.machine, self.dtype = page_size, machine, dtype
        self.nbytes_per_token = 2 * L * K * E * dtype.itemsize
        self.page_nbytes = page_size * self.nbytes_per_token
        self.forget: Forget | None = None
        self._shape = (L, K, E)
        self._fixed = pages is not None
        self._block: Tensor | None = None  # (L, pages, 2, K, P, E)
        self.resident: list[Tensor] = []
        self.free: list[int] = []  # pages that nobody holds; the last is taken next
        self.count: list[int] = []  # of each page, in how many tables it is
        self.tables: dict[int, list[int]] = {}
        self.length: dict[int, int] = {}
        self._hidden: dict[int, Hidden] = {}
        if pages:
            self._grow(pages)

    # -- the pool --------------------------------------------------------------------------------

    def pages_for(self, tokens: int) -> int:
        """How many pages a text of so many tokens needs."""
        return -(-tokens // self.page_size)

    @property
    def most(self) -> int:
        """Pages that the pool has or can still get, one request alone running."""
        if self._fixed:
            return len(self.count)
        return len(self.count) + self.machine.hbm.free // self.page_nbytes

    def check(self, tokens: int) -> None:
        """OutOfMemory if a text of so many tokens can never fit, whoever leaves."""
        if self.pages_for(tokens) > self.most:
            room = self.most * self.page_nbytes
            needed = self.pages_for(tokens) * self.page_nbytes
            raise OutOfMemory("hbm", needed, room, self.machine.hbm.by_label)

    def make_room(self, lengths: Iterable[int]) -> None:
        """Let the pool grow until texts of these lengths fit at once, as far as HBM has room."""
        wanted, idle = sum(map(self.pages_for, lengths)), len(self.free) == len(self.count)
        if self._fixed or wanted <= len(self.count):
            return
        room = self.machine.hbm.free // self.page_nbytes  # beside the old pool, if that is in use
        wanted = min(wanted, room + len(self.count) * idle)
        if wanted > len(self.count):
            self._grow(wanted, idle)

    def _grow(self, pages: int, idle: bool = False) -> None:
        L, K, E = self._shape
        old, before = self._block, len(self.count)
        if idle and old is not None:  # nothing to keep: the old pool's bytes serve the new one
            self._drop_pool()
            old, before = None, 0
        # On a card keys lie token by token, as its attention reads them; on a CPU head by head.
        by_head = self.machine.emulated
        inner = (K, self.page_size, E) if by_head else (self.page_size, K, E)
        block = self.machine.empty((L, pages, 2, *inner), self.dtype, "hbm", EMPTY)
        self._block = block if by_head else block.transpose(3, 4)
        if old is not None:
            self._block[:, :before] = old
            self.machine.free(old)
        self.resident = list(self._block)
        self.free = [*range(pages - 1, before - 1, -1), *self.free]
        self.count += [0] * (pages - before)

    def _drop_pool(self) -> None:
        assert len(self.free) == len(self.count), "pages are in use"
        self.machine.free(self._block)
        self._block, self.resident, self.free, self.count = None, [], [], []

    def close(self) -> None:
        """Give everything back, whoever holds it; a second call does nothing."""
        for request in list(self.tables):
            self.release(request)
        if self._block is not None:
            self._drop_pool()

    def _take(self) -> int:
        page = self.free.pop()
        self.count[page] = 1
        self.machine.hbm.relabel(self.page_nbytes, EMPTY, USED)
        return page

    def _drop(self, page: int) -> None:
        assert self.count[page] > 0, f"page {page} is freed twice"
        self.count[page] -= 1
        if not self.count[page]:
            self.free.append(page)
            self.machine.hbm.relabel(self.page_nbytes, USED, EMPTY)

    # -- requests --------------------------------------------------------------------------------

    def find(self, request: int, ids: Sequence[int]) -> int:
        """Take a request in. No prefix is known here: 0."""
        self.tables[request], self.length[request] = [], 0
        return 0

    def hide(self, request: int, hidden: Hidden) -> None:
        """From a position on, a request's tokens do not see some others any more.

        The pages stay: the bytes come back with `release`.
        """
        self._hidden[request] = hidden

    def fork(self, request: int, new: int) -> None:
        """A new request with the same past: the same pages, until one of the two writes."""
        self.tables[new], self.length[new] = list(self.tables[request]), self.length[request]
        for page in self.tables[new]:
            self.count[page] += 1
        if request in self._hidden:
            self._hidden[new] = self._hidden[request]

    def reserve(self, request: int, stop: int) -> bool:
        """Pages for [length, stop), this request's alone. False, and nothing taken, if none."""
        table, first = self.tables[request], self.length[request] // self.page_size
        shared = [at for at in range(first, len(table)) if self.count[table[at]] > 1]
        more = max(0, self.pages_for(stop) - len(table))
        if more + len(shared) > len(self.free):
            return False
        for at in shared:  # copy on write
            page = self._take()
            self._block[:, page] = self._block[:, table[at]]
            self._drop(table[at])
            table[at] = page
        table += [self._take() for _ in range(more)]
        return True

    def plan(self, step: Step) -> Plan:
        """The pass over these pages; every sequence must have been reserved."""
        for request, start in zip(step.requests, step.starts, strict=True):
            assert self.length[request] == start, (request, self.length[request], start)
        tables = [self.tables[request] for request in step.requests]
        hidden = [self._hidden.get(request) for request in step.requests] if self._hidden else ()
        return Plan(step, tables, self, self.page_size, self.machine.device, hidden)

    def enter(self, layer: int, plan: Plan) -> Tensor:
        """The layer's pool: it is in HBM already."""
        return self.resident[layer]

    def leave(self, layer: int, plan: Plan) -> None:
        """Nothing has to go anywhere."""

    def commit(self, request: int, ids: Sequence[int]) -> None:
        """After the pass: exactly these tokens of the request are in the cache."""
        self.length[request] = len(ids)

    def rewind(self, request: int, length: int) -> None:
        """Forget a request's tokens from `length` on."""
        table = self.tables[request]
        while len(table) > self.pages_for(length):
            self._drop(table.pop())
        self.length[request] = min(self.length[request], length)

    def release(self, request: int) -> None:
        """Forget a request; a second call does nothing."""
        if request in self.tables:
            self.rewind(request, 0)
            del self.tables[request], self.length[request]
            self._hidden.pop(request, None)

    def nbytes_read(self, plan: Plan) -> int:
        """Bytes of keys and values that the pass reads, each once."""
        step = plan.step
        return self.nbytes_per_token * (sum(step.starts) + sum(step.counts))
