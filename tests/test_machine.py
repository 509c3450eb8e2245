"""Budgets hold, copies are real, and both are in the trace."""

import copy
import gc
import pickle
import threading

import pytest
import torch

from minillm.errors import ConfigError, MinillmError, OutOfMemory
from minillm.machine import Machine, Tier
from minillm.machine.host import available_dram, huge_pages
from minillm.trace import Trace

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")]
KIB = 1024


@pytest.fixture
def small() -> Machine:
    return Machine.here(hbm="64 KiB", device="cpu")


def test_a_tier_knows_who_holds_what():
    """Catches bytes that stay counted after they were released, and a peak that falls."""
    tier = Tier("hbm", 100)
    tier.reserve(60, "weights")
    tier.reserve(30, "kv")
    tier.release(60, "weights")
    assert (tier.used, tier.free, tier.peak, tier.by_label) == (30, 70, 90, {"kv": 30})
    with pytest.raises(AssertionError):
        tier.release(31, "kv")
    assert tier.used == 30


def test_a_refused_reservation_leaves_the_tier_as_it_was():
    """Catches a failed load that eats memory, and a message that helps nobody."""
    trace = Trace()
    tier = Tier("hbm", 64 * KIB, trace)
    tier.reserve(40 * KIB, "weights")
    with pytest.raises(OutOfMemory) as caught:
        tier.reserve(32 * KIB, "kv")
    error = caught.value
    assert (error.tier, error.asked, error.free) == ("hbm", 32 * KIB, 24 * KIB)
    assert error.holders == {"weights": 40 * KIB}
    for said in ("32.0 KiB of HBM", "24.0 KiB free", "weights hold 40.0 KiB", "larger budget"):
        assert said in str(error)
    assert (tier.used, tier.peak, tier.by_label) == (40 * KIB, 40 * KIB, {"weights": 40 * KIB})
    assert len(trace.events) == 1


def test_errors_survive_being_sent_to_another_process_and_read_as_one_line():
    """Catches an exception that breaks while it is unpickled, or that floods a terminal."""
    error = OutOfMemory("dram", 2**30, 5, {"kv": 7})
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) and again.holders == copy.copy(error).holders == {"kv": 7}
    assert str(MinillmError("wanted a,\n   found b")) == "wanted a, found b"


def test_reserving_from_many_threads_never_exceeds_the_budget():
    """Catches a check and a change that are not one step."""
    tier, refused = Tier("dram", 1000), []

    def work():
        for _ in range(300):
            try:
                tier.reserve(7, "x")
            except OutOfMemory:
                refused.append(1)
            else:
                if len(refused) % 2:
                    tier.release(7, "x")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tier.peak <= 1000 and tier.used % 7 == 0 and tier.used == tier.by_label["x"]


def test_every_change_of_a_tier_is_a_counter_in_the_trace(small):
    """Catches a memory chart that misses a release."""
    ids = small.empty((4,), torch.int64, "dram", "ids")
    more = small.empty((2,), torch.int64, "dram", "ids")
    small.free(ids)
    small.free(more)
    counted = [(e.name, e.label, e.nbytes) for e in small.trace.select(kind="counter")]
    assert counted == [("dram", "ids", n) for n in (32, 48, 16, 0)]


def test_hbm_is_held_to_its_budget(small):
    """Catches an emulated HBM that hands out what it does not have."""
    kept = small.empty((40 * KIB,), torch.uint8, "hbm", "weights")
    with pytest.raises(OutOfMemory, match="weights hold 40.0 KiB"):
        small.empty((7, KIB), torch.float32, "hbm", "kv")
    small.free(kept)
    assert small.empty((7, KIB), torch.float32, "hbm", "kv").shape == (7, KIB)


def test_bytes_change_their_label_and_nothing_else(small):
    """Catches a page pool that seems to grow, or to overflow its tier, when a page is taken."""
    small.hbm.reserve(60 * KIB, "kv reserved")
    small.hbm.relabel(16 * KIB, "kv reserved", "kv")
    assert small.hbm.by_label == {"kv reserved": 44 * KIB, "kv": 16 * KIB}
    assert small.hbm.used == small.hbm.peak == 60 * KIB
    small.hbm.relabel(16 * KIB, "kv", "kv reserved")
    assert small.hbm.by_label == {"kv reserved": 60 * KIB}
    with pytest.raises(AssertionError):
        small.hbm.relabel(1, "kv", "kv reserved")
    told = [(e.label, e.nbytes // KIB) for e in small.trace.select(kind="counter", name="hbm")]
    assert told[1:] == [("kv reserved", 44), ("kv", 16), ("kv", 0), ("kv reserved", 60)]


def test_a_copy_is_real_and_is_recorded(small):
    """Catches a copy that shares memory, and one whose bytes, tiers or stage go unrecorded."""
    staged = small.empty((2, 3), torch.float32, "dram", "staging").fill_(1.5)
    with small.trace.at(token=4):
        placed = small.copy(staged, "hbm", label="weights", stage="load", name="embed")
    staged.zero_()
    assert placed.eq(1.5).all() and small.hbm.by_label == {"weights": 24}
    (event,) = small.trace.select(kind="transfer")
    assert (event.name, event.stage, event.source, event.target, event.label, event.nbytes) == (
        "embed", "load", "dram", "hbm", "weights", 24)  # fmt: skip
    assert (event.resource, event.how, event.token) == ("copy", "emulated", 4)
    assert event.seconds > 0


def test_a_copy_into_a_given_tensor_takes_no_new_memory(small):
    """Catches a reservation a layer: weights land in places made before."""
    arena = small.empty((8,), torch.bfloat16, "hbm", "weights")
    used = small.hbm.used
    out = small.copy(torch.arange(4.0), arena[4:], label="weights", stage="load")
    assert out.tolist() == [0.0, 1.0, 2.0, 3.0] and out.data_ptr() == arena[4:].data_ptr()
    assert small.hbm.used == used
    (event,) = small.trace.select(kind="transfer")
    assert (event.source, event.target, event.nbytes) == ("dram", "hbm", 16)


def test_a_copy_that_does_not_fit_moves_nothing(small):
    """Catches a transfer in the trace that never took place."""
    with pytest.raises(OutOfMemory):
        small.copy(torch.zeros(65 * KIB, dtype=torch.uint8), "hbm", label="kv", stage="model")
    assert small.trace.events == () and small.hbm.used == 0


def test_the_source_of_a_computed_tensor_can_be_named(small):
    """Catches logits, computed on an emulated card, that seem to start in DRAM."""
    logits = torch.ones(3)
    small.copy(logits, "dram", label="logits", stage="decode", source="hbm")
    (event,) = small.trace.select(kind="transfer")
    assert (event.source, event.target, event.how) == ("hbm", "dram", "emulated")


def test_any_view_of_a_tensor_frees_it_and_only_once(small):
    """Catches an engine that keeps a view and cannot give the whole back."""
    block = small.empty((4, 4), torch.float32, "hbm", "kv")
    assert small.tier_of(block[2:]) is small.hbm
    small.free(block.view(-1)[3:])
    assert small.hbm.used == 0
    with pytest.raises(AssertionError):
        small.free(block)


def test_a_tensor_that_died_unfreed_gives_back_what_it_held(small):
    """Catches budgets that leak, and bytes taken from another who has the same label."""
    kept = small.empty((1024,), torch.float32, "hbm", "kv reserved")
    for _ in range(100):  # 100 of these would not fit
        lost = small.empty((2, 1024), torch.float32, "hbm", "kv reserved")
        small.relabel(lost, 4 * KIB, "kv reserved", "kv")
        assert small.hbm.by_label == {"kv reserved": 8 * KIB, "kv": 4 * KIB}
        view = lost[1:]
        del lost
        assert small.hbm.free == 52 * KIB  # the view still holds it all
        del view
        assert small.hbm.free == 60 * KIB and small.hbm.by_label == {"kv reserved": 4 * KIB}
    small.free(kept)
    assert not small.hbm.by_label


def test_tensors_that_die_while_the_budget_is_held_block_nobody(small):
    """Catches a garbage collector that waits for the lock of the thread it interrupted."""
    cycle = [small.empty((1024,), torch.float32, "hbm", "kv")]
    cycle.append(cycle)
    del cycle
    with small.hbm._lock:
        gc.collect()
    assert small.hbm.free == 64 * KIB


def test_a_tensor_of_no_elements_costs_nothing(small):
    """Catches two empty tensors that are taken for one, since neither has an address."""
    first, second = (small.empty((0, 4), torch.float32, "hbm", "kv") for _ in range(2))
    small.free(first)
    small.free(second)
    assert small.hbm.used == 0


def test_a_copy_for_later_is_a_copy(small):
    """Catches code that only works where copies overlap."""
    source = torch.arange(4.0)
    sending = small.send(source, "hbm", label="weights", stage="load", detail="layer 1")
    assert sending.wait() is sending.join() is sending.out
    source.zero_()  # the copy is over, so its source may change
    assert sending.out.tolist() == [0.0, 1.0, 2.0, 3.0] and small.hbm.by_label == {"weights": 16}
    small.sync()
    (event,) = small.trace.select(kind="transfer")
    assert (event.nbytes, event.detail, event.target) == (16, "layer 1", "hbm")


def test_what_is_carried_is_recorded_once_and_its_result_comes_back(small):
    """Catches a read that charges the wrong link, and bytes claimed for a read that failed."""
    more = {"source": "ssd", "target": "dram", "label": "weights", "stage": "load"}
    assert small.carry(lambda: "read", 4096, name="direct", detail="embed", **more) == "read"
    with pytest.raises(OSError):
        small.carry(lambda: open("/nowhere/at/all"), 4096, name="direct", **more)
    (event,) = small.trace.select(kind="transfer")
    assert (event.name, event.nbytes, event.resource, event.how) == ("direct", 4096, "ssd",
                                                                     "measured")  # fmt: skip
    small.carry(lambda: None, 8, name="sum", source="hbm:0", target="hbm:1", label="sum",
                stage="parallel", over="infiniband")  # fmt: skip
    event = small.trace.select(kind="transfer")[-1]
    assert (event.resource, event.link, event.how) == ("network", "infiniband", "emulated")


def test_many_threads_may_carry_at_once(small):
    """Catches a lock around the disk: one request in flight where the disk wants several."""
    meeting = threading.Barrier(3, timeout=30)
    more = {"source": "ssd", "target": "dram", "label": "weights", "stage": "load", "name": "read"}
    work = [threading.Thread(target=small.carry, args=(meeting.wait, 1), kwargs=more)
            for _ in range(3)]  # fmt: skip
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert len(small.trace.select(kind="transfer")) == 3 and not meeting.broken


def test_large_memory_is_asked_for_in_huge_pages(monkeypatch):
    """Catches first touches that cost more than the disk, and an address outside the tensor."""
    advised = []

    class Library:
        def madvise(self, address, nbytes, advice):
            advised.append((address.value, nbytes.value))

    monkeypatch.setattr("minillm.machine.host.ctypes.CDLL", lambda name: Library())
    monkeypatch.setattr("minillm.machine.host.sys.platform", "linux")
    for nbytes in (0, 1000, 5 * 2**20, 9 * 2**20):
        tensor = torch.empty(nbytes, dtype=torch.uint8)
        assert huge_pages(tensor) is tensor
        for address, size in advised:
            assert address % 2**21 == size % 2**21 == 0 < size
            assert tensor.data_ptr() <= address
            assert address + size <= tensor.data_ptr() + nbytes
        assert bool(advised) == (nbytes > 2**22)
        advised.clear()


def test_emulated_memory_is_made_of_huge_pages(small, monkeypatch):
    """Catches an advice that nobody takes: an arena whose first touch outlasts the load."""
    asked = []
    look = lambda tensor: asked.append(tensor) or tensor  # noqa: E731
    monkeypatch.setattr("minillm.machine.host.huge_pages", look)
    made = [small.empty((4,), torch.uint8, tier, "weights") for tier in ("dram", "hbm")]
    assert all(one is other for one, other in zip(asked, made, strict=True))


def test_here_has_the_budget_asked_for():
    """Catches a unit lost, or HBM and DRAM that count the same bytes twice."""
    machine = Machine.here(hbm="64 MiB", device="cpu")
    assert machine.hbm.capacity == 64 * 2**20 and machine.emulated
    assert machine.device == torch.device("cpu")
    default = Machine.here(device="cpu")
    assert abs(default.hbm.capacity - default.dram.capacity) <= 1
    assert default.hbm.capacity <= available_dram() < 2**50
    trace = Trace()
    assert Machine.here(hbm=1, device="cpu", trace=trace).trace is trace


@pytest.mark.parametrize("bad", [
    {"hbm": "much"}, {"hbm": "0 B"}, {"hbm": "900 TiB"}, {"hbm": -1}, {"device": "tpu"},
    {"device": "meta"}, {"device": "cuda:99"},
])  # fmt: skip
def test_a_machine_that_cannot_be_is_refused(bad):
    """Catches a budget that the machine does not have, found out halfway through a load."""
    with pytest.raises(ConfigError, match="wanted"):
        Machine.here(**{"device": "cpu"} | bad)


def test_describe_is_one_line_with_its_figures():
    """Catches a report that hides that HBM is emulated."""
    line = Machine.here(hbm="64 MiB", device="cpu").describe()
    assert "\n" not in line and "HBM 64.0 MiB (emulated in DRAM)" in line
    assert "core" in line and "torch" in line


# -- on CUDA -----------------------------------------------------------------------------------


@pytest.fixture
def card() -> Machine:
    return Machine.here(hbm="1 GiB", device="cuda")


class TestCuda:
    pytestmark = gpu

    def test_hbm_is_the_card_and_dram_is_pinned(self, card):
        """Catches staging buffers that the card cannot read directly."""
        assert card.empty((4,), torch.float32, "dram", "ids").is_pinned()
        assert card.empty((4,), torch.float32, "hbm", "kv").device.type == "cuda"
        assert not card.emulated and "emulated" not in card.describe()

    def test_a_copy_waits_for_the_kernel_that_computes_its_source(self, card):
        """Catches logits read on the copy stream before the compute stream has written them."""
        a = torch.randn(4096, 4096, device=card.device)
        for _ in range(5):
            product = a
            for _ in range(10):
                product = torch.tanh(product @ a)
            there = card.copy(product, "dram", label="logits", stage="decode")
            got = there.clone()
            torch.cuda.synchronize()
            assert torch.equal(got, product.cpu())
            card.free(there)

    def test_a_kernel_waits_for_the_copy_that_brings_its_input(self, card):
        """Catches a layer that runs on weights of which half have arrived."""
        source = card.empty((64 * 2**20,), torch.float32, "dram", "staging")
        out = card.empty((64 * 2**20,), torch.float32, "hbm", "weights")
        for value in (1.0, 2.0, 3.0):
            card.sync()
            source.fill_(value)
            card.send(source, out, label="weights", stage="load").wait()
            assert (out * 2).eq(2 * value).all().item()

    def test_compute_queued_before_wait_runs_beside_the_copy(self, card):
        """Catches layers that wait for the next layer's weights: a prefetch that hides nothing."""
        source = card.empty((2**30,), torch.uint8, "dram", "staging")
        out = card.empty((2**30,), torch.uint8, "hbm", "weights")
        source.fill_(7)
        other = torch.ones(16, device=card.device)
        torch.cuda.synchronize()
        sending = card.send(source, out, label="weights", stage="load")
        done = (other + 1).sum()
        torch.cuda.current_stream(card.device).synchronize()
        assert not sending._end.query(), "compute waited for a copy that it does not need"
        assert done.item() == 32
        assert sending.wait().eq(7).all().item()
        card.sync()
        assert len(card.trace.select(kind="transfer")) == 1

    def test_both_directions_of_pcie_run_at_once(self, card):
        """Catches logits that queue behind a gigabyte of prefetched weights."""
        source = card.empty((2**30,), torch.uint8, "dram", "staging").fill_(1)
        out = card.empty((2**30,), torch.uint8, "hbm", "weights")
        small = torch.full((16,), 3.0, device=card.device)
        torch.cuda.synchronize()
        sending = card.send(source, out, label="weights", stage="load")
        back = card.copy(small, "dram", label="logits", stage="decode")
        assert back.eq(3.0).all() and not sending._end.query()
        card.sync()
        assert {e.label for e in card.trace.select(kind="transfer")} == {"weights", "logits"}

    def test_a_copy_does_not_overwrite_what_a_kernel_still_reads(self, card):
        """Catches a double buffer that is refilled too soon."""
        source = card.empty((2**24,), torch.float32, "dram", "staging").fill_(5.0)
        buffer = torch.ones(2**24, device=card.device)
        busy = torch.randn(4096, 4096, device=card.device)
        for _ in range(20):
            busy = torch.tanh(busy @ busy)
        seen = buffer + 0 * busy[0, 0]
        card.send(source, buffer, label="weights", stage="load").wait()
        assert seen.eq(1.0).all().item() and buffer.eq(5.0).all().item()

    def test_memory_freed_during_a_copy_is_not_given_to_others(self, card):
        """Catches an allocator that does not know that the copy stream uses a block."""
        back = card.empty((2**25,), torch.float32, "dram", "text")
        for value in (1.0, 2.0):
            made = torch.full((2**25,), value, device=card.device)
            card.send(made, back, label="kv", stage="model").wait()
            del made
            torch.full((2**25,), 9.0, device=card.device)
            card.sync()
            assert back.eq(value).all()

    def test_times_are_those_of_the_card_and_lie_inside_the_trace(self, card):
        """Catches the time of a launch, a few microseconds, told as the time of a copy."""
        source = card.empty((2**28,), torch.uint8, "dram", "staging")
        out = card.empty((2**28,), torch.uint8, "hbm", "weights")
        begin = card.trace.now()
        for _ in range(4):
            card.send(source, out, label="weights", stage="load").wait()
        assert not card.trace.select(kind="transfer")
        card.sync()
        copies = card.trace.select(kind="transfer", how="measured")
        assert len(copies) == 4 and all(e.nbytes == 2**28 for e in copies)
        assert all(2**28 / e.seconds < 1e12 for e in copies)  # no PCIe moves a TB/s
        assert all(begin - 1e-3 < e.start and e.end < card.trace.now() + 1e-3 for e in copies)
        assert all(a.end <= b.start + 1e-4 for a, b in zip(copies, copies[1:], strict=False))

    def test_the_stamp_of_a_copy_is_that_of_its_launch(self, card):
        """Catches a copy billed to the token at whose end the trace learned of it."""
        source = card.empty((16,), torch.uint8, "dram", "staging")
        with card.trace.at(token=1):
            card.send(source, "hbm", label="kv", stage="model").wait()
        with card.trace.at(token=2):
            card.sync()
        assert card.trace.select(kind="transfer")[0].token == 1
