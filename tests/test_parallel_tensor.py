"""A model on several ranks is the model: the same scores, the same choice, two sums a layer."""

from __future__ import annotations

from dataclasses import replace
from math import isfinite
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import random_ids
from rank_models import MODELS, Threads, build, run, write

from minillm.config import ModelConfig
from minillm.errors import ConfigError
from minillm.kv import PagedKV
from minillm.kv.plan import Step
from minillm.machine import Machine
from minillm.model.kernels import Kernels, Tops
from minillm.model.layers import Linear
from minillm.model.llama import Llama
from minillm.parallel.tensor import TensorParallel, best, pack, rank_config, unpack


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write(name, tmp_path_factory.mktemp(name)) for name in MODELS}


def relative(mine: torch.Tensor, whole: torch.Tensor) -> float:
    """The largest difference, of the largest score."""
    return float((mine - whole).abs().max() / whole.abs().max())


def scores(folder: Path, ids: torch.Tensor, tp: int, whole: bool = True) -> list[torch.Tensor]:
    """What each of `tp` ranks returns for a text."""

    def work(group: Threads, _: Threads) -> torch.Tensor:
        model = build(folder, group.index, tp)
        TensorParallel(model, group).whole = whole
        result = model(ids)
        assert group.sums == (2 * model.config.num_hidden_layers + 1) * (tp > 1)
        return result

    return run(tp, 1, work)


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("name", MODELS)
def test_every_rank_has_the_scores_of_one(folders, name, tp):
    """Catches a wrong slice of any weight, a bias added N times, a token looked up nowhere."""
    ids = random_ids(40)
    with torch.no_grad():
        truth = build(folders[name])(ids)
    for mine in scores(folders[name], ids, tp):
        assert relative(mine, truth) < 1e-5
        assert torch.equal(mine.argmax(1), truth.argmax(1))
    for mine in map(unpack, scores(folders[name], ids, tp, whole=False)):
        assert mine.ids == truth.argmax(1).tolist()
        assert mine.log_sum == pytest.approx(truth.logsumexp(1).tolist(), rel=1e-5, abs=1e-4)
        assert mine.values == pytest.approx(truth.amax(1).tolist(), rel=1e-5, abs=1e-4)


def greedy(model: Llama, ids: list[int], more: int, ends: TensorParallel | None = None, kv=None):
    """The likeliest token again and again, by passes over pages; a prompt in two parts."""
    config = model.config
    kv = kv or PagedKV(config, Machine.here(hbm="8 MiB", device="cpu"), torch.float32, 4)
    kv.make_room([len(ids) + more]), kv.find(0, ids), model.prepare(len(ids) + more)
    texts, done = list(ids), 0
    for stop in (5, len(ids), *range(len(ids) + 1, len(ids) + more)):
        assert kv.reserve(0, stop)
        step = Step((0,), (done,), (stop - done,), (int(stop == len(texts)),))
        plan = kv.plan(step)
        wanted = plan.ints(step.rows).long()
        out = model(torch.tensor(texts[done:stop]), plan.place, plan, wanted)
        done = stop
        kv.commit(0, texts[:done])
        if len(wanted):
            texts.append(unpack(out).ids[0] if ends and not ends.whole else int(out.argmax()))
    return texts[len(ids) :]


@pytest.mark.parametrize("c", [False, True], ids=["torch", "C"])
@pytest.mark.parametrize(("name", "tp"), [("bias", 2), ("qwen2", 4), ("qwen3", 2)])
def test_ranks_decode_the_same_text_from_their_own_pages(folders, name, tp, c):
    """Catches pages of the wrong heads, and a kernel that keeps, or adds to, what is summed."""
    ids = random_ids(11, seed=3).tolist()
    with torch.no_grad():
        truth = greedy(build(folders[name]), ids, 12)

    def work(group: Threads, _: Threads) -> list[int]:
        model, kernels = build(folders[name], group.index, tp), None
        if c:
            kernels = Kernels(model, torch.float32, threads=1)
            kernels.put_on(64)
        ends = TensorParallel(model, group, kernels)
        ends.whole = False
        return greedy(model, ids, 12, ends)

    assert run(tp, 1, work) == [truth] * tp


def test_parts_are_summed_in_one_type_whatever_a_rank_multiplies_in(folders):
    """Catches ranks that send sums of two sizes: each has measured which product is the fastest."""
    ids = random_ids(40)

    def rounded(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.linear(x.bfloat16(), weight.bfloat16())

    def work(group: Threads, _: Threads) -> set[torch.dtype]:
        model = build(folders["llama"], group.index, 2)
        for linear in model.modules():
            if isinstance(linear, Linear) and group.index == 1:
                linear.product = rounded
        TensorParallel(model, group)
        add, types = group.all_reduce, set()
        group.all_reduce = lambda x: types.add(x.dtype) or add(x)
        model(ids)
        return types

    assert run(2, 1, work) == [{torch.float32}] * 2


def _bias_each(model: Llama, ends: TensorParallel, rank: int, whole: Llama) -> None:
    for block in model.blocks:
        for linear in (block.self_attn.o_proj, block.mlp.down_proj):
            linear.deferred = False  # each rank adds it, and the sum has it N times more


def _heads_in_turn(model: Llama, ends: TensorParallel, rank: int, whole: Llama) -> None:
    for mine, all_of in zip(model.blocks, whole.blocks, strict=True):
        heads = all_of.self_attn.k_proj.weight.unflatten(0, (4, 16))
        mine.self_attn.k_proj.weight.data = heads[rank::2].flatten(0, 1).contiguous()


def _no_offset(model: Llama, ends: TensorParallel, rank: int, whole: Llama) -> None:
    ends._first = 0


def _one_sum_less(model: Llama, ends: TensorParallel, rank: int, whole: Llama) -> None:
    plain, calls = model.reduce, []

    def reduce(x: torch.Tensor) -> torch.Tensor:
        calls.append(x)
        plain(x if len(calls) != 4 else x.clone())  # once, after an FFN, the sum is not taken
        return x

    model.reduce = reduce


BUGS = [_bias_each, _heads_in_turn, _no_offset, _one_sum_less]


@pytest.mark.parametrize("bug", BUGS)
def test_a_wrong_split_is_seen(folders, bug):
    """Catches a test of the scores that would pass whatever the split."""
    ids, whole = random_ids(40), build(folders["bias"])
    with torch.no_grad():
        truth = whole(ids)

    def work(group: Threads, _: Threads) -> torch.Tensor:
        model = build(folders["bias"], group.index, 2)
        bug(model, TensorParallel(model, group), group.index, whole)
        return model(ids)

    assert max(relative(mine, truth) for mine in run(2, 1, work)) > 1e-3


def test_of_equal_scores_the_lowest_id_is_chosen_as_on_one_rank():
    """Catches ties that depend on which rank answered, or on the last of them."""
    row = torch.tensor([[1.0, 7.0, 0.0, 7.0, 7.0, 2.0, 7.0, 3.0], [5.0] * 8, [0.0] * 7 + [1.0]])
    packed = []
    for rank, mine in enumerate(row.chunk(4, 1)):
        packed.append(pack(Tops(mine.argmax(1), mine.max(1).values, mine.logsumexp(1)), 2 * rank))
    chosen = unpack(best(packed))
    assert chosen.ids == row.argmax(1).tolist() == [1, 0, 7]
    assert chosen.log_sum == pytest.approx(row.logsumexp(1).tolist())
    wrong = unpack(best(packed[::-1]))  # the last of equals
    assert wrong.ids != row.argmax(1).tolist()


def test_a_score_that_is_no_number_is_told_by_the_sum():
    """Catches a token chosen out of NaN because another rank's scores are sound."""
    sound, broken = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[0.0, float("nan"), 1.0]])
    tops = [Tops(t.argmax(1), t.max(1).values, t.logsumexp(1)) for t in (sound, broken)]
    assert not isfinite(unpack(best([pack(t, 0) for t in tops])).log_sum[0])


@pytest.mark.parametrize(
    ("ranks", "sizes", "says"),
    [
        (3, {}, "num_attention_heads = 8"),
        (8, {"intermediate_size": 100}, "intermediate_size = 100"),
        (8, {"vocab_size": 100}, "vocab_size = 100"),
        (4, {"num_attention_heads": 12, "num_key_value_heads": 6}, "num_key_value_heads = 6"),
        (0, {}, "tp = 0"),
    ],
)  # fmt: skip
def test_ranks_that_cannot_share_a_model_are_told(folders, ranks, sizes, says):
    """Catches a part of a head, and a remainder that belongs to nobody."""
    config = replace(ModelConfig.from_pretrained(folders["llama"]), **sizes)
    with pytest.raises(ConfigError, match=says):
        rank_config(config, ranks)


@pytest.mark.parametrize(("ranks", "K_r"), [(1, 2), (2, 1), (4, 1), (8, 1)])
def test_a_rank_has_whole_heads(folders, ranks, K_r):
    """Catches a rank without a kv head where there are fewer of them than ranks."""
    config = rank_config(ModelConfig.from_pretrained(folders["qwen2"]), ranks)
    assert (config.num_attention_heads, config.num_key_value_heads) == (8 // ranks, K_r)
    assert (config.head_dim, config.intermediate_size) == (16, 256 // ranks)
    assert (config.vocab_size, config.hidden_size) == (384 // ranks, 64)
