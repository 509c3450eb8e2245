"""Traces of several processes, set on one clock and told apart by their ranks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from minillm.trace.event import Event

if TYPE_CHECKING:
    from minillm.trace import Trace

_SAME = 1.0  # seconds: clocks that are so far apart were not started together


def merged(traces: Mapping[int, Trace]) -> tuple[list[Event], dict[str, Any], tuple[float, float]]:
    """Events, meta and zero of the merged trace; see `Trace.merge`."""
    assert traces, "wanted at least one trace"
    traces = {rank: traces[rank] for rank in sorted(traces)}
    begins = _begins(traces)
    zero = min(begins, key=lambda rank: begins[rank])
    events = [
        of_rank(event, rank, begins[rank] - begins[zero])
        for rank, trace in traces.items() for event in trace.events
    ]  # fmt: skip
    # As they ended. Those of one trace that end together, to a rounding, keep their order.
    events.sort(key=lambda e: round(e.end, 9))
    return events, _meta(traces), (traces[zero].origin, traces[zero].wall)


def _begins(traces: Mapping[int, Trace]) -> dict[int, float]:
    """When each trace began, on one clock.

    Processes of one host share its steady clock, which is exact. That it is the same one shows in
    when it was zero. Otherwise there is the wall clock: as good as hosts agree about the time.
    """
    zeros = [trace.wall - trace.origin for trace in traces.values()]
    shared = max(zeros) - min(zeros) < _SAME
    return {rank: trace.origin if shared else trace.wall for rank, trace in traces.items()}


def of_rank(event: Event, rank: int, later: float) -> Event:
    """The event as it stands in a merged trace, which began so many seconds before its own."""
    is_counter = event.kind == "counter"
    return event._replace(
        start=event.start + later, rank=rank, resource=named(event.resource, rank),
        source=named(event.source, rank), target=named(event.target, rank),
        name=named(event.name, rank) if is_counter else event.name,
    )  # fmt: skip


def named(unit: str, rank: int) -> str:
    """A unit or tier with its rank, unless it has one; rank 0 has no suffix.

    >>> named("hbm", 1), named("hbm:2", 1), named("hbm:0", 1), named("hbm", 0)
    ('hbm:1', 'hbm:2', 'hbm', 'hbm')
    """
    if not unit or ":" in unit:
        return unit.removesuffix(":0")
    return f"{unit}:{rank}" if rank else unit


def _meta(traces: Mapping[int, Trace]) -> dict[str, Any]:
    metas = {rank: trace.meta for rank, trace in traces.items()}
    first = next(iter(metas.values()))
    capacity = {
        named(tier, rank): nbytes
        for rank, meta in metas.items() for tier, nbytes in meta.get("capacity", {}).items()
    }  # fmt: skip
    shared = [k for k, v in first.items() if all(k in m and m[k] == v for m in metas.values())]
    differ = {
        str(rank): {k: v for k, v in meta.items() if k not in (*shared, "capacity")}
        for rank, meta in metas.items()
    }
    meta = first | ({"capacity": capacity} if capacity else {})
    return meta | ({"ranks": differ} if any(differ.values()) else {})
