"""The ways that `bench decode` sets side by side: each a call that returns seconds."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from minillm.config import EngineConfig, SamplingParams
from minillm.engine.engine import Engine
from minillm.errors import ConfigError
from minillm.machine import Machine
from minillm.machine.host import n_cores
from minillm.tools import bench_decode_llama as decode_llama

PROMPT = decode_llama.PROMPT
Run = Callable[..., float]
"""(batch, tokens) -> seconds of decoding; (tokens) -> seconds to the first token of an answer."""



class Ours:
    """The engine behind one way. `engine` is public for what is measured beside the rounds."""

    def __init__(self, folder: Path, **settings: object):
        self.engine = Engine.load(folder, Machine.here(), EngineConfig(**settings))
        self.vocabulary = self.engine.model_config.vocab_size

    def __call__(self, *numbers: int) -> float:
        return self.decode(*numbers) if len(numbers) == 2 else self.prefill(*numbers)

    def streams(self, batch: int, prompt: int, tokens: int) -> list[Iterator[object]]:
        params = SamplingParams(tokens, temperature=0.0, ignore_eos=True)
        ids = [[(7 * i + n) % self.vocabulary for i in range(prompt)] for n in range(batch)]
        return [self.engine.stream(row, params) for row in ids]

    def decode(self, batch: int, tokens: int, each: list[float] | None = None) -> float:
        """Seconds of so many tokens for each stream; each: gets the seconds of every step."""
        streams = self.streams(batch, PROMPT, tokens + 1)
        for stream in streams:
            next(stream)
        self.engine.trace.clear()
        began = last = time.perf_counter()
        for _ in range(tokens):
            for stream in streams:
                next(stream)
            now = time.perf_counter()
            if each is not None:
                each.append(now - last)
            last = now
        return last - began

    def prefill(self, tokens: int) -> float:
        (stream,) = self.streams(1, tokens, 1)
        began = time.perf_counter()
        next(stream)
        return time.perf_counter() - began


class Transformers:
    """The library's model, driven by hand: no generation loop of its own is in the way."""

    def __init__(self, folder: Path, dtype: torch.dtype):
        auto = importlib.import_module("transformers").AutoModelForCausalLM
        self.model = auto.from_pretrained(folder, dtype=dtype).eval()

    @torch.inference_mode()
    def __call__(self, *numbers: int) -> float:
        batch, tokens = numbers if len(numbers) == 2 else (1, 0)
        length = PROMPT if tokens else numbers[0]
        V = self.model.config.vocab_size
        ids = (7 * torch.arange(length)[None] + torch.arange(batch)[:, None]) % V
        began = time.perf_counter()
        out = self.model(ids, use_cache=True, logits_to_keep=1)
        newest = out.logits[:, -1:].argmax(-1)
        if tokens:
            began = time.perf_counter()
        for _ in range(tokens):
            out = self.model(newest, past_key_values=out.past_key_values, use_cache=True)
            newest = out.logits[:, -1:].argmax(-1)
        return time.perf_counter() - began


@contextmanager
def llama_cpp(folder: Path, python: str | None) -> Iterator[Run]:
    """llama.cpp in a process of its own, asked by lines."""
    command, more = [python or sys.executable], {}
    if python and Path(python).is_dir():
        command, more = [sys.executable], {"PYTHONPATH": python}
    command += [str(Path(decode_llama.__file__)), str(folder.resolve()), str(n_cores())]
    process = subprocess.Popen(
        command, env=os.environ | more, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        if process.stdout.readline() != "ready\n":
            why = process.stderr.read().strip().rpartition("\n")[2]
            raise ConfigError(f"wanted a Python with llama_cpp and gguf, found {why}; see --llama")

        def ask(*numbers: int) -> float:
            what = "decode" if len(numbers) == 2 else "prefill"
            print(what, *numbers, file=process.stdin, flush=True)
            return float(process.stdout.readline())

        yield ask
    finally:
        process.stdin.close()
        process.wait()


