"""What it costs to run a model larger than HBM: its layers streamed, beside the same in HBM.

    python -m minillm bench stream --rounds 3

Two kinds of work: a prompt of 512 tokens in one pass, where compute takes longer than a layer's
way to HBM and hides it, and single tokens, where it does not.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

from minillm.config import EngineConfig, SamplingParams
from minillm.engine.engine import Engine
from minillm.machine import Machine
from minillm.machine.prefetch import hidden
from minillm.tools.bench import Progress, given_or_random, ratios, rounds, spread, table

SHAPE = "135m"
WORK = {"prefill": (512, 1), "decode step": (1, 8)}  # a pass's name: tokens read, tokens written
HBM = "in HBM"
WAYS = {
    HBM: EngineConfig(),
    "from DRAM": EngineConfig(weights="stream", stream_from="dram"),
    "from SSD": EngineConfig(weights="stream", stream_from="ssd", reader="direct"),
}


class Pass(NamedTuple):
    """Seconds of a pass, seconds of weights moving in it, and the share of those hidden."""

    seconds: float
    moving: float
    hidden: float


def bench(model: str | Path | None, number: int, progress: Progress) -> str:
    """Measure with the model given, or a random one of 270 MB that is then deleted."""
    with given_or_random(model, SHAPE) as folder, ExitStack() as stack:
        engines = {}
        for way, config in WAYS.items():
            engine = Engine.load(folder, Machine.here(), config)
            engines[way] = stack.enter_context(closing(engine))
        used = {way: engine.machine.hbm.used for way, engine in engines.items()}
        ways = {
            (work, way): partial(measure, engine, work)
            for work in WORK for way, engine in engines.items()
        }  # fmt: skip
        found = rounds(ways, number, progress)
    rows = [["", "HBM", "ms a pass", "× in HBM", "weights move", "hidden"]]
    for (work, way), passes in found.items():
        seconds, moving, share = zip(*passes, strict=True)
        times = ratios(seconds, [each.seconds for each in found[work, HBM]])
        moves = [f"{1e3 * median(moving):.1f} ms", spread(share, "{:.0%}")]
        rows.append([
            f"{work} {way}", f"{used[way] / 2**20:.0f} MiB", spread([1e3 * s for s in seconds]),
            spread(times, "{:.2f}"), *(moves if way != HBM else ["", ""]),
        ])  # fmt: skip
    return f"{folder.name}\n{table(rows)}"


def measure(engine: Engine, work: str) -> Pass:
    """One prompt, or one answer of some tokens; of each pass the mean."""
    length, tokens = WORK[work]
    engine.trace.clear()
    params = SamplingParams(max_tokens=tokens, temperature=0.0, ignore_eos=True)
    engine.generate([[2] * length], params)
    share = hidden(engine.trace, "weights")
    seconds = mean(event.seconds for event in engine.trace.select(name=work))
    return Pass(seconds, share.moving / tokens, share.share)
