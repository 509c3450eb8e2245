"""Copies over PCIe, on streams of their own so that they can run beside compute."""

from __future__ import annotations

import threading
from functools import partial

import torch
from torch import Tensor

from minillm.machine.copies import HostLink, Sending, Way
from minillm.trace import Record, Stamp, Trace

_Pending = tuple[torch.cuda.Event, torch.cuda.Event, Stamp, Record]


class CudaSending(Sending):
    """A copy on one of the card's copy streams."""

    def __init__(self, out: Tensor, end: torch.cuda.Event, link: CudaLink):
        super().__init__(out)
        self._end, self._link = end, link

    def wait(self) -> Tensor:
        self._link.compute_stream().wait_event(self._end)
        return self.out

    def join(self) -> Tensor:
        self._end.synchronize()
        self._link.record()
        return self.out


class CudaLink(HostLink):
    """The copy streams of one card, one a direction, for PCIe runs both ways at once. Thread-safe.

    A copy begins when the compute queued so far is done. Compute queued after `wait()` waits for
    the copy; what was queued before it does not, and runs beside it.
    """

    def __init__(self, device: torch.device, trace: Trace):
        super().__init__(trace)
        self._device = device
        self._in, self._out, self._clock = (torch.cuda.Stream(device) for _ in range(3))
        self._pending: list[_Pending] = []
        self._lock = threading.Lock()

    def compute_stream(self) -> torch.cuda.Stream:
        """The stream on which this thread computes."""
        return torch.cuda.current_stream(self._device)

    def copy(self, tensor: Tensor, out: Tensor, way: Way, detail: str = "") -> Tensor:
        if not (tensor.is_cuda or out.is_cuda):
            return super().copy(tensor, out, way, detail)
        return self.send(tensor, out, way, detail).join()

    def send(self, tensor: Tensor, out: Tensor, way: Way, detail: str = "") -> Sending:
        if not (tensor.is_cuda or out.is_cuda):
            return super().send(tensor, out, way, detail)
        stream = self._in if out.is_cuda else self._out
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        stream.wait_stream(self.compute_stream())  # it writes `tensor`, or still reads `out`
        with torch.cuda.stream(stream):
            begin.record()
            out.copy_(tensor, non_blocking=True)
            end.record()
        for used in (tensor, out):
            if used.is_cuda:  # the allocator must not give it to others while the copy runs
                used.record_stream(stream)
        stamp = self._trace.at.stamp  # of now, not of the moment when it is recorded
        tell = partial(way.record, nbytes=tensor.nbytes, detail=detail)
        with self._lock:
            self._pending.append((begin, end, stamp, tell))
        return CudaSending(out, end, self)

    def settle(self) -> None:
        torch.cuda.synchronize(self._device)
        self.record()

    def record(self) -> None:
        """Record the copies that are over."""
        done, left = [], []
        with self._lock:
            for copy in self._pending:
                (done if copy[1].query() else left).append(copy)
            self._pending = left
        if not done:
            return
        # The card's clock and ours meet in one event: other events are so many milliseconds
        # before it, and it itself is now. Its stream is empty, so nothing delays it.
        meeting = torch.cuda.Event(enable_timing=True)
        meeting.record(self._clock)
        meeting.synchronize()
        now = self._trace.now()
        for begin, end, stamp, tell in done:
            with self._trace.at(stamp):
                tell(now - begin.elapsed_time(meeting) / 1e3, begin.elapsed_time(end) / 1e3)
