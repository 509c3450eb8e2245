"""How every chart looks: a figure with its finding, quiet axes, and words that fit."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from minillm.charts.ink import FAINT, HEIGHT, PAPER, RULE, TEXT, WIDTH, scale_of
from minillm.charts.show import drawn, pack
from minillm.errors import MinillmError
from minillm.files import save

# Where nothing can be: beyond a ceiling.
BEYOND = {"facecolor": "none", "edgecolor": RULE, "hatch": "////", "linewidth": 0, "zorder": 0}
TOP, BOTTOM, BETWEEN = 0.88, 0.38, 0.2  # title, time axis, between panels, in inches


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


def _stand_before_pyplot() -> None:
    """In a notebook pyplot gives IPython its own way to show any Figure: heavy, without alt text.

    A way for Chart that declines leaves the picture to `_repr_mimebundle_`.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None:
        shell.display_formatter.formatters["image/png"].for_type(Chart, lambda chart: None)


def width_of(words: str, points: float, weight: str = "normal") -> float:
    """Inches that a line of text takes."""
    font = FontProperties(size=points, weight=weight)
    return text_to_path.get_text_width_height_descent(words, font, False)[0] / 72


def cut(words: str, inches: float, points: float, weight: str = "normal") -> str:
    """The words, or as many letters of them as fit, and '…'."""
    whole = words
    while words and width_of(words + "…" * (words != whole), points, weight) > inches:
        words = words[:-1]
    return words if words == whole else f"{words.rstrip()}…"


def fit_title(title: str, inches: float) -> tuple[str, float]:
    """A title and its size in points: 11, or what fits; one that would be tiny gets two lines."""
    lines, points = [title], 11.0
    if width_of(title, 8.5, "bold") > inches and " " in title:
        gaps = [i for i, letter in enumerate(title) if letter == " "]
        half = min(gaps, key=lambda i: abs(i - len(title) / 2))
        lines, points = [title[:half], title[half + 1 :]], 9.5
    longest = max(width_of(line, points, "bold") for line in lines)
    return "\n".join(lines), points * min(1.0, inches / max(longest, 0.01))


def panels(
    figure: Figure, widths: list[float], left: float, right: float = 0.12, rows: tuple = (1.0,)
) -> list[list[Axes]]:
    """Axes in rows and columns, `rows` and `widths` in proportion; margins in inches."""
    whole, tall = figure.get_size_inches()
    high = (tall - TOP - BOTTOM - BETWEEN * (len(rows) - 1)) / sum(rows)
    wide = (whole - left - right - BETWEEN * (len(widths) - 1)) / sum(widths)
    grid, top = [], tall - TOP
    for row in rows:
        top -= row * high
        x, line = left, []
        for width in widths:
            box = (x / whole, top / tall, width * wide / whole, row * high / tall)
            line.append(figure.add_axes(box))
            x += width * wide + BETWEEN
        grid.append(line)
        top -= BETWEEN
    return grid


def time_axis(ax: Axes, title: str, start: float, stop: float, named: bool = True) -> float:
    """Quiet axes over `start` … `stop` (seconds); returns the size of their unit in seconds."""
    unit, scale = scale_of(stop, "s")
    quiet(ax, f"time ({unit})" if named else "")
    ax.set_title(title, size=8.5, weight="bold", color=TEXT, loc="left", pad=5)
    ax.set_xlim(start / scale, stop / scale)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.tick_params(labelbottom=named)
    return scale


def quiet(ax: Axes, named: str) -> None:
    """Axes of which only the lower line shows, faint, with its quantity named."""
    ax.set_facecolor("none")
    for side in ("top", "left", "right"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set(color=RULE, linewidth=0.8)
    ax.tick_params(length=2.5, color=RULE, labelcolor=FAINT, labelsize=8, pad=2)
    ax.set_xlabel(named, size=8, color=FAINT, labelpad=2, parse_math=False)
    ax.set_yticks([])


def name_axes(ax: Axes, x: str, y: str, log: str = "") -> None:
    """Say what both axes show: x below them, y above. log: those that are logarithmic, as "xy"."""

    def said(name: str, axis: str) -> str:
        if axis not in log:
            return name
        return f"{name[:-1]}, log axis)" if name.endswith(")") else f"{name} (log axis)"

    ax.set_xlabel(said(x, "x"))
    ax.text(0, 1.03, said(y, "y"), size=8, color=FAINT, transform=ax.transAxes, parse_math=False)


def even_axis(axis: Axis, low: float, high: float, said: Callable[[float], str]) -> None:
    """From low to high with round marks, and what `said` makes of them."""
    getattr(axis.axes, f"set_{axis.axis_name}lim")(low, high if high > low else low + 1)
    axis.set_major_locator(MaxNLocator(6, steps=(1, 2, 2.5, 5, 10)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: said(value)))


def log_axis(axis: Axis, low: float, high: float, said: Callable[[float], str]) -> None:
    """From low to high by powers of ten; `said` gives the words of as many marks as fit."""
    ax = axis.axes
    getattr(ax, f"set_{axis.axis_name}scale")("log")
    getattr(ax, f"set_{axis.axis_name}lim")(low, high)
    wide, tall = ax.get_position().size * ax.figure.get_size_inches()
    room = max(2, int(wide / 0.72 if axis.axis_name == "x" else tall / 0.3))
    decades = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    for few in ((1, 2, 5), (1, 3), (1,)):
        marks = [m * 10.0**d for d in decades for m in few if low <= m * 10.0**d <= high]
        if len(marks) <= room:
            break
    marks = marks or [math.sqrt(low * high)]
    axis.set_major_locator(FixedLocator(marks[:: math.ceil(len(marks) / room) or 1]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda x, _: said(x)))


def name_row(ax: Axes, y: float, name: str, small: bool = False, right: bool = False) -> None:
    """A name beside the axes, at height y of the data; what it adds is small and faint."""
    size, colour = (7, FAINT) if small else (8 if right else 8.5, TEXT)
    ax.annotate(
        name, (int(right), y), xytext=(6 if right else -9, 0), textcoords="offset points",
        xycoords=("axes fraction", "data"), ha="left" if right else "right", va="center",
        size=size, color=colour, annotation_clip=False, parse_math=False,
    )  # fmt: skip
