"""The scheduler, with the engine and the cache under it: whatever happens, answers are the same.

MINILLM_LAW_SECONDS=300 makes more random runs for so long, each from another seed.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from itertools import count
from pathlib import Path
from random import Random

import pytest
from conftest import VOCABULARY
from engine_bugs import PLANTED, PLANTED_IN_PREFIXES
from engine_runs import Run
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.config import EngineConfig, SamplingParams
from minillm.engine.engine import Engine
from minillm.errors import OutOfMemory
from minillm.machine import Machine

RUNS = 30
PER_TOKEN = 2 * 3 * 2 * 16 * 4  # bytes of keys and values of the tiny llama3
GREEDY = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
WARM = SamplingParams(max_tokens=8, temperature=0.9, seed=5, ignore_eos=True)
ids = st.lists(st.integers(2, VOCABULARY - 1), min_size=1, max_size=40)
prompts = st.lists(ids, min_size=1, max_size=4)
FEW = settings(max_examples=4, deadline=None, derandomize=True)


def load(folder: Path, hbm: int | str = "16 MiB", **config: object) -> Engine:
    return Engine.load(folder, Machine.here(hbm=hbm, device="cpu"), EngineConfig(**config))


def ids_of(engine: Engine, texts: list, params: SamplingParams) -> list[tuple[int, ...]]:
    return [completion.token_ids for completion in engine.generate(texts, params)]


def kv_bytes(engine: Engine) -> tuple[int, int]:
    """Bytes of HBM in used pages, and in those that may be taken."""
    held = engine.machine.hbm.by_label
    return held.get("kv", 0), held.get("kv reserved", 0) + held.get("kv prefixes", 0)


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


def test_whatever_prefixes_are_shared_the_laws_hold(tiny):
    """The same where prompts begin alike, and catches what `PLANTED_IN_PREFIXES` plants."""
    seen = sum((Run(Random(seed), tiny, sharing=True).play() for seed in range(RUNS)), Counter())
    print(dict(seen))
    for what in ("found", "evicted", "preempted", "aborted", "forked", "grown in use"):
        assert seen[what], f"{what} did not occur"


def test_whatever_is_drawn_the_laws_hold(tiny):
    """The same, shrunk to the smallest run that breaks a law."""

    @settings(max_examples=30, deadline=None, derandomize=True)
    @given(st.randoms(use_true_random=False))
    def holds(rng: Random) -> None:
        Run(rng, tiny).play()

    holds()


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_each_planted_bug_is_found(plant, tiny, monkeypatch):
    """Catches a law that cannot fail: with a bug in the cache or the queue, some run must.

    With torch, which refuses a page that is not there; C would write where it should be.
    """
    plant(monkeypatch)
    with pytest.raises((AssertionError, IndexError), match=PLANTED[plant]):
        for seed in range(RUNS):
            Run(Random(seed), tiny, kernels="torch").play()


@pytest.mark.parametrize("plant", PLANTED_IN_PREFIXES, ids=lambda plant: plant.__name__)
def test_each_bug_planted_in_prefixes_is_found(plant, tiny, monkeypatch):
    """Catches laws that a page known for the wrong text would not break."""
    plant(monkeypatch)
    with pytest.raises((AssertionError, IndexError), match=PLANTED_IN_PREFIXES[plant]):
        for seed in range(RUNS):
            Run(Random(seed), tiny, sharing=True, kernels="torch").play()


# -- the same ids, however they are computed -------------------------------------------------------


def test_contiguous_and_paged_say_the_same(tiny):
    """Catches a page boundary that shifts, hides or repeats a token, for any page size."""

    @FEW
    @given(prompts)
    def same(texts: list[list[int]]) -> None:
        ways = [{"kv": "contiguous"}, *({"page_size": size} for size in (1, 16, 64))]
        answers = [ids_of(load(tiny("qwen3"), **way), texts, GREEDY) for way in ways]
        assert all(answer == answers[0] for answer in answers)

    same()


def test_chunks_of_any_size_say_the_same(tiny):
    """Catches a chunk that does not see the one before, or logits from the middle of a prompt."""

    @FEW
    @given(prompts)
    def same(texts: list[list[int]]) -> None:
        sizes = (512, 1, 3, 5, 16)
        answers = [
            ids_of(load(tiny("llama3"), max_batch_tokens=size), texts, GREEDY) for size in sizes
        ]
        assert all(answer == answers[0] for answer in answers)

    same()


@pytest.mark.parametrize("params", [GREEDY, WARM], ids=["greedy", "warm"])
def test_company_changes_nothing(tiny, params):
    """Catches chance that requests share, and attention to a neighbour."""

    @FEW
    @given(prompts)
    def same(texts: list[list[int]]) -> None:
        engine = load(tiny("qwen2"), max_batch_tokens=16, max_running=3)
        together = ids_of(engine, texts, params)
        assert together == [ids_of(engine, [text], params)[0] for text in texts]

    same()


# -- room ----------------------------------------------------------------------------------------


def test_what_can_never_fit_is_refused_as_it_enters(tiny):
    """Catches a request that waits for ever, and one that is refused and keeps something."""
    engine = load(tiny("llama3"), page_size=4, kv_hbm=5 * 4 * PER_TOKEN)
    before = kv_bytes(engine)
    assert len(engine.generate([[5] * 13], GREEDY)[0].token_ids) == 8  # 13 + 8 - 1 places: 5 pages
    with pytest.raises(OutOfMemory, match=r"wanted 18.0 KiB of HBM, found 15.0 KiB free"):
        engine.generate([[5] * 13, [5] * 14], GREEDY)
    assert kv_bytes(engine) == before
    assert not (engine.scheduler.waiting or engine.scheduler.running or engine.kv.tables)


def test_a_request_whose_room_is_gone_fails_alone(tiny):
    """Catches an error that ends the others' step, and a wait for room that never comes."""
    engine = load(tiny("llama3"), page_size=4, max_running=1)
    hbm = engine.machine.hbm
    first, large, last = (engine._admit(ids, GREEDY) for ids in ([5] * 6, [5] * 40, [5] * 6))
    with engine._present([first, large, last]):
        engine.step()
        hbm.reserve(hbm.free, "other")
        while not (first.over and last.over):
            engine.step()
        assert isinstance(large.error, OutOfMemory) and not large.token_ids
        assert first.finish_reason == last.finish_reason == "length"
        assert first.token_ids == last.token_ids
    assert kv_bytes(engine) == (0, 0)


def test_room_that_comes_free_while_we_look_serves_the_request(tiny):
    """Catches a request that is out of the queue without an answer or an error, for ever."""
    engine = load(tiny("llama3"), page_size=4)
    hbm, find = engine.machine.hbm, engine.kv.find
    request = engine._admit([5] * 40, GREEDY)
    with engine._present([request]):
        hbm.reserve(taken := hbm.free, "other")

        def comes_free(number: int, ids: list[int]) -> int:  # after the pool was resized
            if hbm.by_label.get("other"):
                hbm.release(taken, "other")
            return find(number, ids)

        engine.kv.find = comes_free
        for _ in range(10):
            engine.step()
    assert request.finish_reason == "length"


def test_when_pages_run_out_the_youngest_gives_its_own_back(tiny):
    """Catches the wrong victim, and one that loses its place or what it has said."""
    engine = load(tiny("llama3"), page_size=4)
    alone = ids_of(engine, [[7, 8, 9, 10]] * 3, GREEDY)
    waited = set()
    # Each text comes to fill 3 pages.
    engine = load(tiny("llama3"), page_size=4, kv_hbm=7 * 4 * PER_TOKEN)
    requests = [engine._admit([7, 8, 9, 10], GREEDY) for _ in range(3)]
    with engine._present(requests):
        while not all(r.over for r in requests):
            engine.step()
            waited |= {r.number for r in engine.scheduler.waiting}
    assert engine.scheduler.preempted == 1 and waited == {2}
    assert [tuple(r.token_ids) for r in requests] == alone


# -- what is held ----------------------------------------------------------------------------------


def test_streams_left_at_any_moment_give_every_page_back(tiny):
    """Catches pages kept by a stream that was never begun, cut off, or read to its end."""
    right = {}

    @FEW
    @given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=5, max_size=40))
    def gives_back(moves: list[tuple[int, bool]]) -> None:
        engine = load(tiny("llama3"), page_size=4, max_batch_tokens=8, max_running=3)
        texts = [[5 + n] * (3 + 9 * n) for n in range(4)]
        right.setdefault("ids", ids_of(engine, texts, GREEDY))
        streams, said = [engine.stream(text, GREEDY) for text in texts], [[], [], [], []]
        for n, leave in moves:
            if leave and len(said[n]) > n:
                streams[n].close()
            else:
                said[n] += [piece.token_id for piece in [next(streams[n], None)] if piece]
            held = {page for table in engine.kv.tables.values() for page in table}
            total = len(engine.kv.pool.count)
            sizes = len(held), total - len(held)
            assert kv_bytes(engine) == tuple(n * engine.kv.pool.page_nbytes for n in sizes)
        for stream in streams:
            stream.close()
        assert kv_bytes(engine) == (0, 0)
        assert all(tuple(ids) == right["ids"][n][: len(ids)] for n, ids in enumerate(said))

    gives_back()


def test_the_cache_is_seen_to_grow_and_shrink_page_by_page(tiny):
    """Catches a pool that is shown as used, and a counter that jumps."""
    engine = load(tiny("llama3"), page_size=4)
    engine.generate([[5] * 10, [6] * 3], GREEDY)
    used = [e.nbytes for e in engine.trace.select(kind="counter", name="hbm", label="kv")]
    steps = {b - a for a, b in zip([0, *used], used, strict=False)}
    assert steps == {engine.kv.pool.page_nbytes, -engine.kv.pool.page_nbytes}
    assert max(used) == (5 + 3) * engine.kv.pool.page_nbytes and used[-1] == 0
