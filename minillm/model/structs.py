"""The structs of kernels.c, field by field, filled from a model: where its weights lie."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import CDLL, Structure, byref, c_float, c_int, c_void_p

import torch

from minillm.model.attention import Attend
from minillm.model.layers import Linear, RMSNorm
from minillm.model.llama import Block, Llama


def _fields(names: str, kind: type) -> list[tuple[str, type]]:
    return [(name, kind) for name in names.split()]


class CLinear(Structure):
    _fields_ = _fields("w bias", c_void_p) + _fields("n k packed", c_int)


class CAttention(Structure):
    _fields_ = (
        _fields("q k v o", CLinear) + _fields("norm qnorm knorm", c_void_p)
        + _fields("eps", c_float) + _fields("D H K E", c_int)
    )  # fmt: skip


class CFfn(Structure):
    _fields_ = (
        _fields("gate up down", CLinear) + _fields("norm", c_void_p)
        + _fields("eps", c_float) + _fields("D I", c_int)
    )  # fmt: skip


class CLayer(Structure):
    _fields_ = [("a", CAttention), ("f", CFfn), *_fields("o_bias down_bias pages", c_void_p)]


class COutput(Structure):
    _fields_ = [("l", CLinear), ("norm", c_void_p), ("eps", c_float)]


class CStep(Structure):
    _fields_ = (
        _fields("tables place", c_void_p) + _fields("M width P threads", c_int)
        + _fields("angles", c_void_p)
    )  # fmt: skip


_ARGUMENTS = {
    "attention": [c_void_p] * 5, "ffn": [c_void_p] * 4,
    "layers": [c_void_p, c_int, *[c_void_p] * 4], "head": [c_void_p, c_int, c_int, *[c_void_p] * 5],
    "embed": [c_void_p, c_void_p, c_int, c_void_p], "pack": [c_void_p, c_int],
}  # fmt: skip


def declare(lib: CDLL) -> None:
    """Tell ctypes what the functions take; without it, half of each address is lost."""
    for name, kinds in _ARGUMENTS.items():
        getattr(lib, name).argtypes = kinds


def call(function: Callable[..., int], *arguments: object) -> None:
    """Call a function of kernels.c that fails only for want of memory."""
    if not function(*arguments):
        raise MemoryError("the kernels found no memory to work in")


def linear_at(linear: Linear) -> CLinear:
    """Where a weight lies, and how. A deferred bias is not the product's business."""
    at = linear.weight.data_ptr()
    assert at, "the weights are not there: closed, or not loaded yet"
    bias = None if linear.bias is None or linear.deferred else linear.bias.data_ptr()
    return CLinear(at, bias, *linear.weight.shape, linear.packed)


def bind(layer: CLayer, block: Block) -> None:
    """Fill in where the weights of a block lie now. H and K are this rank's."""
    a, f = block.self_attn, block.mlp
    at = lambda norm: None if norm is None else norm.weight.data_ptr()  # noqa: E731
    before: RMSNorm = block.input_layernorm
    D, E = a.o_proj.weight.shape[0], a.head_dim
    H, K = (projection.weight.shape[0] // E for projection in (a.q_proj, a.k_proj))
    layer.a = CAttention(
        *map(linear_at, (a.q_proj, a.k_proj, a.v_proj, a.o_proj)), at(before), at(a.q_norm),
        at(a.k_norm), before.eps, D, H, K, E,
    )  # fmt: skip
    after: RMSNorm = block.post_attention_layernorm
    linears = map(linear_at, (f.gate_proj, f.up_proj, f.down_proj))
    layer.f = CFfn(*linears, at(after), after.eps, D, f.gate_proj.weight.shape[0])
    biases = a.o_proj.bias, f.down_proj.bias
    layer.o_bias, layer.down_bias = (None if b is None else b.data_ptr() for b in biases)


class Pass:
    """One plan as the C sees it, and where a half puts its part (ΣT, D)."""

    def __init__(self, model: Llama, plan: Attend, threads: int):
        tables, place = plan.token_tables(), plan.place
        spans = zip(plan.step.starts, plan.step.counts, plan.tables, strict=True)
        stops = [(start + count, len(table) * plan.page_size) for start, count, table in spans]
        assert all(n <= min(room, len(model.angles)) for n, room in stops), "not reserved, prepared"
        self._kept = tables, place, model.angles
        self._struct = CStep(
            tables.data_ptr(), place.data_ptr(), len(place), tables.shape[1], plan.page_size,
            threads, model.angles.data_ptr(),
        )  # fmt: skip
        self.at = byref(self._struct)
        self.out = torch.empty(len(place), model.config.hidden_size)
        self.out_at = self.out.data_ptr()
