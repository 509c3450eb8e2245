"""The ways that `bench decode` sets side by side: each a call that returns seconds."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from minillm.config import EngineConfig, SamplingParams
from minillm.engine.engine import Engine
from minillm.errors import ConfigError
from minillm.machine import Machine
from minillm.machine.host import n_cores
from minillm.tools import bench_decode_llama

PROMPT = 16  # tokens read before decoding
Run = Callable[[int, int, int], tuple[float, float]]
"""(batch, tokens of each prompt, tokens of each answer after its first) -> seconds of both."""


class Ours:
    """The engine, closed at the end of `stack`."""

    def __init__(self, folder: Path, kernels: str, stack: ExitStack) -> None:
        self.engine = Engine.load(folder, Machine.here(), EngineConfig(kernels=kernels))
        stack.callback(self.engine.close)
        model = self.engine.model
        self.weight_bytes = sum(p.nbytes for p in model.parameters())  # that a token reads
        if not model.config.tie_word_embeddings:
            self.weight_bytes -= model.model.embed_tokens.weight.nbytes

    def __call__(self, batch: int, prompt: int, tokens: int) -> tuple[float, float]:
        V = self.engine.model_config.vocab_size
        params = SamplingParams(tokens + 1, temperature=0.0, ignore_eos=True)
        ids = [[(7 * i + n) % V for i in range(prompt)] for n in range(batch)]
        streams = [self.engine.stream(row, params) for row in ids]
        self.engine.trace.clear()
        began = time.perf_counter()
        for stream in streams:
            next(stream)
        read = time.perf_counter()
        for _ in range(tokens):
            for stream in streams:
                next(stream)
        return read - began, time.perf_counter() - read


class Transformers:
    """The library's model, driven by hand: no generation loop of its own is in the way."""

    def __init__(self, folder: Path, dtype: str) -> None:
        auto = importlib.import_module("transformers").AutoModelForCausalLM
        self.model = auto.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    @torch.inference_mode()
    def __call__(self, batch: int, prompt: int, tokens: int) -> tuple[float, float]:
        ids = 7 * torch.arange(prompt)[None] + torch.arange(batch)[:, None]
        newest, past, times = ids % self.model.config.vocab_size, None, [time.perf_counter()]
        for _ in range(tokens + 1):
            out = self.model(newest, past_key_values=past, use_cache=True, logits_to_keep=1)
            newest, past = out.logits[:, -1:].argmax(-1), out.past_key_values
            times.append(time.perf_counter())
        return times[1] - times[0], times[-1] - times[1]


@contextmanager
def llama_cpp(folder: Path, python: str | None) -> Iterator[Run]:
    """llama.cpp in a process of its own, asked by lines."""
    packages = python if python and Path(python).is_dir() else None
    command = [sys.executable if packages else python or sys.executable]
    command += [bench_decode_llama.__file__, str(folder.resolve()), str(n_cores())]
    process = subprocess.Popen(
        command, env=os.environ | ({"PYTHONPATH": packages} if packages else {}), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        if process.stdout.readline() != "ready\n":
            why = process.stderr.read().strip().rpartition("\n")[2]
            raise ConfigError(f"wanted a Python with llama_cpp and gguf, found {why}; see --llama")

        def ask(*numbers: int) -> tuple[float, float]:
            print(*numbers, file=process.stdin, flush=True)
            read, wrote = map(float, process.stdout.readline().split())
            return read, wrote

        yield ask
    finally:
        process.stdin.close()
        process.wait()
