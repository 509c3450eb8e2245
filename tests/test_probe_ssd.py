"""What the probe reads: scratch files that leave nothing, and every byte of them once."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import threading
from collections import namedtuple
from types import SimpleNamespace

import pytest

from minillm.errors import OutOfMemory
from minillm.machine import host
from minillm.machine.disk import PAGE, read_at
from minillm.probe import ssd
from minillm.probe.ssd import aligned, read_all, scratch_file


def test_every_byte_is_asked_for_once_with_any_number_in_flight(tmp_path, monkeypatch):
    """Catches two threads that read the same block, and a block that nobody reads."""
    asked, lock = [], threading.Lock()

    def counted(fd, view, offset):
        with lock:
            asked.append((offset, len(view)))
        return read_at(fd, view, offset)

    monkeypatch.setattr(ssd, "read_at", counted)
    memory = memoryview(aligned(4 * PAGE))
    with scratch_file(tmp_path, 10 * PAGE) as scratch:
        for depth in (1, 3, 4):
            asked.clear()
            blocks = [memory[i * PAGE : (i + 1) * PAGE] for i in range(depth)]
            read_all(scratch.reader.fd, 9 * PAGE, blocks)
            assert sorted(asked) == [(i * PAGE, PAGE) for i in range(9)]
        with pytest.raises(OSError, match="ended early"):
            read_all(scratch.reader.fd, 12 * PAGE, blocks)


def test_aligned_memory_is_whole_pages_of_zeros():
    """Catches a buffer that O_DIRECT refuses."""
    for nbytes in (1, PAGE, 5 * PAGE + 1, 3 * 2**20):
        memory = aligned(nbytes)
        assert len(memory) >= nbytes and len(memory) % PAGE == 0
        assert bytes(memory) == bytes(len(memory))


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_memory_is_made_where_the_kernel_has_no_huge_pages(monkeypatch):
    """Catches a probe that does not ask for them, and one that fails if it gets none."""
    asked = []
    library = SimpleNamespace(madvise=lambda *advice: asked.append(advice) or -1)
    monkeypatch.setattr(host.ctypes, "CDLL", lambda name: library)
    assert len(aligned(4 * 2**20)) == 4 * 2**20 and len(asked) == 1


def test_a_scratch_file_is_random_whole_and_nameless(tmp_path):
    """Catches a file of zeros, which some disks never write, and one that outlives a crash."""
    with scratch_file(tmp_path, 9 * 2**20 + 1) as scratch:
        if os.name == "posix":
            assert os.listdir(tmp_path) == []  # nothing is left even if this process is killed
        assert scratch.nbytes == 9 * 2**20 == os.fstat(scratch.plain).st_size // PAGE * PAGE
        pages = {os.pread(scratch.plain, 64, at) for at in range(0, scratch.nbytes, 4 * 2**20)}
        assert len(pages) == 3
    assert os.listdir(tmp_path) == []


def test_a_slow_disk_gets_a_smaller_file(tmp_path):
    """Catches a minute of writing on a memory card."""
    ticks = iter(range(1000))
    with scratch_file(tmp_path, 2**26, 3, least=2**20, clock=lambda: next(ticks)) as scratch:
        assert 2**20 <= scratch.nbytes < 2**26


@pytest.mark.parametrize("fault", [KeyboardInterrupt, ValueError])
def test_nothing_is_left_whatever_happens(tmp_path, fault):
    """Catches a gigabyte forgotten at each interrupt, and descriptors that stay open."""
    with pytest.raises(fault), scratch_file(tmp_path, 2**20) as scratch:
        raise fault
    assert os.listdir(tmp_path) == []
    for fd in (scratch.plain, scratch.reader.fd):
        with pytest.raises(OSError):
            os.fstat(fd)


def test_a_full_disk_is_refused_before_and_named_while_writing(tmp_path, monkeypatch):
    """Catches a probe that fills the learner's disk, and an ENOSPC without a word of advice."""
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 2**28))
        with pytest.raises(OutOfMemory, match="of SSD, found 256.0 MiB free.*delete files"):
            with scratch_file(tmp_path, 2**20):
                pytest.fail("there was no room")

    def full(fd, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ssd.os, "write", full)
    with pytest.raises(OutOfMemory, match="SSD"), scratch_file(tmp_path, 2**20):
        pytest.fail("nothing was written")
    assert os.listdir(tmp_path) == []
