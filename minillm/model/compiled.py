"""kernels.c as a library: compiled by this machine's own C compiler, in about a second, and kept.

    MINILLM_HOME/kernels/KEY-HASH.so    KEY: of the source, the flags, the compiler, the processor
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
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import torch

from minillm.errors import MinillmError
from minillm.files import home, save, temporary_folder
from minillm.machine.host import cpu_name

SOURCES = tuple(Path(__file__).with_name(name) for name in ("kernels.c", "pool.h"))
# No -ffast-math: it reorders sums and breaks isnan, and linked into a library it has gcc before 13
# switch denormals off in the whole process.
FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math",
         "-pthread", "-fPIC", "-shared")  # fmt: skip
TUNED = ("-march=native",), ("-mcpu=native",), ()  # the first that the compiler takes
SECONDS, KEPT = 60, 8  # for the compiler; libraries in the folder
DTYPES = {torch.bfloat16: (), torch.float32: ("-DF32",)}
_here: dict[str, ctypes.CDLL | str] = {}  # by key: what was compiled in this process, or why not


class NoKernels(Exception):
    """Why there are no kernels here, for people. Inside the package only."""


def library(dtype: torch.dtype) -> ctypes.CDLL:
    """kernels.c for weights of `dtype`, compiled if it is not kept already. Raises NoKernels."""
    if dtype not in DTYPES:
        raise NoKernels(f"they know bfloat16 and float32, not {str(dtype).removeprefix('torch.')}")
    compiler = find_compiler()
    key = _key(compiler, DTYPES[dtype])
    folder = home() / "kernels"
    kept = _kept(folder, key)
    if kept is not None:
        return kept
    if key not in _here:
        try:
            _here[key] = _compiled(compiler, DTYPES[dtype], folder, key)
        except NoKernels as error:  # asked again, it would fail again, maybe after a minute
            _here[key] = str(error)
    if isinstance(_here[key], str):
        raise NoKernels(_here[key])
    return _here[key]


def find_compiler() -> list[str]:
    """The command of a C compiler: the environment's CC, or else cc, gcc or clang."""
    if sys.platform == "win32":
        raise NoKernels("they need POSIX threads, which Windows has not")
    asked = shlex.split(os.environ.get("CC", ""))
    found = [asked] if asked else [["cc"], ["gcc"], ["clang"]]
    for name, *options in found:
        if path := shutil.which(name):
            return [path, *options]
    wanted = f"CC={asked[0]}" if asked else "a C compiler (cc, gcc or clang)"
    raise NoKernels(f"wanted {wanted}, found none on the PATH")


def processor() -> str:
    """What tells processors apart for a compiler that tunes to them: name and features."""
    sets = ""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        sets = next((s for s in lines if s.startswith(("flags", "Features"))), "")
    except OSError:
        if sys.platform == "darwin":
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            sets = subprocess.run(command, capture_output=True, text=True).stdout
    return f"{platform.machine()} {cpu_name()} {hashlib.sha256(sets.encode()).hexdigest()[:8]}"


def _key(compiler: list[str], flags: tuple[str, ...]) -> str:
    told = repr((compiler, FLAGS, TUNED, flags, processor())).encode()
    parts = [told, *(path.read_bytes() for path in SOURCES)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _kept(folder: Path, key: str) -> ctypes.CDLL | None:
    """The library of this key, if one is there whole; one that is not goes."""
    for path in folder.glob(f"{key}-*.so"):
        try:
            if path.stem == f"{key}-{_hash(path)}":
                return ctypes.CDLL(str(path))
            path.unlink()
        except OSError:  # not to be read, or of another system
            path.unlink(missing_ok=True) if os.access(folder, os.W_OK) else None
    return None


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _compiled(compiler: list[str], flags: tuple[str, ...], folder: Path, key: str) -> ctypes.CDLL:
    """Compile, keep, load. Two processes that do it at once each put a whole file in its place."""
    name = Path(compiler[0]).name
    with temporary_folder() as work:
        fresh = Path(work) / "kernels.so"
        for tuned in TUNED:
            options = *FLAGS, *flags, *tuned, str(SOURCES[0]), "-o", str(fresh), "-lm"
            why = _run([*compiler, *options])
            if not why:
                break
        else:
            raise NoKernels(f"{name} failed: {why}")
        try:
            loaded = ctypes.CDLL(str(fresh))  # it stays, also when its file is gone
        except OSError as error:
            raise NoKernels(f"what {name} made cannot be loaded: {error}") from error
        _keep(fresh, folder, key)
    return loaded


def _keep(fresh: Path, folder: Path, key: str) -> None:
    """For the next process; a folder that cannot be written only costs that one a second."""
    with suppress(OSError, MinillmError):
        folder.mkdir(parents=True, exist_ok=True)
        save(folder / f"{key}-{_hash(fresh)}.so", fresh.read_bytes())
        old = sorted(folder.glob("*.so"), key=lambda path: path.stat().st_mtime)[:-KEPT]
        for path in old:
            path.unlink(missing_ok=True)


def _run(command: list[str]) -> str:
    """Run the compiler; why it failed, or "". One that hangs is ended, with what it started."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    try:
        process = subprocess.Popen(command, start_new_session=True, **pipes)
    except OSError as error:
        return str(error)
    try:
        said, _ = process.communicate(timeout=SECONDS)
    except BaseException as error:  # Ctrl-C too
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        raise NoKernels(f"{Path(command[0]).name} took more than {SECONDS} s") from error
    lines, status = said.decode(errors="replace").split("\n"), process.returncode
    wrong = [line for line in lines if "error" in line] or [f"it ended with status {status}"]
    return wrong[0].strip() if status else ""
