"""Heat maps: how much of each column a row takes. Of attention: where a token looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle

from minillm.charts.ink import FAINT, HEIGHT, INK, PAPER, RULE, TEXT, WIDTH, counted, percent
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
        found = f"{counted(len(values), 'row')} of {sorted({len(row) for row in values})}"
        wanted = f"{counted(shape[0], 'row')} of {counted(shape[1], 'value')}"
        raise MinillmError(f"wanted {wanted}, found {found}; name each")
    if not all(0 <= value <= 1.0001 for row in values for value in row):
        raise MinillmError("wanted shares from 0 to 1, found others; divide each row by its sum")
    chart = Chart(finding, note=note)
    wide, tall = WIDTH - LEFT - RIGHT, HEIGHT - LOW - TOP
    ax = chart.add_axes((LEFT / WIDTH, LOW / HEIGHT, wide / WIDTH, tall / HEIGHT))
    quiet(ax, "")
    ax.set(xlim=(0, shape[1]), ylim=(shape[0], 0))
    ax.pcolormesh(values, cmap=SHADES, vmin=0, vmax=1, edgecolors=RULE, linewidth=0.3)
    _name(ax, rows, columns)
    size = f"{counted(shape[0], 'row')} and {counted(shape[1], 'column')}"
    chart.alt = f"{finding}. {size}, darker for a larger share."
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


def looks(
    finding: str, panels: Mapping[str, Sequence[Sequence[float]]], *, note: str = ""
) -> Chart:
    """Batches side by side, to one scale: who looks at whom. Queries go down, keys across.

    panels: name to values[query][key], a square: 0, paper, is not computed; 1, dark, is wanted;
    between them it is computed for nobody.

    >>> looks("Packed there are 3 looks", {"padded": [[1, 0.3], [1, 1]], "packed": [[1]]})
    Packed there are 3 looks
    """
    chart = Chart(finding, note=note)
    room = min(HEIGHT - TOP - 0.5, (WIDTH - 0.2) / len(panels) - 0.4)  # inches, of the largest
    scale, said = room / max(map(len, panels.values())), []
    for place, (name, values) in enumerate(panels.items()):
        side, left = scale * len(values), 0.2 + place * (WIDTH - 0.2) / len(panels)
        low = HEIGHT - TOP - side
        ax = chart.add_axes((left / WIDTH, low / HEIGHT, side / WIDTH, side / HEIGHT))
        ax.imshow(values, cmap=SHADES, vmin=0, vmax=1, aspect="auto")
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set(color=FAINT, linewidth=0.8)
        said.append(f"{name}: {len(values):,} × {len(values):,}, queries × keys")
        chart.text(left / WIDTH, (low - 0.06) / HEIGHT, f"{name}: {counted(len(values), 'row')}",
                   va="top", size=8.5, color=TEXT, parse_math=False)  # fmt: skip
    chart.alt = f"Squares of queries and keys. {finding}. {'; '.join(said)}."
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
