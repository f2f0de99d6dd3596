"""The wings of the package: an import goes from a wing only to those before it."""

import ast
from pathlib import Path

import pytest

import nbsupport

WINGS = (
    "study", "data", "classifiers", "denoisers", "attacks", "training", "experiments",
    "interactive", "results", "__main__",
)  # fmt: skip
PACKAGE = Path(nbsupport.__file__).parent
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def wing(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_wings(path):
    """The wings that a file imports anywhere, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            parts = path.relative_to(PACKAGE).parts[: -node.level]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            for name in names:
                yield [*parts, *name.split(".")][0]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nbsupport"):
            names = node.module.split(".")[1:2] or [alias.name for alias in node.names]
            yield from names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_an_import_goes_only_to_the_wings_before(path):
    assert wing(path) in WINGS
    later = set(WINGS[WINGS.index(wing(path)) + 1 :])
    assert not later & set(imported_wings(path))
