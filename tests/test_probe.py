"""Ceilings are positive, say how they were measured, and leave nothing behind."""

from __future__ import annotations

import doctest
import json
import os
import shutil
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minillm.errors import MinillmError, OutOfMemory
from minillm.machine import Machine, cgroups, host
from minillm.machine.cgroups import Least
from minillm.machine.disk import filesystem
from minillm.predict import load_time
from minillm.probe import Profile, dram_bandwidth, machine_name, measure, probe
from minillm.probe import compute as probe_compute
from minillm.probe import links as probe_links
from minillm.probe import memory as probe_memory
from minillm.probe import ssd as probe_ssd
from minillm.probe.measure import Measurement, NotHere, rates, summary

MIB = 2**20
gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")]

PROBE = sys.modules["minillm.probe.probe"]  # the module; by its name we get the function


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """Working sets of a few MiB, and a home of one's own: what is tested is not the speed."""
    monkeypatch.setenv("MINILLM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(probe_memory, "working_set", lambda: 4 * MIB)
    monkeypatch.setattr(probe_memory, "cache_bytes", lambda: MIB)


def sound(measurement: Measurement) -> bool:
    low, middle, high = measurement.low, measurement.median, measurement.high
    known = measurement.unit in ("bytes/s", "flop/s", "s") and len(measurement.how) > 5
    return known and 0 < low <= middle <= high and measurement.runs >= 1


@pytest.fixture(scope="module")
def profile(tmp_path_factory) -> tuple[Profile, list[Measurement], Path]:
    """A profile measured in no time, what was told meanwhile, and the folder of its file."""
    folder, told = tmp_path_factory.mktemp("disk"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe_memory, "working_set", lambda: 4 * MIB)
        patch.setattr(probe_memory, "cache_bytes", lambda: MIB)
        return probe(0.1, folder, told.append, save=False), told, folder


def test_every_ceiling_is_measured_with_its_spread_or_skipped_with_a_reason(profile):
    """Catches a zero, a spread upside down, a figure that does not say how it was got."""
    found, told, folder = profile
    assert all(map(sound, told)) and list(found.measurements.values()) == told
    names = {"dram.read", "dram.copy", "ssd.read", "ssd.read one", "ssd.latency", "page cache.read",
             "gemm float32", "gemm bfloat16", "read 1 MiB", "read 2 MiB"}  # fmt: skip
    assert names <= set(found.measurements)
    assert "latency 16 KiB" in found or "compiler" in found.skipped["latency"]
    assert "loopback.bandwidth" in found or found.skipped["loopback"]
    assert os.listdir(folder) == []


def test_ceilings_are_those_of_a_traces_resources_and_the_machine_takes_them(profile):
    """Catches a "% of ceiling" that divides by another machine's figure, or by none."""
    found = replace(profile[0], machine=machine_name())
    assert set(found.ceilings()) <= {"ssd", "copy", "hbm", "network"} >= {"ssd", "copy", "hbm"}
    assert found.ceilings()["hbm"] == found["dram.read"].high
    assert "ceilings" not in Machine.here("1 MiB", device="cpu").trace.meta
    found.save()
    assert Machine.here("1 MiB", device="cpu").trace.meta["ceilings"] == found.ceilings()
    assert Profile.here() == found
    replace(found, machine="another").save()
    assert Profile.here() is None and "ceilings" not in Machine.here("1 MiB", "cpu").trace.meta


def test_a_profile_predicts_a_load_on_its_machine(profile):
    """Catches figures that do not fit together: a leg without a ceiling."""
    here = profile[0].hardware()
    cold, warm = load_time(10**9, here), load_time(10**9, here, cached=True)
    assert here.shared and cold.parts.keys() == {"ssd", "copy"} and cold.seconds > 0
    assert warm.seconds == pytest.approx(sum(warm.parts.values())) and "page cache" in warm.parts
    assert here.hbm_bytes > MIB and "measured here" in here.sources["nvme"]


def test_a_profile_comes_back_from_disk_as_it_was(profile, tmp_path):
    """Catches a figure that JSON rounds, and a folder that has to be made by hand."""
    path = profile[0].save(tmp_path / "new" / "profile.json")
    assert Profile.load(path) == profile[0] and os.listdir(path.parent) == ["profile.json"]
    idle, busy = (replace(profile[0], busy=busy) for busy in (0.1, 3.0))
    assert str(idle).count("\n") == len(idle.measurements) + len(idle.skipped)
    assert "3.0 programs wanted each core" in str(busy)


@pytest.mark.parametrize("text", [
    "", "[]", "{}", "null", '{"profile": 0}', '{"profile": 1, "measurements": []}', "\ud800",
    '{"profile":' + "[" * 100_000,
    '{"profile": 1, "machine": "x", "made": "", "versions": {}, "measurements": {"a": {"b": 1}}}',
])  # fmt: skip
def test_a_damaged_profile_is_named_and_does_not_stop_the_machine(text, tmp_path):
    """Catches a course that cannot start because of a file cut short."""
    (tmp_path / "home").mkdir()
    path = tmp_path / "home" / "profile.json"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(MinillmError, match="wanted a profile in .*delete it and probe again"):
        Profile.load()
    assert Profile.here() is None and Machine.here("1 MiB", device="cpu")


def test_what_was_not_measured_is_asked_for_in_vain_with_the_reason():
    """Catches a KeyError where a sentence helps."""
    with pytest.raises(MinillmError, match="make one with minillm.probe"):
        Profile.load()
    empty = Profile("x", "now", {}, {}, {"loopback": "no network"})
    with pytest.raises(MinillmError, match="wanted the measurement 'loopback'.*no network"):
        empty["loopback"]
    assert empty.ceilings() == {}


@pytest.mark.parametrize("fault", [KeyboardInterrupt, ValueError])
def test_an_interrupted_probe_leaves_no_file_and_no_profile(tmp_path, fault, monkeypatch):
    """Catches a gigabyte left in the learner's folder, and half a profile taken for a whole."""
    monkeypatch.setattr(PROBE, "_plan", lambda folder: iter([
        ("loopback", 0.1, probe_links.loopback),
        ("ssd", 0.1, lambda seconds: probe_ssd.disk(folder, seconds, MIB)),
    ]))  # fmt: skip
    folder = tmp_path / "disk"
    folder.mkdir()

    def stop(measurement):
        if measurement.name.startswith("ssd"):
            raise fault

    with pytest.raises(fault):
        probe(0.1, folder, stop)
    assert os.listdir(folder) == [] and not (tmp_path / "home").exists()


def test_a_full_disk_is_refused_and_a_crowded_one_gets_a_smaller_file(tmp_path, monkeypatch):
    """Catches a probe that fills the disk, which it would then measure."""
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 100 * MIB))
    with pytest.raises(OutOfMemory, match="wanted 306.0 MiB of SSD, found 100.0 MiB free"):
        list(probe_ssd.disk(tmp_path, 0.1))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 1000 * MIB))
    asked = []
    monkeypatch.setattr(probe_ssd, "scratch_file", lambda folder, *more: asked.append(more[0]))
    with pytest.raises((AttributeError, TypeError)):  # no file
        next(probe_ssd.disk(tmp_path, 0.1, 1024 * MIB))
    assert asked == [500 * MIB]


def test_where_nothing_goes_past_the_page_cache_the_disk_says_so(tmp_path):
    """Catches the page cache's speed told as the SSD's."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or filesystem(memory) != "tmpfs":
        pytest.skip("no tmpfs here")
    found = {m.name: m for m in probe_ssd.disk(memory, 0.05, MIB)}
    assert all(map(sound, found.values()))
    assert "tmpfs is memory" in found["ssd.read"].how and "tmpfs" in found["ssd.latency"].how
    assert "dropped" not in found["ssd.read"].how + found["ssd.read one"].how
    assert not [name for name in os.listdir(memory) if name.startswith(".minillm-")]


def test_a_folder_that_cannot_be_written_skips_the_disk_alone(tmp_path, monkeypatch):
    """Catches a probe that dies at its end and forgets all that it measured."""
    monkeypatch.setattr(PROBE, "_plan", lambda folder: iter([
        ("dram.read", 0.1, lambda seconds: iter([dram_bandwidth(seconds)])),
        ("ssd", 0.1, lambda seconds: probe_ssd.disk(folder, seconds, MIB)),
    ]))  # fmt: skip
    found = probe(0.1, tmp_path / "none")
    assert set(found.measurements) == {"dram.read"} and "none" in found.skipped["ssd"]
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 0))  # full
    found = probe(0.1, tmp_path)
    assert set(found.measurements) == {"dram.read"} and "found 0 B free" in found.skipped["ssd"]


def test_a_profile_that_cannot_be_kept_is_returned_all_the_same(tmp_path, monkeypatch):
    """Catches seconds of measuring that a MINILLM_HOME which cannot be written throws away."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINILLM_HOME", str(tmp_path / "file" / "home"))
    monkeypatch.setattr(PROBE, "_plan", lambda folder: iter([
        ("dram.read", 0.1, lambda seconds: iter([dram_bandwidth(seconds)])),
    ]))  # fmt: skip
    with pytest.warns(UserWarning, match="could not be kept .*set MINILLM_HOME"):
        assert "dram.read" in probe(0.1)


def test_the_chase_visits_every_line_of_its_memory_once_a_round():
    """Catches a short cycle, which a cache holds: DRAM as fast as L1."""
    for lines in (2, 37, 1024):
        memory, base = probe_memory._cycle(lines)
        slots = torch.frombuffer(memory, dtype=torch.int64)[: lines * 8].view(lines, 8)[:, 0]
        at, seen = 0, set()
        while at not in seen:
            seen.add(at)
            at = (slots[at].item() - base) // 64
        assert len(seen) == lines and at == 0


def test_the_loop_follows_as_many_pointers_as_it_was_told():
    """Catches a loop that the compiler removed."""
    try:
        chase = probe_memory._chase()
    except NotHere as error:
        pytest.skip(str(error))
    memory, base = probe_memory._cycle(100)
    at, places = base, []
    for _ in range(100):
        places.append(at)
        at = chase(at, 1)
    assert at == base and len(set(places)) == 100
    assert [chase(base, n) for n in (1, 7, 99, 100, 1000)] == [
        places[n % 100] for n in (1, 7, 99, 100, 1000)
    ]
    assert len(memory) >= 6400


def test_where_no_such_loop_can_be_had_latency_is_skipped_with_the_reason(monkeypatch):
    """Catches a Python loop's own time told as a cache's."""
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(NotHere, match="C compiler"):
        next(probe_memory.latencies(0.01))


def test_all_threads_together_read_the_whole_memory_once():
    """Catches a bandwidth of bytes that nobody read."""
    memory = probe_memory._Memory(5 * MIB)
    parts = []
    with probe_memory.ThreadPoolExecutor(memory.threads) as pool:
        memory.each(pool, lambda at, n: parts.append((at, n)))
    end = 0
    for at, n in sorted(parts):
        assert at == end
        end = at + n
    assert end == memory.nbytes <= len(memory.memory)
    assert not memory.read(0, memory.nbytes)  # nothing found: it looked at every byte


def test_caches_of_several_groups_of_cores_count_together(tmp_path, monkeypatch):
    """Catches a memory "that no cache can hold" on a server whose caches together hold it."""
    monkeypatch.setattr(cgroups, "ROOT", tmp_path)
    assert probe_memory.all_caches() == MIB  # nobody tells: one
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    for cpu in range(4):
        cache = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/cache/index3"
        cache.mkdir(parents=True)
        (cache / "shared_cpu_list").write_text(("0-1", "2-3")[cpu // 2])
    assert probe_memory.all_caches() == 2 * MIB


def test_the_ceiling_of_products_is_that_of_the_fastest_way(monkeypatch):
    """Catches a roof measured in one layout and one size, while the model runs in another."""
    ways = [probe_compute.Way(name, flops, lambda: None) for name, flops in
            (("torch's mm, small", 10), ("torch's linear, small", 30), ("torch's mm, large", 20))]
    tried = iter([ways[:2], ways[2:]])
    monkeypatch.setattr(probe_compute, "_CPU", ((1, 1, 1), (2, 1, 1)))
    monkeypatch.setattr(probe_compute, "_ways", lambda *shape: next(tried))
    monkeypatch.setattr(probe_compute, "rates", lambda run, amount, *more: [float(amount)])
    found = probe_compute._gemm(torch.device("cpu"), "float32", 1.0)
    assert found.best == 30 and found.how.startswith("torch's linear, small, ")


def test_both_layouts_of_a_weight_give_the_same_product():
    """Catches a ceiling of another product than that whose FLOP are counted."""
    linear, mm = probe_compute._ways(torch.device("cpu"), torch.float32, (3, 5, 7))
    assert linear.flops == mm.flops == 2 * 3 * 5 * 7 and "3 × 5 × 7" in mm.how
    torch.manual_seed(0)
    x, w = torch.randn(3, 5), torch.randn(7, 5)
    assert torch.allclose(torch.nn.functional.linear(x, w), torch.mm(x, w.t().contiguous()))


def test_a_small_working_set_has_the_ceiling_of_the_cache_that_holds_it(profile):
    """Catches a model in the cache at 125 % of DRAM's ceiling, and bf16 at 569 % of one that was
    measured in an arithmetic which the engine leaves alone."""
    m = {name: Measurement(name, "bytes/s", rate, rate, rate, 3, "a test") for name, rate in
         {"read 1 MiB": 90.0, "read 2 MiB": 60.0, "read 4 MiB": 70.0, "dram.read": 20.0}.items()}
    found = replace(profile[0], measurements=m)
    sizes = (MIB, 1.5 * MIB, 2 * MIB, 7.9 * MIB, 8 * MIB, 1e12)
    assert [found.read_ceiling(n) for n in sizes] == [90, 90, 70, 70, 20, 20]
    flops = [profile[0][f"gemm {name}"].best for name in ("float32", "bfloat16")]
    assert profile[0].hardware().bf16_flops == max(flops)


def test_threads_are_set_back_after_measuring():
    """Catches a probe after which every later lesson runs on another number of threads."""
    before = torch.get_num_threads()
    list(probe_compute.compute(torch.device("cpu"), 0.01))
    probe_memory.copy_bandwidth(0.01)
    assert torch.get_num_threads() == before


def test_where_no_memory_is_left_the_chase_still_has_a_cycle(monkeypatch):
    """Catches a pointer to nowhere, which ends the process: a container can be full."""
    monkeypatch.setattr(probe_memory, "available_dram", lambda: 0)
    try:
        assert [m.name for m in probe_memory.latencies(0.01)] == ["latency 16 KiB"]
    except NotHere as error:
        pytest.skip(str(error))


def test_busy_counts_the_machines_cores_and_0_where_nobody_tells(monkeypatch):
    """Catches a quiet server called busy, since of its 64 cores a container may use one."""
    monkeypatch.setattr(PROBE, "n_cores", lambda: 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "getloadavg", lambda: (16.0, 0, 0), raising=False)
    monkeypatch.setattr(PROBE, "_plan", lambda folder: iter([]))
    assert probe(0.1, save=False).busy == 0.25

    def unknown():
        raise OSError("Load averages are unobtainable")

    monkeypatch.setattr(os, "getloadavg", unknown)
    assert probe(0.1, save=False).busy == 0


def test_every_measurement_uses_as_many_threads_as_the_quota_pays_for(monkeypatch):
    """Catches a ceiling measured with threads that stand still, and so beaten by every run."""
    monkeypatch.setattr(host, "_affinity", lambda: 8)
    for quota in (1.5, 3):
        monkeypatch.setattr(host, "cpu_quota", lambda: Least(quota, Path()))  # noqa: B023
        found = [probe_memory.dram_bandwidth(0.01), probe_memory.copy_bandwidth(0.01)]
        found += probe_compute.compute(torch.device("cpu"), 0.01)
        assert all(f" {int(quota)} threads" in m.how for m in found)


def test_the_best_run_is_the_ceiling_and_a_number_comes_with_it():
    """Catches 120 % of a ceiling, and a latency whose best is its longest."""
    rate = summary("dram.read", "bytes/s", [40e9, 50e9, 45e9], "memchr")
    late = summary("ssd.latency", "s", [2e-4, 1e-4, 4e-4], "O_DIRECT")
    assert (rate.median, rate.low, rate.high, rate.best, rate.runs) == (45e9, 40e9, 50e9, 50e9, 3)
    assert (late.best, late.share(2e-4), rate.share(25e9)) == (1e-4, 0.5, 0.5)
    assert rate.of(43e9) == "43.0 GB/s, 86 % of dram.read"
    assert "45.0 GB/s   40.0 GB/s … 50.0 GB/s in 3 runs; memchr" in str(rate)


def test_rates_warm_up_and_run_at_least_as_often_as_asked():
    """Catches the first, slow run counted, and a spread of one."""
    ticks, runs = iter(range(1000)), []
    samples = rates(lambda: runs.append(1), 8, 0, least=3, clock=lambda: next(ticks))
    assert samples == [8.0] * 3 and len(runs) == 4


def test_the_examples_in_the_docstrings_are_true():
    """Catches an example that nobody ran."""
    assert doctest.testmod(measure).failed == 0


def test_a_profile_is_plain_json(profile, tmp_path):
    """Catches what a reader of another language cannot read."""
    found = json.loads(profile[0].save(tmp_path / "p.json").read_text(encoding="utf-8"))
    assert found["machine"] == machine_name() and found["versions"]["torch"] == torch.__version__
    assert found["made"].endswith("+00:00")


class TestCuda:
    pytestmark = gpu

    def test_a_card_has_its_memory_links_and_compute_measured(self):
        """Catches a clock stopped before the card was done: more than any card can do."""
        device = torch.device("cuda", torch.cuda.current_device())
        found = {m.name: m for m in probe_links.cuda_memory(device, 0.5)}
        found |= {m.name: m for m in probe_compute.compute(device, 0.5)}
        assert all(map(sound, found.values()))
        assert found["hbm.read"].best < 2e13 and found["h2d.pinned"].best < 1e12
        assert found["cuda.gemm bfloat16"].best < 2e16
        assert found["h2d.pinned"].best > 0.9 * found["h2d.pageable"].median
