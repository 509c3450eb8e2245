"""Bars: a row is as long as its share, and what it was before is drawn round it."""

from __future__ import annotations

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from minillm.charts import bars
from minillm.errors import MinillmError

SHARES = {"tea": 0.8, "$milk$": 0.2, "water": 0.0}


def test_bars_are_as_long_as_their_shares_and_lie_beside_their_names() -> None:
    """Catches rows in another order than the names, and shares drawn as parts of a percent."""
    chart = bars("Tea comes first", SHARES, before={"tea": 0.5, "water": 0.1})
    ax = chart.axes[0]
    now = [bar for bar in ax.patches if bar.get_fill()]
    then = [bar for bar in ax.patches if not bar.get_fill()]
    assert [bar.get_width() for bar in now] == pytest.approx([80, 20, 0])
    assert [bar.get_width() for bar in then] == pytest.approx([50, 10])
    assert min(b.get_height() for b in then) > max(b.get_height() for b in now)
    assert [bar.get_y() < row + 0.5 < bar.get_y() + bar.get_height() for row, bar in
            enumerate(now)] == [True] * 3  # fmt: skip
    assert [(text.get_text(), text.xy[1]) for text in ax.texts] == [
        ("tea", 0.5), ("80 %", 0.5), ("$milk$", 1.5), ("20 %", 1.5), ("water", 2.5), ("out", 2.5),
    ]  # fmt: skip
    assert chart.alt == "Tea comes first. tea 80 %, $milk$ 20 %, water out."


def test_words_stay_on_the_paper_and_do_not_meet() -> None:
    """Catches rows closer than their letters are high, and names that run off the page."""
    names = [f"{n} an unusually long piece of text\n" for n in range(14)]
    chart = bars("Alike", dict.fromkeys(names, 1 / 14), note="n")
    renderer = FigureCanvasAgg(chart).get_renderer()
    chart.draw(renderer)
    boxes = [text.get_window_extent(renderer) for text in chart.axes[0].texts]
    assert all(chart.bbox.x0 <= b.x0 and b.x1 <= chart.bbox.x1 for b in boxes)
    for column in (boxes[::2], boxes[1::2]):
        assert not any(a.overlaps(b) for a, b in zip(column, column[1:], strict=False))


@pytest.mark.parametrize("bad", [{}, {"a": 1.5}, {"a": -0.1}, {"a": float("nan")}])
def test_what_is_no_share_is_refused(bad: dict[str, float]) -> None:
    """Catches counts drawn as shares, off the paper."""
    with pytest.raises(MinillmError, match="shares from 0 to 1"):
        bars("Wrong", bad)
