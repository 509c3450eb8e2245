"""Ranks that torchrun starts: the text and nothing else, on one node and on two; nobody is left."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from minillm import Engine, Machine, SamplingParams, Trace

ROOT = Path(__file__).resolve().parent.parent
PROMPT = "Mia put the red key"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
GENERATE = ["-m", "minillm", "generate", PROMPT, "--max-tokens", "12"]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="torchrun, and /proc to look after")


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(*arguments: str, node: int | None = None, at: int) -> subprocess.Popen:
    """An agent of torchrun."""
    where = ["--master-addr", "127.0.0.1", "--master-port", str(at)]
    where += ["--nnodes", "2", "--node-rank", str(node)] if node is not None else []
    paths = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    env = {**os.environ, "PYTHONPATH": paths, "TEST_OF_RANKS": str(at)}
    return subprocess.Popen(
        [*TORCHRUN, *where, *arguments], cwd=ROOT, env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def left(at: int) -> list[str]:
    """Processes that an agent started, or one of its ranks, and that still run."""
    mark, found = f"TEST_OF_RANKS={at}".encode(), []
    for place in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark in (place / "environ").read_bytes().split(b"\0"):
                found.append((place / "cmdline").read_text())
    return found


@pytest.fixture(scope="module")
def truth() -> str:
    engine = Engine.load("data/town", Machine.here(hbm="64 MiB", device="cpu"))
    return engine.generate(PROMPT, SamplingParams(max_tokens=12, temperature=0.0))[0].text


def test_two_ranks_of_one_node_write_the_text_once(tmp_path, truth):
    """Catches a second text from rank 1, Gloo's own lines, and a trace of one rank."""
    run = tmp_path / "run.json"
    at = port()
    agent = start("--nproc-per-node", "2", *GENERATE, "--tp", "2", "--trace", str(run), at=at)
    out, err = agent.communicate(timeout=120)
    assert (agent.returncode, out) == (0, truth), err
    assert left(at) == []
    trace = Trace.load(run)
    assert {event.rank for event in trace.events} == {0, 1}
    ids = [e for e in trace.events if (e.kind, e.label, e.rank) == ("transfer", "ids", 0)]
    tokens, D, L = sum(event.nbytes for event in ids) // 8, 256, 6
    sums = [e for e in trace.events if e.name == "all_reduce" and e.rank == 1]
    assert sum(event.nbytes for event in sums) == tokens * D * 4 * (2 * L + 1)


def test_two_nodes_are_two_stages(truth):
    """Catches a rank that looks for the others on its own node."""
    at = port()
    more = ["--nproc-per-node", "1", *GENERATE, "--pp", "2"]
    agents = [start(*more, node=node, at=at) for node in (0, 1)]
    said = [agent.communicate(timeout=120) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said
    assert [out for out, _ in said] == [truth, ""]
    assert left(at) == []


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("kill", "its process has ended"),
        ("raise", "ValueError: a fault of this rank"),
        ("hang", "no answer"),
    ],
)
def test_a_rank_that_dies_ends_them_all_and_the_error_names_it(tmp_path, how, cause):
    """Catches ranks that wait for ever for one that is gone, and an error that does not say who."""
    script = tmp_path / "work.py"
    script.write_text("import rank_work, sys; rank_work.fail_alone(*sys.argv[1:])")
    at = port()
    agent = start("--nproc-per-node", "2", str(script), how, at=at)
    out, err = agent.communicate(timeout=120)
    assert agent.returncode != 0 and "RankError" in err
    assert re.search(f"RankError: wanted .*rank 1: {cause}", err), err
    assert left(at) == []
