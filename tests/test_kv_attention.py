"""Attention over pages is attention: held against its formula over whole texts, in float64."""

from __future__ import annotations

from random import Random

import pytest
import torch
from engine_draws import formula
from hypothesis import given, settings
from hypothesis import strategies as st

from minillm.config import ModelConfig
from minillm.kv import PagedKV, Step
from minillm.kv.attention import paged_attention
from minillm.kv.plan import Hidden
from minillm.machine import Machine

H, K, E = 4, 2, 16
CONFIG = ModelConfig(
    vocab_size=8, hidden_size=64, intermediate_size=8, num_hidden_layers=2,
    num_attention_heads=H, num_key_value_heads=K, head_dim=E,
)  # fmt: skip
Lengths = list[tuple[int, int]]
"""Of each sequence: tokens that are in the cache, and new ones."""


def error(kv: PagedKV, lengths: Lengths, hide: bool) -> float:
    """The largest difference from the formula. The pages of the sequences lie in no order."""
    chance = torch.Generator().manual_seed(0)
    texts = [torch.randn(old + new, H + 2 * K, E, generator=chance) for old, new in lengths]
    texts = [text.to(kv.resident[0]) for text in texts]
    gone = [range(1, 1 + old // 2) if hide else None for old, _ in lengths]
    Random(0).shuffle(kv.pool.free)
    for number, (old, new) in enumerate(lengths):
        kv.find(number, [])
        if hide:
            kv.hide(number, Hidden(old, gone[number]))
        assert kv.reserve(number, old + new)
    look(kv, texts, [(n, 0, old) for n, (old, _) in enumerate(lengths) if old])
    found = look(kv, texts, [(n, old, new) for n, (old, new) in enumerate(lengths)])
    wanted = []
    for text, (old, _), hidden in zip(texts, lengths, gone, strict=True):
        q, k, v = text.cpu().double().split((H, K, K), 1)
        wanted.append(formula(old, hidden)(0, q, k, v)[old:])
    return float((found.cpu().double() - torch.cat(wanted)).abs().max())


def look(kv: PagedKV, texts: list[torch.Tensor], parts: list[tuple[int, int, int]]) -> torch.Tensor:
    """One pass over (sequence, start, count): what the tokens see, in layer 1."""
    if not parts:
        return texts[0][:0]
    numbers, starts, counts = zip(*parts, strict=True)
    plan = kv.plan(Step(numbers, starts, counts, (0,) * len(parts)))
    tokens = torch.cat([texts[n][start : start + count] for n, start, count in parts])
    q, k, v = (part.contiguous() for part in tokens.split((H, K, K), 1))
    seen = paged_attention(q, k, v, kv.enter(1, plan), plan)
    for n, start, count in parts:
        kv.commit(n, range(start + count))
    return seen


def test_attention_over_pages_is_attention():
    """Catches a table read in the wrong order, a mask off by one, a neighbour that is seen."""
    lengths = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 9)), min_size=1, max_size=4)

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(lengths, st.sampled_from((1, 2, 4, 16, 64)), st.booleans())
    def same(lengths: Lengths, page_size: int, hide: bool) -> None:
        machine = Machine.here(hbm="8 MiB", device="cpu")
        kv = PagedKV(CONFIG, machine, torch.float32, page_size, pages=4 * 21)
        assert error(kv, lengths, hide) < 1e-5

    same()


@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=[
        pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA")
    ])],
)  # fmt: skip
@pytest.mark.parametrize("page_size", [16, 256])
@pytest.mark.parametrize("hide", [False, True])
def test_long_texts_on_any_device_see_the_same(device, page_size, hide):
    """Catches a pool that lies otherwise than the card's attention over pages reads it."""
    machine = Machine.here(hbm="128 MiB", device=device)
    lengths = [(300, 1), (0, 40), (513, 7), (15, 2), (256, 1), (100, 290)]
    for dtype, near in ((torch.float32, 1e-4), (torch.bfloat16, 3e-2)):
        kv = PagedKV(CONFIG, machine, dtype, page_size, pages=100)
        assert error(kv, lengths, hide) < near
        kv.close()
    assert machine.hbm.used == 0
