"""An engine's parts, brought together: stage 1, as the engine sees it.

Config and headers are read and checked, then the KV cache takes its room if its size is given, and
the weights go SSD → DRAM → HBM.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch

from minillm.config import EngineConfig, ModelConfig
from minillm.decode.session import Sessions
from minillm.engine.runner import Runner
from minillm.engine.weights import Resident, Streamed
from minillm.errors import ConfigError
from minillm.files import locate
from minillm.kv import ContiguousKV, OffloadKV, PagedKV, PrefixKV
from minillm.load.checkpoint import Checkpoint
from minillm.machine import Machine
from minillm.model.kernels import Kernels, install
from minillm.model.layers import Linear
from minillm.model.llama import Block, Llama
from minillm.predict import kv_bytes_per_token
from minillm.tokens.tokenizer import Tokenizer
from minillm.units import parse_size


@dataclass(frozen=True)
class Parts:
    """What an engine is made of. held: gives all their memory back when it is closed."""

    name: str
    model: Llama
    dtype: torch.dtype
    kv: PagedKV
    runner: Runner
    tokenizer: Tokenizer
    sessions: Sessions
    max_context: int
    held: ExitStack


def assemble(directory: str | PathLike[str], machine: Machine, config: EngineConfig) -> Parts:
    """The parts for a checkpoint; raises as `Engine.load` does, and then nothing is kept."""
    folder, trace = locate(directory), machine.trace
    with trace.span("read config and headers", stage="load", resource="cpu"):
        model_config = ModelConfig.from_pretrained(folder)
        context = _context(config, model_config)
        checkpoint = Checkpoint.open(folder)
    with trace.span("read tokenizer", stage="tokens", resource="cpu"):
        tokenizer = Tokenizer.from_pretrained(folder)
        tokenizer.check_fit(model_config.vocab_size, folder)
    with trace.span("build model", stage="load", resource="cpu"), torch.device("meta"):
        model = Llama(model_config).eval()  # shapes and names, no memory
    name = Path(directory).name
    dtype = getattr(torch, model_config.dtype if config.dtype == "auto" else config.dtype)
    with ExitStack() as stack:
        kv = _kv(config, model_config, machine, dtype, context)
        stack.callback(kv.close)
        weights, kernels = _weights(model, checkpoint, machine, dtype, config)
        stack.callback(weights.close)
        runner = Runner(model, weights, kernels, machine, config)
        stack.callback(runner.close)
        facts = {"weight_bytes": weights.nbytes, "kv_bytes_per_token": kv.nbytes_per_token}
        trace.describe_model(name, dtype=str(dtype).removeprefix("torch."), **facts)
        # Nothing failed: keep it all until the engine is closed.
        sessions, held = Sessions(kv, machine, model_config, folder, tokenizer), stack.pop_all()
        return Parts(name, model, dtype, kv, runner, tokenizer, sessions, context, held)


def _weights(
    model: Llama, checkpoint: Checkpoint, machine: Machine, dtype: torch.dtype, config: EngineConfig
) -> tuple[Resident | Streamed, Kernels | None]:
    """The weights where the settings want them, and what computes with them."""
    if config.weights == "resident":
        weights = Resident(model, checkpoint, machine, dtype, config)
        return weights, _install(model, machine, config)
    model.to(dtype)  # on the meta device still: kernels follow weights that come and go
    kernels = _install(model, machine, config)

    def pack(block: Block) -> None:
        for linear in block.modules() if kernels else ():
            if isinstance(linear, Linear) and linear.packable:
                linear.pack()

    return Streamed(model, checkpoint, machine, dtype, config, at_home=pack), kernels


def _install(model: Llama, machine: Machine, config: EngineConfig) -> Kernels | None:
    kernels, how = None, "torch, on the card"
    with machine.trace.span("choose kernels", stage="load", resource="cpu") as span:
        if machine.emulated:
            kernels, how = install(model, torch.get_num_threads(), config.kernels == "auto")
        span.detail = how
    return kernels


def _kv(
    config: EngineConfig, model: ModelConfig, machine: Machine, dtype: torch.dtype, context: int
) -> PagedKV:
    """The cache that the settings ask for; its pool is taken now only if its size is given."""
    kind, size = PrefixKV if config.prefix_cache else PagedKV, config.page_size
    if config.kv == "contiguous":
        kind, size = ContiguousKV, context
    page, rooms = size * kv_bytes_per_token(model, dtype), ("kv_hbm", "kv_dram", "kv_ssd")
    hbm, dram, ssd = (parse_size(getattr(config, room) or 0) // page for room in rooms)
    if config.kv_hbm is not None and not hbm:
        raise ConfigError(
            f"wanted kv_hbm of at least one page of {page:,} bytes, found {config.kv_hbm}; "
            "ask for more, or for a smaller page_size"
        )
    if not dram and not ssd:
        return kind(model, machine, dtype, size, hbm or None)
    return OffloadKV(
        model, machine, dtype, size, hbm=hbm, dram=dram, ssd=ssd, folder=config.ssd_dir,
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
