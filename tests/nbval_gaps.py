"""A pytest plugin that closes three gaps of nbval 0.11; `make test` loads it (`-p`).

1. A kernel that dies in a cell fails that cell at once. nbval waits for the cell's time limit.
2. A cell tagged `raises-exception` has to raise. nbval only allows it to.
3. After the first failed cell of a notebook the rest are skipped: they would fail for its sake.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from queue import Empty

import pytest
from nbval.kernel import RunningKernel
from nbval.plugin import IPyNbCell, NbCellError

BROKEN = pytest.StashKey[str]()
POLL_SECONDS = 1.0


class KernelDied(RuntimeError):
    """The kernel's process ended while it ran a cell (out of memory, a crash, os._exit)."""


def await_reply(kernel: RunningKernel, msg_id: str, timeout: float | None = None) -> None:
    """Wait for the reply to a request, as nbval does, but see every second if the kernel lives.

    Raises queue.Empty at the time limit (nbval's own sign of it), KernelDied if none will come.
    """
    end = float("inf") if timeout is None else time.monotonic() + timeout
    while True:
        left = end - time.monotonic()
        try:
            message = kernel.get_message("shell", timeout=max(0.01, min(POLL_SECONDS, left)))
        except Empty:
            if not kernel.is_alive():
                raise KernelDied("the kernel died in this cell") from None
            if left <= 0:
                raise
            continue
        if message["parent_header"].get("msg_id") == msg_id:
            return


RunningKernel.await_reply = await_reply


def pytest_runtest_setup(item: pytest.Item) -> None:
    if isinstance(item, IPyNbCell) and BROKEN in item.parent.stash:
        pytest.skip(f"{item.parent.stash[BROKEN]} failed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    if not isinstance(item, IPyNbCell):
        return (yield)
    try:
        result = yield
        if item.options["check_exception"] and not _raised(item):
            message = "tagged raises-exception, but it raised nothing"
            raise NbCellError(item.cell_num, message, item.cell.source)
        return result
    except pytest.skip.Exception:
        raise
    except BaseException:
        item.parent.stash[BROKEN] = item.name
        raise


def _raised(item: IPyNbCell) -> bool:
    return any(output.output_type == "error" for output in item.test_outputs or ())
