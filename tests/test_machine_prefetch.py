"""What is needed next arrives in a slot while another is in use; in order, and to the end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minillm.machine import Machine
from minillm.machine.copies import Sending
from minillm.machine.prefetch import Hidden, Prefetch, hidden, waiting
from minillm.trace import Event, Trace

WAIT = waiting("weights")


class Slot:
    """Room for something."""

    holds: object = None


@pytest.fixture
def prefetch(machine: Machine) -> Iterator[Prefetch[Slot]]:
    before = set(threading.enumerate())
    made = Prefetch(machine, [Slot(), Slot()], label="weights", stage="load")
    yield made
    made.close()
    more = set(threading.enumerate()) - before
    assert not [thread.name for thread in more if thread.name.startswith("minillm")]


def puts(key: object, first: Callable[[], object] = lambda: None) -> Callable[[Slot], None]:
    """Fills a slot with `key`, after `first()`."""

    def bring(slot: Slot) -> None:
        first()
        slot.holds = key

    return bring


class Sent(Sending):
    """A copy that is over when somebody joins it, as a card's is."""

    def __init__(self, slot: Slot, key: object):
        super().__init__(slot)
        self.key = key

    def join(self) -> Slot:
        self.out.holds = self.key
        return self.out


@pytest.mark.parametrize("slots", [2, 3, 5])
@pytest.mark.parametrize("sends", [False, True])
def test_each_take_finds_what_it_asked_for(machine, slots, sends):
    """Would catch a slot that is filled anew while it is in use, and things out of order."""
    prefetch = Prefetch(machine, [Slot() for _ in range(slots)], label="kv", stage="model")
    order = []

    def bring(key: int) -> Callable[[Slot], Sending | None]:
        def send(slot: Slot) -> Sending:
            order.append(key)
            return Sent(slot, key)

        return send if sends else puts(key, lambda: order.append(key))

    ahead = slots - 1
    for key in range(ahead):
        prefetch.ask(key, bring(key), sends=sends)
    for key in range(20):
        prefetch.ask(key + ahead, bring(key + ahead), sends=sends)
        slot = prefetch.take(key)
        for _, wait in prefetch._coming.values():  # whoever would overwrite it has done so
            wait()
        assert slot.holds == key
    prefetch.close()
    assert order == list(range(20 + ahead))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.booleans()), max_size=30))
def test_whatever_was_broken_off_the_next_take_is_right(machine, work):
    """Would catch a slot lost for ever, and one taken for another since it was on its way."""
    prefetch = Prefetch(machine, [Slot(), Slot()], label="weights", stage="load")
    for number, (key, more, fails) in enumerate(work):
        wanted = (number, key) if fails else key  # a failure must not stay for a later take
        prefetch.ask(wanted, puts(wanted, lambda fails=fails: 1 / 0 if fails else None))
        if more:
            prefetch.ask(key + 1, puts(key + 1))
        if fails:
            with pytest.raises(ZeroDivisionError):
                prefetch.take(wanted)
        else:
            assert prefetch.take(wanted).holds == wanted
    prefetch.close()


def test_it_arrives_beside_us_on_a_thread_of_its_own(prefetch):
    """Would catch prefetching in name only: done when it is taken, or by the computing thread."""
    there, names = threading.Event(), []
    prefetch.ask(0, puts(0))
    prefetch.ask(1, puts(1, lambda: [names.append(threading.current_thread().name), there.set()]))
    prefetch.take(0)
    assert there.wait(20), "nobody brought what comes next"
    assert names[0].startswith("minillm-prefetch")
    assert prefetch.take(1).holds == 1


def test_what_a_card_sends_is_sent_by_the_thread_that_computes(prefetch):
    """Would catch a copy given to the card behind compute that was queued meanwhile."""
    names, before = [], set(threading.enumerate())

    def bring(slot: Slot) -> Sending:
        names.append(threading.current_thread())
        return Sent(slot, 0)

    prefetch.ask(0, bring, sends=True)
    assert names == [threading.current_thread()]  # at once, and it is not waited for
    assert prefetch.take(0).holds == 0
    assert set(threading.enumerate()) <= before


def test_asked_twice_it_is_brought_once_and_after_a_take_anew(prefetch):
    """Would catch a layer that crosses the link twice, because its pass asks for it again; and one
    that is taken to be there though its slot was given up."""
    order = []
    for _ in range(2):
        prefetch.ask(0, puts(0, lambda: order.append(0)))
    prefetch.take(0)
    assert order == [0]
    prefetch.ask(0, puts(0, lambda: order.append(1)))
    prefetch.take(0)
    assert order == [0, 1]


def test_of_more_than_there_are_slots_the_oldest_is_given_up(prefetch):
    """Would catch a slot handed out for what was in it before."""
    for key in (0, 1, 2):
        prefetch.ask(key, puts(key))
    with pytest.raises(AssertionError, match="0 was not asked for"):
        prefetch.take(0)
    assert [prefetch.take(key).holds for key in (1, 2)] == [1, 2]


@pytest.mark.parametrize("way", ["ask", "take"])
def test_nothing_is_put_into_a_slot_while_something_given_up_still_arrives_there(prefetch, way):
    """Would catch the rest of a layer that nobody wants, written over the one that came after."""
    begun, go_on, done = threading.Event(), threading.Event(), []

    def slow() -> None:
        begun.set()
        assert go_on.wait(20)
        done.append("slow")

    prefetch.ask(0, puts(0, slow))
    assert begun.wait(20)
    threading.Timer(0.05, go_on.set).start()
    prefetch.ask(1, lambda slot: Sent(slot, 1), sends=True)
    if way == "take":
        assert prefetch.take(1).holds == 1 and done == ["slow"]
    prefetch.ask(2, lambda slot: [done.append("sent"), Sent(slot, 2)][1], sends=True)
    assert done == ["slow", "sent"]


def test_an_error_is_raised_by_take_and_the_next_asking_is_free_of_it(prefetch):
    """Would catch an error on the other thread that nobody hears, or that sticks for ever."""

    def broken(slot: Slot) -> None:
        raise OSError("no such layer")

    prefetch.ask(0, broken)
    prefetch.ask(1, puts(1))
    with pytest.raises(OSError, match="no such layer"):
        prefetch.take(0)
    assert prefetch.take(1).holds == 1
    for key in (0, 2, 3):  # both slots are still there
        prefetch.ask(key, puts(key))
        assert prefetch.take(key).holds == key


def test_close_waits_for_what_is_under_way_and_drops_the_rest(machine):
    """Would catch memory given back while a thread still writes into it."""
    prefetch = Prefetch(machine, [Slot(), Slot()], label="weights", stage="load")
    begun, go_on, done = threading.Event(), threading.Event(), []

    def slow() -> None:
        begun.set()
        assert go_on.wait(20)
        done.append(0)

    prefetch.ask(0, puts(0, slow))
    prefetch.ask(1, puts(1, lambda: done.append(1)))
    assert begun.wait(20)
    threading.Timer(0.05, go_on.set).start()
    prefetch.close()
    assert done == [0]
    prefetch.close()


def test_transfers_carry_the_stamp_of_the_asking_and_the_wait_that_of_the_take(machine, prefetch):
    """Would catch traffic that belongs to no token, or to the token that happens to run."""
    source, target = (machine.empty((64,), torch.int8, tier, "w") for tier in ("dram", "hbm"))

    def bring(slot: Slot) -> None:
        machine.copy(source, target, label="weights", stage="load")

    with machine.trace.at(token=3, request=1):
        prefetch.ask("layer 0", bring)
        prefetch.ask("layer 1", bring)
        prefetch.take("layer 0")
    with machine.trace.at(token=4, request=1):
        prefetch.take("layer 1")
    moves = machine.trace.select(kind="transfer", label="weights")
    assert [(move.token, move.request) for move in moves] == [(3, 1)] * 2
    waits = machine.trace.select(name=WAIT, stage="load", resource="cpu", label="weights")
    assert [(w.token, w.detail) for w in waits] == [(3, "layer 0"), (4, "layer 1")]


@pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) is not signal.default_int_handler, reason="no Ctrl-C here"
)
@pytest.mark.parametrize("presses", [1, 2])
def test_ctrl_c_while_it_waits_leaves_it_usable(prefetch, presses):
    """Would catch a slot that nobody has any more, and a transfer that nobody waits for."""
    go_on = threading.Event()

    def press() -> None:
        for _ in range(presses):
            signal.raise_signal(signal.SIGINT)
        go_on.set() if presses == 1 else None

    prefetch.ask(0, puts(0, lambda: go_on.wait(20)))
    prefetch.ask(1, puts(1))
    slot, wait = prefetch._coming[0]
    prefetch._coming[0] = slot, lambda: [press(), wait()]
    with pytest.raises(KeyboardInterrupt):
        prefetch.take(0)
    go_on.set()
    for key in (0, 1, 2, 3):
        prefetch.ask(key, puts(key))
        assert prefetch.take(key).holds == key


def trace_of(*spans: tuple[str, float, float]) -> Trace:
    """Weights that move (for token 0, home again, in the load) and waits: (what, from, to)."""
    ends = {"home": ("hbm", "dram")}
    return Trace.of(
        [
            Event("span", WAIT, "load", "cpu", a, b - a, label="weights") if what == "wait"
            else Event("transfer", "copy", "load", "copy", a, b - a, 0,
                       *ends.get(what, ("dram", "hbm")), label=what if what == "kv" else "weights",
                       token=None if what == "load" else 0)
            for what, a, b in spans
        ], {},
    )  # fmt: skip


def test_hidden_is_the_share_of_moving_that_compute_did_not_wait_for():
    """Would catch transfers at the same time counted twice, the load counted as streaming, and
    another label's traffic, or this one's way home, taken for it."""
    trace = trace_of(
        ("move", 0, 2), ("move", 1, 3), ("load", 5, 9), ("home", 3, 4), ("kv", 9, 10),
        ("wait", 0, 1.5),
    )  # fmt: skip
    found = hidden(trace, "weights")
    assert found == Hidden(3.0, 1.5) and found.share == 0.5
    assert hidden(trace, "kv") == Hidden(1.0, 0.0)
    assert hidden(trace_of(("move", 0, 2)), "weights").share == 1.0
    assert hidden(trace_of(("move", 0, 2), ("wait", 0, 2.5)), "weights").share == 0.0
    assert hidden(trace_of(("load", 0, 2)), "weights").share == 0.0
