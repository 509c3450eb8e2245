"""The command line: what goes to standard output, what to standard error, and the exit status."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from minillm import Engine, Machine, SamplingParams, Trace
from minillm.__main__ import _bar, main
from minillm.tools import doctor

ROOT = Path(__file__).parent.parent
PROMPT = "Mia put the red key"
posix = pytest.mark.skipif(os.name == "nt", reason="signals and pipes of POSIX")


@pytest.fixture
def model(tiny) -> str:
    return str(tiny("llama3"))


def expected(model: str, **settings) -> str:
    engine = Engine.load(model, Machine.here("64 MiB", "cpu"))
    return engine.generate(PROMPT, SamplingParams(**settings))[0].text


def test_generate_prints_the_text_and_nothing_else(model, capfd):
    """Catches a log line, a banner or an extra newline on standard output."""
    assert main(["generate", PROMPT, "--model", model, "--max-tokens", "9"]) == 0
    out, err = capfd.readouterr()
    assert out == expected(model, max_tokens=9, temperature=0.0)
    assert err == ""


def test_generate_passes_its_settings_on(model, capfd):
    """Catches an option that is parsed and then forgotten."""
    options = ["--max-tokens", "9", "--temperature", "0.9", "--seed", "3"]
    assert main(["generate", PROMPT, "--model", model, *options]) == 0
    assert capfd.readouterr().out == expected(model, max_tokens=9, temperature=0.9, seed=3)


def test_generate_flushes_each_piece(model, monkeypatch):
    """Catches text that is buffered: it would come all at once, when the run is over."""

    class Screen(io.StringIO):
        flushed: list[str] = []

        def flush(self):
            self.flushed.append(self.getvalue())

    monkeypatch.setattr(sys, "stdout", screen := Screen())
    assert main(["generate", PROMPT, "--model", model, "--max-tokens", "9"]) == 0
    assert len(set(screen.flushed)) > 3


def test_generate_saves_its_trace(model, tmp_path, capfd):
    """Catches a trace that is saved before the run, or without it."""
    file = tmp_path / "run.json"
    options = ["--model", model, "--max-tokens", "4", "--trace", str(file)]
    assert main(["generate", PROMPT, *options]) == 0
    trace = Trace.load(file)
    shown = "".join(event.detail for event in trace.select(name="detokenize"))
    assert shown == capfd.readouterr().out
    assert len(trace.select(name="decode step")) == 3
    assert json.loads(file.read_text())["traceEvents"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", ""], "empty"),
        (["generate", PROMPT, "--max-tokens", "0"], "max_tokens"),
        (["generate", PROMPT, "--max-tokens", "9999"], "max_tokens="),
        (["generate", PROMPT, "--temperature", "-1"], "temperature"),
        (["generate", PROMPT, "--temperature", "nan"], "temperature"),
        (["generate", PROMPT, "--model", "no/such/folder"], "no/such/folder"),
        (["generate", PROMPT, "--trace", "no/such/folder/run.json"], "folder for the trace"),
        (["generate", "half a pair: \ud83d"], "no UTF-8 form"),
        (["evaluate", "--data", "no/such/file"], "no/such/file"),
    ],
)
def test_an_error_is_one_message_and_status_2(model, capfd, arguments, said):
    """Catches a traceback, a message on standard output, or a status of 0."""
    if "--model" not in arguments:
        arguments = [*arguments, "--model", model]
    assert main(arguments) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert said in err and err.count("\n") == 1 and err.startswith("minillm: wanted")


@pytest.mark.parametrize("arguments", [[], ["sing"], ["generate"], ["evaluate", "--batch", "0"]])
def test_a_wrong_command_is_status_2(arguments, capfd):
    """Catches a usage error that passes for success."""
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert "usage:" in capfd.readouterr().err


def test_an_interrupt_is_quiet_and_keeps_the_trace(model, monkeypatch, capfd, tmp_path):
    """Catches a traceback on Ctrl-C, and the loss of the trace one wanted to see."""
    step = Engine.step

    def interrupted(self):
        if self.steps == 2:
            raise KeyboardInterrupt
        return step(self)

    monkeypatch.setattr(Engine, "step", interrupted)
    file = str(tmp_path / "run.json")
    assert main(["generate", PROMPT, "--model", model, "--trace", file]) == 130
    assert capfd.readouterr().err == ""
    assert len(Trace.load(file).select(name="sample")) == 2


SLOWLY = """
import sys, time
from minillm import Engine
from minillm.__main__ import _bar, main
step = Engine.step
Engine.step = lambda engine: (time.sleep(0.03), step(engine))[1]
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("live", [True, False])
def test_a_bar_moves_on_a_terminal_only(live, monkeypatch):
    """Catches a log file with a hundred bars in it, and a terminal that shows nothing."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: live)
    for done in range(4):
        _bar("rounds")(done, 3)
    said = sys.stderr.getvalue()
    assert said.count("rounds") == (4 if live else 1) and said.count("\r") == 4 * live
    assert said.count("\n") == 1 and said.endswith("3/3\n")


@posix
@pytest.mark.parametrize(
    ("end", "status"), [("Ctrl-C", 130), ("SIGTERM", 143), ("SIGHUP", 129), ("closed pipe", 0)]
)
def test_whatever_ends_a_run_is_quiet_and_keeps_the_trace(model, tmp_path, end, status):
    """Catches a traceback at interpreter exit, which only a process of its own shows, and the
    trace of a run that a scheduler or a closed terminal ended."""
    command = [sys.executable, "-c", SLOWLY, "generate", PROMPT, "--model", model]
    command += ["--max-tokens", "200", "--temperature", "1", "--seed", "1"]
    command += ["--trace", str(tmp_path / "run.json")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": ROOT}
    with subprocess.Popen(command, **pipes) as process:
        assert process.stdout.read(1)
        if end == "closed pipe":
            process.stdout.close()
        else:
            process.send_signal(getattr(signal, end.replace("Ctrl-C", "SIGINT")))
        assert process.stderr.read() == b""
        assert process.wait() == status
    assert 0 < len(Trace.load(tmp_path / "run.json").select(name="sample")) < 200
    assert os.listdir(tmp_path) == ["run.json"]


@posix
@pytest.mark.parametrize("ignored", [True, False])
def test_a_signal_ends_a_run_whose_keyboard_is_ignored(model, tmp_path, ignored):
    """Catches a job in the background, where Ctrl-C is ignored, that SIGTERM cannot end; and one
    that was told to ignore a closed terminal (nohup) and ends with it."""
    code = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    if ignored:
        code += "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    command = [sys.executable, "-c", code + SLOWLY, "generate", PROMPT, "--model", model]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": ROOT}
    with subprocess.Popen([*command, "--max-tokens", "20"], **pipes) as process:
        assert process.stdout.read(1)
        process.send_signal(signal.SIGHUP if ignored else signal.SIGTERM)
        assert process.stderr.read() == b""
        assert process.wait() == (0 if ignored else 143)


COMMANDS = {
    "help": ["--help"], "doctor": ["doctor"], "generate": ["generate", PROMPT, "--max-tokens", "3"],
    "replay": ["replay", "run.json", "--html", "run.html"], "wrong": ["generate", ""],
}  # fmt: skip
CLOSE = {"gone": "", "closed": ">&-", "all closed": "<&- >&- 2>&-", "full": ">/dev/full"}


@posix
@pytest.mark.parametrize(("name", "how", "status"), [
    ("help", "gone", 0), ("doctor", "gone", 0), ("generate", "gone", 0), ("replay", "gone", 0),
    ("generate", "closed", 0), ("replay", "closed", 0), ("wrong", "closed", 2),
    ("wrong", "all closed", 2), ("doctor", "full", 2), ("generate", "full", 2),
])  # fmt: skip
def test_where_nobody_takes_what_is_printed_the_end_is_quiet(tiny, tmp_path, name, how, status):
    """Catches a traceback of Python's own at exit, `None` for a stream, and an error message that
    lands in standard output, or in a file that has got its number."""
    if how == "full" and not os.path.exists("/dev/full"):
        pytest.skip("needs Linux's /dev/full")
    arguments = list(COMMANDS[name])
    if name == "replay":
        engine = Engine.load(tiny("llama3"), Machine.here("64 MiB", "cpu"))
        engine.generate(PROMPT, SamplingParams(max_tokens=2))
        engine.trace.save(tmp_path / "run.json")
    if arguments[0] == "generate":
        arguments += ["--model", str(tiny("llama3"))]
    read, write = os.pipe()
    os.close(read)  # whoever would read is gone before anything is printed
    shell = ["sh", "-c", f'exec "$@" {CLOSE[how]}', "sh", sys.executable, "-m", "minillm"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    pipes = {"stdout": write, "stderr": subprocess.PIPE, "cwd": tmp_path, "env": env}
    done = subprocess.run([*shell, *arguments], **pipes)
    os.close(write)
    assert done.returncode == status, done.stderr
    told = status == 2 and how != "all closed"  # an error, and somebody to tell it to
    assert done.stderr.count(b"\n") == told and done.stderr.startswith(b"minillm: " * told)
    written = {file.name: file.read_bytes()[:1] for file in tmp_path.iterdir()}
    assert written == ({"run.json": b"{", "run.html": b"<"} if name == "replay" else {})


def test_evaluate_prints_a_table_and_its_control(tiny, tmp_path, capfd):
    """Catches progress on standard output, and a control that is forgotten."""
    engine = Engine.load(tiny("llama3"), Machine.here("64 MiB", "cpu"))
    answer = engine.generate(PROMPT, SamplingParams(max_tokens=4, temperature=0.0))[0].text[:3]
    lines = [
        {"skill": "recall", "prompt": PROMPT, "answer": answer, "distance": 5},
        {"skill": "sums", "prompt": "What is 1 plus 2?", "answer": " 1 plus 2", "distance": 0},
    ]
    file = tmp_path / "skills.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    assert main(["evaluate", "--model", str(tiny("llama3")), "--data", str(file)]) == 0
    out, err = capfd.readouterr()
    assert [row.split() for row in out.splitlines()[:3]] == [
        ["skill", "distance", "n", "exact", "match"],
        ["recall", "all", "1", "100.0%"],
        ["sums", "all", "1", "0.0%"],
    ]
    assert "with that half of the KV cache dropped" in out
    assert "2/2" in err and "█" in err and "█" not in out


# -- the doctor -------------------------------------------------------------------------------


def test_the_doctor_is_ready_or_says_what_to_do(capfd):
    """Catches a last line or a status that contradicts the findings."""
    status = main(["doctor"])
    lines = capfd.readouterr().out.splitlines()
    names = [line.split()[1] for line in lines[:-1]]
    for name in ("python", "machine", "disk", "kernels", "model"):
        assert name in names
    missing = [line for line in lines if line.startswith("MISSING")]
    assert status == (1 if missing else 0)
    assert lines[-1] == "ready" if not missing else lines[-1].startswith("not ready: ")


def test_the_doctor_finds_what_is_broken(monkeypatch, capfd, tmp_path):
    """Catches a doctor that dies of what it should report."""

    def broken():
        raise ImportError("No module named 'torch'")

    monkeypatch.setattr(doctor, "ROOT", tmp_path)  # no pins, no model
    monkeypatch.setattr(doctor, "CHECKS", (broken, doctor._packages, doctor._model))
    assert doctor.doctor() == 1
    out = capfd.readouterr().out
    assert "MISSING  broken     ImportError: No module named 'torch'" in out
    (model,) = (line for line in out.splitlines() if line.startswith("MISSING  model"))
    assert "CheckpointError" in model or "ConfigError" in model
    assert "make lab" not in model, "an advice that does not help"
    assert out.splitlines()[-1].startswith("not ready: run `make lab`")


def test_the_doctor_runs_without_torch():
    """Catches an import at the top that keeps the doctor from saying what is missing."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from minillm.__main__ import main; sys.exit(main(['doctor']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "MISSING  machine" in done.stdout and done.stderr == ""


def test_a_pin_that_differs_is_a_note_and_a_package_that_lacks_is_missing(monkeypatch, tmp_path):
    """Catches a doctor that stops people over a patch version, or passes an absent package."""
    (tmp_path / "requirements.txt").write_text("# pins\ntorch==0.0.1\nnosuchpackage==1.0\n")
    monkeypatch.setattr(doctor, "ROOT", tmp_path)
    monkeypatch.setattr(doctor, "NEEDED", ("torch", "nosuchneeded"))
    found = {finding.name: finding for finding in doctor._packages()}
    assert "0.0.1 is what was tested" in found["torch"].do and not found["torch"].needed
    assert found["nosuchneeded"].needed and not found["nosuchpackage"].needed


def test_the_doctor_looks_where_the_course_lies():
    """Catches a doctor that was moved a folder down and finds neither the pins nor the model."""
    assert (doctor.ROOT / "requirements.txt").is_file() and (doctor.ROOT / "data" / "town").is_dir()
