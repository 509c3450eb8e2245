"""The title of the machine: what a run moved, in one sentence with its numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from minillm.charts import facts, loading
from minillm.charts.ink import amount, times
from minillm.trace import Trace

if TYPE_CHECKING:
    from minillm.charts.machine_view import Flow


def find(trace: Trace, flows: dict[str, Flow], sheet: dict[str, Any]) -> str:
    """What came in, from where, and how often it was read.

    flows: what crossed the links of `sheet`; see machine_view.py.
    """
    events = facts.work(trace)
    if moves := loading.streamed(events):
        moved, tokens = sum(e.nbytes for e in moves), loading.count_tokens(moves)
        return f"{_size(moved)} of weights crossed to HBM for {_tokens(tokens)}"
    read = [flow for step, flow in flows.items() if _kind(step, sheet) == "+read"]
    in_all = sum(flow.nbytes for flow in read)
    again = f"compute then read {_size(in_all)} from HBM"
    load = loading.overlap(events)
    if load.cached:
        came = f"{_size(load.nbytes)} came out of the page cache"
        if not in_all:
            return f"{came}; the SSD was not asked"
        return f"{came}; {again}, {times(in_all / load.nbytes)} as much"
    disk = [flow for step, flow in flows.items() if _kind(step, sheet) == "+disk"]
    loaded = sum(flow.nbytes for flow in disk)
    if loaded and in_all:
        what = "of weights " if disk[0].label == "weights" else ""
        return f"{_size(loaded)} {what}came in once; {again}, {times(in_all / loaded)} as much"
    if read:
        return f"Compute read {_size(in_all)} from HBM at {_rate(in_all, read)}"
    if disk:
        return f"{_size(loaded)} came in from SSD at {_rate(loaded, disk)}"
    return _largest(flows)


def _largest(flows: dict[str, Flow]) -> str:
    """Of a run that is neither a load nor a request."""
    moved = max(flows.values(), key=lambda flow: flow.nbytes, default=None)
    if moved is None:
        return "No bytes moved between the memories in this run"
    return f"{_size(moved.nbytes)} of {moved.label or 'data'} moved, at {amount(moved.rate, 'B/s')}"


def _kind(step: str, sheet: dict[str, Any]) -> str:
    return step[0] + sheet["links"][step[1:]]["kind"]


def _rate(nbytes: int, flows: list[Flow]) -> str:
    busy = max(flow.seconds for flow in flows)
    return amount(nbytes / busy if busy else 0.0, "B/s")


def _tokens(count: int) -> str:
    return "1 token" if count == 1 else f"{count:,} tokens"


def _size(nbytes: int) -> str:
    return amount(nbytes, "B")
