"""A KV cache that is larger than HBM: pages move to DRAM and SSD, and come back.

Two things, both by whole pages of the same pool (`tiered.py`):

idle pages     those of texts that have ended, and of requests that had to make room, move down
               when frames are needed, and come up when their text is asked for again
running pages  of a context that is larger than HBM some have no frame while it runs. One layer's
               part of each comes through the window while the layer before computes

Sheng et al., 2023 (FlexGen); Kwon et al., 2023, section 4.5.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from minillm.config import ModelConfig
from minillm.errors import MinillmError, OutOfMemory
from minillm.files import StrPath
from minillm.kv.plan import Plan, Step
from minillm.kv.pool import USED
from minillm.kv.prefix import PrefixKV
from minillm.kv.restore import Restore
from minillm.kv.tiered import TieredPool
from minillm.machine import Machine
from minillm.machine.interrupt import held
from minillm.machine.prefetch import Prefetch


class Window:
    """Pages without a frame, as the layers see them: a part each, in the last frames of the pool.

        part   0 1 2 3 4 5 6 7 …
        layer 0: a . b . c .          while layer 0 looks at its parts of a, b, c,
        layer 1:   a . b . c .        those of layer 1 arrive between them
        layer 2:     a . b . c .      over those of layer 0

    The window slides on by one part a layer, and a layer's pool begins a part later than the one
    before: so a page has the same index in all of them. Where the layers are odd in number, every
    other pass begins a part later, so that the next pass's first parts may come early, too.
    """

    def __init__(self, pool: TieredPool, machine: Machine) -> None:
        self.pages: list[int] = []
        self._pool, self._turn = pool, 0
        self._prefetch = Prefetch(machine, range(2), label=USED, stage="model")

    def turn(self, pages: list[int]) -> dict[int, int]:
        """A pass begins, which sees these pages here: the index of each in a layer's pool."""
        if pages != self.pages:  # what came early was for others
            self.clear()
        self.pages, self._turn = pages, self._turn + 1
        begin = self._begin(self._turn)
        return {page: begin + 2 * at for at, page in enumerate(pages)}

    def enter(self, layer: int) -> None:
        """The layer's parts are here, and the next layer's are sent for."""
        self._ask(layer, self._turn)
        last = layer + 1 == self._pool.hbm.L
        self._ask(0 if last else layer + 1, self._turn + last)
        self._prefetch.take(_name(layer, self._turn))

    def clear(self) -> None:
        """Nothing arrives any more: pages may move."""
        self._prefetch.clear()

    def close(self) -> None:
        """Give the thread back."""
        self._prefetch.close()

    def _begin(self, turn: int) -> int:
        hbm = self._pool.hbm
        return (hbm.frames - hbm.window) * hbm.L + turn * hbm.L % 2

    def _ask(self, layer: int, turn: int) -> None:
        self._prefetch.ask(_name(layer, turn), partial(self._fill, layer, turn))

    def _fill(self, layer: int, turn: int, slot: int) -> None:
        rows = layer + self._begin(turn) + 2 * torch.arange(len(self.pages))
        self._pool.below.read(self.pages, slice(layer, layer + 1), rows[:, None])


def _name(layer: int, turn: int) -> str:
    return f"layer {layer} of pass {turn}"


class OffloadKV(PrefixKV):
    """Pages in HBM, DRAM and on SSD.

    >>> kv = OffloadKV(config, machine, torch.bfloat16, 16, hbm=8, dram=64, ssd=0)

    hbm, dram, ssd: pages that each has room for. folder: where the file on SSD goes; None: here,
    or on another disk that takes files. share: whether requests that begin alike share pages; if
    not, a text is known to its own request alone.
    restore: by which way a text comes back to HBM sooner. preempted: how often a request that had
    to make room was to come back by it. streamed: pages that the last pass saw without a frame.
    """

    def __init__(
        self, config: ModelConfig, machine: Machine, dtype: torch.dtype, page_size: int, *,
        hbm: int, dram: int, ssd: int, folder: StrPath | None = None, share: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(config, machine, dtype, page_size)
        self.shares, self.restore = share, Restore(config, machine, dtype)
        self.preempted, self.streamed = Counter[str](), list[int]()
        self.pool = TieredPool(config, machine, dtype, page_size, hbm, dram, ssd, folder)
        self._window = Window(self.pool, machine)
        self.writable, self.pool.settle = self.pool.writable, self._window.clear

    @property
    def lost(self) -> dict[int, MinillmError]:
        """Requests that cannot go on, since a page of theirs was lost, and why."""
        lost = self.pool.lost
        return {r: lost[p] for r, t in self.tables.items() for p in t if p in lost} if lost else {}

    def too_large(self, tokens: int) -> OutOfMemory | None:
        """What to say if a text of so many tokens can never fit, wherever its pages lie."""
        error, pool = super().too_large(tokens), self.pool
        if error:
            window = pool.hbm.frames - pool.writable
            error.why = (
                f"{pool.writable} pages are written in HBM, {window} more of it stream "
                f"{pool.hbm.streams(window)}, DRAM and SSD keep {pool.places}"
            )
        return error

    def find(self, request: int, ids: Sequence[int]) -> int:
        """Take a request in: how many of its first tokens are known, and now its own.

        What lies below counts if it is predicted to come up sooner than it would be computed.
        """
        super().find(request, ids)
        pool, table, P = self.pool, self.tables[request], self.page_size
        below = [page for page in table if page not in pool.hbm.slots]
        source = pool.below.source(below)
        computes = below and self.restore.way(len(below) * P, source)[0] == "recompute"
        gone = {*pool.lost, *(below if computes else ())}
        first = next((at for at, page in enumerate(table) if page in gone), len(table))
        for page in table[first:]:
            pool.known.forget(page)  # what is computed instead will be known
        self.hits -= (len(table) - first) * P
        self.rewind(request, first * P)
        return first * P

    def plan(self, step: Step) -> Plan:
        """The pass over these pages: what it writes is brought to HBM, and of the rest what fits.

        The others come layer by layer, and lie in the window then.
        """
        plan, P, hbm = super().plan(step), self.page_size, self.pool.hbm
        tables, written = [], set()
        for table, start, stop in zip(plan.tables, step.starts, plan.stops, strict=True):
            tables.append(table[: self.pages_for(stop)])
            written |= set(tables[-1][start // P :])
        with held():
            self.streamed = self.pool.arrange(list(dict.fromkeys(sum(tables, []))), written)
            index = self._window.turn(self.streamed)
        index |= {page: frame * hbm.L for page, frame in hbm.slots.items()}
        plan.tables = [[index[page] for page in table] for table in tables]
        self.resident = None if self.streamed else self.pool.layers
        self.restore.begin(step)
        return plan

    def enter(self, layer: int, plan: Plan) -> Tensor:
        """The layer's pool, in HBM; what it needs of pages without a frame is in the window."""
        if self._window.pages:
            self._window.enter(layer)
        return self.pool.layers[layer]

    def commit(self, request: int, ids: Sequence[int]) -> None:
        """After the pass: exactly these tokens of the request are in the cache."""
        self.restore.learn()
        super().commit(request, ids)

    def preempt(self, request: int) -> None:
        """A request makes room for others. It comes back by the way that is predicted faster.

        By "swap" its full pages stay known, and move down when frames are needed.
        """
        source = self.pool.below.source(self.tables[request])
        way, why = self.restore.way(max(1, self.length[request]), source)
        fields = {"stage": "model", "resource": "cpu", "request": request, "detail": why}
        with self._machine.trace.span(f"preempt by {way}", **fields):
            self.preempted[way] += 1
            super().release(request, keep=way == "swap")

    def release(self, request: int, keep: bool = True) -> None:
        """Forget a request. keep: whether its text stays known; to nobody if nothing is shared."""
        super().release(request, keep and self.shares)

    def close(self) -> None:
        """Give everything back, whoever holds it; a second call does nothing."""
        self._window.close()
        super().close()
