"""One forward pass: ids to HBM, the model over them, logits back to DRAM; and what the trace sees.

Shapes: ΣT packed tokens of all requests, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor

from minillm.config import EngineConfig
from minillm.engine.request import Request
from minillm.kv.plan import Plan, Step
from minillm.machine import Machine
from minillm.model.kernels import Kernels, Tops
from minillm.model.llama import Block, Llama
from minillm.tokens.batch import Staging
from minillm.trace import Stamp, Trace

# Tokens. Without a card it is a core that moves what comes. Where compute had them all, it came
# late now and then, and a pass of so few took as long as with one core less.
FEW = 4


class Runner:
    """Runs `model` on `machine`: at most max_batch_tokens tokens of max_running requests a pass.

    Takes HBM for the ids, and DRAM for staging ids and logits; OutOfMemory if they do not fit, and
    then nothing is kept. `close` gives them back.
    """

    def __init__(
        self, model: Llama, kernels: Kernels | None, machine: Machine, config: EngineConfig,
        vocab_size: int,
    ) -> None:  # fmt: skip
        self._model, self._streams, self._kernels = model, config.weights == "stream", kernels
        self._machine, self.weight_bytes = machine, sum(p.nbytes for p in model.parameters())
        self.tops: Tops | None = None  # the largest of the last logits, where the kernels told them
        self._read_bytes = self.weight_bytes  # of the table of ids one row a token, not all
        if model.first and not model.config.tie_word_embeddings:
            self._read_bytes -= model.model.embed_tokens.weight.nbytes
        with ExitStack() as stack:
            self.staging = Staging(machine, config.max_batch_tokens, stack)
            shape = (config.max_running, vocab_size)
            self._logits = machine.empty(shape, torch.float32, "dram", "logits")
            stack.callback(machine.free, self._logits)
            self._stack = stack.pop_all()  # nothing failed: keep it all until we are closed
        blocks = model.blocks if machine.emulated else ()  # on a card a span would time launches
        halves = [(block, half) for block in blocks for half in ("attention", "ffn")]
        self._halves = [_watch(*half, machine.trace) for half in halves]

    def close(self) -> None:
        """Give the memory back."""
        self._stack.close()

    @contextmanager
    def threads(self, step: Step, streams: bool) -> Iterator[None]:
        """The cores of a pass: all but the link's, to the kernels or to torch.

        While C computes torch has one thread, for two pools on the same cores fight. streams:
        whether pages come meanwhile.
        """
        before, kernels, tokens = torch.get_num_threads(), self._kernels, sum(step.counts)
        link = self._machine.emulated and (streams or self._streams)
        cores = max(1, before - (link and tokens <= FEW))
        if kernels is not None and tokens <= kernels.most:
            kernels.threads, cores = cores, 1
        torch.set_num_threads(cores)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def send_ids(self, step: Step, requests: list[Request]) -> Tensor:
        """The ids to run, CPU → DRAM → HBM: (ΣT,)."""
        spans = zip(requests, step.starts, step.counts, strict=True)
        return self.staging.send([r.ids[start : start + n] for r, start, n in spans])

    def run(self, plan: Plan, ids: Tensor) -> Tensor:
        """The model over ids (ΣT,): logits of the rows that are wanted, in HBM."""
        step, trace, kernels = plan.step, self._machine.trace, self._kernels
        wanted = None if sum(step.wanted) == len(ids) else plan.ints(step.rows).long()
        with torch.inference_mode(), trace.span(
            step.name, stage="model", resource="compute", bytes_how="predicted",
            detail="weights and KV cache, each read once",
        ) as span:  # fmt: skip
            logits = self._model(ids, plan.place, plan, wanted)
            self._machine.sync()  # a card returns at once: wait, so that the time is true
            if kernels is not None:
                self.tops = kernels.tops
                if kernels.stamps and self._halves:  # they ran in one call
                    at = kernels.stamps, trace.origin, trace.at.stamp
                    trace.record_later(partial(_spans, self._halves, *at))
            span.nbytes = self._read_bytes + plan.store.nbytes_read(plan)
        return logits

    def end(self) -> Trace:
        """After all passes: the trace of the run."""
        return self._machine.trace

    def fetch_logits(self, logits: Tensor) -> Tensor:
        """Logits (rows, V), HBM → DRAM, where the CPU can choose from them."""
        if not len(logits):  # all of the pass lies in the middle of prompts
            return logits
        out = self._logits[: len(logits)]
        return self._machine.copy(logits, out, label="logits", stage="decode", source="hbm")


def _spans(halves: list[tuple], began: list[float], origin: float, stamp: Stamp) -> list[tuple]:
    """Events of halves, by their names and details; when each began, and the last ended."""
    more = 0, "", "", "", *stamp, None, "", "measured", "measured"
    return [
        ("span", name, "model", "compute", start - origin, end - start, *more, detail)
        for (name, detail), start, end in zip(halves, began, began[1:], strict=False)
    ]


def _watch(block: Block, name: str, trace: Trace) -> tuple[str, str]:
    """Put a span round a half of a layer; its name, and its detail."""
    half, detail = getattr(block, f"{name}_half"), f"layer {block.layer}"
    record = trace.recorder("span", name, stage="model", resource="compute", detail=detail)

    def run(*arguments) -> Tensor:
        began = trace.now()
        part = half(*arguments)
        record(began, trace.now() - began)
        return part

    run.watches = half  # says to kernels: this only looks on
    setattr(block, f"{name}_half", run)
    return name, detail
