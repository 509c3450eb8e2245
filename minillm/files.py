"""Files that are whole or not there, and temporary folders that go with the process that made them.

A file is written under another name, put on disk, and then takes the place of the old one in one
step. A folder cannot be unlinked while it is used, and a process that is killed cleans nothing up.
So whatever is temporary has its owner in its name, and whoever comes next sweeps it away.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from minillm.errors import MinillmError
from minillm.process import has_ended, this_process

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

T = TypeVar("T")
StrPath = str | os.PathLike[str]

_WEEK = 7 * 24 * 3600.0  # seconds, after which something nobody can ask about is a leftover
_TEMPORARY = re.compile(r"\.minillm-([0-9a-f]{8})-(\d{1,10})-(\d{1,20})-\w+")
_NO_FOLDER = "make its folder first, or choose another file"
_NO_ROOM = "delete files on that disk, or choose a file on another one"
_NO_RIGHT = "choose a folder that you may write"
_REMEDY = {
    errno.ENOENT: _NO_FOLDER, errno.ENOTDIR: _NO_FOLDER, errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM, errno.EACCES: _NO_RIGHT, errno.EPERM: _NO_RIGHT, errno.EROFS: _NO_RIGHT,
}  # fmt: skip


# -- whole or not there -----------------------------------------------------------------------


def save(path: StrPath, data: bytes | str, what: str = "a file") -> None:
    """Write a file, all of it or nothing: after an error or an interrupt the old one is there.

    A link stays a link, and a file keeps its permissions. MinillmError if it cannot be written.

    >>> save("no/such/folder/run.json", "{}", "a trace")
    Traceback (most recent call last):
    minillm.errors.MinillmError: wanted to write a trace to no/such/folder/run.json, found No such \
file or directory; make its folder first, or choose another file
    """
    try:
        _replace(os.fspath(path), data.encode() if isinstance(data, str) else data)
    except OSError as error:
        found = error.strerror or type(error).__name__
        do = _REMEDY.get(error.errno, "choose another file")
        raise MinillmError(f"wanted to write {what} to {path}, found {found}; {do}") from error


def _replace(path: str, data: bytes) -> None:
    try:
        old = os.stat(path)
    except FileNotFoundError:
        old = None
    if old and not stat.S_ISREG(old.st_mode):  # a device or a pipe is no file to replace
        with open(path, "wb") as stream:
            stream.write(data)
        return
    if old and not os.access(path, os.W_OK):  # a new file could take its place, against its mode
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    path = os.path.realpath(path)
    folder = os.path.dirname(path)
    sweep(folder)
    draft = os.path.join(folder, f"{_prefix()}{secrets.token_hex(4)}")
    try:
        with open(draft, "xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())  # or after a power cut the new name may stand for no bytes
        if old:
            os.chmod(draft, stat.S_IMODE(old.st_mode))
        os.replace(draft, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(draft)
        raise


def read_json(path: StrPath) -> Any:
    """What a JSON file says. OSError if it cannot be read, ValueError if it is not JSON."""
    try:
        return json.loads(Path(path).read_bytes())
    except RecursionError as error:
        raise ValueError("brackets inside brackets, thousands deep") from error


def write_json(path: StrPath, value: Any, what: str = "a file", indent: int | None = None) -> None:
    """`save` a value as JSON. TypeError or ValueError if JSON cannot hold it, such as NaN."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    # Half of a surrogate pair has no UTF-8 form: its backslash form is JSON's own.
    save(path, f"{text}\n".encode("utf-8", "backslashreplace"), what)


def kept(folder: str, key: str, parse: Callable[[Any], T], make: Callable[[], Any]) -> T:
    """What takes a while to find, found once: `parse` of the JSON that `make` made for this key.

    It is kept below `home`; what is damaged, which `parse` must refuse, is made again.

    >>> kept("primes", "below 10", tuple, lambda: [2, 3, 5, 7])   # a slow sieve, the first time
    (2, 3, 5, 7)
    """
    path = home() / folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    with suppress(OSError, KeyError, TypeError, ValueError):
        return parse(read_json(path))
    found = make()
    with suppress(OSError, MinillmError):  # where it cannot be kept it is made again
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, found)
    return parse(found)


@contextmanager
def locked(path: StrPath, seconds: float = 10.0, pause: float = 0.005) -> Iterator[None]:
    """Of all processes and threads, one at a time: around reading, changing and writing `path`.

    The lock is a file beside it. Where the file system knows no locks, or if another holds it for
    longer than `seconds`, which only one that hangs does, it goes on without. Not to be nested.
    pause: seconds between two looks whether it is free.
    """
    path = Path(path)
    try:
        fd = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:  # a folder that cannot be written: the write itself will tell
        fd = None
    end = time.monotonic() + seconds
    try:
        while fd is not None and _must_wait(fd) and time.monotonic() < end:
            time.sleep(pause)
        yield
    finally:
        if fd is not None:
            os.close(fd)  # which lets go


def _must_wait(fd: int) -> bool:
    """Take the lock. False: it is ours, or there are no locks here."""
    try:
        if fcntl:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        return error.errno in (errno.EAGAIN, errno.EACCES)
    return False


# -- where to write ---------------------------------------------------------------------------


def home() -> Path:
    """Where this learner's profile and progress live: MINILLM_HOME, or else ~/.minillm."""
    try:
        return Path(os.environ.get("MINILLM_HOME") or "~/.minillm").expanduser()
    except RuntimeError:  # a user without a home, as in some containers
        return Path(tempfile.gettempdir()) / "minillm"


def locate(path: StrPath) -> Path:
    """A relative path from here, or else from the folder that holds the package.

    So `"data/town"` is found from the repository and from its notebooks alike.
    """
    beside = Path(__file__).resolve().parents[1] / path
    return beside if beside.exists() and not Path(path).exists() else Path(path)


# -- temporary, with an owner -----------------------------------------------------------------


def temporary_folder(parent: StrPath | None = None) -> tempfile.TemporaryDirectory[str]:
    """A new folder, for a `with` or by its `name`; it goes with the object or the process.

    parent: by default the system's temporary folder. What killed processes left there goes, too.

    >>> with temporary_folder() as name:
    ...     (Path(name) / "chase.c").write_text("…")
    """
    parent = parent or tempfile.gettempdir()
    sweep(parent)
    return tempfile.TemporaryDirectory(
        prefix=_prefix(), dir=os.path.abspath(parent), ignore_cleanup_errors=True
    )


def sweep(folder: StrPath) -> None:
    """Remove the temporary files and folders in `folder` whose owners are no longer alive.

    Of an owner in another container or on another machine, and of any on Windows, nobody can tell:
    what is theirs goes after a week.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            owner = _TEMPORARY.fullmatch(entry.name)
            with suppress(OSError):  # another sweeps, too, or it is not ours to remove
                if owner and _is_left(entry, *owner.groups()):
                    if entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path, ignore_errors=True)
                    else:
                        os.unlink(entry.path)


def _prefix() -> str:
    """`.minillm-PLACE-PID-START-`: a process of this machine, of this container, of this moment."""
    return ".minillm-{}-{}-{}-".format(*this_process())


def _is_left(entry: os.DirEntry[str], place: str, pid: str, start: str) -> bool:
    if os.name != "posix" or place != this_process()[0]:
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > _WEEK
    return has_ended(place, int(pid), int(start))
