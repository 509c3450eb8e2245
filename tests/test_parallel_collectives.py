"""Collectives by hand give what torch.distributed gives, for any number of ranks and any shape."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from minillm.parallel import collectives
from minillm.parallel.links import Links
from minillm.parallel.mesh import Group, Mesh
from minillm.parallel.ranks import Ranks
from minillm.trace import Trace


@pytest.fixture(scope="module")
def eight() -> Iterator[Ranks]:
    with Ranks(8) as ranks:
        yield ranks


def _tensors(rank: int) -> dict[str, Tensor]:
    """What each rank brings: integers, so that sums are exact in any order."""
    generator = torch.Generator().manual_seed(rank)
    rand = partial(torch.randint, -1000, 1000, generator=generator)
    return {
        "odd": rand((37,)), "one": rand((1,)), "empty": rand((0,)), "scalar": rand(()),
        "matrix": rand((5, 24)),
        "many chunks": rand((1000,), dtype=torch.int32), "bytes": rand((3, 5)).to(torch.int8),
    }  # fmt: skip


def _group(ranks: int) -> Group | None:
    """The first `ranks` ranks; None on the others. All call it."""
    handle = dist.new_group(list(range(ranks)))
    return Group(Trace(), "some", handle, Links(8)) if dist.get_rank() < ranks else None


def _compare(ranks: int, chunk: int) -> int:
    """Each collective against torch's, on each tensor. Returns how many were compared."""
    group, rank, collectives.CHUNK, done = _group(ranks), dist.get_rank(), chunk, 0
    if group is None:
        return 0
    brought = [_tensors(r) for r in range(ranks)]
    for name, x in brought[rank].items():
        total = x.clone()
        dist.all_reduce(total, group=group.process_group)
        for way in (collectives.ring_all_reduce, collectives.tree_all_reduce):
            way(mine := x.clone(), group)
            assert torch.equal(mine, total), (way.__name__, name, ranks)
        expected = total.view(-1).tensor_split(ranks)[rank]
        collectives.ring_reduce_scatter(part := torch.empty_like(expected), x.clone(), group)
        assert torch.equal(part, expected), (name, ranks)
        collectives.ring_all_gather(every := x.new_empty(ranks, *x.shape), x, group)
        assert torch.equal(every, torch.stack([each[name] for each in brought])), (name, ranks)
        for source in {0, ranks // 2, ranks - 1}:
            collectives.tree_broadcast(mine := x.clone(), group, source)
            assert torch.equal(mine, brought[source][name]), (name, ranks, source)
        done += 1
    return done


@pytest.mark.parametrize("ranks", range(1, 9))
def test_by_hand_is_exactly_what_torch_gives(eight: Ranks, ranks: int) -> None:
    """Catches a ring that is right for 2, 4 and 8 ranks only, or loses the last, shorter part."""
    assert eight.run(_compare, ranks, 64) == [7] * ranks + [0] * (8 - ranks)


def _hierarchical(nodes: int) -> list[tuple[str, str, int]]:
    trace, rank = Trace(), dist.get_rank()
    mesh = Mesh(trace, tp=8, nodes=nodes)
    brought = [_tensors(r) for r in range(8)]
    for name, x in brought[rank].items():
        collectives.hierarchical_all_reduce(mine := x.clone(), mesh.local, mesh.across)
        assert torch.equal(mine, sum(each[name] for each in brought).to(x.dtype)), name
    trace.clear()
    collectives.hierarchical_all_reduce(torch.ones(800), mesh.local, mesh.across)
    return [(event.name, event.link, event.nbytes) for event in trace.events]


def test_hierarchical_sums_over_all_and_sends_a_part_between_nodes(eight: Ranks) -> None:
    """Catches a sum over one's own node only, and a whole tensor that crosses between nodes."""
    steps = eight.run(_hierarchical, 2)
    assert steps[0] == [
        ("reduce_scatter", "nvlink", 2400), ("all_reduce", "infiniband", 800),
        ("all_gather", "nvlink", 2400),
    ]  # fmt: skip
    assert [name for name, *_ in eight.run(_hierarchical, 1)[0]] == ["reduce_scatter", "all_gather"]
    assert [name for name, *_ in eight.run(_hierarchical, 8)[0]] == ["all_reduce"]


def _messages(way: str, numbers: int) -> list[tuple[int, int]]:
    """To whom this rank sends in an all-reduce, and how many bytes."""
    group, sent = Mesh(Trace(), tp=8).tp, []
    begin = group.isend
    group.isend = lambda x, to: (sent.append((to, x.nbytes)), begin(x, to))[1]
    getattr(collectives, way)(torch.ones(numbers), group)
    return sent


def test_a_ring_sends_equal_parts_to_its_neighbour_and_a_tree_whole_tensors(eight: Ranks) -> None:
    """Catches an all-reduce with the right sum and the wrong cost, such as gathering everything."""
    for rank, sent in enumerate(eight.run(_messages, "ring_all_reduce", 80)):
        assert sent == [((rank + 1) % 8, 40)] * 14
    tree = eight.run(_messages, "tree_all_reduce", 80)
    assert tree[0] == [(4, 320), (2, 320), (1, 320)]
    assert tree[6] == [(4, 320), (7, 320)] and tree[7] == [(6, 320)]
