"""Judge the paper's claims on a study's test images, and on the paper's own numbers.

A claim is a list of conditions on mean curves. Resampling the test images, paired over methods and
strengths, decides its outcome: it *holds* where all conditions are met in at least 97.5 % of the
resamples, *fails* where in at most 2.5 %, and is *inconclusive* between. The paper's outcome is the
one on its means.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from ..experiments.artifacts import Experiment
from ..experiments.evaluation import curve_over_steps, failure, measure
from ..study import EPS
from .tables import NAMES, PAPER, PAPERS, published

SMALL_SHARE, LARGE_ACCURACY = 0.8, 0.02  # of the attacked row: where S ends and where L begins
ROUNDING = 1e-9  # of a share of images, so that exactly 80 % are 80 %
OVER_STEPS = "accuracy over n"
LOSSES, QUALITY = ("L_img", "L_sem"), ("psnr", "ssim")
OTHERS = ("Add(L_sem)", "Filt(L_sem)", "Add(L_img)")
FUSED, SL, M = "PA-Filt(L_img)", "PA-Filt(L_img)_sl", "PA-Filt(L_img)_m"
Curve = Float[np.ndarray, "points *resamples"]


@dataclass(frozen=True)
class Curves:
    """Means over images: ``curves[metric, method]`` has one number per ε (or n), and per resample.

    ``curves[method]`` is its accuracy. `curve` raises `KeyError` where there is no such curve.
    """

    curve: Callable[[str, str], Curve]
    regions: dict[str, Bool[np.ndarray, "strengths"]]  # small, middle, large ε: S, M, L; and C6's
    eps: tuple[float, ...] = EPS

    def __getitem__(self, which: tuple[str, str] | str) -> Curve:
        return self.curve(*which) if isinstance(which, tuple) else self.curve("accuracy", which)

    def gain(self, method: str, *others: str, metric: str = "accuracy") -> Curve:
        """By how much a method is above the best of the others at each point."""
        return self[metric, method] - np.max([self[metric, other] for other in others], axis=0)

    def above(self, eps: float) -> Bool[np.ndarray, "strengths"]:
        """Where attacks are stronger than `eps`."""
        return np.array(self.eps) > eps


class Above(NamedTuple):
    """A condition: all of some numbers, or `least` of them, are positive, or at least `limit`."""

    name: str
    values: Curve
    limit: float | None = None
    least: int | None = None


def _mean_loss_gain(c: Curves, region: str) -> Curve:
    gain = c.gain("Filt(L_img)", "Filt(L_sem)")[c.regions[region]]
    return gain.mean(axis=0, keepdims=True) if len(gain) else gain


def _strong_gain(c: Curves, region: str) -> Curve:
    return c.gain("Filt(L_img*)", "Filt(L_img)", *OTHERS)[c.regions[region]]


CLAIMS: dict[str, tuple[str, Callable[[Curves], list[Above]]]] = {
    "C1": ("Filt beats Add under the same loss in at least 8 columns",
           lambda c: [Above(x, c.gain(f"Filt({x})", f"Add({x})"), least=8) for x in LOSSES]),
    "C2": ("Filt(L_img) raises clean accuracy",
           lambda c: [Above("gain", c.gain("Filt(L_img)", "attacked")[:1])]),
    "C3": ("for Filt, L_img beats L_sem on average over S and over L, and loses over M",
           lambda c: [Above("ahead over S", _mean_loss_gain(c, "S")),
                      Above("behind over M", -_mean_loss_gain(c, "M")),
                      Above("ahead over L", _mean_loss_gain(c, "L"))]),
    "C4": ("Filt has the higher PSNR and SSIM than Add under the same loss, in all columns",
           lambda c: [Above(f"{metric} {x}", c.gain(f"Filt({x})", f"Add({x})", metric=metric))
                      for x in LOSSES for metric in QUALITY]),
    "C5": ("Filt(L_img) has the best PSNR and SSIM of the four, in all columns",
           lambda c: [Above(x, c.gain("Filt(L_img)", *OTHERS, metric=x)) for x in QUALITY]),
    "C6": ("Filt(L_img*) beats the other four on the middle strengths, and not on S",
           lambda c: [Above("ahead of the best of the four", _strong_gain(c, "C6")),
                      Above("behind it on S", -_strong_gain(c, "S"))]),
    "C7": ("the best head is head_3 or head_4 in all columns",
           lambda c: [Above("ahead of head_1 and head_2",
                            np.maximum(c.gain("head_3", "head_1", "head_2"),
                                       c.gain("head_4", "head_1", "head_2")), 0)]),
    "C8": ("head_4 is within .02 of Filt(L_img*) in all columns",
           lambda c: [Above("head_4 ahead", c.gain("head_4", "Filt(L_img*)"), -0.02),
                      Above("Filt(L_img*) ahead", c.gain("Filt(L_img*)", "head_4"), -0.02)]),
    "C9": ("PA-Filt beats Filt in all columns of M",
           lambda c: [Above("gain", c.gain(FUSED, "Filt(L_img)")[c.regions["M"]])]),
    "C10": ("PA-Filt is at least as good as both of its parts in all columns",
            lambda c: [Above("gain on sl", c.gain(FUSED, SL), 0),
                       Above("on m", c.gain(FUSED, M), 0)]),
    "C11": ("on clean images sl is better than no denoiser, and m is worse",
            lambda c: [Above("sl gains", c.gain(SL, "attacked")[:1]),
                       Above("m loses", c.gain("attacked", M)[:1])]),
    "C12": ("|Spearman correlation of mean uncertainty and ε| of an image is at least .9",
            lambda c: [Above("mean over images", c["spearman", "Filt(L_img)"], 0.9)]),
    "C13": ("kernels of sl are at least 5 times as far from the identity at 0.1 as at 1e-4",
            lambda c: [Above("ratio", c["kernel_distance", SL][[c.eps.index(0.1)]]
                             / c["kernel_distance", SL][[c.eps.index(1e-4)]], 5)]),
    "C14": ("Filt+Adv gains on Adv at 0.1, 0.3 and 0.5 and loses at most .011 elsewhere",
            lambda c: [Above("gain above 0.05", c.gain("Filt+Adv", "Adv")[c.above(0.05)]),
                       Above("elsewhere", c.gain("Filt+Adv", "Adv")[~c.above(0.05)], -0.011)]),
    "C15": ("Filt+Adv gains on Adv for every number n of steps at ε = 0.3",
            lambda c: [Above("gain", c.gain("Filt+Adv", "Adv", metric=OVER_STEPS))]),
    "C16": ("Add+FPD and Filt+FPD beat FPD in all columns above 0.05",
            lambda c: [Above(x, c.gain(x, "FPD")[c.above(0.05)]) for x in ("Add+FPD", "Filt+FPD")]),
    "C17": ("Add+FD and Filt+FD beat FD at 0.3 and 0.5",
            lambda c: [Above(x, c.gain(x, "FD")[c.above(0.1)]) for x in ("Add+FD", "Filt+FD")]),
    "C18": ("the attacked row never rises with ε and reaches 0",
            lambda c: [Above("falls", c["attacked"][:-1] - c["attacked"][1:], 0),
                       Above("errors at the end", 1 - c["attacked"][-1:], 1)]),
}  # fmt: skip
"""Each claim's sentence and conditions."""
ROBUST_CLAIMS = {"C14": 5, "C15": 5, "C16": 6, "C17": 7}
"""The claims about adversarially trained classifiers, and their tables."""
CORE_CLAIMS = tuple(claim for claim in CLAIMS if claim not in ROBUST_CLAIMS)
"""The claims about Tables 1 to 4 and Figures 1 to 4."""


def check(claim: str, curves: Curves) -> tuple[Bool[np.ndarray, "*resamples"], str]:
    """Whether a claim's conditions are met in each resample, and the numbers behind that as text.

    The text gives the range of the numbers, and how many are large enough if some are not.
    """
    met, texts = True, []
    for name, values, limit, least in CLAIMS[claim][1](curves):
        won = values > (ROUNDING if limit is None else limit - ROUNDING)
        met &= (won.sum(axis=0) >= (least or len(won))) & (len(won) > 0)
        every = np.unique(values)
        ends = [f"{end:z.3f}" for end in (*every[:1], *every[1:][-1:])]
        count = "" if won.all() else f" ({won.sum()} of {won.size})"
        texts.append(f"{name}: {' … '.join(ends) or 'no such strengths'}{count}")
    return np.asarray(met), ", ".join(texts)


# -- judged on images, and on the paper's numbers ------------------------------------------------


def judge(experiment: Experiment, *names: str, resamples: int = 2000) -> pd.DataFrame:
    """A row per claim (default: all of `CLAIMS`) with its outcome on a study and in the paper.

    Makes the measurements that are missing. ``support`` is the share of the resamples in which the
    conditions are met. Raises `KeyError` if there is no such claim.
    """
    study, number = experiment.study, experiment.study.test_images
    # whole numbers until the division, so that equal accuracies stay exactly equal
    random = np.random.default_rng(study.seed)
    weights = random.multinomial(number, np.full(number, 1 / number), resamples).T
    images = cache(partial(per_image, experiment))
    means = cache(lambda *which: images(*which).mean(axis=1))
    resampled = cache(lambda *which: images(*which) @ weights / number)
    attacked = means("accuracy", "attacked")
    small = attacked >= SMALL_SHARE * attacked[0] - ROUNDING
    large = attacked <= LARGE_ACCURACY + ROUNDING
    regions = {"S": small, "M": ~small & ~large, "L": large, "C6": ~small & ~large}
    measured, samples = (Curves(curve, regions, study.eps) for curve in (means, resampled))
    return pd.DataFrame([_row(claim, measured, samples) for claim in names or CLAIMS])


def _row(claim: str, measured: Curves, samples: Curves) -> dict[str, Any]:
    row: dict[str, Any] = {"claim": claim, "predicate": CLAIMS[claim][0]}
    try:
        text, support = check(claim, measured)[1], float(check(claim, samples)[0].mean())
        outcome = "holds" if support >= 0.975 else "fails" if support <= 0.025 else "inconclusive"
        row |= {"measured": text, "support": support, "outcome": outcome}
    except KeyError as error:  # a method whose training failed has no curves
        row |= {"measured": error.args[0], "support": np.nan, "outcome": "not measured"}
    try:
        met, text = check(claim, paper_curves())
        return row | {"in_the_paper": text, "paper_outcome": "holds" if met else "fails"}
    except KeyError:
        return row | {"in_the_paper": "a figure without numbers", "paper_outcome": "not measurable"}


def per_image(experiment: Experiment, metric: str, method: str) -> Float[np.ndarray, "points n"]:
    """A metric of a method for every strength and test image; ``spearman`` has one row only.

    Raises `KeyError` if the method's training failed, or the method has no such metric.
    """
    if reason := failure(experiment, method):
        raise KeyError(reason)
    if metric == OVER_STEPS:
        return curve_over_steps(experiment, method, experiment.study.sweep_eps).astype(float)
    study, found = experiment.study, measure(experiment, method)
    rows = np.isin(study.evaluated_eps, study.eps)  # the claims are about the paper's strengths
    if metric == "spearman":
        ranks = pd.DataFrame(found["uncertainty"][rows]).rank()
        # a constant uncertainty has no correlation: it follows nothing
        return ranks.corrwith(pd.Series(range(len(ranks)))).abs().fillna(0).to_numpy()[None]
    values = found[metric].astype(float)[rows]
    return values.clip(max=200)  # dB of equal images, so that means exist


@cache
def paper_curves() -> Curves:
    """The paper's own numbers, of the tables' classifiers and data sets in `PAPERS`."""
    numbers = pd.concat([published(*PAPERS[number]).query("table == @number") for number in PAPERS])
    numbers = numbers.drop_duplicates(["method", "metric", "eps", "steps"])
    metrics = numbers["metric"].where(numbers["steps"] == 40, OVER_STEPS)
    groups = numbers.sort_values(["eps", "steps"]).groupby([metrics, "method"])
    values = {which: group["value"].to_numpy() for which, group in groups}
    limits = {"S": (0, 3e-4), "M": (5e-4, 5e-3), "L": (1e-2, 0.3), "C6": (1e-3, 3e-2)}
    eps = np.array(EPS)
    regions = {name: (eps >= low) & (eps <= high) for name, (low, high) in limits.items()}
    return Curves(lambda metric, method: values[metric, method], regions)


def describe_papers() -> str:
    """The networks and images on which the paper's outcomes are judged, for captions."""
    where = {table: f"{NAMES[model]} on {NAMES[data]}" for table, (model, data) in PAPERS.items()}
    robust = [(claim, table) for claim, table in ROBUST_CLAIMS.items() if PAPERS[table] != PAPER]
    return f"{where[1]} ({', '.join(f'{claim}: {where[table]}' for claim, table in robust)})"
