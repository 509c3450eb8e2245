"""Sampling: the distribution a token is drawn from, and the chance it is drawn with."""

from __future__ import annotations

import math

import pytest
import torch

from minillm.config import SamplingParams
from minillm.decode.sampling import draw, generator, probabilities, sample
from minillm.errors import MinillmError

LOGITS = torch.tensor([1.0, 3.0, 2.0, -1.0, 3.0, -math.inf])


def kept(**settings) -> list[int]:
    """The ids that can still be drawn."""
    return probabilities(LOGITS, SamplingParams(**settings)).nonzero().flatten().tolist()


def test_greedy_takes_the_first_of_the_likeliest_and_no_chance():
    """Catches a temperature of 0 that divides by it, or that draws."""
    chance = generator(SamplingParams(seed=1))
    before = chance.get_state()
    token, logprob = sample(LOGITS, SamplingParams(temperature=0.0), chance)
    assert token == 1
    assert logprob == pytest.approx(float(LOGITS.log_softmax(0)[1]))
    assert torch.equal(chance.get_state(), before)


def test_logprob_is_the_models_own():
    """Catches a log-probability taken after temperature and filters."""
    params = SamplingParams(temperature=0.1, top_k=1, seed=3)
    token, logprob = sample(LOGITS, params, generator(params))
    assert logprob == pytest.approx(float(LOGITS.log_softmax(0)[token]))


def test_temperature_one_without_filters_is_softmax():
    """Catches a filter that is on by default."""
    probs = probabilities(LOGITS, SamplingParams())
    torch.testing.assert_close(probs, LOGITS.double().softmax(0))


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"top_k": 1}, [1]),  # of two equals, the lower id
        ({"top_k": 3}, [1, 2, 4]),
        ({"top_k": 99}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.39}, [1]),  # 0.397 alone reaches it
        ({"top_p": 0.5}, [1, 4]),
        ({"top_p": 0.9}, [1, 2, 4]),
        ({"top_p": 1e-9}, [1]),
        ({"min_p": 0.5}, [1, 4]),
        ({"min_p": 0.3}, [1, 2, 4]),
        ({"min_p": 1.0}, [1, 4]),
        ({"top_k": 3, "min_p": 0.5}, [1, 4]),
        ({"top_p": 0.9, "top_k": 2}, [1, 4]),
    ],
)
def test_filters_keep(settings, wanted):
    """Catches off-by-one in top-k and top-p, and filters that undo each other."""
    assert kept(**settings) == wanted


@pytest.mark.parametrize("temperature", [1e-30, 0.01, 1.0, 100.0, 1e30])
def test_any_temperature_gives_a_distribution(temperature):
    """Catches overflow: inf - inf is NaN, and a NaN draws nothing."""
    probs = probabilities(LOGITS * 1000, SamplingParams(temperature=temperature))
    assert float(probs.sum()) == pytest.approx(1.0)
    assert float(probs[5]) == 0.0


def test_same_seed_same_draws_and_other_seeds_differ():
    """Catches a generator that is shared, global or ignored."""

    def draws(seed: int | None) -> list[int]:
        params = SamplingParams(seed=seed)
        chance = generator(params)
        return [sample(torch.zeros(1000), params, chance)[0] for _ in range(20)]

    assert draws(7) == draws(7)
    assert draws(7) != draws(8)
    assert draws(None) != draws(None)
    assert draws(-1) == draws(2**64 - 1)  # any int is a seed


def test_draws_follow_the_distribution():
    """Catches a biased draw; chi-square with 3 degrees of freedom, fixed seed."""
    probs = torch.tensor([0.5, 0.0, 0.3, 0.15, 0.05], dtype=torch.float64)
    chance = torch.Generator().manual_seed(0)
    counts = torch.bincount(
        torch.tensor([draw(probs, chance) for _ in range(4000)]), minlength=5
    ).double()
    assert counts[1] == 0
    live = probs > 0
    expected = 4000 * probs[live]
    assert float(((counts[live] - expected) ** 2 / expected).sum()) < 16.3  # p = 0.001


def test_rounding_of_near_equals_moves_no_other_token():
    """Catches a draw over sorted tokens, where a batch's rounding swaps two and so all others."""
    a = torch.full((1000,), 1e-3, dtype=torch.float64)
    b = a.clone()
    b[::2] += 1e-15
    chances = (torch.Generator().manual_seed(1), torch.Generator().manual_seed(1))
    first, second = ([draw(p, c) for _ in range(200)] for p, c in zip((a, b), chances, strict=True))
    assert first == second


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_refused(bad, temperature):
    """Catches an overflow in half precision that would come out as some token."""
    params = SamplingParams(temperature=temperature)
    with pytest.raises(MinillmError, match="NaN or infinity"):
        sample(torch.tensor([0.0, bad]), params, generator(params))
