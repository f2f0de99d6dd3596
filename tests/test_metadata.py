"""The files beside the code agree with it and with each other."""

import re
import tomllib

import pytest
import yaml

import nbsupport
from nbsupport.results.save import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def environment():
    return yaml.safe_load((REPOSITORY / "environment.yml").read_text(encoding="utf-8"))


def test_conda_leaves_all_packages_to_pip_and_to_pyproject(environment):
    python, pip, handed = environment["dependencies"]
    assert (python.startswith("python"), pip, list(handed)) == (True, "pip", ["pip"])
    options = dict(line.split(maxsplit=1) for line in handed["pip"])
    assert (REPOSITORY / options.pop("--constraint")).is_file()
    extras = re.fullmatch(r"\.\[(.+)\]", options.pop("--editable"))[1].split(",")
    assert {"lab", "dev"} <= set(extras) <= set(PROJECT["optional-dependencies"])
    assert options == {}


def test_whoever_cites_names_this_version():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == nbsupport.__version__
    assert citation["title"] == PROJECT["description"]
    assert nbsupport.__version__ in (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
