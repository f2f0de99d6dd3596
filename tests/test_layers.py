"""The package's layers: each module is one idea of at most 250 lines and imports only from those above it."""

import ast
from pathlib import Path

import pytest

import nbsupport

# From the bottom up; a new module goes below all that import it.
ORDER = (
    "scales", "study", "processes", "disk", "store", "weight_files", "devices", "folders", "published", "neurips",
    "data", "outside", "fingerprints", "trial", "classifiers", "public_weights", "feature_denoising",
    "feature_pyramid", "folding", "attacks", "filtering", "unet", "denoisers", "defence", "shipped", "baselines",
    "losses", "training", "classifier_training", "recipes", "denoiser_training", "classifier_artefacts",
    "artefacts", "adaptive", "measurement", "evaluation", "protocol", "soundness", "tables", "adaptive_table",
    "predicates", "claims", "seeds", "style", "plots", "seed_plot", "exploration", "explorer", "adaptive_plot",
    "diagrams", "pictures", "frames", "figures", "readme", "shipping", "doctor", "runner", "navigation", "widgets",
    "results", "comparison", "prose", "page", "__main__",
)  # fmt: skip
LINES = 250
PACKAGE = Path(nbsupport.__file__).parent
MODULES = sorted(path.stem for path in PACKAGE.rglob("*.py") if path.stem != "__init__")

each = pytest.mark.parametrize("module", MODULES)


def tree(module):
    return ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))


def imported(syntax):
    """The modules of the package that are imported anywhere in a module, also within its functions."""
    for node in ast.walk(syntax):
        if isinstance(node, ast.ImportFrom):
            below = [node.module] if node.module else []
            names = [".".join([*below, alias.name]) for alias in node.names]
            if node.level == 0:  # from nbsupport.data import load; from nbsupport import data
                names = [name.removeprefix("nbsupport.") for name in names if name.startswith("nbsupport.")]
        elif isinstance(node, ast.Import):
            names = [
                alias.name.removeprefix("nbsupport.") for alias in node.names if alias.name.startswith("nbsupport.")
            ]
        else:
            continue
        yield from (name.partition(".")[0] for name in names)


@pytest.mark.parametrize(
    "line",
    [
        "from .data import load",
        "from . import data",
        "from nbsupport.data import load",
        "from nbsupport import data",
        "import nbsupport.data as d",
        "def f():\n    from .data import load",
    ],
)
def test_every_way_to_import_is_seen(line):
    assert list(imported(ast.parse(line))) == ["data"]


@pytest.mark.parametrize("line", ["import data", "from data import load", "from nbsupportive import data"])
def test_other_packages_are_not_taken_for_this_one(line):
    assert list(imported(ast.parse(line))) == []


def test_the_package_is_flat():
    assert [path.name for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE] == []


@each
def test_every_module_has_its_place(module):
    assert module in ORDER


@each
def test_a_module_imports_only_from_those_above_it(module):
    above = ORDER[: ORDER.index(module)] if module in ORDER else []
    assert set(imported(tree(module))) & {*MODULES, *ORDER} <= set(above)


def test_the_package_itself_imports_only_what_is_called_by_its_name():
    """`nbsupport.defend` and `nbsupport.load_pretrained`, for who has nothing to do with the study."""
    assert set(imported(tree("__init__"))) & set(MODULES) == {"defence", "shipped"}


@each
def test_a_module_is_at_most_250_lines(module):
    assert len((PACKAGE / f"{module}.py").read_text(encoding="utf-8").splitlines()) <= LINES


@each
def test_a_module_says_what_it_is(module):
    assert ast.get_docstring(tree(module))


@each
def test_every_public_function_and_class_has_a_docstring(module):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    public = [node for node in tree(module).body if isinstance(node, kinds) and not node.name.startswith("_")]
    assert [node.name for node in public if not ast.get_docstring(node)] == []


@each
def test_no_module_is_a_drawer(module):
    assert not {"utils", "util", "helpers", "helper", "common", "misc"} & set(module.split("_"))
