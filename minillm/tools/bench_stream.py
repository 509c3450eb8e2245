"""What it costs to run a model larger than HBM: its layers streamed, beside the same in HBM.

    python -m minillm bench stream --rounds 3

Two kinds of work: a prompt of 512 tokens in one pass, where compute takes longer than a layer's
way to HBM and hides it, and single tokens, where it does not. Rounds alternate between the ways.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from minillm.config import EngineConfig, SamplingParams
from minillm.engine.engine import Engine
from minillm.machine import Machine
from minillm.machine.prefetch import hidden
from minillm.tools.bench_load import given_or_random

SHAPE = "135m"
PROMPT, TOKENS = 512, 8  # tokens of the prompt, tokens decoded
WAYS = {
    "in HBM": EngineConfig(),
    "from DRAM": EngineConfig(weights="stream", stream_from="dram"),
    "from SSD": EngineConfig(weights="stream", stream_from="ssd", reader="direct"),
}


@dataclass
class StreamReport:
    """By (way, work): of each round, seconds a pass, seconds of weights moving, share hidden.

    hbm: bytes of HBM that each way's weights take.
    """

    model: str
    hbm: dict[str, int] = field(default_factory=dict)
    rounds: dict[tuple[str, str], list[tuple[float, float, float]]] = field(default_factory=dict)

    def __str__(self) -> str:
        head = f"{'':20}{'HBM':>10}{'ms a pass':>11}{'× in HBM':>10}{'moving':>10}{'hidden':>8}"
        head += f"{'least–most':>12}"
        lines = [f"{self.model}, prompt of {PROMPT} tokens, {TOKENS} decoded", head]
        for (way, work), found in self.rounds.items():
            base = [seconds for seconds, _, _ in self.rounds["in HBM", work]]
            times = median(s / b for (s, _, _), b in zip(found, base, strict=True))
            seconds, moving, share = (median(column) for column in zip(*found, strict=True))
            low, *_, high = sorted([found[0][2], *(each for _, _, each in found)])
            spread = f"{low:.0%}–{high:.0%}"
            hides = f"{moving * 1e3:7.1f} ms{share:8.0%}{spread:>12}" if moving else ""
            lines.append(
                f"{work:9} {way:10}{self.hbm[way] / 2**20:6.0f} MiB{seconds * 1e3:11.1f}"
                f"{times:10.2f}{hides}"
            )
        return "\n".join(lines)


def bench(
    model: str | Path | None, rounds: int, progress: Callable[[int, int], None]
) -> StreamReport:
    """Measure with the model given, or a random one of 270 MB that is then deleted."""
    with given_or_random(model, SHAPE) as folder, ExitStack() as stack:
        engines = {}
        report = StreamReport(folder.name)
        for way, config in WAYS.items():
            engines[way] = Engine.load(folder, Machine.here(), config)
            stack.callback(engines[way].close)
            report.hbm[way] = engines[way].machine.hbm.used
        for number in range(rounds + 1):  # the first one warms up
            for way, engine in engines.items():
                for work, found in _measure(engine).items():
                    if number:
                        report.rounds.setdefault((way, work), []).append(found)
            progress(number, rounds)
    return report


def _measure(engine: Engine) -> dict[str, tuple[float, float, float]]:
    """Seconds of a pass, seconds of weights moving in it, and the share of those hidden."""
    found = {}
    for work, tokens, length in (("prefill", 1, PROMPT), ("decode", TOKENS, 1)):
        engine.trace.clear()
        params = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
        engine.generate([[2] * length], params)
        name = "prefill" if work == "prefill" else "decode step"
        passes = engine.trace.select(name=name)
        share = hidden(engine.trace, "weights")
        seconds = sum(event.seconds for event in passes) / len(passes)
        found[work] = (seconds, share.moving / tokens, share.share)  # a pass for each token
    return found
