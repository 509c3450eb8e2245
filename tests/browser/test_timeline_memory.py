"""The timeline and the memory view in a browser: numbers first, then hands.

Where things lie is asked of the functions that place them, not of pixels; what a learner does is
done with mouse and keys. The run is made here, on a clock of our own, so every figure is known.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import moving
from test_charts_live import browser_data

from minillm.charts import facts, meaning
from minillm.trace import Event, Trace

MIB, KIB = 2**20, 2**10
PAUSE = 12.0  # seconds in which the learner thinks, between two requests
GPUS = 8

# Puts both views on the page, one above the other, and makes what the tests ask with global.
SETUP = """async ({meta, rows}) => {
  const names = ["run", "time_axis", "timeline_rows", "memory_panels",
    "timeline_view", "memory_view"];
  window.M = Object.assign({}, ...await Promise.all(names.map((n) => import(`/charts/${n}.js`))));
  const box = document.getElementById("view");
  const voice = Object.assign(document.createElement("p"), { ariaLive: "polite" });
  box.replaceChildren(document.createElement("div"), document.createElement("div"), voice);
  window.run = new M.Run(meta);
  run.append(rows);
  window.sought = [];
  const onSeek = (t) => { sought.push(t); draw(t); };
  const [above, below] = [...box.querySelectorAll("div")];
  window.views = [new M.Timeline(above, run, {onSeek}), new M.MemoryView(below, run, {onSeek})];
  window.view = {live: false, playing: false, slower: 1, window: 0.1, selection: null};
  window.draw = (t) => views.forEach((one) => one.draw(t, view));
  window.still = async () => { // what was touched is drawn in the next frame
    for (let i = 0; i < 3; i++) await new Promise(requestAnimationFrame);
  };
  window.clears = [0, 0]; // redraws: of the paper, of the glass
  const clear = CanvasRenderingContext2D.prototype.clearRect;
  CanvasRenderingContext2D.prototype.clearRect = function (x, y, w, h) {
    const layers = [...this.canvas.parentNode.querySelectorAll("canvas")];
    if (w > 50) clears[layers.indexOf(this.canvas)] += 1;
    return clear.call(this, x, y, w, h);
  };
  draw(run.end);
  await still();
}"""


class Clock:
    """Seconds that pass only when we say so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def recorded() -> Trace:
    """A load, a request of three tokens, a long pause, and a request more."""
    clock = Clock()
    trace = Trace(clock)

    def spend(seconds: float) -> None:
        clock.now += seconds

    trace.count("hbm", "weights", 6 * MIB)
    trace.count("dram", "staging", 2 * MIB)
    for layer in range(3):
        more = {"stage": "load", "nbytes": 2 * MIB, "label": "weights"}
        with moving(trace, "read", source="ssd", target="dram", detail=f"layer {layer}", **more):
            spend(0.004)
        with moving(trace, "copy", source="dram", target="hbm", how="emulated", **more):
            spend(0.001)
    trace.count("dram", "staging", 0)
    for request in range(2):
        with trace.at(request=request):
            answer(trace, spend)
        spend(PAUSE)
    trace.meta.update(
        device="cpu", capacity={"hbm": 64 * MIB, "dram": 3 * MIB, "ssd": 2**40},
        ceilings={"ssd": 2.0e9, "copy": 8.0e9, "hbm": 4.0e9},
    )  # fmt: skip
    return trace


def answer(trace: Trace, spend) -> None:
    trace.count("hbm", "kv", 48 * KIB)
    with trace.span("tokenize", stage="tokens", resource="cpu", detail="Where is Mia?"):
        spend(0.0005)
    for token in range(3):
        with trace.at(token=token):
            ids = {"source": "dram", "target": "hbm", "nbytes": 8, "label": "ids"}
            with moving(trace, "copy ids", stage="tokens", how="emulated", **ids):
                spend(0.0001)
            with trace.span(
                "decode step" if token else "prefill", stage="model", resource="compute",
                nbytes=6 * MIB, bytes_how="predicted",
            ):  # fmt: skip
                for name in ("attention", "ffn") * 2:
                    with trace.span(name, stage="model", resource="compute", detail="layer 0"):
                        spend(0.001)
            trace.count("hbm", "kv", (48 + 16 * token) * KIB)
            with trace.span("sample", stage="decode", resource="cpu"):
                spend(0.0002)
            with trace.span("detokenize", stage="decode", resource="cpu", detail=" home"):
                spend(0.0001)
    trace.count("hbm", "kv", 0)


def many_gpus() -> list[Event]:
    """A step on eight GPUs at once, with what they send each other, beside a load that overlaps."""
    events = []
    for rank in range(GPUS):
        mine, next_ = f"compute:{rank}", f"hbm:{(rank + 1) % GPUS}"
        events += [
            Event("span", "decode step", "model", mine, 0.0, 0.01, MIB, token=1, request=0),
            Event("span", "attention", "model", mine, 0.001, 0.004, token=1, request=0),
            Event("transfer", "all-reduce", "parallel", "network", 0.006, 0.001, 4096,
                  f"hbm:{rank}", next_, "activations", token=1, request=0, link="nvlink"),
        ]  # fmt: skip
    # While one part is copied to HBM, the next is read.
    for part in range(4):
        read = Event("transfer", "read", "load", "ssd", part * 0.003, 0.003, MIB, "ssd", "dram")
        copy = Event("transfer", "copy", "load", "copy", read.end, 0.002, MIB, "dram", "hbm")
        events += [read, copy]
    return events


@pytest.fixture(scope="module")
def trace() -> Trace:
    return recorded()


@pytest.fixture
def shown(views_page, trace: Trace) -> Iterator:
    """Both views of the trace, at rest at its end."""
    views_page.evaluate(SETUP, browser_data(trace))
    return views_page


def spans(page) -> list[dict]:
    """What the timeline draws: row, track and lane of each event, and its place in time."""
    return page.evaluate("""() => M.layoutRows(run).flatMap((row) => row.tracks.flatMap((track) =>
      track.lanes.flatMap((lane, k) => lane.events.map((e, i) => ({row: row.key, rank: track.rank,
        lane: k, from: lane.from[i], to: lane.to[i], name: e.name, start: e.start,
        seconds: e.seconds})))))""")


def point_at(page, wanted: str) -> tuple[float, float]:
    """The middle of the first event for which the JavaScript `wanted` holds, on the screen."""
    x, y = page.evaluate(f"""() => {{
      const lanes = M.layoutRows(run).flatMap((row) => row.lanes.map((p) => ({{...p, row: row.key}})));
      const box = document.querySelector(".minillm-timeline-sheet").getBoundingClientRect();
      const scale = M.timeScale(box.width, run.clock.length, false);
      for (const {{lane, y, height, row}} of lanes) for (let i = 0; i < lane.from.length; i++) {{
        const e = lane.events[i], middle = (lane.from[i] + lane.to[i]) / 2;
        if ({wanted}) return [box.x + scale.x(middle), box.y + y + height - 3];
      }}
    }}""")  # noqa: E501
    return x, y


def rest(page) -> None:
    page.evaluate("() => still()")


# -- where things lie --------------------------------------------------------------------------


def test_every_event_lies_on_the_row_of_its_resource(shown, trace: Trace) -> None:
    """Catches an event that is lost, drawn twice or beside the one it is in, or on another row."""
    found = sorted((s["row"], round(s["start"], 9), s["name"]) for s in spans(shown))
    work = [e for e in trace.events if e.kind != "counter" and e.name not in ("attention", "ffn")]
    assert found == sorted((e.resource, round(e.start, 9), e.name) for e in work)


def test_pauses_are_cut_and_nothing_else(shown, trace: Trace) -> None:
    """Catches an axis that stretches work, or one on which a pause hides it."""
    drawn = sorted(spans(shown), key=lambda s: s["start"])
    assert [s["to"] - s["from"] for s in drawn] == pytest.approx([s["seconds"] for s in drawn])
    cuts, words, length = shown.evaluate("""() => {
      const {cuts, length} = run.clock; return [cuts, cuts.map(M.pauseWords), length]; }""")
    assert [cut["seconds"] for cut in cuts] == pytest.approx([PAUSE])
    assert words == ["12 s pause"]
    last = max(e.end for e in trace.events if e.kind != "counter")
    assert length == pytest.approx(last - PAUSE + cuts[0]["width"])
    for one, after in zip(drawn, drawn[1:], strict=False):
        apart = after["start"] - one["start"]
        apart -= PAUSE - cuts[0]["width"] if apart > PAUSE else 0
        assert after["from"] - one["from"] == pytest.approx(apart)


def test_what_runs_at_once_never_covers_each_other(shown) -> None:
    """Catches a layer drawn beside its step, and eight GPUs drawn on top of one another."""
    data = browser_data(Trace.of(many_gpus(), {}))
    shown.evaluate("({meta, rows}) => { run = new M.Run(meta); run.append(rows); }", data)
    drawn = spans(shown)
    for row, tracks in (("compute", GPUS), ("nvlink", GPUS)):
        assert {s["rank"] for s in drawn if s["row"] == row} == set(range(tracks))
    lanes: dict[tuple, list[dict]] = {}
    for span in drawn:
        lanes.setdefault((span["row"], span["rank"], span["lane"]), []).append(span)
    for lane in lanes.values():
        for one, after in zip(lane, lane[1:], strict=False):
            assert after["from"] >= one["to"] - 1e-9
    assert len(drawn) == 2 * GPUS + 8, "a step and a sum each, four reads and their copies"


# -- memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tier", ["hbm", "dram"])
def test_levels_are_those_that_the_trace_counted(shown, trace: Trace, tier: str) -> None:
    """Catches a label in another's place, a level drawn late, and a stack that is not the sum."""
    panel = shown.evaluate("(tier) => M.memoryPanels(run).find((p) => p.tier === tier)", tier)
    counted = facts.memory(trace, tier)
    labels = panel["labels"]
    levels = {meaning.said(label): held for label, held in counted.levels.items()}
    assert set(labels) == set(levels)
    drawn = [[point["t"], point["used"], *point["held"]] for point in panel["points"]]
    values = [counted.times, counted.totals, *(levels[label] for label in labels)]
    told = [list(moment) for moment in zip(*values, strict=True)][1:]  # the first is the empty tier
    assert [moment[1:] for moment in drawn] == [moment[1:] for moment in told]
    assert [moment[0] for moment in drawn] == pytest.approx([moment[0] for moment in told])
    assert panel["peak"]["nbytes"] == counted.peak


def test_a_budget_far_above_the_peak_does_not_press_the_data_flat(shown) -> None:
    """Catches an axis up to 64 MiB over data of 6 MiB, and a near budget that has no line."""
    panels = {p["tier"]: p for p in shown.evaluate("() => M.memoryPanels(run)")}
    assert not panels["hbm"]["near"] and panels["dram"]["near"]
    for panel in panels.values():
        highest = panel["budget"] if panel["near"] else panel["peak"]["nbytes"]
        assert highest <= panel["top"] <= 1.25 * highest


# -- hands ---------------------------------------------------------------------------------------


def test_hovering_an_event_shows_its_figures(shown, shots: Path) -> None:
    """Catches a card of another event, a wrong rate, and a number without its ceiling."""
    shown.mouse.move(*point_at(shown, 'row === "ssd" && e.detail === "layer 1"'))
    rest(shown)
    said = shown.locator(".minillm-timeline-sheet .minillm-card").inner_text()
    for words in ("weights → DRAM", "2 MiB from SSD to DRAM", "4 ms", "524 MB/s",
                  "26 % of 2 GB/s", "layer 1", "measured"):  # fmt: skip
        assert words in said
    shown.screenshot(path=shots / "timeline_memory.png")
    shown.mouse.move(5, 5)
    assert shown.locator(".minillm-timeline-sheet .minillm-card").is_hidden()


def test_a_click_seeks_to_the_time_below_it_in_both_views(shown) -> None:
    """Catches axes that do not line up, and a click in the cut clock's seconds, not the trace's."""
    x, y = point_at(shown, 'e.request === 1 && e.name === "prefill"')
    below = shown.locator(".minillm-memory-sheet").bounding_box()["y"] + 40
    for height in (y, below):
        shown.mouse.click(x, height)
    start, stop = shown.evaluate("""() => {
      const e = run.events.find((x) => x.request === 1 && x.name === "prefill");
      return [e.start, e.end]; }""")
    sought = shown.evaluate("() => sought")
    assert sought == pytest.approx([(start + stop) / 2] * 2, abs=(stop - start) / 2)
    assert sought[0] == sought[1] > PAUSE


def test_a_drag_takes_the_playhead_along(shown) -> None:
    """Catches a drag that selects, scrolls, or stays where it began."""
    x, y = point_at(shown, 'e.request === 0 && e.name === "prefill"')
    further, _ = point_at(shown, 'e.request === 1 && e.name === "prefill"')
    shown.mouse.move(x, y)
    shown.mouse.down()
    shown.mouse.move(further, y, steps=4)
    shown.mouse.up()
    shown.mouse.move(x, y)
    sought = shown.evaluate("() => sought")
    assert sought == sorted(sought) and sought[0] < PAUSE < sought[-1] and len(sought) == 5


def test_arrow_keys_go_from_event_to_event_and_say_them_once(shown) -> None:
    """Catches figures that only a mouse can reach, and two voices that speak at once."""
    shown.locator(".minillm-timeline-sheet canvas").nth(1).focus()
    said = []
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "Enter"):
        shown.keyboard.press(key)
        said.append(shown.locator("[aria-live]").inner_text())
    assert "layer 0" in said[0] and "layer 1" in said[1] and "weights" in said[2]
    assert shown.locator("[aria-live]").count() == 1
    shown.locator(".minillm-memory-sheet canvas").nth(1).focus()
    shown.keyboard.press("ArrowRight")
    assert shown.locator("[aria-live]").inner_text().startswith("HBM 6 MiB")
    for canvas in shown.locator("canvas[role=img]").all():
        assert canvas.get_attribute("aria-label").endswith("Arrow keys go through it.")


# -- cost ------------------------------------------------------------------------------------------


def test_only_what_changed_is_drawn(shown) -> None:
    """Catches a view that redraws all events for each step of the playhead, or draws when idle."""
    before = shown.evaluate("() => clears.slice()")
    shown.evaluate("async () => { for (let i = 0; i < 5; i++) { draw(run.end); await still(); } }")
    assert shown.evaluate("() => clears") == before
    shown.evaluate("async () => { draw(run.end / 2); draw(run.end / 3); await still(); }")
    assert shown.evaluate("() => clears") == [before[0], before[1] + 2]  # two views, one frame


def test_the_work_of_a_redraw_follows_the_pixels_not_the_events(shown) -> None:
    """Catches a rectangle for each of a hundred thousand events that share a few hundred pixels."""
    filled = shown.evaluate("""async () => {
      let n = 0;
      const fill = CanvasRenderingContext2D.prototype.fillRect;
      CanvasRenderingContext2D.prototype.fillRect = function (...box) {
        n += 1; return fill.apply(this, box); };
      const copies = [], body = run.events.filter((e) => e.request === 0);
      for (let k = 1; copies.length < 40000; k++) for (const e of body) {
        copies.push({ ...e, start: e.start + 30 + k * 0.015, request: 1 + k }); }
      run.append(copies); draw(run.end); await still(); return n; }""")
    assert filled < 12_000


def test_all_of_a_run_is_seen_and_live_there_is_room_for_more(shown) -> None:
    """Catches a live axis that is drawn anew with every message, and a run with its end cut off."""
    live, over = shown.evaluate("""() => [true, false].map((live) => [1, 1.9, 2, 2.1].map(
      (length) => M.timeScale(1000, length, live).to))""")
    assert over == [1, 1.9, 2, 2.1]
    assert live == [1, 2, 2, 4]
    shown.evaluate("""async () => { view.live = true; draw(run.end); await still();
      const step = run.events.find((e) => e.name === "decode step");
      run.append([{ ...step, start: run.end, seconds: 9, token: 4, request: 1 }]);
      draw(run.end); await still(); }""")
    shown.wait_for_function("() => views.every((one) => one.scale.to >= run.clock.length)")
    shown.evaluate("() => { view.live = false; draw(run.end); }")
    shown.wait_for_function("() => views.every((one) => one.scale.to === run.clock.length)")


def test_new_events_are_drawn_also_after_the_playhead_moved(shown) -> None:
    """Catches a redraw put off while live, and forgotten when the glass is redrawn before it."""
    shown.evaluate("""async () => { view.live = true; draw(run.end); await still();
      views.forEach((one) => { one.sheet.rested = performance.now() + 200; });
      const step = run.events.find((e) => e.name === "decode step");
      run.append([{ ...step, start: run.end, seconds: 9, token: 4, request: 1 }]);
      draw(run.end); await still(); }""")
    shown.wait_for_function("() => views.every((one) => one.scale.to >= run.clock.length)")


def test_a_view_that_is_gone_leaves_nothing(shown) -> None:
    """Catches observers that keep asking for frames on a page that JupyterLab has dropped."""
    left = shown.evaluate("""async () => {
      views.forEach((one) => one.destroy());
      await still();
      let asked = 0;
      const frame = requestAnimationFrame;
      window.requestAnimationFrame = (f) => { asked += 1; return frame(f); };
      document.body.dataset.jpThemeLight = "false";
      await new Promise((done) => setTimeout(done, 50));
      return [asked, document.querySelectorAll("canvas").length];
    }""")
    assert left == [0, 0]
