"""What is kept of a learner, where, and what happens when it cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minillm.lesson import guess, progress

ROOT = Path(__file__).resolve().parent.parent
PROGRESS = sys.modules["minillm.lesson.progress"]  # the name itself is the function


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """MINILLM_HOME, apart from the user's home; a course of one lesson; nothing is known yet."""
    lesson = {"00": PROGRESS.exercises.solution_files()["00"]}
    monkeypatch.setattr(PROGRESS.exercises, "solution_files", lambda: lesson)
    monkeypatch.setenv("MINILLM_HOME", str(tmp_path / "kept"))
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    monkeypatch.setattr(PROGRESS, "_remembered", {})
    return tmp_path / "kept"


def kept(home: Path) -> dict:
    return json.loads((home / "progress.json").read_text("utf-8"))


def seen(home: Path) -> list[str]:
    """What a learner sees there; the lock is hidden."""
    return sorted(name for name in os.listdir(home) if name != ".progress.json.lock")


def test_it_is_written_where_minillm_home_says_and_nowhere_else(home, tmp_path, monkeypatch):
    """Catches a file in the home of someone who asked for another place."""
    PROGRESS.attempted("00.1", False)
    assert seen(home) == ["progress.json"]
    assert not (tmp_path / "user").exists()
    monkeypatch.delenv("MINILLM_HOME")
    PROGRESS.attempted("00.1", False)
    assert (tmp_path / "user" / ".minillm" / "progress.json").is_file()


def test_reading_alone_writes_nothing(home):
    """Catches a folder that appears because a notebook was run."""
    guess("time to load", unit="s")
    progress()
    progress(reset=True)
    assert PROGRESS.hints_seen("00.1") == 0 and not home.exists()


def test_the_file_reads_well_and_says_what_it_is(home):
    """Catches a file that a learner who finds it cannot make sense of."""
    PROGRESS.attempted("00.1", True)
    PROGRESS.guessed("00_tour", "Zeit je Wörtchen", {"value": 2.0, "unit": "ms"})
    text = (home / "progress.json").read_text("utf-8")
    assert text.startswith('{\n  "about": "Progress in the minillm course.') and "Wörtchen" in text
    assert kept(home)["exercises"] == {"00.1": {"right": True, "attempts": 1}}


def test_once_right_stays_right_and_is_not_counted_again(home):
    """Catches a solved exercise that opens again because someone tried something else later."""
    for right in (False, True, True, False):
        PROGRESS.attempted("00.1", right)
    assert kept(home)["exercises"]["00.1"] == {"right": True, "attempts": 3}
    PROGRESS.attempted("00.2", False)
    table = progress()
    assert table.finding == "1 of 2 exercises right, 1 not yet, 0 open"
    assert table.rows[0] == ("00 tour", "1", "1", "·", "·")


def test_what_another_notebook_wrote_meanwhile_survives(home):
    """Catches two open notebooks that undo each other's progress, and a later version's keys."""
    PROGRESS.attempted("00.1", True)
    other = kept(home)
    other["exercises"]["11.1"] = {"right": True, "attempts": 1}
    (home / "progress.json").write_text(json.dumps({**other, "later": [1]}), encoding="utf-8")
    PROGRESS.attempted("00.2", True)
    assert set(kept(home)["exercises"]) == {"00.1", "00.2", "11.1"} and kept(home)["later"] == [1]


@pytest.mark.parametrize("content", [
    b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"exercises": []}', b'{"exercises": {"00.1": 3}}',
    b'{"exercises": {"00.1": {"hints": "two"}}}', b'{"exercises": {"00.1": {"hints": -1}}}',
    b'{"guesses": {"00_tour": {"time": 2}}}', b'{"guesses": {"a": {"b": {"value": "x"}}}}',
    b'{"guesses": {"a": {"b": {"value": 1, "came": "x"}}}}', b"[" * 100_000,
], ids=lambda content: content[:30])  # fmt: skip
def test_a_damaged_file_is_kept_aside_and_the_lesson_goes_on(home, capsys, content):
    """Catches progress that stops a lesson for good, and a damaged file thrown away."""
    home.mkdir()
    (home / "progress.json").write_bytes(content)
    assert progress().finding.startswith("0 of ")
    assert (home / "progress.json.bad").read_bytes() == content
    PROGRESS.attempted("00.1", True)
    assert kept(home)["exercises"]["00.1"]["right"] is True
    assert capsys.readouterr().out.count("kept as progress.json.bad") == 1


def test_a_second_damaged_file_does_not_take_the_place_of_the_first(home, capsys):
    """Catches the only copy of somebody's progress thrown away by the next accident."""
    home.mkdir()
    for content in (b"one", b"two", b"three"):
        (home / "progress.json").write_bytes(content)
        PROGRESS.attempted("00.1", True)
    assert seen(home) == ["progress.json", "progress.json.bad", "progress.json.bad2",
                          "progress.json.bad3"]  # fmt: skip
    assert (home / "progress.json.bad").read_bytes() == b"one"
    assert "kept as progress.json.bad3" in capsys.readouterr().out


NOTES = """
import sys
from minillm.lesson.progress import attempted, hinted
print("ready", flush=True)
sys.stdin.readline()
for number in range(40):
    attempted(f"{sys.argv[1]}.{number}", True)
    attempted("00.1", False)
"""


def test_notes_from_two_kernels_at_once_are_all_kept(home):
    """Catches a note that is lost because the other kernel had read the file just before it."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    kernels = [
        subprocess.Popen([sys.executable, "-c", NOTES, lesson], cwd=ROOT, **pipes)
        for lesson in ("10", "11")
    ]
    assert [kernel.stdout.readline() for kernel in kernels] == ["ready\n"] * 2
    for kernel in kernels:
        kernel.stdin.write("go\n")
        kernel.stdin.flush()
    assert [kernel.communicate()[0] for kernel in kernels] == [""] * 2
    exercises = kept(home)["exercises"]
    assert exercises.pop("00.1")["attempts"] == 80
    assert set(exercises) == {f"{lesson}.{n}" for lesson in ("10", "11") for n in range(40)}


def test_a_home_that_cannot_be_written_is_said_once(home, monkeypatch, capsys):
    """Catches a read-only home that stops a lesson, or complains under every cell."""
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.replace", refuse)
    for hints in (1, 2):
        PROGRESS.hinted("00.1", hints)
        PROGRESS.attempted("00.1", True)
    assert PROGRESS.hints_seen("00.1") == 2 and progress().finding.startswith("1 of 2")
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "not kept (Permission denied" in said


def test_a_file_that_we_may_not_read_is_not_replaced(home, monkeypatch, capsys):
    """Catches progress lost because it could not be read for a moment."""
    PROGRESS.attempted("00.1", True)
    before = kept(home)

    read = Path.read_bytes

    def refuse(path):
        if path.name == "progress.json":
            raise PermissionError(13, "Permission denied")
        return read(path)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", refuse)
        PROGRESS.attempted("00.2", True)
        assert progress().rows[0][1] == "1"  # what this session has seen
    assert kept(home) == before
    assert capsys.readouterr().out.count("could not be read") == 1


@pytest.mark.parametrize("place", ["a file", "a folder"])
def test_a_file_that_cannot_be_read_is_left_alone(home, tmp_path, monkeypatch, capsys, place):
    """Catches replacing what we could not even look at."""
    if place == "a file":
        home.touch()  # and so kept/progress.json cannot be
    else:
        (home / "progress.json").mkdir(parents=True)
    PROGRESS.attempted("00.1", True)
    PROGRESS.hinted("00.1", 1)
    assert PROGRESS.hints_seen("00.1") == 1
    assert home.is_file() or (home / "progress.json").is_dir()
    assert capsys.readouterr().out.count("could not be read") == 1
    progress(reset=True)
    assert PROGRESS.hints_seen("00.1") == 0


def test_an_interrupted_write_leaves_the_old_file_whole(home, monkeypatch):
    """Catches a file cut in half, and temporary files that pile up."""
    PROGRESS.attempted("00.1", True)
    before = kept(home)

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("os.replace", interrupt)
        PROGRESS.attempted("00.2", True)
    assert kept(home) == before
    PROGRESS.attempted("00.3", True)
    assert set(kept(home)["exercises"]) == {"00.1", "00.3"}
    assert seen(home) == ["progress.json"]


def test_reset_forgets_everything(home):
    """Catches a reset that leaves hints or guesses behind."""
    PROGRESS.attempted("00.1", True)
    PROGRESS.guessed("00_tour", "time", {"value": 2.0, "unit": "ms"})
    assert progress(reset=True).finding == "0 of 2 exercises right, 0 not yet, 2 open"
    assert not (home / "progress.json").exists()
    assert PROGRESS.all_guesses() == {}


def test_guesses_are_counted_by_the_notebook_they_were_made_in(home):
    """Catches a guess that turns up in another lesson's line."""
    PROGRESS.guessed("00_tour", "time", {"value": 2.0, "unit": "ms"})
    PROGRESS.guessed("00_tour", "time", {"value": 3.0, "unit": "ms"})
    PROGRESS.guessed("my_own", "time", {"value": 3.0, "unit": "ms"})
    assert progress().rows[0][-1] == "1"
    assert PROGRESS.all_guesses()["00_tour"] == {"time": {"value": 3.0, "unit": "ms"}}
