"""The notebooks: what a reader may rely on in each, that every cell and every slider works, and what checks that."""

import ast
import os
import re
import shutil
import statistics
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from nbsupport.results import navigation
from nbsupport.results import notebooks as runner
from nbsupport.results.notebooks import NotebookError, execute, find
from nbsupport.results.save import REPOSITORY
from nbsupport.study import Study

PATHS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
MOST_LINES, MEDIAN_LINES, DEF_LINES = 25, 5, 10

every_notebook = pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])


def cells(path, kind):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def code(path):
    return [cell.source for cell in cells(path, "code")]


def filled(source):
    return [line for line in source.splitlines() if line.strip()]


def functions(path):
    """The functions that a notebook defines, from their names to what they do."""
    nodes = [node for source in code(path) for node in ast.walk(ast.parse(source))]
    return [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


# -- all of them together ------------------------------------------------------------------------


def test_names_are_numbered():
    assert [
        path.name for path in PATHS if not re.fullmatch(r"\d\d_[a-z0-9_]+\.ipynb", path.name)
    ] == []


def test_numbers_are_unique():
    assert len({path.name[:2] for path in PATHS}) == len(PATHS)


def test_the_first_is_where_to_start():
    assert PATHS[0].name == "00_start_here.ipynb"


def test_no_function_is_defined_twice():
    bodies = Counter(
        "\n".join(map(ast.dump, node.body)) for path in PATHS for node in functions(path)
    )
    assert [body for body, times in bodies.items() if times > 1] == []


def test_navigation_is_current(tmp_path):
    copies = [Path(shutil.copy(path, tmp_path)) for path in PATHS]
    before = [copy.read_bytes() for copy in copies]
    assert navigation.update(copies) == []
    assert [copy.read_bytes() for copy in copies] == before


# -- each of them --------------------------------------------------------------------------------


@every_notebook
def test_a_notebook_is_valid(path):
    nbformat.validate(nbformat.read(path, as_version=nbformat.NO_CONVERT))


@every_notebook
def test_it_is_committed_without_outputs(path):
    assert [
        cell.id for cell in cells(path, "code") if cell.outputs or cell.execution_count is not None
    ] == []


@every_notebook
def test_it_is_committed_without_the_state_of_widgets(path):
    assert "widgets" not in nbformat.read(path, as_version=4).metadata


@every_notebook
def test_it_runs_in_any_python_3(path):
    kernel = nbformat.read(path, as_version=4).metadata.kernelspec
    assert (kernel.name, kernel.language) == ("python3", "python")


@every_notebook
def test_one_title_in_the_first_cell(path):
    titles = [
        line
        for cell in cells(path, "markdown")
        for line in cell.source.splitlines()
        if line.startswith("# ")
    ]
    first = nbformat.read(path, as_version=4).cells[0]
    assert titles == first.source.splitlines()[:1]
    assert titles[0].startswith(f"# {path.name[:2]} · ")


@every_notebook
def test_the_first_code_cell_chooses_study_and_scale(path):
    (line,) = filled(code(path)[0])
    study, scale = re.match(r'STUDY, SCALE = "(\w+)", "(\w+)"', line).groups()
    assert Study.named(study, scale)


@every_notebook
def test_no_cell_has_more_than_25_lines(path):
    assert [source for source in code(path) if len(filled(source)) > MOST_LINES] == []


@every_notebook
def test_the_median_cell_has_at_most_5(path):
    assert statistics.median(len(filled(source)) for source in code(path)) <= MEDIAN_LINES


@every_notebook
def test_no_cell_is_empty(path):
    assert [
        cell.id
        for kind in ("code", "markdown")
        for cell in cells(path, kind)
        if not cell.source.strip()
    ] == []


@every_notebook
def test_every_cell_is_python(path):
    for source in code(path):
        ast.parse(source)


@every_notebook
def test_a_longer_function_belongs_in_the_package(path):
    assert [
        node.name for node in functions(path) if node.end_lineno - node.lineno + 1 > DEF_LINES
    ] == []


@every_notebook
def test_sliders_are_the_packages(path):
    """They are what `widgets.exercise` moves."""
    assert [source for source in code(path) if "ipywidgets" in source] == []


def links(path):
    """What a notebook links to or embeds, but for the web."""
    texts = "\n".join(cell.source for cell in cells(path, "markdown"))
    targets = re.findall(r"\]\(([^)\s]+)\)", texts) + re.findall(
        r"(?:src|href)=[\"']([^\"']+)", texts
    )
    return [
        unquote(target.partition("#")[0])
        for target in targets
        if not re.match(r"https?:|mailto:|#", target)
    ]


@every_notebook
def test_links_and_images_are_there(path):
    # figures come from a run of all notebooks; before the first, none of them is there
    made = any((REPOSITORY / "figures" / "digits").glob("*"))
    missing = [target for target in links(path) if not (path.parent / target).is_file()]
    assert [
        target for target in missing if made or not target.startswith("../figures/digits/")
    ] == []


@every_notebook
def test_embedded_figures_are_saved_by_some_notebook(path):
    saved = {
        name
        for each in PATHS
        for source in code(each)
        for name in re.findall(r'save\(\s*evaluation,\s*"(\w+)"', source)
    }
    assert {
        Path(target).stem for target in links(path) if target.startswith("../figures/")
    } <= saved


@every_notebook
def test_it_saves_under_its_own_name(path):
    names = [name for source in code(path) for name in re.findall(r'notebook="([^"]*)"', source)]
    assert set(names) <= {path.stem}


@every_notebook
def test_it_runs_and_its_sliders_move(path):
    """Every cell in a fresh kernel on the smallest study, from an empty store; no warning is left for the reader."""
    executed = execute(path, "digits", "smoke")
    assert [cell.source for cell in executed.cells] == [
        cell.source for cell in nbformat.read(path, as_version=4).cells
    ]
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


@pytest.fixture
def no_exercise(monkeypatch):
    """As if there were nothing to move, so that only the notebook itself counts."""
    monkeypatch.setattr(runner, "EXERCISE", "None")


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


def test_a_good_notebook_comes_back_with_its_outputs_and_sliders(notebook):
    path = notebook("print('hello')", BROWSER)
    before = path.read_bytes()
    executed = execute(path, "digits", "smoke")
    assert executed.cells[1].outputs[0].text == "hello\n"
    assert len(executed.cells) == 3
    state = executed.metadata.widgets["application/vnd.jupyter.widget-state+json"].state
    assert "SelectionSliderModel" in {widget["model_name"] for widget in state.values()}
    assert path.read_bytes() == before


def test_a_failing_cell_is_an_error(notebook, no_exercise):
    with pytest.raises(NotebookError, match=r"(?s)^00_tiny\.ipynb: .*ZeroDivisionError"):
        execute(notebook("1 / 0"), "digits", "smoke")


def test_broken_frames_are_an_error(notebook):
    with pytest.raises(NotebookError, match=r"(?s)slider 'number': .*KeyError"):
        execute(notebook(BROWSER, "browser.frames.pop((1,));"), "digits", "smoke")


SWALLOWED = """
import ipywidgets

output = ipywidgets.Output()
with output:
    1 / 0
"""


@pytest.mark.parametrize("shown", ["output", ""], ids=["shown", "hidden"])
def test_an_error_that_an_output_swallows_is_an_error(shown, notebook, no_exercise):
    with pytest.raises(
        NotebookError, match="an error hides in a widget: ZeroDivisionError: division by zero"
    ):
        execute(notebook(SWALLOWED + shown), "digits", "smoke")


def test_a_cell_that_is_left_out_is_an_error(notebook, no_exercise):
    with pytest.raises(NotebookError, match=r"^00_tiny\.ipynb: cell 2 was not executed"):
        execute(notebook("1", ("2", ["skip-execution"])), "digits", "smoke")


def test_a_failing_cell_that_is_allowed_to_fail_is_an_error_all_the_same(notebook, no_exercise):
    with pytest.raises(NotebookError, match="ZeroDivisionError"):
        execute(notebook(("1 / 0", ["raises-exception"])), "digits", "smoke")


def test_a_kernel_that_dies_is_an_error(notebook, no_exercise):
    with pytest.raises(
        NotebookError, match=r"^00_tiny\.ipynb: .*[Kk]ernel died.*; often memory ran out"
    ):
        execute(notebook("import os", "os._exit(1)"), "digits", "smoke")


BARS = """
from tqdm.notebook import tqdm

for _ in tqdm(range(3), desc="training"):
    pass
"""


def test_the_bars_inside_of_a_cell_are_seen_beside_the_bar_over_cells(
    notebook, no_exercise, capsys
):
    execute(notebook(BARS), "digits", "smoke")
    assert "training: 100%" in capsys.readouterr().err


ENVIRONMENT = "import os\nprint(os.environ['NBSUPPORT_STUDY'], os.environ['NBSUPPORT_SCALE'])"


@pytest.mark.parametrize(
    "before", [{}, {"NBSUPPORT_STUDY": "mine", "NBSUPPORT_SCALE": "paper"}], ids=["unset", "set"]
)
@pytest.mark.parametrize("last", ["None", "1 / 0"], ids=["good", "failing"])
def test_the_environment_is_the_kernels_alone(before, last, notebook, no_exercise, monkeypatch):
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    path = notebook(ENVIRONMENT, f"assert os.environ['NBSUPPORT_SCALE'] == 'smoke'\n{last}")
    if last == "None":
        assert execute(path, "digits", "smoke").cells[1].outputs[0].text == "digits smoke\n"
    else:
        with pytest.raises(NotebookError, match="ZeroDivisionError"):
            execute(path, "digits", "smoke")
    assert {
        name: value
        for name, value in os.environ.items()
        if name in ("NBSUPPORT_STUDY", "NBSUPPORT_SCALE")
    } == before


def test_other_choices_reach_the_kernel_too(notebook, no_exercise):
    path = notebook("from nbsupport.study import Study\nprint(Study.chosen())")
    executed = execute(
        path, "folder", "smoke", data="photos", classifier="mine.py:factory", image_size="24"
    )
    study = Study.named(
        "folder", "smoke", data="photos", classifier="mine.py:factory", image_size=24
    )
    assert executed.cells[1].outputs[0].text == f"{study}\n"
    assert not {name for name in os.environ if name.startswith("NBSUPPORT_")} - {"NBSUPPORT_HOME"}


@pytest.fixture
def tiny(notebook, tmp_path, monkeypatch, no_exercise):
    """Three notebooks in place of the real ones."""
    for name in ("02_b.ipynb", "00_start.ipynb", "01_a.ipynb", "draft.ipynb"):
        notebook("print('![](../figures/digits/fig1.png)')", name=name)
    monkeypatch.setattr(runner, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr(runner, "RESULTS", tmp_path / "build")
    return tmp_path


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ([], ["00_start", "01_a", "02_b"]),
        (["02", "00"], ["00_start", "02_b"]),
        (["01_a"], ["01_a"]),
        (["notebooks/01_a.ipynb"], ["01_a"]),
        (["01", "01_a"], ["01_a"]),
    ],
    ids=str,
)
def test_notebooks_are_found_by_the_beginnings_of_their_names(names, found, tiny):
    assert [path.stem for path in find(names)] == found


@pytest.mark.parametrize("name", ["03", "a", "draft"])
def test_a_name_that_fits_none_is_refused_with_those_that_there_are(name, tiny):
    with pytest.raises(
        FileNotFoundError, match=f"begins with '{name}'; there are: 00_start, 01_a, 02_b"
    ):
        find(["01", name])


def test_a_run_keeps_a_page_of_each(tiny, capsys):
    folder = runner.run(["00", "02"], "digits", "smoke")
    assert folder == tiny / "build" / "digits-smoke"
    assert sorted(page.name for page in folder.iterdir()) == ["00_start.html", "02_b.html"]
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "00_start",
        "02_b",
        "all",
    ]


def test_a_page_finds_its_figures(tiny):
    page = (runner.run(["00"], "digits", "smoke") / "00_start.html").read_text(encoding="utf-8")
    assert "](../../figures/digits/fig1.png)" in page


def test_a_page_leads_to_other_pages_and_where_there_is_none_to_the_notebook(tiny):
    link = "[here](01_a.ipynb) [there](02_b.ipynb) [code](../nbsupport/seeds.py)"
    nbformat.write(
        new_notebook(cells=[new_markdown_cell(link), new_code_cell("1")]), tiny / "00_start.ipynb"
    )
    runner.run(["01"], "digits", "smoke")
    page = (runner.run(["00"], "digits", "smoke") / "00_start.html").read_text(encoding="utf-8")
    for address in ("01_a.html", "../../notebooks/02_b.ipynb", "../../nbsupport/seeds.py"):
        assert f'href="{address}"' in page


# -- the links between them ----------------------------------------------------------------------


@pytest.fixture
def three(tmp_path):
    paths = [
        tmp_path / f"{number:02}_{name}.ipynb"
        for number, name in enumerate(("index", "one", "two"))
    ]
    for path in paths:
        nbformat.write(new_notebook(cells=[new_markdown_cell(f"# {path.stem}\nMore.")]), path)
    return paths


def last_cell(path):
    return nbformat.read(path, as_version=4).cells[-1].source


def test_navigation_links_back_to_the_index_and_on(three):
    assert navigation.update(three) == three
    assert last_cell(three[1]) == (
        "← [00_index](00_index.ipynb) · [all notebooks](00_index.ipynb) · [02_two](02_two.ipynb) →"
    )
    assert last_cell(three[2]) == "← [01_one](01_one.ipynb) · [all notebooks](00_index.ipynb)"


def test_the_index_lists_all_others(three):
    navigation.update(three)
    assert last_cell(three[0]).splitlines()[2:] == [
        "* [01_one](01_one.ipynb)",
        "* [02_two](02_two.ipynb)",
    ]


def test_navigation_follows_a_new_title(three):
    navigation.update(three)
    changed = nbformat.read(three[2], as_version=4)
    changed.cells[0].source = "# Another title"
    nbformat.write(changed, three[2])
    assert navigation.update(three) == three[:2]
    assert navigation.update(three) == []
    assert len(nbformat.read(three[1], as_version=4).cells) == 2
