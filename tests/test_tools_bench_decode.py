"""`bench decode` compares rates of one run, task by task."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import torch

from minillm.config import ModelConfig
from minillm.tools import bench_decode as decode
from minillm.tools import bench_decode_facts as facts
from minillm.tools.bench_decode import CEILING, OURS, TASKS


def test_of_transformers_the_faster_type_is_shown():
    """Catches a comparison with a type that nobody would take on this machine."""
    found = {(CEILING, "decode"): [400.0, 400.0, 800.0]}
    for task in TASKS:
        found[OURS, task] = [100.0, 300.0, 200.0]
        found["transformers float32", task] = [10.0, 10.0, 10.0]
        found["transformers bfloat16", task] = [20.0 if task == "decode" else 5.0] * 3
    rows = decode.show(found).splitlines()
    assert [row.split()[0] for row in rows[1:]] == ["minillm", "transformers", "DRAM's"]
    assert "200.0 (100.0 … 300.0)" in rows[1] and "0.25 (0.25 … 0.75)" in rows[3]
    assert "10.00 (5.00 … 15.00)" in rows[2] and rows[2].count("20.00 (10.00 … 30.00)") == 2


def test_ours_tells_reading_from_writing(tiny):
    """Catches the prompt's pass counted among the tokens, or a stream left behind."""
    with ExitStack() as stack:
        ours = decode.Ours(tiny("llama"), "torch", stack)
        read, wrote = decode.seconds(ours, 2, 5, 3)
        assert read > 0 and wrote > 0
        names = [event.name for event in ours.engine.trace.select(resource="compute")]
        assert names.count("decode step") == 3 and names.count("prefill") == 1
        assert not ours.engine.scheduler.running
        assert decode.seconds(ours, 1, 5, 0)[0] > 0


def test_what_is_not_here_is_told_and_the_rest_goes_on(tiny, monkeypatch):
    """Catches a bench that needs what most learners have not."""
    for name in ("transformers", "llama_cpp"):
        monkeypatch.setitem(sys.modules, name, None)
    with ExitStack() as stack:
        ways, lacking = decode._ways(tiny("llama"), stack, None)
    assert list(ways) == [decode.OURS, decode.TORCH]
    assert [line.split(" is not here")[0] for line in lacking] == [
        "transformers float32", "transformers bfloat16", "llama.cpp"]  # fmt: skip


NARROW = ModelConfig(
    vocab_size=8, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
)  # fmt: skip


def test_pages_are_timed_by_themselves_and_against_the_faster_way(monkeypatch):
    """Catches a difference of two passes, which came out negative, and a rival that is slow."""
    engine = SimpleNamespace(model_config=NARROW, dtype=torch.bfloat16)
    monkeypatch.setattr(facts, "LONG", 64)
    line = facts._attention(engine, 2, 3)
    took, times = line.partition("over pages ")[2].split(" ms, ")
    assert float(took) >= 0 and float(times.split()[0]) > 0 and "-" not in line, line
    seconds = iter([9.0, 9.0, 9.0, 3.0, 2.0, 4.0])  # a round to warm up; over pages, ours, torch
    monkeypatch.setattr(facts, "repeat", lambda run, **_: [next(seconds)])
    line = facts._attention(engine, 2, 1)
    assert "over pages 3000.00 ms, 1.50 (1.50 … 1.50) × contiguous (ours)" in line, line


@pytest.mark.parametrize("page", [16, 80])
def test_attention_is_timed_over_memory_that_is_there(page, monkeypatch):
    """Catches pages never written, which Linux has read from one page of zeros in the cache."""
    monkeypatch.setattr(facts, "LONG", 64)
    kv = facts.PagedKV(NARROW, facts.Machine.here(), torch.float32, page, 2 * (64 // page + 1))
    plan = facts._plan(kv, 2)
    assert plan.stops == [64, 64] and all((pool == 1).all() for pool in kv.resident)
    assert len({page for table in plan.tables for page in table}) == 2 * -(-64 // page)
    kv.close()
