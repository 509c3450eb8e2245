"""Tensor parallel: every rank has a part of each weight of every layer.  Shoeybi et al., 2019.

    q, k, v, gate, up     split by rows: a rank computes whole heads, and whole columns of the FFN
    o, down               split by columns: a rank yields a part (ΣT, D) of what the layer adds
    embedding, output     split by vocabulary: a rank knows, and scores, V_r tokens

Between the two splits nothing has to be sent, so a layer needs two sums over ranks: one after o,
one after down. The model stays the plain one, of the rank's own sizes; sums are put on from
outside.

Shapes: ΣT packed tokens, D width, V vocabulary; H_r, K_r, I_r, V_r: what one rank has of each.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from minillm.config import ModelConfig
from minillm.errors import ConfigError
from minillm.model.kernels import Kernels, Tops
from minillm.model.llama import Llama
from minillm.parallel.mesh import Group


def rank_config(config: ModelConfig, ranks: int) -> ModelConfig:
    """The model as one of `ranks` ranks has it: H_r, K_r, I_r and V_r in the place of H, K, I, V.

    Where ranks divide K, a rank has K / ranks kv heads; where K divides ranks, each kv head is
    held by ranks / K of them. Special tokens are ids of the whole vocabulary: they are left out.
    Raises ConfigError for any other number of ranks.

    >>> rank_config(config, 4).num_key_value_heads   # of 2
    1
    """
    K, shares = config.num_key_value_heads, {}
    for name in ("num_attention_heads", "intermediate_size", "vocab_size"):
        size = getattr(config, name)
        if ranks < 1 or size % ranks:
            raise ConfigError(
                f"wanted {name} = {size:,} shared equally among the ranks, found tp = {ranks}; "
                "take a number of ranks that divides it"
            )
        shares[name] = size // ranks
    if K % ranks and ranks % K:
        raise ConfigError(
            f"wanted num_key_value_heads = {K} to divide the ranks, or the ranks to divide it, "
            f"found tp = {ranks}; take another number of ranks"
        )
    shares["num_key_value_heads"] = max(1, K // ranks)
    return replace(config, **shares, bos_token_id=None, eos_token_ids=())


class TensorParallel:
    """Puts a rank's model, of `rank_config`, among those of its group, at both ends and inside.

    >>> TensorParallel(model, mesh.tp, kernels)   # after kernels were put on
    >>> model(ids)                                # on every rank of the group: logits (ΣT, V)

    whole: what a pass returns. True: all ranks' scores, (rows, V) float32, from which any rule can
    choose. False: the best of them, (rows, 3) float64, which is all that greedy asks for: see
    `unpack`. Either is the same on every rank of the group.
    """

    def __init__(self, model: Llama, group: Group, kernels: Kernels | None = None) -> None:
        self.whole = True
        self._group, self._kernels, self._mine = group, kernels, model.config.vocab_size
        self._first = group.index * self._mine  # the first token that this rank knows
        self._embed, self._output = model.embed, model.output
        if group.size > 1:
            model.reduce = self.reduce
            model.embed = self.embed
        model.output = self.output

    def reduce(self, part: Tensor) -> Tensor:
        """The sum over ranks. On a CPU in float32, as x is: the product that one rank found the
        fastest may round its part to bfloat16, and another's not."""
        return self._group.all_reduce(part.float() if part.device.type == "cpu" else part)

    def embed(self, ids: Tensor) -> Tensor:
        """`Llama.embed`: each token's row comes from the rank that knows it, zeros from others."""
        mine = ids - self._first
        others = (mine < 0) | (mine >= self._mine)
        x = self._embed(mine.masked_fill(others, 0)).masked_fill(others[:, None], 0)
        return self._group.all_reduce(x)

    def output(self, x: Tensor) -> Tensor:
        """`Llama.output`: x (rows, D) -> (rows, V), or (rows, 3)."""
        scores = self._output(x)  # (rows, V_r)
        if self.whole:
            return torch.cat(self._gather(scores.contiguous()), 1)
        tops = self._kernels and self._kernels.tops
        return best(self._gather(pack(tops or _tops(scores), self._first)))

    def _gather(self, part: Tensor) -> list[Tensor]:
        """Every rank's part; no rows, in the middle of prompts, cost no message."""
        return self._group.all_gather(part) if len(part) else [part] * self._group.size


def _tops(scores: Tensor) -> Tops:
    values, ids = scores.max(1)  # the first of equals
    return Tops(ids, values, scores.logsumexp(1))  # of tensors: a card is not waited for


def pack(tops: Tops, first: int) -> Tensor:
    """The best token of each row as (rows, 3) float64: id in the whole vocabulary, logit, log Σ."""
    packed = torch.stack([torch.as_tensor(each, dtype=torch.float64) for each in tops], 1)
    return packed + packed.new_tensor((first, 0, 0))


def unpack(packed: Tensor) -> Tops:
    """What `pack` was given, ids counting in the whole vocabulary."""
    ids, *others = packed.T.tolist()
    return Tops([*map(int, ids)], *others)


def best(of_ranks: list[Tensor]) -> Tensor:
    """Each rank's best, packed, in order of rank, -> the best of all, packed.

    Of equals the lowest id counts, as on one rank: its rank stands first.
    """
    each = torch.stack(of_ranks)  # (N, rows, 3)
    winner = each[:, :, 1].argmax(0)  # (rows,): the first of equals
    won = each[winner, torch.arange(each.shape[1], device=each.device)]
    return torch.cat((won[:, :2], each[:, :, 2].logsumexp(0)[:, None]), 1)
