"""Callbacks of widgets, on the thread that runs the cells.

JupyterLab 4.4 and later with ipykernel 7 deliver what a slider says on another thread, while a
cell may be running. Grad mode differs there, and matplotlib's pyplot is not made for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from IPython import get_ipython


def on_main(callback: Callable[[Any], Any], rest: float = 0.0) -> OnMain:
    """Wrap a widget's callback: it runs on the kernel's main thread, between cells.

    Of calls that wait for their turn only the newest is made. On the main thread, as when code
    sets `slider.value = 3`, the call is made at once.

    rest: seconds for which no newer call may come before a waiting one is made.

    >>> slider.observe(on_main(lambda change: draw(change.new)), "value")
    """
    return OnMain(callback, rest)


class OnMain:
    """What `on_main` returns."""

    def __init__(self, callback: Callable[[Any], Any], rest: float):
        self._rest, self._callback = rest, callback
        self._lock = threading.Lock()
        self._newest: list[Any] = []  # the call that waits: none or one
        self._due = 0.0  # seconds: when its turn is

    def __call__(self, change: Any = None) -> None:
        loop = _main_loop()
        if loop is None or threading.current_thread() is threading.main_thread():
            with self._lock:
                self._newest.clear()  # what waits is older than this
            self._callback(change)
            return
        with self._lock:
            alone = not self._newest
            self._newest[:] = [change]
            self._due = time.monotonic() + self._rest
        if alone:
            loop.add_callback(self._turn, loop)

    def _turn(self, loop: Any) -> None:
        """On the main thread: make the call that waits, or come back when it has rested."""
        with self._lock:
            if not self._newest:
                return
            left = self._due - time.monotonic()
            change = self._newest.pop() if left <= 0 else None
        if left > 0:
            loop.call_later(left, self._turn, loop)
        else:
            self._callback(change)


def _main_loop() -> Any:
    """The event loop of the kernel's main thread; None outside a kernel."""
    kernel = getattr(get_ipython(), "kernel", None)
    return getattr(kernel, "io_loop", None)
