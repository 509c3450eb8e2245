"""A run cut into moments for a player: what changes on the machine from one to the next.

A frame is {"t": seconds at which it ends, "set": attributes of parts that change}; the first one
sets all. It shows what moves until then. A token has one more, {"at": its frame, "set": ...}, with
all that moved for it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from minillm.charts.machine_diagram import Diagram, State
from minillm.charts.machine_scene import Scene
from minillm.trace import Event, busy_seconds

LOAD, WORDS, A_TOKEN = 300, 500, 10  # frames of a load; of the words, at least and for each token
MOST, MOST_TOKENS = 700, 300  # of the words; tokens that have a moment of their own


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
    cuts = [(begin, begin, end, "") for begin, end in pieces(work, len(tokens))]
    cuts += [(end, begin, end, k) for k, (begin, end) in list(tokens.items())[:MOST_TOKENS]]
    for now, begin, end, token in sorted(cuts):  # memory and text are those of its begin
        until = bisect_right(order, now + 1e-9, lo=taken, key=_moment)
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
    """The run cut where events begin or end: a pause is apart, what is very short is together."""
    first = next((place for place, e in enumerate(work) if e.request is not None), len(work))
    count, kept = min(MOST, max(WORDS, A_TOKEN * tokens)), [-math.inf]
    for part, many in ((work[:first], LOAD), (work[first:], count)):
        marks = sorted({t for e in part for t in (e.start, e.end)})
        least = busy_seconds(part) / many
        for mark, after in zip(marks, [*marks[1:], math.inf], strict=False):
            long = max(mark - kept[-1], after - mark)  # of the pieces on either side
            if mark > kept[-1] + 1e-6 and long >= least:
                kept.append(mark)
    return list(zip(kept[1:], [*kept[2:], *kept[-1:]], strict=True))
