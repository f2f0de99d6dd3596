"""The notebooks' words in the page."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from nbsupport.results import prose
from nbsupport.results.prose import told
from nbsupport.results.save import REPOSITORY

OPENING = """# 05 · Heads

**Question.** Which *head*?

![Its own figure](../figures/digits/fig9.png)

![Another](../figures/digits/fig1.png)

![With a caption](../figures/digits/fig1.png)

*This caption ([06](06_x.ipynb)) goes with it.*

*Italics* begin this paragraph and stay."""


@pytest.fixture
def notebook(tmp_path):
    cells = [
        new_markdown_cell(OPENING),
        new_code_cell('STUDY, SCALE = "digits", "quick"'),
        new_markdown_cell("## Figure 9\nWhat it *shows*."),
        new_code_cell('x = 1\nfigures.save(\n    evaluation,\n    "fig9",\n    figure)'),
        new_code_cell('figures.save(evaluation, "table9", rows)'),
        new_markdown_cell("## What differs from the paper, and why\n* This."),
        new_markdown_cell("## What to believe\n* That."),
        new_markdown_cell("## What it is worth\nMore."),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "05_heads.ipynb")
    return tmp_path / "05_heads.ipynb"


def test_a_notebook_is_told(notebook):
    story = told(notebook)
    assert (story.name, story.title, story.study) == ("05_heads", "05 · Heads", "digits")
    assert story.question == "**Question.** Which *head*?"
    assert story.above == dict.fromkeys(("fig9", "table9"), ("Figure 9", "What it *shows*."))
    assert (
        story.conclusion
        == "## What differs from the paper, and why\n* This.\n\n## What to believe\n* That."
    )


def test_pictures_that_follow_or_bring_a_caption_are_left_out(notebook):
    opening = told(notebook).opening
    assert "fig9" not in opening
    assert "caption" not in opening
    assert "![Another]" in opening
    assert "*Italics* begin" in opening


def test_a_notebook_without_a_study_is_refused(tmp_path):
    nbformat.write(
        new_notebook(cells=[new_markdown_cell("# 00 · A"), new_code_cell("1")]),
        tmp_path / "00_a.ipynb",
    )
    with pytest.raises(
        ValueError, match=r'00_a\.ipynb: expected a first code cell STUDY, SCALE = "…", "…"'
    ):
        told(tmp_path / "00_a.ipynb")


def test_every_notebook_of_the_repository_is_told():
    for path in sorted((REPOSITORY / "notebooks").glob("*.ipynb")):
        story = told(path)
        assert story.question, path.name
        assert all(heading for heading, _ in story.above.values()), path.name


@pytest.mark.parametrize(
    ("markdown", "html"),
    [
        ("[12](12_x.ipynb)", '<p><a href="#here">12</a></p>\n'),
        ("[12](absent.ipynb)", "<p>12</p>\n"),
        ("![Figure](12_x.ipynb)", '<p><a href="#here">↗ Figure</a></p>\n'),
        ("![Figure](absent.png)", ""),
        ("[doi](https://doi.org/1)", '<p><a href="https://doi.org/1">doi</a></p>\n'),
        ("## Two", "<h4>Two</h4>\n"),
        ("<b>not obeyed</b>", "<p>&lt;b&gt;not obeyed&lt;/b&gt;</p>\n"),
        ("[x](javascript:alert)", "<p>x</p>\n"),
    ],
)
def test_markdown_becomes_html_that_stays_within_the_page(markdown, html):
    assert prose.html(markdown, {"12_x.ipynb": "here"}.get) == html


def test_tables_are_tables():
    assert "<td>1</td>" in prose.html("| a |\n|---|\n| 1 |\n")
