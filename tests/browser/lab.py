"""A JupyterLab of its own on copies of the notebooks, and one of them in a page: run, scrolled to, looked at."""

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

import nbformat
import pytest

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
# What the kernel says beside the outputs of cells, too: an error in a callback is in none of them. JupyterLab asks for
# widgets before the kernel has imported any, hence "No such comm". A picture's pixels are decoded, since the address of
# a widget's image is another one whenever it is set; while it is being set there are none.
PREPARE = f"""() => {{
  const context = {PANEL}.sessionContext;
  window.kernel = {{ statuses: [], reported: [], failed: false }};
  context.statusChanged.connect((_, status) => window.kernel.statuses.push(status));
  context.iopubMessage.connect((_, {{ header, content }}) => {{
    if (header.msg_type === "error") window.kernel.failed = window.kernel.reported.push(content.traceback.join("\\n"));
    if (header.msg_type === "stream" && content.name === "stderr" && !content.text.startsWith("No such comm"))
      window.kernel.reported.push(content.text);
  }});
  window.pixels = async (element) => {{
    if (element instanceof HTMLImageElement && await element.decode().catch(() => "set")) return "";
    const bitmap = await createImageBitmap(element);
    const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
    context.drawImage(bitmap, 0, 0);
    const digest = await crypto.subtle.digest("SHA-256", context.getImageData(0, 0, bitmap.width, bitmap.height).data);
    return [bitmap.width, bitmap.height, ...new Uint8Array(digest)].join(" ");
  }};
}}"""


class Lab:
    """A server whose settings, store and copies of ``notebooks`` and ``figures`` lie below one folder."""

    def __init__(self, root: Path) -> None:
        for name in ("notebooks", "figures"):
            shutil.copytree(REPOSITORY / name, root / name, ignore=shutil.ignore_patterns(".*"))
        for name, values in SETTINGS.items():
            file = root / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(values), encoding="utf-8")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.token, self.url, self.log = (
            secrets.token_hex(),
            f"http://127.0.0.1:{port}",
            root / "log",
        )
        folders = {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
                   "JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime", "JUPYTER_DATA_DIR": "data",
                   "IPYTHONDIR": "ipython", "NBSUPPORT_HOME": "store", "NBSUPPORT_FIGURES": "saved"}  # fmt: skip
        chosen = {
            "NBSUPPORT_STUDY": "digits",
            "NBSUPPORT_SCALE": "smoke",
            "JUPYTER_TOKEN": self.token,
        }
        chosen["PYTHONPATH"] = str(
            REPOSITORY
        )  # kernels import the package that stands beside these tests
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("NBSUPPORT", "JUPYTER"))
        }
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
                 "--ServerApp.port_retries=0", f"--ServerApp.root_dir={root}", "--LabApp.expose_app_in_browser=True",
                 "--LabApp.extension_manager=readonly"],
                env=inherited | chosen | {name: str(root / folder) for name, folder in folders.items()},
                stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        deadline = time.monotonic() + 60
        while not self._answers():
            self.check()
            if time.monotonic() > deadline:
                self.close()
                pytest.fail(f"JupyterLab does not answer:\n{self.log.read_text()}")
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/api/status?token={self.token}", timeout=5):
                return True
        except OSError:
            return False

    def check(self) -> None:
        """Fail with the end of its log if the server is gone."""
        if self.process.poll() is not None:
            pytest.fail(
                f"JupyterLab ended with {self.process.returncode}:\n{self.log.read_text()[-3000:]}"
            )

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()


class Opened:
    """A notebook in a page of a browser."""

    def __init__(self, lab: Lab, page, path: Path) -> None:
        self.lab, self.page, self.name = lab, page, path.stem
        self.sources = [cell.source for cell in nbformat.read(path, as_version=4).cells]
        self.page_errors: list[str] = []
        page.on("pageerror", lambda error: self.page_errors.append(str(error)))
        page.on("console", self._console)
        lab.check()
        page.goto(f"{lab.url}/lab/tree/notebooks/{path.name}?reset&token={lab.token}")
        self.until(IDLE, "a kernel", seconds=120)
        page.evaluate(PREPARE)

    def run(self) -> None:
        """Run all cells, up to the first that fails."""
        self.page.evaluate(
            "() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }"
        )
        executed = f"{CODE}.every((cell) => cell.model.executionCount !== null)"
        self.until(
            f"{IDLE} && (window.kernel.failed || {executed})",
            "the end of the last cell",
            seconds=900,
        )

    def _console(self, message) -> None:
        if message.type == "error":
            self.page_errors.append(f"{message.text} {message.location}")

    def until(self, condition: str, what: str, *arguments, seconds: float = 60) -> None:
        """Wait until an expression in JavaScript, of `arguments` as `a` and `b`, holds.

        The test fails if it does not within `seconds`, or if the server or the kernel dies.
        """
        deadline = time.monotonic() + seconds
        while not self.page.evaluate(f"async ([a, b]) => !!({condition})", list(arguments)):
            self.lab.check()
            statuses = self.page.evaluate("() => window.kernel?.statuses ?? []")
            if {"dead", "autorestarting", "restarting", "terminating"} & set(statuses):
                pytest.fail(f"{self.name}: the kernel died while waiting for {what}")
            if time.monotonic() > deadline:
                self.shoot("failed")
                pytest.fail(f"{self.name}: waited {seconds:.0f} s for {what}; {self.reported()}")
            self.page.wait_for_timeout(50)

    def press(self, key: str, control, picture, what: str, *, back_to: str = "") -> str:
        """Press a key on a control, and wait until the picture is another one, or `back_to`.

        Returns
        -------
        The picture before, as text that stands for its pixels.
        """
        element = picture.element_handle()
        self.until("await pixels(a)", "a picture", element)
        before = element.evaluate("pixels")
        control.focus()
        self.page.keyboard.press(key)
        if back_to:
            self.until(
                "await pixels(a) === b", f"{what} to bring the picture back", element, back_to
            )
        else:
            self.until(
                "!['', b].includes(await pixels(a))",
                f"{what} to change the picture",
                element,
                before,
            )
        return before

    def outputs(self) -> list[dict]:
        """Of all code cells; in place of one that was not executed, its source."""
        return self.page.evaluate(
            f"() => {CODE}.flatMap((cell) => cell.model.executionCount === null"
            "? [{ output_type: 'not executed', source: cell.model.sharedModel.source }] : cell.model.outputs.toJSON())"
        )

    def reported(self) -> list[str]:
        """Errors and warnings of page and kernel so far."""
        return [*self.page_errors, *self.page.evaluate("() => window.kernel?.reported ?? []")]

    def show(self, number: int):
        """Scroll to a cell, which brings it into the page, and return it."""
        self.page.evaluate(
            f"async (number) => {{ {PANEL}.content.activeCellIndex = number;"
            f" await {PANEL}.content.scrollToItem(number, 'start'); }}", number,
        )  # fmt: skip
        return self.page.locator(f".jp-Notebook:visible [data-windowed-list-index='{number}']")

    def shoot(self, what: str) -> None:
        """Keep a screenshot."""
        self.page.screenshot(path=SCREENSHOTS / f"{self.name}-{what}.png")

    def close(self) -> None:
        """End the kernel, close the page."""
        self.page.evaluate(f"() => {PANEL}.sessionContext.shutdown()")
        self.page.close()
