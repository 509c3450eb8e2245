"""What is this machine, and is everything installed?

Written so that it runs where something is missing: torch and the package's own modules are
imported inside the checks that need them.
"""

from __future__ import annotations

import platform
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("torch", "tokenizers", "safetensors", "numpy", "matplotlib", "jupyterlab", "ipykernel",
          "ipywidgets", "anywidget")  # fmt: skip
SET_UP = "run `make lab`, or `python -m pip install -r requirements.txt -e .`"


class Finding(NamedTuple):
    """One thing looked at. `do` is empty if it is well, and else says what would help."""

    name: str
    found: str
    do: str = ""
    needed: bool = True  # False: the course runs without it


def doctor() -> int:
    """Print what was found and, last, "ready" or what to do; 0 if ready, else 1."""
    missing = []
    for look in CHECKS:
        try:
            findings = look()
        except Exception as error:  # whatever is broken here: say so, and look at the rest
            name, do = look.__name__.strip("_"), "mend that"  # our own errors say how
            do = SET_UP if isinstance(error, ImportError) else do
            findings = [Finding(name, f"{type(error).__name__}: {error}", do)]
        for finding in findings:
            mark = "ok" if not finding.do else "MISSING" if finding.needed else "note"
            advice = f": {finding.do}" if finding.do else ""
            print(f"{mark:<8} {finding.name:<10} {finding.found}{advice}")
            missing += [finding.do] * (mark == "MISSING")
    print(f"not ready: {missing[0]}" if missing else "ready")
    return 1 if missing else 0


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
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            findings.append(Finding(name, "not installed", SET_UP, needed=name in NEEDED))
            continue
        want = pinned.get(name)
        if want not in (None, found.split("+")[0]):
            findings.append(Finding(name, found, f"{want} is what was tested", needed=False))
    return findings or [Finding("packages", f"all {len(pinned or NEEDED)} as pinned")]


def _machine() -> list[Finding]:
    from minillm.machine import Machine

    machine = Machine.here()
    small = machine.dram.capacity + machine.emulated * machine.hbm.capacity < 2 * 2**30
    do = "close other programs: the course wants 2 GiB free" if small else ""
    return [Finding("machine", machine.describe(), do, needed=False)]


def _limits() -> list[Finding]:
    from minillm.machine.host import limits

    return [Finding("limits", "; ".join(limits()) or "none: all cores, all free DRAM")]


def _disk() -> list[Finding]:
    from minillm.machine.disk import free_disk

    free = free_disk(ROOT)
    do = "free 1 GB on this disk: caches and recordings go there" if 0 < free < 10**9 else ""
    return [Finding("disk", f"{free / 1e9:.0f} GB free" if free else "free space unknown", do)]


def _kernels() -> list[Finding]:
    """Whether this machine's compiler makes the C kernels; without them torch computes, slower."""
    from minillm.compile import NoLibrary, find_compiler, library
    from minillm.model.kernels import SOURCE

    try:
        library(SOURCE)
        return [Finding("kernels", f"in C, by {Path(find_compiler()[0]).name}")]
    except NoLibrary as error:
        advice = "install gcc or clang for faster decoding"
        return [Finding("kernels", f"none: {error}", advice, needed=False)]


def _model() -> list[Finding]:
    """The shipped model: its config, its tokenizer, and every shard's header and length."""
    from minillm.config import ModelConfig
    from minillm.load.checkpoint import Checkpoint
    from minillm.tokens.tokenizer import Tokenizer

    folder = ROOT / "data" / "town"
    ModelConfig.from_pretrained(folder), Tokenizer.from_pretrained(folder)
    size = Checkpoint.open(folder).nbytes
    return [Finding("model", f"data/town, {size / 1e6:.1f} MB of weights")]


CHECKS = (_python, _packages, _machine, _limits, _disk, _kernels, _model)
