"""How long something takes, and what sets the time."""

from __future__ import annotations

from dataclasses import dataclass, field

from minillm.config import ModelConfig
from minillm.errors import ConfigError
from minillm.predict.hardware import Hardware, find_hardware
from minillm.predict.operators import Operator, operators
from minillm.predict.sizes import at_least_one, dtype_bytes, kv_bytes_per_token


@dataclass(frozen=True)
class Prediction:
    """How long something takes, and what sets the time.

    seconds; bytes moved; flops done. bound_by: what most of the time is spent on, such as "ssd",
    "copy", "hbm" or "compute". parts: seconds of each part by itself. how: always "predicted".

    >>> load_time(1_000_000_000, "H100").bound_by
    'ssd'
    """

    seconds: float
    bytes: int
    flops: float
    bound_by: str
    parts: dict[str, float] = field(default_factory=dict)
    how: str = "predicted"


def load_time(nbytes: int, hardware: Hardware | str, *, cached: bool = False) -> Prediction:
    """How long `nbytes` of weights take from file to HBM.

    Two legs: out of the file into DRAM (from SSD or, if `cached`, from the kernel's page cache),
    then the copy to HBM. One chunk is read while the one before is copied, so the slower leg sets
    the time; in turns, the `parts` would add up. So they do out of the page cache where HBM is a
    part of DRAM (`hardware.shared`): both legs are copies then, by the same cores.

    >>> load_time(16_060_522_496, "H100").seconds                 # Llama-3-8B in bf16, from SSD
    2.2944603565714288
    >>> load_time(16_060_522_496, "H100", cached=True).bound_by   # the second time
    'page cache'
    """
    hardware = find_hardware(hardware)
    if cached:
        parts = {"page cache": nbytes / (hardware.page_cache or hardware.dram_bandwidth / 2)}
    else:
        parts = {"ssd": hardware.nvme.seconds(nbytes)}
    if hardware.pcie:
        parts["copy"] = hardware.pcie.seconds(nbytes)
    slower = max(parts, key=parts.__getitem__)
    seconds = sum(parts.values()) if cached and hardware.shared else parts[slower]
    return Prediction(seconds, nbytes, 0.0, slower, parts)


def decode_step(
    config: ModelConfig, hardware: Hardware | str, batch: int = 1, context: int = 1, *,
    dtype: object = None, kv_dtype: object = None,
) -> Prediction:  # fmt: skip
    """One token for each of `batch` requests, each of which sees `context` tokens, itself included.

    Every operator takes as long as the slower of its two: its bytes from HBM, its FLOPs. `parts`
    are the operators; bytes are those that the engine's trace counts.  Williams et al., 2009.

    >>> llama = ModelConfig.from_pretrained("data/town")
    >>> decode_step(llama, "H100").bound_by
    'hbm'
    """
    at_least_one(batch=batch, context=context)
    work = operators(config, [context - 1] * batch, [1] * batch, dtype=dtype, kv_dtype=kv_dtype)
    return _roofline(work, find_hardware(hardware))


def prefill(
    config: ModelConfig, hardware: Hardware | str, batch: int = 1, tokens: int = 1, *,
    cached: int = 0, dtype: object = None, kv_dtype: object = None,
) -> Prediction:  # fmt: skip
    """`batch` prompts of `tokens` tokens in one pass, up to the logits of their last ones.

    cached: tokens before them that are in the KV cache already.

    >>> prefill(ModelConfig.from_pretrained("data/town"), "H100", tokens=4096).bound_by
    'compute'
    """
    at_least_one(batch=batch, tokens=tokens)
    work = operators(config, [cached] * batch, [tokens] * batch, dtype=dtype, kv_dtype=kv_dtype)
    return _roofline(work, find_hardware(hardware))


def critical_batch(hardware: Hardware | str, dtype: object = "bfloat16") -> float:
    """Tokens in a pass at which reading the weights takes as long as multiplying with them.

    Each weight is read once, and each token takes 2 FLOPs with it. Below, decode is bound by
    memory, and more requests at once cost hardly more time.

    >>> round(critical_batch("H100"))
    295
    """
    hardware = find_hardware(hardware)
    return hardware.bf16_flops / hardware.hbm_bandwidth * dtype_bytes(dtype) / 2


def restore(
    config: ModelConfig, hardware: Hardware | str, tokens: int, source: str = "dram", *,
    dtype: object = None, kv_dtype: object = None,
) -> Prediction:  # fmt: skip
    """How long the KV cache of `tokens` tokens takes to be in HBM again, and by which way.

    parts: "swap", its bytes over the links from `source`, "dram" or "ssd"; "recompute", a
    prefill of the same tokens. The faster one is taken, and `bound_by` names it.

    >>> restore(ModelConfig.from_pretrained("data/town"), "H100", 2000).bound_by  # a small model
    'recompute'
    """
    at_least_one(tokens=tokens)
    hardware, nbytes = find_hardware(hardware), tokens * kv_bytes_per_token(config, kv_dtype)
    if source not in ("dram", "ssd"):
        raise ConfigError(f"wanted source to be 'dram' or 'ssd', found {source!r}; take one")
    links = [hardware.pcie, hardware.nvme if source == "ssd" else None]
    again = prefill(config, hardware, 1, tokens, dtype=dtype, kv_dtype=kv_dtype)
    parts = {
        "swap": max((link.seconds(nbytes) for link in links if link), default=0.0),
        "recompute": again.seconds,
    }
    if parts["recompute"] < parts["swap"]:
        return Prediction(again.seconds, again.bytes, again.flops, "recompute", parts)
    return Prediction(parts["swap"], nbytes, 0.0, "swap", parts)


def _roofline(work: list[Operator], hardware: Hardware) -> Prediction:
    limits = {"hbm": 0.0, "compute": 0.0}  # seconds of the operators that each one bounds
    parts = {}
    for op in work:
        ways = {"hbm": op.bytes / hardware.hbm_bandwidth, "compute": op.flops / hardware.bf16_flops}
        slower = max(ways, key=ways.__getitem__)
        parts[op.name] = ways[slower]
        limits[slower] += ways[slower]
    return Prediction(
        sum(parts.values()), sum(op.bytes for op in work), sum(op.flops for op in work),
        max(limits, key=limits.__getitem__), parts,
    )  # fmt: skip
