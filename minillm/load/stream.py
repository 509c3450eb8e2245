"""From SSD through DRAM to HBM at the speed of the disk: chunks, in reused staging.

    SSD ────> staging: 7 slots of 8 MiB, used again and again ────> HBM

Some threads fill slots, in the order of the file; the one that asked empties them into HBM, and
while it does, the next are filled. So both links are busy, and the whole takes as long as the
slower one. Staging is made once, on huge pages and touched: a page fault costs more than the disk
needs to fill the page. How much there is does not depend on the tensors' sizes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from functools import partial
from itertools import islice
from pathlib import Path
from traceback import clear_frames

import torch
from torch import Tensor

from minillm.errors import ConfigError
from minillm.load.chunks import BLOCK, CHUNK, Part, blocks, chunks, names, room
from minillm.load.place import Arrived, put
from minillm.load.readers import READERS, WeightFile
from minillm.load.safetensors import TensorInfo
from minillm.machine import Machine
from minillm.machine.interrupt import breathe, held
from minillm.trace import Stamp

SLOTS = 7  # 56 MiB of staging: some being filled, some full, one being emptied
# Requests in flight. An SSD works on several at once; but the kernel, which fills its page cache
# ahead of a reader, does so best for one that reads in order.
THREADS = {"direct": 6, "mmap": 6, "read": 2}
_HUGE = 2 * 2**20  # bytes of a huge page


def chunk_size(infos: Iterable[TensorInfo], largest: int = CHUNK) -> int:
    """Bytes of one read: a 32nd of all, so that there is something to overlap; 1 to 8 MiB."""
    total = sum(info.end - info.start for info in infos)
    return min(largest, blocks(max(total // 32, min(total, 2**20), 1)))


class Reader:
    """Reads tensors of files, several requests at a time, into staging that is made once.

    >>> with Reader(machine, "direct", infos) as reader:
    ...     for arrived in reader.chunks(infos):
    ...         for part, raw in arrived: ...   # raw is good until the next are asked for
    >>> reader.fill({"model.norm.weight": tensor}, infos)

    how: "read", "mmap" or "direct"; see `minillm.load.readers`. infos: the most that it will be
    asked for at once: for little, little staging is made. Holds staging (DRAM, at most slots ·
    (chunk + 8 KiB) + 2 MiB; none for "mmap"), open files and threads until `close`.
    """

    def __init__(
        self, machine: Machine, how: str, infos: Iterable[TensorInfo], *, chunk: int = CHUNK,
        slots: int = SLOTS,
    ) -> None:  # fmt: skip
        if how not in READERS:
            raise ConfigError(f"wanted a reader of {', '.join(READERS)}, found {how!r}; take one")
        assert chunk > 0 and chunk % BLOCK == 0, f"chunk is a multiple of {BLOCK}, not {chunk}"
        infos = list(infos)
        self.machine, self.how = machine, how
        self.chunk = chunk_size(infos, chunk)
        self.slots = len(list(islice(chunks(infos, self.chunk), slots))) or 1
        self._files: dict[Path, WeightFile] = {}
        self._staging: Tensor | None = None
        with ExitStack() as stack:
            if how != "mmap":
                self._staging = make_staging(machine, self.slots, self.chunk, stack)
            self._open = stack.enter_context(ExitStack())
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
        self._stack.close()
        self._staging = None

    def chunks(self, infos: Iterable[TensorInfo]) -> Generator[Arrived, None, None]:
        """The tensors' bytes as stored, in the order given, some parts at a time.

        Each read is a transfer SSD → DRAM in the trace or, out of a warm page cache, work of the
        CPU. Raises CheckpointError for a file that cannot be read or has become shorter than its
        header says.
        """
        waiting: deque[Future[Arrived]] = deque()
        try:
            for number, chunk in enumerate(chunks(infos, self.chunk)):
                if len(waiting) == self.slots:
                    yield waiting.popleft().result()  # back here, its slot is free again
                slot = None if self._staging is None else self._staging[number % self.slots]
                file, stamp = self._file(chunk[0].info.file), self.machine.trace.at.stamp
                waiting.append(self._pool.submit(self._fetch, file, chunk, slot, stamp))
            while waiting:
                yield waiting.popleft().result()
        finally:  # what is under way would be written into slots that are filled anew
            wait([future for future in waiting if not future.cancel()])

    def fill(self, places: Mapping[str, Tensor], infos: Iterable[TensorInfo]) -> None:
        """Bring each tensor to its place, as `put` does; errors as in `chunks`."""
        with held(), closing(self.chunks(infos)) as arriving:
            for arrived in arriving:
                put(arrived, places, self.machine)
                breathe()

    def _file(self, path: Path) -> WeightFile:
        if path not in self._files:
            file = self._open.enter_context(closing(WeightFile(path, self.how)))
            self._files[path] = file
        return self._files[path]

    def _fetch(
        self, file: WeightFile, chunk: list[Part], slot: Tensor | None, stamp: Stamp
    ) -> Arrived:
        """Bring a chunk to DRAM: into `slot`, or where the page cache has it if mapped.

        Runs on a thread of the pool, and is recorded as done for what the one that asked was at.
        """
        trace, (start, end) = self.machine.trace, file.asked(chunk)
        do = partial(file.fetch, chunk, slot)
        fields = {"label": "weights", "stage": "load", "detail": f"{names(chunk)}; {file.note}"}
        with trace.at(stamp):
            if not file.warm or self.machine.scale is not None:
                ends = {"source": "ssd", "target": "dram", "name": file.how}
                raws = self.machine.carry(do, end - start, **ends, **fields)
            else:  # the SSD is not asked: these are bytes copied within DRAM
                copied = 0 if slot is None else end - start
                with trace.span(file.how, resource="cpu", nbytes=copied, **fields):
                    raws = do()
        return list(zip(chunk, raws, strict=True))


def _let_go(error: BaseException | None) -> None:
    """A notebook keeps the last error, and its frames hold staging."""
    while error is not None:
        clear_frames(error.__traceback__)
        error = error.__cause__


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
