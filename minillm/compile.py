"""One C file as a library: compiled by this machine's own C compiler, in about a second, and kept.

    MINILLM_HOME/compiled/KEY-HASH.so   KEY: of the sources, the flags, the compiler, the processor
                                        HASH: of the file itself, so that a damaged one is seen

No part of the package needs it: where there is no compiler, torch does the same.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from minillm.errors import MinillmError
from minillm.files import home, save, temporary_folder

# No -ffast-math: it reorders sums and breaks isnan, and linked into a library it has gcc before 13
# switch denormals off in the whole process.
FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math",
         "-pthread", "-fPIC", "-shared")  # fmt: skip
# The first that the compiler takes. Tuned to the processor (Zen 3 and 4), gcc 12 reads from memory
# again what it has in registers already, and a product takes 1.3 times as long.
TUNED = ("-march=native", "-mtune=generic"), ("-mcpu=native",), ()
SECONDS, KEPT = 60, 8  # for the compiler; libraries in the folder
_here: dict[str, ctypes.CDLL | str] = {}  # by key: what this process has loaded, or why it has not


class NoLibrary(Exception):
    """Why there is no library here, for people. Inside the package only."""


def library(source: Path, *flags: str) -> ctypes.CDLL:
    """The library of a C file and what lies beside it, compiled if it is not kept already.

    Raises NoLibrary. What failed once is not tried again: it would fail again, after a minute.
    """
    compiler, parts = find_compiler(), sorted(source.parent.glob("*.[ch]"))
    told = repr((compiler, FLAGS, TUNED, flags, source.name, processor())).encode()
    key = _hash(told, *(path.read_bytes() for path in parts))
    if key not in _here:
        folder, command = home() / "compiled", [*compiler, *FLAGS, *flags]
        try:
            _here[key] = _kept(folder, key) or _compiled(command, source, folder, key)
        except NoLibrary as error:
            _here[key] = str(error)
    if isinstance(_here[key], str):
        raise NoLibrary(_here[key])
    return _here[key]


def find_compiler() -> list[str]:
    """The command of a C compiler: the environment's CC, or else cc, gcc or clang."""
    if sys.platform == "win32":
        raise NoLibrary("it needs POSIX threads, which Windows has not")
    asked = shlex.split(os.environ.get("CC", ""))
    for name, *options in [asked] if asked else [["cc"], ["gcc"], ["clang"]]:
        if path := shutil.which(name):
            return [path, *options]
    wanted = f"CC={asked[0]}" if asked else "a C compiler (cc, gcc or clang)"
    raise NoLibrary(f"wanted {wanted}, found none on the PATH")


def processor() -> str:
    """What tells processors apart for a compiler that tunes to them: a hash of name and features.

    >>> processor()
    'x86_64 4f1c02a9b7d3e815'
    """
    told = ""
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        told = subprocess.run(command, capture_output=True, text=True).stdout
    with suppress(OSError):
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].split("\n")
        told = repr([s for s in first if s.startswith(("model name", "flags", "Features", "CPU "))])
    return f"{platform.machine()} {_hash(told.encode())}"


def _hash(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _kept(folder: Path, key: str) -> ctypes.CDLL | None:
    """The library of this key, if one is there whole."""
    for path in folder.glob(f"{key}-*.so"):
        with suppress(OSError):  # not to be read, or of another system
            if path.stem == f"{key}-{_hash(path.read_bytes())}":
                return ctypes.CDLL(str(path))
    return None


def _compiled(command: list[str], source: Path, folder: Path, key: str) -> ctypes.CDLL:
    """Compile, keep, load. Two processes that do it at once each put a whole file in its place."""
    name = Path(command[0]).name
    with temporary_folder() as work:
        fresh = Path(work) / "library.so"
        for tuned in TUNED:
            why = _run([*command, *tuned, str(source), "-o", str(fresh), "-lm"])
            if not why:
                break
        else:
            raise NoLibrary(f"{name} failed: {why}")
        try:
            loaded = ctypes.CDLL(str(fresh))  # it stays, also when its file is gone
        except OSError as error:
            raise NoLibrary(f"what {name} made cannot be loaded: {error}") from error
        with suppress(OSError, MinillmError):  # for the next process: it saves that one a second
            folder.mkdir(parents=True, exist_ok=True)
            save(folder / f"{key}-{_hash(fresh.read_bytes())}.so", fresh.read_bytes())
            for old in sorted(folder.glob("*.so"), key=lambda path: path.stat().st_mtime)[:-KEPT]:
                old.unlink(missing_ok=True)
    return loaded


def _run(command: list[str]) -> str:
    """Run the compiler; why it failed, or "". One that hangs is ended."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    try:
        done = subprocess.run(command, timeout=SECONDS, **pipes)
    except OSError as error:
        return str(error)
    except subprocess.TimeoutExpired as error:
        raise NoLibrary(f"{Path(command[0]).name} took more than {SECONDS} s") from error
    lines, status = done.stdout.decode(errors="replace").split("\n"), done.returncode
    wrong = [line for line in lines if "error" in line] or [f"it ended with status {status}"]
    return wrong[0].strip() if status else ""
