"""The halves of a layer in C (kernels.c), put on a plain model from outside.

    kernels, told = install(model, threads=2)    # once its weights are there; None if it cannot be

Few tokens wait for memory: what counts is that each weight is read once, in order, by all cores,
for all of them. Many tokens, and what the C does not know (pages of which some positions are
hidden), go to the plain halves, so there is one model. What torch then multiplies with was chosen
by measuring: `minillm.model.products`.

Shapes: ΣT packed tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import Array, addressof, c_double, c_float, c_int, c_long, c_void_p
from itertools import chain, repeat
from operator import attrgetter, getitem, le
from pathlib import Path
from time import perf_counter
from typing import NamedTuple
from zlib import crc32

import torch
from torch import Tensor

from minillm.compile import NoLibrary, library, processor
from minillm.model.attention import Attend
from minillm.model.layers import Linear, identity
from minillm.model.llama import Block, Llama
from minillm.model.products import choose
from minillm.process import settle

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = {torch.bfloat16: (), torch.float32: ("-DF32",)}
_HALVES = attrgetter("attention_half", "ffn_half")
_HOOKS = attrgetter("_forward_pre_hooks", "_forward_hooks")
LAYER, PART, UNIT = 35, 256, 4  # of kernels.c; a `Layer` is so many fields of 8 bytes
TAKES = {"attention": 4, "ffn": 4, "layers": 6, "head": 8, "embed": 5}  # arguments, of 8 bytes each


class Tops(NamedTuple):
    """Of each row of logits: the first of the largest, its value, and log Σ e^logit.

    log_sum is finite if and only if all logits are numbers and not all of them infinitely small.
    """

    ids: Sequence[int]
    values: Sequence[float]
    log_sum: Sequence[float]


def install(model: Llama, threads: int, c: bool = True) -> tuple[Kernels | None, str]:
    """Have `model` computed in C where that is faster, and else by torch's fastest way.

    Its weights are there, or will be: those on the meta device are bound when they come.
    threads: of the C and of torch. c: False leaves the C out.
    Returns what the engine asks after a pass, and for people what computes. None on a card.
    """
    weight = model.blocks[0].mlp.gate_proj.weight
    if weight.device.type not in ("cpu", "meta"):
        return None, "torch, on the card"
    settle()
    kernels, told = None, "torch, not C: switched off"
    if c:
        try:
            _check(model)
            kernels = Kernels(model, weight.dtype, threads)
        except NoLibrary as error:
            told = f"torch, not C: {error}"
    where = f"{processor()} · {threads} threads · kernels {crc32(SOURCE.read_bytes()):08x}"
    products = choose(*weight.shape, weight.dtype, where, kernels and kernels.multiply)
    for linear in model.modules():
        if isinstance(linear, Linear):
            linear.product = products
    if kernels:
        kernels.put_on(products.most)
        told = f"C, up to {products.most} tokens at once"
    return kernels, told


def _check(model: Llama) -> None:
    """NoLibrary if the C does not know such a model."""
    sizes = {n: getattr(model.config, n) for n in ("hidden_size", "intermediate_size", "head_dim")}
    odd = [f"{name} = {size}" for name, size in sizes.items() if size % 16]
    types = {str(p.dtype).removeprefix("torch.") for p in model.parameters()}
    if odd or types not in ({"bfloat16"}, {"float32"}):
        found = ", ".join(odd or types)
        raise NoLibrary(f"it wants bfloat16 or float32 alone, and multiples of 16, found {found}")


class Kernels:
    """The C side of one model. `install` makes one; it takes the place of the model's parts.

    What is put on a layer or on a half is obeyed, and weights may move. What stands inside a half
    is not looked at: a hook on `mlp`, another `q_proj`. Load with kernels="torch" for that.

    stamps: after a pass whose layers ran in one call: when each half began (attention, FFN, layer
    by layer) and when the last ended, 2 n + 1 seconds of `time.perf_counter`; else None.
    tops: of the logits that the last pass gave; None where torch computed them.
    """

    def __init__(self, model: Llama, dtype: torch.dtype, threads: int):
        self.model, self.threads, self._dtype = model, threads, dtype
        self._lib = library(SOURCE, *FLAGS[dtype])
        for name, n in TAKES.items():  # without it ctypes loses half of each address
            getattr(self._lib, name).argtypes = [c_void_p] * n
        self.stamps: list[float] | None = None
        self.tops: Tops | None = None
        self.eps, self._blocks = c_double(model.config.rms_norm_eps), model.blocks
        # The array of `Layer`; what holds the weights, under which names; where they were.
        self._array = (c_long * (LAYER * len(self._blocks)))()
        dicts = [m._parameters for block in self._blocks for m in block.modules()]
        self._holders, self._names = zip(*((d, name) for d in dicts for name in d), strict=True)
        self._lie = [-1] * len(self._holders)  # nowhere: 0 is where weights on meta are
        self._stamps = (c_double * (2 * len(self._blocks) + 1))()
        self._last: tuple[Attend | None, int] = (None, 0)
        self.scratch, self._seen = torch.empty(0), ([], False)

    def put_on(self, most: int) -> None:
        """Take the place of the model's parts, for passes of at most so many tokens."""
        model, self.most = self.model, most
        self._table = model.model.embed_tokens if model.first else None  # looked up once
        self._out, self._norm = (model.head, model.model.norm) if model.last else (None, None)
        each = range(len(self._blocks))
        self._halves = [(self._half(i, "attention"), self._half(i, "ffn")) for i in each]
        model.embed, model.run_layers, model.output = self.embed, self.run_layers, self.output

    def _half(self, i: int, name: str) -> Callable:
        """The half of a layer in C, put in the place of the plain one."""
        block, place, run = self._blocks[i], f"{name}_half", getattr(self._lib, name)
        plain, looks = getattr(block, place), name == "attention"

        def half(x: Tensor, turns: Tensor, attend: Attend) -> Tensor:
            if not (step := self._pass(attend)):
                return plain(x, turns, attend)
            x = x.float().contiguous()  # a hook on a layer may have made it anything
            pages = attend.store.enter(block.layer, attend) if looks else None
            out = self.scratch[: x.numel()].view(x.shape)
            run(self._layers(i, [pages]), step, x.data_ptr(), out.data_ptr())
            if looks:
                attend.store.leave(block.layer, attend)
            return out

        setattr(block, place, half)
        return half

    def _layers(self, i: int, pages: Sequence[Tensor | None]) -> int:
        """The address of layers from i on, with their pages; filled anew if a weight has moved."""
        each, stop = len(self._holders) // len(self._blocks), i + len(pages)
        these = slice(i * each, stop * each)
        lie = [*map(Tensor.data_ptr, map(getitem, self._holders[these], self._names[these]))]
        if lie != self._lie[these]:
            for n in range(i, stop):
                self._array[n * LAYER : (n + 1) * LAYER - 1] = _fields(self._blocks[n], self._dtype)
            self._lie[these] = lie
        self._array[(i + 1) * LAYER - 1 : stop * LAYER : LAYER] = [*map(_at, pages)]
        return addressof(self._array) + 8 * LAYER * i

    def _pass(self, attend: Attend) -> int:
        """The address of a plan's `Step`, made once a pass; 0 if torch is to do it."""
        if self._last[0] is not attend:
            known = hasattr(attend, "tables") and not attend.hidden  # a Plan: tokens over pages
            few = known and 0 < sum(attend.step.counts) <= self.most
            self._last = attend, _step(self, attend) if few else 0
        return self._last[1]

    def run_layers(self, x: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """All layers in one call, where nothing has to happen between them; else one by one."""
        step, self.stamps = self._pass(attend), None
        resident = attend.store.resident if step else None
        halves = [*map(_HALVES, self._blocks)]
        if halves != self._seen[0]:  # more than a watch, which says what it `watches`, is plain
            ours = [tuple(getattr(half, "watches", half) for half in pair) for pair in halves]
            self._seen = halves, ours == self._halves
        hooks = any(map(any, map(_HOOKS, self._blocks)))
        if not resident or not self._seen[1] or hooks or self.model.reduce is not identity:
            return Llama.run_layers(self.model, x, positions, attend)
        x = x.to(torch.float32, copy=True).contiguous()  # it is added to in place
        layers, to = self._layers(0, resident), (x.data_ptr(), self.scratch.data_ptr())
        self._stamps[0] = perf_counter()
        self._lib.layers(layers, len(resident), step, *to, self._stamps)
        self.stamps = self._stamps[:]
        return x

    def embed(self, ids: Tensor) -> Tensor:
        """`Llama.embed`: ids (ΣT,) -> x (ΣT, D) float32. IndexError for an id that is none."""
        table, ids = self._table, ids.long().contiguous()
        x = torch.empty(ids.shape[0], self.model.config.hidden_size)
        to = ids.data_ptr(), ids.shape[0], x.data_ptr(), self.threads
        if not self._lib.embed(_struct(*_linear(table)), *to):
            raise IndexError(f"wanted ids below {len(table.weight)}, found {ids.tolist()}")
        return x

    def output(self, x: Tensor) -> Tensor:
        """`Llama.output`: x (N, D) -> logits (N, V); and their tops."""
        self.tops = None
        if not 0 < x.shape[0] <= self.most or x.dtype != torch.float32:
            return Llama.output(self.model, x)
        return self.multiply(x.contiguous(), self._out, self._norm.weight)

    def multiply(self, x: Tensor, head: Linear, norm: Tensor) -> Tensor:
        """Normed x (N, K) times a weight (V, K): (N, V); and their tops."""
        N, V, scratch = x.shape[0], head.weight.shape[0], torch.empty_like(x)
        logits = torch.empty(N, -(-V // UNIT) * UNIT)
        tops = self.tops = Tops((c_long * N)(), (c_float * N)(), (c_float * N)())
        step = _struct(scratch.data_ptr(), N, self.threads, addressof(self.eps))  # it needs no more
        to = x.data_ptr(), logits.data_ptr(), *map(addressof, tops)
        self._lib.head(_struct(*_linear(head)), norm.data_ptr(), step, *to)
        return logits[:, :V]


def _step(kernels: Kernels, plan: Attend) -> int:
    """The plan as the C sees it; the scratch holds a half's part, then what the C needs."""
    model, counts, longest = kernels.model, plan.step.counts, max(plan.stops)
    c, angles, M, width = model.config, model.angles, sum(counts), max(map(len, plan.tables))
    assert longest <= len(angles), f"prepared {len(angles)}, wanted {longest}"
    q, parts = c.num_attention_heads * c.head_dim, longest // PART + 1
    row = 2 * c.hidden_size + (4 + 2 * parts) * q + 3 * c.intermediate_size
    rooms = (len(table) * plan.page_size for table in plan.tables)
    assert all(map(le, plan.stops, rooms)), "not reserved"
    if M * row > kernels.scratch.numel():
        kernels.scratch = torch.empty(M * row)
    scratch = kernels.scratch.data_ptr() + kernels.scratch.itemsize * M * c.hidden_size
    rows = (table + [0] * (width - len(table)) for table in plan.tables)
    each = chain.from_iterable(map(repeat, rows, counts))
    tables = (c_int * (M * width))(*chain.from_iterable(each))
    kernels.kept = tables, angles, _struct(
        scratch, M, kernels.threads, addressof(kernels.eps), addressof(tables),
        plan.place.data_ptr(), angles.data_ptr(), width, plan.page_size, c.head_dim, parts,
    )  # fmt: skip
    return addressof(kernels.kept[-1])


def _struct(*fields: int) -> Array[c_long]:
    """A struct of kernels.c: of each, all fields have 8 bytes."""
    return (c_long * len(fields))(*fields)


def _fields(block: Block, dtype: torch.dtype) -> list[int]:
    """`Layer` of kernels.c but for its pages: where the weights of a block lie now."""
    fits = all(p.dtype == dtype and p.is_contiguous() for p in block.parameters())
    assert fits, f"C was compiled for {dtype}, row by row: load the model anew"
    a, f = block.self_attn, block.mlp
    linears = a.q_proj, a.k_proj, a.v_proj, a.o_proj, f.gate_proj, f.up_proj, f.down_proj
    norms = block.input_layernorm, block.post_attention_layernorm, a.q_norm, a.k_norm
    others = *(norm and norm.weight for norm in norms), a.o_proj.bias, f.down_proj.bias
    return [field for linear in linears for field in _linear(linear)] + [*map(_at, others)]


def _linear(linear: Linear) -> list[int]:
    """`Linear` of kernels.c. A deferred bias is not the product's business."""
    bias = None if linear.deferred else linear.bias
    return [_at(linear.weight), _at(bias), *linear.weight.shape]


def _at(tensor: Tensor | None) -> int:
    at = 0 if tensor is None else tensor.data_ptr()
    assert at or tensor is None, "the weights are not there: closed, or not loaded yet"
    return at
