"""Pages known by their text: found, kept while there is room, and never those of others."""

from __future__ import annotations

from pathlib import Path

import pytest

from minillm.config import EngineConfig, SamplingParams
from minillm.engine.engine import Engine
from minillm.kv.pool import KnownPages
from minillm.machine import Machine

GREEDY = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)
STEM = list(range(2, 35))  # 33 tokens: eight full pages of four, and one token more


def load(folder: Path, **config: object) -> Engine:
    machine = Machine.here(hbm="16 MiB", device="cpu")
    config = {"page_size": 4, "kv_hbm": "512 KiB", **config}
    return Engine.load(folder, machine, EngineConfig(**config))




def run(engine: Engine, ids: list[int]) -> tuple[tuple[int, ...], int]:
    """Greedy ids of a prompt, and how many of its tokens were found."""
    before = getattr(engine.kv, "hits", 0)
    (done,) = engine.generate([ids], GREEDY)
    return done.token_ids, getattr(engine.kv, "hits", 0) - before


@pytest.mark.parametrize("n, found", [(1, 0), (4, 0), (5, 4), (8, 4), (9, 8), (33, 32)])
def test_full_pages_are_found_and_the_last_token_is_always_computed(n, found, tiny):
    """Catches a partial page that is shared, and a prompt known whole that has no logits."""
    engine = load(tiny("llama3"))
    first, none = run(engine, STEM[:n])
    again, hits = run(engine, STEM[:n])
    assert (again, none, hits) == (first, 0, found)


def test_a_prompt_is_known_as_far_as_it_is_the_same(tiny):
    """Catches a page found by its own tokens, whatever stood before them."""
    engine, plain = load(tiny("qwen3")), load(tiny("qwen3"), prefix_cache=False)
    for prompt, found in (
        (STEM, 0), (STEM[:20] + STEM[:9], 20), ([7] + STEM[1:], 0), (STEM + [9, 9], 32),
        (STEM[4:12], 0),
    ):  # fmt: skip
        said, hits = run(engine, prompt)
        assert (said, hits) == (run(plain, prompt)[0], found)


def test_an_answer_is_known_to_who_goes_on_from_it(tiny):
    """Catches a conversation whose last turn is computed anew at the next."""
    engine = load(tiny("llama3"))
    said, _ = run(engine, STEM)
    turn = STEM + list(said) + [3, 4]
    assert run(engine, turn)[1] == (len(STEM) + len(said) - 1) // 4 * 4
    assert run(engine, turn)[0] == run(load(tiny("llama3"), prefix_cache=False), turn)[0]


def test_an_abandoned_text_is_not_known(tiny):
    """Catches the text of an aborted turn that others find; what it had found itself stays."""
    engine = load(tiny("llama3"))
    run(engine, STEM[:9])
    stream = engine.stream(STEM, GREEDY)
    next(stream), next(stream)
    stream.close()
    assert run(engine, STEM)[1] == 8


def test_known_pages_give_way_to_new_text_the_oldest_first(tiny):
    """Catches a cache that fills HBM and then refuses, and one that forgets what is in use."""
    per_page = 4 * 2 * 3 * 2 * 16 * 4
    engine = load(tiny("llama3"), kv_hbm=12 * per_page)
    one, two, large = [2] * 13, [3] * 13, [4] * 30  # each needs 5, 5 and 9 of twelve pages
    for prompt, found in ((one, 0), (two, 0), (one, 12), (large, 0), (one, 12), (two, 0)):
        assert run(engine, prompt)[1] == found
    held, pool = engine.machine.hbm.by_label, engine.kv.pool
    assert held.get("kv", 0) == 0 and held["kv reserved"] == 12 * per_page
    assert pool.known.unused and sorted([*pool.free, *pool.known.unused]) == list(range(12))


def test_an_end_goes_before_its_beginning(tiny):
    """Catches a chain that loses its first page to the next in need, and so all behind it."""
    engine = load(tiny("llama3"))
    text, kv = [*STEM, *run(engine, STEM)[0]], engine.kv
    for pages in range(9, -1, -1):
        assert kv.find(-1, text) == 4 * pages and not kv.pool.known.unused
        kv.release(-1)
        if pages:
            kv.pool.forget(next(iter(kv.pool.known.unused)))


def test_the_first_page_of_a_text_stays_the_known_one():
    """Catches two pages of one text, of which the forgotten one takes the other with it."""
    known = KnownPages()
    known.enter(3, b"Mia")
    known.enter(4, b"Mia")
    assert known.page_of == {b"Mia": 3} and known.key_of == {3: b"Mia"}


def test_a_pool_that_grows_goes_back_with_what_it_knew(tiny):
    """Catches HBM that stays taken for texts that nobody may ask for again."""
    engine = load(tiny("llama3"), kv_hbm=None)
    before = dict(engine.machine.hbm.by_label)
    run(engine, STEM)
    assert engine.machine.hbm.by_label == before and run(engine, STEM)[1] == 0
    stream = engine.stream(STEM, GREEDY)  # while somebody is here, the pool is, too
    next(stream)
    assert run(engine, STEM)[1] == 32


def test_what_was_forgotten_is_not_found_by_others(tiny):
    """Catches keys of a request that did not see its own past, given to one that does."""
    from minillm.kv import drop_oldest

    engine = load(tiny("llama3"))
    engine.kv.forget = drop_oldest(1.0)
    said, _ = run(engine, STEM)
    engine.kv.forget = None
    assert run(engine, STEM + list(said) + [3])[1] == 0
