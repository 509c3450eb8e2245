"""The simplest KV cache: for each text one block, as long as the longest text may become.

Nothing has to be looked up, and nothing can be shared; what a short text does not need stands
empty. It is the paged cache with pages of the whole capacity, so what reads it is the same code.
"""

from __future__ import annotations

import torch

from minillm.config import ModelConfig
from minillm.kv.pages import PagedKV
from minillm.machine import Machine


class ContiguousKV(PagedKV):
    """One page of `capacity` tokens a request.

    >>> kv = ContiguousKV(config, machine, torch.bfloat16, capacity=2048)

    requests: so many at once, taken now; None: the pool grows as requests come.
    """

    def __init__(
        self, config: ModelConfig, machine: Machine, dtype: torch.dtype, capacity: int,
        requests: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__(config, machine, dtype, page_size=capacity, pages=requests)
