"""What `bench decode` finds beside the rounds."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

import torch

from minillm.config import ModelConfig
from minillm.engine.engine import Engine
from minillm.kv import PagedKV, Step
from minillm.kv.plan import Plan
from minillm.machine import Machine
from minillm.probe import Profile, dram_bandwidth
from minillm.tools.bench_decode_ways import Ours

LONG = 2048  # tokens that attention looks at



def facts(ours: Ours, batch_1: float, batch_8: float, rounds: int) -> list[str]:
    """Lines about our engine, which decodes so many tokens a second."""
    engine, profile = ours.engine, Profile.here()
    read = (profile["dram.read"] if profile else dram_bandwidth()).best
    nbytes = sum(p.nbytes for p in engine.model.parameters())
    if not engine.model_config.tie_word_embeddings:
        nbytes -= engine.model.model.embed_tokens.weight.nbytes
    return [
        f"decode reads {batch_1 * nbytes / 1e9:.1f} GB/s, {batch_1 * nbytes / read:.0%} of DRAM's "
        f"{read / 1e9:.1f} GB/s",
        f"a batch of 8 decodes {batch_8 / batch_1:.2f} × the tokens",
        f"a step's Python, all that is not kernels: {1e3 * _python(ours):.2f} ms",
        _rival(ours),
        *(_attention(engine, batch, rounds) for batch in (1, 8)),
    ]


def _python(ours: Ours) -> float:
    """Of a step of batch 1: its time less the halves of the layers and the product at the end."""
    steps: list[float] = []
    ours.decode(1, 100, steps)
    halves = ours.engine.trace.select(resource="compute", name="attention")
    halves += ours.engine.trace.select(resource="compute", name="ffn")
    x = torch.zeros(1, ours.engine.model_config.hidden_size)
    head = min(_seconds(lambda: ours.engine.model.output(x)) for _ in range(20))
    return median(steps) - sum(half.seconds for half in halves) / 100 - head


def _rival(ours: Ours) -> str:
    """Steps beside a program that takes all of a core that it can get."""
    quiet, busy = [], []
    ours.decode(1, 150, quiet)
    rival = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.3)
        ours.decode(1, 150, busy)
    finally:
        rival.kill()
        rival.wait()
    mean = sum(quiet) / len(quiet)
    return (f"with a rival on one core: a step takes {sum(busy) / len(busy) / mean:.1f} ×, "
            f"at worst {max(busy) / mean:.1f} × the quiet mean")  # fmt: skip


@torch.no_grad()
def _attention(engine: Engine, batch: int, rounds: int) -> str:
    """What looking at LONG tokens costs over pages, against the faster contiguous way."""
    model, c = engine.model, engine.model_config
    if min(c.max_position_embeddings, LONG) < LONG:
        return f"no attention over {LONG:,} tokens: the model's context is shorter"
    model.prepare(LONG + 1)
    stores = {}
    for name, P in (("paged", 16), ("contiguous", LONG + 16)):
        kv = PagedKV(c, Machine.here(), engine.dtype, P, batch * (LONG // P + 1))
        for request in range(batch):
            kv.find(request, [])
            assert kv.reserve(request, LONG)
        stores[name] = kv
    found: dict[str, list[float]] = {}
    for _ in range(5 * rounds):
        for name, kv in stores.items():
            long, short = (_halves(engine, kv, batch, S) for S in (LONG - 1, 1))
            found.setdefault(name, []).append(long - short)
        found.setdefault("torch", []).append(_torch_attention(c, stores["contiguous"], batch))
    for kv in stores.values():
        kv.close()
    pages, own, torchs = (median(found[name]) for name in ("paged", "contiguous", "torch"))
    return (f"attention over {LONG:,} tokens, batch {batch}: over pages {1e3 * pages:.2f} ms, "
            f"{pages / min(own, torchs):.2f} × contiguous ({1e3 * own:.2f} ours, "
            f"{1e3 * torchs:.2f} torch)")  # fmt: skip


def _plan(kv: PagedKV, batch: int, S: int) -> Plan:
    kv.length.update(dict.fromkeys(range(batch), S))
    return kv.plan(Step(tuple(range(batch)), (S,) * batch, (1,) * batch, (1,) * batch))


def _halves(engine: Engine, kv: PagedKV, batch: int, S: int) -> float:
    """Seconds of all layers over S tokens of each sequence, at the best of three."""
    plan, x = _plan(kv, batch, S), torch.zeros(batch, engine.model_config.hidden_size)
    return min(_seconds(lambda: engine.model.run_layers(x, plan.place, plan)) for _ in range(3))


def _torch_attention(c: ModelConfig, kv: PagedKV, batch: int) -> float:
    plan = _plan(kv, batch, LONG - 1)
    heads = c.num_attention_heads, c.num_key_value_heads
    q, k = (torch.zeros(batch, n, c.head_dim) for n in heads)
    layers = range(c.num_hidden_layers)
    return min(_seconds(lambda: [plan(layer, q, k, k) for layer in layers]) for _ in range(3))


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
