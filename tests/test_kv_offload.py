"""Pages in HBM, DRAM and on SSD: wherever they lie, the answers are the same and all is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

from engine_runs import Run

from minillm.config import SamplingParams
from minillm.kv.lower import DramPages, Lower

RUNS = 40
GREEDY = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)


class OffloadRun(Run):
    """A random run of an engine whose pages move: frames from "hardly any" to "all"."""

    def __init__(self, rng: Random, tiny: Callable[[str], Path], **fixed: object) -> None:
        fixed = {"kv": "paged", "page_size": rng.choice((1, 2, 4, 16)), "offload": True} | fixed
        super().__init__(rng, tiny, sharing=rng.random() < 0.7, **fixed)

    def check_pages(self) -> None:
        """Every page is counted, and is in use, known or free; every frame and slot as well."""
        kv, pool, machine = self.kv, self.kv.pool, self.engine.machine
        held = Counter(page for table in kv.tables.values() for page in table)
        pages = range(len(pool.count))
        assert pool.count == [held[page] for page in pages], "counts are not what tables hold"
        rest = [page for page in pages if not held[page]]
        assert sorted([*pool.free, *pool.known.unused]) == rest, "free is not the rest"
        assert len(held) <= pool.most
        at = {page: frame for frame, page in enumerate(pool.page_at) if page is not None}
        assert at == {page: frame for page, frame in enumerate(pool.frame) if frame is not None}
        assert not any(at.get(page) is not None or page in pool.below for page in pool.free)
        size, taken = pool.page_nbytes, len(at) + pool.window
        assert machine.hbm.by_label.get("kv", 0) == taken * size
        assert machine.hbm.by_label.get("kv reserved", 0) == (pool.frames - taken) * size
        for number, tier in enumerate(pool.below.tiers):
            lie = {s[number]: page for page, s in pool.below.slots.items() if number in s}
            assert lie == tier.pages and sorted([*lie, *tier.free]) == list(range(self.slots[number]))
            by_label = getattr(machine, tier.name).by_label
            assert by_label.get("kv", 0) == len(lie) * tier.size
            assert by_label.get("kv reserved", 0) == len(tier.free) * tier.size
        for number, table in kv.tables.items():
            for page in table[: kv.pages_for(kv.length[number])]:
                assert page in at or page in pool.below, "a page is nowhere"
        self.check_requests()
        self.poison()

    def poison(self) -> None:
        """What nobody holds is no number: whoever still reads it is found."""
        pool = self.kv.pool
        self.seen["streamed"] += len(self.kv._window.pages)
        for frame, page in enumerate(pool.page_at[: pool.frames - pool.window]):
            if page is None:
                pool.parts[frame * pool.L :][: pool.L] = 0xFF
        for tier in pool.below.tiers:
            if isinstance(tier, DramPages):
                tier._block[tier.free] = 0xFF

    def check_moved(self) -> None:
        """What the trace saw is what the policy asked for, and what arithmetic says."""
        moved = Counter()
        for move in self.engine.trace.select(kind="transfer", label="kv"):
            moved[move.source, move.target] += move.nbytes
        assert moved == self.moved
        for what, nbytes in moved.items():
            self.seen["->".join(what)] += nbytes

    def _poison(self, page: int) -> None:
        """A page is no place here: see `poison`."""

    def _watch(self) -> None:
        super()._watch()
        below, self.moved = self.kv.pool.below, Counter()
        self.slots = [len(tier.free) for tier in below.tiers]
        for tier in below.tiers:
            for name in ("write", "read"):
                setattr(tier, name, partial(self._moves, tier, name, getattr(tier, name)))

    def _moves(self, tier: Lower, name: str, do: Callable, at: object, *more: object) -> object:
        """Bytes that a tier is asked to move, over each link."""
        pool, ssd = self.kv.pool, tier.name == "ssd"
        if name == "write":
            from_hbm = self.engine.machine.tier_of(more[0]) is self.engine.machine.hbm
            self.moved["hbm", "dram"] += from_hbm * pool.page_nbytes
            if ssd:
                self.moved["dram", "ssd"] += tier.size
        else:
            layers = len(at) * len(range(pool.L)[more[0]])
            self.moved["dram", "hbm"] += layers * pool.page_nbytes // pool.L
            if ssd:
                self.moved["ssd", "dram"] += layers * tier.size // pool.L
        return do(at, *more)

    def play(self) -> Counter:
        super().play()
        self.moved = +self.moved
        self.check_moved()
        self.seen.update(self.kv.preempted)
        return self.seen


def test_wherever_pages_lie_the_laws_hold(tiny):
    """Catches a page that is lost, mixed up, counted wrong or moved for nothing, on any way.

    Each way that a page can go must have occurred.
    """
    seen = sum((OffloadRun(Random(seed), tiny).play() for seed in range(RUNS)), Counter())
    print(dict(seen))
    for what in ("hbm->dram", "dram->ssd", "ssd->dram", "dram->hbm", "swap", "found", "copied",
                 "streamed", "aborted", "refused"):  # fmt: skip
        assert seen[what], f"{what} did not occur"
