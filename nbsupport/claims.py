"""The paper's claims as predicates, judged on this study's images and on the published numbers.

A claim is a predicate over mean curves. Its outcome follows from resampling the test images (paired
over methods and strengths): *holds* where the predicate is true in at least 97.5 % of the resamples,
*fails* where in at most 2.5 %, *inconclusive* between. The paper's own outcome is the same predicate
on its printed means.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from .evaluation import Evaluation
from .recipes import TABLES
from .study import EPS
from .tables import PAPER, published

RESAMPLES = 2000
SMALL_SHARE, LARGE_ACCURACY = 0.8, 0.02
ROUNDING = 1e-9  # of a share of images, so that exactly 80 % are 80 %
FINITE = 200.0  # dB: PSNR of equal images, so that means exist
FOUR = ("Add(L_sem)", "Filt(L_sem)", "Add(L_img)", "Filt(L_img)")
HEADS = TABLES[3][1:5]


@dataclass(frozen=True)
class Curves:
    """Means over images: ``curves[metric, method]`` is one number per ε.

    Attributes
    ----------
    curve
        From a metric and a method to its curve; KeyError where there is none.
    regions
        S, M and L, the small, middle and large strengths, as masks over ε.
    eps
        The strengths.
    """

    curve: Callable[[str, str], Float[np.ndarray, "strengths"]]
    regions: dict[str, Bool[np.ndarray, "strengths"]]
    eps: tuple[float, ...] = EPS

    def __getitem__(self, which: tuple[str, str] | str) -> Float[np.ndarray, "strengths"]:
        """The curve of (metric, method); of accuracy where only the method is named."""
        return self.curve(*which) if isinstance(which, tuple) else self.curve("accuracy", which)

    def mean(self, method: str, region: str) -> float:
        """Mean accuracy over a region; NaN where the region is empty."""
        return float(np.mean(self[method][self.regions[region]])) if self.regions[region].any() else float("nan")


Verdict = tuple[bool, str]


def _filt_beats_add(c: Curves) -> Verdict:
    wins = {loss: int((c[f"Filt({loss})"] > c[f"Add({loss})"]).sum()) for loss in ("L_img", "L_sem")}
    total = len(c["attacked"])
    return min(wins.values()) >= 8, ", ".join(f"{loss}: {won} of {total}" for loss, won in wins.items())


def _raises_clean(c: Curves) -> Verdict:
    return bool(c["Filt(L_img)"][0] > c["attacked"][0]), f"{c['attacked'][0]:.3f} → {c['Filt(L_img)'][0]:.3f}"


def _image_or_semantic(c: Curves) -> Verdict:
    gains = {region: c.mean("Filt(L_img)", region) - c.mean("Filt(L_sem)", region) for region in "SML"}
    text = ", ".join(f"{region}: {gain:+.3f}" for region, gain in gains.items())
    return gains["S"] > ROUNDING and gains["L"] > ROUNDING and gains["M"] < -ROUNDING, text


def _filt_has_quality(c: Curves) -> Verdict:
    wins = {
        f"{metric} {loss}": int((c[metric, f"Filt({loss})"] > c[metric, f"Add({loss})"]).sum())
        for loss in ("L_img", "L_sem")
        for metric in ("psnr", "ssim")
    }
    return min(wins.values()) == len(c["attacked"]), ", ".join(f"{name}: {won}" for name, won in wins.items())


def _filt_img_has_best_quality(c: Curves) -> Verdict:
    wins = {}
    for metric in ("psnr", "ssim"):
        others = np.max([c[metric, method] for method in FOUR[:3]], axis=0)
        wins[metric] = int((c[metric, "Filt(L_img)"] > others).sum())
    return min(wins.values()) == len(c["attacked"]), ", ".join(f"{name}: {won}" for name, won in wins.items())


def _strong_wins_the_middle(c: Curves) -> Verdict:
    gain = c["Filt(L_img*)"] - np.max([c[method] for method in FOUR], axis=0)
    middle, small = gain[c.regions["C6"]], gain[c.regions["S"]]
    text = f"over the best of the four: middle {_range(middle)}, S {_range(small)}"
    return bool(len(middle) and (middle > 0).all() and (small < 0).all()), text


def _late_heads_win(c: Curves) -> Verdict:
    late, early = (np.max([c[head] for head in heads], axis=0) for heads in (HEADS[2:], HEADS[:2]))
    return bool((late >= early).all()), f"in {int((late >= early).sum())} of {len(late)} columns"


def _head_4_is_strong(c: Curves) -> Verdict:
    difference = np.abs(c["head_4"] - c["Filt(L_img*)"])
    return bool(difference.max() <= 0.02 + ROUNDING), f"largest difference {difference.max():.3f}"


def _fused_beats_filt(c: Curves) -> Verdict:
    gain = (c["PA-Filt(L_img)"] - c["Filt(L_img)"])[c.regions["M"]]
    return bool(len(gain) and (gain > 0).all()), f"gain {_range(gain)}"


def _fused_beats_parts(c: Curves) -> Verdict:
    fused, parts = c["PA-Filt(L_img)"], [c[f"PA-Filt(L_img)_{part}"] for part in ("sl", "m")]
    best = np.max(parts, axis=0)
    means = f"mean {fused.mean():.3f}; sl {parts[0].mean():.3f}, m {parts[1].mean():.3f}, the better {best.mean():.3f}"
    return bool((fused >= best).all()), f"in {int((fused >= best).sum())} of {len(best)} columns; {means}"


def _parts_on_clean(c: Curves) -> Verdict:
    clean, sl, m = (c[name][0] for name in ("attacked", "PA-Filt(L_img)_sl", "PA-Filt(L_img)_m"))
    return bool(sl > clean > m), f"none {clean:.3f}, sl {sl:.3f}, m {m:.3f}"


def _uncertainty_follows_eps(c: Curves) -> Verdict:
    correlation = float(c["spearman", "Filt(L_img)"][0])
    return correlation >= 0.9, f"mean over images {correlation:.3f}"


def _kernels_leave_the_identity(c: Curves) -> Verdict:
    distance = c["kernel_distance", "PA-Filt(L_img)_sl"]
    ratio = float(distance[c.eps.index(0.1)] / distance[c.eps.index(1e-4)])
    return ratio >= 5, f"ratio {ratio:.1f}"


def _attack_bites(c: Curves) -> Verdict:
    attacked = c["attacked"]
    rises = int((np.diff(attacked) > 0).sum())
    return bool(rises == 0 and attacked[-1] == 0), f"rises {rises} times, ends at {attacked[-1]:.3f}"


def _range(values: np.ndarray) -> str:
    return f"{values.min():+.3f} … {values.max():+.3f}" if len(values) else "no such strengths"


CLAIMS: dict[str, tuple[str, Callable[[Curves], Verdict]]] = {
    "C1": ("Filt beats Add under the same loss in at least 8 columns", _filt_beats_add),
    "C2": ("Filt(L_img) raises clean accuracy", _raises_clean),
    "C3": ("for Filt, L_img beats L_sem on average over S and over L, and loses over M", _image_or_semantic),
    "C4": ("Filt has the higher PSNR and SSIM than Add under the same loss, in all columns", _filt_has_quality),
    "C5": ("Filt(L_img) has the best PSNR and SSIM of the four, in all columns", _filt_img_has_best_quality),
    "C6": ("Filt(L_img*) beats the other four on the middle strengths, and not on S", _strong_wins_the_middle),
    "C7": ("the best head is head_3 or head_4 in all columns", _late_heads_win),
    "C8": ("head_4 is within .02 of Filt(L_img*) in all columns", _head_4_is_strong),
    "C9": ("PA-Filt beats Filt in all columns of M", _fused_beats_filt),
    "C10": ("PA-Filt is at least as good as both of its parts in all columns", _fused_beats_parts),
    "C11": ("on clean images sl is better than no denoiser, and m is worse", _parts_on_clean),
    "C12": ("|Spearman correlation of mean uncertainty and ε| of an image is at least .9", _uncertainty_follows_eps),
    "C13": (
        "kernels of sl are at least 5 times as far from the identity at 0.1 as at 1e-4",
        _kernels_leave_the_identity,
    ),
    "C18": ("the attacked row never rises with ε and reaches 0", _attack_bites),
}


def _paper_curves() -> Curves:
    numbers = published(*PAPER)
    numbers = numbers[(numbers["steps"] == 40) & numbers["table"].le(4)]
    numbers = numbers.drop_duplicates(["method", "metric", "eps"]).sort_values("eps")
    values = {which: group["value"].to_numpy() for which, group in numbers.groupby(["metric", "method"])}
    eps = np.array(EPS)
    regions = {"S": eps <= 3e-4, "M": (eps >= 5e-4) & (eps <= 5e-3), "L": (eps >= 1e-2) & (eps <= 0.3)}
    return Curves(lambda metric, method: values[metric, method], regions | {"C6": (eps >= 1e-3) & (eps <= 3e-2)})


def per_image(evaluation: Evaluation, metric: str, method: str) -> Float[np.ndarray, "strengths n"]:
    """A metric of a method for every strength and test image; ``spearman`` has one row only.

    Raises KeyError if the method's training failed, or the metric is not one of this method.
    """
    if failure := evaluation.artefacts.failure(method):
        raise KeyError(failure)
    measurement = evaluation.measurement(method)
    if metric == "accuracy":
        return measurement.correct().astype(float)
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
        Which of `CLAIMS`; all where none is named.
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
    small, large = attacked >= SMALL_SHARE * attacked[0] - ROUNDING, attacked <= LARGE_ACCURACY + ROUNDING
    regions = {"S": small, "M": ~small & ~large, "L": large, "C6": ~small & ~large}
    samples = [Curves(lambda *which, b=b: resampled(*which)[:, b], regions, eps) for b in range(resamples)]
    paper = _paper_curves()
    return pd.DataFrame([_row(claim, Curves(means, regions, eps), samples, paper) for claim in names or CLAIMS])


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
