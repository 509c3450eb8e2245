"""The ladder of tiers: how fast bytes went over each link on their way from SSD to the GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from minillm.charts import facts, meaning
from minillm.charts.ink import FAINT, INK, PAPER, RULE, TEXT, WIDTH, amount, percent, times
from minillm.charts.style import Chart, log_axis, name_row, quiet
from minillm.errors import MinillmError
from minillm.trace import Event, Trace, bare, busy_seconds
from minillm.units import format_size

LEFT, COLUMN, STEP = 1.65, 0.82, 0.44  # inches: names, a column, a row
HEAD, LOW = 0.78, 0.42  # inches: above and below the rows
WAY = (
    ("ssd", "dram"), ("dram", "ssd"), ("dram", "hbm"), ("hbm", "dram"), ("infiniband", ""),
    ("nvlink", ""), ("network", ""), ("hbm", "compute"),
)  # fmt: skip
AWAY = ("DRAM → SSD", "HBM → DRAM")  # where weights do not go
NAMES = {
    "infiniband": "GPU ↔ GPU InfiniBand", "nvlink": "GPU ↔ GPU NVLink", "network": "GPU ↔ GPU",
    "compute": "compute", "cpu": "CPU",
}  # fmt: skip


@dataclass(frozen=True)
class Hop:
    """What went over one kind of link in a trace.

    name: 'SSD → DRAM'. ink: a key of style.INK. links: how many there are of it, such as one a GPU.
    rate: bytes/s of one link while busy. best: bytes/s of the fastest single transfer. ceiling:
    bytes/s, None if unknown. how: measured, … of the seconds; guessed: the bytes are predicted.
    """

    name: str
    ink: str
    nbytes: int
    rate: float
    best: float
    ceiling: float | None
    how: str
    guessed: bool
    count: int
    links: int

    @property
    def transfers(self) -> str:
        """'56 × 211.6 KiB, emulated': count times mean size is the bytes that went."""
        said = f"{self.count:,} × {format_size(round(self.nbytes / self.count))}"
        return f"{said} predicted" if self.guessed else f"{said}, {self.how}"


def ladder(trace: Trace, ceilings: Mapping[str, float] | None = None) -> Chart:
    """Bytes/s that each link of this run reached, its ceiling, and what the weights take over it.

    ceilings: bytes/s by "ssd", "copy" (DRAM to HBM), "hbm" (what compute reads) and "network"; by
    default `trace.meta["ceilings"]`, where "nvlink" and "infiniband" go before "network".
    HBM → compute is what the engine predicts that a step reads, over the step's time.
    Raises MinillmError if no byte moved.

    >>> ladder(engine.trace).finding
    'From SSD to HBM the ceiling climbs 2.8 → 17.8 → 35.5 GB/s'
    """
    known = (trace.meta.get("ceilings") or {}) if ceilings is None else ceilings
    hops = find_hops(trace, known)
    note = facts.provenance(trace, read=True)
    if any(hop.ceiling and hop.best > 1.05 * hop.ceiling for hop in hops):
        note += " · beyond a ceiling: probably from a cache"
    finding = _finding(hops)
    told = "; ".join(f"{h.name} {_in_words(h)}" for h in hops)
    high = HEAD + STEP * max(2, len(hops)) + LOW
    chart = Chart(finding, f"Ladder of tiers. {finding}. {told}.", note=note, size=(WIDTH, high))
    columns = _columns(hops, trace.meta.get("weight_bytes"))
    wide = WIDTH - LEFT - COLUMN * len(columns) - 0.1
    ax = chart.add_axes((LEFT / WIDTH, LOW / high, wide / WIDTH, 1 - (HEAD + LOW) / high))
    _draw(ax, hops)
    for i, (title, cells) in enumerate(columns.items()):
        _column(ax, 1 + (0.12 + COLUMN * i) / wide, title, cells)
    return chart


def _columns(hops: Sequence[Hop], weights: int | None) -> dict[str, list[tuple[str, str]]]:
    """Title to one cell a hop: its large and its small line."""
    columns = {"reached": [(amount(h.rate, "B/s"), f"best {amount(h.best, 'B/s')}") for h in hops]}
    if any(hop.ceiling for hop in hops):
        columns["of ceiling"] = [
            (percent(h.rate, h.ceiling), amount(h.ceiling, "B/s")) if h.ceiling else ("–", "")
            for h in hops
        ]
    if weights:
        columns["weights take"] = [
            (amount(weights / h.rate, "s"), f"by one of {h.links}" if h.links > 1 else "")
            if h.name not in AWAY else ("–", "")
            for h in hops
        ]
    return columns


def _in_words(hop: Hop) -> str:
    how = f", time {hop.how}" if hop.guessed else ""
    said = f"{amount(hop.rate, 'B/s')}, best {amount(hop.best, 'B/s')} ({hop.transfers}{how})"
    return said + (f", ceiling {amount(hop.ceiling, 'B/s')}" if hop.ceiling else "")


def find_hops(trace: Trace, ceilings: Mapping[str, float]) -> list[Hop]:
    """One hop for each kind of link over which bytes went, in the order of the way."""
    groups: dict[tuple[str, str], list[Event]] = {}
    some = [e for e in facts.work(trace) if e.nbytes and e.seconds > 0]
    # A layer's bytes are part of its step's, but a copy within the time of another is not.
    spans = facts.outermost(e for e in some if e.kind == "span")
    for event in [*(e for e in some if e.kind == "transfer"), *spans]:
        if way := _way(event):
            groups.setdefault(way, []).append(event)
    if not groups:
        raise MinillmError("wanted a trace in which bytes moved, found none; load an engine first")
    order = sorted(groups, key=lambda way: WAY.index(way) if way in WAY else len(WAY))
    return [_hop(way, groups[way], ceilings) for way in order]


def _way(event: Event) -> tuple[str, str] | None:
    """From where to where; None for work that moved nothing over a link."""
    if event.kind == "transfer":
        over = meaning.row(event)
        return (over, "") if over in NAMES else (bare(event.source), bare(event.target))
    return ("hbm", "compute") if bare(event.resource) == "compute" else None


def _hop(way: tuple[str, str], events: list[Event], ceilings: Mapping[str, float]) -> Hop:
    links: dict[tuple[str, ...], list[Event]] = {}
    for event in events:  # each rank, and each direction, is a link of its own
        links.setdefault((event.source, event.target, event.resource), []).append(event)
    nbytes = sum(e.nbytes for e in events)
    rate = nbytes / sum(busy_seconds(link) for link in links.values())
    ceiling = meaning.ceiling(ceilings, meaning.limit(events[0]))
    how = "emulated" if any(e.how == "emulated" for e in events) else events[0].how
    guessed = any(map(facts.guessed, events))
    ends = [NAMES.get(end, end.upper()) for end in way if end]
    # Several at a time may together be faster than any of them.
    best = max(rate, *(e.nbytes / e.seconds for e in events))
    name, ink = " → ".join(ends), meaning.ink(events[0])
    return Hop(name, ink, nbytes, rate, best, ceiling, how, guessed, len(events), len(links))


def _climb(hops: Sequence[Hop]) -> str:
    """How the ceilings rise along the way of the weights; "" if they do not, or are not known."""
    way = {"SSD → DRAM": "SSD", "DRAM → HBM": "DRAM", "HBM → compute": "HBM"}
    steps = [(way[hop.name], hop.ceiling) for hop in hops if hop.name in way and hop.ceiling]
    rates = [ceiling for _, ceiling in steps]
    if len(rates) < 2 or rates != sorted(set(rates)):
        return ""
    said = [amount(rate, "B/s") for rate in rates]
    if len({words.split()[1] for words in said}) == 1:  # one unit: said once
        said = [*(words.split()[0] for words in said[:-1]), said[-1]]
    return f"From {steps[0][0]} to {steps[-1][0]} the ceiling climbs {' → '.join(said)}"


def _finding(hops: Sequence[Hop]) -> str:
    """How high the ceilings of this way are. Where they are not known, the links that differ most;
    the rate of a few bytes of ids is that of a tiny copy, and no link's.
    """
    if climb := _climb(hops):
        return climb
    large = [hop for hop in hops if 100 * hop.nbytes >= max(h.nbytes for h in hops)]
    fast, slow = max(large, key=lambda h: h.rate), min(large, key=lambda h: h.rate)
    if fast is slow:
        share = f", {percent(fast.rate, fast.ceiling)} of its ceiling" if fast.ceiling else ""
        return f"{fast.name} moves {amount(fast.rate, 'B/s')}{share}"
    rates = f"{amount(fast.rate, 'B/s')} against {amount(slow.rate, 'B/s')}"
    return f"{fast.name} is {times(fast.rate / slow.rate)} as fast as {slow.name}: {rates}"


def _draw(ax: Axes, hops: Sequence[Hop]) -> None:
    """A row each: a mark at the rate, a line to the best transfer, the ceiling hatched beyond."""
    known = [v for h in hops for v in (h.rate, h.best, h.ceiling or h.rate)]
    quiet(ax, "bytes per second (log axis)")
    log_axis(ax.xaxis, min(known) / 2.5, max(known) * 2.5, lambda x: amount(x, "B/s"))
    pad = max(0, 2 - len(hops)) / 2
    ax.set_ylim(len(hops) + pad, -pad)
    end = ax.get_xlim()[1]
    for y, hop in enumerate(hops):
        ink = INK[hop.ink].colour
        ax.axhline(y + 0.5, color=RULE, linewidth=0.6, zorder=0)
        if hop.ceiling:
            ax.barh(y + 0.5, end - hop.ceiling, 0.56, hop.ceiling, facecolor=PAPER, linewidth=0,
                    edgecolor=RULE, hatch="////", zorder=1)  # fmt: skip
            ax.plot((hop.ceiling,) * 2, (y + 0.22, y + 0.78), color=TEXT, linewidth=1.4, zorder=2)
        ax.plot((hop.rate, hop.best), (y + 0.5,) * 2, color=ink, linewidth=2.4, zorder=3)
        ax.plot(hop.best, y + 0.5, "|", color=ink, markersize=9, markeredgewidth=2, zorder=3)
        ax.plot(hop.rate, y + 0.5, "s" if "emulated" in hop.how else "o", color=ink, markersize=9,
                markerfacecolor=PAPER if hop.how == "predicted" else ink, zorder=4)  # fmt: skip
        name_row(ax, y + 0.36, hop.name)
        name_row(ax, y + 0.7, hop.transfers, small=True)


def _column(ax: Axes, x: float, title: str, cells: Sequence[tuple[str, str]]) -> None:
    """Words to the right of the axes, one or two lines a row, under a faint title."""
    place = ax.get_yaxis_transform()
    ax.text(x, 1, title, transform=ax.transAxes, size=8, color=FAINT, va="bottom")
    for y, (upper, lower) in enumerate(cells):
        ax.text(x, y + (0.36 if lower else 0.5), upper, transform=place, size=8.5, color=TEXT,
                va="center")  # fmt: skip
        ax.text(x, y + 0.7, lower, transform=place, size=7, color=FAINT, va="center")
