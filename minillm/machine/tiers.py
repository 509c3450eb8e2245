"""Tiers of memory: their budgets, and who holds how much of one."""

from __future__ import annotations

import threading

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
            self._hold(nbytes, label)

    def release(self, nbytes: int, label: str) -> None:
        """Give back `nbytes` that `label` had reserved."""
        with self._lock:
            self._hold(-nbytes, label)

    def relabel(self, nbytes: int, source: str, target: str) -> None:
        """Give `nbytes` that label `source` holds to label `target`; `used` stays as it is.

        So a pool that was reserved as a whole tells how much of it is in use.
        """
        with self._lock:
            self._hold(-nbytes, source)
            self._hold(nbytes, target)

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
