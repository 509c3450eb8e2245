"""What fits where: bytes by label and device of a deployment."""

from __future__ import annotations

from dataclasses import dataclass

from minillm.config import ModelConfig
from minillm.predict.hardware import Hardware, find_hardware
from minillm.predict.sizes import (
    at_least_one,
    dtype_bytes,
    kv_bytes_per_token,
    parameters,
    vectors,
    weight_bytes,
)  # fmt: skip
from minillm.units import format_size

_STAGING = 64 * 2**20  # bytes of DRAM through which weights pass, at most


@dataclass(frozen=True)
class Plan:
    """What a deployment holds where: `devices["hbm:0"]["kv"]` is a number of bytes.

    fits: whether every device has room. kv_tokens: how many tokens of KV cache one GPU's share of
    HBM has room for beside the weights, over all requests.
    """

    devices: dict[str, dict[str, int]]
    capacity: dict[str, int]
    kv_tokens: int

    @property
    def fits(self) -> bool:
        return all(self.free(device) >= 0 for device in self.capacity)

    def used(self, device: str) -> int:
        """Bytes that the plan puts on a device."""
        return sum(self.devices[device].values())

    def free(self, device: str) -> int:
        """Bytes left there; below zero it does not fit."""
        return self.capacity[device] - self.used(device)

    def __str__(self) -> str:
        lines = []
        for device, held in self.devices.items():
            parts = " + ".join(f"{label} {format_size(n)}" for label, n in held.items())
            room = f" of {format_size(self.capacity[device])}" if device in self.capacity else ""
            lines.append(f"{device}: {parts} = {format_size(self.used(device))}{room}")
        verdict = "fits" if self.fits else "does not fit"
        return "\n".join([*lines, f"{verdict}; room for {self.kv_tokens:,} tokens of KV cache"])


def plan(
    config: ModelConfig, hardware: Hardware | str, *, batch: int = 1, context: int | None = None,
    gpus: int = 1,
) -> Plan:  # fmt: skip
    """Bytes by label and device for `batch` requests of `context` tokens on `gpus` GPUs.

    Matrices, embedding and KV heads are split over the GPUs (each KV head on one GPU at least;
    with more GPUs than KV heads, a head is held more than once); norms and biases are held by
    each: they are small. context None takes the model's longest. Activations are left out: they
    are small at decode. ConfigError for a count below 1.

    >>> print(plan(ModelConfig.from_pretrained("data/town"), "H100", batch=32))
    hbm: weights 11.6 MiB + kv 192.0 MiB = 203.6 MiB of 74.5 GiB
    dram: staging 64.0 MiB = 64.0 MiB
    ssd: weights 11.6 MiB = 11.6 MiB
    fits; room for 26,037,717 tokens of KV cache
    """
    context = config.max_position_embeddings if context is None else context
    at_least_one(gpus=gpus, batch=batch, context=context)
    hardware, size = find_hardware(hardware), dtype_bytes(config.dtype)
    whole = config.num_hidden_layers * vectors(config) + config.hidden_size  # not split
    weights = size * (whole + -(-(parameters(config) - whole) // gpus))
    heads = -(-config.num_key_value_heads // gpus)
    kv_token = kv_bytes_per_token(config) // config.num_key_value_heads * heads
    held = {"weights": weights, "kv": batch * context * kv_token}
    devices = {f"hbm:{rank}" if gpus > 1 else "hbm": dict(held) for rank in range(gpus)}
    capacity = dict.fromkeys(devices, hardware.hbm_bytes)
    kv_tokens = max(0, hardware.hbm_bytes - weights) // kv_token
    devices |= {"dram": {"staging": _STAGING}, "ssd": {"weights": weight_bytes(config)}}
    return Plan(devices, capacity, kv_tokens)
