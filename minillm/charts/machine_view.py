"""The machine: the still of a run, and what a page needs to move the same picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from minillm.charts import facts
from minillm.charts.machine_diagram import Diagram, State
from minillm.charts.machine_finding import find
from minillm.charts.machine_flows import crossed
from minillm.charts.machine_frames import differs, moments
from minillm.charts.machine_places import plan
from minillm.charts.machine_scene import Scene
from minillm.charts.machine_svg import WIDE, heading, png, svg
from minillm.charts.show import pack
from minillm.errors import MinillmError
from minillm.files import save
from minillm.trace import Event, Trace

ACROSS = 672  # CSS pixels of a still, which has two or more of its own for each


@dataclass(frozen=True)
class Picture:
    """A still of the machine, with a finding: its title, one sentence with numbers of this run.

    A notebook shows it as SVG or, where that is not trusted, as PNG, with `alt` as metadata.
    """

    finding: str
    alt: str
    svg: str
    high: float  # units, of the SVG's 668 across

    @property
    def about(self) -> dict[str, str | int]:
        return {"alt": self.alt, "width": ACROSS, "height": round(ACROSS * self.high / WIDE)}

    def png(self, wide: int = 2 * ACROSS) -> bytes:
        """The picture in pixels, so many across."""
        return png(self.svg, wide)

    def save(self, path: str | Path) -> None:
        """Write a `.png` or `.svg`, whole, else MinillmError."""
        path = Path(path)
        if path.suffix not in (".png", ".svg"):
            raise MinillmError(f"wanted a path that ends in .png or .svg, found {str(path)!r}")
        save(path, self.svg if path.suffix == ".svg" else self.png(), "a chart")

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict, dict]:
        small = pack(Image.open(BytesIO(self.png())).convert("RGB"))
        data = {"image/svg+xml": self.svg, "image/png": small, "text/plain": self.finding}
        return data, dict.fromkeys(("image/svg+xml", "image/png"), self.about)

    def __repr__(self) -> str:
        return self.finding


def machine(trace: Trace) -> Picture:
    """The machine: what each memory held at its peak, and what crossed each link, at which rate.

    Raises MinillmError for a trace in which nothing happened.

    >>> machine(engine.trace)
    11.6 MiB of weights came in once; compute then read 934 MiB from HBM, 80 × as much
    """
    diagram, state = still(trace)
    finding = find(trace, crossed(facts.work(trace), diagram, {}))
    said = heading(finding, facts.provenance(trace, read=True))
    alt = f"{finding}. {state['scene']['aria-label']}"
    return Picture(finding, alt, svg(diagram, state | said), diagram.high)


def still(trace: Trace) -> tuple[Diagram, State]:
    """A whole run at once: the picture of `machine`, and of a page at rest."""
    facts.work(trace)  # an empty trace is an error that says what to do
    diagram = plan(trace)
    scene = Scene(diagram, trace.meta, total=True)
    scene.take(trace.events)
    return diagram, scene.state(trace.events)


def for_page(trace: Trace, over: bool) -> dict[str, Any]:
    """The picture as a page moves it: its SVG, the state at rest, frames by time and by token.

    over: whether the run is; before, it shows the machine as it is when the run begins.
    """
    diagram = plan(trace)
    page = {"svg": svg(diagram, {}), "frames": [], "tokens": {}}
    if over and any(e.kind != "counter" for e in trace.events):
        frames, tokens = moments(trace.events, trace.meta, diagram)
        return page | {"still": still(trace)[1], "frames": frames, "tokens": tokens}
    return page | {"still": Scene(diagram, trace.meta).state([])}


class Follower:
    """A run under way, on the picture that `for_page` began: what changes with more events."""

    def __init__(self, trace: Trace) -> None:
        self._scene = Scene(plan(trace), trace.meta)
        self._shown: State = {}

    def change(self, events: Sequence[Event]) -> State:
        """What of the picture differs, now that these have happened."""
        self._scene.take(events)
        state = self._scene.state(events)
        change, self._shown = differs(self._shown, state), state
        return change
