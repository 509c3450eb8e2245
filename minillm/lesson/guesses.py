"""guesses: how far a learner's guesses were, in this lesson and in those before it.

Whoever guesses often, and sees how far it was, learns to guess. So each answer is kept beside its
guess in progress.json, and the last cell of a lesson shows them.
"""

from __future__ import annotations

import math
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
    off = {
        name: [_off(g["value"], g["came"]) for g in made.values() if "came" in g]
        for name, made in sorted(kept.items())
    }
    rows = [_row(quantity, guess) for quantity, guess in mine.items()]
    rows += [
        (f"{name.replace('_', ' ')}, median of {len(factors)}", "", "", "", _said(median(factors)))
        for name, factors in off.items() if factors
    ]  # fmt: skip
    if not rows:
        return Note(card(paragraph(f"{NONE}.")), f"{NONE}.")
    before = [factor for name in off if name < here for factor in off[name]]
    return charts.Table(HEADER, tuple(rows), _finding(off[here], before) if mine else NONE)


def _row(quantity: str, guess: dict[str, Any]) -> tuple[str, ...]:
    yours, predicted, came = (
        "·" if guess.get(key) is None else amount(guess[key], guess.get("unit", "")).strip()
        for key in ("value", "predicted", "came")
    )
    if "came" not in guess:
        return quantity, yours, predicted, came, "not known yet: run the cells below its field"
    far = how_far(guess["value"], guess["came"])
    return quantity, yours, predicted, f"{came} {guess.get('how', '')}", far


def how_far(guess: float, came: float) -> str:
    """A guess over its answer, in words.

    >>> how_far(8, 2.6), how_far(2.5, 2.6), how_far(2.6, 2.6), how_far(0, 2.6)
    ('3.1 × too high', '1.04 × too low', 'right', '∞ × too low')
    """
    factor = _said(_off(guess, came))
    return factor if factor == "right" else f"{factor} too {'high' if guess > came else 'low'}"


def _off(guess: float, came: float) -> float:
    """The factor between the two, so that too high and too low do not cancel: 1 is right."""
    low, high = sorted((guess, came))
    return high / low if low else math.inf if high else 1.0


def _said(factor: float) -> str:
    """'3.1 ×', '1.04 ×', '∞ ×' where one of two is zero, or 'right'."""
    if factor < 1.995:
        return "right" if factor < 1.005 else f"{factor:.2f} ×"
    return times(factor).replace("inf", "∞")


def _finding(here: list[float], before: list[float]) -> str:
    """How far off, and whether that is closer than before: also if it is not."""
    if not here:
        return "Your guesses have no answer yet: run the cells below their fields"
    far, past = _said(median(here)), _said(median(before)) if before else ""
    said = "Your guess was " if len(here) == 1 else f"Your {len(here)} guesses were "
    said += far if far == "right" else f"{far} off"
    said += " (median)" if len(here) > 1 else ""
    if not past:
        return said
    if far == past:
        return f"{said}, as in the lessons before"
    side = "closer" if median(here) < median(before) else "farther off"
    return f"{said}, {side} than before ({past})"
