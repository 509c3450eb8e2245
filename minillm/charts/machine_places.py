"""Where the parts of a machine stand, for any number of GPUs and nodes."""

from __future__ import annotations

from minillm.charts.ink import counted
from minillm.charts.machine_diagram import Diagram, Link
from minillm.charts.machine_svg import HEAD, LOOK, STAGES, WIDE
from minillm.errors import MinillmError
from minillm.trace import Trace, rank_of

MOST_GPUS, MOST_NODES = 8, 2  # that one picture shows; of a larger machine the first ones


def plan(trace: Trace) -> Diagram:
    """The machine that a trace was made on: its ranks, or what its meta says."""
    names = {n for e in trace.events for n in (e.name, e.resource, e.source, e.target) if ":" in n}
    ranks = [rank + 1 for rank in map(rank_of, names) if rank < 4096]
    gpus = max([1, int(trace.meta.get("gpus", 1)), *ranks])
    return arrange(gpus, int(trace.meta.get("nodes", 1)), trace.meta.get("device") == "cpu")


def arrange(gpus: int = 1, nodes: int = 1, emulated: bool = False) -> Diagram:
    """The parts of a machine with so many GPUs, of all nodes together.

    A larger machine than 8 GPUs on 2 nodes is shown in part, and says so. emulated: the CPU does
    the work of the GPUs. Raises MinillmError for fewer GPUs than nodes, or none.
    """
    if nodes < 1 or gpus < nodes:
        raise MinillmError(
            f"wanted at least one node, and a GPU for each, found {counted(gpus, 'GPU')} on "
            f"{counted(nodes, 'node')}; "
            "give meta['gpus'] (of all nodes together) and meta['nodes'] of the run"
        )
    share, shown, d = -(-gpus // nodes), min(nodes, MOST_NODES), Diagram(emulated=emulated)
    groups = [list(range(n * share, min(gpus, (n + 1) * share)))[: MOST_GPUS // shown]
              for n in range(shown)]  # fmt: skip
    groups = [ranks for ranks in groups if ranks]
    count, many = sum(map(len, groups)), len(groups) > 1
    _head(d, count > 1)
    note = [f"shown: {count} of {gpus} GPUs"] if count < gpus else []
    note += ["GPUs emulated by the CPU, HBM in DRAM"] if emulated and count > 1 else []
    d.text("note/2", "say", WIDE - 12, HEAD + 42, " · ".join(note), text_anchor="end")
    high = max(184.0 if many else 236.0, 36.0 * len(groups[0]))
    top = HEAD + (50.0 if not note else 58.0) + 22 * many
    for node, ranks in enumerate(groups):
        _host(d, node, top, high, many)
        _gpus(d, node, ranks, top, high, many)
        top += high + (72 if many else 0)
    if many:
        a, b = d.boxes["nic"], d.boxes["nic@1"]
        x, room = a.x + a.w / 2, WIDE - a.x - a.w / 2 - 28
        points = ((x, a.y + a.h), (x, b.y))
        d.link("infiniband", Link("infiniband", "InfiniBand", "nic", "nic@1", points, room))
        top -= 60
    spans = [(name, "tspan", {"class": name, **LOOK[name]}) for name in ("prompt", "words", "new")]
    d.put("line", "text", "line", x=14, y=top + 28, inside=spans, **{"xml:space": "preserve"})
    d.high = d.parts[0][2]["height"] = top + 42
    return d


def _head(d: Diagram, parallel: bool) -> None:
    """Paper, room for title and note, and the strip of stages."""
    d.put("paper", "rect", "paper", x=0, y=0, width=WIDE, height=0, rx=8)
    for part, look, y in (("title", "title", 22), ("title/2", "title", 40), ("note", "say", 58)):
        d.text(part, look, 12, y)
    for i, (stage, said) in enumerate(STAGES.items()):
        x, pale = 12 + 130 * i, {"opacity": 0.55} if stage == "parallel" and not parallel else {}
        d.put(f"stage/{stage}/bar", "rect", "rule", x=x, y=HEAD + 8, width=122, height=3, **pale)
        d.text(f"stage/{stage}", "stage", x, HEAD + 26, said, **pale)


def _host(d: Diagram, node: int, top: float, high: float, many: bool) -> None:
    """SSD and DRAM side by side, the CPU at the DRAM, and the token that comes out of it."""
    at, y = "@1" * node, top + 72 * node
    if many:
        size = {"width": WIDE - 8, "height": high + 36, "rx": 12}
        d.put(f"node{at}", "rect", "node", x=4, y=top - 26, **size)
        d.text(f"node{at}/name", "say", 16, top - 10, f"node {node}")
    d.box(f"ssd{at}", 10, y, 102, high - 72, node)
    d.box(f"dram{at}", 190, y, 104, high - 72, node)
    d.box(f"cpu{at}", 190, top if node else top + high - 52, 104, 52, node)
    d.across(f"disk{at}", f"ssd{at}", f"dram{at}", y + (high - 72) / 2, 76)
    low = (242, y), (242, top + 52)
    points = low if node else ((242, y + high - 72), (242, top + high - 52))
    d.link(f"bus{at}", Link("bus", "bus", f"dram{at}", f"cpu{at}", points))
    if not node:
        y = top + high - 52
        d.put("token/way", "path", "way", d=f"M190 {y + 26}H170m5 -4l-5 4l5 4")
        d.put("token", "rect", "card", x=10, y=y, width=156, height=52, rx=7)
        d.text("token/say", "say", 19, y + 18)
        d.text("token/word", "word", 19, y + 41)


def _gpus(d: Diagram, node: int, ranks: list[int], top: float, high: float, many: bool) -> None:
    """One large GPU, or a row for each between the PCIe switch and the NVLink switch."""
    at, road = ("@1" * node), d.links[f"disk{'@1' * node}"].points[0][1]
    if len(ranks) == 1 and not many:
        d.put("gpu", "rect", "frame", x=372, y=top - 6, width=288, height=high + 12, rx=12)
        d.text("gpu/name", "say", 382, top + 12, "GPU" + ", emulated by the CPU" * d.emulated)
        d.box("hbm", 382, top + 22, 112, high - 26)
        d.box("compute", 572, top + 22, 80, high - 26)
        d.across("pcie", "dram", "hbm", road, 70)
        return d.across("read:0", "hbm", "compute", road, 76)
    pitch, linked = high / len(ranks), len(ranks) > 1
    switch = f"switch{at}"
    d.box(switch, 372, top, 16, high, node)
    if linked:
        d.box(f"nvlink{at}", 644, top, 16, high, node)
    for i, rank in enumerate(ranks):
        of, y, h = f":{rank}" if rank else "", top + i * pitch + 2.5, pitch - 5
        inset = 0 if h < 90 else 20
        d.box(f"hbm{of}", 402, y, 128, h, node)
        d.box(f"compute{of}", 554, y + inset, 76, h - 2 * inset, node)
        middle = y + h / 2
        if linked:  # before PCIe, so that `way` finds it first
            ends = f"compute{of}", f"nvlink{at}"
            d.across(f"nvlink:{rank}", *ends, middle, joins=f"hbm{of}")
        d.across(f"pcie:{rank}", switch, f"hbm{of}", middle)
        d.across(f"read:{rank}", f"hbm{of}", f"compute{of}", middle)
    d.across(f"pcie{at}", f"dram{at}", switch, road, 76)
    if many:
        y = top if node else top + high - 32
        d.box(f"nic{at}", 311, y, 44, 32, node)
        d.across(f"nic:{node}", f"nic{at}", switch, y + 16)
