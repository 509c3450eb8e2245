"""Callbacks of widgets, on the thread that runs the cells.

JupyterLab 4.4 and later with ipykernel 7 deliver what a slider says on another thread, while a
cell may be running. Grad mode differs there, and matplotlib's pyplot is not made for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from IPython import get_ipython


def on_main(callback: Callable[[Any], Any], rest: float = 0.0) -> Callable[..., None]:
    """Wrap a widget's callback: it runs on the kernel's main thread, between cells.

    Of calls that wait for their turn only the newest is made. On the main thread, as when code
    sets `slider.value = 3`, the call is made at once, and those that wait are older.

    rest: seconds for which no newer call may come before a waiting one is made.

    >>> slider.observe(on_main(lambda change: draw(change.new)), "value")
    """
    newest: object = None

    def call(change: Any = None) -> None:
        nonlocal newest
        mine = newest = object()
        loop = _main_loop()

        def turn() -> None:
            if mine is newest:
                callback(change)

        if loop is None or threading.current_thread() is threading.main_thread():
            turn()
        else:
            loop.add_callback(loop.call_later, rest, turn)

    return call


def _main_loop() -> Any:
    """The event loop of the kernel's main thread; None outside a kernel."""
    kernel = getattr(get_ipython(), "kernel", None)
    return getattr(kernel, "io_loop", None)
