"""Layers in stages are the model, and micro-batches are the pass they were cut from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import random_ids
from rank_models import MODELS, Threads, build, run, write

from minillm.config import ModelConfig
from minillm.errors import ConfigError
from minillm.kv import PagedKV
from minillm.kv.plan import Hidden, Step
from minillm.machine import Machine
from minillm.model.llama import Llama
from minillm.parallel import pipeline
from minillm.parallel.pipeline import Pipeline, cut, stages
from minillm.parallel.tensor import TensorParallel, unpack


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write(name, tmp_path_factory.mktemp(name)) for name in MODELS}


def stage(folder: Path, tp: Threads, pp: Threads, **how: object) -> Llama:
    """A rank's model, in its place of the grid."""
    layers = stages(ModelConfig.from_pretrained(folder).num_hidden_layers, pp.size)[pp.index]
    model = build(folder, tp.index, tp.size, layers)
    ends = TensorParallel(model, tp)
    passes = Pipeline(model, pp, back=tp.index == 0, **how)
    passes.shape = (384, torch.float32)
    model.ends, model.passes = ends, passes
    return model


@pytest.mark.parametrize(("tp", "pp"), [(1, 2), (1, 4), (2, 2)])
@pytest.mark.parametrize("name", MODELS)
def test_the_first_stage_has_the_scores_of_the_whole_model(folders, name, tp, pp):
    """Catches layers left out or run twice, x of another stage, a tied table that is not there."""
    ids = random_ids(40)
    with torch.no_grad():
        truth = build(folders[name])(ids)

    def work(group: Threads, along: Threads) -> torch.Tensor:
        model = stage(folders[name], group, along)
        result = model(ids)
        assert along.sent == (40 * 64 * 4 if not model.last else 40 * 384 * 4 * (group.index == 0))
        return result

    results = run(tp, pp, work)
    for mine in (results[0], results[-tp]):
        assert (mine - truth).abs().max() < 1e-5 * truth.abs().max()
        assert torch.equal(mine.argmax(1), truth.argmax(1))


def batch(model: Llama, kv: PagedKV, hidden: bool = False) -> list[torch.Tensor]:
    """Three texts: their prompts in one pass, then a pass in which they mix with a fourth."""
    model.prepare(64)
    texts = {n: random_ids(length, seed=n).tolist() for n, length in enumerate((9, 30, 1, 17))}
    kv.make_room(len(ids) + 1 for ids in texts.values())
    scores = []
    for counts, wanted in (((9, 20, 1, 0), (1, 0, 1, 0)), ((1, 10, 1, 17), (1, 1, 1, 1))):
        now = [n for n, count in enumerate(counts) if count]
        starts = []
        for n in now:
            if n not in kv.tables:
                kv.find(n, texts[n])
                if hidden and n == 1:
                    kv.hide(n, Hidden(20, range(1, 12)))
            starts.append(kv.length[n])
            texts[n] += [5] * max(0, starts[-1] + counts[n] - len(texts[n]))
            assert kv.reserve(n, starts[-1] + counts[n])
        numbers = (tuple(of[n] for n in now) for of in (counts, wanted))
        plan = kv.plan(Step(tuple(now), tuple(starts), *numbers))
        ids = [t for n, a in zip(now, starts, strict=True) for t in texts[n][a : a + counts[n]]]
        rows = plan.ints(plan.step.rows).long()
        scores.append(model(torch.tensor(ids), plan.place, plan, rows).clone())
        for n in now:
            kv.commit(n, texts[n][: kv.length[n] + counts[n]])
    return scores


class Stage(PagedKV):
    """The pages of a stage's own layers."""

    first = 0

    def enter(self, layer, plan):
        return super().enter(layer - self.first, plan)


def pages(model: Llama) -> PagedKV:
    kv = Stage(model.config, Machine.here(hbm="8 MiB", device="cpu"), torch.float32, 4)
    kv.first = model.layers.start
    return kv


@pytest.mark.parametrize("hidden", [False, True], ids=["", "hidden"])
@pytest.mark.parametrize("micro", [1, 2, 5])
@pytest.mark.parametrize(("tp", "pp"), [(1, 2), (1, 4), (2, 2)])
def test_micro_batches_score_what_the_whole_pass_scores(folders, tp, pp, micro, hidden):
    """Catches rows of another text, a text that does not see its own beginning, results that
    arrive in another order, and stages that wait for each other for ever."""
    with torch.no_grad():
        whole = build(folders["qwen2"])
        truth = batch(whole, pages(whole), hidden)

    def work(group: Threads, along: Threads) -> list[torch.Tensor]:
        model = stage(folders["qwen2"], group, along, micro=micro)
        results = batch(model, pages(model), hidden)
        turns = 2 * micro * (group.size > 1)
        assert group.sums == turns * (2 * len(model.layers) + model.first)
        return results

    for mine, true in zip(run(tp, pp, work)[0], truth, strict=True):
        assert mine.shape == true.shape
        assert (mine - true).abs().max() < 1e-5 * true.abs().max()


def test_the_best_of_each_row_comes_back_instead_of_all_scores(folders):
    """Catches numbers of the wrong kind, or of one micro-batch only."""
    with torch.no_grad():
        whole = build(folders["qwen3"])
        truth = batch(whole, pages(whole))

    def work(group: Threads, along: Threads) -> list[torch.Tensor]:
        model = stage(folders["qwen3"], group, along, micro=3)
        model.ends.whole, model.passes.shape = False, (3, torch.float64)
        return batch(model, pages(model))

    for mine, true in zip(run(2, 2, work)[0], truth, strict=True):
        assert unpack(mine).ids == true.argmax(1).tolist()


def test_small_passes_are_not_cut_unless_asked(folders):
    """Catches a decode step that reads the stage's weights once for every few tokens."""

    def work(group: Threads, along: Threads) -> list[int]:
        model = stage(folders["llama"], group, along)
        passes = []
        plain = model.passes._plain
        model.passes._plain = lambda x, *rest: passes.append(len(x)) or plain(x, *rest)
        batch(model, pages(model))
        return passes

    assert run(1, 2, work) == [[30, 29]] * 2


@pytest.mark.parametrize(("layers", "count"), [(6, 1), (6, 2), (6, 4), (7, 3), (4, 4)])
def test_each_layer_is_in_one_stage_and_stages_are_about_equal(layers, count):
    """Catches a layer at a border that is run twice, or never."""
    ranges = stages(layers, count)
    assert [layer for each in ranges for layer in each] == list(range(layers))
    sizes = [len(each) for each in ranges]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("count", [0, 5])
def test_a_stage_without_a_layer_is_refused(count):
    """Catches ranks that have nothing to do."""
    with pytest.raises(ConfigError, match=f"pp = {count}"):
        stages(4, count)


@pytest.mark.parametrize("parts", range(1, 12))
def test_a_pass_that_is_cut_has_the_same_tokens_and_wants_the_same_rows(parts):
    """Catches a token lost at a cut, and a draft's rows (wanted > 1) that are cut themselves."""
    step = Step((7, 8, 9, 10), (20, 0, 3, 0), (1, 9, 4, 6), (1, 0, 4, 2))
    tokens, rows, at = [], [], 0
    for one in cut(step, parts):
        assert all(count for count in one.counts)
        for request, start, count in zip(one.requests, one.starts, one.counts, strict=True):
            tokens += [(request, position) for position in range(start, start + count)]
        rows += [at + row for row in one.rows]
        at += sum(one.counts)
    spans = zip(step.requests, step.starts, step.counts, strict=True)
    assert tokens == [(r, p) for r, start, n in spans for p in range(start, start + n)]
    assert rows == step.rows


def test_cuts_are_of_equal_size():
    """Catches a last micro-batch that gets all that is left over."""
    sizes = [sum(one.counts) for one in cut(Step((1, 2), (0, 0), (100, 30), (1, 1)), 4)]
    assert max(sizes) - min(sizes) <= 1 and pipeline.LEAST > 1
