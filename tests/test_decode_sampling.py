"""Sampling, held against transformers' logits processors; and the chance tokens are drawn with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from minillm.config import SamplingParams
from minillm.decode.sampling import (
    draw,
    filtered,
    generator,
    penalized,
    probabilities,
    sample,
)
from minillm.errors import MinillmError

LOGITS = torch.tensor([1.0, 3.0, 2.0, -1.0, 3.0, -math.inf])


def text(prompt: Sequence[int] = (0,), said: Sequence[int] = (), **asked) -> SimpleNamespace:
    """A text that wants its next token."""
    params = SamplingParams(**asked)
    return SimpleNamespace(
        params=params, chance=generator(params), ids=[*prompt, *said], token_ids=list(said)
    )


def one(logits: Tensor, text: SimpleNamespace):
    """What is chosen from logits (V,)."""
    [found] = sample(logits[None], [text])
    return found


def kept(**asked) -> list[int]:
    """The ids that can still be drawn."""
    return (
        probabilities(LOGITS[None].double(), [SamplingParams(**asked)])[0].nonzero()[:, 0].tolist()
    )


# -- by hand --------------------------------------------------------------------------------------


def test_greedy_takes_the_first_of_the_likeliest_and_no_chance():
    """Catches a temperature of 0 that divides by it, or that draws."""
    greedy = text(temperature=0.0, seed=1)
    before = greedy.chance.get_state()
    token, logprob, top = one(LOGITS, greedy)
    assert (token, top) == (1, {})
    assert logprob == pytest.approx(float(LOGITS.log_softmax(0)[1]))
    assert torch.equal(greedy.chance.get_state(), before)


def test_logprobs_are_the_models_own():
    """Catches log-probabilities taken after bias, penalties, temperature and filters."""
    own = LOGITS.log_softmax(0).tolist()
    warped = text(
        [0, 2], [3], temperature=0.1, top_k=1, seed=3, logit_bias={3: 100}, logprobs=4,
        repetition_penalty=1.5, presence_penalty=1.0,
    )  # fmt: skip
    token, logprob, top = one(LOGITS, warped)
    assert token == 3, "the bias says so"
    assert logprob == pytest.approx(own[3])
    assert top == pytest.approx({id: own[id] for id in (1, 4, 2, 0)})
    assert list(top.values()) == sorted(top.values(), reverse=True)
    assert len(one(LOGITS, text(temperature=0.0, logprobs=99)).top_logprobs) == len(LOGITS)


def test_temperature_one_without_filters_is_softmax():
    """Catches a filter that is on by default."""
    logits = LOGITS[None].double()
    torch.testing.assert_close(probabilities(logits, [SamplingParams()]), logits.softmax(-1))


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ({"top_k": 1}, [1, 4]),  # both equal the first
        ({"top_k": 3}, [1, 2, 4]),
        ({"top_k": 99}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.39}, [4]),  # 0.397 alone reaches it; of two equals the higher id
        ({"top_p": 0.5}, [1, 4]),
        ({"top_p": 0.9}, [1, 2, 4]),
        ({"top_p": 1e-9}, [4]),
        ({"top_p": 1e-17}, [4]),  # 1 - p is 1, which no sum passes
        ({"min_p": 0.5}, [1, 4]),
        ({"min_p": 0.3}, [1, 2, 4]),
        ({"min_p": 1.0}, [1, 4]),
        ({"top_k": 3, "min_p": 0.5}, [1, 4]),
        ({"top_p": 0.9, "top_k": 2}, [1, 4]),
        ({"top_p": 0.8}, [1, 2, 4]),  # the two likeliest have 0.794
        ({"top_p": 0.8, "top_k": 3}, [1, 4]),  # of three 0.844: top-p sees what top-k left
    ],
)
def test_filters_keep(asked, wanted):
    """Catches off-by-one in top-k and top-p, and filters that do not see each other."""
    assert kept(**asked) == wanted


@pytest.mark.parametrize("temperature", [1e-30, 0.01, 1.0, 100.0, 1e30])
@pytest.mark.parametrize("filters", [{}, {"top_k": 3, "top_p": 0.5, "min_p": 0.1}])
def test_any_temperature_gives_a_distribution(temperature, filters):
    """Catches overflow: inf - inf is NaN, and a NaN draws nothing."""
    params = SamplingParams(temperature=temperature, **filters)
    [probs] = probabilities(LOGITS[None].double() * 1000, [params])
    assert float(probs.sum()) == pytest.approx(1.0)
    assert float(probs[5]) == 0.0


def test_penalties_and_bias_by_hand():
    """Catches a penalty on the wrong part of the text, on each coming, or with the wrong sign."""
    logits = torch.tensor([[2.0, -2.0, 4.0, 1.0]]).double()
    for asked, wanted in (
        ({"repetition_penalty": 2.0}, [1.0, -4.0, 4.0, 0.5]),  # prompt and answer, each once
        ({"presence_penalty": 0.5}, [2.0, -2.5, 4.0, 0.5]),  # the answer alone, each once
        ({"frequency_penalty": 0.5}, [2.0, -3.0, 4.0, 0.5]),  # each time
        ({"logit_bias": {0: -3, 3: 1.5}}, [-1.0, -2.0, 4.0, 2.5]),
        ({"logit_bias": {0: -3}, "repetition_penalty": 2.0}, [-2.0, -4.0, 4.0, 0.5]),
    ):  # fmt: skip
        assert penalized(logits, [text([0, 0], [1, 3, 1], **asked)])[0].tolist() == wanted
    assert logits.tolist() == [[2.0, -2.0, 4.0, 1.0]], "the model's own stay as they are"
    assert penalized(logits, [text([0], [1, 3])]) is logits, "nothing asked, nothing copied"


# -- the oracle -----------------------------------------------------------------------------------


def theirs(logits: Tensor, text: SimpleNamespace) -> Tensor:
    """transformers' scores for logits (V,), in the order of its `generate`."""
    params, ids = text.params, torch.tensor([text.ids])
    processors = LogitsProcessorList()
    if params.logit_bias:
        bias = {(id,): float(value) for id, value in params.logit_bias}
        processors.append(SequenceBiasLogitsProcessor(bias))
    if params.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    processors.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        processors.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        processors.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        processors.append(MinPLogitsWarper(params.min_p))
    return processors(ids, logits[None].double())[0]


@st.composite
def batches(draw: Callable) -> tuple[Tensor, list[SimpleNamespace]]:
    """Logits (R, V) with many ties, and for each row a text with settings of its own."""
    V = draw(st.integers(2, 12))
    ids = st.integers(0, V - 1)
    level = st.one_of(st.sampled_from((-2.0, 0.0, 0.5, 3.0)), st.floats(-9, 9, width=32))

    def row() -> SimpleNamespace:
        return text(
            draw(st.lists(ids, min_size=1, max_size=6)), draw(st.lists(ids, max_size=6)),
            temperature=draw(st.sampled_from((0.5, 1.0, 2.0))),
            top_k=draw(st.sampled_from((0, 1, 2, 3, 5, 99))),
            top_p=draw(st.sampled_from((1.0, 0.05, 0.3, 0.5, 0.9, 0.99))),
            min_p=draw(st.sampled_from((0.0, 0.03, 0.2, 0.7, 1.0))),
            repetition_penalty=draw(st.sampled_from((1.0, 0.5, 1.3))),
            logit_bias=draw(st.dictionaries(ids, st.sampled_from((-100, -1.5, 2)), max_size=2)),
            seed=draw(st.integers(0, 99)),
        )  # fmt: skip

    texts = [row() for _ in range(draw(st.integers(1, 4)))]
    rows = [draw(st.lists(level, min_size=V, max_size=V)) for _ in texts]
    return torch.tensor(rows), texts


@settings(max_examples=150, deadline=None)
@given(batches())
def test_masks_and_probabilities_are_those_of_transformers(batch):
    """Catches another order, a tie cut otherwise, and a row that takes its neighbour's setting."""
    logits, texts = batch
    scores = filtered(penalized(logits.double(), texts), [text.params for text in texts])
    for row, mine, each in zip(logits, scores, texts, strict=True):
        right = theirs(row, each)
        assert torch.equal(mine.isfinite(), right.isfinite())
        torch.testing.assert_close(mine.softmax(-1), right.softmax(-1))


def test_ties_in_a_large_vocabulary_are_those_of_a_stable_sort(monkeypatch):
    """Catches equals cut by chance: torch's sort may swap them where transformers calls it."""
    monkeypatch.setattr(torch, "sort", partial(torch.sort, stable=True))
    rows = torch.randint(0, 7, (4, 5000), generator=torch.Generator().manual_seed(0)).float()
    texts = [text(top_p=p, top_k=k) for p, k in ((0.2, 0), (0.9, 2000), (1.0, 50), (0.999, 0))]
    scores = filtered(rows.double(), [text.params for text in texts])
    for row, mine, each in zip(rows, scores, texts, strict=True):
        assert torch.equal(mine.isfinite(), theirs(row, each).isfinite())


@settings(max_examples=60, deadline=None)
@given(batches(), st.integers(0, 3))
def test_alone_and_in_company_the_same_token(batch, greedy):
    """Catches settings, seeds or rounding that depend on who shares the batch."""
    logits, texts = batch
    if greedy < len(texts):
        texts[greedy].params = SamplingParams(temperature=0.0, logprobs=2)
    together = sample(logits, texts)
    for row, each, found in zip(logits, texts, together, strict=True):
        each.chance = generator(each.params)
        assert one(row, each) == found


# -- chance ---------------------------------------------------------------------------------------

# The target: worked on paper from LOGITS / 2, top_p = 0.9, and never computed by what is judged.
# e^(1.5 - 1.5), e^(1 - 1.5), e^(0.5 - 1.5), e^(-0.5 - 1.5): 1, 1, 0.607, 0.368, 0.135 of 3.110. The
# masses before them are 0, 0.322, 0.643, 0.838, 0.956: four stay, of 2.975.
WARM = {"temperature": 2.0, "top_p": 0.9}
TARGET = {1: 1 / 2.974410, 4: 1 / 2.974410, 2: 0.606531 / 2.974410, 0: 0.367879 / 2.974410}
DRAWS, LIMIT = 12_000, 16.27  # chi-square of 3 degrees of freedom: one in a thousand is beyond


def chi_square(probs: Tensor) -> float:
    """Of tokens drawn from probs (V,), against the target; inf if one came that it has not."""
    [*drawn] = draw(probs.expand(DRAWS, -1), [torch.Generator().manual_seed(0)] * DRAWS).tolist()
    if set(drawn) - set(TARGET):
        return math.inf
    wanted = {token: DRAWS * share for token, share in TARGET.items()}
    return sum((drawn.count(token) - n) ** 2 / n for token, n in wanted.items())


def filter_before_temperature(scores: Tensor) -> Tensor:
    cold = filtered(scores, [SamplingParams(top_p=0.9)])
    return probabilities(cold, [SamplingParams(temperature=2.0)])


def drop_the_one_that_crosses(scores: Tensor) -> Tensor:
    probs, order = (scores / 2).softmax(-1).sort(descending=True)
    return torch.zeros_like(probs).scatter(-1, order, probs * (probs.cumsum(-1) <= 0.9))


def do_not_renormalise(scores: Tensor) -> Tensor:
    """What is missing to 1 goes to the last that stays, as u in [0, 1) falls past its end."""
    whole, right = (scores / 2).softmax(-1), probabilities(scores, [SamplingParams(**WARM)])
    probs = whole * (right > 0)
    probs[0, 4] += 1 - probs.sum()
    return probs


def no_temperature(scores: Tensor) -> Tensor:
    return probabilities(scores, [SamplingParams(top_p=0.9)])


def any_of_those_that_stay(scores: Tensor) -> Tensor:
    return (probabilities(scores, [SamplingParams(**WARM)]) > 0).double() / 4


WRONG = [filter_before_temperature, drop_the_one_that_crosses, do_not_renormalise,
         no_temperature, any_of_those_that_stay]  # fmt: skip


def test_draws_follow_the_target_and_wrong_rules_do_not():
    """Catches a biased draw or rule; the same judge refuses each of the usual wrong rules."""
    scores = LOGITS[None].double()
    assert chi_square(probabilities(scores, [SamplingParams(**WARM)])) < LIMIT
    found = {rule.__name__: chi_square(rule(scores)) for rule in WRONG}
    assert all(distance > LIMIT for distance in found.values()), found


def test_what_is_sampled_follows_the_target():
    """Catches a way from logits to tokens that is right in parts and wrong as a whole."""
    each = text(**WARM, seed=0)
    drawn = [found.token_id for found in sample(LOGITS.expand(DRAWS, -1), [each] * DRAWS)]
    wanted = {token: DRAWS * share for token, share in TARGET.items()}
    assert set(drawn) == set(wanted)
    assert sum((drawn.count(token) - n) ** 2 / n for token, n in wanted.items()) < LIMIT


def test_same_seed_same_draws_and_other_seeds_differ():
    """Catches a generator that is shared, global or ignored."""

    def draws(seed: int | None) -> list[int]:
        each = text(seed=seed)
        return [one(torch.zeros(1000), each).token_id for _ in range(20)]

    assert draws(7) == draws(7)
    assert draws(7) != draws(8)
    assert draws(None) != draws(None)
    assert draws(-1) == draws(2**64 - 1)  # any int is a seed


def test_rounding_of_near_equals_moves_no_other_token():
    """Catches a draw over sorted tokens, where a batch's rounding swaps two and so all others."""
    a = torch.full((200, 1000), 1e-3, dtype=torch.float64)
    b = a.clone()
    b[:, ::2] += 1e-15
    first, second = (draw(probs, [torch.Generator().manual_seed(1)] * 200) for probs in (a, b))
    assert torch.equal(first, second)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_holds_no_numbers_fails_alone(bad, temperature):
    """Catches an overflow in half precision that comes out as a token, or takes others along."""
    logits = torch.tensor([[0.0, 9.0], [0.0, bad], [9.0, 0.0]])
    before = logits.clone()
    same = {"temperature": temperature, "top_k": 1, "top_p": 0.5}
    first, failed, last = sample(logits, [text(**same) for _ in logits])
    assert (first.token_id, last.token_id) == (1, 0)
    assert isinstance(failed, MinillmError)
    assert "NaN or infinity" in str(failed)
    assert torch.equal(logits.nan_to_num(5), before.nan_to_num(5)), "the logits are not ours"
