"""The still of a live view: what stays where no widget can be, as on a code host."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from minillm.charts.machine_view import machine
from minillm.charts.plots import memory
from minillm.charts.show import Chart, drawn, pack, stack
from minillm.charts.timeline import timeline
from minillm.errors import MinillmError
from minillm.trace import Trace

# view: the chart that says the same without moving
CHARTS: dict[str, Callable[[Trace], Chart]] = {
    "machine": machine, "timeline": timeline, "memory": memory,
}  # fmt: skip
DPI = 128  # a third more than a screen's points


@dataclass(frozen=True)
class Still:
    """One picture of several charts: PNG bytes, a finding in plain text, alt text and size."""

    png: bytes
    finding: str
    about: dict[str, str | int]


def still(trace: Trace, views: Sequence[str]) -> Still | None:
    """The charts of `views` one below the other; None if this trace can show none of them.

    >>> still(engine.trace, ["timeline"]).finding
    'The first token comes after 14.2 ms, each later one takes 2.4 ms'
    """
    charts = list(_possible(trace, [view for view in CHARTS if view in views]))
    if not charts:
        return None
    sheet = stack([drawn(chart, DPI) for chart in charts])
    size = {"width": round(sheet.width * 96 / DPI), "height": round(sheet.height * 96 / DPI)}
    alt = " ".join(chart.alt for chart in charts)
    return Still(pack(sheet), charts[0].finding, {"alt": alt, **size})


def _possible(trace: Trace, views: Sequence[str]) -> Iterator[Chart]:
    """A run without a request or a load has no timeline, one without counters no memory."""
    for view in views:
        try:
            yield CHARTS[view](trace)
        except MinillmError:
            pass
