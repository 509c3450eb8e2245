"""The numbers behind the charts: what a trace says of its load, a request, its tokens, memory.

Nothing here draws. Charts take their figures from these functions, so that tests can hold them
against the trace.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from statistics import median

from minillm.charts.meaning import RESERVED
from minillm.errors import MinillmError
from minillm.trace import Event, Trace, bare


@dataclass(frozen=True)
class Window:
    """A stretch of the run and the events in it. Times are seconds since the trace began.

    number: of the request that it shows, if it is a part of one.
    """

    start: float
    stop: float
    events: tuple[Event, ...]
    number: int | None = None

    def done_for(self, event: Event) -> bool:
        """Whether an event was done for this request, alone or with others; weights come apart."""
        mine = self.number is None or event.request in (self.number, None)
        return mine and event.stage != "load"

    @property
    def seconds(self) -> float:
        return self.stop - self.start

    @classmethod
    def around(cls, events: Iterable[Event]) -> Window:
        events = tuple(events)
        return cls(min(e.start for e in events), max(e.end for e in events), events)


@dataclass(frozen=True)
class Memory:
    """Bytes in one tier after each change, by label; all sequences have the length of `times`."""

    tier: str
    times: tuple[float, ...]
    levels: dict[str, tuple[int, ...]]

    @property
    def totals(self) -> tuple[int, ...]:
        """What was in use; of a pool only the pages that are."""
        some = [held for label, held in self.levels.items() if label != RESERVED]
        return tuple(map(sum, zip(*some, strict=True))) if some else (0,) * len(self.times)

    @property
    def most(self) -> int:
        """The peak of what was taken, be it in use or reserved."""
        return max(map(sum, zip(*self.levels.values(), strict=True)))

    @property
    def peak(self) -> int:
        return max(self.totals)

    def at_peak(self) -> dict[str, int]:
        """What each label holds at the moment of the peak, largest first, what is reserved last."""
        moment = self.totals.index(self.peak)
        held = {label: values[moment] for label, values in self.levels.items()}
        return dict(sorted(held.items(), key=lambda item: (item[0] == RESERVED, -item[1])))


def work(trace: Trace) -> list[Event]:
    """Spans and transfers by start time; MinillmError if there are none."""
    events = sorted((e for e in trace.events if e.kind != "counter"), key=lambda e: e.start)
    if not events:
        raise MinillmError(
            "wanted a trace of a run, found no span and no transfer in it; "
            "load an engine, stream a prompt, then draw engine.trace"
        )
    return events


def served(event: Event) -> bool:
    """Whether it was done for a token, or in a step; a load is before any."""
    return event.token is not None or event.step is not None


def asked(trace: Trace) -> bool:
    """Whether the trace holds a request, and not a load alone."""
    return any(e.stage == "model" and served(e) for e in trace.events)


def request(trace: Trace) -> Window:
    """The window of the request that made the last token, with the weights moved for it.

    It holds its own events and, while it ran, all of each step that it shared with others: such a
    step's pass belongs to no single request.
    """
    events = [e for e in work(trace) if e.stage != "load" or served(e)]
    made = [e.request for e in events if e.stage in ("model", "decode") and served(e)]
    if not made:
        raise MinillmError(
            "wanted a request in the trace, found none; "
            "stream a prompt first: for piece in engine.stream(prompt): …"
        )
    number = next((one for one in reversed(made) if one is not None), None)
    own = Window.around(e for e in events if e.request == number and e.stage != "load")
    meanwhile = [e for e in events if own.start <= e.start + e.seconds / 2 <= own.stop]
    steps = {e.step for e in meanwhile if e.request is None}
    shared = (e for e in meanwhile if served(e) and (e.request is None or e.step in steps - {None}))
    mine = [e for e in events if e.request == number]
    every = {*mine, *shared}
    return Window(own.start, own.stop, tuple(e for e in events if e in every), number)


def prompt(trace: Trace) -> str:
    """The newest request's prompt; "" if it was given as ids, or if there is none."""
    said = [e.detail for e in trace.events if e.name == "tokenize"]
    return said[-1] if said else ""


def tokens(window: Window) -> dict[int, Window]:
    """A request cut at the end of each generated token; the pieces add up to the whole.

    Token 0 holds all that happens before the first word: tokenize, prefill, first sample.
    Token k begins where token k - 1 ends, so it also holds what the caller did in between.
    """
    ends: dict[int, float] = {}
    for event in window.events:
        if event.token is not None and window.done_for(event):
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
    number = window.number
    return {token: Window(start, stop, tuple(mine), number) for token, start, stop, mine in cut}


def own(token: int, piece: Window) -> Window:
    """A token from its own first event to its last, without what the caller did before it.

    The step that it was made in is its own too, whoever shared it.
    """
    some = [e for e in piece.events if piece.done_for(e)]
    steps = {e.step for e in some if e.token == token} - {None}
    mine = [e for e in some if e.token == token or (e.token is None and e.step in steps)]
    if not mine:
        return piece
    start, stop = min(e.start for e in mine), max(e.end for e in mine)
    inside = (e for e in piece.events if start <= e.start + e.seconds / 2 <= stop)
    return Window(start, stop, tuple(inside))


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


def moving(events: Iterable[Event]) -> list[Event]:
    """Those that move bytes: transfers, and what compute reads from its HBM.

    Of a span that lies in another one with bytes, the outer one counts.
    """
    reads = [e for e in events if e.kind == "span" and e.nbytes and bare(e.resource) == "compute"]
    return [e for e in events if e.kind == "transfer"] + outermost(reads)


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


def guessed(event: Event) -> bool:
    """Whether its bytes are predicted: so many must have moved, but nobody counted them."""
    return event.bytes_how == "predicted"


WHO = ("model", "dtype", "device")  # what of a trace's meta stands below a title


def provenance(trace: Trace, read: bool = False) -> str:
    """One line on where the numbers come from: measured or not, which model, which machine.

    read: whether the picture tells what compute read; those bytes are often predicted.

    'measured, emulated · scale model of H100, 94 × slower · town · bfloat16 · cpu'
    """
    work = [e for e in trace.events if e.kind != "counter"]
    how = {e.how for e in work}
    if read and any(map(guessed, work)):
        how.add("predicted")
    words = [", ".join(h for h in ("measured", "emulated", "predicted") if h in how)]
    model = trace.meta.get("scale_model")
    if model:
        words.append(f"scale model of {model['of']}, {model['slower']:.0f} × slower")
    words += [str(trace.meta[k]) for k in WHO if trace.meta.get(k)]
    emulated = "emulated" in how and not model
    return " · ".join(filter(None, [*words, "HBM emulated in DRAM" if emulated else ""]))
