"""One number four ways: what we guessed, what arithmetic predicts, what we measured, the ceiling.

A course about speed is a chain of these rows, so they are small, and all look the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import median

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from minillm.charts.ink import (
    FAINT,
    INK,
    PAPER,
    PREFIXED,
    RULE,
    TEXT,
    WIDTH,
    amount,
    percent,
    scale_of,
    times,
)  # fmt: skip
from minillm.charts.place import spread
from minillm.charts.style import Chart, log_axis, quiet, width_of
from minillm.errors import MinillmError

HIGH, SIDE = 1.6, 0.3  # inches: the chart's height, its margin on both sides
WIDE = WIDTH - 2 * SIDE
WIDEST = 30  # largest over smallest value that a linear axis still shows
HOW = ("measured", "emulated")
SAID = {"guess": "guess", "predicted": "prediction", "measured": "measured", "ceiling": "ceiling"}


def predicted_measured(
    quantity: str, unit: str, *, guess: float | None = None, predicted: float | None = None,
    measured: float | Iterable[float] | None = None, ceiling: float | None = None,
    how: str = "measured",
) -> Chart:  # fmt: skip
    """Guess, prediction, measurement and ceiling as marks on one axis that begins at zero.

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
    least = _is_time(unit)
    said = SAID | {"measured": how} | ({"ceiling": "limit"} if least else {})
    finding = _finding(values, unit, said)
    everything = [value for several in runs.values() for value in several]
    log = min(everything) > 0 and max(everything) > WIDEST * min(everything)
    one = None if log else scale_of(next(values[name] for name in _RANK if name in values), unit)
    if unit not in PREFIXED:
        one = unit, 1.0
    words = {name: f"{said[name]} {amount(values[name], unit, one)}" for name in values}
    words |= _of_several(words, runs)
    chart = Chart(finding, size=(WIDTH, HIGH))
    ax = chart.add_axes((SIDE / WIDTH, 0.44 / HIGH, WIDE / WIDTH, 0.44 / HIGH))
    shown = runs if log else {n: [v / one[1] for v in several] for n, several in runs.items()}
    _axis(ax, quantity, shown, log, one, unit)
    _draw(ax, shown, log, least)
    _label(ax, words, {name: median(shown[name]) for name in shown})
    if len(runs.get("measured", ())) > 1:
        words["measured"] += _spread(runs["measured"], unit)
    chart.alt = f"{quantity}. {finding}. {', '.join(words.values())}."
    return chart


_RANK = ("measured", "predicted", "guess", "ceiling")  # whose number the title is about


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


def _is_time(unit: str) -> bool:
    """Whether less is better: '43 % of the ceiling' means nothing for a time."""
    return unit.replace("/", " ").split(" ")[0] in ("s", "ms", "µs", "us", "ns", "min", "h")


def _finding(values: dict[str, float], unit: str, said: dict[str, str]) -> str:
    """'Measured 2.41 ms: 8.6 × the prediction, 43 % of the ceiling': two comparisons at most."""
    subject, *others = [name for name in _RANK if name in values]
    others.sort(key=("predicted", "ceiling", "guess").index)
    value = values[subject]
    parts = [f"{_share(value, values[n])} the {said[n]}" for n in others if values[n]][:2]
    verb = {"measured": said["measured"].capitalize(), "predicted": "Predicted", "guess": "Guessed"}
    begin = f"{verb.get(subject, f'The {said[subject]} is')} {amount(value, unit)}"
    return ": ".join([begin, *[", ".join(parts)] * bool(parts)])


def _share(part: float, whole: float) -> str:
    return f"{percent(part, whole)} of" if part < 1.995 * whole else times(part / whole)


def _of_several(words: dict[str, str], runs: dict) -> dict[str, str]:
    count = len(runs.get("measured", ()))
    return {"measured": f"{words['measured']}, median of {count}"} if count > 1 else {}


def _spread(measured: tuple[float, ...], unit: str) -> str:
    ends = [amount(end, unit) for end in (min(measured), max(measured))]
    return f" runs between {' and '.join(ends)}"


def _axis(
    ax: Axes, quantity: str, runs: dict, log: bool, one: tuple[str, float] | None, unit: str
) -> None:
    """From zero, in one unit; on a log axis, with `one` None, each mark says its own."""
    values = [value for several in runs.values() for value in several]
    told = ([one[0]] if one else []) + (["log axis"] if log else [])
    quiet(ax, f"{quantity} ({', '.join(told)})")
    ax.set_ylim(0, 1)
    if log:
        say = (lambda x: f"{x:,.6g}") if one else (lambda x: amount(x, unit))
        log_axis(ax.xaxis, min(values) / 2, max(values) * 2, say)
    else:
        ax.set_xlim(0, 1.06 * max(values) or 1)
        ax.xaxis.set_major_locator(MaxNLocator(7, steps=(1, 2, 2.5, 5, 10)))
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:,.6g}")


def _draw(ax: Axes, runs: dict, log: bool, least: bool) -> None:
    """Measured is solid, a prediction dashed and grey, a ceiling hatched beyond, a guess open."""
    if "ceiling" in runs:
        ceiling = runs["ceiling"][0]
        beyond = (ax.get_xlim()[0], ceiling) if least else (ceiling, ax.get_xlim()[1])
        ax.axvspan(*beyond, facecolor="none", edgecolor=RULE, hatch="////", linewidth=0, zorder=0)
        ax.axvline(ceiling, color=TEXT, linewidth=1.4)
    if "measured" in runs:
        _draw_measured(ax, runs["measured"], log)
    if "predicted" in runs:
        ax.axvline(runs["predicted"][0], color=PAPER, linewidth=3.2, zorder=3)
        ax.axvline(runs["predicted"][0], color=INK["prediction"].colour, linewidth=1.8, zorder=3,
                   linestyle=(0, (3, 1.5)))  # fmt: skip
    if "guess" in runs:
        ax.plot(runs["guess"][0], 0.5, "D", markersize=7, markerfacecolor=PAPER,
                markeredgecolor=TEXT, markeredgewidth=1.4, zorder=4, clip_on=False)  # fmt: skip


def _draw_measured(ax: Axes, measured: tuple[float, ...], log: bool) -> None:
    """A bar from zero to the median, on a log axis a dot; and from the least run to the most."""
    middle, ink = median(measured), INK["compute"].colour
    if log:
        ax.plot(middle, 0.5, "o", color=ink, markersize=9, zorder=1)
    else:
        ax.barh(0.5, middle, 0.56, color=ink, zorder=1)
        ax.plot((middle, middle), (0.22, 0.78), color=ink, linewidth=1.4, zorder=1,
                solid_capstyle="butt")  # seen also if it is zero
    if len(measured) > 1:
        ends = (min(measured), max(measured))
        ax.plot(ends, (0.5, 0.5), color=PAPER, linewidth=3.4, solid_capstyle="butt", zorder=2)
        ax.plot(ends, (0.5, 0.5), color=TEXT, linewidth=1.2, marker="|", zorder=2)


def _room(words: str) -> float:
    return width_of(words, 8, "bold" if words.startswith(HOW) else "normal") + 0.14


def _label(ax: Axes, words: dict[str, str], at: dict[str, float]) -> None:
    """The words in one line above the marks, smaller and pushed apart where they would touch."""
    order = sorted(words, key=lambda name: at[name])
    to_axes = ax.transData + ax.transAxes.inverted()
    inches = [WIDE * to_axes.transform((at[name], 0))[0] for name in order]
    room = [_room(words[name]) for name in order]
    shrink = min(1.0, (WIDE + SIDE) / sum(room))
    places = spread(inches, [shrink * r for r in room], -SIDE / 2, WIDE + SIDE / 2)
    lower = {"measured": 0.6 if ax.get_xscale() == "log" else 0.78, "guess": 0.66}
    for name, x, place in zip(order, inches, places, strict=True):
        weight = "bold" if name == "measured" else "normal"
        ax.text(place / WIDE, 1.4, words[name], transform=ax.transAxes, ha="center", va="bottom",
                size=8 * shrink, weight=weight, color=TEXT, parse_math=False)  # fmt: skip
        ax.plot((place / WIDE, x / WIDE, x / WIDE), (1.34, 1.06, lower.get(name, 1)), color=FAINT,
                transform=ax.transAxes, linewidth=0.7, clip_on=False, zorder=0)  # fmt: skip
