"""Files, read the way that measures the disk: past the page cache.

The kernel keeps what was read or written in DRAM (the page cache), so a second reading of a file
says nothing of the disk. O_DIRECT asks for the disk itself; it wants buffers, offsets and sizes
in multiples of a sector, which whole pages are.
"""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from minillm.errors import MinillmError
from minillm.files import home
from minillm.machine.cgroups import mounts

PAGE = 4096
IN_MEMORY = {"tmpfs", "ramfs", "devtmpfs", "hugetlbfs"}
_NO_SUCH_CALL = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ESPIPE}
_seek_lock = threading.Lock()


class Opened(NamedTuple):
    """An open file. direct: whether reads go past the page cache; how: by what, or why not."""

    fd: int
    direct: bool
    how: str


def open_direct(
    path: str | os.PathLike[str], direct: bool = True, write: bool = False
) -> Opened:
    """Open a file for reading past the page cache where the system can; close `fd` yourself.

    write: for both; it must be there, and hold a page at least.

    Linux: O_DIRECT. macOS: F_NOCACHE, which skips the cache for what is not in it yet. Elsewhere,
    or where the file system refuses, through the page cache, and `how` says so.
    """
    why, mode = "", os.O_RDWR if write else os.O_RDONLY
    if direct:
        fd, how = _past_cache(path, mode)
        if fd is not None:
            return Opened(fd, True, how)
        why = f": {how}"
    fd = os.open(path, mode | getattr(os, "O_BINARY", 0))
    return Opened(fd, False, f"through the page cache{why}")


def _past_cache(path: str | os.PathLike[str], mode: int) -> tuple[int | None, str]:
    """A descriptor that goes past the page cache, and by what; or None, and why not."""
    flag, kind = getattr(os, "O_DIRECT", 0), filesystem(path)
    if kind in IN_MEMORY:
        return None, f"{kind} is memory, no disk"
    try:
        fd = os.open(path, mode | flag)
    except OSError:  # if not for O_DIRECT, then opening it otherwise fails too
        return None, "this file system has no O_DIRECT"
    try:
        if not flag:
            import fcntl

            fcntl.fcntl(fd, fcntl.F_NOCACHE, 1)
            return fd, "F_NOCACHE, for macOS has no O_DIRECT"
        with mmap.mmap(-1, PAGE) as page, memoryview(page) as view:
            read_at(fd, view, 0)  # some file systems refuse only now
        return fd, "O_DIRECT"
    except (ImportError, AttributeError, OSError):
        os.close(fd)
        return None, f"this {'file ' * bool(flag)}system has no O_DIRECT"


def filesystem(path: str | os.PathLike[str]) -> str:
    """The type of file system that a path lies on, such as "ext4"; "" where nobody tells."""
    try:
        real = os.path.realpath(path)
    except OSError:  # the working directory was removed
        return ""
    inside = [m for m in mounts() if real == m.where or real.startswith(m.where.rstrip("/") + "/")]
    # Of two at one place the later hides the other: turned round, it is the first of the longest.
    return max(reversed(inside), key=lambda mount: len(mount.where)).kind if inside else ""


def writable_folder() -> Path:
    """A folder on a disk that takes files: this one, or `home()`, or the system's temporary one.

    One in memory, such as a tmpfs, is taken if there is no other: there no disk can be measured.
    Prints a line if it is not this one. MinillmError if none takes a file.
    """
    here = Path()
    taking = {folder: filesystem(folder) in IN_MEMORY for folder in _taking_files(here)}
    if not taking:
        raise MinillmError(
            f"wanted a folder that takes files, found none: not this one, {home()} or "
            f"{tempfile.gettempdir()}; set MINILLM_HOME to one that does"
        )
    folder = min(taking, key=taking.__getitem__)  # the first one on a disk, else the first
    if folder != here:
        why = "lies in memory, not on a disk" if here in taking else "takes no files"
        print(f"This folder {why}: files go to {folder}")
    return folder


def _taking_files(here: Path) -> Iterator[Path]:
    """To try is the only sure way: there are places where even root may not write."""
    for folder in (here, home(), Path(tempfile.gettempdir())):
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
            yield folder


def free_disk(path: str | os.PathLike[str] = ".") -> int:
    """Bytes free on the disk of a path; 0 where nobody tells, as in a folder that was removed."""
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return 0


def drop_cache(fd: int) -> bool:
    """Have the kernel forget this file's pages, once they are on disk. False where it cannot:
    where the system has no such call, and where the pages are all there is of the file (tmpfs)."""
    if not hasattr(os, "posix_fadvise") or filesystem(f"/proc/self/fd/{fd}") in IN_MEMORY:
        return False
    try:
        os.fsync(fd)  # a page not yet written cannot be dropped
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        if error.errno not in _NO_SUCH_CALL:  # a disk that is full or broken may be found here
            raise
        return False
    return True


def read_at(fd: int, view: memoryview, offset: int) -> int:
    """Fill `view` with the file's bytes from `offset` on; the bytes read, fewer at its end."""
    if hasattr(os, "preadv"):
        return os.preadv(fd, [view], offset)
    with _seek_lock:  # Windows
        os.lseek(fd, offset, os.SEEK_SET)
        data = os.read(fd, len(view))
    view[: len(data)] = data
    return len(data)


def write_at(fd: int, view: memoryview, offset: int) -> None:
    """Write all of `view` to the file, from `offset` on."""
    while view:
        with _seek_lock:
            os.lseek(fd, offset, os.SEEK_SET)
            done = os.write(fd, view)
        view, offset = view[done:], offset + done
