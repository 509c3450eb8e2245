"""The model gives transformers' numbers, however its tokens are cut, batched or cached."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from conftest import TINY, ours, random_ids, reference
from safetensors import safe_open

from minillm.config import ModelConfig
from minillm.kv import ContiguousKV
from minillm.model import Llama

NAMES = sorted(TINY)
CAPACITY = 64


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


@pytest.fixture
def cache(machine):
    """`cache(model, batch)`: an empty KV cache for `model`, in its dtype."""

    def make(model: Llama, batch: int = 1) -> ContiguousKV:
        dtype = model.model.norm.weight.dtype
        return ContiguousKV(model.config, batch, CAPACITY, machine, dtype)

    return make


def span(start: int, stop: int) -> torch.Tensor:
    """Positions start … stop - 1 of one row, (1, T)."""
    return torch.arange(start, stop)[None]


def assert_close(got: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-4) -> None:
    """Equal to `tolerance`, relative to the largest logit of its token."""
    scale = wanted.abs().amax(-1, keepdim=True)
    assert got.shape == wanted.shape
    assert ((got - wanted).abs() / scale).max() < tolerance


def greedy(model: Llama, kv: ContiguousKV, ids: torch.Tensor, tokens: int) -> list[int]:
    logits, found = model(ids, span(0, ids.shape[1]), kv, torch.tensor([ids.shape[1] - 1])), []
    for position in range(ids.shape[1], ids.shape[1] + tokens):
        found.append(int(logits.argmax()))
        logits = model(torch.tensor([found[-1:]]), span(position, position + 1), kv, None)[:, 0]
    return found


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
    assert_close(model(ids), theirs(ids).logits)


@pytest.mark.parametrize("name", NAMES)
def test_greedy_ids_equal_transformers(name, pair, cache):
    """Catches a cache that loses, shifts or repeats a position while it grows."""
    theirs, model = pair(name)
    ids = random_ids(1, 12, seed=1)
    options = dict(max_new_tokens=40, do_sample=False, eos_token_id=None, pad_token_id=0)
    wanted = theirs.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, 12:].tolist()
    assert greedy(model, cache(model), ids, 40) == wanted
    assert len(set(wanted)) > 5, "a loop of a few words would hide an error"


@pytest.mark.parametrize("cuts", [[0, 48], [0, 1, 2, 48], [0, 16, 32, 48], [0, 47, 48]])
def test_prefill_in_chunks_equals_prefill_at_once(cuts, pair, cache):
    """Catches a chunk that cannot see the chunks before it, or that sees its own future."""
    _, model = pair("qwen3")
    ids, kv = random_ids(1, 48, seed=2), cache(model)
    chunks = zip(cuts, cuts[1:], strict=False)
    parts = [model(ids[:, a:b], span(a, b), kv) for a, b in chunks]
    assert_close(torch.cat(parts, 1), model(ids))


def test_right_padded_batch_equals_one_by_one(pair, cache):
    """Catches a pad that is attended, and rows of different length that share a position."""
    _, model = pair("llama3")
    lengths, steps = torch.tensor([3, 20, 11]), 12
    ids = random_ids(3, 20 + steps, seed=3)
    padded = torch.where(torch.arange(20) < lengths[:, None], ids[:, :20], 0)
    kv = cache(model, batch=3)
    found = [model(padded, torch.arange(20).expand(3, 20), kv, lengths - 1)]
    for step in range(steps):
        positions = (lengths + step)[:, None]
        found.append(model(ids.gather(1, positions), positions, kv, torch.zeros_like(lengths)))
    for row, length in enumerate(lengths.tolist()):
        alone = model(ids[row : row + 1, : length + steps])[0, length - 1 :]
        assert_close(torch.stack(found)[:, row], alone)


def test_dropped_positions_are_invisible(pair, cache):
    """Catches a forgotten half that still speaks, against transformers with a 4D mask."""
    theirs, model = pair("mistral")
    ids, kv = random_ids(1, 40, seed=4), cache(model)
    model(ids[:, :24], span(0, 24), kv)
    kv.drop(1, 13)
    chunk = model(ids[:, 24:30], span(24, 30), kv)
    steps = [model(ids[:, p : p + 1], span(p, p + 1), kv) for p in range(30, 40)]
    mask = torch.ones(40, 40, dtype=torch.bool).tril()
    mask[24:, 1:13] = False
    wanted = theirs(ids, attention_mask=mask[None, None]).logits[:, 24:]
    assert_close(torch.cat([chunk, *steps], 1), wanted)
    assert (wanted - theirs(ids).logits[:, 24:]).abs().max() > 0.1, "the mask must matter"


def test_last_picks_one_token_a_row(pair, cache):
    """Catches an index that is taken from the padded end instead of the row's own last token."""
    _, model = pair("qwen2")
    ids, last = random_ids(3, 9), torch.tensor([8, 0, 4])
    everything = model(ids)
    assert everything.dtype == torch.float32
    picked = model(ids, torch.arange(9).expand(3, 9), cache(model, batch=3), last)
    assert_close(picked, everything[torch.arange(3), last])
    assert_close(model.logits(model.hidden(ids)), everything)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_stays_near_float32(name, pair, cache):
    """Catches a table or norm that is rounded to 8 bits: no further off than transformers is."""
    exact, _ = pair(name)
    theirs, model = pair(name, torch.bfloat16)
    ids = random_ids(1, 60, seed=5)
    wanted = exact(ids).logits
    found = model(ids, span(0, 60), cache(model))
    assert found.dtype == torch.float32

    def error(logits: torch.Tensor) -> torch.Tensor:
        return (logits.float() - wanted).norm() / wanted.norm()

    assert error(found) < 1.25 * error(theirs(ids).logits)


def test_meta_construction_loses_nothing(pair, tiny):
    """Catches a rotary table left on meta, or rounded by `.to(bfloat16)`, when weights arrive."""
    _, model = pair("llama3")
    with torch.device("meta"):
        shell = Llama(model.config)
    assert all(p.is_meta for p in shell.parameters())
    shell.load_state_dict(model.state_dict(), assign=True)
    ids = random_ids(1, 30)
    assert torch.equal(shell(ids), model(ids))
    frequency = model.model.rope.frequency.clone()
    assert torch.equal(model.to(torch.bfloat16).model.rope.frequency, frequency)
    assert torch.equal(shell.to_empty(device="cpu").model.rope.frequency, frequency)


def test_training_compiles_in_one_graph_and_reaches_every_weight(tiny):
    """Catches a graph break, a recompilation for every length, and a weight without gradient."""
    torch._dynamo.reset()
    model = Llama(ModelConfig.from_pretrained(tiny("llama-bias")))
    hidden = torch.compile(model.hidden, fullgraph=True, backend="eager", dynamic=True)
    with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16):
        for T in (16, 24, 32):
            ids = random_ids(2, T)
            loss = model.logits(hidden(ids)).logsumexp(-1).mean()
            assert abs(loss.item() - model(ids).logsumexp(-1).mean().item()) < 0.05
        loss.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key


def test_reduce_and_observe_see_every_half_layer(tiny):
    """Catches a hook that a layer forgets: ranks would add too little, charts show too little."""
    seen: list = []

    @contextmanager
    def observe(name: str, layer: int):
        yield
        seen.append((name, layer))

    def reduce(x: torch.Tensor) -> torch.Tensor:
        seen.append("reduce")
        return x

    model = Llama(ModelConfig.from_pretrained(tiny("llama")), reduce, observe)
    model(random_ids(1, 4))
    halves = [(name, layer) for layer in range(3) for name in ("attention", "ffn")]
    assert seen == [entry for half in halves for entry in ("reduce", half)]
