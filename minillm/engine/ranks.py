"""The engine on several ranks: rank 0 decides what runs, the others do their part of it.

Of a pass they are told all that rank 0's scheduler and memory manager decided: which tokens run
and which pages they lie in. So no rank decides anything, and none can decide otherwise. Each has
the same pages, of its own layers and kv heads.

Shapes: ΣT packed tokens of all requests, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import nan
from typing import Any

import torch
from torch import Tensor

from minillm.config import EngineConfig, ModelConfig, ParallelConfig
from minillm.engine.request import Request
from minillm.engine.runner import Runner
from minillm.errors import ConfigError, OutOfMemory
from minillm.kv import PagedKV, PrefixKV
from minillm.kv.plan import Hidden, Plan, Step
from minillm.load.checkpoint import Checkpoint, Fill, check_fit
from minillm.load.chunks import CHUNK
from minillm.load.shard import megatron, slices
from minillm.machine import Machine
from minillm.machine.interrupt import held
from minillm.model.llama import Llama
from minillm.parallel.pipeline import Pipeline, stages
from minillm.parallel.shards import broadcast, together
from minillm.parallel.tensor import TensorParallel, rank_config, unpack
from minillm.parallel.world import World, connect
from minillm.predict import kv_bytes_per_token
from minillm.trace import Event, Trace
from minillm.units import parse_size


def join(config: EngineConfig, parallel: ParallelConfig, trace: Trace) -> World | None:
    """The ranks that share the model, all of them here; None if this one has it alone.

    ConfigError for what several ranks cannot do together.
    """
    if parallel.tp * parallel.pp == 1:
        return None
    if config.kv_dram or config.kv_ssd:
        raise ConfigError(
            "wanted a KV cache in HBM alone on several ranks, found kv_dram or kv_ssd; leave it out"
        )
    if parallel.weights == "broadcast" and config.weights == "stream":
        raise ConfigError(
            'wanted ParallelConfig(weights="own") where weights are streamed, found "broadcast"; '
            "each rank reads its own layers again and again"
        )
    connect(parallel)
    return World(parallel, trace)


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
        groups = together(checkpoint.tensors.values(), CHUNK)
        send = world.mesh.world_group.broadcast
        broadcast(places, groups, own, machine, send, world.rank == 0, reader)

    return model, own, sent if parallel.weights == "broadcast" else None


class StageKV(PagedKV):
    """The pages of a rank that follows, whose first layer is not the model's. What is in which,
    rank 0 knows."""

    first = 0

    def enter(self, layer: int, plan: Plan) -> Tensor:
        return self.pool.layers[layer - self.first]


def pages_of(
    world: World, model: Llama, machine: Machine, dtype: torch.dtype, config: EngineConfig,
    context: int,
) -> PagedKV:  # fmt: skip
    """Pages on every rank, of its own layers and heads: as many as all of them have room for."""
    mine = replace(model.config, num_hidden_layers=len(model.layers))
    P = context if config.kv == "contiguous" else config.page_size
    page, room = P * kv_bytes_per_token(mine, dtype), machine.hbm.free - 8 * config.max_batch_tokens
    if config.kv_hbm is not None:
        room = parse_size(config.kv_hbm)
    most = config.max_running * -(-context // P)  # nobody can need more
    pages = min(most, *world.of_all(room // page))
    if pages < 1:
        raise OutOfMemory("hbm", page, room, machine.hbm.by_label)
    if world.rank == 0:
        kind = PrefixKV if config.prefix_cache and config.kv == "paged" else PagedKV
        return kind(mine, machine, dtype, P, pages)
    kv = StageKV(mine, machine, dtype, P, pages)
    kv.first = model.layers.start
    return kv


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
            back = mesh.tp.index == 0
            self._stages = Pipeline(model, mesh.pp, parallel.micro_batches, back)
        self._copies: list[tuple[int, int]] = []  # of pages, since the last pass
        copy = kv.pool.copy

        def noted(page: int) -> int:
            self._copies.append((page, copy(page)))
            return self._copies[-1][1]

        kv.pool.copy = noted

    def run(self, plan: Plan, ids: Tensor, requests: list[Request]) -> Tensor:
        """As `Runner.run`; but that where nobody asks for more, only the best of each row comes."""
        self._ends.whole = any(request.params.temperature for request in requests)
        with self._world.watched(), held():
            return super().run(plan, ids, requests)

    def forward(self, plan: Plan, ids: Tensor, name: str) -> Tensor:
        if self._world.rank == 0:
            step, copies, self._copies = plan.step, self._copies, []
            hidden = [h and (h.after, h.positions.start, h.positions.stop) for h in plan.hidden]
            self._world.share({
                "step": [step.requests, step.starts, step.counts, step.wanted], "ids": ids.tolist(),
                "tables": plan.tables, "hidden": hidden, "copies": copies, "name": name,
                "whole": self._ends.whole, "stamp": self._machine.trace.at.stamp,
            })  # fmt: skip
        if self._stages:
            width = self._logits.shape[1], torch.float32
            self._stages.shape = width if self._ends.whole else (3, torch.float64)
        return super().forward(plan, ids, name)

    def fetch_logits(self, logits: Tensor) -> Tensor:
        """As `Runner.fetch_logits`; of the best of each row come `tops`, and nothing else."""
        if self._ends.whole:
            self.tops = None  # those of one rank
            return super().fetch_logits(logits)
        best = torch.empty(logits.shape, dtype=torch.float64)
        more = dict(label="logits", stage="decode", source="hbm")
        self.tops = unpack(self._machine.copy(logits, best, **more) if len(best) else best)
        return self._logits[: len(best)].fill_(nan)  # who looks at them all the same is told

    def follow(self) -> None:
        """Take part in every pass, until rank 0 ends."""
        with self._world.watched():
            while told := self._world.share():
                with torch.no_grad(), self._machine.trace.at(tuple(told["stamp"])):
                    self._do(told)

    def _do(self, told: dict[str, Any]) -> None:
        """One pass, as rank 0 tells it."""
        step, kv = Step(*map(tuple, told["step"])), self._kv
        hidden = [h and Hidden(h[0], range(*h[1:])) for h in told["hidden"]]
        for old, new in told["copies"]:
            for layer in kv.pool.layers:
                layer[new] = layer[old]
        plan = Plan(step, told["tables"], kv, kv.page_size, self._machine.device, hidden)
        self._ends.whole = told["whole"]
        self._model.prepare(max(plan.stops), self._machine.device)
        with self.threads(step, streams=False):
            ids = self.send(told["ids"]) if self._model.first else plan.place
            self.forward(plan, ids, told["name"])

    def end(self) -> Trace:
        """Rank 0 lets the others go; the trace of the run is that of all ranks."""
        trace, world = self._machine.trace, self._world
        if world.broken:
            return trace
        with world.watched():
            if world.rank == 0:
                world.share()
            told = world.of_all([trace.events, trace.meta, (trace.origin, trace.wall)])
        return Trace.merge([
            Trace.of([Event(*event) for event in events], meta, tuple(zero))
            for events, meta, zero in told
        ])  # fmt: skip
