"""The still of a live view: what stays where no widget can be, as on a code host."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from minillm.charts.machine_view import machine
from minillm.charts.plots import memory
from minillm.charts.show import Chart
from minillm.charts.style import PAPER
from minillm.charts.timeline import timeline
from minillm.errors import MinillmError
from minillm.trace import Trace

# view: the chart that says the same without moving
CHARTS: dict[str, Callable[[Trace], Chart]] = {
    "machine": machine, "timeline": timeline, "memory": memory,
}  # fmt: skip
DPI = 128  # a third more than a screen's points
SMALL = 60_000  # bytes: as few colours as it takes, so that notebooks stay small


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
    pictures = [_picture(chart) for chart in charts]
    wide, high = max(p.width for p in pictures), sum(p.height for p in pictures)
    sheet, top = Image.new("RGB", (wide, high), PAPER), 0
    for picture in pictures:
        sheet.paste(picture, (0, top))
        top += picture.height
    size = {"width": round(wide * 96 / DPI), "height": round(high * 96 / DPI)}
    alt = " ".join(chart.alt for chart in charts)
    return Still(_packed(sheet), charts[0].finding, {"alt": alt, **size})


def _picture(chart: Chart) -> Image.Image:
    raw = io.BytesIO()
    chart.savefig(raw, format="png", dpi=DPI, facecolor=PAPER)
    return Image.open(raw).convert("RGB")


def _packed(sheet: Image.Image) -> bytes:
    for colours in (96, 64, 32):
        packed = io.BytesIO()
        few = sheet.quantize(colours, dither=Image.Dither.NONE)
        few.save(packed, format="png", optimize=True)
        if packed.tell() <= SMALL:
            break
    return packed.getvalue()


def _possible(trace: Trace, views: Sequence[str]) -> Iterator[Chart]:
    """A run without a request or a load has no timeline, one without counters no memory."""
    for view in views:
        try:
            yield CHARTS[view](trace)
        except MinillmError:
            pass
