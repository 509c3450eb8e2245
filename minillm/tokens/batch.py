"""Batches: the ids of several texts become one, and go through a buffer in DRAM to HBM.

Texts differ in length, and a tensor is a rectangle. Padded, each text is a row as long as the
longest, and a mask says which places hold a token. Packed, all tokens lie one after the other, and
`cu_seqlens` says where each text begins: nothing is wasted. The engine packs.

Shapes: B texts, T tokens of the longest, ΣT of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import accumulate, chain
from typing import NamedTuple

import torch
from torch import Tensor

from minillm.errors import PromptError
from minillm.machine import Machine


class Packed(NamedTuple):
    """Texts one after the other; the ids of text i are `ids[cu_seqlens[i] : cu_seqlens[i + 1]]`."""

    ids: Tensor  # int64 (ΣT,)
    cu_seqlens: Tensor  # int32 (B + 1,), from 0 to ΣT: the cumulative lengths, as kernels want them
    positions: Tensor  # int64 (ΣT,): from 0 on in each text


class Padded(NamedTuple):
    """Texts as rows of one rectangle, filled up with 0."""

    ids: Tensor  # int64 (B, T)
    mask: Tensor  # bool (B, T): the places that hold a token
    positions: Tensor  # int64 (B, T): from 0 on at a text's first token; 0 in front of it


def pack(ids_lists: Sequence[Sequence[int]]) -> Packed:
    """The texts one after the other; PromptError if one is empty.

    >>> pack([[7, 8, 9], [5]])    # ids 7 8 9 5, cu_seqlens 0 3 4, positions 0 1 2 0
    """
    lengths = _lengths(ids_lists)
    ids = torch.tensor(list(chain.from_iterable(ids_lists)))
    cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    return Packed(ids, cu_seqlens, torch.cat([torch.arange(length) for length in lengths]))


def pad(ids_lists: Sequence[Sequence[int]], side: str = "right") -> Padded:
    """The texts as rows, filled up at `side`, "right" or "left"; PromptError if one is empty.

    >>> pad([[7, 8, 9], [5]], side="left").ids.tolist()
    [[7, 8, 9], [0, 0, 5]]
    """
    lengths = torch.tensor(_lengths(ids_lists))[:, None]
    front = (lengths.max() - lengths) * (side == "left")  # (B, 1): places before the first token
    positions = torch.arange(int(lengths.max())) - front
    mask = (positions >= 0) & (positions < lengths)
    ids = torch.zeros(mask.shape, dtype=torch.int64)
    ids[mask] = torch.tensor(list(chain.from_iterable(ids_lists)))  # row by row
    return Padded(ids, mask, positions.clamp(min=0))


def padding_waste(lengths: Sequence[int]) -> float:
    """Of the places of a padded batch, the share that holds no token: from 0 to below 1.

    >>> padding_waste([3, 1])
    0.3333333333333333
    """
    return 1 - sum(lengths) / (len(lengths) * max(lengths))


def buckets(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Texts of like length together, by their number: padded, no batch has over `most` places.

    The shortest come first. A text that alone is longer than `most` is a batch by itself.

    >>> buckets([9, 1, 2, 8], most=18)
    [[1, 2], [3, 0]]
    """
    found: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lengths.__getitem__):
        if not found or (len(found[-1]) + 1) * lengths[number] > most:  # it is the longest so far
            found.append([])
        found[-1].append(number)
    return found


class Staging:
    """Room for `most` ids in DRAM, pinned on a card, and in HBM: made once and used each time.

    stack: gives the memory back when it closes. OutOfMemory if there is no room.

    >>> staging = Staging(machine, 512, stack)
    >>> staging.send([[7, 8, 9], [5]])   # tensor([7, 8, 9, 5]), in HBM
    """

    def __init__(self, machine: Machine, most: int, stack: ExitStack) -> None:
        self._machine = machine
        self._batch = machine.trace.recorder("span", "batch", stage="tokens", resource="cpu")
        self._hbm = machine.empty((most,), torch.int64, "hbm", "ids")
        stack.callback(machine.free, self._hbm)
        self._dram = machine.empty((most,), torch.int64, "dram", "ids")
        stack.callback(machine.free, self._dram)

    def send(self, ids_lists: Sequence[Sequence[int]]) -> Tensor:
        """The lists one after the other, CPU → DRAM → HBM: (ΣT,), until the next `send`.

        A padded rectangle is sent as its rows. The trace has a span "batch" and a transfer "ids".
        """
        began = self._machine.trace.now()
        ids = list(chain.from_iterable(ids_lists))
        staged = self._dram[: len(ids)]
        staged.numpy()[:] = ids  # more than fit: numpy says so
        self._batch(began, self._machine.trace.now() - began)
        return self._machine.copy(staged, self._hbm[: len(ids)], label="ids", stage="tokens")


def _lengths(ids_lists: Sequence[Sequence[int]]) -> list[int]:
    lengths = list(map(len, ids_lists))
    if not lengths or 0 in lengths:
        raise PromptError(f"wanted tokens in every text, found {lengths}; leave out empty ones")
    return lengths
