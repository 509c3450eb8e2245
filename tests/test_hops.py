"""How many functions of ours a reader has to visit to follow a load, and a token."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
import torch

from minillm.config import EngineConfig, ModelConfig, SamplingParams
from minillm.engine.engine import Engine
from minillm.load import READERS, Checkpoint, load
from minillm.machine import Machine
from minillm.model import Llama

PACKAGE = str(Path(__file__).resolve().parent.parent / "minillm")
# At most so many functions, in so many files.
LOAD = 100, 18
STEP = 50, 16  # the design says 15 files: one is still too many


@contextmanager
def visits() -> Iterator[set[tuple[str, str, int]]]:
    """(file, function, line) of the package's functions that any thread enters meanwhile.

    Lambdas and comprehensions are read where they stand: they are no visit.
    """
    found: set[tuple[str, str, int]] = set()

    def enter(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        ours = code.co_filename.startswith(PACKAGE) and not code.co_name.startswith("<")
        if event == "call" and ours:
            found.add((code.co_filename, code.co_name, code.co_firstlineno))

    threading.setprofile(enter)
    sys.setprofile(enter)
    try:
        yield found
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def assert_few(found: set[tuple[str, str, int]], most: tuple[int, int]) -> None:
    functions, files = len(found), len({file for file, _, _ in found})
    names = sorted(f"{Path(file).stem}.{name}" for file, name, _ in found)
    assert functions <= most[0] and files <= most[1], (functions, files, names)
    assert functions > 20, "nothing was seen"


@pytest.mark.parametrize("reader", READERS)
def test_a_load_can_be_followed(tiny, machine, reader):
    """Catches a layer of calls put between a folder and the parameters in HBM."""
    folder = tiny("llama")
    with torch.device("meta"):
        model = Llama(ModelConfig.from_pretrained(folder))
    with visits() as found:
        load(model, Checkpoint.open(folder), machine, torch.float32, reader).close()
    assert_few(found, LOAD)


def test_a_token_can_be_followed(tiny):
    """Catches a layer of calls put between a request and its next token."""
    machine = Machine.here(hbm="64 MiB", device="cpu")
    engine = Engine.load(tiny("llama"), machine, EngineConfig())
    greedy = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)
    pieces = engine.stream("Mia put the red key", greedy)
    next(pieces), next(pieces)  # prefill, and what is made once
    with visits() as found:
        next(pieces)
    pieces.close()
    engine.close()
    assert_few(found, STEP)
