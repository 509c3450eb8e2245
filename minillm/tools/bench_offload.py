"""What it costs to run a context larger than HBM: some of its pages below, beside all in HBM.

    python -m minillm bench offload --rounds 5

On the scale model of an H100, so all times are emulated. Pages without a frame cross the link once
a pass, a layer's part while the layer before computes. While the link takes less time for a layer
than compute does, it is hidden; else compute waits.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from statistics import mean, median

from minillm.config import EngineConfig, ModelConfig, SamplingParams
from minillm.engine.engine import Engine
from minillm.machine import Machine
from minillm.machine.prefetch import hidden
from minillm.predict import kv_bytes_per_token
from minillm.tools.bench import Progress, given_or_random, ratios, rounds, spread, table

CONTEXT, TOKENS = 576, 8  # tokens that are there, and that a round decodes
PAGES = (CONTEXT + TOKENS) // 16 + 1
# Frames of HBM, and pages that DRAM and SSD have room for.
WAYS = {
    "all in HBM": (2 * PAGES, 1, 0), "few below, DRAM": (PAGES - 3, 2 * PAGES, 0),
    "half below, DRAM": (PAGES // 2, 2 * PAGES, 0), "half below, SSD": (PAGES // 2, 0, 2 * PAGES),
}  # fmt: skip


def bench(model: str | Path | None, number: int, progress: Progress) -> str:
    """Measure with the model given, or a random one of 270 MB that is then deleted."""
    with given_or_random(model, "135m") as folder, ExitStack() as stack:
        engines = {way: stack.enter_context(closing(load(folder, way))) for way in WAYS}
        found = rounds({w: partial(measure, e) for w, e in engines.items()}, number, progress)
        machine = engines["all in HBM"].machine.scale
    rows = [["decode", "streamed", "ms a pass", "× all in HBM", "layer: link, compute", "hidden"]]
    whole = [seconds for seconds, *_ in found["all in HBM"]]
    for way, passes in found.items():
        seconds, streamed, link, compute, share = zip(*passes, strict=True)
        row = [way, f"{max(streamed)} pages", spread([1e3 * s for s in seconds])]
        row.append(spread(ratios(seconds, whole), "{:.2f}"))
        if max(streamed):
            layer = f"{1e3 * median(link):.2f} / {1e3 * median(compute):.2f} ms"
            row += [layer, spread(share, "{:.0%}")]
        rows.append([*row, "", ""][:6])
    return f"{folder.name}, scale model of {machine.of} (emulated)\n{table(rows)}"


def load(folder: Path, way: str) -> Engine:
    """An engine whose HBM, DRAM and SSD have room for so many pages."""
    page = 16 * kv_bytes_per_token(ModelConfig.from_pretrained(folder))
    hbm, dram, ssd = (n * page or None for n in WAYS[way])
    config = EngineConfig(kv_hbm=hbm, kv_dram=dram, kv_ssd=ssd)
    return Engine.load(folder, Machine.scale_model("H100"), config)


def measure(engine: Engine) -> tuple[float, int, float, float, float]:
    """Of a decode pass: its seconds; pages streamed; a layer's seconds on the link, and of compute;
    the share of the link's time that was hidden."""
    params = SamplingParams(TOKENS + 1, temperature=0.0, ignore_eos=True)
    pieces, trace = engine.stream([2] * CONTEXT, params), engine.trace
    next(pieces), next(pieces)  # the prompt, and the first pass, which nothing ran ahead of
    trace.clear()
    for _ in range(TOKENS - 2):
        next(pieces)
    streamed = len(engine.kv.streamed)
    share, passes = hidden(trace, "kv"), trace.select(name="decode step")
    layers = len(passes) * engine.model_config.num_hidden_layers
    pieces.close()
    seconds = mean(event.seconds for event in passes)
    halves = sum(e.seconds for half in ("attention", "ffn") for e in trace.select(name=half))
    return seconds, streamed, share.moving / layers, (halves - share.waited) / layers, share.share
