"""A heat map: how much of each column a row takes. Of attention: where a token looks."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle

from minillm.charts.ink import HEIGHT, INK, PAPER, RULE, TEXT, WIDTH, percent
from minillm.charts.style import Chart, cut, quiet
from minillm.errors import MinillmError

LEFT, LOW, RIGHT, TOP = 0.92, 0.72, 0.12, 0.62  # inches: margins, for the names and the title
SHADES = LinearSegmentedColormap.from_list("shades", [PAPER, INK["compute"].colour])


def heatmap(
    finding: str, values: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str],
    *, at: tuple[int, int] | None = None, note: str = "", words: Sequence[Sequence[str]] = (),
) -> Chart:  # fmt: skip
    """Shares as shades: `values[row][column]`, from 0, paper, to 1, dark. Each row has its name on
    the left, each column below.

    at: row and column of the cell that the finding is about: it is framed. words: of each cell.
    Raises MinillmError if the names do not fit the values, or a value is not within 0 … 1.

    >>> heatmap("b looks at a", [[1, 0], [0.7, 0.3]], ["a", "b"], ["a", "b"], at=(1, 0))
    b looks at a
    """
    shape = (len(rows), len(columns))
    if 0 in shape or shape != (len(values), *{len(row) for row in values}):
        found = f"{len(values)} rows of {sorted({len(row) for row in values})}"
        raise MinillmError(f"wanted {shape[0]} rows of {shape[1]} values, found {found}; name each")
    if not all(0 <= value <= 1.0001 for row in values for value in row):
        raise MinillmError("wanted shares from 0 to 1, found others; divide each row by its sum")
    chart = Chart(finding, note=note)
    wide, tall = WIDTH - LEFT - RIGHT, HEIGHT - LOW - TOP
    ax = chart.add_axes((LEFT / WIDTH, LOW / HEIGHT, wide / WIDTH, tall / HEIGHT))
    quiet(ax, "")
    ax.set(xlim=(0, shape[1]), ylim=(shape[0], 0))
    ax.pcolormesh(values, cmap=SHADES, vmin=0, vmax=1, edgecolors=RULE, linewidth=0.3)
    _name(ax, rows, columns)
    chart.alt = f"{finding}. {shape[0]} rows and {shape[1]} columns, darker for a larger share."
    for row, texts in enumerate(words):
        chart.alt += f" {rows[row]}: {', '.join(texts)}."
        for column, text in enumerate(texts):
            ink = PAPER if values[row][column] > 0.6 else TEXT
            ax.text(column + 0.5, row + 0.5, text, ha="center", va="center", size=9, color=ink)
    if at is not None:
        row, column = at
        ax.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor=TEXT, linewidth=2))
        share = percent(values[row][column], 1)
        chart.alt += f" {rows[row].strip()!r} takes {share} of {columns[column].strip()!r}."
    return chart


def _name(ax: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    """The names beside their rows and below their columns, as large as fits."""
    wide, tall = WIDTH - LEFT - RIGHT, HEIGHT - LOW - TOP
    size = min(8.0, 54 * wide / len(columns), 54 * tall / len(rows))
    for axis, names, room in ((ax.yaxis, rows, LEFT - 0.15), (ax.xaxis, columns, LOW - 0.12)):
        said = [cut(name.strip(" ").replace("\n", "↵"), room, size) for name in names]
        axis.set_ticks([place + 0.5 for place in range(len(said))], said, size=size)
        for label in axis.get_ticklabels():
            label.set(color=TEXT, parse_math=False, rotation=90 * (axis is ax.xaxis))
