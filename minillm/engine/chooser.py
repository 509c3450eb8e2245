"""The end of a step: for each request a token is chosen, and its text handed on.

Shapes: V vocabulary.
"""

from __future__ import annotations

from itertools import repeat
from math import isfinite

from torch import Tensor

from minillm.decode.sampling import sample
from minillm.engine.request import Request
from minillm.errors import MinillmError
from minillm.kv.plan import KV, Step
from minillm.model.kernels import Tops
from minillm.trace import Trace


class Chooser:
    """Samples and detokenizes on the CPU; tells `kv` what is in the cache now.

    >>> chooser.choose(step, requests, logits)   # logits (rows, V), those that `step` wanted
    """

    def __init__(self, kv: KV, trace: Trace) -> None:
        self._kv, self._trace = kv, trace
        fields = {"stage": "decode", "resource": "cpu"}
        self._sampled = trace.recorder("span", "sample", **fields)
        self._detokenized = trace.recorder("span", "detokenize", label="text", **fields)

    def choose(
        self, step: Step, requests: list[Request], logits: Tensor, tops: Tops | None = None
    ) -> None:
        """One token, and its text, for each request with a row of logits.

        tops: the largest of each row, where it is known already: then greedy looks no further.
        """
        largest = repeat(None) if tops is None else zip(*(t.tolist() for t in tops), strict=True)
        rows = zip(logits, largest, strict=False)
        for request, count, wanted in zip(requests, step.counts, step.wanted, strict=True):
            try:
                if error := self._kv.lost.get(request.number):
                    raise error
                chosen = self._sample(request, *next(rows)) if wanted else None
            except MinillmError as error:  # of this request alone; the others go on
                request.error = error
                continue
            request.cached += count
            self._kv.commit(request.number, request.ids[: request.cached])
            if chosen is not None:
                began, stamp = self._trace.now(), request.stamp
                piece = request.take(*chosen, began)
                request.pieces.append(piece)
                spent, size = self._trace.now() - began, len(piece.text.encode())
                self._detokenized(began, spent, size, detail=piece.text, **stamp)

    def _sample(
        self, request: Request, row: Tensor, top: tuple[int, float, float] | None
    ) -> tuple[int, float]:
        began = self._trace.now()
        if top is not None and request.params.temperature == 0 and isfinite(top[2]):
            chosen = top[0], top[1] - top[2]  # the largest logit less the log of the sum
        else:
            chosen = sample(row, request.params, request.chance)
        self._sampled(began, self._trace.now() - began, **request.stamp)
        return chosen
