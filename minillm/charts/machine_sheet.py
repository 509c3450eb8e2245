"""The sheet on which the machine is drawn: boxes, links between their edges, and places for words.

Units are those of an SVG viewBox: x to the right, y down. A wide sheet is 760 units across, a
narrow one 380, so that a letter of 11 units can be read at 700 and at 380 pixels.
"""

from __future__ import annotations

from typing import Any

WIDE, NARROW = 760.0, 380.0
TOP = 56.0  # the strip of stages stands above
LINE = 15.0  # of text
STAGES = {
    "load": "1 load", "tokens": "2 tokens", "model": "3 model + kv", "parallel": "4 parallel",
    "decode": "5 decode",
}  # fmt: skip
# Widths in the order of real bandwidths: a hint (NVMe < InfiniBand < PCIe < NVLink < HBM).
PIPE = {"disk": 8, "infiniband": 9, "nic": 9, "pcie": 12, "bus": 12, "nvlink": 18, "read": 26}
# Whose ceiling holds for a kind of link; between host and switch several share one: none is known.
LIMITS = {"disk": "ssd", "pcie": "copy", "read": "hbm", "nic": "network", "bus": ""}
TITLES = {"ssd": "SSD", "dram": "DRAM", "cpu": "CPU", "nic": "NIC", "pcie": "PCIe",
          "nvlink": "NVLink"}  # fmt: skip


class Sheet:
    """A drawing under way. Node 1 stands below node 0, mirrored, so that their NICs face."""

    def __init__(self, narrow: bool, ranks: list[list[int]]):
        self.narrow, self.ranks = narrow, ranks
        self.wide = NARROW if narrow else WIDE
        self.boxes: dict[str, dict] = {}
        self.links: dict[str, dict] = {}
        self.frames: list[dict] = []
        self.card: list[float] = []
        self.bottom = TOP

    def name(self, kind: str, node: int) -> str:
        """Of a part of a node: "dram", "dram@1"."""
        return f"{kind}@{node}" if node else kind

    def box(self, name: str, kind: str, x: float, y: float, w: float, h: float, **more: Any):
        """Put down a box; `head` lines of text stand above the tank of a memory."""
        head = more.pop("head", None)
        box = {"kind": kind, "title": TITLES.get(kind, kind), "x": x, "y": y, "w": w, "h": h}
        self.boxes[name] = box | {"rank": 0, "node": 0} | more
        if head:
            top = 11 + LINE * head
            self.boxes[name]["tank"] = [x, y + top, w, h - top]
        elif head == 0:  # a gauge below one line of words, with room for a word at its end
            thick = 8 if h < 44 else 14
            self.boxes[name]["tank"] = [x + 9, y + h / 2 + 2, w - 18 - 44, thick]

    def link(self, name: str, kind: str, ends: str, points: list, label: list | None = None):
        """Join two boxes. label: [x, y, side], words stand "start", "middle" or "end" there."""
        begin, end = ends.split()
        shared = kind == "pcie" and self.boxes[end]["kind"] == "pcie"
        path = "M" + " L".join(f"{x:g} {y:g}" for x, y in points)
        self.links[name] = {
            "kind": kind, "from": begin, "to": end, "points": [list(p) for p in points],
            "path": path, "width": PIPE[kind], "limit": "" if shared else LIMITS.get(kind, kind),
        } | ({"label": label} if label else {})  # fmt: skip

    def across(self, name: str, kind: str, ends: str, y: float, label: Any = None) -> None:
        """Join two boxes side by side at height y."""
        left, right = (self.boxes[end] for end in ends.split())
        x = (left["x"] + left["w"], right["x"])
        label = [sum(x) / 2, y, "middle", x[1] - x[0] - 6] if label == "middle" else label
        self.link(name, kind, ends, [(x[0], y), (x[1], y)], label)

    def down(self, name: str, kind: str, ends: str, x: float, label: list | None = None) -> None:
        """Join two boxes one below the other at x, whichever is the upper."""
        one, two = (self.boxes[end] for end in ends.split())
        y = (one["y"] + one["h"], two["y"])
        y = y if y[0] <= two["y"] else (one["y"], two["y"] + two["h"])
        self.link(name, kind, ends, [(x, y[0]), (x, y[1])], label)

    def finished(self) -> dict[str, Any]:
        """What is on it, with the strip of stages above and the line of text below."""
        spare = 22 if self.narrow else 66  # beside the words of a stage
        step = (self.wide - 28 - spare * len(STAGES)) / sum(map(len, STAGES.values()))
        stages, x = [], 14.0
        for stage, title in STAGES.items():
            w = spare + step * len(title)
            stages.append({"stage": stage, "title": title, "x": x, "y": 12.0, "w": w, "h": 26.0})
            x += w
        text = [14.0, self.bottom + 30, self.wide - 28]
        return {
            "narrow": self.narrow, "width": self.wide, "height": self.bottom + 44, "text": text,
            "stages": stages, "boxes": self.boxes, "links": self.links, "frames": self.frames,
            "card": self.card,
        }  # fmt: skip
