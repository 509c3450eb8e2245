"""A log of requests as a picture: how long each waited for its first token, and for the others."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

from minillm.charts.ink import INK, WIDTH, amount, scale_of
from minillm.charts.style import Chart, even_axis, name_row, quiet
from minillm.errors import MinillmError

LEFT, HEAD, ROW, LOW = 2.4, 0.5, 0.24, 0.44  # inches: names, title, a request, the axis


def requests(path: str | Path, most: int = 16) -> Chart:
    """The last `most` requests of an engine's log: dark up to the first token, light the others.

    Those without a token are left out. Raises MinillmError for a log without any others.

    >>> charts.requests("requests.jsonl").finding
    'The first token comes after 14.2 ms, each later one takes 2.41 ms (median of 9)'
    """
    lines = map(json.loads, Path(path).read_text("utf-8").splitlines())
    rows = [row for row in lines if row["ttft"] is not None][-most:]
    if not rows:
        raise MinillmError(f"wanted requests in {path}, found none; run some before")
    finding = f"The first token comes after {amount(median(row['ttft'] for row in rows), 's')}"
    if later := [row["tpot"] for row in rows if row["tpot"] is not None]:
        finding += f", each later one takes {amount(median(later), 's')}"
    high = HEAD + ROW * len(rows) + LOW
    chart = Chart(f"{finding} (median of {len(rows)})", size=(WIDTH, high))
    box = LEFT / WIDTH, LOW / high, 0.97 - LEFT / WIDTH, ROW * len(rows) / high
    ax, told = chart.add_axes(box), []
    longest = max(map(_end, rows))
    unit, size = scale_of(longest, "s")
    quiet(ax, f"time since the request came ({unit})")
    even_axis(ax.xaxis, 0, 1.02 * longest / size, lambda value: f"{value:,.6g}")
    for at, row in enumerate(rows):
        told.append(f"{row['prompt_tokens']:,} + {row['tokens']:,} tokens, {row['finish_reason']}")
        name_row(ax, at, told[-1])
        ax.barh(at, _end(row) / size, 0.6, color=INK["cpu"].colour)
        ax.barh(at, row["ttft"] / size, 0.6, color=INK["compute"].colour)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    chart.alt = f"A bar for each request. {chart.finding}. {'; '.join(told)}."
    return chart


def _end(row: dict) -> float:
    return row["ttft"] + (row["tpot"] or 0.0) * (row["tokens"] - 1)
