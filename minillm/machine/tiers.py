"""Tiers of memory: their budgets, and which tensor took how much of one under which label."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from minillm.errors import OutOfMemory
from minillm.machine.host import huge_pages
from minillm.trace import Trace
from minillm.units import format_size


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

    def relabel(self, nbytes: int, source: str, target: str) -> None:
        """Give `nbytes` that label `source` holds to label `target`; `used` stays as it is.

        So a pool that was reserved as a whole tells how much of it is in use.
        """
        with self._lock:
            held = self.by_label.get(source, 0)
            assert 0 <= nbytes <= held, f"{source} holds {held} B of {self.name}, not {nbytes}"
            self._hold(-nbytes, source)
            self._hold(nbytes, target)

    def _change(self, nbytes: int, label: str) -> None:
        self.used += nbytes
        self.peak = max(self.peak, self.used)
        self._hold(nbytes, label)

    def _hold(self, nbytes: int, label: str) -> None:
        now = self.by_label.pop(label, 0) + nbytes
        if now:
            self.by_label[label] = now
        if self._trace is not None:
            self._trace.count(self.name, label, now)

    def __repr__(self) -> str:
        return f"Tier({self.name}, {format_size(self.used)} of {format_size(self.capacity)} used)"


class Memory:
    """The three tiers of a machine, and the tensors in them. Thread-safe.

    ssd, dram, hbm: the tiers. device: where the model computes; on "cpu" HBM is emulated, a
    budget in DRAM.
    """

    def __init__(self, device: torch.device, ssd: int, dram: int, hbm: int, trace: Trace):
        self.device, self.emulated = device, device.type == "cpu"
        sizes = {"ssd": ssd, "dram": dram, "hbm": hbm}
        self.ssd, self.dram, self.hbm = (Tier(name, n, trace) for name, n in sizes.items())
        self._owned: dict[int, tuple[Tier, int, str]] = {}  # address: tier, bytes, label
        self._lock = threading.Lock()

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
        return huge_pages(tensor) if self.emulated else tensor

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


def _address(tensor: Tensor) -> int:
    """What a tensor and its views have in common: where their storage begins."""
    return tensor.untyped_storage().data_ptr()
