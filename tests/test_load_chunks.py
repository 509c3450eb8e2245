"""What each read brings: every byte that is wanted, once, and no more than a slot has room for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from minillm.load.chunks import BLOCK, GAP, Part, chunks
from minillm.load.safetensors import TensorInfo

FILE = Path("model.safetensors")
SIZE = 4 * BLOCK
DTYPES = [torch.int8, torch.bfloat16, torch.float32, torch.float64]


def tensors(sizes: list[int], dtype: torch.dtype, start: int = 8) -> list[TensorInfo]:
    """Contiguous tensors one after another, of so many elements."""
    infos = []
    for number, n in enumerate(sizes):
        infos.append(TensorInfo(f"t{number}", dtype, (n,), start, n * dtype.itemsize, FILE))
        start += n * dtype.itemsize
    return infos


def columns(rows: int, run: int, stride: int, start: int, dtype=torch.int8) -> TensorInfo:
    """A slice by columns of a matrix; run and stride are in elements."""
    item = dtype.itemsize
    shape = (rows, run)
    return TensorInfo(
        "w", dtype, shape, start, rows * run * item, FILE, rows=rows, stride=stride * item
    )


def hull(chunk: list[Part]) -> int:
    return chunk[-1].end - chunk[0].start


def runs(part: Part) -> list[tuple[int, int]]:
    starts = [part.start + row * part.info.stride for row in range(part.rows)]
    return [(start, start + part.run) for start in starts]


def assert_exact(infos: list[TensorInfo], plan: list[list[Part]]) -> None:
    """Each tensor's parts, put one behind another, are its ranges: in order, whole, once."""
    parts = [part for chunk in plan for part in chunk]
    for info in infos:
        mine = [part for part in parts if part.info is info]
        assert [p.at for p in mine] == [sum(q.nbytes for q in mine[:i]) for i in range(len(mine))]
        assert sum(part.nbytes for part in mine) == info.nbytes
        covered = [byte for p in mine for begin, end in runs(p) for byte in range(begin, end)]
        assert covered == [byte for begin, end in info.ranges for byte in range(begin, end)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 3 * SIZE), max_size=6), st.sampled_from(DTYPES), st.integers(0, 9000)
)
def test_every_byte_is_brought_once_and_fits_its_slot(sizes, dtype, start):
    """Would catch a byte lost or doubled at a border, and an element cut in two."""
    infos = tensors([n // dtype.itemsize for n in sizes], dtype, start)
    plan = list(chunks(infos, SIZE))
    assert_exact(infos, plan)
    for chunk in plan:
        assert hull(chunk) <= SIZE + dtype.itemsize
        assert all(part.at % dtype.itemsize == 0 for part in chunk)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(2, 40), run=st.integers(1, 3 * BLOCK), more=st.integers(0, 3 * BLOCK),
    start=st.integers(0, 9000),
)  # fmt: skip
@example(rows=3, run=2 * BLOCK + 1, more=0, start=0)  # two single rows are one too many
def test_a_slice_by_columns_is_brought_once_and_fits_its_slot(rows, run, more, start):
    """Would catch rows that are lost between two reads, and staging that grows with the stride."""
    info = columns(rows, run, run + more, start)
    plan = list(chunks([info], SIZE))
    assert_exact([info], plan)
    assert all(hull(chunk) <= SIZE + 1 for chunk in plan)


def test_reads_end_where_blocks_end():
    """Would catch chunks counted from the tensor: with O_DIRECT two reads would share a block."""
    plan = list(chunks(tensors([10 * SIZE], torch.int8, start=77), SIZE))
    assert [chunk[-1].end % BLOCK for chunk in plan[:-1]] == [0] * (len(plan) - 1)


def test_small_neighbours_share_a_read_and_large_tensors_take_several():
    """Would catch a read for each of a thousand norms."""
    small = tensors([4] * 1000, torch.int8)
    assert len(list(chunks(small, SIZE))) == 1
    assert len(list(chunks(tensors([SIZE], torch.int8, 0), SIZE))) == 1
    assert len(list(chunks(tensors([3 * SIZE], torch.int8), SIZE))) == 4


@pytest.mark.parametrize(("hole", "reads"), [(0, 1), (GAP, 1), (GAP + 1, 2)])
def test_a_hole_up_to_the_gap_is_read_over(hole, reads):
    """Would catch a request for each side of a hole that takes less time to read than to skip."""
    one, two = tensors([50], torch.int8, 0), tensors([50], torch.int8, 50 + hole)
    assert len(list(chunks(one + two, 4 * GAP))) == reads


def test_two_files_never_share_a_read():
    """Would catch neighbours by offset alone."""
    (one,), (two,) = tensors([50], torch.int8, 0), tensors([50], torch.int8, 50)
    other = TensorInfo("o", two.dtype, two.shape, two.start, two.nbytes, Path("other.safetensors"))
    assert len(list(chunks([one, other], SIZE))) == 2


def test_empty_tensors_need_no_read():
    """Would catch a read of no bytes, which looks like the file's end."""
    assert list(chunks(tensors([0, 0], torch.float32), SIZE)) == []
