"""Bugs of the cache, the queue and the choice, to be planted: random runs must find each of them.

`PLANTED`: each takes a MonkeyPatch; beside it the words of the law that finds it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import pytest
import torch
from torch import Tensor

import minillm.engine.request as request_module
import minillm.kv.attention as attention
from minillm.config import SamplingParams
from minillm.decode.sampling import generator
from minillm.engine.request import Request
from minillm.engine.scheduler import Scheduler
from minillm.kv import PagedKV, Plan, PrefixKV, Step
from minillm.kv.below import Below
from minillm.kv.frames import Frames
from minillm.kv.lower import DramPages
from minillm.kv.offload import Window
from minillm.kv.pool import PagePool
from minillm.kv.tiered import TieredPool


def no_copy_on_write(patch: pytest.MonkeyPatch) -> None:
    def reserve(kv: PagedKV, request: int, stop: int) -> bool:
        more = max(0, kv.pages_for(stop) - len(kv.tables[request]))
        if more > kv.pool.room:
            return False
        kv.tables[request] += [kv.pool.take() for _ in range(more)]
        return True

    patch.setattr(PagedKV, "reserve", reserve)


def a_copy_without_contents(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PagePool, "copy", lambda pool, page: pool.take())


def a_page_is_lost(patch: pytest.MonkeyPatch) -> None:
    release = PagedKV.release

    def forgetful(kv: PagedKV, request: int, keep: bool = True) -> None:
        if len(kv.tables.get(request, ())) > 1:
            kv.tables[request].pop()
        release(kv, request, keep)

    patch.setattr(PagedKV, "release", forgetful)


def a_page_is_freed_twice(patch: pytest.MonkeyPatch) -> None:
    release = PagedKV.release

    def twice(kv: PagedKV, request: int, keep: bool = True) -> None:
        table = list(kv.tables.get(request, ()))
        release(kv, request, keep)
        kv.pool.free += table[:1]

    patch.setattr(PagedKV, "release", twice)


def a_refusal_keeps_pages(patch: pytest.MonkeyPatch) -> None:
    reserve = PagedKV.reserve

    def greedy(kv: PagedKV, request: int, stop: int) -> bool:
        done = reserve(kv, request, stop)
        if not done and kv.pool.free:
            kv.tables[request].append(kv.pool.take())
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

    def seeing(kv: PagedKV, request: int, new: int) -> None:
        fork(kv, request, new)
        kv._hidden.pop(new, None)

    patch.setattr(PagedKV, "fork", seeing)


def a_plan_has_the_table_before_a_copy(patch: pytest.MonkeyPatch) -> None:
    tables: dict[tuple[int, int, int], list[int]] = {}
    plan = PagedKV.plan

    def stale(kv: PagedKV, step: Step) -> Plan:
        made = plan(kv, step)
        for at, request in enumerate(step.requests):
            now = made.tables[at]
            made.tables[at] = tables.setdefault((id(kv), request, len(now)), list(now))
        return made

    patch.setattr(PagedKV, "plan", stale)


def a_plan_has_the_pool_before_growth(patch: pytest.MonkeyPatch) -> None:
    allocate = PagePool._allocate

    def stale(pool: PagePool, pages: int) -> None:
        before = list(pool.layers)
        allocate(pool, pages)
        pool.layers[:] = before or pool.layers

    patch.setattr(PagePool, "_allocate", stale)


def growth_loses_the_contents(patch: pytest.MonkeyPatch) -> None:
    allocate = PagePool._allocate

    def empty(pool: PagePool, pages: int) -> None:
        before = len(pool.count)
        allocate(pool, pages)
        pool._block[:, :before] = 0

    patch.setattr(PagePool, "_allocate", empty)


def requests_share_a_generator(patch: pytest.MonkeyPatch) -> None:
    one = generator(SamplingParams(seed=0))
    patch.setattr(request_module, "generator", lambda params: one)


def who_is_aborted_still_waits(patch: pytest.MonkeyPatch) -> None:
    remove = Scheduler.remove

    def forgetful(scheduler: Scheduler, request: Request) -> None:
        waits = request in scheduler.waiting
        remove(scheduler, request)
        if waits:
            scheduler.waiting.append(request)

    patch.setattr(Scheduler, "remove", forgetful)


def a_chunk_does_not_see_the_one_before(patch: pytest.MonkeyPatch) -> None:
    mask = attention._mask

    def blind(plan: Plan, number: int) -> Tensor | None:
        start, count = plan.step.starts[number], plan.step.counts[number]
        seen = mask(plan, number)
        if seen is not None and start and count > 1:
            seen = seen.clone()
            seen[:, 0] = False
        return seen

    patch.setattr(attention, "_mask", blind)


def a_page_is_known_without_what_came_before(patch: pytest.MonkeyPatch) -> None:
    keys = PrefixKV._keys

    def alone(kv: PrefixKV, ids: list[int], before: bytes = b"") -> Iterator[bytes]:
        P = kv.page_size
        for at in range(0, len(ids) - P + 1, P):
            yield from keys(kv, ids[at : at + P])

    patch.setattr(PrefixKV, "_keys", alone)


def a_prompt_known_whole_is_not_computed(patch: pytest.MonkeyPatch) -> None:
    find = PrefixKV.find
    patch.setattr(PrefixKV, "find", lambda kv, request, ids: find(kv, request, [*ids, 0]))


def an_evicted_page_stays_known(patch: pytest.MonkeyPatch) -> None:
    def forget(pool: PagePool, page: int) -> None:
        pool.known.unused.pop(page, None)
        pool.free.append(page)

    patch.setattr(PagePool, "forget", forget)


def a_found_page_is_not_counted(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PagePool, "share", lambda pool, page: pool.known.unused.pop(page, None))


def what_was_forgotten_is_found_by_others(patch: pytest.MonkeyPatch) -> None:
    commit = PrefixKV.commit

    def enters(kv: PrefixKV, request: int, ids: list[int]) -> None:
        hidden, kv._hidden = kv._hidden, {}
        commit(kv, request, ids)
        kv._hidden = hidden

    patch.setattr(PrefixKV, "commit", enters)


def an_aborted_text_stays_known(patch: pytest.MonkeyPatch) -> None:
    release = PrefixKV.release
    patch.setattr(PrefixKV, "release", lambda kv, request, keep=True: release(kv, request))


def an_old_copy_stays_below(patch: pytest.MonkeyPatch) -> None:
    leave = Below.leave

    def stays(below: Below, page: int) -> None:
        if page not in below._pool.hbm.slots or not below._pool.count[page]:
            leave(below, page)

    patch.setattr(Below, "leave", stays)


def a_page_counts_as_there_before_it_was_read(patch: pytest.MonkeyPatch) -> None:
    def early(frames: Frames, pages: Collection[int], keep: Collection[int]) -> None:
        missing, below = [page for page in pages if page not in frames.slots], frames._pool.below
        frames._pool.settle()
        for page in missing:
            if not frames.free:
                frames._move_down(keep)
            frames.enter(page, frames.free.pop())
        coming = [page for page in missing if page in below]
        rows = [[frames.slots[p] * frames.L + n for n in range(frames.L)] for p in coming]
        below.read(coming, slice(0, frames.L), torch.tensor(rows))

    patch.setattr(Frames, "bring", early)


def what_came_early_was_for_others(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Window, "clear", lambda window: None)


def odd_layers_begin_where_even_ones_do(patch: pytest.MonkeyPatch) -> None:
    begin = Window._begin
    patch.setattr(Window, "_begin", lambda window, turn: begin(window, 0))


def a_page_leaves_its_slot_taken(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DramPages, "leave", lambda lower, page: lower.slots.pop(page, None))


def a_page_moves_without_its_last_layer(patch: pytest.MonkeyPatch) -> None:
    write = DramPages.write

    def short(lower: DramPages, slot: int, page: Tensor) -> None:
        last = lower._block[slot, -1].clone()
        write(lower, slot, page)
        lower._block[slot, -1] = last

    patch.setattr(DramPages, "write", short)


def more_pages_run_than_there_are_places(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(TieredPool, "room", PagePool.room)


WRONG = "chosen from wrong logits|NaN"
PLANTED: dict[Callable[[pytest.MonkeyPatch], None], str] = {
    no_copy_on_write: "written while shared",
    a_copy_without_contents: WRONG,
    a_page_is_lost: "counts are not what tables hold",
    a_page_is_freed_twice: "free is not the rest",
    a_refusal_keeps_pages: "refused, and took pages",
    commits_one_short: "wrong on what is cached",
    commits_one_more: "wrong on what is cached",
    a_preempted_request_keeps_its_count: "wrong on what is cached",
    the_oldest_is_preempted: "not the youngest had to leave",
    a_preempted_request_waits_last: "a younger one stands first",
    a_fork_counts_no_pages: "counts are not what tables hold",
    a_fork_forgets_what_is_hidden: WRONG,
    a_plan_has_the_table_before_a_copy: WRONG,
    a_plan_has_the_pool_before_growth: f"{WRONG}|out of bounds",
    growth_loses_the_contents: WRONG,
    requests_share_a_generator: "chance came from somewhere else",
    who_is_aborted_still_waits: "a younger one stands first|pages are held",
    a_chunk_does_not_see_the_one_before: WRONG,
}
PLANTED_IN_PREFIXES: dict[Callable[[pytest.MonkeyPatch], None], str] = {
    a_page_is_known_without_what_came_before: WRONG,
    a_prompt_known_whole_is_not_computed: "known whole has no logits",
    an_evicted_page_stays_known: f"{WRONG}|written while known",
    a_found_page_is_not_counted: "counts are not what tables hold|freed twice",
    what_was_forgotten_is_found_by_others: WRONG,
    an_aborted_text_stays_known: "aborted, and its text is known",
}
PLANTED_IN_OFFLOAD: dict[Callable[[pytest.MonkeyPatch], None], str] = {
    an_old_copy_stays_below: WRONG,
    a_page_counts_as_there_before_it_was_read: WRONG,
    what_came_early_was_for_others: f"{WRONG}|checksum",
    odd_layers_begin_where_even_ones_do: WRONG,
    a_page_leaves_its_slot_taken: "slots are not what lies there",
    a_page_moves_without_its_last_layer: WRONG,
    more_pages_run_than_there_are_places: "more pages are in use than can be",
}
