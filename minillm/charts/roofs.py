"""The roofline: how fast work runs, and which of two roofs holds it down.

Work that does few operations on each byte waits for memory, work that does many for the arithmetic
units. (S. Williams, A. Waterman, D. Patterson: Roofline, CACM 52:4, 2009.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from matplotlib.axes import Axes

from minillm.charts import facts
from minillm.charts.ink import FAINT, HEIGHT, INK, PAPER, TEXT, WIDTH, amount, percent
from minillm.charts.place import beside
from minillm.charts.style import BEYOND, Chart, log_axis, name_axes, quiet
from minillm.errors import MinillmError
from minillm.trace import Trace

Given = float | Sequence[float]
LEFT, LOW, WIDE, TALL = 0.86, 0.42, 3.75, 2.36  # inches: the axes' place and size


@dataclass(frozen=True)
class Point:
    """One kind of work under the roof. flops, nbytes and seconds are of one event, the median."""

    name: str
    flops: float
    nbytes: float
    seconds: float
    roof: float  # FLOP/s that the machine allows at this intensity
    bound: str  # "memory" or "compute": which roof that is
    how: str  # measured, emulated or predicted: the seconds
    guessed: bool  # whether the bytes are predicted and not counted

    @property
    def intensity(self) -> float:
        """FLOPs for each byte."""
        return self.flops / self.nbytes

    @property
    def rate(self) -> float:
        """FLOP/s reached."""
        return self.flops / self.seconds


def roofline(
    trace: Trace | None, flops: Mapping[str, Given], bandwidth: float, peak_flops: float
) -> Chart:
    """Speed against arithmetic intensity, under the roofs of memory and of the arithmetic units.

    flops: name of an event to the FLOPs of one such event; its bytes and seconds come from the
    trace. Or, by hand, to (flops, nbytes, seconds), with "predicted" or "emulated" as a fourth if
    they are not measured; the trace may then be None.
    bandwidth: bytes/s of the memory; peak_flops: FLOP/s. Raises MinillmError for an event that the
    trace does not hold or whose bytes it does not know.

    >>> roofline(engine.trace, {"decode step": 1.2e7}, bandwidth=43e9, peak_flops=700e9).finding
    'decode step reaches 7 % of the memory roof'
    """
    for name, value in {"bandwidth": bandwidth, "peak_flops": peak_flops}.items():
        _positive(value, name)
    points = find_points(trace, flops, bandwidth, peak_flops)
    chart = Chart(_finding(points), note=_note(trace, points))
    ax = chart.add_axes((LEFT / WIDTH, LOW / HEIGHT, WIDE / WIDTH, TALL / HEIGHT))
    _axes(ax, points, bandwidth, peak_flops)
    _roofs(ax, bandwidth, peak_flops)
    for point in points:
        _mark(ax, point)
    beside(ax, [(p.intensity, p.rate, p.name, _said(p)) for p in points])
    roofs = f"{amount(bandwidth, 'B/s')} memory and {amount(peak_flops, 'FLOP/s')} compute"
    told = "; ".join(f"{p.name} {_said(p)} at {p.intensity:.3g} FLOP/byte" for p in points)
    chart.alt = f"Roofline of {roofs}. {chart.finding}. {told}."
    return chart


def find_points(
    trace: Trace | None, flops: Mapping[str, Given], bandwidth: float, peak_flops: float
) -> list[Point]:
    """The points of the chart, in the order of `flops`; see `roofline`."""
    if not flops:
        raise MinillmError("wanted the FLOPs of at least one event, found none; "
                           "give them by name, such as {'decode step': 1.2e7}")  # fmt: skip
    points = []
    for name, given in flops.items():
        numbers, how, guessed = _numbers(trace, name, given)
        for value, what in zip(numbers, ("FLOPs", "bytes", "seconds"), strict=True):
            _positive(value, f"{what} of {name!r}")
        reach = bandwidth * numbers[0] / numbers[1]
        bound = "memory" if reach < peak_flops else "compute"
        points.append(Point(name, *numbers, min(reach, peak_flops), bound, how, guessed))
    return points


def _numbers(trace: Trace | None, name: str, given: Given) -> tuple[Sequence[float], str, bool]:
    """FLOPs, bytes and seconds of one event, how the seconds came about, whether bytes are not."""
    if isinstance(given, Sequence):
        how = given[3] if len(given) == 4 else "measured"
        if len(given) not in (3, 4) or how not in ("measured", "emulated", "predicted"):
            raise MinillmError(f"wanted {name!r} as (flops, nbytes, seconds), found {given!r}; "
                               "'predicted' or 'emulated' may follow")  # fmt: skip
        return given[:3], how, how == "predicted"
    work = [] if trace is None else facts.work(trace)
    mine = [e for e in work if e.name == name and e.nbytes]
    if not mine:
        known = ", ".join(dict.fromkeys(e.name for e in work if e.kind == "span" and e.nbytes))
        raise MinillmError(
            f"wanted an event {name!r} with bytes in the trace, found {known or 'none'}; "
            "name one of those, or give (flops, nbytes, seconds) by hand"
        )
    how = "emulated" if any(e.how == "emulated" for e in mine) else mine[0].how
    guessed = any(map(facts.guessed, mine))
    return (given, median(e.nbytes for e in mine), median(e.seconds for e in mine)), how, guessed


def _positive(value: object, what: str) -> None:
    try:
        good = 0 < float(value) < math.inf
    except (TypeError, ValueError):
        good = False
    if not good:
        raise MinillmError(f"wanted {what} above zero, found {value!r}; give a number")


def _finding(points: Sequence[Point]) -> str:
    """Which roof each meets, and how near it comes; of more than two, those that come nearest."""
    near = sorted(points, key=lambda p: -p.rate / p.roof)
    shown = points if len(points) <= 2 else near[:1]
    told = [f"{p.name}{' reaches' * (p is shown[0])} {percent(p.rate, p.roof)} "
            f"of the {p.bound} roof" for p in shown]  # fmt: skip
    if len(points) > 2:
        memory = sum(p.bound == "memory" for p in points)
        told.append(f"the highest of {len(points)}; {memory} meet the memory roof")
    finding = ", ".join(told)
    return finding[0].upper() + finding[1:]


def _note(trace: Trace | None, points: Sequence[Point]) -> str:
    """Where the numbers of these points come from: the trace may hold others."""
    words = ", ".join(dict.fromkeys(p.how for p in points))
    words += " time, predicted bytes" * any(p.guessed and p.how != "predicted" for p in points)
    words = [words, *(str(trace.meta[k]) for k in facts.WHO if trace and trace.meta.get(k))]
    if any(p.rate > 1.02 * p.roof for p in points):
        words.append("above a roof: the bytes came from a cache, or the ceiling is set too low")
    return " · ".join(words)


def _said(point: Point) -> str:
    """'3.2 GFLOP/s, 7 % of its roof'; what is not measured says so."""
    said = f"{amount(point.rate, 'FLOP/s')}, {percent(point.rate, point.roof)} of its roof"
    return said + ("" if point.how == "measured" else f" ({point.how})")


def _axes(ax: Axes, points: Sequence[Point], bandwidth: float, peak_flops: float) -> None:
    """Log axes that hold all points and the ridge, with room for a name above each roof."""
    ridge = peak_flops / bandwidth
    xs = [ridge, *(p.intensity for p in points)]
    low, high = min(xs) / 4, max(xs) * 4
    low, high = min(low, ridge / (high / ridge) ** 0.7), max(high, ridge * (ridge / low) ** 0.7)
    ys = [bandwidth * low, peak_flops, *(p.rate for p in points)]
    room = max(2.0, (max(ys) / min(ys)) ** 0.08)
    quiet(ax, "")
    log_axis(ax.xaxis, low, high, lambda x: f"{x:,.6g}")
    log_axis(ax.yaxis, min(ys) / room, max(ys) * 2 * room, lambda y: amount(y, "FLOP/s"))
    name_axes(ax, "arithmetic intensity (FLOP per byte)", "speed", log="xy")


def _roofs(ax: Axes, bandwidth: float, peak_flops: float) -> None:
    """Both roofs, hatched above; their names stand left and right of the ridge where they meet."""
    (low, high), (bottom, top) = ax.get_xlim(), ax.get_ylim()
    ridge = peak_flops / bandwidth
    xs, ys = (low, ridge, high), (bandwidth * low, peak_flops, peak_flops)
    ax.fill_between(xs, ys, [top] * 3, **BEYOND)
    ax.plot(xs[:2], ys[:2], color=INK["hbm"].colour, linewidth=2, zorder=1)
    ax.plot(xs[1:], ys[1:], color=INK["compute"].colour, linewidth=2, zorder=1)
    ax.plot((ridge, ridge), (bottom, peak_flops), ":", color=FAINT, linewidth=1, zorder=0)
    names = [(peak_flops, (-8, 5), "right", f"memory roof {amount(bandwidth, 'B/s')}"),
             (peak_flops, (8, 5), "left", f"compute roof {amount(peak_flops, 'FLOP/s')}"),
             (bottom, (5, 4), "left", f"ridge {ridge:.3g} FLOP/byte")]  # fmt: skip
    for y, shift, side, name in names:
        ax.annotate(name, (ridge, y), shift, textcoords="offset points", size=8, ha=side,
                    color=TEXT if y == peak_flops else FAINT,
                    bbox={"facecolor": PAPER, "linewidth": 0, "pad": 1})  # fmt: skip


def _mark(ax: Axes, point: Point) -> None:
    """The mark, dotted up to its roof; a prediction is open, what is emulated square."""
    grey = INK["prediction"].colour
    open_ = {"markerfacecolor": PAPER, "markeredgecolor": grey, "markeredgewidth": 1.6}
    style = open_ if point.how == "predicted" else {"color": TEXT}
    ax.plot((point.intensity,) * 2, (point.rate, point.roof), ":", color=TEXT, linewidth=1)
    mark = "s" if point.how == "emulated" else "o"
    ax.plot(point.intensity, point.rate, mark, markersize=7, zorder=3, **style)
