"""A learner's progress: one readable JSON file, `progress.json` in the folder MINILLM_HOME.

    {"exercises": {"11.2": {"right": true, "attempts": 3, "hints": 1}},
     "guesses": {"11_load_stream": {"time to load": {"value": 2.0, "unit": "s",
                                    "came": 0.9, "how": "measured", "predicted": 0.8}}}}

It is written when a learner attempts an exercise, asks for a hint or guesses, and when a guess
gets its answer; a notebook that only runs writes nothing. Of two notebooks that write, one waits
for the other. A damaged file is kept aside as `progress.json.bad`; one that cannot be read or
written is said once, and the session goes on with what it remembers.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

from IPython import get_ipython

from minillm.charts.show import Table
from minillm.errors import MinillmError
from minillm.files import home, locked, read_json, write_json
from minillm.lesson import exercises

ABOUT = "Progress in the minillm course. progress(reset=True) in a notebook starts anew."
NUMBERS = ("attempts", "hints", "value", "came", "predicted")
_lock = threading.RLock()  # a guess arrives on a widget's thread
_remembered: dict[Path, dict] = {}  # of files that could not be read or written, and so said once


def progress(reset: bool = False) -> Table:
    """What is right, not yet right and open in each lesson, and how many guesses were made.

    reset: forget everything, first. The file is deleted.
    """
    if reset:
        _forget()
    kept, table = _read(), []
    for lesson, path in exercises.solution_files().items():
        done = [kept["exercises"].get(number, {}) for number in exercises.load(path)]
        right = sum(entry.get("right") is True for entry in done)
        tried = sum(entry.get("attempts", 0) > 0 for entry in done) - right
        guesses = sum(len(g) for name, g in kept["guesses"].items() if name[:2] == lesson)
        figures = (right, tried, len(done) - right - tried, guesses)
        table.append((path.stem.replace("_", " "), *figures))
    total = [sum(column) for column in list(zip(*table, strict=True))[1:]] or [0] * 4
    finding = f"{total[0]} of {sum(total[:3])} exercises right, {total[1]} not yet, {total[2]} open"
    rows = tuple((row[0], *(str(n or "·") for n in row[1:])) for row in table)
    return Table(("lesson", "right", "not yet", "open", "guesses"), rows, finding)


def progress_file() -> Path:
    """`progress.json` in the folder MINILLM_HOME, which is ~/.minillm if it is not set."""
    return home() / "progress.json"


def attempted(number: str, right: bool) -> None:
    """Note an attempt. Once right, an exercise stays right, and is not written again for it."""

    def note(kept: dict[str, Any]) -> None:
        entry = kept["exercises"].setdefault(number, {})
        was_right = entry.get("right") is True
        entry.update(right=right or was_right)
        if not (right and was_right):
            entry.update(attempts=entry.get("attempts", 0) + 1)

    _change(note)


def hints_seen(number: str) -> int:
    return _read()["exercises"].get(number, {}).get("hints", 0)


def hinted(number: str, hints: int) -> None:
    """Note that so many hints of the exercise have been shown."""
    _change(lambda kept: kept["exercises"].setdefault(number, {}).update(hints=hints))


def guessed(notebook: str, quantity: str, entry: dict[str, Any] | None) -> None:
    """Note a guess, perhaps with its answer, in place of an earlier entry; None forgets it.

    entry: value and unit; with an answer came and how, and predicted if anything was.
    """

    def note(kept: dict[str, Any]) -> None:
        if entry is None:
            kept["guesses"].get(notebook, {}).pop(quantity, None)
        else:
            kept["guesses"].setdefault(notebook, {})[quantity] = entry

    _change(note)


def all_guesses() -> dict[str, dict[str, dict[str, Any]]]:
    """Notebook to quantity to entry, in the order in which they were guessed."""
    return _read()["guesses"]


def notebook() -> str:
    """The stem of the running notebook's name, as far as this kernel knows it."""
    names = getattr(get_ipython(), "user_ns", {})
    path = names.get("__vsc_ipynb_file__") or os.environ.get("JPY_SESSION_NAME") or "notebook"
    return Path(str(path)).stem


def _read() -> dict[str, Any]:
    """What the file says, or what this session remembers; empty if there is neither."""
    path = progress_file()
    with _lock, locked(path):
        return _look(path)


def _look(path: Path) -> dict[str, Any]:
    if path in _remembered:
        return _remembered[path]
    try:
        return _load(path)
    except OSError as error:
        return _go_without(_sound({}), "could not be read", error)


def _load(path: Path) -> dict[str, Any]:
    """What the file says; a damaged one is put aside, and a new one begins."""
    try:
        return _sound(read_json(path))
    except FileNotFoundError:
        return _sound({})
    except (ValueError, TypeError, AttributeError):  # not the JSON that we write
        names = (path.with_name(f"{path.name}.bad{number}") for number in ("", *range(2, 1000)))
        os.replace(path, bad := next(name for name in names if not name.exists()))
        print(f"Progress could not be read. The file is kept as {bad.name}, and a new one begins.")
        return _sound({})


def _sound(kept: dict) -> dict[str, Any]:
    """The same with all parts in place. Raises if a part is not what we would write."""
    kept = {"about": ABOUT, "exercises": {}, "guesses": {}, **kept}
    guesses = [guess for made in kept["guesses"].values() for guess in made.values()]
    for entry in (*kept["exercises"].values(), *guesses):
        if min(entry.get(key, 0) for key in NUMBERS) < 0:
            raise ValueError("less than none")
    return kept


def _change(change: Callable[[dict], Any]) -> None:
    """Read, change, write, while no other notebook does; not written if nothing changed."""
    path = progress_file()
    with suppress(OSError):  # if there can be no such folder, that is told in a moment
        path.parent.mkdir(parents=True, exist_ok=True)
    with _lock, locked(path):
        kept = _look(path)
        before = deepcopy(kept)
        change(kept)
        if kept == before or path in _remembered:
            return
        try:
            write_json(path, kept, "progress", indent=2)
        except MinillmError as error:
            _go_without(kept, "is not kept", error.__cause__)


def _forget() -> None:
    with _lock:
        path = progress_file()
        _remembered.pop(path, None)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            _go_without(_sound({}), "could not be deleted", error)


def _go_without(kept: dict[str, Any], trouble: str, error: OSError) -> dict[str, Any]:
    """Say so once: from now on this session has what is kept, and leaves the file alone."""
    path, why = progress_file(), error.strerror or type(error).__name__
    print(f"Progress {trouble} ({why}: {path}). From here on only this session remembers it.")
    return _remembered.setdefault(path, kept)
