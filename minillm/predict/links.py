"""What collectives cost on links: latency and bytes over bandwidth, step by step.

alpha is a link's latency, beta its bandwidth: a message takes alpha + nbytes / beta. A collective
over `ranks` is some steps of it. All seconds are of ranks that begin together.
"""

from __future__ import annotations

from minillm.errors import ConfigError

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
