"""Measure a defence: per image first, then one tidy row per number."""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, Shaped
from scipy.stats import norm
from scipy.stats import t as student
from torch import Tensor, nn
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)
from tqdm.auto import tqdm

from ..attacks.adaptive import Target, descend, minimal_eps, plan_ensemble
from ..attacks.pgd import AttackedSet, full_precision, halve_on_out_of_memory, ratios
from ..classifiers.custom import wrap
from ..classifiers.models import Classifier
from ..data.images import AnyLabels, Images, check_images, check_labels
from ..denoisers.defended import defend
from ..denoisers.filtering import distance_from_identity, filter_pixels, uncertainty_map
from ..denoisers.models import KernelDenoiser, PAFilter
from ..study import EPS, SMALLEST, STEPS
from ..training.classifiers import KINDS
from ..training.denoisers import EQUAL, RECIPES, find_collapse
from .artifacts import VERSION, Experiment, Steps, Strengths, once
from .methods import (
    CLEAN_PSNR,
    ENVELOPE,
    ITSELF,
    OPERATING_POINT,
    PUBLISHED_PSNR,
    TABLES,
    find_recipe,
    split_method,
    trainings,
)
from .store import Tensors, depend_on

AT_ONCE = 50  # images per pass: SSIM of more leaves the CPU's caches, and takes 8 times longer
COLUMNS = ["table", "study", "classifier", "method", "attack"]
COLUMNS += ["steps", "eps", "metric", "value", "n", "seed"]
NEAR = 2.0  # dB between a checkpoint's clean PSNR and the published one, at most
PerImage = Shaped[np.ndarray, "strengths n"]
Measurement = dict[str, PerImage]
"""One defence on attacked images, by metric: axis 0 is ε, axis 1 the image.

``accuracy`` is True for images that are classified correctly; ``psnr`` in dB (∞ for equal images)
and ``ssim`` compare the denoised with the clean image; ``change`` is the mean distance between
denoised and attacked image. Filters also have the means ``uncertainty`` (eq. 9) and
``kernel_distance``, and PA-Filt that of ``weight``.
"""


def worst_case(per_image: PerImage) -> PerImage:
    """For each image and ε the worst value over all ε' ≤ ε: L∞ balls are nested.

    The mean of the result is the robust accuracy; a curve above it profits from a clumsy attack.
    """
    return np.minimum.accumulate(per_image, axis=0)


def evaluate(
    classifier: nn.Module,
    denoiser: nn.Module | None,
    images: Images,
    labels: AnyLabels,
    eps: float | Sequence[float] = EPS,
    *,
    adaptive: bool = False,
    steps: int = STEPS,
    seed: int = 0,
) -> pd.DataFrame:
    """Accuracy, PSNR and SSIM of any classifier behind any denoiser under PGD, without any study.

    One row per attack, metric and ε: ``pgd`` is the gray-box attacker, who sees the classifier
    alone, ``pgd-envelope`` its worst case over ε' ≤ ε, and ``adaptive`` the white-box attacker, who
    looks for each image's smallest ε through denoiser and classifier (see `adaptive_evaluation`).
    Images and ε in the unit of [0, 1]; `denoiser` None is no filter.
    Refuses what `nbsupport.wrap`, `nbsupport.defend` and `nbsupport.attacks.pgd` refuse.
    """
    check_images(images, caller="evaluate")
    if min(images.shape[2:]) < SMALLEST:
        got = f"{SMALLEST} pixels or more, which SSIM needs, got {tuple(images.shape)}"
        raise ValueError(f"evaluate: expected images of {got}")
    labels = check_labels(labels, images=images, classes=None, caller="evaluate")
    strengths = tuple(sorted({float(strength) for strength in np.atleast_1d(eps)} - {0.0}))
    if not strengths:
        raise ValueError(f"evaluate: expected at least one ε above 0, got {eps}")
    trusted = classifier if isinstance(classifier, Classifier) else wrap(classifier, images, labels)
    denoiser = nn.Identity().eval() if denoiser is None else denoiser
    defend(trusted, denoiser)
    found = ratios(trusted, images, labels, strengths, steps=steps, seed=seed)
    attacked = AttackedSet(images, labels, found, (0.0, *strengths))
    measured = measure_images(trusted, denoiser, attacked)
    rows = rows_of(measured, ("accuracy", "psnr", "ssim"), attacked.eps)
    if adaptive:
        target = Target(denoiser, trusted, images, labels)
        plan = partial(plan_ensemble, steps=steps, seed=seed)
        blocks = tqdm(torch.arange(len(images)).split(AT_ONCE), "attacking adaptively", delay=1)
        parts = map(target.select, blocks)
        every = [descend(part, minimal_eps(part), strengths, plan).cpu() for part in parts]
        smallest = torch.cat(every).numpy()
        robust = measured["accuracy"] & (smallest > np.array(attacked.eps)[:, None])
        rows += _rows("adaptive", "accuracy", worst_case(robust), attacked.eps)
    return pd.DataFrame(rows)


def rows_of(
    measurement: Measurement, metrics: Iterable[str], eps: Sequence[float]
) -> list[dict[str, Any]]:
    """Rows of each metric under the gray-box attacker, and in its worst case over ε' ≤ ε."""
    rows = []
    for metric in metrics:
        rows += _rows("pgd", metric, measurement[metric], eps)
        rows += _rows(ENVELOPE, metric, worst_case(measurement[metric]), eps)
    return rows


def _rows(attack: str, metric: str, values: PerImage, eps: Sequence[float]) -> list[dict[str, Any]]:
    same = {"attack": attack, "metric": metric, "n": values.shape[1]}
    means = zip(eps, values.mean(axis=1).tolist(), strict=True)
    return [same | {"eps": strength, "value": value} for strength, value in means]


# -- one defence on attacked images --------------------------------------------------------------


@torch.no_grad()
def measure_images(
    classifier: Classifier, denoiser: nn.Module, attacked: AttackedSet
) -> Measurement:
    """Measure a denoiser before a classifier on attacked images at all their strengths."""

    def run(number: int) -> list[dict[str, Tensor]]:
        found, clean = [], attacked.images.split(number)
        for eps in attacked.eps:
            parts = zip(
                attacked.at(eps).split(number), clean, attacked.labels.split(number), strict=True
            )
            with full_precision(classifier.mean.device):
                found += [_measure(classifier, denoiser, *part) for part in parts]
        return found

    found = halve_on_out_of_memory(run, AT_ONCE)
    whole = {name: torch.cat([each[name] for each in found]).numpy() for name in found[0]}
    return {name: values.reshape(len(attacked.eps), -1) for name, values in whole.items()}


def _measure(
    classifier: Classifier, denoiser: nn.Module, images: Tensor, clean: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    images, clean, labels = (x.to(classifier.mean.device) for x in (images, clean, labels))
    found: dict[str, Tensor] = {}
    if isinstance(denoiser, PAFilter):
        parts = denoiser.parts(images)
        denoised = denoiser.fuse(parts).clamp(0, 1)
        found["weight"] = parts.weight.mean(dim=(1, 2, 3))
    elif isinstance(denoiser, KernelDenoiser):
        kernels = denoiser.kernels(images)
        denoised = filter_pixels(images, kernels).clamp(0, 1)
        found["uncertainty"] = uncertainty_map(kernels).mean(dim=(1, 2, 3))
        found["kernel_distance"] = distance_from_identity(kernels).mean(dim=(1, 2, 3))
    else:
        denoised = denoiser(images.clone())  # which may work in place
    logits = classifier(denoised)
    # the features of an attacked FPD may overflow: then there is no answer, and so no right one
    found["accuracy"] = (logits.argmax(dim=1) == labels) & logits.isfinite().all(dim=1)
    found["psnr"], found["ssim"] = quality(denoised, clean)
    found["change"] = (denoised - images).abs().mean(dim=(1, 2, 3))
    return {name: values.cpu() for name, values in found.items()}


def quality(images: Images, clean: Images) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
    """PSNR in dB (∞ where equal up to rounding) and SSIM of each image against the clean one."""
    against: Any = dict(preds=images, target=clean, data_range=1.0, reduction="none")
    ssim: Any = structural_similarity_index_measure(**against)
    psnr = peak_signal_noise_ratio(**against, dim=(1, 2, 3))
    return psnr.masked_fill(psnr > EQUAL, float("inf")), ssim.view(len(images))


# -- the methods of a study ----------------------------------------------------------------------


@once
def measure(
    experiment: Experiment, method: str, steps: Steps = None, eps: Strengths = None,
    victim: str = "standard", split: str = "",
) -> Measurement:  # fmt: skip
    """A method of the tables on the study's test images, or those of `split`, kept in the store.

    PGD attacks the classifier `victim`, a robust one on the first `self_attack_images`; its n and ε
    above 0 are the study's where None.
    Raises `ValueError` if there is no such method.
    """
    denoiser = experiment.denoiser(method)
    classifier = experiment.classifier(split_method(method)[1])
    attacked = experiment.attacked(split or _split(victim), steps, eps, victim)

    def make(scratch: Path) -> Tensors:
        found = measure_images(classifier, denoiser, attacked)
        return {metric: torch.from_numpy(values) for metric, values in found.items()}, {}

    specification = measurement_specification(experiment, method, steps, eps, victim, split)
    key = depend_on(specification, denoiser, classifier, experiment.classifier(victim))
    return {name: x.numpy() for name, x in experiment.store.tensors(key, make)[0].items()}


def measurement_specification(
    experiment: Experiment, method: str, steps: Steps = None, eps: Strengths = None,
    victim: str = "standard", split: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Everything that a measurement depends on."""
    attacked = experiment.attacked_specification(split or _split(victim), steps, eps, victim)
    specification = {"kind": "measurement", "name": method, "version": VERSION}
    return specification | {"method": experiment.specification(method), "attacked": attacked}


def _split(victim: str) -> str:
    return "self_attack" if KINDS[victim].split == "adversarial" else "test"


def attack_itself(experiment: Experiment, classifier: str) -> Bool[np.ndarray, "strengths n"]:
    """Which images a bare classifier gets right when PGD attacks that classifier."""
    if classifier == "standard":
        return measure(experiment, "attacked")["accuracy"][:, : experiment.study.self_attack_images]
    return measure(experiment, classifier, victim=classifier)["accuracy"]


def groups(experiment: Experiment, split: str = "test") -> Int[np.ndarray, "n"]:
    """A number per image; images with the same one are not independent.

    In `photographs` these are patches of one photograph, which overlap.
    """
    part = experiment.images(split)
    overlap = experiment.study.name == "photographs"
    return part.labels.numpy() if overlap else np.arange(len(part))


def standard_error(
    values: Float[np.ndarray, "*rows n"], groups: Int[np.ndarray, "n"]
) -> Float[np.ndarray, "*rows"]:
    """The standard error of the mean over images, which may depend on each other within a group.

    Of images that are all independent, `scipy.stats.sem`.
    """
    names, places = np.unique(groups, return_inverse=True)
    deviations = (values - values.mean(axis=-1, keepdims=True)) @ np.eye(len(names))[places]
    variance = (deviations**2).sum(axis=-1) * len(names) / (len(names) - 1)
    return np.asarray(variance**0.5 / values.shape[-1])


def resample(
    groups: Int[np.ndarray, "n"], seed: int = 0, resamples: int = 2000
) -> Int[np.ndarray, "more resamples"]:
    """How often resamples draw each image, and two more: one won, one lost.

    Images of one group are drawn together. A plain bootstrap over few groups is too narrow (of ten,
    its 95 % interval covers 89 %), so fewer are drawn: as many as give a mean Student's interval.
    No resample has a loss that was not seen: without the two images (Bonett and Price 2012), a few
    images won, and none lost, would always look like a gain. Half of the resamples mirror those two
    of the others, so that the interval of no difference at all is symmetric.
    """
    number, (names, places) = len(groups), np.unique(groups, return_inverse=True)
    freedom = max(len(names) - 1, 1)
    few = max(round(freedom * (norm.ppf(0.975) / student.ppf(0.975, freedom)) ** 2), 1)
    draw, images = np.random.default_rng(seed).multinomial, round(number * few / len(names))
    drawn = draw(few, np.full(len(names), 1 / len(names)), resamples).T[places]
    more = draw(images, np.array([1, 1, number]) / (number + 2), -(-resamples // 2)).T[:2]
    more = np.concatenate([more, more[::-1]], axis=1)[:, :resamples]
    return np.concatenate([drawn, more])


def failure(experiment: Experiment, method: str) -> str | None:
    """Why a method has no row, or None: a denoiser collapsed, or a classifier is not robust."""
    study, classifier = experiment.study, split_method(method)[1]
    if reason := _denoiser_failure(experiment, method):
        return reason
    if KINDS[classifier].split == "classifier":
        return None
    weaker = [eps for eps in study.attacked_eps if eps <= study.adversarial_eps]
    learned = max(weaker, default=study.attacked_eps[0])
    curves = (worst_case(attack_itself(experiment, name)) for name in (classifier, "standard"))
    robust, standard = (curve[study.evaluated_eps.index(learned)].mean() for curve in curves)
    if robust > standard:
        return None
    reason = f"PGD on itself at ε = {learned:g}, within the study's training strength"
    found = f"leaves {robust:.3f}, no more than {standard:.3f} of the standard classifier"
    what = "it is not robust" if experiment.is_given(classifier) else "training failed"
    return f"{classifier}: {what}. {reason}, {found}."


def _denoiser_failure(experiment: Experiment, method: str) -> str | None:
    recipe, output = find_recipe(method)
    if recipe and method.endswith(f"@{OPERATING_POINT}"):
        curve = experiment.report(method)["clean_psnr"][str(output)]
        psnr = curve[str(experiment.find_step(method))]
        if abs(psnr - PUBLISHED_PSNR) <= NEAR:
            return None
        missing = f"no checkpoint is near {PUBLISHED_PSNR:g} dB, as published for Filt"
        return f"{method}: {missing}; the nearest has {psnr:.1f} dB."
    for each in trainings(method):
        if reason := find_collapse(experiment.trained(each).report):
            return f"{each}: training failed. {reason}"
        if RECIPES[each].at_operating_point:  # its base's checkpoint is from before a collapse
            break
    return None


def failures(experiment: Experiment, methods: Sequence[str]) -> list[str]:
    """Why some methods have no rows, one sentence per reason."""
    reasons = [failure(experiment, method) for method in methods]
    return list(dict.fromkeys(reason for reason in reasons if reason))


def table(experiment: Experiment, number: int, *chosen: str) -> pd.DataFrame:
    """One of the paper's tables, 1 to 7, for this study as tidy rows, or only its `chosen` methods.

    A method whose training failed has no rows; `failures` says why. Raises `ValueError` if there is
    no such table.
    """
    if number not in TABLES:
        raise ValueError(f"expected one of the tables {', '.join(map(str, TABLES))}, got {number}")
    study, rows = experiment.study, list[dict[str, Any]]()
    same = {"table": number, "study": study.name, "classifier": study.classifier_name}
    same |= {"steps": study.steps, "seed": study.seed}
    for method in chosen or TABLES[number]:
        if failure(experiment, method):
            continue
        metrics = ("psnr", "ssim") if number == 2 else ("accuracy",)
        measured = measure(experiment, method)
        found = rows_of(measured, metrics, study.evaluated_eps)
        if number in (1, 3, 4):
            found += _rows("pgd", CLEAN_PSNR, measured["psnr"][:1], (0.0,))
        if split_method(method) == ("attacked", method):  # a robust classifier alone
            robust = worst_case(attack_itself(experiment, method))
            found += _rows(ITSELF, "accuracy", robust, study.evaluated_eps)
        if number == 5:
            found += _sweep(experiment, method)
        rows += [same | {"method": method} | row for row in found]
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.sort_values(
        "steps", key=lambda n: n != study.steps, kind="stable", ignore_index=True
    )


def strength_at_half(experiment: Experiment) -> float:
    """The strength at which Adv's accuracy is nearest to half of its clean accuracy."""
    accuracy = measure(experiment, "Adv")["accuracy"].mean(axis=1)
    nearest = int(np.abs(accuracy[1:] - accuracy[0] / 2).argmin())
    return experiment.study.evaluated_eps[1:][nearest]


def curve_over_steps(
    experiment: Experiment, method: str, eps: float
) -> Bool[np.ndarray, "steps n"]:
    """Which test images are right after PGD with each n of the study's `sweep_steps`."""
    steps = experiment.study.sweep_steps
    return np.stack([measure(experiment, method, n, (eps,))["accuracy"][1] for n in steps])


def _sweep(experiment: Experiment, method: str) -> list[dict[str, Any]]:
    """The second half of Table 5: over n, at the paper's ε and at `strength_at_half`."""
    study, rows = experiment.study, list[dict[str, Any]]()
    for eps in dict.fromkeys((study.sweep_eps, strength_at_half(experiment))):
        curve = curve_over_steps(experiment, method, eps)
        for steps, values in zip(study.sweep_steps, curve, strict=True):
            (row,) = _rows("pgd", "accuracy", values[None], (eps,))
            rows.append(row | {"steps": steps})
    return rows
