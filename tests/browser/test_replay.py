"""A replay saved as one HTML file: it needs no kernel, no server and no network."""

from __future__ import annotations

from pathlib import Path

import pytest

from minillm import Engine, Machine, SamplingParams
from minillm.charts import replay

from .hands import choose_word

MACHINE = ".minillm-view.minillm-machine"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A load and a short answer of the shipped model, saved as a page."""
    engine = Engine.load("data/town", Machine.here(hbm="64 MiB", device="cpu"))
    engine.generate("Mia put the red key", SamplingParams(max_tokens=12, temperature=0.0))
    engine.close()
    file = tmp_path_factory.mktemp("replay") / "run.html"
    replay(engine.trace).save(file)
    return file


@pytest.fixture
def offline(page, saved: Path):
    """The file, opened from the disk with the network off. Nothing may be asked of any server."""
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.context.set_offline(True)
    page.goto(saved.as_uri())
    page.locator(".minillm").wait_for()
    yield page
    elsewhere = [url for url in requests if not url.startswith(("data:", "blob:", saved.as_uri()))]
    assert elsewhere == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_saved_page_plays(offline, scheme: str, shots: Path) -> None:
    """Catches a page that is blank without a CDN, and a play button that does nothing."""
    offline.emulate_media(color_scheme=scheme)
    player = offline.locator(".minillm")
    choose_word(player, 2)
    before = offline.locator(MACHINE).screenshot()
    player.locator(".minillm-play").click()
    player.locator(".minillm-chip").nth(4).and_(offline.locator("[data-when=done]")).wait_for()
    offline.screenshot(path=shots / f"replay_playing_{scheme}.png")
    assert offline.locator(MACHINE).screenshot() != before


def test_a_saved_page_shows_the_journey_of_a_word(offline, shots: Path) -> None:
    """Catches chips without an effect, and a journey of the wrong word."""
    player, seen = offline.locator(".minillm"), []
    for place in (2, 9):
        choose_word(player, place)
        seen.append(offline.locator(MACHINE).screenshot())
        offline.screenshot(path=shots / f"replay_word_{place}.png", full_page=True)
    assert seen[0] != seen[1], "the diagram shows the same for both words"
