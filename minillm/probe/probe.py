"""The ceilings of this machine, measured once and kept: every "% of ceiling" divides by them.

>>> profile = probe(tell=print)          # under 20 seconds; saved for later
>>> print(profile["dram.read"].of(43e9))
43.0 GB/s, 85 % of dram.read
"""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import torch

from minillm.errors import MinillmError, OutOfMemory
from minillm.files import home, read_json, write_json
from minillm.machine.disk import writable_folder
from minillm.machine.host import available_dram, cpu_name, n_cores
from minillm.predict.hardware import Hardware, Wire
from minillm.probe.compute import compute
from minillm.probe.links import cuda_memory, loopback
from minillm.probe.measure import Measurement, NotHere
from minillm.probe.memory import cache_bandwidths, copy_bandwidth, dram_bandwidth, latencies
from minillm.probe.ssd import disk
from minillm.units import parse_size

_VERSION = 1
# Which measurement is the ceiling of a trace's resource, where HBM is emulated and on a card.
_CPU = {"ssd": "ssd.read", "copy": "dram.copy", "hbm": "dram.read", "network": "loopback.bandwidth"}
_CUDA = _CPU | {"copy": "h2d.pinned", "hbm": "hbm.read"}


@dataclass(frozen=True)
class Profile:
    """What `probe` found: `profile["dram.read"]` is a Measurement.

    machine: one line that says which machine, and which card. made: date and time, UTC.
    versions: of Python, torch, the system. skipped: what could not be measured here, and why.
    busy: how many programs wanted each core when it began; above a half, ceilings are too low.
    """

    machine: str
    made: str
    versions: dict[str, str]
    measurements: dict[str, Measurement]
    skipped: dict[str, str] = field(default_factory=dict)
    busy: float = 0.0

    def __getitem__(self, name: str) -> Measurement:
        """One measurement, or MinillmError with the reason why it is not there."""
        if name not in self.measurements:
            why = self.skipped.get(name, f"this profile has {', '.join(self.measurements)}")
            raise MinillmError(f"wanted the measurement {name!r}, found none: {why}")
        return self.measurements[name]

    def __contains__(self, name: str) -> bool:
        return name in self.measurements

    def ceilings(self, device: str = "cpu") -> dict[str, float]:
        """Bytes a second of each resource of a trace, "ssd", "copy", "hbm", "network".

        For `trace.meta`. device: "cpu", where HBM is emulated in DRAM, or "cuda".
        """
        names = _CUDA if device == "cuda" else _CPU
        return {what: self[name].best for what, name in names.items() if name in self}

    def read_ceiling(self, nbytes: float) -> float:
        """Bytes a second at which so many bytes can be read again and again by the CPU, at most.

        Those that fit a cache come faster than DRAM gives them. Measured are sizes of 2 ** n: the
        largest that is not above `nbytes`, and all beyond, for a ceiling is what no run beats.
        """
        sizes = {name: parse_size(name[5:]) for name in self.measurements if name[:5] == "read "}
        reads = [self[name].best for name, size in sizes.items() if 2 * size > nbytes]
        return max(self["dram.read"].best, *reads, 0.0)

    def hardware(self, device: str = "cpu") -> Hardware:
        """This machine as figures for `minillm.predict`. MinillmError if one was not measured.

        bf16_flops: of a product with bf16 weights, by the faster arithmetic. A CPU without bf16
        instructions is faster when the weights are converted, and the engine does so.
        """
        cuda = device == "cuda"
        copy, read = (self[(_CUDA if cuda else _CPU)[what]] for what in ("copy", "hbm"))
        kinds = ("cuda.gemm bfloat16",) if cuda else ("gemm bfloat16", "gemm float32")
        flops, latency = max(self[kind].best for kind in kinds), self["ssd.latency"]
        return Hardware(
            "this machine", available_dram(), read.best, flops,
            self["dram.read"].best, Wire(self["ssd.read"].best, latency.best), Wire(copy.best),
            page_cache=self["page cache.read"].best, shared=not cuda,
            sources=dict.fromkeys(
                ("hbm_bandwidth", "bf16_flops", "dram_bandwidth", "nvme", "pcie", "page_cache"),
                f"measured here, {self.made}",
            ),
        )  # fmt: skip

    def save(self, path: str | os.PathLike[str] | None = None) -> Path:
        """Write it as JSON, by default `profile.json` in MINILLM_HOME; returns where.

        Whole, or MinillmError. Of two that save at once, the last one's is kept.
        """
        path = Path(path or home() / "profile.json")
        with suppress(OSError):  # what is wrong with its folder is told when the file is written
            path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"profile": _VERSION} | asdict(self), "this profile", indent=1)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None) -> Profile:
        """Read what `save` wrote. MinillmError if there is none, or not one of ours."""
        path = Path(path or home() / "profile.json")
        try:
            found = read_json(path)
            if found.pop("profile") != _VERSION:
                raise ValueError("another version")
            measured = {n: Measurement(**m) for n, m in found.pop("measurements").items()}
            return cls(measurements=measured, **found)
        except FileNotFoundError as error:
            wanted = f"wanted this machine's profile, found none at {path}"
            raise MinillmError(f"{wanted}; make one with minillm.probe.probe()") from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            wanted = f"wanted a profile in {path}, found {type(error).__name__}: {error}"
            raise MinillmError(f"{wanted}; delete it and probe again") from error

    @classmethod
    def here(cls) -> Profile | None:
        """The saved profile, if there is one and it is of this very machine."""
        try:
            profile = cls.load()
        except MinillmError:
            return None
        return profile if profile.machine == machine_name() else None

    def __str__(self) -> str:
        lines = [f"{self.machine}, {self.made}", *map(str, self.measurements.values())]
        lines += [f"{name:<22} skipped: {why}" for name, why in self.skipped.items()]
        if self.busy > 0.5:
            lines.append(f"{self.busy:.1f} programs wanted each core: probe again when it is idle")
        return "\n".join(lines)


def machine_name() -> str:
    """What tells one machine from another: processor, cores, card."""
    card = f" · {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{n_cores()} cores {cpu_name()}{card}"


def probe(
    seconds: float = 12.0, directory: str | os.PathLike[str] | None = None,
    tell: Callable[[Measurement], None] = lambda measurement: None, save: bool = True,
) -> Profile:  # fmt: skip
    """Measure this machine's ceilings, in about `seconds`; nothing else should run meanwhile.

    directory: on the disk to measure, where a file of up to 1 GiB is written and removed; by
    default `writable_folder()`.
    tell: is called with each measurement as it is made. save: keep it, for `Profile.here`.
    What cannot be measured here, such as a disk that is full, is skipped, with the reason. Warns
    if the profile cannot be kept.
    """
    measurements: dict[str, Measurement] = {}
    skipped: dict[str, str] = {}
    busy = _busy()
    for name, share, measure in _plan(Path(directory or writable_folder())):
        try:
            for measurement in measure(seconds * share):
                measurements[measurement.name] = measurement
                tell(measurement)
        except (NotHere, OutOfMemory, MemoryError, OSError, RuntimeError) as error:  # torch's, too
            skipped[name] = str(error) or type(error).__name__
    versions = {"python": platform.python_version(), "torch": torch.__version__,
                "system": f"{platform.system()} {platform.release()}"}  # fmt: skip
    made = datetime.now(timezone.utc).isoformat(timespec="seconds")
    profile = Profile(machine_name(), made, versions, measurements, skipped, round(busy, 2))
    if save:
        try:
            profile.save()
        except MinillmError as error:
            do = "set MINILLM_HOME to a folder that you may write"
            warnings.warn(f"this profile could not be kept ({error}); {do}", stacklevel=2)
    return profile


def _busy() -> float:
    """Programs that want each core; 0 where nobody tells. They are counted over the whole machine,
    so its cores are meant, and not only those that this process may use."""
    try:
        return os.getloadavg()[0] / (os.cpu_count() or 1)
    except (AttributeError, OSError):
        return 0.0


_Measure = Callable[[float], Iterator[Measurement]]


def _plan(directory: Path) -> Iterator[tuple[str, float, _Measure]]:
    """(name, share of the time, measurement): the quiet ones first, the disk last."""
    cuda = torch.cuda.is_available()
    cpu_share = 0.5 if cuda else 1.0
    yield "dram.read", 0.06 * cpu_share, lambda s: iter([dram_bandwidth(s)])
    yield "read", 0.06 * cpu_share, cache_bandwidths
    yield "dram.copy", 0.08 * cpu_share, lambda s: iter([copy_bandwidth(s)])
    yield "latency", 0.14 * cpu_share, latencies
    yield "gemm", 0.16 * cpu_share, lambda s: compute(torch.device("cpu"), s)
    yield "loopback", 0.05 * cpu_share, loopback
    if cuda:
        device = torch.device("cuda", torch.cuda.current_device())
        yield "hbm", 0.2, lambda s: cuda_memory(device, s)
        yield "cuda.gemm", 0.1, lambda s: compute(device, s)
    yield "ssd", 0.4, lambda s: disk(directory, s)
