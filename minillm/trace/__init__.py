"""The trace: every byte that moves between tiers and every second of work, in one place.

event.py     one thing that happened
record.py    writing: made to cost little, for it runs inside what it measures
trace.py     reading, saving, merging
ranks.py     the traces of several processes, put on one clock
perfetto.py  the file: a Chrome trace, which opens in Perfetto
"""

from minillm.trace.event import RESOURCES, STAGES, Event, bare, busy_seconds, rank_of
from minillm.trace.record import At, Record, Running, Stamp
from minillm.trace.trace import Trace

__all__ = [
    "RESOURCES", "STAGES", "At", "Event", "Record", "Running", "Stamp", "Trace", "bare",
    "busy_seconds", "rank_of",
]  # fmt: skip
