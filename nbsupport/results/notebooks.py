"""Execute notebooks in fresh kernels into web pages; run as a module, it renews their links."""

import os
import time
from html import unescape
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from tqdm import tqdm

from ..interactive.screen import EXPORT
from .save import REPOSITORY

NOTEBOOKS = REPOSITORY / "notebooks"
PAGES = REPOSITORY / "build"
WIDGETS = "application/vnd.jupyter.widget-state+json"


class NotebookError(RuntimeError):
    """A notebook failed, left a cell out, or hides an error in a widget."""


def find(names: list[str]) -> list[Path]:
    """The notebooks that begin with one of `names`, or all.

    Raises `FileNotFoundError` if a name fits none.
    """
    every = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if not every:
        raise FileNotFoundError(f"no notebooks in {NOTEBOOKS}: they come with a clone")
    stems = tuple(Path(name).stem for name in names)
    there = [path.stem for path in every]
    if wrong := [stem for stem in stems if not any(name.startswith(stem) for name in there)]:
        reason = f"no notebook begins with {wrong[0]!r}; there are: {', '.join(there)}"
        raise FileNotFoundError(reason)
    return [path for path in every if path.stem.startswith(stems or "")]


class _Watched(NotebookClient):
    """Shows the progress bars inside a cell, which are widgets, beside its `bar` over cells."""

    bar: tqdm
    percentage = ""

    def process_message(self, msg: Any, cell: NotebookNode, cell_index: int) -> NotebookNode | None:
        data = msg["content"].get("data", {}) if msg["msg_type"] == "comm_msg" else {}
        text = unescape(str(data.get("state", {}).get("value", "")))
        text = text.replace("\u2007", " ").strip()  # the spaces of tqdm
        if text.endswith("%"):
            self.percentage = text
        elif "/" in text and text.endswith("]"):  # finished steps and the remaining time
            self.bar.set_postfix_str(f"{self.percentage} {text}")
        return super().process_message(msg, cell, cell_index)


def execute(path: Path, study: str, scale: str, **choices: str) -> NotebookNode:
    """Run a notebook and return it with its outputs and the state of its widgets.

    `Study.chosen` finds the study, its scale and the `choices` (``classifier``, ``robust``,
    ``data``, ``image_size``) in the kernel's environment. Raises `NotebookError` if a cell fails or
    an error hides in a widget.
    """
    notebook = nbformat.read(path, as_version=4)
    chosen = {"study": study, "scale": scale, **choices}
    environment = {f"NBSUPPORT_{name.upper()}": value for name, value in chosen.items()}
    environment[EXPORT] = "1"
    client: Any = _Watched(
        notebook,
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": path.parent}},
        extra_arguments=["--log-level=CRITICAL"],  # silent about unencrypted local connections
    )
    # without folders of kernels, "python3" is this Python and no other that is installed
    client.create_kernel_manager().kernel_spec_manager = KernelSpecManager(kernel_dirs=[])
    with tqdm(notebook.cells, desc=path.stem, unit="cell", leave=False) as client.bar:
        try:
            # client.execute() takes over SIGINT: an interruption would look like a dead kernel
            with client.setup_kernel(env=os.environ | environment):
                for number, cell in enumerate(client.bar):
                    client.execute_cell(cell, number)
                    client.bar.set_postfix_str("", refresh=False)
            client.set_widgets_metadata()
            _check_outputs(notebook)
        except Exception as error:
            advice = "; often memory ran out; everything finished is kept, run it again"
            advice = advice if isinstance(error, DeadKernelError) else ""
            raise NotebookError(f"{path.name}: {error}{advice}") from error
    return notebook


def _check_outputs(notebook: NotebookNode) -> None:
    widgets = notebook.metadata.get("widgets", {}).get(WIDGETS, {}).get("state", {})
    outputs = [output for each in widgets.values() for output in each["state"].get("outputs", ())]
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "code" and cell.source.strip() and cell.execution_count is None:
            raise ValueError(f"cell {number} was not executed")
        outputs += cell.get("outputs", ())
    for output in outputs:
        if output["output_type"] == "error":
            raise ValueError(f"error in a cell or widget: {output['ename']}: {output['evalue']}")


def run(names: list[str], study: str, scale: str, **choices: str) -> Path:
    """Execute notebooks one after the other into web pages in ``build/<study>-<scale>``."""
    paths, folder = find(names), PAGES / f"{study}-{scale}"
    folder.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    for path in paths:
        before = time.monotonic()
        notebook = execute(path, study, scale, **choices)
        page, _ = HTMLExporter().from_notebook_node(notebook, {"metadata": {"name": path.stem}})
        for place in ("figures", "nbsupport"):
            page = page.replace(f"../{place}/", f"../../{place}/")
        for other in find([]):  # a link leads to the other's page if there is one
            exists = other in paths or (folder / f"{other.stem}.html").exists()
            link = f"{other.stem}.html" if exists else f"../../notebooks/{other.name}"
            page = page.replace(f'href="{other.name}"', f'href="{link}"')
        (folder / f"{path.stem}.html").write_text(page, encoding="utf-8")
        print(f"{path.stem:30} {time.monotonic() - before:6.0f} s", flush=True)
    print(f"{'all':30} {time.monotonic() - start:6.0f} s", flush=True)
    return folder


def link(paths: list[Path]) -> None:
    """Write links to the previous, first and next notebook into last cells; the first lists all."""
    notebooks = [nbformat.read(path, as_version=4) for path in paths]
    titles = [each.cells[0].source.partition("\n")[0].removeprefix("# ") for each in notebooks]
    links = [f"[{title}]({path.name})" for title, path in zip(titles, paths, strict=True)]
    for number, (path, notebook) in enumerate(zip(paths, notebooks, strict=True)):
        onward = [f"{link} →" for link in links[number + 1 : number + 2]]
        text = " · ".join([f"← {links[number - 1]}", f"[all notebooks]({paths[0].name})", *onward])
        if number == 0:
            text = "\n".join(["**All notebooks**", "", *(f"* {link}" for link in links[1:])])
        if notebook.cells[-1].source != text:
            notebook.cells[-1].source = text
            nbformat.write(notebook, path)


if __name__ == "__main__":
    link(find([]))
