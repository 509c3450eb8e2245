"""The machine as one SVG: where its parts stand, how they look, and by which links bytes travel.

The picture is drawn once. Whoever moves it, a page or the still, only sets attributes of named
parts: {"hbm/weights": {"y": 120, "height": 40}, ...}. So both show one picture.

Only presentation attributes, no <style> and no reference: what cleans HTML leaves them alone, and
the styles of a page may still overrule each of them, which is how dark paper works. The memories
stand in the order of their distance from the compute: SSD, DRAM, HBM. Node 1 stands below node 0,
upside down, so that their NICs face each other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from minillm.charts.ink import INK
from minillm.charts.machine_svg import LARGE, LOOK, SAYS, TITLES, fit
from minillm.trace import rank_of

# The layers of a memory, from the bottom up: what is large is pale. Two are room without bytes.
LAYERS = {"weights": 0.26, "awaited": 0, "kv": 0.62, "reserved": 0, "other": 0.45}
# Widths in the order of real bandwidths: a hint (NVMe < InfiniBand < PCIe < NVLink < HBM).
PIPE = {"disk": 8, "infiniband": 9, "nic": 9, "pcie": 12, "bus": 10, "nvlink": 14, "read": 22}
OVER, UNDER = 3, 4  # lines of figures at a link, from the pipe outward
State = dict[str, dict[str, Any]]  # attributes by part; "text" is what it says, "tip" what it tells


@dataclass(frozen=True)
class Box:
    """A part that stands somewhere. tank: x, y, width, height of what fills, up or to the right."""

    kind: str
    title: str
    x: float
    y: float
    w: float
    h: float
    low: bool = False
    node: int = 0
    tank: tuple[float, float, float, float] | None = None


@dataclass(frozen=True)
class Link:
    """A straight pipe from one box to another. room: the width of its figures, 0 for none."""

    kind: str
    title: str
    begin: str
    end: str
    points: tuple[tuple[float, float], tuple[float, float]]
    room: float = 0

    def arrow(self, sign: str) -> str:
        """Where what goes along (+) or against (-) it is heading."""
        (x0, y0), (x1, y1) = self.points
        ahead = (x1 + y1 > x0 + y0) == (sign == "+")
        return ("→" if ahead else "←") if y0 == y1 else ("↓" if ahead else "↑")

    def beside(self, aside: float) -> str:
        """Its path, so many units to the right of who travels along it."""
        (x0, y0), (x1, y1) = self.points
        dx, dy = (0, aside if x1 > x0 else -aside) if y0 == y1 else (-aside, 0)
        return f"M{x0 + dx:g} {y0 + dy:g}L{x1 + dx:g} {y1 + dy:g}"


@dataclass
class Diagram:
    """Boxes and links by name; the elements of the SVG in the order in which they are painted."""

    boxes: dict[str, Box] = field(default_factory=dict)
    links: dict[str, Link] = field(default_factory=dict)
    parts: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)  # name, tag, looks
    high: float = 0.0
    emulated: bool = False
    _ways: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def put(self, name: str, tag: str, look: str, **attributes: Any) -> None:
        """Paint an element; `look` is its class and a key of LOOK."""
        known = {key.replace("_", "-"): value for key, value in attributes.items()}
        self.parts.append((name, tag, {"class": look, **LOOK.get(look, {}), **known}))

    def text(self, name: str, look: str, x: float, y: float, text: str = "", **more: Any) -> None:
        self.put(name, "text", look, x=x, y=y, text=text, **more)

    def box(self, name: str, x: float, y: float, w: float, h: float, node: int = 0) -> None:
        """A card with its words: two lines and, of a memory that is tall, a tank below them."""
        kind, rank, low = kind_of(name), rank_of(name), h < 90
        title, tank = TITLES[kind], None
        if kind in ("hbm", "compute") and f"switch{'@1' * node}" in self.boxes:
            title = f"{'GPU' if kind == 'compute' else title} {rank}"
        title = "copies" if kind == "switch" and self.emulated else title
        if kind in ("ssd", "dram", "hbm"):
            top = 68 if self.emulated and kind == "hbm" else 54
            tank = (x + 8, y + h - 12, w - 16, 7) if low else (x + 4, y + top, w - 8, h - top - 4)
        box = self.boxes[name] = Box(kind, title, x, y, w, h, low, node, tank)
        bar = kind in ("switch", "nvlink")
        self.put(name, "rect", "bar" if bar else "card", x=x, y=y, width=w, height=h,
                 rx=min(7, w / 3), says=f"{title}\n{SAYS[kind]}")  # fmt: skip
        if bar:
            place = f"translate({x + w / 2 + 4} {y + h / 2}) rotate(-90)"
            return self.text(f"{name}/say", "say", 0, 0, transform=place, text_anchor="middle")
        if tank:
            _tank(self, name, box, *tank)
        elif kind == "compute" and not low:
            up = 16 * int((h - 56) / 16) - 3  # whole cells, of 13 and 3 between them
            d = "".join(f"M{x + 16 + 16 * i:g} {y + h - 10}v{-up}" for i in range(4))
            self.put(f"{name}/cells", "path", "cells", d=d)
        first = y + (h / 2 + 4.5 if kind == "nic" else h / 2 - 2 if h < 60 else 18)
        self.text(f"{name}/name", "name", x + 9, first, **fit([title], w - 14, LARGE, bold=True))
        beside = bool(tank) and low
        at = (x + w - 9, first) if beside else (x + 9, first + (13 if h < 60 else 15))
        self.text(f"{name}/say", "say", *at, text_anchor="end" if beside else "start")

    def link(self, name: str, link: Link) -> None:
        """A pipe with a lane of dots each way, and its figures around it."""
        self.links[name] = link
        wide, (x, y) = PIPE[link.kind], (sum(ends) / 2 for ends in zip(*link.points, strict=True))
        ends = " – ".join(self.boxes[end].title for end in (link.begin, link.end))
        self.put(name, "path", "pipe", d=link.beside(0), stroke_width=wide,
                 says=f"{link.title}, {ends}\n{SAYS[link.kind]}")  # fmt: skip
        two = link.kind == "read"  # it only leads one way, and there are two rows of dots
        for sign, aside in (("+", wide / 4), ("-", -wide / 4)):
            d = link.beside(aside) + link.beside(-aside) * two
            self.put(f"{name}/{sign}", "path", "lane", d=d, stroke_width=5.5 if two else 4.5)
        if link.kind == "infiniband":
            self.text(f"{name}/over/0", "say", x + 14, y + 4)
        elif link.room:
            over = [(f"over/{i}", -wide / 2 - 6 - 14 * i) for i in range(OVER)]
            under = [(f"under/{i}", wide / 2 + 15 + 14 * i) for i in range(UNDER)]
            for line, below in over + under:
                self.text(f"{name}/{line}", "say", x, y + below, text_anchor="middle")

    def across(
        self, name: str, begin: str, end: str, y: float, room: float = 0, joins: str = ""
    ) -> None:
        """Join two boxes side by side; `joins`: from what, if that is not what it touches."""
        a, b, kind = self.boxes[begin], self.boxes[end], kind_of(name)
        # Without a GPU it is a copy inside DRAM, and is not called PCIe.
        title = "copy" if kind == "pcie" and self.emulated else TITLES.get(kind, kind)
        points = (a.x + a.w, y), (b.x, y)
        self.link(name, Link(kind, title, joins or begin, end, points, room))

    # -- where a run's bytes and work belong -------------------------------------------------------

    def home(self, unit: str, rank: int = 0) -> str:
        """The box of a tier or unit; ranks of a node share its host. "" if there is none.

        rank: of a host that has no rank of its own.
        """
        kind, own = unit.partition(":")[0], rank_of(unit)
        if kind in ("hbm", "compute"):
            name = f"{kind}:{own}" if own else kind
        else:
            gpu = self.boxes.get(f"hbm:{own or rank}" if own or rank else "hbm")
            name = (f"{kind}@{gpu.node}" if gpu.node else kind) if gpu else ""
        return name if name in self.boxes else ""

    def way(self, begin: str, end: str) -> list[str]:
        """The links from box to box, the fewest: "+pcie" along that one, "-pcie" against it.

        >>> arrange(gpus=2).way("hbm", "hbm:1")
        ['+nvlink:0', '-nvlink:1']
        """
        if (begin, end) in self._ways:
            return self._ways[begin, end]
        came: dict[str, list[str]] = {begin: []}
        for here in (queue := [begin]):
            for name, link in self.links.items():
                for sign, one, two in (("+", link.begin, link.end), ("-", link.end, link.begin)):
                    if one == here and two not in came:
                        came[two] = [*came[here], sign + name]
                        queue.append(two)
        return self._ways.setdefault((begin, end), came.get(end, []))


def _tank(d: Diagram, name: str, box: Box, x: float, y: float, w: float, h: float) -> None:
    """The layers of a memory, empty, and the words at them."""
    ink, seen = INK[box.kind].colour, {"width": 0, "height": h} if box.low else {"width": w}
    if box.low:
        d.put(f"{name}/track", "rect", "bar", x=x, y=y, width=w, height=h, rx=2)
    for layer, tint in LAYERS.items():
        look = {"fill": ink, "fill-opacity": tint} if tint else {
            "fill": "none", "stroke": ink, "stroke-dasharray": "2 3"}  # fmt: skip
        kind = box.kind if tint else f"room {box.kind}"
        d.put(f"{name}/{layer}", "rect", kind, x=x, y=y, **look, **{"height": 0} | seen)
    if box.low:
        return
    teeth = "".join(f"l{w / 16:g} {4 if i % 2 else -4}" for i in range(16))
    d.put(f"{name}/torn", "path", "torn", d=f"M{x:g} {y + 2:g}{teeth}", visibility="hidden")
    d.text(f"{name}/top", "say", x + w - 4, y + 16, text_anchor="end")
    d.text(f"{name}/of", "say", box.x + 9, box.y + 47)
    if d.emulated and box.kind == "hbm":
        d.text(f"{name}/how", "say", box.x + 9, box.y + 61, **fit(["emulated in DRAM"], w - 6))
    for layer in LAYERS:
        d.text(f"{name}/{layer}/say", "label", x + 5, y)


def kind_of(name: str) -> str:
    """'ssd' of 'ssd@1', 'hbm' of 'hbm:3'."""
    return name.partition("@")[0].partition(":")[0]
