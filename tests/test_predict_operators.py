"""FLOPs and bytes of a pass: held against what the engine counts, and what torch counts."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minillm.config import ModelConfig, SamplingParams
from minillm.engine.engine import Engine
from minillm.errors import ConfigError
from minillm.machine import Machine
from minillm.model.llama import Llama
from minillm.predict import (
    HARDWARE,
    critical_batch,
    decode_step,
    kv_bytes_per_token,
    operators,
    prefill,
    restore,
)
from tests.conftest import TINY
from tests.test_predict import LLAMA_1B, LLAMA_8B


@pytest.mark.parametrize("name", TINY)
def test_the_bytes_of_a_pass_are_those_that_the_trace_counts(name, tiny):
    """Catches an untied embedding read whole, a head forgotten, keys without their values."""
    folder = tiny(name)
    config, machine = ModelConfig.from_pretrained(folder), Machine.here("64 MiB", device="cpu")
    engine = Engine.load(folder, machine)
    prompts = [[5] * 20, [7] * 9, [6] * 3]
    engine.generate(prompts, SamplingParams(max_tokens=6, ignore_eos=True))
    passes = [e for e in machine.trace.events if e.name in ("prefill", "decode step")]
    starts, counts, predicted = [0, 0, 0], [len(p) for p in prompts], []
    for _ in passes:
        predicted.append(sum(op.bytes for op in operators(config, starts, counts)))
        starts, counts = [s + n for s, n in zip(starts, counts, strict=True)], [1, 1, 1]
    assert [e.nbytes for e in passes] == predicted and len(passes) == 6
    each = {b.nbytes - a.nbytes for a, b in pairwise(passes[1:])}
    assert each == {3 * kv_bytes_per_token(config)}


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("tokens", [1, 7])
def test_the_flops_of_the_products_are_those_that_torch_counts(name, tokens, tiny):
    """Catches a factor 2, a projection with too many heads, a FFN with two matrices."""
    config = ModelConfig.from_pretrained(tiny(name))
    model = Llama(config)
    plain = sdpa_kernel(SDPBackend.MATH)  # two products of matrices, which torch counts
    with FlopCounterMode(display=False) as counter, torch.no_grad(), plain:
        model(torch.zeros(tokens, dtype=torch.long))
    found = counter.get_flop_counts()["Global"]
    dense = sum(n for op, n in found.items() if "bmm" in str(op))
    ours = {op.name: op for op in operators(config, [0], [tokens], wanted=tokens)}
    products = sum(op.flops for kind, op in ours.items() if kind not in ("attention", "norms"))
    assert products == sum(found.values()) - dense
    pairs = tokens * (tokens + 1) // 2  # torch counts those that causal attention leaves out, too
    assert ours["attention"].flops * tokens**2 == dense * pairs


@given(first=st.integers(0, 50), second=st.integers(1, 50), before=st.integers(0, 50))
def test_a_prompt_in_chunks_takes_the_same_flops(first, second, before):
    """Catches attention that counts a chunk's own tokens only, or twice."""

    def flops(start: int, count: int) -> dict[str, int]:
        work = operators(LLAMA_1B, [start], [count], wanted=0)
        return {op.name: op.flops for op in work}

    one, two = flops(before, first), flops(before + first, second)
    assert {name: one[name] + two[name] for name in one} == flops(before, first + second)


def test_a_batch_shares_the_weights_and_not_the_cache():
    """Catches weights read once a request, and a KV cache read once a batch."""
    one, many = (decode_step(LLAMA_8B, "H100", n, 1000) for n in (1, 16))
    cache = kv_bytes_per_token(LLAMA_8B) * 1000
    assert many.bytes - one.bytes == 15 * cache and many.flops == 16 * one.flops
    assert one.bytes == (8_030_261_248 - 128256 * 4096) * 2 + cache  # the input is looked up
    assert one.bound_by == "hbm" and 1.0 < many.seconds / one.seconds < 1.2
    assert sum(one.parts.values()) == pytest.approx(one.seconds)
    assert one.seconds == pytest.approx(one.bytes / HARDWARE["H100"].hbm_bandwidth)


@pytest.mark.parametrize("name", ["A100", "H100", "B200", "DDR5 server"])
def test_at_the_critical_batch_the_products_change_sides(name):
    """Catches a ridge that forgets the two FLOPs or the two bytes of a weight."""
    ridge = critical_batch(name)
    for batch, side in ((int(ridge), "hbm"), (int(ridge) + 1, "compute")):
        work = operators(LLAMA_8B, [0] * batch, [1] * batch)
        hardware = HARDWARE[name]
        down = next(op for op in work if op.name == "down")
        by_memory = down.bytes / hardware.hbm_bandwidth
        assert (down.flops / hardware.bf16_flops > by_memory) == (side == "compute")
        assert down.intensity == pytest.approx(batch)
    assert critical_batch(name, "int8") == ridge / 2


def test_attention_over_grouped_heads_has_an_intensity_of_their_number():
    """Catches decode's attention at 1 FLOP a byte, whatever the heads (it is H / K)."""
    attention = operators(LLAMA_8B, [4095], [1])[1]
    assert attention.name == "attention" and attention.intensity == 32 / 8


def test_restore_takes_the_faster_way():
    """Catches a swap that is always faster, and a verdict without its figures."""
    slow = replace(HARDWARE["H100"], pcie=replace(HARDWARE["H100"].pcie, bandwidth=1e6))
    for hardware, way in ((HARDWARE["H100"], "swap"), (slow, "recompute")):
        found = restore(LLAMA_8B, hardware, 2000)
        assert found.bound_by == way == min(found.parts, key=found.parts.get)
        assert found.seconds == found.parts[way]
    nbytes = 2000 * kv_bytes_per_token(LLAMA_8B)
    ssd = restore(LLAMA_8B, "H100", 2000, "ssd").parts
    assert ssd["swap"] == HARDWARE["H100"].nvme.seconds(nbytes)
    assert ssd["recompute"] == prefill(LLAMA_8B, "H100", tokens=2000).seconds


@pytest.mark.parametrize("wrong", [
    lambda: decode_step(LLAMA_8B, "H100", 0), lambda: decode_step(LLAMA_8B, "H100", context=0),
    lambda: prefill(LLAMA_8B, "H100", tokens=-1), lambda: restore(LLAMA_8B, "H100", 1.5),
    lambda: restore(LLAMA_8B, "H100", 1, "disk"),
])  # fmt: skip
def test_what_cannot_be_predicted_is_refused_by_name(wrong):
    """Catches a step of no tokens, which takes the time of all weights."""
    with pytest.raises(ConfigError, match="wanted .* found"):
        wrong()
