"""The trace: every byte that moves between tiers and every second of work, in one place.

The engine writes it; charts, tables and tests read it. Three kinds of event: a *span* is work
on a resource, a *transfer* is bytes going from one tier to another, a *counter* is how many
bytes a label holds in a tier from that moment on. A saved trace is a Chrome trace-event file:
drop it on https://ui.perfetto.dev, or read it back with `Trace.load`.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minillm import perfetto
from minillm.event import RESOURCES, STAGES, Event, busy_seconds

__all__ = ["RESOURCES", "STAGES", "Event", "Running", "Trace", "busy_seconds"]


class Running:
    """A span under way, as `with trace.span(...) as running` hands it out.

    What is known only at the end can be set until then: `running.nbytes = len(data)`, and
    `running.detail`. The event is recorded when the block ends, also if by an exception.
    """

    __slots__ = ("nbytes", "detail", "_trace", "_name", "_fields", "_start")

    def __init__(self, trace: Trace, name: str, nbytes: int, fields: dict[str, Any]):
        self._trace, self._name = trace, name
        self.nbytes, self.detail, self._fields = nbytes, fields.pop("detail", ""), fields

    def __enter__(self) -> Running:
        self._start = self._trace.now()
        return self

    def __exit__(self, *error: object) -> None:
        seconds = self._trace.now() - self._start
        self._trace._record(
            "span", self._name, self._start, seconds, self.nbytes, detail=self.detail,
            **self._fields,
        )  # fmt: skip


class At(threading.local):
    """What the work at hand is done for, each thread its own: `with trace.at(token=3): ...`.

    Every event that this thread records inside the block is stamped with it. Blocks nest; what
    an inner one leaves out stays as it is.
    """

    token: int | None = None
    request: int | None = None

    @contextmanager
    def __call__(
        self, *, token: int | None = None, request: int | None = None
    ) -> Iterator[None]:
        before = self.token, self.request
        self.token = self.token if token is None else token
        self.request = self.request if request is None else request
        try:
            yield
        finally:
            self.token, self.request = before


class Trace:
    """Records events from any thread; an event costs a few microseconds.

    >>> trace = Trace()
    >>> with trace.span("tokenize", stage="tokens", resource="cpu"):
    ...     ids = [1, 2, 3]
    >>> trace.events[0].name
    'tokenize'

    at: stamps events with token and request; see `At`.
    meta: facts about the whole run (model, device, versions, prompt): what JSON can hold.
    clock: seconds from any zero; the trace counts from `origin`, the moment it was made.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.meta: dict[str, Any] = {}
        self.at = At()
        self.clock = clock
        self.origin = clock()
        self._events: list[Event] = []
        self._listeners: dict[object, Callable[[Event], None]] = {}
        self._lock = threading.Lock()

    def now(self) -> float:
        """Seconds since the trace began."""
        return self.clock() - self.origin

    # -- writing; `more` are the further fields of Event: label, token, request, how, detail -----

    def span(
        self, name: str, *, stage: str, resource: str, nbytes: int = 0, **more: Any
    ) -> Running:
        """Time a `with` block as work on `resource`."""
        return Running(self, name, nbytes, more | {"stage": stage, "resource": resource})

    def transfer(
        self, name: str, *, stage: str, source: str, target: str, nbytes: int, start: float,
        seconds: float, **more: Any,
    ) -> None:  # fmt: skip
        """Record a transfer that is over; `start` counts from the beginning of the trace."""
        more |= {"stage": stage, "source": source, "target": target}
        self._record("transfer", name, start, seconds, nbytes, **more)

    def count(self, tier: str, label: str, nbytes: int) -> None:
        """Record that `label` holds `nbytes` in `tier` from now on."""
        self._record("counter", tier, self.now(), 0.0, nbytes, label=label)

    def _record(
        self, kind: str, name: str, start: float, seconds: float, nbytes: int, *,
        stage: str = "", resource: str = "", source: str = "", target: str = "",
        label: str = "", token: int | None = None, request: int | None = None,
        how: str = "measured", detail: str = "",
    ) -> None:  # fmt: skip
        if kind == "transfer" and not resource:  # the slower end is what is busy
            resource = "ssd" if "ssd" in (source, target) else "copy"
        assert kind == "counter" or (stage in STAGES and resource in RESOURCES), (stage, resource)
        token = self.at.token if token is None else token
        request = self.at.request if request is None else request
        event = Event(kind, name, stage, resource, start, seconds, nbytes, source, target, label,
                      token, request, how, detail)  # fmt: skip
        with self._lock:
            self._events.append(event)
        for key, tell in self._listeners.copy().items():
            try:
                tell(event)
            except Exception as error:  # a broken chart must not break the engine
                self._listeners.pop(key, None)
                warnings.warn(f"a trace subscriber failed and was removed: {error!r}", stacklevel=2)

    # -- reading ---------------------------------------------------------------------------------

    @property
    def events(self) -> tuple[Event, ...]:
        """All events so far, in the order in which they were recorded, which is as they ended."""
        with self._lock:
            return tuple(self._events)

    def select(self, **wanted: Any) -> list[Event]:
        """The events whose fields equal all those given: `trace.select(kind="transfer")`."""
        return [e for e in self.events if all(getattr(e, k) == v for k, v in wanted.items())]

    def subscribe(self, tell: Callable[[Event], None]) -> Callable[[], object]:
        """Call `tell(event)` at each event, on its thread, until it raises; returns the undo."""
        key = object()
        self._listeners[key] = tell
        return lambda: self._listeners.pop(key, None)

    def clear(self) -> None:
        """Forget all events and begin again at second zero; call it between requests.

        What memory holds is counted anew: a chart of the second request must show the weights.
        """
        held = {(e.name, e.label): e.nbytes for e in self.events if e.kind == "counter"}
        with self._lock:
            self.origin = self.clock()
            self._events = [
                Event("counter", tier, "", "", 0.0, 0.0, nbytes, label=label)
                for (tier, label), nbytes in held.items() if nbytes
            ]  # fmt: skip

    def save(self, path: str | Path) -> None:
        """Write a Chrome trace-event file. Raises MinillmError, also if JSON cannot hold meta."""
        perfetto.write(path, self.events, self.meta)

    @classmethod
    def of(cls, events: Iterable[Event], meta: dict[str, Any]) -> Trace:
        """A trace of these events, as of a part of another; it has its own copy of `meta`."""
        trace = cls()
        trace._events, trace.meta = list(events), dict(meta)
        return trace

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read a file that `save` wrote: equal events and meta, or MinillmError."""
        return cls.of(*perfetto.read(path))
