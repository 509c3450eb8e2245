"""Where words stand: beside each other without touching, near a mark without covering another."""

from __future__ import annotations

from collections.abc import Sequence

Box = tuple[float, float, float, float]  # left, low, right, high


def spread(wanted: Sequence[float], sizes: Sequence[float], low: float, high: float) -> list[float]:
    """Where to put things side by side: as near to `wanted`, which ascends, as room allows.

    Things of these sizes stay within `low` … `high` and do not overlap, unless they must.

    >>> spread([5, 5.5], [2, 2], 0, 10)
    [4.25, 6.25]
    """
    groups: list[tuple[float, list[int]]] = []  # where a row of things that touch begins
    for i in range(len(wanted)):
        row = [i]
        while True:
            long, drift = 0.0, 0.0
            for j in row:
                drift += wanted[j] - (long + sizes[j] / 2)
                long += sizes[j]
            begin = max(low, min(drift / len(row), high - long))
            if not groups or groups[-1][0] + sum(sizes[j] for j in groups[-1][1]) <= begin:
                break
            row = groups.pop()[1] + row
        groups.append((begin, row))
    places = []
    for begin, row in groups:
        for j in row:
            places.append(begin + sizes[j] / 2)
            begin += sizes[j]
    return places


def free_place(
    x: float, y: float, wide: float, high: float, taken: Sequence[Box], within: tuple[float, float]
) -> tuple[float, float]:
    """The lower left corner of a label near (x, y): of the places that cover least, the nearest.

    It stays in 0 … `within`. All in inches.

    >>> free_place(1, 1, 0.5, 0.2, [], (3, 3))
    (1.1, 0.9)
    """
    best = None
    for far in (0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0):
        for dx, dy in ((1, 0), (1, -1), (-1, 0), (-1, -1), (0, -1), (1, 1), (-1, 1), (0, 1)):
            left, low = x + dx * far + wide * (dx - 1) / 2, y + dy * far + high * (dy - 1) / 2
            left = min(max(left, 0.0), within[0] - wide)
            low = min(max(low, 0.0), within[1] - high)
            covers = sum(
                max(0.0, min(left + wide, x1) - max(left, x0))
                * max(0.0, min(low + high, y1) - max(low, y0))
                for x0, y0, x1, y1 in taken
            )
            if best is None or covers < best[0] - 1e-9:
                best = covers, left, low
    return best[1:]


def along(begin: tuple[float, float], end: tuple[float, float], half: float = 0.04) -> list[Box]:
    """Small squares all along a line: what a label must not cover."""
    steps = [i / 80 for i in range(81)]
    spots = [tuple(a + f * (b - a) for a, b in zip(begin, end, strict=True)) for f in steps]
    return [(x - half, y - half, x + half, y + half) for x, y in spots]
