"""The machine in a browser: it tells the run's numbers, moves, rests, and keeps its words apart."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_charts_live import browser_data
from test_charts_machine_view import make_run

from minillm.charts.machine_view import machine

MOVING = "{live: false, playing: true, slower: 20, window: 0.0075, selection: null}"
STILL = "{live: false, playing: false, slower: 1, window: 0.002, selection: null}"
REST = "{live: false, playing: false, atRest: true, slower: 1, window: 1, selection: null}"
LANE = "document.querySelector('[data-id=\"read:0/+\"]')"
OFFSET = f"{LANE}.getAttribute('stroke-dashoffset')"

# Puts the view on the page; `draw(t, view)` as the player calls it; counts frames and errors.
SETUP = """async ({meta, rows}) => {
  const [{ Run }, { machineView }] = await Promise.all(
    ["run", "machine_view"].map((name) => import(`/charts/${name}.js`)));
  const box = document.getElementById("view");
  box.append(Object.assign(document.createElement("p"), { ariaLive: "polite" }));
  window.run = new Run(meta);
  run.append(rows);
  window.picked = [];
  window.frames = 0;
  const ask = window.requestAnimationFrame.bind(window);
  window.requestAnimationFrame = (tick) => ask((now) => { frames += 1; tick(now); });
  window.view = machineView(box, run, { onPick: (token) => picked.push(token) });
  window.draw = (t, how) => view.draw(t, how);
}"""


@pytest.fixture
def show(views_page):
    """`show(gpus, nodes, width)`: a machine on a page of that width."""

    def put(gpus: int = 1, nodes: int = 1, width: int = 1000, dark: bool = False):
        trace = make_run(gpus, nodes)
        views_page.set_viewport_size({"width": width, "height": 900})
        views_page.evaluate(f"document.body.dataset.jpThemeLight = '{str(not dark).lower()}'")
        views_page.evaluate(SETUP, browser_data(trace))
        return views_page

    return put


def said(page) -> str:
    return " | ".join(page.locator(".minillm-machine svg text").all_text_contents())


def keep_drawing(page) -> None:
    """As a player does: the same moment, ten times a second."""
    moment = f"draw(run.requests[0].tokens[2].start + 1e-3, {MOVING})"
    page.evaluate(f"window.drawing = setInterval(() => {moment}, 100)")


# Words that leave their card or the picture, lie on other words, or are too small to read.
WRONG = """(least) => {
  const svg = document.querySelector("svg"), frame = svg.getBoundingClientRect();
  const box = (part) => part.getBoundingClientRect();
  const words = [...svg.querySelectorAll("text")].filter((text) => text.textContent.trim()
    && getComputedStyle(text).visibility === "visible");
  const leaves = (a, b) => a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1
    || a.bottom > b.bottom + 1;
  const meet = (a, b) => a.left < b.right - 1 && b.left < a.right - 1
    && a.top + 2 < b.bottom - 2 && b.top + 2 < a.bottom - 2;
  const cards = [...svg.querySelectorAll("rect.card, rect.bar")];
  const home = (text) => cards.find((card) => card.dataset.id === text.dataset.id.split("/")[0]);
  const on = words.filter((a, i) => words.some((b, j) => j < i && meet(box(a), box(b))));
  const scale = frame.width / svg.viewBox.baseVal.width;
  const out = words.filter((text) => leaves(box(text), home(text) ? box(home(text)) : frame));
  const small = words.filter((t) => parseFloat(getComputedStyle(t).fontSize) * scale < least);
  return [out, on, small].map((found) => found.map((text) => text.textContent));
}"""


@pytest.mark.parametrize("width", [1000, 700, 380])
@pytest.mark.parametrize(("gpus", "nodes"), [(1, 1), (2, 1), (8, 1), (8, 2)])
def test_words_lie_in_their_boxes_and_can_be_read(
    show, gpus: int, nodes: int, width: int, shots: Path
) -> None:
    """Catches a label that runs into the next box, and letters nobody can read."""
    page = show(gpus, nodes, width, dark=width == 700)
    for name, moment in (("half", f"run.begin + 0.5 * (run.end - run.begin), {STILL}"),
                         ("rest", f"run.end, {REST}"),
                         ("word", f"run.requests[0].tokens[2].stop, {STILL}")):  # fmt: skip
        page.evaluate(f"draw({moment})")
        page.wait_for_timeout(300)
        page.screenshot(path=shots / f"machine_{gpus}x{nodes}_{width}_{name}.png")
        assert page.evaluate(WRONG, 7.1) == [[], [], []], name
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    plain = page.evaluate("""() => { const svg = document.querySelector("svg");
      return 11.5 * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width; }""")
    assert plain >= 8.9, "pixels of a letter that did not have to be set smaller"


@pytest.mark.parametrize(("gpus", "nodes"), [(1, 1), (8, 1), (8, 2)])
def test_words_of_the_still_lie_in_their_boxes(page, gpus: int, nodes: int) -> None:
    """Catches a title cut at the right edge, and a label on a label."""
    page.set_viewport_size({"width": 672, "height": 900})
    page.set_content(f"<body style='margin: 0'>{machine(make_run(gpus, nodes)).svg}")
    assert page.evaluate(WRONG, 7.1) == [[], [], []]


def test_the_moment_shown_is_the_moment_asked_for(show) -> None:
    """Catches a picture that stays at what it showed before, when someone scrubs back."""
    page = show()
    page.evaluate(f"draw(run.end, {REST})")
    assert "w4" in said(page) and "logits" in said(page) and "token 4, the last one" in said(page)
    page.evaluate(f"draw(0.0025, {STILL})")
    early = said(page)
    assert "next token" in early and "w4" not in early and "logits" not in early
    assert "staging 2 MiB" in early and "1.05 GB/s" in early
    assert "52 % of ceiling" in early
    assert "weights 1 of 6 MiB" in early  # room is taken at once, the bytes come later
    page.evaluate(f"draw(run.requests[0].tokens[1].stop, {STILL})")
    assert "token 1" in said(page) and "Mia? w0 w1" in said(page)


def test_a_chosen_token_shows_all_that_moved_for_it(show) -> None:
    """Catches a word whose machine shows only its last tenth of a millisecond."""
    page = show()
    page.evaluate("""draw(run.requests[0].tokens[2].stop, {live: false, playing: false,
      selection: run.requests[0].tokens[2]})""")
    words = said(page)
    assert "token 2" in words and "3.15 GB/s" in words and "logits ←" in words
    assert page.locator('[data-id="compute"].busy').count() == 1


def test_a_run_under_way_is_shown_as_it_is_told(show) -> None:
    """Catches a live picture that waits for the end, or forgets what it was told before."""
    page = show()
    page.evaluate("""async () => {
      const { mergeState } = await import("/charts/machine_view.js");
      const live = "{live: true, playing: false}";
      mergeState(run.live, {"hbm/say": {text: "3 MiB"}});
      mergeState(run.live, {"cpu/say": {text: "sample"}});
      view.draw(0.1, {live: true, playing: false}); }""")
    assert "3 MiB" in said(page) and "sample" in said(page)


def test_the_active_stage_and_unit_are_lit(show) -> None:
    """Catches a strip that lights a stage that is over."""
    page = show()
    for t, stage, busy in (("0.0005", "1 load", 0), ("run.requests[0].tokens[2].start + 1e-3",
                                                     "3 model + kv", 1)):  # fmt: skip
        page.evaluate(f"draw({t}, {STILL})")
        assert page.locator("text.stage.lit").text_content() == stage
        assert page.locator('[data-id="compute"].busy').count() == busy


def test_dots_move_and_come_to_rest(show) -> None:
    """Catches an animation that never ends: it would keep a laptop's fan running."""
    page = show()
    keep_drawing(page)
    page.wait_for_function(f"{LANE} && {LANE}.getAttribute('stroke') !== 'none'")
    before = page.evaluate(OFFSET)
    page.wait_for_function(f"{OFFSET} !== '{before}'")
    page.evaluate("clearInterval(drawing)")
    page.wait_for_timeout(600)
    frames = page.evaluate("frames")
    page.wait_for_timeout(300)
    assert page.evaluate("frames") == frames
    page.evaluate(f"draw(run.end, {MOVING}); view.destroy()")
    assert page.locator(".minillm-machine").count() == 0
    frames = page.evaluate("frames")
    page.wait_for_timeout(200)
    assert page.evaluate("frames") == frames


def test_with_reduced_motion_nothing_moves(show) -> None:
    """Catches dots that run for someone who asked for rest: a link is lit, its rate is written."""
    page = show()
    page.emulate_media(reduced_motion="reduce")
    keep_drawing(page)
    page.wait_for_function(f"{LANE} && {LANE}.getAttribute('stroke') !== 'none'")
    before = page.evaluate(OFFSET)
    page.wait_for_timeout(200)
    assert page.evaluate(OFFSET) == before
    assert page.evaluate(f"getComputedStyle({LANE}).strokeDasharray") == "none"
    assert "→" in said(page)


@pytest.mark.parametrize("dark", [False, True])
def test_a_page_in_the_dark_has_light_words(show, dark: bool) -> None:
    """Catches a picture that keeps its own paper and inks where the theme has others."""
    page = show(dark=dark)
    page.evaluate(f"draw(run.end, {REST})")
    bright = """(name) => { const part = document.querySelector(`[data-id="${name}"]`);
      return getComputedStyle(part).fill.match(/\\d+/g).slice(0, 3).map(Number); }"""
    words, card = (sum(page.evaluate(bright, name)) for name in ("hbm/name", "hbm"))
    assert (words > 450, card < 250) == (dark, dark)


def test_keys_and_pointer_tell_all_of_a_part(show) -> None:
    """Catches figures that only a mouse can reach, and a token card without an effect."""
    page = show()
    page.evaluate("""draw(run.requests[0].tokens[2].stop, {live: false, playing: false,
      selection: run.requests[0].tokens[2]})""")
    svg, tip = page.locator(".minillm-machine svg"), page.locator(".minillm-machine-tip")
    seen = svg.get_attribute("aria-label")
    assert "Stage" in seen and svg.get_attribute("role") == "img"
    assert "HBM to compute: weights, KV at 3.15 GB/s, predicted; HBM to DRAM: logits" in seen
    svg.focus()
    page.keyboard.press("ArrowRight")
    assert tip.inner_text().startswith("SSD\n")
    assert page.locator("[aria-live]").inner_text().startswith("SSD. The disk.")
    page.keyboard.press("Escape")
    assert tip.is_hidden()
    page.locator("rect[data-id=hbm]").hover(position={"x": 60, "y": 12})
    assert "weights 6 MiB" in tip.inner_text() and "emulated in DRAM" in tip.inner_text()
    page.locator("path[data-id=pcie]").hover(force=True)
    assert "logits ←" in tip.inner_text()
    page.locator("rect[data-id=token]").click()
    assert page.evaluate("picked") == [{"request": 0, "index": 2}]
