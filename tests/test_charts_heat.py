"""A heat map: a cell is where its row and column are named, and its shade is its share."""

from __future__ import annotations

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from minillm.charts import Chart, heatmap, looks
from minillm.errors import MinillmError

TOKENS = ["Ben", "'s", " word", " is", " $cactus$", ".\n"]
SEEN = ["Ben", "'s", "word", "is", "$cactus$", ".↵"]
CAUSAL = [[1 / (row + 1) if column <= row else 0.0 for column in range(6)] for row in range(6)]


def drawn(rows: int = 6, columns: int = 6, at=None) -> Chart:
    values = [[float(c == r) for c in range(columns)] for r in range(rows)]
    names = ["an unusually long piece" if n % 9 == 8 else TOKENS[n % 6] for n in range(60)]
    return heatmap("Each looks at itself", values, names[:rows], names[:columns], at=at, note="n")


def test_rows_go_down_and_columns_to_the_right_and_a_larger_share_is_darker() -> None:
    """Catches a picture upside down or turned over, in which tokens would see what comes later."""
    chart = heatmap("Each looks back", CAUSAL, TOKENS, TOKENS, at=(4, 0))
    chart.draw_without_rendering()
    ax = chart.axes[0]
    (mesh,) = ax.collections
    dark = 1 - mesh.to_rgba(mesh.get_array())[..., :3].mean(-1)
    shade = [[dark[row][column] for column in range(6)] for row in range(6)]
    assert shade[0][0] > shade[1][0] > shade[5][0] > shade[0][5] == pytest.approx(0, abs=0.01)
    named = [("x", ax.get_xticklabels()), ("y", ax.get_yticklabels())]
    for axis, labels in named:  # at the middle of its row, or column; a new line can be seen
        places = [(t.get_position()["xy".index(axis)], t.get_text()) for t in labels]
        assert places == [(n + 0.5, name) for n, name in enumerate(SEEN)]
    (left, top), (right, bottom) = ax.transData.transform([(0.5, 0.5), (5.5, 5.5)])
    assert left < right and top > bottom  # pixels go up


def test_the_framed_cell_is_told_in_words() -> None:
    """Catches a frame beside its cell, and a picture that says nothing to those who cannot see."""
    chart = heatmap("Ben is found", CAUSAL, TOKENS, TOKENS, at=(4, 1))
    (frame,) = chart.axes[0].patches
    assert frame.get_xy() == (1, 4) and (frame.get_width(), frame.get_height()) == (1, 1)
    assert "6 rows and 6 columns" in chart.alt and "'$cactus$' takes 20 % of \"'s\"" in chart.alt
    assert not heatmap("No frame", CAUSAL, TOKENS, TOKENS).axes[0].patches


def test_words_stand_in_their_cells_and_can_be_read_on_any_shade() -> None:
    """Catches numbers in the cells of their neighbours, and dark words on a dark cell."""
    chart = heatmap("Two", [[0.25, 1.0]], ["rank 0"], ["a", "b"], words=[["10", "1111"]])
    pale, dark = (t for t in chart.axes[0].texts if t.get_text() in ("10", "1111"))
    assert [t.get_position() for t in (pale, dark)] == [(0.5, 0.5), (1.5, 0.5)]
    assert pale.get_color() != dark.get_color() and "rank 0: 10, 1111." in chart.alt


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (6, 6), (14, 50), (30, 60)])
def test_words_stay_on_the_paper_and_do_not_meet(rows: int, columns: int) -> None:
    """Catches names of tokens over each other where a sentence is long."""
    chart = drawn(rows, columns, at=(0, 0))
    renderer = FigureCanvasAgg(chart).get_renderer()
    chart.draw(renderer)
    ax, paper = chart.axes[0], chart.bbox
    named = [ax.get_yticklabels(), ax.get_xticklabels()]
    for words in named:  # of rows, and of columns
        boxes = [text.get_window_extent(renderer) for text in words if text.get_text().strip()]
        assert all(paper.x0 <= b.x0 and b.x1 <= paper.x1 and paper.y0 <= b.y0 for b in boxes)
        assert not any(a.overlaps(b) for a, b in zip(boxes, boxes[1:], strict=False))


@pytest.mark.parametrize(
    ("values", "rows", "columns"),
    [([[1.0]], ["a", "b"], ["a"]), ([[1.0], [0.0, 1.0]], ["a", "b"], ["a"]), ([], [], ["a"]),
     ([[1.2]], ["a"], ["a"]), ([[float("nan")]], ["a"], ["a"]), ([[-0.1]], ["a"], ["a"])],
)  # fmt: skip
def test_what_is_no_share_or_has_no_name_is_refused(values, rows, columns) -> None:
    """Catches scores drawn before the softmax, and names that slipped by one."""
    with pytest.raises(MinillmError):
        heatmap("f", values, rows, columns)


@pytest.mark.parametrize("sizes", [(24, 12), (12, 24), (3, 3, 1)])
def test_batches_are_drawn_to_one_scale_on_the_paper(sizes: tuple[int, ...]) -> None:
    """Catches panels that each fill their room, which hide what packing saves."""
    squares = {f"batch {n}": [[1.0] * size] * size for n, size in enumerate(sizes)}
    chart = looks("Each has its size", squares, note="n")
    renderer = FigureCanvasAgg(chart).get_renderer()
    chart.draw(renderer)
    boxes = [ax.get_window_extent(renderer) for ax in chart.axes]
    for box, size in zip(boxes, sizes, strict=True):
        assert box.width == pytest.approx(box.height)
        assert box.width / size == pytest.approx(boxes[0].width / sizes[0])
    assert len({round(box.y1) for box in boxes}) == 1, "they begin at one height"
    words = [text.get_window_extent(renderer) for text in chart.texts]
    paper = chart.bbox
    for box in [*boxes, *words]:
        assert paper.x0 <= box.x0 and box.x1 <= paper.x1 and paper.y0 <= box.y0
    assert not any(a.overlaps(b) for a, b in zip(boxes, boxes[1:], strict=False))
    assert f"batch 0: {sizes[0]} × {sizes[0]}, queries × keys" in chart.alt


def test_a_query_goes_down_and_a_key_across() -> None:
    """Catches a mask turned over, in which tokens would look at what comes later."""
    chart = looks("The second looks at the first", {"one": [[1, 0], [0.3, 1]]})
    (picture,) = chart.axes[0].images
    assert picture.get_array().tolist() == [[1, 0], [0.3, 1]] and picture.origin == "upper"
