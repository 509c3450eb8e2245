"""How fast weights reach HBM: our readers, the library's, and the disk's own ceiling.

    python -m minillm bench load --rounds 5

The page cache is told to forget the files before each load. "raw" is the ceiling: the files read
past the page cache and forgotten. All others end in HBM, in memory that is made and touched: a
first touch can cost more than the disk. `load_file` is what most programs call: it maps the file,
and its tensors are copied.

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

import torch
from safetensors.torch import load_file

from minillm.load import Checkpoint, drop
from minillm.load.checkpoint import bring
from minillm.machine import Machine
from minillm.machine.arena import Arena
from minillm.machine.disk import PAGE, open_direct
from minillm.machine.host import huge_pages
from minillm.probe.ssd import aligned, read_all
from minillm.tools.bench import Progress, given_or_random, ratios, rounds, spread, table

RAW, STOCK, OURS = "raw", "load_file", ("direct", "read")
_CHUNK, _READS = 2**23, 7  # bytes of a request, requests in flight


def bench(model: str | Path | None, number: int, progress: Progress) -> str:
    """Measure loads of the checkpoint `model`, or of a random one of 2.5 GB that is then deleted.

    Needs the weights' size three times in memory: arena, page cache, and the library's tensors.
    """
    with given_or_random(model, "1b") as folder:
        checkpoint, machine = Checkpoint.open(folder), Machine.here()
        seconds = measure(checkpoint, number, progress, machine)
        stays = "" if drop(checkpoint.files) else "\nthe page cache stays: what is cold is warm"
    rows = [["", "GB/s", "of raw", "× load_file"]]
    for way, times in seconds.items():
        of_raw, faster = (ratios(seconds[other], times) for other in (RAW, STOCK))
        rates = spread([checkpoint.nbytes / 1e9 / s for s in times], "{:.2f}")
        rows.append([way, rates, spread(of_raw, "{:.0%}"), spread(faster, "{:.2f}")])
    head = f"{machine.describe()}\n{checkpoint.nbytes / 1e9:.2f} GB of weights from SSD, GB/s:\n"
    return head + table(rows) + stays


def measure(
    checkpoint: Checkpoint, number: int, progress: Progress, machine: Machine
) -> dict[str, list[float]]:
    """Seconds of each way, round by round."""
    wanted = {name: (info.shape, info.dtype) for name, info in checkpoint.tensors.items()}

    def prepare() -> None:
        machine.trace.clear()
        huge_pages(torch.empty(checkpoint.nbytes, dtype=torch.uint8)).zero_()
        drop(checkpoint.files)

    with closing(Arena(machine, wanted, "hbm", "weights")) as arena:
        arena.block.zero_()
        loads = ways(checkpoint, arena, machine)
        timed = {way: partial(timeit, load, prepare, number=1) for way, load in loads.items()}
        return rounds(timed, number, progress)


def ways(checkpoint: Checkpoint, arena: Arena, machine: Machine) -> dict[str, Callable[[], None]]:
    """What reads the files, and what brings all weights to their places in `arena`."""
    buffers = [memoryview(aligned(_CHUNK)) for _ in range(_READS)]

    def raw() -> None:
        for path in checkpoint.files:
            file = open_direct(path)
            try:
                read_all(file.fd, os.fstat(file.fd).st_size // PAGE * PAGE, buffers)  # whole pages
            finally:
                os.close(file.fd)

    def stock() -> None:
        for file in checkpoint.files:
            for name, tensor in load_file(file, device=str(machine.device)).items():
                arena.places[name].copy_(tensor)
        machine.sync()

    ours = {how: partial(bring, arena.places, checkpoint, machine, how) for how in OURS}
    return {RAW: raw, **ours, STOCK: stock}
