"""Where the parts of the machine stand: one geometry for the living picture and for the still.

The memory tiers stand in the order of their distance from the compute, on one road: SSD, DRAM, HBM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minillm.charts.machine_sheet import Sheet
from minillm.errors import MinillmError

MOST_GPUS, MOST_NODES = 8, 2  # that one picture shows; of a larger machine the first ones


def layout(gpus: int = 1, nodes: int = 1, narrow: bool = False) -> dict[str, Any]:
    """Boxes, links and places for words of a machine with so many GPUs (of all nodes together).

    boxes: id -> kind, title, rank, node, x, y, w, h; memory also `tank` [x, y, w, h], which fills
    "up" or "right". links: id -> kind, from, to (boxes), points, path (of an SVG), width, and
    `label` (where its figures stand) if there is room. routes: "ssd dram" -> ["+disk"], the links
    that bytes take from box to box, with + along the link and - against it. home: a tier or unit
    of a trace -> its box. frames, stages, card, text: what stands around them.
    A larger machine than 8 GPUs on 2 nodes is shown in part, and `note` says so.
    Raises MinillmError for fewer GPUs than nodes, or none.

    >>> layout(gpus=2)["routes"]["hbm hbm:1"]
    ['+nvlink:0', '-nvlink:1']
    """
    if nodes < 1 or gpus < nodes:
        raise MinillmError(
            f"wanted at least one node, and a GPU for each, found {gpus} GPUs on {nodes} nodes; "
            "give meta['gpus'] (of all nodes together) and meta['nodes'] of the run"
        )
    share = -(-gpus // nodes)
    shown = min(nodes, MOST_NODES)
    ranks = [list(range(n * share, min(gpus, (n + 1) * share)))[: MOST_GPUS // shown]
             for n in range(shown)]  # fmt: skip
    sheet = Sheet(narrow, [r for r in ranks if r])
    for node in range(len(sheet.ranks)):
        (_portrait if narrow else _landscape)(sheet, node)
    _join_nodes(sheet)
    count = sum(map(len, sheet.ranks))
    note = f"shown: {count} of {gpus} GPUs" if count < gpus else ""
    return sheet.finished() | {
        "gpus": count, "nodes": len(sheet.ranks), "note": note, "routes": _routes(sheet),
        "home": _homes(sheet),
    }  # fmt: skip


def _landscape(sheet: Sheet, node: int) -> None:
    """Host on the left, GPUs on the right: one large one, or a row each."""
    ranks, many = sheet.ranks[node], len(sheet.ranks) > 1
    rows = many or len(ranks) > 1
    high = 292.0 if not many else max(184.0, 38.0 * len(ranks))
    top = sheet.bottom + (66 if node else 22 if many else 0)
    _host_column(sheet, node, top, high, rows)
    dram = sheet.boxes[sheet.name("dram", node)]
    road = dram["y"] + dram["h"] / 2
    if rows:
        _gpu_rows(sheet, node, 392, top, high, 348)
        ends = f"{sheet.name('dram', node)} {sheet.name('pcie', node)}"
        sheet.across(sheet.name("pcie", node), "pcie", ends, road, "middle")
        if many:
            y = top if node else top + high - 34
            sheet.box(sheet.name("nic", node), "nic", 326, y, 46, 34, node=node)
            ends = f"{sheet.name('nic', node)} {sheet.name('pcie', node)}"
            sheet.across(sheet.name("nic", node), "nic", ends, y + 17)
    else:
        _gpu(sheet, 448, top, 142, high, (664, top + 26, 74, high - 38), road)
        sheet.across("pcie", "pcie", "dram hbm", road, [393, road, "middle", 84])
    if many:
        frame = {"kind": "node", "title": f"node {node}", "x": 4, "y": top - 24, "w": 752}
        sheet.frames.append(frame | {"h": high + 34})
    sheet.bottom = top + high + (10 if many else 0)


def _host_column(sheet: Sheet, node: int, top: float, high: float, rows: bool) -> None:
    """SSD and DRAM side by side, the CPU at the DRAM; in node 1 upside down."""
    ssd, dram = (112, (202, 112)) if rows else (122, (224, 126))
    low = 58.0 if high > 200 else 46.0  # height of the CPU
    tank = high - low - (38 if high > 200 else 30)
    at = top + high - tank if node else top
    more = {"node": node, "fill": "up", "head": 2}
    sheet.box(sheet.name("ssd", node), "ssd", 14, at, ssd, tank, **more)
    sheet.box(sheet.name("dram", node), "dram", dram[0], at, dram[1], tank, **more)
    cpu = top if node else top + high - low
    sheet.box(sheet.name("cpu", node), "cpu", dram[0], cpu, dram[1], low, node=node)
    _host_links(sheet, node, at + tank / 2, dram[0] + dram[1] / 2)
    if node == 0:
        sheet.card = [14, cpu, dram[0] - 14 - 36, low]


def _host_links(sheet: Sheet, node: int, y: float, x: float | None) -> None:
    ssd, dram, cpu = (sheet.name(kind, node) for kind in ("ssd", "dram", "cpu"))
    sheet.across(sheet.name("disk", node), "disk", f"{ssd} {dram}", y, "middle")
    if x is None:
        sheet.across(sheet.name("bus", node), "bus", f"{dram} {cpu}", y)
    else:
        sheet.down(sheet.name("bus", node), "bus", f"{dram} {cpu}", x)


def _portrait(sheet: Sheet, node: int) -> None:
    """The host in one row, its GPUs below it; node 1 the other way round."""
    ranks, many = sheet.ranks[node], len(sheet.ranks) > 1
    rows = many or len(ranks) > 1
    top = sheet.bottom + (62 if node else 22 if many else 0)
    low = 176.0 if not rows else max(60.0, (42.0 if len(ranks) > 4 else 50.0) * len(ranks))
    host, gap, nic = 112.0, 74.0, 50.0 if many else 0.0
    high = host + gap + low + nic
    at = top + high - host if node else top
    _host_row(sheet, node, at, host)
    below = top + nic if node else top + host + gap
    if rows:
        _gpu_rows(sheet, node, 10, below, low, 360)
        _trunk(sheet, node)
        if many:
            y = top if node else top + high - 32
            sheet.box(sheet.name("nic", node), "nic", 10, y, 56, 32, node=node)
            ends = f"{sheet.name('nic', node)} {sheet.name('pcie', node)}"
            sheet.down(sheet.name("nic", node), "nic", ends, 18)
    else:
        _gpu(sheet, 22, below, 176, low, (272, below + 24, 86, low - 36), below + 100)
        sheet.down("pcie", "pcie", "dram hbm", 185, [198, below - 37, "start", 74])
    if many:
        frame = {"kind": "node", "title": f"node {node}", "x": 2, "y": top - 22, "w": 376,
                 "side": "end"}
        sheet.frames.append(frame | {"h": high + 30})
    sheet.bottom = top + high + (8 if many else 0)


def _host_row(sheet: Sheet, node: int, y: float, high: float) -> None:
    more = {"node": node, "fill": "up", "head": 2}
    sheet.box(sheet.name("ssd", node), "ssd", 10, y, 92, high, **more)
    sheet.box(sheet.name("dram", node), "dram", 172, y, 104, high, **more)
    sheet.box(sheet.name("cpu", node), "cpu", 294, y, 76, high, node=node)
    _host_links(sheet, node, y + high / 2, None)
    if node == 0:
        sheet.card = [278, y + high + 14, 92, 42]


def _trunk(sheet: Sheet, node: int) -> None:
    """From DRAM to the PCIe switch at the left edge, round a corner."""
    dram, pcie = sheet.name("dram", node), sheet.name("pcie", node)
    box, bar = sheet.boxes[dram], sheet.boxes[pcie]
    x, near = 190.0, box["y"] if node else box["y"] + box["h"]
    far = bar["y"] + bar["h"] if node else bar["y"]
    turn = far + 16 if node else far - 16
    points = [(x, near), (x, turn), (bar["x"] + bar["w"] / 2, turn), (bar["x"] + bar["w"] / 2, far)]
    label = [x + 14, (near + far) / 2, "start", 68]
    sheet.link(sheet.name("pcie", node), "pcie", f"{dram} {pcie}", points, label)


def _gpu(
    sheet: Sheet, x: float, y: float, w: float, high: float, unit: Sequence[float], road: float
) -> None:
    """One GPU, large: its memory, and right of it what computes."""
    frame = {"kind": "gpu", "title": "GPU", "x": x - 12, "y": y}
    sheet.frames.append(frame | {"w": unit[0] + unit[2] + 12 - (x - 12), "h": high})
    top = 26.0 if not sheet.narrow else 24.0
    sheet.box("hbm", "hbm", x, y + top, w, high - top - 12, title="HBM", fill="up", head=3)
    sheet.box("compute", "compute", *unit, title="compute")
    sheet.across("read:0", "read", "hbm compute", road, "middle")


def _gpu_rows(sheet: Sheet, node: int, x: float, y: float, high: float, w: float) -> None:
    """A row for each GPU between the PCIe switch and the NVLink switch."""
    ranks, bar = sheet.ranks[node], 16.0
    pitch = high / len(ranks)
    gap = 5.0 if pitch < 44 else 8.0
    stub, read, unit = (16.0, 30.0, 92.0) if sheet.narrow else (18.0, 34.0, 102.0)
    linked = len(ranks) > 1
    memory = w - 2 * (bar + stub) - read - unit if linked else w - bar - stub - read - unit
    switch, nvlink = sheet.name("pcie", node), sheet.name("nvlink", node)
    sheet.box(switch, "pcie", x, y, bar, high, node=node)
    if linked:
        sheet.box(nvlink, "nvlink", x + w - bar, y, bar, high, node=node)
    for i, rank in enumerate(ranks):
        hbm, compute = _unit("hbm", rank), _unit("compute", rank)
        top, tall = y + i * pitch + gap / 2, pitch - gap
        up = tall >= 84
        more = {"rank": rank, "node": node}
        left = x + bar + stub
        sheet.box(hbm, "hbm", left, top, memory, tall, title=f"HBM {rank}",
                  fill="up" if up else "right", head=2 if up else 0, **more)  # fmt: skip
        inset = 20.0 if up else 0.0
        sheet.box(compute, "compute", left + memory + read, top + inset, unit, tall - 2 * inset,
                  title=f"GPU {rank}", **more)  # fmt: skip
        middle = top + tall / 2
        sheet.across(f"pcie:{rank}", "pcie", f"{switch} {hbm}", middle)
        sheet.across(f"read:{rank}", "read", f"{hbm} {compute}", middle)
        if linked:
            sheet.across(f"nvlink:{rank}", "nvlink", f"{compute} {nvlink}", middle)


def _unit(kind: str, rank: int) -> str:
    """As in a run on a page: rank 0 has no suffix."""
    return f"{kind}:{rank}" if rank else kind


def _join_nodes(sheet: Sheet) -> None:
    """InfiniBand from one NIC straight down to the other."""
    if len(sheet.ranks) > 1:
        one, two = sheet.boxes["nic"], sheet.boxes["nic@1"]
        x = 18.0 if sheet.narrow else one["x"] + one["w"] / 2
        between = (one["y"] + one["h"] + two["y"]) / 2
        label = [x + 14, between, "start", sheet.wide - x - 28]
        sheet.down("infiniband", "infiniband", "nic nic@1", x, label)


def _homes(sheet: Sheet) -> dict[str, str]:
    """The box of each tier and unit that a trace may name."""
    homes = {}
    for node, ranks in enumerate(sheet.ranks):
        for rank in ranks:
            homes |= {_unit(kind, rank): _unit(kind, rank) for kind in ("hbm", "compute")}
            homes |= {_unit(kind, rank): sheet.name(kind, node) for kind in ("ssd", "dram", "cpu")}
    return homes


def _routes(sheet: Sheet) -> dict[str, list[str]]:
    """The way of bytes from box to box; the way back is the same, read backwards."""
    routes: dict[str, list[str]] = {}
    ways: dict[int, list[str]] = {}  # from the switch of its node to each GPU's memory
    node_of = {rank: node for node, ranks in enumerate(sheet.ranks) for rank in ranks}
    for rank, node in node_of.items():
        ssd, dram, cpu, nic = (sheet.name(kind, node) for kind in ("ssd", "dram", "cpu", "nic"))
        disk, bus, trunk = (sheet.name(kind, node) for kind in ("disk", "bus", "pcie"))
        hbm = _unit("hbm", rank)
        ways[rank] = [f"+pcie:{rank}"] if f"pcie:{rank}" in sheet.links else []
        down = [f"+{trunk}", *ways[rank]]
        routes |= {f"{ssd} {dram}": [f"+{disk}"], f"{dram} {cpu}": [f"+{bus}"]}
        routes |= {f"{dram} {hbm}": down, f"{ssd} {hbm}": [f"+{disk}", *down]}
        routes |= {f"{cpu} {hbm}": [f"-{bus}", *down]}
        routes[f"{hbm} {_unit('compute', rank)}"] = [f"+read:{rank}"]
        for other in (r for r in ways if r != rank):
            if node_of[other] == node:
                way = [f"+nvlink:{other}", f"-nvlink:{rank}"]
            else:  # ranks ascend by node: from node 0 to node 1
                over = [f"-{sheet.name('nic', node_of[other])}", "+infiniband", f"+{nic}"]
                way = [f"-pcie:{other}", *over, *ways[rank]]
            routes[f"{_unit('hbm', other)} {hbm}"] = way
    return routes
