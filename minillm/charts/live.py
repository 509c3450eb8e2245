"""Views of a run that move while it runs, and play it again when it is over.

    with watch(engine.trace, "machine", "timeline", "memory"):
        for piece in engine.stream(prompt): ...

What costs time happens elsewhere: the trace only puts each event into a buffer, a thread sends the
buffer on, at most five times a second, and the drawing is the browser's. The JavaScript beside this
file draws (widget.js is the way in, player.js the middle, run.js what the views may ask).
"""

from __future__ import annotations

import contextvars
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import anywidget
import traitlets

from minillm.charts import bundle, machine_view, meaning, stills
from minillm.charts.wire import Packer, thin
from minillm.errors import MinillmError
from minillm.trace import Event, Trace

VIEWS = ("machine", "timeline", "memory")
PERIOD = 0.2  # seconds between two messages, at least: each costs the run a millisecond or two
SHARE = 0.01  # of the time: what sending may take; on a busy machine it sends less often
BURST = 250  # events in a message beyond which work inside other work waits for the end of the run
MANY = 100_000  # events kept for the player


class RunView(anywidget.AnyWidget):
    """A run on a page: machine, timeline, memory, and its text. `watch` and `replay` make one.

    In a notebook it moves and can be played; where no widget can be, its still is seen. The state
    of the widget is in the kernel and in the page, never in the notebook file.

    >>> view = replay("run.json")
    >>> view.save("run.html")   # one file, for any browser, without a network
    """

    _esm = bundle.script()
    _css = bundle.style()
    key = traitlets.Unicode().tag(sync=True)  # names this run in the page
    views = traitlets.List().tag(sync=True)
    meta = traitlets.Dict().tag(sync=True)
    columns = traitlets.Any(None, allow_none=True).tag(sync=True)  # the whole run, once it is over

    def __init__(self, views: Sequence[str], trace: Trace):
        meta = for_page(trace, views, over=False)
        super().__init__(key=uuid.uuid4().hex, views=list(views), meta=meta)
        self.trace: Trace | None = None  # the run, once it is over
        self._follow = lambda: machine_view.Follower(trace)
        self._machine = self._follow() if "machine" in views else None
        self.spent = 0.0  # seconds of processor time that sending it took
        self._still: stills.Still | None = None

    def finish(self, trace: Trace) -> None:
        """The run is over: the page becomes a player of `trace`."""
        self.trace, events = trace, at_most(MANY, trace.events)
        with self.hold_sync():  # one message
            self.meta = for_page(trace, self.views)
            self.columns = Packer().pack(events)

    def feed(self, events: Sequence[Event], packer: Packer, anew: bool = False) -> None:
        """More of the run, while it goes on; `anew`: it began again, forget what was sent."""
        events = thin(events) if len(events) > BURST else events
        message: dict[str, Any] = {"columns": packer.pack(events), "anew": anew}
        if self._machine:
            self._machine = self._follow() if anew else self._machine
            message["machine"] = self._machine.change(events)
        self.send(message)

    def save(self, path: str) -> None:
        """Write one HTML file that plays this run, with no network. Raises MinillmError."""
        from minillm.charts.page import save_page  # which needs this module

        if self.trace is None:
            raise MinillmError(
                "wanted a run that is over, found one under way; save it after the `with` block"
            )
        save_page(self.trace, path, self.views)

    @property
    def still(self) -> stills.Still | None:
        """The picture that stays; None while the run goes on and if nothing can be drawn."""
        if self._still is None and self.trace is not None:
            self._still = stills.still(self.trace, self.views)
        return self._still

    @property
    def finding(self) -> str:
        if self.still:
            return self.still.finding
        return "A run, as it happens" if self.trace is None else "A run in which nothing happened"

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        data, about = super()._repr_mimebundle_(**options)
        data["text/plain"] = self.finding
        if self.still:
            data |= self.still.data
            about = {**about, **dict.fromkeys(self.still.data, self.still.about)}
        return data, about


@contextmanager
def watch(trace: Trace, *views: str) -> Iterator[RunView]:
    """Show `trace` while the block runs: "machine", "timeline", "memory"; all by default.

    The page shows the events since the block began and the memory as it was then. When the block
    ends, also by an exception, the view becomes a player of the run, a still goes beside it, and
    neither a thread nor a subscription stays. Outside a notebook it shows nothing.

    >>> with watch(engine.trace, "machine", "memory") as view:
    ...     engine.generate("Mia put the red key")
    >>> view.save("run.html")
    """
    view = RunView(checked(views), trace)
    feed = Feed(trace, view.feed)
    handle = None
    try:
        if _in_notebook():
            from IPython.display import display

            handle = display(view, display_id=True)
            feed.start()
        yield view
    finally:
        feed.stop()
        view.spent = feed.spent
        events = sorted(feed.events, key=lambda e: round(e.end, 9))  # those of ranks came in turns
        view.finish(Trace.of(events, trace.meta, (trace.origin, trace.wall)))
        if handle is not None:
            handle.update(view)


class Feed:
    """Passes on what a trace records, at most once every PERIOD and with SHARE of the time.

    send(events, packer, anew) is called by a thread of its own. pause(seconds) waits, and is true
    when it is over; tests give their own, and their own clock.
    """

    def __init__(
        self, trace: Trace, send: Callable[..., None],
        pause: Callable[[float], bool] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:  # fmt: skip
        self._trace, self._send, self._packer, self._clock = trace, send, Packer(), clock
        self._over = threading.Event()
        self.spent = 0.0  # seconds of processor time
        self._pause = pause or self._over.wait
        self._buffer: deque[Event] = deque()
        self._thread: threading.Thread | None = None
        self._seen = trace.now()
        self.events = _held(trace)  # all of the run that has left the buffer
        self._undo = trace.subscribe(self._buffer.append)
        self._unsent = list(self.events)

    def start(self) -> None:
        # The context says which cell is running, so that messages go out in its name.
        run = contextvars.copy_context().run
        self._thread = threading.Thread(
            target=run, args=(self._run,), name="minillm-watch", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """No more events, no thread; what is in the buffer is in `events`."""
        self._undo()
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        self._drain()

    def _run(self) -> None:
        wait = PERIOD
        try:
            while not self._pause(wait):
                began, anew = self._clock(), self._drain()
                if self._unsent or anew:
                    self._send(self._unsent, self._packer, anew)
                    self._unsent = []
                # On a busy machine the run may wait for us as long as we wait for a processor.
                wait = max(PERIOD, (self._clock() - began) / SHARE)
                self.spent = time.thread_time()
        except Exception:  # the page went away: the run goes on, and `events` has it in the end
            pass

    def _drain(self) -> bool:
        """Empty the buffer; true if the trace was cleared in between, so that all is anew."""
        now, before = self._trace.now(), self._seen
        self._seen = now
        new = [self._buffer.popleft() for _ in range(len(self._buffer))]
        if now >= before:
            self.events += new
            self._unsent += new
            return False
        self.events, self._packer = list(self._trace.events), Packer()
        self._unsent = list(self.events)
        return True


def checked(views: Sequence[str]) -> tuple[str, ...]:
    """The views asked for, all if none was named. Raises MinillmError for an unknown name."""
    for name in views:
        if name not in VIEWS:
            raise MinillmError(f"wanted a view of {', '.join(VIEWS)}, found {name!r}; name those")
    return tuple(views) or VIEWS


def _held(trace: Trace) -> list[Event]:
    """What memory holds now, as counters."""
    now = trace.now()
    held = {(e.name, e.label): e.nbytes for e in trace.events if e.kind == "counter"}
    return [
        Event("counter", tier, "", "", now, 0.0, nbytes, label=label)
        for (tier, label), nbytes in held.items()
    ]


def at_most(many: int, events: Sequence[Event]) -> Sequence[Event]:
    """A run for the page: of a very long one without inner work, then without its beginning."""
    if len(events) <= many:
        return events
    outer = thin(events)
    late = len(outer) - many
    return [e for place, e in enumerate(outer) if place >= late or e.kind == "counter"]


def for_page(trace: Trace, views: Sequence[str] = VIEWS, over: bool = True) -> dict[str, Any]:
    """What the trace says of itself, the picture of its machine, and the timeline's rows.

    over: whether the run is, so that its picture can be played.
    """
    known, capacity = (trace.meta.get(key) or {} for key in ("ceilings", "capacity"))
    ceilings = {key: meaning.ceiling(known, key) for key in (*known, "nvlink", "infiniband")}
    picture = machine_view.for_page(trace, over) if "machine" in views else None
    return {**trace.meta, "picture": picture, "ceilings": ceilings,
            "capacity": {meaning.plain(tier): n for tier, n in capacity.items()},
            "rows": list(meaning.ROWS.items())}  # fmt: skip


def _in_notebook() -> bool:
    """Whether there is a page to show something on; a terminal and a script stay silent."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None
