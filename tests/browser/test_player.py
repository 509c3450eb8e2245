"""The player as a learner uses it: play, scrub, keys, chips, a run that grows, one that is over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_charts_live import browser_data

from minillm.charts import bundle
from minillm.charts.live import for_page
from minillm.charts.wire import Packer
from minillm.trace import Trace
from minillm.trace.event import Event

NOW, MODE, PRESSED = ".minillm-now", ".minillm-bar", ".minillm-chip[aria-pressed=true]"
# The views record what they are told to draw; the real ones have tests of their own.
START = """async ({meta, rows, live}) => {
  const {Run} = await import("/charts/run.js");
  const {player} = await import("/charts/player.js");
  window.run = new Run(meta);
  run.append(rows);
  window.heard = [];
  document.addEventListener("keydown", (event) => heard.push(event.key));
  window.one = player(document.getElementById("view"), run, {live});
}"""


def make_run(tokens: int = 6, requests: int = 2) -> Trace:
    events, t = [], 0.0
    for request in range(requests):
        who = {"request": request}
        events.append(Event("span", "tokenize", "tokens", "cpu", t, 1e-3, token=0, label="text",
                            detail=f"Prompt {request}", **who))  # fmt: skip
        for token in range(tokens):
            events += [
                Event("span", "decode step", "model", "compute", t + 1e-3, 6e-3, 2**20,
                      token=token, bytes_how="predicted", **who),
                Event("transfer", "copy", "decode", "copy", t + 7e-3, 1e-3, 4096, "hbm", "dram",
                      "logits", token=token, **who),
                Event("span", "detokenize", "decode", "cpu", t + 8e-3, 1e-3, 4, label="text",
                      token=token, detail=["Ta", "il"][token % 2], **who),
            ]  # fmt: skip
            t += 1e-2
        t += 3.0
    events.append(Event("counter", "hbm", "", "", 0.0, 0.0, 2**20, label="weights"))
    return Trace.of(events, {"capacity": {"hbm": 2**22}, "device": "cpu"})


@pytest.fixture
def play(views_page):
    """`play(trace, live=False, motion="reduce" | "no-preference")`: the page, a player in it."""

    def start(trace: Trace, live: bool = False, motion: str = "no-preference"):
        views_page.emulate_media(reduced_motion=motion)
        views_page.add_style_tag(content=bundle.style())
        views_page.evaluate(START, browser_data(trace, live=live))
        views_page.locator(".minillm-bar").wait_for()
        return views_page

    return start


def drawn(page):
    """The page, when what was asked for is on it: it draws once a frame."""
    frame = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
    page.evaluate(f"() => {frame}")
    return page


def now(page) -> str:
    drawn(page)
    return page.locator(NOW).inner_text().split(" of ")[0]


def test_a_word_moves_everything_to_its_step(play, shots: Path) -> None:
    """Catches a chip that only lights up, and a journey of another word."""
    page = play(make_run())
    assert page.locator(".minillm-chip").count() == 6, "the words of one request"
    page.get_by_label("request before").click()
    drawn(page).locator(".minillm-chip").nth(2).click()
    said = drawn(page).locator(".minillm-journey").inner_text()
    assert "token 2 “Ta” took 8 ms: 75 % decode step, 13 % logits → DRAM, 13 % detokenize" in said
    assert "1 MiB read from HBM (predicted), 4 KiB of logits out" in said
    assert now(page) == "29 ms"
    assert page.locator(".minillm-voice").inner_text().startswith("token 2")
    page.screenshot(path=shots / "player_word.png", full_page=True)


def test_keys_go_from_word_to_word_and_stay_in_the_player(play) -> None:
    """Catches arrows that move the notebook's cells, and keys that are dead after a click."""
    page = play(make_run())
    page.locator(".minillm .minillm").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    seen = []
    for _ in range(7):  # six words of the first request, then the first of the next
        seen.append(drawn(page).locator(".minillm-journey p").first.inner_text()[:7])
        page.keyboard.press("ArrowRight")
    assert seen == [f"token {i}" for i in (0, 1, 2, 3, 4, 5, 0)]
    page.keyboard.press("ArrowLeft")
    assert "token 0" in drawn(page).locator(".minillm-journey p").first.inner_text()
    page.keyboard.press("End")
    assert drawn(page).locator(PRESSED).count() == 0 and now(page) == "120 ms"
    for key in ("a", "x", "Space"):
        page.keyboard.press(key)
    assert page.evaluate("heard") == [], "JupyterLab would have cut a cell"
    page.keyboard.press("Escape")
    assert page.evaluate("heard") == ["Escape"], "the way out of the widget"


def test_play_goes_from_start_to_end_and_pauses(play) -> None:
    """Catches a player that does not move, cannot be stopped, or plays a pause of seconds."""
    page = play(make_run())
    page.locator(".minillm-play").click()
    page.wait_for_function("parseFloat(document.querySelector('.minillm-now').innerText) > 4")
    page.locator(".minillm-play").click()
    page.wait_for_timeout(100)
    stood = now(page)
    page.wait_for_timeout(300)
    assert now(page) == stood
    length = page.evaluate("run.clock.length")
    assert length < 0.2 and page.evaluate("run.end") > 3
    assert page.locator(".minillm-phases s").count() == 1, "the cut is marked"
    assert page.locator(".minillm-pace output").inner_text() == "200 × slower"
    page.get_by_label("faster").click()
    assert drawn(page).locator(".minillm-pace output").inner_text() == "100 × slower"
    page.locator(".minillm-scrub input").fill(str(length / 2))
    assert now(page) != stood


def test_a_short_run_plays_itself_once_and_stops_at_a_touch(play) -> None:
    """Catches a label that does not say it is slow motion, and a replay that cannot be stopped."""
    page = play(make_run(requests=1), live=True)
    assert page.locator(MODE).get_attribute("data-mode") == "live"
    assert not page.locator(".minillm-play").is_visible()
    page.evaluate("one.finish(true)")
    assert page.locator(MODE).get_attribute("data-mode") == "auto"
    assert page.locator(".minillm-badge").inner_text() == "replay · 400 × slower"
    page.locator(".minillm-journey").click()
    page.wait_for_timeout(100)
    assert page.locator(MODE).get_attribute("data-mode") == "hand"
    stood = now(page)
    page.wait_for_timeout(300)
    assert now(page) == stood


@pytest.mark.parametrize("seconds, motion, itself",
                         [(1, "reduce", True), (60, "no-preference", True),
                          (1, "no-preference", False)])  # fmt: skip
def test_what_should_rest_rests(play, seconds: int, motion: str, itself: bool) -> None:
    """Catches motion for those who asked for none, and a long run that plays itself for minutes."""
    trace = make_run(requests=1)
    events = [e._replace(start=e.start * seconds, seconds=e.seconds * seconds * 2)
              for e in trace.events]  # fmt: skip
    events = [e._replace(start=20 * e.start, seconds=20 * e.seconds) for e in events]
    page = play(Trace.of(events, trace.meta), live=True, motion=motion)
    page.evaluate("itself => one.finish(itself)", itself)
    page.wait_for_timeout(200)
    assert page.locator(MODE).get_attribute("data-mode") == "hand"
    assert page.locator(".minillm-chip[data-when=done]").count() == 6, "at rest, at the end"


def test_words_appear_while_the_run_goes_on(play) -> None:
    """Catches chips that keep the dot they had before their text came."""
    trace = make_run(requests=1)
    early = [e for e in trace.events if e.start < 0.0275]
    page = play(Trace.of(early, trace.meta), live=True)
    assert page.locator(".minillm-chip").all_inner_texts() == ["Ta", "il", "·"]
    late = [e for e in trace.events if e.start >= 0.0275]
    rest = browser_data(Trace.of(late, trace.meta))["rows"]
    page.evaluate("rows => { run.append(rows); one.arrived(); }", rest)
    page.wait_for_function("document.querySelectorAll('.minillm-chip').length === 6")
    assert page.locator(".minillm-chip").all_inner_texts() == ["Ta", "il"] * 3
    assert page.locator(".minillm-chip[data-first]").count() == 1, "one word, written in pieces"


@pytest.mark.parametrize("width", [1000, 700, 380])
def test_nothing_sticks_out_at_any_width(play, shots: Path, width: int) -> None:
    """Catches a bar or a chart that makes the notebook scroll sideways."""
    page = play(make_run(tokens=40))
    for light in ("true", "false"):
        page.evaluate("light => { document.body.dataset.jpThemeLight = light; }", light)
        page.set_viewport_size({"width": width, "height": 900})
        page.locator(".minillm-chip").nth(3).click()
        page.wait_for_timeout(200)
        page.screenshot(path=shots / f"player_{width}_{light}.png", full_page=True)
        over = page.evaluate("""() => [...document.querySelectorAll('.minillm .minillm *')]
          .filter((el) => !el.parentElement.closest(".minillm-machine-pane")) // it scrolls
          .filter((el) => el.getBoundingClientRect().right > innerWidth + 9)
          .map((el) => el.outerHTML.slice(0, 90))""")  # the thumb of the slider may touch the edge
        assert over == []


def test_the_load_and_the_words_have_a_pace_of_their_own(play) -> None:
    """Catches words that rush by because the load before them took a hundred times as long."""
    trace = make_run(requests=1)
    loading = Event("transfer", "read", "load", "ssd", 0.0, 2.0, 2**30, "ssd", "dram", "weights")
    late = [e._replace(start=e.start + 2.0) for e in trace.events]
    page = play(Trace.of([loading, *late], trace.meta))
    paces = page.evaluate("""async () => {
      const {paceAt} = await import("/charts/player.js");
      return [paceAt(run, 0.5), paceAt(run, 2.01)]; }""")
    assert paces == [4, 200]
    page.locator(".minillm-chip").first.click()
    assert drawn(page).locator(".minillm-pace output").inner_text() == "200 × slower"
    page.get_by_label("slower").click()
    page.locator(".minillm .minillm").focus()
    page.keyboard.press("Home")
    chosen = drawn(page).locator(".minillm-pace output").inner_text()
    assert chosen == "400 × slower", "a pace that was chosen stays, also in the load"


def test_a_load_alone_keeps_its_pace_to_the_end(play) -> None:
    """Catches a player that, with no words to show, crawls when it is played again."""
    loading = Event("transfer", "read", "load", "ssd", 0.0, 2.0, 2**30, "ssd", "dram", "weights")
    page = play(Trace.of([loading], {}))
    assert page.evaluate("""async () => {
      const {paceAt} = await import("/charts/player.js");
      return [paceAt(run, 0.5), paceAt(run, 2)]; }""") == [10, 10]


def test_a_second_replay_stops_the_first(play) -> None:
    """Catches a notebook in which every view moves at once."""
    page = play(make_run(requests=1), live=True)
    page.evaluate("one.finish(true)")
    page.evaluate("""async () => { const {player} = await import("/charts/player.js");
      const place = document.createElement("div");
      document.body.append(place);
      window.two = player(place, run, {live: true});
      two.finish(true); }""")
    page.wait_for_timeout(100)
    modes = [bar.get_attribute("data-mode") for bar in page.locator(MODE).all()]
    assert modes == ["hand", "auto"]
    page.evaluate("one.destroy(); two.destroy()")
    assert page.locator(MODE).count() == 0


# What the widget sees of anywidget: a model with values, events and, here, a way to send them.
MODEL = """async (values) => {
  const hearing = {};
  window.model = {
    get: (name) => values[name],
    on: (name, act) => (hearing[name] ||= []).push(act),
    tell: (name, ...what) => (hearing[name] || []).forEach((act) => act(...what)),
    set(name, value) { values[name] = value; this.tell(`change:${name}`); },
  };
  window.widget = (await import("/charts/widget.js")).default;
  window.show = () => {
    const el = document.createElement("div");
    document.getElementById("view").append(el);
    return widget.render({ model, el });
  };
}"""


def columns(events: list[Event], packer: Packer | None = None) -> dict:
    return json.loads(json.dumps((packer or Packer()).pack(events)))


@pytest.fixture
def widget(views_page):
    """`widget(over)`: a page with `model` and `widget`; over: the model has the whole run."""

    def start(trace: Trace, over: bool = False):
        views_page.add_style_tag(content=bundle.style())
        values = {"key": "k", "views": ["memory"], "meta": for_page(trace),
                  "columns": columns(trace.events) if over else None}  # fmt: skip
        views_page.evaluate(MODEL, values)
        views_page.evaluate("void widget.initialize({ model })")
        return views_page

    return start


def modes(page) -> list[str]:
    return [bar.get_attribute("data-mode") for bar in drawn(page).locator(MODE).all()]


def test_a_view_shown_late_or_twice_shows_the_whole_run(widget) -> None:
    """Catches events that only the first view hears of: JupyterLab drops views that scroll away."""
    trace, packer = make_run(requests=1), Packer()
    page, events = widget(trace), list(trace.events)
    send = "columns => model.tell('msg:custom', {columns, anew: false})"
    page.evaluate(send, columns(events[:7], packer))
    page.evaluate("void (window.drop = show())")
    page.evaluate(send, columns(events[7:12], packer))
    page.evaluate("void show()")
    assert [mode for mode in modes(page)] == ["live", "live"]
    assert {text.split(" · ")[1] for text in page.locator(NOW).all_inner_texts()} == {"12 events"}
    page.evaluate("drop()")
    page.evaluate(send, columns(events[12:], packer))
    assert page.locator(MODE).count() == 1
    page.evaluate("columns => model.set('columns', columns)", columns(events))
    assert modes(page) == ["auto"]
    page.evaluate("void show()")
    assert page.locator(".minillm-chip").count() == 12, "six words in each of two views"


def test_a_page_loaded_again_has_the_run_at_rest(widget) -> None:
    """Catches an empty view after a reload, and one that plays itself a second time."""
    page = widget(make_run(requests=1), over=True)
    page.evaluate("void show()")
    assert modes(page) == ["hand"]
    assert page.locator(".minillm-chip[data-when=done]").count() == 6


def test_a_run_that_ends_before_its_view_is_there_plays_itself(widget) -> None:
    """Catches a run of a tenth of a second that nobody gets to see."""
    trace = make_run(requests=1)
    page = widget(trace)
    page.evaluate("columns => model.set('columns', columns)", columns(list(trace.events)))
    page.evaluate("void show()")
    assert modes(page) == ["auto"]


def test_a_trace_cleared_while_watched_begins_anew_on_the_page(widget) -> None:
    """Catches two runs on top of each other, and kinds of the first in the names of the second."""
    trace = make_run(requests=2)
    page, first = widget(trace), [e for e in trace.events if e.request == 0]
    page.evaluate("void show()")
    send = "([columns, anew]) => model.tell('msg:custom', {columns, anew})"
    page.evaluate(send, [columns(list(trace.events)), False])
    page.evaluate(send, [columns(first), True])
    assert drawn(page).locator(NOW).inner_text().endswith(f"{len(first)} events")
    page.evaluate(send, [columns([e for e in first if e.token < 3]), True])
    assert drawn(page).locator(".minillm-chip").count() == 3, "chips of the run before"
