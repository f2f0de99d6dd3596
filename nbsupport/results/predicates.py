"""The paper's claims as predicates over mean curves; `nbsupport.results.claims` judges them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from ..experiments.methods import TABLES
from ..study import EPS, STRONG_EPS

ROUNDING = 1e-9  # of a share of images, so that exactly 80 % are 80 %
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
        return (
            float(np.mean(self[method][self.regions[region]]))
            if self.regions[region].any()
            else float("nan")
        )


Verdict = tuple[bool, str]


def _filt_beats_add(c: Curves) -> Verdict:
    wins = {
        loss: int((c[f"Filt({loss})"] > c[f"Add({loss})"]).sum()) for loss in ("L_img", "L_sem")
    }
    total = len(c["attacked"])
    return min(wins.values()) >= 8, ", ".join(
        f"{loss}: {won} of {total}" for loss, won in wins.items()
    )


def _raises_clean(c: Curves) -> Verdict:
    return bool(
        c["Filt(L_img)"][0] > c["attacked"][0]
    ), f"{c['attacked'][0]:.3f} → {c['Filt(L_img)'][0]:.3f}"


def _image_or_semantic(c: Curves) -> Verdict:
    gains = {
        region: c.mean("Filt(L_img)", region) - c.mean("Filt(L_sem)", region) for region in "SML"
    }
    text = ", ".join(f"{region}: {gain:+.3f}" for region, gain in gains.items())
    return gains["S"] > ROUNDING and gains["L"] > ROUNDING and gains["M"] < -ROUNDING, text


def _filt_has_quality(c: Curves) -> Verdict:
    wins = {
        f"{metric} {loss}": int((c[metric, f"Filt({loss})"] > c[metric, f"Add({loss})"]).sum())
        for loss in ("L_img", "L_sem")
        for metric in ("psnr", "ssim")
    }
    return min(wins.values()) == len(c["attacked"]), ", ".join(
        f"{name}: {won}" for name, won in wins.items()
    )


def _filt_img_has_best_quality(c: Curves) -> Verdict:
    wins = {}
    for metric in ("psnr", "ssim"):
        others = np.max([c[metric, method] for method in FOUR[:3]], axis=0)
        wins[metric] = int((c[metric, "Filt(L_img)"] > others).sum())
    return min(wins.values()) == len(c["attacked"]), ", ".join(
        f"{name}: {won}" for name, won in wins.items()
    )


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
    return bool(
        (fused >= best).all()
    ), f"in {int((fused >= best).sum())} of {len(best)} columns; {means}"


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


def _filt_helps_adv(c: Curves) -> Verdict:
    gain = c["Filt+Adv"] - c["Adv"]
    strong = np.isin(c.eps, STRONG_EPS)
    text = f"at the three strong ε {_range(gain[strong])}, elsewhere {_range(gain[~strong])}"
    return bool(
        strong.sum() == 3
        and (gain[strong] > 0).all()
        and (gain[~strong] >= -0.011 - ROUNDING).all()
    ), text


def _whatever_the_steps(c: Curves) -> Verdict:
    gain = c["accuracy over n", "Filt+Adv"] - c["accuracy over n", "Adv"]
    return bool((gain > 0).all()), f"gain {_range(gain)}"


def _gains(c: Curves, network: str, above: float) -> Verdict:
    where = np.array(c.eps) > above
    gains = {
        f"{name}+{network}": (c[f"{name}+{network}"] - c[network])[where]
        for name in ("Add", "Filt")
    }
    text = ", ".join(f"{name} {_range(gain)}" for name, gain in gains.items())
    return all(len(gain) and (gain > 0).all() for gain in gains.values()), text


def _denoising_helps_fpd(c: Curves) -> Verdict:
    return _gains(c, "FPD", 0.05)


def _denoising_helps_fd(c: Curves) -> Verdict:
    return _gains(c, "FD", 0.1)


def _attack_bites(c: Curves) -> Verdict:
    attacked = c["attacked"]
    rises = int((np.diff(attacked) > 0).sum())
    return bool(
        rises == 0 and attacked[-1] == 0
    ), f"rises {rises} times, ends at {attacked[-1]:.3f}"


def _range(values: np.ndarray) -> str:
    return f"{values.min():+.3f} … {values.max():+.3f}" if len(values) else "no such strengths"


CLAIMS: dict[str, tuple[str, Callable[[Curves], Verdict]]] = {
    "C1": ("Filt beats Add under the same loss in at least 8 columns", _filt_beats_add),
    "C2": ("Filt(L_img) raises clean accuracy", _raises_clean),
    "C3": (
        "for Filt, L_img beats L_sem on average over S and over L, and loses over M",
        _image_or_semantic,
    ),
    "C4": (
        "Filt has the higher PSNR and SSIM than Add under the same loss, in all columns",
        _filt_has_quality,
    ),
    "C5": (
        "Filt(L_img) has the best PSNR and SSIM of the four, in all columns",
        _filt_img_has_best_quality,
    ),
    "C6": (
        "Filt(L_img*) beats the other four on the middle strengths, and not on S",
        _strong_wins_the_middle,
    ),
    "C7": ("the best head is head_3 or head_4 in all columns", _late_heads_win),
    "C8": ("head_4 is within .02 of Filt(L_img*) in all columns", _head_4_is_strong),
    "C9": ("PA-Filt beats Filt in all columns of M", _fused_beats_filt),
    "C10": ("PA-Filt is at least as good as both of its parts in all columns", _fused_beats_parts),
    "C11": ("on clean images sl is better than no denoiser, and m is worse", _parts_on_clean),
    "C12": (
        "|Spearman correlation of mean uncertainty and ε| of an image is at least .9",
        _uncertainty_follows_eps,
    ),
    "C13": (
        "kernels of sl are at least 5 times as far from the identity at 0.1 as at 1e-4",
        _kernels_leave_the_identity,
    ),
    "C14": (
        "Filt+Adv gains on Adv at 0.1, 0.3 and 0.5 and loses at most .011 elsewhere",
        _filt_helps_adv,
    ),
    "C15": ("Filt+Adv gains on Adv for every number n of steps at ε = 0.3", _whatever_the_steps),
    "C16": ("Add+FPD and Filt+FPD beat FPD in all columns above 0.05", _denoising_helps_fpd),
    "C17": ("Add+FD and Filt+FD beat FD at 0.3 and 0.5", _denoising_helps_fd),
    "C18": ("the attacked row never rises with ε and reaches 0", _attack_bites),
}
ROBUST_CLAIMS = {"C14": 5, "C15": 5, "C16": 6, "C17": 7}
"""The claims about adversarially trained classifiers, and their tables."""
CORE_CLAIMS = tuple(claim for claim in CLAIMS if claim not in ROBUST_CLAIMS)
"""The claims about Tables 1 to 4 and Figures 1 to 4."""
