"""A number from a learner, and how far it was."""

from __future__ import annotations

import io
import sys

import pytest
from PIL import Image

from minillm.errors import MinillmError
from minillm.lesson import guess, reveal

GUESS = sys.modules["minillm.lesson.guess"]  # the name itself is the function
WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MINILLM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("JPY_SESSION_NAME", "notebooks/00_tour.ipynb")
    monkeypatch.setattr(sys.modules["minillm.lesson.progress"], "_remembered", {})
    return tmp_path / "home"


@pytest.fixture
def shown(monkeypatch) -> list:
    """What reveal displays: the chart's arguments, then the sentence."""
    seen: list = []
    monkeypatch.setattr(GUESS, "display", seen.append)
    monkeypatch.setattr(GUESS.Note, "show", lambda note: seen.append(note.text))
    monkeypatch.setattr(GUESS.charts, "predicted_measured",
                        lambda *a, **named: (*a, named), raising=False)  # fmt: skip
    return seen


@pytest.mark.parametrize(("text", "unit", "number"), [
    ("1200", "", 1200), ("1,200", "", 1200), ("1 200", "", 1200), ("1_200", "", 1200),
    ("1'200", "", 1200), ("1.2k", "", 1200), ("1.2 k", "tok/s", 1200), (" 1200 ", "", 1200),
    ("1.2k tok/s", "tok/s", 1200), ("1,200.5", "", 1200.5), ("3,5", "", 3.5), ("~ 3.5", "", 3.5),
    ("1e-3", "s", 0.001), ("2 ms", "ms", 2), ("2m", "ms", 2), ("43 GB/s", "GB/s", 43),
    ("43G", "GB/s", 43), ("5M", "", 5e6), ("0", "", 0), (".5", "", 0.5), ("85 %", "%", 85),
    ("12,345,678", "B", 12_345_678), ("0,001", "s", 0.001), ("10,000", "", 10_000),
    ("1,200e3", "", 1_200_000), ("+4", "", 4),
])  # fmt: skip
def test_a_number_is_read_as_people_write_it(text, unit, number):
    """Catches a guess refused, or off by a thousand, for the way it was written."""
    assert GUESS.parse_number(text, unit) == pytest.approx(number, rel=1e-12)


@pytest.mark.parametrize(("text", "unit"), [
    ("", ""), ("many", ""), ("1,2,3", ""), ("1.2.3", ""), ("43 MB/s", "GB/s"), ("2m", ""),
    ("-2", "ms"), ("inf", ""), ("nan", ""), ("1e999", ""), ("2 apples", "ms"), ("1.200,5", ""),
    ("12 5", ""), ("k", ""), ("½", ""), (".", ""), ("1,20k0", ""),
])  # fmt: skip
def test_what_is_no_number_in_this_unit_is_none(text, unit):
    """Catches a wrong guess put into a learner's mouth."""
    assert GUESS.parse_number(text, unit) is None


def test_a_guess_is_none_until_something_was_written():
    """Catches a chart with a guess that nobody made."""
    mine = guess("time per token", unit="ms")
    assert mine.value is None
    mine._field.value = "a lot"
    assert mine.value is None and "not read as a number of ms" in mine._says.value
    mine._field.value = "2,5"
    assert mine.value == 2.5 and "noted: 2.5 ms" in mine._says.value
    mine._field.value = "<b>"
    assert mine.value == 2.5 and "2.5 ms is kept" in mine._says.value
    mine._field.value = " "
    assert mine.value is None and guess("time per token", unit="ms").value is None


def test_a_cell_that_runs_again_keeps_the_guess_of_its_notebook(monkeypatch):
    """Catches a guess lost to Run All, and one that turns up in another notebook."""
    guess("time per token", unit="ms")._field.value = "1,200.25"
    again = guess("time per token", unit="ms")
    assert again.value == 1200.25 and again._field.value == "1,200.25"
    assert guess("another quantity").value is None
    monkeypatch.setenv("JPY_SESSION_NAME", "11_load_stream.ipynb")
    assert guess("time per token", unit="ms").value is None


def test_the_saved_notebook_shows_a_still_and_says_the_same_before_and_after():
    """Catches a field that an export shows as nothing, and text that nbval finds changed."""
    mine = guess("time per token", unit="ms")
    before, about = mine._repr_mimebundle_()
    assert about["image/png"]["width"] == 672 and "time per token" in about["image/png"]["alt"]
    mine._field.value = "8"
    after, _ = mine._repr_mimebundle_()
    assert before["text/plain"] == after["text/plain"] == "guess: time per token (ms)"
    assert before["image/png"] != after["image/png"] and WIDGET in before
    image = Image.open(io.BytesIO(before["image/png"]))
    assert image.width == 7 * 192 and image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_reveal_shows_guess_and_measurement(shown):
    """Catches a guess that does not reach the chart, or is held against the prediction."""
    mine = guess("time per token", unit="ms")
    mine.write("8")
    reveal(mine, predicted=2.1, measured=[2.7, 2.6, 2.5], ceiling=2.0)
    numbers = {"guess": 8.0, "predicted": 2.1, "measured": [2.7, 2.6, 2.5], "ceiling": 2.0}
    numbers["how"] = "measured"
    assert shown[-2] == ("time per token", "ms", numbers)
    assert shown[-1] == "Your guess of 8 ms was 3.1 × too high."


def test_a_number_from_a_scale_model_is_not_called_measured(monkeypatch):
    """Catches a slowed link's time that is said to be this machine's."""
    charts = []
    monkeypatch.setattr(GUESS, "display", charts.append)
    mine = guess("time to load", unit="s")
    mine.write("8")
    reveal(mine, predicted=0.9, measured=[1.0, 1.1, 0.9], how="emulated")
    words = [text.get_text() for text in charts[-1].findobj(lambda a: hasattr(a, "get_text"))]
    assert charts[-1].finding == "Emulated 1 s: 111 % of the prediction, 12 % of the guess"
    assert "emulated 1 s (0.9 to 1.1)" in words and "measured" not in " ".join(words)
    assert "emulated" in charts[-1].alt
    with pytest.raises(MinillmError, match="measured or emulated, found 'guessed'"):
        reveal(mine, measured=1.0, how="guessed")


def test_reveal_goes_on_without_a_guess(shown):
    """Catches a lesson that stops for those who would rather not guess."""
    mine = guess("time per token", unit="ms")
    del shown[:]
    reveal(mine, measured=2.6)
    assert len(shown) == 1 and shown[0][2]["guess"] is None
    reveal(mine)
    assert shown[-1] == "nothing to show yet"


def test_the_chart_of_the_course_takes_what_reveal_gives(capsys):
    """Catches a change of `predicted_measured` that reveal does not know."""
    mine = guess("time per token", unit="ms")
    mine.write("8")
    reveal(mine, predicted=2.1, measured=2.6, ceiling=2.0)
    assert "Your guess of 8 ms was 3.1 × too high." in capsys.readouterr().out


@pytest.mark.parametrize(("written", "answer", "words"), [
    ("0", {"measured": 2.6, "predicted": 2.1}, "0 ms was ∞ × too low."),
    ("12,345", {"measured": 0.0, "predicted": 0.0}, "12,345 ms was ∞ × too high."),
    ("0", {"measured": [0.0, 0.0]}, "0 ms was right."),
    ("0.01", {"measured": 100.0, "predicted": 90, "ceiling": 80}, "0.01 ms was 10,000 × too low."),
    ("12,345", {"predicted": 0.3}, "12,345 ms was 41,000 × too high."),
])  # fmt: skip
def test_a_guess_may_be_as_far_off_as_it_likes(capsys, written, answer, words):
    """Catches a zero that no log axis takes, and a factor that is none."""
    mine = guess("time per token", unit="ms")
    mine.write(written)
    reveal(mine, **answer)
    assert capsys.readouterr().out.endswith(f"Your guess of {words}\n")
