"""Judge the paper's claims on a study's test images, and on the paper's own numbers.

A claim is a predicate over mean curves. Resampling the test images, paired over methods and strengths,
decides its outcome: it *holds* where the predicate is true in at least 97.5 % of the resamples, *fails*
where in at most 2.5 %, and is *inconclusive* between. The paper's outcome is the predicate on its means.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from ..experiments.artifacts import Experiment
from ..experiments.evaluation import curve_over_steps, failure, measure
from ..study import EPS, STRONG_EPS
from .tables import NAMES, PAPER, PAPERS, published

SMALL_SHARE, LARGE_ACCURACY = 0.8, 0.02  # of the attacked row: where S ends and where L begins
ROUNDING = 1e-9  # of a share of images, so that exactly 80 % are 80 %
OVER_STEPS = "accuracy over n"
LOSSES, QUALITY = ("L_img", "L_sem"), ("psnr", "ssim")
OTHERS = ("Add(L_sem)", "Filt(L_sem)", "Add(L_img)")
FUSED, SL, M = "PA-Filt(L_img)", "PA-Filt(L_img)_sl", "PA-Filt(L_img)_m"
Curve = Float[np.ndarray, "points"]


@dataclass(frozen=True)
class Curves:
    """Means over images: ``curves[metric, method]`` has one number per ε (or n).

    ``curves[method]`` is its accuracy. `curve` raises `KeyError` where there is no such curve.
    """

    curve: Callable[[str, str], Curve]
    regions: dict[str, Bool[np.ndarray, "strengths"]]  # small, middle, large ε: S, M, L; and C6's
    eps: tuple[float, ...] = EPS

    def __getitem__(self, which: tuple[str, str] | str) -> Curve:
        return self.curve(*which) if isinstance(which, tuple) else self.curve("accuracy", which)

    def best(self, *methods: str, metric: str = "accuracy") -> Curve:
        """The highest of some methods' curves at each point."""
        return np.max([self[metric, method] for method in methods], axis=0)

    def gain(self, method: str, *others: str, metric: str = "accuracy") -> Curve:
        """By how much a method is above the best of the others at each point."""
        return self[metric, method] - self.best(*others, metric=metric)


Verdict = tuple[bool, str]  # whether the claim holds, and the numbers behind that as text
Predicate = Callable[[Curves], Verdict]
CLAIMS: dict[str, tuple[str, Predicate]] = {}
"""Each claim's sentence and predicate."""
ROBUST_CLAIMS = {"C14": 5, "C15": 5, "C16": 6, "C17": 7}
"""The claims about adversarially trained classifiers, and their tables."""


def _claim(name: str, sentence: str) -> Callable[[Predicate], Predicate]:
    def register(predicate: Predicate) -> Predicate:
        CLAIMS[name] = sentence, predicate
        return predicate

    return register


def _positive(gain: Curve) -> bool:
    return bool(len(gain) and (gain > 0).all())


def _range(gain: Curve) -> str:
    return f"{gain.min():+.3f} … {gain.max():+.3f}" if len(gain) else "no such strengths"


def _all_gain(**gains: Curve) -> Verdict:
    text = ", ".join(f"{name} {_range(gain)}" for name, gain in gains.items())
    return all(map(_positive, gains.values())), text


def _wins_everywhere(gains: dict[str, Curve]) -> Verdict:
    text = ", ".join(f"{name}: {(gain > 0).sum()}" for name, gain in gains.items())
    return all(map(_positive, gains.values())), text


@_claim("C1", "Filt beats Add under the same loss in at least 8 columns")
def _filt_beats_add(c: Curves) -> Verdict:
    wins = {loss: c.gain(f"Filt({loss})", f"Add({loss})") > 0 for loss in LOSSES}
    text = ", ".join(f"{loss}: {won.sum()} of {len(won)}" for loss, won in wins.items())
    return all(won.sum() >= 8 for won in wins.values()), text


@_claim("C2", "Filt(L_img) raises clean accuracy")
def _filt_raises_clean_accuracy(c: Curves) -> Verdict:
    before, after = c["attacked"][0], c["Filt(L_img)"][0]
    return bool(after > before), f"{before:.3f} → {after:.3f}"


@_claim("C3", "for Filt, L_img beats L_sem on average over S and over L, and loses over M")
def _image_loss_wins_at_the_ends(c: Curves) -> Verdict:
    gain = {}
    for region in "SML":
        image, semantic = (c[f"Filt({loss})"][c.regions[region]] for loss in LOSSES)
        gain[region] = float(image.mean() - semantic.mean()) if len(image) else np.nan
    holds = gain["S"] > ROUNDING and gain["L"] > ROUNDING and gain["M"] < -ROUNDING
    return holds, ", ".join(f"{region}: {value:+.3f}" for region, value in gain.items())


@_claim("C4", "Filt has the higher PSNR and SSIM than Add under the same loss, in all columns")
def _filt_beats_add_in_quality(c: Curves) -> Verdict:
    pairs = [(metric, loss) for loss in LOSSES for metric in QUALITY]
    return _wins_everywhere(
        {f"{x} {loss}": c.gain(f"Filt({loss})", f"Add({loss})", metric=x) for x, loss in pairs}
    )


@_claim("C5", "Filt(L_img) has the best PSNR and SSIM of the four, in all columns")
def _filt_has_the_best_quality(c: Curves) -> Verdict:
    return _wins_everywhere({x: c.gain("Filt(L_img)", *OTHERS, metric=x) for x in QUALITY})


@_claim("C6", "Filt(L_img*) beats the other four on the middle strengths, and not on S")
def _strong_attacks_teach_the_middle(c: Curves) -> Verdict:
    gain = c.gain("Filt(L_img*)", "Filt(L_img)", *OTHERS)
    middle, small = gain[c.regions["C6"]], gain[c.regions["S"]]
    text = f"over the best of the four: middle {_range(middle)}, S {_range(small)}"
    return _positive(middle) and bool((small < 0).all()), text


@_claim("C7", "the best head is head_3 or head_4 in all columns")
def _late_heads_win(c: Curves) -> Verdict:
    wins = c.best("head_3", "head_4") >= c.best("head_1", "head_2")
    return bool(wins.all()), f"in {wins.sum()} of {len(wins)} columns"


@_claim("C8", "head_4 is within .02 of Filt(L_img*) in all columns")
def _head_4_is_filt_of_strong_attacks(c: Curves) -> Verdict:
    largest = float(np.abs(c.gain("head_4", "Filt(L_img*)")).max())
    return largest <= 0.02 + ROUNDING, f"largest difference {largest:.3f}"


@_claim("C9", "PA-Filt beats Filt in all columns of M")
def _fusion_beats_filt(c: Curves) -> Verdict:
    return _all_gain(gain=c.gain(FUSED, "Filt(L_img)")[c.regions["M"]])


@_claim("C10", "PA-Filt is at least as good as both of its parts in all columns")
def _fusion_beats_its_parts(c: Curves) -> Verdict:
    wins, best = c.gain(FUSED, SL, M) >= 0, c.best(SL, M)
    means = f"sl {c[SL].mean():.3f}, m {c[M].mean():.3f}, the better {best.mean():.3f}"
    text = f"in {wins.sum()} of {len(wins)} columns; mean {c[FUSED].mean():.3f}; {means}"
    return bool(wins.all()), text


@_claim("C11", "on clean images sl is better than no denoiser, and m is worse")
def _sl_keeps_clean_images(c: Curves) -> Verdict:
    clean, sl, m = c["attacked"][0], c[SL][0], c[M][0]
    return bool(sl > clean > m), f"none {clean:.3f}, sl {sl:.3f}, m {m:.3f}"


@_claim("C12", "|Spearman correlation of mean uncertainty and ε| of an image is at least .9")
def _uncertainty_follows_eps(c: Curves) -> Verdict:
    correlation = float(c["spearman", "Filt(L_img)"][0])
    return correlation >= 0.9, f"mean over images {correlation:.3f}"


@_claim("C13", "kernels of sl are at least 5 times as far from the identity at 0.1 as at 1e-4")
def _kernels_leave_the_identity(c: Curves) -> Verdict:
    distance = c["kernel_distance", SL]
    ratio = float(distance[c.eps.index(0.1)] / distance[c.eps.index(1e-4)])
    return ratio >= 5, f"ratio {ratio:.1f}"


@_claim("C14", "Filt+Adv gains on Adv at 0.1, 0.3 and 0.5 and loses at most .011 elsewhere")
def _filt_helps_adv(c: Curves) -> Verdict:
    strong, gain = np.isin(c.eps, STRONG_EPS), c.gain("Filt+Adv", "Adv")
    holds = strong.sum() == len(STRONG_EPS) and (gain[~strong] >= -0.011 - ROUNDING).all()
    text = f"at the three strong ε {_range(gain[strong])}, elsewhere {_range(gain[~strong])}"
    return bool(holds) and _positive(gain[strong]), text


@_claim("C15", "Filt+Adv gains on Adv for every number n of steps at ε = 0.3")
def _filt_helps_adv_for_every_n(c: Curves) -> Verdict:
    return _all_gain(gain=c.gain("Filt+Adv", "Adv", metric=OVER_STEPS))


@_claim("C16", "Add+FPD and Filt+FPD beat FPD in all columns above 0.05")
def _denoisers_help_fpd(c: Curves) -> Verdict:
    where = np.array(c.eps) > 0.05
    return _all_gain(**{name: c.gain(name, "FPD")[where] for name in ("Add+FPD", "Filt+FPD")})


@_claim("C17", "Add+FD and Filt+FD beat FD at 0.3 and 0.5")
def _denoisers_help_fd(c: Curves) -> Verdict:
    where = np.array(c.eps) > 0.1
    return _all_gain(**{name: c.gain(name, "FD")[where] for name in ("Add+FD", "Filt+FD")})


@_claim("C18", "the attacked row never rises with ε and reaches 0")
def _attack_succeeds(c: Curves) -> Verdict:
    rises, end = (np.diff(c["attacked"]) > 0).sum(), float(c["attacked"][-1])
    return bool(rises == 0 and end == 0), f"rises {rises} times, ends at {end:.3f}"


CORE_CLAIMS = tuple(claim for claim in CLAIMS if claim not in ROBUST_CLAIMS)
"""The claims about Tables 1 to 4 and Figures 1 to 4."""


# -- judged on images, and on the paper's numbers ------------------------------------------------


def judge(experiment: Experiment, *names: str, resamples: int = 2000) -> pd.DataFrame:
    """A row per claim (all of `CLAIMS` where none is named) with its outcome on a study and in the paper.

    Makes the measurements that are missing. ``support`` is the share of the resamples in which the
    predicate is true. Raises `KeyError` if there is no such claim.
    """
    number, eps = experiment.study.test_images, experiment.study.eps
    uniform = np.full(number, 1 / number)
    # whole numbers until the division, so that equal accuracies stay exactly equal
    weights = np.random.default_rng(experiment.study.seed).multinomial(number, uniform, resamples).T
    images = cache(lambda metric, method: per_image(experiment, metric, method))
    means = cache(lambda metric, method: images(metric, method).mean(axis=1))
    resampled = cache(lambda metric, method: images(metric, method) @ weights / number)
    attacked = means("accuracy", "attacked")
    small = attacked >= SMALL_SHARE * attacked[0] - ROUNDING
    large = attacked <= LARGE_ACCURACY + ROUNDING
    middle = ~small & ~large
    regions = {"S": small, "M": middle, "L": large, "C6": middle}
    measured, paper = Curves(means, regions, eps), _paper_curves()
    samples = [
        Curves(lambda *which, b=b: resampled(*which)[:, b], regions, eps) for b in range(resamples)
    ]
    return pd.DataFrame([_row(claim, measured, samples, paper) for claim in names or CLAIMS])


def _row(claim: str, measured: Curves, samples: list[Curves], paper: Curves) -> dict[str, Any]:
    sentence, predicate = CLAIMS[claim]
    row: dict[str, Any] = {"claim": claim, "predicate": sentence}
    try:
        text = predicate(measured)[1]
        support = float(np.mean([predicate(sample)[0] for sample in samples]))
        outcome = "holds" if support >= 0.975 else "fails" if support <= 0.025 else "inconclusive"
        row |= {"measured": text, "support": support, "outcome": outcome}
    except KeyError as error:  # a method whose training failed has no curves
        row |= {"measured": error.args[0], "support": np.nan, "outcome": "not measured"}
    try:
        holds, text = predicate(paper)
        return row | {"in_the_paper": text, "paper_outcome": "holds" if holds else "fails"}
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
    measurement = measure(experiment, method)
    if metric == "accuracy":
        return measurement.correct().astype(float)
    if metric in QUALITY:  # equal images get 200 dB, so that means exist
        return np.minimum(getattr(measurement, metric).double().numpy(), 200.0)
    if metric != "spearman":
        return measurement.extra[metric].double().numpy()
    ranks = pd.DataFrame(measurement.extra["uncertainty"].numpy()).rank()
    correlations = ranks.corrwith(pd.Series(range(len(ranks))))
    # a constant uncertainty has no correlation: it follows nothing
    return correlations.abs().fillna(0).to_numpy()[None]


def _paper_curves() -> Curves:
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
