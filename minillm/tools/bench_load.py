"""How fast weights reach HBM: our readers, the library's, and the machine's own ceiling.

    python -m minillm bench load --rounds 5

Cold: the page cache was told to forget the files before. "raw" is the ceiling: cold, the files
read past the page cache and forgotten; warm, what the probe measures of copies out of memory in
use. All others end in HBM, in memory that is made and touched: a first touch can cost more than
the disk. `load_file` is what most programs call: it maps the file, and its tensors are copied.

How it could lie: the host of a virtual machine may take a second to find a gigabyte that was never
used, and the first to ask would pay for all. So before each load as much memory as the weights
take is touched and given back.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from timeit import timeit

import safetensors.torch
import torch

from minillm.load import Checkpoint, drop
from minillm.load.checkpoint import bring
from minillm.load.safetensors import damaged
from minillm.machine import Machine
from minillm.machine.arena import Arena
from minillm.machine.disk import PAGE, open_direct
from minillm.machine.host import huge_pages
from minillm.probe.links import cuda_memory
from minillm.probe.memory import copy_bandwidth
from minillm.probe.ssd import aligned, read_all
from minillm.tools.bench import Progress, given_or_random, ratios, rounds, spread, table

RAW, STOCK, OURS = "raw", "load_file", ("direct", "read")
SHAPE = "1b"
_CHUNK, _READS = 2**23, 7  # bytes of a request, requests in flight

Seconds = dict[tuple[str, str], list[float]]  # of each round, by way and "cold" or "warm"


def bench(
    model: str | Path | None, number: int, progress: Progress, machine: Machine | None = None
) -> str:
    """Measure loads of the checkpoint `model`, or of a random one of 2.5 GB that is then deleted.

    Needs the weights' size three times in memory: arena, page cache, and the library's tensors.
    """
    with given_or_random(model, SHAPE) as folder:
        checkpoint, machine = Checkpoint.open(folder), machine or Machine.here()
        if not checkpoint.nbytes:
            raise damaged(folder, "weights to load", "not a byte", do="take another checkpoint")
        seconds = measure(checkpoint, number, progress, machine)
        stays = "" if drop(checkpoint.files) else "\nthe page cache stays: cold is warm too"
    rows = [["", "GB/s", "of raw", "× load_file"]]
    for (way, state), times in seconds.items():
        of_raw, faster = (ratios(seconds[other, state], times) for other in (RAW, STOCK))
        rates = spread([checkpoint.nbytes / 1e9 / s for s in times], "{:.2f}")
        rows.append([f"{state} {way}", rates, spread(of_raw, "{:.0%}"), spread(faster, "{:.2f}")])
    head = f"{machine.describe()}\n{checkpoint.nbytes / 1e9:.2f} GB of weights, GB/s:\n"
    return head + table(rows) + stays


def measure(checkpoint: Checkpoint, number: int, progress: Progress, machine: Machine) -> Seconds:
    """Seconds of each load, round by round."""
    wanted = {name: (info.shape, info.dtype) for name, info in checkpoint.tensors.items()}
    buffers = [memoryview(aligned(_CHUNK)) for _ in range(_READS)]

    def read(direct: bool) -> None:
        for path in checkpoint.files:
            file = open_direct(path, direct)
            try:
                read_all(file.fd, os.fstat(file.fd).st_size // PAGE * PAGE, buffers)  # whole pages
            finally:
                os.close(file.fd)

    def prepare(cold: bool) -> None:
        machine.trace.clear()
        huge_pages(torch.empty(checkpoint.nbytes, dtype=torch.uint8)).zero_()
        drop(checkpoint.files) if cold else read(direct=False)

    with closing(Arena(machine, wanted, "hbm", "weights")) as arena:
        arena.block.zero_()
        loads = {RAW: partial(read, True), **ways(checkpoint, arena, machine)}
        timed = {
            (way, state): partial(timeit, load, partial(prepare, state == "cold"), number=1)
            for state in ("cold", "warm") for way, load in loads.items()
        }  # fmt: skip
        timed[RAW, "warm"] = lambda: checkpoint.nbytes / _copied(machine)
        return rounds(timed, number, progress)


def ways(checkpoint: Checkpoint, arena: Arena, machine: Machine) -> dict[str, Callable[[], None]]:
    """What brings all weights to their places in `arena`."""

    def load_file() -> None:
        for file in checkpoint.files:
            tensors = safetensors.torch.load_file(file, device=str(machine.device))
            for name, tensor in tensors.items():
                arena.places[name].copy_(tensor)
        machine.sync()

    ours = {how: partial(bring, arena.places, checkpoint, machine, how) for how in OURS}
    return ours | {STOCK: load_file}


def _copied(machine: Machine) -> float:
    """Bytes a second that arrive in HBM at most, out of memory."""
    if machine.emulated:
        return copy_bandwidth(0.2).best
    return max(m.best for m in cuda_memory(machine.device, 0.5) if m.name.startswith("h2d"))
