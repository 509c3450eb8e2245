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

from minillm.config import EngineConfig, SamplingParams
from minillm.engine.engine import Engine
from minillm.machine import Machine
from minillm.machine.prefetch import hidden
from minillm.tools.bench import Progress, given_or_random, ratios, rounds, spread, table

WORK = {"prefill": (512, 1), "decode step": (1, 8)}  # a pass's name: tokens read, tokens written
HBM = "in HBM"
WAYS = {
    HBM: EngineConfig(),
    "from DRAM": EngineConfig(weights="stream", stream_from="dram"),
    "from SSD": EngineConfig(weights="stream", stream_from="ssd", reader="direct"),
}


def bench(model: str | Path | None, number: int, progress: Progress) -> str:
    """Measure with the model given, or a random one of 270 MB that is then deleted."""
    with given_or_random(model, "135m") as folder, ExitStack() as stack:
        load = partial(Engine.load, folder)
        engines = {
            way: stack.enter_context(closing(load(Machine.here(), c))) for way, c in WAYS.items()
        }
        used = {way: f"{e.machine.hbm.used / 2**20:.0f} MiB" for way, e in engines.items()}
        ways = {(w, way): partial(measure, e, w) for w in WORK for way, e in engines.items()}
        found = rounds(ways, number, progress)
    rows = [["", "HBM", "ms a pass", "× in HBM", "weights move", "hidden"]]
    for (work, way), passes in found.items():
        seconds, moving, share = zip(*passes, strict=True)
        times = ratios(seconds, [each[0] for each in found[work, HBM]])
        row = [f"{work} {way}", used[way], spread([1e3 * s for s in seconds])]
        moves = [f"{1e3 * median(moving):.1f} ms", spread(share, "{:.0%}")]
        rows.append([*row, spread(times, "{:.2f}"), *(moves if way != HBM else ["", ""])])
    return f"{folder.name}\n{table(rows)}"


def measure(engine: Engine, work: str) -> tuple[float, float, float]:
    """Of a pass: its seconds, seconds of weights moving in it, and the share of those hidden."""
    length, tokens = WORK[work]
    engine.trace.clear()
    engine.generate([[2] * length], SamplingParams(tokens, temperature=0.0, ignore_eos=True))
    share = hidden(engine.trace, "weights")
    seconds = mean(event.seconds for event in engine.trace.select(name=work))
    return seconds, share.moving / tokens, share.share
