"""The engine: requests go from text to text through all stages, and the trace sees each step.

Shapes: ΣT packed tokens of all requests, V vocabulary.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import count
from os import PathLike

from torch import Tensor

from minillm.config import EngineConfig, ParallelConfig, SamplingParams
from minillm.engine.assemble import Parts
from minillm.engine.chooser import Chooser
from minillm.engine.log import Log
from minillm.engine.request import Completion, Piece, Prompt, Request, admit
from minillm.engine.scheduler import Scheduler
from minillm.errors import ConfigError
from minillm.files import StrPath
from minillm.kv.plan import Step
from minillm.machine import Machine
from minillm.machine.interrupt import held
from minillm.parallel.world import connect
from minillm.trace import At

_ENGINE, _SAMPLING, _ALONE = EngineConfig(), SamplingParams(), ParallelConfig()


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

    def __init__(self, parts: Parts, machine: Machine, config: EngineConfig) -> None:
        self.name, self.model, self.dtype = parts.name, parts.model, parts.dtype
        self.machine, self.trace, self.config = machine, machine.trace, config
        self.model_config, self.rank = parts.config, parts.rank
        self.tokenizer, self.kv, self._runner = parts.tokenizer, parts.kv, parts.runner
        self.max_context, self.kv_bytes_per_token = parts.max_context, parts.kv.nbytes_per_token
        self.scheduler = Scheduler(self.kv, config.max_batch_tokens, config.max_running)
        self.steps, self._numbers = 0, count()  # forward passes so far; of requests, the next one
        self._chooser = Chooser(self.kv, self.trace)
        self._sessions, self.log = parts.sessions, Log(config.log, machine)
        self.resume = parts.sessions.open  # a file of `stream(…, save=file)` becomes a prompt
        self._held, self._closed = parts.held, False
        self._lock = threading.RLock()  # of several threads one runs a pass, the others wait
        self._pass, self._left = At(), []  # that a thread is in; requests that leave after it

    @classmethod
    def load(
        cls, directory: str | PathLike[str], machine: Machine | None = None,
        config: EngineConfig = _ENGINE, parallel: ParallelConfig = _ALONE,
    ) -> Engine:  # fmt: skip
        """Stage 1: the checkpoint in `directory` (Hugging Face layout) goes SSD → DRAM → HBM.

        A relative directory is looked for here, then beside the package. Raises CheckpointError,
        ConfigError or, before any weight is read, OutOfMemory; then HBM is as it was. parallel: of
        several ranks all load; then rank 0 is asked, and the others `follow`.
        """
        connect(parallel)  # a rank has its own card, and its part of the DRAM
        machine = machine or Machine.here()
        return cls(Parts(directory, machine, config, parallel), machine, config)

    def follow(self) -> None:
        """On ranks other than 0: take part in what rank 0 does, until it closes, or RankError."""
        with closing(self):
            self._runner.follow()

    def close(self) -> None:
        """Give all memory back; the engine answers no more. Of several ranks, all end, and `trace`
        is that of all of them. A second call does nothing."""
        with self._lock, held():
            if not self._closed:
                self._closed = True
                self.model.to("meta")  # drop the parameters, which are views of that memory
                with self._held:  # also if another rank is lost
                    self.trace = self._runner.end()
                self.trace.close_model(self.name)

    def stream(
        self, prompt: Prompt, params: SamplingParams = _SAMPLING, save: StrPath | None = None
    ) -> Iterator[Piece]:
        """Yield each token as it is chosen. `prompt`: a text, token ids, or what `resume` gave.

        save: a file for the session when it has ended, to `resume`. Several streams may be open:
        each takes part in the steps of the others. Raises PromptError here, OutOfMemory at the
        first piece if the KV cache can never hold it, SessionError after the last one.
        """
        request = self._admit(prompt, params)  # admitted here, not at the first piece
        request.save = save
        return self._pieces([request])

    def _pieces(self, requests: list[Request]) -> Iterator[Piece]:
        """All that comes of some requests, one after the other; steps are taken as needed."""
        with self._present(requests):
            for request in requests:
                for told in count():
                    while told == len(request.pieces) and not request.over:
                        self.step()
                    if told == len(request.pieces):
                        break
                    yield request.pieces[told]
                if request.error:
                    raise request.error

    def generate(
        self, prompts: str | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] = _SAMPLING,
    ) -> list[Completion]:  # fmt: skip
        """Complete every prompt, with `params` or each with its own; a bad one is told at once."""
        prompts = prompts if isinstance(prompts, list | tuple) else [prompts]
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            wanted = f"one SamplingParams, or one for each of {len(prompts)} prompts"
            raise ConfigError(f"wanted {wanted}, found {len(each)}; give as many")
        requests = [self._admit(*pair) for pair in zip(prompts, each, strict=True)]
        list(self._pieces(requests))
        return [request.completion() for request in requests]

    def step(self) -> None:
        """One forward pass, and one more token for each request whose text was read to its end."""
        assert not self._closed and self._pass.stamp[0] is None, "closed, or in a pass already"
        with self._lock, self._pass(step=self.steps):
            with held():  # an interrupt comes when no request is half taken in
                step, requests = self.scheduler.schedule()
            if not requests:
                return
            alone = requests[0].stamp if len(requests) == 1 else {}  # request and token
            at = self.trace.at(step=self.steps, model=self.name, **alone)
            with at, self._runner.threads(step, self.kv.resident is None):
                ids = self._runner.send_ids(step, requests)  # CPU → DRAM → HBM
                logits = self._runner.run(self.kv.plan(step), ids)  # weights and KV, from HBM
                logits = self._runner.fetch_logits(logits)  # HBM → DRAM
                self._hand_out(step, requests, logits)  # CPU: a token each, and its text

    def _hand_out(self, step: Step, requests: list[Request], logits: Tensor) -> None:
        """A token for each; who has ended leaves. An interrupt waits, for all or none count."""
        with held():
            self.steps += 1
            self._chooser.choose(step, requests, logits, self._runner.tops)
            for request in requests:
                if request.over:
                    self._sessions.save(request)
                    self.scheduler.remove(request)
                    self.log.write(request)

    def _admit(self, prompt: Prompt, params: SamplingParams) -> Request:
        """A prompt becomes a request, or a PromptError; nothing is reserved yet."""
        assert not self._closed, "this engine was closed: load it again"
        parts = self.tokenizer, self.model_config, self.max_context, self.trace
        with self.trace.at(model=self.name):
            return admit(next(self._numbers), prompt, params, *parts)

    @contextmanager
    def _present(self, requests: list[Request]) -> Iterator[None]:
        """Requests that take part in the steps until the end of the block, and then leave."""
        try:
            with self._lock:
                for request in requests:
                    self.model.prepare(request.slots + 1, self.machine.device)
                    self.scheduler.add(request)
            yield
        finally:
            with self._lock, held():  # in a pass if Python collects there a stream nobody holds
                self._left += requests
                while self._left and self._pass.stamp[0] is None:
                    self.scheduler.remove(request := self._left.pop())
                    if not request.over:
                        request.finish_reason = "abort"
                        self.log.write(request)
