"""One event of a trace, and what a list of them adds up to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class StageTotal:
    """What one stage did: bytes, busy seconds, and its share (0 to 1) of all stages' seconds."""

    stage: str
    nbytes: int
    seconds: float
    share: float


def busy_seconds(events: Iterable[Event]) -> float:
    """Seconds in which at least one of them was under way: two at once count once."""
    total = until = 0.0
    for event in sorted(events, key=lambda e: e.start):
        total += max(0.0, event.end - max(until, event.start))
        until = max(until, event.end)
    return total


def by_stage(events: Sequence[Event]) -> list[StageTotal]:
    """Bytes and seconds of each stage.

    seconds: as `busy_seconds`, so that a layer inside a step is not counted twice. nbytes: every
    transfer, and every span with bytes that does not lie inside another such span of its stage.
    """
    rows = []
    for stage in STAGES:
        work = [e for e in events if e.stage == stage and e.kind != "counter"]
        work.sort(key=lambda e: (e.start, -e.seconds))
        nbytes, span_end = 0, 0.0
        for event in work:
            if event.kind == "transfer":
                nbytes += event.nbytes
            elif event.nbytes and (event.end > span_end):
                nbytes += event.nbytes
                span_end = event.end
        rows.append((stage, nbytes, busy_seconds(work)))
    total = sum(seconds for _, _, seconds in rows)
    return [StageTotal(s, n, seconds, seconds / total if total else 0.0) for s, n, seconds in rows]
