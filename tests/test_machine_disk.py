"""Reads that go past the page cache, and which folder lies on a disk."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from minillm.machine import cgroups, disk
from minillm.machine.disk import (
    PAGE,
    drop_cache,
    filesystem,
    open_direct,
    read_at,
)
from minillm.probe.ssd import aligned, scratch_file

MEMORY = Path("/dev/shm")
needs_tmpfs = pytest.mark.skipif(
    not MEMORY.is_dir() or filesystem(MEMORY) != "tmpfs", reason="no tmpfs here"
)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(os.urandom(10 * PAGE + 100))
    return path


@pytest.fixture
def opened():
    """`opened(path, …)`: as `open_direct`, closed at the end of the test."""
    fds = []

    def open_it(*args, **kwargs):
        found = open_direct(*args, **kwargs)
        fds.append(found.fd)
        return found

    yield open_it
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize("direct", [True, False])
def test_what_is_read_is_what_the_file_holds(file, opened, direct):
    """Catches a short last block, and a buffer that O_DIRECT refuses or fills beside the mark."""
    reader, buffer = opened(file, direct), memoryview(aligned(4 * PAGE))
    data, at = b"", 0
    while got := read_at(reader.fd, buffer, at):
        data, at = data + bytes(buffer[:got]), at + got
    assert data == file.read_bytes() and (reader.direct or reader.how)


def test_where_no_read_takes_a_place_the_file_is_read_all_the_same(file, monkeypatch):
    """Catches bytes of another place, or buffers filled beside the mark, as on Windows."""
    monkeypatch.delattr(disk.os, "preadv", raising=False)
    view = memoryview(bytearray(PAGE))
    with open(file, "rb") as stream:
        assert read_at(stream.fileno(), view, 3 * PAGE) == PAGE
        assert view == file.read_bytes()[3 * PAGE : 4 * PAGE]
        assert read_at(stream.fileno(), view, 10 * PAGE) == 100


@needs_tmpfs
def test_on_tmpfs_it_says_that_this_is_no_disk(opened):
    """Catches a memory's speed told as an SSD's."""
    path = MEMORY / f"minillm-test-{os.getpid()}"
    path.write_bytes(bytes(PAGE))
    try:
        reader = opened(path)
        assert not reader.direct and "tmpfs is memory" in reader.how
    finally:
        path.unlink()


def test_a_file_system_without_o_direct_is_read_through_the_page_cache(file, opened, monkeypatch):
    """Catches a crash where O_DIRECT is refused, and a fallback that nobody hears of."""
    if not hasattr(os, "O_DIRECT"):
        pytest.skip("no O_DIRECT here")
    real, flag = os.open, os.O_DIRECT

    def refuse(path, flags, *more):
        if flags & flag:
            raise OSError(errno.EINVAL, "not here")
        return real(path, flags, *more)

    monkeypatch.setattr(disk, "filesystem", lambda path: "ext4")
    monkeypatch.setattr(disk.os, "open", refuse)
    reader = opened(file)
    assert not reader.direct and "no O_DIRECT" in reader.how
    monkeypatch.delattr(disk.os, "O_DIRECT")  # and a system that has never heard of it
    assert opened(file).how


def test_a_file_system_that_refuses_only_when_it_is_read_is_found_out(file, opened, monkeypatch):
    """Catches a load that dies of EINVAL with a descriptor that O_DIRECT had opened."""
    if not hasattr(os, "O_DIRECT"):
        pytest.skip("no O_DIRECT here")
    import fcntl

    def refuse(fd, view, offset):
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "not here")
        return read_at(fd, view, offset)

    monkeypatch.setattr(disk, "read_at", refuse)
    monkeypatch.setattr(disk, "filesystem", lambda path: "fuse")
    before = set(os.listdir("/proc/self/fd"))
    reader, buffer = opened(file), memoryview(aligned(PAGE))
    assert not reader.direct and "no O_DIRECT" in reader.how
    assert refuse(reader.fd, buffer, 0) == PAGE and bytes(buffer) == file.read_bytes()[:PAGE]
    assert len(os.listdir("/proc/self/fd")) == len(before) + 1
    with scratch_file(file.parent, 2**20) as scratch:
        assert not scratch.reader.direct and "no O_DIRECT" in scratch.reader.how


def mount_table(monkeypatch, tmp_path, *places: tuple[str, str]) -> None:
    """The kernel tells of these mounts, (where, kind), in this order."""
    lines = [f"1 2 0:1 / {where} rw - {kind}  rw" for where, kind in places]
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text("\n".join(lines))
    monkeypatch.setattr(cgroups, "ROOT", tmp_path)


def test_a_mount_path_with_a_space_is_the_place_it_names(monkeypatch, tmp_path):
    """Catches a disk of memory taken for an SSD, since its name has a space."""
    monkeypatch.setattr(os.path, "realpath", lambda path: path)
    mount_table(
        monkeypatch, tmp_path, ("/", "ext4"), (r"/my\040disk", "btrfs"), ("/data", "xfs"),
        ("/data", "tmpfs"), (r"/data/a\134b", "fuse"),
    )  # fmt: skip
    asked = ("/my disk/file", "/my disk", "/my disks", "/data/file", "/data/a\\b/file", "/x")
    assert [filesystem(path) for path in asked] == [
        "btrfs", "btrfs", "ext4", "tmpfs", "fuse", "ext4"
    ]  # fmt: skip


def test_where_nobody_tells_the_file_system_it_is_unknown(monkeypatch, tmp_path, file, opened):
    """Catches a crash of every read where /proc says less, or where the working folder is gone."""
    mount_table(monkeypatch, tmp_path, ("rubbish", ""))
    assert filesystem(file) == "" and opened(file).how

    def gone(path):
        raise FileNotFoundError

    monkeypatch.setattr(os.path, "realpath", gone)
    assert filesystem("file") == ""


def test_a_missing_file_is_missing_and_not_read_otherwise(tmp_path):
    """Catches a fallback that hides the real fault."""
    with pytest.raises(FileNotFoundError):
        open_direct(tmp_path / "none")


def test_dropping_the_cache_leaves_the_file_as_it_was(file):
    """Catches pages dropped before they were written."""
    before = file.read_bytes()
    with open(file, "rb") as stream:
        assert drop_cache(stream.fileno()) == hasattr(os, "posix_fadvise")
    assert file.read_bytes() == before


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs posix_fadvise")
@pytest.mark.parametrize("name", ["fsync", "posix_fadvise"])
def test_a_cache_that_cannot_be_dropped_is_said_to_stay(file, monkeypatch, name):
    """Catches a bench or a probe that dies where a file system has no such call."""

    def refused(*arguments):
        raise OSError(errno.EINVAL, "not here")

    monkeypatch.setattr(os, name, refused)
    monkeypatch.setattr(disk, "filesystem", lambda path: "9p")
    with open(file, "rb") as stream:
        assert not drop_cache(stream.fileno())


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="needs posix_fadvise")
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_fails_while_its_cache_is_dropped_is_no_missing_call(
    file, monkeypatch, number
):  # fmt: skip
    """Catches a full or broken disk that is found at this moment, and then by nobody."""

    def broken(fd):
        raise OSError(number, "not here")

    monkeypatch.setattr(os, "fsync", broken)
    monkeypatch.setattr(disk, "filesystem", lambda path: "ext4")
    with open(file, "rb") as stream, pytest.raises(OSError, match="not here"):
        drop_cache(stream.fileno())
