"""The ring by hand beside Gloo's own all-reduce, on two ranks of this machine.

    python -m minillm bench collectives --rounds 20

Rounds alternate. Between two ranks each sends as many bytes as the tensor has, so bytes by seconds
is the bus bandwidth. It is held against what TCP gives one way to another process, measured just
before; both ranks send at the same time, and add what they receive.
"""

from __future__ import annotations

from collections.abc import Callable
from timeit import timeit

import torch
import torch.distributed as dist

from minillm.parallel.collectives import ring_all_reduce
from minillm.parallel.mesh import Mesh
from minillm.parallel.ranks import Ranks
from minillm.probe.links import loopback
from minillm.tools.bench import Progress, ratios, spread, table
from minillm.trace import Trace

SIZES = (0.001, 0.01, 0.1, 1, 4, 16)  # MiB


def bench(model: object, number: int, progress: Progress) -> str:
    """A line for each size, the median and the spread; no model is needed."""
    rows = [["all-reduce", "ring, GB/s", "Gloo, GB/s", "ring by Gloo", "ring by loopback"]]
    ceiling = next(iter(loopback())).best / 1e9
    with Ranks(2) as ranks:
        for size in SIZES:
            ring, gloo = zip(*ranks.run(measure, 4 * int(size * 2**18), number)[0], strict=True)
            ways = ring, gloo, ratios(ring, gloo), [rate / ceiling for rate in ring]
            rows.append([f"{size:g} MiB", *(spread(values, "{:.3f}") for values in ways)])
    return table(rows)


def measure(nbytes: int, number: int) -> list[list[float]]:
    """Called by each rank: for each round, GB/s of the ring and of Gloo."""
    group, x = Mesh(Trace(), tp=2).tp, torch.zeros(nbytes // 4)

    def rate(all_reduce: Callable, over: object) -> float:
        group.barrier()
        return nbytes / timeit(lambda: all_reduce(x, group=over), number=1) / 1e9

    ways = (ring_all_reduce, group), (dist.all_reduce, None)
    return [[rate(*way) for way in ways] for _ in range(number + 1)][1:]  # the first warms up
