"""A file is whole or not there; what is temporary goes when its owner does."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from minillm import files, process
from minillm.errors import MinillmError
from minillm.machine import disk

ROOT = Path(__file__).resolve().parent.parent
posix = pytest.mark.skipif(os.name != "posix", reason="modes, links and signals of POSIX")


def refuse(number: int):
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


# -- whole or not there -----------------------------------------------------------------------


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "do"),
    [(errno.ENOSPC, "delete files"), (errno.EROFS, "choose a folder"), (errno.EIO, "another file")],
)
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path, monkeypatch, call, number, do
):
    """Catches half a file under the asked name, and a draft that a full disk would have to keep."""
    path = tmp_path / "run.json"
    path.write_text("old")
    monkeypatch.setattr(os, call, refuse(number))
    with pytest.raises(MinillmError, match=f"wanted to write a trace to .*run.json, .*{do}"):
        files.save(path, "new", "a trace")
    assert os.listdir(tmp_path) == ["run.json"] and path.read_text() == "old"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_interrupt_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, call):
    """Catches a clean-up that only knows errors: Ctrl-C is none."""
    path = tmp_path / "run.json"
    path.write_text("old")
    monkeypatch.setattr(os, call, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        files.save(path, "new")
    assert os.listdir(tmp_path) == ["run.json"] and path.read_text() == "old"


def test_a_file_is_on_disk_before_it_takes_the_old_ones_place(tmp_path, monkeypatch):
    """Catches a power cut after which the new name stands for no bytes."""
    done: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda *names: (done.append("replace"), replace(*names)))
    files.save(tmp_path / "a", "text")
    assert done == ["fsync", "replace"] and (tmp_path / "a").read_text() == "text"


@posix
def test_a_file_keeps_its_mode_and_a_new_one_has_the_users(tmp_path):
    """Catches a file that only its maker may read, as mkstemp makes them."""
    path = tmp_path / "run.json"
    before = os.umask(0o027)
    try:
        files.save(path, "new")
        assert path.stat().st_mode & 0o777 == 0o640
        path.chmod(0o664)
        files.save(path, "newer")
        assert path.stat().st_mode & 0o777 == 0o664
    finally:
        os.umask(before)


@posix
def test_a_file_that_may_not_be_written_is_not_replaced(tmp_path, monkeypatch):
    """Catches a new file in the place of one that its user has made read-only."""
    path = tmp_path / "run.json"
    path.write_text("old")
    monkeypatch.setattr(os, "access", lambda path, how: False)  # root may write everywhere
    with pytest.raises(MinillmError, match="Permission denied; choose a folder"):
        files.save(path, "new")
    assert path.read_text() == "old"


@posix
@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_a_link_to_the_file_that_is_written(tmp_path, there):
    """Catches a link to another disk that becomes a file on this one."""
    real, link = tmp_path / "disk" / "real.json", tmp_path / "run.json"
    real.parent.mkdir()
    if there:
        real.write_text("old")
    link.symlink_to(Path("disk", "real.json"))
    files.save(link, "new")
    assert link.is_symlink() and real.read_text() == "new" and not real.is_symlink()
    assert os.listdir(real.parent) == ["real.json"]


@posix
def test_a_device_or_a_pipe_is_written_and_not_replaced(tmp_path):
    """Catches /dev/null that became a file: `--trace /dev/null`, run by root."""
    heard: list[str] = []
    os.mkfifo(tmp_path / "pipe")
    reader = threading.Thread(target=lambda: heard.append((tmp_path / "pipe").read_text()))
    reader.start()
    files.save(tmp_path / "pipe", "text")
    reader.join()
    assert heard == ["text"] and (tmp_path / "pipe").is_fifo()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_a_full_disk_is_told_as_one():
    """Catches `[Errno 28]` where a sentence helps."""
    with pytest.raises(MinillmError, match="found No space left on device; delete files"):
        files.save("/dev/full", "text")


@pytest.mark.parametrize("place", ["no/folder/run.json", "file/run.json", "folder"])
def test_a_place_that_takes_no_file_is_named(tmp_path, place):
    """Catches the name of a draft, which nobody knows, in the message."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(MinillmError, match=f"wanted to write a file to .*{place}, found") as caught:
        files.save(tmp_path / place, "text")
    assert ".minillm-" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.parametrize("value", [
    None, [], {"a": [1, 2.5, True, None]}, "Wörtchen 😀", "half a pair: \ud83d", 2**70, 1e-320,
])  # fmt: skip
@pytest.mark.parametrize("indent", [None, 2])
def test_json_comes_back_as_it_was(tmp_path, value, indent):
    """Catches a character that UTF-8 or JSON cannot say, and digits lost."""
    files.write_json(tmp_path / "a.json", value, indent=indent)
    assert files.read_json(tmp_path / "a.json") == value
    assert (tmp_path / "a.json").read_text("utf-8").endswith("\n")


@pytest.mark.parametrize("value", [object(), float("nan"), float("inf"), {1j: 1}])
def test_what_json_cannot_hold_is_refused_before_anything_is_written(tmp_path, value):
    """Catches NaN, which no other reader takes, and the old file lost for the sake of it."""
    (tmp_path / "a.json").write_text("1")
    with pytest.raises((TypeError, ValueError)):
        files.write_json(tmp_path / "a.json", value)
    assert files.read_json(tmp_path / "a.json") == 1


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'"\xff"'])
def test_what_is_not_json_is_a_value_error(tmp_path, content):
    """Catches a RecursionError, which no caller thinks of."""
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError):
        files.read_json(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError):
        files.read_json(tmp_path / "b.json")


# -- locks ------------------------------------------------------------------------------------


def test_a_lock_lets_one_in_at_a_time(tmp_path):
    """Catches two that read, change and write at once, and so undo each other's work."""
    path, inside = tmp_path / "count.json", []
    files.write_json(path, 0)

    def add() -> None:
        for _ in range(20):
            with files.locked(path):
                inside.append(1)
                files.write_json(path, files.read_json(path) + len(inside))
                inside.pop()

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert files.read_json(path) == 80


def test_a_lock_that_is_never_given_back_holds_nobody_up(tmp_path):
    """Catches a lesson that stands still because another kernel hangs."""
    with files.locked(tmp_path / "a"), files.locked(tmp_path / "a", seconds=0.05):
        pass
    with pytest.raises(ZeroDivisionError), files.locked(tmp_path / "a", seconds=0):
        raise ZeroDivisionError
    with files.locked(tmp_path / "a", seconds=0):
        pass


def test_where_there_are_no_locks_it_goes_on_without(tmp_path, monkeypatch):
    """Catches a network's file system, or a folder that may only be read, that stops a lesson."""
    with files.locked(tmp_path / "no" / "folder" / "a"):
        pass
    if files.fcntl:
        monkeypatch.setattr(files.fcntl, "flock", refuse(errno.ENOLCK))
    with files.locked(tmp_path / "a"), files.locked(tmp_path / "a"):
        pass


# -- where to write ---------------------------------------------------------------------------


@pytest.fixture
def places(tmp_path, monkeypatch) -> dict[str, Path]:
    """The three places, apart: "here", "home" and "temp"."""
    for name in ("here", "temp"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("MINILLM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temp"))
    monkeypatch.setattr(disk, "filesystem", lambda path: "ext4")
    return {name: tmp_path / name for name in ("here", "home", "temp")}


def test_files_go_here_without_a_word(places, capsys):
    """Catches a recording that the learner has to look for."""
    assert disk.writable_folder().resolve() == places["here"]
    assert capsys.readouterr().out == "" and os.listdir(places["here"]) == []


@pytest.mark.parametrize("wanted", ["home", "temp"])
def test_where_this_folder_takes_no_files_they_go_elsewhere_and_it_is_said(
    places, monkeypatch, capsys, wanted
):
    """Catches a course on a disk that may only be read, which stops at the first file."""
    real = files.tempfile.TemporaryFile

    def file(dir):
        if Path(dir).resolve().name != wanted:
            raise OSError(errno.EROFS, "Read-only file system")
        return real(dir=dir)

    monkeypatch.setattr(files.tempfile, "TemporaryFile", file)
    assert disk.writable_folder() == places[wanted]
    said = capsys.readouterr().out
    assert said == f"This folder takes no files: files go to {places[wanted]}\n"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's /proc")
def test_a_folder_that_takes_no_files_even_from_root_is_found_out(places, monkeypatch, capsys):
    """Catches a test of rights alone: root has them all, and no file comes of it."""
    monkeypatch.chdir("/proc")
    assert disk.writable_folder() == places["home"]
    monkeypatch.setenv("MINILLM_HOME", "/proc/home")
    assert disk.writable_folder() == places["temp"]
    monkeypatch.setattr("tempfile.tempdir", "/proc")
    with pytest.raises(MinillmError, match="takes files, found none: .*set MINILLM_HOME"):
        disk.writable_folder()


def test_a_disk_is_taken_before_memory_and_memory_before_nothing(places, monkeypatch, capsys):
    """Catches the speed of DRAM told as the disk's, in a notebook that lies in a tmpfs."""
    kinds = {"here": "tmpfs", "home": "ext4", "temp": "ext4"}
    monkeypatch.setattr(disk, "filesystem", lambda path: kinds[Path(path).resolve().name])
    assert disk.writable_folder() == places["home"]
    assert "lies in memory, not on a disk: files go to" in capsys.readouterr().out
    kinds["home"] = kinds["temp"] = "tmpfs"
    assert disk.writable_folder().resolve() == places["here"]
    assert capsys.readouterr().out == ""


def test_home_is_where_minillm_home_says(monkeypatch, tmp_path):
    """Catches a user without a home, as in some containers, and a ~ taken for a folder's name."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MINILLM_HOME", "~/course")
    assert os.name != "posix" or files.home() == tmp_path / "course"
    monkeypatch.delenv("MINILLM_HOME")
    assert os.name != "posix" or files.home() == tmp_path / ".minillm"
    monkeypatch.setattr(Path, "expanduser", lambda path: (_ for _ in ()).throw(RuntimeError))
    assert files.home().name == "minillm"


# -- temporary, with an owner -----------------------------------------------------------------


OWNER = """
import sys
from pathlib import Path
from minillm.files import temporary_folder
kept = temporary_folder(sys.argv[1])
Path(kept.name, "weights").write_bytes(bytes(1000))
print(kept.name, flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def owner(tmp_path) -> subprocess.Popen:
    """A process that has a temporary folder in `tmp_path`, until it is told to end, or killed."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", OWNER, tmp_path], cwd=ROOT, **pipes) as process:
        folder = Path(process.stdout.readline().strip())
        assert folder.is_dir() and folder.parent == tmp_path
        yield process
        process.kill()


def names(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.startswith(".minillm-")]


def test_a_folder_goes_with_its_process(owner, tmp_path):
    """Catches a checkpoint that stays when a kernel is closed."""
    owner.communicate("end\n")
    assert names(tmp_path) == []


@posix
@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_process_folder_is_swept_by_the_next_start(owner, tmp_path, reaped):
    """Catches gigabytes in hidden folders: whoever is killed cleans nothing up, not at exit either.

    Not reaped: nobody has asked how the process ended, so the system still lists it.
    """
    files.sweep(tmp_path)
    assert len(names(tmp_path)) == 1, "its owner lives"
    owner.kill()
    if reaped:
        owner.wait()
    else:
        os.waitid(os.P_PID, owner.pid, os.WEXITED | os.WNOWAIT)
    with files.temporary_folder(tmp_path) as mine:
        assert names(tmp_path) == [Path(mine).name]
    assert names(tmp_path) == []


@posix
def test_a_killed_saves_draft_is_swept_by_the_next_save(owner, tmp_path):
    """Catches half a trace under a hidden name, for ever."""
    draft = tmp_path / f"{names(tmp_path)[0][:-8]}deadbeef"
    draft.write_text("half")
    owner.kill()
    owner.wait()
    files.save(tmp_path / "run.json", "{}")
    assert os.listdir(tmp_path) == ["run.json"]


def pretend(folder: Path, place: str, pid: int, start: int) -> Path:
    path = folder / f".minillm-{place}-{pid}-{start}-abcdefgh"
    path.mkdir()
    return path


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="start times are Linux's")
def test_a_number_that_another_process_has_got_protects_nothing(tmp_path):
    """Catches a leftover that stays since some other program now has its owner's number."""
    mine = process._start(os.getpid())
    pretend(tmp_path, process._place(), os.getpid(), mine + 1)
    living = {pretend(tmp_path, process._place(), os.getpid(), start) for start in (mine, 0)}
    files.sweep(tmp_path)
    assert set(tmp_path.iterdir()) == living, "0 says that its system did not tell"


def test_what_nobody_can_tell_stays_for_a_week(tmp_path):
    """Catches a folder taken from a container or a machine whose processes we cannot see."""
    other = pretend(tmp_path, "0" * 8, 2**31 - 1, 1)
    files.sweep(tmp_path)
    assert other.is_dir()
    old = time.time() - 8 * 24 * 3600
    os.utime(other, (old, old))
    files.sweep(tmp_path)
    assert not other.exists()


def test_only_what_is_ours_is_swept(tmp_path):
    """Catches a learner's own folder gone for its name, and what a link leads to."""
    mine = [".minillm-work", ".minillm-", ".minillm", "minillm-1234abcd-1-1-x", "run.json",
            ".minillm-0000000g-1-1-x", ".minillm-00000000-1-1"]  # fmt: skip
    for name in mine:
        (tmp_path / name).mkdir()
    (tmp_path / "run.json" / "weights").touch()
    if os.name == "posix":
        link = tmp_path / f".minillm-{process._place()}-{2**31 - 1}-1-link"
        link.symlink_to(tmp_path / "run.json")
    files.sweep(tmp_path)
    files.sweep(tmp_path / "no such folder")
    assert sorted(os.listdir(tmp_path)) == sorted(mine)
    assert (tmp_path / "run.json" / "weights").exists()


# These write in ways of their own: the door itself; what is unlinked or removed once it is used; a
# checkpoint of gigabytes, taken back as a whole; a file of 70 bytes in a lesson's temporary folder;
# a log, which grows by whole lines; memory that ranks share, in a temporary folder.
OWN_WAYS = {
    "minillm/engine/log.py", "minillm/files.py", "minillm/kv/lower.py", "minillm/machine/disk.py",
    "minillm/parallel/links.py", "minillm/probe/ssd.py",
    "minillm/tools/make_checkpoint.py",
    "notebooks/source/10_load_safetensors.py",
}  # fmt: skip


def test_everything_is_written_through_one_door():
    """Catches the next file that is half written after Ctrl-C, and the next folder left behind."""
    opened = r"\bopen\((?!os\.devnull)[^\n]*[\"'][wax][bt+]*[\"']"
    way = re.compile(rf"\.write_(text|bytes)\(|{opened}|\btempfile\b")
    sources = [*(ROOT / "minillm").rglob("*.py"), *(ROOT / "notebooks" / "source").glob("*.py")]
    found = {path for path in sources if way.search(path.read_text("utf-8"))}
    assert {path.relative_to(ROOT).as_posix() for path in found} == OWN_WAYS


def test_files_need_no_torch():
    """Catches seconds of import for a file to be written."""
    code = "import sys; sys.modules['torch'] = None; import minillm.files"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
