"""One grid of ranks, and the groups of ranks that are slices of it.

Tensor parallel ranks are neighbours, since they talk most; stages of a pipeline lie further apart:

    tp=2, pp=2, nodes=2        tp: 0    1
    pp 0, node 0                   0    1        tp groups (0, 1), (2, 3)
    pp 1, node 1                   2    3        pp groups (0, 2), (1, 3)

What a group does is `torch.distributed`'s, by Gloo on a CPU and by NCCL on CUDA; on the links of a
scale model it is done by hand, message by message, so that each pays its link (`collectives`,
`links`). Each collective is one event of the trace.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from minillm.errors import ConfigError
from minillm.machine.scale import ScaleModel
from minillm.parallel import collectives
from minillm.parallel.links import Links, ScaledLinks, Work
from minillm.predict.links import bus_bytes
from minillm.trace import Trace
from minillm.units import format_value

_TORCH = dist.all_reduce, dist.all_gather_single, dist.reduce_scatter_single, dist.broadcast
_BY_HAND = (
    collectives.ring_all_reduce, collectives.ring_all_gather, collectives.ring_reduce_scatter,
    collectives.tree_broadcast,
)  # fmt: skip


class Group:
    """Some ranks that talk to one another: each of them holds its own Group of the same ranks.

    ranks: their numbers in the world. index: this rank's place among them, from 0. link: "nvlink"
    inside a node, "infiniband" if it crosses nodes. name: which slice of the mesh. In `to` and
    `source` a rank is named by its place in the group. All ranks of the group call a collective,
    in the same order, with tensors of equal shape and dtype.

    Each is a transfer in the trace: nbytes is what this rank sends by nccl-tests' definition, so
    that nbytes / seconds is the bus bandwidth, over the link to the next rank of the group.
    """

    def __init__(self, trace: Trace, name: str, group: dist.ProcessGroup, links: Links) -> None:
        self.ranks: tuple[int, ...] = tuple(dist.get_process_group_ranks(group))
        self.index, self.size = self.ranks.index(dist.get_rank()), len(self.ranks)
        self.name, self.link = name, links.between(*self.ranks)
        self._trace, self._links = trace, links
        by_hand = links.how == "emulated"
        self._reduce, self._gather, self._scatter, self._cast = _BY_HAND if by_hand else _TORCH
        self.process_group, self._group = group, self if by_hand else group

    def all_reduce(self, x: Tensor) -> Tensor:
        """The sum over the ranks, on all of them. In place if x is contiguous; returns it."""
        x = x.contiguous()
        with self.traced("all_reduce", x):
            self._reduce(x, group=self._group)
        return x

    def all_gather(self, x: Tensor) -> list[Tensor]:
        """Every rank's tensor, in the order of the group."""
        every = x.new_empty(self.size, *x.shape)
        with self.traced("all_gather", every):
            self._gather(every.view(-1), x.contiguous().view(-1), group=self._group)
        return list(every)

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """This rank's part of the sum over the ranks: x (size · n, …) -> (n, …). x may change."""
        assert x.shape[0] % self.size == 0, (x.shape, self.size)
        out = x.new_empty(x.shape[0] // self.size, *x.shape[1:])
        with self.traced("reduce_scatter", x):
            self._scatter(out.view(-1), x.contiguous().view(-1), group=self._group)
        return out

    def broadcast(self, x: Tensor, source: int = 0) -> Tensor:
        """The tensor of rank `source`, on all. In place if x is contiguous; returns it."""
        x = x.contiguous()
        with self.traced("broadcast", x, source):
            self._cast(x, group_src=source, group=self._group)
        return x

    def send(self, x: Tensor, to: int) -> None:
        """Send a tensor to one rank, which calls `recv`; back when x may change."""
        x = x.contiguous()
        with self.traced("send", x, to):
            self.isend(x, to).wait()

    def recv(self, x: Tensor, source: int) -> Tensor:
        """Receive what rank `source` sends into x, which is contiguous; returns it.

        Recorded is what is sent, by its sender: here the time would count the wait for it.
        """
        self.irecv(x, source).wait()
        return x

    def isend(self, x: Tensor, to: int) -> Work:
        """Begin to send a contiguous x, which must not change until `wait`; not recorded."""
        return self._links.isend(x, self.ranks[to])

    def irecv(self, x: Tensor, source: int) -> Work:
        """Begin to receive into a contiguous x, which is whole when its `wait` is back."""
        return self._links.irecv(x, self.ranks[source])

    def barrier(self) -> None:
        """Return when every rank of the group is here."""
        dist.barrier(group=self.process_group)

    @contextmanager
    def traced(self, op: str, x: Tensor, other: int | None = None) -> Iterator[None]:
        """Record the block as the collective `op` on a tensor of x's bytes, see `bus_bytes`.

        other: the rank that x goes to (send), or that it comes from and is not sent to (broadcast).
        """
        start, after = self._trace.now(), (self.index + 1) % self.size
        yield
        if self.size == 1:
            return
        if x.is_cuda:
            torch.cuda.synchronize()  # a collective is queued, and the call is back before its end
        seconds = max(self._trace.now() - start, 1e-9)
        nbytes = round(bus_bytes(op, x.nbytes, self.size)) * (op != "broadcast" or after != other)
        rates = [format_value(n / seconds, "bytes/s") for n in (x.nbytes, nbytes)]
        to = self.ranks[other if op == "send" else after]
        self._trace.transfer(
            op, stage="parallel", resource="network", start=start, seconds=seconds, nbytes=nbytes,
            source="hbm", target=f"hbm:{to}", link=self._links.between(self.ranks[self.index], to),
            how=self._links.how, detail=f"{self.name}, algbw {rates[0]}, busbw {rates[1]}",
        )  # fmt: skip


class Mesh:
    """Every rank's place in a grid of `pp` stages × `tp` slices, and on `nodes` nodes.

    Called by all ranks after `dist.init_process_group`. rank: pp_index * tp + tp_index. tp: the
    ranks that share a stage's layers; pp: those that hold the same slice of each stage, first
    stage first; local: those of this node; across: those at the same place of every node, each a
    Group. Nodes are runs of neighbours. ConfigError if the sizes do not fit the number of ranks.

    scale: messages pay NVLink and InfiniBand of this model, the same on all ranks. adapters: that
    a node then has, by default one a GPU.

    >>> mesh = Mesh(trace, tp=2, pp=2, nodes=2)   # on each of 4 ranks
    >>> mesh.tp.all_reduce(partial)
    """

    def __init__(
        self, trace: Trace, *, tp: int = 1, pp: int = 1, nodes: int = 1,
        scale: ScaleModel | None = None, adapters: int | None = None,
    ) -> None:  # fmt: skip
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        if min(tp, pp, nodes) < 1 or tp * pp != self.world or self.world % nodes:
            raise ConfigError(
                f"wanted tp · pp = {self.world}, the number of ranks, and nodes that divide it, "
                f"found tp={tp}, pp={pp}, nodes={nodes}; choose others, or start as many ranks"
            )
        gpus = self.world // nodes
        links = ScaledLinks(gpus, scale, adapters) if scale else Links(gpus)
        device = "cuda" if "nccl" in dist.get_backend() else "cpu"
        grid = init_device_mesh(device, (pp, tp), mesh_dim_names=("pp", "tp"))
        places = init_device_mesh(device, (nodes, gpus), mesh_dim_names=("across", "local"))
        self.tp = Group(trace, "tp", grid.get_group("tp"), links)
        self.pp = Group(trace, "pp", grid.get_group("pp"), links)
        self.local = Group(trace, "local", places.get_group("local"), links)
        self.across = Group(trace, "across", places.get_group("across"), links)
        self.world_group = Group(trace, "world", dist.group.WORLD, links)
        trace.meta |= {"gpus": self.world, "nodes": nodes}
