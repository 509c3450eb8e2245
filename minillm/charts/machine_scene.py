"""What a run does to the picture: from events to attributes of its parts.

The same `state` makes the moments of a player, the messages of a run under way and, of the whole
run at once, the still. All meaning is here: a page only sets what it is told.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from minillm.charts import meaning
from minillm.charts.ink import amount
from minillm.charts.machine_diagram import Diagram, State
from minillm.charts.machine_flows import Flow, crossed, limit, link_state
from minillm.charts.machine_memories import Memories
from minillm.charts.machine_svg import LARGE, STAGES, WIDE, fit, look, width
from minillm.trace import Event, busy_seconds


class Scene:
    """A run on a diagram: `take` what happened, ask `state` what is to be seen.

    meta: of the trace. total: the whole run at once, each memory at its peak.
    """

    def __init__(self, diagram: Diagram, meta: dict[str, Any], total: bool = False) -> None:
        self.diagram, self.total = diagram, total
        self.ceilings = meta.get("ceilings") or {}
        self.memories = Memories(diagram, meta)
        self.texts: dict[int | None, tuple[str, list[str]]] = {}  # by request: prompt, tokens
        self.request: int | None = None  # whose text is shown
        self._spoke: set[int | None] = set()  # other requests, since that one did
        self._last: dict[str, Flow] = {}  # what crossed each link last, by direction
        self._filled: State = {}

    def take(self, events: Iterable[Event]) -> None:
        """Memory and text up to now."""
        for event in events:
            self.memories.take(event)
            if event.name in ("tokenize", "detokenize"):
                self._hear(event)

    def _hear(self, event: Event) -> None:
        """Of a batch one request's text is shown, until another one speaks twice without it."""
        who = event.request
        if event.name == "tokenize":
            self.texts[who], self.request = (event.detail, []), who
            return
        self.texts.setdefault(who, ("", []))[1].append(event.detail)
        if who == self.request or who in self._spoke or self.request not in self.texts:
            self.request = who
            self._spoke.clear()
        else:
            self._spoke.add(who)

    def state(self, events: Iterable[Event]) -> State:
        """All that may change. events: those under way at this moment, or the whole run."""
        work = [e for e in events if e.kind != "counter"]
        flows = crossed(work, self.diagram, self.ceilings)
        units: dict[str, list[Event]] = defaultdict(list)
        for e in work:
            if e.kind == "span" and meaning.ink(e) != "idle":
                units[self.diagram.home(e.resource)].append(e)
        for name in self.memories.changed:
            self._filled |= self.memories.state(name, self.total)
        self.memories.changed.clear()
        state = self._filled | self._links(flows) | self._text()
        for name in self.diagram.boxes:
            state |= self._unit(name, units[name], flows)
        state |= stages(work, self.total)
        return state | {"scene": {"aria-label": spoken(self.diagram, state, flows)}}

    def _links(self, flows: dict[str, Flow]) -> State:
        """What moves now; of a link at rest what moved last, fainter."""
        state: State = {}
        self._last |= flows
        for name, link in self.diagram.links.items():
            steps = [sign + name for sign in "+-"]
            moves = any(step in flows for step in steps)
            known = flows if moves else self._last
            ways = tuple((step[0], known[step]) for step in steps if step in known)
            ceiling = limit(link, self.ceilings)
            state |= link_state(name, link, ways, ceiling, moves, self.total)
        return state

    def _unit(self, name: str, spans: list[Event], flows: dict[str, Flow]) -> State:
        """What works: at what now or, in all, how long; of a GPU in a row, how fast it reads."""
        box = self.diagram.boxes[name]
        if box.kind in ("switch", "nvlink"):
            flow = flows.get(name)
            figure = flow and amount(*((flow.nbytes, "B") if self.total else (flow.rate, "B/s")))
            said = [f"{box.title} · {figure}"] if figure else []
            return {f"{name}/say": fit([*said, box.title], box.h - 10)}
        if box.kind not in ("cpu", "compute"):
            return {}
        latest = max(spans, key=lambda e: e.start).name if spans else "idle"
        busy = f"busy {amount(busy_seconds(spans), 's')}" if spans else "idle"
        said = [busy, busy.removeprefix("busy ")] if self.total else [latest, latest.split(" ")[0]]
        read = flows.get(f"+read{name.removeprefix('compute') or ':0'}")
        if read and box.low and box.kind == "compute":
            said = [f"reads {amount(read.rate, 'B/s')}", amount(read.rate, "B/s")]
        tip = busy if self.total else f"now: {latest}"
        lit = bool(spans) and not self.total
        state = {name: look("card busy" if lit else "card") | {"tip": f"\n{tip}"},
                 f"{name}/say": fit(said, box.w - 14)}  # fmt: skip
        if box.kind == "compute" and not box.low:
            state[f"{name}/cells"] = look("cells busy" if spans else "cells")
        return state

    def _text(self) -> State:
        """The prompt faint, what was said, the newest token; of a long text the end is shown."""
        prompt, words = self.texts.get(self.request, ("", []))
        new, before = visible("".join(words[-1:])), visible("".join(words[-100:-1]))
        spans = {"new": new, "words": before, "prompt": visible(prompt)}
        room, state = WIDE - 30.0, {}
        for span, text in spans.items():
            shown = tail(text, room, bold=span == "new")
            room -= width(shown, LARGE, span == "new") if shown == text else room
            state[span] = {"text": shown}
        token = "␣" + new[1:] if new.startswith(" ") else new
        said = f"token {len(words) - 1}" + ", the last one" * self.total if words else "next token"
        state["token/word"] = fit([token or ("…" if words else "")], 134, 18, bold=True)
        return state | {"token/say": {"text": said}}


def stages(work: Sequence[Event], total: bool) -> State:
    """The stage that has most of the time is lit, not in a still; others in it are near."""
    spent: dict[str, float] = defaultdict(float)
    for e in work:
        spent[e.stage] += e.seconds
    lit = "" if total else max(spent, key=lambda stage: spent[stage], default="")
    state: State = {}
    for stage in STAGES:
        kind = "stage lit" if stage == lit else "stage near" if stage in spent else "stage"
        state[f"stage/{stage}"] = look(kind)
        state[f"stage/{stage}/bar"] = look("rule lit" if stage == lit else "rule")
    return state


def spoken(diagram: Diagram, state: State, flows: dict[str, Flow]) -> str:
    """The picture in a sentence, for who cannot see it: of what flows the largest few."""
    said = [f"Stage {STAGES[stage]}" for stage in STAGES
            if state[f"stage/{stage}"]["class"] == "stage lit"]  # fmt: skip
    held = [name for name, box in diagram.boxes.items() if box.kind in ("dram", "hbm")]
    said += [f"{diagram.boxes[name].title} {state[f'{name}/say']['text']}" for name in held[:4]]
    moved = [(step, flow) for step, flow in flows.items() if step[0] in "+-"]
    for step, flow in sorted(moved, key=lambda one: -one[1].nbytes)[:4]:
        link = diagram.links[step[1:]]
        ends = [diagram.boxes[end].title for end in (link.begin, link.end)][:: int(f"{step[0]}1")]
        said.append(f"{' to '.join(ends)}: {flow.label or 'bytes'} at {amount(flow.rate, 'B/s')}, "
                    f"{flow.how}")  # fmt: skip
    word = state["token/say"]["text"], state["token/word"]["text"]
    return f"The machine. {'; '.join(said)}; {': '.join(filter(None, word))}."


def tail(text: str, room: float, size: float = LARGE, bold: bool = False) -> str:
    """As much of the end of a text as fits."""
    start = len(text)
    while start and (room := room - width(text[start - 1], size, bold)) >= 0:
        start -= 1
    return text[start:].lstrip() if start else text


def visible(text: str) -> str:
    """With signs for what cannot be seen."""
    return text.replace("\n", "⏎").replace("\t", "⇥")
