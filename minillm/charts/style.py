"""How every chart looks: inks, paper, axes, and how a number is said.

Colour is meaning and is the same in the whole course. A hatch goes with each colour, so colour is
never alone, and every mark is labelled where it stands. The paper is opaque: a picture reads the
same on a light and on a dark page.
"""

from __future__ import annotations

from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

PAPER, TEXT, FAINT, RULE = "#FFFFFF", "#1F2937", "#5B6472", "#D5D9E0"
WIDTH, HEIGHT = 7.0, 3.5  # of a chart, in inches
TOP, BOTTOM, BETWEEN = 0.88, 0.38, 0.2  # title, time axis, between panels, in inches


@dataclass(frozen=True)
class Ink:
    """One meaning: its colour, and the hatch that says the same without colour."""

    colour: str
    hatch: str = ""


INK = {
    "ssd": Ink("#D55E00", "////"),
    "dram": Ink("#0072B2", "...."),
    "hbm": Ink("#009E73"),
    "network": Ink("#CC79A7", "xxxx"),
    "compute": Ink("#4B5563"),
    "ffn": Ink("#4B5563", "////"),
    "cpu": Ink("#9AA3AF", "\\\\\\\\"),
    "idle": Ink("#E5E7EB"),
    "prediction": Ink("#6B7280"),
}


def unit_of(value: float) -> tuple[str, float]:
    """The unit in which people read this many seconds, and its size in seconds."""
    units = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6))
    return next((unit for unit in units if abs(value) >= unit[1]), units[-1])


def seconds(value: float) -> str:
    """Three digits and a unit: 0.00241 -> '2.41 ms'."""
    unit, scale = unit_of(value)
    amount = value / scale
    return f"{amount:.0f} {unit}" if abs(amount) >= 99.95 else f"{amount:.3g} {unit}"


def percent(part: float, whole: float) -> str:
    """'43 %'; a part that is there but small is '< 1 %', never '0 %'."""
    share = 100 * part / whole if whole else 0.0
    return "< 1 %" if 0 < share < 0.5 else f"{share:.0f} %"


def new_figure(title: str, note: str) -> Figure:
    """A sheet with the finding as its title and a faint line on where the numbers come from."""
    figure = Figure(figsize=(WIDTH, HEIGHT), facecolor=PAPER)
    big = 11 if len(title) <= 70 else 11 * 70 / len(title)
    figure.text(0.012, 1 - 0.10 / HEIGHT, title, size=big, weight="bold", color=TEXT, va="top")
    figure.text(0.012, 1 - 0.34 / HEIGHT, note, size=8, color=FAINT, va="top")
    return figure


def panels(
    figure: Figure, widths: list[float], left: float, right: float = 0.12, rows: tuple = (1.0,)
) -> list[list[Axes]]:
    """Axes in rows and columns, `rows` and `widths` in proportion; margins in inches."""
    high = (HEIGHT - TOP - BOTTOM - BETWEEN * (len(rows) - 1)) / sum(rows)
    wide = (WIDTH - left - right - BETWEEN * (len(widths) - 1)) / sum(widths)
    grid, top = [], HEIGHT - TOP
    for row in rows:
        top -= row * high
        x, line = left, []
        for width in widths:
            box = (x / WIDTH, top / HEIGHT, width * wide / WIDTH, row * high / HEIGHT)
            line.append(figure.add_axes(box))
            x += width * wide + BETWEEN
        grid.append(line)
        top -= BETWEEN
    return grid


def time_axis(ax: Axes, title: str, start: float, stop: float, named: bool = True) -> float:
    """Quiet axes over `start` … `stop` (seconds); returns the size of their unit in seconds."""
    unit, scale = unit_of(stop)
    ax.set_facecolor("none")
    for side in ("top", "left", "right"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set(color=RULE, linewidth=0.8)
    ax.tick_params(length=2.5, color=RULE, labelcolor=FAINT, labelsize=8, pad=2)
    ax.set_xlabel(f"time ({unit})" if named else "", size=8, color=FAINT, labelpad=2)
    ax.set_title(title, size=8.5, weight="bold", color=TEXT, loc="left", pad=5)
    ax.set_xlim(start / scale, stop / scale)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.tick_params(labelbottom=named)
    ax.set_yticks([])
    return scale


def name_row(ax: Axes, y: float, name: str) -> None:
    """A name to the left of the axes, at height y of the data."""
    ax.annotate(
        name, (0, y), xytext=(-9, 0), textcoords="offset points", annotation_clip=False,
        xycoords=("axes fraction", "data"), ha="right", va="center", size=8.5, color=TEXT,
    )  # fmt: skip
