"""Files under ``figures/``: what is written, with which provenance, and that what is committed keeps to it."""

import base64
import dataclasses
import io
import json
import subprocess
from xml.etree import ElementTree

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from nbsupport.experiments.artifacts import Artefacts
from nbsupport.experiments.evaluation import COLUMNS, Evaluation
from nbsupport.results import save as figures
from nbsupport.results.frames import Frames
from nbsupport.results.plots import draw_bands, draw_strip
from nbsupport.results.save import REPOSITORY, folder, provenance, save
from nbsupport.results.tables import markdown
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
def evaluation(artefacts, place):
    """The smoke study under another name of its scale, so that its results count."""
    return Evaluation(
        Artefacts(dataclasses.replace(artefacts.study, scale="quick"), artefacts.store)
    )


def tidy(rows=1, **columns):
    same = {
        "study": "digits",
        "classifier": "small_resnet",
        "attack": "pgd",
        "steps": 4,
        "n": 24,
        "seed": 0,
    }
    same |= {"table": 1, "method": "attacked", "eps": 0.1, "metric": "accuracy", "value": 0.5}
    return pd.DataFrame(same | columns, columns=COLUMNS, index=range(rows))


def picture():
    figure = Figure()
    figure.add_subplot().plot([0, 1])
    return figure


def written(place):
    return sorted(path.name for path in place.iterdir()) if place.exists() else []


def read(place, name):
    return json.loads((place / f"{name}.json").read_text(encoding="utf-8"))


# -- where ---------------------------------------------------------------------------------------


def test_figures_lie_in_the_repository(monkeypatch):
    assert folder("digits") == REPOSITORY / "figures" / "digits"
    assert (REPOSITORY / "pyproject.toml").is_file()


def test_or_elsewhere(place):
    assert folder("digits") == place


@pytest.mark.parametrize("content", [picture(), tidy()], ids=["figure", "table"])
def test_smoke_writes_nothing(content, artefacts, place):
    assert save(Evaluation(artefacts), "any", content, notebook=NOTEBOOK, methods=METHODS) is None
    assert written(place) == []


# -- what ----------------------------------------------------------------------------------------


def test_a_table_becomes_csv_markdown_and_json(evaluation, place):
    path = save(evaluation, "table1", tidy(), notebook=NOTEBOOK, methods=METHODS)
    assert path == place / "table1.csv"
    assert written(place) == ["table1.csv", "table1.json", "table1.md"]


def test_a_picture_says_of_what_it_is(evaluation, place):
    drawn = picture()
    save(evaluation, "fig2", drawn, notebook=NOTEBOOK, methods=METHODS)
    (note,) = (text.get_text() for text in drawn.texts)
    study = evaluation.study
    assert (
        note
        == f"small_resnet on digits, {study.test_images} test images, seed {study.seed}, {study.scale}"
    )


def test_a_figure_of_fewer_images_says_so(evaluation, place):
    drawn = picture()
    save(evaluation, "fig3", drawn, notebook=NOTEBOOK, methods=METHODS, images=1)
    assert ", 1 test image, " in drawn.texts[0].get_text()
    assert read(place, "fig3")["images"] == 1


def test_a_figure_becomes_svg_png_and_json(evaluation, place):
    path = save(evaluation, "fig2", picture(), notebook=NOTEBOOK, methods=METHODS)
    assert path == place / "fig2.png"
    assert written(place) == ["fig2.json", "fig2.png", "fig2.svg"]
    assert path.read_bytes().startswith(b"\x89PNG\r\n")
    assert ElementTree.parse(path.with_suffix(".svg")).getroot().tag == f"{SVG}svg"


def test_the_same_figure_is_the_same_file(evaluation, place):
    found = []
    for user in (
        {},
        {"font.size": 30, "svg.hashsalt": "other", "svg.fonttype": "none", "savefig.dpi": 10},
    ):
        with plt.rc_context(user):
            save(
                evaluation,
                "fig2",
                draw_bands((0.0, 0.1), {"attacked": np.eye(2)}, "y"),
                notebook="n",
                methods=(),
            )
        found.append({ending: (place / f"fig2.{ending}").read_bytes() for ending in ("svg", "png")})
    assert found[0] == found[1]


def test_letters_are_outlines_and_pixels_stay_pixels(evaluation, place):
    figure = draw_strip([torch.rand(3, 5, 7)], ["title"])
    save(evaluation, "fig2", figure, notebook=NOTEBOOK, methods=METHODS)
    svg = ElementTree.parse(place / "fig2.svg")
    assert list(svg.iter(f"{SVG}text")) == []
    (image,) = svg.iter(f"{SVG}image")
    encoded = image.get("{http://www.w3.org/1999/xlink}href").partition("base64,")[2]
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as stored:
        assert stored.size == (7, 5)


def test_frames_become_png_and_json(evaluation, place):
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    words = (("7", None, "7"), ("1", None, "7"))
    sheet = Frames(
        pixels, 2, 5, "7", (0.0, 0.1), ("Î", "W", "Ĩ"), words, (("", "", ""), ("", "", ""))
    )
    path = save(evaluation, "frames", sheet, notebook=NOTEBOOK, methods=METHODS, images=1)
    assert written(place) == ["frames.json", "frames.png"]
    with Image.open(path) as stored:
        np.testing.assert_array_equal(np.asarray(stored), pixels)
    index = read(place, "frames")["frames"]
    assert (index["eps"], index["names"], index["words"][1]) == (
        [0.0, 0.1],
        ["Î", "W", "Ĩ"],
        ["1", None, "7"],
    )
    assert (index["size"], index["image"], index["truth"]) == (2, 5, "7")


def test_other_rows_become_csv_and_json_only(evaluation, place):
    rows = pd.DataFrame({"claim": ["C1"], "support": [0.25]})
    save(evaluation, "claims", rows, notebook=NOTEBOOK, methods=METHODS)
    assert written(place) == ["claims.csv", "claims.json"]


def test_numbers_come_back_from_csv(evaluation):
    rows = tidy(4, value=[0.1234564, np.inf, 0.0, 1 / 3], eps=[0.0, 1e-4, 0.3, 0.5])
    again = pd.read_csv(save(evaluation, "table1", rows, notebook=NOTEBOOK, methods=METHODS))
    assert list(again) == COLUMNS
    assert list(again["eps"]) == list(rows["eps"])
    np.testing.assert_allclose(again["value"], rows["value"], rtol=1e-5)


def test_markdown_and_csv_round_alike(evaluation, place):
    # 32.004996 dB are 32.00 dB; rounded to 32.005 on the way, they become 32.01
    rows = tidy(
        13,
        value=[k + 0.004996 for k in range(28, 41)],
        eps=evaluation.study.eps,
        metric="psnr",
        table=2,
    )
    save(evaluation, "table2", rows, notebook=NOTEBOOK, methods=METHODS)
    again = pd.read_csv(place / "table2.csv")
    assert markdown(again, evaluation.study, []) == (place / "table2.md").read_text(
        encoding="utf-8"
    )


def test_failures_stand_in_the_markdown(evaluation, place, monkeypatch):
    monkeypatch.setattr(
        evaluation.artefacts, "failure", {"PA-Filt(L_img)": "W is the same everywhere"}.get
    )
    save(
        evaluation,
        "table4",
        tidy(table=4),
        notebook=NOTEBOOK,
        methods=("attacked", "PA-Filt(L_img)"),
    )
    assert "> W is the same everywhere" in (place / "table4.md").read_text(encoding="utf-8")


def test_a_later_result_replaces_an_earlier_one(evaluation):
    for value in (0.25, 0.75):
        path = save(evaluation, "table1", tidy(value=[value]), notebook=NOTEBOOK, methods=METHODS)
        assert list(pd.read_csv(path)["value"]) == [value]


# -- provenance ----------------------------------------------------------------------------------


def test_provenance_lies_beside_the_file(evaluation, place):
    save(evaluation, "fig2", picture(), notebook=NOTEBOOK, methods=METHODS)
    expected = json.loads(json.dumps(provenance(evaluation, NOTEBOOK, METHODS)))
    assert {**read(place, "fig2"), "made": None} == {**expected, "made": None}


def test_provenance_says_all_that_is_needed_to_make_it_again(evaluation):
    found = provenance(evaluation, NOTEBOOK, METHODS)
    assert set(found) == {
        *(
            "notebook",
            "commit",
            "clean",
            "made",
            "study",
            "scale",
            "seed",
            "images",
            "device",
            "versions",
        ),
        "specifications",
    }
    assert (found["notebook"], found["scale"], found["seed"], found["images"]) == (
        NOTEBOOK,
        "quick",
        0,
        24,
    )
    assert found["device"]
    assert {"python", "torch", "foolbox", "nbsupport"} <= set(found["versions"])


def test_a_study_comes_back_from_its_provenance(evaluation, place):
    save(evaluation, "fig2", picture(), notebook=NOTEBOOK, methods=METHODS)
    assert study_of(read(place, "fig2")) == evaluation.study


def study_of(record):
    """The study of a record; what a study could not yet say when that was written is as it is named today."""
    said = {
        name: tuple(each) if isinstance(each, list) else each
        for name, each in record["study"].items()
    }
    return Study.named(**said)


def test_what_else_it_was_made_from_is_named_too(evaluation):
    found = provenance(evaluation, NOTEBOOK, METHODS, [{"kind": "adaptive"}, {"kind": "other"}])[
        "specifications"
    ]
    assert [specification["kind"] for specification in found] == [
        "measurement",
        "measurement",
        "adaptive",
        "other",
    ]


def test_another_table_brings_its_own_markdown(evaluation, place):
    rows = tidy(table="adaptive")
    save(
        evaluation,
        "adaptive",
        rows,
        notebook=NOTEBOOK,
        methods=METHODS,
        specifications=[{"a": 1}],
        text="| a |\n",
    )
    assert (place / "adaptive.md").read_text(encoding="utf-8") == "| a |\n"
    assert read(place, "adaptive")["specifications"][-1] == {"a": 1}
    assert written(place) == ["adaptive.csv", "adaptive.json", "adaptive.md"]


def test_every_method_is_specified(evaluation):
    found = provenance(evaluation, NOTEBOOK, METHODS)["specifications"]
    assert found == [evaluation.specification(method) for method in METHODS]
    assert [specification["name"] for specification in found] == list(METHODS)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository of its own, with one commit of one notebook and one figure."""
    root = tmp_path / "repository"
    for name in ("notebooks/00_start.ipynb", "figures/digits/fig1.png"):
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text("1")
    monkeypatch.setattr(figures, "REPOSITORY", root)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    return root


def git(root, *arguments):
    identity = (
        "-c",
        "user.name=test",
        "-c",
        "user.email=test@example.org",
        "-c",
        "commit.gpgsign=false",
    )
    done = subprocess.run(
        ["git", "-C", root, *identity, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def committed(repository):
    git(repository, "init", "--quiet")
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--message", "first")
    return repository


def commit_and_clean(evaluation):
    found = provenance(evaluation, NOTEBOOK, METHODS)
    return found["commit"], found["clean"]


def test_the_commit_is_that_of_the_repository(committed, evaluation):
    assert commit_and_clean(evaluation) == (git(committed, "rev-parse", "HEAD"), True)


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("notebooks/00_start.ipynb", False),
        ("new.py", False),
        ("figures/digits/fig1.png", True),
        ("figures/a.md", True),
    ],
)
def test_a_change_outside_of_the_figures_is_not_clean(name, clean, committed, evaluation):
    (committed / name).write_text("2")
    assert commit_and_clean(evaluation)[1] is clean


def test_without_a_repository_nothing_is_claimed(repository, evaluation):
    assert commit_and_clean(evaluation) == (None, None)


def test_without_git_neither(evaluation, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit_and_clean(evaluation) == (None, None)


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


@pytest.mark.parametrize("content", [HalfFigure(), HalfRows(tidy())], ids=["figure", "table"])
def test_a_failing_write_leaves_nothing(content, evaluation, place):
    with pytest.raises(FullError):
        save(evaluation, "any", content, notebook=NOTEBOOK, methods=METHODS)
    assert written(place) == []


def test_and_keeps_what_was_there(evaluation, place):
    save(evaluation, "fig2", picture(), notebook=NOTEBOOK, methods=METHODS)
    before = {name: (place / name).read_bytes() for name in written(place)}
    with pytest.raises(FullError):
        save(evaluation, "fig2", HalfFigure(), notebook=NOTEBOOK, methods=METHODS)
    assert {name: (place / name).read_bytes() for name in written(place)} == before


@pytest.mark.parametrize("content", [picture(), tidy()], ids=["figure", "table"])
def test_nothing_is_written_without_its_provenance(content, evaluation, place, monkeypatch):
    def missing(*arguments):
        raise FullError

    monkeypatch.setattr(figures, "provenance", missing)
    with pytest.raises(FullError):
        save(evaluation, "any", content, notebook=NOTEBOOK, methods=METHODS)
    assert written(place) == []


# -- what is committed ---------------------------------------------------------------------------


def committed_files(pattern):
    return sorted((REPOSITORY / "figures").glob(f"*/{pattern}"))


def test_every_committed_file_has_its_provenance():
    missing = [
        path.name for path in committed_files("*") if not path.with_suffix(".json").is_file()
    ]
    assert missing == []


def test_no_provenance_stands_alone():
    names = {path.with_suffix("") for path in committed_files("*") if path.suffix != ".json"}
    assert {path.with_suffix("") for path in committed_files("*.json")} == names


def test_committed_results_come_from_clean_commits_and_count():
    for path in committed_files("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        assert record["clean"] is True, path.name
        assert len(record["commit"]) == 40, path.name
        assert record["scale"] == record["study"]["scale"] != "smoke", path.name
        assert record["study"]["name"] == path.parent.name, path.name


def test_committed_results_are_saved_by_the_notebook_they_name():
    for path in committed_files("*.json"):
        notebook = (
            REPOSITORY
            / "notebooks"
            / f"{json.loads(path.read_text(encoding='utf-8'))['notebook']}.ipynb"
        )
        assert f'\\"{path.stem}\\"' in notebook.read_text(encoding="utf-8"), path.name


def test_committed_results_are_of_one_study():
    for place in {path.parent for path in committed_files("*.json")}:
        studies = [
            json.loads(path.read_text(encoding="utf-8"))["study"] for path in place.glob("*.json")
        ]
        assert all(study == studies[0] for study in studies), place.name


def test_committed_tables_have_the_columns_of_a_table():
    for path in committed_files("table*.csv"):
        assert list(pd.read_csv(path)) == COLUMNS, path.name


def test_committed_tables_are_complete():
    for path in committed_files("table*.csv"):
        rows, study = pd.read_csv(path), study_of(read(path.parent, path.stem))
        curves = (
            rows[rows["steps"] == study.steps]
            .groupby(["method", "attack", "metric"])["eps"]
            .agg(tuple)
        )
        assert set(curves) == {study.eps}, path.name
        own = rows["attack"] == "pgd-on-itself"
        assert set(rows[~own]["n"]) == {study.test_images}, path.name
        assert set(rows[own]["n"]) <= {study.own_images or study.test_images}, path.name


def test_committed_markdown_is_rendered_from_the_committed_csv():
    for path in committed_files("table*.md"):
        text = path.read_text(encoding="utf-8")
        failures = [line.removeprefix("> ") for line in text.splitlines() if line.startswith("> ")]
        rows, study = pd.read_csv(path.with_suffix(".csv")), study_of(read(path.parent, path.stem))
        assert markdown(rows, study, failures) == text, path.name


def test_committed_pictures_are_pictures():
    for path in committed_files("*.png"):
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            image.verify()


def test_every_committed_figure_is_a_vector_picture_too():
    drawn = [path for path in committed_files("*.png") if path.stem != "frames"]
    assert [str(path) for path in drawn if not path.with_suffix(".svg").is_file()] == []


def test_committed_letters_are_outlines():
    for path in committed_files("*.svg"):
        assert list(ElementTree.parse(path).iter(f"{SVG}text")) == [], path.name


def test_the_committed_frames_are_of_all_strengths():
    places = {
        path.parent for path in committed_files("frames.json")
    }  # of large photographs they would be too large
    assert {place.name for place in places} == {"cifar10", "digits"}
    for place in places:
        record = read(place, "frames")
        index, size = record["frames"], record["frames"]["size"]
        assert index["eps"] == record["study"]["eps"], place.name
        with Image.open(place / "frames.png") as sheet:
            assert sheet.size == (size * len(index["names"]), size * len(index["eps"])), place.name
        assert (place / "frames.png").stat().st_size < 700_000, place.name


def test_committed_results_of_the_attacker_who_knows_say_of_how_many_images():
    for path in committed_files("adaptive*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        assert record["images"] == record["study"]["adaptive_images"], path.name
