"""One event of a trace, and the time in which some were under way."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

STAGES = ("load", "tokens", "model", "parallel", "decode")
RESOURCES = ("ssd", "copy", "cpu", "compute", "network")


class Event(NamedTuple):
    """One thing that happened. Times are seconds since the trace began; sizes are bytes.

    A tuple, for a busy engine makes thousands a second.

    kind      "span", "transfer" or "counter"
    stage     one of STAGES ("" for a counter)
    resource  what was busy, one of RESOURCES ("" for a counter)
    nbytes    bytes moved or, for a counter, bytes that `label` holds in tier `name` from now on
    source    and target: tiers of a transfer, "ssd", "dram", "hbm" or "cpu"; "hbm:3" is rank 3's
    label     whose bytes: weights, kv, ids, logits, text, …
    token     index of the generated token it was done for (prefill is for token 0)
    request   number of the request it was done for
    how       "measured", "emulated" or "predicted"
    detail    which tensor, which layer; of tokenize and detokenize the text itself
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
    token: int | None = None
    request: int | None = None
    how: str = "measured"
    detail: str = ""

    @property
    def end(self) -> float:
        """Seconds since the trace began at which it was over."""
        return self.start + self.seconds


def busy_seconds(events: Iterable[Event]) -> float:
    """Seconds in which at least one of them was under way: two at once count once."""
    total = until = 0.0
    for event in sorted(events, key=lambda e: e.start):
        total += max(0.0, event.end - max(until, event.start))
        until = max(until, event.end)
    return total
