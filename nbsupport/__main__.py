"""The command line: ``python -m nbsupport run | compute | report | verify | doctor``."""

import argparse
import contextlib
import importlib.metadata
import io
import json
import os
import platform
import shutil
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import __version__, setup
from .study import STUDIES, Study, change_file, default_home, make_paths_absolute, sizes

CLONE = (Path(__file__).parents[1] / "constraints.txt").is_file()  # or else installed
INSTALL = "python -m pip install "
INSTALL += "-e '.[lab]' -c constraints.txt" if CLONE else "'nbsupport[lab]'"
NUMBERS = [1, 2, 3, 4, 5, 6, 7]
WORKERS = 2  # of `make study`
BAR = "{percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}] {desc}{postfix}"
"""The progress of what takes long; a terminal cuts a line at its right end."""
OPTIONS: dict[str, dict[str, Any]] = {
    "study": {"default": "photographs", "help": ", ".join(STUDIES)},
    "scale": {
        "default": "quick",
        "help": "smoke, quick, standard (cifar10, neurips2017dev), paper",
    },
    "classifier": {
        "metavar": "REF",
        "help": "an architecture to train, or a network as for --robust",
    },
    "robust": {"metavar": "REF", "help": "FILE.py:FACTORY, robustbench:NAME, fd:FILE, fpd:FILE"},
    "data": {
        "metavar": "DIR",
        "help": "folder of the data sets; for --study folder, the one with {train,test}/<class>",
    },
    "image-size": {"metavar": "PIXELS", "help": "images are resized and cropped to this square"},
}
"""The options of every command. The environment variable NBSUPPORT_… gives a default for each."""
VARIABLES = """Options come after the command: `compute --help` lists them. Environment variables:
  NBSUPPORT_HOME     the store (else nbsupport in the user's cache folder)
  NBSUPPORT_DATA     the data sets (else data in the store)
  NBSUPPORT_FIGURES  where results are written and read (else build/results, and figures)
  NBSUPPORT_STUDY, _SCALE, _CLASSIFIER, _ROBUST, _IMAGE_SIZE: defaults for these options"""


def main(arguments: list[str] | None = None) -> None:
    """Parse and obey. Every error of the user's ends in one line that says what to do."""
    for stream in (sys.stdout, sys.stderr):  # a terminal or file may not know ε
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        try:
            _obey(arguments)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted; finished work is kept, and the same command continues", file=sys.stderr)
        sys.exit(130)
    except (ValueError, RuntimeError) as error:
        sys.exit(f"python -m nbsupport: {error}")
    except ImportError as error:
        install = INSTALL.replace("lab", "cluster" if error.name == "distributed" else "lab")
        sys.exit(f"python -m nbsupport: {error.name or error} is missing or broken: {install}")
    except BrokenPipeError:  # the reader went away, as `head` does
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except OSError as error:
        place, hint = f"{error.filename}: " if error.filename else "", ""
        if place and Path(error.filename).is_relative_to(default_home()):
            hint = "; name another folder in NBSUPPORT_HOME"
        sys.exit(f"python -m nbsupport: {place}{error.strerror or error}{hint}")


def _obey(arguments: list[str] | None) -> None:
    make_paths_absolute()
    os.environ.setdefault("TQDM_BAR_FORMAT", BAR)  # tqdm reads it when it is imported
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        choices = _choices(options)
        study = Study.named(options.study, options.scale, **sizes(choices))
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))
    setup()
    options.obey(options, study, choices)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nbsupport", description="The AdvFilter study.", epilog=VARIABLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)

    def add(
        name: str, obey: Any, text: str, names: Iterable[str] = OPTIONS
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        none = dict.fromkeys(("classifier", "robust", "data", "image_size"))
        command.set_defaults(obey=obey, scale="quick", **none)
        for option in names:
            settings = OPTIONS[option]
            variable = f"NBSUPPORT_{option.upper().replace('-', '_')}"
            default = os.environ.get(variable) or settings.get("default")
            command.add_argument(f"--{option}", **settings | {"default": default})
        return command

    run = add(
        "run", _run, "execute the repository's notebooks (all, or some) and keep a web page of each"
    )
    run.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="such as 07")
    compute = add("compute", _compute, "make tables and train what they need, without Jupyter")
    adaptive = "also evaluate these methods adaptively (none named: all in the tables); takes hours"
    compute.add_argument("--adaptive", nargs="*", metavar="METHOD", help=adaptive)
    compute.add_argument(
        "--workers", type=_positive, help="how many processes; needs the extra cluster"
    )
    compute.add_argument("--scheduler", help="address of a running Dask cluster: tcp://host:8786")
    report = add("report", _report, "print a summary or the tables and claims, or write a web page")
    page = "write the results of all studies as one web page (build/report.html)"
    report.add_argument("--html", nargs="?", type=Path, metavar="FILE", const=Path(), help=page)
    for command, default in ((compute, NUMBERS), (report, [])):
        tables: dict[str, Any] = {"nargs": "+", "type": int, "choices": NUMBERS}
        text = "numbers from 1 to 7" + ", all by default" * bool(default)
        command.add_argument("--tables", default=default, help=text, **tables)
    again = "attack a few images of a stored adaptive evaluation again"
    check = add("verify", _verify, again, ("study", "data"))
    check.add_argument("method", metavar="NAME", help="a row of the table, such as 'Filt(L_img)'")
    check.add_argument("--images", type=_positive, default=8, help="how many of its images (8)")
    add("doctor", _doctor, "try --data and --classifier; list what is missing; estimate times")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return int(text)


def _choices(options: argparse.Namespace) -> dict[str, str]:
    """The choices besides study and scale, with paths that hold in any folder.

    Raises `ValueError` if a data folder is named for a study that has its own images.
    """
    choices = {"image_size": options.image_size} if options.image_size else {}
    if options.data:
        data = str(Path(options.data).expanduser().absolute())
        if options.study == "folder":
            choices["data"] = data
        elif options.study != "photographs":
            os.environ["NBSUPPORT_DATA"] = data
        elif data != os.environ.get("NBSUPPORT_DATA"):
            raise ValueError("--data names a folder of images, but 'photographs' has its own")
    for name in ("classifier", "robust"):
        if reference := getattr(options, name):
            choices[name] = change_file(reference, lambda file: Path(file).expanduser().absolute())
    return choices


def _run(options: argparse.Namespace, study: Study, choices: dict[str, str]) -> None:
    if not CLONE:
        raise RuntimeError("`run` needs the notebooks of the repository; `compute` needs none")
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
    from .experiments.adaptive_evaluation import evaluate_adaptively
    from .experiments.audit import audit, rows
    from .experiments.evaluation import failures, measure, table
    from .experiments.methods import AUDITED, find_recipe, split_method
    from .results import tables
    from .results.claims import CORE_CLAIMS, ROBUST_CLAIMS, judge
    from .results.save import folder, save, save_adaptive

    methods, adaptive = _methods(options.tables), tuple[str, ...]()
    if options.adaptive is not None:
        chosen = options.adaptive or methods
        for method in chosen:
            find_recipe(method)  # which refuses an unknown name
        kinds = {split_method(method)[1] for method in chosen} - {"standard"}
        adaptive = tuple(dict.fromkeys(("attacked", *sorted(kinds), *chosen)))
    methods = tuple(dict.fromkeys((*methods, *adaptive)))
    experiment, start = _open(study, methods), time.monotonic()
    if options.workers or options.scheduler:
        from .experiments import cluster

        where = {"workers": options.workers, "scheduler": options.scheduler}
        cluster.compute(experiment, methods, adaptive, **where)
    for method in methods:
        accuracy, seconds = measure(experiment, method)["accuracy"].mean(), time.monotonic() - start
        print(f"{method:26} mean accuracy over ε {accuracy:.3f}   {seconds:5.0f} s", flush=True)
    for number in options.tables:
        made = table(experiment, number)  # Tables 5 to 7 need more than those measurements
        save(experiment, f"table{number}", made, methods=_methods([number]))
    for reason in failures(experiment, methods):
        print(reason)
    if adaptive:
        sound = [method for method in adaptive if not failures(experiment, [method])]
        found = {method: evaluate_adaptively(experiment, method) for method in sound}
        audits = {method: audit(experiment, method) for method in sound if method in AUDITED}
        made = rows(experiment, found, audits)
        print(tables.to_text(made, study))
        save_adaptive(experiment, found, made, sound)
    if study.scale != "smoke":  # whose numbers mean nothing
        judged = {
            "claims": (NUMBERS[:4], CORE_CLAIMS),
            "claims_robust": (NUMBERS[4:], ROBUST_CLAIMS),
        }
        for name, (numbers, claims) in judged.items():
            if set(numbers) <= set(options.tables):
                save(experiment, name, judge(experiment, *claims), methods=_methods(numbers))
        print(f"tables           {folder(study.name)}")
    print(f"stored in        {experiment.store.home}")


def _methods(numbers: list[int]) -> tuple[str, ...]:
    from .experiments.methods import TABLES

    return tuple(dict.fromkeys(method for number in numbers for method in TABLES[number]))


def _open(study: Study, methods: tuple[str, ...] = ()) -> Any:
    """The experiment, once its images and its custom classifiers have been tried.

    Raises `ValueError` or `OSError` if they are refused, or if a robust architecture that `methods`
    need cannot be built.
    """
    import torch

    from .experiments.artifacts import Experiment
    from .experiments.methods import split_method
    from .training.classifiers import KINDS

    experiment = Experiment(study)
    kinds = {split_method(method)[1] for method in (*methods, "attacked")}
    with torch.device("meta"):
        for kind in kinds - experiment.custom.keys():
            KINDS[kind].build(experiment.architecture(kind), 2, study.image_size)
    for kind in experiment.custom:
        experiment.classifier(kind)
    for split in ("train", "test"):
        experiment.images(split)
    return experiment


def _report(options: argparse.Namespace, study: Study, choices: dict[str, str]) -> None:
    import pandas as pd

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
            rows = pd.concat([table(experiment, number) for number in (1, 4)])
            print(tables.summarize(rows))
            print(*(textwrap.fill(text, 100) for text in tables.describe(rows)), sep="\n")
    if options.html:
        from .results import report

        print(f"report           {report.write(None if options.html == Path() else options.html)}")


def _print_claims(experiment: Any, numbers: list[int]) -> None:
    from .results.claims import CORE_CLAIMS, ROBUST_CLAIMS, judge

    names = [*CORE_CLAIMS] if set(numbers) & {1, 2, 3, 4} else []
    names += [claim for claim, number in ROBUST_CLAIMS.items() if number in numbers]
    print(
        "\nThe claims, in the worst case over ε' ≤ ε, plain as the paper counts, and as published"
    )
    for row in judge(experiment, *names).to_dict("records"):
        print(f"{row['claim']:4} {row['outcome']:13} {row['predicate']}")
        print(f"{'':18} worst case: {row['measured']}")
        print(f"{'':18} plain ({row['plain_outcome']}): {row['plain_measured']}")
        print(f"{'':18} published: {row['published']}")


def _verify(options: argparse.Namespace, study: Study, choices: dict[str, str]) -> None:
    from .results.verify import TOLERATED, verify

    found = verify(study.name, options.method, options.images)
    print(found.report)
    sys.exit(found.images - found.agree > TOLERATED)


def _doctor(options: argparse.Namespace, study: Study, choices: dict[str, str]) -> None:
    import torch

    from .data.benchmarks import locate

    found = {"python": f"{platform.python_version()} on {platform.platform()}"}
    for name in ("nbsupport", "torch", "torchvision", "foolbox", "jupyterlab", "ipywidgets"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = f"missing: {INSTALL}"
    extension = "share/jupyter/labextensions/@jupyter-widgets/jupyterlab-manager"
    if not Path(sys.prefix, extension).is_dir():
        found["sliders"] = f"JupyterLab lacks the widget extension: {INSTALL}"
    cuda = torch.cuda.is_available()
    found["device"] = torch.cuda.get_device_name() if cuda else f"{os.cpu_count()} CPU cores"
    found["store"] = _describe_store(default_home())
    print("\n".join(f"{name:16} {what}" for name, what in found.items()))
    print("studies")
    for name in STUDIES:
        there, where = locate(study if name == study.name else Study.named(name, "quick"))
        print(f"  {name:15}{'there: ' if there else 'to get: '}{where}")
    if study.name in ("cifar10", "svhn") and not locate(study)[0]:
        sys.exit(1)  # opening it would download it
    _describe(study)
    if any(INSTALL in what for what in found.values()):
        sys.exit(1)


def _describe_store(home: Path) -> str:
    existing = next(place for place in (home, *home.parents) if place.exists())
    free = f"{shutil.disk_usage(existing).free / 1e9:.0f} GB free"
    if home != existing:
        return f"{home} (made when needed, {free})"
    used = sum(path.stat().st_size for path in home.rglob("*") if path.is_file()) / 1e9
    hours, counts = Counter[str](), Counter[str]()
    for path in home.glob("*/*/artifact.json"):
        counts[path.parts[-3]] += 1
        with contextlib.suppress(OSError, ValueError):  # the store itself reports damaged records
            hours[path.parts[-3]] += json.loads(path.read_text()).get("seconds", 0) / 3600
    kinds = (f"{kind} {counts[kind]} ({hours[kind]:.1f} h)" for kind in sorted(counts))
    held = ", ".join(kinds) or "empty"
    return f"{home} (there, {free}): {held}; {used:.2f} GB"


def _describe(study: Study) -> None:
    """The study's images and custom classifiers."""
    import torch

    experiment = _open(study)
    train, test = (experiment.images(split) for split in ("train", "test"))
    sizes = f"{len(train)} to train on, {len(test)} to test on, {len(train.classes)} classes"
    print(f"study            {study.name} at {study.scale}")
    print(f"images           {sizes}, {study.image_size}×{study.image_size} pixels")
    for kind in experiment.custom:
        classifier = experiment.classifier(kind)
        with torch.no_grad():
            parts = test.images.split(50)
            logits = torch.cat([classifier(part.to(experiment.device)).cpu() for part in parts])
        accuracy = (logits.argmax(dim=1) == test.labels).float().mean()
        label = f"{'classifier' if kind == 'standard' else kind:16} {experiment.architecture(kind)}"
        print(f"{label}: {logits.shape[1]} logits, clean accuracy {accuracy:.3f}")
    from .experiments.tasks import estimate

    torch.set_num_threads(1)  # as each worker has
    minutes = estimate(experiment, _methods(NUMBERS[:4])) / WORKERS / 60
    print(
        f"Tables 1 to 4    about {minutes:.0f} min with --workers {WORKERS}, at the present speed"
    )


if __name__ == "__main__":
    main()
