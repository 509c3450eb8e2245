"""Copies over PCIe, on a stream of their own so that they can run beside compute."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

from minillm.trace import Trace


class CudaLink:
    """The copy stream of one card. Thread-safe.

    A copy begins when the compute queued so far is done, and compute queued later waits for the
    copy: results are as if all ran in one queue, whatever overlaps.
    """

    def __init__(self, device: torch.device, trace: Trace):
        self._stream = torch.cuda.Stream(device)
        self._trace = trace
        self._pending: list[tuple[torch.cuda.Event, torch.cuda.Event, dict[str, Any]]] = []
        self._lock = threading.Lock()

    def copy(self, tensor: Tensor, out: Tensor, fields: dict[str, Any], wait: bool) -> None:
        """Queue `out.copy_(tensor)`; `fields` are for `Trace.transfer`, once `settle` is called.

        wait: settle at once.
        """
        compute = torch.cuda.current_stream(self._stream.device)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._stream.wait_stream(compute)  # it writes `tensor`, or still reads `out`
        with torch.cuda.stream(self._stream):
            begin.record()
            out.copy_(tensor, non_blocking=True)
            end.record()
        compute.wait_event(end)
        for used in (tensor, out):
            if used.is_cuda:  # the allocator must not give it to others while the copy runs
                used.record_stream(self._stream)
        with self._lock:
            at = self._trace.at  # the stamp of now, not of the moment when it is recorded
            stamp = {"token": at.token, "request": at.request}
            self._pending.append((begin, end, fields | stamp))
        if wait:
            self.settle()

    def settle(self) -> None:
        """Wait for the copies under way and record them."""
        with self._lock:
            pending, self._pending = self._pending, []
        if not pending:
            return
        # The card's clock and ours meet in one event: other events are so many milliseconds
        # before it, and it itself is now.
        meeting = torch.cuda.Event(enable_timing=True)
        meeting.record(self._stream)
        meeting.synchronize()
        now = self._trace.now()
        for begin, end, fields in pending:
            start = now - begin.elapsed_time(meeting) / 1e3
            self._trace.transfer(start=start, seconds=begin.elapsed_time(end) / 1e3, **fields)
