"""The command line: ``python -m nbsupport run | compute | report | doctor``."""

import argparse
import os
import shutil
import sys
import textwrap
import time
from pathlib import Path

from .doctor import INSTALL, examine, looked_at, made
from .experiments.artifacts import Artefacts
from .experiments.cluster import accelerator
from .experiments.disk import FULL
from .experiments.evaluation import Evaluation
from .experiments.methods import TABLES
from .results.claims import judge, on_what
from .results.predicates import CORE_CLAIMS, ROBUST_CLAIMS
from .results.save import REPOSITORY, folder
from .results.tables import beside, caption, over_steps, swept
from .study import STUDIES, Study, sizes

REPORT = REPOSITORY / "build" / "report.html"


def _compute(study: Study, numbers: list[int]) -> None:
    """Every artefact of some tables, without Jupyter."""
    evaluation, say = (
        Evaluation(Artefacts(study)),
        accelerator().print,
    )  # which only the first process does
    start, methods = time.monotonic(), _methods(numbers)
    if accelerator().num_processes > 1:
        evaluation.share(methods)
    for method in methods:
        accuracy = evaluation.measurement(method).correct().mean()
        say(
            f"{method:22} mean accuracy over ε {accuracy:.3f}   after {time.monotonic() - start:4.0f} s",
            flush=True,
        )
    for number in numbers:
        evaluation.table(number)  # with all that is in it beside those measurements
    for failure in evaluation.failures(methods):
        say(failure)
    say(f"stored in {evaluation.artefacts.store.home}")
    accelerator().end_training()


def _methods(numbers: list[int]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(method for number in numbers for method in TABLES[number]))


def _report(study: Study, numbers: list[int]) -> None:
    """Some tables and the claims about them; what is missing is made first."""
    evaluation = Evaluation(Artefacts(study))
    core = CORE_CLAIMS if set(numbers) & {1, 2, 3, 4} else ()  # which need all denoisers
    unused = () if core or 5 in numbers else ("Y-Net", "PA-Filt(L_img)")
    if missing := [
        name
        for name, there in made(evaluation.artefacts).items()
        if not there and name not in unused
    ]:
        print(
            f"not made yet, but now: {', '.join(missing)}; interrupted, it goes on from there",
            file=sys.stderr,
        )
    width = max(shutil.get_terminal_size((150, 24)).columns, 80)
    for number in numbers:
        rows = evaluation.table(number)
        print("\n" + textwrap.fill(caption(rows, study), width))
        print(beside(rows).round(3).to_string(na_rep="", line_width=10_000))
        for eps in swept(rows):
            print(f"\nover the number n of PGD's steps, at ε = {eps:g}")
            print(over_steps(rows, eps).round(3).to_string(na_rep=""))
    for failure in evaluation.failures(_methods(numbers)):
        print(failure)
    print()
    names = [*core, *(claim for claim, number in ROBUST_CLAIMS.items() if number in numbers)]
    print(f"The claims; the paper's outcome is that of its numbers for {on_what()}")
    for row in judge(evaluation, *names).to_dict("records"):
        print(f"{row['claim']:4} {row['outcome']:13} {row['predicate']}")
        print(
            f"{'':18} here: {row['measured']}; in the paper ({row['paper_outcome']}): {row['in_the_paper']}"
        )


def _chosen(options: argparse.Namespace) -> dict[str, str]:
    """The choices beside study and scale, with paths that hold in any folder.

    Raises
    ------
    ValueError
        If a folder of images is named for a study that has its own.
    """
    chosen = {}
    if options.data and options.study == "folder":
        chosen["data"] = str(Path(options.data).expanduser().absolute())
    elif options.data and options.study != "digits":
        os.environ["NBSUPPORT_DATA"] = str(Path(options.data).expanduser().absolute())
    elif options.data and options.data != os.environ.get("NBSUPPORT_DATA"):
        raise ValueError("--data belongs to studies of images that lie somewhere, not to 'digits'")
    if options.classifier:  # what is no reference to a file stays as it is
        file, colon, factory = options.classifier.rpartition(":")
        chosen["classifier"] = (
            f"{Path(file).expanduser().absolute()}:{factory}" if colon else factory
        )
    return chosen | ({"image_size": options.image_size} if options.image_size else {})


def main(arguments: list[str] | None = None) -> None:
    """Parse and obey. Mistakes end in one line that says what to do."""
    parser = argparse.ArgumentParser(prog="python -m nbsupport", description="The AdvFilter study.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help_text in {
        "run": "execute notebooks (all, or those named by their numbers) and keep a web page of each",
        "compute": "make every artefact of the study, without Jupyter",
        "report": "print the tables and the claims, or write the page of all results",
        "doctor": "say what is there, what is missing and how to get it",
    }.items():
        command = commands.add_parser(name, help=help_text)
        command.add_argument(
            "--study", default=os.environ.get("NBSUPPORT_STUDY", "digits"), help=", ".join(STUDIES)
        )
        command.add_argument(
            "--scale",
            default=os.environ.get("NBSUPPORT_SCALE", "quick"),
            help="smoke, quick, paper",
        )
        if name in ("compute", "report"):
            command.add_argument(
                "--tables", nargs="+", type=int, choices=list(TABLES), default=list(TABLES), help="1 to 7; all",
            )  # fmt: skip
        command.add_argument(
            "--classifier", metavar="FILE.py:FACTORY", default=os.environ.get("NBSUPPORT_CLASSIFIER"),
            help="your own trained classifier: what the factory in that file returns (or an architecture)",
        )  # fmt: skip
        command.add_argument(
            "--data", metavar="DIR", default=os.environ.get("NBSUPPORT_DATA"),
            help="where images lie: the data folder, or for --study folder DIR/train/<class>/… and DIR/test/<class>/…",
        )  # fmt: skip
        command.add_argument(
            "--image-size", metavar="PIXELS", default=os.environ.get("NBSUPPORT_IMAGE_SIZE"),
            help="height and width to which images are resized and cropped",
        )  # fmt: skip
        if name == "report":
            command.add_argument(
                "--html", nargs="?", type=Path, metavar="FILE", const=REPORT,
                help="instead, put all stored results, of every study, on one web page (build/report.html)",
            )  # fmt: skip
        if name == "run":
            command.add_argument(
                "notebooks", nargs="*", metavar="NOTEBOOK", help="such as 07 or 07_pa_filt"
            )
    options = parser.parse_args(arguments)
    try:
        chosen = _chosen(options)
        study = Study.named(options.study, options.scale, **sizes(chosen))
    except ValueError as error:
        parser.error(str(error))
    if options.command == "report" and options.html:
        _page(options.html)
        return
    tables: list[int] = getattr(options, "tables", [])
    if chosen and options.command != "doctor":  # which says first what else there is
        looked_at(study, _methods(tables))
    try:
        if options.command == "run":
            _run(options.notebooks, study, chosen)
        elif options.command == "doctor":
            examine(study)
        else:
            {"compute": _compute, "report": _report}[options.command](study, options.tables)
    except KeyboardInterrupt:
        sys.exit("interrupted; what was finished is kept, and the same command goes on from there")
    except OSError as error:
        if error.errno not in (None, *FULL):  # the package's own messages have no number
            raise
        sys.exit(error.strerror or str(error))


def _page(path: Path) -> None:
    """The stored results of all studies on one page; nothing is made."""
    try:
        from .results import notebooks as runner
        from .results import report as page
    except ModuleNotFoundError as error:
        sys.exit(
            f"the page needs Jupyter's parts ({error}): {INSTALL}\nwithout them: python -m nbsupport report"
        )
    try:
        print(f"report           {page.write(path, folder('').resolve(), runner.find([]))}")
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))


def _run(names: list[str], study: Study, chosen: dict[str, str]) -> None:
    try:
        from .results.notebooks import NotebookError, run
    except ModuleNotFoundError as error:
        sys.exit(
            f"running notebooks needs Jupyter ({error}): {INSTALL}\nwithout it: python -m nbsupport compute"
        )
    if not names and study.scale != "smoke":
        print(
            "all notebooks, also 09 to 12 and 15, hours on a CPU; run 00 01 02 runs these alone",
            file=sys.stderr,
        )
    try:
        pages = run(names, study.name, study.scale, **chosen)
    except (NotebookError, FileNotFoundError) as error:
        sys.exit(str(error))
    print(f"pages            {pages}")
    if study.scale == "smoke":
        print(
            "figures          none: smoke only shows that everything runs, its numbers mean nothing"
        )
    else:
        print(f"tables, figures  {folder(study.name)}")


if __name__ == "__main__":
    main()
