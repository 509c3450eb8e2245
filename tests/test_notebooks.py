"""What every notebook keeps to: small cells, a fresh run in order, outputs that read well anywhere.

nbval executes the notebooks (`make test`); this file reads them.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
SOURCES = sorted((ROOT / "notebooks" / "source").glob("[0-9]*.py"))
CELL_LINES, DEFINITION_LINES, MEDIAN_LINES = 15, 25, 5
CODE_IN_A_ROW, PROSE_WORDS, FILE_BYTES = 2, 90, 300_000
# Words that compare what was measured.
CLAIM = re.compile(
    r"\b(faster|fastest|slower|slowest|quicker|hardly (any )?(more|longer)|nothing beats|not free|"
    r"at the speed of|several times|(much|far) (more|less) (time|often)|takes? (\w+ )?longer|"
    r"(twice|half|ten times|\d+ ×) as (fast|long|slow)|wins?|won|loses|outperform\w*)\b",
    re.IGNORECASE,
)
# Sentences, or parts of them, that are arithmetic or definitions and true on every machine.
SAFE = (
    "Press play to see it again, slower",
    "## Where it loses",
    "slowest … fastest, and how it was measured",
    "*one* answer soon loses",
    "the slower of the two sets the pace",
    "a faster cook would change nothing",
    "if memory is the slower side",
    "may be read faster than DRAM",
    "the fastest product of two",
    "only the slower one counts",
    "Two different things were won",
    "the first touch may be slower",
    "as its slower rank",
    "the slower sets the time",
    "HBM is fastest, then DRAM",
    "to the fastest tier that still has room",
)
WIDGET, STILLS = "application/vnd.jupyter.widget-view+json", {"image/png", "image/svg+xml"}


def _load_builder():
    path = ROOT / "notebooks" / "source" / "build.py"
    spec = importlib.util.spec_from_file_location("notebook_builder", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = _load_builder()


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def notebook(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell: NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", []))


def opening(cell: NotebookNode) -> str:
    """The first words of a cell, to find it by."""
    return repr(cell.source[:60])


def words(markdown: str) -> int:
    """The words a reader reads: no fenced code, no table rows, no HTML tags, no link targets."""
    text = re.sub(r"^```.*?^```", " ", markdown, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^\s*\|.*$", " ", text, flags=re.MULTILINE)
    text = re.sub(r"<[^>]+>|\]\([^)]*\)|\$[^$]+\$", " ", text)
    return sum(bool(re.search(r"\w", word)) for word in text.split())


def defines(source: str) -> bool:
    """Whether a cell's purpose is a definition: a function or class is most of it."""
    try:
        tree = ast.parse(re.sub(r"^(\s*)[%!]", r"\1#", source, flags=re.MULTILINE))
    except SyntaxError:
        return False
    return any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in tree.body)


def test_there_is_a_tour() -> None:
    """Catches a course without its first page, which `make lab` opens."""
    assert "00_tour" in {path.stem for path in NOTEBOOKS}


def test_every_source_is_built_and_every_notebook_has_a_source() -> None:
    """Catches a lesson written and never built, and a notebook edited where no review sees it."""
    sources = {source.stem for source in build.SOURCES.glob("[0-9]*.py")}
    assert sources == {path.stem for path in NOTEBOOKS}, "run make notebooks"


def test_lessons_that_are_named_exist_and_lead_from_one_to_the_next() -> None:
    """Catches a reader sent to a lesson that was planned and is not there."""
    stems = [source.stem for source in SOURCES]
    numbers = {stem[:2] for stem in stems}
    row = re.compile(r"^\| \[`(\w+)`\]\(notebooks/(\w+)\.ipynb\) \| (.+) \|$", re.MULTILINE)
    rows = row.findall((ROOT / "README.md").read_text("utf-8"))
    titles = [build.read_source(s).cells[0].source.splitlines()[0] for s in SOURCES]
    asked = [f"# {stem[:2]} · {question}" for stem, _, question in rows]
    assert [row[:2] for row in rows] == [(stem, stem) for stem in stems] and asked == titles
    says = [ROOT / "README.md", ROOT / "data" / "README.md", *(ROOT / "minillm").rglob("*.py"),
            *SOURCES, *(ROOT / "notebooks" / "solutions").glob("*.py")]  # fmt: skip
    for page in says:
        text = page.read_text("utf-8")
        names = set(re.findall(r"`(\d\d_[a-z_]+)`", text))
        assert names <= {*stems}, f"{page.name} names {names - {*stems}}"
        lessons = re.findall(r"\b[Ll]essons?\s(?:# )?(\d\d)(?: and (\d\d))?", text)
        named = {number for pair in lessons for number in pair if number}
        assert named <= numbers, f"{page.name} names lessons {named - numbers}"
    for source, after in zip(SOURCES, [*stems[1:], None], strict=True):
        last = build.read_source(source).cells[-1].source
        found = re.match(r"\*\*Next:\*\* `(\w+)`", last)
        assert (found and found[1]) == after, f"{source.name}: its last cell begins with {last!r}"


def test_notebook_equals_its_source(path: Path, notebook: NotebookNode) -> None:
    """Catches a source edited without `make notebooks`, and a notebook edited by hand."""
    source = build.read_source(build.SOURCES / f"{path.stem}.py")

    def told(cells: list[NotebookNode]) -> list[tuple]:
        return [(cell.cell_type, cell.source, sorted(tags(cell))) for cell in cells]

    assert told(notebook.cells) == told(source.cells), f"run make notebooks NB={path.stem}"


def test_code_cells_are_short(notebook: NotebookNode) -> None:
    """Catches a cell that does not fit in a reader's head; definitions get some more room."""
    lengths = []
    for cell in code_cells(notebook):
        lines = len(cell.source.splitlines())
        limit = DEFINITION_LINES if defines(cell.source) else CELL_LINES
        assert lines <= limit, f"{lines} lines, limit {limit}: {opening(cell)}"
        lengths.append(lines)
    assert statistics.median(lengths) <= MEDIAN_LINES, f"median of {sorted(lengths)}"


def test_at_most_two_code_cells_in_a_row(notebook: NotebookNode) -> None:
    """Catches code that nobody introduces."""
    row = 0
    for cell in notebook.cells:
        row = row + 1 if cell.cell_type == "code" else 0
        assert row <= CODE_IN_A_ROW, f"{row} code cells in a row at {opening(cell)}"


def test_prose_is_short_and_polite(notebook: NotebookNode) -> None:
    """Catches walls of text, and words that tell a reader who is stuck that it is easy."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            assert words(cell.source) <= PROSE_WORDS, f"{words(cell.source)} words: {opening(cell)}"
            assert not re.search(r"\b(simply|obviously)\b", cell.source, re.I), opening(cell)


def test_executed_in_order_from_a_fresh_kernel(notebook: NotebookNode) -> None:
    """Catches outputs that no reader would get: cells run twice, out of order, or not at all."""
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1)), "run make notebooks"
    skips = {"nbval-skip", "skip-execution"}
    assert not [opening(cell) for cell in code_cells(notebook) if tags(cell) & skips]


def test_outputs_hold_no_error_and_no_stderr(notebook: NotebookNode) -> None:
    """Catches warnings and failures that were committed as if they belonged there."""
    for cell in code_cells(notebook):
        for output in cell.outputs:
            expected = output.output_type != "error" or "raises-exception" in tags(cell)
            assert expected, f"{output.get('ename')} in {opening(cell)}"
            assert output.get("name") != "stderr", f"{output.get('text')!r} from {opening(cell)}"


# Runs each cell of its argument twice in a row, in one IPython. Nothing is timed here, so the
# probe gets a tenth of its time and lesson 10 a model of four layers; lesson 11's is a real one,
# since what it keeps of HBM is what a second run may lack.
TWICE = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from minillm import probe
from minillm.tools import make_checkpoint as make

real = probe.probe
probe.probe = lambda seconds, **more: real(seconds / 10, **more)
make.SHAPES["360m"] = make.SHAPES["360m"] | {"num_hidden_layers": 4}
shell = InteractiveShell.instance()
for source, raises in json.loads(sys.argv[1]):
    for run in ("first", "second"):
        with capture_output():
            result = shell.run_cell(source)
        error = result.error_before_exec or result.error_in_exec
        if error and not raises:
            sys.exit(f"the {run} run of {source.splitlines()[0]!r} raised {error!r}")
"""


# A folder that takes no file, not even root's; elsewhere than on Linux, where the notebooks lie.
NO_FILES = Path("/proc") if sys.platform.startswith("linux") else ROOT / "notebooks"


def run_twice(source: Path, env: dict[str, str]) -> tuple[int, str]:
    """Exit code and errors of a process that runs each cell of a source twice."""
    cells = code_cells(build.read_source(source))
    told = json.dumps([(cell.source, "raises-exception" in tags(cell)) for cell in cells])
    done = subprocess.run(
        [sys.executable, "-c", TWICE, told], cwd=NO_FILES, env=env, text=True, timeout=900,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[tuple[int, str]]]]:
    """A process for each source that is asked for, a few side by side: much of their time they
    wait for scaled links."""
    home = str(tmp_path_factory.mktemp("home"))
    more = {"MINILLM_HOME": home, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    items = [i for i in request.session.items if "runs" in getattr(i, "fixturenames", ())]
    asked = [item.callspec.params["name"] for item in items]  # nbval's items have no fixtures
    with ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as pool:
        started = {
            source.stem: pool.submit(run_twice, source, os.environ | more)
            for source in SOURCES if source.stem in asked
        }  # fmt: skip
        yield started
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", [source.stem for source in SOURCES])
def test_every_cell_may_be_run_again(runs: dict[str, Future], name: str) -> None:
    """Catches a cell that takes memory a second time, or frees what it has freed before: a learner
    who changes a number runs a cell twice. And one that wants to write beside the notebooks, which
    on a server may be a disk for reading only."""
    code, errors = runs[name].result()
    assert code == 0, errors


def test_pictures_show_without_a_kernel(notebook: NotebookNode) -> None:
    """Catches a widget that a code host or an export shows as nothing, and saved widget state."""
    assert "widgets" not in notebook.metadata
    for cell in code_cells(notebook):
        for output in cell.outputs:
            data = set(output.get("data", {}))
            assert WIDGET not in data or data & STILLS, f"no still picture in {opening(cell)}"


def test_a_live_view_leaves_a_still_behind(notebook: NotebookNode) -> None:
    """Catches a view whose picture was never sent, or was lost when the notebook was built."""
    for cell in code_cells(notebook):
        if re.search(r"^[^#]*\bwatch\(", cell.source, re.MULTILINE):
            kinds = {kind for output in cell.outputs for kind in output.get("data", {})}
            assert kinds & STILLS, f"run make notebooks: no still picture in {opening(cell)}"


def test_every_picture_is_told_in_words(notebook: NotebookNode) -> None:
    """Catches a picture that says nothing to a reader who cannot see it, or only `<Figure …>`."""
    for cell in code_cells(notebook):
        for output in cell.outputs:
            if not STILLS & set(output.get("data", {})):
                continue
            finding = output.data.get("text/plain", "")
            assert re.match(r"\w.* \w", finding), f"{finding!r} in {opening(cell)}"
            alt = output.metadata.get("image/png", output.metadata).get("alt", "")
            assert alt, f"no alt text in {opening(cell)}"


def test_nothing_is_hidden_or_installed(notebook: NotebookNode) -> None:
    """Catches cells a reader cannot see, and cells that need a network or change the machine. A
    cell tagged `folded` shows its output, and its code after a click."""
    for cell in notebook.cells:
        assert cell.metadata == build.kept(cell), f"{dict(cell.metadata)} in {opening(cell)}"
        installs = re.search(r"^\s*[!%]\s*(pip|conda|mamba|uv|apt|curl|wget)\b", cell.source, re.M)
        assert cell.cell_type != "code" or not installs, opening(cell)


def test_code_that_gives_an_answer_away_is_folded(path: Path, notebook: NotebookNode) -> None:
    """Catches recall's answers read in the source before they were thought of."""
    for cell in code_cells(notebook):
        if re.search(r"^recall\(", cell.source, re.MULTILINE):
            assert build.FOLDED in tags(cell), f"tag {build.FOLDED!r}: {opening(cell)}"


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_prose_leaves_comparisons_to_the_samples(source: Path) -> None:
    """Catches a sentence that another machine's output contradicts: `compare` and `Comparison`
    write it from both samples. What follows from arithmetic or a definition stands in SAFE."""
    for cell in build.read_source(source).cells:
        if cell.cell_type == "markdown":
            for sentence in re.split(r"(?<=[.?!:])\s+", " ".join(cell.source.split())):
                claim = CLAIM.search(sentence)
                safe = sentence.endswith("?") or any(part in sentence for part in SAFE)
                assert not claim or safe, f"{claim and claim[0]!r} in {sentence!r}"


def test_claims_are_found_as_people_write_them() -> None:
    """Catches a net with holes: these stood in lessons, and were false on a reader's machine."""
    for claim in ("A batch of two cost hardly more.", "Nothing beats it.", "mmap is not free.",
                  "The step is several times the prediction.", "It runs at the speed of the disk.",
                  "The second load is much faster.", "Streaming takes longer.",
                  "It takes twice as long.", "Here mmap wins."):  # fmt: skip
        assert CLAIM.search(claim), claim


def test_file_is_small_and_names_no_machine(path: Path) -> None:
    """Catches outputs too heavy for a repository, and a path of the machine that ran it."""
    raw = path.read_text(encoding="utf-8")
    assert len(raw.encode()) <= FILE_BYTES
    raw = re.sub(r"\\u001b\[[\d;]*m", "", raw)  # colours, which would hide where a path begins
    found = re.search(r"(?<![\w.+=/-])~?/(?:home|Users|root|work|tmp)/[^\s\"\\]+", raw)
    assert not found, f"{found and found[0]}"
    assert "site-packages" not in raw


def test_the_builder_gives_cells_stable_ids(tmp_path: Path) -> None:
    """Catches a rebuild that touches every cell: an edit changes its own cell's id only."""
    old, new = tmp_path / "old.py", tmp_path / "new.py"
    old.write_text("# %% [markdown]\n# # Title\n\n# %%\n1\n\n# %%\n1\n", encoding="utf-8")
    new.write_text("# %% [markdown]\n# # Other\n\n# %%\n1\n\n# %%\n1\n", encoding="utf-8")
    before, after = ([cell.id for cell in build.read_source(path).cells] for path in (old, new))
    assert len(set(before)) == 3
    assert before[0] != after[0] and before[1:] == after[1:]


def test_the_builder_names_no_folder_of_its_machine() -> None:
    """Catches a traceback that shows where the builder's checkout and Python happen to be."""
    mine = build.NOTEBOOKS.parent / "minillm" / "trace" / "trace.py"
    lines = [f"File {mine}:3", "/usr/lib/python3.11/json/x.py"]
    error = nbformat.v4.new_output("error", ename="E", evalue="", traceback=lines)
    cell = nbformat.v4.new_code_cell("1 / 0", outputs=[error], metadata={"tags": [], "id": 1})
    made = nbformat.v4.new_notebook(cells=[cell], metadata={"widgets": {}})
    build.clean(made)
    assert made.cells[0].outputs[0].traceback == ["File minillm/trace/trace.py:3", "json/x.py"]
    assert set(made.metadata) == {"kernelspec", "language_info"} and not made.cells[0].metadata


def test_lessons_of_one_build_share_a_home_that_is_not_the_builders(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Catches outputs that tell how far the builder is, and a lesson that measures anew."""
    home, sources = tmp_path / "home", tmp_path / "sources"
    for folder in (home, sources):
        folder.mkdir()
    monkeypatch.setenv("MINILLM_HOME", str(home))
    monkeypatch.setattr(build, "SOURCES", sources)
    monkeypatch.setattr(build, "NOTEBOOKS", tmp_path)
    (home / "progress.json").write_text("{}", encoding="utf-8")
    look = "import os\nhome = os.environ['MINILLM_HOME']\nprint(os.listdir(home))\n"
    keep = "open(home + '/profile.json', 'w').close()\n"
    for name, code in (("01_one", look + keep), ("02_two", look)):
        (sources / f"{name}.py").write_text(f"# %%\n{code}", encoding="utf-8")
    assert build.main([]) == 0
    made = [nbformat.read(tmp_path / f"{name}.ipynb", 4) for name in ("01_one", "02_two")]
    assert [m.cells[0].outputs[0].text for m in made] == ["[]\n", "['profile.json']\n"]
    assert [path.name for path in home.iterdir()] == ["progress.json"]


def test_tests_keep_out_of_the_learners_home() -> None:
    """Catches a test run that resets somebody's progress: what nbval starts inherits this too."""
    home = Path(os.environ["MINILLM_HOME"])
    assert home.is_dir() and home.parent == Path(tempfile.gettempdir())


def test_a_killed_kernel_leaves_nothing_when_the_tests_are_over(tmp_path: Path) -> None:
    """Catches a gigabyte beside the notebooks after `make test`: nbval kills its kernels, so that
    nothing which they would do at their exit is done."""
    source = "from minillm.files import temporary_folder\nkept = temporary_folder('.')\n"
    source += "open(kept.name + '/weights', 'w').close()\nopen('tour_run.json', 'w').close()"
    made = [nbformat.v4.new_code_cell(source)]
    nbformat.write(nbformat.v4.new_notebook(cells=made), tmp_path / "a.ipynb")
    (tmp_path / "tour_run.html").write_text("a learner's")
    (tmp_path / "conftest.py").write_text(
        "from pathlib import Path\nimport tests.conftest as ours\n"
        "ours.NOTEBOOKS = Path(__file__).parent\npytest_configure = ours.pytest_configure\n"
        "def pytest_unconfigure():\n    print(len(list(ours.NOTEBOOKS.glob('.minillm-*'))), 'left')"
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-s", "--nbval",
               "--nbval-current-env", f"--rootdir={tmp_path}", str(tmp_path)]  # fmt: skip
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert "1 passed" in done.stdout and "1 left" in done.stdout, done.stdout + done.stderr
    assert sorted(os.listdir(tmp_path)) == ["a.ipynb", "conftest.py", "tour_run.html"]
    assert (tmp_path / "tour_run.html").read_text() == "a learner's"


def test_nbval_fails_at_once_where_it_used_to_hang_or_pass(tmp_path: Path) -> None:
    """Catches a new nbval that `nbval_gaps` no longer fits: a dead kernel would take 2,000 s."""
    cells = {"dead": ("a = 1", "import os; os._exit(1)", "a"), "tame": ("b = 1", "b")}
    for name, sources in cells.items():
        tagged = {"tags": ["raises-exception"]} if name == "tame" else {}
        made = [nbformat.v4.new_code_cell(source, metadata=tagged) for source in sources]
        nbformat.write(nbformat.v4.new_notebook(cells=made), tmp_path / f"{name}.ipynb")
    command = [sys.executable, "-m", "pytest", "-p", "tests.nbval_gaps", "-p", "no:cacheprovider"]
    command += ["--nbval", "--nbval-current-env", "--color=no", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert "2 failed, 1 passed, 2 skipped" in done.stdout, done.stdout + done.stderr
    assert "the kernel died in this cell" in done.stdout
    assert "tagged raises-exception, but it raised nothing" in done.stdout
