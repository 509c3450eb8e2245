"""Pictures of a run. Each is a plain function of a trace; the engine knows none of them.

Alive, in a notebook:

    with watch(trace, "machine", "timeline", "memory"):   views that move while the block runs
    replay(trace or "run.json")                           play, pause, any moment, any token

Still, with a finding in a sentence:

    machine(trace)         what each tier held and what crossed each link
    timeline(trace)        which resource was busy when: the load, a request, one token
    memory(trace)          HBM and DRAM over time, by label, with the peak
    stages(trace)          the table stage · bytes · time · share
    roofline, ladder, predicted_measured   what limits a run: its work against its ceilings
    curve                  predictions as lines, with the reader's point on each: for a knob
    blocks                 pages of a KV cache: the pool, and whose block table names which
    bars                   shares as bars, and what they were before: how likely each word is
    pieces                 a text in blocks, as a tokenizer cuts it, with their ids
    heatmap                shares as shades, a row each: where a token looks
    looks                  who looks at whom in a batch, padded and packed, to one scale
    counted                "1 token", "2 tokens": a number in a title, right for one as well
    requests               an engine's log: how long each request waited, and for what
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minillm.charts.bar_rows import bars
    from minillm.charts.blocks_view import blocks
    from minillm.charts.compare import predicted_measured
    from minillm.charts.curves import curve
    from minillm.charts.heat import heatmap, looks
    from minillm.charts.ink import counted
    from minillm.charts.links import ladder
    from minillm.charts.live import RunView, watch
    from minillm.charts.logs import requests
    from minillm.charts.machine_view import machine
    from minillm.charts.page import replay
    from minillm.charts.pieces_view import pieces
    from minillm.charts.plots import memory, stages
    from minillm.charts.roofs import roofline
    from minillm.charts.show import Table
    from minillm.charts.style import Chart
    from minillm.charts.timeline_still import timeline

# Each public name and the module it comes from, imported when the name is first used: a live view
# is on the page before a drawing library is there. So no module may be called like a public name.
_HOME = {
    "Chart": "style", "RunView": "live", "Table": "show", "bars": "bar_rows",
    "blocks": "blocks_view", "counted": "ink", "curve": "curves", "heatmap": "heat",
    "ladder": "links", "looks": "heat", "machine": "machine_view", "memory": "plots",
    "pieces": "pieces_view", "predicted_measured": "compare", "replay": "page", "requests": "logs",
    "roofline": "roofs", "stages": "plots", "timeline": "timeline_still", "watch": "live",
}  # fmt: skip
__all__ = [
    "Chart", "RunView", "Table", "bars", "blocks", "counted", "curve", "heatmap", "ladder", "looks",
    "machine", "memory", "pieces", "predicted_measured", "replay", "requests", "roofline", "stages",
    "timeline", "watch",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'minillm.charts' has no attribute {name!r}")
    value = getattr(import_module(f"minillm.charts.{_HOME[name]}"), name)
    globals()[name] = value  # the next use does not come here
    return value
