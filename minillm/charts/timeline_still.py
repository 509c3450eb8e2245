"""The timeline: which resource was busy when, from the first weight to the last word."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes

from minillm.charts import facts, loading
from minillm.charts.facts import Window
from minillm.charts.ink import HEIGHT, RULE, TEXT, WIDTH, amount, percent
from minillm.charts.loading import Overlap
from minillm.charts.style import BOTTOM, TOP, Chart, panels
from minillm.charts.timeline_rows import (
    Row,
    at_once,
    draw_rows,
    find_rows,
    name_rows,
    not_inside,
    told,
)
from minillm.trace import Trace, bare

LEFT = 0.74  # inches: the names of the rows
PAUSED = 0.3  # of a request: if more than this passed between its tokens, its panel says so


class View(NamedTuple):
    """A panel: its title, what it shows, and how wide it is beside the others."""

    title: str
    window: Window
    width: float
    inner: bool = False


def timeline(trace: Trace) -> Chart:
    """The load, the last request, and one of its tokens enlarged; or a load alone.

    Each has its own time axis: a load is long, a token short, and the reader pauses in between.
    Rows are resources; a block is a piece of work or a copy, the words above it their sum. What
    several threads do at one time stands one below the other. Of several ranks each has its own
    lane, and the words are those of the busiest.
    Raises MinillmError if the trace holds neither a request nor a load.

    >>> timeline(engine.trace).finding
    'The first token comes after 14.2 ms, each later one takes 2.4 ms'
    """
    load = loading.load(trace)
    if load and not facts.asked(trace):
        return _of_load(trace, load)
    whole = facts.request(trace)
    tokens = {token: facts.own(token, piece) for token, piece in facts.tokens(whole).items()}
    close = facts.typical(tokens)
    views = [View(loading.panel_title(trace), load, 1.3)] if load else []
    views.append(View(_request_title(whole, tokens), whole, 1.75))
    if close:
        zoom = whole.seconds / (tokens[close].seconds or math.inf)
        said = f" {zoom:,.0f} ×" if zoom < 99_999 else ""
        views.append(View(f"▼ token {close}, enlarged{said}", tokens[close], 1.6, inner=True))
    rows = find_rows([view.window for view in views])
    chart, axes = _sheet(trace, _finding(whole, tokens), views, rows)
    for ax, view in zip(axes, views, strict=True):
        draw_rows(ax, view.title, view.window, rows, view.inner)
    if close:
        _point_at(axes[-2], tokens[close], whole)
    chart.alt = f"Timeline by resource. {chart.finding}. {_in_words(views, rows)}"
    return chart


def _sheet(
    trace: Trace, finding: str, views: Sequence[View], rows: Sequence[Row], row: float = 0.45,
    least: float = HEIGHT,
) -> tuple[Chart, list[Axes]]:  # fmt: skip
    """A chart with its panels side by side and the names of the rows. row, least: inches high."""
    high = max(least, TOP + BOTTOM + row * (rows[-1].top + rows[-1].high))
    chart = Chart(finding, note=facts.provenance(trace), size=(WIDTH, high))
    axes = panels(chart, [view.width for view in views], LEFT)[0]
    name_rows(axes[0], rows)
    return chart, axes


def _finding(whole: Window, tokens: dict[int, Window]) -> str:
    first, each = tokens[min(tokens)].stop - whole.start, facts.gap(tokens)
    said = f"The first token comes after {amount(first, 's')}"
    return said if each is None else f"{said}, each later one takes {amount(each, 's')}"


def _request_title(whole: Window, tokens: dict[int, Window]) -> str:
    """Between its tokens the engine waits for the caller, who may print or sleep."""
    later = sum(window.seconds for token, window in tokens.items() if token != min(tokens))
    pauses = whole.stop - tokens[min(tokens)].stop - later
    return "one request, pauses and all" if pauses > PAUSED * whole.seconds else "one request"


def _of_load(trace: Trace, load: Window) -> Chart:
    """A load over the whole width, so that one sees whether both links are busy at one time."""
    view = View("the load (white is waiting)", load, 1.0)
    rows, both = find_rows([load]), loading.overlap(load.events)
    chart, (ax,) = _sheet(trace, _load_finding(load, both), [view], rows, row=0.6, least=0.0)
    draw_rows(ax, view.title, load, rows, more=_beside(load, both))
    words = _in_words([view._replace(title="the load")], rows)
    chart.alt = f"Timeline of a load. {chart.finding}. {words}"
    return chart


def _load_finding(load: Window, both: Overlap) -> str:
    """Whether the two links worked at one time, and how much of the time the busier one did."""
    moved, lasted = amount(both.nbytes, "B"), amount(load.seconds, "s")
    if both.cached:
        return f"{moved} came out of the page cache in {lasted}; the SSD was not asked"
    if not (both.ssd and both.copy):
        return f"{moved} of weights moved in {lasted}"
    if both.same:
        return f"{moved} came in within {lasted}, read and copied by the same calls"
    busier = "the SSD" if both.ssd >= both.copy else "copies"
    busy = f"{busier} busy {percent(max(both.ssd, both.copy), load.seconds)} of it"
    if both.share <= 0.2:
        return f"SSD and copies take turns: {lasted} in all, {busy}"
    part = " in part" if both.share < 0.8 else ""
    return f"SSD and copies overlap{part}: {lasted} in all, {busy}"


def _beside(load: Window, both: Overlap) -> dict[str, str]:
    """What the rows of a load add: reads at a time, and how much of the copies' time was hidden."""
    many = len(at_once([e for e in load.events if bare(e.resource) == "ssd"]))
    said = {"ssd": f", up to {many} reads at a time"} if many > 1 else {}
    if both.ssd and both.copy and not both.same:
        share = percent(both.both, both.copy)
        share = {"0 %": "none", "< 1 %": "none", "100 %": "all"}.get(share, share)
        said["copy"] = f", {share} of it while the SSD is busy"
    return said


def _point_at(ax: Axes, piece: Window, whole: Window) -> None:
    """Show where in the request the enlarged token lies."""
    left, right = (
        ax.get_xlim()[1] * (t - whole.start) / whole.seconds for t in (piece.start, piece.stop)
    )
    ax.axvspan(left, right, color=RULE, alpha=0.5, zorder=0, linewidth=0)
    ax.plot((left + right) / 2, 0.04, "v", color=TEXT, markersize=4, clip_on=False)


def _in_words(views: Sequence[View], rows: Sequence[Row]) -> str:
    said = []
    for title, window, *_ in views:
        top = not_inside(window.events)
        busy = {row.name.replace("\n", " of "): told(row.busiest(top))[0] for row in rows}
        words = "; ".join(f"{row} {did}" for row, did in busy.items() if did)
        said.append(f"{title} ({amount(window.seconds, 's')}): {words}.")
    return " ".join(said)
