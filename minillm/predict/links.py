"""What collectives cost on links: latency and bytes over bandwidth, step by step.

alpha is a link's latency, beta its bandwidth: a message takes alpha + nbytes / beta. A collective
over `ranks` is some steps of it. All seconds are of ranks that begin together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil, log2

from minillm.config import ModelConfig
from minillm.errors import ConfigError
from minillm.predict.hardware import Hardware, Wire, find_hardware
from minillm.predict.plan import plan
from minillm.predict.sizes import at_least_one, dtype_bytes, kv_bytes_per_token
from minillm.predict.time import decode_step

# Of a tensor's bytes, how many times a rank sends them in a ring: by nccl-tests' PERFORMANCE.md.
# The 2 of all-reduce is its two halves, reduce-scatter and all-gather.
_SHARES = {"all_reduce": 2, "reduce_scatter": 1, "all_gather": 1}


def bus_bytes(op: str, nbytes: float, ranks: int) -> float:
    """What each rank sends over its own link, whatever the number of ranks.

    nbytes: of the whole tensor; of all_gather's result, of reduce_scatter's input.

    >>> bus_bytes("all_reduce", 1000, 4), bus_bytes("all_gather", 1000, 4)
    (1500.0, 750.0)
    """
    if op in _SHARES:
        return _SHARES[op] * (ranks - 1) / ranks * nbytes
    if op in ("broadcast", "reduce", "send"):
        return nbytes
    known = ", ".join((*_SHARES, "broadcast", "reduce", "send"))
    raise ConfigError(f"wanted one of {known}, found {op!r}; take one of these")


def bus_bandwidth(op: str, nbytes: float, seconds: float, ranks: int) -> float:
    """Bytes a second that the slowest link carried: nccl-tests' busbw. nbytes: as `bus_bytes`.

    nbytes / seconds, their algbw, shrinks as ranks are added although no link is slower; this does
    not. It can be held against a link's bandwidth in one direction.

    >>> bus_bandwidth("all_reduce", 1e9, 0.01, ranks=8) / 1e9
    175.0
    """
    return bus_bytes(op, nbytes, ranks) / seconds


def reduce_scatter(nbytes: float, ranks: int, link: Wire) -> float:
    """Seconds, by a ring: each step sends a part.

    >>> round(reduce_scatter(8e6, 4, Wire(bandwidth=1e9, latency=1e-3)), 6)   # 3 × (1 + 2) ms
    0.009
    """
    return _ring("reduce_scatter", nbytes, ranks, link)


def all_gather(nbytes: float, ranks: int, link: Wire) -> float:
    """Seconds, by a ring, until all have all of the `nbytes`."""
    return _ring("all_gather", nbytes, ranks, link)


def _ring(op: str, nbytes: float, ranks: int, link: Wire) -> float:
    return _SHARES[op] * (ranks - 1) * link.latency + bus_bytes(op, nbytes, ranks) / link.bandwidth


def all_reduce(nbytes: float, ranks: int, link: Wire, way: str = "ring") -> float:
    """Seconds. way: "ring", or "tree": down and up again, each step with the whole tensor.

    >>> round(all_reduce(8e6, 4, Wire(bandwidth=1e9, latency=1e-3)), 6)       # 6 × (1 + 2) ms
    0.018
    """
    if way == "tree":
        return 2 * broadcast(nbytes, ranks, link)
    return _ring("all_reduce", nbytes, ranks, link)


def broadcast(nbytes: float, ranks: int, link: Wire) -> float:
    """Seconds, by a tree: at each step those who have the tensor send it on."""
    return ceil(log2(ranks)) * link.seconds(nbytes)


def flat_ring(nbytes: float, ranks: int, gpus: int, nvlink: Wire, infiniband: Wire) -> float:
    """Seconds of an all-reduce that goes round all ranks, `gpus` of them in each node.

    A rank sends a part on when it has come and its own link is free: latency passes meanwhile. So
    the pace is that of the slowest link's bytes, or of one part's way round, whichever is longer.
    A part is one message here. `collectives` sends one above CHUNK in pieces, which take less.

    >>> round(flat_ring(8e6, 4, 2, Wire(4e9, 1e-3), Wire(1e9, 3e-3)), 6)  # 3 × (5 + 1.5) + 0.5 ms
    0.02
    """
    far = (r // gpus != (r + 1) % ranks // gpus for r in range(ranks))
    links = [infiniband if crosses else nvlink for crosses in far]
    ends = [0.0] * ranks  # when the last message of each rank has arrived
    for _ in range(2 * (ranks - 1)):
        ends = [
            max(ends[r - 1] + link.latency, ends[r]) + nbytes / ranks / link.bandwidth
            for r, link in enumerate(links)
        ]
    return max(ends)


def hierarchical(
    nbytes: float, nodes: int, gpus: int, nvlink: Wire, infiniband: Wire, adapters: int = 0
) -> float:
    """Seconds of an all-reduce: reduce-scatter inside nodes, all-reduce between, all-gather inside.

    adapters: of a node; 0 is one a GPU. With fewer, the rings between nodes share them.
    """
    sharing = ceil(gpus / (adapters or gpus))
    between = replace(infiniband, bandwidth=infiniband.bandwidth / sharing)
    inside = reduce_scatter(nbytes, gpus, nvlink) + all_gather(nbytes, gpus, nvlink)
    return inside + all_reduce(nbytes / gpus, nodes, between)


@dataclass(frozen=True)
class Fit:
    """alpha and beta that were found, as a link; residuals: (measured / predicted) - 1, by size."""

    link: Wire
    residuals: dict[int, float]


def fit(op: str, ranks: int, sweep: Mapping[int, float]) -> Fit:
    """The link whose ring comes closest to measured seconds, by bytes of the tensor.

    Least squares of *relative* errors, so that small sizes, whose seconds are few, have a say.
    Needs two sizes.

    >>> fit("all_gather", 2, {1000: 2e-3, 3000: 4e-3}).link
    Wire(bandwidth=500000.0, latency=0.001)
    """
    steps, share = _SHARES[op] * (ranks - 1), bus_bytes(op, 1.0, ranks)
    rows = [(steps / s, share * nbytes / s) for nbytes, s in sweep.items()]
    aa, ab, bb = (sum(r[i] * r[j] for r in rows) for i, j in ((0, 0), (0, 1), (1, 1)))
    a, b = (sum(r[i] for r in rows) for i in (0, 1))
    alpha, beta = (a * bb - b * ab) / (aa * bb - ab**2), (b * aa - a * ab) / (aa * bb - ab**2)
    link = Wire(1 / beta, alpha)
    return Fit(link, {n: s / _ring(op, n, ranks, link) - 1 for n, s in sweep.items()})


def bubble(stages: int, micro_batches: int) -> float:
    """The share of a pipeline's time in which a stage has nothing to do, while it fills and drains.

    >>> bubble(4, 1), bubble(4, 12)
    (0.75, 0.2)
    """
    return (stages - 1) / (micro_batches + stages - 1)


def tensor_bytes(config: ModelConfig, tp: int, dtype: object = None) -> float:
    """What each rank sends for a token in tensor parallel layers: two all-reduces a layer."""
    hidden = config.hidden_size * dtype_bytes(dtype or config.dtype)
    return 2 * config.num_hidden_layers * bus_bytes("all_reduce", hidden, tp)


def pipeline_bytes(config: ModelConfig, pp: int, dtype: object = None) -> int:
    """What all stages together hand on for a token: its hidden state, pp - 1 times."""
    return (pp - 1) * config.hidden_size * dtype_bytes(dtype or config.dtype)


@dataclass(frozen=True)
class Split:
    """A way to use tp · pp GPUs. seconds: of one token of a request; tokens_per_second: of all."""

    tp: int
    pp: int
    seconds: float
    tokens_per_second: float
    fits: bool


def splits(
    config: ModelConfig, hardware: Hardware | str, gpus: int, *, batch: int = 1,
    micro_batches: int = 1, context: int = 1, gpus_a_node: int = 8,
) -> list[Split]:  # fmt: skip
    """Every split of so many GPUs that the model allows, the one with the shortest token first.

    batch: requests, in `micro_batches` equal parts, which follow each other through the stages.
    A tp that is larger than a node pays InfiniBand at each sum; pipeline stages lie further apart.
    With more ranks than KV heads each head is held and read by tp / K of them.
    Splits that do not fit HBM come last. ConfigError if no split divides heads and layers.

    >>> town = ModelConfig.from_pretrained("data/town")
    >>> splits(town, "H100", 2)[0].pp    # so small that two sums a layer cost more than they gain
    2
    """
    at_least_one(gpus=gpus, batch=batch, micro_batches=micro_batches, gpus_a_node=gpus_a_node)
    hardware, found = find_hardware(hardware), []
    for tp in (n for n in range(1, gpus + 1) if gpus % n == 0):
        pp, kv = gpus // tp, config.num_key_value_heads
        heads = config.num_attention_heads % tp or (kv % tp and tp % kv)
        if heads or pp > config.num_hidden_layers:
            continue
        part = -(-batch // micro_batches)
        state = part * config.hidden_size * dtype_bytes(config.dtype)
        links = hardware.nvlink, hardware.infiniband
        sums = 2 * config.num_hidden_layers * flat_ring(state, tp, gpus_a_node, *links)
        hop = hardware.nvlink if gpus <= gpus_a_node else hardware.infiniband
        hops = (pp - 1) * hop.seconds(state) if pp > 1 else 0.0
        again = max(0, tp // kv - 1) / tp * part * context * kv_bytes_per_token(config)
        work = decode_step(config, hardware, part, context).seconds / tp
        one = work + again / hardware.hbm_bandwidth + sums + hops
        every = one * (micro_batches + pp - 1) / pp  # the last micro-batch leaves
        fits = plan(_stage(config, pp), hardware, batch=batch, context=context, gpus=tp).fits
        found.append(Split(tp, pp, one, batch / every, fits))
    if not found:
        wanted = f"wanted tp · pp = {gpus} that divides heads and has a layer a stage, found none"
        raise ConfigError(f"{wanted}; take another number of GPUs")
    return sorted(found, key=lambda split: (not split.fits, split.seconds))


def _stage(config: ModelConfig, pp: int) -> ModelConfig:
    """What the fullest stage holds: the most layers, and of two tables, at both ends, one."""
    tables = config.tie_word_embeddings or pp > 1
    layers = ceil(config.num_hidden_layers / pp)
    return replace(config, num_hidden_layers=layers, tie_word_embeddings=tables)
