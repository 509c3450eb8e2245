"""A learner's eyes and hands in JupyterLab: look, film, type, choose, drag."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .lab import CELL_SECONDS, Lab

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

SETTLE_MS, PICTURES = 300, 10


def film(lab: Lab, index: int, what: str, when: str) -> list[bytes]:
    """Run a cell, cleared before, and photograph an element of its output as it runs.

    what: the CSS selector of the element. when: one that is found as long as it is alive.
    A picture counts if the cell still ran, and `when` was still found, after it was taken.
    Photography takes time from the cell, so some are enough.
    """
    lab.page.evaluate("index => panel.content.widgets[index].model.clearExecution()", index)
    cell, pictures = lab.start(index), []
    alive, subject = cell.locator(when), cell.locator(what).first
    end = time.monotonic() + CELL_SECONDS
    while lab.is_running() and len(pictures) < PICTURES and time.monotonic() < end:
        if alive.count() and subject.is_visible():
            picture = subject.screenshot()
            if lab.is_running() and alive.count():
                pictures.append(picture)
    lab.wait()
    return pictures


def screens(lab: Lab) -> Iterator[Locator]:
    """The notebook, screen by screen from the top; what is drawn is given time to be."""
    window = lab.panel.locator(".jp-WindowedPanel-outer")
    window.evaluate("window => { window.scrollTop = 0; }")
    while True:
        lab.page.wait_for_timeout(SETTLE_MS)
        yield window
        moved = window.evaluate(
            """window => { const before = window.scrollTop;
                window.scrollTop += 0.9 * window.clientHeight;
                return window.scrollTop - before; }"""
        )
        if moved < 5:
            return


def type_into(lab: Lab, index: int, source: str) -> None:
    """Replace a cell's source, as a learner does it: click, select all, type."""
    editor = lab.show(index).locator(".cm-content")
    editor.click()
    lab.page.keyboard.press("ControlOrMeta+A")
    lab.page.keyboard.insert_text(source)
    assert lab.cells()[index]["source"] == source


def wait_for_other(lab: Lab, place: Locator, before: str) -> None:
    """Wait until a place of the page holds something else, and has come to rest.

    The empty request is answered when the kernel has ended what it was asked for before.
    """
    other = "([place, before]) => place.innerHTML !== before"
    handle, patience = place.element_handle(), 1000 * CELL_SECONDS
    lab.page.wait_for_function(other, arg=[handle, before], timeout=patience)
    while (now := place.inner_html()) != before:
        before = now
        lab.page.wait_for_timeout(SETTLE_MS)
        lab.execute("")


def theme(lab: Lab, name: str) -> None:
    """Switch JupyterLab to "Light" or "Dark"."""
    change = "name => jupyterapp.commands.execute('apputils:change-theme', {theme: name})"
    lab.page.evaluate(change, f"JupyterLab {name}")
    light = "true" if name == "Light" else "false"
    lab.page.wait_for_function(f"document.body.dataset.jpThemeLight === '{light}'")


def choose_word(player: Locator, place: int) -> None:
    """Click on a generated word, and wait until the player tells its journey."""
    player.locator(".minillm-chip").nth(place).click()
    wait_for_journey(player, place)


def wait_for_journey(player: Locator, place: int) -> None:
    """Wait until that word is the chosen one, and its journey is told with its time and bytes."""
    chip = player.locator(".minillm-chip").nth(place)
    chip.and_(player.locator("[aria-pressed=true]")).wait_for()
    told = rf"token {place}\b.* took [\d.]+ (µs|ms|s): \d+ % .* read from HBM"
    player.locator(".minillm-journey", has_text=re.compile(told, re.DOTALL)).wait_for()


def place_of(slider: Locator) -> float:
    """Where the handle of an ipywidgets slider stands: 0 is the left end of its track."""
    slider.scroll_into_view_if_needed()
    track = slider.locator(".noUi-base").bounding_box()
    handle = slider.locator(".noUi-handle").bounding_box()
    return (handle["x"] + handle["width"] / 2 - track["x"]) / track["width"]


def drag(page: Page, slider: Locator, to: float, steps: int = 25) -> None:
    """Drag the handle of an ipywidgets slider to a fraction of its track."""
    slider.scroll_into_view_if_needed()
    track = slider.locator(".noUi-base").bounding_box()
    handle = slider.locator(".noUi-handle").bounding_box()
    x, y = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
    end = track["x"] + to * track["width"]
    page.mouse.move(x, y)
    page.mouse.down()
    for step in range(1, steps + 1):
        page.mouse.move(x + (end - x) * step / steps, y)
    page.mouse.up()
