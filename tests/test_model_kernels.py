"""The C halves give the plain model's numbers, in any company, on any pages; or hand over to it."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from minillm import compile as compiled
from minillm.config import ModelConfig
from minillm.kv import PagedKV, Step
from minillm.machine import Machine
from minillm.model import Llama, kernels, products
from minillm.model.attention import causal
from minillm.model.kernels import install
from minillm.model.layers import Linear
from minillm.model.products import Products
from minillm.tokens.tokenizer import Tokenizer

TOWN = Path(__file__).parents[1] / "data" / "town"

SHAPE = dict(
    vocab_size=389, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
    num_attention_heads=6, num_key_value_heads=2, head_dim=16, max_position_embeddings=8192,
)  # fmt: skip
FAMILIES = {
    "llama": {}, "tied": dict(vocab_size=384, tie_word_embeddings=True),
    "qwen2": dict(qkv_bias=True), "qwen3": dict(qk_norm=True, head_dim=32),
    "bias": dict(qkv_bias=True, attention_out_bias=True, mlp_bias=True),
    "odd group": dict(num_attention_heads=5, num_key_value_heads=1),
    "mha": dict(num_key_value_heads=6),
}  # fmt: skip
BOTH = [torch.float32, torch.bfloat16]


def has_compiler() -> bool:
    try:
        return bool(compiled.find_compiler())
    except compiled.NoLibrary:
        return False


needs_compiler = pytest.mark.skipif(not has_compiler(), reason="needs a C compiler")


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """No gradients, and no measuring: 32 tokens are the C's."""
    monkeypatch.setattr(kernels, "choose", lambda *_: Products(0, 32))
    with torch.no_grad():
        yield


def make(family: str = "llama", dtype=torch.float32, threads: int | None = 2, **more) -> Llama:
    """A random model, its weights always the same; threads: of the C, None leaves it plain."""
    model = Llama(ModelConfig(**(SHAPE | FAMILIES[family] | more))).requires_grad_(False)
    chance = torch.Generator().manual_seed(len(family))
    for name, p in model.named_parameters():
        p.data = (torch.randn(p.shape, generator=chance) * 0.2 + ("norm" in name)).to(dtype)
    model.prepare(512)
    if threads:
        model.kernels, told = install(model, threads)
        assert model.kernels, told
    return model


def cache(model: Llama, P: int = 16, pages: int = 64, shuffled: bool = True) -> PagedKV:
    machine = Machine.here(hbm="256 MiB", device="cpu")
    kv = PagedKV(model.config, machine, model.model.norm.weight.dtype, P, pages)
    for pool in kv.resident:
        pool.fill_(float("nan"))  # whoever reads a place that was not written shows it
    if shuffled:
        order = torch.randperm(pages, generator=torch.Generator().manual_seed(1)).tolist()
        kv.free = order
    return kv


def run(model: Llama, kv: PagedKV, texts: dict[int, list[int]], wanted: int | None = None):
    """A pass over new ids of each request: logits (rows, V), all of them or the last ones."""
    starts = []
    for number, ids in texts.items():
        if number not in kv.length:
            kv.find(number, ids)
        starts.append(kv.length[number])
        assert kv.reserve(number, starts[-1] + len(ids))
    counts = tuple(map(len, texts.values()))
    step = Step(tuple(texts), tuple(starts), counts, tuple(wanted or n for n in counts))
    plan, flat = kv.plan(step), torch.tensor([i for ids in texts.values() for i in ids])
    model.prepare(max(s + n for s, n in zip(starts, counts, strict=True)))
    logits = model(flat, plan.place, plan, torch.tensor(step.rows))
    for number, ids in texts.items():
        kv.commit(number, [0] * (kv.length[number] + len(ids)))
    return logits


def ids(n: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 380, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


PREFIXES = (3, 17, 0, 30, 8)


def mixed(model: Llama, kv: PagedKV, tokens: int) -> torch.Tensor:
    """Texts of several lengths, then a pass of `tokens` new tokens shared out over some of them."""
    for number, n in enumerate(PREFIXES):
        if n:
            run(model, kv, {number: ids(n, number)})
    share = {n: ids(len(range(n, tokens, 5)), 10 + n) for n in range(min(5, tokens))}
    return run(model, kv, share)


def close(got: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    assert got.isfinite().all()
    assert ((got - wanted).abs().max() / wanted.abs().max()).item() < tolerance


# -- the numbers ---------------------------------------------------------------------------------


@needs_compiler
@pytest.mark.parametrize("dtype", BOTH, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 8, 19])
def test_a_pass_equals_the_plain_model(family, dtype, tokens):
    """Catches a bias, norm, group of heads, tail of rows or group of tokens that C gets wrong."""
    plain, fast = make(family, dtype, None), make(family, dtype)
    wanted, got = (mixed(model, cache(model), tokens) for model in (plain, fast))
    assert fast.kernels.stamps is not None, "torch did it"
    close(got, wanted, 1e-5 if dtype == torch.float32 else 4e-3)


@needs_compiler
@pytest.mark.parametrize("family", FAMILIES)
def test_each_half_equals_the_plain_one(family):
    """Catches a half that leans on what the other, or the call over all layers, does for it."""
    plain, fast = make(family, threads=None), make(family)
    chance, seen = torch.Generator().manual_seed(0), {}
    for model in (plain, fast):
        kv = cache(model)
        run(plain, kv, {0: ids(20), 1: ids(5)})
        assert kv.reserve(0, 23) and kv.reserve(1, 6)
        plan = kv.plan(Step((0, 1), (20, 5), (3, 1), (1, 1)))
        x = torch.randn(4, 64, generator=chance.manual_seed(5))
        at = model.angles[plan.place], plan
        block = model.blocks[1]
        seen[model] = block.attention_half(x, *at).clone(), block.ffn_half(x, *at).clone()
        seen[model] += tuple(kv.resident[1][kv.tables[0]].nan_to_num())
    for got, wanted in zip(seen[fast], seen[plain], strict=True):
        close(got, wanted, 1e-5)


@needs_compiler
@pytest.mark.parametrize("dtype", BOTH, ids=str)
def test_pages_of_any_size_in_any_order_give_the_same_bits(dtype):
    """Catches a group of keys read past the end of its page, and a table taken for a range."""
    model, found = make(dtype=dtype), []
    for P in (1, 3, 4, 16, 64, 512):
        for shuffled in (False, True):
            kv = cache(model, P, max(4 * 64 // P, 8), shuffled)
            found.append(mixed(model, kv, 7))
    assert all(torch.equal(found[0], other) for other in found)


@needs_compiler
@pytest.mark.parametrize("dtype", BOTH, ids=str)
def test_a_token_gets_the_same_bits_in_any_company(dtype):
    """Catches a sum whose order depends on the other tokens, or on the threads, and too many."""
    alone = make(dtype=dtype, threads=1)
    wanted = []
    for number, n in enumerate((1, 40, 300, 7, 12, 90, 2, 33, 5, 64)):
        kv = cache(alone)
        run(alone, kv, {number: ids(n, number)}, 1)
        wanted.append(run(alone, kv, {number: [number]})[0])
    for threads, company in ((1, 3), (2, 2), (2, 8), (3, 10), (5, 7), (100, 3)):
        model = make(dtype=dtype, threads=threads)
        kv = cache(model, pages=128)
        for number, n in enumerate((1, 40, 300, 7, 12, 90, 2, 33, 5, 64)[:company]):
            run(alone, kv, {number: ids(n, number)}, 1)
        got = run(model, kv, {n: [n] for n in range(company)})
        for row, logits in enumerate(got):
            assert torch.equal(logits, wanted[row]), (threads, company, row)


@needs_compiler
def test_errors_against_float64_are_those_of_bf16_pages():
    """Catches arithmetic in bf16: only weights, keys and values may be rounded to it."""
    text = Tokenizer.from_pretrained(TOWN).encode(
        "Mia put the red key in the chest. Tom saw it. Later Mia opened the chest and took the key."
    )
    exact = town(torch.float64)
    exact.angles, exact.embed = exact.angles.double(), exact.model.embed_tokens.look_up
    x = exact.run_layers(exact.embed(torch.tensor(text)), torch.arange(len(text)), causal)
    wanted = exact.head(exact.model.norm(x))

    def error(dtype: torch.dtype, c: bool) -> float:
        """Of the largest logit, at the token in the middle."""
        model = town(dtype)
        assert bool(install(model, 2, c)[0]) == c
        kv = cache(model)
        got = torch.cat([run(model, kv, {0: text[i : i + 8]}) for i in range(0, len(text), 8)])
        return ((got - wanted).abs().amax(-1) / wanted.abs().amax(-1)).median().item()

    assert error(torch.float32, True) < 5e-7
    assert error(torch.bfloat16, True) < min(2e-3, 1.1 * error(torch.bfloat16, False))


def town(dtype: torch.dtype) -> Llama:
    model = Llama(ModelConfig.from_pretrained(TOWN)).requires_grad_(False)
    weights = {k: w for file in TOWN.glob("*.safetensors") for k, w in load_file(file).items()}
    for name, p in model.named_parameters():
        p.data = weights[name].to(dtype)
    model.prepare(512)
    return model


@needs_compiler
@pytest.mark.parametrize("dtype", BOTH, ids=str)
def test_five_thousand_tokens_are_looked_through_in_parts(dtype):
    """Catches parts joined with the wrong weights, and scratch too small for a long text."""
    plain, fast, found = make(dtype=dtype, threads=None), make(dtype=dtype, threads=3), []
    kv = cache(plain, 16, 640)
    for pool in kv.resident:
        pool.normal_(generator=torch.Generator().manual_seed(3))
    kv.find(0, []), kv.find(1, [])
    assert kv.reserve(0, 5001) and kv.reserve(1, 4001)
    for model in (plain, fast):
        kv.length.update({0: 5000, 1: 4000})
        found.append(run(model, kv, {0: [1], 1: [2]}))
    close(found[1], found[0], 1e-4 if dtype == torch.float32 else 4e-3)


@needs_compiler
@pytest.mark.parametrize("scale", [1e-30, 1e3, 1e15])
def test_scores_far_apart_do_not_overflow(scale):
    """Catches e^x without the largest score taken off, and a silu of a large negative number."""
    found = []
    for threads in (None, 2):
        model = make(threads=None)
        for block in model.blocks:
            block.self_attn.q_proj.weight.mul_(scale)
            block.mlp.gate_proj.weight.mul_(scale**0.5)
        if threads:
            install(model, threads)
        found.append(mixed(model, cache(model), 5))
    close(found[1], found[0], 1e-4)


# -- one call, its times, the largest logits -----------------------------------------------------


@needs_compiler
def test_a_watch_does_not_stop_the_one_call_and_a_change_does():
    """Catches a hook, a sum over ranks or a changed half that the call over all layers skips."""
    model = make()
    wanted = mixed(model, cache(model), 4)
    begun = time.perf_counter()
    again = mixed(model, cache(model), 4)
    stamps, ended = model.kernels.stamps, time.perf_counter()
    assert torch.equal(again, wanted)
    assert len(stamps) == 7 and [begun, *stamps, ended] == sorted([begun, *stamps, ended])
    block = model.blocks[1]
    plain, calls = block.ffn_half, []

    def watched(*arguments):
        calls.append(1)
        return plain(*arguments)

    watched.watches = plain
    block.ffn_half = watched
    assert torch.equal(mixed(model, cache(model), 4), wanted) and not calls
    block.ffn_half = lambda *arguments: watched(*arguments)
    assert torch.equal(mixed(model, cache(model), 4), wanted) and calls
    assert model.kernels.stamps is None
    block.ffn_half = plain
    with_hook = block.register_forward_pre_hook(lambda *_: calls.append(2))
    assert torch.equal(mixed(model, cache(model), 4), wanted) and 2 in calls
    with_hook.remove()
    model.reduce = lambda part: part * 2
    assert not torch.equal(mixed(model, cache(model), 4), wanted)


@needs_compiler
@pytest.mark.parametrize("family", ["llama", "tied"])
def test_the_largest_logit_is_the_first_of_equals(family):
    """Catches a largest that depends on who came first, and a wrong sum of exponentials."""
    model = make(family, dtype=torch.bfloat16, threads=3)
    x = torch.randn(11, 64, generator=torch.Generator().manual_seed(0))
    for same in (False, True):
        if same:  # rows 0 to 7 say the same for all ids, the others find two largest
            model.head.weight[5:] = model.head.weight[5].clone()
        logits = model.output(x)
        ids, values, sums = map(torch.tensor, map(list, model.kernels.tops))
        assert torch.equal(ids, logits.argmax(-1))
        assert torch.equal(values, logits.amax(-1))
        torch.testing.assert_close(sums, logits.logsumexp(-1))


@needs_compiler
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_logit_that_is_no_number_shows_in_the_sum(value):
    """Catches a broken model whose text would look like one that answers."""
    model = make()
    model.head.weight.data[100, 3] = value
    model.output(torch.ones(2, 64))
    sums = torch.tensor([*model.kernels.tops.log_sum])
    assert not sums.isfinite().any() or value == float("-inf")  # e^-inf is 0, and no harm


# -- what it hands over --------------------------------------------------------------------------


@needs_compiler
def test_many_tokens_and_hidden_positions_are_torchs():
    """Catches C that takes what it cannot do."""
    model, plain = make(), make(threads=None)
    text = ids(40)
    close(run(model, cache(model), {0: text}), run(plain, cache(plain), {0: text}), 1e-5)
    assert model.kernels.stamps is None
    found = []
    for each in (model, plain):
        kv = cache(each)
        run(each, kv, {0: ids(20)})
        kv._hidden[0] = SimpleNamespace(after=20, positions=range(2, 9))
        found.append(run(each, kv, {0: [3]}))
    close(found[0], found[1], 1e-5)
    assert model.kernels.stamps is None


@pytest.mark.parametrize(
    "change", [dict(head_dim=24), dict(hidden_size=72), dict(intermediate_size=100), torch.float16],
    ids=str,
)  # fmt: skip
def test_models_that_c_does_not_know_stay_torchs_and_say_why(change):
    """Catches a size that is no multiple of 16 read in sixteens."""
    odd, dtype = (change, torch.float32) if isinstance(change, dict) else ({}, change)
    model, plain = make(threads=None, dtype=dtype, **odd), make(threads=None, dtype=dtype, **odd)
    found, told = install(model, 2)
    word = next(iter(odd), "float16") if has_compiler() or odd else "compiler"
    assert found is None and word in told, told
    close(mixed(model, cache(model), 4), mixed(plain, cache(plain), 4), 1e-5)


@needs_compiler
def test_an_unknown_id_is_an_error():
    """Catches a read outside the table."""
    model = make()
    table = model.model.embed_tokens
    assert torch.equal(model.embed(torch.tensor([388, 0])), table.look_up(torch.tensor([388, 0])))
    for wrong in (-1, 389):
        with pytest.raises(IndexError, match="below 389"):
            model.embed(torch.tensor([0, wrong]))


@needs_compiler
def test_weights_that_did_not_come_yet_are_an_error():
    """Would catch layers that C reads at no address, where no embedding stands before them."""
    with torch.device("meta"):
        model = Llama(ModelConfig(**SHAPE))
    assert install(model, 2)[0]
    model.prepare(1)
    kv = cache(make())
    kv.find(0, [1])
    assert kv.reserve(0, 1)
    plan = kv.plan(Step((0,), (0,), (1,), (1,)))
    with pytest.raises(AssertionError, match="not loaded yet"):
        model.run_layers(torch.zeros(1, 64), plan.place, plan)


@needs_compiler
@pytest.mark.parametrize("dtype", BOTH, ids=str)
def test_weights_may_move(dtype):
    """Catches an address kept from the slot that a streamed layer had before."""
    model = make(dtype=dtype)
    wanted = mixed(model, cache(model), 6)
    for block in model.blocks:
        for linear in (m for m in block.modules() if isinstance(m, Linear)):
            linear.weight = torch.nn.Parameter(linear.weight.clone(), requires_grad=False)
        for p in block.parameters():
            p.data = p.data.clone()
    assert torch.equal(mixed(model, cache(model), 6), wanted)
    model.blocks[1].mlp.up_proj.weight.data = model.blocks[1].mlp.up_proj.weight * 2
    assert not torch.equal(mixed(model, cache(model), 6), wanted)


@needs_compiler
def test_biases_may_move_alone():
    """Catches a bias that is read where it was, which may be anybody's memory by now."""
    model, plain = make("bias"), make("bias", threads=None)
    mixed(model, cache(model), 6)
    for block in (*model.blocks, *plain.blocks):
        for name, p in block.named_parameters():
            p.data = p.data + 1 if name.endswith("bias") else p.data
    close(mixed(model, cache(model), 6), mixed(plain, cache(plain), 6), 1e-5)


@needs_compiler
@pytest.mark.parametrize("change", [lambda x: x.t().contiguous().t(), Tensor.double], ids="td")
def test_a_hook_may_change_how_x_lies(change):
    """Catches numbers read in the order, or the type, that x has nearly always."""
    model, plain = make(), make(threads=None)
    for block in (model.blocks[0], plain.blocks[0]):
        block.register_forward_hook(lambda block, given, x: change(x))
    close(mixed(model, cache(model), 6), mixed(plain, cache(plain), 6), 1e-5)


@needs_compiler
def test_weights_of_another_type_or_order_are_refused():
    """Catches float32 read as bf16, and columns read as rows, after the model was changed."""
    model, other = make(dtype=torch.bfloat16), make()
    model.float()
    with pytest.raises(AssertionError, match="bfloat16, row by row"):
        mixed(model, cache(other), 4)
    weight = other.blocks[1].mlp.up_proj.weight
    weight.data = weight.data.T.contiguous().T
    with pytest.raises(AssertionError, match="row by row"):
        mixed(other, cache(other), 4)


@needs_compiler
@pytest.mark.parametrize("dtype", BOTH, ids=str)
def test_a_products_weights_are_read_where_they_lie(dtype):
    """Catches kernels that rearrange weights, which others read, too, or copy them at each pass."""
    plain, fast = make(dtype=dtype, threads=None), make(dtype=dtype, threads=None)
    before = [p.data_ptr() for p in fast.parameters()]
    install(fast, 2)
    mixed(fast, cache(fast), 6), run(fast, cache(fast), {0: ids(40)})
    assert [p.data_ptr() for p in fast.parameters()] == before
    for a, b in zip(plain.parameters(), fast.parameters(), strict=True):
        assert torch.equal(a, b)


# -- torch's way ---------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [True, False], ids=["own type", "float32"])
@pytest.mark.parametrize("dtype", [*BOTH, torch.float16], ids=str)
def test_torchs_product_is_the_same_by_parts(own, dtype, monkeypatch):
    """Catches a part of the rows left out, and a buffer that a second weight still reads."""
    monkeypatch.setattr(products, "PIECE", 64 * 40)
    product = Products(products.ALL if own else 0, 0)
    for N in (96, 100, 4):
        linear = Linear(64, N).requires_grad_(False)
        linear.weight.data = torch.randn(N, 64).to(dtype)
        x = torch.randn(5, 64)
        wanted = x @ linear.weight.float().T
        got, exact = product(x, linear.weight), not own or dtype == torch.float32
        assert got.dtype == (dtype if own else torch.float32)
        close(got.float(), wanted, 1e-5 if exact else 2e-2)


@pytest.mark.parametrize("slow", range(8))
def test_a_rival_for_a_while_does_not_choose(slow, monkeypatch):
    """Catches a choice, kept for ever, that another program made: it had the core meanwhile."""
    calls = iter(range(99))

    def rates(run, amount, seconds):
        disturbed = slow <= next(calls) < slow + 3
        return [(3.0 if run.func.own else 1.0) / (100 if disturbed else 1)]

    monkeypatch.setattr(products, "rates", rates)
    assert products._measure(64, 32, torch.bfloat16, None) == (products.ALL, 0)


def test_the_measured_choice_is_kept(monkeypatch, tmp_path):
    """Catches measuring at every load, and a damaged file that stops one."""
    monkeypatch.setenv("MINILLM_HOME", str(tmp_path))
    first = products.choose(64, 32, torch.bfloat16, "here", None)
    monkeypatch.setattr(products, "_measure", lambda *_: pytest.fail("measured again"))
    assert products.choose(64, 32, torch.bfloat16, "here", None) == first
    monkeypatch.setattr(products, "_measure", lambda *_: (3, 7))
    assert products.choose(64, 32, torch.bfloat16, "there", None) == Products(3, 7)
    for damage in ("{", "[]", '{"here": 3}'):
        for kept in (tmp_path / "choices").iterdir():
            kept.write_text(damage)
        assert products.choose(64, 32, torch.bfloat16, "here", None) == Products(3, 7)


# -- the threads ---------------------------------------------------------------------------------


@needs_compiler
def test_two_python_threads_and_two_engines_share_the_pool():
    """Catches scratch that two calls use at once, and workers of one that serve the other."""
    models = [make("qwen2", threads=2), make("qwen3", threads=3), make("llama", threads=1)]
    wanted = [mixed(model, cache(model), 8) for model in models]
    wrong = []

    def again(model, right):
        for _ in range(15):
            with torch.no_grad():
                wrong.extend([1] * (not torch.equal(mixed(model, cache(model), 8), right)))

    pairs = zip(models, wanted, strict=True)
    threads = [threading.Thread(target=again, args=pair) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@needs_compiler
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_computes():
    """Catches a child that waits for workers, or a lock, that only its parent has."""
    model = make(threads=3)
    wanted = mixed(model, cache(model), 8)
    busy = threading.Event()

    def keep_busy():
        while not busy.is_set():
            with torch.no_grad():
                model.output(torch.ones(8, 64))

    thread = threading.Thread(target=keep_busy)
    thread.start()
    try:
        for _ in range(5):
            child = os.fork()
            if not child:  # of torch's own threads none lives on: no operation that needs them
                os._exit(0 if torch.equal(mixed(model, cache(model), 8), wanted) else 1)
            assert _status(child) == 0
    finally:
        busy.set()
        thread.join()
    assert torch.equal(mixed(model, cache(model), 8), wanted)


def _status(child: int, seconds: float = 60) -> int | str:
    for _ in range(int(seconds / 0.02)):
        if (found := os.waitpid(child, os.WNOHANG))[0]:
            return os.waitstatus_to_exitcode(found[1])
        time.sleep(0.02)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return "it hung"


# -- the compiler --------------------------------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A home in which nothing was compiled yet, and a compiler that counts its calls."""
    monkeypatch.setenv("MINILLM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(compiled, "_here", {})
    real = compiled.find_compiler()
    monkeypatch.setattr(compiled, "FLAGS", ("-O1", *compiled.FLAGS[1:]))

    def compiler(before: str = "true", path: str = "cc") -> None:
        script = tmp_path / path
        count, command = f"echo >> {tmp_path}/calls", f'exec {" ".join(real)} "$@"'
        script.write_text("\n".join(["#!/bin/sh", count, before, command, ""]))
        script.chmod(0o755)
        monkeypatch.setenv("CC", str(script))

    compiler()
    calls = lambda: len((tmp_path / "calls").read_text().splitlines())  # noqa: E731
    return SimpleNamespace(folder=tmp_path / "home" / "compiled", compiler=compiler, calls=calls)


def forget(monkeypatch) -> None:
    """As a new process would begin."""
    monkeypatch.setattr(compiled, "_here", {})


@needs_compiler
def test_what_was_compiled_is_kept_and_what_is_damaged_is_made_again(fresh, monkeypatch):
    """Catches a second of compiling at every start, and a library cut off by a full disk."""
    compiled.library(kernels.SOURCE, "-DF32")
    forget(monkeypatch)
    compiled.library(kernels.SOURCE, "-DF32")
    assert fresh.calls() == 1
    (kept,) = fresh.folder.glob("*.so")
    whole = kept.read_bytes()
    for damage in (whole[: len(whole) // 2], b"", whole[:-1] + b"x"):
        kept.unlink()
        kept.write_bytes(damage)
        forget(monkeypatch)
        before = fresh.calls()
        compiled.library(kernels.SOURCE, "-DF32")
        assert fresh.calls() == before + 1
    assert [p.suffix for p in fresh.folder.iterdir()] == [".so"]


@needs_compiler
def test_a_home_that_cannot_be_written_costs_a_second_and_no_more(fresh, monkeypatch, tmp_path):
    """Catches an engine that needs a folder of its own to start."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINILLM_HOME", str(tmp_path / "file" / "home"))
    assert compiled.library(kernels.SOURCE, "-DF32") is compiled.library(kernels.SOURCE, "-DF32")
    assert fresh.calls() == 1


@needs_compiler
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_two_processes_compile_at_once(fresh):
    """Catches one that loads what the other is still writing."""
    children = []
    for _ in range(2):
        children.append(os.fork())
        if not children[-1]:
            try:
                compiled.library(kernels.SOURCE, "-DF32")
            except BaseException:
                os._exit(1)
            os._exit(0)
    assert [_status(child) for child in children] == [0, 0]
    assert {p.suffix for p in fresh.folder.iterdir()} == {".so"}
    compiled.library(kernels.SOURCE, "-DF32")
    assert fresh.calls() == 2


@needs_compiler
@pytest.mark.parametrize(
    "before, said",
    [("echo 'x.c:1: error: no' >&2; exit 1", "error: no"), ("kill -SEGV $$", "status -11"),
     ("exec sleep 600", "more than"), ("exit 0", "cannot be loaded")],
    ids=["fails", "crashes", "hangs", "makes nothing"],
)  # fmt: skip
def test_a_broken_compiler_leaves_torch_and_says_why(before, said, fresh, monkeypatch):
    """Catches an engine that dies, or waits for ever, for a compiler it can do without."""
    fresh.compiler(before)
    monkeypatch.setattr(compiled, "SECONDS", 0.5)
    model, plain = make(threads=None), make(threads=None)
    found, told = install(model, 2)
    assert found is None and said in told, told
    tries = fresh.calls()
    assert install(make(threads=None), 2)[1] == told
    assert fresh.calls() == tries, "it was tried again"
    assert not fresh.folder.exists()
    close(mixed(model, cache(model), 4), mixed(plain, cache(plain), 4), 1e-5)


@pytest.mark.parametrize("name", ["", "no-such-compiler"])
def test_without_a_compiler_torch_computes_and_says_why(name, monkeypatch, tmp_path):
    """Catches a laptop without gcc on which nothing runs."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CC", name)
    model, plain = make(threads=None), make(threads=None)
    found, told = install(model, 2)
    assert found is None and (name or "compiler") in told and "PATH" in told
    close(mixed(model, cache(model), 4), mixed(plain, cache(plain), 4), 1e-5)


def test_the_c_can_be_switched_off():
    """Catches `kernels="torch"` that computes in C."""
    found, told = install(make(threads=None), 2, c=False)
    assert found is None and "switched off" in told


@needs_compiler
@pytest.mark.parametrize("dtype", BOTH, ids=str)
def test_a_processor_without_wide_vectors_gives_the_same(dtype, fresh, monkeypatch):
    """Catches code that only compiles, or is only right, with AVX."""
    wanted = mixed(make(dtype=dtype, threads=None), cache(make(dtype=dtype, threads=None)), 6)
    monkeypatch.setattr(compiled, "TUNED", ((),))
    model = make(dtype=dtype)
    close(mixed(model, cache(model), 6), wanted, 1e-5 if dtype == torch.float32 else 4e-3)
