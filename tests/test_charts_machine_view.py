"""The machine: laws of its geometry, and a picture whose numbers are the trace's own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import pytest

from minillm.charts import facts
from minillm.charts.ink import INK, amount, times
from minillm.charts.machine_diagram import Box, State
from minillm.charts.machine_flows import crossed, way
from minillm.charts.machine_frames import LOAD, MOST, MOST_TOKENS, moments
from minillm.charts.machine_memories import Memories, scale
from minillm.charts.machine_places import arrange, plan
from minillm.charts.machine_scene import Scene
from minillm.charts.machine_svg import LOOK, fit, heading, width
from minillm.charts.machine_view import Follower, for_page, machine, still
from minillm.errors import MinillmError
from minillm.trace import Trace
from minillm.trace.event import Event

MIB = 2**20
SHAPES = [(gpus, nodes) for gpus in range(1, 9) for nodes in (1, 2) if gpus >= nodes]
SVG = "{http://www.w3.org/2000/svg}"
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


def apart(a: Box, b: Box) -> bool:
    beside = a.x + a.w < b.x or b.x + b.w < a.x
    return beside or a.y + a.h < b.y or b.y + b.h < a.y


def inside(x: float, y: float, w: float, h: float, box: Box) -> bool:
    return box.x <= x and box.y <= y and x + w <= box.x + box.w and y + h <= box.y + box.h


def on_edge(point: tuple[float, float], box: Box) -> bool:
    x, y = point[0] - box.x, point[1] - box.y
    along_x, along_y = -1e-6 <= x <= box.w + 1e-6, -1e-6 <= y <= box.h + 1e-6
    beside = min(abs(x), abs(x - box.w)) < 1e-6 and along_y
    return beside or (min(abs(y), abs(y - box.h)) < 1e-6 and along_x)


@pytest.mark.parametrize(("gpus", "nodes"), SHAPES)
def test_boxes_lie_inside_the_sheet_and_apart(gpus: int, nodes: int) -> None:
    """Catches an eighth GPU that runs off the sheet, or a NIC on top of the CPU."""
    diagram = arrange(gpus, nodes)
    stages = [looks for name, _, looks in diagram.parts if name.startswith("stage/")]
    line = next(looks for name, _, looks in diagram.parts if name == "line")
    token = next(looks for name, _, looks in diagram.parts if name == "token")
    top, low = max(looks["y"] for looks in stages), line["y"] - 14
    page = Box("page", "", 0, top, 668, low - top)
    card = Box("token", "", token["x"], token["y"], token["width"], token["height"])
    boxes = [*diagram.boxes.values(), card]
    for box in boxes:
        assert inside(box.x, box.y, box.w, box.h, page), box
        assert box.tank is None or inside(*box.tank, box), box
    for a, b in combinations(boxes, 2):
        assert apart(a, b), (a, b)
    assert low + 14 < diagram.high


@pytest.mark.parametrize(("gpus", "nodes"), SHAPES)
def test_links_go_from_edge_to_edge_and_through_no_box(gpus: int, nodes: int) -> None:
    """Catches a pipe that ends in the air, and one that crosses a box it has nothing to do with."""
    diagram = arrange(gpus, nodes)
    for name, link in diagram.links.items():
        touches = link.begin.replace("hbm", "compute") if link.kind == "nvlink" else link.begin
        (x0, y0), (x1, y1) = link.points
        assert on_edge((x0, y0), diagram.boxes[touches]), name
        assert on_edge((x1, y1), diagram.boxes[link.end]), name
        assert x0 == x1 or y0 == y1, name
        for box in diagram.boxes.values():
            hit = (min(x0, x1) < box.x + box.w - 1e-6 and max(x0, x1) > box.x + 1e-6
                   and min(y0, y1) < box.y + box.h - 1e-6
                   and max(y0, y1) > box.y + 1e-6)  # fmt: skip
            assert not hit, (name, box.title)


@pytest.mark.parametrize(("gpus", "nodes"), SHAPES)
def test_a_machine_has_the_parts_of_its_run_and_no_others(gpus: int, nodes: int) -> None:
    """Catches NVLink on a machine with one GPU, and InfiniBand inside a node."""
    diagram = arrange(gpus, nodes)
    kinds = [box.kind for box in diagram.boxes.values()]
    links = {link.kind for link in diagram.links.values()}
    assert kinds.count("hbm") == kinds.count("compute") == gpus
    assert kinds.count("ssd") == kinds.count("dram") == kinds.count("cpu") == nodes
    assert kinds.count("nic") == (2 if nodes == 2 else 0)
    assert ("infiniband" in links) == (nodes == 2)
    assert ("nvlink" in links) == (gpus > nodes)
    names = [name for name, _, _ in diagram.parts]
    assert len(set(names)) == len(names), "two parts of one name"


@pytest.mark.parametrize(("gpus", "nodes"), SHAPES)
def test_every_way_is_without_a_gap(gpus: int, nodes: int) -> None:
    """Catches bytes that vanish in one box and come out of another."""
    diagram = arrange(gpus, nodes)
    memories = [name for name, box in diagram.boxes.items() if box.tank]
    for begin, end in combinations(memories, 2):
        at, steps = begin, diagram.way(begin, end)
        assert steps, (begin, end)
        for step in steps:
            link = diagram.links[step[1:]]
            one, two = (link.begin, link.end) if step[0] == "+" else (link.end, link.begin)
            assert one == at, (begin, end, step)
            at = two
        assert at == end
        back = [("-" if step[0] == "+" else "+") + step[1:] for step in reversed(steps)]
        assert len(diagram.way(end, begin)) == len(back)


def test_a_shared_tier_is_of_the_node_of_the_other_end() -> None:
    """Catches weights of rank 5 that come out of the disk of node 0."""
    diagram = arrange(8, 2)
    read = Event("transfer", "read", "load", "ssd:5", 0, 1, 9, "ssd", "hbm:5")
    assert way(read, diagram) == ["+disk@1", "+pcie@1", "+pcie:5"]
    assert way(read._replace(target="hbm:77"), diagram) == [], "a rank that is not shown"


def test_more_than_one_picture_can_show_is_shown_in_part_and_said() -> None:
    """Catches a rack of GPUs that breaks the live view of a run."""
    diagram = arrange(64, 8)
    assert len([box for box in diagram.boxes.values() if box.kind == "hbm"]) == 8
    notes = [looks["text"] for name, _, looks in diagram.parts if name == "note/2"]
    assert notes == ["shown: 8 of 64 GPUs"]
    assert diagram.home("hbm:8") == "hbm:8" and diagram.home("dram:8") == "dram@1"
    assert not [looks["text"] for name, _, looks in arrange(8, 2).parts
                if name == "note/2" and looks["text"]]  # fmt: skip


@pytest.mark.parametrize(("gpus", "nodes"), [(0, 1), (1, 2), (4, 0)])
def test_a_machine_that_cannot_be_is_refused(gpus: int, nodes: int) -> None:
    """Catches a division by no node, and a node without a GPU."""
    with pytest.raises(MinillmError, match="a GPU for each"):
        arrange(gpus, nodes)


def test_the_finding_says_what_came_in_and_how_often_it_was_read() -> None:
    """Catches a title whose numbers are not the run's, and inner work counted again."""
    trace = make_run(tokens=5)
    loaded = sum(e.nbytes for e in trace.select(resource="ssd"))
    read = sum(e.nbytes for e in trace.select(name="decode step"))
    assert machine(trace).finding == (
        f"{amount(loaded, 'B')} of weights came in once; compute then read {amount(read, 'B')} "
        f"from HBM, {times(read / loaded)} as much"
    )


def flows_of(trace: Trace) -> dict:
    return crossed(facts.work(trace), plan(trace), trace.meta["ceilings"])


def test_what_crossed_a_link_is_the_sum_of_its_transfers() -> None:
    """Catches a rate over the whole run, and a direction that takes the other one's bytes."""
    flows = flows_of(make_run(tokens=5))
    down, up, read = flows["+pcie"], flows["-pcie"], flows["+read:0"]
    assert (down.nbytes, up.nbytes, read.nbytes) == (6 * MIB, 5 * 1024, 5 * 6 * MIB)
    assert down.rate == pytest.approx(MIB / (COPY / 4)) and up.rate == pytest.approx(1024 / 1e-5)
    assert read.rate == pytest.approx(6 * MIB / READ)
    assert (down.how, read.how, flows["+disk"].how) == ("emulated", "predicted", "measured")
    assert (down.ink, up.ink, flows["+disk"].ink, read.ink) == ("hbm", "dram", "ssd", "hbm")


def test_bytes_between_nodes_pass_every_link_on_their_way() -> None:
    """Catches a transfer over InfiniBand that is drawn on NVLink."""
    flows = flows_of(make_run(gpus=4, nodes=2, tokens=3))
    for step in ("-nic:0", "+infiniband", "+nic:1"):
        assert flows[step].nbytes == 3 * 2 * 64, step  # ranks 0 and 1 send to node 1
        assert flows[step].ink == "network"
    assert flows["-infiniband"].nbytes == 3 * 2 * 64
    assert not [step for step in flows if "nvlink" in step]
    assert flows["+disk"].nbytes == flows["+disk@1"].nbytes == 2 * 6 * MIB


def test_a_switch_tells_what_went_through_it_in_all() -> None:
    """Catches bytes that are counted on their way in and again on their way out."""
    flows = flows_of(make_run(gpus=4, tokens=3))
    assert flows["nvlink"].nbytes == 3 * 4 * 64
    assert "NVLink · 768 B" in said(machine(make_run(gpus=4, tokens=3)))


def test_a_memory_is_drawn_at_its_peak() -> None:
    """Catches a still of the end of the run, when staging has been given back."""
    trace = make_run(gpus=2)
    held = Memories(plan(trace), trace.meta)
    for event in trace.events:
        held.take(event)
    assert held.peaks["dram"] == {"staging": 2 * MIB}  # one rank after the other
    assert held.peaks["hbm:1"] == {"weights": 6 * MIB, "kv": MIB // 4}
    assert held.levels["dram"] == {}
    assert held.room("hbm:1") == 32 * MIB and held.room("dram") == 2**34
    assert held.peaks["ssd"] == {"weights": 12 * MIB}


@pytest.mark.parametrize("peak", [1, 5_000, 2 * MIB, 3 * 2**30])
@pytest.mark.parametrize("capacity", [None, 64 * MIB, 80 * 10**9])
def test_what_a_tank_holds_can_be_seen_and_fits(peak: int, capacity: int | None) -> None:
    """Catches 2 MiB of staging that are no pixel of 24 GiB, and a tank that overflows."""
    if capacity and peak > capacity:
        return
    top, magnified = scale(peak, capacity)
    assert peak <= top and (peak * 8 >= top or top == 8192 or top == 4096)
    assert magnified == (top != capacity)


def said(picture) -> list[str]:
    """All words of a still, line by line."""
    root = ElementTree.fromstring(picture.svg)
    return ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]


def test_the_still_says_rates_labels_and_the_scale_of_a_magnified_tank() -> None:
    """Catches a number without its label, and a tank that lies about how full it is."""
    picture = machine(make_run())
    words = said(picture)
    assert amount(MIB / COPY, "B/s") in words and "measured" in words
    assert {"emulated", "predicted", "emulated in DRAM", "top = 4 MiB"} <= set(words)
    assert {"peak 2 MiB", "of 16 GiB", "weights, KV →", "← logits 5 KiB"} <= set(words)
    assert "52 % of ceiling" in words  # of the disk's 2 GB/s
    assert picture.finding in picture.alt and "DRAM to HBM: weights at 4.19 GB/s" in picture.alt


@pytest.mark.parametrize("title", ["a" * 60, "40 × as much " * 20, f"{'w' * 80} {'w' * 80}"])
def test_a_finding_is_never_cut(title: str) -> None:
    """Catches a headline that runs off the right edge."""
    state = heading(title, "a note")
    lines = [(state[part]["text"], state[part]["font-size"]) for part in ("title", "title/2")]
    assert " ".join(line for line, _ in lines if line) == title
    assert all(12 + width(line, size, bold=True) <= 668 for line, size in lines)


@pytest.mark.parametrize("room", [12, 40, 90])
@pytest.mark.parametrize("wordings", [["peak 2.8 of 80 GiB", "2.8 GiB"], ["漢字漢字漢字"], [""]])
def test_words_are_made_to_fit(room: float, wordings: list[str]) -> None:
    """Catches a label that leaves its box, and one that is set larger than it was asked for."""
    words = fit(wordings, room)
    assert width(words["text"], words["font-size"]) <= room + 1 or words["text"] == "…"
    assert words["font-size"] <= 11.5


def test_a_run_without_a_load_or_without_bytes_still_has_a_finding() -> None:
    """Catches a title that needs a load: a trace is often cleared between requests."""
    span = Event("span", "sample", "decode", "cpu", 0.0, 1e-3)
    read = Event("span", "decode step", "model", "compute", 0.0, 1e-3, 4 * MIB)
    none, only = Trace.of([span], {}), Trace.of([span, read], {})
    assert machine(none).finding == "No bytes moved between the memories in this run"
    assert machine(only).finding == "Compute read 4 MiB from HBM at 4.19 GB/s"
    with pytest.raises(MinillmError, match="load an engine"):
        machine(Trace())


def test_the_finding_counts_the_messages_of_all_nodes() -> None:
    """Catches a title with one node's NVLink alone, which says half of what was sent."""
    sums = [Event("transfer", "all_reduce", "parallel", "network", 0.0, 1e-3, MIB, f"hbm:{rank}",
                  f"hbm:{rank ^ 1}", link="nvlink") for rank in range(4)]  # fmt: skip
    finding = machine(Trace.of(sums, {"gpus": 4, "nodes": 2})).finding
    assert finding == "4 MiB of all_reduce moved between GPUs, on all nodes together"
    finding = machine(Trace.of(sums[:2], {"gpus": 2})).finding
    assert finding.startswith("2 MiB of all_reduce moved, at ")


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


def test_the_finding_of_a_file_half_in_the_page_cache_counts_all_of_it() -> None:
    """Catches a load told as no larger than what the SSD had to give of it."""
    cold = Event("transfer", "read", "load", "ssd", 0.0, 1e-3, MIB, "ssd", "dram", "weights")
    step = Event("span", "decode step", "model", "compute", 2.0, 1e-3, 27 * MIB, token=0, request=0)
    assert machine(Trace.of([cold, move(None), step], {})).finding == (
        "9 MiB of weights came in once (1 MiB off the SSD); "
        "compute then read 27 MiB from HBM, 3.0 × as much"
    )


@pytest.mark.parametrize("busy", [True, False])
def test_compute_is_drawn_pale_while_it_has_nothing_to_do(busy: bool) -> None:
    """Catches a dark grid under the word "idle"."""
    step = Event("span", "decode step", "model", "compute", 2.0, 1e-3, MIB)
    trace = Trace.of([move(None), step] if busy else [move(None)], {"device": "cpu"})
    _, state = still(trace)
    assert state["compute/cells"]["class"] == ("cells busy" if busy else "cells")
    assert state["compute/say"]["text"] == ("busy 1 ms" if busy else "idle")


def test_a_cpu_that_waits_for_weights_is_not_busy() -> None:
    """Catches a wait for the link counted as work."""
    wait = Event("span", "wait for weights", "load", "cpu", 1.0, 5.0, token=0, request=0)
    work = Event("span", "sample", "decode", "cpu", 7.0, 2e-3, token=0, request=0)
    assert "busy 2 ms" in said(machine(Trace.of([move(0), wait, work], {})))


def test_of_a_batch_one_text_is_shown() -> None:
    """Catches words of two requests in one line, and a text that changes with every token."""
    def piece(request: int, token: int, name: str = "detokenize") -> Event:
        return Event("span", name, "decode", "cpu", 0.0, 1e-3, label="text", request=request,
                     token=token, detail=f" {request}.{token}")  # fmt: skip

    scene, shown = Scene(arrange(), {}), []
    scene.take([piece(0, 0, "tokenize"), piece(1, 0, "tokenize")])
    for token in range(3):
        scene.take([piece(0, token), piece(1, token)])
        shown.append(scene.state([])["words"]["text"] + scene.state([])["new"]["text"])
    assert shown == [" 1.0", " 1.0 1.1", " 1.0 1.1 1.2"]
    scene.take([piece(0, token) for token in (3, 4)])
    assert scene.state([])["new"]["text"] == " 0.4", "the other one is over"


# -- one picture -----------------------------------------------------------------------------------

TAGS = {"svg", "rect", "path", "text", "tspan", "title"}
# What cleaners of HTML let pass on these, and `data-`, without which a picture stays the same.
ATTRIBUTES = {
    "viewBox", "role", "aria-label", "font-family", "class", "x", "y", "width", "height", "rx", "d",
    "fill", "fill-opacity", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray",
    "stroke-dashoffset", "stroke-linecap", "font-size", "font-weight", "text-anchor", "transform",
    "opacity", "visibility", "{http://www.w3.org/XML/1998/namespace}space",
}  # fmt: skip


@pytest.mark.parametrize(("gpus", "nodes"), [(1, 1), (2, 1), (8, 1), (2, 2), (8, 2)])
def test_every_part_passes_a_cleaner(gpus: int, nodes: int) -> None:
    """Catches a picture that loses its colours where a notebook is cleaned before it is shown."""
    picture = machine(make_run(gpus, nodes))
    root = ElementTree.fromstring(picture.svg)
    for element in root.iter():
        assert element.tag.removeprefix(SVG) in TAGS
        own = {name for name in element.keys() if not name.startswith("data-")}
        assert own <= ATTRIBUTES, own - ATTRIBUTES
    assert not {"width", "height", "style"} & set(root.keys()), "it takes the width it is given"
    assert "url(" not in picture.svg and "javascript" not in picture.svg


def all_states(trace: Trace) -> list[State]:
    page = for_page(trace, over=True)
    moments = [*page["frames"], *page["tokens"].values()]
    return [page["still"], *(moment["set"] for moment in moments)]


@pytest.mark.parametrize(("gpus", "nodes"), [(1, 1), (2, 1), (8, 2)])
def test_what_is_set_is_in_the_picture(gpus: int, nodes: int) -> None:
    """Catches an attribute of a part that has no such name, and never gets to the page."""
    trace = make_run(gpus, nodes)
    there = set(re.findall(r'data-id="([^"]+)"', machine(trace).svg))
    for state in all_states(trace):
        assert set(state) <= there
    inks = {looks["class"].split()[-1] for state in all_states(trace)
            for part, looks in state.items() if part[-2:] in ("/+", "/-") and "class" in looks}
    assert inks <= set(INK) | {"lane"}


@pytest.mark.parametrize(("gpus", "nodes"), [(1, 1), (4, 1), (8, 2)])
def test_a_page_at_rest_is_the_still(gpus: int, nodes: int) -> None:
    """Catches a page whose bytes take another way, or another time, than the still's."""
    trace = make_run(gpus, nodes)
    page, picture = for_page(trace, over=True), machine(trace)
    head = {"title", "title/2", "note"}  # which a page leaves out
    drawn = {part.get("data-id"): part for part in ElementTree.fromstring(picture.svg).iter()}
    blank = {part.get("data-id"): part for part in ElementTree.fromstring(page["svg"]).iter()}
    assert set(drawn) == set(blank)
    for name in set(blank) - head - {None}:
        looks, told = dict(blank[name].attrib), dict(page["still"].get(name, {}))
        text, _ = told.pop("text", blank[name].text), told.pop("tip", "")
        looks |= {key: f"{v:g}" if isinstance(v, float) else str(v) for key, v in told.items()}
        assert looks == drawn[name].attrib, name
        assert (text or None) == (drawn[name].text or None), name


def test_a_picture_is_in_a_notebook_as_svg_and_png(tmp_path: Path) -> None:
    """Catches a notebook that shows nothing where SVG is not trusted, or has no alt text."""
    picture = machine(make_run())
    data, about = picture._repr_mimebundle_()
    assert set(data) == {"image/svg+xml", "image/png", "text/plain"}
    assert data["image/png"].startswith(b"\x89PNG") and data["text/plain"] == picture.finding
    assert about["image/png"]["alt"] == about["image/svg+xml"]["alt"] == picture.alt
    picture.save(tmp_path / "a.svg")
    picture.save(tmp_path / "a.png")
    assert (tmp_path / "a.svg").read_text("utf-8") == picture.svg
    with pytest.raises(MinillmError, match="ends in .png or .svg"):
        picture.save(tmp_path / "a.gif")


def test_pixels_need_no_pyplot() -> None:
    """Catches a still that costs half a second of imports, in each kernel."""
    program = (
        "import sys; from minillm.charts.machine_svg import png, svg;"
        "from minillm.charts.machine_places import arrange;"
        "picture = png(svg(arrange(), {}), 300);"
        "assert picture.startswith(b'\\x89PNG') and len(set(picture)) > 100;"
        "assert 'matplotlib.pyplot' not in sys.modules and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# -- moments ---------------------------------------------------------------------------------------


def full(frames: list[dict], at: int) -> State:
    """Everything at that frame, as a page has it."""
    state: State = {}
    for frame in frames[: at + 1]:
        for part, looks in frame["set"].items():
            state.setdefault(part, {}).update(looks)
    return state


def test_a_moment_shows_what_was_then() -> None:
    """Catches levels of the end in the middle, and a rate that is of another time."""
    trace = make_run()
    frames, tokens = moments(trace.events, trace.meta, plan(trace))
    assert [frame["t"] for frame in frames] == sorted(frame["t"] for frame in frames)
    early = full(frames, next(i for i, frame in enumerate(frames) if frame["t"] >= 2.5e-3))
    assert early["hbm/weights/say"]["text"] == "weights 1 of 6 MiB", "room is there before bytes"
    assert early["disk/over/0"]["text"] == "1.05 GB/s" and early["new"]["text"] == ""
    assert early["stage/load"]["class"] == "stage lit" and early["compute"]["class"] == "card"
    late = full(frames, len(frames) - 1)
    assert (late["prompt"]["text"], late["new"]["text"]) == ("Mia?", " w4")
    assert late["hbm/weights/say"]["text"] == "weights 6 MiB"
    third = full(frames, tokens["0 2"]["at"])
    for part, looks in tokens["0 2"]["set"].items():
        third.setdefault(part, {}).update(looks)
    assert third["read:0/over/0"]["text"] == "3.15 GB/s" and third["new"]["text"] == " w2"
    assert third["pcie/over/1"]["text"] == "logits ←"


def test_a_pause_shows_nothing_that_moves() -> None:
    """Catches dots that run on while nobody asks for anything."""
    trace = make_run()
    more = [e._replace(start=e.start + 9.0, request=1) for e in trace.events if e.request == 0]
    frames, _ = moments([*trace.events, *more], trace.meta, plan(trace))
    pauses = [i for i in range(1, len(frames)) if frames[i]["t"] - frames[i - 1]["t"] > 5]
    assert len(pauses) == 1
    state = full(frames, pauses[0])
    assert {state[part]["data-flow"] for part in state if part[-2:] in ("/+", "/-")} == {0}


@pytest.mark.parametrize("kept", ["load", "request", "one", "both at once"])
def test_moments_of_any_run_follow_one_another(kept: str) -> None:
    """Catches a run without a load that has no moment, and time that runs backward."""
    events = make_run().events
    some = {"load": [e for e in events if e.request is None], "one": events[2:3],
            "request": [e for e in events if e.request is not None],
            "both at once": [e._replace(start=e.start / 2) if e.request is None else
                             e._replace(start=e.start - 9e-3) for e in events]}[kept]  # fmt: skip
    frames, _ = moments(some, {}, arrange())
    times = [frame["t"] for frame in frames]
    assert times == sorted(times) and len(set(times[:-1])) == len(times) - 1
    last = max(e.end for e in some if e.kind != "counter")
    assert times[-1] == pytest.approx(last, abs=2e-6)


def test_a_long_run_has_so_many_moments_and_no_more() -> None:
    """Catches a player that makes the kernel work for seconds, or the page hold a film."""
    trace = make_run(8, 2, tokens=770)
    assert len(trace.events) > 20_000
    frames, tokens = moments(trace.events, trace.meta, plan(trace))
    assert len(tokens) == MOST_TOKENS and len(frames) <= 1.4 * (LOAD + MOST)
    changes = [len(frame["set"]) for frame in frames[1:]]
    assert sum(changes) < 60 * len(changes), "frames say what changes, and no more"


def test_a_run_under_way_says_what_changed(tmp_path: Path) -> None:
    """Catches a live picture that ends elsewhere than the run, and messages of the whole of it."""
    trace = make_run()
    follow, shown, sizes = Follower(trace), {}, []
    for place in range(0, len(trace.events), 5):
        change = follow.change(trace.events[place : place + 5])
        sizes.append(len(json.dumps(change)))
        for part, looks in change.items():
            shown.setdefault(part, {}).update(looks)
    assert shown["new"]["text"] == " w4" and shown["hbm/say"]["text"] == "6.25 MiB"
    assert max(sizes[1:]) < sizes[0] / 2
    follow.change([])
    assert follow.change([]) == {}, "nothing happened, and nothing is said again"


def test_every_look_has_a_style_on_a_page() -> None:
    """Catches a part that stays light on dark paper, for a page has no style for its class."""
    style = (Path(facts.__file__).parent / "view.css").read_text("utf-8")
    rules = style[style.index("-- the machine") : style.index("-- the sheets")]
    for look, looks in LOOK.items():
        if look != "title" and {looks.get("fill"), looks.get("stroke")} - {None, "none"}:
            assert re.search(rf"\.{look.split()[-1]}\b", rules), look
