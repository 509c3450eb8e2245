"""What is recorded, saved and read back."""

import json
import sys
import threading

import pytest
from conftest import moving

from minillm.errors import MinillmError
from minillm.trace import RESOURCES, Event, Trace


class Clock:
    """A clock that moves only when told, so that every time in a test is exact."""

    def __init__(self):
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock():
    return Clock()


def span(start, seconds, stage="model", nbytes=0, resource="compute", name="step"):
    return Event("span", name, stage, resource, start, seconds, nbytes)


def example(clock) -> Trace:
    trace = Trace(clock)
    trace.meta = {"model": "data/town", "text": "Zoë's 4713 🔑", "layers": [1, 2], "device": None}
    trace.count("hbm", "weights", 8)
    with trace.at(request=3, token=0), trace.span("step", stage="model", resource="compute"):
        clock.time += 0.1
        with moving(trace, "logits", stage="decode", source="hbm", target="dram", nbytes=7,
                          label="logits", how="emulated", detail="a\nb"):  # fmt: skip
            clock.time += 1 / 3
        clock.time += 1e-9
    trace.transfer("read", stage="load", source="ssd", target="dram", nbytes=2**40, start=1e-7,
                   seconds=123.456789012345)  # fmt: skip
    trace.count("hbm", "weights", 0)
    return trace


def test_a_span_is_timed_from_its_beginning_to_its_end(clock):
    """Catches times of the wrong origin, and bytes known only at the end that get lost."""
    trace = Trace(clock)
    clock.time += 2.0
    with trace.span("tokenize", stage="tokens", resource="cpu", label="ids") as running:
        clock.time += 0.5
        running.nbytes = 24
    event = Event("span", "tokenize", "tokens", "cpu", 2.0, 0.5, nbytes=24, label="ids")
    assert trace.events == (event,) and event.end == 2.5


def test_a_span_that_fails_is_recorded_too(clock):
    """Catches a trace that ends, just where it would show what went wrong."""
    trace = Trace(clock)
    with pytest.raises(KeyError), trace.span("step", stage="model", resource="compute"):
        raise KeyError
    assert trace.select(name="step")


def test_events_come_in_the_order_in_which_they_end(clock):
    """Catches an outer span listed before what happened inside it."""
    assert [e.name for e in example(clock).events] == ["hbm", "logits", "step", "read", "hbm"]


def test_a_transfer_keeps_busy_the_slower_end():
    """Catches reads from SSD drawn on the track of the copies in memory."""
    trace = Trace()
    for source, target in (("ssd", "dram"), ("dram", "hbm"), ("dram", "ssd")):
        trace.transfer("t", stage="load", source=source, target=target, nbytes=1, start=0.0,
                       seconds=0.0)  # fmt: skip
    assert [e.resource for e in trace.events] == ["ssd", "copy", "ssd"]


def test_at_stamps_what_is_recorded_inside_and_nests():
    """Catches a token number that sticks to later events, or hides the request."""
    trace = Trace()

    def step(**stamp):
        with trace.span("s", stage="model", resource="compute", **stamp):
            pass

    with trace.at(request=7):
        with trace.at(token=1):
            step()
            step(token=9)
        step()
    step()
    assert [(e.request, e.token) for e in trace.events] == [(7, 1), (7, 9), (7, None), (None, None)]


def test_a_step_a_model_and_a_stamp_of_before_can_be_put_on_events():
    """Catches work of another thread, or recorded later, that is billed to what is on now."""
    trace = Trace()
    with trace.at(step=4, model="draft"), trace.at(request=2):
        stamp = trace.at.stamp
        trace.count("hbm", "kv", 1)
    with trace.at(step=5, token=9):
        with trace.at(stamp):
            trace.count("hbm", "kv", 2)
        trace.count("hbm", "kv", 3)
    said = [(e.step, e.token, e.request, e.model) for e in trace.events]
    assert said == [(4, None, 2, "draft")] * 2 + [(5, 9, None, "")]


def test_a_recorder_writes_what_a_span_and_a_transfer_write(clock):
    """Catches two ways to record that drift apart: a field left out, another stamp or link."""
    trace, told = Trace(clock), []
    layer = {"stage": "model", "resource": "compute", "bytes_how": "predicted"}
    copy = {"stage": "tokens", "source": "dram", "target": "hbm", "label": "ids"}
    quick = trace.recorder("span", "ffn", detail="layer 0", **layer)
    moved = trace.recorder("transfer", "copy", how="emulated", **copy)
    leave = trace.subscribe(told.append)
    with trace.at(step=3, request=1, model="town"):
        quick(0.0, 0.5, 8, token=2)
        moved(0.0, 0.5, 8)
        with trace.span("ffn", nbytes=8, detail="layer 0", token=2, **layer):
            clock.time += 0.5
        trace.transfer("copy", start=0.0, seconds=0.5, nbytes=8, how="emulated", **copy)
        quick(1.0, 0.5, detail="layer 1")
    leave()
    a, b, c, d, e = trace.events
    assert (a, b) == (c, d) and told == [a, b, c, d, e]
    assert (a.step, a.token, a.request, a.model, a.bytes_how) == (3, 2, 1, "town", "predicted")
    assert (b.link, b.resource, b.how) == ("pcie", "copy", "emulated")
    assert (e.nbytes, e.detail, e.token) == (0, "layer 1", None)


def test_what_is_wrong_with_a_recorder_shows_when_it_is_made():
    """Catches a stage misspelt that comes out in a file nobody can read back."""
    trace = Trace()
    for wrong in ({"stage": "modle", "resource": "cpu"}, {"stage": "model", "resource": "gpu"},
                  {"stage": "model", "resource": "gpu:1"}):  # fmt: skip
        with pytest.raises(AssertionError):
            trace.recorder("span", "step", **wrong)
        with pytest.raises(AssertionError), trace.span("step", **wrong):
            pass


def test_each_transfer_knows_its_link():
    """Catches charts that guess a link from words in a name."""
    trace, ways = Trace(), {("ssd", "dram"): ("nvme", "ssd"), ("hbm:1", "cpu"): ("pcie", "copy"),
                            ("hbm", "hbm:1"): ("nvlink", "network"), ("hbm", "hbm"): ("", "copy"),
                            ("cpu", "dram"): ("", "copy")}  # fmt: skip
    for source, target in ways:
        trace.transfer("t", stage="load", source=source, target=target, nbytes=1, start=0.0,
                       seconds=0.0)  # fmt: skip
    assert [(e.link, e.resource) for e in trace.events] == list(ways.values())
    trace.transfer("t", stage="parallel", source="hbm", target="hbm:9", nbytes=1, start=0.0,
                   seconds=0.0, link="infiniband")  # fmt: skip
    assert (trace.events[-1].link, trace.events[-1].resource) == ("infiniband", "network")


def test_at_does_not_stamp_the_events_of_another_thread():
    """Catches a background read of weights being billed to the token that is computed beside it."""
    trace = Trace()
    with trace.at(token=5):
        other = threading.Thread(target=trace.count, args=("hbm", "kv", 1))
        other.start()
        other.join()
    assert trace.events[0].token is None


def test_no_event_of_many_threads_is_lost():
    """Catches an append that races with a reader who turns the rows into events."""
    trace, told = Trace(), []
    trace.subscribe(told.append)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def work(number):
        with trace.at(request=number):
            for token in range(200):
                with trace.span("s", stage="model", resource="compute", token=token):
                    pass
                if token % 10 == 0:
                    trace.select(request=number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(before)
    wanted = [(request, token) for request in range(8) for token in range(200)]
    assert sorted((e.request, e.token) for e in trace.events) == wanted
    assert sorted((e.request, e.token) for e in told) == wanted


def test_what_is_worked_out_later_stands_where_it_was_recorded(clock):
    """Catches events of a pass that come after those of the next, twice, or after a clear."""
    trace, made = Trace(clock), []

    def rows():
        made.append(1)
        return [("span", name, "model", "compute", 1.0, 2.0) for name in ("attention", "ffn")]

    def record(name: str) -> None:
        with trace.span(name, stage="decode", resource="cpu"):
            pass

    record("before"), trace.record_later(rows), record("after")
    assert not made, "it costs something at once"
    names = ["before", "attention", "ffn", "after"]
    assert [e.name for e in trace.events] == names == [e.name for e in trace.events]
    trace.record_later(rows)
    assert [e.name for e in trace.events] == [*names, "attention", "ffn"] and len(made) == 2
    heard = []
    trace.subscribe(heard.append)
    trace.record_later(rows)
    assert [e.name for e in heard] == ["attention", "ffn"] and heard[0].end == 3.0
    trace.clear()
    record("anew")
    assert [e.name for e in trace.events] == ["anew"]


def test_subscribers_hear_every_event_until_they_leave():
    """Catches a live chart that goes on drawing a run that is over."""
    trace, told = Trace(), []
    leave = trace.subscribe(told.append)
    trace.count("hbm", "kv", 1)
    leave()
    leave()  # twice does no harm
    trace.count("hbm", "kv", 2)
    assert told == list(trace.events[:1])


def test_a_subscriber_that_fails_does_not_stop_the_engine():
    """Catches a broken chart that ends a generation."""
    trace, told = Trace(), []
    trace.subscribe(lambda event: 1 / 0)
    trace.subscribe(told.append)
    with pytest.warns(UserWarning, match="ZeroDivisionError"):
        trace.count("hbm", "kv", 1)
    trace.count("hbm", "kv", 2)
    assert len(told) == 2


def test_clear_begins_again_and_still_knows_what_memory_holds(clock):
    """Catches a memory chart of the second request that starts at zero bytes."""
    trace = Trace(clock)
    trace.count("hbm", "weights", 8)
    trace.count("hbm", "kv", 4)
    trace.count("hbm", "kv", 0)
    clock.time += 5.0
    trace.clear()
    assert trace.events == (Event("counter", "hbm", "", "", 0.0, 0.0, 8, label="weights"),)


def test_a_count_made_while_another_thread_clears_is_not_lost(clock):
    """Catches a memory chart that shows pages for ever which were given back long ago."""
    trace = Trace(clock)
    trace.count("hbm", "kv", 4)

    def late() -> float:  # clear asks for the time when it has seen what is held
        trace.clock = clock
        trace.count("hbm", "kv", 0)
        return clock()

    trace.clock = late
    trace.clear()
    assert [e.nbytes for e in trace.events] == [4, 0]
    assert all(type(event) is Event for event in trace.events)


def test_a_span_that_saw_a_clear_is_no_shorter_than_nothing(clock):
    """Catches negative seconds, which no viewer draws."""
    trace = Trace(clock)
    clock.time += 5.0
    with trace.span("step", stage="model", resource="compute"):
        clock.time += 1.0
        trace.clear()
        clock.time += 0.25
    assert [(e.start, e.seconds) for e in trace.events] == [(0.25, 0.0)]


def test_two_models_on_one_machine_keep_their_facts():
    """Catches a draft whose bytes and dtype are told as those of the model that it drafts for."""
    trace = Trace()
    trace.describe_model("town", dtype="bfloat16", weight_bytes=12)
    trace.describe_model("town-draft", dtype="float32", weight_bytes=3)
    assert trace.meta["model"] == "town" and trace.meta["weight_bytes"] == 12
    assert trace.meta["models"]["town-draft"] == {"dtype": "float32", "weight_bytes": 3}
    trace.close_model("town")
    assert trace.meta["model"] == "town"  # the run that was is still its
    trace.describe_model("smol", dtype="float32", weight_bytes=7)
    assert (trace.meta["model"], trace.meta["weight_bytes"]) == ("smol", 7)
    trace.describe_model("smol", dtype="int8", weight_bytes=4)  # loaded again
    assert trace.meta["dtype"] == "int8" and set(trace.meta["models"]) == {
        "town", "town-draft", "smol"}  # fmt: skip


def of_rank(rank: int, began: float, wall: float) -> Trace:
    """A step, what it sends on, and its memory; began and wall: two clocks at its second zero."""
    clock = Clock()
    clock.time = began
    trace = Trace(clock)
    trace.wall = wall
    trace.meta = {"model": "town", "host": f"node{rank // 2}", "capacity": {"hbm": 10 + rank}}
    trace.count("hbm", "weights", 8 + rank)
    with trace.at(step=2), trace.span("decode step", stage="model", resource="compute"):
        clock.time += 0.25
        ends = {"source": "hbm", "target": f"hbm:{1 - rank % 2}"}
        with moving(trace, "all-reduce", stage="parallel", nbytes=64, label="activations", **ends):
            clock.time += 0.25
    return trace


def test_traces_of_ranks_merge_on_one_clock(tmp_path):
    """Catches ranks that all begin at zero, and eight GPUs told as one."""
    traces = {1: of_rank(1, 100.5, 1000.5), 0: of_rank(0, 100.0, 1000.0)}
    merged = Trace.merge(traces)
    assert merged.events == Trace.merge([traces[0], traces[1]]).events
    steps = {e.rank: e for e in merged.select(name="decode step")}
    assert {r: (e.start, e.resource, e.step) for r, e in steps.items()} == {
        0: (0.0, "compute", 2), 1: (0.5, "compute:1", 2)}  # fmt: skip
    sums = merged.select(name="all-reduce")
    assert [(e.source, e.target, e.resource) for e in sums] == [
        ("hbm", "hbm:1", "network"), ("hbm:1", "hbm", "network:1")]  # fmt: skip
    assert [(e.name, e.nbytes) for e in merged.select(kind="counter")] == [("hbm", 8), ("hbm:1", 9)]
    assert [e.end for e in merged.events] == sorted(e.end for e in merged.events)
    assert merged.meta == {"model": "town", "host": "node0", "capacity": {"hbm": 10, "hbm:1": 11}}
    assert (merged.origin, merged.wall) == (100.0, 1000.0)
    merged.save(tmp_path / "run.json")
    again = Trace.load(tmp_path / "run.json")
    assert again.events == merged.events and again.meta == merged.meta
    assert (again.origin, again.wall) == (100.0, 1000.0)
    rows = json.loads((tmp_path / "run.json").read_text())["traceEvents"]
    assert [r["args"]["name"] for r in rows if r["name"] == "process_name"] == [
        "minillm rank 0", "minillm rank 1"]  # fmt: skip
    assert {(r["pid"], r["name"]) for r in rows if r["ph"] == "C"} == {(1, "hbm"), (2, "hbm:1")}


def test_clocks_of_two_hosts_meet_on_the_wall():
    """Catches a rank set hours off, since its host was started at another time."""
    far = [of_rank(0, 100.0, 1000.0), of_rank(2, 7000.0, 1002.0)]
    steps = Trace.merge(far).select(name="decode step")
    assert [e.start for e in steps] == [0.0, 2.0]
    assert Trace.merge(far).meta["ranks"]["1"] == {"host": "node1"}


def test_a_saved_trace_loads_equal(clock, tmp_path):
    """Catches microseconds rounded, None turned into text, an order that changed."""
    trace = example(clock)
    trace.save(tmp_path / "run.json")
    again = Trace.load(tmp_path / "run.json")
    assert again.events == trace.events and again.meta == trace.meta
    assert (again.origin, again.wall) == (trace.origin, trace.wall)
    again.count("hbm", "kv", 3)  # and one can go on with it
    assert len(again.events) == len(trace.events) + 1


def viewer(path) -> tuple[dict, list, dict]:
    """What Perfetto makes of a file: names by track, slices, counters.

    It takes rows by time, those of one time as they stand in the file, and drops a slice that
    reaches beyond the end of one that is still open on its track.
    """
    rows = json.loads(path.read_text())["traceEvents"]
    names = {r["tid"]: r["args"]["name"] for r in rows if r["name"] == "thread_name"}
    slices, open_until = [], {}
    for row in sorted((r for r in rows if r["ph"] == "X"), key=lambda r: r["ts"]):
        track, begin, end = names[row["tid"]], row["ts"], row["ts"] + row["dur"]
        ends = [until for until in open_until.get(track, []) if until > begin]
        if all(end <= until for until in ends):
            open_until[track] = [*ends, end]
            slices.append((track, begin, row["dur"], row["name"]))
    curves = {}
    for row in rows:
        if row["ph"] == "C":
            for label, value in row["args"].items():
                curves.setdefault((row["name"], label), []).append((row["ts"], value))
    return names, slices, curves


def test_a_saved_trace_is_a_chrome_trace_with_a_track_a_resource(clock, tmp_path):
    """Catches a file that Perfetto opens empty: seconds for microseconds, unnamed tracks."""
    example(clock).save(tmp_path / "run.json")
    names, slices, curves = viewer(tmp_path / "run.json")
    assert set(names.values()) <= set(RESOURCES) and [names[t] for t in sorted(names)] == [
        "ssd", "copy", "compute"]  # fmt: skip
    assert ("ssd", 0.125, 123456789.0, "read") in slices  # in eighths of a microsecond
    assert curves[("hbm", "weights")][0] == (0.0, 8) and curves[("hbm", "weights")][-1][1] == 0


def test_slices_of_one_track_nest_or_lie_apart(tmp_path):
    """Catches what Perfetto drops: a slice that straddles the end of another on its track."""
    trace = Trace()
    times = [(0, 10), (0, 10), (5, 10), (6, 2), (6, 2), (10, 1), (0.3, 0.1 + 0.2), (0.6, 0.1)]
    times += [(1 / 3, 1e-8), (1 / 3 + 1e-8, 1 / 7)]
    for start, seconds in times:
        trace.transfer("t", stage="load", source="ssd", target="dram", nbytes=1, start=start,
                       seconds=seconds)  # fmt: skip
    trace.save(tmp_path / "run.json")
    names, slices, _ = viewer(tmp_path / "run.json")
    assert sorted(names.values()) == ["ssd", "ssd (2)"] and len(slices) == len(times)


def test_a_step_is_drawn_above_the_layer_that_began_with_it(clock, tmp_path):
    """Catches rows in the order in which they ended: the viewer would drop the outer ones."""
    trace = Trace(clock)
    with trace.span("step", stage="model", resource="compute"):
        with trace.span("layer", stage="model", resource="compute"):
            clock.time += 1.0
        clock.time += 1.0
    trace.save(tmp_path / "run.json")
    _, slices, _ = viewer(tmp_path / "run.json")
    assert [name for *_, name in slices] == ["step", "layer"]
    assert [e.name for e in Trace.load(tmp_path / "run.json").events] == ["layer", "step"]


def row(**changes):
    event = {"kind": "span", "name": "s", "stage": "model", "resource": "cpu", "start": 0.0,
             "seconds": 1.0}  # fmt: skip
    event = {k: v for k, v in (event | changes).items() if v != "left out"}
    return {"ph": "X", "name": "s", "ts": 0, "dur": 1, "pid": 1, "tid": 1, "order": 0,
            "args": event}  # fmt: skip


def saved(rows, meta=None, form="minillm trace 2", zero=(0, 0)):
    other = {"format": form, "zero": zero, "meta": {} if meta is None else meta}
    return json.dumps({"otherData": other, "traceEvents": rows})


@pytest.mark.parametrize("content, named", [
    (None, "No such file"), ("", "cannot be read"), ("{", "cannot be read"), ("[]", "otherData"),
    ("null", "otherData"), ('{"traceEvents": []}', "otherData"), ("[" * 100_000, "cannot be read"),
    (saved([], form="minillm trace 9"), "otherData"), (saved({}), "traceEvents"),
    (saved([], meta=[]), "meta"), (saved([], zero=[1, "2"]), "zero"), (saved([], zero=3), "zero"),
    (saved([row(resource="compute:x")]), "resource"), (saved([row(rank="1")]), "rank"),
    (saved([row(), 3]), "row 1"), (saved([{"ph": "B"}]), "row 0"),
    (saved([row(start="0")]), "start"), (saved([row(seconds=float("nan"))]), "seconds"),
    (saved([row(kind="sapn")]), "kind"), (saved([row(nbytes=1.5)]), "nbytes"),
    (saved([row(nbytes=None)]), "nbytes"), (saved([row(token=True)]), "token"),
    (saved([row(stage="modle")]), "stage"), (saved([row(colour="red")]), "colour"),
    (saved([row(resource="left out")]), "resource"), (saved([row(name=3)]), "name"),
    (saved([row(how=["measured"])]), "how"), (saved([row() | {"args": [1]}]), "row 0"),
    (saved([row() | {"ph": [1]}]), "row 0"), (saved([row() | {"order": "1"}]), "order"),
    (saved([row(), row()]), "before"), (saved([row(start=10**30)]), "start"),
    (saved([row(kind="counter")]), "a counter"), (saved([row(stage="")]), "stage ''"),
])  # fmt: skip
def test_a_file_that_is_no_trace_is_refused_by_what_is_wrong(tmp_path, content, named):
    """Catches a chart that fails an hour later on a field that is not what it should be."""
    path = tmp_path / "bad.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(MinillmError, match=named) as caught:
        Trace.load(path)
    assert "bad.json" in str(caught.value)


def test_meta_that_json_cannot_hold_is_refused_before_a_file_is_written(tmp_path):
    """Catches half a file left behind, and NaN, which no other reader takes."""
    for value in (object(), float("nan")):
        trace = Trace()
        trace.meta["value"] = value
        with pytest.raises(MinillmError, match="meta"):
            trace.save(tmp_path / "run.json")
    assert not list(tmp_path.iterdir())
    with pytest.raises(MinillmError, match="no_such"):
        Trace().save(tmp_path / "no_such" / "run.json")
