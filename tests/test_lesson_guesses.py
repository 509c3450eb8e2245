"""How far a learner's guesses were, and whether they come closer: the truth, whichever way."""

from __future__ import annotations

import json
import sys

import pytest

from minillm.lesson import guess, guesses, reveal
from minillm.lesson.guesses import how_far
from minillm.lesson.page import Note

GUESS = sys.modules["minillm.lesson.guess"]  # the name itself is the function
KEPT = {"unit": "s", "how": "measured"}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A learner's own MINILLM_HOME, in lesson 11, where nothing is drawn."""
    monkeypatch.setenv("MINILLM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("JPY_SESSION_NAME", "notebooks/11_load_stream.ipynb")
    monkeypatch.setattr(sys.modules["minillm.lesson.progress"], "_remembered", {})
    monkeypatch.setattr(GUESS, "display", lambda shown: None)
    monkeypatch.setattr(Note, "show", lambda note: None)
    return tmp_path / "home"


def made(home, **lessons) -> None:
    """A progress file with guesses of these lessons, each as (guess, answer)."""
    home.mkdir()
    kept = {
        f"{name[1:]}_lesson" if name != "here" else "11_load_stream": {
            f"guess {n}": {"value": value, "came": came, **KEPT}
            for n, (value, came) in enumerate(pairs)
        }
        for name, pairs in lessons.items()
    }
    (home / "progress.json").write_text(json.dumps({"guesses": kept}), encoding="utf-8")


def answered(quantity: str, value: str, **answer) -> None:
    """Guess and reveal, as a lesson does."""
    mine = guess(quantity, unit="s")
    mine.write(value)
    reveal(mine, **answer)


def test_where_nobody_guesses_it_says_the_same_and_writes_nothing(home) -> None:
    """Catches a notebook that nbval finds changed, and a folder made because somebody ran it."""
    reveal(guess("one bucket", unit="s"), predicted=1.0, measured=[1.1, 1.0, 1.3])
    bundle = guesses()._repr_mimebundle_()
    assert guesses().text.startswith("No guess in this lesson yet: write a number")
    assert bundle == guesses()._repr_mimebundle_() and not home.exists()


def test_guesses_stand_beside_what_came_in_words(home) -> None:
    """Catches high for low, an emulated time called measured, the best run for the median."""
    answered("one bucket", "9.3", predicted=2.5, measured=[3.0, 2.0, 9.0], how="emulated")
    answered("two buckets", "1", measured=2.6)
    answered("readings", "40", predicted=40)
    assert guesses().rows[:3] == (
        ("one bucket", "9.3 s", "2.5 s", "3 s emulated", "3.1 × too high"),
        ("two buckets", "1 s", "·", "2.6 s measured", "2.6 × too low"),
        ("readings", "40 s", "40 s", "40 s predicted", "right"),
    )
    assert guesses().rows[3:] == (("11 load stream, median of 3", "", "", "", "2.6 ×"),)
    assert guesses().finding == "Your 3 guesses were 2.6 × off (median)"


def test_too_high_and_too_low_do_not_cancel(home) -> None:
    """Catches a learner told to be right who is off by ten in both directions."""
    made(home, here=[(10, 1), (1, 10), (1, 10)])
    assert guesses().finding == "Your 3 guesses were 10 × off (median)"


@pytest.mark.parametrize(("here", "finding"), [
    ([(2, 1), (2, 1)], "Your 2 guesses were 2.0 × off (median), closer than before (4.0 ×)"),
    ([(1, 9)], "Your guess was 9.0 × off, farther off than before (4.0 ×)"),
    ([(4, 1)], "Your guess was 4.0 × off, as in the lessons before"),
    ([(1.04, 1)], "Your guess was 1.04 × off, closer than before (4.0 ×)"),
    ([(7, 7)], "Your guess was right, closer than before (4.0 ×)"),
])  # fmt: skip
def test_the_finding_says_whether_guesses_come_closer_also_if_not(home, here, finding) -> None:
    """Catches praise for everyone, and a later lesson taken for an earlier one."""
    made(home, _13=[(1, 1000)], _00=[(3, 1), (1, 5)], here=here)
    assert guesses().finding == finding


def test_lessons_stand_in_their_order_with_the_median_of_each(home) -> None:
    """Catches a course that seems to get worse because lesson 00 was done last."""
    made(home, _12=[(1, 2)], here=[(1, 3)], _00=[(1, 8), (1, 6), (5, 1)])
    assert [(row[0], row[-1]) for row in guesses().rows[1:]] == [
        ("00 lesson, median of 3", "6.0 ×"), ("11 load stream, median of 1", "3.0 ×"),
        ("12 lesson, median of 1", "2.0 ×"),
    ]  # fmt: skip


def test_a_guess_of_one_notebook_stays_out_of_anothers(home, monkeypatch) -> None:
    """Catches two lessons that ask for a quantity of the same name."""
    answered("a token", "2", measured=1)
    monkeypatch.setenv("JPY_SESSION_NAME", "13_load_larger.ipynb")
    assert guesses().finding.startswith("No guess in this lesson yet") and len(guesses().rows) == 1
    answered("a token", "6", measured=2)
    assert guesses().finding == "Your guess was 3.0 × off, farther off than before (2.0 ×)"
    assert [row[0] for row in guesses().rows if row[1]] == ["a token"]


def test_an_answer_belongs_to_the_guess_it_was_given_to(home) -> None:
    """Catches an old answer held against a new guess, and a guess that was wiped out and counts."""
    answered("a token", "2", measured=1)
    mine = guess("a token", unit="s")
    assert guesses().rows[0][3] == "1 s measured"  # the cell of the guess may run again
    mine.write("5")
    assert guesses().rows == (
        ("a token", "5 s", "·", "·", "not known yet: run the cells below its field"),
    )
    assert guesses().finding == "Your guesses have no answer yet: run the cells below their fields"
    mine.write("")
    assert guesses().text.startswith("No guess in this lesson yet")


def test_a_file_without_answers_is_read(home) -> None:
    """Catches a learner who loses an earlier version's guesses, or stops at them."""
    home.mkdir()
    old = {"guesses": {"11_load_stream": {"one bucket": {"value": 2.0, "unit": "s"}}}}
    (home / "progress.json").write_text(json.dumps(old), encoding="utf-8")
    assert guesses().rows[0][:2] == ("one bucket", "2 s")
    answered("one bucket", "2", measured=1)
    assert guesses().finding == "Your guess was 2.0 × off"


@pytest.mark.parametrize(("mine", "came", "far"), [
    (8, 2.6, "3.1 × too high"), (1, 2.6, "2.6 × too low"), (2.5, 2.6, "1.04 × too low"),
    (2, 2.6, "1.30 × too low"), (2.6, 2.6, "right"), (2.599, 2.6, "right"), (0, 0, "right"),
    (9000, 2, "4,500 × too high"), (0, 5, "∞ × too low"), (1.99, 1, "1.99 × too high"),
    (5, 0, "∞ × too high"), (1e-9, 1e9, f"{10**18:,} × too low"),
    (1.997, 1, "2.0 × too high"),
])  # fmt: skip
def test_the_words_say_exactly_how_far(home, mine, came, far) -> None:
    """Catches high for low, a division by zero, "1.0 ×" of a guess that was not right."""
    made(home, here=[(mine, came), (2, 1)])
    assert guesses().rows[0][-1] == far == how_far(mine, came)
    assert guesses().finding.startswith("Your ")


def test_a_zero_counts_as_far_off(home) -> None:
    """Catches "no answer yet" for a guess of zero, and a median over the others alone."""
    made(home, here=[(0, 5)], _00=[(0, 0)])
    assert guesses().finding == "Your guess was ∞ × off, farther off than before (right)"
