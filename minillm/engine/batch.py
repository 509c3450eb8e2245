"""Requests that run together: their memory, what goes into the model, what comes out.

Shapes: B rows, one a request, T tokens of each, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import torch
from torch import Tensor

from minillm.config import ModelConfig
from minillm.decode.sampling import sample
from minillm.engine.request import Piece, Request
from minillm.errors import ConfigError
from minillm.kv.contiguous import ContiguousKV
from minillm.machine import Machine, Tier

MAX_ROWS = 32  # requests that run together: enough to share every read of the weights


def groups(requests: list[Request], kv_bytes: int, hbm: Tier) -> Iterator[list[Request]]:
    """Requests to run together: as many as HBM has room for when their turn comes.

    Those of similar length share a group, so that little is padded; the longest come first, so
    that one that does not fit fails before any work is done. `kv_bytes` is for one token.
    """
    waiting = sorted(requests, key=lambda request: request.slots, reverse=True)
    while waiting:
        longest = waiting[0]
        each = longest.slots * kv_bytes + len(longest.prompt_ids) * torch.int64.itemsize
        rows = max(1, min(MAX_ROWS, hbm.free // each))
        yield waiting[:rows]
        waiting = waiting[rows:]


class Batch:
    """Requests that start together, and the memory they share.

    Prompts are padded on the right to the longest. A pad's KV slot lies behind the row's own
    tokens, so causal order hides it until a generated token overwrites it: nothing to mask.

    Takes HBM (the KV cache and an id buffer) and DRAM (staging for ids and logits); OutOfMemory
    if they do not fit, and then nothing is kept. Leaving the `with` block gives all back.
    """

    def __init__(
        self,
        requests: list[Request],
        config: ModelConfig,
        machine: Machine,
        dtype: torch.dtype,
        drop_oldest: float = 0.0,
    ) -> None:
        if not 0 <= drop_oldest <= 1:
            raise ConfigError(f"wanted drop_oldest from 0 to 1, found {drop_oldest}; 0.5 is half")
        self.requests = requests
        self.steps = 0  # tokens that each running row has so far
        self.lengths = [len(request.prompt_ids) for request in requests]
        self._ends = torch.tensor(self.lengths, device=machine.device)  # (B,)
        self._machine, self._drop_oldest = machine, drop_oldest
        rows, room = len(requests), len(requests) * max(self.lengths)
        capacity = max(request.slots for request in requests)
        with ExitStack() as stack:
            self.kv = stack.enter_context(ContiguousKV(config, rows, capacity, machine, dtype))

            def hold(shape: tuple[int, ...], kind: torch.dtype, tier: str, label: str) -> Tensor:
                tensor = machine.empty(shape, kind, tier, label)
                stack.callback(machine.free, tensor)
                return tensor

            self._ids = hold((room,), torch.int64, "hbm", "ids")
            self._staging = hold((room,), torch.int64, "dram", "ids")
            self._logits = hold((rows, config.vocab_size), torch.float32, "dram", "logits")
            self._stack = stack.pop_all()  # nothing failed: keep it all until we are closed

    def __enter__(self) -> Batch:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()
        newest = self.requests[-1]
        self._machine.trace.meta.update(prompt=newest.prompt, text=newest.text)

    @property
    def running(self) -> bool:
        """Whether any request still needs tokens."""
        return any(request.finish_reason is None for request in self.requests)

    @property
    def number(self) -> int | None:
        """The request that an event of the whole batch belongs to, if there is just one."""
        return self.requests[0].number if len(self.requests) == 1 else None

    @property
    def tokens(self) -> int:
        """How many tokens the next step runs, pads among them."""
        return len(self.requests) * (1 if self.steps else max(self.lengths))

    def send_ids(self) -> Tensor:
        """The ids to run next, CPU → DRAM → HBM: (B, T), with T = 1 once prefill is over.

        A finished row repeats its last token; nobody looks at what it yields.
        """
        with self._machine.trace.span("batch", stage="tokens", resource="cpu"):
            if self.steps == 0:
                width = max(self.lengths)
                rows = [r.prompt_ids + [0] * (width - len(r.prompt_ids)) for r in self.requests]
            else:
                width, rows = 1, [[request.token_ids[-1]] for request in self.requests]
            size = len(rows) * width
            staging = self._staging[:size].view(len(rows), width)
            staging.copy_(torch.tensor(rows))
        ids = self._ids[:size].view(len(rows), width)
        return self._machine.copy(staging, ids, label="ids", stage="tokens")

    def positions(self, start: int, width: int) -> Tensor:
        """Where columns `start` … `start + width` of the ids stand in their texts: (B, width)."""
        columns = torch.arange(start, start + width, device=self._ends.device)
        if self.steps == 0:
            return columns.expand(len(self.requests), width)
        return self._ends[:, None] + (self.steps - 1) + columns

    def newest(self, start: int, width: int) -> tuple[Tensor, Tensor]:
        """Each row's newest token: its column from `start` on, and whether it is there; (B,)."""
        column = (torch.zeros_like(self._ends) if self.steps else self._ends - 1) - start
        return column.clamp(0, width - 1), (column >= 0) & (column < width)

    def fetch_logits(self, logits: Tensor) -> Tensor:
        """The model's logits (B, V), HBM → DRAM, where the CPU can choose from them."""
        return self._machine.copy(
            logits, self._logits, label="logits", stage="decode", source="hbm"
        )

    def choose(self, logits: Tensor) -> list[Piece]:
        """Sample and detokenize one token for each running row; then all move on by one."""
        trace = self._machine.trace
        pieces = []
        for request, row in zip(self.requests, logits, strict=True):
            if request.finish_reason is None:
                with trace.at(request=request.number):
                    with trace.span("sample", stage="decode", resource="cpu"):
                        token_id, logprob = sample(row, request.params, request.chance)
                    with trace.span(
                        "detokenize", stage="decode", resource="cpu", label="text"
                    ) as span:
                        piece = request.take(token_id, logprob, trace.now())
                        span.detail, span.nbytes = piece.text, len(piece.text.encode())
                pieces.append(piece)
        if self.steps == 0 and self._drop_oldest:  # prefill is over
            for row, length in enumerate(self.lengths):
                # Position 0 stays: models rest their attention there when nothing else matters.
                self.kv.drop(1, int(length * self._drop_oldest), row)
        self.steps += 1
        return pieces
