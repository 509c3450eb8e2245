"""Attention over pages: the keys and values of a sequence are found through its block table.

It stands here once, for every store. The C kernels (`minillm.model.kernels`) do the same for few
tokens and are held against it.
Shapes: ΣT packed tokens, S tokens seen, H query heads, K kv heads, E head size, P page size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from minillm.kv.plan import Plan

FLASH_PAGE = 256  # the card's paged attention takes pages of a multiple of so many tokens


def paged_attention(q: Tensor, k: Tensor, v: Tensor, pool: Tensor, plan: Plan) -> Tensor:
    """Write k, v (ΣT, K, E) to their pages; q (ΣT, H, E) then sees its past: (ΣT, H, E).

    pool (pages, 2, K, P, E): keys and values of one layer; written in place. Each sequence is
    looked at alone, so what it sees does not depend on its company.
    """
    pages, slots = plan.written()
    pool[pages, :, :, slots] = torch.stack((k, v), 1).to(pool.dtype)  # (ΣT, 2, K, E)
    if q.is_cuda and _flash(pool, plan):
        return _varlen(q, pool, plan)
    each = enumerate(q.split(list(plan.step.counts)))
    seen = [_look(q, _past(pool, plan, n).to(q.dtype), plan, n) for n, q in each]
    return seen[0] if len(seen) == 1 else torch.cat(seen)


def _past(pool: Tensor, plan: Plan, number: int) -> Tensor:
    """Keys and values (2, K, S, E) of one sequence; no copy where they lie in one page."""
    S = plan.stops[number]
    table = plan.tables[number][: -(-S // plan.page_size)]
    if len(table) == 1:
        return pool[table[0], :, :, :S]
    index = plan.cached.get(("pages", number))
    if index is None:
        index = plan.cached["pages", number] = plan.ints(table).long()
    gathered = pool.permute(1, 2, 0, 3, 4).index_select(2, index)  # (2, K, pages, P, E)
    return gathered.flatten(2, 3)[:, :, :S]


def _look(q: Tensor, past: Tensor, plan: Plan, number: int) -> Tensor:
    """softmax(q kᵀ / √E) v of one sequence: q (T, H, E), past (2, K, S, E) -> (T, H, E)."""
    T, H, E = q.shape
    mask = _mask(plan, number)
    if T == 1:
        # The heads of a group ask as if they were tokens of one head: k and v are read once.
        rows, keys, values = q.view(1, past.shape[1], -1, E), past[:1], past[1:]
        return F.scaled_dot_product_attention(rows, keys, values, mask).view(1, H, E)
    given = q.transpose(0, 1)[None], *past[:, None]  # each (1, heads, tokens, E)
    out = F.scaled_dot_product_attention(*given, mask, is_causal=mask is None, enable_gqa=True)
    return out[0].transpose(0, 1)


def _mask(plan: Plan, number: int) -> Tensor | None:
    """Which of S tokens the T new ones of a sequence may see, (T, S); None: the plain order."""
    start, count = plan.step.starts[number], plan.step.counts[number]
    hidden = plan.hidden[number] if plan.hidden else None
    if hidden is None and (count == 1 or start == 0):
        return None
    if ("mask", number) not in plan.cached:
        query, key = np.arange(start, start + count)[:, None], np.arange(start + count)
        seen = key <= query
        if hidden is not None:
            forgotten = (key >= hidden.positions.start) & (key < hidden.positions.stop)
            seen &= ~(forgotten & (query >= hidden.after))
        plan.cached["mask", number] = plan.ints(seen).bool()
    return plan.cached["mask", number]


def _flash(pool: Tensor, plan: Plan) -> bool:
    """Whether the library's paged attention takes this: half precision, large pages, no holes."""
    return pool.dtype.itemsize == 2 and plan.page_size % FLASH_PAGE == 0 and not plan.hidden


def _varlen(q: Tensor, pool: Tensor, plan: Plan) -> Tensor:
    """The library's attention over pages, all sequences in one launch."""
    from torch.nn.attention.varlen import varlen_attn

    if "varlen" not in plan.cached:
        step, width = plan.step, max(map(len, plan.tables))
        plan.cached["varlen"] = (
            plan.ints(np.cumsum((0, *step.counts))), max(step.counts), max(plan.stops),
            plan.ints(plan.stops), plan.ints([t + [0] * (width - len(t)) for t in plan.tables]),
        )  # fmt: skip
    ends, most_new, most_seen, seen, tables = plan.cached["varlen"]
    keys, values = pool[:, 0].transpose(1, 2), pool[:, 1].transpose(1, 2)  # (pages, P, K, E)
    return varlen_attn(
        q, keys, values, ends, None, most_new, most_seen, window_size=(-1, 0), enable_gqa=True,
        seqused_k=seen, block_table=tables,
        num_splits=1,  # sums in one order, whoever else is in the batch
    )  # fmt: skip
