"""What `bench decode` finds beside the rounds."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from itertools import pairwise
from statistics import mean, median
from timeit import repeat

import torch

from minillm.engine.engine import Engine
from minillm.kv import PagedKV, Step
from minillm.kv.plan import Plan
from minillm.machine import Machine
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
    one = trace.select(name="decode step")[0].start
    halves = (e for e in trace.select(resource="compute") if e.name in ("attention", "ffn"))
    kernels = sum(e.seconds for e in halves if e.start >= one) / 100
    x = torch.zeros(1, ours.engine.model_config.hidden_size)
    return median(steps) - kernels - _best(lambda: model.output(x), 20)


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
    c, run, here = engine.model_config, engine.model.run_layers, Machine.here()
    if c.max_position_embeddings < LONG:
        return f"no attention over {LONG:,} tokens: the model's context is shorter"
    engine.model.prepare(LONG + 1)
    x = torch.zeros(batch, c.hidden_size)
    q = torch.zeros(batch, c.num_attention_heads, c.head_dim)
    k = torch.zeros(batch, c.num_key_value_heads, c.head_dim)

    def ours(kv: PagedKV) -> float:
        """Seconds of all layers over LONG tokens of each sequence, less those over one."""
        long, short = (_plan(kv, batch, S) for S in (LONG - 1, 1))
        return _best(lambda: run(x, long.place, long)) - _best(lambda: run(x, short.place, short))

    def library(kv: PagedKV) -> float:
        plan = _plan(kv, batch, LONG - 1)
        return _best(lambda: [plan(layer, q, k, k) for layer in range(c.num_hidden_layers)])

    with ExitStack() as stack:
        pages, whole = (
            stack.enter_context(closing(PagedKV(c, here, engine.dtype, P, batch * (LONG // P + 1))))
            for P in (16, LONG + 16)
        )
        ways = {"pages": partial(ours, pages), "ours": partial(ours, whole),
                "torch": partial(library, whole)}  # fmt: skip
        found = rounds(ways, number, lambda done, total: None)
    paged, best = found.pop("pages"), min(found, key=lambda way: median(found[way]))
    return (
        f"attention over {LONG:,} tokens, batch {batch}: over pages {1e3 * median(paged):.2f} ms, "
        f"{spread(ratios(paged, found[best]), '{:.2f}')} × contiguous ({best})"
    )


def _plan(kv: PagedKV, batch: int, S: int) -> Plan:
    """A pass of one token each, for sequences of S tokens before it."""
    for request in range(batch):
        if request not in kv.tables:
            kv.find(request, [])
            assert kv.reserve(request, LONG)
    kv.length.update(dict.fromkeys(range(batch), S))
    return kv.plan(Step(tuple(range(batch)), (S,) * batch, (1,) * batch, (1,) * batch))


def _best(run: Callable[[], object], times: int = 3) -> float:
    return min(repeat(run, number=1, repeat=times))
