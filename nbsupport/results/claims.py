"""The paper's claims as predicates, judged on this study's images and on the published numbers.

A claim is a predicate over mean curves. Its outcome follows from resampling the test images (paired
over methods and strengths): *holds* where the predicate is true in at least 97.5 % of the resamples,
*fails* where in at most 2.5 %, *inconclusive* between. The paper's own outcome is the same predicate
on its printed means.
"""

from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import rankdata

from ..experiments.evaluation import Evaluation
from ..study import EPS
from .predicates import CLAIMS, ROBUST_CLAIMS, ROUNDING, Curves
from .tables import NAMES, PAPER, PAPERS, published

RESAMPLES = 2000
OVER_STEPS = "accuracy over n"
SMALL_SHARE, LARGE_ACCURACY = 0.8, 0.02
FINITE = 200.0  # dB: PSNR of equal images, so that means exist


def _paper_curves() -> Curves:
    numbers = pd.concat([published(*PAPERS[number]).query("table == @number") for number in PAPERS])
    numbers = numbers.drop_duplicates(["method", "metric", "eps", "steps"]).sort_values(
        ["eps", "steps"]
    )
    full, sweep = (
        numbers[numbers["steps"] == 40],
        numbers[numbers["steps"] != 40].assign(metric=OVER_STEPS),
    )
    groups = pd.concat([full, sweep]).groupby(["metric", "method"])
    values = {which: group["value"].to_numpy() for which, group in groups}
    eps = np.array(EPS)
    regions = {
        "S": eps <= 3e-4,
        "M": (eps >= 5e-4) & (eps <= 5e-3),
        "L": (eps >= 1e-2) & (eps <= 0.3),
    }
    return Curves(
        lambda metric, method: values[metric, method],
        regions | {"C6": (eps >= 1e-3) & (eps <= 3e-2)},
    )


def on_what() -> str:
    """On which networks and images the paper's own outcomes are judged, for captions."""
    where = {
        number: f"{NAMES[network]} on {NAMES[data]}" for number, (network, data) in PAPERS.items()
    }
    others = [
        f"{claim}: {where[number]}"
        for claim, number in ROBUST_CLAIMS.items()
        if PAPERS[number] != PAPER
    ]
    return f"{where[1]} ({', '.join(others)})"


def per_image(evaluation: Evaluation, metric: str, method: str) -> Float[np.ndarray, "strengths n"]:
    """A metric of a method for every strength and test image; ``spearman`` has one row only.

    Raises KeyError if the method's training failed, or the metric is not one of this method.
    """
    if failure := evaluation.failure(method):
        raise KeyError(failure)
    measurement = evaluation.measurement(method)
    if metric == "accuracy":
        return measurement.correct().astype(float)
    if metric == OVER_STEPS:
        return evaluation.steps_curve(method, evaluation.study.sweep_eps).astype(float)
    if metric in ("psnr", "ssim"):
        return np.minimum(getattr(measurement, metric).double().numpy(), FINITE)
    if metric != "spearman":
        return measurement.extra[metric].double().numpy()
    ranks = rankdata(measurement.extra["uncertainty"], axis=0)
    order = np.arange(len(ranks)) - (len(ranks) - 1) / 2
    centred = ranks - ranks.mean(axis=0)
    # where an image's uncertainty is constant its correlation is 0 / 0: it follows nothing
    spread = np.sqrt((centred**2).sum(axis=0) * (order**2).sum()).clip(min=1e-12)
    return np.abs(order @ centred / spread)[None]


def judge(evaluation: Evaluation, *names: str, resamples: int = RESAMPLES) -> pd.DataFrame:
    """Claims judged on a study: claim, predicate, measured, support, outcome, in_the_paper, paper_outcome.

    Parameters
    ----------
    evaluation
        Of the study; measurements that the claims need are made where missing.
    names
        Which of `nbsupport.results.predicates.CLAIMS`; all where none is named.
    resamples
        Of the test images. ``support`` is the share in which the predicate is true.

    Raises
    ------
    KeyError
        If there is no such claim.
    """
    number, eps = evaluation.study.test_images, evaluation.study.eps
    uniform = np.full(number, 1 / number)
    # whole numbers until the division, so that equal accuracies stay exactly equal
    weights = np.random.default_rng(evaluation.study.seed).multinomial(number, uniform, resamples).T
    images = cache(lambda metric, method: per_image(evaluation, metric, method))
    means = cache(lambda metric, method: images(metric, method).mean(axis=1))
    resampled = cache(lambda metric, method: images(metric, method) @ weights / number)
    attacked = means("accuracy", "attacked")
    small, large = (
        attacked >= SMALL_SHARE * attacked[0] - ROUNDING,
        attacked <= LARGE_ACCURACY + ROUNDING,
    )
    regions = {"S": small, "M": ~small & ~large, "L": large, "C6": ~small & ~large}
    samples = [
        Curves(lambda *which, b=b: resampled(*which)[:, b], regions, eps) for b in range(resamples)
    ]
    paper = _paper_curves()
    return pd.DataFrame(
        [_row(claim, Curves(means, regions, eps), samples, paper) for claim in names or CLAIMS]
    )


def _row(claim: str, measured: Curves, samples: list[Curves], paper: Curves) -> dict[str, Any]:
    sentence, predicate = CLAIMS[claim]
    row: dict[str, Any] = {"claim": claim, "predicate": sentence}
    try:
        text = predicate(measured)[1]
        support = float(np.mean([predicate(sample)[0] for sample in samples]))
        outcome = "holds" if support >= 0.975 else "fails" if support <= 0.025 else "inconclusive"
        row |= {"measured": text, "support": support, "outcome": outcome}
    except KeyError as error:  # a method whose training failed has no curves
        row |= {"measured": error.args[0], "support": float("nan"), "outcome": "not measured"}
    try:
        held, text = predicate(paper)
        return row | {"in_the_paper": text, "paper_outcome": "holds" if held else "fails"}
    except KeyError:
        return row | {"in_the_paper": "a figure without numbers", "paper_outcome": "not measurable"}
