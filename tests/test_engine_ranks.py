"""The engine on several ranks is the engine: the same texts, every byte predicted, nobody left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import rank_work
from conftest import tiny_tokenizer
from rank_models import MODELS, write

from minillm import Engine, EngineConfig, Machine, SamplingParams
from minillm.parallel.ranks import Ranks

PROMPTS = ["Mia put the red key in the chest.", "Tom", "€ 🔑 " * 9, "Mia put the red key!"]
GREEDY = dict(max_tokens=10, temperature=0.0, ignore_eos=True)
WARM = dict(max_tokens=10, temperature=0.8, top_p=0.95, seed=5, ignore_eos=True)
FLOAT = dict(dtype="float32")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {name: write(name, tmp_path_factory.mktemp(name)) for name in MODELS}
    for folder in made.values():
        tiny_tokenizer().save(str(folder / "tokenizer.json"))
    return made


@pytest.fixture(scope="module")
def four() -> Iterator[Ranks]:
    with Ranks(4) as ranks:
        yield ranks


def alone(folder: Path, each: list[dict], config: dict) -> list[tuple]:
    machine = Machine.here(hbm="32 MiB", device="cpu")
    engine = Engine.load(folder, machine, EngineConfig(**FLOAT, **config))
    done = engine.generate(PROMPTS, [SamplingParams(**params) for params in each])
    return [(one.text, one.token_ids, one.logprobs, one.finish_reason) for one in done]


@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    ("name", "tp", "pp", "config"),
    [("qwen2", 4, 1, {}), ("llama", 1, 4, {}), ("bias", 2, 2, dict(max_batch_tokens=16))],
)
def test_texts_are_those_of_one_rank(folders, four, name, tp, pp, config, sampled):
    """Catches a token chosen from a part of the vocabulary, pages of another request, a rank that
    decided by itself, a trace that lacks a rank."""
    each = [GREEDY, WARM, GREEDY, WARM] if sampled else [GREEDY] * 4
    truth = alone(folders[name], each, config)
    work = str(folders[name]), PROMPTS, each, {**FLOAT, **config}, dict(tp=tp, pp=pp)
    (kept, events, meta, steps), *others = four.run(rank_work.answers, *work)
    for mine, true in zip(kept, truth, strict=True):
        assert (mine[0], mine[1], mine[3]) == (true[0], true[1], true[3])
        assert mine[2] == pytest.approx(true[2], abs=1e-4)
    assert others == [(0, 0)] * 3
    assert {event.rank for event in events} == {0, 1, 2, 3}
