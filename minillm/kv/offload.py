"""A KV cache that is larger than HBM: pages move to DRAM and SSD, and come back.

Two things, both by whole pages of the same pool (`tiered.py`):

idle pages     those of texts that have ended, and of requests that had to make room, move down
               when frames are needed, and come up when their text is asked for again
running pages  of a context that is larger than HBM some have no frame while it runs. One layer's
               part of each comes through the window while the layer before computes

Sheng et al., 2023 (FlexGen); Kwon et al., 2023, section 4.5.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from minillm.config import ModelConfig
from minillm.errors import MinillmError, OutOfMemory
from minillm.files import StrPath
from minillm.kv.lower import WORD, DramPages, SsdPages
from minillm.kv.plan import Plan, Step
from minillm.kv.pool import USED
from minillm.kv.prefix import PrefixKV
from minillm.kv.tiered import TieredPool
from minillm.machine import Machine
from minillm.machine.interrupt import held
from minillm.machine.prefetch import Prefetch
from minillm.predict import Hardware, operators, restore
from minillm.probe import Profile


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
        pages = self._pool.below.sort(pages)
        if pages != self.pages:  # what came early was for others
            self.settle()
        self.pages, self._turn = pages, self._turn + 1
        begin = self._begin(self._turn)
        return {page: begin + 2 * at for at, page in enumerate(pages)}

    def enter(self, layer: int) -> None:
        """The layer's parts are here, and the next layer's are sent for."""
        self._ask(layer, self._turn)
        last = layer + 1 == self._pool.L
        self._ask(0 if last else layer + 1, self._turn + last)
        self._prefetch.take(_name(layer, self._turn))

    def settle(self) -> None:
        """Nothing arrives any more: pages may move."""
        self._prefetch.clear()

    def close(self) -> None:
        """Give the thread back."""
        self._prefetch.close()

    def _begin(self, turn: int) -> int:
        pool = self._pool
        return (pool.frames - pool.window) * pool.L + turn * pool.L % 2

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

    hbm, dram, ssd: pages that each has room for. folder: where the file on SSD goes. share: whether
    requests that begin alike share pages; if not, a text is known to its own request alone.
    hardware: figures by which it is predicted whether to bring a text's pages back or to compute
    them again, its FLOPs those of the largest pass so far; None, where this machine was not
    measured: pages are brought back.
    preempted: how often a request that had to make room was to come back by "swap", "recompute".
    """

    def __init__(
        self, config: ModelConfig, machine: Machine, dtype: torch.dtype, page_size: int, *,
        hbm: int, dram: int, ssd: int, folder: StrPath = ".", share: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(config, machine, dtype, page_size)
        self.shares, self.hardware = share, _figures(machine)
        self.preempted: Counter[str] = Counter()
        self._config, self._seen = config, None
        self._running, self._most_tokens = (0.0, None), 16
        L = config.num_hidden_layers
        shape = L, self.pool.page_nbytes // L // WORD.itemsize
        lower: list[DramPages | SsdPages] = []
        try:
            if dram:
                lower.append(DramPages(machine, dram, *shape))
            if ssd:
                lower.append(SsdPages(machine, ssd, *shape, folder))
            self.pool = TieredPool(config, machine, dtype, page_size, hbm, lower)
        except BaseException:
            for tier in lower:
                tier.close()
            raise
        self._window = Window(self.pool, machine)
        self.writable, self.pool.settle = self.pool.writable, self._settle

    @property
    def streamed(self) -> list[int]:
        """Pages that the last pass saw without a frame."""
        return self._window.pages

    @property
    def lost(self) -> dict[int, MinillmError]:
        """Requests that cannot go on, since a page of theirs was lost, and why."""
        lost = self.pool.lost
        return {r: lost[p] for r, table in self.tables.items() for p in table if p in lost}

    def too_large(self, tokens: int) -> OutOfMemory | None:
        """What to say if a text of so many tokens can never fit, wherever its pages lie."""
        error, pool = super().too_large(tokens), self.pool
        if error:
            whole, places = pool.writable, len(pool.count) - pool.frames
            window = pool.frames - whole
            error.why = (
                f"{whole} pages are written in HBM, {window} more of it stream "
                f"{pool.streams(window)}, DRAM and SSD keep {places}"
            )
        return error

    def find(self, request: int, ids: Sequence[int]) -> int:
        """Take a request in: how many of its first tokens are known, and now its own.

        What lies below counts if it is predicted to come up sooner than it would be computed.
        """
        super().find(request, ids)
        pool, table = self.pool, self.tables[request]
        below = [page for page in table if pool.frame[page] is None]
        computes = below and self._way(len(below) * self.page_size, below)[0] == "recompute"
        for at, page in enumerate(table):
            if page in pool.lost or (computes and page in below):
                self.hits -= self.length[request] - at * self.page_size
                self.rewind(request, at * self.page_size)
                break
        return self.length[request]

    def reserve(self, request: int, stop: int) -> bool:
        """Pages for [length, stop). False, and nothing taken, if there is no room in any tier."""
        table, pool = self.tables[request], self.pool
        copies = sum(pool.count[p] > 1 for p in table[self.length[request] // self.page_size :])
        more = max(0, self.pages_for(stop) - len(table)) + copies
        held = len(pool.count) - len(pool.free) - len(pool.known.unused)
        return held + more <= pool.most and super().reserve(request, stop)

    def plan(self, step: Step) -> Plan:
        """The pass over these pages: what it writes is brought to HBM, and of the rest what fits.

        The others come layer by layer, and lie in the window then.
        """
        plan = super().plan(step)
        P, spans = self.page_size, zip(plan.tables, step.starts, plan.stops, strict=True)
        tables, written = [], set()
        for table, start, stop in spans:
            tables.append(table[: self.pages_for(stop)])
            written |= set(tables[-1][start // P :])
        seen = list(dict.fromkeys(page for table in tables for page in table))
        with held():
            self._arrange(seen, written)
            streamed = [page for page in seen if self.pool.frame[page] is None]
            in_window = self._window.turn([page for page in streamed if page in self.pool.below])
        frame, L = self.pool.frame, self.pool.L
        plan.tables = [
            # A page that was lost is nowhere: its request fails, whatever it reads.
            [in_window.get(page, 0) if frame[page] is None else frame[page] * L for page in table]
            for table in tables
        ]
        self.resident = None if streamed else self.pool.layers
        self._running = time.perf_counter(), step
        return plan

    def commit(self, request: int, ids: Sequence[int]) -> None:
        """After the pass: exactly these tokens of the request are in the cache."""
        super().commit(request, ids)
        (began, step), self._running = self._running, (0.0, None)
        if step is not None and self.hardware and sum(step.counts) >= self._most_tokens:
            # What recomputing takes is seen here: no engine multiplies as fast as the machine can.
            self._most_tokens, spent = sum(step.counts), time.perf_counter() - began
            flops = sum(op.flops for op in operators(self._config, step.starts, step.counts))
            self.hardware = replace(self.hardware, bf16_flops=flops / spent)

    def _arrange(self, seen: list[int], written: set[int]) -> None:
        """Frames for what a pass sees; nothing moves if the one before saw and wrote the same."""
        pool = self.pool
        pool.policy.used(seen)
        if self._seen == (seen, written):
            return
        widths, n = range(pool.frames), len(seen)
        width = next(w for w in widths if pool.frames - w + pool.streams(w) >= n)
        pool.widen(width, written, seen)
        pool.bring(written, written, seen)
        for page in written:
            pool.below.leave(page)  # it is of before the writing
        missing = [page for page in seen if pool.frame[page] is None]
        pool.bring(missing[: pool.room(seen)], seen)
        self._seen = seen, written

    def enter(self, layer: int, plan: Plan) -> Tensor:
        """The layer's pool, in HBM; what it needs of pages without a frame is in the window."""
        if self._window.pages:
            self._window.enter(layer)
        return self.pool.layers[layer]

    def preempt(self, request: int) -> None:
        """A request makes room for others. It comes back by the way that is predicted faster.

        By "swap" its full pages stay known, and move down when frames are needed.
        """
        way, why = self._way(max(1, self.length[request]), self.tables[request])
        fields = {"stage": "model", "resource": "cpu", "label": USED}
        with self._machine.trace.span(f"preempt by {way}", detail=why, request=request, **fields):
            self.preempted[way] += 1
            super().release(request, keep=way == "swap")

    def release(self, request: int, keep: bool = True) -> None:
        """Forget a request. keep: whether its text stays known; to nobody if nothing is shared."""
        known = self.pool.known
        for page in self.tables.get(request, ()):
            if page in self.pool.lost and page in known.key_of:
                known.forget(page)
        super().release(request, keep and self.shares)

    def close(self) -> None:
        """Give everything back, whoever holds it; a second call does nothing."""
        self._window.close()
        super().close()

    def _settle(self) -> None:
        """Before pages move: nothing is under way, and the next pass looks at all of them anew."""
        self._window.settle()
        self._seen = None

    def _way(self, tokens: int, pages: Sequence[int]) -> tuple[str, str]:
        """How so many tokens come to HBM sooner, "swap" or "recompute"; and why."""
        if self.hardware is None:
            return "swap", "this machine was not measured"
        source = self.pool.below.source(pages)
        found = restore(self._config, self.hardware, tokens, source, kv_dtype=self.pool.dtype)
        times = " against ".join(f"{way} {1e3 * s:.3g} ms" for way, s in found.parts.items())
        return found.bound_by, f"{tokens} tokens: {times} (predicted)"


def _figures(machine: Machine) -> Hardware | None:
    """This machine as it was measured; as a scale model, with the links of that."""
    profile = Profile.here()
    try:
        hardware = profile and profile.hardware(machine.device.type)
    except MinillmError:  # not all of it was measured
        return None
    if hardware is None or machine.scale is None:
        return hardware
    links = {name: machine.scale.wire(name) for name in ("nvme", "pcie")
             if getattr(machine.scale.hardware, name)}  # fmt: skip
    return replace(hardware, hbm_bandwidth=machine.scale.hbm_bandwidth, **{"pcie": None} | links)
