"""The engine: requests go from text to text through all stages, and the trace sees each step.

Shapes: ΣT packed tokens of all requests, V vocabulary.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from minillm.config import EngineConfig, ModelConfig, SamplingParams
from minillm.decode.detokenize import Detokenizer
from minillm.decode.sampling import generator, sample
from minillm.engine.request import Completion, Piece, Prompt, Request, check_length, prompt_ids
from minillm.engine.runner import Runner
from minillm.engine.scheduler import Scheduler
from minillm.engine.weights import Resident, Streamed
from minillm.errors import CheckpointError, ConfigError, MinillmError, parse_size
from minillm.kv import ContiguousKV, PagedKV, Step
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

    Requests join and leave between steps, however many streams and calls they come from. Same
    seed, same text, whatever the company (up to rounding: two tokens that are almost equally
    likely may change places). A request that ends or is abandoned gives its pages back.
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
        with ExitStack() as stack:
            stack.callback(weights.close)
            most = config.max_batch_tokens, config.max_running
            self._runner = Runner(model, weights, machine, *most)
            stack.callback(self._runner.close)
            self.kv = _kv(config, model.config, machine, weights.dtype, self.max_context)
            stack.callback(self.kv.close)
            self._held: ExitStack | None = stack.pop_all()  # until we are closed
        self.scheduler = Scheduler(self.kv, *most)
        self.steps = 0  # forward passes so far
        self._numbers = 0  # requests so far
        self._lock = threading.RLock()  # of several threads one runs a pass, the others wait

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
        with trace.span("build model", stage="load", resource="cpu"), torch.device("meta"):
            model = Llama(model_config).eval()  # shapes and names, no memory
        dtype = model_config.dtype if config.dtype == "auto" else config.dtype
        hold = Streamed if config.weights == "stream" else Resident
        weights = hold(model, checkpoint, machine, getattr(torch, dtype), config)
        trace.meta.update(
            model=Path(directory).name, dtype=dtype, weight_bytes=weights.nbytes,
            kv_bytes_per_token=kv_bytes_per_token(model_config, weights.dtype),
        )  # fmt: skip
        return cls(model, weights, tokenizer, machine, config)

    def close(self) -> None:
        """Give all memory back; the engine answers no more. A second call does nothing."""
        if self._held is not None:
            self._held.close()
            self.model.to("meta")  # drop the parameters, which are views of that memory
        self._held = None

    def stream(self, prompt: Prompt, params: SamplingParams = _SAMPLING) -> Iterator[Piece]:
        """Yield each token as it is chosen. `prompt` is a text, or token ids as they are.

        Several streams may be open: each takes part in the steps of the others. Raises PromptError
        here, OutOfMemory at the first piece if the KV cache can never hold it.
        """
        request = self._admit(prompt, params)  # here, not when the first piece is asked for

        def pieces() -> Iterator[Piece]:
            with self._present([request]):
                while True:
                    while not (request.pieces or request.over):
                        self.step()
                    if request.error:
                        raise request.error
                    if not request.pieces:
                        return
                    yield request.pieces.popleft()

        return pieces()

    def generate(
        self, prompts: str | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] = _SAMPLING,
    ) -> list[Completion]:  # fmt: skip
        """Complete every prompt, all with `params` or each with its own, together.

        Errors of prompts come before any work is done.
        """
        prompts = prompts if isinstance(prompts, (list, tuple)) else [prompts]
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            wanted = f"one SamplingParams, or one for each of {len(prompts)} prompts"
            raise ConfigError(f"wanted {wanted}, found {len(each)}; make the lists equally long")
        requests = [self._admit(*pair) for pair in zip(prompts, each, strict=True)]
        with self._present(requests):
            for request in requests:
                while not request.over:
                    self.step()
                if request.error:
                    raise request.error
        return [request.completion() for request in requests]

    def step(self) -> None:
        """One forward pass, and one more token for each request whose text was read to its end."""
        with self._lock, torch.no_grad():
            step, requests = self.scheduler.schedule()
            if requests:
                with self.trace.at(**self._stamps(requests)):
                    plan = self.kv.plan(step)
                    ids = self._runner.send_ids(step, requests)  # CPU → DRAM → HBM
                    logits = self._runner.run(plan, ids, requests)  # weights and KV, from HBM
                    logits = self._runner.fetch_logits(logits)  # HBM → DRAM
                self._choose(step, requests, logits)  # CPU: a token each, and its text
                self._hand_out(requests)

    def _stamps(self, requests: list[Request]) -> dict[str, int | None]:
        """What the events of a pass say of it: of several requests, the pass alone."""
        self.steps += 1
        alone = requests[0] if len(requests) == 1 else None
        token = None if alone is None else len(alone.token_ids)
        return {"token": token, "request": alone and alone.number}

    def _choose(self, step: Step, requests: list[Request], logits: Tensor) -> None:
        """Sample and detokenize a token for each request with a row of logits."""
        rows = iter(logits)
        for request, count, wanted in zip(requests, step.counts, step.wanted, strict=True):
            row = next(rows) if wanted else None
            try:
                chosen = None if row is None else self._sample(request, row)
            except MinillmError as error:  # of this request alone; the others go on
                request.error = error
                continue
            request.cached += count
            self.kv.commit(request.number, request.ids[: request.cached])
            if chosen:
                self._take(request, *chosen)

    def _sample(self, request: Request, row: Tensor) -> tuple[int, float]:
        with (
            self.trace.at(request=request.number, token=len(request.token_ids)),
            self.trace.span("sample", stage="decode", resource="cpu"),
        ):
            return sample(row, request.params, request.chance)

    def _take(self, request: Request, token_id: int, logprob: float) -> None:
        with (
            self.trace.at(request=request.number, token=len(request.token_ids)),
            self.trace.span("detokenize", stage="decode", resource="cpu", label="text") as span,
        ):
            piece = request.take(token_id, logprob, self.trace.now())
            span.detail, span.nbytes = piece.text, len(piece.text.encode())
        request.pieces.append(piece)

    def _hand_out(self, requests: list[Request]) -> None:
        """Whoever has ended leaves."""
        for request in requests:
            if request.over:
                self.scheduler.remove(request)

    def _admit(self, prompt: Prompt, params: SamplingParams) -> Request:
        """A prompt becomes a request, or a PromptError; nothing is reserved yet."""
        assert self._held is not None, "this engine was closed: load it again"
        number, started = self._numbers, self.trace.now()
        with (
            self.trace.at(token=0, request=number),
            self.trace.span("tokenize", stage="tokens", resource="cpu", label="text") as span,
        ):
            ids = prompt_ids(prompt, self.tokenizer, self.model_config.vocab_size)
            span.detail = prompt if isinstance(prompt, str) else ""
            span.nbytes = len(span.detail.encode())
        check_length(len(ids), params.max_tokens, self.max_context)
        self._numbers += 1
        return Request(
            number, prompt, ids, params, self.model_config.eos_token_ids, generator(params),
            Detokenizer(self.tokenizer, params.stop), started,
        )  # fmt: skip

    @contextmanager
    def _present(self, requests: list[Request]) -> Iterator[None]:
        """Requests that take part in the steps until the end of the block, and then leave."""
        try:
            with self._lock:
                self.model.prepare(max(r.slots for r in requests) + 1, self.machine.device)
                for request in requests:
                    if self.kv.forget:
                        request.forgets = self.kv.forget(len(request.prompt_ids))
                    self.scheduler.add(request)
            yield
        finally:
            with self._lock:
                for request in requests:
                    self.scheduler.remove(request)
                    if not request.over:
                        request.finish_reason = "abort"
                self.trace.meta.update(prompt=requests[-1].prompt, text=requests[-1].text)


def _kv(
    config: EngineConfig, model: ModelConfig, machine: Machine, dtype: torch.dtype, context: int
) -> PagedKV:
    """The cache that the settings ask for; its pool is taken now only if its size is given."""
    size = context if config.kv == "contiguous" else config.page_size
    page = size * kv_bytes_per_token(model, dtype)
    pages = None if config.kv_hbm is None else parse_size(config.kv_hbm) // page
    if pages == 0:
        raise ConfigError(
            f"wanted kv_hbm of at least one page of {page:,} bytes, found {config.kv_hbm}; "
            "ask for more, or for a smaller page_size"
        )
    if config.kv == "contiguous":
        return ContiguousKV(model, machine, dtype, context, pages)
    return PagedKV(model, machine, dtype, config.page_size, pages)


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
    if tokenizer.vocab_size > model.vocab_size:
        raise CheckpointError(
            f"wanted a tokenizer of at most {model.vocab_size:,} entries, the model's, found "
            f"{tokenizer.vocab_size:,} in {folder}; take tokenizer.json and weights of one model"
        )
