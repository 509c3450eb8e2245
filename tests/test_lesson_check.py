"""What a learner sees, and what comes back."""

from __future__ import annotations

import json
import re
import sys
from html.parser import HTMLParser

import pytest

from minillm.lesson import check, hint, progress, recall
from minillm.lesson.exercises import find
from minillm.lesson.page import Note, link, prose

CHECK = sys.modules["minillm.lesson.check"]  # the name itself is the function


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty MINILLM_HOME, and a progress module that remembers nothing."""
    monkeypatch.setenv("MINILLM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys.modules["minillm.lesson.progress"], "_remembered", {})
    return tmp_path / "home"


@pytest.fixture
def shown(monkeypatch) -> list[Note]:
    """The notes that were shown, newest last."""
    notes: list[Note] = []
    monkeypatch.setattr(Note, "show", lambda note: notes.append(note))
    return notes


def stub(*args):
    raise NotImplementedError


def upside_down(*args):
    return 2.0


class Tags(HTMLParser):
    """Checks that every tag is closed, and keeps the text and the verdict."""

    def __init__(self, html: str):
        super().__init__()
        self.open, self.said, self.verdict = [], "", None
        self.feed(html)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        assert tag not in ("script", "style", "link"), "code hosts drop it"
        self.verdict = dict(attrs).get("data-verdict", self.verdict)
        if tag not in ("br", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.said += data


def test_what_comes_back_always_works(shown) -> None:
    """Catches a notebook that stops below an exercise that was left out or is wrong."""
    for mine in (stub, upside_down, None, 3, lambda: 1):
        assert check("00.2", mine)(10, 10, 4, 1, 3) == (2, 1.0, 2.0)

    def mine(hbm, bandwidth, weights, token, context):
        n = (hbm - weights) // (token * context)
        seconds = (weights + n * token * context) / bandwidth
        return [n, seconds, n / seconds]

    assert check("00.2", mine) is mine
    assert [Tags(note.html).verdict for note in shown[:2]] == ["not attempted", "not yet"]
    assert shown[-1].text == "00.2 right"


def test_a_function_that_spoils_what_it_was_given_is_not_yet_right(shown) -> None:
    """Catches cells below an exercise that go on with what the learner's function has changed."""
    right = find("20.1").reference

    def clears(ids, *more):
        answer = right(ids, *more)
        ids.clear()
        return answer

    assert check("20.1", clears)([1, 2], (1, 2), 3) == [3]
    said = Tags(shown[0].html)
    assert said.verdict == "not yet" and "left ids as []" in said.said
    assert "Until it is right the notebook uses ours." in said.said
    assert shown[0].text.startswith("20.1 not yet: The answers are right, but merge_pair([")
    assert check("20.1", right) is right


def test_the_plain_text_is_one_line_and_the_same_every_time(shown) -> None:
    """Catches a verdict that nbval finds changed."""
    for _ in range(2):
        check("00.1", stub)
        check("00.1", upside_down)
    assert [note.text for note in shown[:2]] == [note.text for note in shown[2:]]
    assert shown[0].text == "00.1 not attempted"
    assert re.fullmatch(r"00\.1 not yet: write_together\(memory, \[\['Mia'\]\], 3\) gave 2\.0, "
                        r"expected \(\[\['Mia', .+\]\], 96\): .+", shown[1].text)  # fmt: skip


def test_not_attempted_is_the_same_page_for_everyone(shown) -> None:
    """Catches a saved notebook that differs for somebody who has asked for hints before."""
    check("00.1", stub)
    hint("00.1")
    check("00.1", stub)
    assert shown[0] == shown[-1] and 'hint("00.1") helps' in Tags(shown[0].html).said


def test_an_unknown_number_is_a_verdict_and_the_function_comes_back(shown) -> None:
    """Catches a typing error in a number that stops the notebook."""
    assert check("00.99", stub) is stub and check(7.5, None) is None
    hint("00.99")
    assert "There is no exercise 00.99. Lesson 00 has: 00.1, 00.2." in shown[0].text
    assert {Tags(note.html).verdict for note in shown} == {"unknown"}
    hint(0.1)
    assert shown[-1].text.startswith("0.1 unknown: There is no exercise 0.1. Lessons with")


def test_a_fault_of_ours_stops_no_lesson(shown, monkeypatch) -> None:
    """Catches an error in the judge that a learner would have to read."""
    monkeypatch.setattr(CHECK, "judge", lambda *_: 1 / 0)
    assert check("00.1", stub) is stub
    assert shown[0].text == "00.1 unknown: division by zero"


def test_hints_come_one_at_a_time_and_then_the_solutions_place(home, shown) -> None:
    """Catches hints that all come at once, get lost, or run out without a way on."""
    hints = find("00.1").hints
    for _ in range(len(hints) + 2):
        hint("00.1")
    for i, said in enumerate(hints):
        assert shown[i].text == f"00.1 hint {i + 1} of {len(hints)}: {said}"
        text = Tags(shown[i].html).said
        assert said in text and not [later for later in hints[i + 1 :] if later in text]
        assert shown[i].html.count("<details") == i
    assert shown[-1] == shown[-2] and "solutions/00_tour.py" in shown[-1].text
    assert shown[-1].html.count("<details") == len(hints)
    kept = json.loads((home / "progress.json").read_text("utf-8"))["exercises"]
    assert kept["00.1"] == {"hints": len(hints)}


def test_a_verdict_says_where_help_is(shown) -> None:
    """Catches a learner who is told "not yet", and left alone."""
    check("00.1", upside_down)
    assert 'hint("00.1") helps. Until it is right' in Tags(shown[-1].html).said


def test_only_what_a_learner_does_is_written(home, shown) -> None:
    """Catches a notebook that writes into a home because somebody ran it."""
    check("00.1", stub)
    check("00.99", stub)
    progress()
    assert not home.exists()
    check("00.1", upside_down)
    hint("00.2")
    kept = json.loads((home / "progress.json").read_text("utf-8"))["exercises"]
    assert kept == {"00.1": {"right": False, "attempts": 1}, "00.2": {"hints": 1}}


def test_what_a_learner_wrote_is_text_and_not_html(shown) -> None:
    """Catches an answer that becomes part of the page."""
    check("00.1", lambda a, b, c: "<img src=x onerror=alert(1)>`")
    assert "<img" not in shown[0].html and "<img" in Tags(shown[0].html).said


def test_recall_keeps_answers_folded_and_out_of_the_question_lines() -> None:
    """Catches answers that can be read before they were thought of."""
    note = recall(("What moves `once`?", "Weights < all."), ("And then?", "Ids."))
    asked, answered = note.text.split("\n\n")
    assert asked == "1. What moves `once`?\n2. And then?"
    assert answered == "Answers: 1. Weights < all. 2. Ids."
    assert note.html.count("<details") == 2 and "<code>once</code>" in note.html
    assert "Weights < all." in Tags(note.html).said and " open" not in note.html


def test_prose_keeps_an_odd_backquote() -> None:
    """Catches half a page set as code for one stray mark."""
    assert prose("a `b` <c>") == "a <code>b</code> &lt;c&gt;" and prose("a ` b") == "a ` b"


def test_a_link_leads_from_the_notebooks_folder_and_names_no_machine(tmp_path, monkeypatch) -> None:
    """Catches a path of this machine in a saved notebook."""
    solution = find("00.1").path
    monkeypatch.chdir(solution.parent.parent)
    assert link(solution)[1] == "solutions/00_tour.py"
    monkeypatch.chdir(tmp_path)
    assert link(solution)[1] == "notebooks/solutions/00_tour.py"
