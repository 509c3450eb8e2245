"""The timeline: which resource was busy when, from the first weight to the last word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes

from minillm.charts import facts, loading, timeline_rows
from minillm.charts.facts import Window
from minillm.charts.ink import RULE, TEXT, WIDTH, amount, percent
from minillm.charts.loading import Overlap
from minillm.charts.style import BOTTOM, TOP, Chart, panels
from minillm.trace import Trace, bare

LEFT, ROW = 0.74, 0.56  # inches: the names of the rows, a row of one lane


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
        both = loading.overlap(load.events)
        panel = View("the load; white is waiting", load, 1.0)
        return _draw(trace, _load_finding(load, both), [panel], _beside(load, both))
    whole = facts.request(trace)
    tokens = {token: facts.own(token, piece) for token, piece in facts.tokens(whole).items()}
    first, each = tokens[min(tokens)].stop - whole.start, facts.gap(tokens)
    finding = f"The first token comes after {amount(first, 's')}"
    finding += "" if each is None else f", each later one takes {amount(each, 's')}"
    views = [View(loading.panel_title(trace), load, 1.3)] if load else []
    views.append(View("one request", whole, 1.75))
    close = facts.typical(tokens)
    if close:
        views.append(View(f"▼ token {close}, enlarged", tokens[close], 1.6, inner=True))
    chart = _draw(trace, finding, views, {})
    if close:
        _point_at(chart.axes[-2], tokens[close], whole)
    return chart


def _draw(trace: Trace, finding: str, views: Sequence[View], more: dict[str, str]) -> Chart:
    """Panels side by side, with the names of the rows. more: by row, what its words may add."""
    rows = timeline_rows.find_rows([view.window for view in views])
    high = TOP + BOTTOM + ROW * (rows[-1].top + rows[-1].high)
    chart = Chart(finding, note=facts.provenance(trace), size=(WIDTH, high))
    axes = panels(chart, [view.width for view in views], LEFT)[0]
    timeline_rows.name_rows(axes[0], rows)
    for ax, view in zip(axes, views, strict=True):
        timeline_rows.draw_rows(ax, view.title, view.window, rows, view.inner, more)
    chart.alt = f"Timeline by resource. {finding}. {_in_words(views, rows)}"
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
    many = len(timeline_rows.at_once([e for e in load.events if bare(e.resource) == "ssd"]))
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


def _in_words(views: Sequence[View], rows: Sequence[timeline_rows.Row]) -> str:
    said = []
    for title, window, *_ in views:
        top = timeline_rows.not_inside(window.events)
        busy = {row.name: timeline_rows.told(row.busiest(top))[0] for row in rows}
        words = "; ".join(f"{row} {did}" for row, did in busy.items() if did).replace("\n", " of ")
        said.append(f"{title} ({amount(window.seconds, 's')}): {words}.")
    return " ".join(said)
