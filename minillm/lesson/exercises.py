"""Exercises: what a solution file says, and how it is found.

The exercises of lesson 11 are in `notebooks/solutions/11_load_stream.py`: plain functions that a
learner can open and read. `@exercise` stands on the solution, `@wrong` on answers that people
often give. Both leave the function as it is; they only pin a note to it.

    @exercise("11.2", cases=[Case(6, 4, expect=1, because="6 holds one whole 4")], hints=["…"])
    def whole_parts(total, part):
        '''What the function does, and a paragraph on the usual wrong answer.'''
        return total // part

    @wrong("11.2", says="Half a part is no part: `//` divides and rounds down.")
    def rounds_up(total, part):
        return -(-total // part)
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from minillm.errors import ConfigError, MinillmError

LEAST_CASES = 3
PACKAGE = Path(__file__).resolve().parent.parent


class Case:
    """One call of the exercise's function: its arguments, the answer, and why that is the answer.

    expect: the answer. Float values may differ by a hair, int answers not at all.
    because: the reason, as a clause: a learner whose answer differs reads it after the answer.

    >>> Case(3, 4, expect=5.0, because="3, 4 and 5 make a right angle")
    """

    def __init__(self, *args: Any, expect: Any, because: str, **named: Any):
        if not because.strip():
            raise ConfigError("wanted a Case that says why, found because=''; write the sentence")
        self.args, self.named = args, named
        self.expect, self.because = expect, because.rstrip(".")


@dataclass(frozen=True)
class Wrong:
    """A wrong answer that people often give, and what to tell those who give it."""

    number: str
    function: Callable
    says: str


@dataclass(frozen=True)
class Exercise:
    """One exercise: its solution, the cases that judge an answer, and hints, first to last."""

    number: str
    reference: Callable
    cases: tuple[Case, ...]
    hints: tuple[str, ...]
    wrongs: tuple[Wrong, ...] = ()
    path: Path = Path()  # the file that holds the solution


def exercise(number: str, *, cases: Sequence[Case], hints: Sequence[str]) -> Callable:
    """Declare the decorated function to be the solution of exercise `number`, such as "11.2".

    The last hint tells the way, not the code. ConfigError if anything is missing.
    """

    def pin(function: Callable) -> Callable:
        problem = (
            "a number such as '11.2'" if not re.fullmatch(r"\d\d\.\d+", number)
            else f"{LEAST_CASES} cases or more" if len(cases) < LEAST_CASES
            else "a hint or more" if not hints
            else "a docstring on the solution" if not (function.__doc__ or "").strip()
            else ""
        )  # fmt: skip
        if problem:
            raise ConfigError(f"wanted {problem}, found none on exercise {number!r}; add it")
        function.exercise = Exercise(number, function, tuple(cases), tuple(hints))
        return function

    return pin


def wrong(number: str, *, says: str) -> Callable:
    """Declare the decorated function to be a usual wrong answer to exercise `number`.

    A learner whose function gives the same answers reads `says`.
    """

    def pin(function: Callable) -> Callable:
        function.wrong = Wrong(number, function, says)
        return function

    return pin


def solution_files() -> dict[str, Path]:
    """Lesson ("11") to solution file, of the project."""
    found = (PACKAGE.parent / "notebooks" / "solutions").glob("[0-9][0-9]_*.py")
    return {path.name[:2]: path for path in sorted(found)}


def load(path: Path) -> dict[str, Exercise]:
    """The exercises of a solution file, by number. ConfigError if the file is not in order."""
    module = ModuleType(f"minillm_solutions_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses in the file look themselves up there
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    except Exception as error:  # whatever an edit has done to it
        raise ConfigError(
            f"wanted to read the solutions in {path.name}, found {type(error).__name__}: {error}; "
            f"`git checkout {path.name}` in its folder brings the file back"
        ) from error
    found: dict[str, Exercise] = {}
    for item in list(vars(module).values()):
        made = getattr(item, "exercise", None)
        if isinstance(made, Exercise) and item.__module__ == module.__name__:
            if made.number in found or made.number[:2] != path.name[:2]:
                raise ConfigError(f"wanted each exercise once, in the file of its lesson; "
                                  f"found {made.number} in {path.name}; renumber it")  # fmt: skip
            found[made.number] = replace(made, path=path)
    wrongs = [w for w in (getattr(i, "wrong", None) for i in vars(module).values())
              if isinstance(w, Wrong)]  # fmt: skip
    if lost := {w.number for w in wrongs} - set(found):
        raise ConfigError(f"wanted @wrong for an exercise of {path.name}, found {sorted(lost)}; "
                          "correct the number")  # fmt: skip
    return {
        number: replace(made, wrongs=tuple(w for w in wrongs if w.number == number))
        for number, made in found.items()
    }


def find(number: str) -> Exercise:
    """The exercise of that number. MinillmError that names the numbers there are, if it is none."""
    files = solution_files()
    lesson = str(number)[:2]
    if lesson not in files:
        known = ", ".join(files) or "none: the folder notebooks/solutions is missing"
        raise MinillmError(f"There is no exercise {number}. Lessons with exercises: {known}.")
    exercises = load(files[lesson])
    if number not in exercises:
        known = ", ".join(exercises) or "none"
        raise MinillmError(f"There is no exercise {number}. Lesson {lesson} has: {known}.")
    return exercises[number]
