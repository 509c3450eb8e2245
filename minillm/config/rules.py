"""What a setting must satisfy, and how an error says it; held when a setting is made."""

from __future__ import annotations

import math
from collections.abc import Callable
from reprlib import repr as short  # a number may have thousands of digits
from typing import Any

from minillm.errors import ConfigError
from minillm.units import parse_size

DTYPES = ("float32", "bfloat16", "float16")


def is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    small = is_int(value) and abs(value) < 2**63  # torch takes no larger one
    return small or (isinstance(value, float) and math.isfinite(value))


# A rule is what a value must satisfy, and how the error message says it.
Rule = tuple[Callable[[Any], bool], str]
COUNT: Rule = (lambda v: is_int(v) and v > 0, "an int > 0")
POSITIVE: Rule = (lambda v: is_number(v) and v > 0, "a number > 0")
FLAG: Rule = (lambda v: isinstance(v, bool), "true or false")


def up_to(most: int, *others: None) -> Rule:
    wanted = f"an int from 1 to {most:,}" + ", or None" * len(others)
    return lambda v: v in others or (is_int(v) and 0 < v <= most), wanted


def between(least: float, most: float) -> Rule:
    return lambda v: is_number(v) and least <= v <= most, f"a number from {least} to {most}"


BYTES_OR_NONE: Rule = (
    lambda v: v is None or (parse_size(v) > 0 if isinstance(v, str) else is_int(v) and v > 0),
    'bytes, as a number or as in "32 MiB", or None',
)

# Far above every model there is, and far below what only to describe takes minutes and memory.
SIZE, SIZE_OR_NONE = up_to(2**31), up_to(2**31, None)


def one_of(*values: str) -> Rule:
    return lambda v: v in values, f"one of {', '.join(values)}"


def check(settings: object, **rules: Rule) -> None:
    """Hold each named attribute of `settings` against its rule. Raises ConfigError."""
    for name, (holds, wanted) in rules.items():
        value = getattr(settings, name)
        if not holds(value):
            raise ConfigError(f"wanted {name} to be {wanted}, found {short(value)}; correct it")
