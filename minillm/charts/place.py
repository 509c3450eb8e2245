"""Where words stand: beside each other without touching."""

from __future__ import annotations

from collections.abc import Sequence


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
