"""Laws of the live views: what the browser is told, what it makes of it, and what stays behind."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from minillm.charts import bundle, facts, ink, live, meaning, watch
from minillm.charts.machine_view import machine
from minillm.charts.wire import Packer, thin
from minillm.errors import MinillmError
from minillm.trace import Trace
from minillm.trace.event import Event
from minillm.units import format_size

TICK = 2.0**-9  # seconds: exact in binary and in whole nanoseconds, so that edges really meet
SHOW = "const show = (x) => console.log(JSON.stringify(x));"


def make_run(tokens: int = 12, layers: int = 4, begin: float = 0.1) -> Trace:
    """A load and a request with text, nested layers, two ranks, and a long pause between them."""
    events, t = [], begin
    for i in range(6):
        events.append(Event("transfer", "read", "load", "ssd", t, 2e-3, 2**20, "ssd", "dram",
                            "weights", detail=f"tensor {i}"))  # fmt: skip
        events.append(Event("transfer", "copy", "load", "copy", t + 1e-3, 1.5e-3, 2**20, "dram",
                            "hbm:1" if i % 2 else "hbm", "weights", how="emulated"))  # fmt: skip
        events.append(Event("counter", "hbm", "", "", t + 2.5e-3, 0.0, (i + 1) * 2**20, label="w"))
        t += 3e-3
    t += 2.0  # somebody reads the next cell
    for token in range(tokens):
        work = Event("span", "decode step", "model", "compute", t + 1e-4, 4.1e-3, 6 * 2**20,
                     token=token, request=0, bytes_how="predicted")  # fmt: skip
        for layer in range(layers):
            begin = t + 2e-4 + layer * 1e-3
            inner = {"token": token, "request": 0, "detail": f"layer {layer}"}
            events.append(Event("span", "attention", "model", "compute", begin, 4e-4, **inner))
            events.append(Event("span", "ffn", "model", "compute", begin + 4e-4, 5e-4, **inner))
        events += [work, Event("counter", "hbm", "", "", t, 0.0, 1000 + token, label="kv"),
                   Event("span", "detokenize", "decode", "cpu", t + 4.3e-3, 5e-5, 4, label="text",
                         token=token, request=0, detail=f" w{token}")]  # fmt: skip
        t += 4.5e-3
    return Trace.of(events, {"capacity": {"ssd": 10**9, "hbm": 2**23}, "prompt": "Mia"})


def browser_data(trace: Trace, **more: object) -> dict[str, object]:
    """`meta` and `rows` of a trace as a page has them."""
    rows = [meaning.told(event) for event in trace.events]
    return {"meta": live.for_page(trace), "rows": rows, **more}


def node(code: str, data: object, folder: Path, entry: str = "run.js") -> object:
    """What `code` shows: it sees all of a script and `data`, and ends with `show(result)`."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("needs node (22, 20 or 18) to run the views' JavaScript")
    (folder / "data.json").write_text(json.dumps(data), encoding="utf-8")
    read = "const data = JSON.parse(readFileSync(process.argv[2]));"
    take = 'import {readFileSync} from "fs";'
    text = "\n".join([take, read, bundle.script(entry), SHOW, code])
    (folder / "code.mjs").write_text(text, encoding="utf-8")
    command = [program, str(folder / "code.mjs"), str(folder / "data.json")]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def browser_run(tmp_path: Path) -> Callable[..., object]:
    """`browser_run(code, trace, extra)`: the code has `run`, a Run of the trace, and `extra`."""

    def ask(code: str, trace: Trace, extra: object = None) -> object:
        data = browser_data(trace, extra=extra)
        start = "const run = new Run(data.meta); run.append(data.rows); const extra = data.extra;"
        return node(start + code, data, tmp_path)

    return ask


def tangle(seed: int, count: int = 60) -> Trace:
    """Spans that nest, overlap, touch, begin together and take no time, on three resources."""
    chance = random.Random(seed)
    events = []
    for i in range(count):
        resource = chance.choice(["cpu", "compute", "copy"])
        start, seconds = chance.randrange(40) * TICK, chance.choice([0, 1, 1, 2, 5, 9]) * TICK
        name = chance.choice(["attention", "ffn", "sample", "wait for weights"])
        way = dict(source="dram", target=chance.choice(["hbm", "dram"]), label="kv")
        kind = "transfer" if resource == "copy" else "span"
        events.append(Event(kind, name, "model", resource, start, seconds, i,
                            **(way if kind == "transfer" else {})))  # fmt: skip
    warm = Event("span", "mmap", "load", "cpu", 3 * TICK, 4 * TICK, label="weights")
    return Trace.of([*events, warm], {})


# -- the run in the browser ------------------------------------------------------------------------


CUTS = (((1.6, 4.7), (0.3, 1060.0)), ((3, 9), (1, 30)))  # in ticks; of a tangle, on its edges


def parts_slowly(events: list[Event], start: float, stop: float) -> dict[tuple[str, str], float]:
    """Seconds by name and meaning, found by looking at every event between any two edges."""
    parents = {id(e) for e in events for o in events
               if o.resource == e.resource and e.start <= o.start and o.end <= e.end
               and o.seconds < e.seconds}  # fmt: skip

    def key(event: Event) -> tuple[str, str]:
        rest = "rest of " if id(event) in parents else ""
        return rest + meaning.name_of(event), meaning.ink(event)

    inside = {t for e in events for t in (e.start, e.end) if start < t < stop}
    edges, idle = [start, *sorted(inside), stop], ("in between", "idle")
    spent = dict.fromkeys(map(key, events), 0.0) | {idle: 0.0}
    for left, right in zip(edges, edges[1:], strict=False):
        active = [e for e in events if e.start <= left and right <= e.end]
        active.sort(key=lambda e: (e.start, -e.seconds))  # what began last is innermost
        spent[key(active[-1]) if active else idle] += right - left
    return spent


@pytest.mark.parametrize("seed", range(6))
def test_parts_in_the_browser_give_each_instant_to_the_innermost_event(
    browser_run, seed: int
) -> None:
    """Catches a journey that counts nested work twice, or gives a tie or an edge to another."""
    trace = tangle(seed) if seed else make_run()
    rows = sorted((e for e in trace.events if e.kind != "counter"), key=lambda e: e.start)
    first, last = rows[0].start, max(e.end for e in rows)
    spans = [(first, last)] + [(first + a * TICK, first + b * TICK) for a, b in CUTS[bool(seed)]]
    told = browser_run("show(extra.map(([a, b]) => run.parts(a, b)))", trace, spans)
    for (start, stop), parts in zip(spans, told, strict=True):
        over = [e for e in rows if e.start < stop and (e.end > start or e.start >= start)]
        ours = {(p["name"], p["ink"]): p["seconds"] for p in parts}
        assert ours == pytest.approx(parts_slowly(over, start, stop), abs=1e-8)
        assert sum(ours.values()) == pytest.approx(stop - start)


def test_tokens_and_memory_in_the_browser_are_those_in_python(browser_run) -> None:
    """Catches chips that cut a request elsewhere than the charts, and levels that differ."""
    trace = make_run()
    ask = """show({tokens: run.requests[0].tokens, peak: run.peak("hbm"), tiers: run.tiers,
                   levels: run.series("hbm").map((s) => s.levels)})"""
    told = browser_run(ask, trace)
    pieces = facts.tokens(facts.request(trace))
    assert [t["index"] for t in told["tokens"]] == list(pieces)
    for token in told["tokens"]:
        piece = pieces[token["index"]]
        assert (token["start"], token["stop"]) == pytest.approx((piece.start, piece.stop), abs=1e-8)
        own = facts.own(token["index"], piece)
        assert [*token["own"].values()] == pytest.approx([own.start, own.stop], abs=1e-8)
        assert token["text"] == f" w{token['index']}"
    memory = facts.memory(trace, "hbm")
    assert told["peak"]["nbytes"] == memory.peak and told["levels"][-1] == {
        meaning.said(label): values[-1] for label, values in memory.levels.items()
    }
    assert told["tiers"] == ["hbm", "hbm:1", "dram", "ssd"]


@pytest.mark.parametrize("seed", range(3))
def test_the_cut_clock_runs_forward_and_back(browser_run, seed: int) -> None:
    """Catches a scrub bar that jumps back, or shows another moment than the one it stands at."""
    trace = tangle(seed) if seed else make_run()
    ask = """const {clock} = run, n = 500, at = (i, from, to) => from + (to - from) * i / n;
      const places = [...Array(n + 1).keys()].map((i) => at(i, 0, clock.length));
      show({length: clock.length, cuts: clock.cuts, ends: [clock.trace(0), clock.trace(1e9)],
            there: places.map(clock.trace), back: places.map((p) => clock.play(clock.trace(p))),
            places, run: [run.begin, run.end]})"""
    told = browser_run(ask, trace)
    assert told["there"] == sorted(told["there"]), "time runs backward"
    assert told["back"] == pytest.approx(told["places"], abs=1e-9)
    assert told["ends"] == pytest.approx(told["run"])
    saved = sum(cut["seconds"] - cut["width"] for cut in told["cuts"])
    assert told["length"] + saved == pytest.approx(told["run"][1] - told["run"][0])
    if not seed:  # the pause of two seconds, and it alone, is cut
        assert [round(cut["seconds"], 1) for cut in told["cuts"]] == [2.0]
        assert told["length"] < 0.1


@pytest.mark.parametrize("seed", range(3))
def test_what_compute_reads_in_the_browser_is_what_python_counts(browser_run, seed: int) -> None:
    """Catches the bytes of a layer beside those of its pass, which they are part of."""
    trace = tangle(seed) if seed else make_run()
    told = browser_run("show(readsOf(run.work).map((e) => [e.start, e.nbytes]))", trace)
    mine = (e for e in trace.events if e.resource == "compute" and e.nbytes)
    wanted = [(e.start, e.nbytes) for e in facts.outermost(mine)]
    assert [nbytes for _, nbytes in told] == [nbytes for _, nbytes in wanted]
    assert [start for start, _ in told] == pytest.approx([start for start, _ in wanted], abs=1e-8)


def test_inks_and_numbers_are_the_same_in_both_languages(browser_run) -> None:
    """Catches a colour or a rounding that was changed in one of the two places."""
    sizes = [0, 48, 1023, 1024, 12130816, 2**20 - 1, 3 * 2**40]
    times = [0.0, 3e-6, 0.9996e-3, 0.00241, 0.9994]
    ask = """show({reserved: RESERVED, sizes: extra[0].map(formatBytes),
                   times: extra[1].map(formatSeconds), rate: formatRate(3.2e9),
                   shares: [0, 0.001, 0.434, 1].map((x) => formatPercent(x))})"""
    told = browser_run(ask, Trace(), [sizes, times])
    inks = dict(re.findall(r"--m-(\w+): (#\w{6});", bundle.style().partition("}")[0]))
    assert {name: one.colour.lower() for name, one in ink.INK.items()}.items() <= inks.items()
    assert told["reserved"] == meaning.said(meaning.RESERVED)
    assert told["sizes"] == [format_size(n).replace(".0 ", " ") for n in sizes]
    assert told["times"] == [ink.amount(t, "s") for t in times]
    assert told["shares"] == [ink.percent(x, 1) for x in (0, 0.001, 0.434, 1)]
    assert told["rate"] == "3.2 GB/s"


# -- on the way ------------------------------------------------------------------------------------


def test_no_event_is_lost_between_the_trace_and_the_browser(tmp_path: Path) -> None:
    """Catches a field that the columns forget, and a batch that names kinds of another one."""
    events, packer = make_run().events, Packer()
    batches = [packer.pack(events[i : i + 17]) for i in range(0, len(events), 17)]
    assert packer.pack([])["kind"] == []
    ask = """const kinds = []; show(data.flatMap((columns) => {
               kinds.push(...columns.kinds); return unpackRows({...columns, kinds}); }))"""
    rows = node(ask, batches, tmp_path)
    assert len(rows) == len(events)
    for row, event in zip(rows, events, strict=True):
        start, end = row["start"], row["start"] + row["seconds"]
        assert (start, end) == pytest.approx((event.start, event.end), abs=1.01e-7)
        same = {"start": 0, "seconds": 0}
        assert row | same == json.loads(json.dumps(meaning.told(event))) | same


def test_a_burst_is_thinned_by_inner_work_only() -> None:
    """Catches bytes, memory or words that a fast run would lose on its way to the page."""
    events = make_run(tokens=50).events
    kept = thin(events)
    gone = [e for e in events if e not in set(kept)]
    assert {e.name for e in gone} == {"attention", "ffn"} and len(kept) < len(events) / 2
    assert live.at_most(len(kept), events) == kept
    late = live.at_most(30, events)
    assert [e for e in kept if e.kind == "counter"] == [e for e in late if e.kind == "counter"]
    assert late[-1] == kept[-1] and len([e for e in late if e.kind != "counter"]) <= 30


def test_between_two_messages_there_is_a_tenth_of_a_second() -> None:
    """Catches a view that sends at every event; the law holds however fast the run is."""
    trace, log = Trace(), []

    def pause(seconds: float) -> bool:
        log.append(seconds)
        if len(log) > 6:
            return True
        for name in ("attention", "ffn", "sample"):  # what the engine does in the meantime
            with trace.span(name, stage="model", resource="compute"):
                pass
        return False

    feed = live.Feed(trace, lambda events, packer, anew: log.append(len(events)), pause)
    feed.start()
    feed.stop()
    waits, messages = log[::2], log[1::2]
    assert messages == [3, 3, 3] and min(waits) >= live.PERIOD >= 0.1 and len(waits) == 4
    assert len(feed.events) == 9


def test_a_busy_machine_gets_fewer_messages() -> None:
    """Catches views that take the run's time where sending is dear."""
    trace, waits = Trace(), []
    clock = iter([1.0, 1.004, 2.0, 2.0001, 3.0, 3.02, 4.0, 4.0])

    def pause(seconds: float) -> bool:
        waits.append(round(seconds, 6))
        return len(waits) > 4

    feed = live.Feed(trace, lambda *_: None, pause, clock=lambda: next(clock))
    feed.start()
    feed.stop()
    least = live.PERIOD
    assert waits == [least, 0.4, least, 2.0, least], "one hundred times what the last one took"


def test_a_trace_that_is_cleared_while_watched_begins_anew() -> None:
    """Catches a view with two runs on top of each other, both beginning at second zero."""
    ticks, sent = iter([0.0, 0.0, 5.0, 5.0, 5.1, 6.0, 6.0, 0.0, 6.5, 6.6, 7.0]), []
    trace = Trace(clock=lambda: next(ticks, 9.0))
    trace.count("hbm", "weights", 7)
    feed = live.Feed(trace, lambda events, packer, anew: sent.append((events, anew)))
    with trace.span("before", stage="model", resource="compute"):
        pass
    feed._drain()
    feed._seen = 100.0  # seconds into the run, and then the clock is set back
    trace.clear()
    trace.transfer("after", stage="load", source="ssd", target="dram", nbytes=1, start=0, seconds=0)
    assert feed._drain() is True
    assert [e.name for e in feed.events] == ["hbm", "after"]


# -- watch -----------------------------------------------------------------------------------------


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """As in a notebook: what is displayed, and then the updates of it, are in this list."""
    shown: list[object] = []

    class Handle:
        def update(self, what: object) -> None:
            shown.append(what)

    def display(what: object, display_id: bool) -> Handle:
        shown.append(what)
        return Handle()

    monkeypatch.setattr(live, "_in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", display)
    return shown


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_watch_leaves_nothing_behind(notebook: list, error: type | None) -> None:
    """Catches a thread or a subscriber that lives on, and an error that the view swallows."""
    trace = Trace()
    threads = set(threading.enumerate())
    with pytest.raises(error or ZeroDivisionError), watch(trace, "timeline") as view:
        assert {t.name for t in set(threading.enumerate()) - threads} == {"minillm-watch"}
        with trace.span("sample", stage="decode", resource="cpu"):
            pass
        raise (error or ZeroDivisionError)
    assert set(threading.enumerate()) <= threads
    assert not trace._listeners
    assert [e.name for e in view.trace.events] == ["sample"]
    assert notebook == [view, view], "shown at once, and once more with its still"


def test_watch_shows_the_block_and_what_memory_held_before() -> None:
    """Catches a view of the second request that shows the first, or an empty HBM."""
    trace = make_run()
    with watch(trace) as view:
        with trace.span("sample", stage="decode", resource="cpu"):
            pass
    kinds = [(e.kind, e.name, e.label, e.nbytes) for e in view.trace.events]
    assert kinds == [("counter", "hbm", "w", 6 * 2**20), ("counter", "hbm", "kv", 1011),
                     ("span", "sample", "", 0)]  # fmt: skip
    assert len(view.columns["kind"]) == 3 and view.meta["prompt"] == "Mia"


def test_outside_a_notebook_watch_is_silent(capfd: pytest.CaptureFixture) -> None:
    """Catches a script that prints widgets, and a thread nobody needs."""
    threads = threading.active_count()
    with watch(Trace()):
        assert threading.active_count() == threads
    assert capfd.readouterr() == ("", "")


def test_an_unknown_view_is_refused_at_once() -> None:
    """Catches a typing error that shows an empty cell after a long run."""
    trace = Trace()
    with pytest.raises(MinillmError, match="wanted a view of machine, .*found 'machines'"):
        with watch(trace, "machines"):
            raise AssertionError("the block must not run")
    assert not trace._listeners


def test_a_view_leaves_a_small_still_with_its_finding() -> None:
    """Catches a notebook that shows nothing on a code host, or grows by a megabyte."""
    trace = make_run(tokens=60)
    view = live.RunView(live.VIEWS, trace)
    data, about = view._repr_mimebundle_()
    assert "image/png" not in data, "nothing to draw yet"
    view.finish(trace)
    data, about = view._repr_mimebundle_()
    assert set(data) == {"text/plain", "image/png", "application/vnd.jupyter.widget-view+json"}
    assert data["image/png"].startswith(b"\x89PNG") and len(data["image/png"]) < 60_000
    assert about["image/png"]["alt"] and data["text/plain"] == view.finding
    assert any(letter.isdigit() for letter in view.finding)
    with watch(Trace()) as empty:
        pass
    assert set(empty._repr_mimebundle_()[0]) == set(data) - {"image/png"}


def test_the_machine_alone_leaves_its_svg_and_its_pixels() -> None:
    """Catches a still of another picture than the one that `charts.machine` draws."""
    trace = make_run()
    view = live.RunView(("machine",), trace)
    view.finish(trace)
    data, about = view._repr_mimebundle_()
    picture = machine(trace)
    assert data["image/svg+xml"] == picture.svg and data["text/plain"] == picture.finding
    assert data["image/png"].startswith(b"\x89PNG") and len(data["image/png"]) < 60_000
    assert about["image/svg+xml"]["alt"] == picture.alt


def test_a_message_says_what_changed_on_the_machine() -> None:
    """Catches a page that is told all of the picture five times a second, or a run on another."""
    trace, sent = make_run(), []
    view = live.RunView(("machine",), Trace.of([], trace.meta))
    view.send, packer, events = sent.append, Packer(), list(trace.events)
    view.feed(events[:9], packer)
    view.feed(events[9:12], packer)
    view.feed(events[:2], Packer(), anew=True)
    first, more, anew = (message["machine"] for message in sent)
    assert set(more) < set(first) == set(anew)
    assert anew["disk/under/0"]["text"] == "measured" and anew["token/say"]["text"] == "next token"
    assert [message["anew"] for message in sent] == [False, False, True]
    quiet = live.RunView(("memory",), Trace.of([], trace.meta))
    quiet.send = sent.append
    quiet.feed(events[:9], Packer())
    assert "machine" not in sent[-1] and quiet.meta["picture"] is None


KERNEL = """
import time
from minillm.charts import watch
from minillm.trace import Trace
trace = Trace()
with watch(trace, "timeline", "memory"):
    for token in range(4):
        trace.count("hbm", "kv", 1024 * (token + 1))
        with trace.span("decode step", stage="model", resource="compute", token=token, request=0):
            time.sleep(0.15)
"""


def test_a_real_kernel_sends_events_while_the_cell_runs() -> None:
    """Catches messages that wait for the end of the cell, or go out in no cell's name."""
    manager_module = pytest.importorskip("jupyter_client.manager")
    manager, client = manager_module.start_new_kernel()
    heard: list[dict] = []
    try:
        reply = client.execute_interactive(KERNEL, output_hook=heard.append, timeout=60)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert reply["content"]["status"] == "ok", reply["content"]
    kinds = [m["msg_type"] for m in heard]
    comms = [m for m in heard if m["msg_type"] == "comm_msg"]
    live_ones = [m for m in comms if m["content"]["data"].get("method") == "custom"]
    assert live_ones and all(m["parent_header"].get("msg_type") == "execute_request"
                             for m in live_ones)  # fmt: skip
    assert kinds.index("display_data") < heard.index(live_ones[0])
    assert heard.index(live_ones[0]) < kinds.index("update_display_data")
    sent = sum(len(m["content"]["data"]["content"]["columns"]["kind"]) for m in live_ones)
    assert 2 <= sent <= 8
    final = [m for m in heard if m["msg_type"] == "update_display_data"][-1]["content"]
    assert "image/png" in final["data"] and "widgets" not in final["metadata"]


def test_importing_the_package_does_not_read_the_views() -> None:
    """Catches `import minillm` that pays for widgets it may never show."""
    program = "import minillm, sys; sys.exit('anywidget' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
