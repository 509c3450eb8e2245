"""Events as they travel to a page: in columns, small, and packed by code that runs in C.

What many events share (kind, name, stage, …, and what it means: meaning.py) is sent once and then
named by its number; times are whole tenths of a microsecond. `unpackRows` in events.js turns
columns into rows again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minillm.charts import meaning
from minillm.trace import Event

OWN = {"start", "seconds", "nbytes", "step", "token", "request"}  # what differs within a kind
TICKS = 1e7  # in a second


class Packer:
    """Packs one batch of events after the other; `kinds` of a batch holds only new ones.

    >>> Packer().pack([Event("span", "ffn", "model", "compute", 0.5, 0.001, token=3)])["start"]
    [5000000]
    """

    def __init__(self) -> None:
        self._numbers: dict[tuple[Any, ...], int] = {}

    def pack(self, events: Sequence[Event]) -> dict[str, list[Any]]:
        numbers, known = self._numbers, len(self._numbers)
        each = zip(*events, strict=True) if events else [()] * len(Event._fields)
        columns = dict(zip(Event._fields, each, strict=True))
        same = zip(*(c for field, c in columns.items() if field not in OWN), strict=True)
        kind = [numbers.setdefault(key, len(numbers)) for key in same]
        times = list(zip(columns["start"], columns["seconds"], strict=True))
        begin = [round(TICKS * t) for t, _ in times]
        # The end is rounded too, not the length: what lies inside another event stays inside.
        long = [round(TICKS * (t + s)) - b for (t, s), b in zip(times, begin, strict=True)]
        kinds: list[dict[str, Any]] = []
        for event, number in zip(events, kind, strict=True):
            if number == known + len(kinds):
                told = meaning.told(event)
                kinds.append({field: v for field, v in told.items() if field not in OWN})
        more = {field: list(columns[field]) for field in ("nbytes", "step", "token", "request")}
        return {"kinds": kinds, "kind": kind, "start": begin, "seconds": long, **more}


def thin(events: Sequence[Event]) -> list[Event]:
    """Leaves out work inside other work; transfers, counters and the text all stay.

    events: as a trace has them, in the order in which they ended, so that what holds a span comes
    behind it.
    """
    kept, around = [], {}  # resource: start and end of the span last seen there
    for event in reversed(events):
        if event.kind == "span" and event.label != "text":
            start, end = around.get(event.resource, (0.0, -1.0))
            if start <= event.start and event.end <= end:
                continue
            around[event.resource] = event.start, event.end
        kept.append(event)
    return kept[::-1]
