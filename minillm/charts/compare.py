"""One number four ways: what we guessed, what arithmetic predicts, what we measured, the ceiling.

A course about speed is a chain of these charts, so they are small, and all look the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import median

from matplotlib.axes import Axes

from minillm.charts.ink import INK, PAPER, PREFIXED, TEXT, WIDTH, amount, percent, scale_of, times
from minillm.charts.style import BEYOND, Chart, cut, even_axis, log_axis, name_row, quiet, width_of
from minillm.errors import MinillmError

HEAD, ROW, LOW = 0.42, 0.28, 0.44  # inches: the title, one number, the axis
WIDEST = 30  # largest over smallest value that a linear axis still shows
HOW = ("measured", "emulated")
RANK = ("measured", "predicted", "guess", "ceiling")  # whose number the title is about
TIMES = ("s", "ms", "µs", "us", "ns", "min", "h")  # of these, less is better


def predicted_measured(
    quantity: str, unit: str, *, guess: float | None = None, predicted: float | None = None,
    measured: float | Iterable[float] | None = None, ceiling: float | None = None,
    how: str = "measured",
) -> Chart:  # fmt: skip
    """Guess, prediction, measurement and ceiling in a row each, on one axis that begins at zero.

    measured: one number or several runs, of which the median and the spread are shown. how: what it
    is called, "emulated" if it comes from a scale model. What is None is left out. All are in
    `unit`: "s", "B", "B/s", "FLOP/s" are written with a prefix (2.41 ms), any other unit as it is
    given. The ceiling of a time is the least it can be. Values more than 30 × apart get a log axis.
    Raises MinillmError if there is no value, or one below zero, or for another `how`.

    >>> predicted_measured("time per token", "s", predicted=0.28e-3, measured=2.41e-3).finding
    'Measured 2.41 ms: 8.6 × the prediction'
    """
    if how not in HOW:
        raise MinillmError(f"wanted how as measured or emulated, found {how!r}; write one of them")
    runs = _runs(guess, predicted, measured, ceiling)
    values = {name: median(several) for name, several in runs.items()}
    least = unit.replace("/", " ").split(" ")[0] in TIMES
    said = {"predicted": "prediction", "measured": how, "ceiling": "limit" if least else "ceiling"}
    said = {name: said.get(name, name) for name in runs}
    every = [value for several in runs.values() for value in several]
    log = min(every) > 0 and max(every) > WIDEST * min(every)
    subject = next(name for name in RANK if name in values)
    one = None if log and unit in PREFIXED else scale_of(values[subject] or max(every), unit)
    words = [f"{said[name]} {_told(several, unit, one)}" for name, several in runs.items()]
    chart = Chart(_finding(subject, values, unit, said),
                  size=(WIDTH, HEAD + ROW * len(runs) + LOW))  # fmt: skip
    chart.alt = f"{quantity}. {chart.finding}. {', '.join(words)}."
    ax = _axes(chart, words)
    quiet(ax, f"{quantity} ({', '.join([*(one or ())[:1], *['log axis'] * log])})")
    ax.xaxis.label.set(x=1, ha="right")  # a long one has room on the left
    _scale(ax, every, log, unit, one)
    _draw(ax, runs, one[1] if one else 1.0, log, least)
    return chart


def _told(several: tuple[float, ...], unit: str, one: tuple[str, float] | None) -> str:
    """'412 tok/s'; of several runs the median and the spread, '412 tok/s (399 to 420)'."""
    words = amount(median(several), unit, one)
    if len(several) == 1:
        return words
    scale = one or scale_of(median(several), unit)
    low, high = (amount(end, unit, ("", scale[1])) for end in (min(several), max(several)))
    return f"{words} ({low.strip()} to {high.strip()})"


def _runs(guess: object, predicted: object, measured: object, ceiling: object) -> dict:
    """The values that were given, by name, each as a tuple of numbers."""
    given = {"guess": guess, "predicted": predicted, "measured": measured, "ceiling": ceiling}
    runs = {}
    for name, value in given.items():
        try:
            many = name == "measured" and isinstance(value, Iterable)
            several = tuple(float(v) for v in (value if many else [value]) if v is not None)
        except (TypeError, ValueError):
            several = (math.nan,)
        if not all(0 <= v < math.inf for v in several):
            raise MinillmError(f"wanted {name} as a number from zero up, found {value!r}; "
                               "leave out what is not known")  # fmt: skip
        if several:
            runs[name] = several
    if not runs:
        raise MinillmError("wanted a guess, a prediction, a measurement or a ceiling to draw, "
                           "found none; give at least one of them")  # fmt: skip
    return runs


def _finding(subject: str, values: dict[str, float], unit: str, said: dict[str, str]) -> str:
    """'Measured 2.41 ms: 8.6 × the prediction, 43 % of the ceiling': two comparisons at most."""
    verb = {"predicted": "Predicted", "guess": "Guessed", "ceiling": f"The {said[subject]} is"}
    begin = f"{verb.get(subject, said[subject].capitalize())} {amount(values[subject], unit)}"
    parts = []
    for other in ("predicted", "ceiling", "guess"):
        if other != subject and values.get(other):
            ratio = values[subject] / values[other]
            share = f"{percent(ratio, 1)} of" if ratio < 1.995 else times(ratio)
            parts.append(f"{share} the {said[other]}")
    return f"{begin}: {', '.join(parts[:2])}" if parts else begin


def _axes(chart: Chart, words: list[str]) -> Axes:
    """One row for each of the words, which stand to its left."""
    left = min(3.6, max(width_of(said, 8.5) for said in words) + 0.3)
    high = chart.get_size_inches()[1]
    ax = chart.add_axes((left / WIDTH, LOW / high, 1 - (left + 0.3) / WIDTH,
                         ROW * len(words) / high))  # fmt: skip
    for row, said in enumerate(words):
        name_row(ax, row + 0.5, cut(said, left - 0.2, 8.5))
    ax.set_ylim(len(words), 0)
    return ax


def _scale(
    ax: Axes, every: list[float], log: bool, unit: str, one: tuple[str, float] | None
) -> None:
    """From zero in one unit; on a log axis from half the least to twice the most."""
    if log:
        def say(value: float) -> str:
            return f"{value:,.6g}" if one else amount(value, unit)

        log_axis(ax.xaxis, min(every) / 2, max(every) * 2, say)
    else:
        even_axis(ax.xaxis, 0, 1.06 * max(every) / one[1], lambda value: f"{value:,.6g}")


def _draw(ax: Axes, runs: dict, size: float, log: bool, least: bool) -> None:
    """Measured is solid, a prediction dashed and grey, a guess open, a ceiling hatched beyond."""
    grey, ink = INK["prediction"].colour, INK["compute"].colour
    looks = {"measured": {"color": ink}, "predicted": {"facecolor": PAPER, "edgecolor": grey,
             "linestyle": (0, (3, 1.5))}}  # fmt: skip
    for row, (name, several) in enumerate(runs.items()):
        y, value = row + 0.5, median(several) / size
        if name == "ceiling":
            ax.axvspan(value, ax.get_xlim()[0 if least else 1], **BEYOND)
            ax.axvline(value, color=TEXT, linewidth=1.4)
        elif name == "guess" or log:
            full = ink if name == "measured" else PAPER
            ax.plot(value, y, "D" if name == "guess" else "o", color=ink, markerfacecolor=full,
                    markersize=7, clip_on=False)  # fmt: skip
        else:
            ax.barh(y, value, 0.62, linewidth=1.4, **looks[name])  # a line also if it is zero
        if len(several) > 1:
            ends = [min(several) / size, max(several) / size]
            ax.plot(ends, (y, y), color=PAPER, linewidth=3.4, solid_capstyle="butt")
            ax.plot(ends, (y, y), color=TEXT, linewidth=1.2, marker="|")
