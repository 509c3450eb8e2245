"""compare: two ways of doing one thing, run in turns, and the sentence that is true of both.

Prose cannot know which way wins on the reader's machine. So the samples write the sentence, and
where they say nothing it says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median, quantiles
from typing import Any

from minillm.errors import ConfigError
from minillm.units import format_value

BEATEN = 1.05  # a ceiling may be passed by this much: clocks and machines are no steadier
ALIKE = 1.05  # what differs by less is called alike, however steady it is
_SCALE = {"s": 1.0, "ms": 1e3, "µs": 1e6}


class Comparison:
    """Samples in seconds of one way or more, and sentences about them.

    seconds: name to samples, at least three each; the numbers of samples may differ.
    unit: "s", "ms" or "µs"; None picks one for each number.

    >>> print(Comparison({"cold": [0.048, 0.047, 0.049], "warm": [0.012] * 3}, unit="ms"))
    warm took 12.0 ms, cold 48.0 ms: warm was 4.0 × as fast (3.9 to 4.1)
    """

    def __init__(
        self, seconds: Mapping[str, Sequence[float]], unit: str | None = None, what: str = ""
    ):
        self.seconds = {name: [float(s) for s in samples] for name, samples in seconds.items()}
        sound = all(len(s) >= 3 and min(s) > 0 for s in self.seconds.values())
        if not self.seconds or not sound or (unit is not None and unit not in _SCALE):
            found = {name: len(samples) for name, samples in self.seconds.items()}
            raise ConfigError(f"wanted three samples above 0 s of each way, and a unit of "
                              f"{list(_SCALE)}; found {found}, {unit!r}; measure more")  # fmt: skip
        self.unit, self.what = unit, what

    def median(self, name: str) -> float:
        """Seconds of the middle sample."""
        return median(self.seconds[name])

    def ratio(self, slow: str, fast: str) -> float:
        """How many times as long `slow` takes as `fast`; below 1 if it is the other way round."""
        return self.median(slow) / self.median(fast)

    def spread(self, slow: str, fast: str) -> tuple[float, float]:
        """The middle 80 % of that ratio, over every sample of one and every sample of the other.

        It holds 1 where the noise is larger than the difference.
        """
        every = [a / b for a in self.seconds[slow] for b in self.seconds[fast]]
        tenths = quantiles(every, n=10, method="inclusive")
        return tenths[0], tenths[-1]

    def faster(self, one: str, other: str) -> str | None:
        """The name of the faster of two; None if the noise is too large, or they are alike."""
        low, high = self.spread(one, other)
        if low <= 1 <= high or 1 / ALIKE < self.ratio(one, other) < ALIKE:
            return None
        return other if low > 1 else one

    @property
    def sentence(self) -> str:
        """Which is fastest and by how much, or that the samples do not tell."""
        names = sorted(self.seconds, key=self.median)
        times = [f"{name} {self.amount(self.median(name))}" for name in names]
        times[0] = times[0].replace(f"{names[0]} ", f"{names[0]} took ", 1)
        said = "; ".join(self._beside(names[0], other, len(names) > 2) for other in names[1:])
        return ": ".join(filter(None, (self.what, ", ".join(times), said)))

    def _beside(self, fast: str, slow: str, several: bool) -> str:
        low, high = self.spread(slow, fast)
        digits = 1 if low >= 1.95 else 2
        spread = f"{low:.{digits}f} to {high:.{digits}f}"
        pair = f"{fast} and {slow}: " if several else ""
        if self.faster(fast, slow):
            than = f" as {slow}" if several else ""
            return f"{fast} was {self.ratio(slow, fast):.{digits}f} × as fast{than} ({spread})"
        if high < ALIKE and low > 1 / ALIKE:
            return f"{pair}no difference beyond {100 * ALIKE - 100:.0f} % ({spread} ×)"
        return f"{pair}the noise ({spread} ×) is larger than the difference: run the cell again"

    def against(self, what: str, seconds: float, name: str | None = None) -> str:
        """A way beside the least time that was predicted for it, as a share of that ceiling.

        name: the way; the first if it is not given.

        >>> result.against("predicted", 0.010)
        'predicted 10.0 ms, warm took 12.0 ms: 83 % of the ceiling'
        """
        name = name or next(iter(self.seconds))
        took = self.median(name)
        share = seconds / took
        said = f"{100 * share:.0f} % of the ceiling"
        if share > BEATEN:
            said += ". Nothing passes a true ceiling: this one was measured too low"
        elif share < 0.5:
            said += f", {1 / share:.1f} × the time"
        return f"{what} {self.amount(seconds)}, {name} took {self.amount(took)}: {said}"

    def amount(self, seconds: float) -> str:
        """A time as the sentences write it: "12.0 ms"."""
        if self.unit is None:
            return format_value(seconds, "s")
        value = seconds * _SCALE[self.unit]
        return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {self.unit}"

    def __str__(self) -> str:
        return self.sentence


def compare(
    ways: Mapping[str, Callable[[], Any]], rounds: int = 5, unit: str | None = None,
    what: str = "", warm_up: bool = True, clock: Callable[[], float] = time.perf_counter,
) -> Comparison:  # fmt: skip
    """Run the ways in turns, one of each a round, so that a busy minute meets all of them.

    A way that returns a float has measured itself, in seconds; any other is timed. warm_up: a
    first round that does not count. Prints nothing.

    >>> compare({"cold": load_cold, "warm": load_warm}, unit="ms").sentence
    'warm took 12.1 ms, cold 48.0 ms: warm was 4.0 × as fast (3.6 to 4.4)'
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + warm_up):
        for name, way in ways.items():
            start = clock()
            own = way()
            seconds[name].append(own if isinstance(own, float) else clock() - start)
    return Comparison({n: s[warm_up:] for n, s in seconds.items()}, unit, what)
