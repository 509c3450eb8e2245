"""The machine diagram in a browser: it tells the run's numbers, moves, and rests."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_charts_live import browser_data
from test_charts_machine_view import make_run

MOVING = "{live: false, playing: true, slower: 20, window: 0.0075, selection: null}"
STILL = "{live: false, playing: false, slower: 1, window: 0.002, selection: null}"

LANE = "document.querySelector('.minillm-machine-read .lane')"

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


@pytest.mark.parametrize("width", [1000, 700, 380])
@pytest.mark.parametrize(("gpus", "nodes"), [(1, 1), (8, 1), (8, 2)])
def test_no_words_leave_the_picture_or_are_too_small(
    show, gpus: int, nodes: int, width: int, shots: Path
) -> None:
    """Catches a label cut off at the edge of the page, and letters nobody can read."""
    page = show(gpus, nodes, width, dark=width == 700)
    page.evaluate(f"draw(run.begin + 0.5 * (run.end - run.begin), {STILL})")
    page.screenshot(path=shots / f"machine_{gpus}x{nodes}_{width}.png")
    page.evaluate(f"draw(run.end, {STILL})")
    outside = page.evaluate(
        """() => {
          const frame = document.querySelector(".minillm-machine svg").getBoundingClientRect();
          const words = [...document.querySelectorAll(".minillm-machine svg text")]
            .filter((text) => text.textContent && !text.closest("[clip-path]"));
          const far = words.filter((text) => {
            const box = text.getBoundingClientRect();
            return box.width && (box.left < frame.left - 1 || box.right > frame.right + 1
              || box.top < frame.top - 1 || box.bottom > frame.bottom + 1);
          });
          const scale = frame.width / document.querySelector("svg").viewBox.baseVal.width;
          const small = words.filter((t) => parseFloat(getComputedStyle(t).fontSize) * scale < 9.9);
          return [far, small].map((found) => found.map((text) => text.textContent));
        }"""
    )
    assert outside == [[], []]


def test_the_moment_shown_is_the_moment_asked_for(show) -> None:
    """Catches a picture that stays at what it showed before, when someone scrubs back."""
    page = show()
    page.evaluate(f"draw(run.end, {STILL})")
    assert "w4" in said(page) and "logits" in said(page)
    page.evaluate(f"draw(0.0015, {STILL})")
    early = said(page)
    assert "next token" in early and "w4" not in early and "logits" not in early
    assert "staging 2 MiB" in early and "1.05 GB/s" in early
    assert "52 % of ceiling" in early
    assert "weights 1 of 6 MiB" in early  # room is taken at once, the bytes come later
    page.evaluate(f"draw(run.requests[0].tokens[1].stop, {STILL})")
    assert "token 1" in said(page) and "Mia? w0 w1" in said(page).replace(" | ", "")


def test_the_active_stage_and_unit_are_lit(show) -> None:
    """Catches a strip that lights a stage that is over."""
    page = show()
    for t, stage, busy in (("0.0005", "1 load", 0), ("run.requests[0].tokens[2].start + 1e-3",
                                                     "3 model + kv", 1)):  # fmt: skip
        page.evaluate(f"draw({t}, {{...{STILL}, window: 1e-4}})")
        assert page.locator(".stage.lit").text_content() == stage
        assert page.locator(".minillm-machine-compute.busy").count() == busy


def test_dots_move_and_come_to_rest(show) -> None:
    """Catches an animation that never ends: it would keep a laptop's fan running."""
    page = show()
    keep_drawing(page)
    page.wait_for_function(f"{LANE} && {LANE}.style.opacity > 0.9")
    before = page.evaluate(f"{LANE}.style.strokeDashoffset")
    page.wait_for_function(f"{LANE}.style.strokeDashoffset !== '{before}'")
    page.evaluate("clearInterval(drawing)")
    page.wait_for_function(f"Number({LANE}.style.opacity) === 0")
    page.wait_for_timeout(300)
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
    page.wait_for_function(f"{LANE} && {LANE}.style.opacity > 0.9")
    for _ in range(2):
        dashes = page.evaluate(f"[{LANE}.style.strokeDasharray, {LANE}.style.strokeDashoffset]")
        assert dashes == ["none", ""]
        page.wait_for_timeout(100)
    assert "→" in said(page)


def test_keys_and_pointer_tell_all_of_a_part(show) -> None:
    """Catches figures that only a mouse can reach, and a token card without an effect."""
    page = show()
    page.evaluate(f"draw(run.requests[0].tokens[2].stop, {STILL})")
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
    page.locator("[data-part=hbm] .card").hover()
    assert "weights 6 MiB" in tip.inner_text() and "emulated in DRAM" in tip.inner_text()
    page.locator("[data-part=token] .card").click()
    assert page.evaluate("picked") == [{"request": 0, "index": 2}]
