"""Charts show the trace's own numbers: each test draws a made-up run whose seconds are known."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import moving
from IPython.core.formatters import DisplayFormatter
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from PIL import Image, ImageColor

from minillm import charts
from minillm.charts import facts, loading
from minillm.charts.ink import INK, amount
from minillm.charts.machine_svg import RAISED
from minillm.charts.show import pack
from minillm.errors import MinillmError
from minillm.trace import Trace
from minillm.trace.event import STAGES, Event

MIB = 2**20


class Clock:
    """Seconds that pass only when told to, so that every span has a known length."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def add_load(trace: Trace, clock: Clock, tensors: int = 12) -> None:
    """Read each tensor from SSD and copy it to HBM; HBM fills as the copies end."""
    trace.count("dram", "staging", 2 * MIB)
    for i in range(tensors):
        nbytes = (4 if i == 0 else 1) * MIB
        with moving(trace, "read", stage="load", source="ssd", target="dram", nbytes=nbytes,
                          label="weights"):
            clock.now += nbytes / 1.6e9
        with moving(trace, "to HBM", stage="load", source="dram", target="hbm", nbytes=nbytes,
                          label="weights"):
            clock.now += nbytes / 9e9
        trace.count("hbm", "weights", (4 + i) * MIB)
    trace.count("dram", "staging", 0)


def add_model(trace: Trace, clock: Clock, name: str, seconds: float) -> None:
    """A pass through six layers; attention takes 4 parts of it, ffn 5, the rest 1."""
    with trace.span(name, stage="model", resource="compute", nbytes=16 * MIB, label="weights"):
        clock.now += 0.05 * seconds
        for _ in range(6):
            with trace.span("attention", stage="model", resource="compute"):
                clock.now += 0.4 * seconds / 6
            with trace.span("ffn", stage="model", resource="compute"):
                clock.now += 0.5 * seconds / 6
        clock.now += 0.05 * seconds


def add_request(trace: Trace, clock: Clock, number: int = 0, tokens: int = 24) -> None:
    """Tokenize, prefill and decode; 50 µs pass between one token and the next."""
    with trace.at(request=number):
        with trace.span("tokenize", stage="tokens", resource="cpu"):
            clock.now += 300e-6
        trace.count("hbm", "kv", 3 * MIB)
        for k in range(tokens):
            with trace.at(token=k):
                with moving(trace, "copy ids", stage="tokens", source="dram", target="hbm",
                                  nbytes=8 * (400 if k == 0 else 1), label="ids"):
                    clock.now += 30e-6
                add_model(trace, clock, "decode step" if k else "prefill", 2.1e-3 if k else 31e-3)
                with moving(trace, "copy logits", stage="decode", source="hbm", target="dram",
                                  nbytes=16 * 1024, label="logits"):
                    clock.now += 40e-6
                with trace.span("sample", stage="decode", resource="cpu"):
                    clock.now += 90e-6 + 4e-6 * (k % 3)
                with trace.span("detokenize", stage="decode", resource="cpu"):
                    clock.now += 20e-6
            clock.now += 50e-6
        trace.count("hbm", "kv", 0)


def make_run(tokens: int = 24, pause: float = 20.0) -> Trace:
    """A load, a long pause (the reader thinks), and one request."""
    clock = Clock()
    trace = Trace(clock=clock)
    trace.meta.update(model="town", device="cpu", emulated=True)
    add_load(trace, clock)
    clock.now += pause
    add_request(trace, clock, tokens=tokens)
    return trace


DRAWN = {
    "timeline": charts.timeline,
    "memory": charts.memory,
    "ladder": charts.ladder,
    "stages": charts.stages,
}


def texts(figure: Figure) -> list[str]:
    """Everything that is written in a picture."""
    return [text.get_text() for text in figure.findobj(match=lambda a: hasattr(a, "get_text"))]


def busy(trace: Trace, name: str) -> float:
    return sum(e.seconds for e in trace.select(name=name))


def test_tokens_cut_a_request_without_gap_or_overlap() -> None:
    """Catches time that is lost between two tokens or counted for both."""
    whole = facts.request(make_run())
    pieces = list(facts.tokens(whole).values())
    assert len(pieces) == 24
    assert [p.start for p in pieces] == [whole.start, *(p.stop for p in pieces[:-1])]
    assert sum(p.seconds for p in pieces) == pytest.approx(whole.seconds)


class Watched(Event):
    """An event that counts how often its end is asked for."""

    asked = 0

    @property
    def end(self) -> float:
        Watched.asked += 1
        return self.start + self.seconds


def test_tokens_take_no_longer_per_event_in_a_long_window() -> None:
    """Catches work that grows with the square of the window: a run may have thousands."""
    asked = {}
    for steps in (100, 1000):
        events = facts.request(make_run(tokens=steps)).events
        window = facts.Window.around(Watched(*event) for event in events)
        Watched.asked = 0
        assert len(facts.tokens(window)) == steps
        asked[steps] = Watched.asked / len(events)
    assert asked[1000] < 1.2 * asked[100] < 20


def test_timeline_says_the_times_of_first_and_later_tokens() -> None:
    """Catches a title whose numbers are not the run's."""
    trace = make_run()
    first = max(e.end for e in trace.select(token=0)) - trace.select(name="tokenize")[0].start
    mine = [trace.select(token=k) for k in range(1, 24)]
    each = sorted(max(e.end for e in t) - min(e.start for e in t) for t in mine)[11]
    chart = charts.timeline(trace)
    first, each = amount(first, "s"), amount(each, "s")
    assert chart.finding == f"The first token comes after {first}, each later one takes {each}"
    assert chart.finding in texts(chart)


def test_timeline_rows_say_the_sums_of_the_trace() -> None:
    """Catches a resource whose words and blocks tell of different events."""
    trace = make_run()
    said = " ".join(texts(charts.timeline(trace)))
    steps = f"prefill {amount(busy(trace, 'prefill'), 's')}, 23 × decode step "
    assert steps + amount(busy(trace, "decode step"), "s") in said
    assert f"15.0 MiB → DRAM {amount(busy(trace, 'read'), 's')}" in said
    assert f"15.0 MiB → HBM {amount(busy(trace, 'to HBM'), 's')}" in said


def test_timeline_does_not_show_the_pause_between_load_and_request() -> None:
    """Catches a page read slowly that makes a chart with two hairlines at its ends."""
    long, short = make_run(pause=900.0), make_run(pause=0.5)
    assert charts.timeline(long).finding == charts.timeline(short).finding
    assert facts.request(long).seconds == pytest.approx(facts.request(short).seconds)
    assert loading.load(long).seconds < 0.02


def test_memory_says_the_peak_and_the_labels_that_make_it() -> None:
    """Catches a stack whose parts do not add up to its height."""
    trace = make_run()
    hbm = facts.memory(trace, "hbm")
    held = {"weights": 15 * MIB, "kv": 3 * MIB}
    assert hbm.at_peak() == held and hbm.peak == sum(held.values())
    chart = charts.memory(trace)
    assert chart.finding == "HBM holds 18.0 MiB at its peak: 15.0 MiB weights, 3.0 MiB KV cache"
    assert {"KV cache 3.0 MiB", "weights 15.0 MiB"} <= set(texts(chart))


def test_memory_counts_the_requests_that_ran_meanwhile() -> None:
    """Catches "one request" above the KV cache of several, and one that had ended among them."""
    clock = Clock()
    trace = Trace(clock=clock)
    for number in (0, 1):
        add_request(trace, clock, number)
    assert "one request" in texts(charts.memory(trace))
    with trace.at(request=2), trace.span("tokenize", stage="tokens", resource="cpu"):
        clock.now += 300e-6
    add_request(trace, clock, 3)
    with trace.at(request=2, token=0), trace.span("sample", stage="decode", resource="cpu"):
        clock.now += 90e-6
    assert "2 requests" in texts(charts.memory(trace))


def test_many_labels_are_shown_as_three_that_add_up() -> None:
    """Catches small labels that vanish from a stack or crowd its margin."""
    trace = make_run()
    for i in range(5):
        trace.count("dram", f"buffer {i}", (5 - i) * MIB)
    said = texts(charts.memory(trace))
    assert {"buffer 0 5.0 MiB", "buffer 1 4.0 MiB", "other 6.0 MiB"} <= set(said)


def stage_rows(*events: Event) -> dict[str, list[str]]:
    """Bytes and time by stage, and of all, as the table says them."""
    return {row[0]: list(row[1:3]) for row in charts.stages(Trace.of(events, {})).rows}


def work(start: float, seconds: float, nbytes: int = 0, stage: str = "model",
         resource: str = "compute") -> Event:  # fmt: skip
    return Event("span", "step", stage, resource, start, seconds, nbytes)


def test_a_stage_is_busy_for_the_union_of_its_intervals() -> None:
    """Catches seconds counted twice: nested, overlapping, and touching events."""
    events = [work(0, 10), work(2, 3), work(8, 4), work(12, 1), work(20, 1),
              work(5, 1, stage="load")]  # fmt: skip
    rows = {stage: time for stage, (_, time) in stage_rows(*events).items()}
    assert list(rows) == [*STAGES, "all"]
    assert (rows["model"], rows["load"], rows["all"]) == ("14 s", "1 s", "15 s")
    assert charts.stages(Trace.of(events, {})).rows[2][3].startswith(" 93 % ")


def test_bytes_of_a_span_count_once_and_of_a_transfer_always() -> None:
    """Catches a step's bytes added to those of its layers, and copies or ranks that go missing."""
    copy = Event("transfer", "kv", "model", "copy", 1.0, 1.0, 5, "dram", "hbm")
    counter = Event("counter", "hbm", "", "", 1.0, 0.0, 999, label="kv")
    inside = [work(0, 4, 100), work(1, 1, 60), copy, work(2, 1, 40), counter]
    assert stage_rows(*inside)["model"][0] == stage_rows(*inside)["all"][0] == "105 B"
    assert stage_rows(work(0, 4), work(1, 1, 60), work(2, 1, 40))["model"][0] == "100 B"
    ranks = [work(0, 4, 100, resource="compute:0"), work(1, 2, 100, resource="compute:1")]
    assert stage_rows(*ranks)["model"][0] == "200 B"


def test_the_stage_table_says_its_finding() -> None:
    """Catches a table whose caption names another stage than the longest one."""
    said = charts.stages(make_run())._repr_mimebundle_()["text/html"]
    assert "<caption><b>The model stage takes 83 %" in said


@pytest.mark.parametrize("name", DRAWN)
def test_an_empty_trace_is_refused_with_what_to_do(name: str) -> None:
    """Catches an IndexError out of the drawing library for a reader who skipped a cell."""
    with pytest.raises(MinillmError, match="load an engine"):
        DRAWN[name](Trace())


def test_a_trace_without_a_request_is_drawn_as_a_load() -> None:
    """Catches a chart that waits for a request before it shows what was loaded."""
    clock = Clock()
    trace = Trace(clock=clock)
    add_load(trace, clock)
    assert charts.timeline(trace).finding.startswith("SSD and copies take turns")
    assert charts.memory(trace).finding == "HBM holds 15.0 MiB at its peak, all of it weights"
    assert charts.stages(trace).finding.startswith("The load stage takes 100 %")


def test_the_last_request_is_the_one_drawn() -> None:
    """Catches a chart that mixes two requests."""
    clock = Clock()
    trace = Trace(clock=clock)
    add_request(trace, clock, number=0, tokens=9)
    clock.now += 3
    add_request(trace, clock, number=1, tokens=5)
    assert len(facts.tokens(facts.request(trace))) == 5
    assert "4 × decode step" in charts.timeline(trace).alt


def test_a_request_of_one_token_is_drawn_without_a_close_look() -> None:
    """Catches a median of no steps."""
    trace = make_run(tokens=1)
    assert charts.timeline(trace).finding.startswith("The first token comes after")


@pytest.mark.parametrize("name", DRAWN)
def test_all_words_stay_inside_the_picture(name: str) -> None:
    """Catches a long name or number that runs off the paper or into the next panel."""
    chart = DRAWN[name](make_run())
    if isinstance(chart, charts.Table):
        return
    renderer = FigureCanvasAgg(chart).get_renderer()
    drawn, (wide, high) = chart.get_tightbbox(renderer), chart.get_size_inches()
    assert drawn.x0 >= 0 and drawn.y0 >= 0 and drawn.x1 <= wide and drawn.y1 <= high, drawn
    starts = sorted(ax.get_window_extent().x0 for ax in chart.axes)
    for ax in chart.axes:
        for text in ax.texts:
            box = text.get_window_extent(renderer)
            assert not [x for x in starts if box.x0 + 1 < x < box.x1], text.get_text()


@pytest.mark.parametrize("name", [name for name in DRAWN if name != "stages"])
def test_a_chart_is_a_figure_whose_title_is_its_finding(name: str) -> None:
    """Catches a title and a text that tell of two things, and a chart nobody can add to."""
    chart = DRAWN[name](make_run())
    assert isinstance(chart, Figure) and isinstance(chart, charts.Chart)
    assert chart.get_suptitle() == chart.finding == str(chart)
    assert chart.finding in chart.alt


def test_a_chart_made_by_hand_needs_its_finding_only(tmp_path: Path) -> None:
    """Catches a constructor that others cannot use, and a save that fails late."""
    chart = charts.Chart("Costs $5, then $6", note="by hand", size=(4, 2))
    chart.add_axes((0.1, 0.1, 0.8, 0.5)).plot([1, 2])
    data, about = chart._repr_mimebundle_()
    assert data["text/plain"] == about["image/png"]["alt"] == "Costs $5, then $6"
    assert (about["image/png"]["width"], about["image/png"]["height"]) == (384, 192)
    with pytest.raises(MinillmError, match="ends in .png"):
        chart.save(tmp_path / "chart.gif")


@pytest.mark.parametrize("words", ["short", "a longer finding with its numbers " * 4, "o" * 200])
def test_a_title_of_any_length_fits_its_chart(words: str) -> None:
    """Catches a finding that runs off the paper, or shrinks until nobody can read it."""
    chart = charts.Chart(words.strip(), note="n" * 150)
    chart.dpi = 192  # as it is drawn: letters are a little wider on fewer dots
    drawn = chart.get_tightbbox(FigureCanvasAgg(chart).get_renderer())
    assert drawn.x0 >= 0 and drawn.x1 <= 7
    assert " " not in words or chart._suptitle.get_fontsize() > 7
    assert chart.get_suptitle().replace("\n", " ") == chart.finding


def test_a_picture_keeps_its_inks() -> None:
    """Catches a small orange mark that turns brown, and a pale panel that the paper swallows."""
    chart = charts.Chart("inks", size=(3, 1))
    ax, inks = chart.add_axes((0, 0, 1, 0.5)), [ink.colour for ink in INK.values()]
    for i, colour in enumerate(inks):
        ax.plot(i, 0, "o", color=colour, markersize=4)
    ax.axhspan(-1, -0.5, color=RAISED)
    ax.imshow([[i for i in range(500)]], extent=(-2, 30, 1, 2), aspect="auto")  # many colours
    ax.set(xlim=(-2, 20), ylim=(-1, 2))
    image = Image.open(io.BytesIO(chart.png())).convert("RGB")
    found = [colour for _, colour in image.getcolors()]
    assert (255, 255, 255) in found
    for ink in map(ImageColor.getrgb, [*inks, RAISED]):
        assert any(math.dist(ink, colour) < 8 for colour in found), ink


def test_a_hairline_between_many_greys_keeps_its_hue() -> None:
    """Catches a blue hairline that turns green because letters have so many shades of grey."""
    image = Image.new("RGB", (256, 100))
    image.putdata([(x, x, x) for _ in range(100) for x in range(256)])
    for y in range(10):
        image.putpixel((7, y), (128, 184, 216))
    packed = Image.open(io.BytesIO(pack(image))).convert("RGB")
    assert packed.getpixel((7, 3)) == (128, 184, 216)
    assert len(packed.getcolors()) == 64


def test_pyplot_in_a_notebook_does_not_take_over_the_picture(monkeypatch) -> None:
    """Catches a second, heavy PNG without alt text: pyplot registers itself for every Figure."""
    shell = SimpleNamespace(display_formatter=DisplayFormatter())
    shell.display_formatter.formatters["image/png"].for_type(Figure, lambda figure: b"pyplot's")
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    chart = charts.timeline(make_run())
    data, about = shell.display_formatter.format(chart)
    assert data["image/png"] == chart.png() and about["image/png"]["alt"] == chart.alt
    assert shell.display_formatter.format(Figure())[0]["image/png"] == b"pyplot's"


def test_a_chart_shows_as_png_with_words_and_alt_text(tmp_path: Path) -> None:
    """Catches a picture that is nothing to a reader who cannot see it, or too heavy to commit."""
    chart = charts.timeline(make_run())
    data, about = chart._repr_mimebundle_()
    assert data["image/png"].startswith(b"\x89PNG") and len(data["image/png"]) < 45_000
    assert data["text/plain"] == repr(chart) == chart.finding
    assert chart.finding in about["image/png"]["alt"]
    assert (about["image/png"]["width"], about["image/png"]["height"]) == (672, 336)
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    chart.save(one)
    charts.timeline(make_run()).save(two)
    assert one.read_bytes() == two.read_bytes()


def test_a_saved_trace_gives_the_same_charts(tmp_path: Path) -> None:
    """Catches a chart that needs the live engine and not the trace alone."""
    trace = make_run()
    trace.save(tmp_path / "run.json")
    again = Trace.load(tmp_path / "run.json")
    for draw in DRAWN.values():
        assert draw(again).finding == draw(trace).finding


def test_charts_leave_pyplot_alone() -> None:
    """Catches pyplot, whose global state a widget callback on another thread can corrupt."""
    program = ("import sys, minillm.lesson; from minillm.charts import *;"
               "assert 'matplotlib.figure' in sys.modules;"
               "assert 'matplotlib.pyplot' not in sys.modules")  # fmt: skip
    subprocess.run([sys.executable, "-c", program], check=True)


def test_no_module_is_called_like_a_public_name() -> None:
    """Catches `charts.ladder`, a function, that becomes a module once that module is imported."""
    modules = {path.stem for path in Path(charts.__file__).parent.glob("*.py")}
    assert not modules & set(charts.__all__)


def on_ranks(ranks: int = 8, steps: int = 3) -> Trace:
    """A request that several GPUs compute together, each with its own HBM, copies and network."""
    names = ["", *(f":{rank}" for rank in range(1, ranks))]
    events = [Event("counter", f"hbm{name}", "", "", 0, 0, (9 + rank) * MIB, label="weights")
              for rank, name in enumerate(names)]  # fmt: skip
    for k in range(steps):
        for rank, name in enumerate(names):
            start, nearly = 0.01 * k + 1e-5 * rank, 0.008 + 1e-4 * rank
            at = {"token": k, "request": 0}
            step = "decode step" if k else "prefill"
            events += [
                Event("span", step, "model", f"compute{name}", start, nearly, 5 * MIB, **at),
                Event("span", "attention", "model", f"compute{name}", start, nearly / 2, **at),
                Event("span", "ffn", "model", f"compute{name}", start + nearly / 2, 0.002, **at),
                Event("transfer", "sum", "parallel", f"network{name}", start, 1e-3, 2**20,
                      f"hbm{name}", "hbm:1", "activations", **at, link="nvlink"),
            ]
    return Trace.of(events, {})


def test_each_rank_has_its_lane_and_the_words_are_the_busiest_ones() -> None:
    """Catches eight GPUs drawn over each other, or their seconds added up to more than passed."""
    chart = charts.timeline(on_ranks())
    blocks = {round(path.vertices[0][1], 3) for ax in chart.axes[:1] for bars in ax.collections
              for path in bars.get_paths()}  # fmt: skip
    assert len(blocks) == 16  # compute and network, eight each
    assert "compute of 8 ranks prefill 8.7 ms, 2 × decode step 17.4 ms" in chart.alt
    assert {"compute\n8 ranks", "NVLink\n8 ranks"} <= set(texts(chart))
    drawn = chart.get_tightbbox(FigureCanvasAgg(chart).get_renderer())
    assert drawn.x0 >= 0 and drawn.x1 <= 7


def test_memory_shows_the_fullest_of_several_hbms() -> None:
    """Catches eight HBMs added up, and a rank taken for another."""
    chart = charts.memory(on_ranks())
    assert chart.finding == "HBM 7, the fullest of 8, holds 16.0 MiB at its peak, all of it weights"
    assert "HBM 7" in texts(chart)


def test_the_peak_and_the_name_of_a_memory_stand_apart_whatever_is_reserved() -> None:
    """Catches "peak" written over "HBM 1" where a pool reserves much more than is in use."""
    used = on_ranks(2)
    for share in (0, 0.5, 2, 5, 20, 500):
        size = int(share * 10 * MIB)
        pools = [Event("counter", f"hbm{name}", "", "", 0, 0, size, label=facts.RESERVED)
                 for name in ("", ":1")]  # fmt: skip
        chart = charts.memory(Trace.of([*used.events, *pools], {}))
        renderer = FigureCanvasAgg(chart).get_renderer()
        peak, name = (next(text for text in chart.findobj(Annotation)
                           if text.get_text().startswith(said)).get_window_extent(renderer)
                      for said in ("peak", "HBM 1"))  # fmt: skip
        assert not peak.overlaps(name), share


def test_the_ladder_knows_ranks_too() -> None:
    """Catches a KeyError for the ink of 'compute:3'."""
    assert "GPU ↔ GPU NVLink is 1.7 × as fast as HBM" in charts.ladder(on_ranks()).finding


def test_a_long_foreign_name_is_cut_where_it_stands() -> None:
    """Catches a label read as a formula, or running off the paper."""
    trace = make_run()
    trace.count("hbm", "$activations_of_the_residual_stream$", 900 * MIB)
    with trace.at(request=0, token=23), trace.span("a thing of a very long name that the CPU does",
                                                   stage="decode", resource="cpu"):  # fmt: skip
        trace.clock.now += 0.5
    for draw in (charts.memory, charts.timeline):
        chart = draw(trace)
        drawn = chart.get_tightbbox(FigureCanvasAgg(chart).get_renderer())
        assert drawn.x0 >= 0 and drawn.x1 <= 7, draw
    assert any(text.startswith("$act") and "…" in text for text in texts(charts.memory(trace)))


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.00241, "2.41 ms"), (0.9994, "999 ms"), (12.0, "12 s"), (0.0, "0 µs"), (3e-7, "0.3 µs"),
     (0.09996, "100 ms"), (0.99996, "1 s")],
)  # fmt: skip
def test_seconds_are_said_with_three_digits(value: float, said: str) -> None:
    """Catches 1e+02 ms, and a unit that is off by a thousand."""
    assert amount(value, "s") == said
