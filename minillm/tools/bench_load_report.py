"""What `bench load` found, as a table: rates, and ratios taken within a round."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median

import torch

from minillm.machine import Machine
from minillm.trace import busy_seconds

RAW, STOCK, COPIED = "raw", "load_file", "load_file+copy"


@dataclass
class LoadReport:
    """What was measured, by (way, "cold" or "warm"): seconds of each round.

    extra: bytes of private memory that a way takes beside the weights' own, at its peak.
    arena: seconds to make the weights' block of HBM and to touch it first. overlap: of direct,
    cold, the time of its busier link ÷ the whole; copies: on a card, the rate of its pieces and of
    one large pinned copy.
    """

    nbytes: int
    machine: str
    seconds: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    extra: dict[str, int] = field(default_factory=dict)
    arena: float = 0.0
    overlap: list[float] = field(default_factory=list)
    copies: list[tuple[float, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def note_links(self, way: str, state: str, machine: Machine) -> None:
        """How well direct kept its links busy: for `overlap` and `copies`, out of the trace."""
        if (way, state) != ("direct", "cold"):
            return
        links = [machine.trace.select(kind="transfer", resource=link) for link in ("ssd", "copy")]
        whole = [event for link in links for event in link]
        seconds = max(event.end for event in whole) - min(event.start for event in whole)
        self.overlap.append(max(map(busy_seconds, links)) / seconds)
        if machine.emulated:
            return
        pieces = _copy_rate(machine)
        machine.trace.clear()
        with ExitStack() as stack:
            source = machine.empty((2**28,), torch.uint8, "dram", "bench")
            stack.callback(machine.free, source)
            stack.callback(machine.free, machine.copy(source, "hbm", label="bench", stage="load"))
        self.copies.append((pieces, _copy_rate(machine)))

    def times_as_fast(self, way: str, state: str, other: str) -> float:
        """The median over the rounds of how many times as fast a way was as the other."""
        pairs = zip(self.seconds[way, state], self.seconds[other, state], strict=True)
        return median(theirs / ours for ours, theirs in pairs)

    def __str__(self) -> str:
        gigabytes = self.nbytes / 1e9
        lines = [
            self.machine,
            f"{gigabytes:.2f} GB of weights; an arena for them is made and touched in "
            f"{self.arena:.2f} s ({gigabytes / self.arena:.1f} GB/s)",
            f"{'':19}{'GB/s':>7} {'slowest–fastest':>16} {'of raw':>7} {'× load_file':>12} "
            f"{'× with copy':>12} {'extra memory':>13}",
        ]
        for (way, state), seconds in self.seconds.items():
            rates = sorted(gigabytes / s for s in seconds)
            extra = f"{self.extra[way] / 2**20:.0f} MiB" if way in self.extra else ""
            spread = f"{rates[0]:.2f}–{rates[-1]:.2f}"
            lines.append(
                f"{way:14} {state} {median(rates):7.2f} {spread:>16} "
                f"{self.times_as_fast(way, state, RAW):7.0%} "
                f"{self.times_as_fast(way, state, STOCK):12.2f} "
                f"{self.times_as_fast(way, state, COPIED):12.2f} {extra:>13}"
            )
        lines += self.notes
        if self.overlap:
            share = f"{median(self.overlap):.0%} ({min(self.overlap):.0%}–{max(self.overlap):.0%})"
            lines.append(f"direct, cold: its busier link worked {share} of the time")
        for pieces, ceiling in self.copies:
            lines.append(
                f"copies DRAM→HBM {pieces / 1e9:.1f} GB/s, {pieces / ceiling:.0%} of pinned"
            )
        return "\n".join(lines)


def _copy_rate(machine: Machine) -> float:
    """Bytes a second of the copies to HBM in the trace."""
    copies = machine.trace.select(kind="transfer", source="dram", target="hbm")
    return sum(event.nbytes for event in copies) / sum(event.seconds for event in copies)
