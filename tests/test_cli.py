"""``python -m nbsupport``: what it prints, and that mistakes end in a line that says what to do."""

import importlib.metadata
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from nbsupport import runner
from nbsupport.__main__ import INSTALL, main
from nbsupport.artefacts import Artefacts
from nbsupport.claims import CLAIMS
from nbsupport.evaluation import Evaluation
from nbsupport.recipes import TABLES
from nbsupport.tables import caption

METHODS = list(dict.fromkeys(method for table in TABLES.values() for method in table))
COMPUTE = "python -m nbsupport compute --study digits --scale smoke"


@pytest.fixture
def finished(artefacts, monkeypatch):
    """The smallest study with everything made."""
    evaluation = Evaluation(artefacts)
    for number in TABLES:
        evaluation.table(number)
    monkeypatch.setenv("NBSUPPORT_HOME", str(artefacts.store.home))
    return evaluation


def words(text):
    return " ".join(text.split())


def exit_of(*arguments):
    with pytest.raises(SystemExit) as error:
        main(list(arguments))
    return error.value.code


# -- compute and report --------------------------------------------------------------------------


def test_compute_makes_everything(capsys, tmp_path):
    main(["compute", "--scale", "smoke"])
    printed = capsys.readouterr().out
    assert [line[:22].strip() for line in printed.splitlines()[: len(METHODS)]] == METHODS
    assert f"stored in {tmp_path / 'home'}" in printed
    assert {path.name for path in (tmp_path / "home").iterdir()} == {
        "attacked",
        "classifier",
        "denoiser",
        "measurement",
    }


def test_compute_says_what_failed(finished, capsys, monkeypatch):
    monkeypatch.setattr(Artefacts, "failure", lambda self, name: f"{name} failed" if name == "PA-Filt(L_img)" else None)
    main(["compute", "--scale", "smoke"])
    assert "PA-Filt(L_img) failed" in capsys.readouterr().out


def test_report_prints_every_table_with_its_caption(finished, capsys):
    main(["report", "--scale", "smoke"])
    printed = words(capsys.readouterr().out)
    for number in TABLES:
        assert words(caption(finished.table(number), finished.study)) in printed


def test_report_prints_every_method_and_source(finished, capsys):
    main(["report", "--scale", "smoke"])
    printed = capsys.readouterr().out
    assert all(method in printed for table in TABLES for method in finished.table(table)["method"])
    assert all(source in printed for source in ("measured", "envelope", "published"))


def test_report_keeps_a_line_of_a_table_in_one_line(finished, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    main(["report", "--scale", "smoke"])
    (line, *_) = [line for line in capsys.readouterr().out.splitlines() if "published" in line and "0.928" in line]
    assert line.split()[-13:] == (
        "0.928 0.899 0.829 0.747 0.484 0.045 0.014 0.004 0.031 0.076 0.108 0.278 0.036".split()
    )


def test_report_prints_all_claims(finished, capsys):
    main(["report", "--scale", "smoke"])
    lines = capsys.readouterr().out.splitlines()
    for claim, (sentence, _) in CLAIMS.items():
        (number,) = [i for i, line in enumerate(lines) if line.split()[:1] == [claim]]
        assert lines[number].endswith(sentence)
        assert "here: " in lines[number + 1]
        assert "; in the paper (" in lines[number + 1]


# -- doctor --------------------------------------------------------------------------------------


@pytest.fixture
def complete(monkeypatch):
    """As if all of Jupyter were installed."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0")
    monkeypatch.setattr("os.path.isdir", lambda path: True)


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


def test_doctor_misses_the_extension_that_shows_the_sliders(complete, capsys, monkeypatch):
    monkeypatch.setattr("os.path.isdir", lambda path: False)
    assert exit_of("doctor", "--scale", "smoke") == 1
    assert f"no widget extension: {INSTALL}" in capsys.readouterr().out


def test_the_commands_it_gives_are_understood(complete, finished, capsys):
    main(COMPUTE.split()[3:])
    assert "stored in" in capsys.readouterr().out


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


def test_the_environment_chooses_and_the_command_line_overrides(finished, capsys, monkeypatch):
    monkeypatch.setenv("NBSUPPORT_SCALE", "paper")
    main(["compute", "--scale", "smoke"])
    monkeypatch.setenv("NBSUPPORT_SCALE", "smoke")
    main(["compute"])
    assert capsys.readouterr().out.count("stored in") == 2


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
runpy.run_module("nbsupport", run_name="__main__", alter_sys=True)
"""


def without_jupyter(*arguments, home):
    environment = os.environ | {"NBSUPPORT_HOME": str(home), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error::FutureWarning", "-c", WITHOUT_JUPYTER, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    return SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr)


def test_compute_needs_no_jupyter(finished):
    done = without_jupyter("compute", "--scale", "smoke", home=finished.artefacts.store.home)
    assert (done.code, "stored in" in done.out) == (0, True), done.err


def test_report_needs_none_either(finished):
    done = without_jupyter("report", "--scale", "smoke", home=finished.artefacts.store.home)
    assert (done.code, "C18" in done.out) == (0, True), done.err


def test_run_says_how_to_install_it(tmp_path):
    done = without_jupyter("run", "--scale", "smoke", home=tmp_path)
    assert done.code == 1
    assert f"running notebooks needs Jupyter (No module named 'nbformat'): {INSTALL}" in done.err
    assert "Traceback" not in done.err
