"""The end of a step: for each request a token is chosen, and its text handed on.

Shapes: V vocabulary.
"""

from __future__ import annotations

from math import isfinite

from torch import Tensor

from minillm.decode.sampling import Chosen, sample
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
        asked = [r for r, wanted in zip(requests, step.wanted, strict=True) if wanted]
        found = iter(self._sample(asked, logits, tops) if asked else ())
        for request, count, wanted in zip(requests, step.counts, step.wanted, strict=True):
            chosen = next(found) if wanted else None
            failed = chosen if isinstance(chosen, MinillmError) else None
            if error := self._kv.lost.get(request.number) or failed:
                request.error = error  # of this request alone; the others go on
                continue
            request.cached += count
            self._kv.commit(request.number, request.ids[: request.cached])
            if chosen is not None:
                began, stamp = self._trace.now(), request.stamp
                piece = request.take(chosen, began)
                spent, size = self._trace.now() - began, len(piece.text.encode())
                self._detokenized(began, spent, size, detail=piece.text, **stamp)

    def _sample(
        self, asked: list[Request], logits: Tensor, tops: Tops | None
    ) -> list[Chosen | MinillmError]:
        """One call for the batch; the trace gives each request an equal share of its time."""
        began = self._trace.now()
        known = zip(*tops, strict=True) if tops else ()
        found: dict[int, Chosen | MinillmError] = {
            n: Chosen(token_id, most - total, {})
            for n, (request, (token_id, most, total)) in enumerate(zip(asked, known, strict=False))
            if request.plain and isfinite(total)
        }
        if rest := [n for n in range(len(asked)) if n not in found]:
            found |= zip(rest, sample(logits[rest], [asked[n] for n in rest]), strict=True)
        share = (self._trace.now() - began) / len(asked)
        for n, request in enumerate(asked):
            self._sampled(began + n * share, share, **request.stamp)
        return [found[n] for n in range(len(asked))]
