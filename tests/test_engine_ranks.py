"""The engine on several ranks is the engine: the same texts, every byte predicted, nobody left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import rank_work
from conftest import tiny_tokenizer
from rank_models import MODELS, write

from minillm import ConfigError, Engine, EngineConfig, Event, Machine, ParallelConfig
from minillm.engine.ranks import join
from minillm.load.checkpoint import Checkpoint
from minillm.parallel.ranks import Ranks

PROMPTS = ["Mia put the red key in the chest.", "Tom", "€ 🔑 " * 9, "Mia put the red key!"]
GREEDY = dict(max_tokens=10, temperature=0.0, ignore_eos=True)
WARM = dict(max_tokens=10, temperature=0.8, top_p=0.95, seed=5, ignore_eos=True)
PENALTY = dict(max_tokens=10, temperature=0.0, repetition_penalty=1.5, ignore_eos=True)
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


def both(
    four: Ranks, folder: Path, parallel: dict, each: list[dict] = [GREEDY] * 4, rounds: int = 1,
    forget: float = 0.0, **config: object,
) -> tuple[list[Event], dict, int]:  # fmt: skip
    """The same prompts on four ranks and on one: texts are equal. Returns the ranks' run."""
    work, config = (PROMPTS, each, rounds, forget), {**FLOAT, **config}
    (said, events, meta, preempted), *others = four.run(
        rank_work.answers, str(folder), work, config, parallel
    )
    assert others == [(0, 0)] * 3, "a rank kept memory"
    config.pop("kv_hbm", None)  # a rank's pages are smaller than those of one who has all
    engine = Engine.load(folder, Machine.here(hbm="32 MiB", device="cpu"), EngineConfig(**config))
    for mine, true in zip(said, rank_work.ask(engine, *work), strict=True):
        assert (mine[0], mine[1], mine[3]) == (true[0], true[1], true[3])
        assert mine[2] == pytest.approx(true[2], abs=1e-4)
    return events, meta, preempted


@pytest.mark.parametrize(
    "each",
    [[GREEDY] * 4, [GREEDY, WARM, GREEDY, WARM], [PENALTY] * 4],
    ids=["greedy", "sampled", "penalty"],
)
@pytest.mark.parametrize(
    ("name", "tp", "pp"), [("qwen2", 4, 1), ("llama", 1, 4), ("bias", 2, 2), ("qwen3", 2, 2)]
)
def test_texts_are_those_of_one_rank(folders, four, name, tp, pp, each):
    """Catches a token chosen from a part of the vocabulary, pages of another request, a rank that
    decided by itself."""
    both(four, folders[name], dict(tp=tp, pp=pp), each)


@pytest.mark.parametrize("how", [
    dict(max_batch_tokens=8), dict(rounds=2, page_size=4), dict(page_size=4, kv_hbm="30 KiB"),
    dict(forget=0.5), dict(kv="contiguous"), dict(weights="stream"), dict(kernels="torch"),
    dict(prefix_cache=False),
], ids=str)  # fmt: skip
def test_every_way_of_the_engine_is_known_to_those_who_follow(folders, four, how):
    """Catches a prompt in chunks, a page that was copied before it was written, a request that
    was taken out and came back, or forgotten tokens, of which only rank 0 knows."""
    _, _, preempted = both(four, folders["qwen2"], dict(tp=2, pp=2), **how)
    assert (preempted > 0) == ("kv_hbm" in how)


def test_micro_batches_are_settings_too(folders, four):
    """Catches a setting that nobody reads."""
    events, _, _ = both(four, folders["llama"], dict(tp=1, pp=4, micro_batches=3))
    steps = {event.step for event in events if event.name == "prefill"}
    sent = [e for e in events if e.name == "send" and e.rank == 1 and e.step in steps]
    assert len(steps) == 1 and len(sent) == 3


def test_one_rank_reads_for_all_where_it_is_told_to(folders, four):
    """Catches a rank that reads the disk all the same, and one that reads all layers."""
    events, _, _ = both(four, folders["bias"], dict(tp=2, pp=2, weights="broadcast"))
    read = {event.rank for event in events if event.name == "read"}
    assert read == {0}
    events, _, _ = both(four, folders["bias"], dict(tp=2, pp=2))
    read = Counter()
    for event in events:
        read[event.rank] += event.nbytes * (event.name == "read")
    whole = Checkpoint.open(folders["bias"]).nbytes
    assert set(read) == {0, 1, 2, 3} and max(read.values()) < whole / 1.9


@pytest.mark.parametrize(("tp", "pp"), [(4, 1), (1, 4), (2, 2)])
def test_bytes_between_ranks_are_those_predicted(folders, four, tp, pp):
    """Catches a sum too many, x sent twice, and scores of all V sent where the best would do."""
    events, meta, _ = both(four, folders["llama"], dict(tp=tp, pp=pp))
    assert (meta["gpus"], {event.rank for event in events}) == (4, {0, 1, 2, 3})
    D, L, rows = 64, 4, 4 * 10
    passed = [e for e in events if e.name in ("prefill", "decode step", "mixed step")]
    ids = [e for e in events if (e.kind, e.label, e.rank) == ("transfer", "ids", 0)]
    tokens = sum(event.nbytes for event in ids) // 8
    assert tokens and {e.rank for e in passed} == {0, 1, 2, 3}
    moved = Counter()
    for event in events:
        if event.stage == "parallel":
            moved[event.name, event.rank] += event.nbytes
    for rank in range(4):
        stage, place = divmod(rank, tp)
        sums = 2 * L // pp + (stage == 0)  # one more for the embedding, split by vocabulary
        ring = 2 * (tp - 1) / tp
        assert moved["all_reduce", rank] == ring * sums * tokens * D * 4
        gathered = (tp - 1) * rows * 24 * (stage == pp - 1)  # the best of each row
        assert moved["all_gather", rank] == gathered
        x = tokens * D * 4 if stage < pp - 1 else rows * 24 * (place == 0 and pp > 1)
        assert moved["send", rank] == x


@pytest.mark.parametrize("parallel", [dict(tp=3), dict(tp=2), dict(pp=4, tp=4)], ids=str)
def test_sizes_that_are_not_those_of_the_ranks_are_told(folders, parallel):
    """Catches ranks that wait for others which nobody has started."""
    with pytest.raises(ConfigError, match="torchrun --nproc-per-node"):
        Engine.load(folders["llama"], parallel=ParallelConfig(**parallel))


@pytest.mark.parametrize(
    ("config", "weights"), [(dict(kv_hbm="1 MiB", kv_dram="1 MiB"), "own"),
                            (dict(weights="stream"), "broadcast")],
)  # fmt: skip
def test_what_ranks_cannot_do_together_is_told(machine, config, weights):
    """Catches pages that only rank 0 would find again in DRAM."""
    with pytest.raises(ConfigError, match="several ranks"):
        join(EngineConfig(**config), ParallelConfig(tp=2, weights=weights), machine)


@pytest.mark.parametrize("wrong", [dict(tp=0), dict(pp=1.5), dict(timeout=0), dict(weights="all")])
def test_settings_are_checked(wrong):
    """Catches a grid without ranks."""
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ParallelConfig(**wrong)
