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

from minillm.config import EngineConfig, ModelConfig, ParallelConfig, SamplingParams
from minillm.errors import (
    CheckpointError,
    ConfigError,
    MinillmError,
    OutOfMemory,
    PromptError,
    RankError,
    SessionError,
)
from minillm.trace import Event, Trace
from minillm.units import format_size, parse_size

if TYPE_CHECKING:
    from minillm.engine.engine import Engine
    from minillm.engine.request import Completion, Piece
    from minillm.machine import Machine, Tier
    from minillm.tokens.tokenizer import Tokenizer

__version__ = "0.1.0"

if "torch" not in sys.modules:  # its OpenMP reads this as it loads: see minillm/process.py
    _c = any(map(which, ("cc", "gcc", "clang")))  # then torch computes prompts only
    os.environ.setdefault("GOMP_SPINCOUNT", "3000" if _c else "7000")

# What needs torch is imported when it is first used: `import minillm` takes a moment, and
# `python -m minillm doctor` can run without torch.
_HOME = {
    "Engine": "engine.engine", "Completion": "engine.request", "Piece": "engine.request",
    "Machine": "machine", "Tier": "machine", "Tokenizer": "tokens.tokenizer",
}  # fmt: skip
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
