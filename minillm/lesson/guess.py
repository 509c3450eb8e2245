"""guess and reveal: a learner's number, before the machine gives its own.

A guess that was written down makes the measurement an answer. No lesson depends on one: without
it, `reveal` shows the rest.
"""

from __future__ import annotations

import html
import math
import os
import re
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

import ipywidgets
from IPython import get_ipython
from IPython.display import display

from minillm import charts
from minillm.charts.ink import amount, times
from minillm.charts.show import pack
from minillm.lesson import still
from minillm.lesson.page import FAINT, Note, card, paragraph
from minillm.lesson.progress import guessed, last_guess

FACTORS = {"k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


class Guess:
    """A quantity, its unit, and the number that the learner has written for it.

    value: in that unit; None until something that can be read as a number was written.
    """

    def __init__(self, quantity: str, unit: str = ""):
        self.quantity, self.unit = quantity, unit
        self.value: float | None = None
        self._notebook = _notebook()
        earlier = last_guess(self._notebook, quantity)
        self._field = ipywidgets.Text(
            value=_written(earlier), description=quantity, placeholder="your guess",
            continuous_update=False, style={"description_width": "initial"},
            layout=ipywidgets.Layout(width=f"{len(quantity) * 0.52 + 12:.0f}em", max_width="100%"),
        )  # fmt: skip
        self._says = ipywidgets.HTML()
        parts = [self._field, ipywidgets.Label(unit), self._says]
        layout = ipywidgets.Layout(flex_flow="row wrap", align_items="center")
        self._box = ipywidgets.HBox(parts, layout=layout)
        self.value = earlier
        self._answer(earlier is not None)
        # Nothing is drawn here, so the thread does not matter, and a guess counts even while
        # another cell runs: no on_main.
        self._field.observe(lambda change: self.write(change.new), "value")

    def write(self, text: str) -> None:
        """Take what was written into the field. What is no number leaves the guess as it was."""
        if not text.strip():
            self.value = None
            self._answer(True)
            return
        number = parse_number(text, self.unit)
        if number is None:
            self._answer(False)
            return
        self.value = number
        guessed(self._notebook, self.quantity, number, self.unit)
        self._answer(True)

    def _answer(self, understood: bool) -> None:
        kept = amount(self.value, self.unit) if self.value is not None else ""
        words = f"noted: {kept}" if understood and kept else ""
        if not understood and self._field.value:
            unit = f" of {self.unit}" if self.unit else ""
            words = f"not read as a number{unit}; write 1200, 1,200 or 1.2k"
            words += f". {kept} is kept" if kept else ""
        self._says.value = f'<span style="{FAINT}">{html.escape(words)}</span>'

    def __repr__(self) -> str:
        """The same before and after the guess, so that a saved notebook is the same."""
        unit = f" ({self.unit})" if self.unit else ""
        return f"guess: {self.quantity}{unit}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict, dict]:
        bundle = dict(self._box._repr_mimebundle_() or {})
        written = _written(self.value) or "your guess"
        picture = still.lines(f"{self.quantity}  [ {written} ]  {self.unit}")
        data = {**bundle, "image/png": pack(picture), "text/plain": repr(self)}
        return data, still.about(picture, f"A field for a number. {self!r}.")


def guess(quantity: str, unit: str = "") -> Guess:
    """Show a field for a number, and return the Guess that will hold it.

    The guess made in an earlier session of the same notebook is still there. "1,200", "1200",
    "1.2k" and "1.2k tok/s" are the same number.

    >>> mine = guess("tokens/s at batch 1", unit="tok/s")
    """
    made = Guess(quantity, unit)
    display(made)
    return made


def reveal(
    mine: Guess, *, predicted: float | None = None,
    measured: float | Iterable[float] | None = None, ceiling: float | None = None,
    how: str = "measured",
) -> None:
    """Show guess, prediction, measurement and ceiling in one chart, and how far the guess was.

    All in the unit of the guess; `measured` may be several runs. What is None is left out, also
    a guess that nobody made. how: what a measurement is called; one from a scale model is
    "emulated".

    >>> reveal(mine, predicted=2.1, measured=2.6)
    Your guess of 8 ms was 3.1 × too high.
    """
    if all(number is None for number in (mine.value, predicted, measured, ceiling)):
        Note(card(paragraph("Nothing to show yet.", True)), "nothing to show yet").show()
        return
    display(charts.predicted_measured(
        mine.quantity, mine.unit, guess=mine.value, predicted=predicted, measured=measured,
        ceiling=ceiling, how=how))  # fmt: skip
    truth = next((number for number in (measured, predicted) if number is not None), None)
    text = how_far(mine.value, _middle(truth), mine.unit)
    if text:
        Note(card(paragraph(html.escape(text))), text).show()


def _middle(truth: Any) -> float | None:
    """A number as it is, the median of several."""
    try:
        return None if truth is None else float(truth)
    except TypeError:
        return median(truth)


def how_far(guess: float | None, truth: float | None, unit: str = "") -> str:
    """How far a guess was, in a sentence; empty if there was none, or nothing to hold it against.

    >>> how_far(8, 2.6, "ms"), how_far(2.5, 2.6, "ms")
    ('Your guess of 8 ms was 3.1 × too high.', 'Your guess of 2.5 ms was 3.8 % too low.')
    """
    if guess is None or truth is None:
        return ""
    start = f"Your guess of {amount(guess, unit).strip()}"
    if guess == truth:
        return f"{start} is exactly what came."
    if guess <= 0 or truth <= 0:
        return f"{start} stands against {amount(truth, unit).strip()}."
    side = "high" if guess > truth else "low"
    factor = max(guess / truth, truth / guess)
    share = 100 * abs(guess / truth - 1)
    by = f"{share:.2g} %" if factor < 2 and share < 99.5 else times(factor)
    return f"{start} was {by} too {side}."


def parse_number(text: str, unit: str = "") -> float | None:
    """The number that a person wrote, or None. A unit behind it may be the asked one.

    A comma with three digits behind it groups thousands; any other single comma is a decimal one.
    Nothing that a guess is made for is below zero, so a negative number is none.

    >>> parse_number("1,200"), parse_number("1.2k tok/s", "tok/s"), parse_number("3,5 ms", "ms")
    (1200.0, 1200.0, 3.5)
    """
    text = re.sub(r"(?<=\d)[\s_'’](?=\d{3}(?!\d))", "", text.strip().lstrip("~≈ "))
    match = re.fullmatch(r"(\+?[\d.,]+(?:[eE][+-]?\d+)?)\s*(.*)", text, re.DOTALL)
    if not match:
        return None
    digits, rest = match[1], match[2].strip()
    if re.fullmatch(r"\+?\d{1,3}(,\d{3})+(\.\d*)?", re.split("[eE]", digits)[0]):
        digits = digits.replace(",", "")
    factor = 1.0
    if rest and not unit.startswith(rest):
        if rest[0] not in FACTORS or not unit.startswith(rest[1:].strip()):
            return None
        factor = FACTORS[rest[0]]
    try:
        number = float(digits.replace(",", ".")) * factor
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _written(value: float | None) -> str:
    """A number in full, as someone would write it into the field."""
    if value is None:
        return ""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:,}"


def _notebook() -> str:
    """The stem of the notebook's name, as far as this kernel knows it."""
    names = getattr(get_ipython(), "user_ns", {})
    path = names.get("__vsc_ipynb_file__") or os.environ.get("JPY_SESSION_NAME") or "notebook"
    return Path(str(path)).stem
