"""From logits to the next token: greedy, or drawn with one seeded generator a request."""

from __future__ import annotations

import math

import torch

from minillm.config import SamplingParams
from minillm.errors import MinillmError


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


def sample(
    logits: torch.Tensor, params: SamplingParams, chance: torch.Generator
) -> tuple[int, float]:
    """Choose a token from `logits` (V,): its id and its log-probability.

    The log-probability is the model's own, before temperature and filters. Temperature 0 takes
    the likeliest (the first of equals) and leaves `chance` untouched; else one number is drawn.

    >>> sample(torch.tensor([0.0, 9.0]), SamplingParams(temperature=0.0), torch.Generator())[0]
    1
    """
    logits = logits.float()
    total = float(logits.logsumexp(dim=-1))
    if not math.isfinite(total):
        raise MinillmError(
            "wanted logits that are numbers, found NaN or infinity among them; "
            'load with EngineConfig(dtype="float32"), or check the weights'
        )
    if params.temperature == 0:
        chosen = int(logits.argmax())
    else:
        chosen = draw(probabilities(logits, params), chance)
    return chosen, float(logits[chosen]) - total


def probabilities(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """The distribution (V,) that a token is drawn from: temperature, then top-k, top-p, min-p.

    Each filter looks at the distribution after temperature; a token stays if all let it pass.
    The likeliest token always stays. Sums to 1 in float64.
    """
    # The largest logit is taken off first: a tiny temperature then gives -inf, never inf - inf.
    scaled = (logits.double() - logits.max()) / params.temperature  # (V,)
    probs = scaled.softmax(dim=-1)
    keep = probs >= params.min_p * probs.max()
    if params.top_k or params.top_p < 1:
        order = probs.argsort(descending=True, stable=True)  # equals in the order of their ids
        sums = probs[order].cumsum(0)
        size = params.top_k or len(probs)
        if params.top_p < 1:  # the fewest that together reach top_p
            size = min(size, int(torch.searchsorted(sums, params.top_p)) + 1)
        keep[order[size:]] = False
    probs = probs * keep
    return probs / probs.sum()


def draw(probs: torch.Tensor, chance: torch.Generator) -> int:
    """Draw an index from `probs` (V,): one number u in [0, 1), and the first sum above it.

    The sums run in the order of ids, not of size: rounding that swaps two nearly equal tokens
    then moves no boundary, so a batch draws what one request alone draws.
    """
    sums = probs.cumsum(0)
    u = torch.rand((), generator=chance, dtype=torch.float64) * sums[-1]
    return int(torch.searchsorted(sums, u, right=True))
