"""Groups are slices of one grid, their collectives are torch's, and the trace sees the bytes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from minillm.charts.machine_flows import crossed
from minillm.charts.machine_places import plan
from minillm.errors import ConfigError
from minillm.parallel.mesh import Mesh
from minillm.parallel.ranks import Ranks
from minillm.trace import Trace


@pytest.fixture(scope="module")
def eight() -> Iterator[Ranks]:
    with Ranks(8) as ranks:
        yield ranks


def _slices(tp: int, pp: int, nodes: int) -> dict[str, tuple]:
    mesh = Mesh(Trace(), tp=tp, pp=pp, nodes=nodes)
    names = ("tp", "pp", "local", "across", "world_group")
    groups = {name: getattr(mesh, name) for name in names}
    assert all(g.ranks[g.index] == mesh.rank and g.size == len(g.ranks) for g in groups.values())
    return {name: (group.ranks, group.link) for name, group in groups.items()}


def test_tensor_parallel_ranks_are_neighbours_and_nodes_are_runs(eight: Ranks) -> None:
    """Catches a grid the other way round, whose two sums a layer would cross nodes."""
    found = eight.run(_slices, 2, 4, 2)
    assert [f["tp"] for f in found[:3]] == [((0, 1), "nvlink")] * 2 + [((2, 3), "nvlink")]
    assert found[5]["pp"] == ((1, 3, 5, 7), "infiniband")
    assert found[5]["local"] == ((4, 5, 6, 7), "nvlink")
    assert found[5]["across"] == ((1, 5), "infiniband")
    assert found[0]["world_group"] == (tuple(range(8)), "infiniband")
    assert eight.run(_slices, 8, 1, 1)[3]["across"] == ((3,), "nvlink")


def _refusals() -> list[str]:
    said = []
    for sizes in ({"tp": 3}, {"tp": 0, "pp": 8}, {"tp": 8, "nodes": 3}, {"tp": 8, "nodes": 0}):
        with pytest.raises(ConfigError) as refused:
            Mesh(Trace(), **sizes)
        said.append(str(refused.value))
    return said


def test_sizes_that_do_not_fit_are_refused_by_name(eight: Ranks) -> None:
    """Catches ranks without a place, which would wait for the others for ever."""
    grid, none, odd, zero = eight.run(_refusals)[0]
    assert "tp · pp = 8" in grid and "tp=3, pp=1" in grid and "tp=0" in none
    assert "nodes=3" in odd and "nodes=0" in zero


def _collectives() -> Trace:
    """Each collective in a group of 4 ranks, on a view that is not contiguous, is what it says."""
    trace = Trace()
    mesh = Mesh(trace, tp=4, pp=2, nodes=4)
    group, first = mesh.tp, mesh.tp.ranks[0]

    def of(rank: int) -> torch.Tensor:
        return (torch.arange(24, dtype=torch.int64).reshape(3, 8) + 100 * rank).T  # (8, 3)

    mine, every = of(mesh.rank), torch.stack([of(rank) for rank in group.ranks])
    assert torch.equal(group.all_reduce(mine.clone()), every.sum(0))
    assert torch.equal(torch.stack(group.all_gather(mine)), every)
    part = slice(2 * group.index, 2 * group.index + 2)
    assert torch.equal(group.reduce_scatter(mine.clone()), every.sum(0)[part])
    assert torch.equal(group.broadcast(mine.clone(), source=2), of(first + 2))
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.full((5,), 1.5, dtype=dtype)
        assert group.all_reduce(x) is x and x.tolist() == [6.0] * 5
    if mesh.pp.index == 0:
        mesh.pp.send(mine, to=1)
    else:
        got = mesh.pp.recv(torch.empty(8, 3, dtype=torch.int64), source=0)
        assert torch.equal(got, of(mesh.rank - 4))
    mesh.world_group.barrier()
    return trace


def test_collectives_are_exact_and_each_is_an_event_with_the_bytes_of_its_link(
    eight: Ranks,
) -> None:
    """Catches bytes counted twice or not at all, and traffic that the machine diagram loses."""
    traces = eight.run(_told)
    trace = Trace.merge([Trace.of(*told) for told in traces])
    nbytes = 24 * 8  # of one rank's tensor
    share = {"all_reduce": 1.5 * nbytes, "all_gather": 3 * nbytes, "reduce_scatter": 0.75 * nbytes}
    for op, sent in share.items():
        events = trace.select(name=op, rank=1)
        assert [e.nbytes for e in events][:1] == [sent], op
        assert (events[0].source, events[0].target) == ("hbm:1", "hbm:2")
        assert (events[0].link, events[0].resource) == ("infiniband", "network:1")
        assert (events[0].stage, events[0].how) == ("parallel", "measured")
        assert "tp, algbw" in events[0].detail and "busbw" in events[0].detail
    assert trace.select(name="all_reduce", rank=0)[0].link == "nvlink"
    assert sum(e.nbytes for e in trace.select(name="broadcast")) == 2 * 3 * nbytes
    sends = trace.select(name="send")
    assert [(e.source, e.target, e.nbytes) for e in sorted(sends)][0] == ("hbm", "hbm:4", nbytes)
    assert len(sends) == 4

    diagram = plan(trace)
    flows = crossed(trace.select(name="all_gather"), diagram, {})
    assert (trace.meta["gpus"], trace.meta["nodes"]) == (8, 4)
    assert flows["+nvlink:0"].nbytes == 3 * nbytes


def _told() -> tuple:
    trace = _collectives()
    return list(trace.events), trace.meta, (trace.origin, trace.wall)


def test_a_group_of_one_returns_what_it_was_given_and_records_nothing(eight: Ranks) -> None:
    """Catches a single GPU that pays for collectives."""
    assert eight.run(_alone) == [0] * 8


def _alone() -> int:
    trace = Trace()
    group, x = Mesh(trace, pp=8).tp, torch.ones(3)
    assert group.all_reduce(x) is x and group.broadcast(x) is x
    assert group.all_gather(x)[0].tolist() == group.reduce_scatter(x).tolist() == [1.0] * 3
    group.barrier()
    return len(trace.events)
