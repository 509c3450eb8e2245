"""A text in blocks: in reading order, with their ids, on the paper, and what is left over told."""

from __future__ import annotations

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from minillm.charts import Chart, counted, pieces


def drawn(chart: Chart) -> list[tuple[str, float, float, float]]:
    """Of each block its words, left, right and top in pixels, as it is drawn."""
    renderer = FigureCanvasAgg(chart).get_renderer()
    chart.draw(renderer)
    boxes = [(text, text.get_bbox_patch()) for text in chart.texts if text.get_bbox_patch()]
    found = [(text.get_text(), box.get_window_extent(renderer)) for text, box in boxes]
    return [(words, box.x0, box.x1, box.y1) for words, box in found]


def test_blocks_stand_in_reading_order_with_their_ids() -> None:
    """Catches a block over another, a row that goes back, an id below another block."""
    blocks = drawn(pieces("Many", [f"word{n}" for n in range(40)], list(range(300, 340))))
    assert [words for words, *_ in blocks] == [f"word{n}\n{300 + n}" for n in range(40)]
    rows = sorted({round(top) for *_, top in blocks}, reverse=True)
    assert len(rows) > 1
    for (_, _, right, top), (_, left, _, below) in zip(blocks, blocks[1:], strict=False):
        assert right <= left + 1 if round(top) == round(below) else round(below) < round(top)


def test_neighbours_have_other_colours_and_a_line_between() -> None:
    """Catches two tokens that look like one."""
    first, second = (t.get_bbox_patch() for t in pieces("Two", ["a", "b"], [1, 2]).texts[-2:])
    assert first.get_facecolor() != second.get_facecolor() and first.get_linewidth() > 0


@pytest.mark.parametrize("count", [1, 60, 1000])
def test_blocks_stay_on_the_paper_and_the_rest_is_counted(count: int) -> None:
    """Catches a long text that runs off the page in silence."""
    chart = pieces("Long", ["F0 9F"] * count, [1234] * count, note="a note")
    blocks = drawn(chart)
    assert all(chart.bbox.x0 <= left and right <= chart.bbox.x1 for _, left, right, _ in blocks)
    told = chart.texts[-1].get_text()
    assert len(blocks) == count or told == f"… and {count - len(blocks)} more"
    assert f"in {counted(count, 'block')}:" in chart.alt


def test_dollars_are_drawn_as_they_are() -> None:
    """Catches a price that is read as a formula."""
    assert drawn(pieces("Price", ["$x$"], [7]))[0][0] == "$x$\n7"
    assert not pieces("Price", ["$x$"], [7]).texts[-1].get_parse_math()
