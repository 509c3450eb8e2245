"""What the tests share: tiny random checkpoints in Hugging Face's layout, and a small machine.

The checkpoints are made by transformers, so that its result is the reference, and every norm
weight and bias is random: one that the model forgets shows in the logits.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from minillm.config import ModelConfig
from minillm.files import save, sweep, temporary_folder
from minillm.load import readers
from minillm.machine import Machine
from minillm.model import Llama
from minillm.trace import Trace

# Tiny models gain nothing from a second thread, and on a busy machine two wait for each other.
torch.set_num_threads(1)


NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"


def pytest_configure(config: pytest.Config) -> None:
    """No test, and no kernel that nbval starts, finds or changes what a learner keeps: at home, or
    beside the notebooks. Nor is anything left behind: nbval kills its kernels."""
    home = temporary_folder()
    config.add_cleanup(home.cleanup)
    os.environ["MINILLM_HOME"] = home.name
    if not hasattr(config, "workerinput"):  # of several processes, the one that ends last
        for folder in (NOTEBOOKS, tempfile.gettempdir()):
            config.add_cleanup(partial(sweep, folder))
        config.add_cleanup(partial(put_back, recordings(NOTEBOOKS)))


def recordings(folder: Path) -> dict[Path, bytes | None]:
    """What lessons save there under names of their own, and a learner may want to keep."""
    paths = [folder / name for name in ("tour_run.json", "tour_run.html")]
    return {path: path.read_bytes() if path.exists() else None for path in paths}


def put_back(before: dict[Path, bytes | None]) -> None:
    """Have `recordings` say again what they said before."""
    for path, data in before.items():
        if data is None:
            path.unlink(missing_ok=True)
        elif not path.exists() or path.read_bytes() != data:
            save(path, data)


VOCABULARY = 384
_SHAPE = dict(
    vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
    bos_token_id=0, eos_token_id=1, pad_token_id=None, initializer_range=0.3,
)  # fmt: skip
# Waves of 64 tokens and more are stretched, up to 16 kept, two of the eight lie in between.
_LLAMA3 = dict(
    rope_type="llama3", rope_theta=10000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=64,
)  # fmt: skip
TINY = {
    "llama3": LlamaConfig(**_SHAPE, rope_parameters=_LLAMA3, tie_word_embeddings=True),
    "llama": LlamaConfig(**_SHAPE, tie_word_embeddings=False),
    "llama-bias": LlamaConfig(**_SHAPE, attention_bias=True, mlp_bias=True),
    "mistral": MistralConfig(**_SHAPE, sliding_window=None),
    "qwen2": Qwen2Config(**_SHAPE, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**_SHAPE, head_dim=32, tie_word_embeddings=False),  # H · E is not D
}
"""Name to configuration: q, k, v bias in qwen2, q/k norm and a wide head in qwen3, …"""


def write_tiny_checkpoint(name: str, folder: Path, **save) -> Path:
    """Save a random float32 model of TINY[name] and a byte-level tokenizer in `folder`.

    `save` goes to transformers' `save_pretrained` (`max_shard_size="100KB"` makes shards).
    """
    torch.manual_seed(len(name))
    model = AutoModelForCausalLM.from_config(TINY[name], dtype=torch.float32)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bias"):
                parameter.normal_(0, 0.5)
            elif "norm" in key:
                parameter.normal_(1, 0.3)
    model.save_pretrained(folder, **save)
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def tiny_tokenizer() -> Tokenizer:
    """Byte-level BPE with <bos> 0, put before every text, and <eos> 1; any text round-trips."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<bos>", "<eos>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    text = "Mia put the red key in the chest. The code of the chest is 4713. Where is the key?"
    tokenizer.train_from_iterator([text] * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 0)]
    )
    return tokenizer


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny(name)`: the folder of that tiny checkpoint, written once a session.  Do not edit."""
    folders: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in folders:
            folders[name] = write_tiny_checkpoint(name, tmp_path_factory.mktemp(name))
        return folders[name]

    return folder


@pytest.fixture
def machine() -> Machine:
    """A CPU machine with 64 MiB of emulated HBM and its own trace."""
    return Machine.here(hbm="64 MiB", device="cpu")


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page cache seems to hold nothing, so that files which were just written count as cold."""
    monkeypatch.setattr(readers, "cached", lambda fd, size: 0.0)


@contextmanager
def moving(trace: Trace, name: str, **fields: object) -> Iterator[None]:
    """Record the time of a `with` block as a transfer; `fields` as of `Trace.transfer`."""
    start = trace.now()
    yield
    trace.transfer(name, start=start, seconds=trace.now() - start, **fields)


def reference(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The checkpoint as transformers runs it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def ours(theirs: PreTrainedModel, folder: Path) -> Llama:
    """The checkpoint in our model, by name and strictly, without the loader."""
    model = Llama(ModelConfig.from_pretrained(folder)).to(theirs.dtype)
    weights = theirs.state_dict()
    if model.config.tie_word_embeddings:
        weights.pop("lm_head.weight")
    model.load_state_dict(weights, strict=True)
    return model.eval()


def random_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    """Token ids of the given shape, none of them special; the same for the same seed."""
    return torch.randint(2, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))
