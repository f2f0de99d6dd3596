"""What the notebooks say, for the page: their openings, what stands above each result, and what they conclude."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mistune
import nbformat
from nbformat import NotebookNode

from .navigation import title

SAVED = re.compile(r'figures\.save\(\s*evaluation,\s*"(\w+)"')
STUDY = re.compile(r'^STUDY, SCALE = "(\w+)"')
PICTURE = re.compile(r"^!\[.*?\]\((.*?)\)(\n\n\*[^*\n].*\*$)?", re.MULTILINE)
"""A picture that stands alone, with the caption in italics that may follow it."""
CONCLUDING = ("## What differs", "## What to")


@dataclass(frozen=True)
class Story:
    """One notebook's words, in Markdown.

    Attributes
    ----------
    name
        The notebook's, without its ending.
    title
        Its heading, ``07 · PA-Filt: …``.
    study
        The study that it speaks of.
    opening
        Its first cell, without the heading.
    above
        For each result that it saves, in its order, the heading and the text of the cell above.
    conclusion
        What differs from the paper and why, and what to believe.
    """

    name: str
    title: str
    study: str
    opening: str
    above: dict[str, tuple[str, str]]
    conclusion: str

    @property
    def question(self) -> str:
        """The paragraph that asks it."""
        return next(
            (text for text in self.opening.split("\n\n") if text.startswith("**Question.**")), ""
        )


def told(path: Path) -> Story:
    """Read a notebook.

    Raises
    ------
    ValueError
        If its first code cell does not name a study.
    """
    notebook: NotebookNode = nbformat.read(path, as_version=4)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    named = STUDY.match(code[0]) if code else None
    if not named:
        raise ValueError(f'{path}: expected a first code cell STUDY, SCALE = "…", "…"')
    above, text = {}, ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            text = cell.source
        for name in SAVED.findall(cell.source) if cell.cell_type == "code" else ():
            heading, _, body = text.partition("\n")
            above[name] = heading.lstrip("# "), body
    _, _, opening = notebook.cells[0].source.partition("\n")
    # its own figures follow anyway, and a caption belongs to the picture that is not there
    opening = PICTURE.sub(
        lambda found: "" if found[2] or Path(found[1]).stem in above else found[0], opening
    ).strip()
    words = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    conclusion = "\n\n".join(word for word in words if word.startswith(CONCLUDING))
    return Story(path.stem, title(notebook), named[1], opening, above, conclusion)


class _Renderer(mistune.HTMLRenderer):
    """HTML without anything from outside: images become links to where they stand in the page."""

    def __init__(self, find: Callable[[str], str | None]) -> None:
        super().__init__(escape=True)
        self.find = find

    def link(self, text: str, url: str, title: str | None = None) -> str:
        if url.startswith("https://"):
            return super().link(text, url, title)
        target = self.find(url)
        return f'<a href="#{target}">{text}</a>' if target else text

    def image(self, text: str, url: str, title: str | None = None) -> str:
        target = self.find(url)
        return f'<a href="#{target}">↗ {text}</a>' if target else ""

    def paragraph(self, text: str) -> str:
        return super().paragraph(text) if text else ""

    def heading(self, text: str, level: int, **attributes: object) -> str:
        return super().heading(text, level + 2)


def html(markdown: str, find: Callable[[str], str | None] = lambda url: None) -> str:
    """Markdown of a notebook as HTML for the page; its headings go two levels down.

    Parameters
    ----------
    markdown
        As in a notebook's cell; HTML in it is shown, not obeyed.
    find
        From a local address, such as ``12_adaptive_attacks.ipynb`` or ``../figures/digits/fig2.png``, to an
        anchor in the page. Where there is none, the text of a link stays, and an image is left out.
    """
    return str(mistune.create_markdown(renderer=_Renderer(find), plugins=["table"])(markdown))
