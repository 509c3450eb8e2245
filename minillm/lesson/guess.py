"""guess and reveal: a learner's number, before the machine gives its own.

A guess that was written down makes the measurement an answer. No lesson depends on one: without
it, `reveal` shows the rest.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable
from statistics import median
from typing import Any

import ipywidgets
from IPython.display import display

from minillm import charts
from minillm.charts.ink import amount
from minillm.charts.show import pack
from minillm.lesson import still
from minillm.lesson.guesses import how_far
from minillm.lesson.page import FAINT, Note, card, paragraph
from minillm.lesson.progress import all_guesses, guessed, notebook

PREFIXES = {"": 1, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


class Guess:
    """A quantity, its unit, and the number that the learner has written for it.

    value: in that unit; None until something that can be read as a number was written.
    """

    def __init__(self, quantity: str, unit: str = ""):
        self.quantity, self.unit = quantity, unit
        self._notebook = notebook()
        earlier = all_guesses().get(self._notebook, {}).get(quantity, {})
        self.value: float | None = earlier.get("value")
        self._field = ipywidgets.Text(
            value=_written(self.value), description=quantity, placeholder="your guess",
            continuous_update=False, style={"description_width": "initial"},
            layout=ipywidgets.Layout(width=f"{len(quantity) * 0.52 + 12:.0f}em", max_width="100%"),
        )  # fmt: skip
        self._says = ipywidgets.HTML()
        parts = [self._field, ipywidgets.Label(unit), self._says]
        layout = ipywidgets.Layout(flex_flow="row wrap", align_items="center")
        self._box = ipywidgets.HBox(parts, layout=layout)
        self._say(f"noted: {self.said}" if self.said else "")
        # Nothing is drawn here, so the thread does not matter, and a guess counts even while
        # another cell runs: no on_main.
        self._field.observe(lambda change: self.write(change.new), "value")

    def write(self, text: str) -> None:
        """Take what was written into the field. What is no number leaves the guess as it was."""
        number = parse_number(text, self.unit)
        if number is None and text.strip():
            unit = f" of {self.unit}" if self.unit else ""
            kept = f". {self.said} is kept" if self.said else ""
            self._say(f"not read as a number{unit}; write 1200, 1,200 or 1.2k{kept}")
            return
        self.value = number
        self.note()
        self._say(f"noted: {self.said}" if self.said else "")

    def note(self, **answer: Any) -> None:
        """Keep the guess, with its answer if there is one: came, how, predicted."""
        known = {"value": self.value, "unit": self.unit, **answer}
        entry = {key: word for key, word in known.items() if word is not None}
        guessed(self._notebook, self.quantity, entry if self.value is not None else None)

    @property
    def said(self) -> str:
        """The guess with its unit; empty if there is none."""
        return "" if self.value is None else amount(self.value, self.unit).strip()

    def _say(self, words: str) -> None:
        self._says.value = f'<span style="{FAINT}">{html.escape(words)}</span>'

    def __repr__(self) -> str:
        """The same before and after the guess, so that a saved notebook is the same."""
        return f"guess: {self.quantity}" + (f" ({self.unit})" if self.unit else "")

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
    "emulated". What came, measured or else predicted, is kept beside the guess for `guesses`.

    >>> reveal(mine, predicted=2.1, measured=2.6)
    Your guess of 8 ms was 3.1 × too high.
    """
    if all(number is None for number in (mine.value, predicted, measured, ceiling)):
        Note(card(paragraph("Nothing to show yet.", True)), "nothing to show yet").show()
        return
    display(charts.predicted_measured(
        mine.quantity, mine.unit, guess=mine.value, predicted=predicted, measured=measured,
        ceiling=ceiling, how=how))  # fmt: skip
    came = _middle(predicted if measured is None else measured)
    if came is None or mine.value is None:
        return
    how = "predicted" if measured is None else how
    mine.note(came=came, how=how, predicted=_middle(predicted))
    text = f"Your guess of {mine.said} was {how_far(mine.value, came)}."
    Note(card(paragraph(html.escape(text))), text).show()


def _middle(runs: float | Iterable[float] | None) -> float | None:
    """A number as it is, the median of several."""
    return None if runs is None else float(median(runs) if isinstance(runs, Iterable) else runs)


def parse_number(text: str, unit: str = "") -> float | None:
    """The number that a person wrote, or None. A unit behind it may be the asked one.

    A comma with three digits behind it groups thousands; any other single comma is a decimal one.
    Nothing that a guess is made for is below zero, so a negative number is none.

    >>> parse_number("1,200"), parse_number("1.2k tok/s", "tok/s"), parse_number("3,5 ms", "ms")
    (1200.0, 1200.0, 3.5)
    """
    text = re.sub(r"(?<=\d)(?<!\b0)[,\s_'](?=\d{3}(?!\d))", "", text.strip(" ~≈+"))
    number = re.match(r"(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text := text.replace(",", "."), re.I)
    rest = text[number.end() :].strip() if number else ""
    for prefix, factor in PREFIXES.items() if number else ():
        if rest.startswith(prefix) and unit.startswith(rest[len(prefix) :].strip()):
            value = float(number[0]) * factor
            return value if math.isfinite(value) else None
    return None


def _written(value: float | None) -> str:
    """A number in full, as someone would write it into the field."""
    if value is None:
        return ""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:,}"
