"""The contiguous KV cache: one page for each request, as long as the longest text."""

from __future__ import annotations

import pytest
import torch

from minillm.config import ModelConfig
from minillm.kv import ContiguousKV, Step

L, K, E = 3, 2, 16  # of the tiny checkpoints
PER_TOKEN = 2 * L * K * E * 2  # bytes in bfloat16


@pytest.fixture
def config(tiny) -> ModelConfig:
    return ModelConfig.from_pretrained(tiny("llama"))


def test_a_request_takes_the_whole_capacity_and_never_more(config, machine):
    """Catches a block that grows with the text, or is shorter than the longest one."""
    kv = ContiguousKV(config, machine, torch.bfloat16, capacity=32, requests=2)
    kv.find(0, [])
    for stop in (1, 17, 32):
        assert kv.reserve(0, stop)
        assert machine.hbm.by_label == {"kv": 32 * PER_TOKEN, "kv reserved": 32 * PER_TOKEN}
    kv.find(1, [])
    assert kv.reserve(1, 5)
    kv.find(2, [])
    assert not kv.reserve(2, 1), "two were asked for"
    kv.release(0)
    assert kv.reserve(2, 32)


def test_blocks_come_as_requests_do(config, machine):
    """Catches a pool of all HBM for one request, and one that stays when nobody is left."""
    kv = ContiguousKV(config, machine, torch.bfloat16, capacity=32)
    assert machine.hbm.used == 0
    kv.make_room([5, 20])
    assert machine.hbm.by_label == {"kv reserved": 2 * 32 * PER_TOKEN}
    kv.make_room(())
    assert machine.hbm.used == 0


def test_the_past_is_read_where_it_lies(config, machine):
    """Catches keys and values that are gathered into a copy on every step."""
    from minillm.kv.attention import _past

    kv = ContiguousKV(config, machine, torch.bfloat16, capacity=32, requests=2)
    kv.find(0, [])
    kv.reserve(0, 7)
    plan = kv.plan(Step(requests=(0,), starts=(0,), counts=(7,), wanted=(1,)))
    past = _past(kv.resident[1], plan, 0)
    assert past.shape == (2, K, 7, E)
    assert past.untyped_storage().data_ptr() == kv.resident[1].untyped_storage().data_ptr()
