"""The timeline: which resource was busy when, from the first weight to the last word."""

from __future__ import annotations

from matplotlib.axes import Axes

from minillm.charts import facts
from minillm.charts.facts import Window
from minillm.charts.show import Chart
from minillm.charts.style import (
    INK,
    PAPER,
    RULE,
    TEXT,
    WIDTH,
    name_row,
    new_figure,
    panels,
    seconds,
    time_axis,
)  # fmt: skip
from minillm.errors import format_size
from minillm.trace import Event, Trace

ROWS = {"ssd": "SSD", "copy": "copies", "cpu": "CPU", "compute": "compute", "network": "network"}


def timeline(trace: Trace, request: int | None = None) -> Chart:
    """The load, one request (by default the last), and one of its tokens enlarged.

    Each has its own time axis: a load is long, a token short, and the reader pauses in between.
    Rows are resources; a block is a piece of work or a copy, the words above it their sum.
    Raises MinillmError if the trace holds no request.
    """
    whole = facts.request(trace, request)
    pieces = facts.tokens(whole)
    close = facts.typical(pieces)
    views = [("weights in, once", facts.load(trace)), ("one request", whole)]
    if close:
        zoom = whole.seconds / pieces[close].seconds
        views.append((f"▼ token {close}, enlarged {zoom:.0f} ×", pieces[close]))
    views = [(title, window) for title, window in views if window]
    rows = [r for r in ROWS if any(e.resource == r for _, w in views for e in w.events)]
    finding = _finding(pieces)
    figure = new_figure(finding, facts.provenance(trace))
    widths = [1.3, 1.75, 1.6] if views[0][1] is not whole else [1.75, 1.6]
    axes = panels(figure, widths[: len(views)], left=0.74)[0]
    for ax, (title, window) in zip(axes, views, strict=True):
        _draw_rows(ax, title, window, rows, inner=title.startswith("▼"))
    for y, row in enumerate(rows):
        name_row(axes[0], y + 0.65, ROWS[row])
    if close:
        _point_at(axes[-2], pieces[close], whole)
    return Chart(figure, finding, f"Timeline by resource. {finding}. {_in_words(views, rows)}")


def _finding(pieces: dict[int, Window]) -> str:
    first, gap = seconds(pieces[min(pieces)].seconds), facts.gap(pieces)
    if gap is None:
        return f"The first token comes after {first}"
    return f"The first token comes after {first}, then one every {seconds(gap)}"


def _draw_rows(ax: Axes, title: str, window: Window, rows: list[str], inner: bool) -> None:
    """One row a resource; with `inner`, what runs inside a block is drawn in it."""
    scale = time_axis(ax, title, 0, window.seconds)
    ax.set_ylim(len(rows), 0)
    for y, row in enumerate(rows):
        ax.axhline(y + 0.92, color=RULE, linewidth=0.6, zorder=0)
        events = [e for e in window.events if e.resource == row]
        top = facts.outermost(events)
        nested = [e for e in events if e not in top] if inner else []
        _blocks(ax, window, scale, top, y, alpha=0.3 if nested else 1)
        _blocks(ax, window, scale, nested, y)
        words = _fitting(_told(nested or top), ax.get_position().width * WIDTH)
        ax.text(0, y + 0.36, words, size=7.5, color=TEXT, va="bottom")


def _blocks(
    ax: Axes, window: Window, scale: float, events: list[Event], y: float, alpha: float = 1
) -> None:
    """A block for each event, at least a hairline wide, in the ink of its meaning."""
    hairline = 0.004 * window.seconds
    for meaning in dict.fromkeys(map(facts.meaning, events)):
        mine = [e for e in events if facts.meaning(e) == meaning]
        spans = [((e.start - window.start) / scale, max(e.seconds, hairline) / scale) for e in mine]
        wide = sum(e.seconds for e in mine) / len(mine) > 4 * hairline
        bars = ax.broken_barh(spans, (y + 0.42, 0.46), facecolor=INK[meaning].colour, alpha=alpha)
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
        return [f"{moved} → {events[0].target.upper()} {total}"]
    if set(groups) == {"attention", "ffn"}:
        return [f"attention ■ {seconds(busy['attention'])}, ffn ▨ {seconds(busy['ffn'])}"]
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
    room = (inches + 0.05) * 72 / 3.85  # points, over the mean width of a letter
    return next((words for words in wordings if len(words) <= room), wordings[-1])


def _point_at(ax: Axes, piece: Window, whole: Window) -> None:
    """Show where in the request the enlarged token lies."""
    left, right = (
        ax.get_xlim()[1] * (t - whole.start) / whole.seconds for t in (piece.start, piece.stop)
    )
    ax.axvspan(left, right, color=RULE, alpha=0.5, zorder=0, linewidth=0)
    ax.plot((left + right) / 2, 0.04, "v", color=TEXT, markersize=4, clip_on=False)


def _in_words(views: list[tuple[str, Window]], rows: list[str]) -> str:
    said = []
    for title, window in views:
        top = facts.outermost(window.events)
        busy = {ROWS[row]: _told([e for e in top if e.resource == row])[0] for row in rows}
        told = "; ".join(f"{row} {did}" for row, did in busy.items() if did)
        said.append(f"{title} ({seconds(window.seconds)}): {told}.")
    return " ".join(said)
