"""The headline comparisons over several trainings: how much of a difference is the luck of a seed."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from jaxtyping import Float
from pandas.io.formats.style import Styler
from scipy.stats import t as student

from ..experiments.artifacts import Artefacts
from ..experiments.evaluation import Evaluation
from ..study import Study
from .tables import escaped, grid, short, subject, without_marks

SEEDS = (0, 1, 2)
COMPARISONS = (
    ("Filt(L_img)", "Add(L_img)"),
    ("Filt(L_sem)", "Add(L_sem)"),
    ("PA-Filt(L_img)", "Filt(L_img)"),
    ("PA-Filt(L_img)", "PA-Filt(L_img)_sl"),
    ("PA-Filt(L_img)", "PA-Filt(L_img)_m"),
)
"""What the paper is about: filtering against adding, and PA-Filt against one filter and against its parts."""
MEAN = "mean"
"""In the place of one ε: accuracy averaged over all of them."""


def trainings(evaluation: Evaluation, seeds: Sequence[int] = SEEDS) -> list[Evaluation]:
    """The study with its denoisers trained anew from each seed, on the same attacks on the same classifier."""
    artefacts = evaluation.artefacts
    studies = [
        replace(evaluation.study, denoiser_seed=None if seed == evaluation.study.seed else seed)
        for seed in seeds
    ]
    return [Evaluation(Artefacts(study, artefacts.store, artefacts.own)) for study in studies]


def interval(differences: Float[np.ndarray, "seeds n"]) -> tuple[float, float, float]:
    """The mean of paired differences and its 95 % interval, over other trainings and other test images.

    Both vary, so the variances of the two means add up; Student's t takes the degrees of freedom of
    Welch and Satterthwaite. With few seeds that disagree the interval is therefore wide. NaN without a second seed.
    """
    parts = [differences.mean(axis=1), differences.mean(axis=0)]
    mean = float(differences.mean())
    if min(map(len, parts)) < 2:
        return mean, float("nan"), float("nan")
    variances = np.array([part.var(ddof=1) / len(part) for part in parts])
    if not variances.any():
        return mean, mean, mean
    freedom = variances.sum() ** 2 / sum(
        v**2 / (len(part) - 1) for v, part in zip(variances, parts, strict=True)
    )
    reach = float(student.ppf(0.975, freedom) * variances.sum() ** 0.5)
    return mean, mean - reach, mean + reach


def compare(evaluations: Sequence[Evaluation]) -> pd.DataFrame:
    """One row per comparison and ε, and one for the mean over all ε.

    Columns: method, other, study, eps, value (accuracy of the method minus that of the other), low, high,
    per_seed, seeds, n, outcome. The outcome is *better* or *worse* where 0 is outside of the interval,
    otherwise *undecided*. A training that failed has no part in it; `seeds` names those that have.

    Parameters
    ----------
    evaluations
        From `trainings`.
    """
    rows = []
    for pair in COMPARISONS:
        sound = [each for each in evaluations if not any(each.failure(method) for method in pair)]
        if not sound:
            continue
        ours, theirs = (
            np.stack([each.measurement(m).correct() for each in sound]).astype(float) for m in pair
        )
        difference, study = ours - theirs, sound[0].study
        columns = {MEAN: difference.mean(axis=1)} | {
            eps: difference[:, i] for i, eps in enumerate(study.eps)
        }
        seeds = [
            study.seed if each.study.denoiser_seed is None else each.study.denoiser_seed
            for each in sound
        ]
        for eps, values in columns.items():
            mean, low, high = interval(values)
            rows.append(
                dict(zip(("method", "other"), pair, strict=True))
                | {"study": study.name, "eps": eps, "value": mean, "low": low, "high": high}
                | {"per_seed": " ".join(f"{value:+.4f}" for value in values.mean(axis=1))}
                | {"seeds": " ".join(map(str, seeds)), "n": study.test_images}
                | {"outcome": "better" if low > 0 else "worse" if high < 0 else "undecided"}
            )
    return pd.DataFrame(rows)


def caption(study: Study) -> str:
    """What the table shows, with everything needed to read its numbers."""
    return (
        f"Differences of accuracy between two denoisers: {subject(study)}, PGD(n = {study.steps}, ε) by an attacker "
        f"who does not know them, the same {study.test_images} test images; the denoisers trained from each seed "
        f"anew, on the same attacks on the same classifier; scale {study.scale}. *Mean*: of accuracy over all "
        f"{len(study.eps)} ε, with its 95 % interval over trainings and test images; *each*: that mean for each seed; "
        f"*better*, *worse*: at how many ε the interval lies above or below 0."
    )


def wide(rows: pd.DataFrame) -> pd.DataFrame:
    """One line per comparison: the mean over ε with its interval and each seed's, and what the single ε say."""
    lines = {}
    for (method, other), part in rows.groupby(["method", "other"], sort=False):
        mean, single = part[part["eps"] == MEAN].iloc[0], part[part["eps"] != MEAN]
        lines[f"{method} − {other}"] = {
            "mean": f"{mean['value']:+.3f}", "interval": f"{mean['low']:+.3f} … {mean['high']:+.3f}",
            "each": ", ".join(f"{float(value):+.3f}" for value in mean["per_seed"].split()),
            "seeds": mean["seeds"], "outcome": mean["outcome"],
            **{name: int((single["outcome"] == name).sum()) for name in ("better", "worse")},
        }  # fmt: skip
    return pd.DataFrame.from_dict(lines, orient="index")


def styled(rows: pd.DataFrame, study: Study) -> Styler:
    """`wide` with its caption, for a notebook."""
    return wide(rows).style.set_caption(without_marks(caption(study)))


def markdown(rows: pd.DataFrame, study: Study) -> str:
    """The table for reading on the web, and the interval at every ε."""
    table, single = wide(rows), rows[rows["eps"] != MEAN]
    lines = [[f"**{escaped(str(name))}**", *map(str, table.loc[name])] for name in table.index]
    every = []
    for eps, part in single.groupby("eps", sort=False):
        bands = [
            f"{low:+.3f} … {high:+.3f}" for low, high in zip(part["low"], part["high"], strict=True)
        ]
        every.append([short(float(str(eps))), *bands])
    parts = (
        grid(["", *table.columns], lines),
        grid(["ε", *(escaped(str(name)) for name in table.index)], every),
    )
    return (
        "\n".join(
            [f"**{caption(study)}**", "", *parts[0], "", "The interval at each ε:", "", *parts[1]]
        )
        + "\n"
    )
