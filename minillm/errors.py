"""The errors that reach a user: "wanted this, found that; do this".

They are raised at the public door, where input from outside comes in. Inside the package short
asserts hold, so an error of any other class is a mistake of ours.
"""

from __future__ import annotations

import re
import reprlib


class MinillmError(Exception):
    """The base of every error the package raises on purpose. `str(error)` is meant for people.

    The message names what was wanted, what was found and what to do; it reads as one line
    however the terminal wraps it, so a caller prints it after "error: " and adds nothing.

    >>> raise MinillmError("wanted a trace file, found an empty file; record the run again")
    Traceback (most recent call last):
    minillm.errors.MinillmError: wanted a trace file, found an empty file; record the run again
    """

    def __str__(self) -> str:
        return " ".join(super().__str__().split())  # a JSON or tokenizer error may span lines


class CheckpointError(MinillmError):
    """Files on SSD that are missing, damaged, or do not fit the model."""


class ConfigError(MinillmError):
    """A setting that is unknown, out of range, or asks for what is not implemented."""


class PromptError(MinillmError):
    """A prompt that is empty, is not text, or is longer than the model's context."""


class OutOfMemory(MinillmError):
    """A tier of memory has no room. Nothing was reserved: the tier is as it was before.

    tier: "ssd", "dram" or "hbm". asked: bytes refused. free: bytes left at that moment.
    holders: label to bytes in use, such as {"weights": 16_000_000, "kv": 2_000_000}.

    >>> print(OutOfMemory("hbm", 3 * 2**20, 2**20, {"weights": 63 * 2**20}))
    wanted 3.0 MiB of HBM, found 1.0 MiB free (weights hold 63.0 MiB); take a smaller model, \
dtype, batch or context, or give HBM a larger budget
    """

    def __init__(self, tier: str, asked: int, free: int, holders: dict[str, int]):
        super().__init__(tier, asked, free, holders)  # in args, so that pickling works
        self.tier, self.asked, self.free, self.holders = tier, asked, free, dict(holders)

    def __str__(self) -> str:
        by_size = sorted(self.holders.items(), key=lambda held: -held[1])
        held = ", ".join(f"{label} hold {format_size(nbytes)}" for label, nbytes in by_size)
        return (
            f"wanted {format_size(self.asked)} of {self.tier.upper()}, "
            f"found {format_size(self.free)} free ({held or 'nothing else holds any'}); "
            f"{_REMEDY.get(self.tier, 'free some memory first')}"
        )


_REMEDY = {
    "hbm": "take a smaller model, dtype, batch or context, or give HBM a larger budget",
    "dram": "close other programs, or take a smaller model or a smaller HBM budget",
    "ssd": "delete files on this disk, or choose a folder on another one",
}


def format_size(nbytes: int) -> str:
    """Bytes for people, in powers of two.

    >>> format_size(64 * 2**20), format_size(100)
    ('64.0 MiB', '100 B')
    """
    if abs(nbytes) < 1024:
        return f"{nbytes} B"
    size = float(nbytes)
    units = ["KiB", "MiB", "GiB", "TiB"]
    size /= 1024
    while abs(size) >= 1023.95 and len(units) > 1:  # 1023.95 would be printed as 1024.0
        size /= 1024
        units.pop(0)
    return f"{size:.1f} {units[0]}"


_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
          "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}  # fmt: skip


def parse_size(size: int | str) -> int:
    """A size in bytes: an int as it is, or a text. GB is 10**9, GiB is 2**30; case is ignored.

    >>> parse_size("64 MiB"), parse_size("1.5 GB"), parse_size(4096)
    (67108864, 1500000000, 4096)
    """
    if isinstance(size, int) and not isinstance(size, bool) and size >= 0:
        return size
    match = re.fullmatch(r"\s*(\d{1,30}(?:\.\d{0,30})?)\s*([a-z]*)\s*", str(size).lower(), re.ASCII)
    unit = _UNITS.get(match[2] or "b") if match else None
    if unit is None or not isinstance(size, str):
        found = reprlib.repr(size)
        raise ConfigError(f'wanted a size such as "64 MiB" or "1.5 GB", found {found}; correct it')
    return round(float(match[1]) * unit)
