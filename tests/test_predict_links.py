"""What collectives, splits and pipelines cost, against numbers worked by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from minillm import predict
from minillm.config import ModelConfig
from minillm.errors import ConfigError
from minillm.predict import Wire

LINK = Wire(bandwidth=1e9, latency=1e-3)  # a message of a megabyte: 1 ms + 1 ms
NVLINK, INFINIBAND = Wire(4e9, 1e-3), Wire(1e9, 3e-3)
LLAMA = ModelConfig(
    vocab_size=128256, hidden_size=8192, intermediate_size=28672, dtype="bfloat16",
    num_hidden_layers=80, num_attention_heads=64, num_key_value_heads=8,
)  # fmt: skip


def test_a_ring_sends_parts_in_twice_as_many_steps_as_it_has_other_ranks() -> None:
    """Catches a ring that sends the whole tensor at each step, or 2 for 'in and out'."""
    assert predict.all_reduce(8e6, 4, LINK) == pytest.approx(6 * (1e-3 + 2e-3))
    assert predict.reduce_scatter(8e6, 4, LINK) == pytest.approx(3 * (1e-3 + 2e-3))
    assert predict.all_gather(8e6, 4, LINK) == pytest.approx(3 * (1e-3 + 2e-3))
    assert predict.all_reduce(8e6, 1, LINK) == predict.broadcast(8e6, 1, LINK) == 0


def test_a_tree_sends_the_whole_tensor_in_logarithmically_many_steps() -> None:
    """Catches a tree that is given the ring's bytes, or NCCL's pipelined one."""
    assert predict.broadcast(8e6, 8, LINK) == pytest.approx(3 * (1e-3 + 8e-3))
    assert predict.all_reduce(8e6, 8, LINK, "tree") == pytest.approx(6 * (1e-3 + 8e-3))
    assert predict.broadcast(8e6, 5, LINK) == predict.broadcast(8e6, 8, LINK)
    small, large = (
        {way: predict.all_reduce(n, 8, LINK, way) for way in ("ring", "tree")} for n in (100, 1e8)
    )
    assert small["tree"] < small["ring"] and large["ring"] < large["tree"]


def test_bus_bandwidth_has_the_factors_of_nccl_tests() -> None:
    """Catches a busbw that shrinks as ranks are added although no link is slower."""
    for ranks in (2, 8):
        for op, work in (
            ("all_reduce", predict.all_reduce), ("all_gather", predict.all_gather),
            ("reduce_scatter", predict.reduce_scatter),
        ):  # fmt: skip
            seconds = work(1e6, ranks, Wire(1e9))
            assert predict.bus_bandwidth(op, 1e6, seconds, ranks) == pytest.approx(1e9)
    assert predict.bus_bandwidth("all_reduce", 1e9, 0.01, 8) == pytest.approx(1e11 * 14 / 8)
    assert predict.bus_bandwidth("broadcast", 1e9, 0.01, 8) == pytest.approx(1e11)
    with pytest.raises(ConfigError, match="found 'gather'"):
        predict.bus_bytes("gather", 1, 2)


def test_in_a_flat_ring_latency_passes_while_a_link_is_busy() -> None:
    """Catches walks and loads that are added up, a mean of bandwidths, and a slow link at each
    step."""
    two = 2, NVLINK, INFINIBAND  # GPUs a node
    # Small parts: round and round, 3 times over each kind of link.
    assert predict.flat_ring(0, 4, *two) == pytest.approx(3 * (1e-3 + 3e-3))
    # Large ones: 6 of 200 MB one after the other over the slow link, which has to begin once.
    assert predict.flat_ring(8e8, 4, *two) == pytest.approx(6 * 0.2 + 3e-3)
    # Between: of 2 MB, 3 times round, but the last waits for the one before it at the slow link.
    assert predict.flat_ring(8e6, 4, *two) == pytest.approx(3 * 5e-3 + 2 * 1.5e-3 + 2e-3)
    for nbytes in (0, 8e6):
        whole, ring = predict.flat_ring, predict.all_reduce
        assert whole(nbytes, 4, 4, NVLINK, INFINIBAND) == pytest.approx(ring(nbytes, 4, NVLINK))
        assert whole(nbytes, 4, 1, NVLINK, INFINIBAND) == pytest.approx(ring(nbytes, 4, INFINIBAND))
    assert predict.flat_ring(0, 3, *two) == pytest.approx((3 + 3 + 1 + 3) * 1e-3)  # 2 and 1


def test_hierarchical_sends_a_part_between_nodes_and_ranks_may_share_the_adapter() -> None:
    """Catches the whole tensor between nodes, and an adapter that each rank has for itself."""
    inside = 2 * (1e-3 + 1e-3)  # half of 8 MB over 4 GB/s, twice
    own = predict.hierarchical(8e6, 2, 2, NVLINK, INFINIBAND)
    assert own == pytest.approx(inside + 2 * (3e-3 + 2e-3))
    shared = predict.hierarchical(8e6, 2, 2, NVLINK, INFINIBAND, adapters=1)
    assert shared == pytest.approx(inside + 2 * (3e-3 + 4e-3))
    flat = predict.flat_ring(8e6, 4, 2, NVLINK, INFINIBAND)
    assert own < shared < flat
    assert predict.hierarchical(8e6, 1, 4, NVLINK, INFINIBAND) == pytest.approx(
        predict.all_reduce(8e6, 4, NVLINK)
    )


def test_a_fit_finds_the_link_and_shows_where_the_line_is_bent() -> None:
    """Catches a fit to the largest size alone, and residuals with the sign turned round."""
    sizes = [2**n for n in range(10, 25, 2)]
    straight = predict.fit("all_reduce", 4, {n: predict.all_reduce(n, 4, LINK) for n in sizes})
    assert (straight.link.bandwidth, straight.link.latency) == pytest.approx((1e9, 1e-3))
    assert max(map(abs, straight.residuals.values())) < 1e-9
    bent = {n: predict.all_reduce(n, 4, LINK) * (1.5 if n == 2**16 else 1) for n in sizes}
    residuals = predict.fit("all_reduce", 4, bent).residuals
    assert max(residuals, key=residuals.__getitem__) == 2**16 and residuals[2**16] > 0.2


def test_bytes_of_a_token_between_gpus() -> None:
    """Catches one sum a layer, or a hidden state that goes to all stages at once."""
    hidden = 8192 * 2
    assert predict.tensor_bytes(LLAMA, 8) == 2 * 80 * 2 * 7 / 8 * hidden
    assert predict.tensor_bytes(LLAMA, 1) == 0
    assert predict.pipeline_bytes(LLAMA, 4) == 3 * hidden
    assert predict.pipeline_bytes(LLAMA, 4, "float32") == 2 * 3 * hidden


def test_one_request_fills_a_pipeline_with_bubble() -> None:
    """Catches a bubble that more stages make smaller."""
    assert predict.bubble(4, 1) == 0.75 and predict.bubble(4, 12) == 0.2
    assert predict.bubble(1, 1) == 0.0


def test_the_best_split_keeps_sums_inside_a_node() -> None:
    """Catches sums that cross nodes for free, a split that heads forbid, and one that won't fit."""
    found = {(s.tp, s.pp): s for s in predict.splits(LLAMA, "H100", 16, batch=64, context=1000)}
    best = next(iter(found))
    assert best == (8, 2) and len(found) == 5
    wires = predict.find_hardware("H100")
    state = 64 * 8192 * 2
    step = predict.decode_step(LLAMA, "H100", 64, 1000).seconds
    sums = 160 * predict.all_reduce(state, 8, wires.nvlink)
    assert found[8, 2].seconds == pytest.approx(
        step / 8 + sums + wires.infiniband.seconds(state), rel=1e-9
    )
    crossing = predict.flat_ring(state, 16, 8, wires.nvlink, wires.infiniband)
    again = 64 * 1000 * predict.kv_bytes_per_token(LLAMA) / 16 / wires.hbm_bandwidth
    assert found[16, 1].seconds == pytest.approx(step / 16 + again + 160 * crossing), (
        "each of the 8 KV heads is read by two of the 16 ranks"
    )
    assert [s.fits for s in predict.splits(LLAMA, "H100", 1)] == [False]
    with pytest.raises(ConfigError, match="gpus"):
        predict.splits(LLAMA, "H100", 0)
    with pytest.raises(ConfigError, match="tp · pp = 131 .*found none"):
        predict.splits(LLAMA, "H100", 131)  # a prime above heads and layers


def test_a_split_fits_if_its_fullest_gpu_has_room() -> None:
    """Catches KV heads held by several ranks that count once, and stages that hold all layers."""
    many = predict.splits(LLAMA, "H100", 16, batch=2000, context=1000)
    # 41 GB of KV cache on each of 16 GPUs, but of 8 KV heads tp 16 holds each twice: 82 GB.
    assert {(s.tp, s.pp): s.fits for s in many} == {
        (8, 2): True, (4, 4): True, (2, 8): True, (1, 16): True, (16, 1): False,
    }  # fmt: skip
    assert not many[-1].fits
    # 3 stages of 80 layers: 27 in the fullest, 47.3 GB of weights, and its part of the KV cache.
    three = replace(LLAMA, num_attention_heads=63, num_key_value_heads=7, head_dim=128)
    room = predict.find_hardware("H100").hbm_bytes - 2 * (
        predict.parameters(replace(three, num_hidden_layers=27, tie_word_embeddings=True))
    )
    tokens = room // (2 * 27 * 7 * 128 * 2)
    for context, fits in ((tokens, True), (tokens + 1, False)):
        pipe = [s for s in predict.splits(three, "H100", 3, context=context) if s.pp == 3]
        assert [s.fits for s in pipe] == [fits]


def test_micro_batches_fill_the_stages_and_read_the_weights_more_often() -> None:
    """Catches a pipeline that gives one request more speed, or throughput for nothing."""
    one, *_ = (s for s in predict.splits(LLAMA, "H100", 8) if s.pp == 8)
    alone, *_ = (s for s in predict.splits(LLAMA, "H100", 8) if s.pp == 1)
    assert one.seconds > 6 * alone.seconds
    assert one.tokens_per_second == pytest.approx(1 / one.seconds)  # of 8 stages 7 wait
    full, *_ = (s for s in predict.splits(LLAMA, "H100", 8, batch=8, micro_batches=8) if s.pp == 8)
    assert full.tokens_per_second == pytest.approx(8 / (full.seconds * 15 / 8))
