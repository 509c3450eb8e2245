"""Where the weights are while the model runs: all of them in HBM, or a layer at a time.

A model larger than HBM runs through two slots, each of one layer's size. While a layer computes
in one, the next arrives in the other:

    slot 0   layer 0 computes   layer 2 arrives    layer 2 computes
    slot 1   layer 1 arrives    layer 1 computes   layer 3 arrives    …

The embedding, the last norm and the output stay in HBM. Every token needs every layer, so the
weights cross the link once a step: with few requests the link sets the pace, with a long prompt
or many requests compute takes longer and hides it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from minillm.config import EngineConfig
from minillm.load.interrupt import held
from minillm.load.place import move
from minillm.load.shard import Checkpoint, allocate, assign, bring, check_fit, load
from minillm.load.stream import Reader
from minillm.machine import Machine
from minillm.model.llama import Llama
from minillm.trace import Trace, busy_seconds

_LAYERS = "model.layers."
_FEW = 4  # tokens in a pass: so few wait for memory more than for a core
WAIT = "wait for weights"
"""The name of the spans in which compute stood still because a layer was not there yet."""


@dataclass(frozen=True)
class Hidden:
    """Streamed weights: seconds in which some were moving, and seconds that compute waited."""

    moving: float
    waited: float

    @property
    def share(self) -> float:
        """Of the time that moving took, what compute did not notice: 0 to 1."""
        return max(0.0, 1 - self.waited / self.moving) if self.moving else 0.0


def hidden(trace: Trace) -> Hidden:
    """How much of its weights' traffic a streaming engine hid behind compute, over all requests.

    The load itself does not count: only what was moved for a token does.
    """
    moves = trace.select(kind="transfer", stage="load", label="weights")
    waited = sum(wait.seconds for wait in trace.select(name=WAIT))
    return Hidden(busy_seconds(e for e in moves if e.token is not None), waited)


class Resident:
    """All of the model in HBM. What it takes and raises: as `load`."""

    def __init__(
        self, model: Llama, checkpoint: Checkpoint, machine: Machine, dtype: torch.dtype,
        config: EngineConfig,
    ) -> None:  # fmt: skip
        block = load(model, checkpoint, machine, dtype, config.reader)
        self.dtype, self.nbytes = dtype, block.nbytes
        self._stack = ExitStack()
        self._stack.callback(machine.free, block)

    def step(self, tokens: int) -> AbstractContextManager[None]:
        """Run a pass of so many tokens in this."""
        return nullcontext()

    def close(self) -> None:
        """Give the HBM back."""
        self._stack.close()


class Streamed:
    """The layers in DRAM or on SSD; in HBM only the one that computes and the one after it.

    Put on from outside: a hook before each layer waits for its weights, makes them the layer's
    parameters, and sends for the next. Takes HBM for two layers and for what is no layer, DRAM for
    all layers or for staging, and a thread. Raises as `load` does, and then nothing is kept.

    dtype, nbytes: of all the weights, wherever they are.
    """

    def __init__(
        self, model: Llama, checkpoint: Checkpoint, machine: Machine, dtype: torch.dtype,
        config: EngineConfig,
    ) -> None:  # fmt: skip
        shapes = {name: p.shape for name, p in model.named_parameters()}
        check_fit(shapes, checkpoint)
        self._machine, self.dtype = machine, dtype
        self.nbytes = sum(shape.numel() for shape in shapes.values()) * dtype.itemsize
        model.to(dtype).requires_grad_(False)  # on the meta device: no memory yet
        layers = model.blocks
        rest = {name: s for name, s in shapes.items() if not name.startswith(_LAYERS)}
        with ExitStack() as stack:
            with held():
                block, places = allocate(rest, machine, dtype, "hbm")
                stack.callback(machine.free, block)
                self._slots = [_Slot(layers[0], machine, dtype, stack) for _ in range(2)]
                self._home = _home(config, machine, self._slots[0].block.nbytes * len(layers))(
                    layers, checkpoint, machine, dtype, config.reader, stack
                )
                bring(places, checkpoint, machine, config.reader)
                assign(model, places)
                self._thread = ThreadPoolExecutor(1, "minillm-prefetch")
                stack.callback(self._thread.shutdown, wait=True, cancel_futures=True)
                for layer in layers:
                    stack.callback(layer.register_forward_pre_hook(self._before).remove)
                self._layers, self._coming = len(layers), None
                self._coming = self._fetch(0)
            self._stack = stack.pop_all()  # nothing failed: keep it all until we are closed

    def close(self) -> None:
        """Wait for the layer under way; give back HBM, DRAM, files and threads."""
        with held():
            self._stack.close()

    @contextmanager
    def step(self, tokens: int) -> Iterator[None]:
        """Run a pass of so many tokens in this: if they are few, the link has its own core.

        Without a card it is a core that moves the layers. Where compute had them all, layers came
        late now and then, and a pass took as long as with one core less, or longer.
        """
        cores = torch.get_num_threads()
        few = self._machine.emulated and tokens <= _FEW
        torch.set_num_threads(max(1, cores - few))
        try:
            yield
        finally:
            torch.set_num_threads(cores)

    def _before(self, module: nn.Module, arguments: object) -> None:
        """What happens before a layer computes."""
        layer, machine = module.layer, self._machine
        if not machine.emulated:  # so that what we wait for next is the link, and not compute
            torch.cuda.current_stream(machine.device).synchronize()
        span = machine.trace.span(WAIT, stage="load", resource="cpu", detail=f"layer {layer}")
        with held():
            if self._coming.layer != layer:  # the pass before this one was broken off
                self._coming = self._fetch(layer)
            now, self._coming = self._coming, self._fetch((layer + 1) % self._layers)
            with span:
                now.join()
            now.slot.lend(module)

    def _fetch(self, layer: int) -> _Coming:
        """Send for a layer, into the slot that is not the next to compute."""
        taken = self._coming and self._coming.slot
        slot = next(slot for slot in self._slots if slot is not taken)
        machine = self._machine
        if not machine.emulated and isinstance(self._home, _InDram):
            # A card copies by itself, beside the compute that is queued from here on.
            source, fields = self._home.layers[layer], {"label": "weights", "stage": "load"}
            sending = machine.send(source, slot.block, detail=f"layer {layer}", **fields)
            return _Coming(layer, slot, sending.join)
        stamp = {"token": machine.trace.at.token, "request": machine.trace.at.request}
        return _Coming(layer, slot, self._thread.submit(self._bring, layer, slot, stamp).result)

    def _bring(self, layer: int, slot: _Slot, stamp: dict[str, int | None]) -> None:
        with self._machine.trace.at(**stamp):
            self._home.bring(layer, slot)


class _Slot:
    """Room for one layer in HBM, and parameters that look into it."""

    def __init__(self, layer: nn.Module, machine: Machine, dtype: torch.dtype, stack: ExitStack):
        shapes = {name: p.shape for name, p in layer.named_parameters()}
        self.block, self.places = allocate(shapes, machine, dtype, "hbm")
        stack.callback(machine.free, self.block)
        self._parameters = {n: nn.Parameter(p, requires_grad=False) for n, p in self.places.items()}

    def lend(self, layer: nn.Module) -> None:
        """Make what is in the slot the layer's parameters."""
        for name, parameter in self._parameters.items():
            owner, _, leaf = name.rpartition(".")
            setattr(layer.get_submodule(owner), leaf, parameter)


class _Coming(NamedTuple):
    """A layer on its way. join: wait until it is there, or raise what went wrong."""

    layer: int
    slot: _Slot
    join: Callable[[], object]


class _InDram:
    """All layers in DRAM (pinned on CUDA), each in one piece, as it lies in a slot."""

    def __init__(
        self, layers: list[nn.Module], checkpoint: Checkpoint, machine: Machine,
        dtype: torch.dtype, how: str, stack: ExitStack,
    ) -> None:  # fmt: skip
        shapes = {_full(layer, n): p.shape for layer in layers for n, p in layer.named_parameters()}
        block, places = allocate(shapes, machine, dtype, "dram")
        stack.callback(machine.free, block)
        bring(places, checkpoint, machine, how)
        self.layers, self._machine = block.view(len(layers), -1), machine

    def bring(self, layer: int, slot: _Slot) -> None:
        move(self.layers[layer], slot.block, self._machine, f"layer {layer}")


class _OnSsd:
    """All layers stay in the files; each is read when its turn comes."""

    def __init__(
        self, layers: list[nn.Module], checkpoint: Checkpoint, machine: Machine,
        dtype: torch.dtype, how: str, stack: ExitStack,
    ) -> None:  # fmt: skip
        local = [name for name, _ in layers[0].named_parameters()]
        self._names = [{_full(layer, name): name for name in local} for layer in layers]
        self._infos = [list(checkpoint.only(names).tensors.values()) for names in self._names]
        self._reader = stack.enter_context(Reader(machine, how, self._infos[0]))

    def bring(self, layer: int, slot: _Slot) -> None:
        places = {full: slot.places[name] for full, name in self._names[layer].items()}
        self._reader.fill(places, self._infos[layer])


def _full(layer: nn.Module, name: str) -> str:
    return f"{_LAYERS}{layer.layer}.{name}"


def _home(config: EngineConfig, machine: Machine, nbytes: int) -> type[_InDram] | type[_OnSsd]:
    if config.stream_from != "auto":
        return _InDram if config.stream_from == "dram" else _OnSsd
    return _InDram if nbytes + 2**26 <= machine.dram.free else _OnSsd
