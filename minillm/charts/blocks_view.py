"""Block tables: whose pages lie where in the pool, which are shared, and what stands empty."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from minillm.charts.ink import FAINT, HEIGHT, PAPER, TEXT, WIDTH, Ink, counted
from minillm.charts.style import Chart

Tables = Mapping[str, Sequence[int]]
LEFT, HIGH, STEP = 1.3, 0.36, 0.62  # inches: of the names, of a page, from row to row
WIDEST = 0.5  # inches: of a page
KNOWN = Ink("#E5E7EB", "....")
# Whose a page is. No tier has these colours, for all of these pages lie in one.
REQUESTS = (Ink("#56B4E9"), Ink("#E8B33F", "////"), Ink("#C3A6EE", "xxxx"), Ink("#A8C66C", "\\\\"))


def blocks(
    tables: Tables, written: Mapping[str, int], pages: int, page_size: int,
    known: Collection[int] = (),
) -> Chart:  # fmt: skip
    """The pool of a KV cache, and below it the block table of each request, page by page.

    tables: name of a request to its pages, in the order of its text; up to four, and an empty one
    keeps its row. written: name to its tokens in the cache. pages: of the pool. known: those that
    nobody holds, kept for their text. A page has a band in the colour of each who holds it, as long
    as what is written in it.

    >>> blocks({"Mia": [0, 1], "Tom": [0, 2]}, {"Mia": 20, "Tom": 17}, pages=8, page_size=16)
    2 texts: 4 pages named, 3 held, 1 of them shared; 27 of 48 places empty
    """
    holders = {page: [n for n in tables if page in tables[n]] for page in range(pages)}
    filled = _filled(tables, written, page_size)
    note = f"pool of {counted(pages, 'page')} of {counted(page_size, 'place')}"
    note += " · ×2: in two tables · white: empty"
    chart = Chart(_finding(tables, filled, page_size), note=note + " · dotted: only known")
    ax = chart.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, HEIGHT))
    ax.set_axis_off()
    inks = dict(zip(tables, REQUESTS, strict=False))
    wide, top = min(WIDEST, (WIDTH - LEFT - 0.12) / pages), HEIGHT - 1.02
    _name(ax, top, "pool", f"{counted(sum(map(bool, holders.values())), 'page')} held")
    for page, names in holders.items():
        bands = [inks[name] for name in names] or [KNOWN] * (page in known)
        share = filled.get(page, page_size) / page_size
        _page(ax, LEFT + page * wide, top, wide, f"{page}", bands, share)
    for row, (name, table) in enumerate(tables.items(), 1):
        y = top - 0.08 - row * STEP
        _name(ax, y, name, counted(written[name], "token"))
        for at, page in enumerate(table):
            share = min(1, written[name] / page_size - at)
            times = f"\n×{len(holders[page])}" if len(holders[page]) > 1 else ""
            _page(ax, LEFT + at * wide, y, wide, f"{page}{times}", [inks[name]], share)
    said = (f"{name}: pages {', '.join(map(str, table))}" for name, table in tables.items())
    chart.alt = f"Pages of the KV cache. {chart.finding}. {'; '.join(said)}."
    return chart


def _filled(tables: Tables, written: Mapping[str, int], page_size: int) -> dict[int, int]:
    """Of each page that is held, its places with a token: as many as any of its holders wrote."""
    filled: dict[int, int] = {}
    for name, table in tables.items():
        for at, page in enumerate(table):
            tokens = min(page_size, max(0, written[name] - at * page_size))
            filled[page] = max(filled.get(page, 0), tokens)
    return filled


def _finding(tables: Tables, filled: Mapping[int, int], page_size: int) -> str:
    if not filled:
        return "Nobody holds a page"
    named = [page for table in tables.values() for page in table]
    shared = sum(named.count(page) > 1 for page in filled)
    texts = sum(map(bool, tables.values()))
    places = len(filled) * page_size
    said = f"{counted(texts, 'text')}: {counted(len(named), 'page')} named, {len(filled)} held"
    empty = f"{places - sum(filled.values())} of {counted(places, 'place')} empty"
    return f"{said}, {shared} of them shared; {empty}"


def _name(ax: Axes, y: float, name: str, figures: str) -> None:
    ax.text(0.084, y + HIGH / 2, name, va="bottom", size=8.5, weight="bold", color=TEXT,
            parse_math=False)  # fmt: skip
    ax.text(0.084, y + HIGH / 2, figures, va="top", size=7.5, color=FAINT)


def _page(
    ax: Axes, x: float, y: float, wide: float, words: str, bands: Sequence[Ink], share: float
) -> None:
    """A box with its number; of each band as much as is written of the page."""
    for place, ink in enumerate(bands):
        low, high = y + HIGH * place / len(bands), HIGH / len(bands)
        ax.add_artist(Rectangle((x, low), wide * share, high, facecolor=ink.colour,
                               hatch=ink.hatch, edgecolor=PAPER, linewidth=0))  # fmt: skip
    ax.add_artist(Rectangle((x, y), wide, HIGH, facecolor="none", edgecolor=FAINT, linewidth=0.8))
    ax.text(x + wide / 2, y + HIGH / 2, words, ha="center", va="center", size=7.5, color=TEXT,
            bbox={"facecolor": PAPER, "linewidth": 0, "pad": 0.8, "alpha": 0.85})  # fmt: skip
