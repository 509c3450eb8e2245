"""One request on its way from prompt to completion, and what its caller gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from minillm.config import ModelConfig, SamplingParams
from minillm.decode.detokenize import Detokenizer
from minillm.decode.sampling import Chosen, generator, is_plain
from minillm.errors import PromptError
from minillm.files import StrPath
from minillm.tokens.tokenizer import Tokenizer
from minillm.trace import Trace

Prompt = str | Sequence[int]  # a text, or token ids as they are, such as a Session


@dataclass(frozen=True)
class Piece:
    """What one step adds to a text.

    text is "" while a character or a stop string may still be unfinished; the pieces' texts
    joined are the completion's. logprob is the model's own log-probability of token_id;
    top_logprobs of the likeliest tokens, as many as SamplingParams(logprobs=n) asks for, by id.
    """

    text: str
    token_id: int
    logprob: float
    index: int  # 0 is the first generated token
    top_logprobs: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Completion:
    """A finished request.

    text: without the end-of-text token and without the stop string; token_ids has both.
    finish_reason: "eos" (end of text), "stop" (a stop string) or "length" (max_tokens reached);
    a request whose stream was left has "abort", in the log.
    ttft: seconds from the call to the first token, waiting for a place included.
    tpot: mean seconds of each token after the first; None if there was only one.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str
    ttft: float
    tpot: float | None
    prompt_tokens: int
    top_logprobs: tuple[dict[int, float], ...] = ()  # of each token, as a Piece has them


@dataclass(eq=False)
class Request:
    """A prompt, its settings, and what has come out so far."""

    number: int  # counts up over the life of an engine; stamped on the trace
    prompt: Prompt
    prompt_ids: list[int]
    params: SamplingParams
    eos_ids: tuple[int, ...]
    chance: torch.Generator
    detokenizer: Detokenizer
    started: float  # seconds on the trace's clock, as are the next two
    save: StrPath | None = None  # where its session goes when it has ended
    forgets: range | None = None  # positions that nobody sees once the prompt was read
    first_at: float = 0.0
    last_at: float = 0.0
    finish_reason: str | None = None  # None: not finished; "abort": nobody wanted the rest
    error: Exception | None = None  # why it cannot go on
    cached: int = 0  # tokens of `ids` that are in the KV cache
    pieces: list[Piece] = field(default_factory=list)  # of each token that was chosen

    def __post_init__(self) -> None:
        self.ids = list(self.prompt_ids)  # what the model reads: the prompt, then each new token
        self.plain = is_plain(self.params)
        if self.params.seed is not None and getattr(self.prompt, "chance", b""):  # of a Session
            self.chance.set_state(torch.tensor([*self.prompt.chance], dtype=torch.uint8))

    @property
    def token_ids(self) -> list[int]:
        """What was chosen so far."""
        return self.ids[len(self.prompt_ids) :]

    @property
    def slots(self) -> int:
        """Places in the KV cache it may need: the last token is chosen and never read."""
        return len(self.prompt_ids) + self.params.max_tokens - 1

    @property
    def over(self) -> bool:
        """Whether no more will come."""
        return self.finish_reason is not None or self.error is not None

    @property
    def stamp(self) -> dict[str, int]:
        """What events of the trace say of its next token."""
        return {"request": self.number, "token": len(self.pieces)}

    @property
    def times(self) -> tuple[float | None, float | None]:
        """Seconds to the first token, and the mean of those after it; None where there are none."""
        later, first = len(self.pieces) - 1, self.first_at
        ttft = first - self.started if self.pieces else None
        return ttft, (self.last_at - first) / later if later > 0 else None

    def take(self, chosen: Chosen, now: float) -> Piece:
        """Add a token that was chosen at time `now`: its text, and whether it is the last."""
        token_id, logprob, top_logprobs = chosen
        self.first_at, self.last_at = self.first_at if self.pieces else now, now
        self.ids.append(token_id)
        ended = token_id in self.eos_ids and not self.params.ignore_eos
        text = "" if ended else self.detokenizer.add(token_id)
        full = len(self.pieces) + 1 == self.params.max_tokens
        why = "eos" if ended else "stop" if self.detokenizer.stopped else "length" if full else None
        text += self.detokenizer.finish() if why else ""
        self.pieces.append(Piece(text, token_id, logprob, len(self.pieces), top_logprobs))
        self.finish_reason = why  # last: who sees it, on another thread, sees every piece
        return self.pieces[-1]

    def completion(self) -> Completion:
        """The finished request as the caller gets it."""
        assert self.finish_reason, "the request is still running"
        said = ((p.text, p.token_id, p.logprob, p.top_logprobs) for p in self.pieces)
        texts, token_ids, logprobs, tops = zip(*said, strict=True)
        text, count, why = "".join(texts), len(self.prompt_ids), self.finish_reason
        return Completion(text, token_ids, logprobs, why, *self.times, count, tops)


def admit(
    number: int, prompt: Prompt, params: SamplingParams, tokenizer: Tokenizer,
    config: ModelConfig, context: int, trace: Trace,
) -> Request:  # fmt: skip
    """A prompt becomes a request, or a PromptError."""
    started = trace.now()
    fields = {"stage": "tokens", "resource": "cpu", "label": "text"}
    with trace.at(token=0, request=number), trace.span("tokenize", **fields) as span:
        ids = prompt_ids(prompt, params, tokenizer, config.vocab_size)
        span.detail = prompt if isinstance(prompt, str) else ""
        span.nbytes = len(span.detail.encode())
    check_length(len(ids), params.max_tokens, context)
    detokenizer, chance = Detokenizer(tokenizer, ids, params.stop), generator(params)
    eos = config.eos_token_ids
    return Request(number, prompt, ids, params, eos, chance, detokenizer, started)


def prompt_ids(
    prompt: Prompt, params: SamplingParams, tokenizer: Tokenizer, vocab_size: int
) -> list[int]:
    """The token ids of a prompt; PromptError if it is empty, no text, or has unknown ids.

    So with ids that have a bias in `params`.
    """
    sequence = isinstance(prompt, list | tuple) and all(type(token) is int for token in prompt)
    if not (sequence or isinstance(prompt, str)):
        raise PromptError(
            f"wanted a prompt: a text (str) or a list of token ids (int), found "
            f"{type(prompt).__name__}; decode bytes with .decode(), turn tensors to .tolist()"
        )
    if not prompt:
        raise PromptError("wanted a prompt, found an empty one; write at least one character")
    ids = list(prompt) if sequence else tokenizer.encode(prompt)
    biased = (token for token, _ in params.logit_bias)
    if strange := [token for token in (*ids, *biased) if not 0 <= token < vocab_size]:
        raise PromptError(
            f"wanted token ids from 0 to {vocab_size - 1:,}, found {strange[0]:,}; "
            "take ids of this model's own tokenizer"
        )
    return ids


def check_length(prompt_tokens: int, max_tokens: int, context: int) -> None:
    """PromptError unless a prompt and its answer fit the context together."""
    fits = context - prompt_tokens
    do = f"ask for max_tokens={fits} or fewer"
    if fits < 1:
        do = f"a prompt of at most {context - 1:,} tokens leaves room for one more: shorten it"
    if max_tokens > fits:
        raise PromptError(
            f"wanted prompt and answer within a context of {context:,} tokens, found "
            f"{prompt_tokens:,} + max_tokens={max_tokens:,}; {do}"
        )
