"""How keys and values that left HBM come back: brought up again, or computed again."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from minillm.config import ModelConfig
from minillm.errors import MinillmError
from minillm.kv.plan import Step
from minillm.machine import Machine
from minillm.predict import Hardware, operators, restore
from minillm.probe import Profile

FEW = 16  # tokens: a pass of fewer says little of how fast prompts are computed


class Restore:
    """Predicts which way is faster, "swap" or "recompute", with this machine's own figures.

    >>> Restore(config, machine, torch.bfloat16).way(2000, "dram")
    ('swap', '2000 tokens: swap 1.5 ms against recompute 210 ms (predicted)')

    hardware: those figures; its FLOPs are those of the largest pass so far, since no engine
    multiplies as fast as the machine can. None where this machine was not measured: always swap.
    """

    def __init__(self, config: ModelConfig, machine: Machine, dtype: torch.dtype) -> None:
        self.hardware = _figures(machine)
        self._config, self._dtype, self._most = config, dtype, FEW
        self._began, self._step = 0.0, None

    def way(self, tokens: int, source: str) -> tuple[str, str]:
        """How so many tokens come to HBM sooner from "dram" or "ssd"; and why, for people."""
        if self.hardware is None:
            return "swap", "this machine was not measured"
        found = restore(self._config, self.hardware, tokens, source, kv_dtype=self._dtype)
        times = " against ".join(f"{way} {1e3 * s:.3g} ms" for way, s in found.parts.items())
        return found.bound_by, f"{tokens} tokens: {times} (predicted)"

    def begin(self, step: Step) -> None:
        """A pass begins."""
        self._began, self._step = time.perf_counter(), step

    def learn(self) -> None:
        """The pass is over: what it took is what computing again would take."""
        step, self._step = self._step, None
        if step is not None and self.hardware is not None and sum(step.counts) >= self._most:
            self._most, seconds = sum(step.counts), time.perf_counter() - self._began
            flops = sum(op.flops for op in operators(self._config, step.starts, step.counts))
            self.hardware = replace(self.hardware, bf16_flops=flops / seconds)


def _figures(machine: Machine) -> Hardware | None:
    """This machine as it was measured; as a scale model, with the links of that."""
    profile = Profile.here()
    try:
        hardware = profile and profile.hardware(machine.device.type)
    except MinillmError:  # not all of it was measured
        return None
    if hardware is None or machine.scale is None:
        return hardware
    links = {name: machine.scale.wire(name) for name in ("nvme", "pcie")
             if getattr(machine.scale.hardware, name)}  # fmt: skip
    return replace(hardware, hbm_bandwidth=machine.scale.hbm_bandwidth, **{"pcie": None} | links)
