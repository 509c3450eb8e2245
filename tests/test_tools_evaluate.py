"""The evaluation: which lines count, how they are grouped, and what the control leaves out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from minillm import ConfigError, Engine, Machine, SamplingParams
from minillm.kv import drop_oldest
from minillm.tools.evaluate import Line, Result, Scores, beyond_half, evaluate, read_lines

ROOT = Path(__file__).parent.parent
PROMPTS = ("Mia put the red key", "The code of the chest", "Where is the key?")


@pytest.fixture
def engine(tiny, machine) -> Engine:
    return Engine.load(tiny("llama3"), machine)


@pytest.fixture
def lines(engine) -> list[Line]:
    """Three prompts, each with its own right answer, and one whose answer is wrong at its end."""
    params = SamplingParams(max_tokens=5, temperature=0.0)
    texts = [c.text.split("\n")[0] for c in engine.generate(list(PROMPTS), params)]
    lines = [Line("where", p, t[:4], 0) for p, t in zip(PROMPTS, texts, strict=True)]
    return [*lines, Line("recall", PROMPTS[0], texts[0][:4] + "\ue000", 130)]


def test_a_line_counts_if_the_text_begins_with_its_answer(engine, lines):
    """Catches a comparison that strips, searches inside, or forgives the last character."""
    assert all(line.answer for line in lines)
    scores = evaluate(engine, lines)
    assert [result.right for result in scores] == [True, True, True, False]
    totals = {skill: (part.right, len(part)) for skill, part in scores.by("skill").items()}
    assert totals == {"where": (3, 3), "recall": (0, 1)}
    assert len(scores) == 4 and scores.share == 0.75 and str(scores) == "75% (3 of 4)"


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_results_do_not_depend_on_how_many_are_asked_at_once(engine, lines, monkeypatch, at_once):
    """Catches a result booked on another line, once lines are sorted by length."""
    monkeypatch.setattr("minillm.tools.evaluate.AT_ONCE", at_once)
    told = []
    scores = evaluate(engine, lines, progress=lambda done, total: told.append((done, total)))
    assert [result.line for result in scores] == lines
    assert [result.right for result in scores] == [True, True, True, False]
    assert told[-1] == (4, 4) and told == sorted(told)


def test_evaluation_leaves_memory_and_random_numbers_alone(engine, lines):
    """Catches a greedy evaluation that still draws, and a cache that is not given back."""
    before, state = engine.machine.hbm.used, torch.get_rng_state()
    evaluate(engine, lines, forget=drop_oldest(0.5))
    assert engine.machine.hbm.used == before
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("distance", "bucket"),
    [(0, "–"), (1, "1–128"), (128, "1–128"), (129, "129–512"), (1025, "1,025–1,500"),
     (1500, "1,025–1,500"), (2048, "1,501–2,048"), (2049, "> 2,048")],
)  # fmt: skip
def test_every_distance_has_its_bucket(distance, bucket):
    """Catches bounds that are off by one, and a distance in no bucket."""
    assert Line("recall", "p", " a", distance).bucket == bucket


def test_the_table_shows_near_distances_first():
    """Catches rows in the order of their text, where 1,025 comes before 129."""
    distances = (1400, 20, 300)
    results = tuple(Result(Line("recall", "p", " a", d), " a") for d in distances)
    scores = Scores((*results, Result(Line("sums", "p", " 3", 0), " 4")))
    near_first = ["1–128", "129–512", "1,025–1,500"]
    assert list(scores.by("skill")["recall"].by("bucket")) == near_first
    rows = [row.split() for row in scores.table().splitlines()]
    assert rows[1] == ["recall", "all", "3", "100.0%"]
    assert [row[0] for row in rows[2:5]] == ["1–128", "129–512", "1,025–1,500"]
    assert rows[5] == ["sums", "all", "1", "0.0%"]
    assert len(rows) == 6, "a skill of one distance needs no second row"


def test_the_control_takes_recall_of_facts_in_the_older_half(engine):
    """Catches facts in the half that stays, which would make the control look good or bad."""
    prompt = "Mia put the red key in the chest. " * 3
    tokens = len(engine.tokenizer.encode(prompt))
    far = Line("recall", prompt, " a", tokens // 2 + 1)
    near = Line("recall", prompt, " a", tokens // 2 - 1)
    other = Line("where", prompt, " a", tokens)
    assert beyond_half(engine, [near, far, other]) == [far]


def test_a_share_of_nothing_is_nothing():
    """Catches a division by zero in an empty group."""
    assert Scores(()).share == 0.0


GOOD = {"skill": "sums", "prompt": "What is 1 plus 2?", "answer": " 1 plus 2 is 3.", "distance": 0}


def test_lines_are_read_and_blank_ones_skipped(tmp_path):
    """Catches a last line without an end, and an empty one in between."""
    file = tmp_path / "skills.jsonl"
    file.write_text(json.dumps(GOOD) + "\n\n" + json.dumps(GOOD | {"distance": 9}))
    assert read_lines(file) == [Line(**GOOD), Line(**GOOD | {"distance": 9})]


@pytest.mark.parametrize(
    "bad",
    ["{", "[]", "7", "{}", json.dumps(GOOD | {"more": 1}), json.dumps(GOOD | {"distance": "far"}),
     json.dumps(GOOD | {"answer": ""}), json.dumps(GOOD | {"distance": -1})],
)  # fmt: skip
def test_a_bad_line_is_named_by_its_number(tmp_path, bad):
    """Catches a KeyError that does not tell which of 600 lines it was."""
    file = tmp_path / "skills.jsonl"
    file.write_text(json.dumps(GOOD) + "\n" + bad + "\n")
    with pytest.raises(ConfigError, match="skills.jsonl, line 2"):
        read_lines(file)


def test_a_missing_file_is_named(tmp_path):
    """Catches a traceback for a name mistyped."""
    with pytest.raises(ConfigError, match="none that can be read"):
        read_lines(tmp_path / "skills.jsonl")


def test_the_shipped_lines_fit_the_shipped_model():
    """Catches an evaluation file of another tokenizer, or with answers that cannot be reached."""
    lines = read_lines()
    assert len(lines) >= 400
    assert {"recall", "where", "glossary", "sums"} <= {line.skill for line in lines}
    engine = Engine.load("data/town", Machine.here(hbm="256 MiB", device="cpu"))
    for line in lines:
        tokens = len(engine.tokenizer.encode(line.prompt))
        answer = len(engine.tokenizer.encode(line.answer, add_special=False))
        assert line.distance < tokens
        assert tokens + answer + 4 <= engine.max_context
    assert len(beyond_half(engine, lines)) >= 20, "the control needs lines to stand on"


def test_the_shipped_model_has_its_skills():
    """Catches a shipped model that answers no better than before training; a small sample."""
    engine = Engine.load("data/town", Machine.here(hbm="256 MiB", device="cpu"))
    sample = [line for line in read_lines() if len(line.prompt) < 1500][::6]
    for skill, score in evaluate(engine, lines=sample).by("skill").items():
        assert score.share > 0.8, skill


def test_the_shipped_model_forgets_what_is_dropped():
    """Catches a drop that hides nothing, or a model that knows the codes from its training."""
    engine = Engine.load("data/town", Machine.here(hbm="256 MiB", device="cpu"))
    sample = [line for line in beyond_half(engine, read_lines()) if len(line.prompt) < 1500][::5]
    assert evaluate(engine, lines=sample).share > 0.8
    assert evaluate(engine, lines=sample, forget=drop_oldest(0.5)).share < 0.2
