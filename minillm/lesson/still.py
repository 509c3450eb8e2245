"""Stills: what a field or a slider says where no kernel runs, as on a code host.

A still is a PNG on the charts' opaque paper, 7 inches wide.
"""

from __future__ import annotations

from PIL import Image

from minillm.charts.ink import PAPER, TEXT, WIDTH
from minillm.charts.show import drawn

DPI = 192
SIZE = 9.0  # points


def lines(text: str) -> Image.Image:
    """Text as a picture, in columns as it stands."""
    from matplotlib.figure import Figure  # late: importing a lesson's helpers takes no drawing

    rows = text.splitlines() or [""]
    high = 0.19 * len(rows) + 0.2
    figure = Figure(figsize=(WIDTH, high), dpi=DPI, facecolor=PAPER)
    size = min(SIZE, SIZE * 88 / max(1, *map(len, rows)))
    for row, said in enumerate(rows):
        figure.text(0.1, high - 0.1 - 0.19 * (row + 0.5), said, family="monospace", size=size,
                    color=TEXT, va="center_baseline", parse_math=False,
                    transform=figure.dpi_scale_trans)  # fmt: skip
    return drawn(figure)


def about(picture: Image.Image, alt: str) -> dict[str, dict]:
    """The metadata that goes with it into a notebook: its size on a page, its words."""
    wide, high = picture.size
    return {"image/png": {"alt": alt, "width": wide * 96 // DPI, "height": high * 96 // DPI}}
