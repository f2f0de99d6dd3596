"""The only writer of results: every table and figure with its caption and provenance beside it."""

import json
import os
import platform
import subprocess
import tomllib
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image

from ..data.images import write_atomically
from ..experiments.artifacts import Experiment
from ..experiments.evaluation import failures, measurement_specification
from .paper_figures import Frames
from .plots import sheet
from .tables import caption, document, subject, without_marks

LIBRARIES = (
    "torch", "torchvision", "foolbox", "numpy", "scikit-learn", "scikit-image", "torchmetrics", "nbsupport",
)  # fmt: skip
FORMATS: Any = {"svg": {"Date": None}, "png": {}}  # no date: the same figure is the same file
REPOSITORY = Path(__file__).resolve().parents[2]


def is_clone() -> bool:
    """Whether this package lies in a clone of its own project, not in an installation or another project."""
    project = REPOSITORY / "pyproject.toml"
    if not (project.is_file() and (REPOSITORY / "notebooks").is_dir()):
        return False
    return tomllib.loads(project.read_text("utf-8")).get("project", {}).get("name") == "nbsupport"


def roots() -> list[Path]:
    """The folders of results, of which the first is written and an earlier one takes precedence.

    They are ``build/results`` and the committed ``figures``, or what ``NBSUPPORT_FIGURES`` names alone.
    """
    if place := os.environ.get("NBSUPPORT_FIGURES"):
        return [Path(place).resolve()]
    home = REPOSITORY if is_clone() else Path.cwd()
    return [home / "build" / "results", REPOSITORY / "figures"]


def folder(study: str) -> Path:
    """Where the results of a study are written."""
    return roots()[0] / study


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(REPOSITORY), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def commit() -> dict[str, Any]:
    """This project's commit, and whether the tree is unchanged but for ``figures/``; None outside a clone."""
    top = _git("rev-parse", "--show-toplevel") if is_clone() else None
    if top is None or Path(top).resolve() != REPOSITORY.resolve():
        return {"commit": None, "clean": None}
    changes = _git("status", "--porcelain", "--", ".", ":!figures")
    return {"commit": _git("rev-parse", "HEAD"), "clean": None if changes is None else not changes}


def provenance(
    experiment: Experiment,
    notebook: str,
    methods: tuple[str, ...],
    specifications: Sequence[dict[str, Any]] = (),
    images: int | None = None,
) -> dict[str, Any]:
    """All that is needed to make a result again: study, versions, commit, specifications."""
    study, cuda = experiment.study, experiment.device.type == "cuda"
    made_from = [measurement_specification(experiment, method) for method in methods]
    versions = {name: version(name) for name in LIBRARIES}
    return {
        "notebook": notebook,
        **commit(),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "study": study.specification(),
        "scale": study.scale,
        "seed": study.seed,
        "images": images or study.test_images,
        "device": torch.cuda.get_device_name() if cuda else f"{os.cpu_count()} CPUs",
        "versions": {"python": platform.python_version(), **versions},
        "specifications": [*made_from, *specifications],
    }


def save(
    experiment: Experiment,
    name: str,
    content: Figure | Frames | pd.DataFrame,
    *,
    notebook: str,
    methods: tuple[str, ...],
    specifications: Sequence[dict[str, Any]] = (),
    images: int | None = None,
) -> Path | None:
    """Write a figure (SVG, PNG), frames (PNG) or tidy rows (CSV, Markdown), and a JSON record beside it.

    `name` is one of those in captions.toml, `notebook` shows the result, `methods` are in it,
    `specifications` name what else it was made from, and `images` is its number of test images, the
    study's if None. Returns the file, or None at ``smoke`` scale, whose numbers mean nothing.
    """
    study = experiment.study
    if study.scale == "smoke":
        return None
    record: dict[str, Any] = {"caption": caption(name, study)}
    record |= provenance(experiment, notebook, methods, specifications, images)
    path = folder(study.name) / f"{name}.{'csv' if isinstance(content, pd.DataFrame) else 'png'}"
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Figure):
        of = f"{record['images']} test image{'s' * (record['images'] > 1)}"
        source = f"{without_marks(subject(study))}, {of}, seed {study.seed}, {study.scale}"
        with sheet():
            content.text(0, -0.01, source, va="top", fontsize=7, color="#6b6b6b")
            for ending, metadata in FORMATS.items():
                options: Any = {"format": ending, "metadata": metadata, "bbox_inches": "tight"}
                draw = partial(content.savefig, **options)
                write_atomically(path.with_suffix(f".{ending}"), draw)
    elif isinstance(content, Frames):
        record["frames"] = content.index()
        image = Image.fromarray(content.pixels)
        write_atomically(path, partial(image.save, format="png", optimize=True))
    else:
        record["failures"] = failures(experiment, methods)
        write_atomically(path, lambda file: content.to_csv(file, index=False))
        page = document(content, study, record["caption"], record["failures"])
        write_text(path.with_suffix(".md"), page)
    write_text(path.with_suffix(".json"), json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return path


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))
