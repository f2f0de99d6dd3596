"""The built wheel, used in a folder of the user's, without the repository."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from bs4 import BeautifulSoup
from small import write_yours

from nbsupport.results.save import REPOSITORY

YOURS = """
import torch, nbsupport
from model import factory

torch.manual_seed(0)
images = torch.rand(3, 3, 12, 12)
labels = images.mean(dim=(2, 3)).argmax(dim=1)
denoiser = nbsupport.load_pretrained("cifar10-Filt(L_img)")
rows = nbsupport.evaluate(factory(), denoiser, images, labels, eps=[0.1], steps=2)
assert set(rows["eps"]) == {0.0, 0.1} and rows["value"].between(0, 200).all()
shown = nbsupport.explore(factory(), {"Filt": denoiser}, images, labels, eps=[0.0, 0.1])
assert shown.get_state()
assert [type(nbsupport.load_pretrained(name)) for name in nbsupport.denoisers.pretrained.names()]
"""
TINY = """
import sys
from nbsupport.__main__ import main
from nbsupport.study import STUDIES

STUDIES["folder"]["quick"] = STUDIES["folder"]["smoke"]
main(sys.argv[1:])
"""
CUSTOM = ["--study", "folder", "--data", "photos", "--classifier", "model.py:factory"]


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """The wheel, installed into a folder of its own."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    shutil.copytree(REPOSITORY / "nbsupport", source / "nbsupport")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", source, source]
    subprocess.run(build, check=True)
    (wheel,) = source.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", target, wheel], check=True)
    return target


@pytest.fixture(scope="module")
def yours(tmp_path_factory):
    """A user's folder inside another project's repository: a model file, images of three classes."""
    return write_yours(tmp_path_factory.mktemp("yours"))


@pytest.fixture
def use(target, yours, tmp_path_factory):
    """Run a command in the user's folder; nothing may appear beside the installed package."""
    home = tmp_path_factory.getbasetemp() / "installed-home"
    environment = {"PYTHONPATH": str(target), "NBSUPPORT_HOME": str(home), "PYTHONWARNINGS": ""}
    before = sorted(target.rglob("*"))

    def run(*command, code=0):
        options = dict(cwd=yours, env=os.environ | environment, capture_output=True, text=True)
        done = subprocess.run([str(part) for part in command], **options)
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    yield run
    assert sorted(target.rglob("*")) == before


def test_every_file_of_the_package_is_in_the_wheel(target):
    every = [path.relative_to(REPOSITORY) for path in (REPOSITORY / "nbsupport").rglob("*.*")]
    lost = [path for path in every if path.suffix != ".pyc" and not (target / path).exists()]
    assert len(every) > 50 and lost == []


def test_the_eight_lines_of_the_readme_defend_a_classifier(use):
    readme = (REPOSITORY / "README.md").read_text("utf-8")
    (lines,) = re.findall(r"```python\n(import nbsupport\n.*?)```", readme, re.DOTALL)
    for slow, fast in {"adaptive=True": "adaptive=True, steps=1", "PA-Filt": "Filt"}.items():
        lines = lines.replace(slow, fast)
    printed = use(sys.executable, "-c", lines)
    assert printed.count("tensor(") == 2 and "adaptive" in printed


def test_your_own_classifier_and_images_in_python(use):
    use(sys.executable, "-c", YOURS)


def test_the_command_computes_and_refuses_what_needs_the_repository(use, target, yours):
    command = target / "bin" / "nbsupport"
    message = use(command, "run", "07", code=1)
    assert "repository" in message and len(message.splitlines()) == 1
    assert "Filt(L_img)" in use(command, "compute", *CUSTOM, "--scale", "smoke", "--tables", "1")
    assert {path.name for path in yours.iterdir()} <= {"model.py", "photos", "__pycache__"}


def test_tables_and_claims_are_saved_and_shown_on_a_page(use, target, yours):
    subprocess.run(["git", "init", "-q", yours], check=True)
    use(sys.executable, "-c", TINY, "compute", *CUSTOM, "--tables", "1", "2", "3", "4")
    results = yours / "build" / "results" / "folder"
    names = {path.name for path in results.iterdir()}
    saved = ("table1", "table2", "table3", "table4", "claims")
    assert names == {f"{name}.{ending}" for name in saved for ending in ("csv", "json", "md")}
    record = json.loads((results / "table1.json").read_text("utf-8"))
    assert record["notebook"] is None and record["commit"] is None
    assert record["study"]["classifier"] == "model.py:factory"
    report = ["report", *CUSTOM, "--scale", "smoke", "--tables", "1", "--html"]
    assert "Table 1." in use(target / "bin" / "nbsupport", *report)
    page = BeautifulSoup((yours / "build" / "report.html").read_text("utf-8"), "html.parser")
    shown = [tag["id"] for tag in page.find_all(class_="result")]
    assert shown == [f"folder-{name}" for name in sorted(saved)]
    assert "MIT License" in page.find(id="citing").text
    assert "doi" not in page.text and not page.find(class_="missing")
