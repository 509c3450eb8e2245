"""Packed or padded, each text gets what it gets alone; and its ids take one way to HBM."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from conftest import ours, random_ids, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from test_model_llama import assert_close

from minillm.errors import OutOfMemory, PromptError
from minillm.machine import Machine
from minillm.model.attention import causal
from minillm.tokens.batch import Staging, buckets, pack, pad, padding_waste

LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=6)


def texts_of(lengths: list[int]) -> list[list[int]]:
    ids = random_ids(sum(lengths), seed=sum(lengths)).tolist()
    stops = torch.tensor(lengths).cumsum(0).tolist()
    return [ids[stop - n : stop] for n, stop in zip(lengths, stops, strict=True)]


def packed_attend(cu_seqlens: torch.Tensor):
    """Each text of a packed batch looks at itself alone."""
    spans = [slice(*span) for span in pairwise(cu_seqlens.tolist())]
    return lambda layer, *qkv: torch.cat([causal(layer, *(t[s] for t in qkv)) for s in spans])


def padded_attend(mask: torch.Tensor):
    """Each token of a padded batch looks at the tokens of its row up to itself."""
    earlier = torch.ones(mask.shape[1], mask.shape[1]).tril().bool()
    seen = (earlier & mask[:, None]) | torch.eye(mask.shape[1]).bool()  # (B, T, T)

    def attend(layer, q, k, v):
        q, k, v = (t.unflatten(0, mask.shape).transpose(1, 2) for t in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, seen[:, None], enable_gqa=True)
        return out.transpose(1, 2).flatten(0, 1)

    return attend


@pytest.fixture(scope="module")
def model(tiny):
    with torch.no_grad():
        made = ours(reference(tiny("qwen3"), torch.float32), tiny("qwen3"))
        made.prepare(64)
        yield made


@given(lengths=LENGTHS)
@settings(max_examples=25, deadline=None)
def test_packed_and_padded_equal_one_by_one(model, lengths):
    """Catches a text that sees its neighbour or the padding, and one that lies elsewhere than its
    batch says."""
    texts = texts_of(lengths)
    with torch.no_grad():
        alone = torch.cat([model(torch.tensor(ids)) for ids in texts])
        packed = pack(texts)
        together = model(packed.ids, packed.positions, packed_attend(packed.cu_seqlens))
        assert_close(together, alone, 1e-5)
        for side in ("left", "right"):
            ids, mask, positions = pad(texts, side)
            rows = model(ids.flatten(), positions.flatten(), padded_attend(mask))
            assert_close(rows[mask.flatten()], alone, 1e-5)


def test_left_padding_without_a_mask_is_another_text(model):
    """Catches the comparison above if it could not tell a mask from none."""
    ids, mask, positions = pad(texts_of([9, 4]), "left")
    whole, counted = torch.ones_like(mask), torch.arange(9).repeat(2)
    with torch.no_grad():
        right = model(ids.flatten(), positions.flatten(), padded_attend(mask))[-1]
        # Rotary positions are relative: where nobody looks at padding, a shift changes nothing.
        shifted = model(ids.flatten(), counted, padded_attend(mask))[-1]
        unmasked = model(ids.flatten(), positions.flatten(), padded_attend(whole))[-1]
        neither = model(ids.flatten(), counted, padded_attend(whole))[-1]
    assert_close(shifted, right, 1e-4)
    for wrong in (unmasked, neither):
        assert (wrong - right).abs().max() > 0.01 * right.abs().max()


@given(lengths=LENGTHS)
def test_every_id_lies_where_mask_and_cu_seqlens_say(lengths):
    """Catches an id that is lost, moved or doubled, and a position that does not count from 0."""
    texts, longest = texts_of(lengths), max(lengths)
    packed = pack(texts)
    assert [packed.ids[a:b].tolist() for a, b in pairwise(packed.cu_seqlens)] == texts
    assert packed.positions.tolist() == [p for n in lengths for p in range(n)]
    assert (packed.ids.dtype, packed.cu_seqlens.dtype) == (torch.int64, torch.int32)
    for side in ("left", "right"):
        ids, mask, positions = pad(texts, side)
        assert ids.shape == mask.shape == positions.shape == (len(lengths), longest)
        for row, text in enumerate(texts):
            where = torch.arange(len(text)) + (longest - len(text)) * (side == "left")
            assert mask[row].nonzero().flatten().tolist() == where.tolist()
            assert ids[row][where].tolist() == text
            assert positions[row][where].tolist() == list(range(len(text)))
        assert not ids[~mask].any()
    empty = (~mask).float().mean().item()
    assert padding_waste(lengths) == pytest.approx(empty)


@pytest.mark.parametrize("make", [pack, pad])
@pytest.mark.parametrize("texts", [[], [[]], [[5], [], [6, 7]]])
def test_an_empty_text_is_refused(make, texts):
    """Catches a text without a last token, whose logits would be its neighbour's."""
    with pytest.raises(PromptError, match="wanted tokens in every text, found .*; leave out"):
        make(texts)


@given(lengths=st.lists(st.integers(1, 40), max_size=30), most=st.integers(1, 100))
def test_buckets_take_every_text_once_and_waste_no_more(lengths, most):
    """Catches a text that is lost, a batch over its room, and a batch closed too early."""
    found = buckets(lengths, most)
    assert sorted(number for batch in found for number in batch) == list(range(len(lengths)))
    in_order = [lengths[number] for batch in found for number in batch]
    assert in_order == sorted(lengths)
    for batch, after in zip(found, [*found[1:], None], strict=False):
        places = len(batch) * max(lengths[number] for number in batch)
        assert places <= most or len(batch) == 1
        assert after is None or (len(batch) + 1) * lengths[after[0]] > most
    places = sum(len(batch) * lengths[batch[-1]] for batch in found)
    assert places <= len(lengths) * max(lengths, default=0)


def test_ids_go_through_one_buffer_and_the_trace_sees_them(machine):
    """Catches a buffer made anew for each batch, a stale id, and a transfer that goes unseen."""
    with ExitStack() as stack:
        staging = Staging(machine, 8, stack)
        held = machine.hbm.by_label["ids"], machine.dram.by_label["ids"]
        assert held == (64, 64)
        first = staging.send([[1, 2, 3], [4]])
        assert first.tolist() == [1, 2, 3, 4]
        second = staging.send(pad([[5, 6], [7]]).ids.tolist())
        assert second.tolist() == [5, 6, 7, 0]
        assert first.data_ptr() == second.data_ptr() and first.tolist() == second.tolist()
        assert (machine.hbm.by_label["ids"], machine.dram.by_label["ids"]) == held
        with pytest.raises(ValueError):
            staging.send([list(range(9))])
        assert [e.name for e in machine.trace.select(stage="tokens", kind="span")] == ["batch"] * 2
        moves = machine.trace.select(kind="transfer", label="ids")
        assert [(e.source, e.target, e.nbytes) for e in moves] == [("dram", "hbm", 32)] * 2
    assert not machine.hbm.by_label.get("ids") and not machine.dram.by_label.get("ids")


def test_too_little_room_for_staging_keeps_nothing():
    """Catches HBM kept when there is no DRAM, or none of either."""
    small = Machine.here(hbm="1 KiB", device="cpu")
    with pytest.raises(OutOfMemory), ExitStack() as stack:
        Staging(small, 129, stack)
    assert small.hbm.used == small.dram.used == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_card_staging_is_pinned(machine):
    """Catches a buffer that the card cannot read by itself: the copy would take two steps."""
    card = Machine.here(hbm="64 MiB")
    with ExitStack() as stack:
        staging = Staging(card, 512, stack)
        assert staging._dram.is_pinned()
        assert staging.send([[3, 1, 2]]).tolist() == [3, 1, 2]
