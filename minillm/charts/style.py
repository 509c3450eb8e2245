"""How every chart looks: inks, paper, axes, and how a number is said.

Colour is meaning and is the same in the whole course. A hatch goes with each colour, so colour is
never alone, and every mark is labelled where it stands. The paper is opaque: a picture reads the
same on a light and on a dark page.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

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


def percent(part: float, whole: float) -> str:
    """'43 %'; a part that is there but small is '< 1 %', never '0 %'."""
    share = 100 * part / whole if whole else 0.0
    return "< 1 %" if 0 < share <= 0.5 else f"{share:,.0f} %"


def times(ratio: float) -> str:
    """Two digits: '8.6 ×', '120 ×'."""
    return f"{ratio:.1f} ×" if ratio < 9.95 else f"{float(f'{ratio:.2g}'):,.0f} ×"


PREFIXED = ("s", "B", "B/s", "FLOP/s", "FLOP")


def scale_of(value: float, unit: str) -> tuple[str, float]:
    """The unit in which people read a value given in `unit`, and its size in that.

    Seconds, B/s, FLOP and FLOP/s take prefixes (GB/s is 10⁹), B is said in KiB, MiB, …; any other
    unit stays. 3.2e9 B/s -> ('GB/s', 1e9).
    """
    if unit == "s":
        sizes = [("µs", 1e-6), ("ms", 1e-3), ("s", 1.0)]
    elif unit in PREFIXED[2:]:
        sizes = [(f"{p}{unit}", 1e3**n) for n, p in enumerate(("", "k", "M", "G", "T", "P"))]
    elif unit == "B":
        sizes = [(p, 1024.0**n) for n, p in enumerate(("B", "KiB", "MiB", "GiB", "TiB"))]
    else:
        return unit, 1.0
    return next((s for s in reversed(sizes) if abs(value) >= 0.9995 * s[1]), sizes[0])


def amount(value: float, unit: str, scale: tuple[str, float] | None = None) -> str:
    """Three digits and a unit, by default the one of `scale_of`: (3.2e9, 'B/s') -> '3.2 GB/s'."""
    name, size = scale or scale_of(value, unit)
    number = value / size
    short = f"{number:,.0f}" if 99.95 <= abs(number) < 1e12 else f"{number:.3g}"
    return f"{short} {name}"


def width_of(words: str, points: float, weight: str = "normal") -> float:
    """Inches that a line of text takes."""
    font = FontProperties(size=points, weight=weight)
    return text_to_path.get_text_width_height_descent(words, font, False)[0] / 72


def cut(words: str, inches: float, points: float) -> str:
    """The words, or as many letters of them as fit, and '…'."""
    whole = words
    while words and width_of(words if words == whole else f"{words}…", points) > inches:
        words = words[:-1]
    return words if words == whole else f"{words.rstrip()}…"


def fit_title(title: str, inches: float) -> tuple[str, float]:
    """A title and its size in points: 11, or what fits; one that would be tiny gets two lines."""
    points = 11 * min(1.0, inches / max(width_of(title, 11, "bold"), 0.01))
    if points >= 8.5 or " " not in title:
        return title, points
    gaps = [i for i, letter in enumerate(title) if letter == " "]
    half = min(gaps, key=lambda i: abs(i - len(title) / 2))
    lines = title[:half], title[half + 1 :]
    longest = max(width_of(line, 9.5, "bold") for line in lines)
    return "\n".join(lines), 9.5 * min(1.0, inches / longest)


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
    axis.set_major_locator(FixedLocator(marks[:: math.ceil(len(marks) / room) or 1]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda x, _: said(x)))


def name_row(ax: Axes, y: float, name: str, small: bool = False) -> None:
    """A name to the left of the axes, at height y of the data; what it adds is small and faint."""
    size, colour = (7, FAINT) if small else (8.5, TEXT)
    ax.annotate(
        name, (0, y), xytext=(-9, 0), textcoords="offset points", annotation_clip=False, size=size,
        xycoords=("axes fraction", "data"), ha="right", va="center", color=colour, parse_math=False,
    )  # fmt: skip
