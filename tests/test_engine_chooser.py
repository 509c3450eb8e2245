"""The end of a step: a batch with mixed settings, and requests that fail alone."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from minillm.config import SamplingParams
from minillm.decode.sampling import generator
from minillm.engine.chooser import Chooser
from minillm.engine.request import Piece, Request
from minillm.errors import MinillmError
from minillm.kv.plan import Step
from minillm.model.kernels import Tops
from minillm.trace import Trace

ROW = torch.tensor([0.0, 2.0, 1.0])


def request(number: int, **asked) -> Request:
    """One whose prompt is the id 0, and which has said 1."""
    params = SamplingParams(max_tokens=9, **asked)
    detokenizer = SimpleNamespace(add=str, stopped=False)
    made = Request(number, "", [0], params, (), generator(params), detokenizer, 0.0)
    made.ids.append(1)
    made.pieces.append(Piece("", 1, 0.0, 0))
    return made


def choose(requests: list[Request], logits, wanted=None, lost=None, tops=None) -> Trace:
    """One step over them, each with one token to run."""
    n = len(requests)
    kv = SimpleNamespace(lost=lost or {}, commit=lambda number, ids: None)
    trace = Trace()
    step = Step(tuple(r.number for r in requests), (1,) * n, (1,) * n, tuple(wanted or [1] * n))
    Chooser(kv, trace).choose(step, requests, logits, tops)
    return trace


def test_known_tops_spare_the_look_and_change_nothing():
    """Catches a fast path that answers for a row with a bias, a penalty or logprobs."""
    changed = [
        {"logit_bias": {0: 9}}, {"repetition_penalty": 9.0}, {"presence_penalty": 2.0},
        {"frequency_penalty": 2.0}, {"logprobs": 1},
    ]  # fmt: skip
    logits, total = ROW.repeat(6, 1), float(ROW.logsumexp(0))
    tops = Tops(torch.full((6,), 1), torch.full((6,), 2.0), torch.full((6,), total))
    logits[0] = math.nan  # of this row all is known
    requests = [request(n, temperature=0.0, **more) for n, more in enumerate(({}, *changed))]
    choose(requests, logits, tops=tops)
    assert [r.token_ids[-1] for r in requests] == [1, 0, 2, 2, 2, 1]
    own = ROW.log_softmax(0).tolist()
    for each in requests:
        _, piece = each.pieces
        assert piece.logprob == pytest.approx(own[piece.token_id])
        assert piece.top_logprobs == pytest.approx({1: own[1]} if each.params.logprobs else {})


def test_who_fails_fails_alone_and_rows_stay_with_their_requests():
    """Catches a row without numbers that stops a step, and a lost request that keeps its row.

    Then all after it would take their neighbour's token.
    """
    requests = [request(n, temperature=t) for n, t in enumerate((0.0, 1.0, 0.0, 0.0, 1.0))]
    logits = torch.full((4, 4), -9.0)
    for row, token in enumerate((3, 0, 2, 1)):
        logits[row, token] = 90.0
    logits[1, 3] = math.nan
    error = MinillmError("wanted a page, found none")
    choose(requests, logits, wanted=[1, 1, 0, 1, 1], lost={0: error})
    assert [r.token_ids[1:] for r in requests] == [[], [], [], [2], [1]]
    assert requests[0].error is error
    assert "NaN or infinity" in str(requests[1].error)
    assert [r.error for r in requests[2:]] == [None] * 3
    assert [r.cached for r in requests] == [0, 0, 1, 1, 1]


def test_each_request_has_its_share_of_the_time():
    """Catches a batch that is told as one, and shares that overlap or do not add up."""
    requests = [request(n, temperature=1.0) for n in range(3)]
    spans = choose(requests, ROW.repeat(3, 1)).select(name="sample")
    assert [(e.request, e.token) for e in spans] == [(0, 1), (1, 1), (2, 1)]
    assert all(a.end == pytest.approx(b.start) for a, b in zip(spans, spans[1:], strict=False))
    assert len({round(e.seconds, 12) for e in spans}) == 1
