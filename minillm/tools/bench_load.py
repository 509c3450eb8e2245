"""How fast weights reach HBM: our readers, the library's, and the disk's own ceiling.

    python -m minillm bench load --rounds 5

Each round does each way once, one after another, so that what else the machine does hits all of
them. Ratios are taken within a round. Cold: the page cache was told to forget the files before.
"raw" is the ceiling: cold, the files read past the page cache and forgotten; warm, as many bytes
copied to HBM out of memory in use. Our ways, and load_file+copy, end in HBM, in memory that is made
and touched: a first touch can cost more than the disk. "all" pays for that too, from nothing to
weights in HBM. load_file alone touches every page and leaves the weights in the page cache: warm,
it copies nothing at all, so no copy can keep up with it.

Before each, as much memory as the weights take is touched and given back. The host of a virtual
machine may take a second to find a gigabyte that was never used, and the first to ask would pay for
all; what that costs is told as the time of the arena.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from minillm.files import home, temporary_folder
from minillm.load.checkpoint import Checkpoint, bring
from minillm.load.chunks import CHUNK
from minillm.load.readers import drop
from minillm.load.safetensors import damaged
from minillm.load.stream import SLOTS, Reader
from minillm.machine import Machine
from minillm.machine.arena import Arena
from minillm.machine.disk import PAGE, open_direct
from minillm.machine.host import huge_pages, n_cores
from minillm.probe.ssd import aligned, read_all
from minillm.tools.bench_load_report import COPIED, RAW, STOCK, LoadReport
from minillm.tools.bench_memory import private_memory
from minillm.tools.make_checkpoint import make_checkpoint

ALL = "direct, all", "load_file, all"  # from nothing: they make their memory too
OURS = ("direct", "read", "mmap")
SHAPE = "1b"
_PART = 2**25  # bytes copied at a time, out of eight such parts: no cache holds them
_SOURCE = 8 * _PART

Go = Callable[[], object]


def bench(
    model: str | Path | None, rounds: int, progress: Callable[[int, int], None],
    machine: Machine | None = None,
) -> LoadReport:  # fmt: skip
    """Measure loads of the checkpoint `model`, or of a random one of 2.5 GB that is then deleted.

    Needs the weights' size three times in memory: arena, page cache, and the library's tensors.
    """
    with given_or_random(model, SHAPE) as folder:
        checkpoint = Checkpoint.open(folder)
        if not checkpoint.nbytes:
            raise damaged(folder, "weights to load", "not a byte", do="take another checkpoint")
        return _measure(checkpoint, rounds, progress, machine or Machine.here())


@contextmanager
def given_or_random(model: str | Path | None, shape: str) -> Iterator[Path]:
    """The folder of the model given or, without one, of random weights, deleted at the end."""
    if model is not None:
        yield Path(model)
        return
    home().mkdir(parents=True, exist_ok=True)
    with temporary_folder(home()) as folder:
        make_checkpoint(shape, Path(folder) / shape)
        yield Path(folder) / shape


def _measure(
    checkpoint: Checkpoint, rounds: int, progress: Callable[[int, int], None], machine: Machine
) -> LoadReport:
    report = LoadReport(checkpoint.nbytes, machine.describe())
    wanted = {name: (info.shape, info.dtype) for name, info in checkpoint.tensors.items()}
    report.notes.append(f"raw, cold: the files read and forgotten, {_how(checkpoint.files[0])}")
    report.notes.append("raw, warm: as many bytes copied to HBM out of memory in use")
    if not drop(checkpoint.files):
        report.notes.append("this system cannot drop its page cache: cold is no colder than warm")
    begin = time.perf_counter()
    arena = Arena(machine, wanted, "hbm", "weights")
    try:
        arena.block.zero_()
        machine.sync()
        report.arena = time.perf_counter() - begin
        ways = _Ways(checkpoint, arena.block, arena.places, machine).by_state
        for number in range(rounds + 1):  # the first one warms up, and measures memory
            for way, state, prepare in ways:
                seconds, extra = _once(prepare, checkpoint, machine, state, number == 0)
                if number:
                    report.seconds.setdefault((way, state), []).append(seconds)
                    report.note_links(way, state, machine)
                elif state == "cold":
                    report.extra[way] = extra - (way in ALL) * arena.nbytes
            progress(number, rounds)
    finally:
        arena.close()
    return report


@dataclass
class _Ways:
    """Each way is a context that makes beforehand what its load needs, and hands out the load."""

    checkpoint: Checkpoint
    arena: Tensor
    places: dict[str, Tensor]
    machine: Machine

    def __post_init__(self) -> None:
        self.infos = list(self.checkpoint.tensors.values())
        both = {
            **{how: partial(self.ours, how) for how in OURS},
            STOCK: partial(self.stock, None), COPIED: partial(self.stock, self.places),
        }  # fmt: skip
        nothing = {way: partial(self.all_of, way.split(",")[0]) for way in ALL}
        cold, warm = {RAW: self.read, **both, **nothing}, {RAW: self.copy, **both}
        self.by_state = [(way, "cold", prepare) for way, prepare in cold.items()]
        self.by_state += [(way, "warm", prepare) for way, prepare in warm.items()]

    @contextmanager
    def copy(self) -> Iterator[Go]:
        source = self.machine.empty((_SOURCE,), torch.uint8, "dram", "bench")
        parts = list(self.arena.split(_PART))
        pairs = list(zip(parts, source.zero_().split(_PART) * len(parts), strict=False))

        def one(pair: tuple[Tensor, Tensor]) -> None:
            target, part = pair[0], pair[1][: len(pair[0])]
            if self.machine.emulated:
                np.copyto(target.numpy(), part.numpy())  # lets the others run, as `move` does
            else:
                target.copy_(part, non_blocking=True)

        try:
            with ThreadPoolExecutor(n_cores() if self.machine.emulated else 1) as pool:
                yield lambda: (list(pool.map(one, pairs)), self.machine.sync())
        finally:
            self.machine.free(source)

    @contextmanager
    def read(self) -> Iterator[Go]:
        buffers = _buffers(SLOTS)
        files = [open_direct(file) for file in self.checkpoint.files]
        try:
            yield lambda: [_read(file.fd, buffers) for file in files]
        finally:
            for file in files:
                os.close(file.fd)

    @contextmanager
    def ours(self, how: str) -> Iterator[Go]:
        with Reader(self.machine, how, self.infos) as reader:
            yield lambda: reader.fill(self.places, self.infos)

    @contextmanager
    def stock(self, into: dict[str, Tensor] | None) -> Iterator[Go]:
        yield lambda: [_load_file(file, self.machine, into) for file in self.checkpoint.files]

    @contextmanager
    def all_of(self, how: str) -> Iterator[Go]:
        with ExitStack() as stack:

            def go() -> None:
                wanted = {name: (place.shape, place.dtype) for name, place in self.places.items()}
                arena = Arena(self.machine, wanted, "hbm", "weights")
                stack.callback(arena.close)
                fresh = arena.places
                if how in OURS:
                    bring(fresh, self.checkpoint, self.machine, how)
                else:
                    for file in self.checkpoint.files:
                        _load_file(file, self.machine, fresh)

            yield go


def _load_file(file: Path, machine: Machine, places: dict[str, Tensor] | None) -> None:
    """What most programs do. It maps the file, so a page comes when it is touched."""
    for name, tensor in safetensors.torch.load_file(file, device=str(machine.device)).items():
        if places:
            places[name].copy_(tensor)
        elif machine.emulated:
            tensor.view(-1).view(torch.uint8)[:: os.sysconf("SC_PAGE_SIZE")].sum()
    machine.sync()


def _once(
    prepare: Callable[[], AbstractContextManager[Go]], checkpoint: Checkpoint, machine: Machine,
    state: str, spy: bool,
) -> tuple[float, int]:  # fmt: skip
    """Seconds of one load, and the private memory that it and its preparation took."""
    machine.trace.clear()
    _recycle(checkpoint.nbytes)
    if state == "cold":
        drop(checkpoint.files)
    else:
        _warm(checkpoint)
    with private_memory(spy) as peak, prepare() as go:
        begin = time.perf_counter()
        go()
        return time.perf_counter() - begin, peak()


def _recycle(nbytes: int) -> None:
    """Have the system hold so many bytes that were used a moment ago."""
    huge_pages(torch.empty(nbytes, dtype=torch.uint8)).zero_()


def _how(path: Path) -> str:
    """By what way the ceiling reads: O_DIRECT, or what there is instead."""
    file = open_direct(path)
    os.close(file.fd)
    return file.how


def _warm(checkpoint: Checkpoint) -> None:
    """Have the page cache hold the files."""
    buffers = _buffers(1)
    for file in checkpoint.files:
        with open(file, "rb", buffering=0) as stream:
            _read(stream.fileno(), buffers)


def _buffers(number: int) -> list[memoryview]:
    memory = memoryview(aligned(number * CHUNK))
    return [memory[i * CHUNK : (i + 1) * CHUNK] for i in range(number)]


def _read(fd: int, buffers: list[memoryview]) -> None:
    read_all(fd, os.fstat(fd).st_size // PAGE * PAGE, buffers)  # O_DIRECT: whole pages
