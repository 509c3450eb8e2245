"""A curve with the reader's point on it: what turning a knob changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

from minillm.charts.ink import HEIGHT, INK, PAPER, PREFIXED, TEXT, WIDTH, amount, scale_of
from minillm.charts.place import beside
from minillm.charts.style import BEYOND, Chart, even_axis, log_axis, name_axes, quiet, width_of

LEFT, LOW, WIDE, TALL = 0.86, 0.42, 4.5, 2.36  # inches: the axes' place and size


def curve(
    finding: str, lines: Mapping[str, Callable[[float], float]], xs: Sequence[float], *,
    x: str, y: str, unit: str = "", at: float | None = None,
    points: Sequence[tuple[float, float, str]] = (), ceiling: float | None = None,
    log: str = "x", span: tuple[float, float] | None = None,
    inks: Mapping[str, str] | None = None, note: str = "predicted",
) -> Chart:  # fmt: skip
    """Predicted lines over `xs`, dashed, with their names, and the reader's point on each.

    lines: name to the function that predicts y from x; a single one may be named "". x, y: what the
    axes show; x with its unit, "chunk (KiB)". unit: of y; "s", "B", "B/s", "FLOP/s" take a prefix.
    at: the reader's x; the values there are told. points: (x, y, words or ""), measured. ceiling:
    above it nothing can be. log: the logarithmic axes, "x", "xy", "". span: of the y axis, so that
    it stays while a knob is turned; else it holds all values, from zero if it is linear. inks: name
    of a line to a key of INK.

    >>> curve("8 GB", {"SSD": lambda gb: gb / 2}, range(1, 99), x="GB", y="time", unit="s", at=8)
    """
    xs = sorted({*xs, at} - {None})
    every = [f(place) for place in xs for f in lines.values()] + [p[1] for p in points]
    chart = Chart(finding, note=note)
    ax = chart.add_axes((LEFT / WIDTH, LOW / HEIGHT, WIDE / WIDTH, TALL / HEIGHT))
    _axes(ax, [*xs, *(p[0] for p in points)], [*every, ceiling or every[0]], log, span, unit)
    name_axes(ax, x, y if unit in (*PREFIXED, "") else f"{y} ({unit})", log)
    labels = _lines(ax, lines, xs, at, unit, inks or {})
    if ceiling is not None:
        ax.axhline(ceiling, color=TEXT, linewidth=1.4)
        ax.axhspan(ceiling, ax.get_ylim()[1], **BEYOND)
        labels.append((xs[-1], ceiling, "ceiling", amount(ceiling, unit)))
    beside(ax, [label for label in labels if label[2]])
    ax.plot([p[0] for p in points], [p[1] for p in points], "o", color=TEXT, zorder=3)
    nameless = [(x, y, said) for x, y, name, said in labels if said and not name]
    _name_points(ax, [*points, *nameless], next(iter(lines.values())))
    told = [f"{name} {said}" for *_, name, said in labels]
    told += [f"{said or amount(y, unit)} at {x:g}" for x, y, said in points]
    chart.alt = f"{y} over {x}. {finding}. {'; '.join(told)}.".replace("\n", " ")
    return chart


def _lines(
    ax: Axes, lines: Mapping[str, Callable[[float], float]], xs: Sequence[float],
    at: float | None, unit: str, inks: Mapping[str, str],
) -> list[tuple[float, float, str, str]]:  # fmt: skip
    """Draws them; of each where its label stands, its name, and its value where the reader is."""
    labels = []
    for name, f in lines.items():
        colour = INK[inks.get(name, "prediction")].colour
        ax.plot(xs, [f(place) for place in xs], "--", color=colour)
        end, said = xs[-1], ""
        if at is not None:
            ax.plot(at, f(at), "o", color=colour, markersize=8, zorder=3)
            end, said = end if name else at, amount(f(at), unit).strip()
        labels.append((end, f(end), name, said))
    return labels


def _axes(
    ax: Axes, xs: Sequence[float], ys: Sequence[float], log: str,
    span: tuple[float, float] | None, unit: str,
) -> None:  # fmt: skip
    """Where they begin and end, and the words at their marks: of a plain unit the number alone."""
    quiet(ax, "")
    if "x" in log:
        log_axis(ax.xaxis, min(xs) / 1.15, max(xs) * 1.15, lambda value: f"{value:,.6g}")
    else:
        even_axis(ax.xaxis, min(0, *xs) - 0.02 * max(xs), 1.03 * max(xs), lambda v: f"{v:,.6g}")
    if "y" in log:
        low, high = span or (min(v for v in ys if v > 0) / 1.8, 1.8 * max(ys))
        one = None if unit in PREFIXED else ("", 1.0)
        log_axis(ax.yaxis, low, high, lambda value: amount(value, unit, one))
    else:
        low, high = span or (0, max(ys) or 1)
        one = scale_of(high, unit) if unit in PREFIXED else ("", 1.0)
        even_axis(ax.yaxis, low, low + 1.06 * (high - low), lambda value: amount(value, unit, one))


def _name_points(
    ax: Axes, points: Sequence[tuple[float, float, str]], line: Callable[[float], float]
) -> None:
    """Words on the side of the line where their point is; only where they do not meet others."""
    taken: list[Bbox] = []  # inches
    for x, y, words in sorted(point for point in points if point[2]):
        right, up = (ax.transData + ax.transAxes.inverted()).transform((x, y))
        rows = words.split("\n")
        wide, high = max(width_of(row, 8) for row in rows), 0.15 * len(rows)
        above = y > line(x) or up < 0.12  # no room below
        left = min(max(WIDE * right + (-wide if above else 0.09), 0), WIDE - wide)
        low = TALL * up + (0.12 if above else -0.12 - high)
        box = Bbox.from_bounds(left, low, wide, high)
        if not box.count_overlaps(taken):
            taken.append(box)
            ax.text(left / WIDE, (low + high) / TALL, words, transform=ax.transAxes, va="top",
                    size=8, color=TEXT, zorder=2, parse_math=False,
                    bbox={"facecolor": PAPER, "linewidth": 0, "pad": 0.5, "alpha": 0.8}
                    )  # fmt: skip
