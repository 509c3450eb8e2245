"""What an answer is worth, whatever it is."""

from __future__ import annotations

import math

import pytest
import torch

from minillm.lesson import Case
from minillm.lesson.exercises import Exercise, Wrong
from minillm.lesson.judge import NOT_ATTEMPTED, NOT_YET, RIGHT, judge, said, same


def halves(total, parts=2):
    return total / parts


def made(*cases: Case, reference=halves, wrongs=()) -> Exercise:
    return Exercise("11.2", reference, cases, ("a hint",), wrongs)


HALVES = made(
    Case(6, expect=3.0, because="half of 6 is 3"),
    Case(7, expect=3.5, because="half of 7 is 3.5"),
    Case(9, parts=3, expect=3.0, because="a third of 9 is 3"),
)


class Strange:
    """An answer that does not even let itself be looked at."""

    def __eq__(self, other):
        raise ValueError

    def __bool__(self):
        raise ValueError

    def __repr__(self):
        raise ValueError


class Mute(Exception):
    def __str__(self):
        raise ValueError


def raising(error):
    def function(total, parts=2):
        raise error

    return function


def endless(total, parts=2):
    return endless(total, parts)


def counted(total, parts=2):
    yield total / parts


NASTY = {
    "raises": raising(ValueError("no")), "mute error": raising(Mute()),
    "exit": raising(SystemExit(3)), "base": raising(BaseException()), "recursion": endless,
    "nan": lambda total, parts=2: math.nan, "none": lambda total, parts=2: None,
    "tensor": lambda total, parts=2: torch.tensor([total, parts]),
    "strange": lambda total, parts=2: Strange(), "generator": counted,
    "class": Strange, "builtin": print, "text": lambda total, parts=2: "3.0",
    "huge": lambda total, parts=2: 10**6000, "long": lambda total, parts=2: [0] * 10**5,
    "bool": lambda total, parts=2: True, "loops over an int": lambda total, parts=2: list(total),
    "number": 3, "nothing": None, "few": lambda: 1, "many": lambda a, b, c: 1,
    "no name": lambda total: total / 2, "address": lambda total, parts=2: object(),
}  # fmt: skip


@pytest.mark.parametrize("function", NASTY.values(), ids=NASTY)
def test_nothing_a_function_does_gets_out(function) -> None:
    """Catches a check that stops the notebook, and a message that differs from run to run."""
    verdict = judge(HALVES, function)
    assert verdict.kind == NOT_YET and verdict.why == judge(HALVES, function).why
    assert verdict.why and "0x" not in verdict.why and len(verdict.why) < 400


def test_an_interrupt_passes_through() -> None:
    """Catches a learner's endless loop that the Stop button cannot end."""
    with pytest.raises(KeyboardInterrupt):
        judge(HALVES, raising(KeyboardInterrupt()))


def test_the_message_says_what_was_called_what_came_what_was_expected_and_why() -> None:
    """Catches 'wrong' as the whole answer."""
    verdict = judge(HALVES, lambda total, parts=2: total // 2)
    assert verdict.why == "halves(7) gave 3, expected 3.5: half of 7 is 3.5."
    assert (verdict.passed, verdict.cases) == (1, 3)
    assert judge(HALVES, lambda total, parts=2: total / 2).called == "halves(9, parts=3)"


def test_an_error_is_shown_with_the_learners_line() -> None:
    """Catches a traceback through our own files, which teaches nothing."""
    def halve(total, parts=2):
        nothing = 0
        return total / nothing

    came = judge(HALVES, halve).came
    assert came.startswith("raised ZeroDivisionError: division by zero (line ")
    assert came.endswith("`return total / nothing`)")


def test_a_stub_counts_as_one_only_before_its_first_answer() -> None:
    """Catches 'not attempted' for someone who has written half of the function."""
    assert judge(HALVES, raising(NotImplementedError())).kind == NOT_ATTEMPTED

    def half_done(total, parts=2):
        if parts == 2:
            return total / 2
        raise NotImplementedError

    verdict = judge(HALVES, half_done)
    assert verdict.kind == NOT_YET and "still raises NotImplementedError" in verdict.why


def shortest(words):
    words.sort(key=len)
    return words.pop(0)


WORDS = ["aaa", "b", "cc"]


def test_where_ours_writes_into_its_arguments_yours_may_and_needs_not() -> None:
    """Catches a second case, or a second check, that finds the arguments of the first changed."""
    cases = [Case(WORDS, expect="b", because="b is shorter")] * 3
    exercise = made(*cases, reference=shortest)
    assert [judge(exercise, shortest).kind for _ in range(2)] == [RIGHT, RIGHT]
    assert judge(exercise, lambda words: min(words, key=len)).kind == RIGHT
    assert cases[0].args == (["aaa", "b", "cc"],)


def test_what_a_right_answer_has_changed_is_named() -> None:
    """Catches a function that passes, and then spoils what the cells below still need."""
    cases = [Case(["b"], expect="b", because="it is the only one"),
             Case(WORDS, expect="b", because="b is shorter")]  # fmt: skip
    verdict = judge(made(*cases, reference=lambda words: min(words, key=len)), shortest)
    assert (verdict.kind, verdict.passed) == (NOT_YET, 2)
    assert "(['b']) left words as []: whoever calls it still needs words as it was" in verdict.tip

    def doubles(x, by=2):
        return x.mul_(by)

    cases = [Case(torch.ones(2), by=by, expect=torch.full((2,), by), because="1 · by is by")
             for by in (1.0, 3.0)]  # fmt: skip
    verdict = judge(made(*cases, reference=lambda x, by=2: x * by), doubles)
    assert verdict.kind == NOT_YET and "by=3.0) left x as tensor([3., 3.])" in verdict.tip


def test_an_answer_is_judged_as_it_was_given() -> None:
    """Catches the first answer said to be wrong because a later call wrote into the same list."""
    def halves_so_far(total, parts=2, kept=[]):  # noqa: B006 - that is the learner's mistake
        kept.append(total / parts)
        return kept

    exercise = made(Case(6, expect=[3.0], because="half of 6 is 3"),
                    Case(8, expect=[4.0], because="half of 8 is 4"))  # fmt: skip
    verdict = judge(exercise, halves_so_far)
    assert verdict.passed == 1
    assert verdict.why == "halves(8) gave [3.0, 4.0], expected [4.0]: half of 8 is 4."


def test_a_function_that_returns_nothing_is_told_of_return() -> None:
    """Catches "gave None", of someone who printed the right answer."""
    tip = judge(HALVES, lambda total, parts=2: print(total / parts)).tip
    assert tip == "Does halves end with `return`? print shows a value, return gives it back."


def test_check_without_a_function_says_how_to_call_it() -> None:
    """Catches a riddle about NoneType for a forgotten argument."""
    assert judge(HALVES, None).why == 'check wants your function: halves = check("11.2", halves)'


def test_only_the_same_answers_in_every_case_count_as_a_known_mistake() -> None:
    """Catches telling a learner about a mistake that they have not made."""
    floor = Wrong("11.2", lambda total, parts=2: total // parts, "You round down.")
    exercise = made(*HALVES.cases, wrongs=(floor,))
    assert judge(exercise, lambda total, parts=2: int(total / parts)).tip == "You round down."
    assert judge(exercise, lambda total, parts=2: total // 2).tip == ""


@pytest.mark.parametrize(("answer", "expected", "equal"), [
    (3, 3.0, True), (3.0, 3, True), (0.1 + 0.2, 0.3, True), (0.30001, 0.3, False),
    (True, 1, False), (1, True, False), ("3", 3, False), (10**400, 1.5, None),
    (1e-12, 0.0, True), (1e-12, 2e-12, False),
    ([1, 2], (1, 2.0), True), ([1], [1, 2], False), ({"a": 1}, {"a": 1.0}, True),
    ({"a": 1}, {"b": 1}, False), (torch.ones(2), torch.ones(2), True),
    (torch.ones(2), torch.ones(1, 2), False), ([1.0, 1.0], torch.ones(2), False),
    ({1, 2}, {2, 1}, True), (None, None, True), ("a", "a", True), (2**60, 2**60 + 1, False),
])  # fmt: skip
def test_same_means_equal_in_kind_and_value(answer, expected, equal) -> None:
    """Catches counts that are off by one, and floats refused for their last digit."""
    if equal is None:
        with pytest.raises(OverflowError):  # judge takes it for "not the same"
            same(answer, expected)
    else:
        assert same(answer, expected) is equal


def test_values_are_said_short_and_readable() -> None:
    """Catches a screen full of zeros, and an address that changes with every run."""
    assert said(12_800) == "12,800" and said(12_800.0) == "12,800.0" and said(True) == "True"
    assert len(said("x" * 500)) <= 101 and said(object()) == "<object object>"
    assert len(said(10**4000)) <= 101
    assert said(10**6000) == "something of type int that cannot be printed"
