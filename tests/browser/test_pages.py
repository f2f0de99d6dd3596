"""The report and a notebook's page, read from files without a network, on a phone and on a desk."""

import re

import pytest
from lab import REPOSITORY
from matplotlib.figure import Figure
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from nbsupport.interactive.widgets import Browser, embed
from nbsupport.results import report, tables
from nbsupport.results.notebooks import AROUND, to_page

FIGURES = REPOSITORY / "figures"
BROKEN = """() => {  // words of letters and digits that stand on several lines
  const broken = [], nodes = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  for (let node = nodes.nextNode(); node; node = nodes.nextNode())
    for (const { 0: word, index } of node.data.matchAll(/[\\p{L}\\d_]+/gu)) {
      const range = document.createRange();
      range.setStart(node, index), range.setEnd(node, index + word.length);
      if (new Set([...range.getClientRects()].map(({ bottom }) => Math.round(bottom))).size > 1) broken.push(word);
    }
  return broken;
}"""
CUT = """() => [...document.querySelectorAll("main :is(p, li, h1, h2, h3, h4, .caption, figure, img, table, pre)")]
  .filter((element) => element.getBoundingClientRect().right > innerWidth && !element.closest(".scroll *, pre"))
  .map((element) => element.outerHTML.slice(0, 200))"""


def sliders():
    def draw(eps):
        figure = Figure(figsize=(9, 2))
        figure.suptitle(f"the picture at {eps}")
        return figure

    return embed(Browser(draw, eps={"0": 0.0, "3e-3": 3e-3}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of pages as `run` leaves it, with a small explorer and an executed notebook."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "explorer.html").write_text(f"<body>{sliders()}</body>", encoding="utf-8")
    (result,) = [each for each in report.studies([FIGURES])["cifar10"] if each.name == "table2"]
    shown = tables.styled(result.rows, result.study).to_html(), sliders()
    outputs = [new_output("display_data", data={"text/html": html}) for html in shown]
    code = new_code_cell("a_long_line = " + " + ".join(map(str, range(60))), outputs=outputs)
    text = "# One notebook\n$\\tilde I = W \\odot \\tilde I_{sl}$ [next](02_b.ipynb)"
    notebook = new_notebook(cells=[new_markdown_cell(text), code])
    (folder / "07_pa_filt.html").write_text(to_page(notebook, set(), AROUND), encoding="utf-8")
    (folder / "index.html").write_text(report.build([FIGURES], folder), encoding="utf-8")
    return folder


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["index.html", "07_pa_filt.html"])
def test_it_can_be_read_without_a_network(name, width, open_offline, folder):
    page = open_offline(folder / name, viewport={"width": width, "height": 800})
    closed = "document.querySelectorAll('main details')"
    page.evaluate(f"{closed}.forEach((each) => {{ each.open = true; }})")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate(CUT) == []
    assert page.evaluate(BROKEN) == []
    targets = page.locator("a").evaluate_all("(all) => all.map((a) => a.getAttribute('href'))")
    local = [target for target in targets if not re.match("#|https://", target)]
    assert local and all((folder / target).is_file() for target in local)
    picture, slider = page.locator(".nbs img").first, page.get_by_role("slider").first
    first = picture.get_attribute("src")
    slider.press("End")
    page.wait_for_function("([a, b]) => a.src !== b", arg=[picture.element_handle(), first])
