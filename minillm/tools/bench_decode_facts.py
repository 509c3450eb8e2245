"""What `bench decode` finds beside the rounds."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from statistics import mean, median

import torch

from minillm.engine.engine import Engine
from minillm.kv import PagedKV, Step
from minillm.kv.plan import Plan
from minillm.machine import Machine
from minillm.tools.bench import ratios, rounds, spread
from minillm.tools.bench_decode_ways import PROMPT, Ours

LONG = 2048  # tokens that attention looks at


def facts(ours: Ours, number: int) -> list[str]:
    """Lines about our engine."""
    return [
        f"a step's Python, all that is not kernels: {1e3 * _python(ours):.2f} ms",
        _rival(ours),
        *(_attention(ours.engine, batch, 5 * number) for batch in (1, 8)),
    ]


def _steps(ours: Ours, tokens: int) -> list[float]:
    """Seconds from one pass to the next, the text between them included."""
    ours(1, PROMPT, tokens)
    return [b.start - a.start for a, b in pairwise(ours.engine.trace.select(name="decode step"))]


def _python(ours: Ours) -> float:
    """Of a step of batch 1: its time less the halves of the layers and the product at the end."""
    steps, trace, model = _steps(ours, 100), ours.engine.trace, ours.engine.model
    halves = [trace.select(resource="compute", name=name) for name in ("attention", "ffn")]
    one = trace.select(name="decode step")[0].start
    seconds = sum(e.seconds for half in halves for e in half if e.start >= one) / 100
    x = torch.zeros(1, ours.engine.model_config.hidden_size)
    return median(steps) - seconds - _best(lambda: model.output(x), 20)


def _rival(ours: Ours) -> str:
    """Steps beside a program that takes all of a core that it can get."""
    quiet = _steps(ours, 150)
    rival = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.3)
        busy = _steps(ours, 150)
    finally:
        rival.kill()
        rival.wait()
    return (f"with a rival on one core: a step takes {mean(busy) / mean(quiet):.1f} ×, "
            f"at worst {max(busy) / mean(quiet):.1f} × the quiet mean")  # fmt: skip


@torch.no_grad()
def _attention(engine: Engine, batch: int, number: int) -> str:
    """What looking at LONG tokens costs over pages, against the faster contiguous way."""
    c = engine.model_config
    if c.max_position_embeddings < LONG:
        return f"no attention over {LONG:,} tokens: the model's context is shorter"
    engine.model.prepare(LONG + 1)
    with ExitStack() as stack:
        stores = []
        for P in (16, LONG + 16):
            kv = PagedKV(c, Machine.here(), engine.dtype, P, batch * (LONG // P + 1))
            stack.callback(kv.close)
            stores.append(kv)
            for request in range(batch):
                kv.find(request, [])
                assert kv.reserve(request, LONG)
        pages, contiguous = (partial(_ours, engine, kv, batch) for kv in stores)
        ways = {"pages": pages, "ours": contiguous,
                "torch": partial(_torch, engine, stores[1], batch)}  # fmt: skip
        found = rounds(ways, number, lambda done, total: None)
    pages, best = found.pop("pages"), min(found, key=lambda way: median(found[way]))
    return (
        f"attention over {LONG:,} tokens, batch {batch}: over pages {1e3 * median(pages):.2f} ms, "
        f"{spread(ratios(pages, found[best]), '{:.2f}')} × contiguous ({best})"
    )


def _plan(kv: PagedKV, batch: int, S: int) -> Plan:
    kv.length.update(dict.fromkeys(range(batch), S))
    return kv.plan(Step(tuple(range(batch)), (S,) * batch, (1,) * batch, (1,) * batch))


def _ours(engine: Engine, kv: PagedKV, batch: int) -> float:
    """Seconds of all layers over LONG tokens of each sequence, less those over one."""
    x = torch.zeros(batch, engine.model_config.hidden_size)
    long, short = (_plan(kv, batch, S) for S in (LONG - 1, 1))
    run = engine.model.run_layers
    return _best(lambda: run(x, long.place, long)) - _best(lambda: run(x, short.place, short))


def _torch(engine: Engine, kv: PagedKV, batch: int) -> float:
    c, plan = engine.model_config, _plan(kv, batch, LONG - 1)
    heads = c.num_attention_heads, c.num_key_value_heads
    q, k = (torch.zeros(batch, n, c.head_dim) for n in heads)
    return _best(lambda: [plan(layer, q, k, k) for layer in range(c.num_hidden_layers)])


def _best(run: Callable[[], object], times: int = 3) -> float:
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
