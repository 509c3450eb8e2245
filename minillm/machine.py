"""The machine: three tiers of memory (SSD, DRAM, HBM) with budgets, and copies between them.

On CUDA, HBM is the card, DRAM buffers are pinned, and copies run on their own stream, timed by
events. On a CPU, HBM is emulated: separate allocations in DRAM, held to a budget, and every copy
between the tiers is a real copy.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from minillm.config import parse_size
from minillm.cuda_link import CudaLink
from minillm.errors import ConfigError, OutOfMemory, format_size
from minillm.host import available_dram, cpu_name, find_device, n_cores
from minillm.trace import Trace


class Tier:
    """One level of memory: a budget in bytes, and who holds how much of it. Thread-safe.

    >>> hbm = Tier("hbm", 100)
    >>> hbm.reserve(60, "weights"); hbm.free
    40
    """

    def __init__(self, name: str, capacity: int, trace: Trace | None = None):
        self.name, self.capacity = name, capacity
        self.used = 0
        self.peak = 0
        self.by_label: dict[str, int] = {}
        self._trace = trace
        self._lock = threading.Lock()

    @property
    def free(self) -> int:
        """Bytes that can still be reserved."""
        return self.capacity - self.used

    def reserve(self, nbytes: int, label: str) -> None:
        """Take `nbytes` of the budget for `label`. Raises OutOfMemory, and then takes nothing."""
        assert nbytes >= 0, nbytes
        with self._lock:
            if nbytes > self.free:
                raise OutOfMemory(self.name, nbytes, self.free, self.by_label)
            self._change(nbytes, label)

    def release(self, nbytes: int, label: str) -> None:
        """Give back `nbytes` that `label` had reserved."""
        with self._lock:
            held = self.by_label.get(label, 0)
            assert 0 <= nbytes <= held, f"{label} holds {held} B of {self.name}, not {nbytes}"
            self._change(-nbytes, label)

    def _change(self, nbytes: int, label: str) -> None:
        self.used += nbytes
        self.peak = max(self.peak, self.used)
        now = self.by_label.pop(label, 0) + nbytes
        if now:
            self.by_label[label] = now
        if self._trace is not None:
            self._trace.count(self.name, label, now)

    def __repr__(self) -> str:
        return f"Tier({self.name}, {format_size(self.used)} of {format_size(self.capacity)} used)"


class Machine:
    """The tiers of this machine, and the copies between them: `Machine.here()`.

    ssd, dram, hbm: its tiers. device: where the model computes. emulated: whether HBM is a
    budget in DRAM. trace: every reservation and every copy.

    >>> machine = Machine.here(hbm="64 MiB", device="cpu")
    >>> placed = machine.copy(torch.zeros(2**20), "hbm", label="weights", stage="load")
    >>> machine.hbm.by_label
    {'weights': 4194304}
    """

    def __init__(self, device: torch.device, ssd: int, dram: int, hbm: int, trace: Trace):
        self.device, self.trace = device, trace
        self.emulated = device.type == "cpu"
        sizes = {"ssd": ssd, "dram": dram, "hbm": hbm}
        self.ssd, self.dram, self.hbm = (Tier(name, n, trace) for name, n in sizes.items())
        self._owned: dict[int, tuple[Tier, int, str]] = {}  # address: tier, bytes, label
        self._lock = threading.Lock()
        self._link = None if self.emulated else CudaLink(device, trace)
        trace.meta |= _facts(self)

    @classmethod
    def here(
        cls, hbm: int | str | None = None, device: str = "auto", trace: Trace | None = None
    ) -> Machine:
        """This machine. device: "auto" is the current CUDA device, without one the CPU.

        hbm: its budget, such as "64 MiB". By default nine tenths of what is free on the card
        (libraries and activations need the rest); emulated, half of the DRAM available to this
        process, and what is left is the tier DRAM. The SSD is the disk of the working directory.
        Raises ConfigError for a device that is not here or a budget that cannot be.
        """
        where, dram = find_device(device), available_dram()
        budget = _budget(where, dram, hbm)
        dram -= budget if where.type == "cpu" else 0
        return cls(where, shutil.disk_usage(".").free, dram, budget, trace or Trace())

    def describe(self) -> str:
        """This machine in one line, for the head of a report."""
        return _describe(self)

    def empty(
        self, shape: Sequence[int], dtype: torch.dtype, tier: Tier | str, label: str
    ) -> Tensor:
        """A new tensor in tier "dram" or "hbm", its bytes reserved for `label` until `free`.

        Contents are arbitrary. On CUDA a tensor in DRAM is pinned: the card reads it directly.
        Raises OutOfMemory, and then nothing is reserved.
        """
        tier = getattr(self, tier) if isinstance(tier, str) else tier
        assert tier is not self.ssd, "a tensor lives in DRAM or HBM; the SSD holds files"
        nbytes = torch.Size(shape).numel() * dtype.itemsize
        tier.reserve(nbytes, label)
        device = self.device if tier is self.hbm else "cpu"
        pinned = {"pin_memory": True} if tier is self.dram and not self.emulated else {}
        try:
            tensor = torch.empty(shape, dtype=dtype, device=device, **pinned)
        except RuntimeError as error:  # within the budget, and yet the memory is not there
            tier.release(nbytes, label)
            raise OutOfMemory(tier.name, nbytes, tier.free, tier.by_label) from error
        self._own(tensor, tier, nbytes, label)
        return tensor

    def _own(self, tensor: Tensor, tier: Tier, nbytes: int, label: str) -> None:
        with self._lock:
            stale = self._owned.get(_address(tensor))
            if nbytes:  # else it has no address
                self._owned[_address(tensor)] = (tier, nbytes, label)
        if stale:  # given out again: its owner died without `free`
            stale[0].release(*stale[1:])

    def free(self, tensor: Tensor) -> None:
        """Give back the bytes of a tensor that `empty` or `copy` made; any view of it will do.

        The memory itself goes when the last reference to it does, so drop yours.
        """
        if tensor.numel():
            with self._lock:
                assert _address(tensor) in self._owned, "not the machine's, or freed before"
                tier, nbytes, label = self._owned.pop(_address(tensor))
            tier.release(nbytes, label)

    def tier_of(self, tensor: Tensor) -> Tier:
        """The tier of a tensor. One that the machine did not make: HBM if on a card, else DRAM."""
        owned = self._owned.get(_address(tensor))
        return owned[0] if owned else self.hbm if tensor.is_cuda else self.dram

    def copy(
        self, tensor: Tensor, target: Tier | str | Tensor, *, label: str, stage: str,
        name: str = "", source: str = "", wait: bool = True,
    ) -> Tensor:  # fmt: skip
        """Copy a tensor into a tier, as a new tensor there, or into a given tensor; returns it.

        Recorded as a transfer of `tensor.nbytes`; a given target may have another dtype, a tier
        without room raises OutOfMemory.
        source: its tier, if the machine did not make it: computed logits are in "hbm".
        wait=False (CUDA) returns at once. Compute queued from here on waits for the copy, but
        the CPU may neither read it nor change its source before `sync()`, which records it.
        """
        given = isinstance(target, Tensor)
        out = target if given else self.empty(tensor.shape, tensor.dtype, target, label)
        begin, end = source or self.tier_of(tensor).name, self.tier_of(out).name
        fields = {
            "name": name or f"copy {label} {begin}->{end}", "stage": stage, "label": label,
            "source": begin, "target": end, "nbytes": tensor.nbytes,
            "how": "emulated" if self.emulated and "hbm" in (begin, end) else "measured",
        }  # fmt: skip
        if tensor.is_cuda or out.is_cuda:
            self._link.copy(tensor, out, fields, wait)
        else:
            with self.trace.moving(**fields):
                out.copy_(tensor)
        return out

    def sync(self) -> None:
        """Wait for all copies and all compute, and record the copies that were under way."""
        if self._link is not None:
            self._link.settle()
            torch.cuda.synchronize(self.device)


def _address(tensor: Tensor) -> int:
    """What a tensor and its views have in common: where their storage begins."""
    return tensor.untyped_storage().data_ptr()


def _budget(device: torch.device, dram: int, hbm: int | str | None) -> int:
    """Bytes of HBM to use: as asked, or the default that `Machine.here` speaks of."""
    if device.type == "cpu":
        room, usual = dram, dram // 2
    else:
        room = torch.cuda.mem_get_info(device)[0]
        usual = room * 9 // 10
    budget = usual if hbm is None else parse_size(hbm)
    if not 0 < budget <= room:
        raise ConfigError(
            f"wanted an HBM budget within the {format_size(room)} that are free here, "
            f"found {format_size(budget)}; choose another"
        )
    return budget


def _facts(machine: Machine) -> dict[str, object]:
    """What a trace's reader wants to know of the machine it was made on."""
    tiers = (machine.ssd, machine.dram, machine.hbm)
    return {
        "machine": machine.describe(), "device": machine.device.type, "torch": torch.__version__,
        "capacity": {tier.name: tier.capacity for tier in tiers},
    }  # fmt: skip


def _describe(machine: Machine) -> str:
    dram, hbm = machine.dram.capacity, format_size(machine.hbm.capacity)
    if machine.emulated:
        dram += machine.hbm.capacity
        hbm += " (emulated in DRAM)"
    else:
        hbm += f" on {torch.cuda.get_device_name(machine.device)}"
    parts = [f"{n_cores()} cores", cpu_name(), f"{format_size(dram)} DRAM free", f"HBM {hbm}"]
    return " · ".join([*parts, f"torch {torch.__version__}"])
