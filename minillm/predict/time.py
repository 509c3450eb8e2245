"""How long something takes, and what sets the time."""

from __future__ import annotations

from dataclasses import dataclass, field

from minillm.predict.hardware import Hardware, find_hardware


@dataclass(frozen=True)
class Prediction:
    """How long something takes, and what sets the time.

    seconds; bytes moved; flops done. bound_by: the slowest part, such as "ssd" or "copy".
    parts: seconds of each part by itself. how: always "predicted".

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
