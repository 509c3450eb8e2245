"""What is told of a request whose steps others share, and of its pages."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_charts_live import browser_data, node

from minillm import charts
from minillm.charts import facts, loading
from minillm.charts.machine_memories import in_use
from minillm.charts.machine_places import plan
from minillm.charts.machine_scene import Scene
from minillm.charts.machine_view import machine
from minillm.machine.tiers import Tier
from minillm.trace import Trace
from minillm.trace.event import Event

MIB = 2**20
PASS, CHOOSE = 8e-3, 1e-3  # seconds of a pass, of a choice
PAGE, POOL = MIB, 20  # bytes of a page of the cache, pages of the pool


class Served:
    """An engine that runs several requests in a step, as the trace sees it; no time but its own."""

    def __init__(self):
        self.now, self.pages = 0.0, {}
        self.trace = Trace(clock=lambda: self.now)
        self.trace.meta.update(model="town", capacity={"hbm": 64 * MIB})
        self.hbm = Tier("hbm", 64 * MIB, self.trace)
        self.hbm.reserve(12 * MIB, "weights")
        self.hbm.reserve(POOL * PAGE, facts.RESERVED)

    def work(self, name: str, seconds: float, stage: str, resource: str, **more) -> None:
        with self.trace.span(name, stage=stage, resource=resource, **more):
            self.now += seconds

    def admit(self, request: int, prompt: str) -> None:
        with self.trace.at(request=request, token=0):
            self.work("tokenize", 5e-4, "tokens", "cpu", label="text", detail=prompt)

    def step(self, number: int, runs: dict[int, int], chunks: tuple[int, ...] = ()) -> None:
        """A step: `runs` are requests and the token each gets; of `chunks` no token comes yet."""
        everyone = [*runs.items(), *((request, 0) for request in chunks)]
        for request, _ in everyone:
            self.hbm.relabel(PAGE, facts.RESERVED, "kv")
            self.pages[request] = self.pages.get(request, 0) + 1
        (request, token), alone = everyone[0], len(everyone) == 1
        agreed = token if {token for _, token in everyone} == {token} else None
        with self.trace.at(step=number, request=request if alone else None, token=agreed):
            with self.trace.span("step", stage="model", resource="compute", nbytes=12 * MIB,
                                 bytes_how="predicted"):  # fmt: skip
                for name in ("attention", "ffn") * 2:
                    self.work(name, PASS / 4, "model", "compute")
            for request, token in runs.items():
                with self.trace.at(request=request, token=token):
                    self.work("sample", CHOOSE / 2, "decode", "cpu")
                    self.work("detokenize", CHOOSE / 2, "decode", "cpu", label="text", nbytes=3,
                              detail=f" {request}.{token}")  # fmt: skip

    def end(self, request: int) -> None:
        self.hbm.relabel(self.pages.pop(request) * PAGE, "kv", facts.RESERVED)


def mixed() -> Trace:
    """Request 0 alone; 1 joins with a prompt in two chunks; both decode; 1 alone to its end."""
    run = Served()
    run.admit(0, "Mia")
    run.step(0, {0: 0})
    run.step(1, {0: 1})
    run.admit(1, "Tom, at length")
    run.step(2, {0: 2}, chunks=(1,))
    run.step(3, {0: 3, 1: 0})
    run.step(4, {0: 4, 1: 1})
    run.end(0)
    run.step(5, {1: 2})
    run.end(1)
    return run.trace


def test_a_request_holds_the_steps_that_it_shared() -> None:
    """Catches a request whose passes vanish, since they belong to several, in mid-run."""
    whole = facts.request(mixed())
    assert whole.number == 1
    passes = [e.step for e in whole.events if e.name == "step"]
    assert passes == [2, 3, 4, 5]  # not 0 and 1, which ran before it came
    pieces = facts.tokens(whole)
    assert list(pieces) == [0, 1, 2]
    assert [p.stop for p in pieces.values()] == [
        e.end for e in whole.events if e.name == "detokenize" and e.request == 1]  # fmt: skip
    assert sum(p.seconds for p in pieces.values()) == pytest.approx(whole.seconds)
    shared = facts.own(1, pieces[1])  # from the pass's begin: who else was in it does not matter
    assert shared.seconds == pytest.approx(PASS + 2 * CHOOSE)
    assert facts.own(2, pieces[2]).seconds == pytest.approx(PASS + CHOOSE)


def test_a_run_of_shared_steps_is_drawn() -> None:
    """Catches charts that know a pass by its token alone, and call such a run no request."""
    trace = mixed()
    assert facts.asked(trace) and facts.prompt(trace) == "Tom, at length"
    assert "4 × step" in charts.timeline(trace).alt
    assert "one request" in charts.timeline(trace).alt
    machine(trace), charts.memory(trace), charts.ladder(trace), charts.stages(trace)
    only = Trace.of([e for e in trace.events if e.step in (3, 4)], trace.meta)
    assert list(facts.tokens(facts.request(only))) == [0, 1]


def test_weights_moved_for_a_shared_step_are_no_load() -> None:
    """Catches streamed weights of a step without a token taken for the load of a model."""
    trace = mixed()
    moves = [Event("transfer", "copy", "load", "copy", 1e-3 * step, 5e-4, MIB, "dram", "hbm",
                   "weights", step=step) for step in range(6)]  # fmt: skip
    again = Trace.of([*moves, *trace.events], trace.meta)
    assert loading.load(again) is None
    assert loading.count_tokens(loading.streamed(again.events)) == 6


def test_the_browser_cuts_shared_steps_as_python_does(tmp_path: Path) -> None:
    """Catches chips and journeys of a batch that lose the pass, its longest part."""
    trace = mixed()
    ask = """const run = new Run(data.meta); run.append(data.rows); show(run.requests)"""
    first, second = node(ask, browser_data(trace), tmp_path)
    assert [first["number"], second["number"]] == [0, 1] and second["prompt"] == "Tom, at length"
    assert [token["text"] for token in first["tokens"]] == [f" 0.{k}" for k in range(5)]
    pieces = facts.tokens(facts.request(trace))
    assert [token["index"] for token in second["tokens"]] == list(pieces)
    for token in second["tokens"]:
        piece = pieces[token["index"]]
        own = facts.own(token["index"], piece)
        assert (token["start"], token["stop"]) == pytest.approx((piece.start, piece.stop), abs=1e-8)
        assert [*token["own"].values()] == pytest.approx([own.start, own.stop], abs=1e-8)


# -- pages in use, and a pool that is only reserved ------------------------------------------------


def test_a_cache_grows_with_every_page_and_shrinks_with_every_release() -> None:
    """Catches a pool drawn as a full cache from the first moment on."""
    hbm = facts.memory(mixed(), "hbm")
    cache = [b // PAGE for a, b in zip(hbm.levels["kv"], hbm.levels["kv"][1:], strict=False)
             if a != b]  # fmt: skip
    assert cache == [1, 2, 3, 4, 5, 6, 7, 8, 3, 4, 0]
    assert hbm.peak == 12 * MIB + 8 * PAGE and hbm.most == 12 * MIB + POOL * PAGE
    assert list(hbm.at_peak()) == ["weights", "kv", facts.RESERVED]


def words(chart: charts.Chart) -> set[str]:
    return {t.get_text() for t in chart.findobj(match=lambda a: hasattr(a, "get_text"))}


def test_stills_show_a_pool_as_room_and_not_as_cache() -> None:
    """Catches "KV cache 20 MiB" of which not one page was ever written."""
    trace = mixed()
    chart = charts.memory(trace)
    assert chart.finding == "HBM holds 20.0 MiB at its peak: 12.0 MiB weights, 8.0 MiB KV cache"
    assert {"KV cache 8.0 MiB", "KV reserved 12.0 MiB"} <= words(chart)
    scene = Scene(plan(trace), trace.meta)
    scene.take(trace.events)
    held = scene.memories.peaks["hbm"]
    assert in_use(held) == 20 * MIB and held[facts.RESERVED] == 12 * MIB
    said = machine(trace).svg
    assert ">peak 20 MiB<" in said and ">of 64 MiB<" in said and "\nKV reserved 12 MiB" in said


def test_the_browser_tells_pages_in_use_from_the_pool(tmp_path: Path) -> None:
    """Catches a tank that is full, and a peak that never moves, since a pool was reserved."""
    trace = mixed()
    ask = """const run = new Run(data.meta); run.append(data.rows);
      const end = run.series("hbm").at(-1), [panel] = memoryPanels(run), {t} = panel.peak;
      const at = pointAt(panel, run.clock.play(t));
      show({peak: panel.peak, end, labels: panel.labels, held: at.held,
            facts: memoryFacts(panel, run.clock.play(t))})"""
    said = node(ask, browser_data(trace), tmp_path, "widget.js")
    assert (said["end"]["used"], said["peak"]["nbytes"]) == (12 * MIB, 20 * MIB)
    assert said["end"]["peak"] == said["peak"]["taken"] == 12 * MIB + POOL * PAGE
    assert said["labels"] == ["weights", "KV cache", "KV reserved"]
    assert [n // MIB for n in said["held"]] == [12, 8, 12]
    assert said["facts"]["title"] == "HBM 20 MiB · 31 % of 64 MiB"
    assert {"KV cache 8 MiB", "KV reserved 12 MiB"} <= set(said["facts"]["lines"])
