"""``python -m nbsupport``: what it prints, and that mistakes end in a line that says what to do."""

import contextlib
import importlib.metadata
import io
import os
import shutil
import subprocess
import sys

import pytest

from nbsupport import runner
from nbsupport.__main__ import INSTALL, main
from nbsupport.artefacts import Artefacts
from nbsupport.claims import CLAIMS
from nbsupport.evaluation import Evaluation
from nbsupport.recipes import TABLES
from nbsupport.study import Study
from nbsupport.tables import caption

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
    """The studies that ``compute`` was asked for, instead of computing them."""
    studies = []
    monkeypatch.setattr("nbsupport.__main__._compute", studies.append)
    return studies


def exit_of(*arguments):
    with pytest.raises(SystemExit) as error:
        main(list(arguments))
    return error.value.code


# -- compute -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def computed(evaluation, tmp_path_factory):
    """A store in which all was trained and nothing measured, after ``compute``, and what that printed."""
    home, printed = tmp_path_factory.mktemp("computed") / "home", io.StringIO()
    shutil.copytree(evaluation.artefacts.store.home, home, ignore=shutil.ignore_patterns("measurement"))
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setenv("NBSUPPORT_HOME", str(home))
        main(["compute", "--study", "digits", "--scale", "smoke"])
    return home, printed.getvalue()


def test_compute_makes_what_is_missing(computed):
    home, printed = computed
    assert len(list((home / "measurement").iterdir())) == len(METHODS)
    assert printed.endswith(f"stored in {home}\n")


def test_compute_prints_the_mean_accuracy_of_every_method(computed, evaluation):
    for method, line in zip(METHODS, computed[1].splitlines(), strict=False):
        accuracy = evaluation.measurement(method).correct().mean()
        assert line.startswith(f"{method:22} mean accuracy over ε {accuracy:.3f} ")


def test_compute_says_what_failed(finished, capsys, monkeypatch):
    monkeypatch.setattr(Artefacts, "failure", lambda self, name: f"{name} failed" if name == "PA-Filt(L_img)" else None)
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


@pytest.mark.parametrize("number", TABLES)
def test_report_prints_every_table_with_its_caption(number, evaluation, report):
    assert " ".join(caption(evaluation.table(number), evaluation.study).split()) in " ".join(report.split())


def test_report_prints_every_method_and_source(evaluation, report):
    methods = {method for number in TABLES for method in evaluation.table(number)["method"]}
    assert all(word in report for word in [*methods, "measured", "envelope", "published"])


def test_report_keeps_a_line_of_a_table_in_one_line(report):
    (line, *_) = [line for line in report.splitlines() if "published" in line and "0.928" in line]
    numbers = [0.928, 0.899, 0.829, 0.747, 0.484, 0.045, 0.014, 0.004, 0.031, 0.076, 0.108, 0.278, 0.036]
    assert [float(number) for number in line.split()[-13:]] == numbers


@pytest.mark.parametrize(
    ("claim", "sentence"), [(claim, sentence) for claim, (sentence, _) in CLAIMS.items()], ids=CLAIMS
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
    for piece in ("classifier", "train images", "test images", "Filt(L_img)", "Y-Net", "PA-Filt(L_img)"):
        assert f"  {piece:22} not made yet: {COMPUTE}" in lines


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
    assert asked == [Study.named("digits", "smoke")]


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
    ],
    ids=" ".join,
)
def test_a_mistake_ends_with_code_2_and_a_line_that_helps(arguments, help_line, capsys):
    assert exit_of(*arguments) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("python -m nbsupport: error: ")
    assert help_line in last


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
    assert [study.scale for study in asked] == ["quick", "paper", "smoke"]


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


@pytest.mark.parametrize(("scale", "told"), [("smoke", "figures          none: smoke"), ("quick", "tables, figures  ")])
def test_run_says_where_its_results_are(scale, told, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(runner, "run", lambda names, study, scale: tmp_path / study / scale / "-".join(names))
    main(["run", "00", "07", "--scale", scale])
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"pages            {tmp_path / 'digits' / scale / '00-07'}"
    assert second.startswith(told)


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
for command in ("compute", "run"):
    print("begin", command)
    sys.argv = ["nbsupport", command, "--study", "digits", "--scale", "smoke"]
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
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment | {"PYTHONUTF8": "1"})
    printed = dict(part.split("\n", 1) for part in done.stdout.split("begin ")[1:])
    return printed | {"stderr": done.stderr}


def test_compute_needs_no_jupyter(without_jupyter):
    assert "stored in" in without_jupyter["compute"], without_jupyter["stderr"]


def test_run_says_how_to_install_it(without_jupyter):
    missing = f"running notebooks needs Jupyter (No module named 'nbformat'): {INSTALL}\n"
    assert without_jupyter["run"].startswith(missing), without_jupyter["stderr"]
    assert "Traceback" not in without_jupyter["stderr"]
