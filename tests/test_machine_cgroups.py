"""Quotas and limits of control groups, in trees as containers and plain machines show them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from minillm.machine import cgroups
from minillm.machine.cgroups import cpu_quota, memory_room, mounts

pytestmark = pytest.mark.skipif(os.name == "nt", reason="paths of Linux")
V2 = "/ /sys/fs/cgroup cgroup2 rw"  # root, where, kind, options
CPU = "/ /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct"
MEMORY = "/ /sys/fs/cgroup/memory cgroup rw,memory"
NONE = 2**63 - 4096  # how cgroup v1 writes that there is no limit


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`tree(mounts, cgroup, {path: text})`: the kernel shows these, and nothing else."""

    def plant(table: list[str], cgroup: str, files: dict[str, str]) -> None:
        lines = ["22 27 0:21 / /proc rw,relatime shared:5 - proc proc rw"]
        for number, line in enumerate(table):
            root, where, kind, options = line.split()
            lines.append(f"3{number} 22 0:3{number} {root} {where} rw - {kind} {kind} {options}")
        files = files | {"proc/self/mountinfo": "\n".join(lines) + "\n"}
        files |= {"proc/self/cgroup": cgroup + "\n"}
        for path, text in files.items():
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        monkeypatch.setattr(cgroups, "ROOT", tmp_path)

    return plant


def v1_quota(group: str, quota: int, period: int = 100_000) -> dict[str, str]:
    names = {"cpu.cfs_quota_us": quota, "cpu.cfs_period_us": period}
    return {f"{group}/{name}": f"{value}\n" for name, value in names.items()}


TOP = "sys/fs/cgroup"
QUOTAS = {
    "own group": ([V2], "0::/a/b", {f"{TOP}/a/b/cpu.max": "150000 100000\n"}, 1.5),
    "group above": ([V2], "0::/a/b", {
        f"{TOP}/a/b/cpu.max": "max 100000\n", f"{TOP}/a/cpu.max": "50000 100000\n"}, 0.5),
    "least of all": ([V2], "0::/a/b", {
        f"{TOP}/a/b/cpu.max": "300000 100000\n", f"{TOP}/a/cpu.max": "200000 100000\n",
        f"{TOP}/cpu.max": "400000 100000\n"}, 2),
    "not a neighbour's": ([V2], "0::/a/b", {f"{TOP}/a/c/cpu.max": "100000 100000\n"}, math.inf),
    "v1, own group": ([CPU], "3:cpu,cpuacct:/a", v1_quota(f"{TOP}/cpu,cpuacct/a", 100_000), 1),
    "v1, group above": ([CPU], "3:cpu,cpuacct:/a/b", {
        **v1_quota(f"{TOP}/cpu,cpuacct/a/b", -1), **v1_quota(f"{TOP}/cpu,cpuacct/a", 90_000, 60_000)
        }, 1.5),
    "v1 without": ([CPU], "3:cpu,cpuacct:/a", v1_quota(f"{TOP}/cpu,cpuacct/a", -1), math.inf),
    "v1 beside v2, by v1": ([CPU, f"/ /{TOP}/unified cgroup2 rw"], "3:cpu,cpuacct:/a\n0::/a", {
        **v1_quota(f"{TOP}/cpu,cpuacct/a", 100_000)}, 1),
    "v1 beside v2, by v2": ([CPU, f"/ /{TOP}/unified cgroup2 rw"], "3:cpu,cpuacct:/\n0::/a", {
        **v1_quota(f"{TOP}/cpu,cpuacct", -1), f"{TOP}/unified/a/cpu.max": "200000 100000"}, 2),
    "namespace": ([V2], "0::/", {f"{TOP}/cpu.max": "100000 100000\n"}, 1),
    "namespace over v1": (["/docker/ab " + CPU.split(" ", 1)[1]], "3:cpu,cpuacct:/",
        v1_quota(f"{TOP}/cpu,cpuacct", 100_000), 1),
    "mount of before the namespace": (["/../.. " + V2.split(" ", 1)[1]], "0::/",
        {f"{TOP}/cpu.max": "100000 100000\n"}, 1),
    "a part is mounted": (["/docker/ab " + V2.split(" ", 1)[1]], "0::/docker/ab/in", {
        f"{TOP}/in/cpu.max": "100000 100000\n", f"{TOP}/cpu.max": "200000 100000\n"}, 1),
    "out of the namespace": ([V2], "0::/../b", {
        f"{TOP}/cpu.max": "200000 100000\n", "sys/fs/b/cpu.max": "100000 100000\n"}, 2),
    "another mount point": ([r"/ /run/my\040groups cgroup2 rw"], "0::/a",
        {"run/my groups/a/cpu.max": "100000 100000\n"}, 1),
    "a path with a colon": ([V2], "0::/a:b", {f"{TOP}/a:b/cpu.max": "100000 100000\n"}, 1),
    "a group that is gone": ([V2], "0::/a/b (deleted)", {f"{TOP}/a/cpu.max": "100000 100000"}, 1),
    "no cgroup file": ([V2], "", {f"{TOP}/cpu.max": "100000 100000\n"}, 1),
    "no groups": ([], "", {}, math.inf),
}  # fmt: skip


@pytest.mark.parametrize("case", QUOTAS)
def test_the_least_cpu_quota_of_all_groups_counts(tree, case):
    """Catches two threads on one core's quota: a seventh of the speed of one."""
    table, cgroup, files, cores = QUOTAS[case]
    tree(table, cgroup, files)
    assert cpu_quota().amount == cores


@pytest.mark.parametrize("text", [
    "", "max", "x y", "0 0", "100000 0", "-5 100000", "nan 1", "1e9 1", "1 2 3", "\0", "٣ ٣",
    "9" * 5000 + " 1",
])  # fmt: skip
def test_absurd_quotas_and_limits_are_none(tree, text):
    """Catches a crash, or a machine of no cores, for what a file should not say."""
    tree([V2, CPU, MEMORY], "0::/a\n3:cpu,cpuacct:/a\n4:memory:/a\nrubbish\n:", {
        f"{TOP}/a/cpu.max": text, f"{TOP}/a/memory.max": f"x {text}", f"{TOP}/a/memory.high": "",
        f"{TOP}/cpu,cpuacct/a/cpu.cfs_quota_us": text, f"{TOP}/memory/a/memory.stat": text,
    })  # fmt: skip
    assert cpu_quota().amount == memory_room().amount == math.inf


def test_what_cannot_be_read_is_no_limit(tree, tmp_path):
    """Catches a crash where a sandbox hides its own figures."""
    tree([V2], "0::/a", {f"{TOP}/a/cpu.max/folder": "", f"{TOP}/a/memory.max/folder": ""})
    assert cpu_quota().amount == memory_room().amount == math.inf
    (tmp_path / "proc/self/mountinfo").write_bytes(b"\xff\xfe - \n1 2 3 - \n - cgroup2 x rw\n")
    assert mounts() == [] and cpu_quota().amount == math.inf
    os.remove(tmp_path / "proc/self/mountinfo")
    assert mounts() == [] and memory_room().amount == math.inf


def v2_memory(group: str, limit: object, used: int, cache: int = 0, **more: object):
    """Half of the page cache was used lately; tmpfs counts in `file`, too."""
    stat = f"anon 5\nfile {used}\nactive_file {cache // 2}\ninactive_file {cache - cache // 2}\n"
    files = {"memory.max": limit, "memory.current": used, "memory.stat": stat}
    return {f"{group}/{name}": f"{text}\n" for name, text in (files | more).items()}


def v1_memory(group: str, limit: int, used: int, cache: int = 0, above: int = NONE):
    stat = (f"cache {used}\nactive_file 0\ninactive_file 0\nhierarchical_memory_limit {above}\n"
            f"total_active_file {cache // 2}\ntotal_inactive_file {cache - cache // 2}\n")
    files = {"limit_in_bytes": limit, "usage_in_bytes": used, "stat": stat}
    return {f"{group}/memory.{name}": f"{text}\n" for name, text in files.items()}


ROOMS = {
    "own group": ([V2], "0::/a/b", v2_memory(f"{TOP}/a/b", 1000, 400), 600),
    "page cache is free": ([V2], "0::/a", v2_memory(f"{TOP}/a", 1000, 900, 500), 600),
    "more cache than use": ([V2], "0::/a", v2_memory(f"{TOP}/a", 1000, 100, 500), 1000),
    "over the limit": ([V2], "0::/a", v2_memory(f"{TOP}/a", 1000, 1100), 0),
    "throttled before": ([V2], "0::/a", v2_memory(
        f"{TOP}/a", "max", 400, **{"memory.high": 700}), 300),
    "group above": ([V2], "0::/a/b", {
        **v2_memory(f"{TOP}/a/b", "max", 10), **v2_memory(f"{TOP}/a", 1000, 400)}, 600),
    "least of all": ([V2], "0::/a/b", {
        **v2_memory(f"{TOP}/a/b", 500, 100), **v2_memory(f"{TOP}/a", 1000, 700)}, 300),
    "v1, own group": ([MEMORY], "4:memory:/a", v1_memory(f"{TOP}/memory/a", 1000, 400, 100), 700),
    "v1, group above": ([MEMORY], "4:memory:/a/b", {
        **v1_memory(f"{TOP}/memory/a/b", NONE, 10), **v1_memory(f"{TOP}/memory/a", 900, 0)}, 900),
    "v1, group out of sight": (["/docker/ab " + MEMORY.split(" ", 1)[1]], "4:memory:/",
        v1_memory(f"{TOP}/memory", NONE, 400, 0, above=1000), 600),
    "v1 without": ([MEMORY], "4:memory:/a", v1_memory(f"{TOP}/memory/a", NONE, 0), NONE),
    "v1 beside v2": ([MEMORY, f"/ /{TOP}/unified cgroup2 rw"], "4:memory:/a\n0::/", {
        **v1_memory(f"{TOP}/memory/a", 1000, 400)}, 600),
    "namespace": ([V2], "0::/", v2_memory(TOP, 1000, 400), 600),
    "use unknown": ([V2], "0::/a", {f"{TOP}/a/memory.max": "1000\n"}, 1000),
}  # fmt: skip


@pytest.mark.parametrize("case", ROOMS)
def test_the_least_memory_that_any_group_leaves_counts(tree, case):
    """Catches a process killed without a word, and tmpfs taken for what the kernel gives up."""
    table, cgroup, files, room = ROOMS[case]
    tree(table, cgroup, files)
    assert memory_room().amount == room


def test_the_group_that_gives_least_is_named(tree):
    """Catches advice that sends people to the wrong group."""
    files = {f"{TOP}/a/b/cpu.max": "300000 100000", f"{TOP}/a/cpu.max": "200000 100000"}
    tree([V2], "0::/a/b", files)
    assert str(cpu_quota().group) == "/sys/fs/cgroup/a"


def test_the_mount_table_is_read_with_its_escapes_and_empty_names(tree, tmp_path):
    """Catches a path with a space, a tab or a backslash, and a system mounted without a source."""
    tree([], "", {})
    (tmp_path / "proc/self/mountinfo").write_bytes(
        rb"1 2 0:1 / /a\040b\011c\134040 rw shared:1 master:2 - ext4 /dev/x rw" + b"\n"
        b"1 2 0:1 / /caf\xe9\x85 rw - tmpfs  rw,size=1k\n"
    )
    one, two = mounts()
    assert one[:3] == ("/a b\tc\\040", "/", "ext4")
    assert os.fsencode(two.where) == b"/caf\xe9\x85" and two[2:] == ("tmpfs", "rw,size=1k")
