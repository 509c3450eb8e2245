"""What joins the ranks: messages between two of them, and the name of the link they go over."""

from __future__ import annotations

from typing import Protocol

import torch.distributed as dist
from torch import Tensor


class Work(Protocol):
    """A message under way."""

    def wait(self) -> object:
        """Return when it is over: what was sent may change, what was received is there."""


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
