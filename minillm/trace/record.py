"""The writing half of a trace: made to cost little, for it runs inside what it measures.

An event is one tuple, appended; appending is atomic, so there is no lock. See `minillm.trace`.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from minillm.trace.event import RESOURCES, STAGES, Event, bare, link_between

Record = Callable[..., None]
"""What `Recording.recorder` makes: record(start, seconds, nbytes, step, token, request, detail)."""
Stamp = tuple[int | None, int | None, int | None, str]  # step, token, request, model
_BUSY = {"nvme": "ssd", "nvlink": "network"}  # by what a transfer goes over; else "copy"


@dataclass
class Running:
    """What `with trace.span(...) as running` hands out: what is known only at the block's end.

    >>> running.nbytes = len(data)
    """

    nbytes: int
    detail: str


class At(threading.local):
    """What the work at hand is done for, each thread its own: `with trace.at(token=3): ...`.

    Every event that this thread records inside the block is stamped with it. Blocks nest; what
    an inner one leaves out stays as it is. For work that another thread does, or that is recorded
    later: take `at.stamp` now, and there `with trace.at(stamp)`.
    """

    stamp: Stamp = (None, None, None, "")

    @contextmanager
    def __call__(
        self, stamp: Stamp | None = None, *, step: int | None = None, token: int | None = None,
        request: int | None = None, model: str = "",
    ) -> Iterator[None]:  # fmt: skip
        before = self.stamp
        old = before if stamp is None else stamp
        self.stamp = (
            old[0] if step is None else step, old[1] if token is None else token,
            old[2] if request is None else request, model or old[3],
        )  # fmt: skip
        try:
            yield
        finally:
            self.stamp = before


class Recording:
    """Records events from any thread. Not used alone: `minillm.trace.Trace` can also be read.

    step, token and request of a method go before what `at` says; fields are those of Event.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.at = At()
        self.clock = clock
        self.origin, self.wall = clock(), time.time()
        # Fields of events, or what makes those of several; always the same list.
        self._rows: list[tuple | Callable[[], Iterable[tuple]]] = []
        self._listeners: dict[object, Callable[[Event], None]] = {}

    def now(self) -> float:
        """Seconds since the trace began."""
        return self.clock() - self.origin

    @contextmanager
    def span(
        self, name: str, *, stage: str, resource: str, nbytes: int = 0, detail: str = "",
        step: int | None = None, token: int | None = None, request: int | None = None, **more: str,
    ) -> Iterator[Running]:  # fmt: skip
        """Time a `with` block as work on `resource`, also if it ends by an exception.

        more: label, how, bytes_how.
        """
        record = self.recorder("span", name, stage=stage, resource=resource, **more)
        running, start = Running(nbytes, detail), self.now()
        try:
            yield running
        finally:
            end = self.now()
            start = min(start, end)  # if the trace was cleared meanwhile, it counts from later on
            record(start, end - start, running.nbytes, step, token, request, running.detail)

    def transfer(
        self, name: str, *, stage: str, start: float, seconds: float, nbytes: int, **more: str
    ) -> None:
        """Record a transfer that is over; `start` counts from the beginning of the trace.

        more: as of `recorder`; source and target say which link and resource it kept busy.
        """
        self.recorder("transfer", name, stage=stage, **more)(start, seconds, nbytes)

    def count(self, tier: str, label: str, nbytes: int) -> None:
        """Record that `label` holds `nbytes` in `tier` from now on."""
        now = self.clock() - self.origin
        row = ("counter", tier, "", "", now, 0.0, nbytes, "", "", label, *self.at.stamp)
        self._rows.append(row)
        if self._listeners:
            self._tell(row)

    def record_later(self, rows: Callable[[], Iterable[tuple]]) -> None:
        """Record events of which the fields, in order, are worked out when somebody reads them."""
        self._rows.append(rows)
        if self._listeners:
            for row in rows():
                self._tell(row)

    def recorder(
        self, kind: str, name: str, *, stage: str, resource: str = "", source: str = "",
        target: str = "", label: str = "", link: str = "", how: str = "measured",
        bytes_how: str = "measured", detail: str = "",
    ) -> Record:  # fmt: skip
        """For loops that record much: checks once what stays the same; returns what records it.

        >>> record = trace.recorder("span", "ffn", stage="model", resource="compute")
        >>> record(start, seconds, nbytes)   # seconds since the trace began; nbytes is 0 by default

        `record` also takes step, token, request, and a detail in place of the one given here.
        """
        between = link_between(source, target)
        link, resource = link or between, resource or _BUSY.get(between, "copy")
        known = resource in RESOURCES or bare(resource) in RESOURCES
        assert stage in STAGES and known, (stage, resource)
        append, at, listeners, tell = self._rows.append, self.at, self._listeners, self._tell
        usual = detail

        def record(
            start: float, seconds: float, nbytes: int = 0, step: int | None = None,
            token: int | None = None, request: int | None = None, detail: str = usual,
        ) -> None:  # fmt: skip
            at_step, at_token, at_request, model = at.stamp
            row = (kind, name, stage, resource, start, seconds, nbytes, source, target, label,
                   at_step if step is None else step, at_token if token is None else token,
                   at_request if request is None else request, model, None, link, how, bytes_how,
                   detail)  # fmt: skip
            append(row)
            if listeners:
                tell(row)

        return record

    def _tell(self, row: tuple) -> None:
        event = Event(*row)
        for key, tell in self._listeners.copy().items():
            try:
                tell(event)
            except Exception as error:  # a broken chart must not break the engine
                self._listeners.pop(key, None)
                warnings.warn(f"a trace subscriber failed and was removed: {error!r}", stacklevel=2)
