"""How fast weights reach HBM: our readers, the library's, and the machine's own ceiling.

    python -m minillm bench load --rounds 5

Cold: the page cache was told to forget the files before. "raw" is the ceiling: cold, the files
read past the page cache and forgotten; warm, as many bytes copied to HBM out of memory in use.
All others end in HBM, in memory that is made and touched: a first touch can cost more than the
disk. `load_file` is what most programs call: it maps the file, and its tensors are copied to HBM.

How it could lie: the host of a virtual machine may take a second to find a gigabyte that was never
used, and the first to ask would pay for all. So before each load as much memory as the weights
take is touched and given back.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from minillm.load import Checkpoint, Reader, drop
from minillm.load.safetensors import damaged
from minillm.machine import Machine
from minillm.machine.arena import Arena
from minillm.machine.disk import PAGE, open_direct
from minillm.machine.host import huge_pages, n_cores
from minillm.probe.ssd import aligned, read_all
from minillm.tools.bench import Progress, given_or_random, ratios, rounds, spread, table

RAW, STOCK, OURS = "raw", "load_file", ("direct", "read")
SHAPE = "1b"
_CHUNK, _READS = 2**23, 7  # bytes of a request, requests in flight
_PART = 2**25  # bytes copied at a time, out of eight such parts: no cache holds them

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
        head = f"{machine.describe()}\n{checkpoint.nbytes / 1e9:.2f} GB of weights, GB/s:\n"
        stays = "" if drop(checkpoint.files) else "\nthe page cache stays: cold is warm too"
    return head + _table(seconds, checkpoint.nbytes) + stays


def _table(seconds: Seconds, nbytes: int) -> str:
    rows = [["", "GB/s", "of raw", "× load_file"]]
    for (way, state), times in seconds.items():
        of_raw, faster = (ratios(seconds[other, state], times) for other in (RAW, STOCK))
        rates = spread([nbytes / 1e9 / s for s in times], "{:.2f}")
        rows.append([f"{state} {way}", rates, spread(of_raw, "{:.0%}"), spread(faster, "{:.2f}")])
    return table(rows)


def measure(
    checkpoint: Checkpoint, number: int, progress: Progress, machine: Machine
) -> Seconds:
    """Seconds of each load, round by round."""
    wanted = {name: (info.shape, info.dtype) for name, info in checkpoint.tensors.items()}
    buffers = [memoryview(aligned(_CHUNK)) for _ in range(_READS)]
    with ExitStack() as stack:
        arena = stack.enter_context(closing(Arena(machine, wanted, "hbm", "weights")))
        arena.block.zero_()
        source = machine.empty((8 * _PART,), torch.uint8, "dram", "bench").zero_()
        stack.callback(machine.free, source)
        raw = {
            "cold": partial(_read, checkpoint.files, buffers),
            "warm": partial(_copy, source, arena.block, machine),
        }
        ways = {}
        for state, ceiling in raw.items():
            ours = {how: partial(_fill, checkpoint, arena, machine, how) for how in OURS}
            stock = partial(_load_file, checkpoint.files, arena.places, machine)
            for way, load in {RAW: ceiling, **ours, STOCK: stock}.items():
                before = partial(_prepare, checkpoint, machine, buffers, state)
                ways[way, state] = partial(_timed, before, load)
        return rounds(ways, number, progress)


def _timed(before: Callable[[], object], load: Callable[[], object]) -> float:
    before()
    began = time.perf_counter()
    load()
    return time.perf_counter() - began


def _prepare(
    checkpoint: Checkpoint, machine: Machine, buffers: list[memoryview], state: str
) -> None:
    """Memory that was used a moment ago, and a page cache without the files, or full of them."""
    machine.trace.clear()
    huge_pages(torch.empty(checkpoint.nbytes, dtype=torch.uint8)).zero_()
    if state == "cold":
        drop(checkpoint.files)
    else:
        _read(checkpoint.files, buffers, direct=False)


def _read(files: Sequence[Path], buffers: list[memoryview], direct: bool = True) -> None:
    for path in files:
        file = open_direct(path, direct)
        try:
            read_all(file.fd, os.fstat(file.fd).st_size // PAGE * PAGE, buffers)  # whole pages
        finally:
            os.close(file.fd)


def _copy(source: Tensor, target: Tensor, machine: Machine) -> None:
    def one(pair: tuple[Tensor, Tensor]) -> None:
        into, part = pair[0], pair[1][: len(pair[0])]
        if machine.emulated:
            np.copyto(into.numpy(), part.numpy())  # lets the others run, as our readers do
        else:
            into.copy_(part, non_blocking=True)

    parts = target.split(_PART)
    with ThreadPoolExecutor(n_cores() if machine.emulated else 1) as pool:
        list(pool.map(one, zip(parts, source.split(_PART) * len(parts), strict=False)))
    machine.sync()


def _fill(checkpoint: Checkpoint, arena: Arena, machine: Machine, how: str) -> None:
    infos = list(checkpoint.tensors.values())
    with Reader(machine, how, infos) as reader:
        reader.fill(arena.places, infos)


def _load_file(files: Sequence[Path], places: dict[str, Tensor], machine: Machine) -> None:
    for file in files:
        for name, tensor in safetensors.torch.load_file(file, device=str(machine.device)).items():
            places[name].copy_(tensor)
    machine.sync()
