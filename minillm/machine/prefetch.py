"""What is needed next crosses the link while we compute: two slots ahead of use, or more.

    slot 0   layer 0 in use     layer 2 arrives    layer 2 in use
    slot 1   layer 1 arrives    layer 1 in use     layer 3 arrives    …

Layers of weights come this way, and pages that were moved out of HBM; what a slot is, and how it
is filled, is the business of who asks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from minillm.machine.copies import Sending
from minillm.machine.interrupt import held
from minillm.machine.machine import Machine
from minillm.trace import Trace, busy_seconds

S = TypeVar("S")


class Prefetch(Generic[S]):
    """Has slots filled ahead of their use, one after the other, in the order of the asking.

    >>> prefetch = Prefetch(machine, [one, two], label="weights", stage="load")
    >>> prefetch.ask("layer 0", bring)          # begins: bring(one), on a thread of its own
    >>> prefetch.ask("layer 1", bring)          # bring(two)
    >>> slot = prefetch.take("layer 0")         # waits until it is there; compute with it, and
    >>> prefetch.ask("layer 2", bring)          # give it up: bring(one) again
    >>> slot = prefetch.take("layer 1")

    slots: all alike, two at least. What `take` returns is good until as many are asked for, and
    not taken, as there are slots. label, stage: of the spans in which `take` waited, see `hidden`.
    Asked by one thread, the one that computes. What moves is stamped with what it was asked for.
    """

    def __init__(self, machine: Machine, slots: Sequence[S], *, label: str, stage: str) -> None:
        self._machine, self._label, self._stage = machine, label, stage
        self._slots = deque(slots)  # the next to be filled comes first
        self._coming: dict[Hashable, tuple[S, Callable[[], object]]] = {}  # in order; how to wait
        self._thread = ThreadPoolExecutor(1, "minillm-prefetch")

    def ask(
        self, key: Hashable, bring: Callable[[S], Sending | None], *, sends: bool = False
    ) -> None:
        """Begin to fill a slot with `key`, by `bring(slot)`, unless it is on its way already.

        sends: `bring` only begins a copy that a card goes on with by itself, and returns that; so
        it is called here and now. On the thread the card would be asked after more compute was
        queued, and a copy waits for all that was queued before it.
        """
        if key in self._coming:
            return
        machine, at = self._machine, self._machine.trace.at
        if not machine.emulated:  # computing in the slot is over; `take` waits for the link alone
            torch.cuda.current_stream(machine.device).synchronize()
        stamp = at.stamp

        def fill(slot: S) -> None:
            with at(stamp):
                bring(slot)

        with held():
            if len(self._coming) == len(self._slots):
                self._drop()
            slot = self._slots[0]
            wait = bring(slot).join if sends else self._thread.submit(fill, slot).result
            self._coming[key] = slot, wait
            self._slots.rotate(-1)

    def take(self, key: Hashable) -> S:
        """Wait for `key`, which was asked for; the slot that it is in. Raises what `bring` raised.

        What was asked for before it, and not taken, is dropped: a pass was broken off.
        """
        fields = {"stage": self._stage, "label": self._label, "detail": str(key)}
        with held():
            assert key in self._coming, f"{key} was not asked for"
            while next(iter(self._coming)) != key:
                self._drop()
            slot, wait = self._coming.pop(key)
            with self._machine.trace.span(waiting(self._label), resource="cpu", **fields):
                wait()
        return slot

    def close(self) -> None:
        """Drop what has not begun, and wait for the rest; nothing is raised."""
        with held():
            self._thread.shutdown(wait=True, cancel_futures=True)
            self.clear()

    def clear(self) -> None:
        """Drop what was asked for and not taken: from here on nobody writes into a slot."""
        while self._coming:
            self._drop()

    def _drop(self) -> None:
        """Wait until nobody writes any more into the slot of the oldest that was not taken."""
        _, wait = self._coming.pop(next(iter(self._coming)))
        with suppress(Exception):  # nobody wants it
            wait()


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
