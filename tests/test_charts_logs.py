"""The picture of a log: every request's bar, to the second that the line tells."""

from __future__ import annotations

import json

import pytest

from minillm import charts
from minillm.errors import MinillmError


def line(ttft: float | None, tpot: float | None, tokens: int, end: str = "length") -> str:
    row = {"ttft": ttft, "tpot": tpot, "tokens": tokens, "prompt_tokens": 1000}
    return json.dumps(row | {"finish_reason": end})


def test_bars_are_as_long_as_the_lines_say(tmp_path):
    """Catches a bar of another request, a wrong end, and a title that its bars do not show."""
    path = tmp_path / "log.jsonl"
    before = line(9.0, 9.0, 9), line(None, None, 0, "abort")
    last = line(0.010, 0.002, 6, "stop"), line(0.030, 0.004, 11), line(0.020, None, 1)
    path.write_text("\n".join([*before, *last]))
    chart = charts.requests(path, most=3)
    ax = chart.axes[0]
    assert ax.get_xlabel() == "time since the request came (ms)"
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([20, 10, 70, 30, 20, 20])
    assert [text.get_text() for text in ax.texts] == [
        "1,000 + 6 tokens, stop", "1,000 + 11 tokens, length", "1,000 + 1 tokens, length",
    ]  # fmt: skip
    assert chart.finding == (
        "The first token comes after 20 ms, each later one takes 3 ms (median of 3)"
    )
    assert all(word in chart.alt for word in (chart.finding, "1,000 + 6 tokens, stop"))


def test_an_empty_log_is_named(tmp_path):
    """Catches an empty picture."""
    path = tmp_path / "log.jsonl"
    path.write_text(line(None, None, 0) + "\n")
    with pytest.raises(MinillmError, match="wanted requests in .*log.jsonl, found none"):
        charts.requests(path)
