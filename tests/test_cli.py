"""``python -m nbsupport``: what it prints, and that every mistake ends in a line that helps."""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from small import write_yours

from nbsupport.__main__ import INSTALL, main
from nbsupport.experiments.evaluation import measure, measurement_specification, table
from nbsupport.experiments.methods import TABLES
from nbsupport.results import notebooks
from nbsupport.results.claims import CORE_CLAIMS
from nbsupport.results.save import roots
from nbsupport.study import Study, default_home

METHODS = list(dict.fromkeys(method for rows in TABLES.values() for method in rows))
SMOKE = ["--study", "photographs", "--scale", "smoke"]


@pytest.fixture
def finished(experiment, monkeypatch):
    """The command line finds every artifact of the smallest study."""
    for number in TABLES:
        table(experiment, number)
    monkeypatch.setenv("NBSUPPORT_HOME", str(experiment.store.home))
    return experiment


@pytest.fixture
def computed(monkeypatch):
    """The studies and tables that ``compute`` would make."""
    calls = []
    record = lambda options, study, choices: calls.append((study, options.tables))  # noqa: E731
    monkeypatch.setattr("nbsupport.__main__._compute", record)
    return calls


def exit_of(*arguments):
    with pytest.raises(SystemExit) as error:
        main(list(arguments))
    return error.value.code


# -- compute ---------------------------------------------------------------------------------------


def test_compute_makes_and_prints_every_method(finished, capsys):
    main(["compute", *SMOKE])
    printed = capsys.readouterr().out
    for method in METHODS:
        accuracy = measure(finished, method)["accuracy"].mean()
        assert re.search(rf"^{re.escape(method)} .*{accuracy:.3f} ", printed, re.MULTILINE)
    records = (finished.store.home / "measurement").glob("*/artifact.json")
    stored = [json.loads(record.read_text())["specification"]["name"] for record in records]
    assert set(METHODS) <= set(stored)
    assert measurement_specification(finished, "Adv")["name"] in stored


def test_compute_names_a_failed_training(finished, capsys, monkeypatch):
    failed = lambda _, method: "W is constant" if method == "PA-Filt(L_img)" else None  # noqa: E731
    monkeypatch.setattr("nbsupport.experiments.evaluation.failure", failed)
    main(["compute", *SMOKE, "--tables", "4"])
    assert "W is constant" in capsys.readouterr().out


def test_compute_attacks_chosen_methods_and_their_bare_classifiers_adaptively(finished, capsys):
    main(["compute", *SMOKE, "--tables", "1", "--adaptive", "8-bit", "Filt+Adv"])
    table = capsys.readouterr().out.partition("Adaptive evaluation")[2]
    lines = re.findall(r"^(no filter|8-bit|Adv|Filt\+Adv|Filt\(L_img\)) ", table, re.MULTILINE)
    assert {*lines} == {"no filter", "8-bit", "Adv", "Filt+Adv"}
    assert "'Filt'" in exit_of("compute", *SMOKE, "--adaptive", "Filt")


# -- report ----------------------------------------------------------------------------------------


def test_report_prints_a_summary_or_the_chosen_tables_and_their_claims(finished, capsys):
    main(["report", *SMOKE])
    assert "no filter" in capsys.readouterr().out
    for numbers, expected in (([5], {"C14", "C15"}), ([4, 7], {*CORE_CLAIMS, "C17"})):
        main(["report", *SMOKE, "--tables", *map(str, numbers)])
        printed = capsys.readouterr().out
        assert [number for number in TABLES if f"Table {number}." in printed] == numbers
        assert set(re.findall(r"^(C\d+) ", printed, re.MULTILINE)) == expected


def test_the_page_is_written_where_it_is_wanted(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("nbsupport.interactive.explorer.write_page", lambda path: path.touch())
    main(["report", "--html", str(tmp_path / "new" / "page.html")])
    assert str(tmp_path / "new" / "page.html") in capsys.readouterr().out
    assert "</html>" in (tmp_path / "new" / "page.html").read_text(encoding="utf-8")


def test_a_page_without_results_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("NBSUPPORT_FIGURES", str(tmp_path / "none"))
    assert "no results" in str(exit_of("report", "--html", str(tmp_path / "page.html")))
    assert not (tmp_path / "page.html").exists()


# -- doctor ----------------------------------------------------------------------------------------


@pytest.fixture
def complete(tmp_path, monkeypatch):
    """As if all of Jupyter were installed; the folder of the extension that shows the sliders."""
    extension = tmp_path / "prefix/share/jupyter/labextensions/@jupyter-widgets/jupyterlab-manager"
    extension.mkdir(parents=True)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.0")
    monkeypatch.setattr("nbsupport.experiments.tasks._time", lambda run: (run(), 60)[1])
    return extension


def test_doctor_lists_every_study_and_downloads_nothing(complete, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("NBSUPPORT_DATA", str(tmp_path / "data"))
    assert exit_of("doctor", "--study", "cifar10", "--scale", "smoke") == 1
    printed = capsys.readouterr().out
    assert "made when needed" in printed and not (tmp_path / "home").exists()
    for study, state in {"photographs": "there", "cifar10": "to get", "folder": "to get"}.items():
        assert re.search(rf"^  {study} +{state}: ", printed, re.MULTILINE)
    assert not list(tmp_path.glob("data/*"))


@pytest.mark.parametrize("missing", ["jupyterlab", "widget extension"])
def test_doctor_says_how_to_install_what_is_missing(missing, complete, capsys, monkeypatch):
    def version(name):
        if name == missing:
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(importlib.metadata, "version", version)
    if missing == "widget extension":
        complete.rmdir()
    assert exit_of("doctor", *SMOKE) == 1
    assert re.search(rf"{missing}.*: {re.escape(INSTALL)}", capsys.readouterr().out)


# -- mistakes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["compute", "--study", "photograph"], "'photograph'; there are: photographs"),
        (["compute", "--tables", "8"], "--tables: invalid choice"),
        (["compute", "--data", "photos"], "--data"),
        (["compute", "--image-size", "large"], "'large'"),
        (["compute", "--image-size", "5"], "image_size"),
        (["compute", "--workers", "0"], "expected a positive number"),
        (["compute", "--workers", "two"], "expected a positive number"),
        (["report"], "'nonsense'; there are: smoke, quick, paper"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_ends_with_code_2_and_a_line_that_helps(arguments, word, capsys, monkeypatch):
    if "nonsense" in word:
        monkeypatch.setenv("NBSUPPORT_SCALE", "nonsense")
    assert exit_of(*arguments) == 2
    assert word in capsys.readouterr().err.splitlines()[-1]


def test_a_notebook_that_fails_ends_without_a_traceback(monkeypatch):
    def run(names, study, scale):
        raise notebooks.NotebookError("07_pa_filt.ipynb: cell 3 failed")

    monkeypatch.setattr(notebooks, "run", run)
    assert "07_pa_filt.ipynb: cell 3 failed" in exit_of("run", "07", "--scale", "smoke")


def interrupt(sign, *arguments):
    """The exit code and the output of `compute` in a terminal, with Ctrl-C once a sign is printed."""
    process, terminal = pty.fork()
    if not process:
        os.execv(sys.executable, [sys.executable, "-m", "nbsupport", "compute", *arguments])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    printed = b""
    with contextlib.suppress(OSError):  # Linux's sign that the other end is closed
        while read := os.read(terminal, 4096):
            printed += read
            if sign in printed and b"\3" not in printed:
                os.write(terminal, b"\3")
                printed += b"\3"
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return code, re.split(r"[\r\n]+", printed.decode().strip())


def test_progress_fits_80_columns_and_an_interruption_ends_with_130():
    code, (*bars, last) = interrupt(b" 1%|", "--tables", "4")
    assert code == 130 and "the same command continues" in last
    assert all(len(bar) <= 80 and "Traceback" not in bar for bar in bars)
    assert any(re.search(r" 1%\|.*\[\d\d:\d\d<\d\d:\d\d\] training", bar) for bar in bars)


@pytest.mark.matrix
def test_an_interruption_ends_the_workers_without_tracebacks():
    code, lines = interrupt(b" 0%|", "--tables", "4", "--workers", "1")
    assert code == 130 and "the same command continues" in lines[-1]
    assert not any("Traceback" in line for line in lines)


@pytest.mark.parametrize("home", ["file/store", "readonly"])
def test_a_store_that_cannot_be_written_ends_in_one_line(home, tmp_path, monkeypatch):
    (tmp_path / "file").touch()

    def refuse(self, *arguments, **options):  # root may write anywhere
        raise PermissionError(13, "Permission denied", str(self))

    if home == "readonly":
        monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    monkeypatch.setenv("NBSUPPORT_HOME", str(tmp_path / home))
    message = exit_of("compute", *SMOKE, "--tables", "4")
    assert str(tmp_path / home) in message
    assert message.endswith("; name another folder in NBSUPPORT_HOME")
    assert len(message.splitlines()) == 1


NO_HOME = """
import os, pwd, sys, ctypes, encodings.idna, multiprocessing.synchronize, nbsupport.__main__ as m
import joblib, sklearn.datasets, sklearn.model_selection, torchmetrics, torch, torchvision
del os.environ["HOME"], os.environ["NBSUPPORT_HOME"]
pwd.getpwuid = lambda user: {}[user]  # as for an unknown user
m.main(sys.argv[1:])
"""


def test_a_user_without_a_home_is_told_what_to_name():
    command = [sys.executable, "-c", NO_HOME, "compute", *SMOKE]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr and "home" in done.stderr.splitlines()[-1]


def test_relative_folders_stay_where_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "DATA", "FIGURES"):
        monkeypatch.setenv(f"NBSUPPORT_{name}", f"some/{name}")
    seen = []

    def run(*arguments, **choices):
        monkeypatch.chdir("/")  # as a notebook's kernel does
        seen.extend((default_home(), Path(os.environ["NBSUPPORT_DATA"]), *roots()))
        return tmp_path

    monkeypatch.setattr(notebooks, "run", run)
    main(["run", "00", *SMOKE])
    assert seen == [tmp_path / "some" / name for name in ("HOME", "DATA", "FIGURES")]


def run_module(*arguments, code="from nbsupport.__main__ import main; main()", **options):
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, stderr=subprocess.PIPE, **options)


@pytest.mark.parametrize("arguments", [["compute", "--help"], ["report", "--study", "ε"]])
def test_any_output_encoding_will_do(arguments):
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = run_module(*arguments, env=environment, stdout=subprocess.PIPE)
    assert "Traceback" not in done.stderr.decode("ascii")
    assert done.returncode == 2 * ("report" in arguments)


PRINT = "import sys, nbsupport.__main__ as m; m._obey = lambda _: print('ε'); m.main()"
HELP = "import nbsupport.__main__ as m\ntry: m.main(['--help'])\nfinally: "


def test_a_reader_that_goes_away_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    done = run_module(code=PRINT, stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_help_needs_no_torch():
    code = HELP + "assert 'torch' not in __import__('sys').modules"
    assert run_module(code=code, stdout=subprocess.PIPE).returncode == 0


# -- a custom classifier and images ----------------------------------------------------------------

CUSTOM = ["--study", "folder", "--scale", "smoke", "--data", "photos"]
CUSTOM += ["--classifier", "model.py:factory"]


@pytest.fixture
def yours(tmp_path, monkeypatch):
    """A folder with a user's model file and images in three classes."""
    monkeypatch.chdir(write_yours(tmp_path))
    return tmp_path


def chosen(yours, **changes):
    paths = dict(data=f"{yours}/photos", classifier=f"{yours}/model.py:factory")
    return Study.named("folder", "smoke", **paths | changes)


def test_they_are_chosen_on_the_command_line(computed, yours):
    names = {"model.py:factory": f"{yours}/model.py:factory", "fpd:x.pth": f"fpd:{yours}/x.pth"}
    names["robustbench:Name"] = "robustbench:Name"
    for name in names:
        main(["compute", *CUSTOM, "--image-size", "12", "--robust", name])
    studies = [chosen(yours, image_size=12, robust=name) for name in names.values()]
    assert computed == [(study, [*TABLES]) for study in studies]


def test_or_in_the_environment(computed, yours, monkeypatch):
    values = {"STUDY": "folder", "DATA": "photos", "CLASSIFIER": "model.py:factory"}
    for name, value in values.items():
        monkeypatch.setenv(f"NBSUPPORT_{name}", value)
    main(["compute", "--scale", "smoke"])
    monkeypatch.setenv("NBSUPPORT_IMAGE_SIZE", "12")
    main(["compute", "--scale", "smoke", "--study", "photographs", "--classifier", "small_resnet"])
    expected = [chosen(yours), Study.named("photographs", "smoke", image_size=12)]
    assert [study for study, _ in computed] == expected


def test_notebooks_run_with_them(yours, monkeypatch, tmp_path):
    calls = []

    def run(*places, **choices):
        calls.append((places, choices))
        return tmp_path

    monkeypatch.setattr(notebooks, "run", run)
    main(["run", "14", *CUSTOM, "--image-size", "12"])
    paths = {"data": f"{yours}/photos", "classifier": f"{yours}/model.py:factory"}
    assert calls == [((["14"], "folder", "smoke"), paths | {"image_size": "12"})]


def test_doctor_describes_them(complete, yours, capsys):
    main(["doctor", *CUSTOM, "--robust", "model.py:factory"])
    printed = capsys.readouterr().out
    assert "7 to train on, 4 to test on, 3 classes, 32×32 pixels" in printed
    found = "model.py:factory: 3 logits, clean accuracy 0.250"  # folders: blue, green, red
    assert f"\nclassifier       {found}\n" in printed and f"\nAdv              {found}\n" in printed


@pytest.mark.parametrize(
    ("command", "change", "word"),
    [
        ("run", {"--data": "absent"}, "absent"),
        ("compute", {"--data": ""}, "compute --study folder --data DIR"),
        ("report", {"--classifier": "model.py:training"}, "training mode"),
        ("doctor", {"--classifier": "resnet51"}, "resnet51"),
        ("compute", {"--robust": "robustbench:Name"}, "cifar10 and neurips2017dev"),
    ],
)
def test_a_mistake_in_them_ends_in_one_line(command, change, word, complete, yours):
    options = dict(zip(CUSTOM[::2], CUSTOM[1::2], strict=True)) | change
    message = exit_of(command, *(part for option in options.items() for part in option))
    assert word in message
    assert len(message.splitlines()) == 1


def test_tables_of_robust_classifiers_are_computed(yours, capsys):
    """On images of 11×11 pixels, batches of 8 and a network without weights."""
    main(["compute", *CUSTOM, "--image-size", "11", "--tables", "5", "6", "7"])
    printed = f"\n{capsys.readouterr().out}"
    assert all(f"\n{method} " in printed for n in (5, 6, 7) for method in TABLES[n])


def test_a_table_that_an_architecture_cannot_have_is_refused_before_any_work(yours, tmp_path):
    message = exit_of("compute", *CUSTOM[:-1], "vgg11", "--tables", "7")
    assert "vgg11" in message
    assert not (tmp_path / "home").exists()


# -- without Jupyter -------------------------------------------------------------------------------

WITHOUT_JUPYTER = """
import runpy, sys

class Absent:
    names = {"IPython", "ipykernel", "ipywidgets", "jupyter", "jupyter_client", "jupyterlab",
             "nbclient", "nbconvert", "nbformat", "dask", "distributed"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
sys.argv = ["nbsupport", *sys.argv[1:]]
runpy.run_module("nbsupport", run_name="__main__")
"""


@pytest.mark.parametrize(
    ("arguments", "code"), [(["compute", *SMOKE, "--tables", "2"], 0), (["run", "00", *SMOKE], 1)]
)
def test_without_jupyter_only_notebooks_are_out_of_reach(arguments, code, finished):
    command = [sys.executable, "-c", WITHOUT_JUPYTER, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == code, done.stderr
    if code:
        assert INSTALL in done.stderr
        assert len(done.stderr.splitlines()) == 1
