"""What a picture or a table hands to a notebook. No drawing library is needed to import this."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from minillm.charts.ink import PAPER

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def drawn(figure: Figure, dpi: int = 192) -> Image.Image:
    """Any figure as pixels, on opaque paper."""
    raw = io.BytesIO()
    figure.savefig(raw, format="png", dpi=dpi, facecolor=PAPER)
    return Image.open(raw).convert("RGB")


def stack(images: Sequence[Image.Image]) -> Image.Image:
    """Pictures one below the other."""
    sheet = Image.new("RGB", (max(i.width for i in images), sum(i.height for i in images)), PAPER)
    top = 0
    for image in images:
        sheet.paste(image, (0, top))
        top += image.height
    return sheet


def pack(image: Image.Image) -> bytes:
    """A PNG of 64 colours, so that a notebook with six charts stays under 300 KB.

    By the colours farthest apart, which keeps the hue of a hairline: a median cut would lose it
    among the greys of letters, an octree a pale panel in the white of the paper.
    """
    few = image.quantize(64, method=Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    packed = io.BytesIO()
    few.save(packed, format="png", optimize=True)
    return packed.getvalue()


@dataclass(frozen=True)
class Table:
    """Rows of text under a header: an HTML table in a notebook, aligned columns in print.

    The first and the last column stand left, the figures between them right.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    finding: str

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        lines = [self._line(self.header, "th"), *(self._line(row, "td") for row in self.rows)]
        caption = f"<caption><b>{html.escape(self.finding)}</b></caption>"
        return {"text/html": f"<table>{caption}{''.join(lines)}</table>", "text/plain": str(self)}

    def _line(self, row: tuple[str, ...], tag: str) -> str:
        sides = ["left", *["right"] * (len(row) - 2), "left"]
        cells = (
            f'<{tag} align="{side}" style="text-align:{side}">{html.escape(cell)}</{tag}>'
            for cell, side in zip(row, sides, strict=True)
        )
        return f"<tr>{''.join(cells)}</tr>"

    def __str__(self) -> str:
        lines = (self.header, *self.rows)
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        ends = (0, len(widths) - 1)

        def text(row: tuple[str, ...]) -> str:
            cells = enumerate(zip(row, widths, strict=True))
            return "  ".join(c.ljust(w) if i in ends else c.rjust(w) for i, (c, w) in cells)

        return "\n".join([self.finding, *(text(row).rstrip() for row in lines)])

    __repr__ = __str__
