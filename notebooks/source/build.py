"""Execute the notebook sources and write the notebooks that learners open: `make notebooks`.

A source is `notebooks/source/NN_name.py` (jupytext py:percent: `# %%`, `# %% [markdown]`,
`# %% tags=["nbval-ignore-output"]`; the tag `folded` opens a cell with its code out of sight, for
code that would give an answer away); it becomes `notebooks/NN_name.ipynb`, executed in order from a
fresh kernel that runs in `notebooks/`, as JupyterLab's and nbval's kernels do.

    python notebooks/source/build.py             # all of them
    python notebooks/source/build.py 00_tour     # one

A cell that fails stops the build with its traceback and leaves the old notebook as it was.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

from minillm.files import save, temporary_folder

SOURCES = Path(__file__).resolve().parent
NOTEBOOKS = SOURCES.parent
CELL_TIMEOUT_SECONDS = 300
FOLDED = "folded"
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def read_source(path: Path) -> NotebookNode:
    """The notebook a source describes: no outputs, metadata only of tags, stable cell ids."""
    read = jupytext.read(path)
    notebook = nbformat.v4.new_notebook(
        metadata={"kernelspec": dict(KERNEL), "language_info": {"name": "python"}}
    )
    for cell in read.cells:
        make = getattr(nbformat.v4, f"new_{cell.cell_type}_cell")
        notebook.cells.append(make(cell.source, metadata=kept(cell)))
    for cell, name in zip(notebook.cells, _cell_ids(notebook.cells), strict=True):
        cell.id = name
    return notebook


def kept(cell: NotebookNode) -> dict:
    """The metadata of a cell in a notebook: its tags, and what JupyterLab is to do for them."""
    tags = cell.metadata.get("tags")
    folded = {"jupyter": {"source_hidden": True}} if FOLDED in (tags or []) else {}
    return ({"tags": list(tags)} if tags else {}) | folded


def _cell_ids(cells: list[NotebookNode]) -> list[str]:
    """Ids made from the cells' text, so that editing one cell changes no other cell's id."""
    names, seen = [], {}
    for cell in cells:
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:8]
        seen[digest] = seen.get(digest, 0) + 1
        names.append(digest if seen[digest] == 1 else f"{digest}-{seen[digest]}")
    return names


def execute(notebook: NotebookNode, home: str) -> None:
    """Run every cell in place. CellExecutionError, unless the cell is tagged raises-exception.

    home: MINILLM_HOME, where a learner's progress and the probe's profile are kept.
    """
    _client(notebook).execute(env=os.environ | {"MINILLM_HOME": home})


def _client(notebook: NotebookNode) -> NotebookClient:
    return NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT_SECONDS,
        kernel_name=KERNEL["name"],
        resources={"metadata": {"path": str(NOTEBOOKS)}},
        record_timing=False,
        store_widget_state=False,  # an export would show it only with the network on
        coalesce_streams=True,
    )


def clean(notebook: NotebookNode) -> None:
    """Take out, in place, what depends on the machine that built it."""
    notebook.metadata = {"kernelspec": dict(KERNEL), "language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata = kept(cell)
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:  # the page shows it, not "Loading widget …", until it is run
                data.pop("application/vnd.jupyter.widget-view+json", None)
            if output.output_type == "error":  # a traceback names files: keep them, from here on
                output.traceback = [_without_folders(line) for line in output.traceback]


def _without_folders(text: str) -> str:
    """File names of a traceback, relative to the project, or to the installed packages."""
    text = text.replace(f"{NOTEBOOKS.parent}/", "")
    text = text.replace(f"{NOTEBOOKS.parent}/".replace(str(Path.home()), "~", 1), "")
    return re.sub(r"[^\s'\"]*/(?:site-packages|lib/python[\d.]+)/", "", text)


def build(source: Path, home: str) -> Path:
    """Execute one source; its notebook is replaced only when all cells ran."""
    notebook = read_source(source)
    execute(notebook, home)
    clean(notebook)
    nbformat.validate(notebook)
    target = NOTEBOOKS / f"{source.stem}.ipynb"
    save(target, nbformat.writes(notebook) + "\n", "a notebook")
    return target


def main(names: list[str]) -> int:
    # The builder's own progress must not show in the outputs. The lessons of one build share what
    # lesson 01 measures, as a learner's do.
    with temporary_folder() as home:
        return _build_all([SOURCES / f"{Path(name).stem}.py" for name in names], home)


def _build_all(sources: list[Path], home: str) -> int:
    for source in sources or sorted(SOURCES.glob("[0-9]*.py")):
        if not source.exists():
            print(f"There is no source {source.name} in notebooks/source", file=sys.stderr)
            return 2
        start = time.perf_counter()
        print(f"{source.stem} … ", end="", flush=True)
        try:
            target = build(source, home)
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            print(f"failed; the notebook is left as it was\n{error}", file=sys.stderr)
            return 1
        kib = target.stat().st_size / 1024
        print(f"{time.perf_counter() - start:.1f} s, {kib:.0f} KiB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
