"""The scheduler, with the engine and the cache under it: whatever happens, answers are the same.

MINILLM_LAW_SECONDS=300 makes more random runs for so long, each from another seed.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from random import Random

import pytest
import torch
from conftest import VOCABULARY
from engine_runs import Run
from hypothesis import given, settings
from hypothesis import strategies as st

import minillm.engine.engine as engine_module
from minillm.config import EngineConfig, SamplingParams
from minillm.decode.sampling import generator
from minillm.engine.engine import Engine
from minillm.engine.request import Request
from minillm.engine.scheduler import Scheduler
from minillm.errors import OutOfMemory
from minillm.kv import PagedKV
from minillm.machine import Machine

RUNS = 30
GREEDY = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
WARM = SamplingParams(max_tokens=8, temperature=0.9, seed=5, ignore_eos=True)
ids = st.lists(st.integers(2, VOCABULARY - 1), min_size=1, max_size=40)
prompts = st.lists(ids, min_size=1, max_size=4)
FEW = settings(max_examples=4, deadline=None, derandomize=True)


def load(folder: Path, hbm: int | str = "16 MiB", **config: object) -> Engine:
    return Engine.load(folder, Machine.here(hbm=hbm, device="cpu"), EngineConfig(**config))


def kv_bytes(engine: Engine) -> tuple[int, int]:
    """Bytes of HBM in used pages, and in free ones."""
    held = engine.machine.hbm.by_label
    return held.get("kv", 0), held.get("kv reserved", 0)


# -- any run -----------------------------------------------------------------------------------


def test_whatever_happens_the_laws_hold(tiny):
    """Catches what `test_each_planted_bug_is_found` plants, and its relatives.

    Each thing that can go wrong in a run must have occurred in some of them.
    """
    seen, end = Counter(), time.monotonic() + float(os.environ.get("MINILLM_LAW_SECONDS", 0))
    for seed in count():
        if seed >= RUNS and time.monotonic() > end:
            break
        seen += Run(Random(seed), tiny).play()
    print(dict(seen))
    for what in ("preempted", "copied", "forked", "aborted", "finished", "failed", "refused",
                 "grown in use", "chunked", "mixed"):  # fmt: skip
        assert seen[what], f"{what} did not occur"


def test_whatever_is_drawn_the_laws_hold(tiny):
    """The same, shrunk to the smallest run that breaks a law."""

    @settings(max_examples=15, deadline=None, derandomize=True)
    @given(st.randoms(use_true_random=False))
    def holds(rng: Random) -> None:
        Run(rng, tiny).play()

    holds()


# -- planted bugs ------------------------------------------------------------------------------


def no_copy_on_write(patch: pytest.MonkeyPatch) -> None:
    def reserve(kv: PagedKV, request: int, stop: int) -> bool:
        more = max(0, kv.pages_for(stop) - len(kv.tables[request]))
        if more > len(kv.free):
            return False
        kv.tables[request] += [kv._take() for _ in range(more)]
        return True

    patch.setattr(PagedKV, "reserve", reserve)


def a_copy_without_contents(patch: pytest.MonkeyPatch) -> None:
    reserve = PagedKV.reserve

    def forgetful(kv: PagedKV, request: int, stop: int) -> bool:
        before = list(kv.tables[request])
        done = reserve(kv, request, stop)
        for old, new in zip(before, kv.tables[request], strict=False):
            if old != new:
                kv._block[:, new] = 0
        return done

    patch.setattr(PagedKV, "reserve", forgetful)


def a_page_is_lost(patch: pytest.MonkeyPatch) -> None:
    release = PagedKV.release

    def forgetful(kv: PagedKV, request: int) -> None:
        if len(kv.tables.get(request, ())) > 1:
            kv.tables[request].pop()
        release(kv, request)

    patch.setattr(PagedKV, "release", forgetful)


def a_page_is_freed_twice(patch: pytest.MonkeyPatch) -> None:
    release = PagedKV.release

    def twice(kv: PagedKV, request: int) -> None:
        table = list(kv.tables.get(request, ()))
        release(kv, request)
        kv.free += table[:1]

    patch.setattr(PagedKV, "release", twice)


def a_refusal_keeps_pages(patch: pytest.MonkeyPatch) -> None:
    reserve = PagedKV.reserve

    def greedy(kv: PagedKV, request: int, stop: int) -> bool:
        done = reserve(kv, request, stop)
        if not done and kv.free:
            kv.tables[request].append(kv._take())
        return done

    patch.setattr(PagedKV, "reserve", greedy)


def commits_one_short(patch: pytest.MonkeyPatch) -> None:
    commit = PagedKV.commit
    patch.setattr(PagedKV, "commit", lambda kv, request, ids: commit(kv, request, ids[:-1]))


def commits_one_more(patch: pytest.MonkeyPatch) -> None:
    commit = PagedKV.commit
    patch.setattr(PagedKV, "commit", lambda kv, request, ids: commit(kv, request, [*ids, 0]))


def a_preempted_request_keeps_its_count(patch: pytest.MonkeyPatch) -> None:
    preempt = Scheduler._preempt

    def keep(scheduler: Scheduler, request: Request) -> None:
        cached = request.cached
        preempt(scheduler, request)
        request.cached = cached

    patch.setattr(Scheduler, "_preempt", keep)


def the_oldest_is_preempted(patch: pytest.MonkeyPatch) -> None:
    preempt = Scheduler._preempt
    patch.setattr(Scheduler, "_preempt", lambda s, request: preempt(s, s.running[0]))


def a_preempted_request_waits_last(patch: pytest.MonkeyPatch) -> None:
    preempt = Scheduler._preempt

    def last(scheduler: Scheduler, request: Request) -> None:
        preempt(scheduler, request)
        scheduler.waiting.rotate(-1)

    patch.setattr(Scheduler, "_preempt", last)


def a_fork_counts_no_pages(patch: pytest.MonkeyPatch) -> None:
    def fork(kv: PagedKV, request: int, new: int) -> None:
        kv.tables[new], kv.length[new] = list(kv.tables[request]), kv.length[request]

    patch.setattr(PagedKV, "fork", fork)


def a_fork_forgets_what_is_hidden(patch: pytest.MonkeyPatch) -> None:
    fork = PagedKV.fork

    def open_(kv: PagedKV, request: int, new: int) -> None:
        fork(kv, request, new)
        kv._hidden.pop(new, None)

    patch.setattr(PagedKV, "fork", open_)


def a_plan_has_the_table_before_a_copy(patch: pytest.MonkeyPatch) -> None:
    tables: dict[tuple[int, int, int], list[int]] = {}
    plan = PagedKV.plan

    def stale(kv: PagedKV, step):
        made = plan(kv, step)
        for at, request in enumerate(step.requests):
            now = made.tables[at]
            made.tables[at] = tables.setdefault((id(kv), request, len(now)), list(now))
        return made

    patch.setattr(PagedKV, "plan", stale)


def a_plan_has_the_pool_before_growth(patch: pytest.MonkeyPatch) -> None:
    grow = PagedKV._grow

    def stale(kv: PagedKV, pages: int, idle: bool = False) -> None:
        before = kv.resident
        grow(kv, pages, idle)
        kv.resident = kv.resident if idle else before

    patch.setattr(PagedKV, "_grow", stale)


def growth_loses_the_contents(patch: pytest.MonkeyPatch) -> None:
    grow = PagedKV._grow

    def empty(kv: PagedKV, pages: int, idle: bool = False) -> None:
        before = len(kv.count)
        grow(kv, pages, idle)
        kv._block[:, :before] = 0

    patch.setattr(PagedKV, "_grow", empty)


def requests_share_a_generator(patch: pytest.MonkeyPatch) -> None:
    one = generator(SamplingParams(seed=0))
    patch.setattr(engine_module, "generator", lambda params: one)


def who_is_aborted_still_waits(patch: pytest.MonkeyPatch) -> None:
    remove = Scheduler.remove

    def forgetful(scheduler: Scheduler, request: Request) -> None:
        waits = request in scheduler.waiting
        remove(scheduler, request)
        if waits:
            scheduler.waiting.append(request)

    patch.setattr(Scheduler, "remove", forgetful)


def a_chunk_does_not_see_the_one_before(patch: pytest.MonkeyPatch) -> None:
    import minillm.kv.attention as attention

    mask = attention._mask

    def blind(plan, number: int):
        start, count = plan.step.starts[number], plan.step.counts[number]
        seen = mask(plan, number)
        if seen is not None and start and count > 1:
            seen = seen.clone()
            seen[:, 0] = False
        return seen

    patch.setattr(attention, "_mask", blind)


PLANTED = [
    no_copy_on_write, a_copy_without_contents, a_page_is_lost, a_page_is_freed_twice,
    a_refusal_keeps_pages, commits_one_short, commits_one_more,
    a_preempted_request_keeps_its_count, the_oldest_is_preempted, a_preempted_request_waits_last,
    a_fork_counts_no_pages, a_fork_forgets_what_is_hidden, a_plan_has_the_table_before_a_copy,
    a_plan_has_the_pool_before_growth, growth_loses_the_contents, requests_share_a_generator,
    who_is_aborted_still_waits, a_chunk_does_not_see_the_one_before,
]  # fmt: skip


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_each_planted_bug_is_found(plant: Callable, tiny, monkeypatch):
    """Catches a law that cannot fail: with a bug in the cache or the queue, some run must."""
    plant(monkeypatch)
    with pytest.raises((AssertionError, IndexError)):
        for seed in range(RUNS):
            Run(Random(seed), tiny).play()
