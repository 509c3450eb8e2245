"""What a random run of an engine is drawn from, and the right answer: the model without a cache."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from random import Random

import torch
from conftest import VOCABULARY, ours, reference
from torch import Tensor

from minillm.config import EngineConfig, ModelConfig, SamplingParams
from minillm.engine.engine import Engine
from minillm.engine.request import Request
from minillm.kv import drop_oldest
from minillm.machine import Machine
from minillm.model import Llama
from minillm.model.attention import Attend
from minillm.predict import kv_bytes_per_token

FAMILIES = ("llama3", "qwen2", "qwen3", "llama-bias")
PAGE_SIZES, BUDGETS, PLACES = (1, 2, 4, 16, 64), (1, 3, 5, 8, 16, 512), (1, 3, 64)
Job = tuple[list[int], SamplingParams]


# -- the right answer: the plain model, without a cache ------------------------------------------


@cache
def plain(folder: Path) -> Llama:
    """The model of a tiny checkpoint in float32, not through the engine's loader."""
    return ours(reference(folder), folder)


def formula(after: int, forgotten: range | None) -> Attend:
    """Attention over one whole text; its tokens from `after` on do not see those `forgotten`."""

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        T, H, E = q.shape
        k, v = (t.repeat_interleave(H // t.shape[1], 1) for t in (k, v))  # (T, H, E)
        seen = torch.ones(T, T).tril().bool()
        if forgotten is not None:
            seen[after:, forgotten.start : forgotten.stop] = False
        scores = torch.einsum("qhe,khe->hqk", q, k) / E**0.5
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        return torch.einsum("hqk,khe->qhe", weights, v)

    return attend


@torch.no_grad()
def right_logits(folder: Path, request: Request) -> Tensor:
    """For each of a request's n tokens, the logits to choose it from: (n, V)."""
    prompt = len(request.prompt_ids)
    ids = torch.tensor(request.prompt_ids + request.token_ids)
    return plain(folder)(ids, attend=formula(prompt, request.forgets))[prompt - 1 : -1]


# -- what is drawn -------------------------------------------------------------------------------


def draw_jobs(rng: Random, sharing: bool = False) -> list[Job]:
    """Prompts, some with a common stem, some the same; greedy and warm, short and long.

    sharing: of three words only and many times the same, so that pages are often known.
    """

    def ids(n: int) -> list[int]:
        return [rng.randrange(2, 5 if sharing else VOCABULARY) for _ in range(n)]

    def job() -> Job:
        prompt = stem[: rng.choice((0, 0, 3, 8, 16))] + ids(rng.randint(0, 20))
        params = SamplingParams(
            max_tokens=rng.choice((1, rng.randint(1, 8), 24)),
            temperature=rng.choice((0.0, 0.0, 0.8)), seed=rng.randrange(100),
            top_k=rng.choice((0, 5)), top_p=rng.choice((1.0, 0.9)), ignore_eos=rng.random() < 0.8,
        )  # fmt: skip
        return prompt or [5], params

    stem = ids(16)
    jobs = [job() for _ in range(rng.randint(1, 6))]
    return jobs + (rng.choices(jobs, k=4) if sharing else jobs[:1] * rng.randint(0, 1))


def draw_engine(
    rng: Random, folder: Path, jobs: list[Job], offload: bool = False, **fixed: object
) -> Engine:
    """Its pool holds from "just the longest text" to "all"; some refuse the longest.

    offload: from "hardly anything" on, with room in DRAM, on SSD or in both.
    """
    lengths = [len(ids) + params.max_tokens for ids, params in jobs]
    config = {
        "kv": rng.choice(("paged", "paged", "paged", "contiguous")),
        "page_size": rng.choice(PAGE_SIZES), "max_context": max(lengths),
        "max_batch_tokens": rng.choice(BUDGETS), "max_running": rng.choice(PLACES),
        "kernels": rng.choice(("auto", "torch")), **fixed,
    }  # fmt: skip
    P = config["max_context"] if config["kv"] == "contiguous" else config["page_size"]
    longest = rng.choice((max(lengths), max(lengths), rng.choice(lengths)))
    pages = -(-longest // P) + rng.choice((0, 1, 3, 1 + sum(lengths) // P))
    page = P * kv_bytes_per_token(ModelConfig.from_pretrained(folder), torch.float32)
    if offload:
        pages = rng.choice((2, 3, 5, 9, pages))
        dram, ssd = rng.choice(((2, 0), (60, 0), (0, 60), (3, 60), (60, 4)))
        config |= {"kv_dram": dram * page or None, "kv_ssd": ssd * page or None}
    room, given = pages * page, offload or rng.random() < 0.5
    machine = Machine.here(hbm="16 MiB", device="cpu")
    _poison_new(machine)
    engine = Engine.load(folder, machine, EngineConfig(**config, kv_hbm=room if given else None))
    if not given:  # the pool grows as far as HBM lets it
        machine.hbm.capacity = machine.hbm.used + room
    share = rng.choice((None, None, 0.3, 1.0))
    engine.kv.forget = None if share is None else drop_oldest(share)
    return engine


def _poison_new(machine: Machine) -> None:
    """What the machine hands out holds NaN."""
    empty = machine.empty

    def poisoned(shape, dtype, tier, label) -> Tensor:
        tensor = empty(shape, dtype, tier, label)
        return tensor.fill_(torch.nan) if dtype.is_floating_point else tensor

    machine.empty = poisoned
