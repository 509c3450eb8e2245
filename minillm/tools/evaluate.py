"""The shipped model's skills as numbers: what a trick costs in quality shows here.

A line of `data/eval/skills.jsonl` has a prompt and its one right answer. The model continues the
prompt greedily, and the line counts if the text begins with exactly that answer. `distance` is
how many tokens back the fact lies that the answer needs (0: it lies in no prompt).
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from os import PathLike
from typing import NamedTuple

from minillm.config import SamplingParams
from minillm.engine.engine import Engine
from minillm.errors import ConfigError
from minillm.files import locate
from minillm.kv.pages import Forget
from minillm.tools.bench import Progress, table

SKILLS = "data/eval/skills.jsonl"
BUCKETS = (128, 512, 1024, 1500, 2048)  # upper ends, in tokens
AT_ONCE = 16  # lines whose KV cache is there at a time


class Line(NamedTuple):
    """One question of the evaluation file."""

    skill: str
    prompt: str
    answer: str  # begins with a space, where the text does
    distance: int

    @property
    def bucket(self) -> str:
        """The range of distances it falls into, such as "129–512"; "–" for no distance."""
        at = bisect_left(BUCKETS, self.distance)
        low = BUCKETS[at - 1] if at else 0
        near = f"{low + 1:,}–{BUCKETS[at]:,}" if at < len(BUCKETS) else f"> {low:,}"
        return near if self.distance else "–"


class Result(NamedTuple):
    """A line and what the model wrote."""

    line: Line
    text: str

    @property
    def right(self) -> bool:
        return self.text.startswith(self.line.answer)


class Scores(tuple[Result, ...]):
    """What an evaluation found: every result, in the order of the lines."""

    @property
    def right(self) -> int:
        """How many lines are right."""
        return sum(result.right for result in self)

    @property
    def share(self) -> float:
        """Of the lines, those that are right: from 0 to 1; of no lines, 0."""
        return self.right / max(1, len(self))

    def __str__(self) -> str:
        return f"{self.share:.0%} ({self.right} of {len(self)})"

    def by(self, key: str) -> dict[str, Scores]:
        """Grouped by a field of their lines, such as "skill" or "bucket", in order of both."""
        groups: dict[str, list[Result]] = {}
        for result in sorted(self, key=lambda result: (result.line.skill, result.line.distance)):
            groups.setdefault(getattr(result.line, key), []).append(result)
        return {name: Scores(results) for name, results in groups.items()}

    def table(self) -> str:
        """Skill, distance, lines, exact match: one row each, the near distances first."""
        rows = [("skill", "distance", "n", "exact match")]
        for skill, scores in self.by("skill").items():
            parts = scores.by("bucket")
            shown = [(skill, "all", scores)]
            shown += [("", near, part) for near, part in parts.items() if len(parts) > 1]
            rows += [(s, d, f"{len(p)}", f"{p.share:.1%}") for s, d, p in shown]
        return table(rows)


def read_lines(path: str | PathLike[str] = SKILLS) -> list[Line]:
    """The lines of an evaluation file; ConfigError names a line that is not one."""
    try:
        rows = locate(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        found = f"none that can be read at {path} ({error}); name one such as {SKILLS}"
        raise ConfigError(f"wanted an evaluation file, found {found}") from error
    return [_line(row, f"{path}, line {at}") for at, row in enumerate(rows, 1) if row.strip()]


def _line(row: str, where: str) -> Line:
    try:
        line = Line(**json.loads(row))
        assert [*map(type, line)] == [str, str, str, int]
        assert line.answer and line.distance >= 0
    except (ValueError, TypeError, AssertionError) as error:
        wanted = '{"skill", "prompt", "answer": text, "distance": tokens}'
        found = f"{row[:60]!r}; write the file again"
        raise ConfigError(f"wanted {wanted} in {where}, found {found}") from error
    return line


def evaluate(
    engine: Engine, lines: Sequence[Line], *, forget: Forget | None = None,
    progress: Progress = lambda done, total: None,
) -> Scores:  # fmt: skip
    """Ask every line; results in their order.

    progress: told (lines done, lines in all).
    forget: what the KV cache forgets of each prompt, as `drop_oldest(0.5)`.

    >>> evaluate(engine, read_lines()).by("skill")["recall"].share
    0.97
    """
    texts = [""] * len(lines)
    # The longest first: lines of one call are alike, and the progress bar only gets faster.
    order = sorted(range(len(lines)), key=lambda at: len(lines[at].prompt), reverse=True)
    before, engine.kv.forget = engine.kv.forget, forget
    try:
        for start in range(0, len(order), AT_ONCE):
            chosen = order[start : start + AT_ONCE]
            params = [_params(engine, lines[at].answer) for at in chosen]
            completions = engine.generate([lines[at].prompt for at in chosen], params)
            for at, completion in zip(chosen, completions, strict=True):
                texts[at] = completion.text
            progress(start + len(chosen), len(lines))
    finally:
        engine.kv.forget = before
    return Scores(map(Result, lines, texts))


def beyond_half(engine: Engine, lines: Iterable[Line]) -> list[Line]:
    """The recall lines whose fact lies in the older half of the prompt.

    The control: with `drop_oldest(0.5)` the model cannot look these facts up any more, so a model
    that still answers them has learned the answers, not to recall.
    """
    recall, encode = (line for line in lines if line.skill == "recall"), engine.tokenizer.encode
    return [line for line in recall if line.distance > len(encode(line.prompt)) / 2]


def _params(engine: Engine, answer: str) -> SamplingParams:
    """Greedy, and no further than the answer may need."""
    # A text may be cut into tokens in more than one way: leave room for a few more.
    tokens = len(engine.tokenizer.encode(answer, add_special=False)) + 4
    stop = () if "\n" in answer else ("\n",)
    return SamplingParams(max_tokens=tokens, temperature=0.0, stop=stop)
