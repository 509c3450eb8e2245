"""The engine: a request goes from text to text through all stages, and the trace sees each step.

Shapes: B rows of the batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path

import torch

from minillm.config import EngineConfig, ModelConfig, SamplingParams
from minillm.decode.detokenize import Detokenizer
from minillm.decode.sampling import generator
from minillm.engine.batch import Batch, groups
from minillm.engine.forward import Forward, build
from minillm.engine.request import Completion, Piece, Prompt, Request, check_length, prompt_ids
from minillm.engine.weights import Resident, Streamed
from minillm.errors import CheckpointError, ConfigError
from minillm.load.shard import Checkpoint
from minillm.machine import Machine
from minillm.model.llama import Llama
from minillm.predict import kv_bytes_per_token
from minillm.tokens.tokenizer import Tokenizer

_ENGINE, _SAMPLING = EngineConfig(), SamplingParams()


class Engine:
    """A model ready to answer, in HBM or streamed through it. `Engine.load` makes one.

    >>> engine = Engine.load("data/town", Machine.here(hbm="64 MiB"))
    >>> for piece in engine.stream("Mia put the red key", SamplingParams(max_tokens=20)):
    ...     print(piece.text, end="")
    >>> engine.generate(["Mia", "Tom"], SamplingParams(temperature=0.0))[1].text

    Same seed, same text, whatever else is in the batch (up to rounding: two tokens that are almost
    equally likely may change places). A request that ends or is abandoned gives its memory back.
    """

    def __init__(
        self, model: Llama, weights: Resident | Streamed, tokenizer: Tokenizer, machine: Machine,
        config: EngineConfig,
    ) -> None:  # fmt: skip
        self.model, self.tokenizer, self.machine, self.config = model, tokenizer, machine, config
        self.model_config: ModelConfig = model.config
        self.trace, self.dtype = machine.trace, weights.dtype
        self.max_context = _context(config, model.config)
        self.kv_bytes_per_token = kv_bytes_per_token(model.config, weights.dtype)
        self._weights: Resident | Streamed | None = weights
        self._forward = Forward(model, machine, config.prefill_chunk)
        self._requests = 0

    @classmethod
    def load(
        cls, directory: str | PathLike[str], machine: Machine | None = None,
        config: EngineConfig = _ENGINE,
    ) -> Engine:  # fmt: skip
        """Stage 1: the checkpoint in `directory` (Hugging Face layout) goes SSD → DRAM → HBM.

        A relative directory is looked for here, then beside the package. Raises CheckpointError,
        ConfigError or, before any weight is read, OutOfMemory; then HBM is as it was.
        """
        folder, machine = locate(directory), machine or Machine.here()
        trace = machine.trace
        with trace.span("read config and headers", stage="load", resource="cpu"):
            model_config = ModelConfig.from_pretrained(folder)
            _context(config, model_config)
            checkpoint = Checkpoint.open(folder)
        with trace.span("read tokenizer", stage="tokens", resource="cpu"):
            tokenizer = Tokenizer.from_pretrained(folder)
            _check_vocabulary(tokenizer, model_config, folder)
        with trace.span("build model", stage="load", resource="cpu"):
            model = build(model_config, machine)
        dtype = model_config.dtype if config.dtype == "auto" else config.dtype
        hold = Streamed if config.weights == "stream" else Resident
        weights = hold(model, checkpoint, machine, getattr(torch, dtype), config)
        trace.meta.update(
            model=Path(directory).name, dtype=dtype, weight_bytes=weights.nbytes,
            kv_bytes_per_token=kv_bytes_per_token(model_config, weights.dtype),
        )  # fmt: skip
        return cls(model, weights, tokenizer, machine, config)

    def close(self) -> None:
        """Give the weights' memory back; the engine answers no more. A second call does nothing."""
        if self._weights is not None:
            self._weights.close()
            self.model.to("meta")  # drop the parameters, which are views of that memory
        self._weights = None

    def stream(
        self, prompt: Prompt, params: SamplingParams = _SAMPLING, *, drop_oldest: float = 0.0
    ) -> Iterator[Piece]:
        """Yield each token as it is chosen. `prompt` is a text, or token ids as they are.

        drop_oldest: the share of the prompt that the KV cache forgets when prefill is over (all
        but position 0). Raises PromptError at once, OutOfMemory when the first token is asked for.
        """
        request = self._admit(prompt, params)  # here, not when the first piece is asked for

        def pieces() -> Iterator[Piece]:
            with self._batch([request], drop_oldest) as batch:
                while batch.running:
                    yield from self.step(batch)

        return pieces()

    def generate(
        self, prompts: str | Sequence[Prompt], params: SamplingParams = _SAMPLING, *,
        drop_oldest: float = 0.0,
    ) -> list[Completion]:  # fmt: skip
        """Complete every prompt, in batches that fit HBM; errors come before any work is done."""
        prompts = prompts if isinstance(prompts, (list, tuple)) else [prompts]
        requests = [self._admit(prompt, params) for prompt in prompts]
        for group in groups(requests, self.kv_bytes_per_token, self.machine.hbm):
            with self._batch(group, drop_oldest) as batch:
                while batch.running:
                    self.step(batch)
        return [request.completion() for request in requests]

    def step(self, batch: Batch) -> list[Piece]:
        """One more token for every running request of the batch; the first step is prefill."""
        with self.trace.at(token=batch.steps, request=batch.number), self._weights.step(batch):
            ids = batch.send_ids()  # CPU → DRAM → HBM
            logits = self._forward(batch, ids)  # weights and KV cache, from HBM
            logits = batch.fetch_logits(logits)  # HBM → DRAM
            return batch.choose(logits)  # CPU: one token a row, and its text

    def _admit(self, prompt: Prompt, params: SamplingParams) -> Request:
        """A prompt becomes a request, or a PromptError; nothing is reserved yet."""
        assert self._weights is not None, "this engine was closed: load it again"
        number, started = self._requests, self.trace.now()
        with (
            self.trace.at(token=0, request=number),
            self.trace.span("tokenize", stage="tokens", resource="cpu", label="text") as span,
        ):
            ids = prompt_ids(prompt, self.tokenizer, self.model_config.vocab_size)
            span.detail = prompt if isinstance(prompt, str) else ""
            span.nbytes = len(span.detail.encode())
        check_length(len(ids), params.max_tokens, self.max_context)
        self._requests += 1
        return Request(
            number, prompt, ids, params, self.model_config.eos_token_ids, generator(params),
            Detokenizer(self.tokenizer, params.stop), started,
        )  # fmt: skip

    def _batch(self, requests: list[Request], drop_oldest: float) -> Batch:
        return Batch(requests, self.model_config, self.machine, self.dtype, drop_oldest)


def locate(path: str | PathLike[str]) -> Path:
    """A relative path from here, or else from the folder that holds the package.

    So `"data/town"` is found from the repository and from its notebooks alike.
    """
    beside = Path(__file__).resolve().parents[2] / path
    return beside if beside.exists() and not Path(path).exists() else Path(path)


def _context(config: EngineConfig, model: ModelConfig) -> int:
    longest = model.max_position_embeddings
    if (config.max_context or 0) > longest:
        raise ConfigError(
            f"wanted max_context of at most {longest:,}, the model's, found "
            f"{config.max_context:,}; ask for less, or take a model with a longer context"
        )
    return config.max_context or longest


def _check_vocabulary(tokenizer: Tokenizer, model: ModelConfig, folder: Path) -> None:
    found = tokenizer.model_vocab_size
    if found > model.vocab_size:
        raise CheckpointError(
            f"wanted a tokenizer of at most {model.vocab_size:,} entries, the model's, found "
            f"{found:,} in {folder}; take tokenizer.json and weights of one model"
        )
