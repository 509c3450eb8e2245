"""Sizes, rates and times as people write them: GB is 10⁹ bytes, GiB is 2³⁰."""

from __future__ import annotations

import re
import reprlib


def format_size(nbytes: int) -> str:
    """Bytes for people, in powers of two.

    >>> format_size(64 * 2**20), format_size(100)
    ('64.0 MiB', '100 B')
    """
    if abs(nbytes) < 1024:
        return f"{nbytes} B"
    size, units = nbytes / 1024, ["KiB", "MiB", "GiB", "TiB"]
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
        from minillm.errors import ConfigError  # whose messages are written with sizes

        raise ConfigError(f'wanted a size such as "64 MiB" or "1.5 GB", found {found}; correct it')
    return round(float(match[1]) * unit)


_DECIMAL = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_BELOW = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (0.0, "ns"))


def format_value(value: float, unit: str) -> str:
    """A number for people, in powers of ten: GB/s is 10⁹ bytes a second.

    >>> format_value(3.21e9, "bytes/s"), format_value(8.4e-8, "s"), format_value(7e11, "flop/s")
    ('3.21 GB/s', '84.0 ns', '700 GFLOP/s')
    """
    if unit == "s":
        scale, name = next((at, name) for at, name in _BELOW if value >= at)
        return f"{_digits(value / (scale or 1e-9))} {name}"
    what = {"bytes/s": "B/s", "flop/s": "FLOP/s"}[unit]
    scale, letter = next(((at, letter) for at, letter in _DECIMAL if value >= at), (1.0, ""))
    return f"{_digits(value / scale)} {letter}{what}"


def _digits(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"
