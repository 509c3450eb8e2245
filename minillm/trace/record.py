"""The writing half of a trace: made to cost little, for it runs inside what it measures.

An event is one tuple, appended; appending is atomic, so there is no lock. See `minillm.trace`.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable

from minillm.trace.event import RESOURCES, STAGES, Event, bare, link_between

Record = Callable[..., None]
"""What `Recording.recorder` makes: record(start, seconds, nbytes, step, token, request, detail)."""
Stamp = tuple[int | None, int | None, int | None, str]  # step, token, request, model
_BUSY = {"nvme": "ssd", "nvlink": "network"}  # by what a transfer goes over; else "copy"


class Running:
    """A span under way, as `with trace.span(...) as running` hands it out.

    What is known only at the end can be set until then: `running.nbytes = len(data)`, and
    `running.detail`. The event is recorded when the block ends, also if by an exception.
    """

    __slots__ = ("nbytes", "detail", "_trace", "_fixed", "_start")

    def __init__(self, trace: Recording, nbytes: int, detail: str, fixed: tuple):
        self._trace, self.nbytes, self.detail, self._fixed = trace, nbytes, detail, fixed

    def __enter__(self) -> Running:
        self._start = self._trace.now()
        return self

    def __exit__(self, *error: object) -> None:
        end = self._trace.now()
        start = min(self._start, end)  # if the trace was cleared meanwhile, it counts from later on
        name, stage, resource, label, step, token, request, how, bytes_how = self._fixed
        self._trace._record(
            "span", name, stage, resource, start, end - start, self.nbytes, "", "", label, step,
            token, request, "", how, bytes_how, self.detail,
        )  # fmt: skip


class At(threading.local):
    """What the work at hand is done for, each thread its own: `with trace.at(token=3): ...`.

    Every event that this thread records inside the block is stamped with it. Blocks nest; what
    an inner one leaves out stays as it is. For work that another thread does, or that is recorded
    later: take `at.stamp` now, and there `with trace.at.exactly(stamp)`.
    """

    stamp: Stamp = (None, None, None, "")

    def __call__(
        self, *, step: int | None = None, token: int | None = None, request: int | None = None,
        model: str = "",
    ) -> _Stamped:  # fmt: skip
        before = self.stamp
        return _Stamped(self, (
            before[0] if step is None else step, before[1] if token is None else token,
            before[2] if request is None else request, model or before[3],
        ))  # fmt: skip

    def exactly(self, stamp: Stamp) -> _Stamped:
        """A block whose events have this stamp, whatever stood before."""
        return _Stamped(self, stamp)


class _Stamped:
    """A block of `At`."""

    __slots__ = ("_at", "_stamp", "_before")

    def __init__(self, at: At, stamp: Stamp):
        self._at, self._stamp = at, stamp

    def __enter__(self) -> None:
        self._before, self._at.stamp = self._at.stamp, self._stamp

    def __exit__(self, *error: object) -> None:
        self._at.stamp = self._before


class Recording:
    """Records events from any thread. Not used alone: `minillm.trace.Trace` can also be read.

    step, token and request of a method go before what `at` says; fields are those of Event.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.at = At()
        self.clock = clock
        self.origin, self.wall = clock(), time.time()
        self._rows: list[tuple] = []  # fields of events, always the same list
        self._listeners: dict[object, Callable[[Event], None]] = {}

    def now(self) -> float:
        """Seconds since the trace began."""
        return self.clock() - self.origin

    def span(
        self, name: str, *, stage: str, resource: str, nbytes: int = 0, label: str = "",
        step: int | None = None, token: int | None = None, request: int | None = None,
        how: str = "measured", bytes_how: str = "measured", detail: str = "",
    ) -> Running:  # fmt: skip
        """Time a `with` block as work on `resource`."""
        _check(stage, resource)
        fixed = (name, stage, resource, label, step, token, request, how, bytes_how)
        return Running(self, nbytes, detail, fixed)

    def transfer(
        self, name: str, *, stage: str, source: str, target: str, nbytes: int, start: float,
        seconds: float, resource: str = "", label: str = "", step: int | None = None,
        token: int | None = None, request: int | None = None, link: str = "", how: str = "measured",
        bytes_how: str = "measured", detail: str = "",
    ) -> None:  # fmt: skip
        """Record a transfer that is over; `start` counts from the beginning of the trace.

        Its ends say which link and resource it kept busy, unless told.
        """
        between = link_between(source, target)
        resource = resource or _BUSY.get(between, "copy")
        _check(stage, resource)
        self._record("transfer", name, stage, resource, start, seconds, nbytes, source, target,
                     label, step, token, request, link or between, how, bytes_how,
                     detail)  # fmt: skip

    def count(self, tier: str, label: str, nbytes: int) -> None:
        """Record that `label` holds `nbytes` in `tier` from now on."""
        now = self.clock() - self.origin
        row = ("counter", tier, "", "", now, 0.0, nbytes, "", "", label, *self.at.stamp)
        self._rows.append(row)
        if self._listeners:
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
        _check(stage, resource)
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

    def _record(
        self, kind: str, name: str, stage: str, resource: str, start: float, seconds: float,
        nbytes: int, source: str, target: str, label: str, step: int | None, token: int | None,
        request: int | None, link: str, how: str, bytes_how: str, detail: str,
    ) -> None:  # fmt: skip
        at_step, at_token, at_request, model = self.at.stamp
        row = (kind, name, stage, resource, start, seconds, nbytes, source, target, label,
               at_step if step is None else step, at_token if token is None else token,
               at_request if request is None else request, model, None, link, how,
               bytes_how, detail)  # fmt: skip
        self._rows.append(row)
        if self._listeners:
            self._tell(row)

    def _tell(self, row: tuple) -> None:
        event = Event(*row)
        for key, tell in self._listeners.copy().items():
            try:
                tell(event)
            except Exception as error:  # a broken chart must not break the engine
                self._listeners.pop(key, None)
                warnings.warn(f"a trace subscriber failed and was removed: {error!r}", stacklevel=2)


def _check(stage: str, resource: str) -> None:
    known = resource in RESOURCES or bare(resource) in RESOURCES
    assert stage in STAGES and known, (stage, resource)
