"""Sessions: what is saved goes on as if nothing had happened, and what is damaged does not."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from zlib import crc32

import pytest
import torch

from minillm.config import EngineConfig, SamplingParams
from minillm.decode import session as module
from minillm.decode.session import SUM, Session, Sessions
from minillm.engine.engine import Engine
from minillm.errors import MinillmError, SessionError
from minillm.kv import drop_oldest
from minillm.load.safetensors import read_header
from minillm.machine import Machine

ROOT = Path(__file__).resolve().parent.parent
PROMPT = [2, 3, 5, 7, 11, 13] * 5
PAGE = 4 * 768  # bytes of a page of four tokens of tiny's "llama", in float32
KINDS = {
    "paged": {"prefix_cache": False},
    "prefix": {},
    "prefix, kept": {"kv_hbm": 30 * PAGE},
    "contiguous": {"kv": "contiguous"},
    "in DRAM": {"kv_hbm": 10 * PAGE, "kv_dram": 30 * PAGE},
    "on SSD": {"kv_hbm": 10 * PAGE, "kv_dram": 2 * PAGE, "kv_ssd": 60 * 2**12 * 3},
    "nothing shared": {"kv_hbm": 10 * PAGE, "kv_dram": 30 * PAGE, "prefix_cache": False},
    "bfloat16": {"dtype": "bfloat16"},
}
Out = list[tuple[int, float]]


def load(folder: Path, **config: object) -> Engine:
    return Engine.load(
        folder, Machine.here("16 MiB", "cpu"), EngineConfig(**{"page_size": 4} | config)
    )


def settings(tokens: int, **more: object) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.0} | more, max_tokens=tokens, ignore_eos=True)


def run(engine: Engine, prompt: object, params: SamplingParams, save: Path | None = None) -> Out:
    return [(p.token_id, p.logprob) for p in engine.stream(prompt, params, save)]


def tokens_read(engine: Engine) -> int:
    """Tokens that went through the model."""
    sent = engine.trace.select(kind="transfer", label="ids", target="hbm")
    return sum(move.nbytes for move in sent) // 8


@pytest.fixture
def saved(tiny, tmp_path) -> Path:
    """A session of 33 tokens, 32 of them in pages."""
    path = tmp_path / "saved.safetensors"
    engine = load(tiny("llama"))
    run(engine, PROMPT, settings(3), path)
    engine.close()
    return path


def goes_on(folder: Path, path: Path, tokens: int = 9, **config: object) -> None:
    """The law: saved, thrown away, resumed by another engine, it is the run that never stopped."""
    for more in ({}, {"temperature": 1.0, "seed": 4}):
        never = load(folder, **config)
        whole = run(never, PROMPT, settings(tokens + 14, **more))
        first = load(folder, **config)
        said = run(first, PROMPT, settings(tokens, **more), path)
        never.close(), first.close()
        second = load(folder, **config)
        session = second.resume(path)
        assert session == [*PROMPT, *(token for token, _ in said)], "other ids"
        assert session.tokens == len(session) - 1, "not all was saved"
        said += run(second, session, settings(14, **more))
        assert said == whole, "it went on otherwise"
        assert tokens_read(second) == 14, "what was saved was computed again"
        del session
        second.close()
        tiers = first.machine.dram, second.machine.dram, second.machine.hbm, second.machine.ssd
        assert not any(tier.used for tier in tiers), "something is held"


@pytest.fixture
def unwritten() -> Iterator[None]:
    """Memory that nobody has written holds no number, and never by chance what was saved."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("unwritten")
@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_session_goes_on_bit_identical(tiny, tmp_path, kind):
    """Catches a page in the wrong place, a lost partial page, chance that begins anew."""
    for tokens in (9, 7, 3):  # the last page is cut after 2 tokens, is full, is full with one more
        goes_on(tiny("llama"), tmp_path / "s.safetensors", tokens, **KINDS[kind])


PROGRAM = """
import sys
from minillm import Engine, EngineConfig, Machine, SamplingParams
folder, path, do = sys.argv[1:]
engine = Engine.load(folder, Machine.here("16 MiB", "cpu"), EngineConfig(page_size=4))
prompt = engine.resume(path) if do == "resume" else [2, 3, 5, 7, 11, 13] * 5
tokens = 14 if do == "resume" else int(do)
params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
for _ in range(1 if do == "resume" else 12):
    out = [(p.token_id, p.logprob.hex()) for p in
           engine.stream(prompt, params, None if do == "resume" else path)]
print(out)
"""  # fmt: skip


def start(*arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_new_process_goes_on_bit_identical(tiny, tmp_path):
    """Catches what lives only as long as the process: order of names, hashes with a salt."""
    path, engine = tmp_path / "s.safetensors", load(tiny("llama"))
    whole = run(engine, PROMPT, settings(17))
    run(engine, PROMPT, settings(3), path)
    engine.close()
    out = start(tiny("llama"), path, "resume").communicate(timeout=120)[0]
    assert out.strip() == str([(token, logprob.hex()) for token, logprob in whole[3:]])


def test_two_writers_leave_one_whole_session(tiny, tmp_path):
    """Catches a file that two processes wrote together, and one that is there in part."""
    path = tmp_path / "s.safetensors"
    writers, engine = [start(tiny("llama"), path, tokens) for tokens in (2, 9)], load(tiny("llama"))
    seen: Counter[int] = Counter()
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            seen[len(engine.resume(path))] += 1
    assert [writer.communicate()[0] != "" for writer in writers] == [True, True]
    assert seen and seen.keys() <= {len(PROMPT) + 2, len(PROMPT) + 9}
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_what_is_said_next_is_read_after_what_was_saved(tiny, saved):
    """Catches a mark put into the middle of a text, and keys that do not fit what follows."""
    engine, plain = load(tiny("llama")), load(tiny("llama"))
    session = engine.resume(saved)
    for more in (" Where is the key?", [17, 19]):
        ids = more if isinstance(more, list) else plain.tokenizer.encode(more, add_special=False)
        answer = engine.generate([session + more], settings(8))[0]
        assert answer.token_ids == plain.generate([[*session, *ids]], settings(8))[0].token_ids
        assert answer.prompt_tokens == len(session) + len(ids)
    engine.close(), plain.close()


def test_another_engine_reads_the_ids_of_a_session_anew(tiny, saved):
    """Catches pages that go to the cache of the engine that opened the file."""
    one, other = load(tiny("llama")), load(tiny("llama"), page_size=8)
    session = one.resume(saved)
    assert run(other, session, settings(6))[0][0] == run(one, session, settings(6))[0][0]
    assert (tokens_read(one), tokens_read(other)) == (6, len(session) + 5)


def test_a_session_waits_and_is_preempted_like_any_request(tiny, saved):
    """Catches pages that are filled twice, or too early, when there is no room for all at once."""
    engine = load(tiny("llama"), kv_hbm=24 * PAGE, max_running=4)
    session, plain = engine.resume(saved), load(tiny("llama"))
    prompts = [session, session + [17], [19] * 30, session + [23]]
    right = [d.token_ids for d in plain.generate([list(p) for p in prompts], settings(30))]
    assert [d.token_ids for d in engine.generate(prompts, settings(30))] == right
    assert engine.scheduler.preempted, "there was room for all"


# -- what is refused -----------------------------------------------------------------------------


def test_a_file_cut_anywhere_is_refused(tiny, saved):
    """Catches an end that nobody misses."""
    data, engine = saved.read_bytes(), load(tiny("llama"))
    for size in [*range(0, len(data), 97), *range(20), len(data) - 1]:
        saved.write_bytes(data[:size])
        with pytest.raises(SessionError, match="saved.safetensors"):
            engine.resume(saved)
    saved.write_bytes(data + b"\0")
    with pytest.raises(SessionError):
        engine.resume(saved)
    assert not engine.machine.dram.by_label.get("session")


def test_a_file_with_any_byte_changed_is_refused(tiny, saved):
    """Catches a bit of the header, the ids or the pages that no checksum covers."""
    engine, rng = load(tiny("llama")), Random(1)
    run(engine, PROMPT[:3], settings(3), saved)
    data = bytearray(saved.read_bytes())
    for at in range(0, len(data), 3):
        bit = 1 << rng.randrange(8)
        data[at] ^= bit
        saved.write_bytes(data)
        data[at] ^= bit
        with pytest.raises(SessionError):
            engine.resume(saved)
    saved.write_bytes(data)
    assert engine.resume(saved).tokens == 5


def sealed(path: Path, change: Callable[[dict], object]) -> None:
    """Change what the header says, and make the checksum right."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    head = json.loads(data[8:end])
    facts = json.loads(head["__metadata__"]["session"])
    change(facts)
    head["__metadata__"]["session"] = json.dumps(facts)
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)
    data = len(text).to_bytes(8, "little") + text + data[end:-SUM]
    path.write_bytes(data + crc32(data).to_bytes(SUM, "little"))


@pytest.mark.parametrize(("model", "config", "said"), [
    ("llama", {"dtype": "bfloat16"}, "wanted a session of dtype 'BF16', found dtype 'F32'"),
    ("llama", {"page_size": 8}, "wanted a session of page_size 8, found page_size 4"),
    ("llama3", {}, "wanted a session of rope_scaling"),
    ("qwen3", {}, "wanted a session of head_dim 32, found head_dim 16"),
    ("other", {}, "wanted a session of model"),
])  # fmt: skip
def test_a_session_of_another_engine_is_named(tiny, saved, tmp_path, model, config, said):
    """Catches keys that another model would look at: of another shape, or only of other weights."""
    if model == "other":  # the same shape, one weight trained on
        model, folder = "llama", tmp_path / "other"
        folder.mkdir()
        for file in tiny(model).iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        info = read_header(folder / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
        data = bytearray((folder / "model.safetensors").read_bytes())
        data[info.start : info.end] = bytes(byte ^ 1 for byte in data[info.start : info.end])
        (folder / "model.safetensors").write_bytes(data)
    else:
        folder = tiny(model)
    with pytest.raises(SessionError, match="saved.safetensors; load the engine with that") as error:
        load(folder, **config).resume(saved)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize("change", [
    lambda facts: facts.update(format=2),
    lambda facts: facts.update(ids=[*facts["ids"][:-1], 384]),
    lambda facts: facts.update(ids=[*facts["ids"][:-1], -1]),
    lambda facts: facts.update(ids=facts["ids"][:-1]),
    lambda facts: facts.update(ids="ids"),
    lambda facts: facts.update(tokens=31),
    lambda facts: facts.update(tokens=10**18),
    lambda facts: facts.update(tokens=-1),
    lambda facts: facts.update(chance="no hex"),
    lambda facts: facts.pop("page_size"),
    lambda facts: facts.clear(),
])  # fmt: skip
def test_a_header_that_lies_is_refused(tiny, saved, change):
    """Catches belief in what a file says because its checksum is right."""
    engine = load(tiny("llama"))
    sealed(saved, lambda facts: None)
    assert engine.resume(saved).tokens == 32
    sealed(saved, change)
    with pytest.raises(SessionError, match="^wanted a session"):
        engine.resume(saved)


@pytest.mark.parametrize("content", [None, b"", b"\0" * 12, b"{}" * 40, b"\xff" * 600])
def test_what_is_no_session_is_refused(tiny, tmp_path, content):
    """Catches an error of Python's for a file that is not there, or is something else."""
    path = tmp_path / "s.safetensors"
    if content is not None:
        path.write_bytes(content[:-SUM] + crc32(content[:-SUM]).to_bytes(4, "little"))
    with pytest.raises(SessionError, match="wanted .*, found .*s.safetensors; "):
        load(tiny("llama")).resume(path)


def test_what_was_forgotten_is_not_saved(tiny, tmp_path):
    """Catches a session that would see again what its run did not."""
    engine = load(tiny("llama"))
    engine.kv.forget = drop_oldest(0.5)
    with pytest.raises(SessionError, match="kv.forget"):
        run(engine, PROMPT, settings(3), tmp_path / "s.safetensors")


def test_a_rank_that_has_a_part_saves_and_resumes_nothing(tiny, saved):
    """Catches a session of one rank's heads, and one that the other ranks know nothing of."""
    engine, before = load(tiny("llama")), saved.read_bytes()
    engine._sessions.alone = False
    with pytest.raises(SessionError, match="found one rank's part"):
        engine.resume(saved)
    with pytest.raises(SessionError, match="found one rank's part"):
        run(engine, PROMPT, settings(3), saved)
    assert saved.read_bytes() == before and not engine.machine.dram.by_label.get("session")


# -- the disk ------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_loses_nothing(tiny, saved, monkeypatch, call):
    """Catches a save that ends the run, takes others' answers along, or the session before it."""
    engine, before = load(tiny("llama")), saved.read_bytes()
    other = engine.stream([17, 19], settings(9))
    got = [next(other)]

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    stream, said = engine.stream(PROMPT, settings(3), saved), []
    with monkeypatch.context() as patch, pytest.raises(SessionError, match="No space left"):
        patch.setattr(os, call, full)
        for piece in stream:
            said.append(piece)
    assert len(said) == 3, "the answer was lost"
    assert len([*got, *other]) == 9
    assert saved.read_bytes() == before and len(list(saved.parent.iterdir())) == 1
    assert not engine.machine.dram.by_label.get("session")
    assert len(run(engine, engine.resume(saved), settings(4))) == 4


def test_what_is_left_before_its_end_is_not_saved(tiny, tmp_path):
    """Catches a session of a turn that was abandoned."""
    engine, path = load(tiny("llama")), tmp_path / "s.safetensors"
    stream = engine.stream(PROMPT, settings(9), path)
    next(stream)
    stream.close()
    assert not path.exists()


def test_every_byte_is_in_the_trace(tiny, saved):
    """Catches a transfer that nobody sees: HBM -> DRAM -> SSD, and back."""
    engine = load(tiny("llama"))
    engine.resume(saved)
    session = engine.resume(saved)
    run(engine, session, settings(3), saved)
    moves, size = engine.trace.select(kind="transfer", label="session"), saved.stat().st_size
    assert {move.stage for move in moves} == {"decode"}
    by_link = Counter()
    for move in moves:
        by_link[move.source, move.target] += move.nbytes
    assert by_link["dram", "ssd"] == size and by_link["ssd", "dram"] < 2 * size
    pages = by_link["dram", "hbm"], by_link["hbm", "dram"]
    assert pages == (32 * 768, 35 * 768)
    held = engine.machine.dram.by_label["session"]
    assert held < size
    del session
    assert "session" not in engine.machine.dram.by_label


def test_any_reader_of_safetensors_reads_the_pages(saved):
    """Catches a file that only we can read."""
    from safetensors import safe_open

    with safe_open(saved, "pt") as file:
        pages = [file.get_tensor(f"page.{n}") for n in range(8)]
        assert json.loads(file.metadata()["session"])["tokens"] == 32
    assert {tuple(page.shape) for page in pages} == {(3, 2, 2, 4, 16)}


# -- planted bugs --------------------------------------------------------------------------------


def pages_change_places(patch: pytest.MonkeyPatch) -> None:
    move = Sessions.move

    def turned(self: Sessions, request: int, *more: object) -> None:
        table = self.kv.tables[request]
        self.kv.tables[request] = table[::-1]
        move(self, request, *more)
        self.kv.tables[request] = table

    patch.setattr(Sessions, "move", turned)


def the_last_page_is_left_out(patch: pytest.MonkeyPatch) -> None:
    move = Sessions.move
    patch.setattr(
        Sessions, "move",
        lambda self, r, data, tokens, to, start=0: move(self, r, data, tokens // 4 * 4, to, start),
    )  # fmt: skip


def nothing_is_restored(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Session, "restore", lambda session, request: 0)


def nothing_is_moved_back(patch: pytest.MonkeyPatch) -> None:
    move = Sessions.move
    patch.setattr(
        Sessions, "move",
        lambda self, r, data, n, to, start=0: to == "hbm" or move(self, r, data, n, to, start),
    )  # fmt: skip


def one_token_is_read_again(patch: pytest.MonkeyPatch) -> None:
    restore = Session.restore

    def one_less(session: Session, request: int) -> int:
        restore(session, request)
        session.sessions.kv.length[request] -= 1
        return session.sessions.kv.length[request]

    patch.setattr(Session, "restore", one_less)


def chance_begins_anew(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Session, "chance", property(lambda self: b"", lambda self, value: None), False)


def its_bytes_stay_in_dram(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(module.weakref, "finalize", lambda *arguments: None)


@pytest.mark.usefixtures("unwritten")
@pytest.mark.parametrize("plant", [
    pages_change_places, the_last_page_is_left_out, nothing_is_restored, nothing_is_moved_back,
    one_token_is_read_again, chance_begins_anew, its_bytes_stay_in_dram,
], ids=lambda plant: plant.__name__)  # fmt: skip
def test_each_planted_bug_is_found(plant, tiny, tmp_path, monkeypatch):
    """Catches a law that a wrong session would not break."""
    plant(monkeypatch)
    with pytest.raises((AssertionError, MinillmError)):  # pages that hold anything give no numbers
        goes_on(tiny("llama"), tmp_path / "s.safetensors", prefix_cache=False)
