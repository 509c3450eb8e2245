"""One forward pass, as the scheduler makes it and as the KV cache sees it. All on the host.

Shapes: ΣT packed tokens of all sequences, H query heads, K kv heads, E head size, P page size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from minillm.kv.attention import paged_attention


@dataclass(frozen=True)
class Step:
    """One forward pass: which tokens of which requests run. Same index, same request.

    >>> Step(requests=(7, 8), starts=(20, 0), counts=(1, 5), wanted=(1, 0)).rows
    [0]
    """

    requests: tuple[int, ...]
    starts: tuple[int, ...]  # tokens that are in the cache already
    counts: tuple[int, ...]  # tokens to run now
    wanted: tuple[int, ...]  # logits of the last how many: 0 in mid-prompt, 1, or k + 1 for a draft
    name: str = field(default="pass", repr=False)  # "prefill", "decode step" or "mixed step"
    plain: bool = field(default=False, repr=False)  # whether all want the likeliest, no more

    @property
    def rows(self) -> list[int]:
        """Which of the ΣT packed tokens give logits."""
        ends = zip(accumulate(self.counts), self.wanted, strict=True)
        return [row for end, n in ends for row in range(end - n, end)]


class Hidden(NamedTuple):
    """Positions of a text that its tokens from `after` on do not see any more."""

    after: int
    positions: range


class Plan:
    """A Step over the pages of one store: what the layers call as `attend`.

    tables: the pages of each sequence, in the order of its text. place: int32 (ΣT,), the position
    of each token. stops: of each sequence, its tokens after the pass. hidden: of each sequence,
    what was forgotten, or None.

    Made once a pass, on the host; nothing is read back from a device.
    """

    def __init__(
        self, step: Step, tables: list[list[int]], store: KV, page_size: int,
        device: torch.device, hidden: Sequence[Hidden | None] = (),
    ) -> None:  # fmt: skip
        self.step, self.tables, self.store, self.page_size = step, tables, store, page_size
        self.device = device
        self.hidden = tuple(hidden) if any(hidden) else ()
        spans = list(zip(step.starts, step.counts, strict=True))
        self.stops = [start + count for start, count in spans]
        self.place = self.ints([p for start, n in spans for p in range(start, start + n)])
        self.cached: dict[str, object] = {}  # what attention works out once for all layers

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`Attend`: write k and v (ΣT, K, E) to their pages, then look: (ΣT, H, E)."""
        pool = self.store.enter(layer, self)
        out = paged_attention(q, k, v, pool, self)
        self.store.leave(layer, self)
        return out

    def ints(self, values: Sequence[int] | np.ndarray) -> Tensor:
        """int32 on the device, from the host and without waiting for it."""
        array = torch.from_numpy(np.asarray(values, np.int32))  # 3 µs; torch.tensor(list) takes 10
        if self.device.type == "cpu":
            return array
        return array.pin_memory().to(self.device, non_blocking=True)

    def written(self) -> tuple[Tensor, Tensor]:
        """Where each token's key and value go: its page and its slot in it, both (ΣT,)."""
        if "written" not in self.cached:
            P, counts = self.page_size, self.step.counts
            spans = zip(self.tables, self.step.starts, counts, strict=True)
            pages = [t[p // P] for t, start, n in spans for p in range(start, start + n)]
            self.cached["written"] = self.ints(pages).long(), self.place.long() % P
        return self.cached["written"]


class KV(Protocol):
    """Where keys and values live. Owned by the engine, and lives as long as it.

    Stores differ only in where pages lie. A request has a `length`, the tokens of it that are in
    the cache, and pages for at least so many.
    """

    resident: list[Tensor] | None
    """Every layer's pool, where `enter` and `leave` have nothing to do."""

    def find(self, request: int, ids: Sequence[int]) -> int:
        """Take a request in: how many of its first tokens are known, and now its own."""

    def reserve(self, request: int, stop: int) -> bool:
        """Make positions [length, stop) writable: new pages, copies of shared ones.

        False, and nothing is taken, if there is no room.
        """

    def plan(self, step: Step) -> Plan:
        """The pass over these pages, once a pass."""

    def enter(self, layer: int, plan: Plan) -> Tensor:
        """This layer's pool (pages, 2, K, P, E), in HBM; the next layer's is sent for."""

    def leave(self, layer: int, plan: Plan) -> None:
        """What the layer wrote may go home."""

    def commit(self, request: int, ids: Sequence[int]) -> None:
        """After the pass: exactly these tokens of the request are in the cache."""

    def rewind(self, request: int, length: int) -> None:
        """Forget a request's tokens from `length` on; pages that no token needs come free."""

    def release(self, request: int, keep: bool = True) -> None:
        """Forget the request; all its pages come free, but for those that others share."""

    def nbytes_read(self, plan: Plan) -> int:
        """Bytes of keys and values that the pass reads, each once."""
