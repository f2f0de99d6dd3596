"""Execute notebooks in fresh kernels into web pages; run as a module, it renews their links."""

import contextlib
import io
import os
import re
import threading
import time
from base64 import b64encode
from collections import deque
from html import escape, unescape
from pathlib import Path
from queue import Queue
from typing import Any

import nbformat
import torch
from bs4 import BeautifulSoup
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_core.utils import ensure_event_loop
from markupsafe import Markup
from matplotlib.mathtext import math_to_image
from nbclient import NotebookClient
from nbclient.exceptions import DeadKernelError
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter
from tqdm import tqdm
from traitlets.config import Config

from ..interactive.widgets import EXPORT
from . import report
from .save import REPOSITORY

NOTEBOOKS = REPOSITORY / "notebooks"
PAGES = REPOSITORY / "build"
WIDGETS = "application/vnd.jupyter.widget-state+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
SHOWN = ["text/html", "image/svg+xml", "image/png", "text/markdown", "text/plain"]
AROUND = {"index.html": "Results", "explorer.html": "Explorer"}
CODE = HtmlFormatter(style="xcode").get_style_defs(".highlight")
DARK = HtmlFormatter(style="github-dark").get_style_defs(".highlight")


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
    label = percentage = ""

    def process_message(self, msg: Any, cell: NotebookNode, cell_index: int) -> NotebookNode | None:
        data = msg["content"].get("data", {}) if msg["msg_type"] == "comm_msg" else {}
        text = unescape(str(data.get("state", {}).get("value", "")))
        text = text.replace("\u2007", " ").strip()  # the spaces of tqdm
        if text.endswith("%"):
            self.label, _, self.percentage = text.rpartition(": ")
        elif "/" in text and text.endswith("]"):  # finished steps and the remaining time
            steps = f"{self.percentage.strip()} {text.partition(',')[0]}]"
            self.bar.set_postfix_str(f"{steps} {self.label}")
        return super().process_message(msg, cell, cell_index)


def execute(
    path: Path, study: str, scale: str, threads: int | None = None, **choices: str
) -> NotebookNode:
    """Run a notebook and return it with its outputs and the state of its widgets.

    `Study.chosen` finds the study, its scale and the `choices` (``classifier``, ``robust``,
    ``data``, ``image_size``) in the kernel's environment; PyTorch computes with so many `threads`.
    Raises `NotebookError` if a cell fails or an error hides in a widget.
    """
    notebook = nbformat.read(path, as_version=4)
    chosen = {"study": study, "scale": scale, **choices}
    environment = {f"NBSUPPORT_{name.upper()}": value for name, value in chosen.items()}
    environment |= {"TQDM_BAR_FORMAT": "", EXPORT: "1"}
    if threads and "OMP_NUM_THREADS" not in os.environ:
        environment["OMP_NUM_THREADS"] = str(threads)
    client: Any = _Watched(
        notebook,
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": path.parent}},
        extra_arguments=["--log-level=CRITICAL"],  # silent about unencrypted local connections
    )
    # without folders of kernels, "python3" is this Python and no other that is installed
    client.create_kernel_manager().kernel_spec_manager = KernelSpecManager(kernel_dirs=[])
    with tqdm(notebook.cells, desc=path.stem[:2], unit="cell", leave=False) as client.bar:
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
    """Execute notebooks into web pages in ``build/<study>-<scale>``, without a GPU two at a time.

    Above ``smoke``, whose numbers mean nothing, the report is their ``index.html``. Raises the
    first `NotebookError`; the other notebook ends with this process.
    """
    paths, folder = find(names), PAGES / f"{study}-{scale}"
    folder.mkdir(parents=True, exist_ok=True)
    start, around = time.monotonic(), AROUND if scale != "smoke" else {}
    there = {*(each.stem for each in paths), *(page.stem for page in folder.glob("*.html"))}
    at_once = 1 if torch.cuda.is_available() else min(os.cpu_count() or 1, len(paths), 2)
    threads = max((os.cpu_count() or 1) // at_once, 1)
    left, ended = deque(paths), Queue[tuple[Path, float, Any]]()

    def work() -> None:
        with contextlib.suppress(IndexError):  # nothing is left
            while path := left.popleft():
                before = time.monotonic()
                try:
                    found: Any = execute(path, study, scale, threads, **choices)
                except Exception as error:
                    found = error
                ended.put((path, time.monotonic() - before, found))
        ensure_event_loop().close()  # nbclient opened this thread's

    for _ in range(at_once):  # daemons: an interruption does not wait for cells
        threading.Thread(target=work, daemon=True).start()
    for _ in paths:
        path, seconds, found = ended.get()
        if isinstance(found, Exception):
            raise found
        page = folder / f"{path.stem}.html"
        page.write_text(to_page(found, there, around), encoding="utf-8")
        tqdm.write(f"{path.stem:30} {seconds:6.0f} s")
    if around:
        with contextlib.suppress(FileNotFoundError):  # nothing has saved a result yet
            report.write(folder / "index.html")
    print(f"{'all':30} {time.monotonic() - start:6.0f} s", flush=True)
    return folder


def to_page(notebook: NotebookNode, there: set[str], around: dict[str, str]) -> str:
    """An executed notebook as a page that needs no network, with a line of links `around` it.

    Links to the notebooks in `there` lead to their pages; others within the repository are text.
    """
    for cell in notebook.cells:
        if cell.cell_type == "markdown":  # in code, dollars are dollars
            cell.source = re.sub(r"`[^`]*`|(\$\$?)([^$`]+)\1", _draw_formula, cell.source)
        else:  # what only a kernel can draw: bars of progress
            cell.outputs = [
                x for x in cell.outputs if WIDGET not in x.get("data", {}) or "text/html" in x.data
            ]
    exporter = HTMLExporter(
        template_name="basic", exclude_anchor_links=True, exclude_input_prompt=True,
        exclude_output_prompt=True,
        config=Config({"NbConvertBase": {"display_data_priority": SHOWN}}),
    )  # fmt: skip
    notebook.metadata.pop("widgets", None)
    body, _ = exporter.from_notebook_node(notebook)
    soup = BeautifulSoup(body, "html.parser")
    for anchor in soup.select("a[href]"):
        target = Path(str(anchor["href"]))
        if target.suffix == ".ipynb" and target.stem in there:
            anchor["href"] = f"{target.stem}.html"
        elif not re.match("https?:|#", str(anchor["href"])):
            anchor.unwrap()
    for image in soup.select('img:not([src^="data:"])'):
        file = NOTEBOOKS / str(image["src"])
        if not file.is_file():  # nothing has made it yet
            image.replace_with(str(image.get("alt", "")))
            continue
        drawn = b64encode(file.read_bytes()).decode()
        image["src"] = f"data:image/{Path(str(image['src'])).suffix[1:]};base64,{drawn}"
    for table in soup.select("table"):  # a wide one scrolls below its caption
        box = table.wrap(soup.new_tag("div", attrs={"class": "scroll", "tabindex": "0"}))
        if caption := table.caption:
            box.insert_before(caption)
            caption.name, caption["class"] = "p", "caption"
    title = soup.h1.get_text() if soup.h1 else ""
    return report.render(
        "page.html", title=title, body=Markup(soup), around=around, code=CODE, dark=DARK
    )


def _draw_formula(match: re.Match[str]) -> str:
    """LaTeX as a picture, since MathJax needs a network; what Matplotlib cannot draw, as code."""
    if not match[1]:
        return match[0]
    formula, file = f"${match[2].strip()}$", io.BytesIO()
    try:
        below = math_to_image(formula, file, dpi=72, format="svg")
    except ValueError:
        return f"`{match[2]}`"
    drawn = b64encode(file.getvalue()).decode()
    style = f'class="formula" style="vertical-align: -{below / 16:.3f}em"'
    return f'<img {style} alt="{escape(match[2])}" src="data:image/svg+xml;base64,{drawn}">'


def link(paths: list[Path]) -> None:
    """Write links to the previous, first and next notebook into their cells; the first lists all.

    The cell has the tag ``navigation``.
    """
    notebooks = [nbformat.read(path, as_version=4) for path in paths]
    titles = [each.cells[0].source.partition("\n")[0].removeprefix("# ") for each in notebooks]
    links = [f"[{title}]({path.name})" for title, path in zip(titles, paths, strict=True)]
    for number, (path, notebook) in enumerate(zip(paths, notebooks, strict=True)):
        onward = [f"{link} →" for link in links[number + 1 : number + 2]]
        text = " · ".join([f"← {links[number - 1]}", f"[all notebooks]({paths[0].name})", *onward])
        if number == 0:
            text = "\n".join(["**All notebooks**", "", *(f"* {link}" for link in links[1:])])
        tagged = (cell for cell in notebook.cells if "navigation" in cell.metadata.get("tags", ()))
        if (cell := next(tagged)).source != text:
            cell.source = text
            nbformat.write(notebook, path)


if __name__ == "__main__":
    link(find([]))
