"""The command line: ``python -m nbsupport run | compute | report | doctor``."""

import argparse
import importlib.metadata
import io
import os
import platform
import shlex
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

from . import setup
from .study import STUDIES, Study, default_home, sizes

INSTALL = "python -m pip install -e '.[lab]' -c constraints.txt"
NUMBERS = (1, 2, 3, 4, 5, 6, 7)
SCALES = ("smoke", "quick", "paper")
COMMANDS = {
    "run": "execute notebooks (all, or some by their numbers) and keep a web page of each",
    "compute": "make every artifact of some tables, without Jupyter",
    "report": "print a summary, or whole tables and claims, and write the page of all results",
    "doctor": "list what is there, what is missing, and the command that gets it",
}
OPTIONS: dict[str, dict[str, Any]] = {
    "study": {"default": "digits", "help": ", ".join(STUDIES)},
    "scale": {"default": "quick", "help": ", ".join(SCALES)},
    "classifier": {
        "metavar": "FILE.py:FACTORY",
        "help": "a trained classifier: the return value of the factory in that file; or an architecture",
    },
    "data": {
        "metavar": "DIR",
        "help": "the data folder; for --study folder DIR/train/<class>/… and DIR/test/<class>/…",
    },
    "image-size": {
        "metavar": "PIXELS",
        "help": "height and width to which images are resized and cropped",
    },
}
"""The options of every command. The environment variable NBSUPPORT_… gives a default for each."""


def main(arguments: list[str] | None = None) -> None:
    """Parse and obey. Every error of the user's ends in one line that says what to do."""
    for stream in (sys.stdout, sys.stderr):  # a terminal or file may not know ε
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        choices = _choices(options)
        study = Study.named(options.study, options.scale, **sizes(choices))
    except ValueError as error:
        parser.error(str(error))
    setup()
    try:
        {"run": _run, "compute": _compute, "report": _report, "doctor": _doctor}[options.command](
            options, study, choices
        )
    except KeyboardInterrupt:
        print("interrupted; finished work is kept, and the same command continues", file=sys.stderr)
        sys.exit(130)
    except (ValueError, RuntimeError) as error:
        sys.exit(f"python -m nbsupport: {error}")
    except ModuleNotFoundError as error:
        sys.exit(f"nbsupport {options.command} needs {error.name}: {INSTALL}")
    except BrokenPipeError:  # the reader went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        sys.exit(f"python -m nbsupport: {place}{error.strerror or error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m nbsupport", description="The AdvFilter study.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help_text in COMMANDS.items():
        command = commands.add_parser(name, help=help_text, description=help_text)
        for option, settings in OPTIONS.items():
            variable = f"NBSUPPORT_{option.upper().replace('-', '_')}"
            default = os.environ.get(variable) or settings.get("default")
            command.add_argument(f"--{option}", **settings | {"default": default})
        if name == "run":
            command.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="such as 07")
        if name in ("compute", "report"):
            tables: dict[str, Any] = dict(nargs="+", type=int, choices=NUMBERS, help="1 to 7")
            command.add_argument(
                "--tables", default=[*NUMBERS] if name == "compute" else [], **tables
            )
        if name == "compute":
            command.add_argument("--workers", type=int, help="processes; needs the extra cluster")
            command.add_argument("--scheduler", help="of a running Dask cluster: tcp://host:8786")
        if name == "report":
            page: dict[str, Any] = {"nargs": "?", "type": Path, "metavar": "FILE", "const": Path()}
            page["help"] = "write the results of all studies as one web page (build/report.html)"
            command.add_argument("--html", **page)
    return parser


def _choices(options: argparse.Namespace) -> dict[str, str]:
    """The choices besides study and scale, with paths that hold in any folder.

    Raises `ValueError` if a data folder is named for a study that has its own images.
    """
    choices = {}
    if options.data:
        data = str(Path(options.data).expanduser().absolute())
        if options.study == "folder":
            choices["data"] = data
        elif options.study != "digits":
            os.environ["NBSUPPORT_DATA"] = data
        elif options.data != os.environ.get("NBSUPPORT_DATA"):
            raise ValueError("--data is for studies whose images lie in a folder, not for 'digits'")
    if options.classifier:
        file, colon, factory = options.classifier.rpartition(":")
        path = Path(file).expanduser().absolute()
        choices["classifier"] = f"{path}:{factory}" if colon else factory
    return choices | ({"image_size": options.image_size} if options.image_size else {})


# -- run, compute ----------------------------------------------------------------------------------


def _run(options: argparse.Namespace, study: Study, choices: dict[str, str]) -> None:
    from .results import notebooks
    from .results.save import folder

    if choices:
        _open(study)
    if not options.notebooks and study.scale != "smoke":
        print("all notebooks: hours on a CPU; `run 00 01 02` runs these alone", file=sys.stderr)
    pages = notebooks.run(options.notebooks, study.name, study.scale, **choices)
    print(f"pages            {pages}")
    if study.scale != "smoke":  # whose numbers mean nothing
        print(f"tables, figures  {folder(study.name)}")


def _compute(options: argparse.Namespace, study: Study, choices: dict[str, str]) -> None:
    from .experiments.evaluation import failures, measure, table

    methods = _methods(options.tables)
    experiment, start = _open(study, methods), time.monotonic()
    if options.workers or options.scheduler:
        from .experiments import cluster

        cluster.compute(experiment, methods, options.workers, options.scheduler)
    for method in methods:
        accuracy, seconds = measure(experiment, method).correct().mean(), time.monotonic() - start
        print(f"{method:26} mean accuracy over ε {accuracy:.3f}   {seconds:5.0f} s", flush=True)
    for number in options.tables:
        table(experiment, number)  # Tables 5 to 7 need more than those measurements
    for reason in failures(experiment, methods):
        print(reason)
    print(f"stored in {experiment.store.home}")


def _methods(numbers: list[int]) -> tuple[str, ...]:
    from .experiments.methods import TABLES

    return tuple(dict.fromkeys(method for number in numbers for method in TABLES[number]))


def _open(study: Study, methods: tuple[str, ...] = ()) -> Any:
    """The experiment, once its images and its classifier have been tried.

    Raises `ValueError` or `OSError` if they are refused, or if a robust architecture that `methods` need
    cannot be built.
    """
    import torch

    from .experiments.artifacts import Experiment
    from .experiments.methods import split_method
    from .training.classifiers import KINDS

    experiment = Experiment(study)
    kinds = {split_method(method)[1] for method in (*methods, "attacked")}
    with torch.device("meta"):
        for kind in kinds - ({"standard"} if experiment.custom is not None else set()):
            KINDS[kind].build(experiment.architecture(kind), 2, study.image_size)
    experiment.attacked_specification("test")
    experiment.images("train")
    return experiment


# -- report ----------------------------------------------------------------------------------------


def _report(options: argparse.Namespace, study: Study, choices: dict[str, str]) -> None:
    from .experiments.evaluation import failures, table
    from .results import tables

    if options.tables or not options.html:
        experiment, methods = _open(study), _methods(options.tables or [1, 4])
        for number in options.tables:
            print(tables.to_text(table(experiment, number), experiment.study))
        for reason in failures(experiment, methods):
            print(textwrap.fill(reason, 100))
        if options.tables:
            _print_claims(experiment, options.tables)
        else:
            print(tables.summarize(experiment))
    if options.html:
        from .results import report

        print(f"report           {report.write(None if options.html == Path() else options.html)}")


def _print_claims(experiment: Any, numbers: list[int]) -> None:
    from .results.claims import CORE_CLAIMS, ROBUST_CLAIMS, describe_papers, judge

    names = [*CORE_CLAIMS] if set(numbers) & {1, 2, 3, 4} else []
    names += [claim for claim, number in ROBUST_CLAIMS.items() if number in numbers]
    print(f"\nThe claims; the paper's own outcome is on its numbers for {describe_papers()}")
    for row in judge(experiment, *names).to_dict("records"):
        print(f"{row['claim']:4} {row['outcome']:13} {row['predicate']}")
        print(f"{'':18} here: {row['measured']}")
        print(f"{'':18} in the paper ({row['paper_outcome']}): {row['in_the_paper']}")


# -- doctor ----------------------------------------------------------------------------------------


def _doctor(options: argparse.Namespace, study: Study, choices: dict[str, str]) -> None:
    import shutil

    import torch

    from .data.benchmarks import locate

    print(f"python           {platform.python_version()} on {platform.platform()}")
    complete = True
    for name in ("nbsupport", "torch", "torchvision", "foolbox", "jupyterlab", "ipywidgets"):
        try:
            print(f"{name:16} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"{name:16} missing: {INSTALL}")
            complete = False
    extension = Path(sys.prefix, "share/jupyter/labextensions/@jupyter-widgets/jupyterlab-manager")
    if not extension.is_dir():
        print(f"sliders          JupyterLab lacks the widget extension: {INSTALL}")
        complete = False
    cuda = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if cuda else f"{os.cpu_count()} CPU cores, no CUDA device"
    print(f"device           {device}")
    home = default_home()
    existing = next(place for place in (home, *home.parents) if place.exists())
    free = shutil.disk_usage(existing).free / 1e9
    state = "there" if home == existing else "made when needed"
    print(f"store            {home} ({state}, {free:.0f} GB free)")
    print("studies")
    for name in STUDIES:
        there, where = locate(study if name == study.name else Study.named(name, "quick"))
        print(f"  {name:15}{'there: ' if there else 'to get: '}{where}")
    if study.name in ("cifar10", "svhn") and not locate(study)[0]:
        sys.exit(1)  # opening it would download it
    _describe(study)
    if not complete:
        sys.exit(1)


def _describe(study: Study) -> None:
    """The study's images, its classifier if that is custom, and the artifacts that are stored."""
    import torch

    experiment = _open(study)
    train, test = (experiment.images(split) for split in ("train", "test"))
    print(f"study            {study.name} at {study.scale}")
    print(f"images           {len(train)} to train on, {len(test)} to test on, {len(train.classes)} "
          f"classes, {study.image_size}×{study.image_size} pixels")  # fmt: skip
    if experiment.custom is not None:
        classifier = experiment.classifier()
        with torch.no_grad():
            logits = classifier(test.images.to(experiment.device)).cpu()
        accuracy = (logits.argmax(dim=1) == test.labels).float().mean()
        name = experiment.study.classifier_name
        print(f"classifier       {name}: {logits.shape[1]} logits, clean accuracy {accuracy:.3f}")
    command = (
        f"python -m nbsupport compute --study {study.name} --scale {study.scale}{_repeat(study)}"
    )
    for name, there in experiment.inventory().items():
        print(f"  {name:22} {'there' if there else f'not made yet: {command}'}")


def _repeat(study: Study) -> str:
    """The options that choose this study besides its name and scale."""
    usual = Study.named(study.name, study.scale)
    changed = {
        name: value
        for name in ("classifier", "data", "image_size")
        if (value := getattr(study, name)) != getattr(usual, name)
    }
    if study.name not in ("digits", "folder") and (home := os.environ.get("NBSUPPORT_DATA")):
        changed["data"] = home
    words = ((f"--{name.replace('_', '-')}", str(value)) for name, value in changed.items())
    return "".join(f" {option} {shlex.quote(value)}" for option, value in words)


if __name__ == "__main__":
    main()
