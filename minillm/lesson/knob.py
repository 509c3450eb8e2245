"""knob: sliders over a drawing, so that a learner can turn what the drawing depends on.

A drawing takes time, and a dragged slider says thirty values a second. Only the newest counts, and
it is drawn when the hand rests for a moment: else the last value would wait for the drawing of the
one before it.
"""

from __future__ import annotations

import base64
import html
import inspect
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ipywidgets

from minillm.charts.ink import PAPER
from minillm.charts.show import drawn, pack, stack
from minillm.errors import ConfigError
from minillm.lesson import still
from minillm.lesson.on_main import on_main
from minillm.lesson.page import card, paragraph

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDE = 100  # a slider whose high is so many times its low, and has no step, takes powers of two
REST_SECONDS = 0.03
DPI = 144  # of the picture that changes; packing it as tightly as a still takes longer than drawing


class Knob:
    """Sliders and what `draw` made of their values; a notebook shows both.

    sliders: name to widget. values: name to value. result: what is shown, be it a chart or text;
    the text of the error if `draw` raised one.

    >>> turned = knob(draw, batch=(1, 64))
    >>> turned.sliders["batch"].value = 8
    >>> turned.result.finding
    """

    def __init__(self, draw: Callable, spans: dict[str, Any]):
        self.result: Any = None
        self._draw = draw
        named, wide = inspect.signature(draw).parameters, f"{0.6 * max(map(len, spans)) + 1:.0f}em"
        starts = {n: named[n].default for n in spans if named[n].default is not named[n].empty}
        self.sliders = {n: _slider(n, span, starts.get(n), wide) for n, span in spans.items()}
        self._picture = ipywidgets.HTML()
        self._box = ipywidgets.VBox([*self.sliders.values(), self._picture])
        turned = on_main(self._redraw, rest=REST_SECONDS)
        for slider in self.sliders.values():
            slider.observe(turned, "value")
        self._redraw()

    @property
    def values(self) -> dict[str, Any]:
        return {name: slider.value for name, slider in self.sliders.items()}

    def _redraw(self, change: Any = None) -> None:
        try:
            self.result = self._draw(**self.values)
            shown = _as_html(self.result)
        except Exception as error:  # the sliders must live: the next value may be a good one
            self.result = f"{type(error).__name__}: {error} (at {_said(self.values)})"
            shown = card(paragraph(html.escape(self.result)))
        self._picture.value = shown

    def __repr__(self) -> str:
        shown = getattr(self.result, "finding", None) or str(self.result)
        return f"{_said(self.values)}\n{shown}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict, dict]:
        figure = _figure(self.result)
        picture = still.lines(str(self.result)) if figure is None else drawn(figure)
        stand = f"Sliders at {_said(self.values)}"
        picture = stack([still.lines(stand), picture])
        said = {"image/png": pack(picture), "text/plain": repr(self)}
        words = f"{stand}. {getattr(self.result, 'alt', self.result)}"
        return {**(self._box._repr_mimebundle_() or {}), **said}, still.about(picture, words)


def knob(draw: Callable, **spans: Any) -> Knob:
    """Sliders, named after parameters of `draw`, over what `draw(**values)` returns.

    A span is (low, high) or (low, high, step), or a list of values. Whole numbers far apart go in
    powers of two, if there is no step. A slider starts at the default that `draw` has for it, else
    in the middle. `draw` returns a chart, any figure, or text. As the last line of a cell it shows
    itself. ConfigError for a span that is none of these, and a name that is no parameter.

    >>> def draw(batch, context=1024): ...
    >>> knob(draw, batch=(1, 1024), context=(128, 8192, 128))  # starts at batch 32, context 1024
    """
    try:
        return Knob(draw, spans)
    except Exception as error:  # what `draw` itself raises is shown in its place
        raise ConfigError(f"wanted parameters of draw, each as (low, high), (low, high, step) or "
                          f"a list of values; found {spans}; write one of these") from error


def _slider(name: str, span: tuple | list, start: Any, wide: str) -> ipywidgets.Widget:
    look = {"description": name.replace("_", " "), "style": {"description_width": wide},
            "layout": ipywidgets.Layout(width="34em", max_width="100%")}  # fmt: skip
    span = _doublings(span) or span
    if isinstance(span, list):
        start = start if start in span else span[(len(span) - 1) // 2]
        options = [(_number(value), value) for value in span]
        return ipywidgets.SelectionSlider(options=options, value=start, **look)
    low, high, *steps = span
    whole = all(isinstance(number, int) for number in span)
    step = steps[0] if steps else 1 if whole else (high - low) / 100
    middle = low + round((high - low) / 2 / step) * step
    start = middle if start is None else min(max(start, low), high)
    make, form = (ipywidgets.IntSlider, ",d") if whole else (ipywidgets.FloatSlider, ".3g")
    return make(value=start, min=low, max=high, step=step, readout_format=form, **look)


def _doublings(span: tuple | list) -> list[int]:
    """The powers of two of a wide span of whole numbers without a step; empty for another span."""
    low, high = (span[0], span[1]) if isinstance(span, tuple) and len(span) == 2 else (0, 0)
    if not isinstance(high, int) or low < 1 or high < WIDE * low:
        return []
    return [2**n for n in range(high.bit_length()) if low <= 2**n <= high]


def _said(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} = {_number(value)}" for name, value in values.items())


def _number(value: Any) -> str:
    form = "," if isinstance(value, int) else ".4g" if isinstance(value, float) else ""
    return format(value, form) if form else str(value)


def _figure(result: Any) -> Figure | None:
    """The figure of a chart, of a figure, of axes; None of anything else."""
    figure = getattr(result, "figure", None)
    return figure if hasattr(figure, "savefig") else None


def _as_html(result: Any) -> str:
    """A chart as an image of its size, anything else as text: a table in its columns."""
    figure = _figure(result)
    if figure is not None:
        raw = io.BytesIO()
        figure.savefig(raw, format="png", dpi=DPI, facecolor=PAPER,
                       pil_kwargs={"compress_level": 1})  # fmt: skip
        wide, high = (round(96 * inches) for inches in figure.get_size_inches())
        alt = html.escape(getattr(result, "alt", "") or "")
        data = base64.b64encode(raw.getvalue()).decode("ascii")
        return (f'<img src="data:image/png;base64,{data}" alt="{alt}" width="{wide}" '
                f'height="{high}" decoding="sync" style="max-width:100%;height:auto">')  # fmt: skip
    return f'<pre style="margin:6px 0">{html.escape(str(result))}</pre>'
