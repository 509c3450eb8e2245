"""What a chart hands to a notebook: a picture or a table, its finding, and its words."""

from __future__ import annotations

import html
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from minillm.charts.style import PAPER


@dataclass(frozen=True)
class Chart:
    """A drawn figure, its one-sentence finding, and a description for those who cannot see it.

    A notebook shows it as a PNG, with the finding as plain text and `alt` as image metadata.

    >>> timeline(engine.trace).finding
    'The first token comes after 14.2 ms, then one every 2.4 ms'
    """

    figure: Figure
    finding: str
    alt: str

    def png(self, dpi: int = 192) -> bytes:
        """The picture in 96 colours: a notebook with six of them stays under 300 KB."""
        raw, packed = io.BytesIO(), io.BytesIO()
        self.figure.savefig(raw, format="png", dpi=dpi, facecolor=PAPER)
        image = Image.open(raw).convert("RGB").quantize(96, dither=Image.Dither.NONE)
        image.save(packed, format="png", optimize=True)
        return packed.getvalue()

    def save(self, path: str | Path) -> None:
        """Write a `.png` or `.svg`; the same chart always gives the same bytes."""
        path = Path(path)
        if path.suffix == ".png":
            path.write_bytes(self.png())
            return
        with rc_context({"svg.hashsalt": "minillm"}):
            self.figure.savefig(path, facecolor=PAPER, metadata={"Date": None, "Creator": None})

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict, dict]:
        width, height = (round(96 * inches) for inches in self.figure.get_size_inches())
        about = {"alt": self.alt, "width": width, "height": height}
        return {"image/png": self.png(), "text/plain": self.finding}, {"image/png": about}

    def __repr__(self) -> str:
        return self.finding


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
