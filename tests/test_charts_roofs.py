"""Roofs at points that a reader can check by hand, and a title that says which roof each meets."""

from __future__ import annotations

import math

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from minillm.charts import roofline
from minillm.charts.roofs import find_points
from minillm.errors import MinillmError
from minillm.trace import Trace
from minillm.trace.event import Event

BANDWIDTH, PEAK = 100e9, 1000e9  # the ridge is at 10 FLOPs a byte


def made_run(how: str = "measured", bytes_how: str = "predicted") -> Trace:
    """Decode steps of 1 GB in 20, 25 and 90 ms, one prefill of 2 GB in 0.1 s."""
    events = [Event("span", "sample", "decode", "cpu", 9.0, 0.1)]
    for at, (name, seconds, gigabytes) in enumerate(
        [("prefill", 0.1, 2), ("decode step", 0.02, 1), ("decode step", 0.09, 1),
         ("decode step", 0.025, 1)]
    ):  # fmt: skip
        events.append(Event("span", name, "model", "compute", at, seconds, gigabytes * 10**9,
                            how=how, bytes_how=bytes_how))  # fmt: skip
    return Trace.of(events, {"model": "town", "device": "cpu"})


def texts(chart) -> list[str]:
    return [text.get_text() for text in chart.axes[0].texts]


@pytest.mark.parametrize(
    ("intensity", "roof", "bound"),
    [(1, 100e9, "memory"), (9.99, 999e9, "memory"), (10, 1000e9, "compute"),
     (10_000, 1000e9, "compute")],
)  # fmt: skip
def test_roof_is_bandwidth_times_intensity_until_the_ridge(intensity, roof, bound) -> None:
    """Catches roofs swapped, and a ridge at the wrong side of their crossing."""
    (point,) = find_points(None, {"work": (intensity * 1e9, 1e9, 1.0)}, BANDWIDTH, PEAK)
    assert (point.roof, point.bound) == (pytest.approx(roof), bound)
    assert point.intensity == pytest.approx(intensity)


def test_points_are_medians_of_the_traces_events() -> None:
    """Catches a first, slow step that moves the point, and the sum of all events as one."""
    decode, prefill = find_points(made_run(), {"decode step": 2e9, "prefill": 80e9},
                                  BANDWIDTH, PEAK)  # fmt: skip
    assert (decode.seconds, decode.nbytes, decode.intensity) == (0.025, 1e9, 2.0)
    assert (decode.rate, decode.roof) == (pytest.approx(80e9), 200e9)
    assert (prefill.rate, prefill.roof) == (pytest.approx(800e9), 1000e9)


def test_title_says_which_roof_each_meets_and_how_near_it_comes() -> None:
    """Catches shares of the wrong roof."""
    chart = roofline(made_run(), {"decode step": 2e9, "prefill": 80e9}, BANDWIDTH, PEAK)
    assert chart.get_suptitle() == (
        "Decode step reaches 40 % of the memory roof, prefill 80 % of the compute roof"
    )
    hand = {"one": (2e9, 1e9, 0.1), "two": (5e9, 1e9, 0.1), "three": (9e9, 1e9, 0.1),
            "four": (600e9, 1e9, 1.0)}  # fmt: skip
    assert roofline(None, hand, BANDWIDTH, PEAK).finding == (
        "Four reaches 60 % of the compute roof, the highest of 4; 3 meet the memory roof"
    )


def test_many_points_are_counted_in_the_title() -> None:
    """Catches a title of eight names that nobody can read."""
    hand = {f"kernel {i}": (2.0**i * 1e9, 1e9, 1.0) for i in range(8)}
    assert roofline(None, hand, BANDWIDTH, PEAK).finding == (
        "Kernel 7 reaches 13 % of the compute roof, the highest of 8; 4 meet the memory roof"
    )


def test_roofs_and_points_are_drawn_where_they_are() -> None:
    """Catches a line that is not the roof that the shares were taken of."""
    ax = roofline(made_run(), {"decode step": 2e9}, BANDWIDTH, PEAK).axes[0]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    memory, compute = (line.get_xydata() for line in ax.lines[:2])
    assert all(y == pytest.approx(BANDWIDTH * x) for x, y in memory)
    assert all(y == PEAK for _, y in compute)
    assert memory[1].tolist() == compute[0].tolist() == [10.0, PEAK]
    marks = [line.get_xydata()[0].tolist() for line in ax.lines if line.get_marker() == "o"]
    assert marks == [[2.0, pytest.approx(80e9)]]
    said = texts(roofline(made_run(), {"decode step": 2e9}, BANDWIDTH, PEAK))
    assert {"memory roof 100 GB/s", "compute roof 1 TFLOP/s", "ridge 10 FLOP/byte",
            "decode step", "80 GFLOP/s, 40 % of its roof"} <= set(said)  # fmt: skip


def test_numbers_that_are_not_measured_say_so() -> None:
    """Catches a prediction that looks like a measurement."""

    def note(chart) -> str:
        return chart.texts[-1].get_text()  # behind the title

    measured = roofline(made_run(), {"decode step": 2e9}, BANDWIDTH, PEAK)
    assert note(measured) == "measured time, predicted bytes · town · cpu"
    emulated = roofline(made_run("emulated", ""), {"decode step": 2e9}, BANDWIDTH, PEAK)
    assert note(emulated).startswith("emulated · ")
    assert "80 GFLOP/s, 40 % of its roof (emulated)" in texts(emulated)
    mixed = roofline(None, {"a": (1e9, 1e9, 1), "b": (1e9, 1e9, 1, "predicted")}, BANDWIDTH, PEAK)
    assert note(mixed) == "measured, predicted"
    assert sum("(predicted)" in said for said in texts(mixed)) == 1


def test_a_point_above_its_roof_is_told_as_such() -> None:
    """Catches 160 % shown without a word, where a cache or a wrong ceiling is the cause."""
    chart = roofline(None, {"work": (1e9, 1e9, 0.00625)}, BANDWIDTH, PEAK)
    assert chart.finding == "Work reaches 160 % of the memory roof"
    assert "above a roof" in chart.texts[-1].get_text()


@pytest.mark.parametrize(
    ("flops", "match"),
    [({}, "FLOPs of at least one event"), ({"dekode": 1e9}, "prefill, decode step; name one"),
     ({"sample": 1e9}, "found prefill, decode step"), ({"prefill": 0}, "FLOPs of 'prefill'"),
     ({"x": (1, 2)}, "flops, nbytes, seconds"), ({"x": (1, 2, 3, "dreamt")}, "may follow"),
     ({"x": (1, 2, math.nan)}, "seconds of 'x' above zero"), ({"prefill": None}, "above zero")],
)  # fmt: skip
def test_what_cannot_be_a_point_is_refused_with_what_to_do(flops: dict, match: str) -> None:
    """Catches a division by zero, and an event's name misspelt into an empty chart."""
    with pytest.raises(MinillmError, match=match):
        roofline(made_run(), flops, BANDWIDTH, PEAK)


@pytest.mark.parametrize(("bandwidth", "peak"), [(0, 1e12), (1e9, -1), (math.inf, 1e12)])
def test_a_roof_must_be_above_zero(bandwidth: float, peak: float) -> None:
    """Catches a machine that was never measured."""
    with pytest.raises(MinillmError, match="above zero"):
        roofline(made_run(), {"prefill": 1e9}, bandwidth, peak)


HARD = {
    "one place": {f"op {i}": (1e9, 1e9 * (1 + i / 100), 0.02) for i in range(4)},
    "many": {f"kernel number {i}": (1e9 * 2**i, 1e9, 0.02 * (1 + i)) for i in range(9)},
    "far apart": {"a": (1, 1e9, 1), "b": (1e18, 1e3, 1e3)},
    "corner": {"$under_the_ridge$": (1e10, 1e9, 0.0105)},
}


@pytest.mark.parametrize("hard", HARD)
def test_labels_touch_neither_each_other_nor_the_edge(hard: str) -> None:
    """Catches two kernels of the same speed whose names are one blot."""
    chart = roofline(None, HARD[hard], BANDWIDTH, PEAK)
    renderer = FigureCanvasAgg(chart).get_renderer()
    names = [text for text in chart.axes[0].texts if not text.get_rotation()]
    boxes = [text.get_window_extent(renderer).shrunk(0.98, 0.7) for text in names]
    touching = [(a.get_text(), b.get_text()) for i, a in enumerate(names)
                for j, b in enumerate(names[:i]) if boxes[i].overlaps(boxes[j])]  # fmt: skip
    assert not touching
    drawn, (wide, high) = chart.get_tightbbox(renderer), chart.get_size_inches()
    assert drawn.x0 >= 0 and drawn.y0 >= 0 and drawn.x1 <= wide and drawn.y1 <= high, drawn
