"""Which tokens of which requests run in the next forward pass.

Requests join and leave between passes. A pass has a budget of tokens. First come, first served:
those that run decode a token each, and what is left of the budget goes to a chunk of the next
prompt, so a long prompt makes nobody wait for longer than one pass. When the KV cache has no page
left in any tier, the youngest request gives its pages back, and comes back later: by bringing them
up again, or by computing them again.  Yu et al., 2022; Agrawal et al., 2023.
"""

from __future__ import annotations

from collections import deque

from minillm.decode.session import Session
from minillm.engine.request import Request
from minillm.kv.pages import PagedKV
from minillm.kv.plan import Hidden, Step


class Scheduler:
    """Queues of requests, and the pages they hold in `kv`.

    >>> scheduler = Scheduler(kv, max_batch_tokens=512, max_running=64)
    >>> scheduler.add(request)
    >>> step, requests = scheduler.schedule()
    """

    def __init__(self, kv: PagedKV, max_batch_tokens: int, max_running: int) -> None:
        self.kv, self.max_batch_tokens, self.max_running = kv, max_batch_tokens, max_running
        self.waiting: deque[Request] = deque()  # first come first
        self.running: list[Request] = []  # oldest first: each has pages
        self.preempted = 0  # times that a request had to give its pages back
        self._tokens = self._pages = 0  # that the pass at hand has room for: to run, to write

    def add(self, request: Request) -> None:
        """Let a request wait for its turn. OutOfMemory if the cache can never hold it."""
        if error := self.kv.too_large(request.slots):
            raise error
        self.waiting.append(request)

    def schedule(self) -> tuple[Step, list[Request]]:
        """The next pass and its requests, their pages reserved; empty if nobody has work.

        A request for which there is no room though nobody else runs fails: `request.error`.
        """
        before, chosen = self.preempted, []
        self._tokens, self._pages = self.max_batch_tokens, self.kv.writable
        for request in list(self.running):
            if request in self.running and (count := self._reserve(request)):
                chosen.append((request, count))
        if self.waiting and self.preempted == before:
            self._admit(chosen)
        starts = tuple(request.cached for request, _ in chosen)
        counts = tuple(count for _, count in chosen)
        wanted = tuple(int(r.cached + count == len(r.ids)) for r, count in chosen)
        requests = [request for request, _ in chosen]
        decodes = [request.pieces != [] and count == 1 for request, count in chosen]
        name = "decode step" if all(decodes) else "mixed step" if any(decodes) else "prefill"
        numbers, plain = tuple(r.number for r in requests), all(r.plain for r in requests)
        return Step(numbers, starts, counts, wanted, name, plain), requests

    def _reserve(self, request: Request) -> int:
        """How many tokens of it run, their pages reserved; if need be those of the youngest.

        The youngest may be this one itself: then none.
        """
        P, start = self.kv.page_size, request.cached
        count = min(len(request.ids) - start, self._tokens, max(0, self._pages * P - start % P))
        while count and not self.kv.reserve(request.number, start + count):
            self._preempt(self.running[-1])
            if request not in self.running:
                return 0
        self._tokens -= count
        self._pages -= -(-(start + count) // P) - start // P
        return count

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self.kv.preempt(request.number)
        request.cached = 0
        self.waiting.appendleft(request)
        self.preempted += 1

    def _admit(self, chosen: list[tuple[Request, int]]) -> None:
        """Requests that wait join, while there are tokens, places and pages for them."""
        self.kv.make_room(r.slots for r in [*self.running, *self.waiting][: self.max_running])
        while self.waiting and min(self._tokens, self._pages, self.max_running - len(self.running)):
            request = self.waiting[0]
            if self._take_in(request):
                self.running.append(self.waiting.popleft())
                chosen.append((request, self._reserve(request)))
            elif self.running or not (error := self.kv.too_large(request.slots)):
                return  # room will come, or has come since we looked
            else:
                self.waiting.popleft().error = error

    def _take_in(self, request: Request) -> bool:
        """Pages for all that there is of its text; False, and nothing held, if there are none."""
        ids = request.prompt_ids if request.forgets else request.ids
        request.cached = self.kv.find(request.number, ids)
        if request.forgets is not None:
            self.kv.hide(request.number, Hidden(len(request.prompt_ids), request.forgets))
        if self.kv.reserve(request.number, len(request.ids)):
            if isinstance(request.prompt, Session) and request.prompt.sessions.kv is self.kv:
                request.cached = request.prompt.restore(request.number)  # not read, but brought
            return True
        self.kv.release(request.number)
        request.cached = 0
        return False

    def remove(self, request: Request) -> None:
        """A request has ended, or nobody wants it any more: its pages come free, or stay known."""
        for queue in (self.waiting, self.running):
            if request in queue:
                queue.remove(request)
        self.kv.release(request.number, keep=request.over)
        if not (self.waiting or self.running):
            self.kv.make_room(())
