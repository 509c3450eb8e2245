"""A run cut into moments for a player: what changes on the machine from one to the next.

A frame is {"t": seconds at which it ends, "set": attributes of parts that change}; the first one
sets all. A token has one more, {"at": its frame, "set": ...}, with all that moved for it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from minillm.charts.machine_diagram import Diagram, State
from minillm.charts.machine_scene import Scene
from minillm.trace import Event

LOAD, WORDS, A_TOKEN = 150, 300, 6  # frames of a load; of the words, at least and for each token
MOST, MOST_TOKENS = 600, 300  # of the words; tokens that have a moment of their own


def moments(
    events: Sequence[Event], meta: dict[str, Any], diagram: Diagram
) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Frames by time, and of tokens by "request token"."""
    order = sorted(events, key=_moment)
    work = sorted((e for e in events if e.kind != "counter"), key=lambda e: e.start)
    whole, scene = Scene(diagram, meta), Scene(diagram, meta)
    whole.take(order)
    scene.memories.most, scene.memories.loads = whole.memories.most, whole.memories.loads
    reach = list(accumulate((e.end for e in work), max))
    frames: list[dict[str, Any]] = []
    own: dict[str, dict[str, Any]] = {}
    before: State = {}
    taken, tokens = 0, _tokens(work)
    cuts = [(stop, start, "") for start, stop in pieces(work, len(tokens))]
    few = list(tokens.items())[:MOST_TOKENS]
    for end, begin, token in sorted([*cuts, *((stop, start, k) for k, (start, stop) in few)]):
        until = bisect_right(order, end + 1e-9, lo=taken, key=_moment)
        scene.take(order[taken:until])
        taken = until
        state = scene.state(_under_way(work, reach, begin, end))
        change = differs(before, state)
        if token:
            own[token] = {"at": max(0, len(frames) - 1), "set": change}
        else:
            frames.append({"t": round(end, 7), "set": change})
            before = state
    return frames, own


def differs(before: State, state: State) -> State:
    """What of a state is not as it was."""
    changed: State = {}
    for part, looks in state.items():
        was = before.get(part, {})
        if was != looks:
            changed[part] = {k: v for k, v in looks.items() if was.get(k) != v or k not in was}
    return changed


def _moment(event: Event) -> float:
    """When it counts: memory at once, work when it is done."""
    return event.start if event.kind == "counter" else event.end


def _under_way(
    work: Sequence[Event], reach: Sequence[float], begin: float, end: float
) -> Iterator[Event]:
    """Of work by start. reach: the latest end so far, from which a search may begin."""
    for place in range(bisect_right(reach, begin), len(work)):
        event = work[place]
        if event.start >= end:
            return
        if event.end > begin:
            yield event


def _tokens(work: Sequence[Event]) -> dict[str, tuple[float, float]]:
    """From the end of the token before, or the begin of its request, to its own end."""
    begins: dict[int, float] = {}
    ends: dict[tuple[int, int], float] = {}
    for e in work:
        if e.request is None or e.stage == "load":
            continue
        begins.setdefault(e.request, e.start)
        if e.token is not None:
            ends[e.request, e.token] = max(e.end, ends.get((e.request, e.token), 0.0))
    return {f"{request} {token}": (ends.get((request, token - 1), begins[request]), end)
            for (request, token), end in ends.items()}  # fmt: skip


def pieces(work: Sequence[Event], tokens: int) -> list[tuple[float, float]]:
    """The run in short pieces, each all busy or all a pause: of the load, then of the words."""
    first = next((e.start for e in work if e.request is not None), math.inf)
    counts = LOAD, min(MOST, max(WORDS, A_TOKEN * tokens))
    found: list[tuple[float, float]] = []
    for begin, end, count in zip((0.0, first), (first, math.inf), counts, strict=True):
        part = [(max(e.start, begin), min(e.end, end)) for e in work]
        part = [(start, stop) for start, stop in part if start < stop]
        step = sum(stop - start for start, stop in _joined(part, 0.0)) / count
        for start, stop in _joined(part, step):
            if found and found[-1][1] < start:
                found.append((found[-1][1], start))
            edges = max(1, math.ceil((stop - start) / step - 1e-9))
            marks = [start + (stop - start) * i / edges for i in range(edges + 1)]
            found += zip(marks, marks[1:], strict=False)
    return found


def _joined(spans: Sequence[tuple[float, float]], gap: float) -> list[tuple[float, float]]:
    """Spans by start as one where they overlap, or are closer than a gap."""
    joined: list[tuple[float, float]] = []
    for start, stop in spans:
        if joined and start <= joined[-1][1] + gap:
            joined[-1] = joined[-1][0], max(joined[-1][1], stop)
        else:
            joined.append((start, stop))
    return joined
