"""The simplest KV cache: one block of HBM, a slot for every position that may come.

Shapes: L layers, B rows of the batch, K kv heads, T new tokens, S slots seen, E head size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from minillm.config import ModelConfig
from minillm.machine import Machine


@dataclass(frozen=True)
class Slots:
    """Where one forward pass writes its T tokens and what its queries may see.

    All rows write slots `start` … `start + T`; if `start` is None row b writes `positions[b]`.
    Slots 0 … `stop` are read.  `mask` as in `attend`: None is the plain causal order.
    """

    start: int | None
    stop: int
    positions: Tensor  # (B, T)
    mask: Tensor | None  # bool (B or 1, 1, T, stop)


class ContiguousKV:
    """Keys and values of `batch` texts of up to `capacity` tokens; slot j holds position j.

    >>> with ContiguousKV(config, 1, 512, machine, torch.bfloat16) as kv:
    ...     logits = model(ids, positions, kv, last)

    Takes 2 · L · B · K · capacity · E elements of HBM at once, under the label "kv", however
    short the texts turn out; raises OutOfMemory if they do not fit.  `close()` gives them back.
    """

    def __init__(
        self, config: ModelConfig, batch: int, capacity: int, machine: Machine, dtype: torch.dtype
    ):
        L, K, E = config.num_hidden_layers, config.num_key_value_heads, config.head_dim
        self.batch, self.capacity, self.length = batch, capacity, 0
        self.nbytes_per_token = 2 * L * K * E * dtype.itemsize
        self._machine = machine
        self._block = machine.empty((L, 2, batch, K, capacity, E), dtype, machine.hbm, "kv")
        # A slot nobody wrote is masked, but 0 · NaN is NaN: stray bits may not stay in it.
        self._block.zero_()
        self._layers = [(keys, values) for keys, values in self._block]  # each (B, K, capacity, E)
        self._rows = torch.arange(batch, device=self._block.device)[:, None]  # (B, 1)
        self._dropped: Tensor | None = None  # bool (B, capacity), from the first drop on

    def slots(self, positions: Tensor) -> Slots:
        """The plan of a forward pass over `positions` (B, T), each row ascending by one.

        Made once a pass: it is the only place that waits to read the positions' values.
        """
        starts, T = positions[:, 0].tolist(), positions.shape[1]
        stop = max(starts) + T
        assert stop <= self.capacity, f"position {stop - 1} in a cache of {self.capacity} slots"
        aligned = min(starts) == max(starts)
        # One new token sees every slot, a text from its start is causal: no mask to build.
        plain = aligned and self._dropped is None and (T == 1 or starts[0] == 0)
        mask = None if plain else self._mask(positions[:1] if aligned else positions, stop)
        return Slots(starts[0] if aligned else None, stop, positions, mask)

    def _mask(self, positions: Tensor, stop: int) -> Tensor:
        """Which of `stop` slots the queries at `positions` (B, T) may see: bool (B, 1, T, stop).

        True where slot <= position and the slot was not dropped.
        """
        slot = torch.arange(stop, device=positions.device)
        mask = slot <= positions[:, None, :, None]  # (B, 1, T, stop)
        return mask if self._dropped is None else mask & ~self._dropped[:, None, None, :stop]

    def update(self, layer: int, k: Tensor, v: Tensor, slots: Slots) -> tuple[Tensor, Tensor]:
        """Write k, v (B, K, T, E) where `slots` says; return views of all so far, (B, K, S, E)."""
        keys, values = self._layers[layer]
        if slots.start is not None:
            keys[:, :, slots.start : slots.stop] = k
            values[:, :, slots.start : slots.stop] = v
        else:
            keys[self._rows, :, slots.positions] = k.transpose(1, 2)  # (B, T, K, E)
            values[self._rows, :, slots.positions] = v.transpose(1, 2)
        self.length = max(self.length, slots.stop)
        return keys[:, :, : slots.stop], values[:, :, : slots.stop]

    def drop(self, start: int, stop: int, row: int | None = None) -> None:
        """Forget positions start … stop - 1 (of one row, or of all): nobody sees them again.

        The slots stay reserved: the bytes come back with `close()`.  Drop before the tokens
        that should not see them are run, and never a position that is still to be written.
        """
        if self._dropped is None:
            shape = (self.batch, self.capacity)
            self._dropped = torch.zeros(shape, dtype=torch.bool, device=self._block.device)
        self._dropped[slice(None) if row is None else row, start:stop] = True

    def close(self) -> None:
        """Give the HBM back; a second call does nothing."""
        if self._block is not None:
            self._machine.free(self._block)
        self._block, self._layers = None, []

    def __enter__(self) -> "ContiguousKV":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
