"""The still of a live view: what stays where no widget can be, as on a code host."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from minillm.charts.machine_view import ACROSS, Picture, machine
from minillm.errors import MinillmError
from minillm.trace import Trace

DPI = 128  # a third more than a screen's points


@dataclass(frozen=True)
class Still:
    """One picture of several charts: data by MIME type, a finding in plain text, alt and size.

    A machine alone is there as SVG, too.
    """

    data: dict[str, bytes | str]
    finding: str
    about: dict[str, str | int]


def still(trace: Trace, views: Sequence[str]) -> Still | None:
    """The charts of `views` one below the other; None if this trace can show none of them.

    >>> still(engine.trace, ["timeline"]).finding
    'The first token comes after 14.2 ms, each later one takes 2.4 ms'
    """
    from PIL import Image  # slow, as what draws the others is; a run must not wait for them

    from minillm.charts.show import drawn, pack, stack

    charts = list(_possible(trace, views))
    if not charts:
        return None
    pixels = [
        Image.open(io.BytesIO(chart.png(ACROSS * DPI // 96))).convert("RGB")
        if isinstance(chart, Picture) else drawn(chart, DPI) for chart in charts
    ]  # fmt: skip
    sheet = stack(pixels)
    size = {"width": round(sheet.width * 96 / DPI), "height": round(sheet.height * 96 / DPI)}
    alt = " ".join(chart.alt for chart in charts)
    data: dict[str, bytes | str] = {"image/png": pack(sheet)}
    if len(charts) == 1 and isinstance(charts[0], Picture):
        data["image/svg+xml"] = charts[0].svg
    return Still(data, charts[0].finding, {"alt": alt, **size})


def _possible(trace: Trace, views: Sequence[str]) -> Iterator:
    """A run without a request or a load has no timeline, one without counters no memory."""
    from minillm.charts.plots import memory
    from minillm.charts.timeline_still import timeline

    for view, chart in {"machine": machine, "timeline": timeline, "memory": memory}.items():
        if view in views:
            with suppress(MinillmError):
                yield chart(trace)
