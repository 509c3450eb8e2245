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

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from minillm.errors import ConfigError, MinillmError

PACKAGE = Path(__file__).resolve().parent.parent


class Case:
    """One call of the exercise's function: its arguments, the answer, and why that is the answer.

    expect: the answer. Float values may differ by a hair, int answers not at all.
    because: the reason, as a clause: a learner whose answer differs reads it after the answer.

    >>> Case(3, 4, expect=5.0, because="3, 4 and 5 make a right angle")
    """

    def __init__(self, *args: Any, expect: Any, because: str, **named: Any):
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

    The last hint tells the way, not the code.
    """

    def pin(function: Callable) -> Callable:
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
    items = list(vars(module).values())
    made = [i.exercise for i in items if isinstance(getattr(i, "exercise", None), Exercise)]
    found = {one.number: replace(one, path=path) for one in made}
    for mistake in [i.wrong for i in items if isinstance(getattr(i, "wrong", None), Wrong)]:
        one = found[mistake.number]
        found[mistake.number] = replace(one, wrongs=(*one.wrongs, mistake))
    return found


def find(number: str) -> Exercise:
    """The exercise of that number. MinillmError that names the numbers there are, if it is none."""
    files, lesson = solution_files(), number[:2]
    if lesson not in files:
        raise MinillmError(f"There is no exercise {number}. Lessons with exercises: "
                           f"{', '.join(files)}.")  # fmt: skip
    found = load(files[lesson])
    if number not in found:
        raise MinillmError(f"There is no exercise {number}. Lesson {lesson} has: "
                           f"{', '.join(found)}.")  # fmt: skip
    return found[number]
