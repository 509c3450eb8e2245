"""How a ceiling is measured: the same work several times, the spread kept, and how it was done."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from minillm.units import format_value


class NotHere(Exception):
    """Something that cannot be measured on this machine; says why. Inside the probe only."""


@dataclass(frozen=True)
class Measurement:
    """One ceiling of this machine: several runs, their median and their spread.

    unit: "bytes/s", "flop/s" or "s". how: what was run, on how much, by how many threads.

    >>> Measurement("dram.read", "bytes/s", 49e9, 47e9, 50e9, 9, "memchr, 2 threads").share(43e9)
    0.86
    """

    name: str
    unit: str
    median: float
    low: float
    high: float
    runs: int
    how: str

    @property
    def best(self) -> float:
        """The ceiling: the fastest run, for whatever disturbs a run makes it slower."""
        return self.low if self.unit == "s" else self.high

    def share(self, value: float) -> float:
        """What part of this ceiling `value`, in the same unit, reaches; 1 is all of it."""
        return self.best / value if self.unit == "s" else value / self.best

    def of(self, value: float) -> str:
        """`value` with its ceiling, as every number is printed here.

        >>> Measurement("dram.read", "bytes/s", 49e9, 47e9, 50e9, 9, "memchr").of(43e9)
        '43.0 GB/s, 86 % of dram.read'
        """
        percent = round(100 * self.share(value))
        return f"{format_value(value, self.unit)}, {percent} % of {self.name}"

    def __str__(self) -> str:
        low, high = format_value(self.low, self.unit), format_value(self.high, self.unit)
        value = format_value(self.median, self.unit)
        return f"{self.name:<22} {value:>13}   {low} … {high} in {self.runs} runs; {self.how}"


def summary(name: str, unit: str, samples: Sequence[float], how: str) -> Measurement:
    """The median and the spread of some samples."""
    return Measurement(
        name, unit, statistics.median(samples), min(samples), max(samples), len(samples), how
    )


def rates(
    run: Callable[[], object], amount: float, seconds: float, least: int = 3,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:  # fmt: skip
    """`amount` a second, for each of several runs: for about `seconds`, at least `least` times.

    One run before them, not counted, warms caches, page tables and thread pools.
    """
    run()
    samples: list[float] = []
    end = clock() + seconds
    while len(samples) < least or clock() < end:
        begin = clock()
        run()
        samples.append(amount / max(clock() - begin, 1e-9))
    return samples
