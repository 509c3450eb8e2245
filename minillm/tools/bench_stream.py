"""What it costs to run a model larger than HBM: its layers streamed, beside the same in HBM.

    python -m minillm bench stream --rounds 3

Two kinds of work: a prompt of 512 tokens in one pass, where compute takes longer than a layer's
way to HBM and hides it, and single tokens, where it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from statistics import mean, median

from minillm.config import EngineConfig, SamplingParams
from minillm.engine.engine import Engine
from minillm.machine import Machine
from minillm.machine.prefetch import hidden
from minillm.tools.bench import Progress, given_or_random, ratios, rounds, spread, table

Work = dict[str, tuple[int, int, int]]
"""A pass's name: tokens of the prompt; passes before the clock starts, and passes measured."""
WORK: Work = {"prefill": (512, 0, 1), "decode step": (1, 1, 7)}
WAYS = {
    "in HBM": EngineConfig(),
    "from DRAM": EngineConfig(weights="stream", stream_from="dram"),
    "from SSD": EngineConfig(weights="stream", stream_from="ssd", reader="direct"),
}


def bench(model: str | Path | None, number: int, progress: Progress) -> str:
    """Measure with the model given, or a random one of 270 MB that is then deleted."""
    with given_or_random(model, "135m") as folder:
        loads = {w: partial(Engine.load, folder, Machine.here(), c) for w, c in WAYS.items()}
        return f"{folder.name}\n{compare(loads, WORK, 'weights', number, progress)}"


def compare(
    loads: Mapping[str, Callable[[], Engine]], work: Work, label: str, number: int,
    progress: Progress,
) -> str:  # fmt: skip
    """A row for each way to do each work, and how many times as long as the first way it takes.

    label: whose bytes move while it runs.
    """
    with ExitStack() as stack:
        engines = {way: stack.enter_context(closing(load())) for way, load in loads.items()}
        ways = {
            (name, way): partial(measure, engine, label, name, *counts)
            for name, counts in work.items() for way, engine in engines.items()
        }  # fmt: skip
        found = rounds(ways, number, progress)
        used = {way: f"{e.machine.hbm.used / 2**20:.0f} MiB" for way, e in engines.items()}
    first = next(iter(loads))
    rows = [["", "HBM", "ms a pass", f"× {first}", f"{label} move", "hidden"]]
    for (name, way), passes in found.items():
        seconds, moving, share = zip(*passes, strict=True)
        times = ratios(seconds, [each[0] for each in found[name, first]])
        row = [f"{name} {way}", used[way], spread([1e3 * s for s in seconds])]
        moves = [f"{1e3 * median(moving):.1f} ms", spread(share, "{:.0%}")]
        rows.append([*row, spread(times, "{:.2f}"), *(moves if max(moving) else ["", ""])])
    return table(rows)


def measure(
    engine: Engine, label: str, name: str, length: int, before: int, passes: int
) -> tuple[float, float, float]:
    """Of a pass: its seconds, seconds of bytes moving in it, and the share of those hidden."""
    params = SamplingParams(before + passes + 1, temperature=0.0, ignore_eos=True)
    pieces, trace = engine.stream([2] * length, params), engine.trace
    for passed in range(before + passes):
        if passed == before:
            trace.clear()
        next(pieces)
    share = hidden(trace, label)
    pieces.close()
    seconds = mean(event.seconds for event in trace.select(name=name))
    return seconds, share.moving / passes, share.share
