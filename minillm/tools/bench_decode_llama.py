"""llama.cpp, for `bench decode`: a program of its own, since it may live in another environment.

    PYTHON decode_llama.py CHECKPOINT THREADS      reads lines `decode BATCH TOKENS` or `prefill
                                                TOKENS`, answers each with seconds

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

PROMPT = 16  # tokens read before decoding


def main(folder: Path, threads: int) -> None:
    with tempfile.TemporaryDirectory(prefix="minillm-gguf-") as work:
        write_gguf(folder, Path(work) / "model.gguf")
        llama = Llama(Path(work) / "model.gguf", threads)
        print("ready", flush=True)
        for line in sys.stdin:
            what, *numbers = line.split()
            print(getattr(llama, what)(*map(int, numbers)), flush=True)


def write_gguf(folder: Path, path: Path) -> None:
    """The weights as they are (norms as float32), for a vocabulary without texts."""
    import gguf

    c = json.loads((folder / "config.json").read_text())
    out = gguf.GGUFWriter(str(path), "llama")
    size = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    out.add_context_length(c["max_position_embeddings"])
    out.add_embedding_length(c["hidden_size"])
    out.add_block_count(c["num_hidden_layers"])
    out.add_feed_forward_length(c["intermediate_size"])
    out.add_head_count(c["num_attention_heads"])
    out.add_head_count_kv(c["num_key_value_heads"])
    out.add_key_length(size)
    out.add_value_length(size)
    out.add_rope_dimension_count(size)
    out.add_layer_norm_rms_eps(c["rms_norm_eps"])
    out.add_rope_freq_base(c.get("rope_theta", 10000.0))
    out.add_vocab_size(c["vocab_size"])
    out.add_tokenizer_model("none")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, c["num_hidden_layers"])
    for name, rows in _weights(folder, c):
        wide = rows.ndim == 1  # a norm
        kind = None if wide else gguf.GGMLQuantizationType.BF16
        new = names.get_name(name, try_suffixes=(".weight",))
        out.add_tensor(new, _as_floats(rows) if wide else _as_bytes(rows), raw_dtype=kind)
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


def _as_floats(bits: Any) -> Any:
    return (bits.astype("uint32") << 16).view("float32")


def _as_bytes(bits: Any) -> Any:
    return bits.copy(order="C").view("uint8")


class Llama:
    """One model and one context of eight sequences. Every method returns seconds."""

    def __init__(self, path: Path, threads: int):
        import llama_cpp as lc
        import numpy as np

        self.lc, self.np = lc, np
        self._quiet = lc.llama_log_callback(lambda *_: None)
        lc.llama_log_set(self._quiet, None)
        self._model = lc.llama_model_load_from_file(
            str(path).encode(), lc.llama_model_default_params()
        )
        self.vocabulary = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(self._model))
        p = lc.llama_context_default_params()
        p.n_ctx, p.n_batch, p.n_ubatch, p.n_seq_max = 8 * 1024, 512, 512, 8
        p.n_threads = p.n_threads_batch = threads
        self.context = lc.llama_init_from_model(self._model, p)
        self._batch = lc.llama_batch_init(512, 0, 8)

    def decode(self, batch: int, tokens: int) -> float:
        """So many greedy tokens for each of some sequences, after short prompts."""
        prompt = [[(7 * i + n) % self.vocabulary for i in range(PROMPT)] for n in range(batch)]
        self._clear()
        newest = self._run(prompt, 0)
        began = time.perf_counter()
        for n in range(tokens):
            newest = self._run([[token] for token in newest], PROMPT + n)
        return time.perf_counter() - began

    def prefill(self, tokens: int) -> float:
        """From a prompt of so many tokens to the first one of the answer."""
        self._clear()
        began = time.perf_counter()
        self._run([[7 * i % self.vocabulary for i in range(tokens)]], 0)
        return time.perf_counter() - began

    def _clear(self) -> None:
        self.lc.llama_memory_clear(self.lc.llama_get_memory(self.context), True)

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
        as_array = self.np.ctypeslib.as_array
        return [int(as_array(row, shape=(self.vocabulary,)).argmax()) for row in logits]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
