"""Links of a scale model across processes: each message pays its link, and links are shared."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from minillm.errors import ConfigError
from minillm.machine.scale import ScaleModel
from minillm.parallel import collectives
from minillm.parallel.links import ScaledLinks
from minillm.parallel.mesh import Mesh
from minillm.parallel.ranks import Ranks
from minillm.predict import Hardware, Wire, flat_ring
from minillm.trace import Trace

NVLINK, INFINIBAND = Wire(90e6, 0.5e-3), Wire(10e6, 2e-3)  # of the server below, at our pace


def _scale(*wires: Wire) -> ScaleModel:
    server = Hardware("two", 1, 1.0, 1, 1, Wire(1), None, *(wires or (NVLINK, INFINIBAND)))
    return ScaleModel(server, 1.0, Trace())


@pytest.fixture(scope="module")
def four() -> Iterator[Ranks]:
    with Ranks(4) as ranks:
        yield ranks


def _sums() -> list[tuple]:
    """Events of all collectives on two nodes; what they give is exact."""
    trace = Trace()
    mesh = Mesh(trace, tp=2, pp=2, nodes=2, scale=_scale())
    rank, x = mesh.rank, torch.arange(4000, dtype=torch.int32)
    assert torch.equal(mesh.world_group.all_reduce(x + rank), 4 * x + 6)
    collectives.hierarchical_all_reduce(summed := x + rank, mesh.local, mesh.across)
    assert torch.equal(summed, 4 * x + 6)
    with mesh.world_group.traced("all_reduce", x):
        collectives.tree_all_reduce(summed := x + rank, mesh.world_group)
    assert torch.equal(summed, 4 * x + 6)
    each = mesh.tp.all_gather(x.view(40, 100).T + rank)
    assert torch.equal(
        torch.stack(each), torch.stack([x.view(40, 100).T + r for r in mesh.tp.ranks])
    )
    part = mesh.pp.reduce_scatter(x.view(4, 1000) + rank)
    assert part.shape == (2, 1000)
    assert torch.equal(part, (2 * x + sum(mesh.pp.ranks)).view(4, 1000).chunk(2)[mesh.pp.index])
    assert torch.equal(mesh.pp.broadcast(x + rank, source=1), x + mesh.pp.ranks[1])
    if mesh.pp.index:
        assert torch.equal(mesh.pp.recv(torch.empty_like(x), source=0), x)
    else:
        mesh.pp.send(x, to=1)
    return [(e.name, e.link, e.nbytes, e.seconds, e.how) for e in trace.events]


def test_collectives_over_emulated_links_are_exact_and_none_beats_its_link(four: Ranks) -> None:
    """Catches a message that pays nothing, the link of somebody else, or arrives as garbage."""
    events = four.run(_sums)[1]  # rank 1: its next one is on the other node
    n, slow, fast = 16_000, INFINIBAND, NVLINK
    least = [
        ("all_reduce", "infiniband", 24_000, 6 * n / 4 / slow.bandwidth + slow.latency),
        ("reduce_scatter", "nvlink", 8_000, fast.seconds(n / 2)),
        ("all_reduce", "infiniband", 8_000, 2 * slow.seconds(n / 4)),
        ("all_gather", "nvlink", 8_000, fast.seconds(n / 2)),
        ("all_reduce", "infiniband", 24_000, 2 * fast.seconds(n)),
        ("all_gather", "nvlink", 16_000, fast.seconds(n)),
        ("reduce_scatter", "infiniband", 8_000, slow.seconds(n / 2)),
        ("broadcast", "infiniband", 0, 0.0),  # received, perhaps sent before we asked
        ("send", "infiniband", 16_000, slow.seconds(n)),
    ]
    assert [event[:2] for event in events] == [each[:2] for each in least]
    for (*_, sent, seconds, how), (op, _, nbytes, at_least) in zip(events, least, strict=True):
        assert (sent, how) == (nbytes, "emulated") and seconds >= 0.999 * at_least, op


def _round(nbytes: int) -> tuple[float, float]:
    """When this rank began an all-reduce, and when it was done."""
    mesh = Mesh(Trace(), tp=4, nodes=2, scale=_scale())
    x = torch.zeros(nbytes // 4)
    mesh.world_group.barrier()
    start = time.perf_counter()
    mesh.world_group.all_reduce(x)
    return start, time.perf_counter()


@pytest.mark.parametrize("nbytes", [4_000, 80_000, 400_000])
def test_no_ring_beats_its_prediction(four: Ranks, nbytes: int) -> None:
    """Catches a prediction that adds up what overlaps: the latency of a link that is busy."""
    starts, ends = zip(*four.run(_round, nbytes), strict=True)
    least = flat_ring(nbytes, 4, 2, NVLINK, INFINIBAND)
    assert max(ends) - min(starts) >= 0.999 * least


def _ends(adapters: int | None, order: list[int]) -> list[float]:
    """In turns, each rank asks for 1,000 seconds of InfiniBand to the other node, and does not
    wait: after how many of them the message arrives."""
    links, mesh, ends = ScaledLinks(2, _scale(Wire(1), Wire(1)), adapters), Mesh(Trace(), tp=4), []
    for rank in order:
        mesh.world_group.barrier()
        if rank == mesh.rank:
            asked = time.perf_counter()
            ends.append((links._reserve((rank + 2) % 4, 1_000) - asked) / 1_000)
    mesh.world_group.barrier()
    return ends


def test_ranks_of_a_node_take_turns_at_one_adapter_and_not_at_two(four: Ranks) -> None:
    """Catches a link that each process believes to have for itself, and directions that collide."""
    shared = four.run(_ends, 1, [0, 1, 2, 3, 0])
    assert [[round(end) for end in ends] for ends in shared] == [[1, 3], [2], [1], [2]]
    own = four.run(_ends, None, [0, 1, 2, 3, 0])
    assert [[round(end) for end in ends] for ends in own] == [[1, 2], [1], [1], [1]]


def _refusals() -> list[str]:
    said = []
    for wrong in (0, -1, 3, 8):
        with pytest.raises(ConfigError) as refused:
            Mesh(Trace(), tp=4, scale=_scale(), adapters=wrong)
        said.append(str(refused.value))
    return said


def test_adapters_that_a_node_cannot_share_are_refused(four: Ranks) -> None:
    """Catches 0 adapters that count as one a GPU, and ports of another node."""
    for said, wrong in zip(four.run(_refusals)[0], (0, -1, 3, 8), strict=True):
        assert f"wanted adapters of [1, 2, 4], found {wrong}; take one of these" in said
