"""The only writer into ``figures/``: every table and picture with its provenance beside it."""

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
from matplotlib.figure import Figure
from PIL import Image

from ..experiments.disk import write_atomically
from ..experiments.evaluation import Evaluation
from .frames import Frames
from .style import sheet
from .tables import markdown, subject, without_marks

LIBRARIES = (
    "torch",
    "torchvision",
    "foolbox",
    "numpy",
    "scikit-learn",
    "scikit-image",
    "torchmetrics",
    "nbsupport",
)
FORMATS: dict[str, Any] = {"svg": {"Date": None}, "png": {}}
"""Of figures, with what is written into the file: no date, so that the same figure is the same file."""
REPOSITORY = Path(__file__).resolve().parents[2]


def folder(study: str) -> Path:
    """``figures/<study>`` of the repository; ``NBSUPPORT_FIGURES`` names another place for ``figures``."""
    return Path(os.environ.get("NBSUPPORT_FIGURES") or REPOSITORY / "figures") / study


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def commit() -> dict[str, Any]:
    """The repository's commit, and whether the tree is without changes but for ``figures/``; None without one."""
    changes = _git("status", "--porcelain", "--", ".", ":!figures")
    return {"commit": _git("rev-parse", "HEAD"), "clean": None if changes is None else not changes}


def provenance(
    evaluation: Evaluation,
    notebook: str,
    methods: tuple[str, ...],
    specifications: Sequence[dict[str, Any]] = (),
    images: int | None = None,
) -> dict[str, Any]:
    """Where a result comes from: all that is needed to make it again.

    Parameters
    ----------
    evaluation
        Of the study.
    notebook
        The notebook that shows it, without its ending.
    methods
        The methods in it; their specifications name everything they were made from.
    specifications
        Of what else it was made from.
    images
        How many test images it shows; the study's where None.
    """
    study, device = evaluation.study, evaluation.artefacts.device
    return {
        "notebook": notebook,
        **commit(),
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "study": study.specification(),
        "scale": study.scale,
        "seed": study.seed,
        "images": images or study.test_images,
        "device": torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{os.cpu_count()} CPUs",
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in LIBRARIES},
        "specifications": [
            *(evaluation.specification(method) for method in methods),
            *specifications,
        ],
    }


def save(
    evaluation: Evaluation,
    name: str,
    content: Figure | Frames | pd.DataFrame,
    *,
    notebook: str,
    methods: tuple[str, ...],
    specifications: Sequence[dict[str, Any]] = (),
    images: int | None = None,
    text: str | None = None,
) -> Path | None:
    """Write a figure (SVG and PNG), frames (PNG) or a table (CSV; one of the paper's also as Markdown), and its origin.

    Parameters
    ----------
    evaluation
        Of the study; says where the file goes.
    name
        ``fig2``, ``table1``, ``claims``.
    content
        What is written.
    notebook, methods, specifications, images
        See `provenance`.
    text
        The Markdown of a table that is none of the paper's.

    Returns
    -------
    The file, or None at ``smoke`` scale, whose results mean nothing and are never written.
    """
    study = evaluation.study
    if study.scale == "smoke":
        return None
    found = provenance(evaluation, notebook, methods, specifications, images)
    place = folder(study.name)
    place.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Figure):
        path = place / f"{name}.png"
        number = found["images"]
        of = f"{number} test image{'s' if number > 1 else ''}"
        source = f"{without_marks(subject(study))}, {of}, seed {study.seed}, {study.scale}"
        with sheet():
            content.text(0, -0.01, source, va="top", fontsize=7, color="#6b6b6b")
            for format, metadata in FORMATS.items():
                draw = partial(
                    content.savefig, format=format, metadata=metadata, bbox_inches="tight"
                )
                write_atomically(path.with_suffix(f".{format}"), draw)
    elif isinstance(content, Frames):
        path = place / f"{name}.png"
        found["frames"] = content.index()
        write_atomically(
            path, partial(Image.fromarray(content.pixels).save, format="png", optimize=True)
        )
    else:
        path = place / f"{name}.csv"
        write_atomically(path, lambda file: content.to_csv(file, index=False))
        if text is None and "table" in content:
            text = markdown(content, study, evaluation.failures(tuple(dict.fromkeys(methods))))
        if text is not None:
            page = text
            write_atomically(
                place / f"{name}.md", lambda file: file.write_text(page, encoding="utf-8")
            )
    record = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    write_atomically(place / f"{name}.json", lambda file: file.write_text(record, encoding="utf-8"))
    return path
