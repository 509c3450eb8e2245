"""The log: a line for each request, whatever became of it, and never in the way of one."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from pathlib import Path

import pytest

from minillm.config import EngineConfig, SamplingParams
from minillm.engine import log
from minillm.engine.engine import Engine
from minillm.errors import ConfigError
from minillm.machine import Machine

GREEDY = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)


@pytest.fixture
def engine(tiny, tmp_path) -> Engine:
    config = EngineConfig(log=str(tmp_path / "log.jsonl"))
    return Engine.load(tiny("llama"), Machine.here("16 MiB", "cpu"), config)


def lines(engine: Engine, path: str = "") -> list[dict]:
    return [json.loads(line) for line in Path(path or engine.log.path).read_text().splitlines()]


def test_a_line_tells_what_was_asked_for_and_how_it_went(engine):
    """Catches a line that lacks something, tells of another request, or of what was said."""
    engine.generate("Tom", GREEDY)
    sampled = SamplingParams(max_tokens=4, top_k=5, ignore_eos=True, stop="zebra")
    done = engine.generate("Mia put the red key", sampled)[0]
    line = lines(engine)[1]
    settings = {"max_tokens": 4, "top_k": 5, "temperature": 1.0, "stop": ["zebra"], "seed": None}
    assert settings.items() <= line.pop("settings").items()
    again = SamplingParams(max_tokens=4, top_k=5, ignore_eos=True, seed=line.pop("seed"))
    assert engine.generate("Mia put the red key", again)[0].token_ids == done.token_ids
    moved = Counter()
    for move in engine.trace.select(kind="transfer", request=1):
        moved[f"{move.source}->{move.target}"] += move.nbytes * (move.label != "log")
    assert line.pop("bytes") == {link: n for link, n in moved.items() if n}
    began = line.pop("at") - engine.trace.wall
    assert 0 < began < engine.trace.now()
    assert line == {
        "request": 1, "prompt_tokens": done.prompt_tokens, "tokens": 4, "finish_reason": "length",
        "ttft": done.ttft, "tpot": done.tpot,
    }  # fmt: skip
    assert "Mia" not in Path(engine.log.path).read_text()


def test_every_way_to_end_has_its_line(engine):
    """Catches a request that leaves without one, or with two."""
    text = engine.generate("Mia", GREEDY)[0].text
    engine.generate("Mia", SamplingParams(max_tokens=6, temperature=0.0, stop=text[2:4]))
    stream = engine.stream("Mia", GREEDY)
    next(stream)
    stream.close()
    untouched = engine.stream("Tom", GREEDY)
    del untouched
    engine.generate(["Mia", "Tom", "Ann"], GREEDY)
    found = [(line["request"], line["finish_reason"]) for line in lines(engine)]
    ends = [(0, "length"), (1, "stop"), (2, "abort")]
    assert found == [*ends, *((number, "length") for number in (4, 5, 6))]


def test_a_request_that_fails_has_its_line(engine, monkeypatch):
    """Catches a log of happy ends."""
    monkeypatch.setattr(engine.kv, "lost", {0: log_error()})
    with pytest.raises(ConfigError):
        engine.generate("Mia", GREEDY)
    assert [(line["finish_reason"], line["ttft"], line["tpot"]) for line in lines(engine)] == [
        ("error", None, None)
    ]


def log_error() -> ConfigError:
    return ConfigError("wanted a page, found none; this is a test")


def test_lines_are_bytes_to_ssd(engine):
    """Catches a log that the trace does not see."""
    engine.generate(["Mia", "Tom"], GREEDY)
    moves = engine.trace.select(kind="transfer", target="ssd")
    assert {(move.source, move.stage, move.label) for move in moves} == {("dram", "decode", "log")}
    assert sum(move.nbytes for move in moves) == os.path.getsize(engine.log.path)


def test_a_full_log_begins_anew_and_keeps_the_one_before(engine, monkeypatch):
    """Catches a log that fills the disk, and a line that is cut at the change."""
    monkeypatch.setattr(log, "MOST", 1500)
    for _ in range(9):
        engine.generate("Mia", GREEDY)
    now, before = lines(engine), lines(engine, engine.log.path + ".1")
    numbers = [line["request"] for line in [*before, *now]]
    assert numbers == list(range(9))[-len(numbers) :] and len(before) > 1
    assert all(os.path.getsize(engine.log.path + end) <= 1500 for end in ("", ".1"))


@pytest.mark.parametrize("call", ["open", "write", "replace"])
def test_a_full_disk_stops_nobody(engine, monkeypatch, call):
    """Catches a run that ends for want of a log, half a line, and silence about what is missing."""
    right = engine.generate("Mia", GREEDY)[0].token_ids
    whole = Path(engine.log.path).read_bytes()

    class Full:
        """A file on a disk that takes ten bytes more."""

        def __init__(self, *arguments: object, **more: object) -> None:
            if call == "open":
                raise OSError(28, "No space left on device")
            self.file = open(*arguments, **more)  # noqa: SIM115

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *error: object) -> None:
            self.file.close()

        def write(self, data: bytes) -> int:
            return self.file.write(data[:10])

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

    with monkeypatch.context() as patch:
        if call == "replace":
            patch.setattr(log, "MOST", 10)
            patch.setattr(os, "replace", lambda *names: (_ for _ in ()).throw(PermissionError()))
        else:
            patch.setattr(log, "open", Full, raising=False)
        assert engine.generate("Mia", GREEDY)[0].token_ids == right
        assert engine.log.lost == 1
        assert Path(engine.log.path).read_bytes() == whole
    engine.generate("Mia", GREEDY)
    assert [line["request"] for line in lines(engine)] == [0, 2]


def test_engines_may_share_a_file(tiny, tmp_path):
    """Catches lines of two writers that are mixed."""
    config = EngineConfig(log=str(tmp_path / "log.jsonl"))
    folder = tiny("llama")
    engines = [Engine.load(folder, Machine.here("16 MiB", "cpu"), config) for _ in range(2)]
    threads = [threading.Thread(target=e.generate, args=(["Mia"] * 9, GREEDY)) for e in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(line["request"] for line in lines(engines[0])) == sorted([*range(9)] * 2)


def test_no_log_unless_it_is_asked_for(tiny, tmp_path, monkeypatch):
    """Catches a file that nobody wanted."""
    monkeypatch.chdir(tmp_path)
    engine = Engine.load(tiny("llama"), Machine.here("16 MiB", "cpu"))
    engine.generate("Mia", GREEDY)
    assert not list(tmp_path.iterdir()) and not engine.trace.select(label="log")
    with pytest.raises(ConfigError, match="log to be the name of a file"):
        EngineConfig(log="")
