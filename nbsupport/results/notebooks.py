"""Notebooks executed as a person would: each in a fresh kernel, every cell, every slider moved."""

import os
import time
from html import unescape
from pathlib import Path
from typing import Any

import nbformat
from nbclient.exceptions import DeadKernelError
from nbconvert import HTMLExporter
from nbconvert.preprocessors import ExecutePreprocessor
from nbformat import NotebookNode
from tqdm import tqdm

from .save import REPOSITORY

NOTEBOOKS = REPOSITORY / "notebooks"
RESULTS = REPOSITORY / "build"
EXERCISE = "from nbsupport import widgets\nprint(widgets.exercise(), 'sliders moved to both ends')"


class NotebookError(RuntimeError):
    """A notebook that did not do what it promises."""


def find(names: list[str]) -> list[Path]:
    """The notebooks whose names begin with one of `names`; all of them where that is empty.

    Raises
    ------
    FileNotFoundError
        If a name fits no notebook.
    """
    every = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    stems = [Path(name).stem for name in names]
    for stem in stems:
        if not any(path.stem.startswith(stem) for path in every):
            there = ", ".join(path.stem for path in every)
            raise FileNotFoundError(
                f"no notebook in {NOTEBOOKS} begins with {stem!r}; there are: {there}"
            )
    return [
        path for path in every if not stems or any(path.stem.startswith(stem) for stem in stems)
    ]


class _Watched(ExecutePreprocessor):
    """Shows beside the bar over cells what the bars inside of a cell say, which are widgets there."""

    def __init__(self, bar: tqdm, **options: Any) -> None:
        super().__init__(**options)
        self.bar, self.share = bar, ""

    def process_message(
        self, msg: dict[str, Any], cell: NotebookNode, cell_index: int
    ) -> NotebookNode | None:
        state = (
            msg["content"].get("data", {}).get("state", {}) if msg["msg_type"] == "comm_msg" else {}
        )
        text = unescape(str(state.get("value", ""))).replace("\u2007", " ").strip()  # tqdm's spaces
        if text.endswith("%"):
            self.share = text
        elif "/" in text and text.endswith("]"):  # done, and the time that is left
            self.bar.set_postfix_str(f"{self.share} {text}")
        return super().process_message(msg, cell, cell_index)


def execute(path: Path, study: str, scale: str, **choices: str) -> NotebookNode:
    """Run a notebook at a scale and move its sliders.

    Parameters
    ----------
    path
        The notebook.
    study, scale, choices
        What `Study.chosen` finds in the kernel's environment: the study, its scale, and whatever else is
        chosen of ``classifier``, ``data`` and ``image_size``.

    Returns
    -------
    The executed notebook, with outputs and the state of its widgets.

    Raises
    ------
    NotebookError
        If a cell fails or is left out, or an error hides in a widget.
    """
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(EXERCISE))
    with tqdm(total=len(notebook.cells), desc=path.stem, unit="cell", leave=False) as bar:

        def executed(**_: Any) -> None:
            bar.set_postfix_str("", refresh=False)
            bar.update(1)

        processor = _Watched(
            bar, timeout=None, kernel_name="python3", on_cell_executed=executed,
            extra_arguments=["--log-level=CRITICAL"],  # no encryption on this computer alone, no word on interruption
        )  # fmt: skip
        chosen = {"study": study, "scale": scale} | choices
        overrides = {f"NBSUPPORT_{name.upper()}": value for name, value in chosen.items()}
        before = {name: os.environ.get(name) for name in overrides}
        os.environ.update(overrides)  # the kernel inherits them
        try:
            processor.preprocess(notebook, {"metadata": {"path": str(path.parent)}})
        except DeadKernelError as error:
            advice = "often memory ran out; what was finished is kept, and the same command goes on from there"
            raise NotebookError(f"{path.name}: {error}; {advice}") from error
        except Exception as error:
            raise NotebookError(f"{path.name}: {error}") from error
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
    _inspect(notebook, path.name)
    notebook.cells.pop()
    return notebook


def _inspect(notebook: NotebookNode, name: str) -> None:
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "code" and cell.source.strip() and cell.execution_count is None:
            raise NotebookError(f"{name}: cell {number} was not executed")
        for output in cell.get("outputs", ()):
            if output["output_type"] == "error":
                raise NotebookError(
                    f"{name}: cell {number} failed: {output['ename']}: {output['evalue']}"
                )
    states = (
        notebook.metadata.get("widgets", {})
        .get("application/vnd.jupyter.widget-state+json", {})
        .get("state", {})
    )
    for widget in states.values():
        for output in widget["state"].get("outputs", ()):
            if output["output_type"] == "error":
                raise NotebookError(
                    f"{name}: an error hides in a widget: {output['ename']}: {output['evalue']}"
                )


def run(names: list[str], study: str, scale: str, **choices: str) -> Path:
    """Execute notebooks one after the other and keep a web page of each; `choices` as for `execute`.

    Returns
    -------
    The folder of the pages, ``build/<study>-<scale>``, which git ignores.
    """
    folder, paths = RESULTS / f"{study}-{scale}", find(names)
    folder.mkdir(parents=True, exist_ok=True)
    exporter, total = HTMLExporter(), time.monotonic()
    for path in paths:
        start = time.monotonic()
        notebook = execute(path, study, scale, **choices)
        page, _ = exporter.from_notebook_node(
            notebook, {"metadata": {"name": path.stem, "path": str(path.parent)}}
        )
        page = page.replace("../figures/", "../../figures/").replace(
            "../nbsupport/", "../../nbsupport/"
        )
        for other in find([]):  # as a page where it is one, too
            there = other in paths or (folder / f"{other.stem}.html").exists()
            link = f"{other.stem}.html" if there else f"../../notebooks/{other.name}"
            page = page.replace(f'href="{other.name}"', f'href="{link}"')
        (folder / f"{path.stem}.html").write_text(page, encoding="utf-8")
        print(f"{path.stem:30} {time.monotonic() - start:6.0f} s", flush=True)
    print(f"{'all':30} {time.monotonic() - total:6.0f} s", flush=True)
    return folder
