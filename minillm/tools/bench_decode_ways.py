"""The ways that `bench decode` sets side by side: each a generator that yields after each pass."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from minillm.config import EngineConfig, ModelConfig, SamplingParams
from minillm.engine.engine import Engine
from minillm.files import temporary_folder
from minillm.machine import Machine
from minillm.machine.host import n_cores

PROMPT, SEQUENCES = 16, 8  # tokens read before decoding; at most so many at once
Way = Callable[[int, int, int], Iterator[None]]
"""(batch, tokens of each prompt, tokens of each answer after its first) -> one pass after another,
the first of them over the prompts."""


def seconds(way: Way, batch: int, prompt: int, tokens: int) -> tuple[float, float]:
    """Of reading the prompts, and of writing the tokens after each one's first."""
    passes = way(batch, prompt, tokens)
    began = time.perf_counter()
    next(passes)
    read = time.perf_counter()
    for _ in passes:
        pass
    return read - began, time.perf_counter() - read


def prompts(batch: int, length: int, vocabulary: int) -> list[list[int]]:
    """Different ids for each sequence, the same for every way."""
    return [[(7 * i + n) % vocabulary for i in range(length)] for n in range(batch)]


class Ours:
    """The engine, closed at the end of `stack`."""

    def __init__(self, folder: Path, kernels: str, stack: ExitStack) -> None:
        self.engine = Engine.load(folder, Machine.here(), EngineConfig(kernels=kernels))
        stack.callback(self.engine.close)
        model = self.engine.model
        self.weight_bytes = sum(p.nbytes for p in model.parameters())  # that a token reads
        if not model.config.tie_word_embeddings:
            self.weight_bytes -= model.model.embed_tokens.weight.nbytes

    def __call__(self, batch: int, prompt: int, tokens: int) -> Iterator[None]:
        params = SamplingParams(tokens + 1, temperature=0.0, ignore_eos=True)
        ids = prompts(batch, prompt, self.engine.model_config.vocab_size)
        self.engine.trace.clear()
        for _ in zip(*(self.engine.stream(row, params) for row in ids), strict=True):
            yield


class Transformers:
    """The library's model, driven by hand: no generation loop of its own is in the way."""

    def __init__(self, folder: Path, dtype: str) -> None:
        auto = importlib.import_module("transformers").AutoModelForCausalLM
        self.model = auto.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    @torch.inference_mode()
    def __call__(self, batch: int, prompt: int, tokens: int) -> Iterator[None]:
        newest, past = torch.tensor(prompts(batch, prompt, self.model.config.vocab_size)), None
        for _ in range(tokens + 1):
            out = self.model(newest, past_key_values=past, use_cache=True, logits_to_keep=1)
            newest, past = out.logits[:, -1:].argmax(-1), out.past_key_values
            yield


class LlamaCpp:
    """llama.cpp by its C interface. The bf16 weights are written as GGUF, until `stack` ends; what
    it takes of memory, it keeps.

    packages: a folder that has llama_cpp and gguf, as another environment's site-packages; what
    is here already comes first. ImportError where they are not.
    """

    def __init__(self, folder: Path, packages: str | None, stack: ExitStack) -> None:
        if packages not in (None, *sys.path):
            sys.path.append(packages)
        lc = self._lc = importlib.import_module("llama_cpp")
        path = Path(stack.enter_context(temporary_folder())) / "model.gguf"
        write_gguf(folder, path)
        self._quiet = lc.llama_log_callback(lambda *_: None)  # kept, for C calls it
        lc.llama_log_set(self._quiet, None)
        model = lc.llama_model_load_from_file(bytes(path), lc.llama_model_default_params())
        self._vocabulary = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(model))
        p = lc.llama_context_default_params()
        p.n_ctx, p.n_batch, p.n_ubatch, p.n_seq_max = SEQUENCES * 1024, 512, 512, SEQUENCES
        p.n_threads = p.n_threads_batch = n_cores()
        self._context = lc.llama_init_from_model(model, p)
        self._batch = lc.llama_batch_init(512, 0, SEQUENCES)

    def __call__(self, batch: int, prompt: int, tokens: int) -> Iterator[None]:
        self._lc.llama_memory_clear(self._lc.llama_get_memory(self._context), True)
        rows = prompts(batch, prompt, self._vocabulary)
        for start in (0, *range(prompt, prompt + tokens)):
            rows = self._run(rows, start)
            yield

    def _run(self, rows: list[list[int]], start: int) -> list[list[int]]:
        """A pass over new tokens of each sequence; the likeliest next of each."""
        b, last = self._batch, []
        b.n_tokens = 0
        for sequence, row in enumerate(rows):
            for j, token in enumerate(row):
                i = b.n_tokens
                b.token[i], b.pos[i], b.n_seq_id[i] = token, start + j, 1
                b.seq_id[i][0], b.logits[i] = sequence, j == len(row) - 1
                b.n_tokens += 1
            last.append(b.n_tokens - 1)
        assert self._lc.llama_decode(self._context, b) == 0
        logits = (self._lc.llama_get_logits_ith(self._context, i) for i in last)
        return [[int(np.ctypeslib.as_array(r, (self._vocabulary,)).argmax())] for r in logits]


def write_gguf(folder: Path, path: Path) -> None:
    """A Llama's bf16 weights as they are (norms as float32), for a vocabulary without texts."""
    gguf, c = importlib.import_module("gguf"), ModelConfig.from_pretrained(folder)
    out, heads = gguf.GGUFWriter(path, "llama"), c.num_attention_heads
    values = {
        "context_length": c.max_position_embeddings, "embedding_length": c.hidden_size,
        "block_count": c.num_hidden_layers, "feed_forward_length": c.intermediate_size,
        "head_count": heads, "head_count_kv": c.num_key_value_heads, "key_length": c.head_dim,
        "value_length": c.head_dim, "rope_dimension_count": c.head_dim,
        "layer_norm_rms_eps": c.rms_norm_eps, "rope_freq_base": c.rope_theta,
        "vocab_size": c.vocab_size, "tokenizer_model": "none",
    }  # fmt: skip
    for name, value in values.items():
        getattr(out, f"add_{name}")(value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, c.num_hidden_layers)
    tensors = (pair for file in folder.glob("*.safetensors") for pair in load_file(file).items())
    for name, t in tensors:
        new = names.get_name(name, try_suffixes=(".weight",))
        if name.endswith(("q_proj.weight", "k_proj.weight")):  # llama.cpp turns neighbours
            n = heads if "q_proj" in name else c.num_key_value_heads
            t = t.view(n, 2, -1, t.shape[1]).transpose(1, 2).reshape(t.shape)
        bits = t.float() if t.ndim == 1 else t.bfloat16().view(torch.uint8)
        kind = None if t.ndim == 1 else gguf.GGMLQuantizationType.BF16
        out.add_tensor(new, bits.numpy(), raw_dtype=kind)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
