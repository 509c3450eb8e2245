"""The last step of a load: bytes that are in DRAM go to where they belong."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from minillm.load.chunks import Part
from minillm.machine import Machine

_GRAIN = 2**14  # elements: so few torch converts on the thread that asks

Arrived = list[tuple[Part, Tensor]]
"""What one read brought: parts of tensors, and the bytes of each, uint8, one row a run."""


def put(arrived: Arrived, places: Mapping[str, Tensor], machine: Machine) -> None:
    """Copy what arrived to where it belongs: `places[name]`, contiguous, in HBM or DRAM.

    A tensor without a place is left out; a place may have another dtype than the file. When this
    returns, staging may be filled again.
    """
    for part, raw in arrived:
        if part.info.name not in places:
            continue
        dtype = part.info.dtype
        target = places[part.info.name].view(-1)[part.at // dtype.itemsize :]
        target = target[: raw.nbytes // dtype.itemsize]
        if target.dtype == dtype:
            target, dtype = target.view(torch.uint8), torch.uint8
        elif raw.data_ptr() % dtype.itemsize:  # the format aligns nothing, and torch wants
            raw = raw.clone()  # elements at multiples of their size
        raw = raw.view(dtype)
        move(raw, target.view(raw.shape), machine, part.label)


def move(raw: Tensor, target: Tensor, machine: Machine, detail: str) -> None:
    """Copy weights from DRAM to `target` on this thread alone, and return when they are there.

    A transfer DRAM → HBM in the trace; a span of the CPU, if the target is in DRAM too.
    """
    fields = {"label": "weights", "stage": "load", "detail": detail}
    do, nbytes = partial(_copy, raw, target), target.nbytes
    if machine.tier_of(target) is not machine.hbm:
        with machine.trace.span("place weights", resource="cpu", nbytes=nbytes, **fields):
            do()
    elif machine.emulated:
        machine.carry(do, nbytes, source="dram", target="hbm", **fields)
    else:
        machine.send(raw, target, **fields).join()


def _copy(raw: Tensor, target: Tensor) -> None:
    """Copy on this thread alone.

    Torch would share a large copy out to threads of its own. Others read or compute meanwhile: on
    two busy cores the two kinds hindered each other until a load took five times as long.
    """
    if raw.dtype == target.dtype:
        np.copyto(target.view(torch.uint8).numpy(), raw.view(torch.uint8).numpy())
        return
    rows = max(1, _GRAIN // max(1, raw.numel() // len(raw)))
    for some, place in zip(raw.split(rows), target.split(rows), strict=True):
        place.copy_(some)
