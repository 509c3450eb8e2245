"""An engine's parts, brought together: stage 1, as the engine sees it.

Config and headers are read and checked, then the KV cache takes its room if its size is given, and
the weights go SSD → DRAM → HBM.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

import torch

from minillm.config import EngineConfig, ModelConfig, ParallelConfig
from minillm.decode.session import Sessions
from minillm.engine.ranks import RankRunner, join, part_of
from minillm.engine.runner import Runner
from minillm.engine.weights import Streamed
from minillm.errors import ConfigError
from minillm.files import locate
from minillm.kv import ContiguousKV, OffloadKV, PagedKV, PrefixKV
from minillm.load.checkpoint import Checkpoint, load
from minillm.machine import Machine
from minillm.model.kernels import Kernels, install
from minillm.model.llama import Llama
from minillm.parallel.world import World
from minillm.predict import kv_bytes_per_token
from minillm.tokens.tokenizer import Tokenizer
from minillm.units import parse_size


@dataclass(frozen=True)
class Parts:
    """What an engine is made of. held: gives all their memory back when it is closed."""

    name: str
    config: ModelConfig  # of the whole model
    model: Llama  # on several ranks, this one's part of it
    dtype: torch.dtype
    kv: PagedKV
    runner: Runner
    tokenizer: Tokenizer
    sessions: Sessions
    max_context: int
    rank: int
    held: ExitStack


def assemble(
    directory: str | PathLike[str], machine: Machine, config: EngineConfig, parallel: ParallelConfig
) -> Parts:
    """The parts for a checkpoint; raises as `Engine.load` does, and then nothing is kept."""
    folder, trace = locate(directory), machine.trace
    with trace.span("read config and headers", stage="load", resource="cpu"):
        model_config = ModelConfig.from_pretrained(folder)
        context = _context(config, model_config)
        checkpoint = Checkpoint.open(folder)
    with trace.span("read tokenizer", stage="tokens", resource="cpu"):
        tokenizer = Tokenizer.from_pretrained(folder)
        tokenizer.check_fit(model_config.vocab_size, folder)
    world = join(config, parallel, machine)  # None: nobody else
    with trace.span("build model", stage="load", resource="cpu"), torch.device("meta"):
        model, own, fill = part_of(world, parallel, model_config, checkpoint)  # no memory yet
    name = Path(directory).name
    dtype = getattr(torch, model_config.dtype if config.dtype == "auto" else config.dtype)
    with ExitStack() as stack:
        kv = _kv(config, model, machine, dtype, context, world)
        stack.callback(kv.close)
        if config.weights == "resident":
            stack.callback(load(model, own, machine, dtype, config.reader, fill).close)
        kernels = _install(model.to(dtype), machine, config)  # they follow weights that come and go
        if config.weights == "stream":
            stack.callback(Streamed(model, own, machine, dtype, config).close)
        rest = model, kernels, machine, config, model_config.vocab_size
        runner = RankRunner(world, parallel, kv, *rest) if world else Runner(*rest)
        stack.callback(runner.close)
        facts = {"weight_bytes": runner.weight_bytes, "kv_bytes_per_token": kv.nbytes_per_token}
        trace.describe_model(name, dtype=str(dtype).removeprefix("torch."), **facts)
        # Nothing failed: keep it all until the engine is closed.
        sessions = Sessions(kv, machine, model_config, folder, tokenizer)
        sessions.alone = world is None
        parts = name, model_config, model, dtype, kv, runner, tokenizer, sessions, context
        return Parts(*parts, world.rank if world else 0, stack.pop_all())


def _install(model: Llama, machine: Machine, config: EngineConfig) -> Kernels | None:
    """What computes with the weights, if not torch as it is."""
    kernels, how = None, "torch, on the card"
    with machine.trace.span("choose kernels", stage="load", resource="cpu") as span:
        if machine.emulated:
            kernels, how = install(model, torch.get_num_threads(), config.kernels == "auto")
        span.detail = how
    return kernels


def _kv(
    config: EngineConfig, model: Llama, machine: Machine, dtype: torch.dtype, context: int,
    world: World | None,
) -> PagedKV:  # fmt: skip
    """The cache that the settings ask for; its pool is taken now only if its size is given.

    On several ranks it is taken now: all have equally many pages, each of its own layers.
    """
    kind, size = PrefixKV if config.prefix_cache else PagedKV, config.page_size
    if config.kv == "contiguous":
        kind, size = ContiguousKV, context
    here = replace(model.config, num_hidden_layers=len(model.layers))
    page, rooms = size * kv_bytes_per_token(here, dtype), ("kv_hbm", "kv_dram", "kv_ssd")
    hbm, dram, ssd = (parse_size(getattr(config, room) or 0) // page for room in rooms)
    if world:
        needed = config.max_running * -(-context // size)
        mine = hbm if config.kv_hbm else machine.hbm.free // 2 // page
        hbm = min(needed, *world.of_all(mine))
    if config.kv_hbm is not None and not hbm:
        raise ConfigError(
            f"wanted kv_hbm of at least one page of {page:,} bytes, found {config.kv_hbm}; "
            "ask for more, or for a smaller page_size"
        )
    if not dram and not ssd:
        kv = kind(here, machine, dtype, size, hbm or None)
        kv.first = model.layers.start
        return kv
    return OffloadKV(
        here, machine, dtype, size, hbm=hbm, dram=dram, ssd=ssd, folder=config.ssd_dir,
        share=config.prefix_cache,
    )  # fmt: skip


def _context(config: EngineConfig, model: ModelConfig) -> int:
    longest = model.max_position_embeddings
    if (config.max_context or 0) > longest:
        raise ConfigError(
            f"wanted max_context of at most {longest:,}, the model's, found "
            f"{config.max_context:,}; ask for less, or take a model with a longer context"
        )
    return config.max_context or longest
