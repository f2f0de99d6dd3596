"""Train the denoisers from several seeds; estimate how much of a difference is a seed's luck."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.stats import t as student

from ..experiments.artifacts import Experiment
from ..experiments.evaluation import failure, groups, measure, standard_error
from ..training.denoisers import training_seed
from .tables import MEAN

SEEDS = (0, 1, 2)
FEWEST = 3  # trainings for a decision: two may agree by luck, and then the interval collapses
COMPARISONS = (
    ("Filt(L_img)", "Add(L_img)"),
    ("Filt(L_sem)", "Add(L_sem)"),
    ("PA-Filt(L_img)", "Filt(L_img)"),
    ("PA-Filt(L_img)", "PA-Filt(L_img)_sl"),
    ("PA-Filt(L_img)", "PA-Filt(L_img)_m"),
)
"""The paper's main comparisons: filtering and adding, PA-Filt and one filter or its parts."""


def retrain(experiment: Experiment, seeds: Sequence[int] = SEEDS) -> list[Experiment]:
    """The study with its denoisers trained from each seed, on the same attacks and classifier."""
    first = experiment.study.seed
    return [experiment.changed(denoiser_seed=None if seed == first else seed) for seed in seeds]


def estimate(
    differences: Float[np.ndarray, "seeds n"], groups: Int[np.ndarray, "n"]
) -> tuple[float, float, float]:
    """The mean of paired differences and its 95 % interval, over other trainings and test images.

    Both vary, so the variances of the two means add up; Student's t takes the degrees of freedom of
    Welch and Satterthwaite, one less than the seeds or the groups of images. With few seeds that
    disagree the interval is wide; with one it is NaN.
    """
    mean = float(differences.mean())
    sizes = np.array([len(differences), len(np.unique(groups))])
    if sizes.min() < 2:
        return mean, float("nan"), float("nan")
    over_seeds = standard_error(differences.mean(axis=1), np.arange(len(differences)))
    variances = np.array([over_seeds, standard_error(differences.mean(axis=0), groups)]) ** 2
    if not variances.any():
        return mean, mean, mean
    freedom = variances.sum() ** 2 / (variances**2 / (sizes - 1)).sum()
    reach = float(student.ppf(0.975, freedom) * variances.sum() ** 0.5)
    return mean, mean - reach, mean + reach


def compare(experiments: Sequence[Experiment]) -> pd.DataFrame:
    """One row per comparison and ε, and one for the mean over ε, of the experiments of `retrain`.

    `value` is the accuracy of `method` minus that of `other`, `low` to `high` its 95 % interval;
    `outcome` is *better* or *worse* where 0 lies outside of it and `FEWEST` trainings are left,
    otherwise *inconclusive*. Failed trainings are left out; `seeds` names the others.
    """
    rows = []
    for method, other in COMPARISONS:
        sound = [e for e in experiments if not (failure(e, method) or failure(e, other))]
        if not sound:
            continue
        right = [[measure(e, name)["accuracy"] for e in sound] for name in (method, other)]
        difference, study = np.stack(right[0]) * 1.0 - np.stack(right[1]), sound[0].study
        same = {"method": method, "other": other, "study": study.name, "n": study.test_images}
        same["seeds"] = " ".join(str(training_seed(e.study)) for e in sound)
        mean = difference[:, np.isin(study.evaluated_eps, study.eps)].mean(axis=1)
        curves = [mean, *difference.swapaxes(0, 1)]
        for eps, values in zip([MEAN, *study.evaluated_eps], curves, strict=True):
            mean, low, high = estimate(values, groups(sound[0]))
            each = " ".join(f"{value:+.4f}" for value in values.mean(axis=1))
            outcome = "better" if low > 0 else "worse" if high < 0 else "inconclusive"
            outcome = outcome if len(sound) >= FEWEST else "inconclusive"
            found = {"eps": eps, "value": mean, "low": low, "high": high, "per_seed": each}
            rows.append(same | found | {"outcome": outcome})
    return pd.DataFrame(rows)
