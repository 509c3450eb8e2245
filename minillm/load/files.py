"""The files of a load: opened when they are needed, and every read of them on record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from torch import Tensor

from minillm.load.chunks import Piece, chunks, names
from minillm.load.place import Arrived
from minillm.load.readers import WeightFile
from minillm.load.safetensors import TensorInfo, damaged
from minillm.machine import Machine
from minillm.machine.copies import T
from minillm.machine.interrupt import held


class Files:
    """Files read in one way; see `minillm.load.readers`. Holds them open until `close`.

    gap: a hole up to so many bytes is read over; see `minillm.load.chunks.chunks`.
    """

    def __init__(self, machine: Machine, how: str, gap: int) -> None:
        self._machine, self._how, self._gap = machine, how, gap
        self._open: dict[Path, WeightFile] = {}

    def close(self) -> None:
        """Close them; they can be read again."""
        while self._open:
            self._open.popitem()[1].close()

    def reads(
        self, infos: Iterable[TensorInfo], size: int
    ) -> Iterator[tuple[WeightFile, list[Piece]]]:
        """What to read, `size` bytes at a time, in the order of `infos`."""
        for chunk in chunks(infos, size, self._gap):
            yield self._file(chunk[0].info.file), chunk

    def _file(self, path: Path) -> WeightFile:
        if path not in self._open:
            with held():  # or an interrupt could lose it before it is in the list
                self._open[path] = WeightFile(path, self._how)
        return self._open[path]

    def fetch(self, file: WeightFile, chunk: list[Piece], slot: Tensor | None) -> Arrived:
        """Bring a chunk to DRAM: into `slot`, or where the page cache has it if mapped."""
        ranges = file.ranges(chunk, self._gap)
        copied = 0 if slot is None else _length(ranges)
        raws = self.on_record(file, chunk, partial(file.fetch, chunk, ranges, slot), copied)
        return list(zip(chunk, raws, strict=True))

    def on_record(
        self, file: WeightFile, chunk: list[Piece], do: Callable[[], T], copied: int = 0
    ) -> T:
        """Run `do`, which reads a chunk: a transfer SSD → DRAM in the trace.

        If the file was warm, so that the SSD is not asked: a span of the CPU, with the bytes that
        were `copied` within DRAM. Raises CheckpointError where the disk cannot read.
        """
        ranges = file.ranges(chunk, self._gap)
        fields = {"label": "weights", "stage": "load", "detail": f"{names(chunk)}; {file.note}"}
        try:
            if file.warm and self._machine.scale is None:
                with self._machine.trace.span(file.how, resource="cpu", nbytes=copied, **fields):
                    return do()
            ends = {"source": "ssd", "target": "dram", "name": file.how}
            return self._machine.carry(do, _length(ranges), **ends, **fields)
        except OSError as error:
            wanted = f"bytes {ranges[0][0]:,} to {ranges[-1][1]:,}"
            advice = 'check the disk, or take reader="read"' if file.step > 1 else "check the disk"
            name, found = chunk[0].info.name, f"“{error.strerror}”"
            raise damaged(file.path, wanted, found, name, advice) from error


def _length(ranges: list[tuple[int, int]]) -> int:
    return sum(end - start for start, end in ranges)
