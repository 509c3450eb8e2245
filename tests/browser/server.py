"""JupyterLab for the tests: from this checkout, writing to temporary folders only.

The notebooks are copies and so are all settings: neither the repository nor the home of whoever
runs the tests is touched, and nothing that lies there matters.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

NOTEBOOKS = Path(__file__).resolve().parent.parent.parent / "notebooks"
START_SECONDS = 90
QUIET = {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True}


class Server:
    """JupyterLab on a free port, with a token, and with every folder it writes to in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.token = folder, secrets.token_hex(16)
        self.home = folder / "minillm"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{probe.getsockname()[1]}"

    def __enter__(self) -> Server:
        leave = shutil.ignore_patterns(".ipynb_checkpoints", "*.json")
        shutil.copytree(NOTEBOOKS, self.folder / "root" / "notebooks", ignore=leave)
        self._write_settings()
        self.log = (self.folder / "server.log").open("w+", encoding="utf-8")
        self.process = subprocess.Popen(
            self._command(), env=os.environ | self._environment(), cwd=self.folder,
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._wait_until_it_answers()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()  # JupyterLab then ends its kernels
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()

    def _command(self) -> list[str]:
        port = self.url.rpartition(":")[2]
        return [
            sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}",
            "--ServerApp.port_retries=0", f"--ServerApp.root_dir={self.folder / 'root'}",
            f"--IdentityProvider.token={self.token}", "--LabApp.expose_app_in_browser=True",
        ]  # fmt: skip

    def _environment(self) -> dict[str, str]:
        """A learner's own settings, kernels and progress must not matter here."""
        names = ["JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR",
                 "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR"]  # fmt: skip
        folders = {name: str(self.folder / name.lower()) for name in names}
        return folders | {"MINILLM_HOME": str(self.home)}

    def _write_settings(self) -> None:
        """What `make setup` writes into .venv: no question about news at the first start."""
        extension = "@jupyterlab/apputils-extension/notification.jupyterlab-settings"
        file = Path(self._environment()["JUPYTERLAB_SETTINGS_DIR"], extension)
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(QUIET), encoding="utf-8")

    def _wait_until_it_answers(self) -> None:
        end = time.monotonic() + START_SECONDS
        while self.process.poll() is None and time.monotonic() < end:
            try:
                urllib.request.urlopen(f"{self.url}/api?token={self.token}", timeout=5).close()
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        self.process.kill()
        log = Path(self.log.name).read_text(encoding="utf-8")
        raise RuntimeError(f"JupyterLab did not start:\n{log[-4000:]}")
