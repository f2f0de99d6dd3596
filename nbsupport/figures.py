"""The only writer into ``figures/``: every table and picture with its provenance beside it."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

from .disk import write_atomically
from .evaluation import Evaluation
from .tables import markdown, subject, without_marks

LIBRARIES = ("torch", "torchvision", "foolbox", "numpy", "scikit-learn", "scikit-image", "torchmetrics", "nbsupport")
REPOSITORY = Path(__file__).resolve().parent.parent


def folder(study: str) -> Path:
    """``figures/<study>`` of the repository; ``NBSUPPORT_FIGURES`` names another place for ``figures``."""
    return Path(os.environ.get("NBSUPPORT_FIGURES") or REPOSITORY / "figures") / study


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def provenance(
    evaluation: Evaluation, notebook: str, methods: tuple[str, ...], specifications: Sequence[dict[str, Any]] = ()
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
    """
    study, device = evaluation.study, evaluation.artefacts.device
    changes = _git("status", "--porcelain", "--", ".", ":!figures")
    return {
        "notebook": notebook,
        "commit": _git("rev-parse", "HEAD"),
        "clean": None if changes is None else not changes,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "study": study.specification(),
        "scale": study.scale,
        "seed": study.seed,
        "images": study.test_images,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()} CPUs",
        "versions": {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
        "specifications": [*(evaluation.specification(method) for method in methods), *specifications],
    }


def save(
    evaluation: Evaluation,
    name: str,
    content: Figure | pd.DataFrame,
    *,
    notebook: str,
    methods: tuple[str, ...],
    specifications: Sequence[dict[str, Any]] = (),
    text: str | None = None,
) -> Path | None:
    """Write a figure (PNG) or a table (CSV; one of the paper's also as Markdown) with its provenance.

    Parameters
    ----------
    evaluation
        Of the study; says where the file goes.
    name
        ``fig2``, ``table1``, ``claims``.
    content
        What is written.
    notebook, methods, specifications
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
    found = provenance(evaluation, notebook, methods, specifications)
    record = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    place = folder(study.name)
    place.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Figure):
        path = place / f"{name}.png"
        source = f"{without_marks(subject(study))}, {study.test_images} test images, seed {study.seed}, {study.scale}"
        content.text(0, -0.01, source, va="top", fontsize=7, color="#777777")
        write_atomically(path, lambda file: content.savefig(file, format="png", dpi=150, bbox_inches="tight"))
    else:
        path = place / f"{name}.csv"
        write_atomically(path, lambda file: content.to_csv(file, index=False))
        if text is None and "table" in content:
            text = markdown(content, study, evaluation.failures(tuple(dict.fromkeys(methods))))
        if text is not None:
            page = text
            write_atomically(place / f"{name}.md", lambda file: file.write_text(page, encoding="utf-8"))
    write_atomically(place / f"{name}.json", lambda file: file.write_text(record, encoding="utf-8"))
    return path
