"""Whether denoisers help at strengths, and before a classifier, that they were not trained for."""

from itertools import product
from typing import Any

import pandas as pd

from ..experiments.artifacts import Experiment
from ..experiments.evaluation import (
    COLUMNS,
    failure,
    measure,
    measurement_specification,
    rows_of,
)
from ..experiments.methods import GENERALISED

BETWEEN = (2e-3, 2e-2, 8 / 255, 0.2)
STRENGTHS = tuple(sorted((1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, *BETWEEN)))
"""Strengths that no denoiser learns from, and their neighbours that all learn from."""
CLASSIFIERS = "standard", "second"


def generalise(experiment: Experiment, eps: tuple[float, ...] = STRENGTHS) -> pd.DataFrame:
    """Tidy rows of `GENERALISED` before the standard and the second classifier, at 0 and each ε.

    The gray-box attacker runs PGD on the classifier that is behind the denoiser; the denoisers were
    trained for the standard one. ``pgd-envelope`` is the worst case over all ε' ≤ ε of `eps`. A
    method whose training failed has no rows.
    """
    study, rows = experiment.study, list[dict[str, Any]]()
    same = {"table": "generalisation", "study": study.name, "steps": study.steps}
    same |= {"seed": study.seed}
    for classifier, method in product(CLASSIFIERS, GENERALISED):
        if failure(experiment, method):
            continue
        measured = measure(experiment, _behind(classifier, method), None, eps, classifier)
        row = same | {"method": method, "classifier": experiment.architecture(classifier)}
        rows += [row | each for each in rows_of(measured, ("accuracy",), (0.0, *eps))]
    return pd.DataFrame(rows)[COLUMNS]


def specify(experiment: Experiment) -> list[dict[str, Any]]:
    """What `generalise` measures, for the provenance of its rows."""
    return [
        measurement_specification(experiment, _behind(each, method), None, STRENGTHS, each)
        for each, method in product(CLASSIFIERS, GENERALISED)
    ]


def _behind(classifier: str, method: str) -> str:
    return method if classifier == "standard" else f"{method}+{classifier}"
