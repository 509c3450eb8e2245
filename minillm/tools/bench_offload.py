"""What it costs to run a context larger than HBM: some of its pages below, beside all in HBM.

    python -m minillm bench offload --rounds 5

On the scale model of an H100, so all times are emulated. Pages without a frame cross the link once
a pass, a layer's part while the layer before computes. While the link takes less time for a layer
than compute does, it is hidden; else compute waits.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from minillm.config import EngineConfig, ModelConfig
from minillm.engine.engine import Engine
from minillm.machine import Machine
from minillm.predict import kv_bytes_per_token
from minillm.tools.bench import Progress, given_or_random
from minillm.tools.bench_stream import compare

CONTEXT, TOKENS = 576, 8  # tokens that are there, and that a round decodes
PAGES = (CONTEXT + TOKENS) // 16 + 1
# Frames of HBM, and pages that DRAM and SSD have room for.
WAYS = {
    "all in HBM": (2 * PAGES, 1, 0), "few below, DRAM": (PAGES - 3, 2 * PAGES, 0),
    "half below, DRAM": (PAGES // 2, 2 * PAGES, 0), "half below, SSD": (PAGES // 2, 0, 2 * PAGES),
}  # fmt: skip


def bench(model: str | Path | None, number: int, progress: Progress) -> str:
    """Measure with the model given, or a random one of 270 MB that is then deleted."""
    # Two passes go before: that of the prompt, and the first, which nothing ran ahead of.
    work = {"decode step": (CONTEXT, 2, TOKENS - 2)}
    with given_or_random(model, "135m") as folder:
        loads = {way: partial(load, folder, way) for way in WAYS}
        found = compare(loads, work, "kv", number, progress)
    return f"{folder.name}, scale model of H100 (emulated)\n{found}"


def load(folder: Path, way: str) -> Engine:
    """An engine whose HBM, DRAM and SSD have room for so many pages."""
    page = 16 * kv_bytes_per_token(ModelConfig.from_pretrained(folder))
    hbm, dram, ssd = (n * page or None for n in WAYS[way])
    config = EngineConfig(kv_hbm=hbm, kv_dram=dram, kv_ssd=ssd)
    return Engine.load(folder, Machine.scale_model("H100"), config)
