"""Stills: what a field or a slider says where no kernel runs, as on a code host.

A still is a PNG on the charts' opaque paper, 7 inches wide.
"""

from __future__ import annotations

import io

from matplotlib.figure import Figure
from PIL import Image

from minillm.charts.show import pack
from minillm.charts.style import PAPER, TEXT, WIDTH

DPI = 192
SIZE = 9.0  # points


def lines(text: str) -> bytes:
    """Text as a picture, in columns as it stands."""
    rows = text.splitlines() or [""]
    high = 0.19 * len(rows) + 0.2
    figure = Figure(figsize=(WIDTH, high), dpi=DPI, facecolor=PAPER)
    size = min(SIZE, SIZE * 88 / max(1, *map(len, rows)))
    for row, said in enumerate(rows):
        figure.text(0.1, high - 0.1 - 0.19 * (row + 0.5), said, family="monospace", size=size,
                    color=TEXT, va="center_baseline", parse_math=False,
                    transform=figure.dpi_scale_trans)  # fmt: skip
    return drawn(figure)


def drawn(figure: Figure) -> bytes:
    """Any figure as a PNG."""
    raw = io.BytesIO()
    figure.savefig(raw, format="png", dpi=DPI, facecolor=PAPER)
    return pack(Image.open(raw))


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
