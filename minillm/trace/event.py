"""One event of a trace, and the time in which some were under way."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

STAGES = ("load", "tokens", "model", "parallel", "decode")
RESOURCES = ("ssd", "copy", "cpu", "compute", "network")


class Event(NamedTuple):
    """One thing that happened. Times are seconds since the trace began; sizes are bytes.

    A tuple, for a busy engine makes thousands a second.

    kind       "span", "transfer" or "counter"
    stage      one of STAGES ("" for a counter)
    resource   what was busy, one of RESOURCES ("" for a counter); "compute:3" is rank 3's
    nbytes     bytes moved or, for a counter, bytes that `label` holds in tier `name` from now on
    source     and target: tiers of a transfer, "ssd", "dram", "hbm" or "cpu"; "hbm:3" is rank 3's
    label      whose bytes: weights, kv, ids, logits, text, …
    step       number of the engine's forward pass it was done for
    token      index of the generated token it was done for (prefill is for token 0)
    request    number of the request it was done for; of work for several at once all agree, or None
    model      name of the model it was done for; "" where there is just one
    rank       number of the process that recorded it, in a merged trace
    link       what a transfer went over: "nvme", "pcie", "nvlink", "infiniband", …; "" within DRAM
    how        of the time: "measured", "emulated" or "predicted"
    bytes_how  of the bytes: the same words
    detail     which tensor, which layer; of tokenize and detokenize the text itself
    """

    kind: str
    name: str
    stage: str
    resource: str
    start: float
    seconds: float
    nbytes: int = 0
    source: str = ""
    target: str = ""
    label: str = ""
    step: int | None = None
    token: int | None = None
    request: int | None = None
    model: str = ""
    rank: int | None = None
    link: str = ""
    how: str = "measured"
    bytes_how: str = "measured"
    detail: str = ""

    @property
    def end(self) -> float:
        """Seconds since the trace began at which it was over."""
        return self.start + self.seconds


def bare(name: str) -> str:
    """A tier or resource without its rank: 'hbm:3' -> 'hbm'."""
    return name.partition(":")[0]


def rank_of(name: str) -> int:
    """The rank of a tier or resource: 3 for 'hbm:3', 0 for 'hbm'."""
    return int(name.partition(":")[2] or 0)


@cache
def link_between(source: str, target: str) -> str:
    """Which link joins two tiers: "" if they are one, or if both are in DRAM.

    >>> link_between("ssd", "dram"), link_between("dram", "hbm:1"), link_between("hbm", "hbm:1")
    ('nvme', 'pcie', 'nvlink')
    """
    ends = {"dram" if bare(end) == "cpu" else bare(end) for end in (source, target)}
    if ends == {"hbm"}:
        return "nvlink" if source != target else ""
    return "nvme" if "ssd" in ends else "pcie" if "hbm" in ends else ""


def busy_seconds(events: Iterable[Event]) -> float:
    """Seconds in which at least one of them was under way: two at once count once."""
    total = until = 0.0
    for event in sorted(events, key=lambda e: e.start):
        total += max(0.0, event.end - max(until, event.start))
        until = max(until, event.end)
    return total
