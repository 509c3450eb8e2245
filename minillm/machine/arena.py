"""One block of a tier, with a place in it for each name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from minillm.machine.machine import Machine

_ALIGN = 64  # bytes: a cache line, and the widest load that a CPU has


class Arena:
    """Room for tensors of any shapes and dtypes: taken in one piece, given back in one piece.

    >>> wanted = {"weight": ((4, 64), torch.bfloat16), "scale": ((4,), torch.float32)}
    >>> arena = Arena(machine, wanted, "hbm", "weights")
    >>> arena.places["weight"].shape, arena.nbytes
    (torch.Size([4, 64]), 576)

    Each place begins at a multiple of 64 bytes, in the order of the names. The sizes of real models
    are such multiples, so they take exactly the bytes that arithmetic predicts. Two arenas of equal
    shapes are laid out alike: one copy of `block` brings all there is.

    block: (nbytes,) uint8, contents arbitrary. places: views of it. Raises OutOfMemory, and then
    nothing is kept.
    """

    def __init__(
        self, machine: Machine, wanted: Mapping[str, tuple[Sequence[int], torch.dtype]],
        tier: str, label: str,
    ) -> None:  # fmt: skip
        sizes = [torch.Size(shape).numel() * dtype.itemsize for shape, dtype in wanted.values()]
        rooms = [-(-size // _ALIGN) * _ALIGN for size in sizes]
        self._machine, self.nbytes = machine, sum(rooms)
        self.block: Tensor | None = machine.empty((self.nbytes,), torch.uint8, tier, label)
        pieces = zip(wanted.items(), sizes, self.block.split(rooms), strict=True)
        self.places = {
            name: piece[:size].view(dtype).view(shape)
            for (name, (shape, dtype)), size, piece in pieces
        }

    def close(self) -> None:
        """Give the bytes back; a second call does nothing.

        The memory itself goes when the last view of it does, so `block` and `places` go now, also
        for those who hold the same dict: a notebook keeps its last error and the frames in it.
        """
        block, self.block = self.block, None
        self.places.clear()
        if block is not None:
            self._machine.free(block)
