"""The trace: every byte that moves between tiers and every second of work, in one place.

The engine writes it; charts, tables and tests read it. Three kinds of event: a *span* is work
on a resource, a *transfer* is bytes going from one tier to another, a *counter* is how many
bytes a label holds in a tier from that moment on. A saved trace is a Chrome trace-event file:
drop it on https://ui.perfetto.dev, or read it back with `Trace.load`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from minillm.trace import perfetto, ranks
from minillm.trace.event import RESOURCES, STAGES, Event, bare, busy_seconds, rank_of
from minillm.trace.record import At, Record, Recording, Running, Stamp

__all__ = [
    "RESOURCES", "STAGES", "At", "Event", "Record", "Running", "Stamp", "Trace", "bare",
    "busy_seconds", "rank_of",
]  # fmt: skip


class Trace(Recording):
    """Records events from any thread; an event costs about a microsecond.

    >>> trace = Trace()
    >>> with trace.span("tokenize", stage="tokens", resource="cpu"):
    ...     ids = [1, 2, 3]
    >>> trace.events[0].name
    'tokenize'

    at: stamps events with step, token, request and model; see `At`.
    meta: facts about the whole run (machine, versions; models, see `describe_model`): for JSON.
    clock: seconds from any zero; the trace counts from `origin`, the moment it was made.
    wall: that moment in seconds since 1970, for a trace of another host to be set beside it.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        super().__init__(clock)
        self.meta: dict[str, Any] = {}
        self._read = 0  # so many of the rows were read, and so are Events
        self._lock = threading.Lock()  # for those who read or clear

    def describe_model(self, name: str, **facts: Any) -> None:
        """Put what there is to know of a model (dtype, weight_bytes, …) into `meta["models"]`.

        The first one's facts also stand at the top of meta, its name as "model": what a chart says
        of the run. Those of others, such as a draft's, take its place only when it is closed.

        >>> trace.describe_model("town", dtype="bfloat16", weight_bytes=12_000_000)
        """
        models, main = self.meta.setdefault("models", {}), self.meta.get("model")
        models[name] = facts
        if main in (None, name) or models.get(main, {}).get("closed"):
            self.meta |= {"model": name, **facts}

    def close_model(self, name: str) -> None:
        """The model's memory was given back: another may take its place; its facts stay."""
        self.meta["models"][name]["closed"] = True

    @property
    def events(self) -> tuple[Event, ...]:
        """All events so far, in the order in which they were recorded, which is as they ended."""
        with self._lock:
            return tuple(self._turned())

    def _turned(self) -> list[Event]:
        """The rows so far, each turned into an Event once."""
        stop = len(self._rows)  # others may append meanwhile
        rows = (row() if callable(row) else [row] for row in self._rows[self._read : stop])
        self._rows[self._read : stop] = new = [Event(*row) for some in rows for row in some]
        self._read += len(new)
        return self._rows[: self._read]

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
        with self._lock:
            past, before = self._turned(), self.origin
            held = {(e.name, e.label): e.nbytes for e in past if e.kind == "counter"}
            self.origin = self.clock()
            self.wall += self.origin - before
            self._rows[: len(past)] = anew = [  # what came since, from another thread, stays
                Event("counter", tier, "", "", 0.0, 0.0, nbytes, label=label)
                for (tier, label), nbytes in held.items() if nbytes
            ]  # fmt: skip
            self._read = len(anew)

    def add(self, event: Event, rank: int, origin: float) -> None:
        """Record what a rank of this host recorded, as `merge` would; its trace began at origin."""
        self._rows.append(event := ranks.of_rank(event, rank, origin - self.origin))
        self._tell(event)

    def save(self, path: str | Path) -> None:
        """Write a Chrome trace-event file. Raises MinillmError, also if JSON cannot hold meta."""
        perfetto.write(path, self.events, self.meta, (self.origin, self.wall))

    @classmethod
    def of(
        cls, events: Iterable[Event], meta: dict[str, Any], zero: tuple[float, float] | None = None
    ) -> Trace:
        """A trace of these events, as of a part of another; it has its own copy of `meta`.

        zero: origin and wall of the trace that they are of; by default now.
        """
        trace = cls()
        trace._rows += events
        trace.meta, trace._read = dict(meta), len(trace._rows)
        trace.origin, trace.wall = zero or (trace.origin, trace.wall)
        return trace

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read a file that `save` wrote: equal events, meta and origin, or MinillmError."""
        return cls.of(*perfetto.read(path))

    @classmethod
    def merge(cls, traces: Mapping[int, Trace] | Sequence[Trace]) -> Trace:
        """One trace of several processes, on one clock; the key, or place, of each is its rank.

        Second zero is the earliest's. Events get their rank, which units and tiers show as charts
        draw them: "compute:1", "hbm:1"; rank 0 has no suffix. meta is the first's; where others
        say something else, it stands in `meta["ranks"]["1"]`, and capacity says it of each tier.
        """
        by_rank = traces if isinstance(traces, Mapping) else dict(enumerate(traces))
        return cls.of(*ranks.merged(by_rank))
