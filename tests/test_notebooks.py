"""The notebooks: what a reader may rely on, that every cell and slider works, and the runner."""

import json
import os
import re
import shutil
import statistics
import sys
from base64 import b64decode
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from nbsupport.results import notebooks as runner
from nbsupport.results.notebooks import NotebookError, execute, find
from nbsupport.results.save import REPOSITORY
from nbsupport.study import EPS, Study

PATHS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))

every_notebook = pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])


def cells(path, kind):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def code(path):
    return [cell.source for cell in cells(path, "code")]


# -- all of them together ------------------------------------------------------------------------


def test_the_links_between_them_are_current_and_follow_a_new_title(tmp_path):
    copies = [Path(shutil.copy(path, tmp_path)) for path in PATHS]
    before = [copy.read_bytes() for copy in copies]
    runner.link(copies)
    assert [copy.read_bytes() for copy in copies] == before
    changed = nbformat.read(copies[2], as_version=4)
    changed.cells[0].source = "# Another title"
    nbformat.write(changed, copies[2])
    runner.link(copies)
    linked = ["[Another title]" in copy.read_text("utf-8") for copy in copies[:5]]
    assert linked == [True, True, False, True, False]  # the index, before and after


# -- each of them --------------------------------------------------------------------------------


@every_notebook
def test_a_notebook_is_valid_and_committed_without_outputs(path):
    nbformat.validate(nbformat.read(path, as_version=nbformat.NO_CONVERT))
    assert not any(cell.outputs or cell.execution_count for cell in cells(path, "code"))


@every_notebook
def test_one_title_in_the_first_cell(path):
    titles = re.findall(r"(?m)^# .*", "\n".join(cell.source for cell in cells(path, "markdown")))
    first = nbformat.read(path, as_version=4).cells[0]
    assert titles == first.source.splitlines()[:1]
    assert titles[0].startswith(f"# {path.name[:2]} · ")


@every_notebook
def test_one_cell_chooses_study_and_scale_and_sliders_are_the_packages(path):
    settings = r'STUDY, SCALE = \(?\s*"(\w+)",\s*"(\w+)"'
    (chosen,) = (found for each in code(path) if (found := re.match(settings, each)))
    assert Study.named(*chosen.groups())
    assert not any("ipywidgets" in source for source in code(path))  # `exercise` moves Browsers


@every_notebook
def test_cells_are_short(path):
    lengths = [sum(1 for line in source.splitlines() if line.strip()) for source in code(path)]
    assert max(lengths) <= 25 and statistics.median(lengths) <= 5


@every_notebook
def test_links_and_images_are_there(path):
    text = "\n".join(cell.source for cell in cells(path, "markdown"))
    targets = re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=[\"']([^\"']+)", text)
    targets = [markdown or html for markdown, html in targets]
    local = [target for target in targets if not re.match(r"https?:|mailto:|#", target)]
    files = [path.parent / unquote(target.partition("#")[0]) for target in local]
    assert [file for file in files if not file.is_file()] == []


@every_notebook
def test_a_picture_is_a_result_of_the_notebook_that_shows_it(path):
    text = "\n".join(cell.source for cell in cells(path, "markdown"))
    pictures = [path.parent / target for target in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)]
    records = [json.loads(picture.with_suffix(".json").read_text("utf-8")) for picture in pictures]
    assert [record["notebook"] for record in records] == [path.stem] * len(pictures)
    assert pictures or path.name.startswith("00")


@every_notebook
def test_prose_states_no_result(path):
    """A number with decimals is a strength, a section of the paper or a setting of the code."""
    text = "\n".join(cell.source for cell in cells(path, "markdown"))
    text = re.sub(r"```.*?```|`[^`]*`|\$\$?[^$]+\$\$?|\]\([^)]*\)", "", text, flags=re.DOTALL)
    settings = {*map(float, re.findall(r"\d*\.?\d+", "\n".join(code(path))))} | {*EPS}
    text = re.sub(r"[Ss]ections? [34]\.\d", "", text)
    numbers = re.findall(r"(?<![\w.])\d*\.\d+\b(?! ε)", text)
    assert [number for number in numbers if float(number) not in settings] == []
    shares = {*map(float, re.findall(r"([\d.]+) ?(?:%|dB)", text))}
    assert shares <= settings | {95, 5}  # of intervals and tests


@every_notebook
def test_every_formula_can_be_drawn_without_a_network(path):
    text = "\n".join(cell.source for cell in cells(path, "markdown"))
    formulas = [found for found in re.finditer(r"`[^`]*`|(\$\$?)([^$`]+)\1", text) if found[1]]
    assert [each[2] for each in formulas if runner._draw_formula(each).startswith("`")] == []


EXERCISE = f"""import sys
sys.path.append({str(Path(__file__).parent)!r})
from exercise import exercise
exercise()"""


@pytest.fixture
def shared_store(tmp_path_factory, monkeypatch):
    """One store for all notebooks, in every process of pytest, and for the tests in a browser."""
    place = tmp_path_factory.getbasetemp()
    place = place.parent if "PYTEST_XDIST_WORKER" in os.environ else place
    shared = os.environ.get("STORE_OF_NOTEBOOKS", str(place / "store"))
    monkeypatch.setenv("NBSUPPORT_HOME", shared)


@every_notebook
@pytest.mark.usefixtures("shared_store")
def test_it_runs_and_its_sliders_move(path, tmp_path):
    """Every cell in a fresh kernel on the smallest study, and a last one that moves the sliders."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(new_code_cell(EXERCISE))
    copy = tmp_path / "notebooks" / path.name
    copy.parent.mkdir()
    nbformat.write(notebook, copy)
    executed = execute(copy, "photographs", "smoke")
    outputs = [output for cell in executed.cells for output in cell.get("outputs", ())]
    assert [output.text for output in outputs if "Warning" in output.get("text", "")] == []


# -- the runner ----------------------------------------------------------------------------------


@pytest.fixture
def notebook(tmp_path):
    """Writes a notebook of code cells; a pair is a cell and its tags."""

    def write(*sources, name="00_tiny.ipynb"):
        pairs = [source if isinstance(source, tuple) else (source, []) for source in sources]
        made = [new_code_cell(source, metadata={"tags": tags}) for source, tags in pairs]
        path = tmp_path / name
        nbformat.write(new_notebook(cells=[new_markdown_cell("# Tiny"), *made]), path)
        return path

    return write


BROWSER = """
from matplotlib.figure import Figure
from nbsupport.interactive.widgets import Browser

def draw(number):
    figure = Figure(figsize=(1, 1))
    figure.text(0, 0.5, str(number))
    return figure

browser = Browser(draw, number={"one": 1, "two": 2})
browser
"""


SWALLOWED = """
import ipywidgets
with (output := ipywidgets.Output()):
    1 / 0
"""
BROKEN = {
    "is allowed to fail": ([("1 / 0", ["raises-exception"])], "ZeroDivisionError"),
    "is left out": (["1", ("2", ["skip-execution"])], "cell 2 was not executed"),
    "swallows an error": ([SWALLOWED], "widget: ZeroDivisionError"),
    "kills its kernel": (["import os", "os._exit(1)"], "[Kk]ernel died.*memory"),
}


@pytest.mark.parametrize(("sources", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_cell_is_an_error_that(sources, reason, notebook):
    with pytest.raises(NotebookError, match=rf"(?s)^00_tiny\.ipynb: .*{reason}"):
        execute(notebook(*sources), "photographs", "smoke")


def test_a_readers_own_figure_is_shown_after_one_of_the_packages(notebook):
    """Though the package draws in a style of its own, which it leaves again."""
    ours = "with plots.sheet():\n    figure, _ = plots.new_figure(1, 1, (1, 1))\nfigure"
    theirs = "import matplotlib.pyplot as plt\nplt.plot([1, 2]);"
    path = notebook("from nbsupport.results import plots", ours, theirs)
    *_, first, second = execute(path, "photographs", "smoke").cells
    assert all("image/png" in cell.outputs[0].data for cell in (first, second))


def test_the_kernel_is_this_python_whatever_is_installed(notebook, tmp_path, monkeypatch):
    (tmp_path / "kernels/python3").mkdir(parents=True)
    kernel = json.dumps({"argv": ["false"], "display_name": "Python 3", "language": "python"})
    (tmp_path / "kernels/python3/kernel.json").write_text(kernel)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    executed = execute(notebook("import sys; print(sys.executable)"), "photographs", "smoke")
    assert executed.cells[1].outputs[0].text.strip() == sys.executable


def test_an_interruption_stays_one(notebook):
    stop = "import os, signal, time\nos.kill(os.getppid(), signal.SIGINT)\ntime.sleep(60)"
    with pytest.raises(KeyboardInterrupt):
        execute(notebook(stop), "photographs", "smoke")


BARS = """
from tqdm.notebook import tqdm

for _ in tqdm(range(3), desc="training"):
    pass
"""


def test_choices_reach_the_kernel_alone(notebook, monkeypatch):
    monkeypatch.setenv("NBSUPPORT_SCALE", "paper")
    path = notebook("from nbsupport.study import Study\nprint(Study.chosen())")
    choices = {"data": "photos", "classifier": "mine.py:factory"}
    executed = execute(path, "folder", "smoke", image_size="24", **choices)
    # what a kernel makes of relative paths
    choices = {name: str(Path(choice).absolute()) for name, choice in choices.items()}
    study = Study.named("folder", "smoke", image_size=24, **choices)
    assert executed.cells[1].outputs[0].text == f"{study}\n"
    assert os.environ["NBSUPPORT_SCALE"] == "paper" and "NBSUPPORT_DATA" not in os.environ


@pytest.fixture
def tiny(notebook, tmp_path, monkeypatch):
    """Three notebooks in place of the real ones."""
    for name in ("02_b.ipynb", "00_start.ipynb", "01_a.ipynb", "draft.ipynb"):
        notebook("print('![](../figures/cifar10/fig1.png)')", name=name)
    monkeypatch.setattr(runner, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(runner, "PAGES", tmp_path / "build")
    return tmp_path


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ([], ["00_start", "01_a", "02_b"]),
        (["02", "00"], ["00_start", "02_b"]),
        (["notebooks/01_a.ipynb", "01"], ["01_a"]),
    ],
    ids=str,
)
def test_notebooks_are_found_by_the_beginnings_of_their_names(names, found, tiny):
    assert [path.stem for path in find(names)] == found


def test_a_name_that_fits_none_is_refused_with_those_that_there_are(tiny):
    with pytest.raises(FileNotFoundError, match=r"'draft'.*00_start, 01_a, 02_b"):
        find(["01", "draft"])


MIXED = r"""# Mixed
[here](01_a.ipynb) [there](02_b.ipynb#end) [code](../nbsupport/seeds.py) [far](https://doi.org)

A formula, $\tilde I_{sl} \odot W$, one for MathJax alone, $\tfrac12$, and `$HOME and $PATH`.

![A figure](fig1.png)
"""
TABLE = "import pandas as pd; pd.DataFrame({'x': [1]}).style.set_caption('What it shows')"


def test_a_run_keeps_pages_that_need_nothing_else(tiny, capsys):
    cells = [new_markdown_cell(MIXED), *map(new_code_cell, (TABLE, BARS, BROWSER))]
    nbformat.write(new_notebook(cells=cells), tiny / "00_start.ipynb")
    shutil.copy(REPOSITORY / "figures" / "cifar10" / "fig1.png", tiny)
    before = (tiny / "00_start.ipynb").read_bytes()
    folder = runner.run(["00", "01"], "photographs", "smoke")
    assert (tiny / "00_start.ipynb").read_bytes() == before
    assert folder == tiny / "build" / "photographs-smoke"
    assert sorted(page.name for page in folder.iterdir()) == ["00_start.html", "01_a.html"]
    page = BeautifulSoup((folder / "00_start.html").read_text("utf-8"), "html.parser")
    assert [a["href"] for a in page.find_all("a")] == ["01_a.html", "https://doi.org"]
    sources = [tag["src"] for tag in page.find_all(src=True)]
    assert all(source.startswith("data:image/") for source in sources)
    assert not page.find_all("link") and "there code" in page.get_text()
    drawn = b64decode(page.find(alt="A figure")["src"].partition(",")[2])
    assert drawn == (tiny / "fig1.png").read_bytes()
    formula = page.find(class_="formula")
    assert formula["alt"] == r"\tilde I_{sl} \odot W" and "svg" in formula["src"]
    assert [tag.get_text() for tag in page.find_all("code")] == [r"\tfrac12", "$HOME and $PATH"]
    caption = page.find(class_="caption")
    assert caption.get_text() == "What it shows" and not caption.find_parent("table")
    assert "3/3" not in page.get_text()  # a bar of progress
    (state,) = page.find_all("script", type="application/json")
    assert json.loads(state.string)["sliders"] == [["number", ["one", "two"]]]
    printed = capsys.readouterr()
    *each, last = [line.split()[0] for line in printed.out.splitlines()]
    assert sorted(each) == ["00_start", "01_a"] and last == "all"
    assert re.search(r"100% 3/3 \[\S+\] training", printed.err)  # the bar inside of a cell


def test_the_first_failure_ends_a_run(tiny):
    nbformat.write(new_notebook(cells=[new_code_cell("1 / 0")]), tiny / "00_start.ipynb")
    with pytest.raises(NotebookError, match=r"(?s)^00_start\.ipynb: .*ZeroDivisionError"):
        runner.run(["00", "01"], "photographs", "smoke")


def test_above_smoke_the_report_stands_with_the_pages(tiny, monkeypatch):
    monkeypatch.setattr(runner.report, "write", lambda path: path.write_text("the report"))
    nbformat.write(new_notebook(cells=[new_markdown_cell("# Tiny")]), tiny / "03_c.ipynb")
    folder = runner.run(["03"], "photographs", "quick")
    assert (folder / "index.html").read_text() == "the report"
    page = BeautifulSoup((folder / "03_c.html").read_text("utf-8"), "html.parser")
    assert [a["href"] for a in page.nav.find_all("a")] == ["index.html", "explorer.html"]
