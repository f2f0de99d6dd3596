"""Measure a row of a stored adaptive evaluation again, on a few of its images."""

import json
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from torch import nn

from ..attacks.adaptive import Target
from ..denoisers import pretrained
from ..denoisers.models import View
from ..experiments.adaptive_evaluation import find_smallest
from ..experiments.artifacts import Experiment
from ..experiments.methods import find_recipe, split_method
from ..experiments.store import Store, canonical
from ..study import Study, short
from .save import roots

PER_IMAGE = "adaptive_curves"  # the result whose CSV has the smallest ε of each image
TOLERATED = 1  # images that rounding on another machine may move


class Verified(NamedTuple):
    """How many images fell where they are recorded to fall, and what to print."""

    images: int
    agree: int
    report: str


def verify(study: str, method: str, images: int = 8) -> Verified:
    """Attack the first images of a method's row again, and compare the ε at which each one falls.

    The networks are the pretrained ones where the row was made from those, or else stored ones.
    Raises `ValueError` if there is no such row, the images are others, or a network is missing.
    """
    tables = (root / study / f"{PER_IMAGE}.csv" for root in roots())
    table = next((path for path in tables if path.is_file()), None)
    if table is None:
        raise ValueError(
            f"no adaptive evaluation of {study!r} is stored; `compute --adaptive` makes it"
        )
    recorded = pd.read_csv(table)
    if method not in recorded:
        there = ", ".join(recorded.columns)
        raise ValueError(f"no row {method!r} in {table}; there are: {there}")
    record = json.loads(table.with_suffix(".json").read_text("utf-8"))
    source = record["study"].pop("images_from")
    experiment = Experiment(Study.recorded(record["study"]), Store(frozen=True))
    if source != (here := experiment.study.images_from):
        raise ValueError(f"the row was measured on {source}, got {here}; name those with --data")
    before = recorded[method].to_numpy()[:images]
    part = experiment.images("adaptive")
    few, labels = (x[: len(before)].to(experiment.device) for x in (part.images, part.labels))
    denoiser, classifier = (each.to(experiment.device) for each in _load(experiment, method))
    after, _ = find_smallest(Target(denoiser, classifier, few, labels), experiment.study)
    eps = np.array(experiment.study.evaluated_eps)
    both = before, after.cpu().numpy()
    levels = [(values[:, None] > eps).sum(axis=1).tolist() for values in both]
    lines = [
        f"  image {number}: recorded {_fall(eps, then)}, now {_fall(eps, now)}"
        for number, (then, now) in enumerate(zip(*levels, strict=True))
        if then != now
    ]
    agree = len(before) - len(lines)
    first = f"{method} on {study}: {agree} of {len(before)} images fall at the recorded ε"
    return Verified(len(before), agree, "\n".join([first, *lines]))


def _fall(eps: np.ndarray, level: int) -> str:
    """Where an image falls that withstands so many of the strengths."""
    if level == 0:
        return "wrong when clean"
    return f"falls at ε = {short(eps[level])}" if level < len(eps) else "withstands every ε"


def _load(experiment: Experiment, method: str) -> tuple[nn.Module, nn.Module]:
    """A method's denoiser and classifier: pretrained if they are the same, or stored."""
    (recipe, output), (_, kind) = find_recipe(method), split_method(method)
    name = f"{experiment.study.name}-classifier"
    specification = experiment.classifier_specification(kind)
    same = name in pretrained.names() and _equal(
        pretrained.about(name)["specification"], specification
    )
    classifier = pretrained.load_pretrained(name) if same else experiment.classifier(kind)
    whole = "PA-Filt(L_img)" if recipe == "Y-Net" else recipe  # which contains it, unchanged
    name = f"{experiment.study.name}-{whole}"
    if whole is None or name not in pretrained.names():
        return experiment.denoiser(method), classifier
    about = pretrained.about(name)["specification"]["trained"]
    if not _equal(about, experiment.denoiser_specification(whole)):
        return experiment.denoiser(method), classifier
    denoiser: Any = pretrained.load_pretrained(name)
    return denoiser if output is None else View(denoiser.ynet, output).eval(), classifier


def _equal(stored: object, specification: dict[str, object]) -> bool:
    return stored == json.loads(canonical(specification))
