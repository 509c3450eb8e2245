"""The machine: laws of its geometry, and a still whose numbers are the trace's own."""

from __future__ import annotations

import json
import shutil
import subprocess
from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from test_charts_live import browser_data

from minillm.charts import bundle
from minillm.charts.machine_pen import scale
from minillm.charts.machine_view import crossed, layout, machine, peaks, plan
from minillm.charts.style import INK, amount, times
from minillm.errors import MinillmError
from minillm.trace import Trace
from minillm.trace.event import Event

MIB = 2**20
SHAPES = [(gpus, nodes, narrow) for gpus in range(1, 9) for nodes in (1, 2) if gpus >= nodes
          for narrow in (False, True)]  # fmt: skip
COPY, READ = 1e-3, 2e-3  # seconds of a copy of one MiB, of a pass through the model


def unit(kind: str, rank: int) -> str:
    return f"{kind}:{rank}" if rank else kind


def make_run(gpus: int = 1, nodes: int = 1, tokens: int = 5) -> Trace:
    """Weights come in over SSD and DRAM to each rank; each token reads them, and the ranks talk."""
    events, t = [], 0.0
    for rank in range(gpus):
        dram, hbm = unit("dram", rank), unit("hbm", rank)
        events.append(Event("counter", dram, "", "", t, 0.0, 2 * MIB, label="staging"))
        events.append(Event("counter", hbm, "", "", t, 0.0, 6 * MIB, label="weights"))
        for _ in range(6):
            events.append(Event("transfer", "read", "load", "ssd", t, COPY, MIB, "ssd", dram,
                                "weights"))  # fmt: skip
            events.append(Event("transfer", "copy", "load", unit("copy", rank), t + COPY, COPY / 4,
                                MIB, dram, hbm, "weights", how="emulated"))  # fmt: skip
            t += 2 * COPY
        events.append(Event("counter", dram, "", "", t, 0.0, 0, label="staging"))
        events.append(Event("counter", hbm, "", "", t, 0.0, MIB // 4, label="kv"))
    events.append(Event("span", "tokenize", "tokens", "cpu", t, 1e-4, 5, label="text", token=0,
                        request=0, detail="Mia?"))  # fmt: skip
    for token in range(tokens):
        more = {"token": token, "request": 0}
        for rank in range(gpus):
            work = {"bytes_how": "predicted", "nbytes": 6 * MIB}
            events.append(Event("span", "decode step", "model", unit("compute", rank), t, READ,
                                **work, **more))  # fmt: skip
            events.append(Event("span", "ffn", "model", unit("compute", rank), t, READ / 2, 9,
                                **more))  # fmt: skip
            other = (rank + gpus // nodes) % gpus if nodes > 1 else (rank + 1) % gpus
            if gpus > 1:
                kind = "infiniband" if nodes > 1 else "nvlink"
                events.append(Event("transfer", "all-reduce", "parallel", unit("network", rank), t,
                                    COPY, 64, unit("hbm", rank), unit("hbm", other), "activations",
                                    link=kind, **more))  # fmt: skip
        t += READ
        events.append(Event("transfer", "logits", "decode", "copy", t, 1e-5, 1024, "hbm", "dram",
                            "logits", how="emulated", **more))  # fmt: skip
        events.append(Event("span", "detokenize", "decode", "cpu", t, 1e-5, 4, label="text",
                            detail=f" w{token}", **more))  # fmt: skip
        t += 1e-4
    capacity = {"ssd": 2**40, "dram": 2**34, "hbm": 32 * MIB}
    meta = {"device": "cpu", "capacity": capacity, "weight_bytes": 6 * MIB * gpus, "gpus": gpus,
            "nodes": nodes, "ceilings": {"ssd": 2e9, "copy": 1e10, "hbm": 4e10}}  # fmt: skip
    return Trace.of(events, meta)


def inside(inner: dict, outer: tuple[float, float, float, float]) -> bool:
    x, y, w, h = outer
    return (x <= inner["x"] and y <= inner["y"] and inner["x"] + inner["w"] <= x + w
            and inner["y"] + inner["h"] <= y + h)  # fmt: skip


def on_edge(point: list[float], box: dict) -> bool:
    x, y = point[0] - box["x"], point[1] - box["y"]
    along_x, along_y = -1e-6 <= x <= box["w"] + 1e-6, -1e-6 <= y <= box["h"] + 1e-6
    beside = min(abs(x), abs(x - box["w"])) < 1e-6 and along_y
    return beside or (min(abs(y), abs(y - box["h"])) < 1e-6 and along_x)


@pytest.mark.parametrize(("gpus", "nodes", "narrow"), SHAPES)
def test_boxes_lie_inside_the_sheet_and_apart(gpus: int, nodes: int, narrow: bool) -> None:
    """Catches an eighth GPU that runs off the sheet, or a NIC on top of the CPU."""
    sheet = layout(gpus, nodes, narrow)
    top = max(stage["y"] + stage["h"] for stage in sheet["stages"])
    page = (0, top, sheet["width"], sheet["text"][1] - 14 - top)
    card = dict(zip("xywh", sheet["card"], strict=True))
    boxes = [*sheet["boxes"].values(), card]
    for box in boxes:
        assert inside(box, page), box
        assert "tank" not in box or inside(dict(zip("xywh", box["tank"], strict=True)), (
            box["x"], box["y"], box["w"], box["h"]))  # fmt: skip
    for a, b in combinations(boxes, 2):
        apart = (a["x"] + a["w"] < b["x"] or b["x"] + b["w"] < a["x"]
                 or a["y"] + a["h"] < b["y"] or b["y"] + b["h"] < a["y"])  # fmt: skip
        assert apart, (a, b)
    json.dumps(sheet)  # it travels to the page


@pytest.mark.parametrize(("gpus", "nodes", "narrow"), SHAPES)
def test_links_go_from_edge_to_edge_and_through_no_box(
    gpus: int, nodes: int, narrow: bool
) -> None:
    """Catches a pipe that ends in the air, and one that crosses a box it has nothing to do with."""
    sheet = layout(gpus, nodes, narrow)
    for name, link in sheet["links"].items():
        ends = [sheet["boxes"][link[end]] for end in ("from", "to")]
        assert on_edge(link["points"][0], ends[0]) and on_edge(link["points"][-1], ends[1]), name
        for (x0, y0), (x1, y1) in zip(link["points"], link["points"][1:], strict=False):
            assert x0 == x1 or y0 == y1, name
            for box in sheet["boxes"].values():
                hit = (min(x0, x1) < box["x"] + box["w"] - 1e-6 and max(x0, x1) > box["x"] + 1e-6
                       and min(y0, y1) < box["y"] + box["h"] - 1e-6
                       and max(y0, y1) > box["y"] + 1e-6)  # fmt: skip
                assert not hit, (name, box["title"])


@pytest.mark.parametrize(("gpus", "nodes", "narrow"), SHAPES)
def test_a_machine_has_the_parts_of_its_run_and_no_others(
    gpus: int, nodes: int, narrow: bool
) -> None:
    """Catches NVLink on a machine with one GPU, and InfiniBand inside a node."""
    kinds = [box["kind"] for box in layout(gpus, nodes, narrow)["boxes"].values()]
    links = {link["kind"] for link in layout(gpus, nodes, narrow)["links"].values()}
    assert kinds.count("hbm") == kinds.count("compute") == gpus
    assert kinds.count("ssd") == kinds.count("dram") == kinds.count("cpu") == nodes
    assert kinds.count("nic") == (2 if nodes == 2 else 0)
    assert ("infiniband" in links) == (nodes == 2)
    assert ("nvlink" in links) == (gpus > nodes)


@pytest.mark.parametrize(("gpus", "nodes", "narrow"), SHAPES)
def test_every_route_is_a_way_without_a_gap(gpus: int, nodes: int, narrow: bool) -> None:
    """Catches bytes that vanish in one box and come out of another."""
    sheet = layout(gpus, nodes, narrow)
    for ends, steps in sheet["routes"].items():
        at, end = ends.replace("compute", "hbm").split()  # NVLink and HBM are of one GPU
        for step in steps:
            link = sheet["links"][step[1:]]
            begin, then = ("from", "to") if step[0] == "+" else ("to", "from")
            assert link[begin].replace("compute", "hbm") == at, (ends, step)
            at = link[then].replace("compute", "hbm")
        assert at == end, ends
    units = [unit("hbm", rank) for rank in range(gpus)]
    for a, b in combinations(units, 2):
        assert f"{a} {b}" in sheet["routes"]


def test_more_than_one_picture_can_show_is_shown_in_part_and_said() -> None:
    """Catches a rack of GPUs that breaks the live view of a run."""
    sheet = layout(64, 8)
    assert (sheet["gpus"], sheet["nodes"]) == (8, 2)
    assert sheet["note"] == "shown: 8 of 64 GPUs"
    assert sheet["home"]["hbm:8"] == "hbm:8" and sheet["home"]["dram:8"] == "dram@1"
    assert layout(8, 2)["note"] == ""


@pytest.mark.parametrize(("gpus", "nodes"), [(0, 1), (1, 2), (4, 0)])
def test_a_machine_that_cannot_be_is_refused(gpus: int, nodes: int) -> None:
    """Catches a division by no node, and a node without a GPU."""
    with pytest.raises(MinillmError, match="a GPU for each"):
        layout(gpus, nodes)


def test_the_finding_says_what_came_in_and_how_often_it_was_read() -> None:
    """Catches a title whose numbers are not the run's, and inner work counted again."""
    trace = make_run(tokens=5)
    loaded = sum(e.nbytes for e in trace.select(resource="ssd"))
    read = sum(e.nbytes for e in trace.select(name="decode step"))
    assert machine(trace).finding == (
        f"{amount(loaded, 'B')} of weights came in once; compute then read {amount(read, 'B')} "
        f"from HBM, {times(read / loaded)} as much"
    )


def test_what_crossed_a_link_is_the_sum_of_its_transfers() -> None:
    """Catches a rate over the whole run, and a direction that takes the other one's bytes."""
    trace = make_run(tokens=5)
    flows = crossed(trace, plan(trace))
    down, up, read = flows["+pcie"], flows["-pcie"], flows["+read:0"]
    assert (down.nbytes, up.nbytes, read.nbytes) == (6 * MIB, 5 * 1024, 5 * 6 * MIB)
    assert down.rate == pytest.approx(MIB / (COPY / 4)) and up.rate == pytest.approx(1024 / 1e-5)
    assert read.rate == pytest.approx(6 * MIB / READ)
    assert (down.how, read.how, flows["+disk"].how) == ("emulated", "predicted", "measured")


def test_bytes_between_nodes_pass_every_link_on_their_way() -> None:
    """Catches a transfer over InfiniBand that is drawn on NVLink."""
    trace = make_run(gpus=4, nodes=2, tokens=3)
    flows = crossed(trace, plan(trace))
    for step in ("-nic", "+infiniband", "+nic@1"):
        assert flows[step].nbytes == 3 * 2 * 64, step  # ranks 0 and 1 send to node 1
    assert flows["-infiniband"].nbytes == 3 * 2 * 64
    assert not [step for step in flows if "nvlink" in step]
    assert flows["+disk"].nbytes == flows["+disk@1"].nbytes == 2 * 6 * MIB


def test_a_memory_is_drawn_at_its_peak() -> None:
    """Catches a still of the end of the run, when staging has been given back."""
    trace = make_run(gpus=2)
    held = peaks(trace, plan(trace))
    assert held["dram"].levels == {"staging": 2 * MIB}  # one rank after the other
    assert held["hbm:1"].levels == {"weights": 6 * MIB, "kv": MIB // 4}
    assert held["hbm:1"].capacity == 32 * MIB and held["dram"].capacity == 2**34
    assert held["ssd"].levels == {"weights": 12 * MIB}


@pytest.mark.parametrize("peak", [1, 5_000, 2 * MIB, 3 * 2**30])
@pytest.mark.parametrize("capacity", [None, 64 * MIB, 80 * 10**9])
def test_what_a_tank_holds_can_be_seen_and_fits(peak: int, capacity: int | None) -> None:
    """Catches 2 MiB of staging that are no pixel of 24 GiB, and a tank that overflows."""
    if capacity and peak > capacity:
        return
    top, magnified = scale(peak, capacity)
    assert peak <= top and (peak * 8 >= top or top == 8192 or top == 4096)
    assert magnified == (top != capacity)


def still_words(chart) -> list[str]:
    return [text.get_text() for text in chart.findobj(match=lambda a: hasattr(a, "get_text"))]


@pytest.mark.parametrize(("gpus", "nodes"), [(1, 1), (2, 1), (8, 1), (2, 2), (8, 2)])
def test_all_words_of_the_still_stay_inside_it(gpus: int, nodes: int) -> None:
    """Catches a label that runs off the paper on a larger machine."""
    chart = machine(make_run(gpus, nodes))
    drawn = chart.get_tightbbox(FigureCanvasAgg(chart).get_renderer())
    wide, high = chart.get_size_inches()
    assert drawn.x0 >= 0 and drawn.y0 >= 0 and drawn.x1 <= wide and drawn.y1 <= high, drawn


def test_the_still_says_rates_labels_and_the_scale_of_a_magnified_tank() -> None:
    """Catches a number without its label, and a tank that lies about how full it is."""
    chart = machine(make_run())
    words = still_words(chart)
    assert amount(MIB / COPY, "B/s") in words and "measured" in words
    assert {"emulated", "predicted", "emulated in DRAM", "top = 4 MiB"} <= set(words)
    assert "52 % of ceiling" in words  # of the disk's 2 GB/s
    assert chart.finding in chart.alt and "DRAM to HBM" in chart.alt


def test_a_run_without_a_load_or_without_bytes_still_has_a_finding() -> None:
    """Catches a title that needs a load: a trace is often cleared between requests."""
    span = Event("span", "sample", "decode", "cpu", 0.0, 1e-3)
    read = Event("span", "decode step", "model", "compute", 0.0, 1e-3, 4 * MIB)
    none, only = Trace.of([span], {}), Trace.of([span, read], {})
    assert machine(none).finding == "No bytes moved between the memories in this run"
    assert machine(only).finding == "Compute read 4 MiB from HBM at 4.19 GB/s"
    with pytest.raises(MinillmError, match="load an engine"):
        machine(Trace())


def move(token: int | None, mib: int = 9) -> Event:
    return Event("transfer", "copy", "load", "copy", 1.0, 1e-3, mib * MIB, "dram", "hbm", "weights",
                 token=token, request=None if token is None else 0, how="emulated")  # fmt: skip


def test_the_finding_of_streamed_weights_says_for_how_many_tokens_they_crossed() -> None:
    """Catches a run whose link is its whole story and whose title does not name it."""
    run = [*make_run(tokens=3).events, move(None), *(move(k) for k in (0, 0, 1, 2))]
    finding = machine(Trace.of(run, {})).finding
    assert finding == "36 MiB of weights crossed to HBM for 3 tokens"
    assert machine(Trace.of([move(0)], {})).finding.endswith("crossed to HBM for 1 token")


def test_the_finding_of_a_warm_load_says_that_the_ssd_was_not_asked() -> None:
    """Catches a second load that is told as if it had come from the disk."""
    warm = Event("span", "read", "load", "cpu", 1.0, 1e-3, label="weights")
    step = Event("span", "decode step", "model", "compute", 2.0, 1e-3, 27 * MIB, token=0, request=0)
    finding = machine(Trace.of([warm, move(None)], {})).finding
    assert finding == "9 MiB came out of the page cache; the SSD was not asked"
    asked = machine(Trace.of([warm, move(None), step], {})).finding
    assert asked == (
        "9 MiB came out of the page cache; compute then read 27 MiB from HBM, 3.0 × as much"
    )
    cold = Event("transfer", "read", "load", "ssd", 0.0, 1e-3, MIB, "ssd", "dram", "weights")
    assert "page cache" not in machine(Trace.of([cold, warm, move(None)], {})).finding


@pytest.mark.parametrize("busy", [True, False])
def test_compute_is_drawn_pale_while_it_has_nothing_to_do(busy: bool) -> None:
    """Catches a dark grid under the word "idle"."""
    step = Event("span", "decode step", "model", "compute", 2.0, 1e-3, MIB)
    chart = machine(Trace.of([move(None), step] if busy else [move(None)], {"device": "cpu"}))
    faces = [to_hex(patch.get_facecolor()).upper() for patch in chart.axes[0].patches]
    dark, pale = (faces.count(INK[ink].colour) for ink in ("compute", "idle"))
    assert (dark >= 18, pale >= 18) == (busy, not busy)


def test_a_cpu_that_waits_for_weights_is_not_busy() -> None:
    """Catches a wait for the link counted as work."""
    wait = Event("span", "wait for weights", "load", "cpu", 1.0, 5.0, token=0, request=0)
    work = Event("span", "sample", "decode", "cpu", 7.0, 2e-3, token=0, request=0)
    assert "busy 2 ms" in still_words(machine(Trace.of([move(0), wait, work], {})))


def run_node(code: str, data: object, folder: Path) -> object:
    program = shutil.which("node")
    if program is None:
        pytest.skip("needs node (18 or later) to run the views' JavaScript")
    entry = bundle.script("machine_flows.js") + "\n" + code
    (folder / "data.json").write_text(json.dumps(data), encoding="utf-8")
    (folder / "law.mjs").write_text(
        'import { readFileSync } from "fs";\n'
        'const data = JSON.parse(readFileSync("data.json"));\n' + entry, encoding="utf-8",
    )  # fmt: skip
    done = subprocess.run([program, "law.mjs"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("gpus", "nodes"), [(1, 1), (4, 1), (8, 2)])
def test_the_living_picture_and_the_still_see_the_same_flows(
    gpus: int, nodes: int, tmp_path: Path
) -> None:
    """Catches a page whose bytes take another way, or another time, than the paper's."""
    trace = make_run(gpus, nodes)
    sheet = plan(trace)
    said = run_node(
        """
        const run = new Run(data.meta);
        run.append(data.rows);
        const flows = flowsOf(run.between(run.begin, run.end), data.sheet, data.meta);
        const told = [...flows].filter(([step]) => step[0] !== "=");
        const rows = told.map(([step, f]) => [step, f.nbytes, f.rate, f.how, f.ink]);
        console.log(JSON.stringify(rows));
        """,
        browser_data(trace, sheet=sheet), tmp_path,
    )  # fmt: skip
    flows = crossed(trace, sheet)
    assert {step for step, *_ in said} == set(flows)
    for step, nbytes, rate, how, ink in said:
        flow = flows[step]
        assert (nbytes, how, ink) == (flow.nbytes, flow.how, flow.ink), step
        assert rate == pytest.approx(flow.rate, rel=1e-4) and ink in INK, step
