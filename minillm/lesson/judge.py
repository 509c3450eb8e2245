"""Judging an answer: call it on each case, compare, and say what a learner can learn from it.

Nothing here shows anything, and nothing that a function does gets past `judge`, except a
KeyboardInterrupt: that is how a learner stops an endless loop.
"""

from __future__ import annotations

import copy
import inspect
import math
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Number
from typing import Any

from minillm.lesson.exercises import Case, Exercise

RIGHT, NOT_YET, NOT_ATTEMPTED, UNKNOWN = "right", "not yet", "not attempted", "unknown"
_HAIR = 1e-9  # by how much of it a float may be off
LONGEST = 100  # characters of a value that are shown


@dataclass(frozen=True)
class Verdict:
    """What came of a check. The texts are empty where they have nothing to say.

    called, came: the first call that went wrong, and "gave 6" or "raised …".
    expected, because: the answer of that case, and its reason. tip: what to do about it.
    """

    kind: str
    called: str = ""
    came: str = ""
    expected: str = ""
    because: str = ""
    tip: str = ""
    passed: int = 0
    cases: int = 0

    @property
    def why(self) -> str:
        """One line: what was called, what came, what was expected and why, what to do."""
        call = " ".join(part for part in (self.called, self.came) if part)
        expected = f"expected {self.expected}" if self.expected else ""
        facts = ", ".join(part for part in (call, expected) if part)
        said = f"{facts}: {self.because}." if facts else ""
        return " ".join(part for part in (said, self.tip) if part)


@dataclass(frozen=True)
class _Outcome:
    """One call: the answer, or what was raised; and the case with its arguments after it."""

    answer: Any = None
    error: BaseException | None = None
    left: Case | None = None


def judge(exercise: Exercise, function: Any) -> Verdict:
    """Hold `function` against the cases of the exercise. Arguments are copied for each call.

    A function that is right, but writes into an argument that our solution leaves alone, is not
    yet right: the cells below call it on tensors and lists that they go on with.
    """
    cases, name = exercise.cases, exercise.reference.__name__
    if not callable(function):
        line = f'{name} = check("{exercise.number}", {name})'
        return Verdict(NOT_YET, tip=f"check wants your function: {line}", cases=len(cases))
    outcomes = []
    for case in cases:
        outcomes.append(_call(function, case))
        if isinstance(outcomes[0].error, NotImplementedError):
            return Verdict(NOT_ATTEMPTED, cases=len(cases))
    good = list(map(_alike, outcomes, (_Outcome(case.expect) for case in cases)))
    if all(good):
        tip = _spoiled(exercise, outcomes)
        return Verdict(NOT_YET if tip else RIGHT, tip=tip, passed=len(good), cases=len(good))
    case, outcome = cases[good.index(False)], outcomes[good.index(False)]
    return Verdict(
        NOT_YET, said_call(name, case), _came(outcome, function), said(case.expect), case.because,
        _known_mistake(exercise, outcomes) or _tip(outcome, name), sum(good), len(cases),
    )  # fmt: skip


def same(answer: Any, expected: Any) -> bool:
    """Equal in kind and value. Numbers may be int or float; float values differ by a hair.

    Lists and tuples are alike; tensors and arrays need the same shape.

    >>> same(3.0, 3), same([1, 2.0], (1, 2)), same(True, 1), same("3", 3)
    (True, True, False, False)
    """
    if _is_array(expected):
        alike = _is_array(answer) and tuple(answer.shape) == tuple(expected.shape)
        return alike and same(answer.tolist(), expected.tolist())
    if isinstance(expected, list | tuple):
        alike = isinstance(answer, list | tuple) and len(answer) == len(expected)
        return alike and all(map(same, answer, expected))
    if isinstance(expected, dict):
        alike = isinstance(answer, dict) and set(answer) == set(expected)
        return alike and all(same(answer[key], expected[key]) for key in expected)
    if not _is_plain_number(expected):
        return type(answer) is type(expected) and bool(answer == expected)
    if isinstance(expected, float) and _is_plain_number(answer):
        return math.isclose(answer, expected, rel_tol=_HAIR, abs_tol=_HAIR if expected == 0 else 0)
    return _is_plain_number(answer) and bool(answer == expected)


def said(value: Any, group: str = ",") -> str:
    """A value as a learner reads it: 12,800; no addresses; cut where it gets long."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        text = f"{value:{group}}" if number else repr(value)
    except Exception:  # its __repr__ fails, or an int has more digits than Python prints
        return f"something of type {type(value).__name__} that cannot be printed"
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(text.split()))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def said_call(name: str, case: Case) -> str:
    """The call as one would write it: `f(12_800, 4, batch=2)`."""
    values = [said(value, "_") for value in case.args]
    values += [f"{key}={said(value, '_')}" for key, value in case.named.items()]
    return f"{name}({', '.join(values)})"


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "tolist") and not isinstance(value, Number)


def _is_plain_number(value: Any) -> bool:
    return isinstance(value, Number) and not isinstance(value, bool)


def _call(function: Callable, case: Case) -> _Outcome:
    case = copy.deepcopy(case)  # it may write into its arguments
    try:
        return _Outcome(_as_it_is(function(*case.args, **case.named)), left=case)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: exit() must not end the kernel
        return _Outcome(error=error)


def _as_it_is(answer: Any) -> Any:
    """A copy of the answer: the next call may write into the same list."""
    try:
        return copy.deepcopy(answer)
    except Exception:  # a generator, say
        return answer


def _spoiled(exercise: Exercise, outcomes: list[_Outcome]) -> str:
    """What to say of right answers if they changed an argument that ours never does; else ""."""
    ours = _changed(exercise, [_call(exercise.reference, case) for case in exercise.cases])
    for name, how in _changed(exercise, outcomes).items():
        if name not in ours:
            return (f"The answers are right, but {how}: whoever calls it still needs {name} as it "
                    "was. Write into a copy.")  # fmt: skip
    return ""


def _changed(exercise: Exercise, outcomes: list[_Outcome]) -> dict[str, str]:
    """The arguments that calls have changed: name to "f([3, 1]) left x as [1, 3]"."""
    names, found = inspect.signature(exercise.reference).bind, {}
    for case, outcome in zip(exercise.cases, outcomes, strict=True):
        before, after = (names(*c.args, **c.named).arguments for c in (case, outcome.left))
        call = said_call(exercise.reference.__name__, case)
        for name, value in after.items():
            if not same(value, before[name]):
                found.setdefault(name, f"{call} left {name} as {said(value)}")
    return found


def _came(outcome: _Outcome, function: Callable) -> str:
    """What a call gave, or what it raised and in which line of the learner's."""
    error = outcome.error
    if error is None:
        return "gave nothing (None)" if outcome.answer is None else f"gave {said(outcome.answer)}"
    words = " ".join("".join(traceback.format_exception_only(error)).split())
    file = getattr(getattr(function, "__code__", None), "co_filename", None)
    lines = [
        f" (line {frame.lineno}: `{frame.line}`)"
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == file and frame.line
    ]
    return f"raised {words[:LONGEST]}{''.join(lines[-1:])}"


def _known_mistake(exercise: Exercise, outcomes: list[_Outcome]) -> str:
    """What to say to someone whose answers are those of a usual wrong answer, in every case."""
    for mistake in exercise.wrongs:
        theirs = [_call(mistake.function, case) for case in exercise.cases]
        if all(map(_alike, outcomes, theirs)):
            return mistake.says
    return ""


def _alike(mine: _Outcome, other: _Outcome) -> bool:
    """The same answer, or the same kind of error; what cannot be compared is not alike."""
    if mine.error is not None or other.error is not None:
        return type(mine.error) is type(other.error)
    try:
        return same(mine.answer, other.answer)
    except Exception:  # a strange answer: its own == may fail
        return False


def _tip(outcome: _Outcome, name: str) -> str:
    """A word on a function that is not finished."""
    if isinstance(outcome.error, NotImplementedError):
        return "A branch of yours still raises NotImplementedError."
    if outcome.error is None and outcome.answer is None:
        return f"Does {name} end with `return`? print shows a value, return gives it back."
    return ""
