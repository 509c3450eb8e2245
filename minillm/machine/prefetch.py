"""What is needed next crosses the link while we compute: two slots ahead of use, or more.

    slot 0   layer 0 in use     layer 2 arrives    layer 2 in use
    slot 1   layer 1 arrives    layer 1 in use     layer 3 arrives    …

Layers of weights come this way, and pages that were moved out of HBM; what a slot is, and how it
is filled, is the business of who asks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch

from minillm.links import Sending
from minillm.machine.interrupt import held
from minillm.machine.machine import Machine
from minillm.trace import Trace, busy_seconds

S = TypeVar("S")
Bring = Callable[[S], Sending | None]
"""Fills a slot: when it returns or, if it returns a Sending, when that is over."""


@dataclass(eq=False)
class _Asked(Generic[S]):
    """One thing that was asked for: without a slot it waits, with one it is on its way."""

    key: Hashable
    bring: Bring[S]
    sends: bool
    stamp: dict[str, Any]
    slot: S | None = None
    future: Future[Sending | None] = field(default_factory=Future)

    def join(self) -> None:
        """Wait until the slot is filled, or raise what went wrong."""
        sending = self.future.result()
        if sending is not None:
            sending.join()


class Prefetch(Generic[S]):
    """Has slots filled ahead of their use, in the order in which it is asked to.

    >>> prefetch = Prefetch(machine, [one, two], label="weights", stage="load")
    >>> prefetch.ask("layer 0", bring)            # goes on beside us: bring(one)
    >>> prefetch.ask("layer 1", bring)
    >>> slot = prefetch.take("layer 0")           # waits until it is there
    >>> prefetch.ask("layer 2", bring)            # waits for its turn: both slots are taken
    >>> slot = prefetch.take("layer 1")           # now `one` is free, and layer 2 on its way

    slots: two at least, all alike. label, stage: of the spans in which a `take` had to wait, for
    the trace. For one thread, which is the one that computes; a second one, there from the first
    `ask` to `close`, brings. What moves is stamped with what the asking was done for.
    """

    def __init__(self, machine: Machine, slots: Sequence[S], *, label: str, stage: str) -> None:
        assert len(slots) > 1, "with one slot nothing arrives while it is in use"
        self._machine, self._slots, self._label, self._stage = machine, tuple(slots), label, stage
        self._asked: deque[_Asked[S]] = deque()  # those on their way come first
        self._in_use: S | None = None
        self._thread = ThreadPoolExecutor(1, "minillm-prefetch")

    def ask(self, key: Hashable, bring: Bring[S], *, sends: bool = False) -> None:
        """Send for `key`, unless that was done: `bring(slot)` is called when a slot is free.

        sends: it only begins a copy that a card goes on with by itself, and returns that. So it is
        called here, not on the other thread: a copy waits for the compute that was queued before
        it, and should for no more. What it raises is raised by `take`.
        """
        if any(asked.key == key for asked in self._asked):
            return
        at = self._machine.trace.at
        stamp = {"token": at.token, "request": at.request}
        with held():
            self._asked.append(_Asked(key, bring, sends, stamp))
            self._send_for()

    def take(self, key: Hashable) -> S:
        """The slot with `key` in it, which was asked for; good until the next `take`.

        What was asked for before it and not taken is dropped: a pass was broken off. Raises what
        bringing it raised, and then it may be asked for again.
        """
        machine = self._machine
        if not machine.emulated:  # so that what we wait for next is the link, and not compute
            torch.cuda.current_stream(machine.device).synchronize()
        with held():
            self._in_use = None
            while self._asked and self._asked[0].key != key:
                self._drop(self._asked[0])
            assert self._asked, f"{key} was not asked for"
            self._send_for()
            now = self._asked[0]
            with machine.trace.span(
                waiting(self._label), stage=self._stage, resource="cpu", label=self._label,
                detail=str(key),
            ):  # fmt: skip
                try:
                    now.join()
                except BaseException:
                    if now.future.done():  # else it is under way: only the waiting was broken off
                        self._asked.popleft()
                    raise
            self._in_use = self._asked.popleft().slot
            return now.slot

    def close(self) -> None:
        """Drop what has not begun and wait for the rest; nothing is raised."""
        with held():
            while self._asked:
                self._drop(self._asked[-1])
            self._thread.shutdown(wait=True)

    def _send_for(self) -> None:
        """Give the slots that are free to those who asked first."""
        for asked in self._asked:
            if asked.slot is None:
                taken = [self._in_use, *(other.slot for other in self._asked)]
                free = [slot for slot in self._slots if all(slot is not each for each in taken)]
                if not free:
                    return
                asked.slot = free[0]
                if asked.sends:
                    self._bring(asked)
                else:
                    self._thread.submit(self._bring, asked)

    def _bring(self, asked: _Asked[S]) -> None:
        if not asked.future.set_running_or_notify_cancel():
            return
        try:
            with self._machine.trace.at(**asked.stamp):
                asked.future.set_result(asked.bring(asked.slot))
        except BaseException as error:  # for whoever takes it
            asked.future.set_exception(error)

    def _drop(self, asked: _Asked[S]) -> None:
        """Its slot is needed: wait until nobody writes into it any more."""
        if not asked.future.cancel():
            try:
                asked.join()
            except Exception:
                pass  # nobody will use it
        self._asked.remove(asked)


def waiting(label: str) -> str:
    """The name of the spans in which compute stood still because something was not there yet."""
    return f"wait for {label}"


@dataclass(frozen=True)
class Hidden:
    """Seconds in which some of it was moving, and seconds that compute waited for it."""

    moving: float
    waited: float

    @property
    def share(self) -> float:
        """Of the time that moving took, what compute did not notice: 0 to 1."""
        return max(0.0, 1 - self.waited / self.moving) if self.moving else 0.0


def hidden(trace: Trace, label: str) -> Hidden:
    """How much of a label's way to HBM was hidden behind compute, over all requests.

    A load does not count, nor what goes home from HBM: only what was brought for a token does.
    """
    moves = [
        move for move in trace.select(kind="transfer", label=label)
        if move.token is not None and not move.source.startswith("hbm")
    ]  # fmt: skip
    waits = trace.select(kind="span", name=waiting(label))
    return Hidden(busy_seconds(moves), sum(wait.seconds for wait in waits))
