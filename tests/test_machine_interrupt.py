"""Ctrl-C at the worst moments: it waits for a better one, comes then, and leaves nothing behind."""

from __future__ import annotations

import signal
import threading

import pytest
from test_load_checkpoint import BF16, on_meta, random_tensors, save
from test_load_stream import left_behind

from minillm.config import EngineConfig, SamplingParams
from minillm.engine.engine import Engine
from minillm.load import Checkpoint, checkpoint, load, place, readers, stream
from minillm.machine import Tier
from minillm.machine.interrupt import breathe, held
from minillm.machine.prefetch import Prefetch

pytestmark = pytest.mark.skipif(
    signal.getsignal(signal.SIGINT) is not signal.default_int_handler, reason="no Ctrl-C here"
)
WORST = [
    (Tier, "reserve"), (checkpoint, "Arena"), (readers, "open_direct"),
    (stream, "make_staging"), (stream, "ThreadPoolExecutor"), (place, "move"),
    (checkpoint, "assign"),
]  # fmt: skip


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def pressing(monkeypatch, where: object, name: str, when: str) -> list[str]:
    """Have Ctrl-C pressed once, before or after `where.name` does its work."""
    real, pressed = getattr(where, name), []

    def patched(*arguments, **named):
        if when == "before" and not pressed:
            pressed.append(name)
            press()
        result = real(*arguments, **named)
        if when == "after" and not pressed:
            pressed.append(name)
            press()
        return result

    monkeypatch.setattr(where, name, patched)
    return pressed


@pytest.mark.parametrize(("where", "name"), WORST, ids=[name for _, name in WORST])
@pytest.mark.parametrize("when", ["before", "after"])
def test_ctrl_c_at_the_worst_moment_leaves_nothing(
    tmp_path, machine, monkeypatch, where, name, when
):
    """Would catch memory that nobody gives back, a lost file, and a model with half its weights."""
    whole, model = Checkpoint.open(save(tmp_path, random_tensors())), on_meta()
    with monkeypatch.context() as patch:
        pressed = pressing(patch, where, name, when)
        with pytest.raises(KeyboardInterrupt):
            load(model, whole, machine, BF16, "direct")
    assert pressed and not left_behind(machine)
    assert all(parameter.is_meta for parameter in model.parameters())
    load(model, whole, machine, BF16, "direct").close()


@pytest.mark.parametrize("home", ["dram", "ssd"])
@pytest.mark.parametrize("where", ["ask", "take"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_streamed_pass_that_ctrl_c_ended_leaves_the_next_one_right(
    tiny, machine, monkeypatch, home, where, when
):
    """Would catch a layer that computes in the slot into which the next one arrives."""
    greedy = SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True)
    config = EngineConfig(weights="stream", stream_from=home)
    engine = Engine.load(tiny("llama"), machine, config)
    right = engine.generate("Mia", greedy)[0].token_ids
    with monkeypatch.context() as patch:
        pressed = pressing(patch, Prefetch, where, when)
        with pytest.raises(KeyboardInterrupt):
            engine.generate("Mia", greedy)
    assert pressed
    assert [engine.generate("Mia", greedy)[0].token_ids for _ in range(3)] == [right] * 3
    engine.close()
    assert not left_behind(machine)


def test_the_first_press_waits_and_the_second_does_not():
    """Would catch a disk that hangs, and takes the notebook along."""
    done = []
    with pytest.raises(KeyboardInterrupt), held():
        press()
        done.append("went on")
        breathe()
        done.append("never")
    with pytest.raises(KeyboardInterrupt), held():
        press()
        done.append("again")
        press()
        done.append("never")
    with pytest.raises(KeyboardInterrupt), held(), held():
        press()
        done.append("within")
    assert done == ["went on", "again", "within"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    breathe()  # nothing is left of it


def test_other_handlers_and_threads_keep_their_ways():
    """Would catch a program's own handler that is lost, and a thread that takes the press."""
    heard = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        with held():
            press()
            thread = threading.Thread(target=lambda: [breathe(), heard.append("thread")])
            thread.start()
            thread.join()
            assert heard == ["thread"]
        assert heard == ["thread", signal.SIGINT]
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with held():
            press()
    finally:
        signal.signal(signal.SIGINT, before)
