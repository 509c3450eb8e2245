"""The timeline's laws: every byte told, both links seen, each token with its own time and weights.

Each test draws events whose seconds and bytes are written here.
"""

from __future__ import annotations

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from minillm import charts
from minillm.charts import facts, loading, meaning
from minillm.charts.ink import INK
from minillm.charts.stills import still
from minillm.charts.timeline_rows import at_once, told
from minillm.errors import MinillmError
from minillm.trace import Trace
from minillm.trace.event import Event

MIB = 2**20


def read(start: float, seconds: float, mib: int = 8, **more) -> Event:
    return Event("transfer", "direct", "load", "ssd", start, seconds, mib * MIB, "ssd", "dram",
                 "weights", **more)  # fmt: skip


def copy(start: float, seconds: float, mib: int = 8, **more) -> Event:
    return Event("transfer", "copy weights", "load", "copy", start, seconds, mib * MIB, "dram",
                 "hbm", "weights", how="emulated", **more)  # fmt: skip


def cached(start: float, seconds: float, how: str = "read") -> Event:
    return Event("span", how, "load", "cpu", start, seconds, label="weights")


IN_TURNS = [e for i in range(10) for e in (read(i * 0.3, 0.2), copy(i * 0.3 + 0.2, 0.1))]
OVERLAPPED = [e for i in range(10) for e in (read(i * 0.2, 0.2), copy(i * 0.2 + 0.2, 0.1))]
IN_PART = [read(0, 1.0), copy(0.5, 1.0)]
WARM = [e for i in range(10) for e in (cached(i * 0.1, 0.1), copy(i * 0.1, 0.1))]


def token(k: int, start: float, streams: int = 0) -> list[Event]:
    """10 ms of a token's work, with so many layers of 2 MiB that come in for it."""
    more = {"token": k, "request": 0}
    name = "decode step" if k else "prefill"
    events = [
        Event("span", "batch", "tokens", "cpu", start, 1e-3, **more),
        Event("span", name, "model", "compute", start + 1e-3, 8e-3, 9,
              bytes_how="predicted", **more),
        Event("span", "detokenize", "decode", "cpu", start + 9e-3, 1e-3, label="text", **more),
    ]  # fmt: skip
    for i in range(streams):
        at = start + 1e-3 + i * 2e-3
        events.append(copy(at, 1e-3, 2, **more))
        events.append(Event("span", "wait for weights", "load", "cpu", at, 5e-4, **more))
    return events


def request(tokens: int = 5, pause: float = 0.0, streams: int = 0, begin: float = 5.0):
    return [e for k in range(tokens) for e in token(k, begin + k * (10e-3 + pause), streams)]


def drawn(events: list[Event], **meta) -> charts.Chart:
    return charts.timeline(Trace.of(events, meta))


def words(chart) -> str:
    found = chart.findobj(match=lambda a: hasattr(a, "get_text"))
    return "\n".join(text.get_text() for text in found)


# -- a load alone ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("events", "finding"), [
    (IN_TURNS, "SSD and copies take turns: 3 s in all, the SSD busy 67 % of it"),
    (OVERLAPPED, "SSD and copies overlap: 2.1 s in all, the SSD busy 95 % of it"),
    (IN_PART, "SSD and copies overlap in part: 1.5 s in all, the SSD busy 67 % of it"),
    ([read(0, 0.1), copy(0, 0.2)],
     "SSD and copies overlap: 200 ms in all, copies busy 100 % of it"),
    (WARM, "80 MiB came out of the page cache in 1 s; the SSD was not asked"),
    ([read(0, 0.5)], "8 MiB of weights moved in 500 ms"),
])  # fmt: skip
def test_a_load_alone_says_whether_both_links_were_busy_at_one_time(events, finding) -> None:
    """Catches a lesson that asks for it and shows nothing, and a title that says the opposite."""
    chart = drawn(events)
    assert chart.finding == chart.get_suptitle() == finding
    assert finding in chart.alt and len(chart.axes) == 1


def test_a_load_alone_has_a_row_for_each_link_over_the_whole_width() -> None:
    """Catches two links whose blocks stand at different scales of time."""
    chart = drawn([*OVERLAPPED, Event("span", "touch", "load", "cpu", 0.3, 0.2)])
    said = words(chart)
    assert [name for name in ("SSD", "copies", "CPU", "compute") if name in said.split("\n")] == [
        "SSD", "copies", "CPU"]  # fmt: skip
    assert "80.0 MiB → HBM 1 s, 90 % of it while the SSD is busy" in said
    assert chart.axes[0].get_position().width > 0.8
    assert "none of it while the SSD is busy" in words(drawn(IN_TURNS))


def test_a_view_of_a_load_leaves_its_timeline() -> None:
    """Catches a saved notebook in which a watched load has no picture of its time."""
    trace = Trace.of(OVERLAPPED, {})
    both, machine = still(trace, ["machine", "timeline"]), still(trace, ["machine"])
    assert both.about["height"] > machine.about["height"]
    assert "SSD and copies overlap" in both.about["alt"]


def test_a_trace_of_neither_load_nor_request_says_to_stream_a_prompt() -> None:
    """Catches an empty picture for who has run no engine."""
    with pytest.raises(MinillmError, match="stream a prompt first"):
        drawn([Event("span", "sample", "decode", "cpu", 0.0, 1.0)])


# -- what runs at one time -------------------------------------------------------------------------


def test_every_byte_of_reads_at_one_time_is_told_and_their_time_once() -> None:
    """Catches a load of 32 MiB that says 8, for the other reads lie within the longest one."""
    reads = [read(0, 1.0), read(0.1, 0.2), read(0.1, 0.3), read(0.5, 0.2)]
    chart = drawn([*reads, copy(1.0, 0.5)])
    assert "32.0 MiB → DRAM 1 s, up to 3 reads at a time" in words(chart)
    assert "32.0 MiB → DRAM 1 s" in words(drawn([*reads, copy(1.0, 0.5), *request()]))


def test_what_runs_at_one_time_stands_one_below_the_other() -> None:
    """Catches blocks that hide each other, and lines for what only touches."""
    reads = [read(0, 1.0), read(0.1, 0.2), read(0.3, 0.3), read(1.0, 0.2)]
    assert [[e.start for e in line] for line in at_once(reads)] == [[0, 1.0], [0.1, 0.3]]
    row = charts.timeline(Trace.of(reads, {})).axes[0].collections
    heights = {round(p.get_extents().height, 3) for bars in row for p in bars.get_paths()}
    assert heights == {0.23}


def test_a_layer_inside_its_step_is_part_of_it() -> None:
    """Catches a step and its layers told beside each other, as threads are."""
    step = Event("span", "decode step", "model", "compute", 0, 1.0)
    layer = Event("span", "attention", "model", "compute", 0.2, 0.3)
    assert "attention" not in drawn([*request(2), step._replace(start=6, token=2, request=0),
                                     layer._replace(start=6.2, token=2, request=0)]
                                    ).alt.split("enlarged")[0]  # fmt: skip


# -- weights that come in for a token --------------------------------------------------------------


def test_weights_streamed_for_a_token_belong_to_it_and_not_to_the_load() -> None:
    """Catches layers that cross the link for every token, drawn as "weights in, once"."""
    trace = Trace.of([*OVERLAPPED, *request(streams=3)], {})
    window = loading.load(trace)
    assert window.stop < 5 and sum(e.nbytes for e in window.events if e.target == "hbm") == 80 * MIB
    pieces = facts.tokens(facts.request(trace))
    close = facts.own(2, pieces[2])
    moved = [e for e in close.events if e.label == "weights"]
    assert len(moved) == 3 and all(e.token == 2 for e in moved)
    said = words(charts.timeline(trace))
    assert "30.0 MiB → HBM" in said and "6.0 MiB → HBM" in said
    assert "the load\n" in said and "weights in, once" not in said
    assert "weights in, once" in words(drawn([*OVERLAPPED, *request()]))


def test_streamed_weights_are_told_by_their_bytes_and_small_copies_by_their_number() -> None:
    """Catches "744 × 115 MiB", which is a product nobody moved."""
    logits = [Event("transfer", "logits", "decode", "copy", t, 0.1, 9, "hbm", "dram", "logits")
              for t in (7, 8)]  # fmt: skip
    full = told([copy(0, 1.0, 2), copy(2, 1.0, 2), *logits])[0]
    assert full == "4.0 MiB → HBM 2 s, 2 × logits → DRAM 200 ms"


def test_a_layer_sent_for_ahead_of_the_first_token_is_no_load() -> None:
    """Catches a panel "the load" of one layer, in a view of a request alone."""
    trace = Trace.of([copy(4.99, 5e-3, 2), *request(streams=3)], {})
    assert loading.load(trace) is None
    assert len(charts.timeline(trace).axes) == 2


def test_waiting_for_weights_is_no_work() -> None:
    """Catches a CPU that looks busy while it waits for the link."""
    waits = [e for e in token(1, 0.0, streams=4) if e.resource == "cpu"]
    assert told(waits)[-1] == "2 ms + 2 ms waiting"
    chart = drawn(request(streams=4))
    pale = to_hex(INK["idle"].colour)
    faces = [to_hex(bars.get_facecolor()[0]) for bars in chart.axes[-1].collections]
    assert pale in faces
    assert not meaning.ink(waits[0]) == "idle"


# -- a token's own time ----------------------------------------------------------------------------


@pytest.mark.parametrize("pause", [0.0, 0.05])
def test_a_token_takes_the_engines_own_time_whatever_the_caller_does(pause: float) -> None:
    """Catches a title that calls a sleep of the reader the engine's."""
    chart = drawn(request(pause=pause))
    assert chart.finding == "The first token comes after 10 ms, each later one takes 10 ms"


def test_the_enlarged_token_begins_with_its_first_event_and_ends_with_its_last() -> None:
    """Catches an enlarged token of which nine tenths are white."""
    chart = drawn(request(pause=0.09))
    close = chart.axes[-1]
    assert close.get_xlim() == pytest.approx((0, 10))  # ms
    assert "▼ token 2, enlarged" in words(chart)


# -- where the numbers come from -------------------------------------------------------------------


def test_the_line_below_a_title_tells_all_that_occurs() -> None:
    """Catches "measured" above links that are emulated and bytes that are predicted."""
    trace = Trace.of([*OVERLAPPED, *request()], {"model": "town", "device": "cpu"})
    line = "measured, emulated · town · cpu · HBM emulated in DRAM"
    assert facts.provenance(trace) == line and line in words(charts.timeline(trace))
    assert facts.provenance(trace, read=True).startswith("measured, emulated, predicted · ")
    assert "measured, emulated, predicted · " in charts.machine(trace).svg
    assert "measured, emulated, predicted · " in words(charts.ladder(trace))


def test_a_scale_model_is_named_with_its_pace() -> None:
    """Catches a slowed link that looks like this machine's."""
    scale = {"of": "H100", "slower": 94.4, "hbm_bandwidth": 3e10}
    slowed = [e._replace(how="emulated") for e in OVERLAPPED]
    line = "emulated · scale model of H100, 94 × slower · cpu"
    assert line in words(drawn(slowed, scale_model=scale, device="cpu"))


@pytest.mark.parametrize("events", [
    IN_TURNS, WARM, [*OVERLAPPED, *request(streams=3)], [read(0.01 * i, 1.0) for i in range(40)],
])  # fmt: skip
def test_all_words_stay_inside_the_picture(events: list[Event]) -> None:
    """Catches a sentence above a row that runs into the next panel."""
    chart = drawn(events, model="town", scale_model={"of": "H100, 4 drives", "slower": 94.4})
    renderer = FigureCanvasAgg(chart).get_renderer()
    box, (wide, high) = chart.get_tightbbox(renderer), chart.get_size_inches()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= wide and box.y1 <= high, box
    starts = sorted(ax.get_window_extent().x0 for ax in chart.axes)
    for ax in chart.axes:
        for text in ax.texts:
            box = text.get_window_extent(renderer)
            assert not [x for x in starts if box.x0 + 1 < x < box.x1], text.get_text()
