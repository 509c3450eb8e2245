"""The halves of a layer in C (kernels.c), put on a plain model from outside.

    kernels, told = install(model, threads=2)    # once its weights are there; None if it cannot be

Few tokens wait for memory: what counts is that each weight is read once, in order, by all cores,
for all of them. Many tokens, and what the C does not know (pages of which some positions are
hidden), go to the plain halves, so there is one model. What torch then multiplies with was chosen
by measuring: `minillm.model.products`.

Shapes: ΣT packed tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import CDLL, byref, c_double
from typing import NamedTuple

import torch
from torch import Tensor

from minillm.model.attention import Attend
from minillm.model.compiled import NoKernels, library, processor
from minillm.model.layers import Linear, identity
from minillm.model.llama import Block, Llama
from minillm.model.products import Choice, Products, choose, keep_freed_memory
from minillm.model.structs import CLayer, COutput, Pass, bind, call, declare, linear_at

MAX_THREADS, MAX_ROWS, MAX_HEADS = 64, 2**20, 255  # of pool.h: threads; items of a phase: 2^16


class Tops(NamedTuple):
    """Of each row of logits: the first of the largest, its value, and log Σ e^logit.

    log_sum is finite if and only if all logits are numbers and not all of them infinitely small.
    """

    ids: Tensor  # int64
    values: Tensor  # float32
    log_sum: Tensor


def install(model: Llama, threads: int, c: bool = True) -> tuple[Kernels | None, str]:
    """Have `model` computed in C where that is faster, and else by torch's fastest way.

    Its weights are there, or will be: those on the meta device are bound when they come. They are
    packed where they lie. threads: of the C and of torch. c: False leaves the C out.
    Returns what the engine asks after a pass, and one line for people: what computes, and why.
    On a card nothing changes.
    """
    weight = model.blocks[0].mlp.gate_proj.weight
    if weight.device.type not in ("cpu", "meta"):
        return None, "torch, on the card"
    keep_freed_memory()
    where = f"{processor()} · {threads} threads"
    try:
        if not c:
            raise NoKernels("switched off")
        _check(model)
        kernels = Kernels(model, library(weight.dtype), min(threads, MAX_THREADS), where)
        return kernels, f"C, up to {kernels.choice.most} tokens at once"
    except NoKernels as error:
        product = Products(choose(*weight.shape, weight.dtype, where))
        for linear in _linears(model):
            linear.product = product
        return None, f"torch, not C: {error}"


def _check(model: Llama) -> None:
    """NoKernels if the C does not know such a model."""
    c, dtypes = model.config, {p.dtype for p in model.parameters()}
    sizes = {n: getattr(c, n) for n in ("hidden_size", "intermediate_size", "head_dim")}
    odd = [f"{name} = {size}" for name, size in sizes.items() if size % 16]
    if odd:
        raise NoKernels(f"they want sizes that are multiples of 16, found {', '.join(odd)}")
    if len(dtypes) > 1:
        raise NoKernels(f"they want weights of one type, found {len(dtypes)}")
    most = max(linear.weight.shape[0] for linear in _linears(model))
    if most > MAX_ROWS or c.num_key_value_heads > MAX_HEADS:
        raise NoKernels(f"they know {MAX_ROWS:,} rows and {MAX_HEADS} heads, found more")


def _linears(model: Llama) -> list[Linear]:
    return [module for module in model.modules() if isinstance(module, Linear)]


class Kernels:
    """The C side of one model. `install` makes one; it takes the place of the model's parts.

    stamps: after a pass whose layers ran in one call: when each half began (attention, FFN, layer
    by layer) and when the last ended, 2 n + 1 seconds of `time.perf_counter`; else None.
    """

    def __init__(self, model: Llama, lib: CDLL, threads: int, where: str):
        self.model, self.lib, self.threads = model, lib, threads
        declare(lib)
        ends = self._ends = _Ends(model, lib, threads)
        gate = model.blocks[0].mlp.gate_proj.weight
        self.choice: Choice = choose(*gate.shape, gate.dtype, where, ends.alone)
        ends.most = self.choice.most
        self.stamps: list[float] | None = None
        self._last: tuple[Attend | None, Pass | None] = (None, None)
        product = Products(self.choice)
        for linear in _linears(model):
            linear.product = product
            if linear.packable and not linear.packed and linear.weight.device.type == "cpu":
                call(lib.pack, byref(linear_at(linear)), threads)
                linear.packed = True
        self._blocks = model.blocks
        self._layers = (CLayer * len(self._blocks))()
        self._stamps = (c_double * (2 * len(self._blocks) + 1))()
        self._holders = [_holders(block) for block in self._blocks]
        self._lie: list[list[int]] = [[] for _ in self._blocks]  # where weights were when bound
        self._pages: list[int] = []  # and pages
        self._halves: list[Callable] = []  # of each layer attention, then FFN
        for i, block in enumerate(self._blocks):
            self._halves += self._put_on(i, block)
        self._plain_layers, model.run_layers = model.run_layers, self.run_layers
        if model.first:
            model.embed = ends.embed
        if model.last:
            model.output = ends.output

    @property
    def tops(self) -> Tops | None:
        """Of the logits that the last pass gave; None where torch computed them."""
        return self._ends.tops

    def _follow(self, i: int) -> None:
        """Take in where the weights of a layer lie now, if one of them has moved."""
        lie = _lie(self._holders[i])
        if lie != self._lie[i]:
            bind(self._layers[i], self._blocks[i])
            self._lie[i] = lie

    def _follow_all(self, pools: list[Tensor]) -> None:
        """The same for all layers, and for their pages: as a rule, one comparison."""
        lie = [*map(_lie, self._holders)], [pool.data_ptr() for pool in pools]
        if lie == (self._lie, self._pages):
            return
        for i, pages in enumerate(lie[1]):
            self._follow(i)
            self._layers[i].pages = pages
        self._pages = lie[1]

    def _put_on(self, i: int, block: Block) -> tuple[Callable, Callable]:
        """C halves in the place of the plain ones of `block`."""
        plain, number = (block.attention_half, block.ffn_half), block.layer
        attention, ffn, layer = self.lib.attention, self.lib.ffn, self._layers[i]
        layer_at, ffn_at = byref(layer), byref(layer, CLayer.f.offset)

        def attention_half(x: Tensor, positions: Tensor, angles: Tensor, attend: Attend) -> Tensor:
            step = self._step(attend)
            if step is None:
                return plain[0](x, positions, angles, attend)
            self._follow(i)
            pool = attend.store.enter(number, attend)
            call(attention, layer_at, step.at, pool.data_ptr(), x.data_ptr(), step.out_at)
            attend.store.leave(number, attend)
            return step.out

        def ffn_half(x: Tensor, positions: Tensor, angles: Tensor, attend: Attend) -> Tensor:
            step = self._step(attend)
            if step is None:
                return plain[1](x, positions, angles, attend)
            self._follow(i)
            call(ffn, ffn_at, step.at, x.data_ptr(), step.out_at)
            return step.out

        block.attention_half, block.ffn_half = attention_half, ffn_half
        return attention_half, ffn_half

    def _step(self, attend: Attend) -> Pass | None:
        """The C side of a plan, made once a pass; None if torch is to do it."""
        if self._last[0] is not attend:
            known = hasattr(attend, "token_tables") and not attend.hidden
            few = known and 0 < len(attend.place) <= self.choice.most
            few = few and attend.place.device.type == "cpu"
            self._last = attend, Pass(self.model, attend, self.threads) if few else None
        return self._last[1]

    def run_layers(self, x: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """All layers in one call, where nothing has to happen between them; else one by one."""
        self.stamps = self._ends.tops = None
        step, x = self._step(attend), x.contiguous()
        resident = getattr(getattr(attend, "store", None), "resident", None)
        if step is None or resident is None or not self._alone_between():
            return self._plain_layers(x, positions, attend)
        if not self.model.first:
            x = x.clone()  # it is added to in place
        self._follow_all(resident)
        n = len(self._blocks)
        call(self.lib.layers, self._layers, n, step.at, x.data_ptr(), step.out_at, self._stamps)
        self.stamps = self._stamps[:]
        return x

    def _alone_between(self) -> bool:
        """Whether nobody put more round a half than a watch: one that says what it `watches`."""
        if self.model.reduce is not identity:
            return False
        if any(block._forward_pre_hooks or block._forward_hooks for block in self._blocks):
            return False
        found = [half for b in self._blocks for half in (b.attention_half, b.ffn_half)]
        return [getattr(half, "watches", half) for half in found] == self._halves


class _Ends:
    """What is before and after the layers: the embedding, and the product with the vocabulary."""

    def __init__(self, model: Llama, lib: CDLL, threads: int):
        self.model, self.lib, self.threads, self.most = model, lib, threads, 0
        self.tops: Tops | None = None
        self._plain = model.output

    def embed(self, ids: Tensor) -> Tensor:
        """`Llama.embed`: ids (ΣT,) -> x (ΣT, D) float32. IndexError for an id that is none."""
        table = linear_at(self.model.model.embed_tokens)
        ids, x = ids.long().contiguous(), torch.empty(len(ids), table.k)
        if not self.lib.embed(byref(table), ids.data_ptr(), len(ids), x.data_ptr()):
            raise IndexError(f"wanted ids below {table.n}, found {ids.min()} to {ids.max()}")
        return x

    def output(self, x: Tensor) -> Tensor:
        """`Llama.output`: x (N, D) -> logits (N, V); and their tops."""
        N = len(x)
        if not 0 < N <= self.most or x.dtype != torch.float32:
            self.tops = None
            return self._plain(x)
        head, norm = self.model.head, self.model.model.norm
        output = COutput(linear_at(head), norm.weight.data_ptr(), norm.eps)
        return self.multiplied(output, x.contiguous())

    def multiplied(self, output: COutput, x: Tensor) -> Tensor:
        """The logits of x (N, D), by C; `tops` are theirs."""
        N, logits = len(x), torch.empty(len(x), output.l.n)
        tops = Tops(torch.empty(N, dtype=torch.int64), torch.empty(N), torch.empty(N))
        to = (t.data_ptr() for t in (x, logits, *tops))
        call(self.lib.head, byref(output), self.threads, N, *to)
        self.tops = tops
        return logits

    def alone(self, linear: Linear, tokens: int) -> Callable[[], object]:
        """What multiplies tokens with a weight, to measure it: as if it were a vocabulary."""
        x, norm = torch.zeros(tokens, linear.weight.shape[1]), linear.weight[0]
        return lambda: self.multiplied(COutput(linear_at(linear), norm.data_ptr(), 1.0), x)


def _holders(block: Block) -> list[dict[str, Tensor]]:
    """What holds the weights of a block, under "weight"; whoever replaces one does it there."""
    return [module._parameters for module in block.modules() if module._parameters]


def _lie(holders: list[dict[str, Tensor]]) -> list[int]:
    return [parameters["weight"].data_ptr() for parameters in holders]
