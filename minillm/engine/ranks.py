"""The engine on several ranks: rank 0 decides what runs, the others do their part of it.

Of a pass they are told all that rank 0's scheduler and memory manager decided: which tokens run
and which pages they lie in. So no rank decides anything, and none can decide otherwise. Each has
the same pages, of its own layers and kv heads.

Shapes: ΣT packed tokens of all requests, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import nan
from typing import Any

import torch
from torch import Tensor

from minillm.config import EngineConfig, ModelConfig, ParallelConfig
from minillm.engine.runner import Runner
from minillm.errors import ConfigError
from minillm.kv import PagedKV
from minillm.kv.plan import Plan
from minillm.load.checkpoint import Checkpoint, Fill, check_fit
from minillm.load.shard import megatron, slices
from minillm.machine import Machine
from minillm.machine.interrupt import held
from minillm.model.llama import Llama
from minillm.parallel.pipeline import Pipeline, stages
from minillm.parallel.shards import broadcast
from minillm.parallel.tensor import TensorParallel, rank_config, unpack
from minillm.parallel.world import World
from minillm.trace import Trace


def join(config: EngineConfig, parallel: ParallelConfig, machine: Machine) -> World | None:
    """The ranks that share the model, all of them here; None if this one has it alone.

    ConfigError for what several ranks cannot do together.
    """
    if parallel.tp * parallel.pp == 1:
        return None
    sent = config.weights == "stream" and parallel.weights == "broadcast"
    if sent or config.kv_dram or config.kv_ssd:
        raise ConfigError(
            "wanted pages in HBM alone on several ranks, and streamed weights read by each, found "
            'kv_dram, kv_ssd, or weights="broadcast"; leave it out'
        )
    return World(parallel, machine)


def part_of(
    world: World | None, parallel: ParallelConfig, config: ModelConfig, checkpoint: Checkpoint
) -> tuple[Llama, Checkpoint, Fill | None]:
    """This rank's model; its slices of the weights; and how they come here, if not as usual."""
    if world is None:
        return Llama(config).eval(), checkpoint, None
    tp, pp = world.mesh.tp, world.mesh.pp
    check_fit({name: p.shape for name, p in Llama(config).named_parameters()}, checkpoint)
    layers = stages(config.num_hidden_layers, pp.size)[pp.index]
    model = Llama(rank_config(config, tp.size), layers=layers).eval()
    names = {name for name, _ in model.named_parameters()}
    if config.tie_word_embeddings:  # a table that stands there twice is read once more
        names.add("lm_head.weight")
    own = slices(checkpoint, tp.index, tp.size, megatron(config)).only(names)

    def sent(places: Mapping[str, Tensor], own: Checkpoint, machine: Machine, reader: str) -> None:
        send = world.mesh.world_group.broadcast
        broadcast(places, checkpoint, own, machine, send, world.rank == 0, reader)

    return model, own, sent if parallel.weights == "broadcast" else None


class RankRunner(Runner):
    """A pass by all ranks. On rank 0 the engine uses it as any Runner; the others `follow`."""

    def __init__(
        self, world: World, parallel: ParallelConfig, kv: PagedKV, model: Llama, *rest: Any
    ) -> None:
        super().__init__(model, *rest)
        mesh, self._world, self._kv = world.mesh, world, kv
        self._ends = TensorParallel(model, mesh.tp, self._kernels)
        self._stages = None
        if mesh.pp.size > 1:
            self._stages = Pipeline(model, mesh.pp, parallel.micro_batches, back=mesh.tp.index == 0)
        self._copies: list[tuple[int, int]] = []  # of pages, since the last pass
        kv.pool.copy = partial(self._copy, kv.pool.copy)

    def _copy(self, copy: Callable[[int], int], page: int) -> int:
        """`PagePool.copy`, which the others have to do as well."""
        self._copies.append((page, copy(page)))
        return self._copies[-1][1]

    def run(self, plan: Plan, ids: Tensor) -> Tensor:
        """As `Runner.run`; where nobody asks for more, the best of each row come, and no more."""
        with self._world.watched(), held():
            parts, stamp = (plan.step, plan.tables, plan.hidden), self._machine.trace.at.stamp
            self._world.told((parts, ids.tolist(), stamp, self._copies))
            self._copies = []
            return self._part(plan, ids)

    def _part(self, plan: Plan, ids: Tensor) -> Tensor:
        """This rank's part of a pass."""
        self._ends.whole = not plan.step.plain
        if self._stages:
            all_of = self._logits.shape[1], torch.float32
            self._stages.shape = all_of if self._ends.whole else (3, torch.float64)
        return super().run(plan, ids)

    def fetch_logits(self, logits: Tensor) -> Tensor:
        """As `Runner.fetch_logits`; of the best of each row come `tops`, and nothing else."""
        if self._ends.whole or not len(logits):
            self.tops = None  # those of one rank
            return super().fetch_logits(logits)
        best = torch.empty(logits.shape, dtype=torch.float64)
        self._machine.copy(logits, best, label="logits", stage="decode", source="hbm")
        self.tops = unpack(best)
        return self._logits[: len(best)].fill_(nan)  # who looks at them all the same is told

    @torch.no_grad()
    def follow(self) -> None:
        """Take part in every pass, until rank 0 ends: a key that is pressed is for that one."""
        pool, device = self._kv.pool, self._machine.device
        with held(), self._world.watched():
            while told := self._world.told():
                (step, tables, hidden), ids, stamp, copies = told
                for old, new in copies:
                    for layer in pool.layers:
                        layer[new] = layer[old]
                plan = Plan(step, tables, self._kv, pool.page_size, device, hidden)
                self._model.prepare(max(plan.stops), device)
                with self._machine.trace.at(stamp), self.threads(step, streams=False):
                    first = self._model.first
                    self._part(plan, self.staging.send([ids]) if first else plan.place)

    def end(self) -> Trace:
        """Rank 0 lets the others go; the trace of the run is that of all ranks."""
        trace, world = self._machine.trace, self._world
        if world.broken:
            return trace
        with world.watched():
            if world.rank == 0:
                world.told()
            traces = world.of_all((trace.events, trace.meta, (trace.origin, trace.wall)))
        return Trace.merge([Trace.of(*one) for one in traces])
