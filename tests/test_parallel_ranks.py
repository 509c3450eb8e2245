"""Ranks do what they are asked, send to each other, and leave nobody behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from minillm.errors import MinillmError
from minillm.parallel.ranks import Ranks

ROOT = Path(__file__).resolve().parent.parent


def test_every_rank_answers_in_order_and_a_failure_ends_them_all() -> None:
    """Catches answers that are mixed up, and a rank that waits for ever for one that failed."""
    with Ranks(2) as ranks:
        assert ranks.run(dist.get_rank) == [0, 1]
        with pytest.raises(MinillmError, match="rank . to go on, found ValueError"):
            ranks.run(int, "no number")
        with pytest.raises(MinillmError, match="closed"):
            ranks.run(dist.get_rank)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="asks the system whether a process is there")
def test_ranks_end_with_a_process_that_is_killed() -> None:
    """Catches orphans: a notebook's kernel that is killed cleans nothing up."""
    program = (
        "import os\nfrom minillm.parallel.ranks import Ranks\nif __name__ == '__main__':\n"
        "    print(*Ranks(2).run(os.getpid), flush=True)\n    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2, done.stderr
    for pid in pids:
        assert _ends(pid), f"rank {pid} lives on"


def _ends(pid: int, seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
            if " Z " in Path(f"/proc/{pid}/stat").read_text():
                return True  # over; nobody has asked how
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False
