"""Stills: what a field or a slider looks like where no kernel runs, as on a code host.

Each function returns a PNG on the charts' opaque paper, 7 inches wide.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch
from PIL import Image

from minillm.charts.show import pack
from minillm.charts.style import FAINT, PAPER, RULE, TEXT, WIDTH, width_of

DPI = 192
ROW = 0.3  # inches: the height of a slider, and of a line of text
SIZE = 9.0  # points


def field(quantity: str, written: str, unit: str, filled: bool) -> bytes:
    """A question, a box with what was written, and the unit."""
    figure, x = _sheet(0.42), 0.1
    x += _put(figure, x, quantity) + 0.12
    wide = max(1.1, 0.085 * len(written) + 0.3)
    box = FancyBboxPatch(
        (x, 0.08), wide, 0.26, boxstyle="round,pad=0,rounding_size=0.04", facecolor=PAPER,
        edgecolor=FAINT, linewidth=0.8, transform=figure.dpi_scale_trans,
    )  # fmt: skip
    figure.add_artist(box)
    _put(figure, x + 0.1, written, TEXT if filled else FAINT)
    _put(figure, x + wide + 0.1, unit, FAINT)
    return _png(figure)


def sliders(knobs: Sequence[tuple[str, float, str]]) -> bytes:
    """One line for each (name, place of the handle from 0 to 1, value as text)."""
    high = ROW * len(knobs) + 0.1
    figure = _sheet(high)
    name = max((width_of(name, SIZE) for name, _, _ in knobs), default=0.0)
    left, right = 0.1 + name + 0.15, 4.2
    for row, (label, place, value) in enumerate(knobs):
        y = high - 0.05 - ROW * (row + 0.5)
        _put(figure, 0.1, label, y=y)
        handle = left + place * (right - left)
        _line(figure, (left, right), y, color=RULE, linewidth=2.5)
        _line(figure, (left, handle), y, color=FAINT, linewidth=2.5)
        _line(figure, (handle, handle), y, marker="o", markersize=8, markerfacecolor=PAPER,
              markeredgecolor=FAINT)  # fmt: skip
        _put(figure, right + 0.15, value, y=y)
    return _png(figure)


def lines(text: str) -> bytes:
    """Text as a picture, in columns as it stands."""
    rows = text.splitlines() or [""]
    high = 0.19 * len(rows) + 0.2
    figure = _sheet(high)
    for row, said in enumerate(rows):
        y = high - 0.1 - 0.19 * (row + 0.5)
        size = min(SIZE, SIZE * 88 / max(1, *map(len, rows)))
        _put(figure, 0.1, said, y=y, family="monospace", size=size)
    return _png(figure)


def stack(*pictures: bytes) -> bytes:
    """PNGs one below the other."""
    images = [Image.open(io.BytesIO(picture)).convert("RGB") for picture in pictures]
    size = max(image.width for image in images), sum(image.height for image in images)
    sheet, top = Image.new("RGB", size, PAPER), 0
    for image in images:
        sheet.paste(image, (0, top))
        top += image.height
    return pack(sheet)


def about(picture: bytes, alt: str) -> dict[str, dict]:
    """The metadata that goes with it into a notebook: its size on a page, its words."""
    wide, high = Image.open(io.BytesIO(picture)).size
    return {"image/png": {"alt": alt, "width": wide * 96 // DPI, "height": high * 96 // DPI}}


def _sheet(high: float) -> Figure:
    return Figure(figsize=(WIDTH, high), dpi=DPI, facecolor=PAPER)


def _put(figure: Figure, x: float, said: str, colour: str = TEXT, y: float | None = None,
         **font: object) -> float:  # fmt: skip
    """Write at x, y inches, by default at half height; returns the width in inches."""
    y = figure.get_figheight() / 2 if y is None else y
    look = {"size": SIZE, **font}
    figure.text(x, y, said, color=colour, va="center_baseline", parse_math=False,
                transform=figure.dpi_scale_trans, **look)  # fmt: skip
    return width_of(said, SIZE)


def _line(figure: Figure, x: tuple[float, float], y: float, **look: object) -> None:
    figure.add_artist(Line2D(x, (y, y), transform=figure.dpi_scale_trans, **look))


def _png(figure: Figure) -> bytes:
    raw = io.BytesIO()
    figure.savefig(raw, format="png", dpi=DPI, facecolor=PAPER)
    return pack(Image.open(raw))
