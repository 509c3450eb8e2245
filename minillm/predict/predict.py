"""The arithmetic of inference, before anything runs: parameters, bytes, seconds, what fits.

Plain numbers in, plain numbers out: no torch, no machine. Every result is labelled "predicted"
and is set beside a measurement wherever the course has one. Data sheets are in `HARDWARE`.

Letters: D width, I inner width of the FFN, L layers, H query heads, K kv heads, E head size,
V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from minillm.config import ModelConfig
from minillm.errors import ConfigError, format_size
from minillm.predict.hardware import HARDWARE, Hardware, Wire

__all__ = [
    "HARDWARE", "Hardware", "Plan", "Prediction", "Wire", "dtype_bytes", "find_hardware",
    "kv_bytes_per_token", "load_time", "parameters", "plan", "weight_bytes",
]  # fmt: skip

_STAGING = 64 * 2**20  # bytes of DRAM through which weights pass, at most
_DTYPE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


@dataclass(frozen=True)
class Prediction:
    """How long something takes, and what sets the time.

    seconds; bytes moved; flops done. bound_by: the slowest part, such as "ssd" or "copy".
    parts: seconds of each part by itself. how: always "predicted".

    >>> load_time(1_000_000_000, HARDWARE["H100"]).bound_by
    'ssd'
    """

    seconds: float
    bytes: int
    flops: float
    bound_by: str
    parts: dict[str, float] = field(default_factory=dict)
    how: str = "predicted"


def parameters(config: ModelConfig) -> int:
    """How many numbers the model learned; an embedding that is also the output counts once.

    >>> parameters(ModelConfig.from_pretrained("data/town"))
    6065408
    """
    width = config.hidden_size  # D
    layers = config.num_hidden_layers * (_matrices(config) + _vectors(config))
    embedding = config.vocab_size * width * (1 if config.tie_word_embeddings else 2)
    return embedding + layers + width  # the last norm


def _matrices(config: ModelConfig) -> int:
    """Weights of one layer's matrices: q, k, v, o and the three of the FFN. Ranks share them."""
    queries = config.num_attention_heads * config.head_dim  # H · E
    keys = config.num_key_value_heads * config.head_dim  # K · E
    attention = config.hidden_size * (queries + keys + keys + queries)
    return attention + 3 * config.hidden_size * config.intermediate_size


def _vectors(config: ModelConfig) -> int:
    """Weights of one layer's norms and biases."""
    width, inner = config.hidden_size, config.intermediate_size
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    norms = 2 * width + (2 * config.head_dim if config.qk_norm else 0)
    biases = heads * config.head_dim if config.qkv_bias else 0
    biases += width if config.attention_out_bias else 0
    return norms + biases + (2 * inner + width if config.mlp_bias else 0)


def dtype_bytes(dtype: object) -> int:
    """Bytes of one element; dtype is a name, "bfloat16", or torch's. ConfigError if unknown."""
    name = str(dtype).removeprefix("torch.")
    if name not in _DTYPE_BYTES:
        known = ", ".join(_DTYPE_BYTES)
        raise ConfigError(f"wanted a dtype of {known}, found {dtype!r}; take one of these")
    return _DTYPE_BYTES[name]


def weight_bytes(config: ModelConfig, dtype: object = None) -> int:
    """Bytes of all weights as `dtype`, by default the checkpoint's; also what decode reads a step.

    >>> weight_bytes(ModelConfig.from_pretrained("data/town"), "bfloat16")
    12130816
    """
    return parameters(config) * dtype_bytes(dtype or config.dtype)


def kv_bytes_per_token(config: ModelConfig, dtype: object = None) -> int:
    """Bytes of KV cache for one token of one request: a key and a value for each kv head."""
    heads = config.num_hidden_layers * config.num_key_value_heads
    return 2 * heads * config.head_dim * dtype_bytes(dtype or config.dtype)


def find_hardware(hardware: Hardware | str) -> Hardware:
    """A name in `HARDWARE`, or figures of your own as they are. ConfigError if unknown."""
    if isinstance(hardware, Hardware):
        return hardware
    if not isinstance(hardware, str) or hardware not in HARDWARE:
        known = ", ".join(HARDWARE)
        raise ConfigError(f"wanted one of {known}, found {hardware!r}; take one of these")
    return HARDWARE[hardware]


def load_time(nbytes: int, hardware: Hardware | str, *, cached: bool = False) -> Prediction:
    """How long `nbytes` of weights take from file to HBM.

    Two legs: out of the file into DRAM (from SSD or, if `cached`, from the kernel's page cache),
    then the copy to HBM. One chunk is read while the one before is copied, so the slower leg sets
    the time; in turns, the `parts` would add up. Where HBM is a part of DRAM (`hardware.shared`),
    the kernel's copy out of its cache is the one to HBM: a single leg.

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
    if hardware.pcie and not (cached and hardware.shared):
        parts["copy"] = hardware.pcie.seconds(nbytes)
    slower = max(parts, key=parts.__getitem__)
    return Prediction(parts[slower], nbytes, 0.0, slower, parts)


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
    for name, value in (("gpus", gpus), ("batch", batch), ("context", context)):
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"wanted {name} to be an int > 0, found {value!r}; correct it")
    hardware, size = find_hardware(hardware), dtype_bytes(config.dtype)
    vectors = config.num_hidden_layers * _vectors(config) + config.hidden_size
    weights = size * (vectors + -(-(parameters(config) - vectors) // gpus))
    heads = -(-config.num_key_value_heads // gpus)
    kv_token = kv_bytes_per_token(config) // config.num_key_value_heads * heads
    held = {"weights": weights, "kv": batch * context * kv_token}
    devices = {f"hbm:{rank}" if gpus > 1 else "hbm": dict(held) for rank in range(gpus)}
    capacity = dict.fromkeys(devices, hardware.hbm_bytes)
    kv_tokens = max(0, hardware.hbm_bytes - weights) // kv_token
    devices |= {"dram": {"staging": _STAGING}, "ssd": {"weights": weight_bytes(config)}}
    return Plan(devices, capacity, kv_tokens)
