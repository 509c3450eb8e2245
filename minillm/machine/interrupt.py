"""Ctrl-C in the middle of a load: it comes when nothing is half done.

Python raises KeyboardInterrupt between any two steps of the main thread: while it holds a lock,
which then nobody gives back, or after it took memory and before that is noted. So a load holds
Ctrl-C back until a chunk is done. A second press comes at once, wherever the thread is.
"""

from __future__ import annotations

import _signal  # `signal`'s own functions try to make an enum of each handler: 8 µs
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_INTERRUPT = int(signal.SIGINT)


class _Held:
    """The handler that waits for its turn, and whether Ctrl-C was pressed. Main thread only."""

    usual: Callable[[int, object], object] = signal.default_int_handler
    pressed = False


@contextmanager
def held() -> Iterator[None]:
    """Hold Ctrl-C back in here, until `breathe` or the end; on other threads it never comes.

    It may be raised at the very end: what must then be given back belongs to a `with` outside.

    >>> with ExitStack() as stack:
    ...     with held():
    ...         stack.callback(machine.free, machine.empty((9,), torch.int8, "hbm", "weights"))
    ...     kept = stack.pop_all()
    """
    usual = _signal.getsignal(_INTERRUPT)
    main = threading.current_thread() is threading.main_thread()
    if not main or usual is _press or not callable(usual):
        yield
        return
    _Held.usual, _Held.pressed = usual, False
    _signal.signal(_INTERRUPT, _press)
    try:
        yield
    finally:
        _signal.signal(_INTERRUPT, usual)
        if _Held.pressed:
            breathe()


def breathe() -> None:
    """Let a Ctrl-C come that was held back: nothing is half done here."""
    if _Held.pressed and threading.current_thread() is threading.main_thread():
        _Held.pressed = False
        _Held.usual(signal.SIGINT, None)


def _press(number: int, frame: object) -> None:
    if _Held.pressed:
        _Held.pressed = False
        _Held.usual(number, frame)
    _Held.pressed = True
