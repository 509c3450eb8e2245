"""From SSD through DRAM to HBM at the speed of the disk: pieces of tensors, in reused staging.

    SSD ────> staging: 7 slots of 8 MiB, used again and again ────> HBM

Some threads fill slots, in the order of the file; the one that asked empties them into HBM, and
while it does, the next are filled. So both links are busy, and the whole takes as long as the
slower one. Staging is made once, on huge pages and touched: a page fault costs more than the disk
needs to fill the page. How much there is does not depend on the tensors' sizes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from functools import partial
from itertools import islice
from traceback import clear_frames
from typing import Any

import torch
from torch import Tensor

from minillm.errors import ConfigError
from minillm.load.chunks import BLOCK, CHUNK, GAP, Piece, blocks, chunks, names, room
from minillm.load.files import Files
from minillm.load.place import Arrived, arrive, part_of, put
from minillm.load.readers import READERS, WeightFile
from minillm.load.safetensors import TensorInfo
from minillm.machine import Machine
from minillm.machine.copies import T
from minillm.machine.interrupt import breathe, held
from minillm.trace import At, Stamp

SLOTS = 7  # 56 MiB of staging: some being filled, some full, one being emptied
# Requests in flight. An SSD works on several at once; but the kernel, which fills its page cache
# ahead of a reader, does so best for one that reads in order.
THREADS = {"direct": 6, "mmap": 6, "read": 2}
_HUGE = 2 * 2**20  # bytes of a huge page
_LARGE = 4  # chunks in one read where no staging holds them: Python's own work shows beside a copy


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
    (chunk + 8 KiB) + 2 MiB; none where nothing is staged), open files and threads until `close`.
    """

    def __init__(
        self, machine: Machine, how: str, infos: Iterable[TensorInfo], *, chunk: int = CHUNK,
        slots: int = SLOTS, gap: int = GAP,
    ) -> None:  # fmt: skip
        if how not in READERS:
            raise ConfigError(f"wanted a reader of {', '.join(READERS)}, found {how!r}; take one")
        assert chunk > 0 and chunk % BLOCK == 0, f"chunk is a multiple of {BLOCK}, not {chunk}"
        infos = list(infos)
        self.machine, self.how = machine, how
        self.chunk = chunk_size(infos, chunk)
        self.slots = len(list(islice(chunks(infos, self.chunk, gap), slots))) or 1
        self._files = Files(machine, how, gap)
        # The kernel can copy out of its page cache right to an emulated HBM: staging would be one
        # copy more. A card cannot be reached so, and a scale model has a link to wait for.
        self._straight = how == "read" and machine.emulated and machine.scale is None
        self._staging: Tensor | None = None
        with ExitStack() as stack:
            with held():
                if how != "mmap" and not self._straight:
                    self._staging = make_staging(machine, self.slots, self.chunk, stack)
                stack.callback(self._files.close)
                self._pool = ThreadPoolExecutor(min(THREADS[how], self.slots), "minillm-read")
                stack.callback(self._pool.shutdown, wait=True, cancel_futures=True)
            self._stack = stack.pop_all()  # nothing failed: keep it all until we are closed

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close()
        _let_go(error)

    def close(self) -> None:
        """Wait for the reads under way; give back threads, files and staging."""
        with held():
            self._stack.close()
            self._staging = None

    def chunks(self, infos: Iterable[TensorInfo]) -> Generator[Arrived, None, None]:
        """The tensors' bytes as stored, in the order given, some pieces at a time.

        Each read is a transfer SSD → DRAM in the trace or, out of a warm page cache, work of the
        CPU. Raises CheckpointError for a file that cannot be read or has become shorter than its
        header says.
        """
        reads = enumerate(self._files.reads(infos, self.chunk))
        waiting: deque[Future[Arrived]] = deque()
        try:
            for number, (file, chunk) in reads:
                if len(waiting) == self.slots:
                    yield _first(waiting)  # back here, its slot is free again
                slot = self._slot(number % self.slots)
                waiting.append(self._submit(self._files.fetch, file, chunk, slot))
            while waiting:
                yield _first(waiting)
        finally:  # what is under way would be written into slots that are filled anew
            _drain(waiting)

    def fill(self, places: Mapping[str, Tensor], infos: Iterable[TensorInfo]) -> None:
        """Bring each tensor to its place, as `put` does; errors as in `chunks`."""
        infos = list(infos)
        dtypes = {name: place.dtype for name, place in places.items()}
        if self._straight and all(i.rows == 1 and dtypes.get(i.name) == i.dtype for i in infos):
            return self._fill_straight(places, infos)
        with held(), closing(self.chunks(infos)) as arriving:
            for arrived in arriving:
                put(arrived, places, self.machine)
                breathe()

    def _fill_straight(self, places: Mapping[str, Tensor], infos: list[TensorInfo]) -> None:
        """Out of the page cache right to its place, without staging."""
        reading: deque[Future] = deque()
        with held():
            try:
                for file, chunk in self._files.reads(infos, _LARGE * self.chunk):
                    reading.append(self._submit(self._place, places, file, chunk))
                while reading:
                    _first(reading)
                    breathe()
            finally:
                _drain(reading)

    def _slot(self, number: int) -> Tensor | None:
        if self._staging is None and self.how != "mmap":
            self._staging = make_staging(self.machine, self.slots, self.chunk, self._stack)
        return None if self._staging is None else self._staging[number]

    def _place(
        self, places: Mapping[str, Tensor], file: WeightFile, chunk: list[Piece]
    ) -> None:
        targets = [
            part_of(places[piece.info.name], piece, piece.nbytes).view(torch.uint8)
            for piece in chunk
        ]

        def read() -> None:
            do, nbytes = partial(file.scatter, chunk, targets), sum(t.nbytes for t in targets)
            arrive(do, targets[0], self.machine, names(chunk), nbytes)

        self._files.on_record(file, chunk, read)

    def _submit(self, do: Callable[..., T], *arguments: object) -> Future[T]:
        """Have a thread do it; it records its events as done for what this thread is at."""
        at = self.machine.trace.at
        with held():
            return self._pool.submit(_stamped, at, at.stamp, do, *arguments)


def _let_go(error: BaseException | None) -> None:
    """A notebook keeps the last error, and its frames hold staging."""
    while error is not None:
        clear_frames(error.__traceback__)
        error = error.__cause__


def _first(waiting: deque[Future]) -> Any:
    """What the first of them brought, once it is done."""
    with held():
        return waiting.popleft().result()


def _drain(waiting: deque[Future]) -> None:
    """Drop those that have not begun, and wait for the rest."""
    with held():
        wait([future for future in waiting if not future.cancel()])


def _stamped(at: At, stamp: Stamp, do: Callable[..., T], *arguments: object) -> T:
    with at.exactly(stamp):
        return do(*arguments)


def make_staging(machine: Machine, slots: int, chunk: int, stack: ExitStack) -> Tensor:
    """(slots, bytes), each beginning at a block, touched; given back when `stack` unwinds."""
    each = room(chunk) + BLOCK  # of the blocks at its ends, a part may be others' bytes
    size = slots * each
    align = _HUGE if size >= _HUGE else BLOCK
    made = machine.empty((size + align,), torch.uint8, "dram", "staging")
    stack.callback(machine.free, made)
    staging = made[-made.data_ptr() % align :][:size]
    with machine.trace.span("touch staging", stage="load", resource="cpu"):
        staging[::BLOCK] = 0
    return staging.view(slots, each)
