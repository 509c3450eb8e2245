"""From logits to the next token: penalties, temperature, filters, and one draw a request.

A step's rows are chosen together, each with settings and chance of its own. The order is
transformers': bias and penalties, temperature, top-k, top-p, min-p. It matters: a filter sees what
those before it have left, renormalised.

Shapes: R rows, one for each text; V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from minillm.config import SamplingParams
from minillm.errors import MinillmError


class Text(Protocol):
    """What is known of a text that wants its next token."""

    params: SamplingParams
    chance: torch.Generator  # its own
    ids: list[int]  # the prompt, and the answer so far
    token_ids: list[int]  # the answer so far


class Chosen(NamedTuple):
    """A token, and what the model thought of it: before bias, penalties, temperature, filters."""

    token_id: int
    logprob: float
    top_logprobs: dict[int, float]  # of the likeliest tokens, as many as `params.logprobs` asks for


def generator(params: SamplingParams) -> torch.Generator:
    """A request's own source of chance, on the CPU. `seed=None` takes a fresh one.

    Each request has its own, so that its text does not depend on who shares the batch.
    """
    chance = torch.Generator()
    if params.seed is None:
        chance.seed()
    else:
        chance.manual_seed(params.seed % 2**64)  # torch takes 64 bits, Python's ints have no end
    return chance


def is_plain(params: SamplingParams) -> bool:
    """Whether the largest logit, and the log of the sum, are all that is asked for."""
    return params.temperature == 0 and not (params.logprobs or _penalizes(params))


def _penalizes(params: SamplingParams) -> bool:
    once = params.logit_bias or params.presence_penalty or params.frequency_penalty
    return bool(once) or params.repetition_penalty != 1


def sample(logits: Tensor, texts: Sequence[Text]) -> list[Chosen | MinillmError]:
    """Choose from logits (R, V) a token for each text; an error where a row holds no numbers.

    Temperature 0 takes the likeliest (the first of equals) and leaves its chance untouched; else
    one number is drawn. Peak: about six times R · V float64.

    >>> text = SimpleNamespace(params=SamplingParams(temperature=0.0))
    >>> sample(torch.tensor([[0.0, 9.0]]), [text])[0].token_id
    1
    """
    scores = logits.double()
    totals = scores.logsumexp(-1)  # (R,)
    if not (fine := totals.isfinite()).all():  # what is not must not trouble the others
        scores = torch.where(fine[:, None], scores, 0.0)
    scores = penalized(scores, texts)
    ids = scores.argmax(-1)
    if drawn := [n for n, text in enumerate(texts) if text.params.temperature > 0]:
        probs = probabilities(scores[drawn], [texts[n].params for n in drawn])
        ids[drawn] = draw(probs, [texts[n].chance for n in drawn])
    return [
        _chosen(*of_row, text.params.logprobs)
        for *of_row, text in zip(logits, totals.tolist(), ids.tolist(), texts, strict=True)
    ]


def _chosen(row: Tensor, total: float, token_id: int, n: int) -> Chosen | MinillmError:
    if not isfinite(total):
        return MinillmError(
            "wanted logits that are numbers, found NaN or infinity among them; "
            'load with EngineConfig(dtype="float32"), or check the weights'
        )
    values, ids = row.topk(min(n, len(row))) if n else (row[:0], row[:0])
    top = {id: value - total for id, value in zip(ids.tolist(), values.tolist(), strict=True)}
    return Chosen(token_id, float(row[token_id]) - total, top)


def penalized(logits: Tensor, texts: Sequence[Text]) -> Tensor:
    """Logits (R, V) with each text's bias, then its penalties; a copy if there are any.

    Repetition, of what prompt or answer hold: a score below 0 is multiplied, another divided.
    Presence and frequency, of what the answer holds: taken off once, or each time it came.
    """
    scores = logits.clone() if any(_penalizes(text.params) for text in texts) else logits
    for row, text in zip(scores, texts, strict=True):  # a few numbers of each row
        params = text.params
        if params.logit_bias:
            ids, bias = zip(*params.logit_bias, strict=True)
            row[list(ids)] += torch.tensor(bias, dtype=row.dtype)
        if (penalty := params.repetition_penalty) != 1:
            ids = torch.tensor(text.ids).unique()
            row[ids] = torch.where(row[ids] < 0, row[ids] * penalty, row[ids] / penalty)
        if (params.presence_penalty or params.frequency_penalty) and text.token_ids:
            ids, counts = torch.tensor(text.token_ids).unique(return_counts=True)
            row[ids] -= params.presence_penalty + params.frequency_penalty * counts
    return scores


def probabilities(scores: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """The distributions (R, V) that tokens are drawn from; each sums to 1."""
    return filtered(scores, params).softmax(-1)


def filtered(scores: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Scores (R, V) through temperature, top-k, top-p and min-p; -inf for what is taken out.

    The likeliest token always stays. A temperature of 0 is not for here: it draws nothing.
    """
    # The largest score is taken off first: a tiny temperature then gives -inf, never inf - inf.
    scores = (scores - scores.amax(-1, keepdim=True)) / _column(scores, params, "temperature")
    if some := [n for n, each in enumerate(params) if each.top_k]:
        k = torch.tensor([[params[n].top_k] for n in some])
        scores[some] = _top_k(scores[some], k.clamp(max=scores.shape[-1]))
    if some := [n for n, each in enumerate(params) if each.top_p < 1]:
        top_p = _column(scores, [params[n] for n in some], "top_p")
        scores[some] = _top_p(scores[some], top_p)
    if any(each.min_p for each in params):
        probs = scores.softmax(-1)
        least = _column(scores, params, "min_p") * probs.amax(-1, keepdim=True)
        scores = scores.masked_fill(probs < least, -inf)
    return scores


def _top_k(scores: Tensor, k: Tensor) -> Tensor:
    """-inf for what is less than the k-th of its row; all that equal it stay. k (R, 1)."""
    largest = scores.topk(int(k.max())).values
    return scores.masked_fill(scores < largest.gather(-1, k - 1), -inf)


def _top_p(scores: Tensor, top_p: Tensor) -> Tensor:
    """-inf for a token if those before it, the likelier ones, have p together. top_p (R, 1).

    We sum from the least likely up, as transformers does, and take out what has at most 1 - p with
    all below it: where p is near 1 no rounding makes the sum miss it. Of equals those with the
    higher ids stay. Sorting costs the most, so only tokens that may stay are sorted: V that each
    have less than (1 - p) / V are less than 1 - p together.
    """
    probs = scores.softmax(-1)
    may_stay = (probs >= (1 - top_p) / scores.shape[-1]).any(0)  # (V,), in any row
    values, order = scores[:, may_stay].sort(dim=-1, stable=True)
    below = probs[:, ~may_stay].sum(-1, keepdim=True)
    tail = below + probs[:, may_stay].gather(-1, order).cumsum(-1)
    out = tail <= 1 - top_p
    out[:, -1] = False  # p may be so small that no sum passes 1 - p
    kept = torch.full_like(scores, -inf)
    kept[:, may_stay] = torch.empty_like(values).scatter(-1, order, values.masked_fill(out, -inf))
    return kept


def _column(like: Tensor, params: Sequence[SamplingParams], name: str) -> Tensor:
    """A setting of each row, (R, 1)."""
    return torch.tensor([[getattr(each, name)] for each in params], dtype=like.dtype)


def draw(probs: Tensor, chances: Sequence[torch.Generator]) -> Tensor:
    """Draw an index from each row of probs (R, V): one u in [0, 1), and the first sum above it.

    The sums run in the order of ids, not of size: rounding that swaps two nearly equal tokens
    then moves no boundary, so a batch draws what one request alone draws.
    """
    sums = probs.cumsum(-1)
    u = [torch.rand((), generator=chance, dtype=torch.float64) for chance in chances]
    return torch.searchsorted(sums, torch.stack(u)[:, None] * sums[:, -1:], right=True)[:, 0]
