"""Results that are saved: what is written, where, with which record, and what is committed."""

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from nbsupport.experiments.artifacts import Experiment
from nbsupport.experiments.evaluation import COLUMNS, measurement_specification
from nbsupport.experiments.methods import CHECKS, CLEAN_PSNR
from nbsupport.results import save as saving
from nbsupport.results import tables
from nbsupport.results.save import REPOSITORY, commit, folder, roots, save
from nbsupport.results.tables import caption, document
from nbsupport.study import Study

METHODS = ("attacked", "Filt(L_img)")
SVG = "{http://www.w3.org/2000/svg}"
NOTEBOOK = "03_image_vs_semantic_loss"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where the figures of ``photographs`` go in this test."""
    monkeypatch.setenv("NBSUPPORT_FIGURES", str(tmp_path / "figures"))
    return tmp_path / "figures" / "photographs"


@pytest.fixture
def experiment(experiment, place):
    """The smoke study under another name of its scale, so that its results count."""
    return Experiment(dataclasses.replace(experiment.study, scale="quick"), experiment.store)


def tidy(rows=1, **columns):
    same = {"study": "photographs", "classifier": "small_resnet", "attack": "pgd", "steps": 4}
    same |= {"n": 24, "table": 1, "method": "attacked", "eps": 0.1, "metric": "accuracy"}
    same |= {"value": 0.5, "seed": 0}
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
    assert folder("photographs") == place and roots() == [place.parent]
    monkeypatch.delenv("NBSUPPORT_FIGURES")
    assert folder("photographs") == REPOSITORY / "build" / "results" / "photographs"
    assert roots()[1] == REPOSITORY / "figures"
    monkeypatch.setattr(saving, "REPOSITORY", tmp_path / "site-packages")
    assert folder("photographs") == Path.cwd() / "build" / "results" / "photographs"


# -- what ----------------------------------------------------------------------------------------


def test_a_table_becomes_csv_markdown_and_json_that_round_alike(experiment, place):
    # 32.004996 dB are 32.00 dB; rounded to 32.005 on the way, they become 32.01
    study, values = experiment.study, [np.inf, *(k + 0.004996 for k in range(28, 40))]
    rows = tidy(13, value=values, eps=study.eps, metric="psnr", table=2)
    path = write(experiment, "table2", rows)
    assert path == place / "table2.csv"
    assert written(place) == ["table2.csv", "table2.json", "table2.md"]
    again = pd.read_csv(path)
    pd.testing.assert_frame_equal(again, rows, rtol=1e-5)
    page = document(again, study, caption("table2", study), [])
    assert page == path.with_suffix(".md").read_text(encoding="utf-8")


def test_a_figure_becomes_svg_png_and_json_and_names_its_data(experiment, place):
    drawn = picture()
    path = write(experiment, "fig2", drawn, images=1)
    assert path == place / "fig2.png"
    assert written(place) == ["fig2.json", "fig2.png", "fig2.svg"]
    assert path.read_bytes().startswith(b"\x89PNG\r\n")
    assert ElementTree.parse(path.with_suffix(".svg")).getroot().tag == f"{SVG}svg"
    note = "small_resnet on photographs, 1 test image, seed 0, quick"
    assert drawn.texts[0].get_text() == note and read(place, "fig2")["images"] == 1


def test_the_numbers_of_a_figure_and_what_failed_lie_beside_it(experiment, place, monkeypatch):
    monkeypatch.setattr(saving, "failures", lambda *_: ["W is the same everywhere"])
    path = write(experiment, "operating_points", picture(), rows=tidy(2))
    assert path == place / "operating_points.png"
    endings = ("csv", "json", "png", "svg")
    assert written(place) == [f"operating_points.{ending}" for ending in endings]
    pd.testing.assert_frame_equal(pd.read_csv(path.with_suffix(".csv")), tidy(2))
    assert read(place, "operating_points")["failures"] == ["W is the same everywhere"]
    path = write(experiment, "table4", tidy(table=4)).with_suffix(".md")
    assert "> W is the same everywhere" in path.read_text(encoding="utf-8")


def test_frames_become_png_and_json(experiment, place):
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    index = {"size": 2, "image": 5, "eps": [0.0, 0.1], "words": [["7", None], ["1", None]]}
    path = write(experiment, "frames", (pixels, index), images=1)
    assert written(place) == ["frames.json", "frames.png"]
    with Image.open(path) as stored:
        np.testing.assert_array_equal(np.asarray(stored), pixels)
    assert read(place, "frames")["frames"] == index


# -- provenance ----------------------------------------------------------------------------------


def test_provenance_lies_beside_the_file_and_names_all_that_is_needed(experiment, place):
    write(experiment, "fig2", picture())
    found = read(place, "fig2")
    assert found.items() >= commit().items() and Study.recorded(found["study"]) == experiment.study
    assert found["caption"] == caption("fig2", experiment.study)
    expected = {"notebook": NOTEBOOK, "scale": "quick", "seed": 0, "images": 24}
    assert {name: found[name] for name in expected} == expected
    assert found["device"] and {"python", "torch", "foolbox", "nbsupport"} <= set(found["versions"])
    measured = [measurement_specification(experiment, method) for method in METHODS]
    assert found["specifications"] == json.loads(json.dumps(measured))
    write(experiment, "fig2", picture(), specifications=[{"kind": "adaptive"}])
    assert read(place, "fig2")["specifications"] == [{"kind": "adaptive"}]  # what it was made from


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A clone of its own, with one commit."""
    root = tmp_path / "repository"
    (root / "figures").mkdir(parents=True)
    (root / "pyproject.toml").write_text('[project]\nname = "nbsupport"\n')
    monkeypatch.setattr(saving, "REPOSITORY", root)
    for words in ("init", "add .", "commit -m first"):
        git(root, *words.split())
    return root


def git(root, *words):
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    command = ["git", "-C", root, *identity, "-c", "commit.gpgsign=false", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.mark.parametrize(
    ("name", "clean"),
    [("pyproject.toml", False), ("new.py", False), ("figures/a", True)],
)
def test_the_commit_is_the_clones_and_clean_unless_more_than_figures_changed(
    name, clean, repository
):
    with (repository / name).open("a") as file:
        file.write("# 2")
    assert commit() == {"commit": git(repository, "rev-parse", "HEAD"), "clean": clean}


@pytest.mark.parametrize("where", ["another project", "a repository around", "no git"])
def test_no_commit_is_claimed_elsewhere(where, repository, monkeypatch):
    if where == "another project":
        (repository / "pyproject.toml").write_text('[project]\nname = "other"\n')
    elif where == "no git":
        monkeypatch.setenv("PATH", str(repository))
    else:
        (repository / "vendor").mkdir()
        shutil.copy(repository / "pyproject.toml", repository / "vendor")
        monkeypatch.setattr(saving, "REPOSITORY", repository / "vendor")
    assert commit() == {"commit": None, "clean": None}


# -- failures while writing ----------------------------------------------------------------------


@pytest.mark.parametrize("content", [picture(), tidy()], ids=["figure", "table"])
def test_a_failing_write_leaves_nothing_and_keeps_what_was_there(
    content, experiment, place, monkeypatch
):
    def fail(self, file, **options):
        file.write_bytes(b"half")
        raise OSError

    for before in ({}, None):
        if before is None:
            write(experiment, "table1", content)
            before = {path: path.read_bytes() for path in place.iterdir()}
        with monkeypatch.context() as patch:
            patch.setattr(Figure, "savefig", fail)
            patch.setattr(pd.DataFrame, "to_csv", fail)
            with pytest.raises(OSError):
                write(experiment, "table1", content)
        assert {path: path.read_bytes() for path in place.iterdir()} == before


def test_nothing_is_written_without_its_provenance(experiment, place, monkeypatch):
    monkeypatch.setattr(saving, "commit", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write(experiment, "any", tidy())
    assert written(place) == []


# -- what is committed ---------------------------------------------------------------------------

COMMITTED = sorted((REPOSITORY / "figures").glob("*/*.json"))
COMMITTED = [path for path in COMMITTED if path.name != saving.RESULTS]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_committed_result_is_complete_and_rendered_from_its_numbers(path, monkeypatch):
    name, record = path.stem, json.loads(path.read_text("utf-8"))
    study = Study.recorded(record["study"])
    others = [
        json.loads(each.read_text("utf-8")) for each in COMMITTED if each.parent == path.parent
    ]
    if name == "adaptive":  # its caption names the checks of its time
        made = set(pd.read_csv(path.with_suffix(".csv"))["metric"])
        checks = {check: text for check, text in CHECKS.items() if f"check: {check}" in made}
        monkeypatch.setattr(tables, "CHECKS", checks)
    assert record["clean"] is True and len(record["commit"]) == 40
    name_of_study, _, robust = path.parent.name.partition("-")
    assert record["scale"] == study.scale != "smoke" and study.name == name_of_study
    assert robust in study.robust and bool(robust) == bool(study.robust)
    # before claims were judged in the worst case, and before all ε were attacked at once
    news = {"claims": "plain_margin", "claims_robust": "plain_margin", "adaptive": "gap"}
    table = path.parent / f"{name.removesuffix('_curves')}.csv"
    earlier = news.get(table.stem, "") not in (table.read_text("utf-8") if table.is_file() else "")
    earlier |= name == "fig3" and record["images"] == 1  # it shows two now
    same = [each["study"] | {"adaptive_images": None} for each in (record, *others)]
    assert all(each == same[0] for each in same if each["scale"] == study.scale)
    assert earlier or record["caption"] == caption(name, study)
    notebook = REPOSITORY / "notebooks" / f"{record['notebook']}.ipynb"
    call = "save_adaptive" if name.startswith("adaptive") else f'\\"{name}\\"'
    assert call in notebook.read_text("utf-8")
    table = path.with_suffix(".csv")
    if path.with_suffix(".png").is_file():
        with Image.open(path.with_suffix(".png")) as image:
            image.verify()
        if name == "frames":
            size, index = record["frames"]["size"], record["frames"]
            assert index["eps"] in ([*study.eps], [*study.evaluated_eps])
            assert image.size == (size * len(index["names"]), size * len(index["eps"]))
        else:
            assert not list(ElementTree.parse(path.with_suffix(".svg")).iter(f"{SVG}text"))
        return
    rows = pd.read_csv(table)
    page = document(rows, study, record["caption"], record["failures"])
    assert path.with_suffix(".md").read_text("utf-8") == page
    if name.startswith("table"):
        assert list(rows) == COLUMNS
        curves = rows[(rows["steps"] == study.steps) & (rows["metric"] != CLEAN_PSNR)]
        found = set(curves.groupby(["method", "attack", "metric"])["eps"].agg(tuple))
        assert found in ({study.eps}, {study.evaluated_eps})  # those of 13 are from before 8/255
        itself = rows["attack"] == "pgd-on-itself"
        assert set(rows[~itself]["n"]) == {study.test_images}
        assert set(rows[itself]["n"]) <= {study.self_attack_images or study.test_images}
