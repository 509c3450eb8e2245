"""How bytes get from one tier to another: by the CPU itself here, by a card or a model elsewhere.

A link has `carry` (run anything that moves bytes), `copy` (a tensor, now), `send` (a tensor, for
later) and `settle` (wait for what is under way). `HostLink` is the plain one; `CudaLink` and
`ScaleModel` have the same four.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from torch import Tensor

from minillm.trace import Record, Trace
from minillm.trace.event import link_between

T = TypeVar("T")


class Way(NamedTuple):
    """A kind of transfer: its two tiers, the link it goes over, and what records one of it."""

    source: str
    target: str
    link: str
    record: Record


def way_of(
    trace: Trace, emulated: bool, slowed: bool, name: str, stage: str, label: str, source: str,
    target: str, link: str,
) -> Way:  # fmt: skip
    """The way of such transfers, over `link` or else the one that joins the two tiers.

    A machine keeps each: so the trace checks it once, and a copy of 8 bytes costs little more than
    its bytes. emulated: HBM is a part of DRAM. slowed: all links are, to be like a server's.
    """
    link = link or link_between(source, target)
    ours = slowed and link or emulated and "hbm" in source + target
    record = trace.recorder(
        "transfer", name or f"copy {label} {source}->{target}", stage=stage, source=source,
        target=target, label=label, link=link, how="emulated" if ours else "measured",
    )  # fmt: skip
    return Way(source, target, link, record)


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

    def carry(self, do: Callable[[], T], nbytes: int, way: Way, detail: str = "") -> T:
        """Run `do`, which moves the bytes, and record it unless it raises."""
        start = self._trace.now()
        result = do()
        end = self._trace.now()
        start = min(start, end)  # if the trace was cleared meanwhile, it counts from later on
        way.record(start, end - start, nbytes, detail=detail)
        return result

    def copy(self, tensor: Tensor, out: Tensor, way: Way, detail: str = "") -> Tensor:
        """Copy `tensor` into `out` and return it."""
        return self.carry(lambda: out.copy_(tensor), tensor.nbytes, way, detail)

    def send(self, tensor: Tensor, out: Tensor, way: Way, detail: str = "") -> Sending:
        """Begin such a copy."""
        return Sending(self.copy(tensor, out, way, detail))

    def settle(self) -> None:
        """Wait for what is under way and for compute; record it; raise what went wrong in it."""
