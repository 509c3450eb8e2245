"""What the memories of the machine hold, and how that looks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minillm.charts import meaning
from minillm.charts.ink import amount
from minillm.charts.machine_diagram import LAYERS, Box, Diagram, State
from minillm.charts.machine_svg import LARGE, fit, width
from minillm.charts.meaning import RESERVED
from minillm.trace import Event, rank_of

UNNAMED = 2000  # a layer this many times smaller than the whole is seen, but not named


class Memories:
    """What each memory box holds, event by event. The DRAM of several ranks of a node is one box.

    What lies on the disk is not counted: of it we know the weights, which come from there.
    levels: bytes by label; peaks: the levels when most was in use; most: the peak of what was
    taken, in use or reserved. arrived: bytes of weights that have come in, of the boxes in `loads`.
    changed: boxes that differ from what was last asked for.
    """

    def __init__(self, diagram: Diagram, meta: Mapping[str, Any]) -> None:
        self.diagram = diagram
        self._rooms = {meaning.plain(k): n for k, n in (meta.get("capacity") or {}).items()}
        boxes = [name for name, box in diagram.boxes.items() if box.tank]
        self._held: dict[str, dict[tuple[str, str], int]] = {name: {} for name in boxes}
        self.levels: dict[str, dict[str, int]] = {name: {} for name in boxes}
        self.peaks = dict(self.levels)
        self.most, self.arrived = dict.fromkeys(boxes, 0), dict.fromkeys(boxes, 0)
        self.loads: set[str] = set()
        self.changed = set(boxes)
        for name in boxes:
            if diagram.boxes[name].kind == "ssd" and meta.get("weight_bytes"):
                self._set(name, ("ssd", "weights"), int(meta["weight_bytes"]))

    def take(self, event: Event) -> None:
        if event.kind == "counter":
            box = self.diagram.home(event.name)
            if box in self._held:
                self._set(box, (event.name, event.label), event.nbytes)
        elif event.kind == "transfer" and event.label == "weights":
            box = self.diagram.home(event.target, rank_of(event.source))
            if box in self._held:
                self.arrived[box] += event.nbytes
                self.loads.add(box)
                self.changed.add(box)

    def _set(self, box: str, what: tuple[str, str], nbytes: int) -> None:
        levels: dict[str, int] = {}
        self._held[box][what] = nbytes
        for (_, label), n in self._held[box].items():
            if n:
                levels[label] = levels.get(label, 0) + n
        self.levels[box] = levels
        self.most[box] = max(self.most[box], sum(levels.values()))
        if in_use(levels) > in_use(self.peaks[box]) or not self.peaks[box]:
            self.peaks[box] = levels
        self.changed.add(box)

    def room(self, box: str) -> int | None:
        """Bytes that it can hold, if known."""
        return self._rooms.get(box, self._rooms.get(self.diagram.boxes[box].kind))

    def state(self, name: str, total: bool) -> State:
        """How a box looks now or, in all, at its peak."""
        box, capacity = self.diagram.boxes[name], self.room(name)
        levels = self.peaks[name] if total else self.levels[name]
        there = levels.get("weights", 0)
        if box.kind == "hbm" and name in self.loads and not total:
            there = min(there, self.arrived[name])
        top, magnified = scale(self.most[name], capacity)
        layers = _layers(levels, there)
        state, edges = _fill(name, box, layers, top)
        held, used = held_words(in_use(levels), capacity), amount(in_use(levels), "B")
        if box.kind == "ssd":  # of a disk we know what is free
            held = used = f"{amount(capacity, 'B')} free" if capacity else ""
        peak = "peak " * bool(total and levels and box.kind != "ssd")
        said, room = [peak + used], box.w - 14
        if box.low:
            said, room = [held, used], box.w - 24 - width(box.title, LARGE, True)
        else:
            state |= _words(name, box, edges, layers, top if magnified else 0)
            state[f"{name}/of"] = fit(["" if used == held else f"of {amount(capacity, 'B')}"], room)
        how = "emulated in DRAM" if box.kind == "hbm" and self.diagram.emulated else "measured"
        drawn = [f"drawn up to {amount(top, 'B')}, so that it can be seen"] if magnified else []
        tip = [held, *(said[0] for _, said in layers.values()), *drawn, how]
        tips = {"tip": "".join(f"\n{line}" for line in tip if line)}
        return state | {name: tips, f"{name}/say": fit(said, room)}


def in_use(levels: Mapping[str, int]) -> int:
    """Bytes; of a pool only the pages that are."""
    return sum(n for label, n in levels.items() if label != RESERVED)


def scale(peak: int, capacity: int | None) -> tuple[float, bool]:
    """Bytes that the top of a tank stands for, and whether that is less than all of it.

    >>> scale(12 * 2**20, 64 * 2**20), scale(2 * 2**20, 24 * 2**30)
    ((67108864, False), (4194304, True))
    """
    if capacity and 8 * peak >= capacity:
        return capacity, False
    top = 4096
    while top < 1.25 * peak:
        top *= 2
    return (capacity, False) if capacity and top >= capacity else (top, peak > 0)


def _layers(levels: Mapping[str, int], there: int) -> dict[str, tuple[int, list[str]]]:
    """Bytes and wordings by layer. there: of the weights' room what is filled.

    The rest is called after what is most of it. What is very small is seen, but not named.
    """
    known = {label: levels.get(label, 0) for label in ("weights", "kv", RESERVED)}
    rest = {label: n for label, n in levels.items() if label not in known}
    most = max(rest, key=lambda label: rest[label], default="")
    labels = dict(zip(LAYERS, ("weights", "", "kv", RESERVED, most), strict=True))
    sizes = {"": known["weights"] - there, **known, most: sum(rest.values()), "weights": there}
    layers = {}
    for layer, label in labels.items():
        whole, said = known.get(label, sizes[label]), meaning.said(label)
        part = sizes[label] < whole
        much = held_words(sizes[label], whole) if part else amount(whole, "B")
        named = label and whole * UNNAMED > sum(levels.values())
        short = much if part else said
        layers[layer] = sizes[label], [f"{said} {much}", short] if named else [""]
    return layers


def held_words(used: int, capacity: int | None) -> str:
    """How full a memory is.

    >>> held_words(5 * 2**20, 64 * 2**20), held_words(5 * 2**20, 2**30)
    ('5 of 64 MiB', '5 MiB of 1 GiB')
    """
    held, whole = amount(used, "B"), amount(capacity or 0, "B")
    number, unit = held.split()
    same = whole.endswith(f" {unit}") or not used
    return f"{number if same else held} of {whole}" if capacity else held


def _fill(name: str, box: Box, layers: dict, top: float) -> tuple[State, dict]:
    """The layers, one on the other, and where each begins and how long it is."""
    x, y, w, h = box.tank or (0, 0, 0, 0)
    state, edges, low, long = {}, {}, 0.0, w if box.low else h
    for layer, (nbytes, _) in layers.items():
        size = round(min(long - low, max(1.5, long * nbytes / top)), 1) if nbytes else 0
        edges[layer] = low, size
        start = {"x": x + low} if box.low else {"y": round(y + h - low - size, 1)}
        state[f"{name}/{layer}"] = start | {"width" if box.low else "height": size}
        low = round(low + size, 1)
    return state, edges


def _words(name: str, box: Box, edges: dict, layers: dict, top: float) -> State:
    """Names inside thick layers, and above the surface for thin ones; where a magnified tank ends.

    top: the bytes at its upper edge, if it goes on beyond.
    """
    _, y, w, h = box.tank or (0, 0, 0, 0)
    total = sum(size for _, size in edges.values())
    free = top and total + 22 < h  # not where the surface would strike it through
    said = [f"top = {amount(top, 'B')}", amount(top, "B")] if free else [""]
    state: State = {f"{name}/torn": {"visibility": "visible" if top else "hidden"},
                    f"{name}/top": fit(said, w - 8)}  # fmt: skip
    last, highest = -20.0, h - (26 if free else 8)
    for layer, (low, size) in edges.items():
        size += edges["awaited"][1] if layer == "weights" else 0
        middle = max(low + size / 2 if size >= 16 else total + 9, last + 14)
        said = layers[layer][1] if middle <= (h - 6 if size >= 16 else highest) else [""]
        last = middle if said[0] else last
        place = {"y": round(y + h - middle + 4, 1)}
        state[f"{name}/{layer}/say"] = place | fit(said, w - 10)
    return state
