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
"""

from minillm.charts.compare import predicted_measured
from minillm.charts.ladder import ladder
from minillm.charts.live import RunView, watch
from minillm.charts.machine_view import machine
from minillm.charts.plots import memory, stages
from minillm.charts.replay import replay
from minillm.charts.roofline import roofline
from minillm.charts.show import Chart, Table
from minillm.charts.timeline import timeline

__all__ = [
    "Chart", "RunView", "Table", "ladder", "machine", "memory", "predicted_measured",
    "replay", "roofline", "stages", "timeline", "watch",
]  # fmt: skip
