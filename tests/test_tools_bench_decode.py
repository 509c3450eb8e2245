"""`bench decode` compares rates of one run, task by task."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from minillm.tools import bench_decode as decode
from minillm.tools import bench_decode_llama as decode_llama
from minillm.tools.bench_decode import OURS, TASKS, Report


def test_of_transformers_the_faster_type_is_shown():
    """Catches a comparison with a type that nobody would take on this machine."""
    report = Report("town")
    for task in TASKS:
        report.rates[OURS, task] = [100.0, 300.0, 200.0]
        report.rates["transformers float32", task] = [10.0]
        report.rates["transformers bfloat16", task] = [20.0 if task == "decode" else 5.0]
    decode._keep_best(report)
    assert report.rates["transformers", "decode"] == [20.0]
    assert report.rates["transformers", "decode of 8"] == [10.0]
    text = str(report)
    assert "200.0 (100.0 … 300.0)" in text
    assert text.count("transformers ") == 2 and "10.00" in text and "20.00" in text


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
