"""The links between notebooks, generated from their titles: ``python -m nbsupport.results.navigation``."""

from pathlib import Path

import nbformat
from nbformat import NotebookNode

from .notebooks import find

TAG = "navigation"


def title(notebook: NotebookNode) -> str:
    """The text of a notebook's only first-level heading."""
    return notebook.cells[0].source.splitlines()[0].removeprefix("# ")


def links(paths: list[Path], titles: list[str], number: int) -> str:
    """The last cell of notebook `number`: back, index, on; the index itself lists them all."""
    named = [f"[{text}]({path.name})" for path, text in zip(paths, titles, strict=True)]
    if number == 0:
        return "\n".join(["**All notebooks**", "", *(f"* {link}" for link in named[1:])])
    onward = [f"{named[number + 1]} →"] if number + 1 < len(named) else []
    return " · ".join([f"← {named[number - 1]}", f"[all notebooks]({paths[0].name})", *onward])


def update(paths: list[Path]) -> list[Path]:
    """Write the links into the notebooks' last cells.

    Returns
    -------
    The notebooks whose links were not current.
    """
    notebooks = [nbformat.read(path, as_version=4) for path in paths]
    titles, changed = [title(notebook) for notebook in notebooks], []
    for number, (path, notebook) in enumerate(zip(paths, notebooks, strict=True)):
        last = notebook.cells[-1]
        if TAG not in last.metadata.get("tags", []):
            last = nbformat.v4.new_markdown_cell(metadata={"tags": [TAG]}, id=TAG)
            notebook.cells.append(last)
        if last.source != (text := links(paths, titles, number)):
            last.source = text
            nbformat.write(notebook, path)
            changed.append(path)
    return changed


if __name__ == "__main__":
    for path in update(find([])):
        print(f"updated {path.name}")
