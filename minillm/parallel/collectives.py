"""Collectives by hand: what `torch.distributed` does for us, of nothing but send and receive.

    ring           each rank talks to its two neighbours, a part of the tensor at a time
    tree           pairs of ranks, pairs of pairs, … : few steps, each with the whole tensor
    hierarchical   a ring inside each node, and rings between nodes for a part each

All ranks of the group call them, in the same order, with tensors of equal shape and dtype. What
changes a tensor does so in place if it is contiguous; else it works on a copy. It is returned.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from minillm.parallel.mesh import Group

CHUNK = 2**21  # bytes of a message: while one is added, the next one is under way
_AHEAD = 2  # messages


def ring_all_reduce(group: Group, x: Tensor) -> Tensor:
    """The sum over the ranks, on all. Each sends 2 (N - 1) / N of x's bytes in 2 (N - 1) steps.

    Patarasuk and Yuan, 2009.

    >>> ring_all_reduce(mesh.tp, torch.ones(5))   # on 4 ranks
    tensor([4., 4., 4., 4., 4.])
    """
    x = x.contiguous()
    with group.traced("all_reduce", x):
        parts = _parts(x, group)
        _reduce_scatter(group, parts)
        _all_gather(group, parts)
    return x


def ring_reduce_scatter(group: Group, x: Tensor) -> Tensor:
    """This rank's part of the sum over the ranks, of x's elements in a row: a view of x, whose
    other parts are left half summed. Parts differ by one element if they cannot be equal."""
    x = x.contiguous()
    with group.traced("reduce_scatter", x):
        parts = _parts(x, group)
        _reduce_scatter(group, parts)
    return parts[group.index]


def ring_all_gather(group: Group, x: Tensor) -> list[Tensor]:
    """Every rank's tensor, in the order of the group."""
    every = x.new_empty(group.size, *x.shape)
    every[group.index] = x
    with group.traced("all_gather", every):
        _all_gather(group, [each.view(-1) for each in every])
    return list(every)


def _reduce_scatter(group: Group, parts: list[Tensor]) -> None:
    """Sum parts[index] over the ranks. A partial sum goes round and grows at each rank."""
    for step in range(1, group.size):
        give, take = parts[group.index - step], parts[group.index - step - 1]
        room = take.new_empty(_AHEAD, min(len(take), _length(take)))
        for mine, theirs in _pass_on(group, give, take, room):
            mine += theirs


def _all_gather(group: Group, parts: list[Tensor]) -> None:
    """Fill all parts of each rank, given its own. Finished parts go round and are kept."""
    for step in range(group.size - 1):
        give, take = parts[group.index - step], parts[group.index - step - 1]
        for _ in _pass_on(group, give, take):
            pass


def _pass_on(
    group: Group, give: Tensor, take: Tensor, room: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Send `give` to the next rank, while as much as `take` comes from the one before.

    In chunks: yields each of `take` with what has arrived for it, in `room`, by default in itself.
    """
    after, before = (group.index + 1) % group.size, (group.index - 1) % group.size
    sent = [group.isend(chunk, after) for chunk in give.split(_length(give))]
    chunks = take.split(_length(take))
    into = [c if room is None else room[n % _AHEAD, : len(c)] for n, c in enumerate(chunks)]
    coming = [group.irecv(chunk, before) for chunk in into[:_AHEAD]]
    for n, pair in enumerate(zip(chunks, into, strict=True)):
        coming[n].wait()
        yield pair
        coming += [group.irecv(chunk, before) for chunk in into[n + _AHEAD : n + _AHEAD + 1]]
    for work in sent:
        work.wait()


def tree_all_reduce(group: Group, x: Tensor) -> Tensor:
    """The sum over the ranks, on all, in 2 log2(N) steps: summed down to rank 0, then sent up."""
    x = x.contiguous()
    with group.traced("all_reduce", x):
        flat, step = x.view(-1), 1
        while step < group.size and not group.index % step:
            if group.index % (2 * step):
                group.isend(flat, group.index - step).wait()
            elif group.index + step < group.size:
                theirs = flat.new_empty(flat.shape)
                group.irecv(theirs, group.index + step).wait()
                flat += theirs
            step *= 2
        _tree_broadcast(group, flat, 0)
    return x


def tree_broadcast(group: Group, x: Tensor, source: int = 0) -> Tensor:
    """The tensor of rank `source`, on all, in log2(N) steps: who has it sends it on."""
    x = x.contiguous()
    with group.traced("broadcast", x, source):
        _tree_broadcast(group, x.view(-1), source)
    return x


def _tree_broadcast(group: Group, flat: Tensor, source: int) -> None:
    place = (group.index - source) % group.size  # counted from the source on
    for bit in reversed(range((group.size - 1).bit_length())):
        step = 2**bit
        if place % (2 * step) == step:
            group.irecv(flat, (group.index - step) % group.size).wait()
        elif place % (2 * step) == 0 and place + step < group.size:
            group.isend(flat, (group.index + step) % group.size).wait()


def hierarchical_all_reduce(local: Group, across: Group, x: Tensor) -> Tensor:
    """The sum over all ranks of all nodes, of which only a part a rank crosses between nodes.

    local: this rank's node; across: the ranks at its place in every node (`Mesh`).
    """
    x = x.contiguous()
    parts = _parts(x, local)
    with local.traced("reduce_scatter", x):
        _reduce_scatter(local, parts)
    ring_all_reduce(across, parts[local.index])
    with local.traced("all_gather", x):
        _all_gather(local, parts)
    return x


def _parts(x: Tensor, group: Group) -> list[Tensor]:
    """Views of x's elements in a row, one for each rank, as equal as can be."""
    return list(x.view(-1).tensor_split(group.size))


def _length(x: Tensor) -> int:
    """Elements of a message."""
    return max(1, CHUNK // x.element_size())
