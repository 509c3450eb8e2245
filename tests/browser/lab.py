"""A notebook in JupyterLab: open it, run its cells, ask what came of them.

    with Server(folder) as server:
        lab = Lab(page, server)
        lab.open("00_tour")
        lab.start_all()
        lab.wait(RUN_SECONDS)
        assert lab.errors() == []

Sizes are in pixels, times in seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .server import START_SECONDS, Server

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

WIDGET = "application/vnd.jupyter.widget-view+json"
RUNNING = 'panel.content.widgets.findIndex(cell => cell.model.executionState === "running")'
PATIENCE_SECONDS, CELL_SECONDS, RUN_SECONDS = 20, 120, 300


class Lab:
    """One notebook, open in one page. Cells are counted from 0, prose included."""

    def __init__(self, page: Page, server: Server) -> None:
        self.page, self.server = page, server
        page.set_default_timeout(1000 * PATIENCE_SECONDS)
        self.panel = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")

    def open(self, stem: str) -> None:
        """Open notebooks/STEM.ipynb in a workspace of its own, and wait for its kernel."""
        self.stem = stem
        path = f"notebooks/{stem}.ipynb"
        address = f"{self.server.url}/lab/workspaces/{stem}/tree/{path}"
        self.page.goto(f"{address}?reset&token={self.server.token}")
        # Not app.shell.currentWidget: that is null while a dialog has the focus.
        self.page.wait_for_function(
            """path => {
                const all = window.jupyterapp ? [...jupyterapp.shell.widgets("main")] : [];
                window.panel = all.find(panel => panel.context?.path === path);
                const kernel = window.panel?.context.isReady
                    && window.panel.sessionContext.session?.kernel;
                return kernel && kernel.status === "idle";
            }""",
            arg=path, timeout=1000 * START_SECONDS,
        )  # fmt: skip
        self.page.evaluate("jupyterapp.shell.activateById(panel.id)")

    def close(self) -> None:
        """End the notebook's kernel."""
        self.page.evaluate("panel.sessionContext.shutdown()")

    def start_all(self) -> None:
        """Run > Run All Cells, without waiting for the end: it ends also where a cell fails."""
        self._start("notebook:run-all-cells")

    def start(self, index: int) -> Locator:
        """Run one cell, without waiting for its end."""
        cell = self.show(index)
        self.page.evaluate("index => { panel.content.activeCellIndex = index; }", index)
        self._start("notebook:run-cell")
        return cell

    def wait(self, seconds: float = CELL_SECONDS) -> None:
        """Wait until what was started has ended, and its last message has come."""
        idle = 'window.ended && panel.sessionContext.session.kernel.status === "idle"'
        self.page.wait_for_function(idle, timeout=1000 * seconds)

    def run(self, index: int) -> None:
        """Run one cell to its end."""
        self.start(index)
        self.wait()

    def execute(self, code: str) -> None:
        """Run code in the kernel, beside the notebook: no cell, no count, no output."""
        status = self.page.evaluate(
            """code => panel.sessionContext.session.kernel.requestExecute({code, silent: true})
                .done.then(reply => reply.content.status)""",
            code,
        )
        assert status == "ok", code

    def running(self) -> int | None:
        """The cell under way: of those with [*], which may wait their turn, the first."""
        index = self.page.evaluate(RUNNING)
        return None if index < 0 else index

    def wait_for_turn(self, index: int) -> None:
        """Wait until a cell is under way, or was already."""
        turn = f"index => window.ended || {RUNNING} >= index"
        self.page.wait_for_function(turn, arg=index, timeout=1000 * RUN_SECONDS)

    def kernel_pid(self) -> int:
        """The process that runs the cells."""
        asked = "{code: '', user_expressions: {pid: '__import__(\"os\").getpid()'}, silent: true}"
        return int(self.page.evaluate(
            f"""panel.sessionContext.session.kernel.requestExecute({asked})
                .done.then(reply => reply.content.user_expressions.pid.data["text/plain"])"""
        ))  # fmt: skip

    def _start(self, command: str) -> None:
        self.page.evaluate(
            """command => { window.ended = false;
                panel.content.deselectAll();
                const kernel = panel.sessionContext.session.kernel;
                jupyterapp.commands.execute(command)
                    // It is back when a cell raises, even one that is meant to: others still run.
                    .finally(() => kernel.requestExecute({code: "", silent: true}).done)
                    .finally(() => { window.ended = true; }); }""",
            command,
        )

    def cells(self) -> list[dict]:
        """The notebook's cells as they are now, in the format of an .ipynb file."""
        return self.page.evaluate("panel.content.model.toJSON().cells")

    def find(self, text: str) -> list[int]:
        """The code cells whose source holds a text."""
        code = [cell["source"] if cell["cell_type"] == "code" else "" for cell in self.cells()]
        return [index for index, source in enumerate(code) if text in source]

    def players(self) -> list[int]:
        """The code cells that show a run: a view that was live, or a replay."""
        shown = (index for call in ("watch(", "replay(") for index in self.find(call))
        return [index for index in shown if WIDGET in str(self.cells()[index]["outputs"])]

    def errors(self) -> list[str]:
        """What went wrong in the cells, but for those that are meant to raise."""
        return [
            f"cell {index}: {output['ename']}: {output['evalue']}"
            for index, cell in enumerate(self.cells())
            for output in cell.get("outputs", [])
            if output["output_type"] == "error"
            and "raises-exception" not in cell["metadata"].get("tags", [])
        ]

    def show(self, index: int) -> Locator:
        """Scroll to a cell; cells far away from the screen are not in the page at all."""
        self.page.evaluate("index => panel.content.scrollToItem(index, 'start')", index)
        cell = self.panel.locator(f".jp-Cell[data-windowed-list-index='{index}']")
        cell.wait_for()
        return cell
