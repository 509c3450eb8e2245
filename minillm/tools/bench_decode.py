"""How fast tokens come: ours, ours without the C kernels, transformers, llama.cpp, and the ceiling.

    python -m minillm bench decode --shape 135m --llama PYTHON

Each round does each way once, one after another, so that what else the machine does hits all of
them; medians are printed with the lowest and highest round. Ours is the whole engine, with trace
and text; of transformers the faster of float32 and bfloat16 is shown. Greedy everywhere.

How it could lie: a rival program during some rounds (the spread shows it); a first run that pays
for memory and caches (it is not counted); llama.cpp built for another processor.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch

from minillm.engine.assemble import locate
from minillm.errors import ConfigError
from minillm.machine import Machine
from minillm.machine.host import n_cores
from minillm.tools.bench_decode_facts import facts
from minillm.tools.bench_decode_ways import Ours, Run, Transformers, llama_cpp
from minillm.tools.bench_load import given_or_random

OURS, TORCH, CPP = "minillm", "minillm, torch", "llama.cpp"
PREFILL, FEW = 512, 8  # tokens
TASKS = {"decode": (1,), "decode of 8": (8,), f"prefill of {PREFILL}": ()}


@dataclass
class Report:
    """Tokens a second of each round, by (way, task); and lines with what else was found."""

    head: str
    rates: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def middle(self, way: str, task: str) -> float:
        """The median of a way's rounds."""
        return median(self.rates[way, task])

    def __str__(self) -> str:
        ways = list(dict.fromkeys(way for way, _ in self.rates))
        text = [self.head, "", f"{'tokens/s':<24}" + "".join(f"{t:>30}" for t in TASKS)]
        for way in ways:
            text.append(f"{way:<24}" + "".join(f"{self._cell(way, t):>30}" for t in TASKS))
        text += ["", f"{'times as fast as':<24}" + "".join(f"{t:>30}" for t in TASKS)]
        for way in ways:
            if way != OURS:
                ratios = (self.middle(OURS, t) / self.middle(way, t) for t in TASKS)
                text.append(f"{way:<24}" + "".join(f"{ratio:>30.2f}" for ratio in ratios))
        return "\n".join([*text, "", *self.lines])

    def _cell(self, way: str, task: str) -> str:
        rates = self.rates[way, task]
        return f"{median(rates):,.1f} ({min(rates):,.1f} … {max(rates):,.1f})"


def bench(
    model: str | Path | None, rounds: int, progress: Callable[[int, int], None],
    shape: str = "town", python: str | None = None, tokens: int = 48,
) -> Report:  # fmt: skip
    """Measure the checkpoint `model`, or random weights of a shape, made and then deleted.

    python: a Python, or a folder of packages, that has llama_cpp and gguf; None asks this one.
    tokens: of each answer, in each round; fewer where they take longer than a second.
    """
    given = model or ("data/town" if shape == "town" else None)
    with given_or_random(given and locate(given), shape) as folder, ExitStack() as stack:
        machine = Machine.here()
        report = Report(f"{folder.name}: {machine.describe()}")
        ways = _ways(folder, stack, report, python)
        each = [(way, task) for way in ways for task in TASKS]
        first = {pair: _rate(ways[pair[0]], TASKS[pair[1]], FEW) for pair in each}  # not counted
        for done in range(rounds):
            for way, task in each:
                batch = TASKS[task]
                steps = int(first[way, task] / (*batch, 1)[0])  # of one second
                rate = _rate(ways[way], batch, max(FEW, min(tokens, steps)))
                report.rates.setdefault((way, task), []).append(rate)
            progress(done + 1, rounds)
        _keep_best(report)
        middles = (report.middle(OURS, task) for task in ("decode", "decode of 8"))
        report.lines += facts(ways[OURS], *middles, rounds)
    return report


def _rate(run: Run, batch: tuple[int, ...], tokens: int) -> float:
    torch.set_num_threads(n_cores())
    amount = batch[0] * tokens if batch else PREFILL
    return amount / (run(*batch, tokens) if batch else run(PREFILL))


def _ways(
    folder: Path, stack: ExitStack, report: Report, python: str | None
) -> dict[str, Run]:
    ways: dict[str, Run] = {}
    for name, kernels in ((OURS, "auto"), (TORCH, "torch")):
        ours = Ours(folder, kernels=kernels)
        stack.callback(ours.engine.close)
        ways[name] = ours
    for dtype in (torch.float32, torch.bfloat16):
        try:
            ways[f"transformers {str(dtype)[6:]}"] = Transformers(folder, dtype)
        except ImportError as error:
            report.lines.append(f"transformers is not here: {error}")
    try:
        ways[CPP] = stack.enter_context(llama_cpp(folder, python))
    except ConfigError as error:
        report.lines.append(f"llama.cpp is not here: {error}")
    return ways


def _keep_best(report: Report) -> None:
    """Of transformers the faster type, task by task."""
    names = list(dict.fromkeys(way for way, _ in report.rates if way.startswith("transformers ")))
    for task in TASKS if names else ():
        best = max(names, key=lambda way: report.middle(way, task))
        report.lines.append(f"transformers, {task}: {best.split()[1]} is its faster type")
        report.rates["transformers", task] = report.rates[best, task]
        for way in names:
            del report.rates[way, task]
