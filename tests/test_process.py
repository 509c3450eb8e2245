"""Settings of the process: made once, and no more than that."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

RUN = """
import os, sys, threading
{first}
import minillm
from minillm.process import settle
import torch
before = torch.get_num_threads()
settle(), settle()
print(os.environ.get("GOMP_SPINCOUNT"), torch.get_num_threads() == before,
      [t.name for t in threading.enumerate()].count("openmp-team"))
"""


@pytest.mark.parametrize("first, environment, said", [
    ("", {"PATH": "with cc"}, "3000 True 0"),
    ("", {"PATH": "empty"}, "7000 True 0"),
    ("import torch", {}, "None True 1"),
    ("import torch", {"OMP_WAIT_POLICY": "ACTIVE"}, "None True 0"),
    ("", {"GOMP_SPINCOUNT": "7"}, "7 True 0"),
])  # fmt: skip
def test_torchs_threads_do_not_spin_whoever_came_first(
    first, environment, said, monkeypatch, tmp_path
):
    """Catches a prompt that takes a hundred times longer beside a busy browser, where a notebook
    imports torch before us; a setting of the user's overruled; a second team of threads."""
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, str(tmp_path / value) if name == "PATH" else value)
    compiler = tmp_path / "with cc" / ("cc.exe" if os.name == "nt" else "cc")
    compiler.parent.mkdir()
    compiler.touch(0o755)
    command = [sys.executable, "-c", RUN.format(first=first)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == said
