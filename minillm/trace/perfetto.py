"""Traces as files: the Chrome trace-event format, which https://ui.perfetto.dev opens.

A file is an object with `traceEvents`, a list of rows. Its row kinds ("ph") that we write:
M names a process (one a rank) and its tracks, X is an interval (`ts` and `dur` in microseconds) on
a track ("tid"), C is a counter whose `args` are the values from then on. Microseconds would lose
digits, so each row also carries the fields of its event unrounded (X in `args`, where a click
shows them; C beside `args`, whose every entry is drawn as a curve) and its place in the order in
which events ended; reading uses only those.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from minillm.errors import MinillmError
from minillm.files import read_json, write_json
from minillm.trace.event import RESOURCES, STAGES, Event, bare, rank_of

_FORMAT = "minillm trace 2"
_DEFAULTS = Event._field_defaults
_REQUIRED = set(Event._fields) - set(_DEFAULTS)
_ALLOWED: dict[str, tuple[Any, ...]] = {
    "kind": ("span", "transfer", "counter"),
    "stage": (*STAGES, ""),
    "how": ("measured", "emulated", "predicted"),
    "bytes_how": ("measured", "emulated", "predicted"),
}
_RESOURCE = re.compile(rf"(({'|'.join(RESOURCES)})(:\d+)?)?", re.ASCII)
_Track = tuple[int, str, int]  # rank, resource, lane; of a counter the resource is ""


def write(
    path: str | Path, events: Sequence[Event], meta: dict[str, Any], zero: tuple[float, float]
) -> None:
    """Write a trace to `path`. Raises MinillmError if JSON or the disk cannot take it.

    zero: second zero of the events, on the steady clock of their process and on the wall.
    """
    tracks = _tracks(events)
    content = {
        "displayTimeUnit": "ms",
        "otherData": {"format": _FORMAT, "zero": list(zero), "meta": meta},
        "traceEvents": [*_names(tracks), *_rows(events, tracks)],
    }
    try:
        write_json(path, content, "a trace")
    except (TypeError, ValueError) as error:
        raise MinillmError(
            f"wanted a trace that JSON can hold, found {error}; "
            "keep trace.meta to texts, finite numbers, lists and dicts"
        ) from error


def read(path: str | Path) -> tuple[list[Event], dict[str, Any], tuple[float, float]]:
    """The events, meta and zero that `write` put into `path`. Raises MinillmError."""
    path = Path(path)
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise _bad(path, f"what cannot be read ({error})") from error
    other = content.get("otherData") if isinstance(content, dict) else None
    if not isinstance(other, dict) or other.get("format") != _FORMAT:
        raise _bad(path, f'no "{_FORMAT}" in its otherData')
    meta, rows, zero = other.get("meta"), content.get("traceEvents"), other.get("zero")
    if not isinstance(meta, dict) or not isinstance(rows, list):
        raise _bad(path, "no meta or no list of traceEvents")
    if not isinstance(zero, list) or len(zero) != 2 or not all(map(_is_time, zero)):
        raise _bad(path, "no zero of two times in its otherData")
    events: dict[int, Event] = {}
    for number, row in enumerate(rows):
        if isinstance(row, dict) and row.get("ph") == "M":
            continue
        wrong = _wrong(row) or ("an order that was there before" if row["order"] in events else "")
        if wrong:
            raise _bad(path, f"row {number} of traceEvents with {wrong}")
        events[row["order"]] = Event(**_said(row))
    return [events[order] for order in sorted(events)], meta, (zero[0], zero[1])


def _names(tracks: Iterable[_Track]) -> list[dict[str, Any]]:
    """The rows that name each process, and its tracks in the order of RESOURCES."""
    ranks = sorted({rank for rank, *_ in tracks})
    rows = [
        {"ph": "M", "pid": 1 + rank, "name": "process_name",
         "args": {"name": f"minillm rank {rank}" if len(ranks) > 1 else "minillm"}}
        for rank in ranks or [0]
    ]  # fmt: skip
    used = {track for track in tracks if track[1]}
    for rank, resource, lane in sorted(used, key=lambda t: (t[0], _track_id(t))):
        track = {"ph": "M", "pid": 1 + rank, "tid": _track_id((rank, resource, lane))}
        name = resource if lane == 0 else f"{resource} ({lane + 1})"
        rows.append(track | {"name": "thread_name", "args": {"name": name}})
        rows.append(track | {"name": "thread_sort_index", "args": {"sort_index": track["tid"]}})
    return rows


def _rows(events: Sequence[Event], tracks: Sequence[_Track]) -> list[dict[str, Any]]:
    held: dict[str, dict[str, int]] = {}  # tier: label: bytes, as of the row being written
    rows = []
    for order, (event, track) in enumerate(zip(events, tracks, strict=True)):
        begin, end = _ticks(event)
        said = {k: v for k, v in event._asdict().items() if k in _REQUIRED or v != _DEFAULTS[k]}
        row = {"name": event.name, "cat": event.stage, "pid": 1 + track[0], "ts": begin / 8,
               "order": order}  # fmt: skip
        if event.kind == "counter":
            labels = held.setdefault(event.name, {})
            labels[event.label] = event.nbytes
            rows.append(row | {"ph": "C", "args": dict(labels), "event": said})
        else:
            tid = _track_id(track)
            rows.append(row | {"ph": "X", "tid": tid, "dur": (end - begin) / 8, "args": said})
    # Of slices that begin together the viewer must see the outer one first.
    return sorted(rows, key=lambda row: (row["ts"], -row.get("dur", 0)))


def _tracks(events: Sequence[Event]) -> list[_Track]:
    """For each event its track. On a lane, events lie apart or one inside the other.

    Perfetto drops a slice that overlaps another without lying inside it, so what overlaps (two
    threads, two copies) goes to a second lane of its resource.
    """
    lanes: dict[tuple[int, str], list[list[int]]] = {}  # of each: lane: ends of what is open there
    tracks = [(_rank(event), "", 0) for event in events]
    order = sorted(range(len(events)), key=lambda i: (_ticks(events[i])[0], -_ticks(events[i])[1]))
    for i in order:
        if events[i].kind == "counter":
            continue
        begin, end = _ticks(events[i])
        unit = tracks[i][0], bare(events[i].resource)
        open_lanes = lanes.setdefault(unit, [])
        lane = next((n for n, ends in enumerate(open_lanes) if _fits(ends, begin, end)), None)
        if lane is None:
            lane = len(open_lanes)
            open_lanes.append([])
        open_lanes[lane].append(end)
        tracks[i] = (*unit, lane)
    return tracks


def _fits(ends: list[int], begin: int, end: int) -> bool:
    """Close what is over at `begin`; is the next event apart from what is open, or inside it?"""
    while ends and ends[-1] <= begin:
        ends.pop()
    return not ends or end <= ends[-1]


def _rank(event: Event) -> int:
    """Whose event it is: stamped when traces were merged, or said by its unit."""
    unit = event.name if event.kind == "counter" else event.resource
    return rank_of(unit) if event.rank is None else event.rank


def _track_id(track: _Track) -> int:
    _, resource, lane = track
    return 1000 * (1 + RESOURCES.index(resource)) + lane


def _ticks(event: Event) -> tuple[int, int]:
    """Start and end in eighths of a microsecond: such a number of microseconds is exact in binary,
    so that nothing that nests is torn apart by a rounding in the viewer."""
    return round(event.start * 8e6), round(event.end * 8e6)


def _said(row: dict[str, Any]) -> Any:
    return row.get("args" if row.get("ph") == "X" else "event")


def _wrong(row: Any) -> str:
    """What keeps a row from being an event; "" if nothing does."""
    said = _said(row) if isinstance(row, dict) else None
    if not isinstance(said, dict) or type(row.get("order")) is not int:
        return "no fields of an event or no order"
    unknown, missing = set(said) - set(Event._fields), _REQUIRED - set(said)
    if unknown or missing:
        return f"fields unknown {sorted(unknown)} or missing {sorted(missing)}"
    for name, value in said.items():
        if name in ("start", "seconds"):
            good = _is_time(value)
        elif name in ("nbytes", "step", "token", "request", "rank"):
            good = type(value) is int or (value is None and name != "nbytes")
        elif name == "resource":
            good = isinstance(value, str) and _RESOURCE.fullmatch(value) is not None
        else:
            good = isinstance(value, str) and value in _ALLOWED.get(name, (value,))
        if not good:
            return f"{name} = {value!r}"
    is_counter = said["kind"] == "counter"
    if is_counter != (row["ph"] == "C") or not (is_counter or said["stage"] and said["resource"]):
        return f"a {said['kind']} of stage {said['stage']!r} on resource {said['resource']!r}"
    return ""


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e12  # which NaN is not


def _bad(path: Path, found: str) -> MinillmError:
    return MinillmError(f"wanted a trace in {path}, found {found}; record and save the run again")
