"""A learner's eyes and hands in JupyterLab: look, film, type, choose, drag."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from .lab import CELL_SECONDS, RUN_SECONDS, Lab

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

LIVE, VIEW = '.minillm-bar[data-mode="live"]', ".minillm-view"
SETTLE_MS, FRAMES, GO_SECONDS = 300, 4, 0.05


class Frame(NamedTuple):
    """A picture of a live view, and how far the view says the run has come."""

    picture: bytes
    told: str

    def differs(self, other: Frame) -> bool:
        """In both: dots that go on moving by themselves are not enough."""
        return self.picture != other.picture and self.told != other.told


def run_all_filming(lab: Lab) -> dict[int, list[Frame]]:
    """Run > Run All Cells, and film the cells that `watch` while they run: cell to frames."""
    watching = lab.find("watch(")
    films = {}
    with standing_still(lab.kernel_pid()) as let_go_on:
        lab.start_all()
        for index in watching:
            lab.show(index)  # what is far from the screen is not drawn
            lab.wait_for_turn(index)
            films[index] = _film(lab, index, let_go_on)
        lab.wait(RUN_SECONDS)
    return films


def _film(lab: Lab, index: int, let_go_on: Callable[[float | None], None]) -> list[Frame]:
    """Frames that differ, a few, taken while the cell ran and its view was live.

    The kernel stands still for each: the shipped model would be done before the second one.
    """
    let_go_on(0)
    cell, frames = lab.show(index), []
    live, told = cell.locator(LIVE), cell.locator(".minillm-now")
    end = time.monotonic() + CELL_SECONDS
    while lab.running() == index and len(frames) < FRAMES and time.monotonic() < end:
        let_go_on(GO_SECONDS)
        if live.count():
            frame = Frame(cell.locator(VIEW).first.screenshot(), told.inner_text())
            still_so = live.count() and lab.running() == index
            if still_so and all(frame.differs(other) for other in frames[-1:]):
                frames.append(frame)
    let_go_on(None)
    return frames


@contextmanager
def standing_still(pid: int) -> Iterator[Callable[[float | None], None]]:
    """Gives go(seconds): the process goes on for so long, then stands still; None: for good.

    On Windows, where a process cannot be stopped, it always goes on.
    """
    can = hasattr(signal, "SIGSTOP")

    def go(seconds: float | None) -> None:
        if can:
            os.kill(pid, signal.SIGCONT)
        time.sleep(seconds or 0)
        if can and seconds is not None:
            os.kill(pid, signal.SIGSTOP)

    try:
        yield go
    finally:
        go(None)


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
