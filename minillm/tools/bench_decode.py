"""How fast tokens come: ours, ours without the C kernels, transformers, llama.cpp, and the ceiling.

    python -m minillm bench decode --shape 135m --llama FOLDER

Ours is the whole engine, with trace and text; of transformers the faster of float32 and bfloat16 is
shown. Greedy everywhere. The ceiling is what DRAM delivers, by the weights that a token reads.

How it could lie: a rival program during some rounds (the spread shows it); llama.cpp built for
another processor.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median

import torch

from minillm.machine import Machine
from minillm.machine.host import n_cores
from minillm.probe import dram_bandwidth
from minillm.tools.bench import Progress, given_or_random, ratios, rounds, spread, table
from minillm.tools.bench_decode_facts import facts
from minillm.tools.bench_decode_ways import PROMPT, LlamaCpp, Ours, Transformers, Way, seconds

OURS, TORCH, THEIRS, CPP = "minillm", "minillm, torch", "transformers", "llama.cpp"
CEILING, DTYPES = "DRAM's ceiling", ("float32", "bfloat16")
PREFILL, FEW, MANY = 512, 8, 64  # tokens
# Sequences, and tokens of each one's prompt; decode writes FEW to MANY more: those of a second.
TASKS = {"decode": (1, PROMPT), "decode of 8": (8, PROMPT), f"prefill of {PREFILL}": (1, PREFILL)}

Rates = dict[tuple[str, str], list[float]]  # tokens a second in each round, by way and task


def bench(
    model: str | Path | None, number: int, progress: Progress,
    shape: str = "town", packages: str | None = None,
) -> str:  # fmt: skip
    """Measure the checkpoint `model`, or a shape, as `given_or_random` makes it.

    packages: a folder that has llama_cpp and gguf; None looks where this program's packages lie.
    """
    with given_or_random(model, shape) as folder, ExitStack() as stack:
        runs, lacking = _ways(folder, stack, packages)
        nbytes = runs[OURS].weight_bytes
        ways = {(name, t): partial(_rate, way, t) for name, way in runs.items() for t in TASKS}
        ways[CEILING, "decode"] = lambda: dram_bandwidth(0.2).best / nbytes
        found = rounds(ways, number, progress)
        head = f"{folder.name}, tokens a second: {Machine.here().describe()}\n"
        return "\n".join([head, show(found), "", *lacking, *facts(runs[OURS], number)])


def show(found: Rates) -> str:
    """A row for each way: by task its rates, and how many times as fast we are."""
    rows = [["", *(cell for task in TASKS for cell in (task, "× as fast"))]]
    for way in (OURS, TORCH, THEIRS, CPP, CEILING):
        row = [way]
        for task in TASKS:
            names = (way, *(f"{way} {dtype}" for dtype in DTYPES))  # the faster of transformers'
            known = [found[name, task] for name in names if (name, task) in found]
            rates = max(known, key=median, default=[])
            times = spread(ratios(found[OURS, task], rates), "{:.2f}") if rates else ""
            row += [spread(rates) if rates else "", times if way != OURS else ""]
        rows += [row] * any(row[1:])
    return table(rows)


def _rate(way: Way, task: str) -> float:
    torch.set_num_threads(n_cores())
    batch, prompt = TASKS[task]
    if prompt == PREFILL:  # as often as takes half a second, after one that wakes the threads
        again = max(1, int(0.5 / seconds(way, 1, prompt, 0)[0]))
        return prompt * again / sum(seconds(way, 1, prompt, 0)[0] for _ in range(again))
    tokens = max(FEW, min(MANY, int(FEW / seconds(way, batch, prompt, FEW)[1])))
    return batch * tokens / seconds(way, batch, prompt, tokens)[1]


def _ways(folder: Path, stack: ExitStack, packages: str | None) -> tuple[dict[str, Way], list[str]]:
    """The ways that are here, ours first; and a line for each that is not."""
    makers: dict[str, Callable[[], Way]] = {
        OURS: partial(Ours, folder, "auto", stack), TORCH: partial(Ours, folder, "torch", stack),
        **{f"{THEIRS} {d}": partial(Transformers, folder, d) for d in DTYPES},
        CPP: partial(LlamaCpp, folder, packages, stack),
    }  # fmt: skip
    ways: dict[str, Way] = {}
    lacking = []
    for name, make in makers.items():
        try:
            ways[name] = make()
        except ImportError as error:
            lacking.append(f"{name} is not here: {error}")
    return ways, lacking
