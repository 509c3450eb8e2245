"""One forward pass of a batch, in chunks that bound its memory, and what the trace sees of it.

Shapes: B rows of the batch, T tokens of each, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from minillm.config import ModelConfig
from minillm.engine.batch import Batch
from minillm.machine import Machine
from minillm.model.llama import Llama, Observe, unobserved


class Forward:
    """Runs `model` on `machine`. A chunk is at most `chunk` tokens, of all rows together.

    >>> logits = forward(batch, ids)   # ids (B, T) in HBM -> (B, V) in HBM
    """

    def __init__(self, model: Llama, machine: Machine, chunk: int) -> None:
        self._model, self._machine, self._chunk = model, machine, chunk
        # The weights are there already, or will be; the angles of the positions come along.
        model.model.rope.to(machine.device)
        read = sum(p.nbytes for p in model.parameters())
        if not model.config.tie_word_embeddings:
            # Of the embedding one row a token is read, not the table; tied, it is the output too.
            read -= model.model.embed_tokens.weight.nbytes
        self._weight_bytes = read

    @torch.inference_mode()
    def __call__(self, batch: Batch, ids: Tensor) -> Tensor:
        """The logits (B, V) behind each row's newest token; keys and values go to `batch.kv`."""
        rows, width = ids.shape
        chunk = max(1, self._chunk // rows)
        logits = None
        for start in range(0, width, chunk):
            part = ids[:, start : start + chunk]
            positions = batch.positions(start, part.shape[1])
            newest, here = batch.newest(start, part.shape[1])
            with self._span(batch):
                scores = self._model(part, positions, batch.kv, newest)
            logits = scores if logits is None else torch.where(here[:, None], scores, logits)
        return logits

    @contextmanager
    def _span(self, batch: Batch) -> Iterator[None]:
        name = "decode step" if batch.steps else "prefill"
        kind = {"stage": "model", "resource": "compute", "bytes_how": "predicted"}
        with self._machine.trace.span(name, **kind) as span:
            yield
            self._machine.sync()  # a card returns at once: wait, so that the time is true
            cache = len(batch.requests) * batch.kv.length * batch.kv.nbytes_per_token
            span.nbytes = self._weight_bytes + cache


def build(config: ModelConfig, machine: Machine) -> Llama:
    """The model without its weights: shapes and names, no memory. `load` brings the weights."""
    with torch.device("meta"), _Unfilled():
        return Llama(config, observe=observer(machine)).eval()


class _Unfilled(TorchFunctionMode):
    """Skips the random values of new parameters.

    On the meta device they cost no memory, but a second or more, for torch imports its compiler
    to work out what filling nothing would mean.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs.get("tensor", args[0] if args else None)
        return func(*args, **kwargs)


def observer(machine: Machine) -> Observe:
    """Spans for each layer's attention and FFN; none on a card, where they would time launches."""
    if machine.device.type != "cpu":
        return unobserved
    trace = machine.trace
    return lambda name, layer: trace.span(
        name, stage="model", resource="compute", detail=f"layer {layer}"
    )
