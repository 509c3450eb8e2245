"""Where words stand: beside each other without touching."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from minillm.charts.ink import FAINT, TEXT
from minillm.charts.style import cut

ROW, SIZE = 0.34, 7.5  # of a name with a line below it: inches, points


def spread(wanted: Sequence[float], sizes: Sequence[float], low: float, high: float) -> list[float]:
    """The middles of things side by side: each where it wants to be, or behind the one before it.

    wanted: ascending. Things of these sizes stay within `low` … `high` and do not overlap, unless
    they must.

    >>> spread([5, 5.5], [2, 2], 0, 10)
    [5, 7.0]
    """
    places, free, rest = [], low, sum(sizes)
    for middle, size in zip(wanted, sizes, strict=True):
        places.append(min(max(middle, free + size / 2), high - rest + size / 2))
        free, rest = places[-1] + size / 2, rest - size
    return places


def beside(ax: Axes, labels: Sequence[tuple[float, float, str, str]]) -> None:
    """Names with a line of figures each, in a column between the axes and the edge of the paper.

    labels: x and y of what they tell of, name, figures. A thin line leads there.
    """
    box, paper = ax.get_position(), ax.figure.get_size_inches()
    wide, tall = box.size * paper
    room = (1 - box.x1) * paper[0] - 0.25
    to_axes = ax.transData + ax.transAxes.inverted()
    marks = [(*to_axes.transform(label[:2]).clip(0, 1), *label[2:]) for label in labels]
    marks.sort(key=lambda mark: mark[1])
    row = min(ROW, tall / max(1, len(marks)))
    places = spread([y * tall for _, y, *_ in marks], [row] * len(marks), 0, tall)
    for (x, y, name, figures), place in zip(marks, places, strict=True):
        for words, va, weight in ((name, "bottom", "bold"), (figures, "top", "normal")):
            ax.text(1 + 0.15 / wide, place / tall, cut(words, room, SIZE, weight), va=va,
                    size=SIZE, weight=weight, color=TEXT, transform=ax.transAxes,
                    parse_math=False)  # fmt: skip
        ax.plot((x, 1 + 0.1 / wide), (y, place / tall), color=FAINT, linewidth=0.6, zorder=2,
                transform=ax.transAxes, clip_on=False)  # fmt: skip
