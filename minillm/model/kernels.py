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
from ctypes import CDLL, Structure, addressof, c_double, c_long
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from minillm.compile import NoLibrary, library, processor
from minillm.model.attention import Attend
from minillm.model.layers import Linear, RMSNorm, identity
from minillm.model.llama import Block, Llama
from minillm.model.products import Choice, Products, choose, keep_freed_memory

MAX_THREADS = 64  # of pool.h
FLAGS = {torch.bfloat16: (), torch.float32: ("-DF32",)}
LINEAR, LAYER = 5, 42  # fields of the structs, of 8 bytes each
TAKES = {"attention": 4, "ffn": 4, "layers": 6, "head": 8, "embed": 5, "scratch": 2}  # arguments


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
    linears = [module for module in model.modules() if isinstance(module, Linear)]
    try:
        if not c:
            raise NoLibrary("switched off")
        _check(model)
        kernels, why = Kernels(model, load(weight.dtype), min(threads, MAX_THREADS)), ""
    except NoLibrary as error:
        kernels, why = None, str(error)
    where = f"{processor()} · {threads} threads"
    choice = choose(*weight.shape, weight.dtype, where, kernels and kernels.alone)
    product = Products(choice)
    for linear in linears:
        linear.product = product
        if kernels and linear.packable and not linear.packed and linear.weight.device.type == "cpu":
            linear.pack()
    if kernels is None:
        return None, f"torch, not C: {why}"
    kernels.put_on(choice)
    return kernels, f"C, up to {choice.most} tokens at once"


def load(dtype: torch.dtype) -> CDLL:
    """kernels.c for weights in bfloat16 or float32. Raises NoLibrary."""
    lib = library(Path(__file__).with_name("kernels.c"), *FLAGS[dtype])
    for name, n in TAKES.items():  # without it ctypes loses half of each address
        getattr(lib, name).argtypes = [c_long] * n
    return lib


def _check(model: Llama) -> None:
    """NoLibrary if the C does not know such a model."""
    dtypes = {p.dtype for p in model.parameters()}
    if len(dtypes) > 1 or not dtypes <= FLAGS.keys():
        found = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise NoLibrary(f"it wants weights in bfloat16 or in float32, found {found}")
    sizes = {n: getattr(model.config, n) for n in ("hidden_size", "intermediate_size", "head_dim")}
    odd = [f"{name} = {size}" for name, size in sizes.items() if size % 16]
    if odd:
        raise NoLibrary(f"it wants sizes that are multiples of 16, found {', '.join(odd)}")


class CStep(Structure):
    """`Step` of kernels.c."""

    _fields_ = [
        *((n, c_long) for n in "tables place angles scratch M width P E threads".split()),
        ("eps", c_double),
    ]


class Kernels:
    """The C side of one model. `install` makes one; it takes the place of the model's parts.

    stamps: after a pass whose layers ran in one call: when each half began (attention, FFN, layer
    by layer) and when the last ended, 2 n + 1 seconds of `time.perf_counter`; else None.
    tops: of the logits that the last pass gave; None where torch computed them.
    """

    def __init__(self, model: Llama, lib: CDLL, threads: int):
        self.model, self.threads, self._lib = model, threads, lib
        self.stamps: list[float] | None = None
        self.tops: Tops | None = None
        self._blocks = model.blocks
        self._layers = _Layers(self._blocks)
        self._stamps = (c_double * (2 * len(self._blocks) + 1))()
        self._last: tuple[Attend | None, Pass | None] = (None, None)

    def put_on(self, choice: Choice) -> None:
        """Take the place of the model's parts, for passes of at most choice.most tokens."""
        model, self.choice = self.model, choice
        names, n = ("attention", "ffn"), len(self._blocks)
        self._halves = [self._half(i, name) for i in range(n) for name in names]
        self._plain_layers, model.run_layers = model.run_layers, self.run_layers
        self._plain_output = model.output
        if model.first:
            model.embed = self.embed
        if model.last:
            model.output = self.output

    def _half(self, i: int, name: str) -> Callable:
        """The half of a layer in C, put in the place of the plain one."""
        block, place, run = self._blocks[i], f"{name}_half", getattr(self._lib, name)
        plain, looks = getattr(block, place), name == "attention"

        def half(x: Tensor, positions: Tensor, angles: Tensor, attend: Attend) -> Tensor:
            step = self._pass(attend)
            if step is None:
                return plain(x, positions, angles, attend)
            pages = attend.store.enter(block.layer, attend) if looks else None
            run(self._layers.at(i, pages), step.at, x.data_ptr(), step.out.data_ptr())
            if looks:
                attend.store.leave(block.layer, attend)
            return step.out

        setattr(block, place, half)
        return half

    def _pass(self, attend: Attend) -> Pass | None:
        """The C side of a plan, made once a pass; None if torch is to do it."""
        if self._last[0] is not attend:
            known = hasattr(attend, "token_tables") and not attend.hidden
            few = known and 0 < len(attend.place) <= self.choice.most
            few = few and attend.place.device.type == "cpu"
            self._last = attend, Pass(self, attend) if few else None
        return self._last[1]

    def run_layers(self, x: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """All layers in one call, where nothing has to happen between them; else one by one."""
        self.stamps = self.tops = None
        step, x = self._pass(attend), x.contiguous()
        resident = getattr(getattr(attend, "store", None), "resident", None)
        if step is None or resident is None or not self._alone_between():
            return self._plain_layers(x, positions, attend)
        if not self.model.first:
            x = x.clone()  # it is added to in place
        at = [self._layers.at(i, pages) for i, pages in enumerate(resident)]
        to = x.data_ptr(), step.out.data_ptr(), addressof(self._stamps)
        self._lib.layers(at[0], len(at), step.at, *to)
        self.stamps = self._stamps[:]
        return x

    def _alone_between(self) -> bool:
        """Whether nobody put more round a half than a watch: one that says what it `watches`."""
        hooks = any(block._forward_pre_hooks or block._forward_hooks for block in self._blocks)
        halves = [half for b in self._blocks for half in (b.attention_half, b.ffn_half)]
        seen = [getattr(half, "watches", half) for half in halves]
        return self.model.reduce is identity and not hooks and seen == self._halves

    def embed(self, ids: Tensor) -> Tensor:
        """`Llama.embed`: ids (ΣT,) -> x (ΣT, D) float32. IndexError for an id that is none."""
        table, ids = self.model.model.embed_tokens, ids.long().contiguous()
        N, K = table.weight.shape
        x, at = torch.empty(len(ids), K), (c_long * LINEAR)(*_linear(table))
        to = ids.data_ptr(), len(ids), x.data_ptr(), self.threads
        if not self._lib.embed(addressof(at), *to):
            raise IndexError(f"wanted ids below {N}, found {ids.min()} to {ids.max()}")
        return x

    def output(self, x: Tensor) -> Tensor:
        """`Llama.output`: x (N, D) -> logits (N, V); and their tops."""
        self.tops = None
        if not 0 < len(x) <= self.choice.most or x.dtype != torch.float32:
            return self._plain_output(x)
        norm = self.model.model.norm
        return self._head(x.contiguous(), self.model.head, norm.weight, norm.eps)

    def _head(self, x: Tensor, head: Linear, norm: Tensor, eps: float) -> Tensor:
        N, scratch, logits = len(x), torch.empty_like(x), torch.empty(len(x), len(head.weight))
        self.tops = Tops(torch.empty(N, dtype=torch.int64), torch.empty(N), torch.empty(N))
        at = (c_long * LINEAR)(*_linear(head))
        step = CStep(scratch=scratch.data_ptr(), M=N, threads=self.threads, eps=eps)
        to = (t.data_ptr() for t in (x, logits, *self.tops))
        self._lib.head(addressof(at), norm.data_ptr(), addressof(step), *to)
        return logits

    def alone(self, linear: Linear, tokens: int) -> Callable[[], object]:
        """What multiplies tokens with a weight, to measure it: as if it were a vocabulary."""
        x = torch.zeros(tokens, linear.weight.shape[1])
        return lambda: self._head(x, linear, linear.weight[0], 1.0)


class Pass:
    """One plan as the C sees it: a `CStep` at `at`; and where a half puts its part (ΣT, D)."""

    def __init__(self, kernels: Kernels, plan: Attend):
        model, tables, place = kernels.model, plan.token_tables(), plan.place
        spans = zip(plan.step.starts, plan.step.counts, plan.tables, strict=True)
        stops = [(start + count, len(table) * plan.page_size) for start, count, table in spans]
        assert all(n <= min(room, len(model.angles)) for n, room in stops), "not reserved, prepared"
        c = model.config
        step = CStep(
            tables.data_ptr(), place.data_ptr(), model.angles.data_ptr(), 0, len(place),
            tables.shape[1], plan.page_size, c.head_dim, kernels.threads, c.rms_norm_eps,
        )  # fmt: skip
        self.at = addressof(step)
        scratch = torch.empty(kernels._lib.scratch(kernels._layers.at(0), self.at))
        step.scratch = scratch.data_ptr()
        self.out = torch.empty(len(place), c.hidden_size)
        self._kept = step, tables, place, model.angles, scratch


class _Layers:
    """The array of `Layer` of kernels.c: each is filled anew when one of its weights has moved."""

    def __init__(self, blocks: list[Block]):
        self._blocks, self._array = blocks, (c_long * (LAYER * len(blocks)))()
        # What holds the weights, under "weight": whoever replaces one does it there.
        self._holders = [[m._parameters for m in b.modules() if m._parameters] for b in blocks]
        self._lie: list[list[int]] = [[] for _ in blocks]  # where weights were

    def at(self, i: int, pages: Tensor | None = None) -> int:
        """The address of layer i, and of those after it."""
        begin, lie = LAYER * i, [held["weight"].data_ptr() for held in self._holders[i]]
        if lie != self._lie[i]:
            self._array[begin : begin + LAYER - 1] = _fields(self._blocks[i])
            self._lie[i] = lie
        if pages is not None:
            self._array[begin + LAYER - 1] = pages.data_ptr()
        return addressof(self._array) + 8 * begin


def _fields(block: Block) -> list[int]:
    """`Layer` of kernels.c but for its pages: where the weights of a block lie now."""
    a, f = block.self_attn, block.mlp
    linears = a.q_proj, a.k_proj, a.v_proj, a.o_proj, f.gate_proj, f.up_proj, f.down_proj
    norms: tuple[RMSNorm | None, ...] = (
        block.input_layernorm, block.post_attention_layernorm, a.q_norm, a.k_norm
    )  # fmt: skip
    ends = [norm and norm.weight for norm in norms] + [a.o_proj.bias, f.down_proj.bias]
    at = [0 if tensor is None else tensor.data_ptr() for tensor in ends]
    return [field for linear in linears for field in _linear(linear)] + at


def _linear(linear: Linear) -> list[int]:
    """`Linear` of kernels.c. A deferred bias is not the product's business."""
    at = linear.weight.data_ptr()
    assert at, "the weights are not there: closed, or not loaded yet"
    bias = None if linear.deferred else linear.bias
    return [at, 0 if bias is None else bias.data_ptr(), *linear.weight.shape, linear.packed]
