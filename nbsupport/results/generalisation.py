"""Whether denoisers help at strengths, and before a classifier, that they were not trained for."""

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool

from ..experiments.artifacts import Experiment
from ..experiments.evaluation import (
    COLUMNS,
    failure,
    measure,
    measurement_specification,
    worst_case,
)
from ..experiments.methods import ENVELOPE, GENERALISED

BETWEEN = (2e-3, 2e-2, 8 / 255, 0.2)
STRENGTHS = tuple(sorted((1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, *BETWEEN)))
"""Strengths that no denoiser learns from, and their neighbours that all learn from."""
CLASSIFIERS = "standard", "second"


def generalise(experiment: Experiment, eps: tuple[float, ...] = STRENGTHS) -> pd.DataFrame:
    """Tidy rows of `GENERALISED` before the standard and the second classifier, at 0 and each ε.

    The gray-box attacker runs PGD on the classifier that is behind the denoiser; the denoisers were
    trained for the standard one. ``pgd-envelope`` is the worst case over all ε' ≤ ε that were
    measured. A method whose training failed has no rows.
    """
    study, rows = experiment.study, list[dict[str, Any]]()
    same = {"table": "generalisation", "study": study.name, "steps": study.steps}
    same |= {"seed": study.seed, "metric": "accuracy"}
    for classifier in CLASSIFIERS:
        same["classifier"] = experiment.architecture(classifier)
        for method in GENERALISED:
            if failure(experiment, method):
                continue
            found = _measure(experiment, method, classifier, eps)
            correct = np.stack([found[each] for each in sorted(found)])
            for attack, values in (("pgd", correct), (ENVELOPE, worst_case(correct))):
                accuracies = dict(zip(sorted(found), values.mean(axis=1).tolist(), strict=True))
                row = same | {"method": method, "attack": attack, "n": correct.shape[1]}
                rows += [row | {"eps": e, "value": accuracies[e]} for e in sorted({0.0, *eps})]
    return pd.DataFrame(rows)[COLUMNS]


def specify(experiment: Experiment) -> list[dict[str, Any]]:
    """What `generalise` measures beside the tables, for the provenance of its rows."""
    pairs = [(method, classifier) for classifier in CLASSIFIERS for method in GENERALISED]
    plans = [_plan(experiment, *pair, STRENGTHS) for pair in pairs]
    return [measurement_specification(experiment, *plan) for plan in plans]


def _plan(
    experiment: Experiment, method: str, classifier: str, eps: tuple[float, ...]
) -> tuple[str, None, tuple[float, ...], str]:
    """The arguments of `measure` for the strengths that are not measured for the tables."""
    if classifier == "standard":
        return method, None, tuple(sorted({*eps} - {*experiment.study.evaluated_eps})), classifier
    return f"{method}+{classifier}", None, tuple(sorted({*eps} - {0.0})), classifier


def _measure(
    experiment: Experiment, method: str, classifier: str, eps: tuple[float, ...]
) -> dict[float, Bool[np.ndarray, "n"]]:
    """Which test images are right at each ε, before the standard classifier at all measured."""
    found: dict[float, Any] = {}
    if classifier == "standard":
        strengths = experiment.study.evaluated_eps
        found = dict(zip(strengths, measure(experiment, method)["accuracy"], strict=True))
    plan = _plan(experiment, method, classifier, eps)
    if plan[2]:
        correct = measure(experiment, *plan)["accuracy"]
        found |= dict(zip((0.0, *plan[2]), correct, strict=True))
    return found
