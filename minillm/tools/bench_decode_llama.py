"""llama.cpp, for `bench decode`: a program of its own, since it may live in another environment.

    PYTHON bench_decode_llama.py CHECKPOINT THREADS

reads lines `BATCH PROMPT TOKENS` and answers each with seconds of reading so many prompts of
PROMPT tokens and of writing TOKENS more for each after its first.

Needs llama_cpp, gguf and numpy, and nothing of this package. The checkpoint's bf16 weights are
first written as GGUF, which is deleted again.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def main(folder: Path, threads: int) -> None:
    with tempfile.TemporaryDirectory(prefix="minillm-gguf-") as work:
        write_gguf(folder, Path(work) / "model.gguf")
        llama = Llama(Path(work) / "model.gguf", threads)
        print("ready", flush=True)
        for line in sys.stdin:
            print(*llama(*map(int, line.split())), flush=True)


def write_gguf(folder: Path, path: Path) -> None:
    """The weights as they are (norms as float32), for a vocabulary without texts."""
    import gguf

    c = json.loads((folder / "config.json").read_text())
    out = gguf.GGUFWriter(str(path), "llama")
    size = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    values = {
        "context_length": c["max_position_embeddings"], "embedding_length": c["hidden_size"],
        "block_count": c["num_hidden_layers"], "feed_forward_length": c["intermediate_size"],
        "head_count": c["num_attention_heads"], "head_count_kv": c["num_key_value_heads"],
        "key_length": size, "value_length": size, "rope_dimension_count": size,
        "layer_norm_rms_eps": c["rms_norm_eps"], "rope_freq_base": c.get("rope_theta", 10000.0),
        "vocab_size": c["vocab_size"], "tokenizer_model": "none",
    }  # fmt: skip
    for name, value in values.items():
        getattr(out, f"add_{name}")(value)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, c["num_hidden_layers"])
    for name, rows in _weights(folder, c):
        norm = rows.ndim == 1
        kind = None if norm else gguf.GGMLQuantizationType.BF16
        bits = (rows.astype("uint32") << 16).view("float32") if norm else rows.copy(order="C")
        new = names.get_name(name, try_suffixes=(".weight",))
        out.add_tensor(new, bits if norm else bits.view("uint8"), raw_dtype=kind)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def _weights(folder: Path, c: dict) -> Iterator[tuple[str, Any]]:
    """The bf16 tensors of a checkpoint as numpy's uint16: numpy has no bf16."""
    import numpy as np

    for file in sorted(folder.glob("*.safetensors")):
        data = np.memmap(file, np.uint8, "r")
        begin = 8 + int(data[:8].view(np.uint64)[0])
        header = json.loads(bytes(data[8:begin]))
        header.pop("__metadata__", None)
        for name, info in header.items():
            assert info["dtype"] == "BF16", f"wanted BF16 weights, found {name}: {info['dtype']}"
            start, stop = info["data_offsets"]
            rows = data[begin + start : begin + stop].view(np.uint16).reshape(info["shape"])
            if name.endswith(("q_proj.weight", "k_proj.weight")):  # llama.cpp turns neighbours
                n = c["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
                rows = rows.reshape(n, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
            yield name, rows


class Llama:
    """One model and one context of eight sequences."""

    def __init__(self, path: Path, threads: int):
        import llama_cpp as lc
        import numpy as np

        self.lc, self.as_array = lc, np.ctypeslib.as_array
        self._quiet = lc.llama_log_callback(lambda *_: None)
        lc.llama_log_set(self._quiet, None)
        given = lc.llama_model_default_params()
        self._model = lc.llama_model_load_from_file(str(path).encode(), given)
        self.vocabulary = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(self._model))
        p = lc.llama_context_default_params()
        p.n_ctx, p.n_batch, p.n_ubatch, p.n_seq_max = 8 * 1024, 512, 512, 8
        p.n_threads = p.n_threads_batch = threads
        self.context = lc.llama_init_from_model(self._model, p)
        self._batch = lc.llama_batch_init(512, 0, 8)

    def __call__(self, batch: int, prompt: int, tokens: int) -> tuple[float, float]:
        """Greedy; seconds of the prompts up to a first token each, and of so many more."""
        rows = [[(7 * i + n) % self.vocabulary for i in range(prompt)] for n in range(batch)]
        self.lc.llama_memory_clear(self.lc.llama_get_memory(self.context), True)
        began = time.perf_counter()
        newest = self._run(rows, 0)
        read = time.perf_counter()
        for n in range(tokens):
            newest = self._run([[token] for token in newest], prompt + n)
        return read - began, time.perf_counter() - read

    def _run(self, rows: list[list[int]], start: int) -> list[int]:
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
        assert self.lc.llama_decode(self.context, b) == 0
        logits = (self.lc.llama_get_logits_ith(self.context, i) for i in last)
        return [int(self.as_array(row, shape=(self.vocabulary,)).argmax()) for row in logits]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
