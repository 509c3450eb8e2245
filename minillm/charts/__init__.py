"""Pictures of a run. Each is a plain function of a trace; the engine knows none of them.

    strip(here, trace)     the five stages, with 'you are here' or with what each did
    timeline(trace)        which resource was busy when: the load, a request, one token
    memory(trace, budget)  HBM and DRAM over time, by label, with the peak
    journey(trace)         where the microseconds of a token went
    stages(trace)          the table stage · bytes · time · share
"""

from minillm.charts.plots import journey, memory, stages
from minillm.charts.show import Chart, Table
from minillm.charts.strip import strip
from minillm.charts.timeline import timeline

__all__ = ["Chart", "Table", "journey", "memory", "stages", "strip", "timeline"]
