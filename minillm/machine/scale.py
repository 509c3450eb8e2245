"""A scale model of a GPU server: its links, slowed until they fit this machine's memory.

HBM is this machine's DRAM, read at its own pace. If a server's HBM is 67 times as fast, then each
of its links is given a 67th of its bandwidth and 67 times its latency: one second of the server
lasts 67 here, and HBM : PCIe : NVMe : NVLink : InfiniBand are in the server's proportion. A
transfer is a real copy, after which we wait until the slowed link would have been done. Compute
is not to scale: it is what this machine's cores do.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from torch import Tensor

from minillm.errors import ConfigError
from minillm.machine.copies import HostLink, Sending, T, Way
from minillm.predict.hardware import Hardware, Wire
from minillm.trace import Trace
from minillm.trace.event import link_between

_FINE = 2e-4  # seconds: a sleep ends up to this late, so the last bit is waited for awake


def sleep_until(end: float, clock: Callable[[], float] = time.perf_counter) -> None:
    """Return when the clock says `end`, and hardly later."""
    time.sleep(max(0.0, end - clock() - _FINE))
    while clock() < end:
        time.sleep(0)


class Transfer(Sending):
    """One transfer in a link's queue. `join` raises what its `do` raised."""

    def __init__(self, out: Any, over: Future, unjoined: set[Transfer]):
        super().__init__(out)
        self.over, self._unjoined = over, unjoined
        unjoined.add(self)

    def join(self) -> Tensor:
        self._unjoined.discard(self)  # what went wrong is raised once
        self.over.result()
        return self.out


class ScaledLink:
    """One direction of one link: a serial resource. Thread-safe.

    A transfer asked for at time t has the wire from max(t + latency, when the wire is free) on,
    for nbytes / bandwidth: latency passes while those before are still on the wire, which is why
    it helps to have several requests in flight. All times are the clock's.

    until(t): sleeps until the clock says t; tests bring their own, and a clock that stands still.
    """

    def __init__(
        self, wire: Wire, clock: Callable[[], float] = time.perf_counter,
        until: Callable[[float], None] | None = None,
    ):  # fmt: skip
        self.wire, self.clock = wire, clock
        self._until = until or partial(sleep_until, clock=clock)
        self._free = clock()  # when the wire is free again
        self._turn = threading.Lock()  # held while bytes really move
        self._lock = threading.Lock()
        self._queue: ThreadPoolExecutor | None = None  # of one thread, from `send` to `drain`
        self.unjoined: set[Transfer] = set()

    def carry(self, do: Callable[[], T], nbytes: int, tell: Callable[[float, float], None]) -> T:
        """Run `do` here and return when the link is done; `tell(begin, end)` before that."""
        if self._queue is not None:  # it is behind those
            return self._submit(do, nbytes, tell).result()
        return self._run(do, nbytes, self.clock(), tell)

    def send(self, out: Any, do: Callable, nbytes: int, tell: Callable) -> Transfer:
        """Queue a transfer, to run on a thread of the link's own."""
        return Transfer(out, self._submit(do, nbytes, tell), self.unjoined)

    def _submit(self, do: Callable[[], T], nbytes: int, tell: Callable) -> Future[T]:
        with self._lock:
            self._queue = self._queue or ThreadPoolExecutor(1, f"scaled link {id(self)}")
            return self._queue.submit(self._run, do, nbytes, self.clock(), tell)

    def _run(self, do: Callable[[], T], nbytes: int, asked: float, tell: Callable) -> T:
        with self._turn:
            begin = max(asked, self._free)
            end = max(asked + self.wire.latency, self._free) + nbytes / self.wire.bandwidth
            result = do()
            end = self._free = max(end, self.clock())  # what is slower here than there stays so
        self._until(end)
        tell(begin, end)
        return result

    def drain(self) -> None:
        """Wait until the queue is empty and its thread is gone."""
        with self._lock:
            queue, self._queue = self._queue, None
            if queue is not None:
                queue.shutdown()


class ScaleModel(HostLink):
    """The links of one of `HARDWARE`'s servers, at the pace of this machine's memory.

    of: the server's name. slower: how many times as long everything takes as there.
    hbm_bandwidth: what stands for HBM's, bytes a second: how fast this machine reads DRAM.
    """

    def __init__(
        self, hardware: Hardware, hbm_bandwidth: float, trace: Trace,
        until: Callable[[float], None] | None = None,
    ):  # fmt: skip
        super().__init__(trace)
        self.of, self.hardware = hardware.name, hardware
        self.hbm_bandwidth = hbm_bandwidth
        self.slower = hardware.hbm_bandwidth / hbm_bandwidth
        self._until = until
        self._links: dict[tuple[str, ...], ScaledLink] = {}

    def wire(self, name: str) -> Wire:
        """A link's figures, slowed: "nvme", "pcie", "nvlink", "infiniband". ConfigError if none."""
        wire = getattr(self.hardware, name, None)
        if not isinstance(wire, Wire):
            raise ConfigError(f"wanted {name}, but {self.of} has none; take another link or server")
        return Wire(wire.bandwidth / self.slower, wire.latency * self.slower)

    def ceilings(self) -> dict[str, float]:
        """Bytes a second of each resource, and of both links between GPUs, for `trace.meta`."""
        links = {"ssd": "nvme", "copy": "pcie", "nvlink": "nvlink", "infiniband": "infiniband"}
        wires = {k: self.wire(v).bandwidth for k, v in links.items() if getattr(self.hardware, v)}
        return wires | {"hbm": self.hbm_bandwidth}

    def facts(self) -> dict[str, object]:
        """What a trace's reader wants to know of the model."""
        return {"of": self.of, "slower": self.slower, "hbm_bandwidth": self.hbm_bandwidth}

    def link(self, source: str, target: str, over: str = "") -> ScaledLink | None:
        """The link from a tier to another, such as "dram" to "hbm:1"; None within a tier.

        over: "nvlink" (the default between GPUs) or "infiniband". Directions are links of their
        own, and so are GPUs: each has its PCIe lanes, its NVLink ports and its adapter.
        """
        name = over or link_between(source, target)
        if not name or (name == "pcie" and self.hardware.pcie is None):
            return None
        # What a GPU sends to several others goes through the same ports.
        key = (name, source) if name in ("nvlink", "infiniband") else (name, source, target)
        if key not in self._links:
            self._links.setdefault(key, ScaledLink(self.wire(name), self._trace.clock, self._until))
        return self._links[key]

    def send(self, tensor: Tensor, out: Tensor, way: Way, detail: str = "") -> Sending:
        link = self.link(way.source, way.target, way.link)
        if link is None:
            return super().send(tensor, out, way, detail)
        tell = self._teller(tensor.nbytes, way, detail)
        return link.send(out, lambda: out.copy_(tensor), tensor.nbytes, tell)

    def carry(self, do: Callable[[], T], nbytes: int, way: Way, detail: str = "") -> T:
        link = self.link(way.source, way.target, way.link)
        if link is None:
            return super().carry(do, nbytes, way, detail)
        return link.carry(do, nbytes, self._teller(nbytes, way, detail))

    def _teller(self, nbytes: int, way: Way, detail: str) -> Callable[[float, float], None]:
        """Records a transfer, given its times on the clock that links and trace share."""
        trace, stamp = self._trace, self._trace.at.stamp
        detail = ", ".join(filter(None, (detail, f"scale model of {self.of}")))

        def tell(begin: float, end: float) -> None:
            with trace.at(stamp):
                way.record(begin - trace.origin, end - begin, nbytes, detail=detail)

        return tell

    def settle(self) -> None:
        links = tuple(self._links.values())
        for link in links:
            link.drain()
        for link in links:
            while link.unjoined:
                link.unjoined.pop().join()
