"""A JupyterLab on copies of the notebooks, and one of them opened in a page."""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import nbformat
import pytest
from playwright.sync_api import Error

REPOSITORY = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
SCREENSHOTS = REPOSITORY / "build" / "browser"
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "apputils-extension/themes": {"theme": "JupyterLab Light"},
}

PANEL = "window.jupyterapp.shell.currentWidget"
IDLE = "window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
CODE = f"{PANEL}.content.widgets.filter((cell) => cell.model.type === 'code')"
# Errors in callbacks are in no cell's outputs, so the kernel's messages are recorded. JupyterLab
# asks for widgets before the kernel has any, hence "No such comm".
RECORD = f"""() => {{
  const context = {PANEL}.sessionContext;
  window.kernel = {{ statuses: [], reported: [], failed: false }};
  context.statusChanged.connect((_, status) => window.kernel.statuses.push(status));
  context.iopubMessage.connect((_, {{ header, content }}) => {{
    if (header.msg_type === "error")
      window.kernel.failed = window.kernel.reported.push(content.traceback.join("\\n"));
    if (header.msg_type === "stream" && content.name === "stderr" && !content.text.startsWith("No such comm"))
      window.kernel.reported.push(content.text);
  }});
}}"""


class Lab:
    """A server whose settings, store and copies of `notebooks` and `figures` lie below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("notebooks", "figures"):
            shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns(".*"))
        for name, values in SETTINGS.items():
            file = root / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(values), encoding="utf-8")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url, self.token = f"http://127.0.0.1:{port}", secrets.token_hex()
        self.log = root / "log"
        kept = ((k, v) for k, v in os.environ.items() if not k.startswith(("NBSUPPORT", "JUPYTER")))
        folders = {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
                   "JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime", "JUPYTER_DATA_DIR": "data",
                   "IPYTHONDIR": "ipython", "NBSUPPORT_FIGURES": "saved"}  # fmt: skip
        environment = dict(kept) | {name: str(root / folder) for name, folder in folders.items()}
        environment["NBSUPPORT_HOME"] = os.environ.get("STORE_OF_NOTEBOOKS", str(root / "store"))
        environment.setdefault("OMP_NUM_THREADS", "1")  # the browser needs the other core
        # Kernels import the package that stands beside these tests.
        environment |= {"PYTHONPATH": str(REPOSITORY), "JUPYTER_TOKEN": self.token,
                        "NBSUPPORT_STUDY": "photographs", "NBSUPPORT_SCALE": "smoke"}  # fmt: skip
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
                 "--ServerApp.port_retries=0", f"--ServerApp.root_dir={root}", "--LabApp.expose_app_in_browser=True",
                 "--LabApp.extension_manager=readonly"], env=environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        deadline = time.monotonic() + 60
        while not self._answers():
            self.check()
            if time.monotonic() > deadline:
                self.close()
                pytest.fail(f"JupyterLab does not answer:\n{self.log.read_text()}")
            time.sleep(0.2)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{self.url}/api/status?token={self.token}", timeout=5).close()
            return True
        return False

    def check(self) -> None:
        """Fail with the end of its log if the server is gone."""
        if self.process.poll() is not None:
            end = self.log.read_text()[-3000:]
            pytest.fail(f"JupyterLab ended with {self.process.returncode}:\n{end}")

    def close(self) -> None:
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self.process.kill()


class Opened:
    """A notebook in a page of a browser."""

    def __init__(self, lab: Lab, page, path: Path) -> None:
        self.lab, self.page, self.name = lab, page, path.stem
        self.sources = [cell.source for cell in nbformat.read(path, as_version=4).cells]
        errors = self.page_errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda m: m.type == "error" and errors.append(f"{m.text} {m.location}"))
        page.add_init_script(path=Path(__file__).with_name("probes.js"))
        lab.check()
        page.goto(f"{lab.url}/lab/tree/notebooks/{path.name}?reset&token={lab.token}")
        self.until(IDLE, "a kernel", seconds=120)
        page.evaluate(RECORD)

    def run(self) -> None:
        """Run all cells, up to the first that fails."""
        self.execute("'notebook:run-all-cells'")
        executed = f"{CODE}.every((cell) => cell.model.executionCount !== null)"
        end = f"{IDLE} && (window.kernel.failed || {executed})"
        self.until(end, "the end of the last cell", seconds=900)

    def execute(self, command: str) -> None:
        """Start a command of JupyterLab, in JavaScript."""
        self.page.evaluate(f"() => {{ window.jupyterapp.commands.execute({command}); }}")

    def until(self, condition: str, what: str, *arguments, seconds: float = 60) -> None:
        """Wait until an expression in JavaScript, of `arguments` as `a` and `b`, holds, or fail."""
        deadline = time.monotonic() + seconds
        while not self._evaluate(f"async ([a, b]) => !!({condition})", list(arguments)):
            self.lab.check()
            statuses = self._evaluate("() => window.kernel?.statuses ?? []") or []
            if {"dead", "autorestarting", "restarting", "terminating"} & set(statuses):
                pytest.fail(f"{self.name}: the kernel died while waiting for {what}")
            if time.monotonic() > deadline:
                self.shoot("failed")
                pytest.fail(f"{self.name}: waited {seconds:.0f} s for {what}; {self.reported()}")
            self.page.wait_for_timeout(50)

    def _evaluate(self, code: str, *arguments) -> Any:
        try:
            return self.page.evaluate(code, *arguments)
        except Error as error:  # a second page is sent to a workspace of its own
            if "navigation" not in str(error):
                raise
            return None

    def press(self, key: str, control, picture, what: str, *, back_to: str = "") -> str:
        """Press a key, wait for another picture, or for `back_to`, and return the one before."""
        element = picture.element_handle()
        self.until("await pixels(a)", "a picture", element)
        before = element.evaluate("pixels")
        control.focus()
        self.page.keyboard.press(key)
        wanted = "await pixels(a) === b" if back_to else "!['', b].includes(await pixels(a))"
        self.until(wanted, f"the picture after {what}", element, back_to or before)
        return before

    def outputs(self) -> list[dict]:
        """Return the outputs of all code cells, and the source of those that were not executed."""
        skipped = "{ output_type: 'not executed', source: cell.model.sharedModel.source }"
        output = f"cell.model.executionCount === null ? {skipped} : cell.model.outputs.toJSON()"
        return self.page.evaluate(f"() => {CODE}.flatMap((cell) => {output})")

    def reported(self) -> list[str]:
        """Errors and warnings of page and kernel so far."""
        return [*self.page_errors, *self.page.evaluate("() => window.kernel?.reported ?? []")]

    def show(self, number: int):
        """Scroll to a cell, which brings it into the page, and return it."""
        scroll = f"await {PANEL}.content.scrollToItem(n, 'start')"
        self.page.evaluate(
            f"async (n) => {{ {PANEL}.content.activeCellIndex = n; {scroll}; }}", number
        )
        return self.page.locator(f".jp-Notebook:visible [data-windowed-list-index='{number}']")

    def shoot(self, what: str) -> None:
        self.page.screenshot(path=SCREENSHOTS / f"{self.name}-{what}.png")

    def close(self) -> None:
        """End the kernel, close the page."""
        self.page.evaluate(f"() => {PANEL}.sessionContext.shutdown()")
        self.page.close()
