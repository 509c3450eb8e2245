"""The model gives transformers' numbers, however its tokens are packed, cut or cached."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from conftest import TINY, ours, random_ids, reference
from safetensors import safe_open
from torch import nn

from minillm.config import ModelConfig
from minillm.kv import PagedKV, Step
from minillm.kv.plan import Hidden
from minillm.model import Llama
from minillm.model.attention import causal
from minillm.model.layers import Linear, product, together

NAMES = sorted(TINY)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture
def pair(tiny):
    """`pair(name)`: the same tiny checkpoint as transformers' model and as ours."""

    def make(name: str, dtype: torch.dtype = torch.float32):
        theirs = reference(tiny(name), dtype)
        return theirs, ours(theirs, tiny(name))

    return make


class Texts:
    """Texts that grow in a paged cache; `run({number: ids})` gives the new tokens' logits."""

    def __init__(self, model: Llama, machine, page_size: int = 4):
        dtype = model.model.norm.weight.dtype
        self.model, self.ids = model, {}
        self.kv = PagedKV(model.config, machine, dtype, page_size, pages=64)
        model.prepare(model.config.max_position_embeddings)

    def run(self, new: dict[int, list[int]]) -> dict[int, torch.Tensor]:
        starts = []
        for number, ids in new.items():
            if number not in self.ids:
                self.ids[number] = []
                self.kv.find(number, ids)
            starts.append(len(self.ids[number]))
            self.ids[number] += ids
            assert self.kv.reserve(number, len(self.ids[number]))
        counts = tuple(map(len, new.values()))
        plan = self.kv.plan(Step(tuple(new), tuple(starts), counts, counts))
        packed = torch.tensor([token for ids in new.values() for token in ids])
        logits = self.model(packed, plan.place, plan)
        for number in new:
            self.kv.commit(number, self.ids[number])
        return dict(zip(new, logits.split(counts), strict=True))


def assert_close(got: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-4) -> None:
    """Equal to `tolerance`, relative to the largest logit of its token."""
    scale = wanted.abs().amax(-1, keepdim=True)
    assert got.shape == wanted.shape
    assert ((got - wanted).abs() / scale).max() < tolerance


@pytest.mark.parametrize("name", NAMES)
def test_parameter_names_are_the_checkpoints(name, tiny):
    """Catches a renamed, forgotten or untied parameter, and one that config.json turns off."""
    config = ModelConfig.from_pretrained(tiny(name))
    with torch.device("meta"):
        found = {key: list(p.shape) for key, p in Llama(config).named_parameters()}
    with safe_open(tiny(name) / "model.safetensors", "pt") as file:
        wanted = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    assert found == wanted


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_transformers(name, pair):
    """Catches a wrong rotation, scaling, norm, bias or head grouping, past the trained length."""
    theirs, model = pair(name)
    ids = random_ids(2, 200)
    model.prepare(200)
    packed = model(ids.flatten(), torch.arange(200).repeat(2), partial(causal, rows=2))
    assert_close(packed.view(2, 200, -1), theirs(ids).logits)
    assert_close(model(ids[1]), theirs(ids[1:]).logits[0])


@pytest.mark.parametrize("name", NAMES)
def test_greedy_ids_equal_transformers(name, pair, machine):
    """Catches a cache that loses, shifts or repeats a position while it grows."""
    theirs, model = pair(name)
    ids = random_ids(1, 12, seed=1)
    options = dict(max_new_tokens=40, do_sample=False, eos_token_id=None, pad_token_id=0)
    wanted = theirs.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, 12:].tolist()
    texts, new, found = Texts(model, machine), ids[0].tolist(), []
    while len(found) < 40:
        new = [int(texts.run({7: new})[7][-1].argmax())]
        found += new
    assert found == wanted
    assert len(set(wanted)) > 5, "a loop of a few words would hide an error"


@pytest.mark.parametrize("cuts", [[0, 48], [0, 1, 2, 48], [0, 16, 32, 48], [0, 47, 48]])
@pytest.mark.parametrize("page_size", [1, 7, 64])
def test_prefill_in_chunks_equals_prefill_at_once(cuts, page_size, pair, machine):
    """Catches a chunk that cannot see the chunks before it, or that sees its own future."""
    _, model = pair("qwen3")
    ids, texts = random_ids(48, seed=2), Texts(model, machine, page_size)
    chunks = zip(cuts, cuts[1:], strict=False)
    parts = [texts.run({0: ids[a:b].tolist()})[0] for a, b in chunks]
    assert_close(torch.cat(parts), model(ids))


def test_packed_texts_equal_one_by_one(pair, machine):
    """Catches tokens that see another text, and texts of different length that share a position."""
    _, model = pair("llama3")
    lengths, steps = [3, 20, 11], 12
    ids, texts = random_ids(3, 20 + steps, seed=3), Texts(model, machine)
    found = [texts.run({n: ids[n, :length].tolist() for n, length in enumerate(lengths)})]
    for step in range(steps):
        found.append(texts.run({n: [int(ids[n, at + step])] for n, at in enumerate(lengths)}))
    for n, length in enumerate(lengths):
        packed = torch.cat([logits[n] for logits in found])
        assert_close(packed, model(ids[n, : length + steps]))


def test_forgotten_positions_are_invisible(pair, machine):
    """Catches a forgotten half that still speaks, against transformers with a 4D mask."""
    theirs, model = pair("mistral")
    ids, texts = random_ids(40, seed=4), Texts(model, machine)
    cuts = [0, 20, 30, *range(31, 41)]  # the second chunk has tokens that see, and that do not
    parts = []
    for a, b in zip(cuts, cuts[1:], strict=False):
        parts.append(texts.run({0: ids[a:b].tolist()})[0])
        texts.kv.hide(0, Hidden(24, range(1, 13)))
    mask = torch.ones(40, 40, dtype=torch.bool).tril()
    mask[24:, 1:13] = False
    wanted = theirs(ids[None], attention_mask=mask[None, None]).logits[0]
    assert_close(torch.cat(parts), wanted)
    assert (wanted - theirs(ids[None]).logits[0])[24:].abs().max() > 0.1, "the mask must matter"


def test_wanted_picks_rows(pair):
    """Catches an index that is taken from another text's end."""
    _, model = pair("qwen2")
    ids = random_ids(9)
    everything = model(ids)
    assert everything.dtype == torch.float32
    assert_close(model(ids, wanted=torch.tensor([8, 0, 4])), everything[[8, 0, 4]])


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_stays_near_float32(name, pair, machine):
    """Catches a table or norm that is rounded to 8 bits: no further off than transformers is."""
    exact, _ = pair(name)
    theirs, model = pair(name, torch.bfloat16)
    ids = random_ids(1, 60, seed=5)
    wanted = exact(ids).logits
    found = Texts(model, machine).run({0: ids[0].tolist()})[0]
    assert found.dtype == torch.float32

    def error(logits: torch.Tensor) -> torch.Tensor:
        return (logits.float() - wanted).norm() / wanted.norm()

    assert error(found[None]) < error(theirs(ids).logits)


def test_meta_construction_loses_nothing(pair):
    """Catches a rotary table left on meta, or rounded by `.to(bfloat16)`, when weights arrive."""
    _, model = pair("llama3")
    with torch.device("meta"):
        shell = Llama(model.config)
    assert all(p.is_meta for p in shell.parameters())
    shell.load_state_dict(model.state_dict(), assign=True)
    ids = random_ids(30)
    assert torch.equal(shell(ids), model(ids))
    angles = model.angles.clone()
    assert torch.equal(model.to(torch.bfloat16).angles, angles)
    model.prepare(100)  # a longer table begins as the shorter one did
    assert torch.equal(model.angles[: len(angles)], angles)


def test_training_compiles_in_one_graph_and_reaches_every_weight(tiny):
    """Catches a graph break, a recompilation for every length, and a weight without gradient."""
    torch._dynamo.reset()
    model = Llama(ModelConfig.from_pretrained(tiny("llama-bias")))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    model.prepare(64)
    compiled = torch.compile(model.forward, fullgraph=True, backend="eager", dynamic=True)
    with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16):
        for T in (16, 24, 32):
            batch = random_ids(2, T).flatten(), torch.arange(T).repeat(2), partial(causal, rows=2)
            loss = compiled(*batch).logsumexp(-1).mean()
            assert abs(loss.item() - model(*batch).logsumexp(-1).mean().item()) < 0.05
        loss.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key


# -- the seams: halves, sums over ranks, stages, the way a weight lies -------------------------


def test_reduce_sees_every_half_layer_in_order(tiny):
    """Catches a half that ranks would not add up."""
    seen: list = []

    def reduce(x: torch.Tensor) -> torch.Tensor:
        seen.append("reduce")
        return x

    def watched(half, *what):
        return lambda *arguments: (seen.append(what), half(*arguments))[1]

    model = Llama(ModelConfig.from_pretrained(tiny("llama")), reduce=reduce)
    for block in model.blocks:
        block.attention_half = watched(block.attention_half, "attention", block.layer)
        block.ffn_half = watched(block.ffn_half, "ffn", block.layer)
    model(random_ids(4))
    halves = [(name, layer) for layer in range(3) for name in ("attention", "ffn")]
    assert seen == [entry for half in halves for entry in (half, "reduce")]


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_bias_is_added_once_however_many_ranks_add_their_parts(ranks, pair):
    """Catches a bias inside the part: each rank would bring it along."""
    _, model = pair("llama-bias")
    ids = random_ids(20)
    wanted = model(ids)
    # Each of N equal ranks holds an Nth of what o and down yield; the sum brings it together.
    model.reduce = lambda part: sum(part / ranks for _ in range(ranks))
    assert_close(model(ids), wanted, 1e-5)
    for block in model.blocks:  # and without the biases the answer would be another
        block.self_attn.o_proj.bias.zero_()
    assert (model(ids) - wanted).abs().max() > 0.1


@pytest.mark.parametrize("name", ["llama3", "llama"])
def test_stages_of_layers_equal_the_whole(name, pair):
    """Catches a stage that numbers its layers anew, or one that lacks the tied output."""
    _, model = pair(name)
    ids, weights = random_ids(20), model.state_dict()
    x = ids
    for layers in (range(0, 1), range(1, 2), range(2, 3)):
        stage = Llama(model.config, layers=layers)
        stage.load_state_dict({key: weights[key] for key in stage.state_dict()})
        stage.prepare(20)
        x = stage(x, torch.arange(20))
    assert torch.equal(x, model(ids))


CASES = ["one block", "bias", "a gap", "two blocks", "gradients"]


@pytest.mark.parametrize("case", CASES)
def test_weights_that_lie_together_are_one_product(case):
    """Catches a product past the end of its block, a bias skipped, a gradient that goes astray."""
    calls, sizes, block = [], (12, 12, 24), torch.randn(52, 48)
    places = list(block[: sum(sizes)].split(sizes))
    if case == "a gap":
        places[2] = block[28:]
    if case == "two blocks":
        places[1] = places[1].clone()
    linears = [Linear(48, n, case == "bias" and n == 24).requires_grad_(False) for n in sizes]
    for linear, place in zip(linears, places, strict=True):
        linear.weight.data = place
        linear.product = lambda *given: (calls.append(1), product(*given))[1]
        if linear.bias is not None:
            linear.bias.fill_(3)
    x = torch.randn(5, 48)
    wanted = x @ torch.cat(places).T
    wanted[:, 24:] += 3 * (case == "bias")
    with torch.set_grad_enabled(case == "gradients"):
        assert_close(together(x, *linears), wanted, 1e-5)
    assert len(calls) == (1 if case == "one block" else 3)
