"""The memory manager of the KV cache: a block table for each request, pages from one pool.

A page holds the keys and values of P tokens. A text has as many pages as it needs, anywhere in
the pool, so at most P - 1 places of it stand empty; its table says in which order.  Kwon et al.,
2023.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from minillm.config import ModelConfig
from minillm.errors import ConfigError, MinillmError, OutOfMemory
from minillm.kv.plan import Hidden, Plan, Step
from minillm.kv.pool import PagePool
from minillm.machine import Machine

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
    """Pages in HBM: a page may stand in several tables, and is written only if it is in one.

    >>> kv = PagedKV(config, machine, torch.bfloat16, page_size=16)
    >>> kv.make_room([40]); kv.find(0, ids); kv.reserve(0, len(ids))

    pages: of the pool, see `PagePool`. writable: pages that a pass may write. lost: of requests
    that cannot go on, why. forget: what is forgotten of each prompt taken in from now on, or None.
    """

    lost: Mapping[int, MinillmError] = {}  # none, where all of it stays in HBM

    def __init__(
        self, config: ModelConfig, machine: Machine, dtype: torch.dtype, page_size: int = 16,
        pages: int | None = None,
    ) -> None:  # fmt: skip
        self.pool = PagePool(config, machine, dtype, page_size, pages)
        self.page_size, self.nbytes_per_token = page_size, self.pool.nbytes_per_token
        self.resident = self.pool.layers  # all are in HBM: nothing to do between layers
        self.writable, self.first = sys.maxsize, 0  # a stage of a pipeline has its own first layer
        self.forget: Forget | None = None
        self.tables: dict[int, list[int]] = {}  # of each request its pages, in order
        self.length: dict[int, int] = {}  # of each request, tokens that are in the cache
        self._machine = machine
        self._hidden: dict[int, Hidden] = {}

    def pages_for(self, tokens: int) -> int:
        """How many pages a text of so many tokens needs."""
        return -(-tokens // self.page_size)

    def make_room(self, lengths: Iterable[int]) -> None:
        """Let the pool grow until texts of these lengths fit at once, as far as HBM has room."""
        self.pool.resize(sum(map(self.pages_for, lengths)))

    def too_large(self, tokens: int) -> OutOfMemory | None:
        """What to say if a text of so many tokens can never fit, whoever leaves."""
        needed, most, size = self.pages_for(tokens), self.pool.most, self.pool.page_nbytes
        if needed <= most:
            return None
        return OutOfMemory("hbm", needed * size, most * size, self._machine.hbm.by_label)

    def find(self, request: int, ids: Sequence[int]) -> int:
        """Take a request in. No prefix is known here: 0."""
        assert request not in self.tables, f"request {request} is here already"
        self.tables[request], self.length[request] = [], 0
        return 0

    def hide(self, request: int, hidden: Hidden) -> None:
        """From a position on, a request's tokens do not see some others; their pages stay."""
        self._hidden[request] = hidden

    def fork(self, request: int, new: int) -> None:
        """A new request with the same past: the same pages, until one of the two writes."""
        self.tables[new], self.length[new] = list(self.tables[request]), self.length[request]
        for page in self.tables[new]:
            self.pool.share(page)
        if request in self._hidden:
            self._hidden[new] = self._hidden[request]

    def reserve(self, request: int, stop: int) -> bool:
        """Pages for [length, stop), this request's alone. False, and nothing taken, if none."""
        table, first = self.tables[request], self.length[request] // self.page_size
        count, known = self.pool.count, self.pool.known.key_of
        shared = [i for i in range(first, len(table)) if count[table[i]] > 1 or table[i] in known]
        more = max(0, -(-stop // self.page_size) - len(table))
        if more + len(shared) > self.pool.room:
            return False
        for at in shared:  # copy on write
            old, table[at] = table[at], self.pool.copy(table[at])
            self.pool.drop(old)
        table += [self.pool.take() for _ in range(more)]
        return True

    def plan(self, step: Step) -> Plan:
        """The pass over these pages; every sequence must have been reserved."""
        for request, start in zip(step.requests, step.starts, strict=True):
            assert self.length[request] == start, (request, self.length[request], start)
        tables = [self.tables[request] for request in step.requests]
        hidden = [self._hidden.get(request) for request in step.requests] if self._hidden else ()
        return Plan(step, tables, self, self.page_size, self._machine.device, hidden)

    def enter(self, layer: int, plan: Plan) -> Tensor:
        """The layer's pages: they are in HBM already."""
        return self.pool.layers[layer - self.first]

    def leave(self, layer: int, plan: Plan) -> None:
        """Nothing has to go anywhere."""

    def commit(self, request: int, ids: Sequence[int]) -> None:
        """After the pass: exactly these tokens of the request are in the cache."""
        self.length[request] = len(ids)

    def rewind(self, request: int, length: int) -> None:
        """Forget a request's tokens from `length` on."""
        table = self.tables[request]
        while len(table) > self.pages_for(length):
            self.pool.drop(table.pop())
        self.length[request] = min(self.length[request], length)

    def release(self, request: int, keep: bool = True) -> None:
        """Forget a request; a second call does nothing. keep: whether its text may stay known."""
        if request in self.tables:
            self.rewind(request, 0)
            del self.tables[request], self.length[request]
            self._hidden.pop(request, None)

    def preempt(self, request: int) -> None:
        """A request makes room for others, and will be taken in again."""
        self.release(request)

    def close(self) -> None:
        """Give everything back, whoever holds it; a second call does nothing."""
        for request in list(self.tables):
            self.release(request)
        self.pool.close()

    def nbytes_read(self, plan: Plan) -> int:
        """Bytes of keys and values that the pass reads, each once."""
        step = plan.step
        return self.nbytes_per_token * (sum(step.starts) + sum(step.counts))
