"""What test ranks do: functions that a process which begins anew can find, with few imports."""

from __future__ import annotations

from typing import Any

from minillm import Engine, EngineConfig, Machine, ParallelConfig, SamplingParams


def answers(
    folder: str, prompts: list, each: list[dict], config: dict, parallel: dict, hbm: str = "32 MiB"
) -> Any:
    """Rank 0: completions, and the merged trace; the others follow. Machine of 32 MiB of HBM."""
    machine = Machine.here(hbm=hbm, device="cpu")
    engine = Engine.load(folder, machine, EngineConfig(**config), ParallelConfig(**parallel))
    if engine.rank:
        engine.follow()
        return machine.hbm.used, machine.dram.used
    try:
        done = engine.generate(prompts, [SamplingParams(**params) for params in each])
    finally:
        engine.close()
    kept = [(one.text, one.token_ids, one.logprobs, one.finish_reason) for one in done]
    trace = engine.trace
    return kept, trace.events, trace.meta, engine.steps
