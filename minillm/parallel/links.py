"""What joins the ranks: messages between two of them, and the link that each goes over.

`Links` are as fast as they are. `ScaledLinks` are those of a server, slowed (see `ScaleModel`) and
emulated across processes: a message is really sent, and it counts as arrived when the slowed link
would have brought it. Every process sees in one shared file when each link is free again.
"""

from __future__ import annotations

import mmap
import os
import time
from collections import Counter
from pathlib import Path

import torch.distributed as dist
from torch import Tensor

from minillm.errors import ConfigError
from minillm.files import locked, temporary_folder
from minillm.machine.scale import ScaleModel, sleep_until

_SLOTS = 4096  # messages between two ranks that may be under way at a time


class Slowed:
    """A message that is over when its bytes are there, and not before the slowed link says so."""

    def __init__(self, work: Work, times: memoryview, slot: int) -> None:
        self._work, self._times, self._slot = work, times, slot

    def wait(self) -> None:
        self._work.wait()
        sleep_until(self._times[self._slot])


Work = dist.Work | Slowed


class Links:
    """Messages as fast as they go: through shared memory, a socket, or NVLink, as torch finds it.

    gpus: ranks of a node; node 0 holds the first ones. how: what their seconds are.
    """

    how = "measured"

    def __init__(self, gpus: int) -> None:
        self.gpus = gpus

    def between(self, *ranks: int) -> str:
        """Of several ranks, which link the slowest message between them goes over.

        >>> Links(gpus=2).between(0, 1), Links(gpus=2).between(1, 2)
        ('nvlink', 'infiniband')
        """
        return "infiniband" if len({rank // self.gpus for rank in ranks}) > 1 else "nvlink"

    def isend(self, x: Tensor, to: int) -> Work:
        """Begin to send a contiguous tensor to a rank."""
        return dist.isend(x, to)

    def irecv(self, out: Tensor, source: int) -> Work:
        """Begin to receive a tensor from a rank into a contiguous one of its size."""
        return dist.irecv(out, source)


class ScaledLinks(Links):
    """Links of a scale model, which all ranks of this host share in time. Made by all together.

    A GPU has one NVLink port, which all its messages inside the node pass, and each direction of
    it is a serial resource. A node has `adapters` to InfiniBand: by default one a GPU; with fewer,
    neighbours take turns at them. A message asked for at time t has the wire from max(t + latency,
    both ports are free) on, for nbytes / bandwidth: see `ScaledLink`, which does so in one process.
    ConfigError if the GPUs of a node cannot share its adapters equally.
    """

    how = "emulated"

    def __init__(self, gpus: int, scale: ScaleModel, adapters: int | None = None) -> None:
        super().__init__(gpus)
        equal = [n for n in range(1, gpus + 1) if gpus % n == 0]
        if adapters not in (None, *equal):
            raise ConfigError(f"wanted adapters of {equal}, found {adapters}; take one of these")
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        self._scale, self._adapters = scale, adapters or gpus
        self._count: Counter[tuple[int, int]] = Counter()  # of messages, by their two ends
        where = [""]
        if self._rank == 0:
            self._folder = temporary_folder(os.environ.get("MINILLM_RANKS_FOLDER"))
            where = [self._folder.name]
        dist.broadcast_object_list(where)
        self._path = Path(where[0]) / "links"
        # Of all ranks: when each of 4 ports is free; then when each message arrives, by pair.
        size = 8 * (4 * self._world + self._world**2 * _SLOTS)
        with open(self._path, "a+b") as file:
            file.truncate(size)
            self._times = memoryview(mmap.mmap(file.fileno(), size)).cast("d")

    def isend(self, x: Tensor, to: int) -> Work:
        """Begin to send. Its `wait` is back when the slowed link is done with it."""
        slot = self._slot(self._rank, to)
        self._times[slot] = self._reserve(to, x.nbytes)
        return Slowed(super().isend(x, to), self._times, slot)

    def irecv(self, out: Tensor, source: int) -> Work:
        """Begin to receive. Its `wait` is back when the slowed link has brought it."""
        return Slowed(super().irecv(out, source), self._times, self._slot(source, self._rank))

    def _slot(self, source: int, to: int) -> int:
        """Where the arrival of the next message stands: those of a pair come in their order."""
        self._count[source, to] += 1
        pair = source * self._world + to
        return 4 * self._world + pair * _SLOTS + self._count[source, to] % _SLOTS

    def _reserve(self, to: int, nbytes: int) -> float:
        """Take both ports for a message from here; when it will have arrived."""
        name, asked = self.between(self._rank, to), time.perf_counter()
        wire, ports = self._scale.wire(name), self._ports(name, to)
        with locked(self._path, pause=0.0):
            free = max(self._times[port] for port in ports)
            end = max(asked + wire.latency, free) + nbytes / wire.bandwidth
            for port in ports:
                self._times[port] = end
        return end

    def _ports(self, name: str, to: int) -> tuple[int, int]:
        """The places of the sender's port out and of the receiver's port in."""
        if name == "nvlink":
            return self._rank, self._world + to
        out, into = (r // self.gpus * self.gpus + r % self._adapters for r in (self._rank, to))
        return 2 * self._world + out, 3 * self._world + into
