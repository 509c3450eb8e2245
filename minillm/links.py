"""How bytes get from one tier to another: by the CPU itself here, by a card or a model elsewhere.

A link has `copy` (a tensor, now), `send` (a tensor, for later), `carry` (run anything that moves
bytes), `settle` (wait for what is under way) and `abandon` (the same, after a failure).
`HostLink` is the plain one; `CudaLink` and `ScaleModel` have the same five.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

from minillm.trace import Trace

T = TypeVar("T")


class Sending:
    """A copy that was sent: perhaps there already, perhaps under way. `out` is where it goes."""

    def __init__(self, out: Tensor):
        self.out = out

    def wait(self) -> Tensor:
        """From here on `out` may be computed with. Returns it.

        On a card what is queued from now on waits, and the CPU goes on; elsewhere the CPU waits.
        """
        return self.join()

    def join(self) -> Tensor:
        """Block the CPU until the bytes are there: then the source may change. Returns `out`."""
        return self.out


class HostLink:
    """Copies by the CPU's own cores, at their own pace: over when the call returns."""

    def __init__(self, trace: Trace):
        self._trace = trace

    def copy(self, tensor: Tensor, out: Tensor, fields: dict[str, Any]) -> Tensor:
        """Copy `tensor` into `out` and return it; `fields` are for `Trace.transfer`."""
        start = self._trace.now()
        out.copy_(tensor)
        self._over(start, fields)
        return out

    def send(self, tensor: Tensor, out: Tensor, fields: dict[str, Any]) -> Sending:
        """Begin such a copy."""
        return Sending(self.copy(tensor, out, fields))

    def carry(self, do: Callable[[], T], fields: dict[str, Any]) -> T:
        """Run `do`, which moves the bytes, and record it unless it raises."""
        start = self._trace.now()
        result = do()
        self._over(start, fields)
        return result

    def _over(self, start: float, fields: dict[str, Any]) -> None:
        end = self._trace.now()
        start = min(start, end)  # if the trace was cleared meanwhile, it counts from later on
        self._trace.transfer(start=start, seconds=end - start, **fields)

    def settle(self) -> None:
        """Wait for what is under way and record it; raise what went wrong in it."""

    def abandon(self) -> None:
        """Drop what has not begun and wait for the rest; nothing is raised."""
