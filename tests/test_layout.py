"""The shape of the repository: who may import whom, how big things get, where links lead."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "minillm"
MODULES = sorted(PACKAGE.rglob("*.py"))
# Each part of the package, and the parts it may import beside itself: the arrow of the design,
# errors, units, files, config, compile <- trace <- machine, predict, probe <- load, tokens, model,
# kv <- parallel <- decode <- engine <- tools. Stages meet only in engine.
GROUND = {"errors", "units", "files", "config", "compile", "process"}
BASE = GROUND | {"trace", "machine", "predict", "probe"}
STAGES = {"load", "tokens", "model", "kv"}
ENGINE_SIDE = BASE | STAGES | {"parallel", "decode", "engine"}
MAY_IMPORT = {
    **{part: GROUND for part in GROUND | {"trace"}},
    **{part: BASE for part in {"machine", "probe"} | STAGES},
    "predict": GROUND,
    "parallel": BASE | STAGES,
    "decode": BASE | STAGES | {"parallel"},
    "engine": ENGINE_SIDE,
    "charts": {"trace", "predict", "errors", "units", "files"},
    "lesson": ENGINE_SIDE | {"charts"},
    "tools": ENGINE_SIDE | {"charts"},
    "__init__": ENGINE_SIDE,
    "__main__": ENGINE_SIDE | {"tools", "charts", "__init__"},
}
DRAWING = {"matplotlib", "PIL", "numpy", "resvg_py", "anywidget", "ipywidgets", "traitlets",
           "IPython"}  # fmt: skip
TOP_LEVEL = {"README.md", "requirements.txt", "pyproject.toml", "Makefile", "LICENSE"}
FOLDERS = {"data", "notebooks", "minillm", "tests"}
# Lines of code, C, JS and CSS included: of each room of the path, which lessons teach; of what
# shows it; and of the ground, which is neither.
PATH = {"load": 700, "machine": 820, "trace": 300, "engine": 818, "parallel": 841, "kv": 896,
        "model": 748, "decode": 450, "tokens": 300, "predict": 350}  # fmt: skip
PATH_LINES, GROUND_LINES = 6_077, 1_930
SHOWS, SHOWING_LINES = {"charts": 4_950, "lesson": 850, "tools": 785}, 6_500
NOT_PATH = {"trace/perfetto.py", "predict/hardware.py"}  # a file format, data sheets
LONG_FILES = {"minillm/model/kernels.c": 320}
FILE_LINES, CLASS_LINES, FUNCTION_LINES = 260, 120, 40
LONG_CLASSES = {"Engine", "Machine", "Trace", "Reader"}  # at most 150 lines
TEXT = {".py", ".md", ".toml", ".txt", ".cfg", ".json", ".jsonl", ".js", ".ipynb", ""}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def part_of(path: Path) -> str:
    """The part of the package a file belongs to: `kv` for kv/pages.py, `trace` for trace.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def tracked() -> list[Path]:
    """The files that are in the repository, or would be after `git add`; skips outside git."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs git and a checkout: it asks which files belong to the repository")
    names = done.stdout.split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything a file imports, at its top and inside functions.

    `from minillm import trace` gives `minillm.trace`; `from minillm import Trace` gives `minillm`.
    """
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                folder = ROOT.joinpath(*base.split("."), alias.name)
                is_module = folder.is_dir() or folder.with_suffix(".py").is_file()
                yield node.lineno, f"{base}.{alias.name}" if is_module else base


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_follow_the_arrow(path: Path) -> None:
    """Catches a stage that reaches into another, and an engine that knows a chart or a lesson."""
    part = part_of(path)
    assert part in MAY_IMPORT, f"{part} has no place in the arrow yet: give it one in MAY_IMPORT"
    for line, name in imports(path):
        if name.split(".")[0] != "minillm":
            continue
        target = (name.split(".") + ["__init__"])[1]
        allowed = target == part or target in MAY_IMPORT[part]
        assert allowed, f"{name_of(path)}:{line}: minillm.{part} may not import {name}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_each_part_keeps_to_its_outside_libraries(path: Path) -> None:
    """Catches arithmetic that needs torch, charts that compute, a model that knows its ranks."""
    part = part_of(path)
    for line, name in imports(path):
        top, where = name.split(".")[0], f"{name_of(path)}:{line}"
        if part == "predict":
            assert top not in {"torch", "numpy"}, f"{where}: predict is pure arithmetic"
        if part == "model":
            ranks = name.startswith("torch.distributed")
            assert not ranks, f"{where}: parallelism is put on from outside"
        if part == "charts":
            known = DRAWING | set(sys.stdlib_module_names) | {"minillm"}
            assert top in known, f"{where}: charts only draw, {top} is no drawing library"
        assert top not in {"transformers", "pickle"}, f"{where}: {top} is not for the package"


def test_importing_minillm_starts_nothing() -> None:
    """Catches a thread, a log handler or a drawing library that comes with `import minillm`."""
    program = (
        "import logging, sys, threading; before = threading.active_count(); import minillm;"
        "assert threading.active_count() == before, 'a thread was started';"
        "assert not logging.getLogger().handlers, 'logging was set up';"
        "late = {'matplotlib', 'IPython', 'minillm.charts', 'minillm.lesson'} & set(sys.modules);"
        "assert not late, f'{late} came along'"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "first", ["import minillm.charts", "from minillm.charts.live import watch",
              "import minillm.lesson"],
)  # fmt: skip
def test_a_view_is_on_the_page_before_torch_and_drawing_libraries_are_there(first: str) -> None:
    """Catches seconds of imports between a reader's first cell and its picture."""
    program = (
        f"import sys; {first}; late = {{'matplotlib', 'torch'}} & set(sys.modules);"
        "assert not late, f'{late} came along'"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def lines_of_code(path: Path) -> int:
    """Lines that do something: no blank ones, no comments, no docstrings."""
    source = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        lines = (line.strip() for line in source.splitlines())
        return sum(bool(line) and not line.startswith(("//", "*", "/*")) for line in lines)
    quiet = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
             tokenize.ENDMARKER}  # fmt: skip
    words = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = {n for w in words if w.type not in quiet for n in range(w.start[0], w.end[0] + 1)}
    for node in ast.walk(ast.parse(source)):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and ast.get_docstring(node):
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def rooms() -> Counter[str]:
    """Lines of code by part of the package; what is ground counts as "ground"."""
    lines: Counter[str] = Counter()
    for path in PACKAGE.rglob("*"):
        if path.suffix in {".py", ".js", ".css", ".c", ".h"}:
            room, name = part_of(path), path.relative_to(PACKAGE).as_posix()
            shown = (room in PATH and name not in NOT_PATH) or room in SHOWS
            lines[room if shown else "ground"] += lines_of_code(path)
    return lines


def test_the_package_stays_readable_in_an_evening() -> None:
    """Catches growth: what is taught is meant to be read. Explaining costs nothing."""
    lines, most = rooms(), {**PATH, **SHOWS, "ground": GROUND_LINES}
    assert not {room: (n, most[room]) for room, n in lines.items() if n > most[room]}
    assert sum(lines[room] for room in PATH) <= PATH_LINES
    assert sum(lines[room] for room in SHOWS) <= SHOWING_LINES
    files = [*MODULES, *PACKAGE.rglob("*.c"), *PACKAGE.rglob("*.h")]
    long = {name_of(p): len(p.read_text(encoding="utf-8").splitlines()) for p in files}
    assert not {name: n for name, n in long.items() if n > LONG_FILES.get(name, FILE_LINES)}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_functions_and_classes_fit_on_a_screen(path: Path) -> None:
    """Catches a function or class that has taken on a second job."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            limit = CLASS_LINES if isinstance(node, ast.ClassDef) else FUNCTION_LINES
            limit = 150 if node.name in LONG_CLASSES else limit
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= limit, f"{name_of(path)}:{node.lineno}: {node.name} has {lines} lines"


def test_top_level_holds_nothing_else() -> None:
    """Catches a stray script, result or folder at the place every visitor sees first."""
    files = {path.name for path in tracked() if path.parent == ROOT}
    folders = {path.relative_to(ROOT).parts[0] for path in tracked() if path.parent != ROOT}
    assert not {name for name in files - TOP_LEVEL if not name.startswith(".")}
    assert not {name for name in folders - FOLDERS if not name.startswith(".")}


def test_what_is_large_is_data() -> None:
    """Catches a checkpoint that a lesson left behind and `git add` took along: history keeps it."""
    large = [name_of(path) for path in tracked() if path.stat().st_size > 2**20]
    assert not [name for name in large if not name.startswith("data/")], large


def test_links_in_every_page_lead_to_files() -> None:
    """Catches a link or picture that broke when a file was renamed, or was never made."""
    link = re.compile(r"\]\(([^)\s]+)[^)]*\)|(?:src|href)=\"([^\"]+)\"")
    for page in (path for path in tracked() if path.suffix == ".md"):
        for match in link.finditer(page.read_text(encoding="utf-8")):
            target = (match[1] or match[2]).partition("#")[0]
            if target and not re.match(r"[a-z]+:", target):
                assert (page.parent / target).exists(), f"{name_of(page)} links to {target}"


def test_no_file_names_a_place_on_one_machine() -> None:
    """Catches a path that exists only where the file was written."""
    place = re.compile(r"(?<![\w.~/+=-])(/(?:home|Users|root|work|mnt)/\w+|[A-Z]:\\+Users)")
    for path in tracked():
        if path.suffix in TEXT:
            found = place.search(path.read_text(encoding="utf-8", errors="replace"))
            assert not found, f"{name_of(path)} names {found and found[0]}"


def test_ruff_finds_nothing() -> None:
    """Catches unused names, unsorted imports, long lines and the usual traps of Python."""
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format=concise", "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
