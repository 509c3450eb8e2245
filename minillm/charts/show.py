"""What a chart hands to a notebook: a picture or a table, its finding, and its words."""

from __future__ import annotations

import html
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from minillm.charts.style import FAINT, HEIGHT, PAPER, TEXT, WIDTH, fit_title, width_of
from minillm.errors import MinillmError
from minillm.files import save


class Chart(Figure):
    """A matplotlib figure with a finding: its title, one sentence with numbers of this run.

    A notebook shows it as a PNG, with the finding as plain text and `alt` as image metadata.

    >>> chart = Chart("HBM is read at 43 GB/s", note="measured · town")
    >>> ax = chart.add_axes((0.1, 0.1, 0.8, 0.6))
    >>> chart.get_suptitle(), chart
    ('HBM is read at 43 GB/s', HBM is read at 43 GB/s)

    finding: the title; a long one is set smaller, then on two lines.
    alt: a description for those who cannot see it; by default the finding. Set it at any time.
    note: a faint line below the title: where the numbers come from.
    size: width and height in inches.
    titled: whether the title is drawn; `get_suptitle()` gives it either way.
    """

    def __init__(
        self, finding: str, alt: str = "", *, note: str = "", titled: bool = True,
        size: tuple[float, float] = (WIDTH, HEIGHT),
    ):  # fmt: skip
        super().__init__(figsize=size, facecolor=PAPER, layout="none")
        self.finding, self.alt = finding, alt or finding
        wide, high = size
        words, points = fit_title(finding, wide - 0.2) if titled else (finding, 11)
        lower = 0.34 + 0.08 * words.count("\n")  # a second line pushes the note down a little
        self.suptitle(words, x=0.084 / wide, y=1 - 0.10 / high, ha="left", va="top", size=points,
                      weight="bold", color=TEXT, parse_math=False)  # fmt: skip
        self._suptitle.set_visible(titled)
        if note:
            points = 8 * min(1.0, (wide - 0.2) / width_of(note, 8))
            self.text(0.084 / wide, 1 - lower / high, note, size=points, color=FAINT, va="top",
                      parse_math=False)  # fmt: skip

    def png(self) -> bytes:
        """The picture, at 192 dots per inch sharp on any screen."""
        return pack(drawn(self))

    def save(self, path: str | Path) -> None:
        """Write a `.png`, whole, else MinillmError; the same chart gives the same bytes."""
        path = Path(path)
        if path.suffix != ".png":
            raise MinillmError(f"wanted a path that ends in .png, found {str(path)!r}; name one")
        save(path, self.png(), "a chart")

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict, dict]:
        _stand_before_pyplot()
        width, height = (round(96 * inches) for inches in self.get_size_inches())
        about = {"alt": self.alt, "width": width, "height": height}
        return {"image/png": self.png(), "text/plain": self.finding}, {"image/png": about}

    def __repr__(self) -> str:
        return self.finding

    __str__ = __repr__


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


def _stand_before_pyplot() -> None:
    """In a notebook pyplot gives IPython its own way to show any Figure: heavy, without alt text.

    A way for Chart that declines leaves the picture to `_repr_mimebundle_`.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        shell.display_formatter.formatters["image/png"].for_type(Chart, lambda chart: None)


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
