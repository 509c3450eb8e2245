"""What every bench does: rounds of several ways, medians with their spread, a table.

Each round does each way once, one after another, so that what else the machine does hits all of
them. Ratios are taken within a round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import TypeVar

from minillm.files import home, locate, temporary_folder
from minillm.tools.make_checkpoint import make_checkpoint

K, V = TypeVar("K"), TypeVar("V")
Progress = Callable[[int, int], object]  # told (rounds done, rounds in all)


def rounds(ways: Mapping[K, Callable[[], V]], number: int, progress: Progress) -> dict[K, list[V]]:
    """What each way gave in each of some rounds. One round before them warms up: not counted."""
    found: dict[K, list[V]] = {key: [] for key in ways}
    for done in range(number + 1):
        for key, way in ways.items():
            value = way()
            found[key] += [value] * (done > 0)
        progress(done, number)
    return found


def ratios(values: Sequence[float], by: Sequence[float]) -> list[float]:
    """Round by round, one way's value by another's."""
    return [value / other for value, other in zip(values, by, strict=True)]


def spread(values: Sequence[float], form: str = "{:,.1f}") -> str:
    """The median, and between which values all rounds lie.

    >>> spread([100.0, 300.0, 200.0])
    '200.0 (100.0 … 300.0)'
    """
    middle, low, high = map(form.format, (median(values), min(values), max(values)))
    return f"{middle} ({low} … {high})"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Lines of text, each column as wide as its widest cell; all but the first end at the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = ([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows)
    return "\n".join("   ".join(row).rstrip() for row in cells)


@contextmanager
def given_or_random(model: str | Path | None, shape: str) -> Iterator[Path]:
    """The folder of the model given, or of the shape: "town" is here, others are random weights,
    deleted at the end."""
    if model or shape == "town":
        yield locate(model or "data/town")
        return
    home().mkdir(parents=True, exist_ok=True)
    with temporary_folder(home()) as folder:
        make_checkpoint(shape, Path(folder) / shape)
        yield Path(folder) / shape
