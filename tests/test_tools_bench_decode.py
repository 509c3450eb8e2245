"""`bench decode` compares rates of one run, task by task."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from minillm.tools import bench_decode as decode
from minillm.tools import bench_decode_llama as decode_llama
from minillm.tools.bench_decode import CEILING, OURS, TASKS


def test_of_transformers_the_faster_type_is_shown():
    """Catches a comparison with a type that nobody would take on this machine."""
    found = {(CEILING, "decode"): [400.0, 400.0, 800.0]}
    for task in TASKS:
        found[OURS, task] = [100.0, 300.0, 200.0]
        found["transformers float32", task] = [10.0, 10.0, 10.0]
        found["transformers bfloat16", task] = [20.0 if task == "decode" else 5.0] * 3
    lines = decode.keep_best(found)
    assert found["transformers", "decode"] == [20.0] * 3
    assert found["transformers", "decode of 8"] == [10.0] * 3
    assert [line.split(": ")[1].split()[0] for line in lines] == ["bfloat16", "float32", "float32"]
    text = decode.show(found)
    assert "200.0 (100.0 … 300.0)" in text and "0.25 (0.25 … 0.75)" in text
    assert text.count("transformers") == 1 and "10.00 (5.00 … 15.00)" in text


def test_ours_tells_reading_from_writing(tiny):
    """Catches the prompt's pass counted among the tokens, or a stream left behind."""
    with ExitStack() as stack:
        ours = decode.Ours(tiny("llama"), "torch", stack)
        read, wrote = ours(2, 5, 3)
        assert read > 0 and wrote > 0
        names = [event.name for event in ours.engine.trace.select(resource="compute")]
        assert names.count("decode step") == 3 and names.count("prefill") == 1
        assert not ours.engine.scheduler.running
        assert ours(1, 5, 0)[0] > 0


def test_a_python_without_llama_cpp_is_told_and_the_rest_goes_on():
    """Catches a bench that needs what most learners have not."""
    with pytest.raises(decode.ConfigError, match="--llama"):
        with decode.llama_cpp(Path("data/town"), sys.executable):
            pytest.skip("llama_cpp is here")


def test_the_program_for_llama_cpp_needs_nothing_of_ours():
    """Catches an import that the other environment has not."""
    program = f"""import runpy, sys
runpy.run_path({decode_llama.__file__!r}, run_name="not main")
sys.exit(any(name.split(".")[0] in ("minillm", "torch") for name in sys.modules))"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
