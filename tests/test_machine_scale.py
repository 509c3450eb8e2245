"""Slowed links keep a server's proportions, and copies over them are real.

Times are virtual: the clock stands still or is moved by hand, so that no test waits or measures.
"""

from __future__ import annotations

import threading
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minillm.config import SamplingParams
from minillm.engine.engine import Engine
from minillm.errors import ConfigError
from minillm.machine import Machine
from minillm.machine.copies import Way, way_of
from minillm.machine.scale import ScaledLink, ScaleModel
from minillm.predict import HARDWARE, Wire
from minillm.probe import Profile, machine_name
from minillm.probe.measure import Measurement
from minillm.trace import Trace


class Clock:
    """Seconds that pass only when somebody waits for them, or when told to."""

    def __init__(self, frozen: bool = False):
        self.now, self.frozen = 0.0, frozen

    def __call__(self) -> float:
        return self.now

    def until(self, end: float) -> None:
        if not self.frozen:
            self.now = max(self.now, end)


def link(clock: Clock, bandwidth: float = 100.0, latency: float = 0.0) -> ScaledLink:
    return ScaledLink(Wire(bandwidth, latency), clock, clock.until)


class Times(list):
    """Where transfers tell their begin and end."""

    def __call__(self, begin: float, end: float) -> None:
        self.append((begin, end))


def model(clock: Clock, name: str = "H100", pace: float = 33.5e9) -> tuple[ScaleModel, Trace]:
    trace = Trace(clock)  # H100's 3.35 TB/s at 33.5 GB/s: everything is 100 times slower
    return ScaleModel(HARDWARE[name], pace, trace, clock.until), trace


def way(trace: Trace, source: str = "dram", target: str = "hbm", link: str = "") -> Way:
    return way_of(trace, True, True, "copy", "load", "weights", source, target, link)


def threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("scaled link")]


# -- one link ----------------------------------------------------------------------------------


def test_a_transfer_takes_latency_and_bytes_over_bandwidth():
    """Catches a latency forgotten, and a caller let go before the link is done."""
    clock, times = Clock(), Times()
    wire = link(clock, bandwidth=100, latency=0.5)
    assert wire.carry(lambda: "moved", 200, times) == "moved"
    assert times == [(0.0, 2.5)] and clock.now == 2.5
    clock.now = 10.0  # the link was idle: it is not owed the time
    wire.carry(lambda: None, 100, times)
    assert times[1] == (10.0, 11.5)


def test_two_transfers_on_one_link_queue_and_hide_the_second_latency():
    """Catches two copies that have the whole link each, and latency paid in a full queue."""
    clock, times = Clock(frozen=True), Times()
    wire = link(clock, bandwidth=100, latency=0.5)
    for nbytes in (200, 300):
        wire.send(None, lambda: None, nbytes, times)
    wire.drain()
    assert times == [(0.0, 2.5), (2.5, 5.5)]


def test_two_transfers_on_two_links_overlap():
    """Catches one queue for all: SSD reads that wait for PCIe."""
    clock, times = Clock(frozen=True), Times()
    for wire in (link(clock), link(clock)):
        wire.carry(lambda: None, 200, times)
    assert times == [(0.0, 2.0), (0.0, 2.0)]


def test_a_copy_slower_than_the_slowed_link_is_told_as_slow_as_it_was():
    """Catches a trace that claims a speed this machine does not have."""
    clock, times = Clock(), Times()
    wire = link(clock)

    def slow():
        clock.now += 7

    wire.carry(slow, 100, times)
    wire.carry(lambda: None, 100, times)
    assert times == [(0.0, 7.0), (7.0, 8.0)]


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 500), st.floats(0, 3)), max_size=20))
def test_a_link_is_never_used_twice_at_once_and_keeps_the_order(jobs):
    """Catches an overlap on one link, whatever is asked of it when."""
    clock = Clock(frozen=True)
    wires = [link(clock, bandwidth=50 * (i + 1), latency=0.1 * i) for i in range(3)]
    told = [Times() for _ in wires]
    for which, nbytes, pause in jobs:
        clock.now += pause
        wires[which].carry(lambda: None, nbytes, told[which])
    for wire, times in zip(wires, told, strict=True):
        assert all(a[1] <= b[0] for a, b in zip(times, times[1:], strict=False))
        busy = [nbytes / wire.wire.bandwidth for w, nbytes, _ in jobs if wires[w] is wire]
        for (begin, end), least in zip(times, busy, strict=True):
            assert least - 1e-9 <= end - begin <= least + wire.wire.latency + 1e-9


def test_the_sender_goes_on_while_the_bytes_move():
    """Catches a `send` that is a `copy`: no overlap with compute."""
    wire, gate, arrived = link(Clock()), threading.Event(), []
    transfer = wire.send("there", lambda: (gate.wait(), arrived.append(1)), 100, Times())
    assert not arrived and not transfer.over.done()
    gate.set()
    assert transfer.join() == "there" and arrived
    wire.drain()
    assert not threads()


def test_a_copy_asked_for_now_comes_after_those_in_the_queue():
    """Catches a copy that overtakes: half of a double buffer, overwritten too early."""
    wire, gate, order = link(Clock()), threading.Event(), []
    wire.send(None, lambda: (gate.wait(), order.append("first")), 1, Times())
    late = threading.Thread(target=lambda: wire.carry(lambda: order.append("second"), 1, Times()))
    late.start()
    gate.set()
    late.join()
    wire.drain()
    assert order == ["first", "second"]


@pytest.mark.parametrize("error", [ValueError("torn"), KeyboardInterrupt()])
def test_a_transfer_that_fails_is_raised_where_it_is_waited_for(error):
    """Catches an error that dies with its thread, and a link that an interrupt leaves locked."""
    clock, times = Clock(), Times()
    wire = link(clock)

    def fail():
        raise error

    with pytest.raises(type(error)):
        wire.carry(fail, 100, times)
    transfer = wire.send(None, fail, 100, times)
    with pytest.raises(type(error)):
        transfer.join()
    wire.carry(lambda: None, 100, times)
    wire.drain()
    assert times == [(0.0, 1.0)] and not threads()


def test_what_went_wrong_in_a_queue_is_raised_once(machine_of):
    """Catches an error that its caller has had already, and that comes again at the next sync."""
    machine, gate = machine_of("H100"), threading.Event()
    link = machine.scale.link("dram", "hbm")
    link.send(None, gate.wait, 1, Times())

    def fail():
        raise ValueError("torn")

    gate.set()
    with pytest.raises(ValueError, match="torn"):
        machine.carry(fail, 1, source="dram", target="hbm", stage="load")
    machine.sync()


def test_the_clock_of_this_machine_is_waited_for():
    """Catches a link that is let go before its time, and a thread that outlives its queue."""
    wire, times = ScaledLink(Wire(1e9)), Times()
    wire.send(None, lambda: None, 2 * 10**6, times)
    wire.carry(lambda: None, 1, times)
    wire.drain()
    assert times[0][1] <= times[1][1] <= time.perf_counter() and not threads()


# -- the model ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["A100", "H100", "H200", "B200"])
def test_all_links_keep_the_servers_proportion_to_hbm(name):
    """Catches a link that is scaled by another factor, or a latency that is not scaled at all."""
    scale, _ = model(Clock(), name)
    server = HARDWARE[name]
    for link_name in ("nvme", "pcie", "nvlink", "infiniband"):
        there, here = getattr(server, link_name), scale.wire(link_name)
        assert here.bandwidth / scale.hbm_bandwidth == pytest.approx(
            there.bandwidth / server.hbm_bandwidth
        )
        # As many bytes as are on the way at once there, so that the same sizes are "small".
        assert here.latency * here.bandwidth == pytest.approx(there.latency * there.bandwidth)
        for nbytes in (1, 10**6, 10**9):
            assert here.seconds(nbytes) == pytest.approx(there.seconds(nbytes) * scale.slower)


def test_each_way_between_tiers_has_its_own_link():
    """Catches both directions of PCIe in one queue, or two GPUs on one set of lanes."""
    scale, _ = model(Clock())
    wire = lambda *way: scale.link(*way).wire  # noqa: E731
    assert wire("ssd", "dram") == wire("dram", "ssd") == scale.wire("nvme")
    assert wire("dram", "hbm") == wire("hbm:3", "cpu") == scale.wire("pcie")
    assert wire("hbm:0", "hbm:1") == scale.wire("nvlink")
    assert wire("hbm:0", "hbm:8", "infiniband") == scale.wire("infiniband")
    assert scale.link("dram", "hbm") is scale.link("dram", "hbm")
    ways = [("dram", "hbm"), ("hbm", "dram"), ("dram", "hbm:1"), ("ssd", "dram"), ("dram", "ssd")]
    assert len({id(scale.link(*way)) for way in ways}) == len(ways)
    # What a GPU sends to two others leaves through the same ports.
    assert scale.link("hbm:0", "hbm:1") is scale.link("hbm:0", "hbm:2")
    assert scale.link("cpu", "dram") is None and scale.link("hbm", "hbm") is None


def test_what_a_server_does_not_have_is_refused_and_what_it_needs_not_is_free():
    """Catches an RTX 4090 with NVLink, and a copy within a Mac's one memory that takes time."""
    scale, trace = model(Clock(), "RTX 4090")
    with pytest.raises(ConfigError, match="wanted nvlink.*RTX 4090 has none"):
        scale.link("hbm:0", "hbm:1")
    for name in ("token ring", "name", "hbm_bandwidth"):
        with pytest.raises(ConfigError, match=f"wanted {name}, but RTX 4090 has none"):
            scale.carry(lambda: None, 1, way(trace, link=name))
    assert set(scale.ceilings()) == {"ssd", "copy", "hbm"}
    unified, trace = model(Clock(), "M1 Max")
    assert unified.link("dram", "hbm") is None
    unified.copy(torch.ones(4), torch.empty(4), way(trace))
    assert [e.nbytes for e in trace.events] == [16]


def test_the_trace_tells_the_links_times_and_that_they_are_emulated():
    """Catches virtual seconds mixed with real ones, and a copy billed to another token."""
    clock = Clock()
    scale, trace = model(clock)
    clock.now = 5.0
    with trace.at(token=3, request=1):
        scale.copy(torch.ones(64), torch.empty(64), way(trace))
        sending = scale.send(torch.ones(64), torch.empty(64), way(trace), "layer 2")
    with trace.at(token=9):
        sending.join()
        scale.settle()
    first, second = trace.select(kind="transfer")
    assert first.start == 5.0 and first.seconds == pytest.approx(scale.wire("pcie").seconds(256))
    assert second.start == pytest.approx(first.end)
    assert (first.how, first.detail, first.resource) == ("emulated", "scale model of H100", "copy")
    assert second.detail == "layer 2, scale model of H100"
    assert (second.token, second.request) == (first.token, first.request) == (3, 1)


def test_copies_are_real_in_order_and_raised_at_sync(machine_of):
    """Catches a model that waits and moves nothing, and an error lost in the background."""
    machine = machine_of("H100")
    out = machine.empty((4,), torch.float32, "hbm", "weights").zero_()
    for value in (1.0, 2.0, 3.0):
        machine.send(torch.full((4,), value), out, label="weights", stage="load")
    machine.sync()
    assert out.eq(3.0).all() and not threads()
    copies = machine.trace.select(kind="transfer")
    assert len(copies) == 3 and all(e.nbytes == 16 and e.how == "emulated" for e in copies)
    assert all(a.end <= b.start + 1e-9 for a, b in zip(copies, copies[1:], strict=False))
    machine.send(torch.ones(5), out, label="weights", stage="load")  # five into four
    with pytest.raises(RuntimeError):
        machine.sync()
    machine.sync()  # once is enough
    assert len(machine.trace.select(kind="transfer")) == 3 and not threads()


def test_two_links_of_a_machine_overlap_and_one_link_queues():
    """Catches a load whose disk waits for PCIe."""
    scale, trace = model(Clock(frozen=True))
    machine = Machine(torch.device("cpu"), 0, 2**20, 2**20, trace, scale)
    out = machine.empty((2**18,), torch.uint8, "hbm", "weights")
    more = {"label": "weights", "stage": "load"}
    sent = [machine.send(torch.ones(2**18, dtype=torch.uint8), out, **more) for _ in range(2)]
    machine.carry(lambda: None, 2**12, source="ssd", target="dram", name="read", **more)
    machine.carry(lambda: None, 8, source="hbm:0", target="hbm:1", name="sum", **more)
    assert all(one.wait() is out for one in sent)
    machine.sync()
    (read,) = trace.select(resource="ssd")
    first, second = trace.select(resource="copy")
    (network,) = trace.select(resource="network")
    assert read.start == first.start == network.start == 0.0 < first.end == second.start
    assert second.seconds == pytest.approx(2**18 / scale.wire("pcie").bandwidth)


@pytest.fixture
def machine_of(monkeypatch, tmp_path):
    """A scale model at a pace that makes tests quick: by a profile that says so."""
    monkeypatch.setenv("MINILLM_HOME", str(tmp_path))
    pace = Measurement("dram.read", "bytes/s", 1e12, 1e12, 1e12, 3, "made up")
    Profile(machine_name(), "today", {}, {"dram.read": pace}).save()
    return lambda name: Machine.scale_model(name, hbm="64 MiB")


def test_the_pace_is_that_of_the_saved_profile_and_the_machine_says_what_it_is(machine_of):
    """Catches a model at another pace than the ceilings that charts divide by."""
    machine = machine_of("H200")
    assert machine.scale.hbm_bandwidth == 1e12 and machine.scale.slower == pytest.approx(4.8)
    assert "scale model of H200, 5 × slower" in machine.describe()
    meta = machine.trace.meta
    assert meta["scale_model"]["of"] == "H200" and meta["ceilings"]["hbm"] == 1e12
    assert meta["ceilings"]["copy"] == pytest.approx(64e9 / 4.8)
    with pytest.raises(ConfigError, match="wanted one of .*H100.*found 'H900'"):
        machine_of("H900")


def test_without_a_profile_the_pace_is_measured(monkeypatch, tmp_path):
    """Catches a scale model that only works after a probe."""
    monkeypatch.setenv("MINILLM_HOME", str(tmp_path))
    measured = Measurement("dram.read", "bytes/s", 5e10, 5e10, 6e10, 3, "made up")
    monkeypatch.setattr("minillm.machine.machine.dram_bandwidth", lambda seconds: measured)
    assert Machine.scale_model("H100", hbm="1 MiB").scale.hbm_bandwidth == 6e10


def test_an_engine_on_a_scale_model_says_the_same(machine_of, tiny):
    """Catches a slowed link that changes what arrives."""
    params = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
    plain, slowed = (
        Engine.load(tiny("llama"), machine).generate("Mia put the red key", params)[0].token_ids
        for machine in (Machine.here("64 MiB", device="cpu"), machine_of("H100"))
    )
    assert plain == slowed and not threads()
