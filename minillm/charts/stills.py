"""The still of a live view: what stays where no widget can be, as on a code host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minillm import charts
from minillm.charts.show import drawn, pack, stack
from minillm.errors import MinillmError
from minillm.trace import Trace

if TYPE_CHECKING:
    from minillm.charts.style import Chart

CHARTS = ("machine", "timeline", "memory")  # of charts: each says the same without moving
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
    drawings = list(_possible(trace, [view for view in CHARTS if view in views]))
    if not drawings:
        return None
    sheet = stack([drawn(chart, DPI) for chart in drawings])
    size = {"width": round(sheet.width * 96 / DPI), "height": round(sheet.height * 96 / DPI)}
    alt = " ".join(chart.alt for chart in drawings)
    return Still(pack(sheet), drawings[0].finding, {"alt": alt, **size})


def _possible(trace: Trace, views: Sequence[str]) -> Iterator[Chart]:
    """A run without a request or a load has no timeline, one without counters no memory."""
    for view in views:
        try:
            yield getattr(charts, view)(trace)
        except MinillmError:
            pass
