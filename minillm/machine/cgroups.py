"""What holds this process to less than the machine has: the control groups of Linux.

A container is one. Of its CPU quota threads learn only by standing still, and of its memory limit
a process only by being killed; so both are looked for here, in every group that holds us, of
cgroup v1 and v2. Elsewhere than on Linux there are none, and so no limits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

ROOT = Path("/")  # under which the kernel shows its figures; tests put a tree of their own here


def read(path: str | PurePosixPath) -> str:
    """A text of the kernel's; "" where there is none, or none that we may read."""
    try:
        file = ROOT / str(path).lstrip("/")
        return file.read_text(encoding="utf-8", errors="surrogateescape")
    except (OSError, ValueError):  # ValueError: a zero byte in the path
        return ""


class Mount(NamedTuple):
    """A line of the mount table: the folder `root` of a file system appears at `where`."""

    where: str
    root: str
    kind: str
    options: str


def mounts() -> list[Mount]:
    """The mount table; of two at one place the later hides the other. Empty but on Linux."""
    found = []
    for line in read("/proc/self/mountinfo").split("\n"):
        left, _, right = line.partition(" - ")
        places, system = left.split(" "), right.split(" ")
        if len(places) > 5 and len(system) > 2:
            root, where = map(_unescaped, places[3:5])
            found.append(Mount(where, root, system[0], system[2]))
    return found


def _unescaped(path: str) -> str:
    """A space is written \\040 in the mount table, where it would end the path."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def groups(controller: str) -> list[PurePosixPath]:
    """Folders of the control groups that hold this process: its own, and all above it.

    controller: "cpu" or "memory". Of cgroup v1 and v2, which may stand side by side, and as far
    as they are mounted here: a container often sees its own group alone, as the topmost.
    """
    own = {}  # by controller; "" is v2, where one tree is for all
    for line in read("/proc/self/cgroup").split("\n"):
        if line.count(":") >= 2:
            _, names, path = line.split(":", 2)
            own |= dict.fromkeys(names.split(","), PurePosixPath(path))
    found = []
    for where, root, kind, options in mounts():
        if kind == "cgroup2" or (kind == "cgroup" and controller in options.split(",")):
            path = own.get(controller if kind == "cgroup" else "", PurePosixPath())
            # In a namespace the path can be "/", or lead out of what is mounted. What is mounted
            # is then this process's group or one above it: it counts by itself.
            seen = path.is_relative_to(root) and ".." not in path.parts
            group = PurePosixPath(where, path.relative_to(root) if seen else "")
            found += [g for g in (group, *group.parents) if g.is_relative_to(where)]
    return found


def numbers(*texts: str) -> list[int]:
    """Those that are numbers: where there is no limit it says "max" or -1, or has no file."""
    return [int(text) for text in texts if re.fullmatch(r"[0-9]{1,30}", text.strip())]


def _quota(group: PurePosixPath) -> float:
    """Cores that a group may keep busy all the time; infinity without a limit."""
    v1 = (read(group / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    quota = numbers(*(read(group / "cpu.max").split() or v1))  # microseconds, in how many
    return quota[0] / quota[1] if len(quota) == 2 and all(quota) else math.inf


def _room(group: PurePosixPath) -> float:
    """Bytes that a group may still take; infinity without a limit.

    Its page cache counts as free, but no files in tmpfs: they have no other place.
    """
    lines = [line.split() for line in read(group / "memory.stat").split("\n")]
    stat = {line[0]: line[1] for line in lines if len(line) == 2}
    files = ("memory.max", "memory.high", "memory.limit_in_bytes")
    above = stat.get("hierarchical_memory_limit", "")  # v1 tells it of groups that we cannot see
    limits = numbers(above, *(read(group / name) for name in files))
    used = numbers(*(read(group / f"memory.{name}") for name in ("current", "usage_in_bytes")))
    pages = ("active_file", "inactive_file")  # v1 has "total_" for those of the groups below, too
    cache = sum(numbers(*(stat.get(f"total_{name}", stat.get(name, "")) for name in pages)))
    return max(min(limits, default=math.inf) - max(sum(used[:1]) - cache, 0), 0)


class Least(NamedTuple):
    """The least that a control group leaves to this process, and that group's folder."""

    amount: float  # infinity: no limit
    group: PurePosixPath


def cpu_quota() -> Least:
    """Cores that this process may keep busy all the time, by the least of its groups."""
    return _least("cpu", _quota)


def memory_room() -> Least:
    """Bytes that this process may still take, by the least of its groups."""
    return _least("memory", _room)


def _least(controller: str, amount: Callable[[PurePosixPath], float]) -> Least:
    found = [Least(amount(group), group) for group in groups(controller)]
    return min(found, default=Least(math.inf, PurePosixPath()))
