"""What a run moves through the links of the machine, and how that looks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from minillm.charts import facts, meaning
from minillm.charts.ink import INK, amount, percent
from minillm.charts.machine_diagram import OVER, UNDER, Diagram, Link, State
from minillm.charts.machine_svg import PLAIN, SMALL, fit, look
from minillm.trace import Event, bare, busy_seconds, rank_of

# Whose ceiling holds for a kind of link.
LIMITS = {"disk": "ssd", "pcie": "copy", "read": "hbm", "nic": "network", "bus": ""}
CACHED = 1.1  # of the disk's ceiling: what is read faster than that was in DRAM already


@dataclass(frozen=True)
class Flow:
    """What crossed a link in one direction. Seconds in which two moved at once count once."""

    nbytes: int
    seconds: float
    label: str
    how: str
    ceiling: float | None  # bytes/s
    ink: str  # a key of ink.INK

    @property
    def rate(self) -> float:
        """Bytes/s while it moved."""
        return self.nbytes / self.seconds if self.seconds else 0.0


def way(event: Event, diagram: Diagram) -> list[str]:
    """The links that its bytes pass: "+pcie" along that one, "-pcie" against it.

    Work of compute reads its HBM; other work moves nothing. A tier without a rank is of the node
    of the other end.

    >>> way(Event("transfer", "read", "load", "ssd", 0, 1, 9, "ssd", "dram"), arrange())
    ['+disk']
    """
    begin, end = event.source, event.target
    if event.kind == "span":
        end = event.resource
        begin = end.replace("compute", "hbm")
    rank = rank_of(begin) or rank_of(end)
    one, two = diagram.home(begin, rank), diagram.home(end, rank)
    return diagram.way(one, two) if one and two and one != two else []


def crossed(
    events: Iterable[Event], diagram: Diagram, ceilings: Mapping[str, float]
) -> dict[str, Flow]:
    """What crossed each link, by direction: "+pcie" along the link of that name, "-pcie" against.

    What the GPUs of a node sent into their switch in all is there too, by its name: "nvlink".
    """
    moved: dict[str, list[Event]] = {}
    for event in facts.moving(events):
        for step in way(event, diagram):
            moved.setdefault(step, []).append(event)
            link = diagram.links[step[1:]]
            if link.kind == "nvlink" and step[0] == "+":
                moved.setdefault(link.end, []).append(event)
    return {step: _flow(diagram, step, events, ceilings) for step, events in moved.items()}


def limit(link: Link, ceilings: Mapping[str, float]) -> float | None:
    """Bytes/s that it can carry at most, if known."""
    if link.kind == "pcie" and link.end.startswith("switch"):
        return None  # several ranks share it: no one's ceiling is its own
    return meaning.ceiling(ceilings, LIMITS.get(link.kind, link.kind))


def _flow(diagram: Diagram, step: str, events: list[Event], ceilings: Mapping[str, float]) -> Flow:
    """events: what took this step. The largest gives the words."""
    link, largest = diagram.links.get(step[1:]), max(events, key=lambda e: e.nbytes)
    reads = largest.kind == "span"
    ink = {"disk": "ssd", "read": "hbm"}.get(link.kind if link else "", bare(largest.target))
    return Flow(
        sum(e.nbytes for e in events), busy_seconds(events),
        label="weights, KV" if reads else meaning.said(largest.label) or largest.name,
        how="predicted" if reads and facts.guessed(largest) else largest.how,
        ceiling=limit(link, ceilings) if link else None,
        ink="network" if bare(largest.resource) == "network" else ink,
    )  # fmt: skip


@lru_cache(1024)
def link_state(
    name: str, link: Link, flows: tuple[tuple[str, Flow], ...], ceiling: float | None,
    moves: bool, total: bool,
) -> State:  # fmt: skip
    """How a link looks with what crosses it, by sign, or crossed it last: dots, figures, tip.

    ceiling: of the link, said before anything has moved. total: of a whole run.
    """
    ways, state = dict(flows), {}
    for sign in "+-":
        state[f"{name}/{sign}"] = _dots(ways.get(sign) if moves else None, sign, total)
    over, under = _figures(link, ways, total)
    if not ways:
        known = [["ceiling"], [amount(ceiling, "B/s")]] if ceiling else []
        over, under = [[link.title]], known
    said = [line[0] for line in (*reversed(over), *under)]
    state[name] = {"tip": "\n" + (" · ".join(said) if ways else "nothing has moved")}
    if link.kind == "infiniband":
        said = ["InfiniBand", *(said if ways else said[1:])]
        wordings = [" · ".join(said[:n]) for n in range(len(said), 0, -1)]
        state[f"{name}/over/0"] = fit(wordings, link.room)
    elif link.room:
        for i in range(OVER):
            bold = i == 0 and moves
            words = fit((over[i:] or [[""]])[0], link.room, PLAIN if bold else SMALL, bold)
            state[f"{name}/over/{i}"] = look("figure" if bold else "say") | words
        for i in range(UNDER):
            state[f"{name}/under/{i}"] = fit((under[i:] or [[""]])[0], link.room)
    return state


def _dots(flow: Flow | None, sign: str, total: bool) -> dict[str, Any]:
    """Speed and density follow bytes/s, both by its logarithm: 1 MB/s ... 1 TB/s as 0 ... 1."""
    if flow is None:
        return {"class": "lane", "stroke": "none", "data-flow": 0}
    pace = min(1.0, max(0.0, (math.log10(flow.rate + 1) - 6) / 6))
    speed = 0 if total else round(14 + 80 * pace)
    apart = round(24 - 13 * pace)
    return {"class": f"lane {flow.ink}", "stroke": INK[flow.ink].colour,
            "stroke-dasharray": f"0 {apart}", "stroke-dashoffset": -apart / 2,
            "data-flow": speed if sign == "+" else -speed}  # fmt: skip


def _figures(
    link: Link, ways: Mapping[str, Flow], total: bool
) -> tuple[list[list[str]], list[list[str]]]:
    """Lines over a pipe and under it, from the pipe outward, each with a shorter wording if need
    be. The larger direction has most."""
    over, under = [], []
    for sign, flow in sorted(ways.items(), key=lambda way: -way[1].nbytes):
        arrow, size = link.arrow(sign), amount(flow.nbytes, "B")
        if over:
            under.append([f"{arrow} {flow.label} {size}", f"{arrow} {size}"])
            continue
        over = [[amount(flow.rate, "B/s") if flow.rate else "at once"]]
        over += [[size]] if total else []
        over.append([f"{flow.label or 'bytes'} {arrow}"])
        under = [[flow.how]]
        if flow.ceiling and flow.rate:
            share = percent(flow.rate, flow.ceiling)
            under.append([f"{share} of ceiling", share])
            if flow.rate > CACHED * flow.ceiling and link.kind == "disk":
                under.append(["(page cache)"])
    return over, under
