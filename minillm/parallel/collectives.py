"""Collectives by hand: what `torch.distributed` does for us, of nothing but send and receive.

    ring           each rank talks to its two neighbours, a part of the tensor at a time
    tree           pairs of ranks, pairs of pairs, … : few steps, each with the whole tensor
    hierarchical   a ring inside each node, and rings between nodes for a part each

All ranks of the group call them, in the same order, with contiguous tensors of equal dtype.
Arguments are torch's; parts need not be equal here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from minillm.parallel.mesh import Group

CHUNK = 2**21  # bytes of a message: while one is added, others are under way


def ring_all_reduce(x: Tensor, group: Group) -> None:
    """Put the sum over the ranks into x. Each sends 2 (N - 1) / N of its bytes in 2 (N - 1) steps.

    First each part of x goes round and grows, then each sum goes round and is kept.  Patarasuk and
    Yuan, 2009.

    >>> ring_all_reduce(x := torch.ones(5), mesh.tp)   # on 4 ranks
    >>> x
    tensor([4., 4., 4., 4., 4.])
    """
    steps = group.size - 1
    _pass_round(group, _parts(x, group), group.index - 1, [True] * steps + [False] * steps)


def ring_reduce_scatter(out: Tensor, x: Tensor, group: Group) -> None:
    """Put this rank's part of the sum over the ranks into out; x is left half summed.

    Parts are of x's elements in a row, as `torch.tensor_split` makes them.
    """
    parts = _parts(x, group)
    _pass_round(group, parts, group.index - 1, [True] * (group.size - 1))
    out.view(-1).copy_(parts[group.index])


def ring_all_gather(out: Tensor, x: Tensor, group: Group) -> None:
    """Put every rank's x into out, in the order of the group: (size, …)."""
    parts = _parts(out, group)
    parts[group.index].copy_(x.view(-1))
    _pass_round(group, parts, group.index, [False] * (group.size - 1))


def _pass_round(group: Group, parts: list[Tensor], first: int, adds: list[bool]) -> None:
    """Hand parts[first] to the next rank; then hand on what comes from the one before.

    adds: for each part that comes, whether it is added to the one here, or takes its place.
    """
    after, before = (group.index + 1) % group.size, (group.index - 1) % group.size
    rounds = [(add, _chunks(parts[(first - n) % group.size])) for n, add in enumerate(adds, 1)]
    # All that will come has its room from the beginning, so that nobody who sends has to wait.
    comes = [
        (chunk, torch.empty_like(chunk) if add else chunk)
        for add, chunks in rounds for chunk in chunks
    ]  # fmt: skip
    coming = [group.irecv(theirs, before) for _, theirs in comes]
    sent = [group.isend(chunk, after) for chunk in _chunks(parts[first]) if adds]
    stays = len(comes) - len(rounds[-1][1]) if adds else 0  # from there on nothing goes on
    for n, ((mine, theirs), arriving) in enumerate(zip(comes, coming, strict=True)):
        arriving.wait()
        if theirs is not mine:
            mine += theirs
        if n < stays:
            sent.append(group.isend(mine, after))
    for work in sent:
        work.wait()


def tree_all_reduce(x: Tensor, group: Group) -> None:
    """Put the sum over the ranks into x, in 2 log2(N) steps: down to rank 0, then up to all."""
    step = 1
    while step < group.size and group.index % step == 0:
        if group.index % (2 * step):
            group.isend(x, group.index - step).wait()
        elif group.index + step < group.size:
            theirs = torch.empty_like(x)
            group.irecv(theirs, group.index + step).wait()
            x += theirs
        step *= 2
    tree_broadcast(x, group)


def tree_broadcast(x: Tensor, group: Group, group_src: int = 0) -> None:
    """Put x of rank `group_src` into all, in log2(N) steps: who has it sends it on."""
    place = (group.index - group_src) % group.size  # counted from there on
    for bit in reversed(range((group.size - 1).bit_length())):
        step = 2**bit
        if place % (2 * step) == step:
            group.irecv(x, (group.index - step) % group.size).wait()
        elif place % (2 * step) == 0 and place + step < group.size:
            group.isend(x, (group.index + step) % group.size).wait()


def hierarchical_all_reduce(x: Tensor, local: Group, across: Group) -> None:
    """Put the sum over all ranks of all nodes into x: between nodes a rank sends only its part.

    local: this rank's node; across: the ranks at its place in every node (`Mesh`). Traced.
    """
    parts, once = _parts(x, local), local.size - 1
    with local.traced("reduce_scatter", x):
        _pass_round(local, parts, local.index - 1, [True] * once)
    with across.traced("all_reduce", parts[local.index]):
        ring_all_reduce(parts[local.index], across)
    with local.traced("all_gather", x):
        _pass_round(local, parts, local.index, [False] * once)


def _parts(x: Tensor, group: Group) -> list[Tensor]:
    """Views of x's elements in a row, one for each rank, as equal as can be."""
    return list(x.view(-1).tensor_split(group.size))


def _chunks(part: Tensor) -> tuple[Tensor, ...]:
    return part.split(max(1, CHUNK // part.element_size()))
