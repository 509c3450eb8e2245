"""The title of the machine: what a run moved, in one sentence with its numbers."""

from __future__ import annotations

from minillm.charts import facts, loading
from minillm.charts.ink import amount, counted, times
from minillm.charts.machine_flows import Flow
from minillm.trace import Trace


def find(trace: Trace, flows: dict[str, Flow]) -> str:
    """What came in, from where, and how often it was read.

    flows: what crossed the links of its machine; see machine_flows.py.
    """
    events = facts.work(trace)
    if moves := loading.streamed(events):
        tokens = counted(loading.count_tokens(moves), "token")
        return f"{_size(sum(e.nbytes for e in moves))} of weights crossed to HBM for {tokens}"
    read, disk = ([flow for step, flow in flows.items() if step.startswith(kind)]
                  for kind in ("+read", "+disk"))  # fmt: skip
    in_all, loaded = (sum(flow.nbytes for flow in some) for some in (read, disk))
    load, again = loading.overlap(events), f"compute then read {_size(in_all)} from HBM"
    if load.cached:
        came = f"{_size(load.nbytes)} came out of the page cache"
        again = f"{again}, {times(in_all / load.nbytes)} as much"
        return f"{came}; {again if in_all else 'the SSD was not asked'}"
    if loaded and in_all:
        what = "of weights " if disk[0].label == "weights" else ""
        part = f" ({_size(loaded)} off the SSD)" if loaded < 0.99 * load.nbytes else ""
        came = max(loaded, load.nbytes)  # the page cache may have had the rest
        return f"{_size(came)} {what}came in once{part}; {again}, {times(in_all / came)} as much"
    if some := read or disk:
        busy = max(flow.seconds for flow in some)
        rate = amount((in_all or loaded) / busy if busy else 0.0, "B/s")
        came = f"{_size(loaded)} came in from SSD"
        return f"{f'Compute read {_size(in_all)} from HBM' if read else came} at {rate}"
    moved = max(flows.values(), key=lambda flow: flow.nbytes, default=None)
    if moved is None:
        return "No bytes moved between the memories in this run"
    if moved.ink == "network":
        in_all = sum(e.nbytes for e in events if e.name == moved.label)
        if in_all > moved.nbytes:  # each node has links of its own
            return f"{_size(in_all)} of {moved.label} moved between GPUs, on all nodes together"
    return f"{_size(moved.nbytes)} of {moved.label or 'data'} moved, at {amount(moved.rate, 'B/s')}"


def _size(nbytes: int) -> str:
    return amount(nbytes, "B")
