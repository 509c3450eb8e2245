"""Where the weights are while the model runs: all of them in HBM, or a layer at a time.

A model larger than HBM runs through two slots of HBM, each of one layer's size: while a layer
computes in one, the next arrives in the other (`minillm.machine.prefetch`). The embedding, the
last norm and the output stay in HBM. Every token needs every layer, so the weights cross the link
once a step: with few requests the link sets the pace, with a long prompt or many requests compute
takes longer and hides it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack, closing
from functools import partial

import torch
from torch import nn

from minillm.config import EngineConfig
from minillm.load.checkpoint import Checkpoint, assign, bring, check_fit
from minillm.load.place import move
from minillm.load.stream import Reader
from minillm.machine import Machine
from minillm.machine.arena import Arena
from minillm.machine.copies import Sending, T
from minillm.machine.interrupt import held
from minillm.machine.prefetch import Prefetch
from minillm.model.llama import Block, Llama

_LAYERS = "model.layers."


class Streamed:
    """The layers in DRAM or on SSD; in HBM only the one that computes and the one after it.

    Put on from outside: a hook before each layer waits for its weights, makes them the layer's
    parameters, and sends for the next. Takes HBM for two layers and for what is no layer, DRAM for
    all layers or for staging, and a thread. Raises as `load` does, and then nothing is kept.
    """

    def __init__(
        self, model: Llama, checkpoint: Checkpoint, machine: Machine, dtype: torch.dtype,
        config: EngineConfig,
    ) -> None:  # fmt: skip
        check_fit({name: p.shape for name, p in model.named_parameters()}, checkpoint)
        model.to(dtype).requires_grad_(False)  # on the meta device: no memory yet
        self._layers = model.layers
        rest = ((n, p) for n, p in model.named_parameters() if not n.startswith(_LAYERS))
        with ExitStack() as stack:
            with held():
                places = _arena(rest, machine, "hbm", stack).places
                one = list(model.blocks[0].named_parameters())
                slots = [_arena(one, machine, "hbm", stack) for _ in range(2)]
                fits = slots[0].nbytes * len(model.layers) + 2**26 <= machine.dram.free
                homes = {"dram": _InDram, "ssd": _OnSsd, "auto": _InDram if fits else _OnSsd}
                home = homes[config.stream_from]
                self._home = home(model, checkpoint, machine, config.reader, stack)
                for block in model.blocks:
                    assign(block, slots[0].places)  # from here on they only change their place
                    stack.callback(block.register_forward_pre_hook(self._before).remove)
                bring(places, checkpoint, machine, config.reader)
                assign(model, places)
                self._prefetch = Prefetch(machine, slots, label="weights", stage="load")
                stack.callback(self._prefetch.close)
                self._ask(model.layers.start)
            self._stack = stack.pop_all()  # nothing failed: keep it all until we are closed

    def close(self) -> None:
        """Wait for the layer under way; give back HBM, DRAM, files and threads."""
        with held():
            self._stack.close()

    def _before(self, block: Block, arguments: object) -> None:
        """What happens before a layer computes."""
        after = block.layer + 1 if block.layer + 1 in self._layers else self._layers.start
        with held():
            self._ask(block.layer)  # on its way already, unless the pass before was broken off
            self._ask(after)
            slot = self._prefetch.take(f"layer {block.layer}")
            for name, parameter in block.named_parameters():
                parameter.data = slot.places[name]

    def _ask(self, layer: int) -> None:
        fill = partial(self._home.bring, layer)
        self._prefetch.ask(f"layer {layer}", fill, sends=self._home.sends)


class _InDram:
    """All layers in DRAM (pinned on CUDA), each in one piece, as it lies in a slot."""

    def __init__(
        self, model: Llama, checkpoint: Checkpoint, machine: Machine, reader: str, stack: ExitStack
    ) -> None:
        all_of = ((n, p) for n, p in model.named_parameters() if n.startswith(_LAYERS))
        arena = _arena(all_of, machine, "dram", stack)
        bring(arena.places, checkpoint, machine, reader)
        self._machine, self.sends = machine, not machine.emulated
        self._layers = dict(zip(model.layers, arena.block.chunk(len(model.layers)), strict=True))

    def bring(self, layer: int, slot: Arena) -> Sending | None:
        source, target, detail = self._layers[layer], slot.block, f"layer {layer}"
        if not self.sends:
            return move(source, target, self._machine, detail)
        return self._machine.send(source, target, label="weights", stage="load", detail=detail)


class _OnSsd:
    """All layers stay in the files; each is read when its turn comes."""

    sends = False

    def __init__(
        self, model: Llama, checkpoint: Checkpoint, machine: Machine, reader: str, stack: ExitStack
    ) -> None:
        first = _full(model.layers.start, dict(model.blocks[0].named_parameters()))
        self._checkpoint = checkpoint
        self._reader = Reader(machine, reader, checkpoint.only(first).tensors.values())
        stack.callback(self._reader.close)

    def bring(self, layer: int, slot: Arena) -> None:
        places = _full(layer, slot.places)
        self._reader.fill(places, self._checkpoint.only(places).tensors.values())


def _full(layer: int, of: Mapping[str, T]) -> dict[str, T]:
    """By their names in the checkpoint."""
    return {f"{_LAYERS}{layer}.{name}": each for name, each in of.items()}


def _arena(
    parameters: Iterable[tuple[str, nn.Parameter]], machine: Machine, tier: str, stack: ExitStack
) -> Arena:
    wanted = {name: (p.shape, p.dtype) for name, p in parameters}
    return stack.enter_context(closing(Arena(machine, wanted, tier, "weights")))
