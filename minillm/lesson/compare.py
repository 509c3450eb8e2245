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
ALIKE = 1.05  # what differs by less is called "less than 5 % apart", however steady it is
_SCALE = {"s": 1.0, "ms": 1e3, "µs": 1e6}


class Comparison:
    """Samples in seconds of one way or more, and sentences about them.

    seconds: name to samples, at least three each; the numbers of samples may differ.
    unit: "s", "ms" or "µs"; None picks one for each number.

    >>> Comparison({"cold": [0.048, 0.047, 0.049], "warm": [0.012] * 3}, unit="ms").sentence
    'warm took 12.0 ms; cold took 48.0 ms, 4.0 × as long (3.9 to 4.1)'
    """

    def __init__(
        self, seconds: Mapping[str, Sequence[float]], unit: str | None = None, what: str = ""
    ):
        self.seconds = {name: [float(s) for s in samples] for name, samples in seconds.items()}
        if not self.seconds or any(len(s) < 3 or min(s) <= 0 for s in self.seconds.values()):
            least = {name: sorted(samples)[:3] for name, samples in self.seconds.items()}
            raise ConfigError("wanted three samples or more of each way, all above 0 s; the least "
                              f"found are {least}; measure more")  # fmt: skip
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
        """The name of the faster of two; None where they are alike, or the noise is too large."""
        fast, slow = sorted((one, other), key=self.median)
        low, high = self.spread(slow, fast)
        return fast if low > 1 and high >= ALIKE else None

    @property
    def sentence(self) -> str:
        """The ways, fastest first, each beside the fastest; or that the samples do not tell.

        It holds for any names: "again", "with 8 in flight", "7 slots" take no verb but "took".
        """
        names = sorted(self.seconds, key=self.median)
        said = [f"{name} took {self.amount(self.median(name))}" for name in names]
        said[1:] = [f"{took}, {self._beside(names[0], name)}"
                    for took, name in zip(said[1:], names[1:], strict=True)]  # fmt: skip
        return ": ".join(filter(None, (self.what, "; ".join(said))))

    def _beside(self, fast: str, slow: str) -> str:
        low, high = self.spread(slow, fast)
        form = ",.2f" if low < 1.95 else ",.1f" if low < 9.95 else ",.0f"
        spread = f"{low:{form}} to {high:{form}}"
        if self.faster(fast, slow):
            return f"{self.ratio(slow, fast):{form}} × as long ({spread})"
        if low > 1 / ALIKE and high < ALIKE:
            return f"less than {100 * ALIKE - 100:.0f} % apart ({spread} ×)"
        return f"but the noise ({spread} ×) is larger than the difference: measure again"

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
        elif 0 < share < 0.5:
            said += f", {1 / share:.1f} × the time"
        return f"{what} {self.amount(seconds)}, {name} took {self.amount(took)}: {said}"

    def amount(self, seconds: float) -> str:
        """A time as the sentences write it, "12.0 ms"; one too short for the unit in its own."""
        value = seconds * _SCALE.get(self.unit, 0)
        if value < 0.1:
            return format_value(seconds, "s")
        return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {self.unit}"


def compare(
    ways: Mapping[str, Callable[[], Any]], rounds: int = 5, unit: str | None = None,
    what: str = "", clock: Callable[[], float] = time.perf_counter,
) -> Comparison:  # fmt: skip
    """Run the ways in turns, one of each a round, so that a busy minute meets all of them.

    A way that returns a float has measured itself, in seconds; any other is timed. One round more
    goes before, and does not count. Prints nothing.

    >>> compare({"cold": load_cold, "warm": load_warm}, unit="ms").sentence
    'warm took 12.1 ms; cold took 48.0 ms, 4.0 × as long (3.6 to 4.4)'
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 + rounds):
        for name, way in ways.items():
            start = clock()
            own = way()
            seconds[name].append(own if isinstance(own, float) else clock() - start)
    return Comparison({n: s[1:] for n, s in seconds.items()}, unit, what)
