"""Pipeline parallel: the layers in stages, one after the other, each stage on ranks of its own.

x (ΣT, D) goes from stage to stage, D numbers a token, so a slow link is enough. While one stage
works the others wait, unless a pass is cut into micro-batches: the first stage is at the next one
while the second is at this one. Of S stages and M micro-batches each stage works for M turns and
waits for S - 1: it stands still for (S - 1) / (M + S - 1) of the time.  Huang et al., 2019.

Shapes: ΣT packed tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from minillm.errors import ConfigError
from minillm.kv.plan import Plan, Step
from minillm.model.attention import Attend, causal
from minillm.model.llama import Llama
from minillm.parallel.mesh import Group

LEAST = 64  # tokens of a micro-batch: each reads the stage's weights anew, and for fewer that costs


def stages(layers: int, count: int) -> list[range]:
    """Which layers each of `count` stages has: neighbours, and as equally many as can be.

    >>> stages(6, 4)
    [range(0, 1), range(1, 3), range(3, 4), range(4, 6)]
    """
    if not 0 < count <= layers:
        raise ConfigError(
            f"wanted from 1 to {layers} stages, a layer each at least, found pp = {count}; "
            "take fewer"
        )
    return [range(*cut) for cut in pairwise(layers * n // count for n in range(count + 1))]


def cut(step: Step, parts: int) -> list[Step]:
    """A pass as `parts` passes of about equally many tokens, one after the other.

    A text may be cut: what comes later finds in the cache what came before.

    >>> cut(Step(requests=(7,), starts=(0,), counts=(5,), wanted=(1,)), 2)[1]
    Step(requests=(7,), starts=(2,), counts=(3,), wanted=(1,))
    """
    ends = list(accumulate(step.counts))
    each = list(zip(step.requests, step.starts, step.counts, step.wanted, ends, strict=True))
    passes = []
    for begin, stop in pairwise(ends[-1] * n // parts for n in range(parts + 1)):
        rows = []
        for request, start, count, wanted, end in each:
            low, high = max(begin, end - count), min(stop, end)
            if low < high:
                last = max(0, high - max(low, end - wanted))
                rows.append((request, start + low - (end - count), high - low, last))
        passes.append(Step(*zip(*rows, strict=True)))
    return passes


def part(plan: Plan, step: Step) -> Plan:
    """The plan of a part of a pass, over the same pages."""
    rows = [plan.step.requests.index(request) for request in step.requests]
    tables, hidden = ([of[row] for row in rows if of] for of in (plan.tables, plan.hidden))
    return Plan(step, tables, plan.store, plan.page_size, plan.device, hidden)


class Pipeline:
    """Makes a stage's model pass on what it gets: `model(ids, …)` is then called by every stage.

    >>> model = Llama(config, layers=stages(6, 2)[mesh.pp.index])
    >>> Pipeline(model, mesh.pp)
    >>> model(ids, plan.place, plan, wanted)    # on every rank, with the same arguments

    The first stage takes ids from its arguments, others only their number. The last stage returns
    what the plain model does; the first as well, if `back`: it is sent there. Between them it is x.
    micro: micro-batches of a pass; None: as many as stages, of LEAST tokens at least. shape: of
    the result, numbers a row and dtype, for who gets it back.
    """

    def __init__(
        self, model: Llama, group: Group, micro: int | None = None, back: bool = True
    ) -> None:
        self.micro, self.shape = micro, (model.config.vocab_size, torch.float32)
        self._model, self._group, self._back = model, group, back
        self._plain, model.forward = model.forward, self.forward

    def forward(
        self, ids: Tensor, positions: Tensor | None = None, attend: Attend = causal,
        wanted: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """`Llama.forward`, by all stages together."""
        model, group = self._model, self._group
        results: list[Tensor] = []
        for here, *rest in self._micro_batches(positions, attend, wanted):
            x = ids[here] if model.first else group.recv(self._room(ids[here]), group.index - 1)
            results.append(self._plain(x, *rest))
            if not model.last:
                group.send(results.pop(), group.index + 1)
        rows, (width, dtype) = len(ids) if wanted is None else len(wanted), self.shape
        if model.last:
            result = torch.cat(results)
            if self._back and rows:
                group.send(result, 0)  # only now: the first stage has sent all, and listens
            return result
        if not (self._back and rows and model.first):
            return torch.empty(0, width)
        return group.recv(torch.empty(rows, width, dtype=dtype, device=ids.device), group.size - 1)

    def _micro_batches(
        self, positions: Tensor | None, attend: Attend, wanted: Tensor | None
    ) -> Iterator[tuple[slice, Tensor | None, Attend, Tensor | None]]:
        """Of each: its tokens among all, and what the plain model takes beside them."""
        M = len(attend.place) if isinstance(attend, Plan) else 0  # which alone can be cut
        count = min(self._group.size, M // LEAST) if self.micro is None else min(self.micro, M)
        if count < 2:
            yield slice(None), positions, attend, wanted
            return
        at = 0
        for step in cut(attend.step, count):
            plan, here = part(attend, step), slice(at, at := at + sum(step.counts))
            rows = None if wanted is None else plan.ints(step.rows).long()
            yield here, positions[here], plan, rows

    def _room(self, ids: Tensor) -> Tensor:
        """Where x arrives for so many tokens; as `Llama.embed` makes it."""
        parameter = next(self._model.parameters())
        dtype = torch.float32 if parameter.device.type == "cpu" else parameter.dtype
        width = self._model.config.hidden_size
        return torch.empty(len(ids), width, dtype=dtype, device=parameter.device)
