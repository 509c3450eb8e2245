"""minillm/charts/ink.py: how a number is said, in charts, in what lessons say, and in knobs."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from minillm import charts
from minillm.charts.ink import counted

ROOT = Path(__file__).resolve().parent.parent
SHOWN = sorted(p for part in ("charts", "lesson") for p in (ROOT / "minillm" / part).glob("*.py"))
LESSONS = sorted((ROOT / "notebooks" / "source").glob("[0-9]*.py"))
# Behind a number: a noun of what is counted, perhaps with a word before it.
NOUNS = re.compile(
    r"(?: (?!of\b|×)\w+)? (tokens|ranks|pages|words|texts|requests|rows|columns|places|queries|"
    r"blocks|characters|bytes|merges|passes|GPUs|nodes|layers|steps|guesses|messages|slots)\b(?!/)"
)
# Never one, by what stands around them.
MANY = {"minillm/charts/machine_places.py": {"GPUs"},  # shown: 8 of 16
        "minillm/charts/timeline_rows.py": {"ranks"}, "minillm/charts/plots.py": {"requests"},
        "minillm/charts/logs.py": {"tokens"},  # 12 + 1 tokens
        "minillm/charts/roofs.py": {"bytes"},  # an event with bytes
        "minillm/lesson/guesses.py": {"guesses"},
        "notebooks/source/02_machine_roofline.py": {"tokens"},
        "notebooks/source/21_tokens_batch.py": {"texts", "places"},
        "notebooks/source/31_kv_cache.py": {"tokens"},
        "notebooks/source/33_kv_offload.py": {"tokens"},
        "notebooks/source/40_parallel_collectives.py": {"ranks"},
        "notebooks/source/50_decode_sampling.py": {"tokens", "words"},  # 1 of 4,096 tokens
        "notebooks/source/51_decode_stream.py": {"tokens"}}  # fmt: skip


@pytest.mark.parametrize(("n", "noun", "said"), [
    (0, "page", "0 pages"), (1, "page", "1 page"), (2, "page", "2 pages"), (1, "pass", "1 pass"),
    (2048, "token", "2,048 tokens"), (3, "pass", "3 passes"),
])  # fmt: skip
def test_one_is_singular(n: int, noun: str, said: str) -> None:
    """Catches "1 tokens"."""
    assert counted(n, noun) == charts.counted(n, noun) == said


def bare(path: Path) -> Iterator[str]:
    """The plurals behind a number in what a file says: of a lesson, in the functions of it, which
    draw what a slider asks for."""
    tree = ast.parse(re.sub(r"^(\s*)[%!]", r"\1#", path.read_text("utf-8"), flags=re.MULTILINE))
    inside = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for node in (n for top in (inside if path in LESSONS else [tree]) for n in ast.walk(top)):
        parts = node.values if isinstance(node, ast.JoinedStr) else []
        for number, after in zip(parts, parts[1:], strict=False):
            behind = isinstance(number, ast.FormattedValue) and isinstance(after, ast.Constant)
            if noun := behind and NOUNS.match(after.value):
                yield noun[1]


@pytest.mark.parametrize("path", [*SHOWN, *LESSONS], ids=lambda path: path.stem)
def test_what_is_counted_is_counted_in_one_place(path: Path) -> None:
    """Catches a title that is wrong for 1, the number that nobody has tried: `counted` says it."""
    name = path.relative_to(ROOT).as_posix()
    assert set(bare(path)) <= MANY.get(name, set()), f"{name}: use charts.counted"


def test_charts_of_one_are_right() -> None:
    """Catches "1 pages held" of the smallest pool."""
    chart = charts.blocks({"Mia": [0]}, {"Mia": 1}, pages=1, page_size=1)
    assert chart.finding == "1 text: 1 page named, 1 held, 0 of them shared; 0 of 1 place empty"
    said = {text.get_text() for ax in chart.axes for text in ax.texts}
    assert {"1 page held", "1 token"} <= said
    assert "1 row and 1 column," in charts.heatmap("a", [[1]], ["a"], ["a"]).alt
    assert "The text in 1 block: a." in charts.pieces("one", ["a"], [1]).alt
