"""The numbers behind the charts: what a trace says of its load, a request, its tokens, memory.

Nothing here draws. Charts take their figures from these functions, so that tests can hold them
against the trace.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
    pieces, start = {}, window.start
    for token in sorted(ends):
        stop = window.stop if token == max(ends) else ends[token]
        inside = (e for e in window.events if start <= e.start + e.seconds / 2 <= stop)
        pieces[token] = Window(start, stop, tuple(inside))
        start = stop
    return pieces


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
    time: dict[tuple[str, str], float] = {}
    parents = {id(e) for e in window.events if _holds_others(e, window.events)}
    for event in window.events:
        time[_part_name(event, parents)] = 0.0
    for left, right in zip(edges, edges[1:], strict=False):
        active = [e for e in window.events if e.start <= left and right <= e.end]
        active.sort(key=lambda e: (e.start, -e.seconds))
        key = _part_name(active[-1], parents) if active else ("in between", "idle")
        time[key] = time.get(key, 0.0) + right - left
    idle = time.pop(("in between", "idle"), 0.0)
    return [*(Part(*key, spent) for key, spent in time.items()), Part("in between", "idle", idle)]


def _part_name(event: Event, parents: set[int]) -> tuple[str, str]:
    name = f"rest of the {event.stage}" if id(event) in parents else name_of(event)
    return name, meaning(event)


def _holds_others(event: Event, events: Sequence[Event]) -> bool:
    return any(
        event.start <= e.start and e.end <= event.end and e.seconds < event.seconds
        for e in events
        if e.resource == event.resource
    )


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


def meaning(event: Event) -> str:
    """The ink of an event: its link, the tier it copies to, or the unit that works."""
    if event.resource == "copy":
        return event.target if event.target in ("hbm", "dram") else "cpu"
    return "ffn" if event.name == "ffn" else event.resource


def name_of(event: Event) -> str:
    """What a reader calls it: 'logits → DRAM' for a transfer, else its name."""
    if event.kind == "transfer":
        return f"{event.label or event.name} → {event.target.upper()}"
    return event.name


def provenance(trace: Trace) -> str:
    """One line on where the numbers come from: measured or not, which model, which machine."""
    how = {e.how for e in trace.events if e.kind != "counter"}
    words = sorted(how - {"emulated"}) + [str(trace.meta[k]) for k in ("model", "dtype", "device")
                                          if trace.meta.get(k)]
    return " · ".join([*words, *["HBM emulated in DRAM"] * ("emulated" in how)])
