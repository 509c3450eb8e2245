"""guesses: how far a learner's guesses were, in this lesson and in those before it.

Whoever guesses often, and sees how far it was, learns to guess. So each answer is kept beside its
guess in progress.json, and the last cell of a lesson shows them.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from minillm import charts
from minillm.charts.ink import amount, times
from minillm.lesson.page import Note, card, paragraph
from minillm.lesson.progress import all_guesses, notebook

NONE = "No guess in this lesson yet: write a number into a field above, and run the cells below it"
HEADER = ("guess", "yours", "predicted", "what came", "how far")


def guesses() -> charts.Table | Note:
    """This lesson's guesses beside what came; then, lesson by lesson, how far they were (median).

    The last line of a lesson's last cell. "3.1 × too high" is guess over answer; an answer is what
    was measured, else what was predicted. Where nobody has guessed, it is a sentence that is the
    same on every machine. Nothing is written.

    >>> guesses()
    Your 3 guesses were 1.7 × off (median), closer than before (4.0 ×)
    """
    kept, here = all_guesses(), notebook()
    mine = kept.get(here, {})
    far = {name: [f for f in map(_factor, made.values()) if f] for name, made in kept.items()}
    rows = [_row(quantity, guess) for quantity, guess in mine.items()]
    for name in sorted(name for name in far if far[name]):
        lesson = f"{name.replace('_', ' ')}, median of {len(far[name])}"
        rows.append((lesson, "", "", "", _far(_middle(far[name]))))
    if not rows:
        return Note(card(paragraph(f"{NONE}.")), f"{NONE}.")
    before = [factor for name in far if name < here for factor in far[name]]
    return charts.Table(HEADER, tuple(rows), _finding(far.get(here, []), before) if mine else NONE)


def _row(quantity: str, guess: dict[str, Any]) -> tuple[str, ...]:
    yours, predicted, came = (
        "·" if guess.get(key) is None else amount(guess[key], guess.get("unit", "")).strip()
        for key in ("value", "predicted", "came")
    )
    if "came" not in guess:
        return quantity, yours, predicted, came, "not known yet: run the cells below its field"
    far = how_far(guess["value"], guess["came"])
    return quantity, yours, predicted, f"{came} {guess['how']}", far


def _factor(guess: dict[str, Any]) -> float | None:
    """Guess over answer: above 1, it was too high. None without an answer, and for a zero."""
    value, came = guess.get("value"), guess.get("came")
    return value / came if value and came else None


def _middle(factors: list[float]) -> float:
    """The median, too high and too low alike: 1 is right, 2 twice too high or twice too low."""
    return median(max(factor, 1 / factor) for factor in factors)


def _far(factor: float) -> str:
    """The size of a factor in either direction: '3.1 ×', '1.04 ×', 'right'."""
    factor = max(factor, 1 / factor)
    return "right" if factor < 1.005 else f"{factor:.2f} ×" if factor < 1.995 else times(factor)


def how_far(guess: float, came: float) -> str:
    """A guess over its answer, in words.

    >>> how_far(8, 2.6), how_far(2.5, 2.6), how_far(2.6, 2.6), how_far(0, 2.6)
    ('3.1 × too high', '1.04 × too low', 'right', 'too low by any factor')
    """
    side = "too high" if guess > came else "too low"
    if not guess or not came:
        return "right" if guess == came else f"{side} by any factor"
    far = _far(guess / came)
    return far if far == "right" else f"{far} {side}"


def _finding(here: list[float], before: list[float]) -> str:
    """How far off, and whether that is closer than before: also if it is not."""
    if not here:
        return "Your guesses have no answer yet: run the cells below their fields"
    far, past = (_far(_middle(factors)) if factors else "" for factors in (here, before))
    said = "Your guess was " if len(here) == 1 else f"Your {len(here)} guesses were "
    said += far if far == "right" else f"{far} off"
    said += " (median)" if len(here) > 1 else ""
    if not past:
        return said
    if far == past:
        return f"{said}, as in the lessons before"
    side = "closer" if _middle(here) < _middle(before) else "farther off"
    return f"{said}, {side} than before ({past})"
