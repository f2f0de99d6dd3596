"""The command line: ``python -m nbsupport run | compute | report | doctor``."""

import argparse
import importlib.metadata
import os
import platform
import shutil
import sys
import textwrap
import time

import torch

from .artefacts import Artefacts
from .claims import judge
from .evaluation import Evaluation
from .figures import folder
from .recipes import TABLES
from .store import default_home
from .study import STUDIES, Study
from .tables import beside, caption

INSTALL = "python -m pip install -e '.[lab]' -c constraints.txt"


def _compute(study: Study) -> None:
    """Every artefact of Tables 1 to 4, without Jupyter."""
    evaluation = Evaluation(Artefacts(study))
    start = time.monotonic()
    for method in dict.fromkeys(method for table in TABLES.values() for method in table):
        accuracy = evaluation.measurement(method).correct().mean()
        print(f"{method:22} mean accuracy over ε {accuracy:.3f}   after {time.monotonic() - start:4.0f} s", flush=True)
    for failure in evaluation.failures(TABLES[4]):
        print(failure)
    print(f"stored in {evaluation.artefacts.store.home}")


def _report(study: Study) -> None:
    """Tables 1 to 4 and the claims; what is missing is made first."""
    evaluation = Evaluation(Artefacts(study))
    width = max(shutil.get_terminal_size((150, 24)).columns, 80)
    for number in TABLES:
        rows = evaluation.table(number)
        print("\n" + textwrap.fill(caption(rows, study), width))
        print(beside(rows).round(3).to_string(na_rep="", line_width=10_000))
    for failure in evaluation.failures(TABLES[4]):
        print(failure)
    print()
    for row in judge(evaluation).to_dict("records"):
        print(f"{row['claim']:4} {row['outcome']:13} {row['predicate']}")
        print(f"{'':18} here: {row['measured']}; in the paper ({row['paper_outcome']}): {row['in_the_paper']}")


def _doctor(study: Study) -> None:
    """What is there, what is missing, and the command that mends it."""
    missing = []
    print(f"python           {platform.python_version()} on {platform.platform()}")
    for name in ("nbsupport", "torch", "torchvision", "foolbox", "jupyterlab", "ipywidgets", "jupyterlab_widgets"):
        try:
            print(f"{name:16} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"{name:16} missing: {INSTALL}")
            missing.append(name)
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else f"{os.cpu_count()} CPU cores, no CUDA device found"
    print(f"device           {device}")
    extension = os.path.join(sys.prefix, "share", "jupyter", "labextensions", "@jupyter-widgets", "jupyterlab-manager")
    found = os.path.isdir(extension)
    print(f"sliders          {'JupyterLab has the widget extension' if found else f'no widget extension: {INSTALL}'}")
    home = default_home()
    usable = home if home.exists() else next(parent for parent in home.parents if parent.exists())
    free = shutil.disk_usage(usable).free / 1e9
    print(f"store            {home} ({'there' if home.exists() else 'made when needed'}, {free:.0f} GB free)")
    print(f"figures          {folder(study.name)}")
    artefacts = Artefacts(study)
    pieces = {"classifier": artefacts.classifier_specification()}
    pieces |= {f"{split} images": artefacts.attacked_specification(split) for split in ("train", "test")}
    pieces |= {name: artefacts.denoiser_specification(name) for name in ("Filt(L_img)", "Y-Net", "PA-Filt(L_img)")}
    command = f"python -m nbsupport compute --study {study.name} --scale {study.scale}"
    print(f"study            {study.name} at {study.scale}; its data come with scikit-learn")
    for name, specification in pieces.items():
        print(f"  {name:22} {'there' if artefacts.store.has(specification) else f'not made yet: {command}'}")
    if missing or not found:
        sys.exit(1)


def main(arguments: list[str] | None = None) -> None:
    """Parse and obey. Mistakes end in one line that says what to do."""
    parser = argparse.ArgumentParser(prog="python -m nbsupport", description="The AdvFilter study.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help_text in {
        "run": "execute notebooks (all, or those named by their numbers) and keep a web page of each",
        "compute": "make every artefact of the study, without Jupyter",
        "report": "print the tables and the claims",
        "doctor": "say what is there, what is missing and how to get it",
    }.items():
        command = commands.add_parser(name, help=help_text)
        command.add_argument("--study", default=os.environ.get("NBSUPPORT_STUDY", "digits"), help=", ".join(STUDIES))
        command.add_argument("--scale", default=os.environ.get("NBSUPPORT_SCALE", "quick"), help="smoke, quick, paper")
        if name == "run":
            command.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="such as 07 or 07_pa_filt")
    options = parser.parse_args(arguments)
    try:
        study = Study.named(options.study, options.scale)
    except ValueError as error:
        parser.error(str(error))
    if options.command == "run":
        _run(options.notebooks, study)
    else:
        {"compute": _compute, "report": _report, "doctor": _doctor}[options.command](study)


def _run(names: list[str], study: Study) -> None:
    try:
        from .runner import NotebookError, run
    except ModuleNotFoundError as error:
        sys.exit(f"running notebooks needs Jupyter ({error}): {INSTALL}\nwithout it: python -m nbsupport compute")
    try:
        pages = run(names, study.name, study.scale)
    except (NotebookError, FileNotFoundError) as error:
        sys.exit(str(error))
    print(f"pages            {pages}")
    if study.scale == "smoke":
        print("figures          none: smoke only shows that everything runs, its numbers mean nothing")
    else:
        print(f"tables, figures  {folder(study.name)}")


if __name__ == "__main__":
    main()
