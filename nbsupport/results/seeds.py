"""Train the denoisers from several seeds, and estimate how much of a difference is the luck of a seed."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.stats import t as student

from ..experiments.artifacts import Experiment
from ..experiments.evaluation import failure, measure

SEEDS = (0, 1, 2)
COMPARISONS = (
    ("Filt(L_img)", "Add(L_img)"),
    ("Filt(L_sem)", "Add(L_sem)"),
    ("PA-Filt(L_img)", "Filt(L_img)"),
    ("PA-Filt(L_img)", "PA-Filt(L_img)_sl"),
    ("PA-Filt(L_img)", "PA-Filt(L_img)_m"),
)
"""The paper's main comparisons: filtering against adding, PA-Filt against one filter and its parts."""
MEAN = "mean"
"""In the place of one ε: accuracy averaged over all of them."""


def retrain(experiment: Experiment, seeds: Sequence[int] = SEEDS) -> list[Experiment]:
    """The study with its denoisers trained from each seed, on the same attacks on the same classifier."""
    study, store, custom = experiment.study, experiment.store, experiment.custom
    changes = [None if seed == study.seed else seed for seed in seeds]
    return [Experiment(replace(study, denoiser_seed=seed), store, custom) for seed in changes]


def estimate(differences: Float[np.ndarray, "seeds n"]) -> tuple[float, float, float]:
    """The mean of paired differences and its 95 % interval, over other trainings and other test images.

    Both vary, so the variances of the two means add up; Student's t takes the degrees of freedom of
    Welch and Satterthwaite. With few seeds that disagree the interval is wide; with one seed it is NaN.
    """
    means, mean = [differences.mean(axis=1), differences.mean(axis=0)], float(differences.mean())
    if min(differences.shape) < 2:
        return mean, float("nan"), float("nan")
    variances = np.array([each.var(ddof=1) / len(each) for each in means])
    if not variances.any():
        return mean, mean, mean
    freedom = variances.sum() ** 2 / (variances**2 / (np.array(differences.shape) - 1)).sum()
    reach = float(student.ppf(0.975, freedom) * variances.sum() ** 0.5)
    return mean, mean - reach, mean + reach


def compare(experiments: Sequence[Experiment]) -> pd.DataFrame:
    """One row per comparison and ε, and one for the mean over all ε, of the experiments of `retrain`.

    `value` is the accuracy of `method` minus that of `other`, between `low` and `high`; `outcome` is
    *better* or *worse* where 0 is outside of the interval, otherwise *undecided*. Failed trainings
    are left out; `seeds` names the others.
    """
    rows = []
    for method, other in COMPARISONS:
        sound = [e for e in experiments if not (failure(e, method) or failure(e, other))]
        if not sound:
            continue
        study, pairs = sound[0].study, [(measure(e, method), measure(e, other)) for e in sound]
        difference = np.stack([ours.correct() * 1.0 - theirs.correct() for ours, theirs in pairs])
        used = [e.study.denoiser_seed for e in sound]
        seeds = " ".join(str(study.seed if seed is None else seed) for seed in used)
        for row, eps in enumerate([MEAN, *study.eps]):
            values = difference.mean(axis=1) if eps == MEAN else difference[:, row - 1]
            mean, low, high = estimate(values)
            each = " ".join(f"{value:+.4f}" for value in values.mean(axis=1))
            outcome = "better" if low > 0 else "worse" if high < 0 else "undecided"
            rows.append({
                "method": method, "other": other, "study": study.name, "eps": eps, "value": mean, "low": low,
                "high": high, "per_seed": each, "seeds": seeds, "n": study.test_images, "outcome": outcome,
            })  # fmt: skip
    return pd.DataFrame(rows)


def wide(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per comparison: the mean over ε, its interval, each seed's mean, and at how many ε it wins."""
    lines = {}
    for (method, other), group in rows.groupby(["method", "other"], sort=False):
        mean, outcomes = group[group["eps"] == MEAN].iloc[0], group[group["eps"] != MEAN]["outcome"]
        lines[f"{method} − {other}"] = {
            "mean": f"{mean['value']:+.3f}", "interval": f"{mean['low']:+.3f} … {mean['high']:+.3f}",
            "each": ", ".join(f"{float(value):+.3f}" for value in mean["per_seed"].split()),
            "seeds": mean["seeds"], "outcome": mean["outcome"],
            "better": (outcomes == "better").sum(), "worse": (outcomes == "worse").sum(),
        }  # fmt: skip
    return pd.DataFrame.from_dict(lines, orient="index")
