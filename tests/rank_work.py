"""What test ranks do: functions that a process which begins anew can find, with few imports."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import torch.distributed as dist

from minillm import Engine, EngineConfig, Machine, ParallelConfig, SamplingParams
from minillm.kv import drop_oldest


def ask(engine: Engine, prompts: list, each: list[dict], rounds: int, forget: float) -> list[tuple]:
    """All prompts, again and again, as completions that equality understands."""
    if forget:
        engine.kv.forget = drop_oldest(forget)
    params = [SamplingParams(**settings) for settings in each]
    done = [one for _ in range(rounds) for one in engine.generate(prompts, params)]
    return [(one.text, one.token_ids, one.logprobs, one.finish_reason) for one in done]


def answers(folder: str, work: tuple, config: dict, parallel: dict) -> Any:
    """Rank 0: what `ask` says, then of the run events, meta, and how often somebody made room.
    Others follow: what memory they hold afterwards."""
    machine = Machine.here(hbm="32 MiB", device="cpu")
    engine = Engine.load(folder, machine, EngineConfig(**config), ParallelConfig(**parallel))
    if engine.rank:
        engine.follow()
        return machine.hbm.used, machine.dram.used
    try:
        said = ask(engine, *work)
    finally:
        engine.close()
    return said, engine.trace.events, engine.trace.meta, engine.scheduler.preempted


def fail(folder: str, parallel: dict, who: int, how: str) -> None:
    """In its third pass a rank fails: "kill" as by the system, "raise" by a fault, or it hangs."""
    machine = Machine.here(hbm="32 MiB", device="cpu")
    engine = Engine.load(folder, machine, EngineConfig(), ParallelConfig(**parallel))
    passes, plain = [], engine.model.run_layers

    def run_layers(*arguments):
        passes.append(1)
        if len(passes) == 3 and dist.get_rank() == who:
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "hang":  # torchrun would give 30 s to one that does not hear it
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                time.sleep(600)
            raise ValueError("a fault of this rank")
        return plain(*arguments)

    engine.model.run_layers = run_layers
    if engine.rank:
        engine.follow()
    else:
        try:
            engine.generate("Mia put the red key", SamplingParams(max_tokens=40, ignore_eos=True))
        finally:
            engine.close()


def fail_alone(how: str) -> None:
    """Two ranks of torchrun, of which the second fails."""
    fail("data/town", dict(tp=2, timeout=10.0 if how == "hang" else 60.0), 1, how)
