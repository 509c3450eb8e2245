"""Bars: how likely each word is, and how likely it was before somebody turned a knob."""

from __future__ import annotations

from collections.abc import Mapping

from minillm.charts.ink import HEIGHT, INK, WIDTH, percent
from minillm.charts.style import Chart, cut, even_axis, name_row, quiet
from minillm.errors import MinillmError

LEFT, LOW, RIGHT, TOP = 1.3, 0.42, 0.6, 0.62  # inches: margins, for names, shares and the title


def bars(
    finding: str, shares: Mapping[str, float], *, before: Mapping[str, float] | None = None,
    note: str = "",
) -> Chart:  # fmt: skip
    """A row for each name: its share, 0 to 1, solid; dashed, what it was `before`. 0 is "out".

    Raises MinillmError if there is no share, or one that is not within 0 … 1.

    >>> bars("Tea comes first", {"tea": 0.8, "milk": 0.2, "water": 0.0}, before={"water": 0.1})
    Tea comes first
    """
    before = before or {}
    if not shares or not all(0 <= v <= 1.0001 for v in (*shares.values(), *before.values())):
        raise MinillmError("wanted shares from 0 to 1, found others or none; divide by their sum")
    chart, ink, grey = Chart(finding, note=note), INK["compute"].colour, INK["prediction"].colour
    wide, tall = WIDTH - LEFT - RIGHT, HEIGHT - LOW - TOP
    ax = chart.add_axes((LEFT / WIDTH, LOW / HEIGHT, wide / WIDTH, tall / HEIGHT))
    quiet(ax, "share (%)")
    even_axis(ax.xaxis, 0, 100, lambda value: f"{value:g}")
    ax.set_ylim(len(shares), 0)
    told = {name: percent(share, 1) if share else "out" for name, share in shares.items()}
    for row, (name, share) in enumerate(shares.items()):
        ax.barh(row + 0.5, 100 * share, 0.44, color=ink)
        if was := before.get(name):  # higher than the solid one, so that both are seen
            ax.barh(row + 0.5, 100 * was, 0.76, fill=False, edgecolor=grey, ls=(0, (3, 1.5)))
        name_row(ax, row + 0.5, cut(name.replace("\n", "↵"), LEFT - 0.2, 8.5))
        name_row(ax, row + 0.5, told[name], right=True)
    chart.alt = f"{finding}. {', '.join(f'{name} {share}' for name, share in told.items())}."
    return chart
