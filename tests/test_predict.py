"""The arithmetic agrees with checkpoints and data sheets."""

from __future__ import annotations

import doctest
import math
import subprocess
import sys
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path

import pytest
import torch

from minillm.config import ModelConfig, SamplingParams
from minillm.engine.engine import Engine
from minillm.errors import ConfigError
from minillm.load.checkpoint import Checkpoint
from minillm.machine import Machine
from minillm.predict import (
    HARDWARE,
    Wire,
    dtype_bytes,
    hardware,
    kv_bytes_per_token,
    load_time,
    parameters,
    plan,
    weight_bytes,
)
from tests.conftest import TINY

ROOT = Path(__file__).resolve().parent.parent
LLAMA_1B = ModelConfig(
    vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
    num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=True, dtype="bfloat16",
)  # fmt: skip
SMOLLM2 = ModelConfig(
    vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
    num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True, dtype="bfloat16",
)  # fmt: skip
LLAMA_8B = ModelConfig(
    vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
    num_attention_heads=32, num_key_value_heads=8, dtype="bfloat16", max_position_embeddings=8192,
)  # fmt: skip


@pytest.mark.parametrize("config, total", [
    (LLAMA_1B, 1_235_814_400), (SMOLLM2, 134_515_008), (LLAMA_8B, 8_030_261_248),
], ids=["Llama-3.2-1B", "SmolLM2-135M", "Llama-3-8B"])  # fmt: skip
def test_known_models_have_their_known_number_of_parameters(config, total):
    """Catches a tied embedding counted twice, and K query heads where there are K kv heads."""
    assert parameters(config) == total
    assert weight_bytes(config) == weight_bytes(config, torch.bfloat16) == 2 * total


@pytest.mark.parametrize("name", TINY)
def test_parameters_are_those_of_a_real_checkpoint(name, tiny):
    """Catches a bias, a q/k norm or a wide head that the formula forgot."""
    folder = tiny(name)
    config, tensors = ModelConfig.from_pretrained(folder), Checkpoint.open(folder).tensors
    assert parameters(config) == sum(math.prod(info.shape) for info in tensors.values())
    assert weight_bytes(config) == sum(info.nbytes for info in tensors.values())


def test_parameters_of_the_shipped_model_are_those_in_its_file():
    """Catches a formula that fits only what was made for it."""
    config = ModelConfig.from_pretrained(ROOT / "data" / "town")
    assert weight_bytes(config) == Checkpoint.open(ROOT / "data" / "town").nbytes


def test_a_plan_is_what_the_machine_then_holds(tiny):
    """Catches a plan that fits on paper only."""
    folder = tiny("qwen3")
    config, machine = ModelConfig.from_pretrained(folder), Machine.here("64 MiB", device="cpu")
    engine = Engine.load(folder, machine)
    held = []
    machine.trace.subscribe(lambda e: held.append((e.label, e.nbytes)) if e.name == "hbm" else None)
    engine.generate([[5] * 20] * 3, SamplingParams(max_tokens=12, ignore_eos=True))
    planned = plan(config, HARDWARE["H100"], batch=3, context=32)
    assert planned.devices["hbm"]["weights"] == machine.hbm.by_label["weights"]
    assert planned.devices["hbm"]["kv"] == max(n for label, n in held if label == "kv")
    assert planned.fits and engine.kv_bytes_per_token == kv_bytes_per_token(config)


def test_shards_of_a_plan_add_up_to_the_model_and_its_copies():
    """Catches norms that are divided although each rank needs them, and KV heads cut in two."""
    whole = plan(LLAMA_8B, "H100", batch=4)
    for gpus in (2, 4, 8, 16):
        split = plan(LLAMA_8B, "H100", batch=4, gpus=gpus)
        assert list(split.devices) == [*(f"hbm:{rank}" for rank in range(gpus)), "dram", "ssd"]
        each = split.devices["hbm:0"]
        norms = (2 * 32 + 1) * 4096 * 2
        assert each["weights"] * gpus == whole.devices["hbm"]["weights"] + (gpus - 1) * norms
        copies = max(1, gpus / 8)  # beyond 8 GPUs each of the 8 KV heads is there twice
        assert each["kv"] * gpus == whole.devices["hbm"]["kv"] * copies
        assert split.kv_tokens > 0 and split.used("hbm:0") + split.free("hbm:0") == 80 * 10**9


def test_a_plan_says_when_it_does_not_fit_and_what_would():
    """Catches a verdict that looks at the weights alone."""
    small = replace(HARDWARE["H100"], hbm_bytes=17 * 10**9)
    tight = plan(LLAMA_8B, small, context=1)
    assert tight.fits and tight.kv_tokens > 1
    assert plan(LLAMA_8B, small, context=tight.kv_tokens).fits
    full = plan(LLAMA_8B, small, context=tight.kv_tokens + 1)
    assert not full.fits and full.free("hbm") < 0 and "does not fit" in str(full)
    assert plan(LLAMA_8B, replace(small, hbm_bytes=10**9)).kv_tokens == 0


@pytest.mark.parametrize("wrong", [
    {"gpus": 0}, {"gpus": -1}, {"batch": 0}, {"batch": 1.5}, {"context": 0}, {"context": -5},
])  # fmt: skip
def test_a_plan_for_less_than_one_is_refused_by_name(wrong):
    """Catches a plan with negative bytes, which fits everywhere."""
    with pytest.raises(ConfigError, match=f"wanted {next(iter(wrong))} to be an int > 0, found"):
        plan(LLAMA_8B, "H100", **wrong)


@pytest.mark.parametrize("name", HARDWARE)
def test_load_time_is_the_slower_leg(name):
    """Catches overlap taken for a sum, and a leg taken for free."""
    machine, nbytes = HARDWARE[name], 16 * 10**9
    over = load_time(nbytes, machine)
    assert over.seconds == max(over.parts.values()) == over.parts[over.bound_by]
    assert over.bound_by == "ssd" and over.parts["ssd"] == machine.nvme.seconds(nbytes)
    assert ("copy" in over.parts) == (machine.pcie is not None)
    again = load_time(nbytes, name, cached=True)
    assert again.seconds < over.seconds and set(again.parts) - {"copy"} == {"page cache"}
    assert (again.bytes, again.how, again.flops) == (nbytes, "predicted", 0)


def test_out_of_the_page_cache_into_emulated_hbm_are_two_copies_by_the_same_cores():
    """Catches a warm load on a laptop predicted in a third of its time: out of the cache into
    staging, and from there to "HBM", are two copies, and no copy engine makes one of them."""
    here = replace(HARDWARE["H100"], shared=True, page_cache=10e9, pcie=Wire(20e9))
    assert load_time(10**9, here, cached=True).seconds == pytest.approx(0.1 + 0.05)
    assert load_time(10**9, here, cached=True).bound_by == "page cache"
    assert set(load_time(10**9, here).parts) == {"ssd", "copy"}


def test_each_figure_has_a_source():
    """Catches a number that nobody can check."""
    figures = [f.name for f in fields(hardware.Hardware)]
    stated = figures[figures.index("hbm_bytes") : figures.index("page_cache")]
    for name, machine in HARDWARE.items():
        assert name == machine.name
        there = {figure for figure in stated if getattr(machine, figure) is not None}
        assert set(machine.sources) == there, name
        assert all(len(source) > 15 for source in machine.sources.values())


def test_figures_of_the_servers_stand_in_a_sane_proportion():
    """Catches both directions added up, sparse FLOP/s, bits for bytes, GB for TB."""
    servers = [HARDWARE[name] for name in ("A100-40GB", "A100", "H100", "H200", "B200")]
    for m in servers:
        links = (m.nvlink, m.pcie, m.infiniband, m.nvme)
        ladder = [m.hbm_bandwidth, *(link.bandwidth for link in links)]
        assert ladder == sorted(ladder, reverse=True), m.name
        assert 4 < m.hbm_bandwidth / m.nvlink.bandwidth < 12  # not 2 to 6: that is both ways
        assert 30 < m.hbm_bandwidth / m.pcie.bandwidth < 150
        assert 100 < m.bf16_flops / m.hbm_bandwidth < 310  # flops a byte: dense
        assert m.nvlink.latency < m.pcie.latency < m.infiniband.latency < m.nvme.latency < 1e-3
        assert m.dram_bandwidth < m.hbm_bandwidth / 10
    rising = [m.hbm_bandwidth for m in servers]
    assert rising == sorted(rising)
    for shared in (HARDWARE["M1 Max"], HARDWARE["DDR5 server"]):
        assert shared.pcie is None and shared.dram_bandwidth == shared.hbm_bandwidth


@pytest.mark.parametrize("wrong", [
    lambda: load_time(1, "H1000"), lambda: plan(LLAMA_8B, "H1000"), lambda: dtype_bytes("int3"),
    lambda: weight_bytes(LLAMA_8B, torch.complex64), lambda: load_time(1, []),
])  # fmt: skip
def test_an_unknown_server_or_dtype_is_refused_with_those_there_are(wrong):
    """Catches a KeyError at a learner's first typing mistake."""
    with pytest.raises(ConfigError, match="wanted .*(B200|bfloat16).*found"):
        wrong()


def test_the_arithmetic_needs_no_torch_and_no_numpy():
    """Catches an import that makes a pocket calculator take two seconds to start."""
    program = (
        "import sys, minillm.predict; late = {'torch', 'numpy'} & set(sys.modules);"
        "assert not late, late"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


@pytest.mark.parametrize("module", ["hardware", "operators", "plan", "sizes", "time"])
def test_the_examples_in_its_docstrings_are_true(module, monkeypatch):
    """Catches an example that nobody ran."""
    monkeypatch.chdir(ROOT)
    result = doctest.testmod(import_module(f"minillm.predict.{module}"))
    assert result.attempted and not result.failed
