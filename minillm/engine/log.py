"""The log: one line of JSON for each request, on SSD.

    {"at": 1788220800.0, "request": 3, "prompt_tokens": 41, "tokens": 12, "finish_reason": "stop",
     "ttft": 0.012, "tpot": 0.0014, "seed": 1234, "settings": {…}, "bytes": {"ssd->dram": …}}

It says what was asked for and how it went, and nothing of what was said. A disk that is full takes
no lines, and stops nobody.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import asdict
from functools import partial

from minillm.engine.request import Request
from minillm.machine import Machine

MOST = 16 * 2**20  # bytes: a file that is larger becomes `.1`, and the one before it goes


class Log:
    """Writes to `path`, relative to where the process is when it is made; None: to no file.

    >>> engine = Engine.load("data/town", config=EngineConfig(log="requests.jsonl"))

    lost: lines that could not be written. Several processes may share a file: a line is written as
    a whole.
    """

    def __init__(self, path: str | None, machine: Machine) -> None:
        self.path, self.lost, self._machine = path and os.path.abspath(path), 0, machine

    def write(self, request: Request) -> None:
        """A line for a request that has ended.

        bytes: what crossed each link while it was here, for it or for others. seed: also one that
        nobody gave; with it the same text comes again.
        """
        if self.path is None:
            return
        trace, moved = self._machine.trace, Counter[str]()
        for event in reversed(trace.events):  # they are in the order in which they ended
            if event.end < request.started:
                break
            if event.kind == "transfer":
                moved[f"{event.source}->{event.target}"] += event.nbytes
        ttft, tpot = request.times
        line = {
            "at": trace.wall + request.started, "request": request.number,
            "prompt_tokens": len(request.prompt_ids), "tokens": len(request.pieces),
            "finish_reason": request.finish_reason or "error", "ttft": ttft, "tpot": tpot,
            "bytes": moved, "seed": request.chance.initial_seed(),
            "settings": asdict(request.params),
        }  # fmt: skip
        data, way = f"{json.dumps(line)}\n".encode(), {"source": "dram", "target": "ssd"}
        append = partial(self._append, data)
        try:
            self._machine.carry(append, len(data), stage="decode", label="log", **way)
        except OSError:
            self.lost += 1

    def _append(self, data: bytes) -> None:
        if os.path.exists(self.path) and os.path.getsize(self.path) + len(data) > MOST:
            os.replace(self.path, f"{self.path}.1")
        with open(self.path, "ab", buffering=0) as file:
            size = file.tell()
            if file.write(data) < len(data):  # the disk took its beginning
                file.truncate(size)
                raise OSError
