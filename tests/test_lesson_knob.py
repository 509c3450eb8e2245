"""Sliders over a drawing, on the right thread, newest first."""

from __future__ import annotations

import io
import sys
import threading
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure
from PIL import Image

from minillm.charts import Chart, Table
from minillm.errors import ConfigError
from minillm.lesson import knob, on_main

ON_MAIN = sys.modules["minillm.lesson.on_main"]  # the name itself is the function
WIDGET = "application/vnd.jupyter.widget-view+json"


class Loop:
    """A kernel's loop that runs what it was given when told, at times that a test sets."""

    def __init__(self):
        self.time, self.queue = 0.0, []

    def add_callback(self, function, *args):
        self.queue.append((self.time, function, args))

    def call_later(self, seconds, function, *args):
        self.queue.append((self.time + seconds, function, args))

    def run(self, until: float = 0.0) -> None:
        until = max(self.time, until)
        while due := [call for call in self.queue if call[0] <= until]:
            self.time, function, args = first = min(due, key=lambda call: call[0])
            self.queue.remove(first)
            function(*args)
        self.time = until


@pytest.fixture
def loop(monkeypatch) -> Loop:
    """A kernel whose main loop is a Loop."""
    loop = Loop()
    shell = SimpleNamespace(kernel=SimpleNamespace(io_loop=loop))
    monkeypatch.setattr(ON_MAIN, "get_ipython", lambda: shell)
    return loop


def elsewhere(function, *args) -> None:
    """Run on another thread, as JupyterLab's messages to widgets do; raises what it raised."""
    failed: list[BaseException] = []

    def run():
        try:
            function(*args)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not failed, failed


def chart(batch=8, context=1024):
    drawn = Chart(f"A batch of {batch} keeps {batch * context:,} tokens")
    drawn.add_axes((0.1, 0.2, 0.8, 0.6)).plot([0, batch])
    return drawn


def test_on_main_calls_at_once_on_the_main_thread_and_outside_a_kernel(loop, monkeypatch):
    """Catches a slider set by code whose result is not there in the next line, as nbval needs."""
    calls = []
    on_main(calls.append)(1)
    monkeypatch.setattr(ON_MAIN, "get_ipython", lambda: None)
    elsewhere(on_main(calls.append), 2)
    assert calls == [1, 2] and not loop.queue


def test_on_main_makes_the_newest_call_only_and_on_the_main_thread(loop):
    """Catches thirty drawings for one drag, and pyplot on a thread it is not made for."""
    calls = []
    slide = on_main(lambda n: calls.append((n, threading.current_thread())))
    for n in range(30):
        elsewhere(slide, n)
    assert calls == []
    loop.run()
    assert calls == [(29, threading.main_thread())]
    elsewhere(slide, 30)
    loop.run()
    assert calls[-1][0] == 30


def test_a_value_set_by_code_outdates_those_that_wait(loop):
    """Catches an older value drawn over a newer one."""
    calls = []
    slide = on_main(calls.append)
    elsewhere(slide, 1)
    slide(2)
    loop.run()
    assert calls == [2]


def test_with_a_rest_nothing_is_drawn_until_the_hand_stands_still(loop):
    """Catches a last value that waits for the drawing of the one before it."""
    calls = []
    slide = on_main(calls.append, rest=0.04)
    for n in range(30):
        elsewhere(slide, n)
        loop.run(loop.time + 0.02)
    assert calls == []
    loop.run(loop.time + 0.021)
    assert calls == [29]
    elsewhere(slide, 30)  # a single step, by keyboard
    loop.run(loop.time + 0.08)
    assert calls == [29, 30]


def test_sliders_dragged_on_another_thread_draw_once(loop):
    """Catches a queue of drawings that lags behind the hand."""
    drawn = []
    turned = knob(lambda batch=1: drawn.append(batch) or f"batch {batch}", batch=(1, 64))
    slider = turned.sliders["batch"]
    for n in range(2, 32):
        elsewhere(setattr, slider, "value", n)
    assert drawn == [1]
    loop.run(1.0)
    assert drawn == [1, 31] and turned.result == "batch 31"


def test_a_value_set_by_code_is_drawn_in_the_same_line():
    """Catches a cell that sets a slider and asserts on the picture of before."""
    turned = knob(chart, batch=(1, 64), context=(128, 8192, 128))
    assert turned.result.finding == "A batch of 8 keeps 8,192 tokens"  # the defaults of chart
    turned.sliders["batch"].value = 16
    assert turned.result.finding == "A batch of 16 keeps 16,384 tokens"
    turned.sliders["context"].value = 10**6
    assert turned.values == {"batch": 16, "context": 8192}


def test_an_error_in_draw_is_shown_in_place_and_the_knob_lives():
    """Catches a slider that is dead after one bad value."""
    turned = knob(lambda n=0: f"{6 / n:g} <b>", n=(0, 9))
    assert turned.result == "ZeroDivisionError: division by zero (at n = 0)"
    assert "ZeroDivisionError" in turned._picture.value
    turned.sliders["n"].value = 3
    assert turned.result == "2 <b>" and "2 &lt;b&gt;" in turned._picture.value


def test_a_chart_and_a_table_are_shown_as_what_they_are():
    """Catches a chart without its words, and a table whose columns ran together."""
    picture = knob(chart, batch=(1, 64))._picture.value
    assert 'alt="A batch of 8' in picture and "data:image/png" in picture
    table = Table(("part", "bytes", "note"), (("kv", "3", ""),), "3 bytes")
    assert "part  bytes  note\nkv        3</pre>" in knob(lambda n: table, n=(1, 2))._picture.value


@pytest.mark.parametrize(("span", "start"), [
    ((1, 64), 33), ((0, 100, 5), 50), ((128, 8192, 128), 4224), ((0.0, 1.0), 0.5), ((1, 1024), 32),
    ((64, 65536), 2048), ((4, 65536), 512), ((1, 1000), 16), ((0.1, 0.9), 0.5), ([1, 2, 4], 2),
    (["fast", "slow"], "fast"),
])  # fmt: skip
def test_a_slider_starts_in_the_middle(span, start):
    """Catches a saved notebook that shows the end at which there is least to see."""
    turned = knob(lambda n: "", n=span)
    assert turned.values == {"n": start} and type(turned.values["n"]) is type(start)
    if isinstance(span, tuple) and len(span) == 3:
        assert (start - span[0]) % span[2] == 0, "a place that the slider can come back to"


@pytest.mark.parametrize(("span", "default"), [((1, 1024), 64), ((0, 100, 5), 0), ([1, 2, 4], 4),
                                               ((0.0, 1.0), 0.1)])  # fmt: skip
def test_a_slider_starts_where_draw_says_it_does(span, default):
    """Catches a lesson that cannot choose what its saved picture shows."""
    assert knob(lambda n=default: "", n=span).values == {"n": default}


def test_any_figure_is_shown_also_in_the_still():
    """Catches a curve with a dot on it, of which a code host shows the words "Figure(640x480)"."""
    def curve(batch=8):
        figure = Figure(figsize=(7, 2))
        ax = figure.add_axes((0.1, 0.2, 0.8, 0.7))
        ax.plot([0, 64], [0, 64])
        ax.plot(batch, batch, "o")
        return figure

    turned = knob(curve, batch=(1, 64))
    assert "data:image/png" in turned._picture.value
    picture = Image.open(io.BytesIO(turned._repr_mimebundle_()[0]["image/png"]))
    assert picture.height > 2 * 192
    on_axes = knob(lambda batch: curve(batch).axes[0], batch=(1, 64))
    assert "data:image/png" in on_axes._picture.value


@pytest.mark.parametrize("draw", [chart, lambda batch: f"batch {batch}\n$ \\frac"])
def test_the_saved_notebook_shows_sliders_and_drawing_as_a_still(draw):
    """Catches sliders that an export shows as nothing, and text that nbval finds changed."""
    turned = knob(draw, batch=(1, 64))
    bundle, about = turned._repr_mimebundle_()
    assert about["image/png"]["width"] == 672
    assert about["image/png"]["alt"].startswith("Sliders at batch = ")
    assert WIDGET in bundle and bundle["text/plain"] == knob(draw, batch=(1, 64)).__repr__()
    assert bundle["text/plain"].startswith("batch = ")
    image = Image.open(io.BytesIO(bundle["image/png"]))
    assert image.width == 7 * 192 and image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(("span", "values"), [
    ((1, 64), [1, 5, 64]), ((128, 8192, 128), [128, 8192]), ((0.0, 1.0), [0.0, 0.25, 1.0]),
    ((1, 4096), [1, 16, 4096]), ((3, 1000), [4, 512]), ([1, 2, 4], [1, 4]),
    (["fast", "slow"], ["fast", "slow"]),
])  # fmt: skip
def test_draw_gets_the_very_values_of_its_span(span, values):
    """Catches 4095 for 4096 on a wide slider, and floats where whole numbers are meant."""
    got = []
    turned = knob(lambda n: got.append(n) or "", n=span)
    for value in values:
        turned.sliders["n"].value = value
        assert got[-1] == value and type(got[-1]) is type(value)
        assert turned._repr_mimebundle_()[0]["image/png"]


@pytest.mark.parametrize("span", [(1,), (3, 1), (1, 2, 0), ("a", "b"), 3, [], None, "ab",
                                  (1, float("inf"))])  # fmt: skip
def test_a_span_that_is_none_is_refused_by_name(span):
    """Catches a slider that nobody can move."""
    with pytest.raises(ConfigError, match="wanted .* found {'n': "):
        knob(lambda n: "", n=span)


def test_sliders_are_named_after_the_parameters():
    """Catches a slider that moves nothing."""
    with pytest.raises(ConfigError, match="wanted parameters of draw"):
        knob(chart, batches=(1, 64))
