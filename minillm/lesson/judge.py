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
    """One call: the answer, or what was raised."""

    answer: Any = None
    error: BaseException | None = None


def judge(exercise: Exercise, function: Any) -> Verdict:
    """Hold `function` against the cases of the exercise. Arguments are copied for each call."""
    misfit = _misfit(exercise, function)
    if misfit:
        return Verdict(NOT_YET, tip=misfit, cases=len(exercise.cases))
    outcomes = []
    for case in exercise.cases:
        outcomes.append(_call(function, case))
        if isinstance(outcomes[0].error, NotImplementedError):
            return Verdict(NOT_ATTEMPTED, cases=len(exercise.cases))
    good = [passes(case, out) for case, out in zip(exercise.cases, outcomes, strict=True)]
    if all(good):
        return Verdict(RIGHT, passed=len(good), cases=len(good))
    case, outcome = exercise.cases[good.index(False)], outcomes[good.index(False)]
    name = exercise.reference.__name__
    tip = _known_mistake(exercise, outcomes) or _tip(case, outcome, name)
    return Verdict(
        NOT_YET, said_call(function, case, name), _came(outcome, function),
        said(case.expect), case.because, tip, sum(good), len(good),
    )  # fmt: skip


def passes(case: Case, outcome: _Outcome) -> bool:
    """Whether the answer of a call is right; an answer that cannot be compared is not."""
    if outcome.error is not None:
        return False
    try:
        return same(outcome.answer, case.expect)
    except Exception:  # a strange answer: its own == may fail on it
        return False


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
        return alike and all(same(a, e) for a, e in zip(answer, expected, strict=True))
    if isinstance(expected, dict):
        alike = isinstance(answer, dict) and set(answer) == set(expected)
        return alike and all(same(answer[key], expected[key]) for key in expected)
    if isinstance(expected, float) and _is_plain_number(answer):
        return math.isclose(answer, expected, rel_tol=_HAIR, abs_tol=_HAIR if expected == 0 else 0)
    if _is_plain_number(expected):
        return _is_plain_number(answer) and bool(answer == expected)
    return type(answer) is type(expected) and bool(answer == expected)


def said(value: Any) -> str:
    """A value as a learner reads it: 12,800; no addresses; cut where it gets long."""
    try:
        if isinstance(value, int) and not isinstance(value, bool):
            text = f"{value:,}"
        elif isinstance(value, float) and 1e4 <= abs(value) < 1e15:
            text = f"{value:,}"
        else:
            text = repr(value)
    except Exception:  # its __repr__ fails, or an int has more digits than Python prints
        return f"something of type {type(value).__name__} that cannot be printed"
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(text.split()))
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def said_call(function: Callable, case: Case, name: str) -> str:
    """The call as one would write it: `f(3, 4, batch=2)`; `name` for a function without one."""
    values = [_argument(value) for value in case.args]
    values += [f"{name}={_argument(value)}" for name, value in case.named.items()]
    own = getattr(function, "__name__", "")
    return f"{own if str(own).isidentifier() else name}({', '.join(values)})"


def _argument(value: Any) -> str:
    """As code, so that it can be pasted: 12_800 rather than 12,800."""
    return said(value).replace(",", "_") if _is_plain_number(value) else said(value)


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "tolist") and not isinstance(value, Number)


def _is_plain_number(value: Any) -> bool:
    return isinstance(value, Number) and not isinstance(value, bool)


def _misfit(exercise: Exercise, function: Any) -> str:
    """What keeps us from calling it at all; empty if nothing does."""
    name, number = exercise.reference.__name__, exercise.number
    line = f'{name} = check("{number}", {name})'
    if not callable(function):
        return f"check wants your function, and found {said(function)}. Write: {line}"
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # built in, without a signature: calling it will tell
        return ""
    for case in exercise.cases:
        try:
            signature.bind(*case.args, **case.named)
        except TypeError as problem:
            wanted = inspect.signature(exercise.reference)
            return f"It is called as {name}{wanted}; with yours, {problem}."
    return ""


def _call(function: Callable, case: Case) -> _Outcome:
    args, named = copy.deepcopy((case.args, case.named))  # it may write into its arguments
    try:
        return _Outcome(function(*args, **named))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit too: exit() must not end the kernel
        return _Outcome(error=error)


def _came(outcome: _Outcome, function: Callable) -> str:
    if outcome.error is None:
        return "gave nothing (None)" if outcome.answer is None else f"gave {said(outcome.answer)}"
    error = outcome.error
    try:
        words = " ".join(str(error).split())[:LONGEST]
    except Exception:  # its __str__ fails
        words = ""
    raised = f"raised {type(error).__name__}" + (f": {words}" if words else "")
    file = getattr(getattr(function, "__code__", None), "co_filename", None)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    if not frames or not frames[-1].line:
        return raised
    return f"{raised} (line {frames[-1].lineno}: `{frames[-1].line}`)"


def _known_mistake(exercise: Exercise, outcomes: list[_Outcome]) -> str:
    """What to say to someone whose answers are those of a usual wrong answer, in every case."""
    for mistake in exercise.wrongs:
        theirs = [_call(mistake.function, case) for case in exercise.cases]
        pairs = zip(outcomes, theirs, strict=True)
        if all(_alike(mine, other) for mine, other in pairs):
            return mistake.says
    return ""


def _alike(mine: _Outcome, other: _Outcome) -> bool:
    if mine.error is not None or other.error is not None:
        return type(mine.error) is type(other.error)
    try:
        return same(mine.answer, other.answer)
    except Exception:
        return False


def _tip(case: Case, outcome: _Outcome, name: str) -> str:
    """A word on answers that are wrong in kind."""
    answer = outcome.answer
    if isinstance(outcome.error, NotImplementedError):
        return "A branch of yours still raises NotImplementedError."
    if outcome.error is not None:
        return ""
    if answer is None:
        return f"Does {name} end with `return`? print shows a value, return gives it back."
    kinds = type(answer).__name__, type(case.expect).__name__
    inner = _unwrapped(answer)
    if kinds[0] != kinds[1] and passes(case, _Outcome(inner)):
        return f"The value is right, but it is a {kinds[0]}, and a {kinds[1]} is wanted."
    return ""


def _unwrapped(answer: Any) -> Any:
    """The number in a tensor, in a list of one or in a text; else the answer itself."""
    try:
        inner = answer.tolist() if _is_array(answer) else answer
        while isinstance(inner, list | tuple) and len(inner) == 1:
            inner = inner[0]
        return float(inner) if isinstance(inner, str) else inner
    except Exception:
        return answer
