"""A row says its own numbers: each mark stands where its value is, each word is that value."""

from __future__ import annotations

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from minillm.charts import Chart, predicted_measured
from minillm.charts.ink import amount
from minillm.errors import MinillmError

ALL = dict(guess=100, predicted=450, measured=[412, 420, 399], ceiling=958)


def labels(chart: Chart) -> list[str]:
    return [text.get_text() for text in chart.axes[0].texts]


@pytest.mark.parametrize(
    ("unit", "given", "said"),
    [
        ("s", dict(predicted=0.28e-3, measured=2.41e-3),
         "Measured 2.41 ms: 8.6 × the prediction"),
        ("ms per token", dict(predicted=0.28, measured=2.41),
         "Measured 2.41 ms per token: 8.6 × the prediction"),
        ("B/s", dict(measured=43e9, ceiling=100e9), "Measured 43 GB/s: 43 % of the ceiling"),
        ("tok/s", ALL, "Measured 412 tok/s: 92 % of the prediction, 43 % of the ceiling"),
        ("s", dict(measured=3e-3, ceiling=2e-3), "Measured 3 ms: 150 % of the limit"),
        ("tok/s", dict(guess=5, measured=600), "Measured 600 tok/s: 120 × the guess"),
        ("B", dict(guess=2**20, predicted=2**21), "Predicted 2 MiB: 2.0 × the guess"),
        ("tok/s", dict(guess=12), "Guessed 12 tok/s"),
        ("FLOP/s", dict(ceiling=7e11), "The ceiling is 700 GFLOP/s"),
        ("%", dict(guess=0, predicted=90, measured=0), "Measured 0 %: 0 % of the prediction"),
    ],
)  # fmt: skip
def test_title_is_the_ratio_of_what_was_given(unit: str, given: dict, said: str) -> None:
    """Catches a ratio turned round, a wrong prefix, and a division by a guess of zero."""
    chart = predicted_measured("quantity", unit, **given)
    assert chart.finding == chart.get_suptitle() == said


def test_each_value_is_said_once_and_what_is_missing_is_left_out() -> None:
    """Catches a mark without words, and a guess drawn for a reader who made none."""
    assert labels(predicted_measured("speed", "tok/s", **ALL)) == [
        "guess 100 tok/s", "prediction 450 tok/s", "measured 412 tok/s (399 to 420)",
        "ceiling 958 tok/s",
    ]  # fmt: skip
    assert labels(predicted_measured("speed", "tok/s", measured=7)) == ["measured 7 tok/s"]
    assert labels(predicted_measured("speed", "tok/s", measured=[], guess=3)) == ["guess 3 tok/s"]


def test_runs_are_told_with_their_spread() -> None:
    """Catches a mean in the place of the median, and runs of which only one is shown."""
    chart = predicted_measured("speed", "tok/s", measured=[1.0, 2.0, 9.0])
    assert "measured 2 tok/s (1 to 9)" in chart.alt
    assert chart.finding == "Measured 2 tok/s"


def test_axis_begins_at_zero_and_is_logarithmic_only_where_it_must_be() -> None:
    """Catches a bar that begins elsewhere, and a small value pressed into the margin."""
    near = predicted_measured("speed", "tok/s", predicted=10, measured=300).axes[0]
    far = predicted_measured("speed", "tok/s", predicted=10, measured=301).axes[0]
    zero = predicted_measured("speed", "tok/s", predicted=0, measured=301).axes[0]
    assert (near.get_xscale(), near.get_xlim()[0]) == ("linear", 0)
    assert (far.get_xscale(), zero.get_xscale()) == ("log", "linear")
    assert "log axis" in far.get_xlabel() and "log" not in near.get_xlabel()
    assert [patch.get_width() for patch in near.patches] == [10, 300]


@pytest.mark.parametrize(("unit", "beyond"), [("tok/s", (50, 53)), ("ms", (0, 50))])
def test_hatch_is_where_nothing_can_be(unit: str, beyond: tuple[float, float]) -> None:
    """Catches the least possible time drawn as if it were the most."""
    ax = predicted_measured("speed", unit, measured=10, ceiling=50).axes[0]
    area = next(patch for patch in ax.patches if patch.get_hatch())
    assert sorted([area.get_x(), area.get_x() + area.get_width()]) == pytest.approx(beyond)


@pytest.mark.parametrize(
    "given",
    [{}, {"measured": []}, {"guess": -1}, {"measured": [1, float("nan")]}, {"ceiling": "fast"},
     {"predicted": float("inf")}],
)  # fmt: skip
def test_what_is_no_number_is_refused_with_what_to_do(given: dict) -> None:
    """Catches an empty picture, and matplotlib's own words about infinity."""
    with pytest.raises(MinillmError, match="; (give|leave out)"):
        predicted_measured("speed", "tok/s", **given)


HARD = {
    "together": dict(guess=100, predicted=104, measured=[101, 102, 103], ceiling=105),
    "far apart": dict(guess=1e-6, predicted=3e3, measured=45e8, ceiling=2e12),
    "zero": dict(guess=50, predicted=90, measured=0, ceiling=100),
    "alone": dict(ceiling=1e-9),
}


@pytest.mark.parametrize("unit", ["s", "B", "FLOP/s", "tokens per second and user", "$x_1$"])
@pytest.mark.parametrize("hard", HARD)
def test_words_touch_neither_each_other_nor_the_edge(hard: str, unit: str) -> None:
    """Catches labels on top of each other where guess and measurement agree."""
    chart = predicted_measured("a quantity with a long name", unit, **HARD[hard])
    renderer = FigureCanvasAgg(chart).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in chart.axes[0].texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    drawn, (wide, high) = chart.get_tightbbox(renderer), chart.get_size_inches()
    assert drawn.x0 >= 0 and drawn.y0 >= 0 and drawn.x1 <= wide and drawn.y1 <= high, drawn


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [(999.6e6, "B/s", "1 GB/s"), (3.35e12, "B/s", "3.35 TB/s"), (1536, "B", "1.5 KiB"),
     (0, "B/s", "0 B/s"), (12345.6, "tok/s", "12,346 tok/s"), (0.5, "FLOP/s", "0.5 FLOP/s")],
)  # fmt: skip
def test_amounts_are_said_with_three_digits_and_their_prefix(value, unit, said) -> None:
    """Catches 1000 MB/s, 1e+03 and a prefix of 1024 where 1000 is meant."""
    assert amount(value, unit) == said
