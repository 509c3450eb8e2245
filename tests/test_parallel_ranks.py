"""Ranks do what they are asked, send to each other, and leave nobody behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from minillm.errors import ConfigError, MinillmError, RankError
from minillm.machine.host import available_dram, n_cores
from minillm.parallel.ranks import Ranks, load_ipython_extension
from minillm.trace import Event

ROOT = Path(__file__).resolve().parent.parent
STEP = """
def step(n):
    with trace.at(step=n), trace.span('turn', stage='parallel', resource='compute'): pass
"""


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    """Two that no test of these ends: to begin takes seconds."""
    with Ranks(2) as two:
        yield two


def test_a_cell_finds_the_variables_of_the_one_before(ranks: Ranks) -> None:
    """Catches cells that begin anew, and a value that is fetched from the wrong rank."""
    ranks.run("x = torch.arange(3) + 10 * rank")
    ranks.run("dist.all_reduce(x); kept = {'sum': x, 'of': world}")
    assert [value["of"] for value in ranks.get("kept")] == [2, 2]
    assert all(torch.equal(v["sum"], torch.tensor([10, 12, 14])) for v in ranks.get("kept"))
    assert ranks.get("rank") == ranks.run(dist.get_rank) == [0, 1]
    assert ranks.get("nobody") == [None, None]


def test_what_ranks_print_comes_in_their_order_and_the_same_each_time(
    ranks: Ranks, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches lines in the order in which they happen to come: a notebook could not be compared."""
    cell = "for n in range(2):\n    print(f'{n} of {world}')\n    if rank == 0: dist.barrier()"
    for _ in range(3):
        ranks.run(cell + "\n    else: print('late'); dist.barrier()")
        assert capsys.readouterr().out.splitlines() == [
            "[rank 0] 0 of 2", "[rank 0] 1 of 2", "[rank 1] 0 of 2", "[rank 1] late",
            "[rank 1] 1 of 2", "[rank 1] late",
        ]  # fmt: skip


def test_a_mistake_that_all_make_costs_no_variables(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a wrong name in one cell that makes a reader run all cells before it again."""
    ranks.run("kept = 7")
    with pytest.raises(SyntaxError):
        ranks.run("x = (")
    with pytest.raises(RankError, match=r"line 2: print\(kepd\); rank 1: Name.* go on") as told:
        ranks.run("\nprint(kepd)")
    assert list(told.value.found) == [0, 1]
    assert len(told.value._render_traceback_()) == 4  # a line for each rank, one before, one after

    def of_a_notebook() -> None: ...

    of_a_notebook.__module__, of_a_notebook.__qualname__ = "__main__", "of_a_notebook"
    monkeypatch.setattr(sys.modules["__main__"], "of_a_notebook", of_a_notebook, raising=False)
    with pytest.raises(RankError, match="Can't get attribute 'of_a_notebook'"):
        ranks.run(of_a_notebook)
    with pytest.raises(RankError, match="pickle"):
        ranks.run(threading.Lock)  # an answer that cannot be sent
    assert ranks.get("kept") == [7, 7]


def test_ranks_share_cores_and_memory(ranks: Ranks) -> None:
    """Catches two ranks that each take all of the machine."""
    ranks.run("from minillm import Machine\nhere = Machine.here(device='cpu')")
    ranks.run("room, threads = here.dram.capacity + here.hbm.capacity, torch.get_num_threads()")
    assert sum(ranks.get("room")) < 1.2 * available_dram()  # which changes all the time
    assert ranks.get("threads") == ranks.run(n_cores) == [max(1, n_cores() // 2)] * 2


def test_what_ranks_record_is_merged_on_one_clock(ranks: Ranks) -> None:
    """Catches events without a rank, and clocks that begin when each process did."""
    for turn in (1, 0, 1, 0):
        ranks.run(
            f"if rank == {turn}:\n"
            "    with trace.span('turn', stage='parallel', resource='compute'): pass"
        )
    events = ranks.trace().events
    assert [e.rank for e in events] == [1, 0, 1, 0]
    assert [e.resource for e in events] == ["compute:1", "compute"] * 2
    assert all(a.end <= b.start for a, b in zip(events, events[1:], strict=False))


@pytest.mark.parametrize("clears", [False, True])
def test_a_run_is_seen_while_it_goes_on(ranks: Ranks, tmp_path: Path, clears: bool) -> None:
    """Catches events that come when all is over, or twice, or that stand on another clock."""
    ranks.run(STEP + "trace.count('hbm', 'kv', 9)")
    live, seen = ranks.trace(), tmp_path / "seen"
    before = len(live.events)

    def look(event: Event) -> None:
        """They go on when the first step of both was seen here, and not before."""
        if {(e.rank, e.step) for e in live.events[before:]} >= {(0, 1), (1, 1)}:
            seen.touch()

    undo = live.subscribe(look)
    waits = f"while not os.path.exists({str(seen)!r}): time.sleep(0.01)"
    first = "trace.clear(); step(1)" if clears else "step(1)"
    ranks.run(f"import os, time\n{first}\n{waits}\nstep(2)", live=live)
    undo()
    came, kept = live.events[before:], ranks.trace()
    assert sorted((e.step, e.rank) for e in came) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    later = kept.origin - live.origin
    for rank in (0, 1):
        told = [e for e in came if e.rank == rank]
        steps = [e for e in kept.select(name="turn", rank=rank) if e.step][-2:]
        assert [e._replace(start=0) for e in told] == [e._replace(start=0) for e in steps]
        assert [e.start for e in told] == pytest.approx([e.start + later for e in steps], abs=1e-6)
    assert clears or sorted(live.events, key=_order) == sorted(kept.events, key=_order)
    ranks.run("step(3)")
    assert len(live.events) == before + len(came), "nobody watches any more"


def test_what_was_seen_of_ranks_that_failed_stays() -> None:
    """Catches a run that is watched whose failure is told otherwise, or hides how it came to it."""
    with Ranks(2) as ranks:
        ranks.run(STEP)
        live = ranks.trace()
        with pytest.raises(RankError) as told:
            ranks.run("step(1)\nif rank: raise ValueError('no')\ndist.barrier()", live=live)
        assert told.value.found[1].startswith("ValueError: no")
        assert "waiting at line 3: dist.barrier()" in told.value.found[0]
        assert sorted(e.rank for e in live.select(step=1)) == [0, 1] and not len(ranks)


def test_the_magic_keeps_its_ranks_from_cell_to_cell(
    ranks: Ranks, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a cell that starts processes of its own, and an option that is read wrongly."""
    magic: dict[str, Callable[[str, str], None]] = {}
    shell = SimpleNamespace(
        user_ns={"ranks": ranks},
        register_magic_function=lambda run, kind, name: magic.update({f"{kind} {name}": run}),
    )
    load_ipython_extension(shell)
    magic["cell ranks"]("2", "y = 5\n")
    magic["cell ranks"](" 2  --timeout 7.5", "print(y)\n")
    assert capsys.readouterr().out == "[rank 0] 5\n[rank 1] 5\n"
    assert shell.user_ns["ranks"] is ranks
    for line in ("", "0", "two", "2 --timeout", "2 --timeout soon", "2 3"):
        with pytest.raises(ConfigError, match="%%ranks N"):
            magic["cell ranks"](line, "pass")


def test_a_rank_that_ends_leaves_no_files(tmp_path: Path) -> None:
    """Catches an end in haste, after which temporary folders stay for ever."""
    with Ranks(1) as ranks:
        made = "from minillm.files import temporary_folder\nfolder = temporary_folder"
        ranks.run(f"{made}({str(tmp_path)!r})")
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []


def test_one_that_fails_ends_those_that_wait_and_names_their_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Catches ranks that wait for ever for one that failed, and an error that hides who waits."""
    ranks = Ranks(2)
    pids = ranks.run(os.getpid)
    ranks.run("def fetch(x):\n    print('before')\n    dist.recv(x, 0)")
    cell = "x = torch.zeros(1)\nif rank == 1:\n    fetch(x)\nraise ValueError('no number')"
    with pytest.raises(RankError, match="all ranks were ended") as told:
        ranks.run(cell)
    assert told.value.found == {
        0: "ValueError: no number at line 4: raise ValueError('no number')",
        1: "still waiting at line 3: fetch(x), line 3: dist.recv(x, 0)",
    }
    assert capsys.readouterr().out == "[rank 1] before\n"
    assert all(map(_ends, pids)) and not len(ranks)
    with pytest.raises(MinillmError, match="closed"):
        ranks.run(dist.get_rank)


def test_a_deadlock_is_told_by_its_lines() -> None:
    """Catches a cell that hangs for ever because each rank waits for the other one."""
    with Ranks(2) as ranks:
        cell = "x = torch.zeros(1)\ndist.recv(x, 1 - rank)\ndist.send(x, 1 - rank)"
        with pytest.raises(RankError) as told:
            ranks.run(cell, timeout=0.5)
        waits = "still waiting at line 2: dist.recv(x, 1 - rank)"
        assert told.value.found == {0: waits, 1: waits} and not len(ranks)


def test_a_rank_that_crashes_leaves_its_last_words() -> None:
    """Catches an exit code and nothing else, where a library had said what was wrong."""
    with Ranks(1) as ranks, pytest.raises(RankError) as told:
        ranks.run("import os\nos.write(2, b'an odd size\\n')\nos.abort()")
    assert "exit code" in told.value.found[0] and "an odd size" in told.value.found[0]
    assert 'File "<cell 1>", line 3' in told.value.found[0]


def test_a_script_without_a_main_is_told_what_to_write(tmp_path: Path) -> None:
    """Catches ranks that begin ranks, and pages about processes and files instead of one line."""
    script = tmp_path / "script.py"
    script.write_text("from minillm.parallel.ranks import Ranks\nwith Ranks(2): pass\n")
    command, paths = [sys.executable, str(script)], {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=paths, stderr=subprocess.PIPE, text=True)
    told = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "RankError" in told
    assert "rank 1: its process ended" in told and 'if __name__ == "__main__":' in told
    assert done.stderr.count("Traceback") == 1


@pytest.mark.skipif(os.name != "posix", reason="ends processes by signals")
def test_a_rank_that_is_killed_or_stopped_is_named() -> None:
    """Catches an error that says only that a connection was lost, and one that never comes."""
    ranks = Ranks(3)
    pids = ranks.run(os.getpid)
    os.kill(pids[2], signal.SIGSTOP)  # it cannot even say where it is
    ends = threading.Timer(0.5, os.kill, (pids[1], signal.SIGKILL))
    ends.start()
    with pytest.raises(RankError) as told:
        ranks.run("dist.all_reduce(torch.ones(1))")
    ends.join()
    assert told.value.found[1] == "its process ended, with exit code -9"
    assert "line 1: dist.all_reduce" in told.value.found[0]
    assert told.value.found[2].startswith("says nothing")
    assert all(map(_ends, pids))


@pytest.mark.skipif(os.name != "posix", reason="interrupts by a signal")
def test_an_interrupt_ends_ranks_that_wait() -> None:
    """Catches a Stop button that does nothing, or that leaves processes behind."""
    ranks = Ranks(2)
    pids = ranks.run(os.getpid)
    here = threading.main_thread().ident
    stop = threading.Timer(0.5, signal.pthread_kill, (here, signal.SIGINT))
    stop.start()
    with pytest.raises(KeyboardInterrupt):
        ranks.run("dist.recv(torch.ones(1), 1 - rank)")
    stop.join()
    assert all(map(_ends, pids)) and not len(ranks)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="asks the system whether a process is there")
def test_ranks_end_with_a_process_that_is_killed_in_mid_collective(tmp_path: Path) -> None:
    """Catches orphans: a kernel that is killed cleans nothing up, and a fork may hold its pipes."""
    program = """
import os, threading, time
from minillm.parallel.ranks import Ranks
if __name__ == "__main__":
    ranks = Ranks(2)
    fork = os.fork()
    if not fork:
        time.sleep(600)
    print(fork, *ranks.run(os.getpid), flush=True)
    threading.Timer(0.5, os.kill, (os.getpid(), 9)).start()
    ranks.run("dist.recv(torch.ones(1), 1 - rank)")
"""
    with (tmp_path / "pids").open("w+") as pids:  # a pipe would stay open while the fork lives
        done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, stdout=pids)
        pids.seek(0)
        fork, *workers = map(int, pids.read().split())
    try:
        assert len(workers) == 2 and done.returncode == -9
        assert [pid for pid in workers if not _ends(pid)] == []
    finally:
        os.kill(fork, signal.SIGKILL)


def _order(event: Event) -> tuple[float, str]:
    """Ranks' own events, told in turns, and those of a merged trace in one order."""
    return event.end, event.resource + event.name


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
