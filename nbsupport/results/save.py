"""The only writer of results: every table and figure with its caption and provenance beside it."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import UInt8
from matplotlib.figure import Figure
from numpy import ndarray
from PIL import Image

from ..data.images import write_atomically
from ..experiments.adaptive_evaluation import Minimal, minimal_specification
from ..experiments.artifacts import Experiment
from ..experiments.evaluation import failures, measurement_specification
from ..experiments.methods import GAIN
from ..study import make_paths_absolute
from .plots import draw_defences, draw_gains, sheet
from .tables import caption, document, model_information, subject, without_marks

LIBRARIES = (
    "torch", "torchvision", "foolbox", "numpy", "scikit-learn", "scikit-image", "torchmetrics",
    "nbsupport",
)  # fmt: skip
RESULTS = "results.json"  # a study's adaptive evaluation, for other projects
REPOSITORY = Path(__file__).resolve().parents[2]


def is_clone() -> bool:
    """Whether this package lies in a clone of its own project, not in an installation."""
    project = REPOSITORY / "pyproject.toml"
    return project.is_file() and 'name = "nbsupport"' in project.read_text("utf-8").splitlines()


def build_folder() -> Path:
    """``build`` in this clone, or in the current folder if the package is installed."""
    return (REPOSITORY if is_clone() else Path.cwd()) / "build"


def roots() -> list[Path]:
    """The folders of results, of which the first is written and an earlier one takes precedence.

    ``build/results`` and a clone's ``figures``, or what ``NBSUPPORT_FIGURES`` names alone.
    """
    make_paths_absolute()
    if place := os.environ.get("NBSUPPORT_FIGURES"):
        return [Path(place)]
    return [build_folder() / "results", *([REPOSITORY / "figures"] if is_clone() else [])]


def folder(study: str) -> Path:
    """Where the results of a study are written."""
    return roots()[0] / study


def commit() -> dict[str, Any]:
    """This clone's commit, and whether its tree is unchanged but for ``figures/``; or None."""
    git = ["git", f"--git-dir={REPOSITORY / '.git'}", f"--work-tree={REPOSITORY}"]
    run = partial(subprocess.run, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    try:
        if is_clone():
            changes = run([*git, "status", "--porcelain", "--", ".", ":!figures"]).stdout
            found = run([*git, "rev-parse", "HEAD"]).stdout.strip()
            return {"commit": found, "clean": not changes}
    except (OSError, subprocess.CalledProcessError):
        pass
    return {"commit": None, "clean": None}


def save(
    experiment: Experiment,
    name: str,
    content: Figure | tuple[UInt8[ndarray, "height width 3"], dict[str, Any]] | pd.DataFrame,
    *,
    notebook: str | None = None,
    methods: tuple[str, ...],
    specifications: Sequence[dict[str, Any]] | None = None,
    images: int | None = None,
    rows: pd.DataFrame | None = None,
) -> Path | None:
    """Write a figure (SVG, PNG), frames (PNG) or tidy rows (CSV, Markdown), and a JSON record.

    Frames are pixels and their index; `rows` are the numbers in a figure, for a CSV beside it.
    `name` is one of those in captions.toml, `notebook` shows the result (None: the command line
    made it), `methods` are in it, `specifications` name what it was made from (None: measurements
    of the methods on the study's test images), and `images` is its number of test images, the
    study's if None. The record has all that is needed to make the result again. Returns the file,
    or None at ``smoke`` scale, whose numbers mean nothing.
    """
    study, cuda = experiment.study, experiment.device.type == "cuda"
    if study.scale == "smoke":
        return None
    if specifications is None:
        specifications = [measurement_specification(experiment, method) for method in methods]
    record = {
        "caption": caption(name, study),
        "notebook": notebook,
        **commit(),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "study": study.specification(),
        "scale": study.scale,
        "seed": study.seed,
        "images": images or study.test_images,
        "device": torch.cuda.get_device_name() if cuda else f"{os.cpu_count()} CPUs",
        "versions": {"python": platform.python_version()} | {x: version(x) for x in LIBRARIES},
        "specifications": [*specifications],
    }
    rows = content if isinstance(content, pd.DataFrame) else rows
    path = folder(study.name) / f"{name}.{'csv' if rows is content else 'png'}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Figure):
        of = f"{record['images']} test image{'s' * (record['images'] > 1)}"
        source = f"{without_marks(subject(study))}, {of}, seed {study.seed}, {study.scale}"
        with sheet():
            content.text(0, -0.01, source, va="top", fontsize=7, color="#6b6b6b")
            for ending, metadata in (("svg", {"Date": None}), ("png", {})):  # the same every day
                options: Any = {"format": ending, "metadata": metadata, "bbox_inches": "tight"}
                write_atomically(
                    path.with_suffix(f".{ending}"), partial(content.savefig, **options)
                )
    elif isinstance(content, tuple):
        pixels, record["frames"] = content
        image = Image.fromarray(pixels)
        write_atomically(path, partial(image.save, format="png", optimize=True))
    if rows is not None:
        record["failures"] = failures(experiment, methods)
        write_atomically(path.with_suffix(".csv"), partial(rows.to_csv, index=False))
    if rows is content:
        page = document(rows, study, record["caption"], record["failures"])
        write_text(path.with_suffix(".md"), page)
        if entries := model_information(rows, study) if name == "adaptive" else []:
            text = json.dumps(entries, indent=1, ensure_ascii=False)
            write_text(path.with_name(RESULTS), text + "\n")
    write_text(path.with_suffix(".json"), json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return path


def save_adaptive(
    experiment: Experiment, found: dict[str, Minimal], rows: pd.DataFrame, shown: Sequence[str]
) -> tuple[Figure, Figure]:
    """Write an adaptive evaluation: its table, each image's ε, and the curves and gains of `shown`.

    `rows` are the tidy rows of the defences `found`. Returns both figures.
    """
    gained = set(rows.loc[rows["metric"] == GAIN[0], "method"])
    curves = draw_defences(rows, [x for x in shown if x != "attacked"] or ["attacked"])
    gains = draw_gains(rows, [x for x in shown if x in gained])
    made_from = [minimal_specification(experiment, method) for method in found]
    made_from += [
        measurement_specification(experiment, method, split="adaptive") for method in found
    ]
    write = partial(
        save, experiment, notebook="12_adaptive_attacks", methods=tuple(found),
        specifications=made_from, images=experiment.study.adaptive_images,
    )  # fmt: skip
    smallest = pd.DataFrame({method: each.smallest for method, each in found.items()})
    write("adaptive", rows)
    write("adaptive_curves", curves, rows=smallest)
    write("adaptive_gains", gains)
    return curves, gains


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))
