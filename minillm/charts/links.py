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
# The ways of bytes in their order, each with its name: from a tier to another, or over a network.
WAYS = {
    ("ssd", "dram"): "SSD → DRAM", ("dram", "ssd"): "DRAM → SSD", ("dram", "hbm"): "DRAM → HBM",
    ("hbm", "dram"): "HBM → DRAM", ("infiniband", ""): "GPU ↔ GPU InfiniBand",
    ("nvlink", ""): "GPU ↔ GPU NVLink", ("network", ""): "GPU ↔ GPU",
    ("hbm", "compute"): "HBM → compute",
}  # fmt: skip
AWAY = ("DRAM → SSD", "HBM → DRAM")  # where weights do not go
CLIMB = {"SSD → DRAM": "SSD", "DRAM → HBM": "DRAM", "HBM → compute": "HBM"}


@dataclass(frozen=True)
class Hop:
    """What went over one kind of link in a trace.

    ink: a key of INK. links: how many there are of it, such as one a GPU. rate: bytes/s of one link
    while busy. ceiling: bytes/s, None if unknown. how: measured, … of the seconds; guessed: the
    bytes are predicted.
    """

    name: str
    ink: str
    nbytes: int
    rate: float
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
    'From SSD to HBM the ceiling climbs 2.8 GB/s → 17.8 GB/s → 35.5 GB/s'
    """
    hops = find_hops(trace, (trace.meta.get("ceilings") or {}) if ceilings is None else ceilings)
    note = facts.provenance(trace, read=True)
    if any(hop.ceiling and hop.rate > 1.05 * hop.ceiling for hop in hops):
        note += " · beyond a ceiling: probably from a cache"
    finding = _climb(hops) or _contrast(hops)
    told = "; ".join(f"{h.name} {amount(h.rate, 'B/s')} ({h.transfers})" + (
        f", ceiling {amount(h.ceiling, 'B/s')}" if h.ceiling else "") for h in hops)  # fmt: skip
    high = HEAD + STEP * max(2, len(hops)) + LOW
    chart = Chart(finding, f"Ladder of tiers. {finding}. {told}.", note=note, size=(WIDTH, high))
    columns = _columns(hops, trace.meta.get("weight_bytes"))
    wide = WIDTH - LEFT - COLUMN * len(columns) - 0.1
    ax = chart.add_axes((LEFT / WIDTH, LOW / high, wide / WIDTH, 1 - (HEAD + LOW) / high))
    _draw(ax, hops)
    for i, (title, cells) in enumerate(columns.items()):
        x = 1 + (0.12 + COLUMN * i) / wide
        ax.text(x, 1, title, transform=ax.transAxes, size=8, color=FAINT, va="bottom")
        for y, words in enumerate(cells):
            ax.text(x, y + 0.5, words, transform=ax.get_yaxis_transform(), size=8, color=TEXT,
                    va="center")  # fmt: skip
    return chart


def _columns(hops: Sequence[Hop], weights: int | None) -> dict[str, list[str]]:
    """Title to one cell a hop, "–" where there is nothing to say."""
    columns = {"reached": [amount(h.rate, "B/s") for h in hops]}
    if any(hop.ceiling for hop in hops):
        columns["of ceiling"] = [
            f"{percent(h.rate, h.ceiling)}\nof {amount(h.ceiling, 'B/s')}" if h.ceiling else "–"
            for h in hops]  # fmt: skip
    if weights:
        columns["weights take"] = [
            amount(weights / h.rate, "s") + f"\nby one of {h.links}" * (h.links > 1)
            if h.name not in AWAY else "–" for h in hops]  # fmt: skip
    return columns


def find_hops(trace: Trace, ceilings: Mapping[str, float]) -> list[Hop]:
    """One hop for each kind of link over which bytes went, in the order of the way."""
    groups: dict[tuple[str, str], list[Event]] = {}
    some = [e for e in facts.work(trace) if e.nbytes and e.seconds > 0]
    for event in facts.moving(some):
        over = meaning.row(event)
        ends = (over, "") if (over, "") in WAYS else (bare(event.source), bare(event.target))
        groups.setdefault(("hbm", "compute") if over == "compute" else ends, []).append(event)
    if not groups:
        raise MinillmError("wanted a trace in which bytes moved, found none; load an engine first")
    order = [way for way in dict.fromkeys([*WAYS, *groups]) if way in groups]
    names = [WAYS.get(way) or " → ".join(way).upper() for way in order]
    return [_hop(name, groups[way], ceilings) for name, way in zip(names, order, strict=True)]


def _hop(name: str, events: list[Event], ceilings: Mapping[str, float]) -> Hop:
    links: dict[tuple[str, ...], list[Event]] = {}
    for event in events:  # each rank, and each direction, is a link of its own
        links.setdefault((event.source, event.target, event.resource), []).append(event)
    nbytes = sum(e.nbytes for e in events)
    rate = nbytes / sum(busy_seconds(link) for link in links.values())
    ceiling = meaning.ceiling(ceilings, meaning.limit(events[0]))
    how = "emulated" if any(e.how == "emulated" for e in events) else events[0].how
    guessed, ink = any(map(facts.guessed, events)), meaning.ink(events[0])
    return Hop(name, ink, nbytes, rate, ceiling, how, guessed, len(events), len(links))


def _climb(hops: Sequence[Hop]) -> str:
    """How the ceilings rise along the way of the weights; "" if they do not, or are not known."""
    steps = [(CLIMB[hop.name], hop.ceiling) for hop in hops if hop.name in CLIMB and hop.ceiling]
    rates = [ceiling for _, ceiling in steps]
    if len(rates) < 2 or rates != sorted(set(rates)):
        return ""
    said = " → ".join(amount(rate, "B/s") for rate in rates)
    return f"From {steps[0][0]} to {steps[-1][0]} the ceiling climbs {said}"


def _contrast(hops: Sequence[Hop]) -> str:
    """The links that differ most; the rate of a few bytes is that of a tiny copy, not of a link."""
    large = [hop for hop in hops if 100 * hop.nbytes >= max(h.nbytes for h in hops)]
    fast, slow = max(large, key=lambda h: h.rate), min(large, key=lambda h: h.rate)
    if fast is slow:
        share = f", {percent(fast.rate, fast.ceiling)} of its ceiling" if fast.ceiling else ""
        return f"{fast.name} moves {amount(fast.rate, 'B/s')}{share}"
    rates = f"{amount(fast.rate, 'B/s')} against {amount(slow.rate, 'B/s')}"
    return f"{fast.name} is {times(fast.rate / slow.rate)} as fast as {slow.name}: {rates}"


def _draw(ax: Axes, hops: Sequence[Hop]) -> None:
    """A row each: a mark at the rate, the ceiling hatched beyond."""
    known = [v for h in hops for v in (h.rate, h.ceiling or h.rate)]
    quiet(ax, "bytes per second (log axis)")
    log_axis(ax.xaxis, min(known) / 2.5, max(known) * 2.5, lambda x: amount(x, "B/s"))
    pad = max(0, 2 - len(hops)) / 2
    ax.set_ylim(len(hops) + pad, -pad)
    end = ax.get_xlim()[1]
    for y, hop in enumerate(hops):
        ax.axhline(y + 0.5, color=RULE, linewidth=0.6, zorder=0)
        if hop.ceiling:
            ax.barh(y + 0.5, end - hop.ceiling, 0.56, hop.ceiling, facecolor=PAPER, linewidth=0,
                    edgecolor=RULE, hatch="////", zorder=1)  # fmt: skip
            ax.plot((hop.ceiling,) * 2, (y + 0.22, y + 0.78), color=TEXT, linewidth=1.4, zorder=2)
        mark = "s" if hop.how == "emulated" else "o"
        ax.plot(hop.rate, y + 0.5, mark, color=INK[hop.ink].colour, markersize=9, zorder=4)
        name_row(ax, y + 0.36, hop.name)
        name_row(ax, y + 0.7, hop.transfers, small=True)
