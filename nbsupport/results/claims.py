"""Judge the paper's claims on a study's test images, and on all rows that the paper published.

A claim is a list of conditions on mean curves; its *margin* is by how much the least of them is met
(negative: missed). Resampling the test images, paired over methods and strengths, gives the margin
a 95 % interval: the claim *holds* where that lies above 0, *fails* where it does not reach 0, and
is *inconclusive* between. Accuracies are read twice: in the worst case over ε' ≤ ε, which decides,
and *plain*, as the paper counts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from ..experiments.artifacts import Experiment
from ..experiments.evaluation import (
    curve_over_steps,
    failure,
    groups,
    measure,
    resample,
    worst_case,
)
from ..study import EPS
from .tables import NAMES, WORST_CASE, published

SMALL_SHARE, LARGE_ACCURACY = 0.8, 0.02  # of the attacked row: where S ends and where L begins
ROUNDING = 1e-9  # of a share of images, so that exactly 80 % are 80 %
OVER_STEPS = "accuracy over n"
READINGS = {"": WORST_CASE, "plain_": "accuracy"}
"""The metric that accuracies are read as, by the prefix of its columns."""
LOSSES, QUALITY = ("L_img", "L_sem"), ("psnr", "ssim")
OTHERS = ("Add(L_sem)", "Filt(L_sem)", "Add(L_img)")
FUSED, SL, M = "PA-Filt(L_img)", "PA-Filt(L_img)_sl", "PA-Filt(L_img)_m"
FIELDS = ("outcome", "measured", "margin", "low", "high", "support")
Curve = Float[np.ndarray, "points *resamples"]
Find = Callable[[tuple[str, str]], Curve]
Regions = dict[str, Bool[np.ndarray, "strengths"]]


@dataclass(frozen=True)
class Curves:
    """Means over images: ``curves[metric, method]`` has one number per ε (or n), and per resample.

    ``curves[method]`` is its accuracy as `reading` has it. `curve` raises `KeyError` where there is
    no such curve.
    """

    curve: Find
    regions: Regions  # small, middle, large ε: S, M, L
    eps: tuple[float, ...] = EPS
    reading: str = WORST_CASE
    extra: Float[np.ndarray, "resamples"] | float = 0.0  # gain of the images added to resamples

    def __getitem__(self, which: tuple[str, str] | str) -> Curve:
        return self.curve(which if isinstance(which, tuple) else (self.reading, which))

    def gain(self, method: str, *others: str, metric: str | None = None) -> Curve:
        """By how much a method is above the best of the others at each point."""
        own, *rest = (self[metric or self.reading, name] for name in (method, *others))
        shares = (metric or self.reading) not in QUALITY
        return own - np.max(rest, axis=0) + shares * self.extra

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
    "C4": ("Filt has a higher PSNR and SSIM than Add under the same loss, in all columns",
           lambda c: [Above(f"{metric} {x}", c.gain(f"Filt({x})", f"Add({x})", metric=metric))
                      for x in LOSSES for metric in QUALITY]),
    "C5": ("Filt(L_img) has the best PSNR and SSIM of the four, in all columns",
           lambda c: [Above(x, c.gain("Filt(L_img)", *OTHERS, metric=x)) for x in QUALITY]),
    "C6": ("Filt(L_img*) beats the other four in all columns of M, and loses in all of S",
           lambda c: [Above("ahead of the best of the four", _strong_gain(c, "M")),
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
    "C12": ("|Spearman correlation| of an image's mean uncertainty with ε averages at least .9",
            lambda c: [Above("mean over images", c["spearman", "Filt(L_img)"], 0.9)]),
    "C13": ("kernels of sl are at least 5 times as far from the identity at 0.1 as at 1e-4",
            lambda c: [Above("ratio", c["kernel_distance", SL][[c.eps.index(0.1)]]
                             / c["kernel_distance", SL][[c.eps.index(1e-4)]], 5)]),
    "C14": ("Filt+Adv beats Adv at 0.1, 0.3 and 0.5 and loses at most .011 elsewhere",
            lambda c: [Above("gain above 0.05", c.gain("Filt+Adv", "Adv")[c.above(0.05)]),
                       Above("elsewhere", c.gain("Filt+Adv", "Adv")[~c.above(0.05)], -0.011)]),
    "C15": ("Filt+Adv beats Adv for every number n of steps at ε = 0.3",
            lambda c: [Above("gain", c.gain("Filt+Adv", "Adv", metric=OVER_STEPS))]),
    "C16": ("Add+FPD and Filt+FPD beat FPD in all columns above 0.05",
            lambda c: [Above(x, c.gain(x, "FPD")[c.above(0.05)]) for x in ("Add+FPD", "Filt+FPD")]),
    "C17": ("Add+FD and Filt+FD beat FD at 0.3 and 0.5",
            lambda c: [Above(x, c.gain(x, "FD")[c.above(0.1)]) for x in ("Add+FD", "Filt+FD")]),
    "C18": ("the attacked row never rises with ε and reaches 0",
            lambda c: [Above("falls", -np.diff(c["accuracy", "attacked"], axis=0), 0),
                       Above("errors at the end", 1 - c["attacked"][-1:], 1)]),
    "C19": ("another head beats head_1 at each strength that head_1 learned from, 1e-4 to 5e-4",
            lambda c: [Above("behind", -c.gain("head_1", "head_2", "head_3", "head_4")
                             [c.above(0) & ~c.above(5e-4)])]),
    "C20": ("Add(L_img) raises clean accuracy",
            lambda c: [Above("gain", c.gain("Add(L_img)", "attacked")[:1])]),
}  # fmt: skip
"""Each claim's sentence and conditions."""
ROBUST_CLAIMS = {"C14": 5, "C15": 5, "C16": 6, "C17": 7}
"""The claims about adversarially trained classifiers, and their tables."""
CORE_CLAIMS = tuple(claim for claim in CLAIMS if claim not in ROBUST_CLAIMS)
"""The claims about Tables 1 to 4 and Figures 1 to 4."""


def check(claim: str, curves: Curves) -> tuple[Float[np.ndarray, "*resamples"], str]:
    """A claim's margin, positive where all its conditions are met, and the numbers behind it.

    The text gives the range of the numbers, and how many are large enough if some are not. Raises
    `KeyError` where a curve is missing, or has too few of the claim's strengths.
    """
    margins, texts = [], []
    for name, values, limit, least in CLAIMS[claim][1](curves):
        if len(values) < (least or 1):
            raise KeyError(f"{name}: expected {least or 1} such strengths, got {len(values)}")
        over = values - (ROUNDING if limit is None else limit - ROUNDING)
        margins.append(np.sort(over, axis=0)[-(least or len(over))])
        every, won = np.unique(values), over > 0
        ends = [f"{end:z.3f}" for end in (*every[:1], *every[1:][-1:])]
        count = "" if won.all() else f" ({won.sum()} of {won.size})"
        texts.append(f"{name}: {' … '.join(ends)}{count}")
    return np.asarray(np.min(margins, axis=0)), ", ".join(texts)


def find_regions(attacked: Float[np.ndarray, "strengths"]) -> Regions:
    """The small, middle and large ε (S, M, L), by the accuracy without a filter.

    The paper names other limits for ResNet-50 on DEV; every plain outcome there is the same.
    """
    small = attacked >= SMALL_SHARE * attacked[0] - ROUNDING
    large = attacked <= LARGE_ACCURACY + ROUNDING
    return {"S": small, "M": ~small & ~large, "L": large}


# -- judged on images, and on the paper's numbers ------------------------------------------------


def judge(experiment: Experiment, *names: str, resamples: int = 2000) -> pd.DataFrame:
    """A row per claim (default: all of `CLAIMS`) with its outcome on a study and on published rows.

    Makes the measurements that are missing. ``low`` to ``high`` is the interval of the ``margin``,
    ``support`` the share of the resamples in which it is positive; columns ``plain_…`` are the
    plain reading. Raises `KeyError` if there is no such claim.
    """
    study, number = experiment.study, experiment.study.test_images
    weights = resample(groups(experiment), study.seed, resamples)
    images = cache(lambda which: per_image(experiment, *which))
    means = cache(lambda which: images(which).mean(axis=1))
    # whole numbers until the division, so that equal accuracies stay exactly equal
    drawn, total = weights[:number], weights[:number].sum(axis=0)
    resampled = cache(lambda which: images(which) @ drawn / total)
    extra = (weights[-1] - weights[-2]) / total
    rows = [_row(claim, study.eps, means, resampled, extra) for claim in names or CLAIMS]
    paper = published_claims()
    texts = paper["group"] + ": " + _spell(paper) + " (" + paper["plain_measured"] + ")"
    texts = texts.groupby(paper["claim"]).agg("; ".join).rename("published")
    return pd.DataFrame(rows).join(texts, on="claim").fillna({"published": "no numbers"})


def _row(
    claim: str, eps: tuple[float, ...], means: Find, resampled: Find, extra: Any = 0.0
) -> dict[str, Any]:
    row: dict[str, Any] = {"claim": claim, "predicate": CLAIMS[claim][0]}
    for prefix, reading in READINGS.items():
        regions = find_regions(means((reading, "attacked")))
        try:
            margin, text = check(claim, Curves(means, regions, eps, reading))
            margins, _ = check(claim, Curves(resampled, regions, eps, reading, extra))
            # the least of several noisy numbers is too small, that of resamples again by as much
            bias, noise = margins.mean() - margin, margins.std() / margins.size**0.5
            margins = margins - 2 * bias * (abs(bias) > 3 * noise)
            low = np.quantile(margins, 0.025, method="higher")
            high = np.quantile(margins, 0.975, method="lower")
            outcome = "holds" if low > 0 else "inconclusive" if high > 0 else "fails"
            numbers = [round(float(x), 8) for x in (margin, low, high, (margins > 0).mean())]
        except KeyError as error:  # a method whose training failed has no curves
            outcome, text, numbers = "not measured", error.args[0], [np.nan] * 4
        found = zip(FIELDS, (outcome, text, *numbers), strict=True)
        row |= {prefix + name: value for name, value in found}
    return row


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
    values = worst_case(found["accuracy"]) if metric == WORST_CASE else found[metric]
    return values[rows].astype(float).clip(max=200)  # dB of equal images, so that means exist


@cache
def published_claims() -> pd.DataFrame:
    """The rows of `judge` for each ``group``, a network and data set that the paper published.

    They decide by their means. No images are published, so the worst case is the running minimum of
    a curve: the most that it can be. Claims without published numbers are left out.
    """
    places, rows = ["threat_model", "dataset", "method", "metric", "eps", "steps"], []
    numbers = published().drop_duplicates(places).sort_values(["eps", "steps"])
    numbers["metric"] = numbers["metric"].where(numbers["steps"] == 40, OVER_STEPS)
    numbers["group"] = numbers["threat_model"].map(NAMES) + " on " + numbers["dataset"].map(NAMES)
    for name, group in numbers.groupby("group", sort=False):
        curves = group.groupby(["metric", "method"])["value"].agg(np.array)
        worst = curves["accuracy"].map(np.minimum.accumulate)
        find = {**curves, **pd.concat({WORST_CASE: worst})}.__getitem__
        rows += [{"group": name} | _row(claim, EPS, find, find) for claim in CLAIMS]
    return pd.DataFrame(rows).query("outcome != 'not measured'")


def claim_matrix(studies: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """All claims: the predicate, and the outcome in each published group and study.

    `studies` are the rows of `judge` by the study's name. Where both readings differ, the outcome
    in the worst case stands before the plain one.
    """
    groups: Any = dict(iter(published_claims().groupby("group", sort=False)))
    matrix = pd.DataFrame({"predicate": {claim: text for claim, (text, _) in CLAIMS.items()}})
    for name, rows in (groups | studies).items():
        matrix[NAMES.get(name, name)] = _spell(rows).set_axis(rows["claim"])
    return matrix.fillna("").rename_axis("claim")


def _spell(rows: pd.DataFrame) -> pd.Series:
    """Both outcomes of each row of `judge`; rows of earlier versions have the plain one alone."""
    both = rows.reindex(columns=["outcome", "plain_outcome"]).astype(object).fillna("")
    shorter = {r"^(.*) / \1$": r"\1", " / $": " (plain)"}
    return both.agg(" / ".join, axis=1).replace(shorter, regex=True)
