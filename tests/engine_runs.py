"""Random runs of an engine, with the laws of its pages, its queue and its answers held on the way.

A run is drawn from a source of chance: settings, prompts that share stems, arrivals, aborts, forks,
and somebody else who takes HBM and gives it back. `Run(rng, tiny).play()` raises AssertionError
where a law is broken. Free pages hold NaN, so that whoever still reads one is found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from types import SimpleNamespace

import torch
from engine_draws import FAMILIES, draw_engine, draw_jobs, right_logits
from torch import Tensor

from minillm.config import SamplingParams
from minillm.decode.detokenize import Detokenizer
from minillm.decode.sampling import Chosen, generator, sample
from minillm.engine.request import Request
from minillm.errors import OutOfMemory
from minillm.kv import Plan, Step

ROUNDING = 1e-4  # of the largest logit
GREEDY_ONE = SamplingParams(max_tokens=1, temperature=0.0)


class Run:
    """One engine and what happens to it. `seen` counts what occurred: preemptions, copies, …

    sharing: prompts that begin alike, and a cache that knows it. fixed: settings of EngineConfig
    that are not drawn.
    """

    def __init__(
        self, rng: Random, tiny: Callable[[str], Path], sharing: bool = False, **fixed: object
    ) -> None:
        self.rng, self.seen, self.sharing = rng, Counter(runs=1), sharing
        self.folder, self.jobs = tiny(rng.choice(FAMILIES)), draw_jobs(rng, sharing)
        fixed = {"prefix_cache": sharing} | fixed
        if sharing:
            fixed |= {"kv": "paged", "page_size": rng.choice((1, 2, 4))}
        self.engine = draw_engine(rng, self.folder, self.jobs, **fixed)
        self.kv, self.scheduler = self.engine.kv, self.engine.scheduler
        self.arrived: list[Request] = []  # first come first; without twins
        self.here: dict[Request, AbstractContextManager] = {}  # and how each leaves
        self.joined: list[Request] = []  # in the order in which they came to run
        self.rows: dict[int, dict[int, Tensor]] = {}  # of each request: logits of its tokens
        self.found: dict[int, int] = {}  # of each request: pages that were known
        self.other = 0  # bytes of HBM that somebody else holds
        self.idle = False  # whether the last step moved nothing
        self._watch()

    def play(self) -> Counter:
        """All jobs arrive, and are answered, aborted or refused; what was seen on the way."""
        try:
            self._play()
        except BaseException:
            for leaving in self.here.values():
                with suppress(AssertionError):
                    leaving.__exit__(None, None, None)
            raise
        return self.seen

    def _play(self) -> None:
        tokens = len(self.jobs) * self.engine.max_context
        most, self.jobs = 8 * tokens + 20, self.jobs[::-1]
        while self.jobs or self.here:
            self.happen()
            self.step()
            self.seen["steps"] += 1
            assert self.seen["steps"] < most, "the run does not end"
        self.give_back_other()
        assert not self.kv.pool.held and not self.kv.tables, "nobody is here, and pages are held"
        self.engine.close()
        machine = self.engine.machine
        assert not any(tier.used for tier in (machine.hbm, machine.dram, machine.ssd))

    def happen(self) -> None:
        """Between two steps: arrivals, a fork, an abort, another who takes HBM."""
        rng = self.rng
        while self.jobs and (not self.here or rng.random() < 0.3):
            self.arrive(*self.going_on(*self.jobs.pop()))
        running = [r for r in self.scheduler.running if r in self.here]
        room = len(running) < self.scheduler.max_running and self.seen["forked"] < 4
        if running and room and rng.random() < 0.15:
            self.fork(rng.choice(running))
        if self.here and rng.random() < 0.05:
            self.end(rng.choice(list(self.here)), "aborted")
        if rng.random() < 0.1:
            self.take_other()
        elif rng.random() < 0.2:
            self.give_back_other()

    def going_on(self, ids: list[int], params: SamplingParams) -> tuple[list[int], SamplingParams]:
        """The job, or one that begins with all that another request has said so far."""
        if not self.sharing or not self.arrived or self.rng.random() < 0.6:
            return ids, params
        ids = self.rng.choice(self.arrived).ids + ids[-3:]
        fits = len(ids) + params.max_tokens <= self.engine.max_context
        return (ids, params) if fits else (ids[: self.engine.max_context - 1], GREEDY_ONE)

    def arrive(self, ids: list[int], params: SamplingParams) -> None:
        request, hbm = self.engine._admit(ids, params), self.engine.machine.hbm
        present, used = self.engine._present([request]), hbm.used
        try:
            present.__enter__()
        except OutOfMemory:
            fits = self.kv.pages_for(request.slots) <= self.kv.pool.most
            assert not fits, "refused, and would have fit"
            assert hbm.used <= used, "refused, and holds something"
            self.seen["refused"] += 1
        else:
            self.arrived.append(request)
            self.here[request] = present

    def fork(self, request: Request) -> None:
        """A twin that has said the same so far, and goes on with chance of its own."""
        seed = self.rng.choice((request.params.seed, self.rng.randrange(100)))
        twin = self.engine._admit(request.prompt_ids, replace(request.params, seed=seed))
        for piece in request.pieces:
            chosen = Chosen(piece.token_id, piece.logprob, piece.top_logprobs)
            twin.take(chosen, request.last_at)
        twin.cached, twin.forgets = request.cached, request.forgets
        assert len(self.scheduler.running) < self.scheduler.max_running, "no place for a twin"
        self.engine.kv.fork(request.number, twin.number)
        self.scheduler.running.append(twin)
        self.here[twin] = leaving = ExitStack()
        leaving.callback(self.scheduler.remove, twin)
        self.joined.append(twin)
        self.seen["forked"] += 1

    def end(self, request: Request, how: str) -> None:
        """A request leaves, and what it has said is right."""
        table, found = self.kv.tables.get(request.number, []), self.found.get(request.number, 0)
        alone = [page for page in table[found:] if self.kv.pool.count[page] == 1]
        self.here.pop(request).__exit__(None, None, None)
        assert request.number not in self.kv.tables, "left, and holds pages"
        known = how == "aborted" and any(page in self.kv.pool.known.key_of for page in alone)
        assert not known, "aborted, and its text is known"
        self.check_answer(request)
        self.seen[how] += 1

    def take_other(self) -> None:
        """Somebody else takes the HBM that is free."""
        hbm = self.engine.machine.hbm
        self.other += hbm.free
        hbm.reserve(hbm.free, "other")

    def give_back_other(self) -> None:
        self.engine.machine.hbm.release(self.other, "other")
        self.other = 0

    def step(self) -> None:
        steps, over = self.engine.steps, sum(r.over for r in self.here)
        self.engine.step()
        moved = self.engine.steps > steps or sum(r.over for r in self.here) > over
        assert moved or not self.idle or not self.here, "two steps and nothing has moved"
        self.idle = not moved
        self.check_pages()
        self.check_queue()
        for request in [r for r in self.here if r.over]:
            if request.error is not None:
                assert isinstance(request.error, OutOfMemory), request.error
                assert self.other, "no room, though nobody took any"
            self.end(request, "failed" if request.error else "finished")
            self.check_pages()

    # -- the laws --------------------------------------------------------------------------------

    def check_pages(self) -> None:
        """Every page is counted, free or used; the tier's labels say the same."""
        kv, pool, hbm = self.kv, self.kv.pool, self.engine.machine.hbm
        held = Counter(page for table in kv.tables.values() for page in table)
        pages = range(len(pool.count))
        rest = [page for page in pages if not held[page]]
        assert pool.count == [held[page] for page in pages], "counts are not what tables hold"
        unused = list(kv.pool.known.unused)
        assert sorted(pool.free + unused) == rest, "free is not the rest"
        assert hbm.by_label.get("kv", 0) == len(held) * pool.page_nbytes
        assert hbm.by_label.get("kv reserved", 0) == len(rest) * pool.page_nbytes
        self.check_requests()

    def check_requests(self) -> None:
        """Who runs has pages, and nobody else; for all that is cached."""
        kv, running = self.kv, {r.number for r in self.scheduler.running}
        assert running == set(kv.tables), "who has pages is not who runs"
        for r in (*self.scheduler.running, *self.scheduler.waiting):
            assert r.cached == kv.length.get(r.number, 0), "a request is wrong on what is cached"
            assert len(kv.tables.get(r.number, ())) >= kv.pages_for(r.cached)

    def check_queue(self) -> None:
        """First come, first served: nobody's first token comes before that of an older one.

        A twin arrives among those who run; those who wait, though older, are taken in after it.
        """
        queue = [r for r in (*self.scheduler.running, *self.scheduler.waiting) if r in self.arrived]
        assert queue == sorted(queue, key=self.arrived.index), "a younger one stands first"
        self.joined = self._by_age()
        answered = [bool(r.token_ids) for r in self.arrived if r in self.here and not r.error]
        assert answered == sorted(answered, reverse=True), "a younger one was served first"

    def check_answer(self, request: Request) -> None:
        """It chose from the logits of the plain model, with chance that is its own alone."""
        if not request.token_ids:
            return
        right, chance = right_logits(self.folder, request), generator(request.params)
        prompt, params = request.prompt_ids, request.params
        for index, row in self.rows.pop(request.number, {}).items():
            far = (row - right[index]).abs().max() / right[index].abs().max()
            assert far < ROUNDING, f"token {index} was chosen from wrong logits"
            said = request.token_ids[:index]
            alone = SimpleNamespace(params=params, chance=chance, ids=prompt + said, token_ids=said)
            [(chosen, logprob, _)] = sample(row[None], [alone])
            assert request.token_ids[index] == chosen, "chance came from somewhere else"
            assert abs(request.pieces[index].logprob - logprob) < 1e-3
        if request.finish_reason in ("eos", "length"):
            alone = Detokenizer(self.engine.tokenizer, request.prompt_ids)
            said = request.token_ids[: -1 if request.finish_reason == "eos" else None]
            text = "".join(piece.text for piece in request.pieces)
            assert text == "".join(map(alone.add, said)) + alone.finish()

    # -- what is watched -------------------------------------------------------------------------

    def _watch(self) -> None:
        """Look at each pass, choice, preemption, reservation, growth and page that comes free."""
        engine, kv, scheduler = self.engine, self.kv, self.scheduler
        for owner, name, seen in (
            (engine._chooser, "_sample", self._sample), (kv, "plan", self._plan),
            (kv, "reserve", self._reserve), (kv, "make_room", self._make_room),
            (kv.pool, "forget", self._forget), (kv, "find", self._find),
            (scheduler, "_preempt", self._preempt),
        ):  # fmt: skip
            setattr(owner, name, partial(seen, getattr(owner, name)))

    def _sample(self, do: Callable, asked: list[Request], logits: Tensor, *more) -> list:
        for request, row in zip(asked, logits.clone(), strict=True):
            self.rows.setdefault(request.number, {})[len(request.token_ids)] = row
        return do(asked, logits, *more)

    def _plan(self, do: Callable, step: Step) -> Plan:
        assert sum(step.counts) <= self.scheduler.max_batch_tokens
        assert len(step.requests) <= self.scheduler.max_running
        for number, start, count in zip(step.requests, step.starts, step.counts, strict=True):
            stop = self.kv.pages_for(start + count)
            written = self.kv.tables[number][start // self.kv.page_size : stop]
            assert all(self.kv.pool.count[page] == 1 for page in written), "written while shared"
            known = self.kv.pool.known.key_of
            assert not any(page in known for page in written), "written while known"
        self.seen["mixed"] += len(step.counts) > 1 and 1 in step.counts and max(step.counts) > 1
        self.seen["chunked"] += 0 in step.wanted
        return do(step)

    def _forget(self, do: Callable, page: int) -> None:
        self.seen["evicted"] += page in self.kv.pool.known.key_of
        self._poison(page)
        do(page)

    def _poison(self, page: int) -> None:
        for layer in self.kv.pool.layers:
            layer[page] = torch.nan

    def _find(self, do: Callable, number: int, ids: list[int]) -> int:
        found = do(number, ids)
        assert found < len(ids), "a prompt known whole has no logits"
        self.found[number] = found // self.kv.page_size
        self.seen["found"] += found > 0
        return found

    def _reserve(self, do: Callable, number: int, stop: int) -> bool:
        before, free = list(self.kv.tables[number]), list(self.kv.pool.free)
        done = do(number, stop)
        after = self.kv.tables[number]
        assert done or (after == before and self.kv.pool.free == free), "refused, and took pages"
        self.seen["copied"] += sum(a != b for a, b in zip(before, after, strict=False))
        return done

    def _make_room(self, do: Callable, lengths: Iterable[int]) -> None:
        before, used = len(self.kv.pool.count), self.kv.pool.held > 0
        do(lengths)
        self.seen["grown in use"] += used and len(self.kv.pool.count) > before

    def _preempt(self, do: Callable, request: Request) -> None:
        running = self.joined = self._by_age()
        do(request)
        assert self.scheduler.running == running[:-1], "not the youngest had to leave"
        self.seen["preempted"] += 1

    def _by_age(self) -> list[Request]:
        """Those who run, in the order in which they came to."""
        running = self.scheduler.running
        before = [r for r in self.joined if r in running]
        return before + [r for r in running if r not in before]
