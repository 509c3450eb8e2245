"""The machine: where its parts stand, and a still of what a run held and moved in them.

The living picture is machine_view.js; both take their geometry from `layout`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minillm.charts import facts, meaning
from minillm.charts.ink import amount
from minillm.charts.machine_finding import find
from minillm.charts.machine_layout import layout
from minillm.trace import Event, Trace, bare, busy_seconds, rank_of
from minillm.units import format_size

if TYPE_CHECKING:
    from minillm.charts.style import Chart


@dataclass(frozen=True)
class Flow:
    """What crossed a link in one direction. Seconds in which two moved at once count once."""

    nbytes: int
    seconds: float
    label: str
    how: str
    ceiling: float | None  # bytes/s
    ink: str  # a key of style.INK

    @property
    def rate(self) -> float:
        """Bytes/s while it moved."""
        return self.nbytes / self.seconds if self.seconds else 0.0


@dataclass
class Peak:
    """A memory when most of it was in use: bytes by label, largest first; its capacity if known."""

    levels: dict[str, int]
    capacity: int | None

    @property
    def nbytes(self) -> int:
        """What was in use; of a pool only the pages that were."""
        return sum(n for label, n in self.levels.items() if label != facts.RESERVED)


@dataclass
class Did:
    """A run on a layout: flows by step, peaks and busy seconds by box, the last request's text."""

    flows: dict[str, Flow]
    held: dict[str, Peak]
    busy: dict[str, float]
    prompt: str
    words: list[str]


def machine(trace: Trace) -> Chart:
    """The machine: what each memory held at its peak, and what crossed each link, at which rate.

    Raises MinillmError for a trace in which nothing happened.

    >>> machine(engine.trace).finding
    '11.6 MiB of weights came in once; compute then read 934 MiB from HBM, 80 × as much'
    """
    from minillm.charts.machine_still import draw  # late: the plan is needed before any drawing

    facts.work(trace)  # an empty trace is an error that says what to do
    sheet = plan(trace)
    did = Did(crossed(trace, sheet), peaks(trace, sheet), _busy(trace, sheet), *_words(trace))
    finding = find(trace, did.flows, sheet)
    said = [f"{sheet['boxes'][box]['title']} held {format_size(peak.nbytes)}"
            for box, peak in did.held.items() if peak.nbytes]  # fmt: skip
    said += [_in_words(step, flow, sheet) for step, flow in did.flows.items()]
    emulated = trace.meta.get("device") == "cpu"
    chart = draw(sheet, did, finding, facts.provenance(trace, read=True), emulated)
    chart.alt = f"The machine of this run. {finding}. {'; '.join(said)}."
    return chart


def plan(trace: Trace, narrow: bool = False) -> dict[str, Any]:
    """The layout of the machine that a trace was made on: its ranks, or what its meta says."""
    names = {n for e in trace.events for n in (e.name, e.resource, e.source, e.target) if ":" in n}
    ranks = [rank + 1 for rank in map(rank_of, names) if rank < 4096]
    gpus = max([1, int(trace.meta.get("gpus", 1)), *ranks])
    return layout(gpus, int(trace.meta.get("nodes", 1)), narrow)


def peaks(trace: Trace, sheet: dict[str, Any]) -> dict[str, Peak]:
    """Each memory box at its peak. The DRAM of several ranks of a node is one box.

    What lies on the disk is not counted: of it we know the weights, which came from there.
    """
    home, capacity = sheet["home"], _capacities(trace)
    held: dict[str, dict[tuple[str, str], int]] = {}
    most = {box: Peak({}, capacity.get(box, capacity.get(bare(box.split("@")[0]))))
            for box, what in sheet["boxes"].items() if "tank" in what}  # fmt: skip
    if trace.meta.get("weight_bytes"):
        most["ssd"].levels["weights"] = int(trace.meta["weight_bytes"])
    for event in trace.events:
        box = home.get(meaning.plain(event.name)) if event.kind == "counter" else None
        if box is None:
            continue
        levels = held.setdefault(box, {})
        levels[event.name, event.label] = event.nbytes
        now = Peak(_by_label(levels), most[box].capacity)
        most[box] = max(most[box], now, key=lambda peak: peak.nbytes)
    return most


def _capacities(trace: Trace) -> dict[str, int]:
    return {meaning.plain(tier): n for tier, n in trace.meta.get("capacity", {}).items()}


def _by_label(levels: dict[tuple[str, str], int]) -> dict[str, int]:
    sums: dict[str, int] = {}
    for (_, label), nbytes in levels.items():
        sums[label] = sums.get(label, 0) + nbytes
    return dict(sorted(((k, n) for k, n in sums.items() if n), key=lambda item: -item[1]))


def crossed(trace: Trace, sheet: dict[str, Any]) -> dict[str, Flow]:
    """What crossed each link, by step: "+pcie" along the link of that name, "-pcie" against it."""
    moved: dict[str, list[tuple[Event, str]]] = {}
    for event in _moves(trace):
        for step, ink in meaning.way(event, sheet):
            moved.setdefault(step, []).append((event, ink))
    ceilings = trace.meta.get("ceilings", {})
    return {step: _flow(sheet, step, moves, ceilings) for step, moves in moved.items()}


def _flow(
    sheet: dict[str, Any], step: str, moves: list[tuple[Event, str]], ceilings: dict[str, float]
) -> Flow:
    """moves: what took this step, each with its ink. The largest gives the words."""
    link, events = sheet["links"][step[1:]], [event for event, _ in moves]
    largest, ink = max(moves, key=lambda move: move[0].nbytes)
    guessed = largest.kind == "span" and facts.guessed(largest)
    return Flow(
        sum(e.nbytes for e in events), busy_seconds(events),
        label=largest.label if largest.kind == "transfer" else "weights, KV",
        how="predicted" if guessed else largest.how,
        ceiling=meaning.ceiling(ceilings, link["limit"]), ink=ink,
    )  # fmt: skip


def _busy(trace: Trace, sheet: dict[str, Any]) -> dict[str, float]:
    """Seconds for which each unit was at work; what runs inside other work counts once."""
    spans: dict[str, list[Event]] = {}
    for event in facts.work(trace):
        if event.kind == "span" and meaning.ink(event) != "idle":
            spans.setdefault(sheet["home"].get(meaning.plain(event.resource), ""), []).append(event)
    return {box: busy_seconds(events) for box, events in spans.items()}


def _words(trace: Trace) -> tuple[str, list[str]]:
    """Prompt and tokens of the last request."""
    texts = [e for e in facts.work(trace) if e.name in ("tokenize", "detokenize")]
    mine = [e for e in texts if e.request == texts[-1].request]
    words = [e.detail for e in mine if e.name == "detokenize"]
    return "".join(e.detail for e in mine if e.name == "tokenize"), words


def _moves(trace: Trace) -> Iterator[Event]:
    """Events that move bytes: transfers, and what compute reads from its HBM.

    Of a span that lies in another one with bytes, the outer one counts.
    """
    work = facts.work(trace)
    yield from (e for e in work if e.kind == "transfer")
    reads = (e for e in work if e.kind == "span" and e.nbytes)
    yield from facts.outermost(e for e in reads if bare(e.resource) == "compute")


def _in_words(step: str, flow: Flow, sheet: dict[str, Any]) -> str:
    link = sheet["links"][step[1:]]
    ends = [sheet["boxes"][link[end]]["title"] for end in ("from", "to")]
    begin, end = ends if step[0] == "+" else reversed(ends)
    return (f"{begin} to {end}: {format_size(flow.nbytes)} at {amount(flow.rate, 'B/s')}, "
            f"{flow.how}")  # fmt: skip
