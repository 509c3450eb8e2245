"""Tiny random checkpoints that four ranks can share, and ranks that are threads."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from minillm.config import ModelConfig
from minillm.load.checkpoint import Checkpoint, assign
from minillm.load.shard import megatron, slices
from minillm.model.llama import Llama
from minillm.parallel.tensor import rank_config

_SHAPE = dict(
    vocab_size=384, hidden_size=64, intermediate_size=256, num_hidden_layers=4,
    num_attention_heads=8, num_key_value_heads=4, head_dim=16, max_position_embeddings=256,
    eos_token_id=1, bos_token_id=0, torch_dtype="float32", rms_norm_eps=1e-6, rope_theta=10_000.0,
)  # fmt: skip
MODELS = {
    "llama": dict(model_type="llama", tie_word_embeddings=True),
    "bias": dict(model_type="llama", attention_bias=True, mlp_bias=True, tie_word_embeddings=False),
    "qwen2": dict(model_type="qwen2", num_key_value_heads=2, tie_word_embeddings=True),
    "qwen3": dict(model_type="qwen3", num_key_value_heads=1, tie_word_embeddings=False),
}
"""q, k, v bias in qwen2, q/k norm in qwen3; K of 4, 2 and 1, so that 4 ranks share heads or not."""


def write(name: str, folder: Path, **changes: Any) -> Path:
    """A checkpoint of MODELS[name], every parameter of it random."""
    settings = {**_SHAPE, **MODELS[name], **changes}
    (folder / "config.json").write_text(json.dumps(settings))
    torch.manual_seed(7)
    model = Llama(ModelConfig.from_pretrained(folder))
    weights = {}
    for key, parameter in model.named_parameters():
        middle, spread = (1, 0.3) if "norm" in key else (0, 0.5 if key.endswith("bias") else 0.3)
        weights[key] = torch.empty_like(parameter).normal_(middle, spread).detach()
    save_file(weights, folder / "model.safetensors")
    return folder


def tensor_of(info: Any) -> torch.Tensor:
    """What a rank has of a tensor, read the slow way."""
    content = info.file.read_bytes()
    raw = b"".join(content[a:b] for a, b in info.ranges)
    return torch.frombuffer(bytearray(raw), dtype=info.dtype).view(info.shape)


def build(folder: Path, rank: int = 0, ranks: int = 1, layers: range | None = None) -> Llama:
    """The model that a rank of a tensor parallel group has, with its slices of the weights."""
    config = ModelConfig.from_pretrained(folder)
    own = slices(Checkpoint.open(folder), rank, ranks, megatron(config))
    model = Llama(rank_config(config, ranks), layers=layers).eval()
    names = [name for name, _ in model.named_parameters()]
    assign(model, {name: tensor_of(own.tensors[name]) for name in names})
    return model


class _Shared:
    def __init__(self, count: int) -> None:
        self.gate, self.slots = threading.Barrier(count), [None] * count
        self.mail = {(a, b): _Box() for a in range(count) for b in range(count)}


class _Box:
    def __init__(self) -> None:
        self.full, self.empty, self.value = threading.Semaphore(0), threading.Semaphore(1), None


class Threads:
    """One rank's side of a group whose ranks are threads: as `minillm.parallel.mesh.Group`.

    A send waits until its message was received, as over a network with no room in between.
    """

    def __init__(self, shared: _Shared, index: int) -> None:
        self._shared, self.index, self.size = shared, index, len(shared.slots)
        self.sums = self.sent = 0  # all-reduces, and bytes that went to somebody

    def _all(self, x: torch.Tensor) -> list[torch.Tensor]:
        self._shared.slots[self.index] = x.clone()
        self._shared.gate.wait(20)
        got = list(self._shared.slots)
        self._shared.gate.wait(20)
        return got

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        self.sums += 1
        self.sent += x.nbytes
        return x.copy_(torch.stack(self._all(x)).sum(0))

    def all_gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        return self._all(x)

    def send(self, x: torch.Tensor, to: int) -> None:
        box = self._shared.mail[self.index, to]
        assert box.empty.acquire(timeout=20), "nobody receives"
        self.sent += x.nbytes
        box.value = x.clone()
        box.full.release()
        assert box.empty.acquire(timeout=20), "nobody receives"
        box.empty.release()

    def recv(self, x: torch.Tensor, source: int) -> torch.Tensor:
        box = self._shared.mail[source, self.index]
        assert box.full.acquire(timeout=20), "nobody sends"
        assert box.value.shape == x.shape and box.value.dtype == x.dtype, (x.shape, x.dtype)
        x.copy_(box.value)
        box.empty.release()
        return x


def run(tp: int, pp: int, do: Callable[[Threads, Threads], Any]) -> list[Any]:
    """What `do(tp group, pp group)` returned on each of tp x pp threads, pipeline outermost."""
    across = [_Shared(tp) for _ in range(pp)]
    along = [_Shared(pp) for _ in range(tp)]
    results: list[Any] = [None] * (tp * pp)

    def work(rank: int) -> None:
        stage, place = divmod(rank, tp)
        with torch.no_grad():
            try:
                results[rank] = do(Threads(across[stage], place), Threads(along[place], stage))
            except Exception as error:
                results[rank] = error

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(tp * pp)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results
