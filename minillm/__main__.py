"""The command line: `python -m minillm generate PROMPT`, `evaluate`, `replay`, `make-checkpoint`,
`bench`, `doctor`.

Exit status: 0 all is well, 1 the doctor found something missing, 2 an error (its message is on
standard error), 130 interrupted, 143 ended by SIGTERM.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import FrameType

from minillm.errors import ConfigError, MinillmError
from minillm.process import hush, open_what_is_closed

MODEL = "data/town"


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    open_what_is_closed()
    with _ended_as_by_a_key() as signals:
        try:
            try:
                return _run(_parser().parse_args(arguments))
            finally:
                sys.stdout.flush()  # here, where it can still be told that nobody takes it
        except KeyboardInterrupt:
            return 128 + (signals or [signal.SIGINT])[0]
        except BrokenPipeError:  # whoever read our output has seen enough
            return hush(0)
        except (MinillmError, OSError) as error:
            with suppress(OSError):
                print(f"minillm: {error}", file=sys.stderr, flush=True)
            return hush(2)


def _run(options: argparse.Namespace) -> int:
    commands = {
        "generate": _generate, "evaluate": _evaluate, "replay": _replay, "bench": _bench,
        "make-checkpoint": _make_checkpoint, "doctor": _doctor,
    }  # fmt: skip
    return commands[options.command](options)


@contextmanager
def _ended_as_by_a_key() -> Iterator[list[int]]:
    """Whoever ends us by SIGTERM or closes the terminal gets what Ctrl-C gets: the trace is saved,
    and what is temporary goes. Yields the list of such signals as they come."""
    came: list[int] = []

    def end(number: int, frame: FrameType | None) -> None:
        came.append(number)
        key = signal.getsignal(signal.SIGINT)  # a load holds it back until nothing is half done
        (key if callable(key) else signal.default_int_handler)(signal.SIGINT, frame)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    ours = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        ours = []  # Python hands signals to that one alone
    for number in ours:
        signal.signal(number, end)
    try:
        yield came
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _doctor(options: argparse.Namespace) -> int:
    from minillm.tools.doctor import doctor

    return doctor()


def _generate(options: argparse.Namespace) -> int:
    from minillm import Engine, ParallelConfig, SamplingParams

    params = SamplingParams(options.max_tokens, options.temperature, seed=options.seed)
    nodes = int(os.environ.get("GROUP_WORLD_SIZE", 1))  # torchrun says so
    parallel = ParallelConfig(options.tp, options.pp, nodes)
    folder = Path(options.trace or ".").resolve().parent
    if not folder.is_dir():
        raise ConfigError(f"wanted a folder for the trace, found none at {folder}; make it first")
    if hasattr(sys.stdout, "reconfigure"):  # a terminal that lacks a character shows a "?"
        sys.stdout.reconfigure(errors="replace")
    engine = Engine.load(options.model, parallel=parallel)
    if engine.rank:
        engine.follow()
        return _leave()
    try:
        for piece in engine.stream(options.prompt, params):
            print(piece.text, end="", flush=True)
    finally:
        if options.tp * options.pp > 1:
            engine.close()  # the other ranks too, and their traces come
        if options.trace:  # of an interrupted run too
            engine.trace.save(options.trace)
    if sys.stdout.isatty():
        print()  # for the shell's prompt; into a file or pipe goes the text and nothing else
    return _leave()


def _leave() -> int:
    """The status of a rank that is done: the threads that joined it to others end before Python
    does. With them at work the process may abort; torchrun then waits minutes on the other node."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from minillm import Engine
    from minillm.kv import drop_oldest
    from minillm.tools.evaluate import beyond_half, evaluate, read_lines

    lines = read_lines(options.data)
    engine = Engine.load(options.model)
    began = time.perf_counter()
    scores = evaluate(engine, lines, progress=_bar("skills"))
    print(scores.table())
    if far := beyond_half(engine, lines):
        control = evaluate(engine, far, forget=drop_oldest(0.5), progress=_bar("control"))
        kept = {result.line: result.right for result in scores}
        print(f"\nrecall of facts in the older half: {sum(map(kept.get, far)) / len(far):.1%}")
        print(f"with that half of the KV cache dropped: {control}")
    print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)
    return 0


def _replay(options: argparse.Namespace) -> int:
    from minillm.charts.page import save_page
    from minillm.trace import Trace

    save_page(Trace.load(options.run), options.html)
    print(f"{options.html} plays the run in any browser, without a network")
    return 0


def _bench(options: argparse.Namespace) -> int:
    bench = import_module(f"minillm.tools.bench_{options.what}").bench
    more = {"shape": options.shape, "packages": options.llama} if options.what == "decode" else {}
    print(bench(options.model, options.rounds, _bar("rounds"), **more))
    return 0


def _make_checkpoint(options: argparse.Namespace) -> int:
    from minillm.tools.make_checkpoint import make_checkpoint

    nbytes = make_checkpoint(options.shape, options.out, tell=_bar("MB", 10**6))
    print(f"{options.out}: {nbytes / 1e9:.2f} GB of random weights, shaped as {options.shape}")
    return 0


def _bar(name: str, unit: int = 1):
    """A progress bar on standard error; into a file or pipe goes only the full one."""

    def show(done: int, total: int) -> None:
        filled, live = 30 * done // total, sys.stderr.isatty()
        line = f"{name:<8} {'█' * filled}{'·' * (30 - filled)} {done // unit}/{total // unit}"
        if live or done == total:
            print("\r" * live + line, end="\n" * (done == total), file=sys.stderr, flush=True)

    return show


def _parser() -> argparse.ArgumentParser:
    from minillm.config.shapes import SHAPES

    parser = argparse.ArgumentParser(
        prog="python -m minillm",
        description="A language model on your machine, from the files on SSD to the text.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    generate = commands.add_parser("generate", help="continue a text, printed as it comes")
    generate.add_argument("prompt", metavar="PROMPT")
    generate.add_argument("--max-tokens", type=int, default=64, metavar="N", help="default: 64")
    generate.add_argument(
        "--temperature", type=float, default=0.0, metavar="T",
        help="0, the default, always takes the likeliest token",
    )  # fmt: skip
    generate.add_argument("--seed", type=int, metavar="S", help="same seed, same text")
    generate.add_argument(
        "--tp", type=_positive, default=1, metavar="N", help="ranks that share each layer; "
        "start them: torchrun --nproc-per-node N -m minillm generate ...",
    )  # fmt: skip
    generate.add_argument("--pp", type=_positive, default=1, metavar="N", help="stages of layers")
    generate.add_argument("--trace", metavar="FILE", help="save what happened, for Perfetto")
    score = commands.add_parser("evaluate", help="the model's skills, as exact match")
    score.add_argument("--data", default="data/eval/skills.jsonl", metavar="FILE")
    again = commands.add_parser("replay", help="a recorded run as a page that plays it")
    again.add_argument("run", metavar="RUN", help="a file that trace.save or --trace wrote")
    again.add_argument("--html", required=True, metavar="FILE", help="the page to write")
    _bench_parser(commands.add_parser("bench", help="what a part of this package costs or gains"))
    make = commands.add_parser("make-checkpoint", help="random weights of a real model's shape")
    make.add_argument("--shape", required=True, choices=list(SHAPES))
    make.add_argument("--out", required=True, metavar="DIR", help="a new or an empty folder")
    for command in (generate, score):
        command.add_argument(
            "--model", default=MODEL, metavar="DIR",
            help=f"a Llama-family model in Hugging Face layout; default: {MODEL}",
        )  # fmt: skip
    commands.add_parser("doctor", help="is everything here? what can this machine do?")
    return parser


def _bench_parser(bench: argparse.ArgumentParser) -> None:
    bench.add_argument(
        "what", choices=["views", "load", "stream", "decode", "offload", "collectives"],
        help="views: live views, as time of a decode; load: weights from SSD to HBM, beside the "
        "disk's ceiling; stream: a model larger than HBM; decode: tokens beside other engines; "
        "offload: a context larger than HBM; collectives: a ring by hand beside Gloo's. Without "
        "--model, load, stream and offload make a random one, of up to gigabytes, and delete it",
    )  # fmt: skip
    bench.add_argument("--rounds", type=_positive, default=5, metavar="N", help="default: 5")
    bench.add_argument("--model", metavar="DIR", help="a model in Hugging Face layout")
    bench.add_argument(
        "--shape", default="town", choices=["town", "135m", "360m", "1b"],
        help="decode: the model, or random weights of a real one's shape; default: town",
    )  # fmt: skip
    bench.add_argument(
        "--llama", metavar="FOLDER", help="decode: a folder of packages that has llama_cpp and "
        "gguf, as the site-packages of another environment",
    )  # fmt: skip


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"wanted a number above 0, found {number}")
    return number


if __name__ == "__main__":
    sys.exit(main())
