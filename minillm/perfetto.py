"""Traces as files: the Chrome trace-event format, which https://ui.perfetto.dev opens.

A file is an object with `traceEvents`, a list of rows. Its row kinds ("ph") that we write:
M names the process and its tracks, X is an interval (`ts` and `dur` in microseconds) on a track
("tid"), C is a counter whose `args` are the values from then on. Microseconds would lose digits,
so each row also carries the fields of its event unrounded (X in `args`, where a click shows
them; C beside `args`, whose every entry is drawn as a curve) and its place in the order in
which events ended; reading uses only those.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from minillm.errors import MinillmError
from minillm.event import RESOURCES, STAGES, Event
from minillm.files import read_json, write_json

_FORMAT = "minillm trace 1"
_DEFAULTS = Event._field_defaults
_REQUIRED = set(Event._fields) - set(_DEFAULTS)
_ALLOWED: dict[str, tuple[Any, ...]] = {
    "kind": ("span", "transfer", "counter"),
    "stage": (*STAGES, ""),
    "resource": (*RESOURCES, ""),
    "how": ("measured", "emulated", "predicted"),
}


def write(path: str | Path, events: Sequence[Event], meta: dict[str, Any]) -> None:
    """Write events and meta to `path`. Raises MinillmError if JSON or the disk cannot take them."""
    tracks = _tracks(events)
    content = {
        "displayTimeUnit": "ms",
        "otherData": {"format": _FORMAT, "meta": meta},
        "traceEvents": [*_names(tracks), *_rows(events, tracks)],
    }
    try:
        write_json(path, content, "a trace")
    except (TypeError, ValueError) as error:
        raise MinillmError(
            f"wanted a trace that JSON can hold, found {error}; "
            "keep trace.meta to texts, finite numbers, lists and dicts"
        ) from error


def read(path: str | Path) -> tuple[list[Event], dict[str, Any]]:
    """The events and meta that `write` put into `path`. Raises MinillmError."""
    path = Path(path)
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise _bad(path, f"what cannot be read ({error})") from error
    other = content.get("otherData") if isinstance(content, dict) else None
    if not isinstance(other, dict) or other.get("format") != _FORMAT:
        raise _bad(path, f'no "{_FORMAT}" in its otherData')
    meta, rows = other.get("meta"), content.get("traceEvents")
    if not isinstance(meta, dict) or not isinstance(rows, list):
        raise _bad(path, "no meta or no list of traceEvents")
    events: dict[int, Event] = {}
    for number, row in enumerate(rows):
        if isinstance(row, dict) and row.get("ph") == "M":
            continue
        wrong = _wrong(row) or ("an order that was there before" if row["order"] in events else "")
        if wrong:
            raise _bad(path, f"row {number} of traceEvents with {wrong}")
        events[row["order"]] = Event(**_said(row))
    return [events[order] for order in sorted(events)], meta


def _names(tracks: Iterable[tuple[str, int]]) -> list[dict[str, Any]]:
    """The rows that name the process, and its tracks in the order of RESOURCES."""
    rows = [{"ph": "M", "pid": 1, "name": "process_name", "args": {"name": "minillm"}}]
    for resource, lane in sorted({track for track in tracks if track[0]}, key=_track_id):
        track = {"ph": "M", "pid": 1, "tid": _track_id((resource, lane))}
        name = resource if lane == 0 else f"{resource} ({lane + 1})"
        rows.append(track | {"name": "thread_name", "args": {"name": name}})
        rows.append(track | {"name": "thread_sort_index", "args": {"sort_index": track["tid"]}})
    return rows


def _rows(events: Sequence[Event], tracks: Sequence[tuple[str, int]]) -> list[dict[str, Any]]:
    held: dict[str, dict[str, int]] = {}  # tier: label: bytes, as of the row being written
    rows = []
    for order, (event, track) in enumerate(zip(events, tracks, strict=True)):
        begin, end = _ticks(event)
        said = {k: v for k, v in event._asdict().items() if k in _REQUIRED or v != _DEFAULTS[k]}
        row = {"name": event.name, "cat": event.stage, "pid": 1, "ts": begin / 8, "order": order}
        if event.kind == "counter":
            labels = held.setdefault(event.name, {})
            labels[event.label] = event.nbytes
            rows.append(row | {"ph": "C", "args": dict(labels), "event": said})
        else:
            tid = _track_id(track)
            rows.append(row | {"ph": "X", "tid": tid, "dur": (end - begin) / 8, "args": said})
    # Of slices that begin together the viewer must see the outer one first.
    return sorted(rows, key=lambda row: (row["ts"], -row.get("dur", 0)))


def _tracks(events: Sequence[Event]) -> list[tuple[str, int]]:
    """For each event its (resource, lane). On a lane, events lie apart or one inside the other.

    Perfetto drops a slice that overlaps another without lying inside it, so what overlaps (two
    threads, two copies) goes to a second lane of its resource.
    """
    lanes: dict[str, list[list[int]]] = {}  # resource: lane: ends of the events open there
    tracks = [("", 0)] * len(events)
    order = sorted(range(len(events)), key=lambda i: (_ticks(events[i])[0], -_ticks(events[i])[1]))
    for i in order:
        if events[i].kind == "counter":
            continue
        begin, end = _ticks(events[i])
        open_lanes = lanes.setdefault(events[i].resource, [])
        lane = next((n for n, ends in enumerate(open_lanes) if _fits(ends, begin, end)), None)
        if lane is None:
            lane = len(open_lanes)
            open_lanes.append([])
        open_lanes[lane].append(end)
        tracks[i] = (events[i].resource, lane)
    return tracks


def _fits(ends: list[int], begin: int, end: int) -> bool:
    """Close what is over at `begin`; is the next event apart from what is open, or inside it?"""
    while ends and ends[-1] <= begin:
        ends.pop()
    return not ends or end <= ends[-1]


def _track_id(track: tuple[str, int]) -> int:
    resource, lane = track
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
            good = type(value) in (int, float) and abs(value) < 1e12  # which NaN is not
        elif name in ("nbytes", "token", "request"):
            good = type(value) is int or (value is None and name != "nbytes")
        else:
            good = isinstance(value, str) and value in _ALLOWED.get(name, (value,))
        if not good:
            return f"{name} = {value!r}"
    is_counter = said["kind"] == "counter"
    if is_counter != (row["ph"] == "C") or not (is_counter or said["stage"] and said["resource"]):
        return f"a {said['kind']} of stage {said['stage']!r} on resource {said['resource']!r}"
    return ""


def _bad(path: Path, found: str) -> MinillmError:
    return MinillmError(f"wanted a trace in {path}, found {found}; record and save the run again")
