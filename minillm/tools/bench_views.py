"""What live views cost: the same decode with and without them, in a real notebook kernel.

    python -m minillm bench views --rounds 20

The kernel sends what it would send to JupyterLab, to a reader that throws it away; what a browser
spends on drawing is not in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

from minillm.errors import MinillmError

LIMIT = 0.02  # of the run that the views show
TOKENS = 240
# Runs in the kernel. A round is one decode each way; which comes first changes from round to round.
# The clock covers the decode and the views' work beside it, not the drawing of the still behind it.
_SETUP = """
import json, time
from minillm import Engine, SamplingParams
from minillm.charts import watch
engine = Engine.load({model!r})
params = SamplingParams(max_tokens={tokens}, temperature=0.0, ignore_eos=True)

def decode():
    time.sleep(0.1)  # until the page has the view: that happens once, however long the run
    engine.trace.clear()
    wall, processor = time.perf_counter(), time.process_time()
    for piece in engine.stream("Mia put the red key", params):
        pass
    return time.perf_counter() - wall, time.process_time() - processor

def watched():
    with watch(engine.trace) as view:
        times = decode()
    return *times, view.spent

def measure(first):
    ways = (("without", decode), ("watched", watched))
    return json.dumps({{name: way() for name, way in (ways, ways[::-1])[first]}})

decode(), watched();
"""


@dataclass(frozen=True)
class Round:
    """One decode each way, in seconds: wall and processor; `spent`: that of the views' thread."""

    without: tuple[float, float]
    watched: tuple[float, float]
    spent: float


@dataclass(frozen=True)
class Cost:
    """What live views add to a decode, as shares of it.

    >>> cost = Cost((Round((1.0, 2.0), (1.01, 2.1), 0.008),))
    >>> cost.shares(0), cost.shares(1), cost.sending
    ([0.01], [0.05], 0.008)
    """

    rounds: tuple[Round, ...]

    def shares(self, clock: int) -> list[float]:
        """By round, what the views add; clock 0 is the wall's, 1 the processor's."""
        return [round(r.watched[clock] / r.without[clock] - 1, 6) for r in self.rounds]

    @property
    def sending(self) -> float:
        """Processor time of the thread that sends, of the wall time of the run."""
        return median(r.spent / r.without[0] for r in self.rounds)

    @property
    def verdict(self) -> str:
        """Whether it is under LIMIT, if the rounds agree well enough to say."""
        middle, unsure = _middle(self.shares(0))
        if len(self.rounds) < 4 or unsure > LIMIT:
            return (f"too noisy to say whether under {LIMIT:.0%}: "
                    "take more rounds or a quieter machine")  # fmt: skip
        return f"under {LIMIT:.0%}" if middle + unsure < LIMIT else f"NOT surely under {LIMIT:.0%}"

    def __str__(self) -> str:
        (wall, wall_off), (busy, busy_off) = map(_middle, (self.shares(0), self.shares(1)))
        seconds = median(r.without[0] for r in self.rounds)
        return "\n".join([
            f"{TOKENS} tokens in {seconds:.2f} s, {len(self.rounds)} rounds with and without views",
            f"live views cost {wall:+.1%} ± {wall_off:.1%} of the run: {self.verdict}",
            f"in processor time {busy:+.1%} ± {busy_off:.1%}; "
            f"their own thread takes {self.sending:.1%} of the run",
        ])  # fmt: skip


def _middle(shares: list[float]) -> tuple[float, float]:
    """The median, and how far it may be off: 1.57 times the middle half over the root of n."""
    if len(shares) < 4:
        return median(shares), max(shares) - min(shares)
    low, middle, high = quantiles(shares, n=4)
    return middle, 1.57 * (high - low) / len(shares) ** 0.5


def bench(model: str, rounds: int, progress: Callable[[int, int], Any] | None = None) -> Cost:
    """Measure in a kernel of its own. Raises MinillmError if that cannot start or fails."""
    try:
        from jupyter_client.manager import start_new_kernel
    except ImportError as error:
        raise MinillmError(
            f"wanted jupyter_client, which starts notebook kernels, found {error}; "
            "pip install -r requirements.txt"
        ) from error
    manager, client = start_new_kernel()
    try:
        _run(client, _SETUP.format(model=model, tokens=TOKENS))
        results = []
        for done in range(rounds):
            times = json.loads(_run(client, f"print(measure({done % 2}))"))
            *watched, spent = times["watched"]
            results.append(Round(tuple(times["without"]), tuple(watched), spent))
            if progress:
                progress(done + 1, rounds)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    return Cost(tuple(results))


def _run(client: Any, code: str) -> str:
    """Run code in the kernel; what it prints. All it sends to a page is read, and dropped."""
    printed = []

    def hear(message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream" and message["content"]["name"] == "stdout":
            printed.append(message["content"]["text"])

    reply = client.execute_interactive(code, output_hook=hear, timeout=600)["content"]
    if reply["status"] != "ok":
        raise MinillmError(
            f"wanted a decode in a notebook kernel, found {reply.get('ename')}: "
            f"{reply.get('evalue')}; run it in a notebook to see more"
        )
    return "".join(printed)
