"""Pages in HBM, DRAM and on SSD: wherever they lie, the answers are the same and all is counted."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import pytest
import torch
from engine_bugs import PLANTED_IN_OFFLOAD
from engine_runs import Run

from minillm.config import EngineConfig, ModelConfig, SamplingParams
from minillm.engine.engine import Engine
from minillm.errors import ConfigError, MinillmError, OutOfMemory
from minillm.kv import lower
from minillm.kv.lower import DramPages, Places, SsdPages
from minillm.machine import Machine
from minillm.machine.disk import PAGE, read_at, write_at
from minillm.predict import HARDWARE, Wire, kv_bytes_per_token

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
        assert len(held) <= pool.most, "more pages are in use than can be"
        at = pool.hbm.slots
        frames = list(range(pool.hbm.frames - pool.hbm.window))
        assert sorted([*at.values(), *pool.hbm.free]) == frames, "frames are not what lies there"
        assert not any(page in at or page in pool.below for page in pool.free)
        size, taken = pool.page_nbytes, len(at) + pool.hbm.window
        assert machine.hbm.by_label.get("kv", 0) == taken * size
        assert machine.hbm.by_label.get("kv reserved", 0) == (pool.hbm.frames - taken) * size
        lie = [page for tier in pool.below.tiers for page in tier.slots]
        assert len(lie) == len(set(lie)), "a page lies in two tiers"
        for number, tier in enumerate(pool.below.tiers):
            slots, lie = list(range(self.slots[number])), tier.slots.values()
            assert sorted([*lie, *tier.free]) == slots, "slots are not what lies there"
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
        for frame in pool.hbm.free:
            pool.hbm.parts[frame * pool.hbm.L :][: pool.hbm.L] = -1
        for tier in pool.below.tiers:
            if isinstance(tier, DramPages):
                tier._block[tier.free] = -1

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
            for name in ("write", "fetch"):
                setattr(tier, name, partial(self._moves, tier, name, getattr(tier, name)))

    def _moves(self, tier: Places, name: str, do: Callable, at: object, *more: object) -> object:
        """Bytes that a tier is asked to move, over each link."""
        pool, ssd = self.kv.pool, tier.name == "ssd"
        if name == "write":
            from_hbm = self.engine.machine.tier_of(more[0]) is self.engine.machine.hbm
            self.moved["hbm", "dram"] += from_hbm * pool.page_nbytes
            if ssd:
                self.moved["dram", "ssd"] += tier.size
        elif more[0] != slice(None):  # that is a page on its way from DRAM to SSD
            layers = len(at) * len(range(pool.hbm.L)[more[0]])
            assert len(at) <= tier.many
            self.moved["dram", "hbm"] += layers * pool.page_nbytes // pool.hbm.L
            if ssd:
                self.moved["ssd", "dram"] += layers * tier.size // pool.hbm.L
        return do(at, *more)

    def play(self) -> Counter:
        try:
            super().play()
        finally:  # a run that found a bug ends in the middle
            self.kv._window.close()
            for tier in self.kv.pool.below.tiers:
                if isinstance(tier, SsdPages):
                    tier._give_back()
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


@pytest.mark.parametrize("plant", PLANTED_IN_OFFLOAD, ids=lambda plant: plant.__name__)
def test_each_bug_planted_in_offload_is_found(plant, tiny, monkeypatch):
    """Catches laws that a page in the wrong place would not break."""
    plant(monkeypatch)
    with pytest.raises(AssertionError, match=PLANTED_IN_OFFLOAD[plant]):
        for seed in range(4 * RUNS):  # it ends at the first that finds it
            OffloadRun(Random(seed), tiny, kernels="torch").play()


# -- one thing at a time -------------------------------------------------------------------------

ONE, TWO, LONG = [2, 3] * 20, [5, 7] * 20, [11, 13, 17] * 20


def load(
    folder: Path, hbm: int, dram: int = 0, ssd: int = 0, page_size: int = 4, **config: object
) -> Engine:
    """An engine with room for so many pages in each tier."""
    page = page_size * kv_bytes_per_token(ModelConfig.from_pretrained(folder), "float32")
    rooms = {"kv_hbm": hbm * page, "kv_dram": dram * page or None, "kv_ssd": ssd * page or None}
    settings = EngineConfig(page_size=page_size, **rooms, **config)
    return Engine.load(folder, Machine.here("16 MiB", "cpu"), settings)


def say(
    engine: Engine, *prompts: list[int], params: SamplingParams = GREEDY
) -> list[tuple[int, ...]]:
    return [done.token_ids for done in engine.generate(list(prompts), params)]


def moved(engine: Engine) -> Counter:
    """Pages that crossed each link since the trace was cleared."""
    bytes_of = Counter()
    for move in engine.trace.select(kind="transfer", label="kv"):
        bytes_of[move.source, move.target] += move.nbytes
    return bytes_of


@pytest.mark.parametrize("prefix_cache", [True, False])
@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("rooms", [(60, 1, 0), (14, 60, 0), (14, 0, 60), (14, 5, 60)])
def test_wherever_pages_lie_the_ids_are_the_same(tiny, rooms, page_size, prefix_cache):
    """Catches a placement that shows: contexts larger than HBM in fp32, from DRAM and from SSD."""
    plain = Engine.load(tiny("qwen3"), Machine.here("16 MiB", "cpu"))
    rooms = [-(-4 * n // page_size) for n in rooms]
    rooms[0] = max(rooms[0], 6)
    settings = {"page_size": page_size, "prefix_cache": prefix_cache, "max_running": 2}
    engine = load(tiny("qwen3"), *rooms, **settings)
    for _ in range(2):
        assert say(engine, ONE, LONG, TWO) == say(plain, ONE, LONG, TWO)
    engine.close()
    machine = engine.machine
    assert not any(tier.used for tier in (machine.hbm, machine.dram, machine.ssd))


def test_a_page_comes_back_bit_identical_and_leaves_its_frame(tiny):
    """Catches parts that change places, and a frame that is not free when its page moved down."""
    for rooms in ({"dram": 20}, {"ssd": 20}):
        engine = load(tiny("llama"), hbm=6, **rooms)
        pool, hbm = engine.kv.pool, engine.machine.hbm
        pages = [pool.take() for _ in range(6)]
        pool.hbm.bring(pages, pages)
        kept = pool.hbm.parts.random_(2**60).clone().view(6, pool.hbm.L, -1)
        others = [pool.take() for _ in range(5)]
        frames = dict(pool.hbm.slots)
        pool.hbm.bring(others, others)
        assert sum(page in pool.hbm.slots for page in pages) == 1
        assert hbm.by_label["kv"] == 6 * pool.page_nbytes
        for page in others:
            pool.drop(page)
        assert hbm.by_label["kv"] == pool.page_nbytes
        pool.hbm.bring(pages[::-1], pages)
        for page in pages:
            assert torch.equal(pool.hbm.whole(page), kept[frames[page]])
            pool.drop(page)
        engine.close()


def test_a_page_is_written_down_once(tiny):
    """Catches SSD writes for pages that have not changed, which wear it."""
    engine = load(tiny("llama"), hbm=14, ssd=60)
    say(engine, ONE), say(engine, LONG)
    written = engine.kv.pool.below.tiers[0].written
    assert written and moved(engine)["dram", "ssd"] == written
    say(engine, ONE), say(engine, LONG), say(engine, ONE)
    ssd, size = engine.kv.pool.below.tiers[0], engine.kv.pool.below.tiers[0].size
    # ONE's and LONG's known pages, and the last one of each, which is not full, at most each time.
    assert ssd.written <= written + (len(ONE) // 4 + 4) * size
    engine.trace.clear()
    say(engine, LONG), say(engine, ONE)
    assert ssd.written - written <= (len(ONE) // 4 + 4) * size
    engine.close()


def test_the_policy_says_who_moves_down(tiny):
    """Catches a pool that asks nobody, and one that moves another than was named."""

    class Newest:
        asked: list[tuple[set[int], int]] = []

        def used(self, pages):
            self.last = list(pages)

        def victim(self, pages):
            self.asked.append((set(pages), max(pages)))
            return max(pages)

    engine = load(tiny("llama"), hbm=14, dram=60)
    engine.kv.pool.policy = policy = Newest()
    said = say(engine, ONE, LONG)
    below = engine.kv.pool.below
    first, victim = policy.asked[0]
    assert victim in first and victim == max(first)
    assert set(below.tiers[0].slots) <= {page for _, page in policy.asked}
    assert said == say(Engine.load(tiny("llama"), Machine.here("16 MiB", "cpu")), ONE, LONG)
    engine.close()


def test_the_next_layer_is_asked_for_before_this_one_is_waited_for(tiny):
    """Catches a window that hides nothing; the first layer of the next pass comes early, too."""
    engine = load(tiny("llama"), hbm=14, dram=60)
    prefetch, log = engine.kv._window._prefetch, []
    for name in ("ask", "take"):
        do = getattr(prefetch, name)
        seen = lambda key, *a, do=do, name=name: (log.append((name, key)), do(key, *a))[1]  # noqa: E731
        setattr(prefetch, name, seen)
    stream = engine.stream(LONG, GREEDY)
    for _ in range(4):
        next(stream)
    stream.close()
    taken = [key for name, key in log if name == "take"]
    assert len(taken) >= 2 * 3
    for key, after in zip(taken, taken[1:], strict=False):
        asked = log.index(("ask", after))
        assert asked < log.index(("take", key)) or "layer 0" in after
    steady = taken[-3:]
    assert log.index(("ask", steady[0])) < log.index(("take", taken[-4]))
    engine.close()


def test_who_can_never_fit_is_told_the_arithmetic(tiny):
    """Catches a refusal of what fits, an admission of what does not, and a bare number."""
    engine = load(tiny("llama"), hbm=9, dram=60)
    most = engine.kv.pool.most
    tokens = most * 4 - GREEDY.max_tokens + 1
    assert most > 9 and say(engine, [3] * tokens)
    with pytest.raises(OutOfMemory, match=r"pages are written in HBM, \d+ more of it stream"):
        say(engine, [3] * (tokens + 1))
    engine.close()


@pytest.mark.parametrize("wrong", [{"kv_hbm": None}, {"kv": "contiguous"}])
def test_rooms_below_ask_for_pages_of_a_given_size(tiny, wrong):
    """Catches a setting that is not obeyed, without a word."""
    settings = {"kv_hbm": 2**20, "kv_dram": "1 MiB"} | wrong
    with pytest.raises(ConfigError, match="kv_hbm and pages beside kv_dram"):
        Engine.load(tiny("llama"), Machine.here("16 MiB", "cpu"), EngineConfig(**settings))


# -- what goes wrong ------------------------------------------------------------------------------


def flip(engine: Engine) -> None:
    """One bit of every page in the file is another."""
    ssd = engine.kv.pool.below.tiers[0]
    for slot in ssd.slots.values():
        room = torch.zeros(PAGE * 2, dtype=torch.uint8)
        room = room[-room.data_ptr() % PAGE :][:PAGE]
        view = memoryview(room.numpy())
        read_at(ssd._fd, view, slot * ssd.size)
        view[40] ^= 4
        write_at(ssd._fd, view, slot * ssd.size)


def break_reads(engine: Engine, patch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    patch.setattr(lower, "read_at", broken)


@pytest.mark.parametrize("how", ["flip", "break", "short"])
def test_a_page_that_is_lost_fails_its_request_by_name(tiny, monkeypatch, how):
    """Catches a wrong answer after a flipped bit, and an error that takes others along."""
    engine = load(tiny("llama"), hbm=14, ssd=60)
    engine.kv.restore.hardware = None  # what lies below is brought back
    first = say(engine, ONE)
    say(engine, LONG)
    pool = engine.kv.pool
    assert set(pool.below.tiers[0].slots) - set(pool.hbm.slots)
    with monkeypatch.context() as patch:
        if how == "flip":
            flip(engine)
        elif how == "break":
            break_reads(engine, patch)
        else:
            patch.setattr(lower, "read_at", lambda fd, view, at: 0)
        lost, other = engine.stream(ONE, GREEDY), engine.stream(TWO, GREEDY)
        says = {"flip": "checksum", "break": "Input/output error", "short": "the file's end"}[how]
        with pytest.raises(MinillmError, match=f"back from SSD.*{says}"):
            list(lost)
        plain = Engine.load(tiny("llama"), Machine.here("16 MiB", "cpu"))
        assert [piece.token_id for piece in other] == list(say(plain, TWO)[0])
    assert say(engine, ONE) == first, "its text is computed again"
    before = engine.kv.hits
    assert say(engine, ONE) == first and engine.kv.hits - before == 36, "and known again"
    engine.close()


def test_a_full_disk_fails_whose_page_it_was(tiny, monkeypatch):
    """Catches a page that was dropped without a word, and a disk error that ends the engine."""
    engine, plain = load(tiny("llama"), hbm=14, ssd=60), load(tiny("llama"), hbm=60, dram=1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(lower, "write_at", full)
        with pytest.raises(MinillmError, match="No space left.*another ssd_dir"):
            say(engine, LONG)
        assert say(engine, TWO) == say(plain, TWO)
    assert say(engine, LONG) == say(plain, LONG)
    engine.close()


def test_a_file_that_does_not_fit_is_told_at_once(tiny, monkeypatch, tmp_path):
    """Catches an engine that finds out in the middle of an answer, or keeps what it had taken."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    machine = Machine.here("16 MiB", "cpu")
    rooms = EngineConfig(kv_hbm="1 MiB", kv_dram="1 MiB", kv_ssd="1 MiB", ssd_dir=str(tmp_path))
    with pytest.raises(OutOfMemory, match="of SSD"):
        Engine.load(tiny("llama"), machine, rooms)
    assert not any(tier.used for tier in (machine.hbm, machine.dram, machine.ssd))
    assert not list(tmp_path.iterdir())


def test_a_disk_other_than_the_one_we_stand_on_has_room_of_its_own(tiny, tmp_path):
    """Catches a file that is refused since the working directory's disk is full, or is none."""
    machine = Machine.here("16 MiB", "cpu")
    machine.ssd.capacity = 0
    rooms = EngineConfig(kv_hbm="1 MiB", kv_ssd="1 MiB", ssd_dir=str(tmp_path))
    engine = Engine.load(tiny("llama"), machine, rooms)
    assert machine.ssd.by_label["kv reserved"] == machine.ssd.capacity > 0
    engine.close()


def test_what_a_killed_engine_left_is_swept(tiny, tmp_path):
    """Catches gigabytes on a learner's disk after a kernel that was killed."""
    program = (
        "import sys; from minillm import *; rooms = dict(kv_hbm='1 MiB', kv_ssd='1 MiB');"
        "e = Engine.load(sys.argv[1], Machine.here('16 MiB', 'cpu'), EngineConfig(**rooms, "
        "ssd_dir=sys.argv[2])); print('there', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(tiny("llama")), str(tmp_path)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout.readline() == "there\n"
        left = list(tmp_path.iterdir())
        process.kill()
    assert left == list(tmp_path.iterdir()) != []
    rooms = EngineConfig(kv_hbm="1 MiB", kv_ssd="1 MiB", ssd_dir=str(tmp_path))
    engine = Engine.load(tiny("llama"), Machine.here("16 MiB", "cpu"), rooms)
    assert not set(left) & set(tmp_path.iterdir())
    engine.close()
    assert not list(tmp_path.iterdir())


# -- swap or recompute ----------------------------------------------------------------------------


@pytest.mark.parametrize("bandwidth, way", [(1e15, "swap"), (1.0, "recompute")])
def test_who_makes_room_comes_back_by_the_faster_way(tiny, bandwidth, way):
    """Catches a verdict that nobody follows: bytes moved though it says recompute, or none."""
    engine = load(tiny("llama"), hbm=12, dram=9)
    wire, long = Wire(bandwidth), replace(GREEDY, max_tokens=24)
    engine.kv.restore.hardware = replace(HARDWARE["H100"], pcie=wire, nvme=wire)
    plain, both = Engine.load(tiny("llama"), Machine.here("16 MiB", "cpu")), (ONE[:20], TWO[:20])
    assert say(engine, *both, params=long) == say(plain, *both, params=long)
    assert set(engine.kv.preempted) == {way}
    spans = [e for e in engine.trace.select(kind="span") if e.name.startswith("preempt")]
    assert len(spans) == engine.scheduler.preempted > 0
    assert all(e.name == f"preempt by {way}" and "(predicted)" in e.detail for e in spans)
    engine.close()


def test_what_lies_below_is_found_if_it_comes_sooner(tiny):
    """Catches a prefix that is brought up though computing it is faster."""
    for bandwidth, found in ((1e15, 36), (1.0, 0)):
        engine = load(tiny("llama"), hbm=14, dram=60)
        say(engine, ONE), say(engine, LONG)
        wire = Wire(bandwidth)
        engine.kv.restore.hardware = replace(HARDWARE["H100"], pcie=wire, nvme=wire)
        before = engine.kv.hits
        say(engine, ONE)
        assert engine.kv.hits - before == found
        engine.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
def test_on_a_card_the_ids_are_the_same_wherever_pages_lie(tiny):
    """Catches a window that is computed with before it is there, and parts in the CPU's order."""
    plain = Engine.load(tiny("llama"), Machine.here("16 MiB", "cuda"))
    page = 4 * kv_bytes_per_token(ModelConfig.from_pretrained(tiny("llama")), "float32")
    for below in ({"kv_dram": 60 * page}, {"kv_ssd": 60 * page}):
        settings = EngineConfig(page_size=4, kv_hbm=14 * page, **below)
        engine = Engine.load(tiny("llama"), Machine.here("16 MiB", "cuda"), settings)
        for _ in range(2):
            assert say(engine, ONE, LONG, TWO) == say(plain, ONE, LONG, TWO)
        engine.close()
