"""What this process may use, and a machine that runs where nobody tells."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minillm import files
from minillm.machine import Machine, cgroups, host
from minillm.machine.cgroups import Least
from minillm.probe import Profile
from minillm.tools import doctor

GIB = 2**30


@pytest.fixture
def allow(monkeypatch):
    """`allow(cores, room)`: what the control groups of a machine of 8 cores and 16 GiB say."""

    def say(cores: float = float("inf"), room: float = float("inf")) -> None:
        group = cgroups.PurePosixPath("/sys/fs/cgroup/box")
        monkeypatch.setattr(host, "cpu_quota", lambda: Least(cores, group))
        monkeypatch.setattr(host, "memory_room", lambda: Least(room, group))

    monkeypatch.setattr(host, "_affinity", lambda: 8)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(host, "_host_dram", lambda: 16 * GIB)
    say()
    return say


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("quota", "cores"), [(0.2, 1), (1, 1), (1.5, 1), (1.99, 1), (2.5, 2), (8, 8), (64, 8)]
)
def test_no_more_cores_than_the_quota_pays_for_whole(allow, quota, cores):
    """Catches a thread that the quota pays half of: the kernel then stops all of them."""
    allow(quota)
    assert host.n_cores() == cores


def test_without_limits_it_is_what_the_machine_has(allow):
    """Catches a container's rules where there is none."""
    assert (host.n_cores(), host.available_dram(), host.limits()) == (8, 16 * GIB, [])


@pytest.mark.parametrize(("room", "free"), [(GIB, GIB), (0, 0), (2**63, 16 * GIB)])
def test_dram_is_what_the_machine_has_free_or_the_groups_leave(allow, room, free):
    """Catches a budget that the kernel answers with a kill."""
    allow(room=room)
    assert host.available_dram() == free


def test_the_doctor_says_what_is_limited_and_by_what(allow, monkeypatch):
    """Catches a learner who wonders for an hour why one core of eight is busy."""
    assert doctor._limits()[0].found == "none: all cores, all free DRAM"
    allow(1.5, GIB)
    said = doctor._limits()[0]
    assert not said.do and said.found == (
        "1 of 8 cores: CPU quota of the container, 1.5 in /sys/fs/cgroup/box; "
        "1.0 GiB of 16.0 GiB DRAM free: memory limit of the container, in /sys/fs/cgroup/box"
    )
    monkeypatch.setattr(host, "_affinity", lambda: 1)
    assert host.limits()[0] == "1 of 8 cores: affinity of the process"
    assert doctor._limits in doctor.CHECKS


def test_torch_has_its_threads_back_whatever_happens():
    """Catches an error after which every later lesson runs on another number of threads."""
    torch.set_num_threads(3)
    with pytest.raises(KeyError), host.torch_threads(2):
        assert torch.get_num_threads() == 2
        raise KeyError
    with host.torch_threads(0):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("make", ["here", "scale_model"])
def test_a_machine_takes_from_torch_what_the_quota_does_not_pay_for(allow, monkeypatch, make):
    """Catches a seventh of the speed in a container with one core's quota."""
    monkeypatch.setattr(Profile, "here", lambda: None)
    rate = type("Rate", (), {"best": 1e10})
    monkeypatch.setattr("minillm.machine.machine.dram_bandwidth", lambda seconds: rate)
    arguments = {"here": ("1 MiB", "cpu"), "scale_model": ("H100", "1 MiB")}[make]
    for quota, before, after in [(8, 3, 3), (float("inf"), 3, 3), (1.5, 3, 1), (2, 1, 1)]:
        allow(quota)
        torch.set_num_threads(before)
        getattr(Machine, make)(*arguments)
        assert torch.get_num_threads() == after


def test_importing_minillm_leaves_torchs_threads_alone():
    """Catches an import that chooses for programs that only look something up."""
    program = (
        "import torch\n"
        "def chosen(n): raise SystemExit('threads were chosen')\n"
        "torch.set_num_threads = chosen\n"
        "import minillm, minillm.probe, minillm.engine.engine"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_machine_is_made_for_a_user_without_a_home(tmp_path, monkeypatch):
    """Catches a container whose user the password file does not know."""

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("MINILLM_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", lambda path: homeless())
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert files.home().parent == tmp_path and Machine.here("1 MiB", device="cpu")


@pytest.mark.parametrize("text", ["", "rubbish", "MemAvailable:", "MemAvailable: x kB", "\xff"])
def test_where_the_kernel_tells_nothing_there_are_careful_guesses(tmp_path, monkeypatch, text):
    """Catches a crash, an empty name, or no memory at all, for a /proc that says less."""
    monkeypatch.setattr(cgroups, "ROOT", tmp_path)
    for name in ("meminfo", "cpuinfo"):
        (tmp_path / "proc").mkdir(exist_ok=True)
        (tmp_path / "proc" / name).write_bytes(text.encode("latin-1") + b"\nmodel name\t:\n")
    size = tmp_path / "sys/devices/system/cpu/cpu0/cache/index0/size"
    size.parent.mkdir(parents=True)
    size.write_bytes(text.encode("latin-1"))
    for name in ("processor", "machine"):
        monkeypatch.setattr(f"platform.{name}", lambda: "")
    monkeypatch.setattr(os, "sysconf", lambda name: -1, raising=False)
    assert host.available_dram() == 4 * GIB
    monkeypatch.delattr(os, "sysconf")
    assert host.available_dram() == 4 * GIB
    assert host.cpu_name() == "unknown CPU" and host.cache_bytes() == 32 * 2**20
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nmodel name\t: A B: C\n")
    (tmp_path / "proc/meminfo").write_text("MemFree: 1 kB\nMemAvailable:    7 kB\n")
    size.write_text("48K\n")
    found = host.cpu_name(), host.available_dram(), host.cache_bytes()
    assert found == ("A B: C", 7 * 1024, 48 * 1024)


def test_a_system_that_keeps_affinity_to_itself_is_asked_for_its_cores(monkeypatch):
    """Catches a crash in a sandbox that refuses the call, and on systems without it."""

    def refused(pid):
        raise PermissionError

    monkeypatch.setattr(os, "sched_getaffinity", refused, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert host.n_cores() == 1


def test_a_disk_that_tells_no_free_space_stops_nobody(monkeypatch):
    """Catches a course that cannot begin, and a machine not made, for want of a figure."""

    def refused(path):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("shutil.disk_usage", refused)
    said = doctor._disk()[0]
    assert not said.do and "unknown" in said.found
    machine = Machine.here("1 MiB", device="cpu")
    assert machine.ssd.capacity == 0 and len(machine.empty((4,), torch.int8, "hbm", "w")) == 4
