"""The numbers behind the charts: what a trace says of its load, a request, its tokens, memory.

Nothing here draws. Charts take their figures from these functions, so that tests can hold them
against the trace.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import accumulate, groupby
from statistics import median

from minillm.errors import MinillmError
from minillm.trace import Event, Trace


@dataclass(frozen=True)
class Window:
    """A stretch of the run and the events in it. Times are seconds since the trace began."""

    start: float
    stop: float
    events: tuple[Event, ...]

    @property
    def seconds(self) -> float:
        return self.stop - self.start

    @classmethod
    def around(cls, events: Iterable[Event]) -> Window:
        events = tuple(events)
        return cls(min(e.start for e in events), max(e.end for e in events), events)


@dataclass(frozen=True)
class Part:
    """One activity in a window, and the seconds for which it was the innermost one under way."""

    name: str
    meaning: str  # a key of style.INK
    seconds: float


@dataclass(frozen=True)
class Memory:
    """Bytes in one tier after each change, by label; all sequences have the length of `times`."""

    tier: str
    times: tuple[float, ...]
    levels: dict[str, tuple[int, ...]]

    @property
    def totals(self) -> tuple[int, ...]:
        return tuple(map(sum, zip(*self.levels.values(), strict=True)))

    @property
    def peak(self) -> int:
        return max(self.totals)

    def at_peak(self) -> dict[str, int]:
        """What each label holds at the moment of the peak, largest first."""
        moment = self.totals.index(self.peak)
        held = {label: values[moment] for label, values in self.levels.items()}
        return dict(sorted(held.items(), key=lambda item: -item[1]))


def work(trace: Trace) -> list[Event]:
    """Spans and transfers by start time; MinillmError if there are none."""
    events = sorted((e for e in trace.events if e.kind != "counter"), key=lambda e: e.start)
    if not events:
        raise MinillmError(
            "wanted a trace of a run, found no span and no transfer in it; "
            "load an engine, stream a prompt, then draw engine.trace"
        )
    return events


def load(trace: Trace) -> Window | None:
    """The window in which the weights came in, with all it holds; None if the trace has no load.

    It begins with the first byte that moves: reading config and headers comes before.
    """
    events = work(trace)
    moving = [e for e in events if e.stage == "load" and e.kind == "transfer"]
    if not moving:
        return None
    window = Window.around(moving)
    inside = (e for e in events if window.start <= e.start and e.end <= window.stop)
    return Window(window.start, window.stop, tuple(inside))


def request(trace: Trace, number: int | None = None) -> Window:
    """The window of one request, or by default of the last run, be it a request or a batch."""
    events = [e for e in work(trace) if e.stage != "load"]
    passes = [e for e in events if e.stage == "model" and e.token is not None]
    if number is None and passes and passes[-1].request is None:
        first = len(passes) - 1  # a batch: go back to where its token 0 was made
        while first and (passes[first - 1].token or 0) <= (passes[first].token or 0):
            first -= 1
        before = max((e.end for e in passes[:first]), default=0.0)
        begin = min(e.start for e in events if e.start >= before and e.token == 0)
        return Window.around(e for e in events if e.start >= begin and e.token is not None)
    number = passes[-1].request if number is None and passes else number
    mine = [e for e in events if e.request == number and number is not None]
    if not mine:
        wanted = "a request" if number is None else f"request {number}"
        raise MinillmError(
            f"wanted {wanted} in the trace, found no event of it; "
            "stream a prompt first: for piece in engine.stream(prompt): …"
        )
    return Window.around(mine)


def tokens(window: Window) -> dict[int, Window]:
    """A request cut at the end of each generated token; the pieces add up to the whole.

    Token 0 holds all that happens before the first word: tokenize, prefill, first sample.
    Token k begins where token k - 1 ends, so it also holds what the caller did in between.
    """
    ends: dict[int, float] = {}
    for event in window.events:
        if event.token is not None:
            ends[event.token] = max(event.end, ends.get(event.token, 0.0))
    order = sorted(ends)
    stops = [*accumulate((ends[token] for token in order[:-1]), max), window.stop][: len(order)]
    starts = [window.start, *stops[:-1]]
    inside: list[list[Event]] = [[] for _ in order]
    for event in window.events:
        middle = event.start + event.seconds / 2
        piece = bisect_left(stops, middle)
        while piece < len(order) and starts[piece] <= middle:  # on a cut, both sides have it
            inside[piece].append(event)
            piece += 1
    cut = zip(order, starts, stops, inside, strict=True)
    return {token: Window(start, stop, tuple(mine)) for token, start, stop, mine in cut}


def typical(pieces: dict[int, Window]) -> int:
    """The token after the first whose time is the median: the one worth a close look."""
    later = sorted((t for t in pieces if t > 0), key=lambda t: pieces[t].seconds)
    return later[(len(later) - 1) // 2] if later else min(pieces)


def gap(pieces: dict[int, Window]) -> float | None:
    """Median seconds of a token after the first; None if there is none."""
    later = [piece.seconds for token, piece in pieces.items() if token > 0]
    return median(later) if later else None


def outermost(events: Iterable[Event]) -> list[Event]:
    """Leaves out what runs inside another event on the same resource, as a layer in a step."""
    until: dict[str, float] = {}
    kept = []
    for event in sorted(events, key=lambda e: (e.start, -e.seconds)):
        if event.end > until.get(event.resource, -1.0):
            kept.append(event)
            until[event.resource] = event.end
    return kept


def parts(window: Window) -> list[Part]:
    """Who had the window's time. Every instant goes to the innermost event under way, once.

    The seconds add up to the window's. An event with others inside it keeps what they leave, as
    "rest of the <its stage>"; time with nothing under way comes last, as "in between".
    """
    moments = {t for e in window.events for t in (e.start, e.end)}
    inside = sorted(t for t in moments if window.start < t < window.stop)
    edges = [window.start, *inside, window.stop]
    parents = _parents(window.events)
    time = {_part_name(event, parents): 0.0 for event in window.events}
    coming = sorted(enumerate(window.events), key=lambda item: -item[1].start)
    # What began last is innermost; of two that began at once, the shorter, then the later one.
    active: list[tuple[float, float, int, Event]] = []  # a heap: the innermost is its first
    for left, right in zip(edges, edges[1:], strict=False):
        while coming and coming[-1][1].start <= left:
            i, event = coming.pop()
            heappush(active, (-event.start, event.seconds, -i, event))
        while active and active[0][3].end <= left:
            heappop(active)
        key = _part_name(active[0][3], parents) if active else ("in between", "idle")
        time[key] = time.get(key, 0.0) + right - left
    idle = time.pop(("in between", "idle"), 0.0)
    return [*(Part(*key, spent) for key, spent in time.items()), Part("in between", "idle", idle)]


def _part_name(event: Event, parents: set[int]) -> tuple[str, str]:
    rest = id(event) in parents
    return f"rest of the {event.stage}" if rest else name_of(event), meaning(event)


def _parents(events: Sequence[Event]) -> set[int]:
    """The ids of events that hold a shorter one on their resource: one sweep from the last back.

    An event holds another if one that begins no earlier ends no later.
    """
    found: set[int] = set()
    soonest: dict[str, float] = {}  # by resource, the first end of those seen
    ordered = sorted(events, key=lambda e: (-e.start, e.seconds))
    for _, alike in groupby(ordered, key=lambda e: (e.start, e.seconds)):
        same = list(alike)  # of one start and length: they do not hold each other
        found |= {id(e) for e in same if soonest.get(e.resource, math.inf) <= e.end}
        for event in same:
            soonest[event.resource] = min(event.end, soonest.get(event.resource, math.inf))
    return found


def memory(trace: Trace, tier: str) -> Memory | None:
    """How full a tier was, by label, over the whole trace; None if it was never counted."""
    changes = [e for e in trace.events if e.kind == "counter" and e.name == tier]
    if not changes:
        return None
    held = dict.fromkeys((e.label for e in changes), 0)
    times, levels = [0.0], {label: [0] for label in held}
    for event in changes:
        held[event.label] = event.nbytes
        times.append(event.start)
        for label, nbytes in held.items():
            levels[label].append(nbytes)
    return Memory(tier, tuple(times), {label: tuple(v) for label, v in levels.items()})


def bare(name: str) -> str:
    """A tier or resource without its rank: 'hbm:3' -> 'hbm'."""
    return name.partition(":")[0]


def rank_of(name: str) -> int:
    """The rank of a tier or resource: 3 for 'hbm:3', 0 for 'hbm'."""
    return int(name.partition(":")[2] or 0)


def meaning(event: Event) -> str:
    """The ink of an event: its link, the tier it copies to, or the unit that works."""
    unit, target = bare(event.resource), bare(event.target)
    if unit == "copy":
        return target if target in ("hbm", "dram") else "cpu"
    return "ffn" if event.name == "ffn" else unit


def name_of(event: Event) -> str:
    """What a reader calls it: 'logits → DRAM' for a transfer, else its name."""
    if event.kind == "transfer":
        return f"{event.label or event.name} → {bare(event.target).upper()}"
    return event.name


WHO = ("model", "dtype", "device")  # what of a trace's meta stands below a title


def provenance(trace: Trace) -> str:
    """One line on where the numbers come from: measured or not, which model, which machine."""
    how = {e.how for e in trace.events if e.kind != "counter"}
    words = [*sorted(how - {"emulated"}), *(str(trace.meta[k]) for k in WHO if trace.meta.get(k))]
    return " · ".join([*words, *["HBM emulated in DRAM"] * ("emulated" in how)])
