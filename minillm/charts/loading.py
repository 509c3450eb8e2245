"""The numbers of a load: when the weights came in, over which links, and what came again later."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from minillm.charts import facts, meaning
from minillm.charts.facts import Window
from minillm.trace import Event, Trace, bare, busy_seconds


def load(trace: Trace) -> Window | None:
    """The window in which the weights came in, with all it holds; None if the trace has no load.

    It begins with the first byte that moves: reading config and headers comes before. Weights that
    were moved for a token belong to its request.
    """
    events = facts.work(trace)
    moving = [e for e in events if _brings_weights(e) and not facts.served(e)]
    # An engine that streams sends for its first layer ahead of any token. That is no load.
    if not moving or sum(e.nbytes for e in moving) < bytes_per_token(streamed(events)):
        return None
    window = Window.around(moving)
    inside = (e for e in events if window.start <= e.start and e.end <= window.stop)
    return Window(window.start, window.stop, tuple(inside))


def _brings_weights(event: Event) -> bool:
    """Whether it is a part of a load: a transfer, or work of the CPU that reads or places them."""
    return event.stage == "load" and (event.kind == "transfer" or event.label == "weights")


def streamed(events: Iterable[Event]) -> list[Event]:
    """The transfers that brought weights to HBM for a token: there they did not stay."""
    return [e for e in events if e.kind == "transfer" and e.stage == "load"
            and facts.served(e) and bare(e.target) == "hbm"]  # fmt: skip


def count_tokens(events: Iterable[Event]) -> int:
    """For how many tokens they were made; those of one step are made together."""
    return len({(e.request, e.step if e.token is None else e.token) for e in events})


def bytes_per_token(moves: list[Event]) -> float:
    """Of streamed weights; 0.0 if none were."""
    return sum(e.nbytes for e in moves) / count_tokens(moves) if moves else 0.0


def panel_title(trace: Trace) -> str:
    """What a panel of the load is called. Streamed weights come in again and again."""
    return "the load" if streamed(trace.events) else "weights in, once"


@dataclass(frozen=True)
class Overlap:
    """Seconds in which each link was busy, and both at once; bytes that came in."""

    ssd: float
    copy: float
    both: float
    nbytes: int
    cached: bool  # whether the page cache gave them, and the SSD was not asked

    @property
    def same(self) -> bool:
        """Whether one call did both: the kernel, which reads and copies on to HBM."""
        return bool(self.both) and self.both > 0.999 * max(self.ssd, self.copy)

    @property
    def share(self) -> float:
        """Of the busy time of the less busy link, what passed while the other was busy too."""
        return self.both / min(self.ssd, self.copy) if self.ssd and self.copy else 0.0


def overlap(events: Iterable[Event]) -> Overlap:
    """What the two links of a load did beside each other."""
    events = [e for e in events if e.stage == "load"]
    moves = [e for e in events if e.kind == "transfer"]
    links = {link: [e for e in moves if bare(e.resource) == link] for link in ("ssd", "copy")}
    ssd, copy = (busy_seconds(link) for link in links.values())
    both = ssd + copy - busy_seconds([*links["ssd"], *links["copy"]])
    nbytes = sum(e.nbytes for e in links["copy"] or links["ssd"])
    cached = not links["ssd"] and any(map(meaning.from_cache, events))
    return Overlap(ssd, copy, max(0.0, both), nbytes, cached)
