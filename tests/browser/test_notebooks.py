"""Every notebook in real JupyterLab, used as a learner uses it: run, watch, choose, drag, solve.

One server serves all notebooks, and each is opened and run once; then its tests follow in turn.
Pictures of all of it are in tests/browser/shots/: look at them.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from minillm.lesson import exercises

from . import hands
from .conftest import VIEWPORT, troubles
from .lab import Lab
from .server import NOTEBOOKS

STEMS = sorted(path.stem for path in NOTEBOOKS.glob("[0-9]*.ipynb"))
BROKEN = "Error displaying widget"
VIEW, SOURCES = ".minillm-view", "pictures => pictures.map(picture => picture.src)"


@pytest.fixture(scope="module", params=STEMS)
def opened(request: pytest.FixtureRequest, browser, server) -> Iterator[tuple[Lab, list[str]]]:
    """A notebook after Run All Cells, filmed, and the list of what its page did wrong so far.

    If a cell fails, so do all tests of the notebook, at once.
    """
    context = browser.new_context(viewport=VIEWPORT)
    found = troubles(context)
    lab = Lab(context.new_page(), server)
    lab.open(request.param)
    lab.films = hands.run_all_filming(lab)
    failed = lab.errors()
    if not failed:
        yield lab, found
    lab.close()
    context.close()
    assert not failed, "\n".join(failed)


@pytest.fixture
def lab(opened: tuple[Lab, list[str]]) -> Iterator[Lab]:
    """The notebook. Fails on a console error, or a request to elsewhere, until the test's end."""
    lab, found = opened
    yield lab
    complaints = "\n".join(found)
    found.clear()
    assert not complaints, complaints


def test_the_tour_has_something_of_everything() -> None:
    """Catches tests of views, sliders, guesses and exercises that find none, and so pass."""
    tour = (NOTEBOOKS / "source" / "00_tour.py").read_text(encoding="utf-8")
    assert not [call for call in ("watch(", "knob(", "guess(", 'check("') if call not in tour]


def test_it_runs_from_top_to_bottom(lab: Lab) -> None:
    """Catches a lesson that only runs where it was built: other folder, other home, no history."""
    code = [cell for cell in lab.cells() if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert lab.page.locator(".jp-Dialog").count() == 0


def test_every_screen_of_it_is_whole(lab: Lab, shots: Path) -> None:
    """Catches a widget that JupyterLab cannot show. And it takes the pictures to look at."""
    for number, screen in enumerate(hands.screens(lab)):
        screen.screenshot(path=shots / f"{lab.stem}_{number:02d}.png")
        assert BROKEN not in screen.inner_text(), f"screen {number}"


def test_a_live_view_moves_while_its_cell_runs(lab: Lab, shots: Path) -> None:
    """Catches a view that shows nothing until the end, when a still would do as well.

    A run of a few hundredths of a second may be over before its second message: each notebook that
    watches has one that is longer.
    """
    if not lab.find("charts.watch("):
        pytest.skip("nothing is watched here")
    told = {}
    for index, frames in lab.films.items():
        for number, frame in enumerate(frames):
            (shots / f"{lab.stem}_live_{index}_{number}.png").write_bytes(frame.picture)
        told[index] = [frame.told for frame in frames]
    assert any(len(seen) > 1 for seen in told.values()), f"all stood still; they told {told}"


def test_a_slider_that_its_cell_moves_is_seen_moving(lab: Lab) -> None:
    """Catches pictures that wait for the end of the cell, though the kernel sends each at once."""
    for index in lab.find(".sliders["):
        cell, seen = lab.start(index), set()
        while not lab.page.evaluate("window.ended"):
            seen.update(cell.locator(".widget-html-content img").evaluate_all(SOURCES))
        lab.wait()
        assert len(seen) >= hands.FRAMES, f"cell {index} showed {len(seen)} pictures"


def test_choosing_a_word_shows_its_journey(lab: Lab, shots: Path) -> None:
    """Catches a player that is dead inside JupyterLab, or whose keys JupyterLab takes for its own.

    A view of a load has no words to choose.
    """
    for index in lab.players():
        player = lab.show(index).locator(".minillm")
        player.wait_for()
        last, seen = player.locator(".minillm-chip").count() - 1, []
        for place in (1, last) if last > 1 else ():
            hands.choose_word(player, place)
            seen.append(player.locator(VIEW).first.screenshot())
            lab.page.screenshot(path=shots / f"{lab.stem}_word_{index}_{place}.png")
        assert len(set(seen)) == len(seen), f"cell {index}: the view shows the same for both words"
        if seen:
            lab.page.keyboard.press("ArrowLeft")
            hands.wait_for_journey(player, last - 1)


def test_views_follow_the_theme(lab: Lab, shots: Path) -> None:
    """Catches dark words on dark paper: a view that keeps the colours it began with."""
    for index in lab.players()[:1]:
        colours = {}
        for theme in ("Dark", "Light"):
            hands.theme(lab, theme)
            player = lab.show(index).locator(".minillm")
            player.wait_for()
            look = "el => [getComputedStyle(el).color, getComputedStyle(el).backgroundColor]"
            colours[theme] = player.evaluate(look)
            lab.page.screenshot(path=shots / f"{lab.stem}_{theme.lower()}.png")
        assert colours["Dark"] != colours["Light"]


def test_a_dragged_slider_gives_the_result_of_its_last_value(lab: Lab, shots: Path) -> None:
    """Catches a result that lags behind the hand: of thirty values a second the last must win."""
    for index in lab.find("knob("):
        cell = lab.show(index)
        result = cell.locator(".widget-html-content")
        for number, slider in enumerate(cell.locator(".widget-slider").all()):
            readout, seen = slider.locator(".widget-readout"), []
            near = round(hands.place_of(slider))  # the end from which we drag to the other one
            for place in (1 - near, near, 1 - near):
                before = result.inner_html()
                hands.drag(lab.page, slider, to=place)
                hands.wait_for_other(lab, result, before)
                seen.append((readout.inner_text(), result.inner_html()))
                cell.screenshot(path=shots / f"{lab.stem}_slider_{index}_{number}_{place}.png")
            assert seen[0] == seen[2] != seen[1], [value for value, _ in seen]


def test_a_guess_is_held_against_the_measurement(lab: Lab, shots: Path) -> None:
    """Catches a field whose number never reaches the kernel, or is lost before `reveal`."""
    reveals = lab.find("reveal(")
    for index in lab.find("guess("):
        fields = lab.show(index).locator(".widget-text input")
        for field in fields.all():
            field.fill("12,345")
            field.press("Enter")
        noted = lab.show(index).get_by_text("noted: 12,345")
        noted.nth(fields.count() - 1).wait_for()
    for shown in reveals:
        lab.run(shown)
        lab.show(shown).get_by_text("Your guess of 12,345").first.wait_for()
        lab.page.screenshot(path=shots / f"{lab.stem}_guess_{shown}.png")
    for last in lab.find("guesses()"):
        lab.run(last)
        lab.show(last).get_by_role("cell", name="12,345").first.wait_for()
        lab.page.screenshot(path=shots / f"{lab.stem}_guesses.png")
    kept = lab.server.home / "progress.json"
    assert not reveals or "12345" in kept.read_text(encoding="utf-8")


def test_an_exercise_is_solved_as_a_learner_solves_it(lab: Lab, shots: Path) -> None:
    """Catches a stub that the solution does not fit, and a check that looks at an old function."""
    for index in lab.find('check("'):
        assert verdict(lab, index) == "not attempted"
        number = re.search(r'check\("([\d.]+)"', lab.cells()[index]["source"])[1]
        solutions = exercises.load(NOTEBOOKS / "solutions" / f"{lab.stem}.py")
        name = solutions[number].reference.__name__
        stub = lab.find(f"def {name}(")[0]
        source = lab.cells()[stub]["source"]
        hands.type_into(lab, stub, solved(source, name, solutions[number].path))
        for cell in sorted({stub, index}):
            lab.run(cell)
        assert lab.errors() == []
        assert verdict(lab, index) == "right"
        lab.page.screenshot(path=shots / f"{lab.stem}_solved_{number}.png")


def verdict(lab: Lab, index: int) -> str:
    """What the check in a cell says."""
    note = lab.show(index).locator(".jp-OutputArea [data-verdict]")
    return note.get_attribute("data-verdict")


def solved(stub: str, name: str, solutions: Path) -> str:
    """A cell's source with the function of that name as the solution has it, and its imports."""
    text = solutions.read_text(encoding="utf-8")
    made, stubbed = (function_in(source, name) for source in (text, stub))
    used = {node.id for node in ast.walk(made) if isinstance(node, ast.Name)}
    imports = [
        ast.unparse(node) for node in ast.parse(text).body
        if isinstance(node, ast.Import) and used & {name.asname or name.name for name in node.names}
    ]  # fmt: skip
    lines, body = stub.splitlines(), text.splitlines()[made.lineno - 1 : made.end_lineno]
    lines[stubbed.lineno - 1 : stubbed.end_lineno] = body
    return "\n".join(imports + lines)


def function_in(source: str, name: str) -> ast.FunctionDef:
    """The function of that name; its lines begin below its decorators."""
    functions = (node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef))
    return next(function for function in functions if function.name == name)
