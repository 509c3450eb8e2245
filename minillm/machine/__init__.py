"""The machine: tiers of memory, what lies in them, and what moves between them.

machine.py    SSD, DRAM and HBM with their budgets; copies, each of them on record
arena.py      one block of a tier, with a place in it for each name
prefetch.py   two slots ahead of use: what is needed next arrives while we compute
interrupt.py  Ctrl-C comes when nothing is half done
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minillm.machine.host import available_dram
    from minillm.machine.machine import Machine
    from minillm.machine.tiers import Tier

# Imported when first used: some of these modules are below others that a machine is made of.
_HOME = {"Machine": "machine.machine", "Tier": "tier", "available_dram": "host"}
__all__ = ["Machine", "Tier", "available_dram"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'minillm.machine' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"minillm.{_HOME[name]}"), name)
    return value
