"""The machine: tiers of memory, what lies in them, and what moves between them.

machine.py    SSD, DRAM and HBM with their budgets; copies, each of them on record
tiers.py      a budget, and who holds how much of it
copies.py     how bytes get from one tier to another: by the CPU itself
cuda.py       by a card, on streams of its own
scale.py      by links slowed to a server's proportions
arena.py      one block of a tier, with a place in it for each name
prefetch.py   two slots ahead of use: what is needed next arrives while we compute
host.py       what this process may use: cores, memory; what the processor is
cgroups.py    the limits of containers
disk.py       files, read the way that measures the disk
interrupt.py  Ctrl-C comes when nothing is half done
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minillm.machine.machine import Machine
    from minillm.machine.tiers import Tier

# Imported when first used: what needs no torch, as the limits of containers, comes without it.
_HOME = {"Machine": "machine", "Tier": "tiers"}
__all__ = ["Machine", "Tier"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'minillm.machine' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"minillm.machine.{_HOME[name]}"), name)
    return value
