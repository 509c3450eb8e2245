"""A text as the pieces that it was cut into: a block each, in reading order, with its id."""

from __future__ import annotations

from collections.abc import Sequence

from minillm.charts.blocks_view import REQUESTS
from minillm.charts.ink import FAINT, HEIGHT, PAPER, TEXT, WIDTH, counted
from minillm.charts.style import Chart, width_of

LEFT, TOP, STEP = 0.14, 0.8, 0.46  # inches: margin, of the first row, from row to row


def pieces(finding: str, texts: Sequence[str], ids: Sequence[int], note: str = "") -> Chart:
    """Blocks from left to right and row by row; what has no room is counted below.

    >>> pieces("Two tokens", ["the", "·key"], [259, 306])
    Two tokens
    """
    chart, x, y = Chart(finding, note=note), LEFT, HEIGHT - TOP
    chart.alt = f"{finding}. The text in {counted(len(texts), 'block')}: {' | '.join(texts)}."
    for at, (text, token) in enumerate(zip(texts, ids, strict=True)):
        wide = max(width_of(text, 8), width_of(f"{token}", 8)) + 0.12
        x, y = (x, y) if x + wide < WIDTH else (LEFT, y - STEP)
        if y < STEP:
            chart.text(LEFT / WIDTH, 0.02, f"… and {len(texts) - at} more", size=8, color=FAINT)
            break
        box = {"facecolor": REQUESTS[at % 2].colour, "edgecolor": PAPER, "pad": 3.2}
        chart.text(x / WIDTH, y / HEIGHT, f"{text}\n{token}", size=8, color=TEXT, bbox=box,
                   va="top", linespacing=1.3, parse_math=False)  # fmt: skip
        x += wide
    return chart
