"""What is this machine, is everything installed, and which track of the course fits it?

Written so that it runs where something is missing: torch and the package's own modules are
imported inside the checks that need them.
"""

from __future__ import annotations

import platform
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("torch", "tokenizers", "safetensors", "numpy", "matplotlib", "jupyterlab", "ipykernel",
          "ipywidgets", "anywidget")  # fmt: skip
SET_UP = "run `make lab`, or `python -m pip install -r requirements.txt -e .`"


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `do` is empty if it is well, and else says what would help."""

    name: str
    found: str
    do: str = ""
    needed: bool = True  # False: the course runs without it


def doctor() -> int:
    """Print what was found and, last, "ready" or what to do; 0 if ready, else 1."""
    missing = []
    for finding in (finding for look in CHECKS for finding in _looked(look)):
        mark = "ok" if not finding.do else "MISSING" if finding.needed else "note"
        advice = f": {finding.do}" if finding.do else ""
        print(f"{mark:<8} {finding.name:<10} {finding.found}{advice}")
        missing += [finding.do] * (mark == "MISSING")
    print(f"track    {_track()}", f"not ready: {missing[0]}" if missing else "ready", sep="\n")
    return 1 if missing else 0


def _looked(look: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return look()
    except Exception as error:  # whatever is broken here: say so, and look at the rest
        name = look.__name__.strip("_")
        return [Finding(name, f"{type(error).__name__}: {error}", SET_UP)]


def _python() -> list[Finding]:
    good = (3, 10) <= sys.version_info[:2] <= (3, 13)
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return [Finding("python", found, "" if good else "install Python 3.10 to 3.13")]


def _packages() -> list[Finding]:
    """Installed against pinned; another version than the pin's is only worth a note."""
    pins = ROOT / "requirements.txt"
    text = pins.read_text(encoding="utf-8") if pins.is_file() else ""
    # Some pins are for old Pythons only, others for the rest: `NAME==VERSION; python_version < …`.
    found = re.findall(r"^([\w.-]+)==([\w.]+)(?:; python_version (<|>=))?", text, re.MULTILINE)
    other = ">=" if sys.version_info < (3, 11) else "<"
    pinned = {name: version for name, version, sign in found if sign != other}
    findings = []
    for name in {**dict.fromkeys(NEEDED), **pinned}:
        try:
            found, want = metadata.version(name), pinned.get(name)
        except metadata.PackageNotFoundError:
            findings.append(Finding(name, "not installed", SET_UP, needed=name in NEEDED))
            continue
        if want and found.split("+")[0] != want:
            findings.append(Finding(name, found, f"{want} is what was tested", needed=False))
    return findings or [Finding("packages", f"all {len(pinned or NEEDED)} as pinned")]


def _machine() -> list[Finding]:
    from minillm.machine import Machine

    machine = Machine.here()
    dram = machine.dram.capacity + (machine.hbm.capacity if machine.emulated else 0)
    small = dram < 2 * 2**30
    do = "close other programs: the course wants 2 GiB free" if small else ""
    return [Finding("machine", machine.describe(), do, needed=False)]


def _limits() -> list[Finding]:
    from minillm.machine.host import limits

    found = limits()
    return [Finding("limits", "; ".join(found) or "none: all cores, all free DRAM", needed=False)]


def _disk() -> list[Finding]:
    try:
        free = shutil.disk_usage(ROOT).free
    except OSError as error:  # not known is not full
        return [Finding("disk", f"free space unknown ({error.strerror})")]
    do = "free 1 GB on this disk: caches and recordings go there" if free < 10**9 else ""
    return [Finding("disk", f"{free / 1e9:.0f} GB free", do)]


def _kernels() -> list[Finding]:
    """Whether this machine's compiler makes the C kernels; without them torch computes, slower."""
    try:
        from minillm.compile import NoLibrary, find_compiler, library
        from minillm.model.kernels import SOURCE
    except ImportError:
        return []
    try:
        library(SOURCE)
        return [Finding("kernels", f"in C, by {Path(find_compiler()[0]).name}")]
    except NoLibrary as error:
        advice = "install gcc or clang for faster decoding"
        return [Finding("kernels", f"none: {error}", advice, needed=False)]


def _model() -> list[Finding]:
    """The shipped model: its config, its tokenizer, and every shard's header and length."""
    from minillm.config import ModelConfig
    from minillm.errors import MinillmError
    from minillm.load.checkpoint import Checkpoint
    from minillm.tokens.tokenizer import Tokenizer

    folder = ROOT / "data" / "town"
    try:
        ModelConfig.from_pretrained(folder)
        Tokenizer.from_pretrained(folder)
        checkpoint = Checkpoint.open(folder)
    except MinillmError as error:
        return [Finding("model", str(error), "fetch data/town again: `git checkout data/town`")]
    return [Finding("model", f"data/town, {checkpoint.nbytes / 1e6:.1f} MB of weights")]


CHECKS = (_python, _packages, _machine, _limits, _disk, _kernels, _model)


def _track() -> str:
    try:
        import torch

        cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    except ImportError:
        cards = 0
    tracks = ("laptop CPU: HBM is emulated in DRAM, everything runs",
              "one GPU: HBM and copies are real",
              f"several GPUs ({cards}): ranks on cards of their own")  # fmt: skip
    return tracks[min(cards, 2)]
