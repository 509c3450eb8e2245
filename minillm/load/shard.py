"""Several ranks, one checkpoint: which bytes each of them needs.

A slice of rows is one range of bytes in the file, a slice of columns one range in each row. How
the bytes get there is the business of `minillm.parallel.shards`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from minillm.config import ModelConfig
from minillm.errors import ConfigError
from minillm.load.checkpoint import Checkpoint
from minillm.load.safetensors import TensorInfo


@dataclass(frozen=True)
class Split:
    """How a tensor is shared: its axis 0 (rows) or 1 (columns) falls into `parts` equal parts.

    A rank gets parts / ranks of them, next to each other; a part is never cut. shared: where there
    are fewer parts than ranks, several ranks get the same part (else that is an error).
    """

    axis: int
    parts: int
    shared: bool = False


How = Callable[[str], Split | None]
"""A tensor's name to its split; None: every rank has all of it."""


def megatron(config: ModelConfig) -> How:
    """The usual split of a Llama: the fewest sums between ranks.  Shoeybi et al., 2019.

    Rows of what reads the hidden state (q, k, v by heads; gate and up; the embedding and the
    output by vocabulary), then columns of what adds to it (o by heads; down). Norms, and biases
    that are added after the sum, are everyone's. With fewer kv heads than ranks, neighbours have
    the same one.

    >>> megatron(config)("model.layers.0.mlp.down_proj.weight")
    Split(axis=1, parts=832, shared=False)
    """
    heads, inner = config.num_attention_heads, config.intermediate_size
    keys, words = Split(0, config.num_key_value_heads, shared=True), Split(0, config.vocab_size)
    rows = {
        "q_proj": Split(0, heads), "k_proj": keys, "v_proj": keys, "gate_proj": Split(0, inner),
        "up_proj": Split(0, inner), "embed_tokens": words, "lm_head": words,
    }  # fmt: skip
    columns = {"o_proj": Split(1, heads), "down_proj": Split(1, inner)}

    def how(name: str) -> Split | None:
        before, _, kind = name.rpartition(".")
        module = before.rpartition(".")[2]
        return rows.get(module) or (columns.get(module) if kind == "weight" else None)

    return how


def slices(checkpoint: Checkpoint, rank: int, ranks: int, how: How) -> Checkpoint:
    """The same checkpoint as one rank sees it: local shapes, and the byte ranges of its slices.

    Loads like any other, into a model of the local shapes. Nothing is read. Raises ConfigError if
    the parts of a tensor cannot be shared equally among the ranks.

    >>> slices(checkpoint, 1, 4, megatron(config)).tensors["model.layers.0.mlp.down_proj.weight"]
    """
    if not 0 <= rank < ranks:
        raise ConfigError(f"wanted a rank from 0 to {ranks - 1}, found {rank}; correct it")
    tensors = {
        name: info if (split := how(name)) is None else _slice(info, rank, ranks, split)
        for name, info in checkpoint.tensors.items()
    }
    return Checkpoint(checkpoint.folder, tensors)


def _slice(info: TensorInfo, rank: int, ranks: int, split: Split) -> TensorInfo:
    axis, parts = split.axis, split.parts
    if axis >= len(info.shape) or info.shape[axis] % parts:
        raise ConfigError(
            f"wanted axis {axis} of {info.name} to fall into {parts} equal parts, found shape "
            f"{list(info.shape)}; check that the split belongs to this model"
        )
    if parts % ranks and not (split.shared and ranks % parts == 0):
        raise ConfigError(
            f"wanted {parts} parts of {info.name} shared equally among the ranks, found {ranks} "
            "ranks; take a number of ranks that divides it"
        )
    if ranks == 1:
        return info
    each = info.shape[axis] // parts  # rows or columns of a part
    first, mine = rank * parts // ranks * each, max(1, parts // ranks) * each
    shape = (*info.shape[:axis], mine, *info.shape[axis + 1 :])
    if not info.nbytes:
        return replace(info, shape=shape)
    nbytes = info.nbytes * mine // info.shape[axis]
    if axis == 0:
        return replace(info, shape=shape, start=info.start + nbytes // mine * first, nbytes=nbytes)
    rows = info.shape[0]
    stride = info.nbytes // rows
    start = info.start + stride // info.shape[1] * first
    return replace(info, shape=shape, start=start, nbytes=nbytes, rows=rows, stride=stride)
