"""What `bench decode` finds beside the rounds."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from itertools import pairwise
from statistics import mean, median
from timeit import repeat

import torch

from minillm.engine.engine import Engine
from minillm.kv import PagedKV, Plan, Step
from minillm.machine import Machine
from minillm.model.kernels import install
from minillm.model.llama import Llama
from minillm.tools.bench import ratios, rounds, spread
from minillm.tools.bench_decode_ways import PROMPT, Ours, seconds

LONG = 2048  # tokens that attention looks at


def facts(ours: Ours, number: int) -> list[str]:
    """Lines about our engine."""
    python = f"a step's Python, all that is not kernels: {1e3 * _python(ours):.2f} ms"
    attention = (_attention(ours.engine, batch, 5 * number) for batch in (1, 8))
    return [python, _rival(ours), *attention]


def _steps(ours: Ours, tokens: int) -> list[float]:
    """Seconds from one pass to the next, the text between them included."""
    seconds(ours, 1, PROMPT, tokens)
    return [b.start - a.start for a, b in pairwise(ours.engine.trace.select(name="decode step"))]


def _python(ours: Ours) -> float:
    """Of a step of batch 1: its time less the halves of the layers and the product at the end."""
    steps, trace, model = _steps(ours, 100), ours.engine.trace, ours.engine.model
    kernels = Counter[int]()
    for event in trace.select(resource="compute"):
        kernels[event.step] += event.seconds * (event.name in ("attention", "ffn"))
    first = trace.select(name="decode step")[0].step
    x = torch.zeros(1, ours.engine.model_config.hidden_size)
    head = median(repeat(lambda: model.output(x), number=1, repeat=20))
    return median(took - kernels[step] for step, took in enumerate(steps, first)) - head


def _rival(ours: Ours) -> str:
    """Steps beside a program that takes all of a core that it can get."""
    quiet = _steps(ours, 150)
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as rival:
        try:
            time.sleep(0.3)
            busy = _steps(ours, 150)
        finally:
            rival.kill()
    return (f"with a rival on one core: a step takes {mean(busy) / mean(quiet):.1f} ×, "
            f"at worst {max(busy) / mean(quiet):.1f} × the quiet mean")  # fmt: skip


@torch.no_grad()
def _attention(engine: Engine, batch: int, number: int) -> str:
    """What looking at LONG tokens costs over pages, against the faster contiguous way."""
    c = replace(engine.model_config, hidden_size=16, intermediate_size=16, vocab_size=16)
    x, models = torch.zeros(batch, 16), {}
    for in_c in (True, False):  # of zeros, and so narrow that they hardly do more than attention
        model = models[in_c] = Llama(c).requires_grad_(False).to(engine.dtype)
        for p in model.parameters():
            p.zero_()
        model.prepare(LONG + 1)
        install(model, torch.get_num_threads(), in_c)

    def took(way: str) -> float:
        plan, model = plans[way == "pages"], models[way != "torch"]
        run = partial(model.run_layers, x, plan.place, plan)
        return min(repeat(run, number=1, repeat=3))

    with ExitStack() as stack:
        plans = []
        for P in (LONG + 16, 16):
            kv = PagedKV(c, Machine.here(), engine.dtype, P, batch * (LONG // P + 1))
            plans.append(_plan(stack.enter_context(closing(kv)), batch))
        ways = {way: partial(took, way) for way in ("pages", "ours", "torch")}
        found = rounds(ways, number, lambda done, total: None)
    paged, best = found.pop("pages"), min(found, key=lambda way: median(found[way]))
    return (
        f"attention over {LONG:,} tokens, batch {batch}: over pages {1e3 * median(paged):.2f} ms, "
        f"{spread(ratios(paged, found[best]), '{:.2f}')} × contiguous ({best})"
    )


def _plan(kv: PagedKV, batch: int) -> Plan:
    """A pass of one token each, which sees LONG tokens; all of them lie in memory."""
    for pool in kv.resident:
        pool.fill_(1)
    for request in range(batch):
        kv.find(request, [])
        assert kv.reserve(request, LONG)
        kv.length[request] = LONG - 1
    return kv.plan(Step((*range(batch),), (LONG - 1,) * batch, (1,) * batch, (1,) * batch))
