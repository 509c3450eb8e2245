"""Three ways to read a file: the same bytes, and each says by what way they came."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

import pytest
import torch

from minillm.errors import CheckpointError
from minillm.load import readers
from minillm.load.chunks import BLOCK, chunks
from minillm.load.readers import READERS, WeightFile, drop
from minillm.load.safetensors import TensorInfo
from minillm.machine import disk
from minillm.probe import page_cache

NBYTES = 5 * BLOCK + 123
has_direct = pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="this system has no O_DIRECT")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "model.safetensors"
    file.write_bytes(os.urandom(NBYTES))
    return file


def info(path: Path, start: int, nbytes: int, rows: int = 1, stride: int = 0) -> TensorInfo:
    shape = (rows, nbytes // rows)
    return TensorInfo("w", torch.int8, shape, start, nbytes, path, rows=rows, stride=stride)


def fetch(file: WeightFile, wanted: TensorInfo) -> bytes:
    """All of a tensor, by way of one slot, filled before with what must not come out."""
    slot = torch.full((2 * BLOCK + 10 * BLOCK,), 7, dtype=torch.uint8)
    slot = slot[-slot.data_ptr() % BLOCK :]
    result = b""
    for chunk in chunks([wanted], 8 * BLOCK):
        for raw in file.fetch(chunk, slot):
            result += raw.contiguous().numpy().tobytes()
    return result


@pytest.fixture(params=READERS)
def file(request, path):
    opened = WeightFile(path, request.param)
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("start", "nbytes"),
    [(0, 1), (0, BLOCK), (1, BLOCK), (BLOCK - 1, 2), (100, 3 * BLOCK), (0, NBYTES),
     (NBYTES - 1, 1), (5 * BLOCK, 123), (5 * BLOCK - 7, 100)],
)  # fmt: skip
def test_any_range_of_bytes_comes_as_it_is(file, path, start, nbytes):
    """Would catch a block's other bytes that come along, and a last block that is not whole."""
    assert fetch(file, info(path, start, nbytes)) == path.read_bytes()[start : start + nbytes]


@pytest.mark.parametrize(
    ("start", "run", "stride", "rows"),
    [(5, 3, 10, 50), (0, 512, BLOCK, 5), (17, 700, 5000, 4), (100, 1, BLOCK, 5), (3, 9, 9, 100)],
)
def test_a_slice_by_columns_comes_as_its_runs(file, path, start, run, stride, rows):
    """Would catch runs that keep the bytes between them, or that overwrite each other."""
    wanted, content = info(path, start, rows * run, rows, stride), path.read_bytes()
    assert fetch(file, wanted) == b"".join(content[a:b] for a, b in wanted.ranges)


@has_direct
def test_direct_asks_for_whole_blocks_only(path, monkeypatch):
    """Would catch a read that O_DIRECT refuses on another disk than ours."""
    asked = []

    def read_at(fd, view, offset):
        asked.append((offset % BLOCK, len(view) % BLOCK))
        return disk.read_at(fd, view, offset)

    monkeypatch.setattr(readers, "read_at", read_at)
    file = WeightFile(path, "direct")
    fetch(file, info(path, 777, NBYTES - 777))
    fetch(file, info(path, 777, 40, 4, BLOCK + 3))
    file.close()
    assert set(asked) == {(0, 0)}


def test_nothing_is_asked_for_that_is_not_wanted(path):
    """Would catch a rank that reads what belongs to others."""
    file = WeightFile(path, "read")
    asked = [file.asked(chunk) for chunk in chunks([info(path, 5, 30)], 8 * BLOCK)]
    file.close()
    assert asked == [(5, 35)]


@pytest.mark.parametrize("how", ["read", "direct"])
@pytest.mark.parametrize("most", [1, 1000, BLOCK, 3 * BLOCK])
def test_a_read_that_gives_less_is_continued(path, how, most, monkeypatch):
    """Would catch a slot handed out half full: the kernel may return less than was asked."""

    def read_at(fd, view, offset):
        size = most if how == "read" else max(BLOCK, most // BLOCK * BLOCK)
        return disk.read_at(fd, view[:size], offset)

    monkeypatch.setattr(readers, "read_at", read_at)
    file = WeightFile(path, how)
    assert fetch(file, info(path, 10, NBYTES - 10)) == path.read_bytes()[10:]
    file.close()


@pytest.mark.parametrize("left", [0, 1, BLOCK, 3 * BLOCK + 5, NBYTES - 1])
def test_a_file_cut_short_is_named_and_nobody_dies(file, path, left):
    """Would catch stale bytes handed out as a tensor, and SIGBUS from mapped pages."""
    wanted = info(path, 3, NBYTES - 3)
    os.truncate(path, left)
    with pytest.raises(CheckpointError, match=r"model\.safetensors, tensor 'w'"):
        fetch(file, wanted)


@pytest.mark.parametrize("left", [0, BLOCK])
@pytest.mark.parametrize("how", READERS)
def test_a_file_cut_short_before_it_is_opened_is_named(path, how, left):
    """Would catch a ValueError for a file that shrank between its header and its tensors."""
    wanted = info(path, 3, NBYTES - 3)
    os.truncate(path, left)
    file = WeightFile(path, how)
    with pytest.raises(CheckpointError, match=r"model\.safetensors, tensor 'w'"):
        fetch(file, wanted)
    file.close()


def test_what_the_disk_cannot_read_is_named(path, monkeypatch):
    """Would catch a reader that retries for ever, or takes an error for the file's end."""

    def read_at(fd, view, offset):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(readers, "read_at", read_at)
    file = WeightFile(path, "read")
    with pytest.raises(CheckpointError, match="Input/output.*tensor 'w'; check the disk"):
        fetch(file, info(path, 0, 10))
    file.close()


def test_close_gives_the_descriptor_back(path):
    """Would catch a descriptor that leaks with each load."""
    before = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    for how in READERS:
        file = WeightFile(path, how)
        fetch(file, info(path, 0, NBYTES))
        file.close()
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) == len(before)


def test_where_there_is_no_o_direct_the_note_says_what_was_done(path, monkeypatch):
    """Would catch a figure called "direct" that the page cache made."""
    monkeypatch.setattr(disk, "filesystem", lambda path: "tmpfs")
    file = WeightFile(path, "direct")
    assert fetch(file, info(path, 1, 100)) == path.read_bytes()[1:101]
    assert "tmpfs is memory" in file.note and file.step == 1
    file.close()


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs posix_fadvise")
def test_the_page_cache_forgets_a_file_and_the_note_says_so(path):
    """Would catch "cold" loads that are warm, and a note that says what it does not know."""
    stream = os.open(path, os.O_RDONLY)
    path.read_bytes()
    held = page_cache.cached(stream, NBYTES)
    os.close(stream)
    if held is None or disk.filesystem(path) in ("tmpfs", "overlay"):
        pytest.skip("this system does not tell, or has no disk here")
    assert held == 1.0
    assert drop([path])
    cold = WeightFile(path, "read")
    assert "held 0% of the file" in cold.note
    fetch(cold, info(path, 0, NBYTES))
    cold.close()
    warm = WeightFile(path, "read")
    assert "held 100% of the file" in warm.note
    warm.close()


class Liar:
    """A C library in which the page cache holds all there is."""

    def mincore(self, address, length, answer):
        answer[:] = [1] * 64
        return 0


def notes(path: Path) -> dict[str, tuple[bool, str]]:
    found = {}
    for how in ("read", "mmap"):
        file = WeightFile(path, how)
        assert fetch(file, info(path, 3, 5000)) == path.read_bytes()[3:5003]
        found[how] = file.warm, file.note
        file.close()
    return found


@pytest.mark.skipif(os.name == "nt", reason="Windows tells nothing anyway")
def test_all_cached_is_not_believed_of_another_users_file(path, monkeypatch):
    """Catches a cold load told as a warm one: the kernel hides what others have read."""
    owner = os.stat(path).st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    access = lambda path, mode, effective_ids: False  # noqa: E731
    monkeypatch.setattr(os, "access", access)
    monkeypatch.setattr(os, "supports_effective_ids", {access})
    for warm, note in notes(path).values():
        assert not warm and "held an unknown share of the file" in note


@pytest.mark.skipif(
    not hasattr(os, "seteuid") or os.geteuid() != 0, reason="only root can act as another user"
)
def test_another_user_is_told_nothing_of_the_page_cache(path):
    """Catches a check of who we were when the process began, in a program that gave root up."""
    path.chmod(0o644)
    with open(path, "rb") as stream:
        os.seteuid(65534)
        try:
            assert page_cache.cached(stream.fileno(), NBYTES) is None
        finally:
            os.seteuid(0)


@pytest.mark.skipif(os.name == "nt", reason="Windows tells nothing anyway")
def test_a_system_that_says_cached_of_everything_is_not_believed(path, monkeypatch):
    """Catches a sandbox in which every load is warm."""
    monkeypatch.setattr(page_cache.ctypes, "CDLL", lambda name: Liar())
    for warm, note in notes(path).values():
        assert not warm and "held an unknown share of the file" in note


def test_a_file_that_cannot_be_mapped_is_read_and_its_cache_unknown(path, monkeypatch):
    """Catches a load that dies because a file was to be mapped, only to annotate it."""
    real = mmap.mmap

    def refused(fd, *arguments, **more):
        if fd >= 0:
            raise OSError(errno.ENODEV, "No such device")
        return real(fd, *arguments, **more)

    monkeypatch.setattr(mmap, "mmap", refused)
    file = WeightFile(path, "read")
    assert fetch(file, info(path, 0, NBYTES)) == path.read_bytes()
    assert not file.warm and "unknown" in file.note
    file.close()
    before = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    with pytest.raises(CheckpointError, match='can be mapped, found “No such device”.*"read"'):
        WeightFile(path, "mmap")
    assert not before or len(os.listdir("/proc/self/fd")) == len(before)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs posix_fadvise")
def test_advice_that_is_refused_changes_nothing(path, monkeypatch):
    """Catches a load that dies because nobody takes its advice to read ahead."""

    def refused(*arguments):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(os, "posix_fadvise", refused)
    assert notes(path)


@has_direct
def test_a_disk_that_refuses_direct_reads_late_is_read_through_the_page_cache(path, monkeypatch):
    """Catches a load that dies of EINVAL, and a note that says O_DIRECT all the same."""
    import fcntl

    def refuse(fd, view, offset):
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(fd, view, offset)

    real = disk.read_at
    for module in (disk, readers):
        monkeypatch.setattr(module, "read_at", refuse)
    file = WeightFile(path, "direct")
    assert fetch(file, info(path, 1, NBYTES - 1)) == path.read_bytes()[1:]
    assert "no O_DIRECT" in file.note or "is memory" in file.note
    file.close()
