"""The contiguous KV cache: what it reserves, where it writes, what it lets a query see."""

from __future__ import annotations

import pytest
import torch

from minillm.config import ModelConfig
from minillm.errors import OutOfMemory
from minillm.kv import ContiguousKV
from minillm.machine import Machine

L, K, E = 3, 2, 16  # of the tiny checkpoints


@pytest.fixture
def config(tiny) -> ModelConfig:
    return ModelConfig.from_pretrained(tiny("llama"))


@pytest.fixture
def kv(config, machine):
    with ContiguousKV(config, 2, 32, machine, torch.float32) as cache:
        yield cache


def positions(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows)


def random_kv(B: int, T: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(B, K, T, E), torch.randn(B, K, T, E)


def test_it_reserves_exactly_its_bytes_and_gives_them_back(config, machine):
    """Catches a leak, a double release, and a formula that forgets K, V, layers or dtype."""
    kv = ContiguousKV(config, 2, 32, machine, torch.bfloat16)
    assert kv.nbytes_per_token == 2 * L * K * E * 2
    assert 2 * 32 * kv.nbytes_per_token == machine.hbm.by_label["kv"]
    kv.close()
    kv.close()
    assert machine.hbm.used == 0


def test_too_large_a_cache_is_refused_and_takes_nothing(config):
    """Catches a budget that is overdrawn, or lost to a request that never ran."""
    machine = Machine.here(hbm="10 KiB", device="cpu")
    with pytest.raises(OutOfMemory) as error:
        ContiguousKV(config, 1, 100, machine, torch.float32)
    assert error.value.tier == "hbm"
    assert error.value.asked == 100 * 2 * L * K * E * 4
    assert machine.hbm.used == 0


def test_an_exception_inside_with_releases_the_cache(config, machine):
    """Catches HBM that a failed request keeps."""
    with pytest.raises(RuntimeError), ContiguousKV(config, 1, 8, machine, torch.float32):
        raise RuntimeError("a request fails")
    assert machine.hbm.used == 0


def test_mask_shows_the_past_and_itself_but_nothing_dropped(kv):
    """Catches an off-by-one at the query's own position, and a drop that hits the wrong row."""
    kv.drop(1, 3)
    kv.drop(4, 5, row=1)
    where = positions([4, 5], [6, 7])
    mask = kv.slots(where).mask
    dropped = [{1, 2}, {1, 2, 4}]
    wanted = [
        [[j <= p and j not in dropped[row] for j in range(8)] for p in where[row].tolist()]
        for row in range(2)
    ]
    assert mask.dtype == torch.bool
    assert mask.tolist() == [[rows] for rows in wanted]


def test_the_usual_passes_need_no_mask(kv):
    """Catches a mask built for every token of every step, where causal order says it all."""
    assert kv.slots(positions([0, 1, 2], [0, 1, 2])).mask is None  # a prompt from its start
    assert kv.slots(positions([3], [3])).mask is None  # one new token a row, rows level
    assert kv.slots(positions([3, 4], [3, 4])).mask is not None  # a later chunk
    assert kv.slots(positions([3], [5])).mask is not None  # rows of different length
    kv.drop(0, 1)
    assert kv.slots(positions([6], [6])).mask is not None


@pytest.mark.parametrize("where", [[[0, 1, 2], [0, 1, 2]], [[5, 6, 7], [2, 3, 4]], [[9], [30]]])
def test_update_writes_each_row_at_its_positions(where, kv):
    """Catches an index that mixes up rows, heads or positions; compared with a plain loop."""
    where = torch.tensor(where)
    for layer in range(L):
        k, v = random_kv(2, where.shape[1])
        keys, values = kv.update(layer, k, v, kv.slots(where))
        assert keys.shape == values.shape == (2, K, int(where.max()) + 1, E)
        wanted = torch.zeros_like(keys)
        for row in range(2):
            for t, position in enumerate(where[row].tolist()):
                wanted[row, :, position] = k[row, :, t]
                assert torch.equal(values[row, :, position], v[row, :, t])
        assert torch.equal(keys, wanted)
    assert kv.length == int(where.max()) + 1


def test_update_returns_views_and_layers_do_not_share(kv):
    """Catches a cache that is copied every step, and one layer that overwrites another's."""
    slots = kv.slots(positions([0], [0]))
    first, _ = kv.update(0, *random_kv(2, 1), slots)
    before = first.clone()
    again, _ = kv.update(0, first, first, slots)
    assert again.data_ptr() == first.data_ptr()
    kv.update(1, *random_kv(2, 1), slots)
    assert torch.equal(first, before)


def test_slots_nobody_wrote_cannot_poison_a_result(config, machine, monkeypatch):
    """Catches fresh memory that happens to hold NaN: a masked weight of 0 times NaN is NaN."""
    empty = machine.empty
    monkeypatch.setattr(machine, "empty", lambda *args: empty(*args).fill_(torch.nan))
    kv = ContiguousKV(config, 2, 32, machine, torch.float32)
    slots = kv.slots(positions([1], [20]))
    keys, values = kv.update(0, *random_kv(2, 1), slots)
    out = torch.nn.functional.scaled_dot_product_attention(keys[:, :, :1], keys, values, slots.mask)
    assert out.isfinite().all()


def test_a_position_past_the_capacity_is_stopped(kv):
    """Catches a write beyond the block, which an index would wrap or a device would crash on."""
    with pytest.raises(AssertionError, match="cache of 32 slots"):
        kv.slots(positions([32], [3]))
