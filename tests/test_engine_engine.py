"""The engine: text in, text out; every byte in the trace; nothing kept that a request held."""

from __future__ import annotations

import ast
import gc
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import TINY, reference

from minillm import (
    CheckpointError,
    ConfigError,
    Engine,
    EngineConfig,
    Machine,
    MinillmError,
    OutOfMemory,
    PromptError,
    SamplingParams,
    Trace,
)
from minillm.decode.detokenize import Detokenizer
from minillm.engine.request import Request
from minillm.kv import PagedKV, drop_oldest
from minillm.kv.plan import Plan

PROMPTS = [
    "Mia put the red key in the chest.",
    "Tom",
    "The code of Mia's chest is 4713. Where is the red key? " * 2,
    "€ 🔑",
    "Mia put the red key in the chest!",
]
GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
WARM = SamplingParams(max_tokens=12, temperature=0.8, top_p=0.95, seed=5, ignore_eos=True)


@pytest.fixture
def engine(tiny, machine) -> Engine:
    return Engine.load(tiny("llama3"), machine)


@pytest.fixture(scope="module")
def town() -> Engine:
    return Engine.load("data/town", Machine.here(hbm="128 MiB", device="cpu"))


# -- the shipped model ------------------------------------------------------------------------


def test_the_shipped_model_gives_transformers_numbers():
    """Catches a loader, a config or a layer that is right on tiny models only."""
    float32 = EngineConfig(dtype="float32")
    engine = Engine.load("data/town", Machine.here(hbm="128 MiB", device="cpu"), float32)
    prompt = "The code of Mia's chest is 4713. It rained.\nWhat is the code of Mia's chest?"
    ids = torch.tensor([engine.tokenizer.encode(prompt)])
    theirs = reference(Path(__file__).parent.parent / "data" / "town")
    with torch.inference_mode():
        wanted, got = theirs(ids).logits[0], engine.model(ids[0])
        written = theirs.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert ((got - wanted).abs() / wanted.abs().amax(-1, keepdim=True)).max() < 1e-4
    ours = engine.generate(prompt, SamplingParams(max_tokens=12, temperature=0.0))[0]
    assert list(ours.token_ids) == written.tolist()
    assert ours.text.startswith(" The code of Mia's chest is 4713.")


# -- the text ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TINY)
def test_greedy_ids_equal_transformers(tiny, machine, name):
    """Catches wrong positions, masks or caches: anything that makes the model another one."""
    folder = tiny(name)
    engine = Engine.load(folder, machine)
    ids = torch.tensor([engine.tokenizer.encode(PROMPTS[2])])
    theirs, text = reference(folder), ids
    for _ in range(12):
        with torch.no_grad():
            text = torch.cat((text, theirs(text).logits[:, -1:].argmax(-1)), 1)
    ours = engine.generate(PROMPTS[2], GREEDY)[0]
    assert list(ours.token_ids) == text[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("params", [GREEDY, WARM, replace(WARM, logprobs=3)])
def test_streamed_text_is_generated_text_is_decoded_ids(engine, params):
    """Catches text that streaming loses, repeats or shows early."""
    for prompt in PROMPTS:
        pieces = list(engine.stream(prompt, params))
        completion = engine.generate(prompt, params)[0]
        assert "".join(piece.text for piece in pieces) == completion.text
        assert completion.text == engine.tokenizer.decode(completion.token_ids)
        assert tuple(piece.token_id for piece in pieces) == completion.token_ids
        assert tuple(piece.logprob for piece in pieces) == completion.logprobs
        assert tuple(piece.top_logprobs for piece in pieces) == completion.top_logprobs
        assert [piece.index for piece in pieces] == list(range(12))


@pytest.mark.parametrize("params", [GREEDY, WARM])
@pytest.mark.parametrize("forget", [None, drop_oldest(0.5)])
def test_a_batch_equals_one_by_one(engine, params, forget):
    """Catches a text that sees another, a wrong row, or chance shared between requests."""
    engine.kv.forget = forget
    together = engine.generate(PROMPTS, params)
    for prompt, completion in zip(PROMPTS, together, strict=True):
        alone = engine.generate([prompt], params)[0]
        assert completion.token_ids == alone.token_ids
        assert completion.logprobs == pytest.approx(alone.logprobs, rel=1e-4)


def test_each_prompt_may_have_its_own_params(engine):
    """Catches settings of one request that act on another; and lists of unequal length."""
    params = [GREEDY, WARM, SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)]
    together = engine.generate(PROMPTS[:3], params)
    alone = [engine.generate(p, q)[0] for p, q in zip(PROMPTS[:3], params, strict=True)]
    assert [c.token_ids for c in together] == [c.token_ids for c in alone]
    assert [len(c.token_ids) for c in together] == [12, 12, 3]
    kinds = [
        {"temperature": 0.0, "repetition_penalty": 1.3}, {"temperature": 0.0, "logprobs": 3},
        {"top_k": 20, "min_p": 0.01}, {"top_p": 0.9, "presence_penalty": 1.0, "logprobs": 1},
        {"logit_bias": {7: 5.0}, "frequency_penalty": 0.5}, {"temperature": 0.0},
    ]  # fmt: skip
    many = [SamplingParams(max_tokens=12, seed=3, ignore_eos=True, **kind) for kind in kinds]
    for mixed, each in zip(engine.generate(PROMPTS[:1] * 6, many), many, strict=True):
        alone = engine.generate(PROMPTS[0], each)[0]
        assert mixed.token_ids == alone.token_ids
        assert [len(top) for top in mixed.top_logprobs] == [each.logprobs] * 12
    with pytest.raises(ConfigError, match="one for each of 2 prompts, found 3"):
        engine.generate(PROMPTS[:2], params)


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_prefill_in_chunks_equals_prefill_at_once(tiny, chunk):
    """Catches a chunk that does not see the one before, or logits of the wrong chunk."""
    whole = Engine.load(tiny("llama3"), Machine.here("64 MiB", "cpu"))
    config = EngineConfig(max_batch_tokens=chunk)
    parts = Engine.load(tiny("llama3"), Machine.here("64 MiB", "cpu"), config)
    for a, b in zip(*(e.generate(PROMPTS, GREEDY) for e in (whole, parts)), strict=True):
        assert a.token_ids == b.token_ids
        assert a.logprobs == pytest.approx(b.logprobs, rel=1e-4)
    parts.trace.clear()
    parts.generate(PROMPTS[2], GREEDY)
    assert len(parts.trace.select(name="prefill")) == -(-len(ids_of(parts, 2)) // chunk)


def ids_of(engine: Engine, number: int) -> list[int]:
    return engine.tokenizer.encode(PROMPTS[number])


@pytest.mark.parametrize("config", [{"kv": "contiguous"}, {"page_size": 1}, {"page_size": 100}])
def test_where_keys_lie_changes_no_text(tiny, engine, config):
    """Catches a table that is read wrongly at the ends of pages."""
    other = Engine.load(tiny("llama3"), Machine.here("64 MiB", "cpu"), EngineConfig(**config))
    wanted = [c.token_ids for c in engine.generate(PROMPTS, GREEDY)]
    assert [c.token_ids for c in other.generate(PROMPTS, GREEDY)] == wanted


def test_same_seed_same_text_and_another_seed_another(engine):
    """Catches a seed that is ignored, or chance that goes on from request to request."""
    texts = [c.text for c in engine.generate([PROMPTS[0]] * 2, WARM)]
    other = SamplingParams(max_tokens=12, temperature=0.8, seed=6, ignore_eos=True)
    assert texts[0] == texts[1] == "".join(p.text for p in engine.stream(PROMPTS[0], WARM))
    assert texts[0] != engine.generate(PROMPTS[0], other)[0].text


def test_a_prompt_may_be_ids(engine):
    """Catches ids that are tokenized again, or get a second BOS."""
    ids = engine.tokenizer.encode(PROMPTS[0])
    by_text, by_ids = engine.generate([PROMPTS[0], ids], GREEDY)
    assert by_text.token_ids == by_ids.token_ids
    assert by_ids.prompt_tokens == len(ids)
    assert "".join(p.text for p in engine.stream(ids, GREEDY)) == by_text.text


def test_generation_ends_at_the_end_of_text(tiny, machine, tmp_path):
    """Catches an end-of-text token that is shown, or ignored; `ignore_eos` goes on."""
    third = Engine.load(tiny("llama3"), machine).generate(PROMPTS[0], GREEDY)[0].token_ids[2]
    folder = shutil.copytree(tiny("llama3"), tmp_path / "model")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, third]}))
    engine = Engine.load(folder, machine)
    ended = engine.generate(PROMPTS[0], SamplingParams(max_tokens=12, temperature=0.0))[0]
    assert ended.finish_reason == "eos"
    assert ended.token_ids[-1] == third and third not in ended.token_ids[:-1]
    assert ended.text == engine.tokenizer.decode(ended.token_ids[:-1])
    assert engine.generate(PROMPTS[0], GREEDY)[0].finish_reason == "length"


def test_generation_ends_before_a_stop_string(engine):
    """Catches a stop string in the text, and a row that goes on after it."""
    text = engine.generate(PROMPTS[0], GREEDY)[0].text
    stop = text[4:7]
    params = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True, stop=stop)
    stopped = engine.generate([PROMPTS[0], "Tom"], params)[0]
    assert stopped.text == text[: text.index(stop)]
    assert stopped.finish_reason == "stop"
    assert "".join(p.text for p in engine.stream(PROMPTS[0], params)) == stopped.text


def test_completion_tells_times_and_counts(engine):
    """Catches times that are negative, or swapped; tpot of a single token is None, not 0."""
    completion = engine.generate("Mia", GREEDY)[0]
    assert completion.prompt_tokens == len(engine.tokenizer.encode("Mia"))
    assert completion.ttft > 0 and completion.tpot > 0
    assert engine.generate("Mia", SamplingParams(max_tokens=1, seed=1))[0].tpot is None


def test_forgetting_the_oldest_half_changes_what_follows(engine):
    """Catches a policy that does nothing; the first token comes from prefill and stays the same."""
    whole = engine.generate(PROMPTS[2], GREEDY)[0]
    engine.kv.forget = drop_oldest(0.5)
    half = engine.generate(PROMPTS[2], GREEDY)[0]
    assert whole.token_ids[0] == half.token_ids[0]
    assert whole.logprobs[0] == half.logprobs[0]
    assert whole.logprobs[1:] != half.logprobs[1:]
    engine.kv.forget = None
    assert engine.generate(PROMPTS[2], GREEDY)[0].token_ids == whole.token_ids


# -- memory -----------------------------------------------------------------------------------


def held(engine: Engine) -> tuple[dict[str, int], dict[str, int]]:
    return dict(engine.machine.hbm.by_label), dict(engine.machine.dram.by_label)


def test_a_request_gives_back_what_it_held(engine):
    """Catches pages kept after the end, after `break`, after an error, after Ctrl-C."""
    before = held(engine)
    weights = engine.model.model.embed_tokens.weight.untyped_storage().nbytes()
    assert before[0] == {"weights": weights, "ids": 8 * engine.config.max_batch_tokens}
    engine.generate(PROMPTS, GREEDY)
    assert held(engine) == before
    stream = engine.stream("Mia", GREEDY)
    assert held(engine) == before, "nothing is held before the first token is asked for"
    next(stream)
    assert "kv" in engine.machine.hbm.by_label
    stream.close()
    assert held(engine) == before
    for _ in engine.stream("Mia", GREEDY):
        break
    assert held(engine) == before
    with pytest.raises(KeyboardInterrupt):
        for _ in engine.stream("Mia", GREEDY):
            raise KeyboardInterrupt
    assert held(engine) == before


def test_a_failure_inside_a_step_gives_all_back(engine, monkeypatch):
    """Catches memory lost when a forward pass fails or is interrupted."""
    before = held(engine)

    def fails(*arguments, **more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine.model, "forward", fails)
        with pytest.raises(KeyboardInterrupt):
            engine.generate(PROMPTS, GREEDY)
    assert held(engine) == before
    assert engine.generate("Mia", GREEDY)[0].finish_reason == "length"


def test_an_interrupted_stream_leaves_the_others_right(engine, monkeypatch):
    """Catches a pass that was broken off and half counted: the others would skip a token."""
    wanted = [engine.generate(prompt, GREEDY)[0].text for prompt in PROMPTS[:2]]
    a, b = (engine.stream(prompt, GREEDY) for prompt in PROMPTS[:2])
    first = next(a).text + next(a).text
    found = next(b).text
    real = engine.model.forward

    def fails(*arguments, **more):
        real(*arguments, **more)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine.model, "forward", fails)
        with pytest.raises(KeyboardInterrupt):
            list(a)
    assert found + "".join(piece.text for piece in b) == wanted[1]
    assert wanted[0].startswith(first)


def test_one_request_that_fails_does_not_stop_the_others(engine, monkeypatch):
    """Catches an error that reaches whoever happens to ask for the next step."""
    wanted = engine.generate(PROMPTS[1], GREEDY)[0].text
    a, b = (engine.stream(prompt, GREEDY) for prompt in PROMPTS[:2])
    next(a), next(b)
    real = engine._chooser._sample

    def sample(asked, logits, tops):
        bad = [request.number == 1 for request in asked]  # of the first stream: 0 was the wanted
        logits[bad] = torch.nan
        return real(asked, logits, tops and tops._replace(log_sum=logits.logsumexp(-1)))

    monkeypatch.setattr(engine._chooser, "_sample", sample)
    stream = engine.stream(PROMPTS[1], GREEDY)
    assert "".join(piece.text for piece in stream) == wanted
    with pytest.raises(MinillmError, match="NaN"):
        list(a)
    list(b)
    assert "kv" not in engine.machine.hbm.by_label


def test_kv_grows_by_pages_to_the_bytes_that_arithmetic_predicts(engine):
    """Catches a counter that is estimated: the trace, the tier and arithmetic must agree."""
    completion = engine.generate(PROMPTS[0], GREEDY)[0]
    config = engine.model_config
    per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert engine.kv_bytes_per_token == per_token
    page = 16 * per_token
    tokens = completion.prompt_tokens + GREEDY.max_tokens - 1  # the last is never read
    first, last = -(-completion.prompt_tokens // 16), -(-tokens // 16)
    assert last > first, "it must grow while it decodes"
    counters = engine.trace.select(kind="counter", name="hbm", label="kv")
    up, down = [n * page for n in range(1, last + 1)], [n * page for n in reversed(range(last))]
    assert [event.nbytes for event in counters] == up + down
    reserved = engine.trace.select(kind="counter", name="hbm", label="kv reserved")
    assert max(event.nbytes for event in reserved) == last * page


def test_streams_may_take_turns(engine):
    """Catches state that two requests share."""
    alone = [engine.generate(prompt, GREEDY)[0].text for prompt in PROMPTS[:2]]
    a, b = (engine.stream(prompt, GREEDY) for prompt in PROMPTS[:2])
    turns = list(zip(a, b, strict=True))
    assert ["".join(piece.text for piece in side) for side in zip(*turns, strict=True)] == alone


def test_streams_share_steps(engine):
    """Catches streams that run one after the other: two together need one step more than one."""
    list(engine.stream(PROMPTS[0], GREEDY))
    alone = engine.steps
    a, b = (engine.stream(prompt, GREEDY) for prompt in PROMPTS[:2])
    next(a), list(b), list(a)
    assert engine.steps - alone == alone + 1  # the second joins one step later


def test_streams_of_several_threads_share_an_engine(engine):
    """Catches two threads in one pass."""
    alone = [engine.generate(prompt, GREEDY)[0].text for prompt in PROMPTS]

    def read(prompt: str) -> str:
        return "".join(piece.text for piece in engine.stream(prompt, GREEDY))

    with ThreadPoolExecutor(len(PROMPTS)) as threads:
        assert list(threads.map(read, PROMPTS)) == alone
    assert "kv" not in engine.machine.hbm.by_label


def test_requests_of_two_threads_never_have_one_number(engine, monkeypatch):
    """Catches a number that is looked at before a text is tokenized and counted up after it."""
    meet, encode = threading.Barrier(2), engine.tokenizer.encode

    def together(text: str) -> list[int]:
        meet.wait(10)
        return encode(text)

    alone = [engine.generate(text, GREEDY)[0].text for text in PROMPTS[:2]]
    monkeypatch.setattr(engine.tokenizer, "encode", together)
    with ThreadPoolExecutor(2) as threads:
        texts = list(threads.map(lambda text: engine.generate(text, GREEDY)[0].text, PROMPTS[:2]))
    assert texts == alone


def test_no_piece_is_lost_that_another_thread_chose(engine, monkeypatch):
    """Catches a stream that looks for pieces first and then for the end, and an end that shows
    before the last piece does."""
    over, finish, step = Request.over.fget, Detokenizer.finish, engine.step
    passes, ends = [], []

    def counted() -> None:
        passes.append(1)
        step()
        passes.pop()

    def just_before(request: Request) -> bool:
        if not passes:
            engine.step()  # the other thread's
        return over(request)

    def look(detokenizer: Detokenizer) -> str:
        ends.extend(over(request) for request in engine.scheduler.running)
        return finish(detokenizer)

    whole = engine.generate("Tom", GREEDY)[0].token_ids
    monkeypatch.setattr(engine, "step", counted)
    monkeypatch.setattr(Request, "over", property(just_before))
    monkeypatch.setattr(Detokenizer, "finish", look)
    assert tuple(piece.token_id for piece in engine.stream("Tom", GREEDY)) == whole
    assert ends == [False]


@pytest.mark.parametrize("name", ["attention", "decode step", "sample", "detokenize"])
def test_a_stream_that_python_collects_in_a_pass_leaves_after_it(engine, name):
    """Catches pages taken from under the pass that writes them: a stream in a cycle, such as that
    of a kept traceback, ends wherever the collector happens to run."""
    engine.generate("Mia", GREEDY)  # the kernels were chosen
    here, whole = held(engine), engine.generate(PROMPTS[0], GREEDY)[0].token_ids
    stream, lost = engine.stream(PROMPTS[0], GREEDY), engine.stream(PROMPTS[1], GREEDY)
    ids = [next(stream).token_id]
    next(lost), next(lost)
    cycle = [lost]
    cycle.append(cycle)
    gc.disable()
    try:
        del lost, cycle
        undo = engine.trace.subscribe(lambda event: event.name == name and gc.collect())
        ids += [piece.token_id for piece in stream]
        undo()
    finally:
        gc.enable()
    assert tuple(ids) == whole
    assert held(engine) == here and not engine.scheduler.running


def test_nobody_steps_inside_a_pass(engine):
    """Catches a subscriber that generates: it would run the pass's own tokens a second time."""
    whole = engine.generate("Tom", GREEDY)[0].token_ids
    engine.trace.subscribe(lambda event: event.name == "sample" and engine.generate("Mia"))
    with pytest.warns(UserWarning, match="in a pass already"):
        assert engine.generate("Tom", GREEDY)[0].token_ids == whole


def test_close_waits_for_the_pass_of_another_thread(engine, monkeypatch):
    """Catches weights taken from under a pass, and a stream that goes on without them."""
    run, closer = engine._runner.run, threading.Thread(target=engine.close)

    def closed_meanwhile(plan: Plan, ids: torch.Tensor) -> torch.Tensor:
        if not closer.ident:
            closer.start()
            closer.join(0.2)
            assert closer.is_alive() and engine.kv.tables
        return run(plan, ids)

    stream = engine.stream("Tom", GREEDY)
    next(stream)
    monkeypatch.setattr(engine._runner, "run", closed_meanwhile)
    next(stream)
    closer.join()
    with pytest.raises(AssertionError, match="closed"):
        next(stream)


@pytest.mark.parametrize("what", [KeyboardInterrupt, MinillmError])
def test_a_close_that_is_broken_off_gives_all_back(tiny, what, monkeypatch):
    """Catches memory that nobody can give back: a second close does nothing."""
    machine = Machine.here(hbm="64 MiB", device="cpu")
    engine = Engine.load(tiny("llama"), machine)

    def broken() -> Trace:
        if what is MinillmError:  # another rank is lost
            raise MinillmError("lost")
        signal.raise_signal(signal.SIGINT)
        return engine.machine.trace

    monkeypatch.setattr(engine._runner, "end", broken)
    with pytest.raises(what):
        engine.close()
    assert not machine.hbm.used and not machine.dram.used
    assert all(p.is_meta for p in engine.model.parameters())


def test_no_prompts_have_no_completions(engine):
    assert engine.generate([]) == []


def test_a_small_cache_gives_the_same_texts(engine, tiny):
    """Catches a request that is lost, or begins anew with other words, when pages run out."""
    weights = engine.machine.hbm.used
    slots = max(len(ids_of(engine, n)) for n in range(5)) + GREEDY.max_tokens - 1
    page = 16 * engine.kv_bytes_per_token
    machine = Machine.here(hbm=weights + -(-slots // 16) * page, device="cpu")
    small = Engine.load(tiny("llama3"), machine)
    wanted, found = (e.generate(PROMPTS * 2, GREEDY) for e in (engine, small))
    assert [c.token_ids for c in found] == [c.token_ids for c in wanted]
    assert machine.hbm.peak <= machine.hbm.capacity


def test_kv_hbm_is_taken_at_once_and_kept(tiny):
    """Catches a pool that is made anew for each request though its size was given."""
    machine = Machine.here("64 MiB", "cpu")
    engine = Engine.load(tiny("llama3"), machine, EngineConfig(kv_hbm="1 MiB"))
    page = 16 * engine.kv_bytes_per_token
    pool = 2**20 // page * page
    assert machine.hbm.by_label["kv reserved"] == pool
    next(engine.stream("Mia", GREEDY))
    engine.generate("Mia", GREEDY)
    assert machine.hbm.by_label["kv reserved"] == pool
    engine.close()
    assert machine.hbm.used == machine.dram.used == 0
    with pytest.raises(ConfigError, match="kv_hbm of at least one page"):
        Engine.load(tiny("llama3"), machine, EngineConfig(kv_hbm=page - 1))
    with pytest.raises(OutOfMemory):
        Engine.load(tiny("llama3"), machine, EngineConfig(kv_hbm="1 GiB"))
    assert machine.hbm.used == machine.dram.used == 0


def test_hbm_too_small_for_the_weights_is_said_before_reading(tiny):
    """Catches weights read for nothing, and a budget left overdrawn."""
    machine = Machine.here(hbm="100 KiB", device="cpu")
    with pytest.raises(OutOfMemory) as error:
        Engine.load(tiny("llama3"), machine)
    assert error.value.tier == "hbm" and machine.hbm.used == machine.dram.used == 0
    assert not machine.trace.select(kind="transfer")


def test_hbm_too_small_for_the_cache_is_said_and_the_engine_goes_on(tiny):
    """Catches a first failure that spoils the engine for the next, smaller request."""
    loaded = Engine.load(tiny("llama3"), Machine.here("64 MiB", "cpu")).machine.hbm.used
    engine = Engine.load(tiny("llama3"), Machine.here(loaded + 15_000, "cpu"))
    with pytest.raises(OutOfMemory, match="HBM"):
        next(engine.stream(PROMPTS[2], GREEDY))
    with pytest.raises(OutOfMemory):
        engine.generate(PROMPTS, GREEDY)
    assert engine.machine.hbm.used == loaded
    assert engine.generate("Tom", GREEDY)[0].finish_reason == "length"


def test_close_gives_the_weights_back(engine):
    """Catches HBM that a notebook loses each time a cell that loads is run again."""
    engine.close()
    engine.close()
    assert engine.machine.hbm.used == 0


# -- the door ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("", "empty"),
        ([], "empty"),
        (None, "NoneType"),
        (b"Mia", "bytes"),
        (7, "int"),
        ([1.5], "list"),
        ([True], "list"),
        ([384], "384"),
        ([-1], "-1"),
        ("\ud83d", "no UTF-8 form"),
        ("Mia " * 300, "at most 255 tokens"),
    ],
)
def test_a_bad_prompt_is_refused_at_once(engine, prompt, said):
    """Catches a prompt fault that shows up inside the model, or only at the first token."""
    before = held(engine)
    with pytest.raises(PromptError, match=f"wanted .*{said}"):
        engine.stream(prompt, GREEDY)
    with pytest.raises(PromptError, match=said):
        engine.generate(["Mia", prompt], GREEDY)
    assert held(engine) == before


def test_a_bias_on_an_unknown_id_is_refused_at_once(engine):
    """Catches an index error in the middle of a step that others share."""
    with pytest.raises(PromptError, match="from 0 to 383, found 384"):
        engine.stream("Mia", SamplingParams(logit_bias={3: 1.0, 384: 1.0}))


def test_what_fits_the_context_is_said_and_fits(engine):
    """Catches an advice that is off by one."""
    ids = [5] * 250
    with pytest.raises(PromptError, match="context of 256 .*250 .*max_tokens=7; .*max_tokens=6 "):
        engine.stream(ids, SamplingParams(max_tokens=7))
    params = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)
    assert len(list(engine.stream(ids, params))) == 6
    assert len(list(engine.stream([5] * 255, SamplingParams(max_tokens=1)))) == 1


def test_a_smaller_context_can_be_asked_for_and_a_larger_one_not(tiny, machine):
    """Catches positions that the model was never trained for."""
    engine = Engine.load(tiny("llama3"), machine, EngineConfig(max_context=32))
    with pytest.raises(PromptError, match="context of 32"):
        engine.stream("Mia", SamplingParams(max_tokens=32))
    with pytest.raises(ConfigError, match="max_context"):
        Engine.load(tiny("llama3"), machine, EngineConfig(max_context=257))


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_between_0_and_1(share):
    """Catches a negative slice that would forget the newest tokens."""
    with pytest.raises(ConfigError, match="a share from 0 to 1"):
        drop_oldest(share)


@pytest.mark.parametrize("lost", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named(tiny, machine, tmp_path, lost):
    """Catches a FileNotFoundError from deep inside; and memory reserved before the check."""
    folder = shutil.copytree(tiny("llama3"), tmp_path / "model")
    (folder / lost).unlink()
    with pytest.raises(CheckpointError, match=lost):
        Engine.load(folder, machine)
    assert machine.hbm.used == 0


def test_a_tokenizer_of_another_model_is_refused(tiny, machine, tmp_path):
    """Catches ids beyond the embedding table."""
    folder = shutil.copytree(tiny("llama3"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 200}))
    with pytest.raises(CheckpointError, match="tokenizer of at most 200 entries"):
        Engine.load(folder, machine)
    assert machine.hbm.used == 0


# -- the trace --------------------------------------------------------------------------------


@pytest.fixture
def traced(tiny, cold) -> tuple[Engine, list]:
    """An engine that streamed one request of 12 tokens, and its trace's events."""
    engine = Engine.load(tiny("llama"), Machine.here("64 MiB", "cpu"))
    list(engine.stream(PROMPTS[0], GREEDY))
    return engine, list(engine.trace.events)


def test_weights_travel_once_from_ssd_to_dram_to_hbm(traced, tiny):
    """Catches bytes that are moved and not recorded, or recorded twice."""
    engine, _ = traced
    stored = sum(p.nbytes for p in engine.model.parameters())
    for source, target in (("ssd", "dram"), ("dram", "hbm")):
        moves = engine.trace.select(label="weights", source=source, target=target, stage="load")
        assert sum(move.nbytes for move in moves) == stored
    assert engine.machine.hbm.by_label["weights"] == stored


def test_every_stage_of_every_token_is_in_the_trace(traced):
    """Catches a stage, a copy or a token that goes unseen."""
    engine, events = traced
    prompt_tokens = len(engine.tokenizer.encode(PROMPTS[0]))
    layers, vocabulary = engine.model_config.num_hidden_layers, engine.model_config.vocab_size
    assert [e.nbytes for e in events if e.name == "tokenize"] == [len(PROMPTS[0])]
    for token in range(12):
        mine = [e for e in events if e.token == token and e.request == 0 and e.kind != "counter"]
        names = [e.name for e in mine]
        assert names.count("decode step" if token else "prefill") == 1
        assert names.count("attention") == names.count("ffn") == layers
        assert names.count("batch") == names.count("sample") == names.count("detokenize") == 1
        [ids] = [e for e in mine if e.label == "ids" and e.kind == "transfer"]
        assert (ids.stage, ids.source, ids.target) == ("tokens", "dram", "hbm")
        assert ids.nbytes == 8 * (1 if token else prompt_tokens)
        [logits] = [e for e in mine if e.label == "logits"]
        assert (logits.stage, logits.source, logits.target) == ("decode", "hbm", "dram")
        assert logits.nbytes == 4 * vocabulary
    shown = "".join(e.detail for e in events if e.name == "detokenize")
    assert shown == engine.generate(PROMPTS[0], GREEDY)[0].text
    assert {e.step for e in events if e.stage == "model"} == set(range(12))
    assert {e.model for e in events if e.stage == "model"} == {engine.name}
    assert {e.stage for e in events if e.kind != "counter"} == {"load", "tokens", "model", "decode"}


def test_a_pass_reads_the_weights_and_the_cache_so_far(traced):
    """Catches a predicted traffic that counts the embedding table, or a cache never filled."""
    engine, events = traced
    weights = sum(p.nbytes for p in engine.model.parameters())
    weights -= engine.model.model.embed_tokens.weight.nbytes  # untied: one row of it is read
    prompt_tokens = len(engine.tokenizer.encode(PROMPTS[0]))
    passes = [e for e in events if e.name in ("prefill", "decode step")]
    lengths = [(e.nbytes - weights) / engine.kv_bytes_per_token for e in passes]
    assert lengths == [prompt_tokens + n for n in range(12)]
    assert all(e.bytes_how == "predicted" for e in passes)


def test_layers_lie_inside_their_pass_and_passes_in_order(traced):
    """Catches clocks that disagree: a timeline drawn from them would lie."""
    _, events = traced
    passes = [e for e in events if e.name in ("prefill", "decode step")]
    for earlier, later in zip(passes, passes[1:], strict=False):
        assert earlier.end <= later.start
    for event in events:
        if event.name in ("attention", "ffn"):
            assert passes[event.token].start <= event.start <= event.end <= passes[event.token].end


def test_a_batch_stamps_each_request_with_its_number(engine):
    """Catches a sample that is booked on another request."""
    list(engine.stream("Mia", SamplingParams(max_tokens=1, seed=1)))
    engine.generate(PROMPTS[:3], GREEDY)
    samples = engine.trace.select(name="sample")
    assert sorted({e.request for e in samples}) == [0, 1, 2, 3]
    assert [e.token for e in samples if e.request == 2] == list(range(12))
    assert {e.request for e in engine.trace.select(name="decode step")} == {None}


def test_a_saved_trace_of_a_request_comes_back_equal(traced, tmp_path):
    """Catches an event or a fact about the run that the file cannot hold."""
    engine, events = traced
    engine.trace.save(tmp_path / "run.json")
    again = Trace.load(tmp_path / "run.json")
    assert list(again.events) == events
    assert again.meta == engine.trace.meta
    assert {"model", "machine", "dtype"} <= again.meta.keys()


# -- the shape of the code --------------------------------------------------------------------


def test_step_is_at_most_15_lines_of_calls():
    """Catches a main loop that no longer fits a glance."""
    source = inspect.getsource(Engine.step)
    assert len(source.splitlines()) <= 15
    nodes = list(ast.walk(ast.parse(source.strip())))
    assert not any(isinstance(node, (ast.For, ast.While)) for node in nodes)


def test_importing_minillm_starts_nothing():
    """Catches an import that loads torch, prints, or chooses a device."""
    code = "import sys, minillm; print('torch' in sys.modules, len(dir(minillm)) > 15)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False True\n", "")


def test_a_first_token_needs_no_compiler(tiny):
    """Catches an import of torch's compiler, a second or more before anything is shown."""
    code = (
        "import sys; from minillm import Engine; engine = Engine.load(sys.argv[1]); "
        "next(engine.stream('Mia')); print('torch._dynamo' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tiny("llama3"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_every_public_name_exists():
    """Catches a name that moved and is still promised."""
    import minillm

    assert all(getattr(minillm, name) for name in minillm.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Missing'"):
        _ = minillm.Missing


# -- the shipped model ------------------------------------------------------------------------


def test_the_shipped_model_recalls_and_forgets(town):
    """Catches a model, tokenizer or cache that does not do what the tour shows."""
    filler = "".join(f"On day {day} the weather was fine. " for day in range(1, 30))
    prompt = f"The code of Mia's chest is 4713. {filler}\nWhat is the code of Mia's chest?"
    params = SamplingParams(max_tokens=14, temperature=0.0, stop="\n")
    assert "4713" in town.generate(prompt, params)[0].text
    town.kv.forget = drop_oldest(0.5)
    assert "4713" not in town.generate(prompt, params)[0].text
    town.kv.forget = None


def test_the_shipped_models_text_streams_as_it_generates(town):
    """Catches a stream that differs from the batch in bfloat16 or with the real vocabulary."""
    params = SamplingParams(max_tokens=30, temperature=0.0)
    completion = town.generate("Mia put the red key", params)[0]
    assert "".join(p.text for p in town.stream("Mia put the red key", params)) == completion.text
    assert town.tokenizer.decode(completion.token_ids) == completion.text


def test_an_interrupt_while_a_request_is_taken_in_leaves_nothing(tiny, monkeypatch):
    """Catches tables without keys, and pages that nobody gives back, after a Ctrl-C."""
    engine = Engine.load(tiny("llama"), Machine.here("16 MiB", "cpu"), EngineConfig(page_size=4))
    ids, params = [5, 6, 7] * 5, SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
    said, find = engine.generate([ids], params)[0].token_ids, PagedKV.find

    def pressed(kv: PagedKV, request: int, ids: list[int]) -> int:
        found = find(kv, request, ids)
        os.kill(os.getpid(), signal.SIGINT)
        return found

    monkeypatch.setattr(PagedKV, "find", pressed)
    with pytest.raises(KeyboardInterrupt):
        engine.generate([ids], params)
    assert not engine.kv.tables and not engine.kv.pool.held
    monkeypatch.setattr(PagedKV, "find", find)
    assert engine.generate([ids], params)[0].token_ids == said
