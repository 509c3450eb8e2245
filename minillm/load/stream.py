"""From SSD through DRAM to HBM at the speed of the disk: pieces of tensors, in reused staging.

    SSD ────> staging: 6 slots of 8 MiB, used again and again ────> HBM

Four threads: while one copies its slot to HBM, the others have theirs filled, so that both links
are busy and the whole takes as long as the slower one. Staging is made once, on huge pages and
touched: a page fault costs more than the disk needs to fill the page. How much there is does not
depend on the tensors' sizes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from functools import partial
from itertools import islice
from pathlib import Path
from traceback import clear_frames

import numpy as np
import torch
from torch import Tensor

from minillm.errors import CheckpointError
from minillm.load.pieces import BLOCK, CHUNK, GAP, Piece, blocks, chunks, room
from minillm.load.readers import READERS, WeightFile
from minillm.load.safetensors import TensorInfo, damaged
from minillm.machine import Machine

SLOTS = 6  # 48 MiB of staging: some being filled, some on their way to HBM
THREADS = 4  # requests in flight: an SSD works on several at once
_HUGE = 2 * 2**20  # bytes of a huge page
_NAME = 100  # letters of a tensor's name that go into the trace: the file may bring a million
_GRAIN = 2**14  # elements: so few torch converts on the thread that asks

Arrived = list[tuple[Piece, Tensor]]
"""What one read brought: pieces, and the bytes of each, uint8, one row a run."""


def chunk_size(infos: Iterable[TensorInfo], largest: int = CHUNK) -> int:
    """Bytes of one read: a 32nd of all, so that there is something to overlap; 1 to 8 MiB."""
    total = sum(info.end - info.start for info in infos)
    return min(largest, blocks(max(total // 32, min(total, 2**20), 1)))


class Reader:
    """Reads tensors of files, several requests at a time, into staging that is made once.

    >>> with Reader(machine, "direct", infos) as reader:
    ...     for arrived in reader.chunks(infos):
    ...         for piece, raw in arrived: ...   # raw is good until the next are asked for
    >>> reader.fill({"model.norm.weight": tensor}, infos)

    how: "read", "mmap" or "direct"; see `minillm.load.readers`. infos: the most that it will be
    asked for at once: for little, little staging is made. gap: see `chunks`; with 0, not a byte is
    read that is not wanted (with O_DIRECT, not a block). Holds staging (DRAM, at most slots ·
    (chunk + 8 KiB) + 2 MiB; none for mmap), open files and threads until `close`.
    """

    def __init__(
        self, machine: Machine, how: str, infos: Iterable[TensorInfo], *, chunk: int = CHUNK,
        slots: int = SLOTS, threads: int = THREADS, gap: int = GAP,
    ) -> None:  # fmt: skip
        assert how in READERS and chunk % BLOCK == 0, (how, chunk)
        infos = list(infos)
        self.machine, self.how, self.gap = machine, how, gap
        self.chunk = chunk_size(infos, chunk)
        self.slots = len(list(islice(chunks(infos, self.chunk, gap), slots))) or 1
        self._files: dict[Path, WeightFile] = {}
        with ExitStack() as stack:
            self._staging = None if how == "mmap" else self._make_staging(stack)
            stack.callback(self._close_files)
            self._pool = ThreadPoolExecutor(min(threads, self.slots), "minillm-read")
            stack.callback(self._pool.shutdown, wait=True, cancel_futures=True)
            self._stack = stack.pop_all()  # nothing failed: keep it all until we are closed

    def _make_staging(self, stack: ExitStack) -> Tensor:
        """(slots, bytes), each beginning at a block."""
        each = room(self.chunk) + BLOCK  # of the blocks at its ends, a part may be others' bytes
        size = self.slots * each
        align = _HUGE if size >= _HUGE else BLOCK
        made = self.machine.empty((size + align,), torch.uint8, "dram", "staging")
        stack.callback(self.machine.free, made)
        staging = made[-made.data_ptr() % align :][:size]
        with self.machine.trace.span("touch staging", stage="load", resource="cpu"):
            staging[::BLOCK] = 0
        return staging.view(self.slots, each)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close()
        while error is not None:  # a notebook keeps the last error, and its frames hold staging
            clear_frames(error.__traceback__)
            error = error.__cause__

    def close(self) -> None:
        """Wait for the reads under way; give back threads, files and staging."""
        self._stack.close()
        self._staging = None

    def _close_files(self) -> None:
        while self._files:
            self._files.popitem()[1].close()

    def chunks(
        self, infos: Iterable[TensorInfo], then: Callable[[Arrived], None] = lambda arrived: None
    ) -> Generator[Arrived, None, None]:
        """The tensors' bytes as stored, in the order given, some pieces at a time.

        then: called with what has arrived, on the thread that read it, so several at a time.
        Each read is a transfer SSD → DRAM in the trace. Raises CheckpointError for a file that
        cannot be read or has become shorter than its header says, and what `then` raises.
        """
        waiting: deque[Future[Arrived]] = deque()
        at = self.machine.trace.at  # of this thread; the threads that read stamp their events so
        fetch = partial(self._fetch, then=then, stamp={"token": at.token, "request": at.request})
        try:
            for number, chunk in enumerate(chunks(infos, self.chunk, self.gap)):
                if len(waiting) == self.slots:
                    yield waiting.popleft().result()  # back here, its slot is free again
                file = self._open(chunk[0].info.file)
                slot = None if self._staging is None else self._staging[number % self.slots]
                waiting.append(self._pool.submit(fetch, file, chunk, slot))
            while waiting:
                yield waiting.popleft().result()
        finally:  # what is under way would be written into slots that are filled anew
            wait([future for future in waiting if not future.cancel()])

    def fill(self, places: Mapping[str, Tensor], infos: Iterable[TensorInfo]) -> None:
        """Bring each tensor to its place, as `put` does; errors as in `chunks`."""
        with closing(self.chunks(infos, lambda got: put(got, places, self.machine))) as arriving:
            for _ in arriving:
                pass

    def _open(self, path: Path) -> WeightFile:
        if path not in self._files:
            self._files[path] = WeightFile(path, self.how)
        return self._files[path]

    def _fetch(
        self, file: WeightFile, chunk: list[Piece], slot: Tensor | None,
        then: Callable[[Arrived], None], stamp: dict[str, int | None],
    ) -> Arrived:  # fmt: skip
        """Fill one slot, on a thread of the pool."""
        name, ranges = chunk[0].info.name, file.ranges(chunk, self.gap)
        tensors = name[:_NAME]
        if len(chunk) > 1:
            tensors += f" … {chunk[-1].info.name[:_NAME]} ({len(chunk)})"
        with self.machine.trace.at(**stamp):
            try:
                raws = self.machine.carry(
                    partial(file.fetch, chunk, ranges, slot),
                    nbytes=sum(end - start for start, end in ranges), name=file.how,
                    source="ssd", target="dram", label="weights", stage="load",
                    detail=f"{tensors}; {file.note}",
                )  # fmt: skip
            except OSError as error:
                raise _unreadable(file, name, ranges, error) from error
            arrived = list(zip(chunk, raws, strict=True))
            then(arrived)
            return arrived


def _unreadable(
    file: WeightFile, name: str, ranges: list[tuple[int, int]], error: OSError
) -> CheckpointError:
    wanted = f"bytes {ranges[0][0]:,} to {ranges[-1][1]:,}"
    do = 'check the disk, or take reader="read"' if file.step > 1 else "check the disk"
    return damaged(file.path, wanted, f"“{error.strerror}”", name, do)


def put(arrived: Arrived, places: Mapping[str, Tensor], machine: Machine) -> None:
    """Copy what arrived to where it belongs: `places[name]`, contiguous, in HBM or DRAM.

    A tensor without a place is left out; a place may have another dtype than the file. When this
    returns, staging may be filled again.
    """
    for piece, raw in arrived:
        if piece.info.name not in places:
            continue
        place, dtype = places[piece.info.name].view(-1), piece.info.dtype
        if place.dtype == dtype:
            place, dtype = place.view(torch.uint8), torch.uint8
        elif raw.data_ptr() % dtype.itemsize:  # the format aligns nothing, and torch wants
            raw = raw.clone()  # elements at multiples of their size
        raw = raw.view(dtype)
        target = place[piece.at // dtype.itemsize :][: raw.numel()].view(raw.shape)
        move(raw, target, machine, detail=piece.info.name[:_NAME])


def move(raw: Tensor, target: Tensor, machine: Machine, **more: str) -> None:
    """Copy weights from DRAM to `target` on this thread alone, and return when they are there.

    Recorded as a transfer DRAM → HBM or, if the target is in DRAM too, as a span of the CPU.
    """
    fields = {"name": "copy weights dram->hbm", "label": "weights", "stage": "load"} | more
    if not machine.emulated and machine.tier_of(target) is machine.hbm:
        machine.send(raw, target, **fields).join()
    elif machine.tier_of(target) is machine.hbm:
        do = partial(_copy, raw, target)
        machine.carry(do, raw.nbytes, source="dram", target="hbm", **fields)
    else:
        fields |= {"name": "place weights", "resource": "cpu"}
        with machine.trace.span(nbytes=raw.nbytes, **fields):
            _copy(raw, target)


def _copy(raw: Tensor, target: Tensor) -> None:
    """Copy on this thread alone.

    Torch would share a large copy out to threads of its own. Ours are several already: on two
    busy cores the two kinds hindered each other until a load took five times as long.
    """
    if raw.dtype == target.dtype:
        np.copyto(target.view(torch.uint8).numpy(), raw.view(torch.uint8).numpy())
        return
    rows = max(1, _GRAIN // max(1, raw.numel() // len(raw)))
    for part, place in zip(raw.split(rows), target.split(rows), strict=True):
        place.copy_(part)
