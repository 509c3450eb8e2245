"""The timeline: which resource was busy when, from the first weight to the last word."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from minillm.charts import facts
from minillm.charts.facts import Window
from minillm.charts.show import Chart
from minillm.charts.style import (
    BOTTOM,
    HEIGHT,
    INK,
    PAPER,
    RULE,
    TEXT,
    TOP,
    WIDTH,
    name_row,
    panels,
    seconds,
    time_axis,
    width_of,
)  # fmt: skip
from minillm.errors import format_size
from minillm.trace import Event, Trace

ROWS = {"ssd": "SSD", "copy": "copies", "cpu": "CPU", "compute": "compute", "network": "network"}


@dataclass(frozen=True)
class Row:
    """One kind of resource: a lane for each rank of it. Heights count rows of one lane as 1."""

    resource: str
    lanes: tuple[str, ...]  # 'compute', 'compute:1', …
    top: float

    @property
    def high(self) -> float:
        return 1.0 if len(self.lanes) == 1 else 0.54 + 0.2 * len(self.lanes)

    @property
    def name(self) -> str:
        return ROWS[self.resource] + (f"\n{len(self.lanes)} ranks" if len(self.lanes) > 1 else "")

    def strip(self, lane: str) -> tuple[float, float]:
        """Where the blocks of a lane stand: upper edge and height."""
        if len(self.lanes) == 1:
            return self.top + 0.42, 0.46
        return self.top + 0.42 + 0.2 * self.lanes.index(lane), 0.17

    def busiest(self, events: Sequence[Event]) -> list[Event]:
        """The events of the lane that has most to do: what the row's words tell of."""
        mine = [[e for e in events if e.resource == lane] for lane in self.lanes]
        return max(mine, key=lambda lane: sum(e.seconds for e in lane))


def timeline(trace: Trace, request: int | None = None) -> Chart:
    """The load, one request (by default the last), and one of its tokens enlarged.

    Each has its own time axis: a load is long, a token short, and the reader pauses in between.
    Rows are resources; a block is a piece of work or a copy, the words above it their sum. Of
    several ranks each has its own lane, and the words are those of the busiest.
    Raises MinillmError if the trace holds no request.
    """
    whole = facts.request(trace, request)
    pieces = facts.tokens(whole)
    close = facts.typical(pieces)
    views = [("weights in, once", facts.load(trace)), ("one request", whole)]
    if close:
        zoom = whole.seconds / (pieces[close].seconds or math.inf)
        said = f" {zoom:,.0f} ×" if zoom < 99_999 else ""
        views.append((f"▼ token {close}, enlarged{said}", pieces[close]))
    views = [(title, window) for title, window in views if window]
    rows = _rows([window for _, window in views])
    high = max(HEIGHT, TOP + BOTTOM + 0.45 * (rows[-1].top + rows[-1].high))
    finding = _finding(pieces)
    chart = Chart(finding, note=facts.provenance(trace), size=(WIDTH, high))
    widths = [1.3, 1.75, 1.6] if views[0][1] is not whole else [1.75, 1.6]
    axes = panels(chart, widths[: len(views)], left=0.74)[0]
    for ax, (title, window) in zip(axes, views, strict=True):
        _draw_rows(ax, title, window, rows, inner=title.startswith("▼"))
    for row in rows:
        middle = 0.65 if len(row.lanes) == 1 else (0.42 + row.high) / 2
        name_row(axes[0], row.top + middle, row.name)
    if close:
        _point_at(axes[-2], pieces[close], whole)
    chart.alt = f"Timeline by resource. {finding}. {_in_words(views, rows)}"
    return chart


def _rows(windows: Sequence[Window]) -> list[Row]:
    """A row for each kind of resource at work, from the top down."""
    found = {e.resource for window in windows for e in window.events}
    rows: list[Row] = []
    for resource in ROWS:
        lanes = sorted((r for r in found if facts.bare(r) == resource), key=facts.rank_of)
        if lanes:
            rows.append(Row(resource, tuple(lanes), rows[-1].top + rows[-1].high if rows else 0.0))
    return rows


def _finding(pieces: dict[int, Window]) -> str:
    first, gap = seconds(pieces[min(pieces)].seconds), facts.gap(pieces)
    if gap is None:
        return f"The first token comes after {first}"
    return f"The first token comes after {first}, then one every {seconds(gap)}"


def _draw_rows(ax: Axes, title: str, window: Window, rows: list[Row], inner: bool) -> None:
    """Blocks lane by lane; with `inner`, what runs inside a block is drawn in it."""
    scale = time_axis(ax, title, 0, window.seconds)
    ax.set_ylim(rows[-1].top + rows[-1].high, 0)
    for row in rows:
        ax.axhline(row.top + row.high - 0.08, color=RULE, linewidth=0.6, zorder=0)
        mine = [e for e in window.events if e.resource in row.lanes]
        top = facts.outermost(mine)
        outer = set(map(id, top))
        nested = [e for e in mine if id(e) not in outer] if inner else []
        for lane in row.lanes:
            strip = row.strip(lane)
            above, below = ([e for e in some if e.resource == lane] for some in (top, nested))
            _blocks(ax, window, scale, above, strip, alpha=0.3 if below else 1)
            _blocks(ax, window, scale, below, strip)
        words = _told(row.busiest(nested or top))
        words = words if len(row.lanes) == 1 else [f"busiest {said}" * bool(said) for said in words]
        words = _fitting(words, ax.get_position().width * WIDTH)
        ax.text(0, row.top + 0.36, words, size=7.5, color=TEXT, va="bottom", parse_math=False)


def _blocks(
    ax: Axes, window: Window, scale: float, events: list[Event], strip: tuple[float, float],
    alpha: float = 1,
) -> None:  # fmt: skip
    """A block for each event, at least a hairline wide, in the ink of its meaning."""
    # Many short events would, at a hairline each, look like one long one.
    hairline = min(0.004, 0.4 / max(len(events), 1)) * window.seconds
    for meaning in dict.fromkeys(map(facts.meaning, events)):
        mine = [e for e in events if facts.meaning(e) == meaning]
        spans = [((e.start - window.start) / scale, max(e.seconds, hairline) / scale) for e in mine]
        wide = sum(e.seconds for e in mine) / len(mine) > 4 * hairline
        bars = ax.broken_barh(spans, strip, facecolor=INK[meaning].colour, alpha=alpha)
        bars.set(edgecolor=PAPER, linewidth=0.4 if wide else 0)
        bars.set(hatch=INK[meaning].hatch if wide and alpha == 1 else "")


def _told(events: list[Event]) -> list[str]:
    """What a row did, from the fullest wording to the shortest; all of them end in the same sum.

    'prefill 31 ms, 23 × decode step 48.3 ms'; '15.0 MiB → HBM 1.75 ms'; 'sample, … 3.06 ms'.
    """
    if not events:
        return [""]
    groups: dict[str, list[Event]] = {}
    for event in events:
        groups.setdefault(facts.name_of(event), []).append(event)
    busy = {name: sum(e.seconds for e in group) for name, group in groups.items()}
    total = seconds(sum(busy.values()))
    if len(groups) == 1 and events[0].kind == "transfer":
        moved = format_size(sum(e.nbytes for e in events))
        return [f"{moved} → {facts.bare(events[0].target).upper()} {total}"]
    if set(groups) == {"attention", "ffn"}:
        longest = f"attention ■ {seconds(busy['attention'])}, ffn ▨ {seconds(busy['ffn'])}"
        return [longest, longest.replace("attention ", "").replace("ffn ", "")]
    times = {name: f"{len(group)} × " if len(group) > 1 else "" for name, group in groups.items()}
    each = ", ".join(f"{times[name]}{name} {seconds(spent)}" for name, spent in busy.items())
    longest = sorted(busy, key=lambda name: -busy[name])
    shorter = [
        ", ".join([name for name in groups if name in longest[:n]] + ["…"] * (n < len(groups)))
        for n in range(len(groups), 0, -1)
    ]
    return [each, *(f"{names} {total}" for names in shorter), total]


def _fitting(wordings: list[str], inches: float) -> str:
    """The fullest wording that fits a row of this width, at 7.5 points."""
    fits = (words for words in wordings if width_of(words, 7.5) <= inches + 0.05)
    return next(fits, wordings[-1])


def _point_at(ax: Axes, piece: Window, whole: Window) -> None:
    """Show where in the request the enlarged token lies."""
    left, right = (
        ax.get_xlim()[1] * (t - whole.start) / whole.seconds for t in (piece.start, piece.stop)
    )
    ax.axvspan(left, right, color=RULE, alpha=0.5, zorder=0, linewidth=0)
    ax.plot((left + right) / 2, 0.04, "v", color=TEXT, markersize=4, clip_on=False)


def _in_words(views: list[tuple[str, Window]], rows: list[Row]) -> str:
    said = []
    for title, window in views:
        top = facts.outermost(window.events)
        busy = {row.name.replace("\n", " of "): _told(row.busiest(top))[0] for row in rows}
        told = "; ".join(f"{row} {did}" for row, did in busy.items() if did)
        said.append(f"{title} ({seconds(window.seconds)}): {told}.")
    return " ".join(said)
