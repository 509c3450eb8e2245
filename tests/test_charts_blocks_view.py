"""Block tables as a picture: what is counted, what is drawn, and that colour is never alone."""

from __future__ import annotations

import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from minillm.charts import Chart, blocks
from minillm.charts.blocks_view import KNOWN, REQUESTS
from minillm.charts.ink import WIDTH

TABLES = {"Mia": [7, 6, 5], "Tom": [7, 6, 4, 3]}
WRITTEN = {"Mia": 10, "Tom": 13}  # with pages of four: two places of page 5, three of 3 are empty


def made(**more) -> Chart:
    return blocks(TABLES, WRITTEN, **{"pages": 8, "page_size": 4, "known": {1}, **more})


def bands(chart: Chart, colour: str) -> list[Rectangle]:
    patches = (part for part in chart.axes[0].get_children() if isinstance(part, Rectangle))
    return [p for p in patches if to_hex(p.get_facecolor()).upper() == colour]


@pytest.mark.parametrize(
    ("tables", "written", "finding"),
    [
        (TABLES, WRITTEN,
         "2 texts: 7 pages named, 5 held, 2 of them shared; 5 of 20 places empty"),
        ({"Mia": [0, 1]}, {"Mia": 8},
         "1 text: 2 pages named, 2 held, 0 of them shared; 0 of 8 places empty"),
        ({"Mia": [0, 1], "twin": [0, 1]}, {"Mia": 6, "twin": 5},  # a page that both still share
         "2 texts: 4 pages named, 2 held, 2 of them shared; 2 of 8 places empty"),
        ({"gone": [], "Mia": [3]}, {"gone": 0, "Mia": 1},
         "1 text: 1 page named, 1 held, 0 of them shared; 3 of 4 places empty"),
        ({}, {}, "Nobody holds a page"), ({"Mia": []}, {"Mia": 0}, "Nobody holds a page"),
    ],
)  # fmt: skip
def test_the_finding_counts_pages_once_and_empty_places_of_pages(tables, written, finding) -> None:
    """Catches a shared page that is counted twice, and its empty places too."""
    chart = blocks(tables, written, pages=8, page_size=4)
    assert chart.finding == chart.get_suptitle().replace("\n", " ") == finding
    assert finding in chart.alt


def test_each_page_is_drawn_in_the_pool_and_in_each_table_that_names_it() -> None:
    """Catches a page missing in a table, one drawn for whom it is not, a known one that is held."""
    chart = made()
    mia, tom = (bands(chart, ink.colour) for ink in REQUESTS[:2])
    assert (len(mia), len(tom)) == (3 + 3, 4 + 4)
    assert len(bands(chart, KNOWN.colour)) == 1 and not bands(made(known={7}), KNOWN.colour)
    said = [text.get_text() for text in chart.axes[0].texts]
    assert said.count("7\n×2") == said.count("6\n×2") == 2
    assert {"Mia", "10 tokens", "Tom", "13 tokens", "5 pages held"} <= set(said)
    assert "Tom: pages 7, 6, 4, 3" in chart.alt


def test_a_request_keeps_its_colour_when_another_ends() -> None:
    """Catches a picture that, live, paints the next one with the ink of the one that has gone."""
    later = blocks({"Mia": [], "Tom": [7]}, {"Mia": 0, "Tom": 2}, pages=8, page_size=4)
    assert not bands(later, REQUESTS[0].colour) and len(bands(later, REQUESTS[1].colour)) == 2


def test_a_band_is_as_long_as_what_is_written() -> None:
    """Catches a last page that looks full."""
    widths = sorted({round(band.get_width(), 6) for band in bands(made(), REQUESTS[1].colour)})
    assert len(widths) == 2 and widths[0] == pytest.approx(widths[1] / 4)


def test_colour_is_never_alone() -> None:
    """Catches two requests that only their colours tell apart."""
    assert len({ink.hatch for ink in (*REQUESTS, KNOWN)}) == len(REQUESTS) + 1


@pytest.mark.parametrize("pages", [1, 8, 24])
def test_the_pool_stays_on_the_paper(pages: int) -> None:
    """Catches a pool wider than its picture."""
    chart = blocks({"Mia": [0]}, {"Mia": 3}, pages=pages, page_size=4)
    boxes = (part for part in chart.axes[0].get_children() if isinstance(part, Rectangle))
    assert max(box.get_x() + box.get_width() for box in boxes if box.get_x() > 0) <= WIDTH
