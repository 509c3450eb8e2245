"""`bench decode` compares rates of one run, task by task."""

from __future__ import annotations

import sys
from contextlib import ExitStack

from minillm.tools import bench_decode as decode
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
