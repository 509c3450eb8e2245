"""The pages of the KV cache: counted, never shared while written, and read through any table."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minillm.config import ModelConfig
from minillm.errors import ConfigError, OutOfMemory
from minillm.kv import PagedKV, PrefixKV, Step, drop_oldest
from minillm.machine import Machine

CONFIG = ModelConfig(
    vocab_size=8, hidden_size=32, intermediate_size=8, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8,
)  # fmt: skip
L, K, E = 2, 2, 8
PER_TOKEN = 2 * L * K * E * 4
FEW = settings(max_examples=40, deadline=None, derandomize=True)


def paged(page_size: int = 4, pages: int | None = None, hbm: int = 2**20) -> PagedKV:
    return PrefixKV(CONFIG, Machine.here(hbm, "cpu"), torch.float32, page_size, pages)


# -- any sequence of operations ----------------------------------------------------------------


class Pages:
    """A cache, and beside it what each request should hold: a number for each of its tokens."""

    def __init__(self, rng: Random) -> None:
        self.rng, self.number, self.stamp, self.seen = rng, 0, 0, Counter()
        given = rng.random() < 0.5
        P, pages = rng.choice((1, 2, 3, 4, 16)), rng.randint(1, 12)
        self.kv = paged(P, pages if given else None, hbm=pages * P * PER_TOKEN)
        self.held: dict[int, list[int]] = {}
        self.texts: list[list[int]] = [[]]  # that were in the cache, at some time
        self.do = (self.enter, self.write, self.write, self.write, self.fork, self.rewind,
                   self.release, self.make_room)  # fmt: skip

    def enter(self) -> None:
        """A request that begins as another did, or does; what is found of it, it has."""
        self.number += 1
        known = self.rng.choice(self.texts)
        ids = [*known[: self.rng.randint(0, len(known))], *range(self.stamp, self.stamp + 2)]
        found = self.kv.find(self.number, ids)
        assert found % self.kv.page_size == 0
        self.held[self.number] = ids[:found]
        self.seen["found"] += found > 0

    def write(self) -> None:
        """Reserve for some tokens, write them through the plan, commit."""
        if not self.held:
            return
        kv, request = self.kv, self.rng.choice(list(self.held))
        start, more = len(self.held[request]), self.rng.randint(1, 9)
        before, free = list(kv.tables[request]), list(kv.pool.free)
        if not kv.reserve(request, start + more):
            assert kv.tables[request] == before and kv.pool.free == free, "refused, and took pages"
            self.seen["refused"] += 1
            return
        self.seen["copied"] += before != kv.tables[request][: len(before)]
        plan = kv.plan(Step((request,), (start,), (more,), (1,)))
        new = list(range(self.stamp, self.stamp + more))
        self.stamp += more
        pages, slots = plan.written()
        assert all(kv.pool.count[page] == 1 for page in pages), "written while shared"
        for layer in range(L):
            pool = kv.enter(layer, plan)
            pool[pages, 0, :, slots] = stamps(new, layer)
            pool[pages, 1, :, slots] = -stamps(new, layer)
        known = kv.pool.known.key_of
        assert not any(page in known for page in pages.tolist()), "written while known"
        self.held[request] += new
        kv.commit(request, self.held[request])
        self.texts = [*self.texts[-9:], list(self.held[request])]

    def fork(self) -> None:
        if self.held:
            old, self.number = self.rng.choice(list(self.held)), self.number + 1
            self.kv.fork(old, self.number)
            self.held[self.number] = list(self.held[old])
            self.seen["forked"] += 1

    def rewind(self) -> None:
        if self.held:
            request = self.rng.choice(list(self.held))
            length = self.rng.randint(0, len(self.held[request]))
            self.kv.rewind(request, length)
            del self.held[request][length:]

    def release(self) -> None:
        if self.held:
            request, keep = self.rng.choice(list(self.held)), self.rng.random() < 0.7
            for _ in range(2):  # a second call does nothing
                self.kv.release(request, keep=keep)
            self.held.pop(request)

    def make_room(self) -> None:
        used, before = any(self.kv.tables.values()), len(self.kv.pool.count)
        self.kv.make_room([self.rng.randint(1, 20) for _ in range(self.rng.randint(0, 3))])
        assert not used or len(self.kv.pool.count) >= before, "the pool shrank under its users"
        self.seen["grown in use"] += used and len(self.kv.pool.count) > before

    def check(self) -> None:
        kv, hbm = self.kv, self.kv._machine.hbm
        held = Counter(page for table in kv.tables.values() for page in table)
        pages = range(len(kv.pool.count))
        assert kv.pool.count == [held[page] for page in pages]
        rest = [*kv.pool.free, *kv.pool.known.unused]
        assert sorted(rest) == [page for page in pages if not held[page]]
        assert all(page in kv.pool.known.key_of for page in kv.pool.known.unused)
        assert hbm.by_label.get("kv", 0) == len(held) * kv.pool.page_nbytes
        assert hbm.by_label.get("kv reserved", 0) == len(rest) * kv.pool.page_nbytes
        assert kv.length == {request: len(new) for request, new in self.held.items()}
        for request, new in self.held.items():
            for layer in range(L):
                found = [kv.resident[layer][kv.tables[request][at // kv.page_size], :, :,
                         at % kv.page_size] for at in range(len(new))]  # fmt: skip
                wanted = stamps(new, layer)
                assert not new or torch.equal(torch.stack(found)[:, 0], wanted)
                assert not new or torch.equal(torch.stack(found)[:, 1], -wanted)


def stamps(new: list[int], layer: int) -> Tensor:
    """Keys of tokens, (n, K, E): no two alike, in whatever layer."""
    number = torch.tensor(new, dtype=torch.float32)[:, None] * 2 + layer
    return (number * K * E + torch.arange(K * E)).view(-1, K, E)


def operate(rng: Random, n: int) -> Counter:
    pages = Pages(rng)
    for _ in range(n):
        rng.choice(pages.do)()
        pages.check()
    pages.kv.close()
    pages.kv.close()
    assert pages.kv._machine.hbm.used == 0
    return pages.seen


def test_whatever_is_done_pages_are_counted_and_contents_stay():
    """Catches a page lost, freed twice, or written by two; contents that a growth or copy loses."""
    seen = sum((operate(Random(seed), 60) for seed in range(60)), Counter())
    for what in ("refused", "copied", "forked", "grown in use", "found"):
        assert seen[what], f"{what} did not occur"


def test_a_page_that_stays_known_while_it_is_written_is_found_out(monkeypatch):
    """Catches a law that cannot fail: a request may go back into a page that others could find."""
    reserve = PagedKV.reserve

    class Blind(dict):
        def __contains__(self, page: object) -> bool:
            return False

    def blind(kv: PagedKV, request: int, stop: int) -> bool:
        kv.pool.known.key_of = Blind(kv.pool.known.key_of)
        done = reserve(kv, request, stop)
        kv.pool.known.key_of = dict(kv.pool.known.key_of)
        return done

    monkeypatch.setattr(PagedKV, "reserve", blind)
    with pytest.raises(AssertionError, match="written while known"):
        for seed in range(60):
            operate(Random(seed), 60)


def test_whatever_is_drawn_pages_are_counted_and_contents_stay():
    """The same, shrunk to the fewest operations that break a law."""

    @FEW
    @given(st.randoms(use_true_random=False), st.integers(1, 40))
    def holds(rng: Random, n: int) -> None:
        operate(rng, n)

    holds()


# -- the pool ------------------------------------------------------------------------------------


def test_a_pool_takes_exactly_its_bytes_and_gives_them_back():
    """Catches a leak, a double release, and a formula that forgets K, V, layers or dtype."""
    kv = paged(pages=5)
    assert kv.nbytes_per_token == PER_TOKEN
    assert kv._machine.hbm.by_label == {"kv reserved": 5 * 4 * PER_TOKEN}
    kv.close()
    kv.close()
    assert kv._machine.hbm.used == 0


def test_too_large_a_pool_is_refused_and_takes_nothing():
    """Catches a budget that is overdrawn, or lost to a cache that never was."""
    machine = Machine.here(hbm=10 * PER_TOKEN, device="cpu")
    with pytest.raises(OutOfMemory) as error:
        PagedKV(CONFIG, machine, torch.float32, page_size=4, pages=3)
    assert (error.value.asked, error.value.free) == (12 * PER_TOKEN, 10 * PER_TOKEN)
    assert machine.hbm.used == 0


def test_a_pool_takes_what_is_asked_for_and_no_more_than_there_is():
    """Catches a pool of all HBM for a short text, and one that asks for more than is left."""
    kv = paged(hbm=10 * 4 * PER_TOKEN)
    kv.make_room([5, 1])
    assert len(kv.pool.count) == 2 + 1
    kv.make_room([400])
    assert len(kv.pool.count) == 10  # the idle pool made place for the larger one
    kv.find(0, [])
    assert kv.reserve(0, 40) and not kv.reserve(0, 41)


def test_a_pool_with_nobody_in_it_goes_back_unless_it_was_given():
    """Catches HBM that an idle engine keeps, and a given pool that another might take."""
    for kv, rest in ((paged(), 0), (paged(pages=6), 6)):
        kv.make_room([20])
        kv.find(0, [])
        assert kv.reserve(0, 20)
        kv.make_room(())
        assert len(kv.pool.count) >= 5, "pages in use stay"
        kv.release(0)
        kv.make_room(())
        assert kv._machine.hbm.used == rest * kv.pool.page_nbytes


def test_what_can_never_fit_is_said_in_bytes():
    """Catches a limit that forgets the pages which the pool has, or may still get."""
    grows, given = paged(hbm=10 * 4 * PER_TOKEN), paged(pages=10)
    for kv in (grows, given):
        kv.make_room([17])
        assert kv.too_large(40) is None
        error = kv.too_large(41)
        assert (error.asked, error.free) == (44 * PER_TOKEN, 40 * PER_TOKEN)


def test_a_page_is_shared_until_one_of_two_writes():
    """Catches a fork that copies at once, and a copy of pages that nobody writes."""
    kv = paged(pages=8)
    kv.find(0, [])
    kv.reserve(0, 10)
    kv.commit(0, range(10))
    kv.fork(0, 1)
    assert kv.tables[0] == kv.tables[1] and len(kv.pool.free) == 8 - 3
    kv.reserve(1, 11)
    assert kv.tables[0][:2] == kv.tables[1][:2] and kv.tables[0][2] != kv.tables[1][2]
    kv.reserve(0, 11)
    assert len(kv.pool.free) == 8 - 4  # the one left alone writes in place


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_from_0_to_1(share):
    """Catches a negative range, which would drop the newest tokens."""
    with pytest.raises(ConfigError, match="share from 0 to 1"):
        drop_oldest(share)


def test_the_oldest_share_is_forgotten_but_for_the_first_token():
    """Catches a share that is rounded up, and the loss of position 0."""
    assert [drop_oldest(0.5)(n) for n in (1, 2, 5, 8)] == [
        range(1, 1), range(1, 1), range(1, 2), range(1, 4)
    ]  # fmt: skip
    assert drop_oldest(0.0)(9) == range(1, 1) and drop_oldest(1.0)(9) == range(1, 9)
