"""Tiers of memory: their budgets, and who holds how much of one."""

from __future__ import annotations

import threading
from collections import deque
from contextlib import suppress

from minillm.errors import OutOfMemory
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
        self.lost: deque[dict[str, int]] = deque()  # label: bytes, of tensors that died unfreed

    @property
    def free(self) -> int:
        """Bytes that can still be reserved."""
        self._settle()
        return self.capacity - self.used

    def reserve(self, nbytes: int, label: str) -> None:
        """Take `nbytes` of the budget for `label`. Raises OutOfMemory, and then takes nothing."""
        assert nbytes >= 0, nbytes
        self._settle()
        with self._lock:
            if nbytes > (free := self.capacity - self.used):
                raise OutOfMemory(self.name, nbytes, free, self.by_label)
            self._hold(nbytes, label)

    def release(self, nbytes: int, label: str) -> None:
        """Give back `nbytes` that `label` had reserved."""
        with self._lock:
            self._hold(-nbytes, label)

    def give_back(self, held: dict[str, int]) -> None:
        """Release all that a tensor holds, label by label."""
        for label, nbytes in held.items():
            if nbytes:
                self.release(nbytes, label)

    def relabel(self, nbytes: int, source: str, target: str) -> None:
        """Give `nbytes` that label `source` holds to label `target`; `used` stays as it is."""
        with self._lock:
            self._hold(-nbytes, source)
            self._hold(nbytes, target)

    def _settle(self) -> None:
        """Release what the dead held: a garbage collector may not wait for the lock, so we do."""
        with suppress(IndexError):
            while True:
                self.give_back(self.lost.popleft())

    def _hold(self, nbytes: int, label: str) -> None:
        """`label` holds so many bytes more, or fewer."""
        held = self.by_label.get(label, 0)
        assert held + nbytes >= 0, f"{label} holds {held} B of {self.name}, not {-nbytes}"
        self.used += nbytes
        self.peak = max(self.peak, self.used)
        self.by_label[label] = held + nbytes
        if not self.by_label[label]:
            del self.by_label[label]
        if self._trace is not None:
            self._trace.count(self.name, label, held + nbytes)

    def __repr__(self) -> str:
        return f"Tier({self.name}, {format_size(self.used)} of {format_size(self.capacity)} used)"
