"""Results that are saved: what is written, where, with which record, and what is committed."""

import base64
import dataclasses
import io
import json
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from nbsupport.experiments.artifacts import Experiment
from nbsupport.experiments.evaluation import COLUMNS, measurement_specification
from nbsupport.results import save as saving
from nbsupport.results.paper_figures import Frames
from nbsupport.results.plots import draw_bands, draw_strip
from nbsupport.results.save import REPOSITORY, commit, folder, provenance, roots, save
from nbsupport.results.tables import caption, document
from nbsupport.study import Study

METHODS = ("attacked", "Filt(L_img)")
SVG = "{http://www.w3.org/2000/svg}"
NOTEBOOK = "03_image_vs_semantic_loss"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where the figures of ``digits`` go in this test."""
    monkeypatch.setenv("NBSUPPORT_FIGURES", str(tmp_path / "figures"))
    return tmp_path / "figures" / "digits"


@pytest.fixture
def experiment(experiment, place):
    """The smoke study under another name of its scale, so that its results count."""
    return Experiment(dataclasses.replace(experiment.study, scale="quick"), experiment.store)


def tidy(rows=1, **columns):
    same = {"study": "digits", "classifier": "small_resnet", "attack": "pgd", "steps": 4, "n": 24}
    same |= {"table": 1, "method": "attacked", "eps": 0.1, "metric": "accuracy", "value": 0.5}
    same |= {"seed": 0}
    return pd.DataFrame(same | columns, columns=COLUMNS, index=range(rows))


def write(experiment, name, content, methods=METHODS, **others):
    return save(experiment, name, content, notebook=NOTEBOOK, methods=methods, **others)


def picture():
    figure = Figure()
    figure.add_subplot().plot([0, 1])
    return figure


def written(place):
    return sorted(path.name for path in place.iterdir()) if place.exists() else []


def read(place, name):
    return json.loads((place / f"{name}.json").read_text(encoding="utf-8"))


# -- where ---------------------------------------------------------------------------------------


def test_results_go_below_build_unless_figures_are_asked_for(place, monkeypatch, tmp_path):
    assert folder("digits") == place and roots() == [place.parent]
    monkeypatch.delenv("NBSUPPORT_FIGURES")
    assert folder("digits") == REPOSITORY / "build" / "results" / "digits"
    assert roots()[1] == REPOSITORY / "figures"
    monkeypatch.setattr(saving, "REPOSITORY", tmp_path / "site-packages")
    assert folder("digits") == Path.cwd() / "build" / "results" / "digits"


@pytest.mark.parametrize("content", [picture(), tidy()], ids=["figure", "table"])
def test_smoke_writes_nothing(content, experiment, place):
    smoke = Experiment(dataclasses.replace(experiment.study, scale="smoke"), experiment.store)
    assert write(smoke, "any", content) is None
    assert written(place) == []


# -- what ----------------------------------------------------------------------------------------


def test_a_table_becomes_csv_markdown_and_json(experiment, place):
    rows = tidy(4, value=[0.1234564, np.inf, 0.0, 1 / 3], eps=[0.0, 1e-4, 0.3, 0.5])
    path = write(experiment, "table1", rows)
    assert path == place / "table1.csv"
    assert written(place) == ["table1.csv", "table1.json", "table1.md"]
    again = pd.read_csv(path)
    assert list(again) == COLUMNS and list(again["eps"]) == list(rows["eps"])
    np.testing.assert_allclose(again["value"], rows["value"], rtol=1e-5)


def test_a_figure_becomes_svg_png_and_json_and_names_its_data(experiment, place):
    drawn = picture()
    path = write(experiment, "fig2", drawn, images=1)
    assert path == place / "fig2.png"
    assert written(place) == ["fig2.json", "fig2.png", "fig2.svg"]
    assert path.read_bytes().startswith(b"\x89PNG\r\n")
    assert ElementTree.parse(path.with_suffix(".svg")).getroot().tag == f"{SVG}svg"
    note = "small_resnet on digits, 1 test image, seed 0, quick"
    assert drawn.texts[0].get_text() == note and read(place, "fig2")["images"] == 1


def test_the_same_figure_is_the_same_file(experiment, place):
    found = []
    settings = {"font.size": 30, "svg.hashsalt": "x", "svg.fonttype": "none", "savefig.dpi": 10}
    for user in ({}, settings):
        with plt.rc_context(user):
            write(experiment, "fig2", draw_bands((0.0, 0.1), {"attacked": np.eye(2)}, "y"))
        found.append({ending: (place / f"fig2.{ending}").read_bytes() for ending in ("svg", "png")})
    assert found[0] == found[1]


def test_letters_are_outlines_and_pixels_stay_pixels(experiment, place):
    figure = draw_strip([torch.rand(3, 5, 7)], ["title"])
    write(experiment, "fig2", figure)
    svg = ElementTree.parse(place / "fig2.svg")
    assert list(svg.iter(f"{SVG}text")) == []
    (image,) = svg.iter(f"{SVG}image")
    encoded = image.get("{http://www.w3.org/1999/xlink}href").partition("base64,")[2]
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as stored:
        assert stored.size == (7, 5)


def test_frames_become_png_and_json(experiment, place):
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    words, notes = (("7", None, "7"), ("1", None, "7")), (("", "", ""), ("", "", ""))
    sheet = Frames(pixels, 2, 5, "7", (0.0, 0.1), ("Î", "W", "Ĩ"), words, notes)
    path = write(experiment, "frames", sheet, images=1)
    assert written(place) == ["frames.json", "frames.png"]
    with Image.open(path) as stored:
        np.testing.assert_array_equal(np.asarray(stored), pixels)
    index = read(place, "frames")["frames"]
    expected = {"eps": [0.0, 0.1], "names": ["Î", "W", "Ĩ"], "size": 2, "image": 5, "truth": "7"}
    assert {name: index[name] for name in expected} == expected
    assert index["words"][1] == ["1", None, "7"]


def test_markdown_and_csv_round_alike(experiment, place):
    # 32.004996 dB are 32.00 dB; rounded to 32.005 on the way, they become 32.01
    values, study = [k + 0.004996 for k in range(28, 41)], experiment.study
    rows = tidy(13, value=values, eps=study.eps, metric="psnr", table=2)
    write(experiment, "table2", rows)
    again = pd.read_csv(place / "table2.csv")
    page = document(again, study, caption("table2", study), [])
    assert page == (place / "table2.md").read_text(encoding="utf-8")


def test_failures_stand_in_the_markdown(experiment, place, monkeypatch):
    monkeypatch.setattr(saving, "failures", lambda *_: ["W is the same everywhere"])
    write(experiment, "table4", tidy(table=4))
    assert "> W is the same everywhere" in (place / "table4.md").read_text(encoding="utf-8")
    assert read(place, "table4")["failures"] == ["W is the same everywhere"]


# -- provenance ----------------------------------------------------------------------------------


def test_provenance_lies_beside_the_file_and_names_all_that_is_needed(experiment, place):
    write(experiment, "fig2", picture(), specifications=[{"kind": "adaptive"}])
    found, made = read(place, "fig2"), provenance(experiment, NOTEBOOK, METHODS)
    assert set(found) == {*made, "caption"} and study_of(found) == experiment.study
    assert found["caption"] == caption("fig2", experiment.study)
    expected = {"notebook": NOTEBOOK, "scale": "quick", "seed": 0, "images": 24}
    assert {name: found[name] for name in expected} == expected
    assert found["device"] and {"python", "torch", "foolbox", "nbsupport"} <= set(found["versions"])
    measured = [measurement_specification(experiment, method) for method in METHODS]
    specifications = [*json.loads(json.dumps(measured)), {"kind": "adaptive"}]
    assert found["specifications"] == specifications


def study_of(record):
    """The study of a record; settings that are newer than the record are as they are named today."""
    settings = record["study"].items()
    return Study.named(**{key: tuple(v) if isinstance(v, list) else v for key, v in settings})


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository of its own, with one commit of one notebook and one figure."""
    root = tmp_path / "repository"
    for name in ("notebooks/00_start.ipynb", "figures/digits/fig1.png"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text("1")
    (root / "pyproject.toml").write_text('[project]\nname = "nbsupport"\n')
    monkeypatch.setattr(saving, "REPOSITORY", root)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    return root


def git(root, *arguments):
    identity = ["user.name=test", "user.email=test@example.org", "commit.gpgsign=false"]
    options = [word for setting in identity for word in ("-c", setting)]
    command = ["git", "-C", root, *options, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def committed(repository):
    git(repository, "init", "--quiet")
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--message", "first")
    return repository


def test_the_commit_is_that_of_the_repository(committed):
    assert commit() == {"commit": git(committed, "rev-parse", "HEAD"), "clean": True}


@pytest.mark.parametrize(
    ("name", "clean"), [("notebooks/00_start.ipynb", False), ("new.py", False), ("figures/a", True)]
)
def test_a_change_outside_of_the_figures_is_not_clean(name, clean, committed):
    (committed / name).write_text("2")
    assert commit()["clean"] is clean


def test_without_a_repository_or_git_nothing_is_claimed(repository, tmp_path, monkeypatch):
    assert commit() == {"commit": None, "clean": None}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() == {"commit": None, "clean": None}


@pytest.mark.parametrize("foreign", ["no clone", "a repository around it"])
def test_the_commit_of_another_project_is_not_claimed(foreign, committed, monkeypatch):
    package = committed / "vendor"
    package.mkdir()
    if foreign == "a repository around it":
        (package / "notebooks").mkdir()
        (package / "pyproject.toml").write_text('[project]\nname = "nbsupport"\n')
    monkeypatch.setattr(saving, "REPOSITORY", package)
    assert commit() == {"commit": None, "clean": None}


# -- failures while writing ----------------------------------------------------------------------


class FullError(OSError):
    """The disk is full."""


class HalfFigure(Figure):
    def savefig(self, file, **options):
        file.write_bytes(b"half")
        raise FullError


class HalfRows(pd.DataFrame):
    def to_csv(self, file, **options):
        file.write_bytes(b"half")
        raise FullError


@pytest.mark.parametrize(
    ("half", "whole"),
    [(HalfFigure(), picture()), (HalfRows(tidy()), tidy())],
    ids=["figure", "table"],
)
def test_a_failing_write_leaves_nothing_and_keeps_what_was_there(half, whole, experiment, place):
    with pytest.raises(FullError):
        write(experiment, "table1", half)
    assert written(place) == []
    write(experiment, "table1", whole)
    before = {name: (place / name).read_bytes() for name in written(place)}
    with pytest.raises(FullError):
        write(experiment, "table1", half)
    assert {name: (place / name).read_bytes() for name in written(place)} == before


@pytest.mark.parametrize("content", [picture(), tidy()], ids=["figure", "table"])
def test_nothing_is_written_without_its_provenance(content, experiment, place, monkeypatch):
    def missing(*arguments):
        raise FullError

    monkeypatch.setattr(saving, "provenance", missing)
    with pytest.raises(FullError):
        write(experiment, "any", content)
    assert written(place) == []


# -- what is committed ---------------------------------------------------------------------------


def committed_files(pattern):
    return sorted((REPOSITORY / "figures").glob(f"*/{pattern}"))


@pytest.mark.parametrize(
    "place", sorted({path.parent for path in committed_files("*.json")}), ids=lambda p: p.name
)
def test_committed_results_have_their_records_and_are_rendered_from_their_numbers(place):
    names = {path.stem for path in place.iterdir()}
    for name in names:
        record = read(place, name)
        study = study_of(record)
        assert record["clean"] is True and len(record["commit"]) == 40, name
        assert record["scale"] == study.scale != "smoke" and study.name == place.name, name
        assert record["study"] == read(place, min(names))["study"], name
        assert record["caption"] == caption(name, study), name
        notebook = REPOSITORY / "notebooks" / f"{record['notebook']}.ipynb"
        assert f'\\"{name}\\"' in notebook.read_text(encoding="utf-8"), name
        if (table := place / f"{name}.csv").is_file():
            page = document(pd.read_csv(table), study, record["caption"], record["failures"])
            assert table.with_suffix(".md").read_text(encoding="utf-8") == page, name


def test_committed_tables_are_complete():
    for path in committed_files("table*.csv"):
        rows, study = pd.read_csv(path), study_of(read(path.parent, path.stem))
        assert list(rows) == COLUMNS, path.name
        curves = rows[rows["steps"] == study.steps].groupby(["method", "attack", "metric"])["eps"]
        assert set(curves.agg(tuple)) == {study.eps}, path.name
        itself = rows["attack"] == "pgd-on-itself"
        assert set(rows[~itself]["n"]) == {study.test_images}, path.name
        most = study.self_attack_images or study.test_images
        assert set(rows[itself]["n"]) <= {most}, path.name


def test_committed_pictures_are_pictures_and_their_letters_outlines():
    for path in committed_files("*.png"):
        with Image.open(path) as image:
            image.verify()
        assert path.stem == "frames" or path.with_suffix(".svg").is_file()
    for path in committed_files("*.svg"):
        assert list(ElementTree.parse(path).iter(f"{SVG}text")) == [], path.name


def test_the_committed_frames_are_of_all_strengths():
    for path in committed_files("frames.json"):
        record = read(path.parent, "frames")
        index, size = record["frames"], record["frames"]["size"]
        assert index["eps"] == record["study"]["eps"], path
        with Image.open(path.with_suffix(".png")) as sheet:
            assert sheet.size == (size * len(index["names"]), size * len(index["eps"])), path
