"""Which bytes each read brings: large tensors in parts, small neighbours together.

Staging holds a few reads of a fixed size, whatever the tensors are like. So the tensors are cut
to that size before anything is read; this is arithmetic only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from minillm.load.safetensors import TensorInfo

CHUNK = 8 * 2**20  # bytes of one read: so many that starting it costs nothing
GAP = 128 * 2**10  # bytes: a hole up to this long is read over, for another request takes longer
BLOCK = 4096  # bytes: O_DIRECT wants offsets, lengths and addresses in multiples of this
_NAME = 100  # letters of a tensor's name that go into the trace: the file may bring a million


@dataclass(frozen=True)
class Part:
    """Bytes of a tensor from its byte `at` on; in the file `rows` runs of `run`, from `start`."""

    info: TensorInfo
    at: int
    start: int
    run: int
    rows: int = 1

    @property
    def nbytes(self) -> int:
        return self.rows * self.run

    @property
    def label(self) -> str:
        """The tensor's name, short enough for a trace."""
        return self.info.name[:_NAME]

    @property
    def end(self) -> int:
        """The byte of the file behind the last run."""
        return self.start + (self.rows - 1) * self.info.stride + self.run


def chunks(infos: Iterable[TensorInfo], size: int = CHUNK) -> Iterator[list[Part]]:
    """The parts of tensors that each read brings, in the order given (best: that of the bytes).

    A read ends at a multiple of `size` in the file, or an element before, so that O_DIRECT reads
    few blocks twice. A slice by columns is read by itself, some rows at a time, with what lies
    between its runs.

    >>> norm = TensorInfo("norm", torch.int8, (64,), 100, 64, file)
    >>> proj = TensorInfo("proj", torch.int8, (8192,), 164, 8192, file)
    >>> [[(p.info.name, p.start, p.nbytes) for p in chunk] for chunk in chunks([norm, proj], 4096)]
    [[('norm', 100, 64), ('proj', 164, 3932)], [('proj', 4096, 4096)], [('proj', 8192, 164)]]
    """
    chunk: list[Part] = []
    for part in (part for info in infos for part in _cut(info, size)):
        if chunk and not _together(chunk[-1], part, size):
            yield chunk
            chunk = []
        chunk.append(part)
    if chunk:
        yield chunk


def _together(one: Part, two: Part, size: int) -> bool:
    return (
        one.info.file == two.info.file
        and one.info.rows == two.info.rows == 1
        and 0 <= two.start - one.end <= GAP
        and (one.end - 1) // size == (two.end - 1) // size
    )


def _cut(info: TensorInfo, size: int) -> Iterator[Part]:
    """One tensor's parts, none of which takes more than `size` and an element of staging."""
    rows, run, stride = info.rows, info.run, info.stride
    fit = size // stride if rows > 1 and run else 0
    for row in range(0, rows, max(1, fit)):
        at, start = row * run, info.start + row * stride
        if fit:
            yield Part(info, at, start, run, min(fit, rows - row))
        else:
            yield from _cut_run(info, at, start, size)


def _cut_run(info: TensorInfo, at: int, start: int, size: int) -> Iterator[Part]:
    item, left = info.dtype.itemsize, info.run
    while left:
        nbytes = ((start + item) // size + 1) * size - start  # up to the next border
        nbytes = left if left <= nbytes else nbytes - nbytes % item
        yield Part(info, at, start, nbytes)
        at, start, left = at + nbytes, start + nbytes, left - nbytes


def names(chunk: list[Part]) -> str:
    """Which tensors a read brings, in a few words."""
    more = f" … {chunk[-1].label} ({len(chunk)})" if len(chunk) > 1 else ""
    return chunk[0].label + more


def blocks(nbytes: int) -> int:
    """`nbytes`, rounded up to whole blocks."""
    return -(-nbytes // BLOCK) * BLOCK


def room(nbytes: int) -> int:
    """Bytes of the blocks in which `nbytes` lie, wherever they begin: at most."""
    return blocks(nbytes) + BLOCK
