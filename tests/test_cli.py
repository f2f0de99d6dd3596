"""``python -m nbsupport``: what it prints, and that mistakes end in a line that says what to do."""

import contextlib
import importlib.metadata
import io
import json
import os
import re
import shutil
import subprocess
import sys
from itertools import pairwise

import pytest
from PIL import Image

from nbsupport import doctor
from nbsupport.__main__ import INSTALL, main
from nbsupport.experiments.artifacts import Artefacts
from nbsupport.experiments.evaluation import Evaluation
from nbsupport.experiments.methods import TABLES
from nbsupport.results import notebooks as runner
from nbsupport.results.predicates import CLAIMS, CORE_CLAIMS
from nbsupport.results.save import REPOSITORY
from nbsupport.results.tables import caption
from nbsupport.study import Study

METHODS = list(dict.fromkeys(method for table in TABLES.values() for method in table))
COMPUTE = "python -m nbsupport compute --study digits --scale smoke"


@pytest.fixture(scope="module")
def evaluation(artefacts):
    """The smallest study with everything made."""
    evaluation = Evaluation(artefacts)
    for number in TABLES:
        evaluation.table(number)
    return evaluation


@pytest.fixture
def finished(evaluation, monkeypatch):
    """The command line finds everything made."""
    monkeypatch.setenv("NBSUPPORT_HOME", str(evaluation.artefacts.store.home))
    return evaluation


@pytest.fixture
def asked(monkeypatch):
    """The studies and tables that ``compute`` was asked for, instead of computing them."""
    calls = []
    monkeypatch.setattr("nbsupport.__main__._compute", lambda *arguments: calls.append(arguments))
    return calls


def exit_of(*arguments):
    with pytest.raises(SystemExit) as error:
        main(list(arguments))
    return error.value.code


# -- compute -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def computed(evaluation, tmp_path_factory):
    """A store in which all was trained and nothing measured, after ``compute``, and what that printed."""
    home, printed = tmp_path_factory.mktemp("computed") / "home", io.StringIO()
    shutil.copytree(
        evaluation.artefacts.store.home, home, ignore=shutil.ignore_patterns("measurement")
    )
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("NBSUPPORT_HOME", str(home))
        main(["compute", "--study", "digits", "--scale", "smoke"])
    return home, printed.getvalue()


def test_compute_makes_what_is_missing(computed, evaluation):
    home, printed = computed
    wanted = [evaluation.specification(method) for method in METHODS]
    wanted += [evaluation.specification(name, target=name) for name in ("Adv", "FPD", "FD")]
    records = [
        json.loads(path.read_text()) for path in (home / "measurement").glob("*/artefact.json")
    ]
    made = [{**record["specification"], "made_from": []} for record in records]
    assert all(
        json.loads(json.dumps(specification | {"made_from": []})) in made
        for specification in wanted
    )
    assert printed.endswith(f"stored in {home}\n")


def test_compute_prints_the_mean_accuracy_of_every_method(computed, evaluation):
    for method, line in zip(METHODS, computed[1].splitlines(), strict=False):
        accuracy = evaluation.measurement(method).correct().mean()
        assert line.startswith(f"{method:22} mean accuracy over ε {accuracy:.3f} ")


def test_compute_says_what_failed(finished, capsys, monkeypatch):
    monkeypatch.setattr(
        Artefacts,
        "failure",
        lambda self, name: f"{name} failed" if name == "PA-Filt(L_img)" else None,
    )
    main(["compute", "--scale", "smoke"])
    assert "PA-Filt(L_img) failed" in capsys.readouterr().out


# -- report --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(evaluation):
    """What ``report`` prints on a terminal of 80 columns."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("NBSUPPORT_HOME", str(evaluation.artefacts.store.home))
        patch.setenv("COLUMNS", "80")
        main(["report", "--study", "digits", "--scale", "smoke"])
    return printed.getvalue()


FUSED = ", Y-Net, PA-Filt(L_img)"


@pytest.mark.parametrize(("number", "more"), [("1", FUSED), ("5", FUSED), ("7", "")])
def test_report_says_first_what_it_has_to_make(number, more, monkeypatch, capsys):
    def interrupted(self, number):
        said = f"not made yet, but now: classifier, train images, test images, Filt(L_img){more}; interrupted, it"
        assert capsys.readouterr().err.startswith(said)
        raise KeyboardInterrupt

    monkeypatch.setattr(Evaluation, "table", interrupted)
    assert "goes on from there" in exit_of("report", "--scale", "smoke", "--tables", number)


def test_report_of_what_is_there_makes_nothing(finished, capsys):
    main(["report", "--scale", "smoke", "--tables", "1"])
    assert "not made yet" not in capsys.readouterr().err


@pytest.mark.parametrize("number", TABLES)
def test_report_prints_every_table_with_its_caption(number, evaluation, report):
    assert " ".join(caption(evaluation.table(number), evaluation.study).split()) in " ".join(
        report.split()
    )


@pytest.mark.parametrize(
    ("numbers", "claims"),
    [
        ((2,), CORE_CLAIMS),
        ((5,), ("C14", "C15")),
        ((6, 7), ("C16", "C17")),
        ((4, 7), (*CORE_CLAIMS, "C17")),
    ],
    ids=str,
)
def test_report_of_some_tables_has_them_and_their_claims_alone(numbers, claims, finished, capsys):
    main(["report", "--scale", "smoke", "--tables", *map(str, numbers)])
    printed = capsys.readouterr().out
    assert [number for number in TABLES if f"\nTable {number}. " in printed] == list(numbers)
    lines = printed.splitlines()
    found = {
        line.split()[0]
        for line, following in pairwise(lines)
        if following.strip().startswith("here: ")
    }
    assert found == set(claims)


def test_report_prints_the_sweep_over_n(evaluation, finished, monkeypatch, capsys):
    monkeypatch.setattr(Evaluation, "failure", lambda self, method: None)
    main(["report", "--scale", "smoke", "--tables", "5"])
    printed, rows = capsys.readouterr().out, evaluation.table(5)
    for eps in dict.fromkeys((evaluation.study.sweep_eps, evaluation.half_eps)):
        assert f"over the number n of PGD's steps, at ε = {eps:g}" in printed
        part = printed.split(f"at ε = {eps:g}\n")[1]
        for method in ("Adv", "Filt+Adv", "PA-Filt+Adv"):
            place = (
                (rows["method"] == method)
                & (rows["eps"] == eps)
                & (rows["steps"] != evaluation.study.steps)
            )
            (line, *_) = [
                line
                for line in part.splitlines()
                if line.split()[:1] == [method] and "measured" in line
            ]
            expected = [round(value, 3) for value in evaluation_values(rows, place)]
            assert [float(number) for number in line.split()[2:]] == expected


def evaluation_values(rows, place):
    return rows.loc[place].sort_values("steps")["value"]


def test_report_prints_every_method_and_source(evaluation, report):
    methods = {method for number in TABLES for method in evaluation.table(number)["method"]}
    assert all(word in report for word in [*methods, "measured", "envelope", "published"])


def test_report_keeps_a_line_of_a_table_in_one_line(report):
    (line, *_) = [line for line in report.splitlines() if "published" in line and "0.928" in line]
    numbers = [
        0.928,
        0.899,
        0.829,
        0.747,
        0.484,
        0.045,
        0.014,
        0.004,
        0.031,
        0.076,
        0.108,
        0.278,
        0.036,
    ]
    assert [float(number) for number in line.split()[-13:]] == numbers


@pytest.mark.parametrize(
    ("claim", "sentence"),
    [(claim, sentence) for claim, (sentence, _) in CLAIMS.items()],
    ids=CLAIMS,
)
def test_report_prints_every_claim(claim, sentence, report):
    lines = report.splitlines()
    (number,) = [number for number, line in enumerate(lines) if line.split()[:1] == [claim]]
    assert lines[number].endswith(sentence)
    assert "here: " in lines[number + 1]
    assert "; in the paper (" in lines[number + 1]


# -- doctor --------------------------------------------------------------------------------------


@pytest.fixture
def complete(tmp_path, monkeypatch):
    """As if all of Jupyter were installed; the folder of the extension that shows the sliders."""
    extension = tmp_path / "prefix/share/jupyter/labextensions/@jupyter-widgets/jupyterlab-manager"
    extension.mkdir(parents=True)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0")
    return extension


def test_doctor_names_what_is_not_made_yet_and_how_to_make_it(complete, capsys):
    main(["doctor", "--scale", "smoke"])
    lines = capsys.readouterr().out.splitlines()
    for piece in (
        "classifier",
        "train images",
        "test images",
        "Filt(L_img)",
        "Y-Net",
        "PA-Filt(L_img)",
    ):
        assert f"  {piece:22} not made yet: {COMPUTE}" in lines


def test_doctor_lists_every_study_and_how_to_get_its_images(
    complete, capsys, monkeypatch, tmp_path
):
    monkeypatch.setenv("NBSUPPORT_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train_32x32.mat").touch()
    (tmp_path / "data" / "cifar10" / "train").mkdir(parents=True)
    main(["doctor", "--scale", "smoke"])
    printed = capsys.readouterr().out
    for line in (
        "digits         there: its images come with scikit-learn",
        f"cifar10        there: its images are in {tmp_path / 'data' / 'cifar10'}, as files",
        f"svhn           to get: compute and run download about 250 MB to {tmp_path / 'data'}",
        "neurips2017dev to get: neurips2017dev: ",
        "folder         to get: name one: python -m nbsupport compute --study folder --data DIR",
    ):
        assert f"  {line}" in printed


def test_its_command_names_the_folder_of_the_images(monkeypatch, tmp_path):
    study = Study.named("cifar10", "smoke")
    monkeypatch.delenv("NBSUPPORT_DATA", raising=False)
    assert doctor._options(study) == []
    monkeypatch.setenv("NBSUPPORT_DATA", str(tmp_path))
    assert doctor._options(study) == ["--data", str(tmp_path)]
    assert doctor._options(Study.named("digits", "smoke")) == []


def test_doctor_downloads_nothing(complete, capsys, monkeypatch):
    monkeypatch.setattr(
        "nbsupport.data.published._download", lambda *arguments: pytest.fail("downloaded")
    )
    assert exit_of("doctor", "--study", "cifar10", "--scale", "smoke") == 1
    assert "cifar10        to get: compute and run download about 170 MB" in capsys.readouterr().out


def test_doctor_finds_what_is_made(complete, finished, capsys):
    main(["doctor", "--scale", "smoke"])
    printed = capsys.readouterr().out
    assert "not made yet" not in printed
    assert "missing" not in printed
    assert f"{finished.artefacts.store.home} (there, " in printed


def test_doctor_makes_nothing(complete, tmp_path):
    main(["doctor", "--scale", "smoke"])
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("package", ["jupyterlab", "ipywidgets", "jupyterlab_widgets"])
def test_doctor_says_how_to_install_what_is_missing(package, complete, capsys, monkeypatch):
    def version(name):
        if name == package:
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert exit_of("doctor", "--scale", "smoke") == 1
    assert f"{package:16} missing: {INSTALL}" in capsys.readouterr().out


def test_doctor_misses_the_extension_that_shows_the_sliders(complete, capsys):
    complete.rmdir()
    assert exit_of("doctor", "--scale", "smoke") == 1
    assert f"no widget extension: {INSTALL}" in capsys.readouterr().out


def test_the_command_it_gives_is_understood(asked):
    main(COMPUTE.split()[3:])
    assert asked == [(Study.named("digits", "smoke"), [*TABLES])]


@pytest.mark.parametrize("command", ["compute", "report"])
@pytest.mark.parametrize("numbers", [[1], [5, 7], [7, 6]])
def test_tables_may_be_chosen(command, numbers, monkeypatch):
    calls = []
    monkeypatch.setattr(
        f"nbsupport.__main__._{command}", lambda *arguments: calls.append(arguments)
    )
    main([command, "--scale", "smoke", "--tables", *map(str, numbers)])
    assert calls == [(Study.named("digits", "smoke"), numbers)]


# -- the page ------------------------------------------------------------------------------------


def test_the_page_is_written_where_it_is_wanted(tmp_path, capsys):
    main(["report", "--html", str(tmp_path / "new" / "page.html")])
    assert capsys.readouterr().out == f"report           {tmp_path}/new/page.html\n"
    assert "</html>" in (tmp_path / "new" / "page.html").read_text(encoding="utf-8")


def test_or_where_git_ignores_it(monkeypatch):
    calls = []
    monkeypatch.setattr("nbsupport.__main__._page", calls.append)
    main(["report", "--html"])
    assert calls == [REPOSITORY / "build" / "report.html"]


def test_without_results_it_says_how_to_make_them(tmp_path, monkeypatch):
    monkeypatch.setenv("NBSUPPORT_FIGURES", str(tmp_path / "none"))
    told = exit_of("report", "--html", str(tmp_path / "page.html"))
    assert (
        told
        == f"there are no results in {tmp_path}/none; make them: python -m nbsupport run, or make study"
    )
    assert not (tmp_path / "page.html").exists()


def test_a_result_of_unknown_origin_is_refused_by_name(tmp_path, monkeypatch):
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "fig1.png").touch()
    monkeypatch.setenv("NBSUPPORT_FIGURES", str(tmp_path))
    assert exit_of("report", "--html", str(tmp_path / "page.html")).startswith(
        f"{tmp_path}/digits/fig1.json: expected"
    )


# -- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "help_line"),
    [
        (["compute", "--study", "digit"], "no study named 'digit'; there are: digits"),
        (["report", "--scale", "large"], "has no scale 'large'; there are: smoke, quick, paper"),
        (["run", "--scale", "large"], "has no scale 'large'; there are: smoke, quick, paper"),
        (["train"], "invalid choice: 'train' (choose from"),
        ([], "the following arguments are required: command"),
        (["doctor", "07"], "unrecognized arguments: 07"),
        (["doctor", "--tables", "1"], "unrecognized arguments: --tables 1"),
        (["compute", "--tables", "8"], "argument --tables: invalid choice: 8 (choose from 1, 2, 3"),
        (["report", "--tables"], "argument --tables: expected at least one argument"),
    ],
    ids=" ".join,
)
def test_a_mistake_ends_with_code_2_and_a_line_that_helps(arguments, help_line, capsys):
    assert exit_of(*arguments) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.match(r"python -m nbsupport( compute| report)?: error: ", last)
    assert help_line in last.replace("'8'", "8")  # which newer Pythons quote


@pytest.mark.parametrize("variable", ["NBSUPPORT_STUDY", "NBSUPPORT_SCALE"])
def test_so_does_one_in_the_environment(variable, capsys, monkeypatch):
    monkeypatch.setenv(variable, "nonsense")
    assert exit_of("report") == 2
    assert "'nonsense'; there are: " in capsys.readouterr().err


def test_the_environment_chooses_and_the_command_line_overrides(asked, monkeypatch):
    main(["compute"])
    monkeypatch.setenv("NBSUPPORT_SCALE", "paper")
    main(["compute"])
    main(["compute", "--scale", "smoke"])
    assert [study.scale for study, _ in asked] == ["quick", "paper", "smoke"]


def test_an_unknown_notebook_ends_with_the_known_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "RESULTS", tmp_path)
    message = exit_of("run", "99_nothing", "--scale", "smoke")
    assert "begins with '99_nothing'; there are: 00_start_here, " in message
    assert len(message.splitlines()) == 1


def test_a_notebook_that_fails_ends_without_a_traceback(monkeypatch):
    def run(names, study, scale):
        raise runner.NotebookError("07_pa_filt.ipynb: cell 3 failed")

    monkeypatch.setattr(runner, "run", run)
    assert exit_of("run", "07", "--scale", "smoke") == "07_pa_filt.ipynb: cell 3 failed"


@pytest.mark.parametrize(
    ("scale", "told"), [("smoke", "figures          none: smoke"), ("quick", "tables, figures  ")]
)
def test_run_says_where_its_results_are(scale, told, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(
        runner, "run", lambda names, study, scale: tmp_path / study / scale / "-".join(names)
    )
    main(["run", "00", "07", "--scale", scale])
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"pages            {tmp_path / 'digits' / scale / '00-07'}"
    assert second.startswith(told)


@pytest.mark.parametrize(
    ("arguments", "warned"),
    [
        (["--scale", "quick"], True),
        (["00", "--scale", "quick"], False),
        (["--scale", "smoke"], False),
    ],
    ids=str,
)
def test_run_of_everything_says_that_it_is_long(arguments, warned, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(runner, "run", lambda names, study, scale: tmp_path)
    main(["run", *arguments])
    assert ("09 to 12 and 15, hours on a CPU" in capsys.readouterr().err) == warned


# -- your own classifier and images ---------------------------------------------------------------

MODEL = """
import torch
from torch import nn

class Mine(nn.Module):
    def forward(self, images):
        return 10 * images.mean(dim=(2, 3))

def factory():
    return Mine().eval()

def training():
    return Mine()
"""


@pytest.fixture
def yours(tmp_path, monkeypatch):
    """The folder of somebody with a file of theirs and images in three classes."""
    (tmp_path / "model.py").write_text(MODEL)
    for label, word in enumerate(("red", "green", "blue")):
        (tmp_path / "photos" / word).mkdir(parents=True)
        for number in range(4):
            colour = [40, 40, 40]
            colour[label] = 150 + 20 * number
            Image.new("RGB", (13, 12), tuple(colour)).save(
                tmp_path / "photos" / word / f"{number}.png"
            )
    monkeypatch.chdir(tmp_path)
    return tmp_path


OWN = (
    "--study",
    "folder",
    "--scale",
    "smoke",
    "--data",
    "photos",
    "--classifier",
    "model.py:factory",
)


def chosen(yours, **changes):
    own = dict(data=f"{yours}/photos", classifier=f"{yours}/model.py:factory")
    return Study.named("folder", "smoke", **own | changes)


def test_classifier_and_images_are_chosen_on_the_command_line(asked, yours):
    main(["compute", *OWN, "--image-size", "12"])
    assert asked == [(chosen(yours, image_size=12), list(TABLES))]


def test_or_in_the_environment(asked, yours, monkeypatch):
    for name, value in {
        "STUDY": "folder",
        "DATA": "photos",
        "CLASSIFIER": "model.py:factory",
    }.items():
        monkeypatch.setenv(f"NBSUPPORT_{name}", value)
    main(["compute", "--scale", "smoke"])
    monkeypatch.setenv("NBSUPPORT_IMAGE_SIZE", "12")
    main(["compute", "--scale", "smoke"])
    main(["compute", "--scale", "smoke", "--study", "digits", "--classifier", "small_resnet"])
    studies = [
        chosen(yours),
        chosen(yours, image_size=12),
        Study.named("digits", "smoke", image_size=12),
    ]
    assert [study for study, _ in asked] == studies


def test_notebooks_are_told(yours, capsys, monkeypatch, tmp_path):
    told = []
    monkeypatch.setattr(
        runner, "run", lambda *places, **choices: told.append((places, choices)) or tmp_path
    )
    main(["run", "14", *OWN, "--image-size", "12"])
    main(["run", "14", "--scale", "smoke"])
    own = {"data": f"{yours}/photos", "classifier": f"{yours}/model.py:factory", "image_size": "12"}
    assert told == [((["14"], "folder", "smoke"), own), ((["14"], "digits", "smoke"), {})]


def test_doctor_says_what_it_found(complete, yours, capsys):
    main(["doctor", *OWN])
    lines = capsys.readouterr().out.splitlines()
    assert f"study            folder at smoke; its images are in {yours}/photos" in lines
    assert "images           8 to train on, 4 to test on, 3 classes, 32×32 pixels" in lines
    assert (
        "classifier       model.py:factory: 3 logits, clean accuracy 0.250" in lines
    )  # folders: blue, green, red
    command = f"compute --study folder --scale smoke --classifier {yours}/model.py:factory --data {yours}/photos"
    assert f"  train images           not made yet: python -m nbsupport {command}" in lines


def test_the_whole_study_is_computed(yours, capsys):
    """On images of 11×11 pixels, batches of 8 and a network without weights."""
    main(["compute", *OWN, "--image-size", "11"])
    printed = capsys.readouterr().out
    assert all(f"\n{method} " in f"\n{printed}" for method in METHODS)


@pytest.mark.parametrize("command", ["run", "compute", "report", "doctor"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--data": "absent"}, "expected a folder of images, .*absent is none"),
        (
            {"--data": ""},
            "expected a folder of images, none was named; name one: python -m nbsupport compute",
        ),
        ({"--classifier": "absent.py:factory"}, "there is no file"),
        (
            {"--classifier": "model.py:absent"},
            "model.py has no function 'absent'; it has: factory, training",
        ),
        ({"--classifier": "model.py"}, "expected path/to/file.py:factory, got 'model.py'"),
        ({"--classifier": "model.py:training"}, "it is in training mode"),
        ({"--classifier": "resnet51"}, "no classifier named 'resnet51'"),
    ],
    ids=lambda value: "=".join(*value.items()) if isinstance(value, dict) else "",
)
def test_what_is_wrong_with_them_is_said_in_one_line(command, change, message, complete, yours):
    options = dict(zip(OWN[::2], OWN[1::2], strict=True)) | change
    told = exit_of(command, *(word for option in options.items() for word in option))
    assert re.fullmatch(f"python -m nbsupport: .*{message}.*", told)


@pytest.mark.parametrize("command", ["compute", "report"])
def test_tables_that_an_architecture_has_not_are_refused_before_anything_is_made(
    command, asked, yours
):
    own = [*OWN[:-1], "vgg11", "--tables"]
    told = exit_of(command, *own, "7", "5")
    assert re.fullmatch(
        "python -m nbsupport: classifier: FD changes the stages .* 'vgg11' is none; .* its table",
        told,
    )
    main(["compute", *own, "1", "5"])
    assert asked == [(chosen(yours, classifier="vgg11"), [1, 5])]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--data", "photos"],
            "--data belongs to studies of images that lie somewhere, not to 'digits'",
        ),
        (["--image-size", "large"], "expected a number of pixels such as 224, got 'large'"),
        (["--image-size", "0"], "Study.image_size: expected a positive number, got 0"),
    ],
)
def test_choices_that_make_no_sense_are_refused(arguments, message, yours, capsys):
    assert exit_of("compute", *arguments) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


# -- without Jupyter -----------------------------------------------------------------------------

WITHOUT_JUPYTER = """
import runpy, sys

class Absent:
    names = {"IPython", "ipykernel", "ipywidgets", "jupyter", "jupyter_client", "jupyterlab", "nbclient", "nbconvert",
             "nbformat"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
for command, more in {"compute": [], "run": [], "report": ["--html"]}.items():
    print("begin", command)
    sys.argv = ["nbsupport", command, "--study", "digits", "--scale", "smoke", *more]
    try:
        runpy.run_module("nbsupport", run_name="__main__")
    except SystemExit as error:
        print(error.code)
"""


@pytest.fixture(scope="module")
def without_jupyter(evaluation):
    """What each command prints where Jupyter cannot be imported, and what they print to stderr."""
    environment = os.environ | {"NBSUPPORT_HOME": str(evaluation.artefacts.store.home)}
    command = [sys.executable, "-c", WITHOUT_JUPYTER]
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", env=environment | {"PYTHONUTF8": "1"}
    )
    printed = dict(part.split("\n", 1) for part in done.stdout.split("begin ")[1:])
    return printed | {"stderr": done.stderr}


def test_compute_needs_no_jupyter(without_jupyter):
    assert "stored in" in without_jupyter["compute"], without_jupyter["stderr"]


def test_run_says_how_to_install_it(without_jupyter):
    missing = f"running notebooks needs Jupyter (No module named 'nbformat'): {INSTALL}\n"
    assert without_jupyter["run"].startswith(missing), without_jupyter["stderr"]
    assert "Traceback" not in without_jupyter["stderr"]


def test_so_does_the_page(without_jupyter):
    missing = f"the page needs Jupyter's parts (No module named 'nbformat'): {INSTALL}\n"
    assert without_jupyter["report"].startswith(missing), without_jupyter["stderr"]


def test_an_interruption_says_in_one_line_that_nothing_finished_is_lost(monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Artefacts, "images", interrupted)
    with pytest.raises(
        SystemExit, match=r"^interrupted; what was finished is kept, .* goes on from there$"
    ):
        main(["compute", "--scale", "smoke"])


def test_a_message_of_the_package_comes_without_a_traceback(monkeypatch):
    def missing(*arguments, **options):
        raise FileNotFoundError("cifar10: the download failed")

    monkeypatch.setattr(Artefacts, "images", missing)
    with pytest.raises(SystemExit, match=r"^cifar10: the download failed$"):
        main(["compute", "--scale", "smoke"])


def test_an_error_of_the_system_stays_one(monkeypatch):
    def denied(*arguments, **options):
        raise PermissionError(13, "not yours")

    monkeypatch.setattr(Artefacts, "images", denied)
    with pytest.raises(PermissionError):
        main(["compute", "--scale", "smoke"])
