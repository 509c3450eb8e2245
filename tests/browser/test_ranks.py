"""Ranks of a notebook in real JupyterLab: their output is seen, and they end with their kernel."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from .conftest import VIEWPORT
from .lab import Lab

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc")
WAITS = "ranks.run('dist.recv(torch.ones(1), left)')"  # as all do, for ever


def test_cells_of_ranks_are_seen_and_nobody_outlives_an_interrupt_or_the_kernel(
    browser, server, shots: Path, tmp_path: Path
) -> None:
    """Catches a magic that JupyterLab does not know, a Stop button that ranks do not hear, and
    orphans that wait in a collective for ever, though the kernel was killed."""
    lab = Lab(browser.new_context(viewport=VIEWPORT).new_page(), server)
    lab.open("40_parallel_collectives")
    kernel, begins = lab.kernel_pid(), lab.find("def swap(")[0]
    lab.run(lab.find("%load_ext")[0])
    for ends in ("interrupt", "kill"):
        lab.run(begins)
        assert lab.errors() == []
        text = lab.show(begins).locator(".jp-OutputArea").inner_text()
        assert [line[:18] for line in text.strip().splitlines()] == [
            f"[rank {n}] rank {n} of" for n in range(4)
        ]
        lab.page.screenshot(path=shots / f"ranks_{ends}.png")
        pids = pids_of_ranks(lab, tmp_path / ends)
        lab.page.evaluate(
            "code => { panel.sessionContext.session.kernel.requestExecute({code}); }", WAITS
        )
        time.sleep(1)  # until they wait
        if ends == "interrupt":
            lab.page.evaluate("panel.sessionContext.session.kernel.interrupt()")
        else:
            os.kill(kernel, signal.SIGKILL)
        assert [pid for pid in pids if not is_over(pid)] == [], ends
    lab.page.context.close()


def test_an_answer_of_two_ranks_and_both_of_their_gpus_are_seen(browser, server, shots) -> None:
    """Catches ranks whose words never reach the page, and a diagram of rank 0 alone."""
    lab = Lab(browser.new_context(viewport=VIEWPORT).new_page(), server)
    lab.open("41_parallel_tensor")
    asks, watches = lab.find("done = answer()")[0], lab.find("charts.watch(live")[0]
    made = ("%load_ext", "def alone(", "whole, tokens = alone()", "def answer(")
    for index in (*(lab.find(text)[0] for text in made), asks, watches):
        lab.run(index)
    assert lab.errors() == []
    said = lab.show(asks).locator(".jp-OutputArea").inner_text().strip().splitlines()
    assert len(said) == 2 and said[0].startswith("[rank 0] ' "), said
    assert said[1] == "[rank 1] followed"
    player = lab.show(watches).locator(".minillm")
    player.wait_for()
    seen = player.locator("svg").first.text_content()
    lab.page.screenshot(path=shots / "ranks_answer.png")
    assert "GPU 0" in seen and "GPU 1" in seen and "NVLink" in seen, seen
    lab.execute("ranks.close()")
    lab.close()
    lab.page.context.close()


def pids_of_ranks(lab: Lab, path: Path) -> list[int]:
    lab.execute(f"import os; open({str(path)!r}, 'w').write(str(ranks.run(os.getpid)))")
    return [int(pid) for pid in path.read_text().strip("[]").split(",")]


def is_over(pid: int, seconds: float = 30.0) -> bool:
    """Whether a process ends soon; a zombie has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False
