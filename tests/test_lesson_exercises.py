"""minillm/lesson/exercises.py, and every solution file of the course: what an exercise keeps to."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch

from minillm.errors import ConfigError, MinillmError
from minillm.lesson import exercises
from minillm.lesson.judge import NOT_ATTEMPTED, NOT_YET, RIGHT, judge

ROOT = Path(__file__).resolve().parent.parent
SOLUTIONS = sorted((ROOT / "notebooks" / "solutions").glob("[0-9][0-9]_*.py"))
EXERCISES = [made for path in SOLUTIONS for made in exercises.load(path).values()]
WRONGS = [(made, mistake) for made in EXERCISES for mistake in made.wrongs]

# Here the solution writes into all lists and tensors that it is given: that is what it is for.
IN_PLACE = {"00.1", "40.1"}


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


def spoil(given) -> None:
    """Write into all that can be written into."""
    for value in given.values() if isinstance(given, dict) else given:
        if isinstance(value, list | tuple | dict):
            spoil(value)
        elif isinstance(value, torch.Tensor):
            value.fill_(-99)
    if isinstance(given, list | dict | set):
        given.clear()


@pytest.mark.parametrize("made", EXERCISES, ids=named)
def test_a_solution_may_copy_its_arguments_and_may_not_spoil_them(made) -> None:
    """Catches a check that counts how an answer was found, and one that lets a function destroy
    what the lesson goes on with. Where the solution itself writes into an argument, both may."""
    def on_copies(*args, **named):
        return made.reference(*copy.deepcopy(args), **copy.deepcopy(named))

    def spoils(*args, **named):
        answer = on_copies(*args, **named)
        spoil([*args, *named.values()])
        return answer

    assert judge(made, on_copies).kind == RIGHT
    verdict = judge(made, spoils)
    data = [v for case in made.cases for v in (*case.args, *case.named.values())
            if isinstance(v, list | dict | set) or isinstance(v, tuple) and
            any(isinstance(x, torch.Tensor) for x in v)]  # fmt: skip
    assert (verdict.kind == RIGHT) == (not data or made.number in IN_PLACE)
    assert verdict.kind == RIGHT or "whoever calls it still needs" in verdict.tip


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
    assert len({case.because for case in made.cases}) == len(made.cases) >= 3
    assert all(case.because.strip() for case in made.cases)
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


@pytest.mark.parametrize("text", ["def f(:", "1 / 0"], ids=["syntax", "raises"])
def test_a_damaged_solution_file_is_named(tmp_path, text) -> None:
    """Catches a slip in a solution file that would show as a riddle in a lesson."""
    path = tmp_path / "00_mine.py"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="00_mine"):
        exercises.load(path)


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_every_number_stands_once_in_the_file_of_its_lesson(path) -> None:
    """Catches an exercise that takes another's place, and a wrong answer to none."""
    text = path.read_text(encoding="utf-8")
    numbers = re.findall(r'^@exercise\(\s*"([^"]+)"', text, re.MULTILINE)
    assert len(numbers) == len(set(numbers)) == text.count("@exercise(") > 0
    assert all(re.fullmatch(rf"{path.name[:2]}\.\d+", number) for number in numbers)
    wrongs = re.findall(r'^@wrong\(\s*"([^"]+)"', text, re.MULTILINE)
    assert len(wrongs) == text.count("@wrong(") and set(wrongs) == set(numbers)
    assert sum(len(made.wrongs) for made in exercises.load(path).values()) == len(wrongs)
