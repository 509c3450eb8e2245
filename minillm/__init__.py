"""minillm: one request and one set of weights, followed through the whole machine.

| stage      | what happens                                                   | where              |
|------------|----------------------------------------------------------------|--------------------|
| 1 load     | weights go SSD → DRAM → HBM                                    | minillm/load/      |
| 2 tokens   | text becomes ids on the CPU; ids go through DRAM to HBM        | minillm/tokens/    |
| 3 model    | attention and FFN run from HBM; keys and values lie there too  | minillm/model/, kv |
| 4 parallel | ranks share the model, each a part, and sum what they found    | minillm/parallel/  |
| 5 decode   | logits come back to DRAM; the CPU picks a token and its text   | minillm/decode/    |

Every byte that moves between tiers and every second of work is in one place, the trace
(`minillm/trace/trace.py`). `minillm/engine/engine.py` ties the stages together; its `step()` is the
whole story in ten lines.

>>> from minillm import Engine, SamplingParams
>>> engine = Engine.load("data/town")
>>> for piece in engine.stream("What does HBM stand for?", SamplingParams(temperature=0.0)):
...     print(piece.text, end="")
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from shutil import which
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minillm.config import EngineConfig, ModelConfig, ParallelConfig, SamplingParams
    from minillm.engine.engine import Engine
    from minillm.engine.request import Completion, Piece
    from minillm.errors import (
        CheckpointError,
        ConfigError,
        MinillmError,
        OutOfMemory,
        PromptError,
        RankError,
        SessionError,
    )
    from minillm.machine import Machine, Tier
    from minillm.tokens.tokenizer import Tokenizer
    from minillm.trace import Event, Trace
    from minillm.units import format_size, parse_size

__version__ = "0.1.0"

if "torch" not in sys.modules:  # its OpenMP reads this as it loads: see minillm/process.py
    _c = any(map(which, ("cc", "gcc", "clang")))  # then torch computes prompts only
    os.environ.setdefault("GOMP_SPINCOUNT", "3000" if _c else "7000")

# The public names of each module. It is imported when a name of it is first used: `import minillm`
# costs nothing, and `python -m minillm doctor` can run without torch.
_NAMES = {
    "config": ("EngineConfig", "ModelConfig", "ParallelConfig", "SamplingParams"),
    "engine.engine": ("Engine",),
    "engine.request": ("Completion", "Piece"),
    "errors": (
        "CheckpointError", "ConfigError", "MinillmError", "OutOfMemory", "PromptError", "RankError",
        "SessionError",
    ),  # fmt: skip
    "machine": ("Machine", "Tier"),
    "tokens.tokenizer": ("Tokenizer",),
    "trace": ("Event", "Trace"),
    "units": ("format_size", "parse_size"),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}
__all__ = [
    "CheckpointError", "Completion", "ConfigError", "Engine", "EngineConfig", "Event", "Machine",
    "MinillmError", "ModelConfig", "OutOfMemory", "ParallelConfig", "Piece", "PromptError",
    "RankError", "SamplingParams", "SessionError", "Tier", "Tokenizer", "Trace", "format_size",
    "parse_size",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'minillm' has no attribute {name!r}")
    value = getattr(import_module(f"minillm.{_HOME[name]}"), name)
    globals()[name] = value  # the next use does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
