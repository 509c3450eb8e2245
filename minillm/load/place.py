"""The last step of a load: bytes that are in DRAM go to where they belong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from minillm.load.chunks import Piece
from minillm.machine import Machine

_GRAIN = 2**14  # elements: so few torch converts on the thread that asks
_FIELDS = {"label": "weights", "stage": "load"}

Arrived = list[tuple[Piece, Tensor]]
"""What one read brought: pieces, and the bytes of each, uint8, one row a run."""


def put(arrived: Arrived, places: Mapping[str, Tensor], machine: Machine) -> None:
    """Copy what arrived to where it belongs: `places[name]`, contiguous, in HBM or DRAM.

    A tensor without a place is left out; a place may have another dtype than the file. When this
    returns, staging may be filled again.
    """
    for piece, raw in arrived:
        if piece.info.name not in places:
            continue
        target, dtype = part_of(places[piece.info.name], piece, raw.nbytes), piece.info.dtype
        if target.dtype == dtype:
            target, dtype = target.view(torch.uint8), torch.uint8
        elif raw.data_ptr() % dtype.itemsize:  # the format aligns nothing, and torch wants
            raw = raw.clone()  # elements at multiples of their size
        raw = raw.view(dtype)
        move(raw, target.view(raw.shape), machine, piece.label)


def part_of(place: Tensor, piece: Piece, nbytes: int) -> Tensor:
    """Where in a tensor's place `nbytes` of a piece go, flat: as many numbers of its own dtype."""
    size = piece.info.dtype.itemsize
    return place.view(-1)[piece.at // size :][: nbytes // size]


def move(raw: Tensor, target: Tensor, machine: Machine, detail: str) -> None:
    """Copy weights from DRAM to `target` on this thread alone, and return when they are there."""
    if not machine.emulated and machine.tier_of(target) is machine.hbm:
        machine.send(raw, target, detail=detail, **_FIELDS).join()
    else:
        arrive(partial(_copy, raw, target), target, machine, detail, raw.nbytes)


def arrive(
    do: Callable[[], object], target: Tensor, machine: Machine, detail: str, nbytes: int = 0
) -> None:
    """Run `do`, with which weights in DRAM arrive in `target`: a transfer DRAM → HBM.

    A span of the CPU, if the target is in DRAM too. nbytes: how many they were, if not its own.
    """
    nbytes = nbytes or target.nbytes
    if machine.tier_of(target) is machine.hbm:
        ends = {"source": "dram", "target": "hbm", "name": "copy weights dram->hbm"}
        machine.carry(do, nbytes, detail=detail, **ends, **_FIELDS)
    else:
        with machine.trace.span(
            "place weights", resource="cpu", nbytes=nbytes, detail=detail, **_FIELDS
        ):
            do()


def _copy(raw: Tensor, target: Tensor) -> None:
    """Copy on this thread alone.

    Torch would share a large copy out to threads of its own. Others read or compute meanwhile: on
    two busy cores the two kinds hindered each other until a load took five times as long.
    """
    if raw.dtype == target.dtype:
        np.copyto(target.view(torch.uint8).numpy(), raw.view(torch.uint8).numpy())
        return
    rows = max(1, _GRAIN // max(1, raw.numel() // len(raw)))
    for part, place in zip(raw.split(rows), target.split(rows), strict=True):
        place.copy_(part)
