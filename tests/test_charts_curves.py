"""A curve says where the reader is: the point lies on the line, and its words are its value."""

from __future__ import annotations

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from minillm.charts import Chart, curve
from minillm.charts.ink import INK

DOUBLINGS = [2**n for n in range(12)]
WAYS = {"an SSD each": lambda n: 8 + 12 / n, "one storage": lambda n: 8 * n + 12,
        "one for all": lambda n: 20.0}  # fmt: skip
RATE = {"": lambda n: 2e9 * n / (n + 3)}
CASES = {
    "three ways, one out of sight": (WAYS, range(1, 65), dict(
        y="time to load", unit="s", log="", span=(0, 120), at=8,
        inks={"an SSD each": "ssd", "one for all": "network"})),
    "a share": ({"": lambda n: min(100, n / 20)}, DOUBLINGS, dict(
        y="hidden", unit="%", span=(0, 100), at=64)),
    "under a ceiling": (RATE, DOUBLINGS, dict(
        y="bandwidth", unit="B/s", log="xy", at=64, ceiling=2e9)),
    "measured": (RATE, DOUBLINGS, dict(
        y="bandwidth", unit="B/s", log="xy", ceiling=2e9,
        points=[(1, 0.4e9, "400 MB/s"), (4, 1.1e9, "1.1 GB/s"), (2048, 1.9e9, "1.9 GB/s\nbest")])),
    "one point": ({"a": lambda n: 5.0}, [3], dict(y="y", log="xy", at=3)),
    "equal values": (dict.fromkeys("abcde", lambda n: 1.0), [1, 2, 3], dict(
        y="y", unit="s", log="", at=2, ceiling=1.0)),
    "five orders apart": ({"low": lambda n: 1e-3 * n, "high": lambda n: 100 * n}, [1, 1e5], dict(
        y="rate", unit="B/s", log="xy", at=300,
        points=[(1, 1e-3, "here"), (1.2, 2e-3, "there"), (9e4, 1e7, "and far up, to the right")])),
    "nothing": ({"none": lambda n: 0}, [0, 1e5], dict(y="y", unit="s", log="", at=0)),
    "a long name": ({"$the_way_that_nobody_takes$ and its long name": lambda n: n}, DOUBLINGS, dict(
        y="tokens a second", unit="tokens per second and user", at=2)),
}  # fmt: skip


def made(case: str, **more) -> Chart:
    lines, xs, given = CASES[case]
    return curve("The finding", lines, xs, x="size (KiB)", **{**given, **more})


def words(chart: Chart) -> list[str]:
    return [text.get_text() for text in chart.axes[0].texts]


def marks(chart: Chart) -> list[list[float]]:
    return [line.get_xydata()[0].tolist() for line in chart.axes[0].lines
            if line.get_marker() == "o" and len(line.get_xydata())]  # fmt: skip


def test_the_readers_point_lies_on_each_line_and_its_value_is_told() -> None:
    """Catches a point that stays where it was while the knob is turned."""
    for at in (8, 64):
        chart = made("three ways, one out of sight", at=at)
        assert marks(chart) == [[at, f(at)] for f in WAYS.values()]
        told = words(chart)
        for name, f in WAYS.items():
            assert told[told.index(name) + 1] == f"{f(at):.3g} s"
            assert f"{name} {f(at):.3g} s" in chart.alt
    alone = made("a share")
    assert "3.2 %" in words(alone) and "3.2 %" in alone.alt


def test_a_prediction_is_dashed_in_the_ink_of_its_meaning() -> None:
    """Catches a line that looks measured, and two colours for one meaning."""
    lines = [line for line in made("three ways, one out of sight").axes[0].lines
             if line.get_linestyle() == "--"]  # fmt: skip
    inks = [INK[ink].colour for ink in ("ssd", "prediction", "network")]
    assert [line.get_color() for line in lines] == inks


@pytest.mark.parametrize("case", CASES)
def test_axes_are_named_plain_and_without_a_frame(case: str) -> None:
    """Catches 10 to the power of 3 at a mark, a log axis that does not say so, and a box."""
    chart = made(case)
    (ax,) = chart.axes
    assert chart.get_suptitle() == chart.finding == "The finding"
    assert [side for side, spine in ax.spines.items() if spine.get_visible()] == ["bottom"]
    x, y = ax.get_xlabel(), next(said for said in words(chart) if CASES[case][2]["y"] in said)
    assert [("log axis" in said) for said in (x, y)] == [
        scale == "log" for scale in (ax.get_xscale(), ax.get_yscale())
    ]
    ax.figure.draw_without_rendering()
    ticks = [label.get_text() for label in (*ax.get_xticklabels(), *ax.get_yticklabels())]
    assert len(ticks) > 1 and not any("$" in said or "e+" in said for said in ticks), ticks


def test_a_linear_axis_begins_at_zero_and_a_span_stays() -> None:
    """Catches an axis that jumps while a knob is turned, and a mark at zero that is cut in half."""
    assert curve("f", {"a": lambda n: 9.0 + n}, [1, 2], x="x", y="y").axes[0].get_ylim()[0] == 0
    low, high = made("nothing").axes[0].get_xlim()
    assert low < 0 and high > 1e5, "the marks at both ends are whole"
    spans = {made("a share", at=at).axes[0].get_ylim() for at in (1, 2048)}
    assert len(spans) == 1


@pytest.mark.parametrize("case", CASES)
def test_words_touch_neither_each_other_nor_the_edge(case: str) -> None:
    """Catches names of lines that end at one place, and measured points in a heap."""
    chart = made(case)
    chart.dpi = 192  # as it is drawn
    renderer = FigureCanvasAgg(chart).get_renderer()
    texts = [text for text in chart.axes[0].texts if text.get_text()]
    boxes = [text.get_window_extent(renderer).shrunk(0.98, 0.7) for text in texts]
    touching = [(a.get_text(), b.get_text()) for i, a in enumerate(texts)
                for j, b in enumerate(texts[:i]) if boxes[i].overlaps(boxes[j])]  # fmt: skip
    assert not touching
    drawn, (wide, high) = chart.get_tightbbox(renderer), chart.get_size_inches()
    assert drawn.x0 >= 0 and drawn.y0 >= 0 and drawn.x1 <= wide and drawn.y1 <= high, drawn


def test_a_measured_point_without_room_for_words_is_drawn_and_told() -> None:
    """Catches a measurement that vanishes because its words had no room."""
    chart = made("five orders apart")
    measured = [line for line in chart.axes[0].lines
                if line.get_marker() == "o" and len(line.get_xydata()) == 3]  # fmt: skip
    assert [line.get_xydata()[:, 1].tolist() for line in measured] == [[1e-3, 2e-3, 1e7]]
    assert "there" not in words(chart) and "there at 1.2" in chart.alt
    plain = made("measured", points=[(1, 4e8, ""), (4, 1.1e9, "")])
    assert "400 MB/s at 1; 1.1 GB/s at 4." in plain.alt
