"""minillm/lesson/exercises.py, and every solution file of the course: what an exercise keeps to."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest

from minillm.errors import ConfigError, MinillmError
from minillm.lesson import Case, exercises
from minillm.lesson.judge import NOT_ATTEMPTED, NOT_YET, RIGHT, judge

ROOT = Path(__file__).resolve().parent.parent
SOLUTIONS = sorted((ROOT / "notebooks" / "solutions").glob("[0-9][0-9]_*.py"))
EXERCISES = [made for path in SOLUTIONS for made in exercises.load(path).values()]
WRONGS = [(made, mistake) for made in EXERCISES for mistake in made.wrongs]
SOURCE = '''
from minillm.lesson import Case, exercise, wrong

@exercise("{number}", cases=[Case(n, expect=n, because="it is") for n in range(3)], hints=["h"])
def same(n):
    """The same."""
    return n
'''


TWICE = SOURCE.format(number="00.1") + SOURCE.format(number="00.1").replace("same", "again")


def stub(*args, **named):
    raise NotImplementedError


def named(made) -> str:
    return made.number


@pytest.mark.parametrize("made", EXERCISES, ids=named)
def test_the_stub_is_not_attempted(made) -> None:
    """Catches an exercise that reads as failed before anyone has tried it."""
    assert judge(made, stub).kind == NOT_ATTEMPTED


@pytest.mark.parametrize("made", EXERCISES, ids=named)
def test_the_solution_passes_and_leaves_its_cases_alone(made) -> None:
    """Catches a case with a wrong answer, and a solution that writes into its arguments."""
    before = copy.deepcopy([(case.args, case.named) for case in made.cases])
    assert judge(made, made.reference) == judge(made, made.reference)
    assert judge(made, made.reference).kind == RIGHT
    assert repr([(case.args, case.named) for case in made.cases]) == repr(before)


@pytest.mark.parametrize(("made", "mistake"), WRONGS, ids=lambda x: getattr(x, "number", ""))
def test_each_usual_wrong_answer_fails_with_its_own_message(made, mistake) -> None:
    """Catches a mistake that no case sees, and one that is told what belongs to another."""
    verdict = judge(made, mistake.function)
    assert (verdict.kind, verdict.tip) == (NOT_YET, mistake.says)
    assert verdict.because in {case.because for case in made.cases}


@pytest.mark.parametrize("made", EXERCISES, ids=named)
def test_an_exercise_teaches(made) -> None:
    """Catches an exercise without a usual wrong answer, and hints that give the code away."""
    assert made.wrongs and "usual wrong answer" in made.reference.__doc__
    assert len({case.because for case in made.cases}) == len(made.cases) >= exercises.LEAST_CASES
    assert 2 <= len(made.hints) == len(set(made.hints))
    assert not [hint for hint in made.hints if "return" in hint or "def " in hint]


def test_every_exercise_that_a_notebook_asks_for_exists() -> None:
    """Catches a number mistyped in a lesson."""
    for source in (ROOT / "notebooks" / "source").glob("[0-9]*.py"):
        for number in re.findall(r"\b(?:check|hint)\(\"([^\"]+)\"", source.read_text("utf-8")):
            exercises.find(number)



def test_an_unknown_number_names_those_there_are() -> None:
    """Catches a learner left alone with a KeyError."""
    with pytest.raises(MinillmError, match=r"no exercise 00\.99\. Lesson 00 has: 00\.1, 00\.2"):
        exercises.find("00.99")
    with pytest.raises(MinillmError, match=r"no exercise 99\.1\. Lessons with exercises: 00"):
        exercises.find("99.1")


@pytest.mark.parametrize("text", [
    "def f(:", "1 / 0", SOURCE.format(number="11.1"), TWICE,
    SOURCE.format(number="00.1") + "@wrong('00.2', says='x')\ndef f(n): pass\n",
    SOURCE.format(number="one"), SOURCE.format(number="00.1").replace("range(3)", "range(2)"),
    SOURCE.format(number="00.1").replace('["h"]', "[]"),
    SOURCE.format(number="00.1").replace('"""The same."""', ""),
], ids=["syntax", "raises", "other lesson", "twice", "lost wrong", "no number", "two cases",
        "no hint", "no docstring"])  # fmt: skip
def test_a_damaged_solution_file_is_named(tmp_path, text) -> None:
    """Catches a slip in a solution file that would show as a riddle in a lesson, or not at all."""
    path = tmp_path / "00_mine.py"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="00_mine|wanted"):
        exercises.load(path)


def test_a_case_needs_a_reason() -> None:
    """Catches a case that fails without a word."""
    with pytest.raises(ConfigError, match="says why"):
        Case(1, expect=1, because=" ")
