"""Measure a defence: per image first, then one tidy row per number."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torchmetrics.functional.image import (
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

from ..attacks.adaptive import pgd_through
from ..attacks.pgd import AttackedSet, full_precision, halve_on_out_of_memory, ratios
from ..classifiers.custom import wrap
from ..classifiers.models import Classifier
from ..data.images import Images, Labels, check_images, check_labels
from ..denoisers.defended import defend
from ..denoisers.filtering import distance_from_identity, uncertainty_map
from ..denoisers.models import KernelDenoiser, PAFilter
from ..study import EPS, STEPS
from .artifacts import VERSION, Experiment, Steps, Strengths, once
from .methods import ENVELOPE, ITSELF, TABLES, VIEWS, split_method
from .store import depend_on

AT_ONCE = 50  # images per pass: SSIM of more leaves the CPU's caches, and takes 8 times longer
EQUAL = 140.0  # dB: above it two images differ by rounding in float32 only
COLUMNS = ["table", "study", "classifier", "method", "attack"]
COLUMNS += ["steps", "eps", "metric", "value", "n", "seed"]
CONSTANT = 1e-2  # a W of smaller standard deviation over pixels, images and strengths is constant
PerImage = Shaped[np.ndarray, "strengths n"]


@dataclass(frozen=True)
class Measurement:
    """One defence on attacked images: axis 0 is ε, axis 1 the image.

    PSNR in dB (∞ for equal images) and SSIM compare the denoised with the clean image; `change` is
    the mean distance between denoised and attacked image. `extra` holds means that only some have:
    ``uncertainty`` (eq. 9) and ``kernel_distance`` of a filter, ``weight`` of PA-Filt.
    """

    predictions: Int[Tensor, "strengths n"]
    labels: Int[Tensor, "n"]
    psnr: Float[Tensor, "strengths n"]
    ssim: Float[Tensor, "strengths n"]
    change: Float[Tensor, "strengths n"]
    extra: dict[str, Float[Tensor, "strengths n"]]

    def correct(self) -> Bool[np.ndarray, "strengths n"]:
        """Which images are classified correctly."""
        return (self.predictions == self.labels).numpy()


def worst_case(per_image: PerImage) -> PerImage:
    """For each image and ε the worst value over all ε' ≤ ε: L∞ balls are nested.

    The mean of the result is the robust accuracy; a curve above it profits from a clumsy attack.
    """
    return np.minimum.accumulate(per_image, axis=0)


def evaluate(
    classifier: nn.Module,
    denoiser: nn.Module | None,
    images: Images,
    labels: Labels,
    eps: float | Sequence[float] = EPS,
    *,
    adaptive: bool = False,
    steps: int = STEPS,
    restarts: int = 1,
    seed: int = 0,
) -> pd.DataFrame:
    """Accuracy, PSNR and SSIM of any classifier behind any denoiser under PGD, without any study.

    One row per attack, metric and ε. ``pgd`` is the gray-box attacker, who sees the classifier alone,
    ``pgd-envelope`` its worst case over ε' ≤ ε, and ``adaptive`` the white-box attacker: PGD through
    denoiser and classifier with two losses and several step sizes, worst case over everything up to ε.
    Images and ε in the unit of [0, 1]; `denoiser` None is no filter.
    Refuses what `nbsupport.wrap`, `nbsupport.defend` and `nbsupport.attacks.pgd` refuse.
    """
    check_images(images, caller="evaluate")
    check_labels(labels, images=images, classes=None, caller="evaluate")
    strengths = tuple(sorted({float(strength) for strength in np.atleast_1d(eps)} - {0.0}))
    if not strengths:
        raise ValueError(f"evaluate: expected at least one ε above 0, got {eps}")
    trusted = classifier if isinstance(classifier, Classifier) else wrap(classifier, images, labels)
    denoiser = nn.Identity().eval() if denoiser is None else denoiser
    defend(trusted, denoiser)
    found = ratios(trusted, images, labels, strengths, steps=steps, seed=seed)
    attacked = AttackedSet(images, labels, found, (0.0, *strengths))
    measured = _measurement(labels.cpu(), measure_images(trusted, denoiser, attacked))
    rows = _rows_of(measured, ("accuracy", "psnr", "ssim"), attacked.eps)
    if adaptive:
        effort: Any = {"steps": steps, "restarts": restarts, "seed": seed}
        robust = measured.correct()
        for row, strength in enumerate(strengths, 1):
            withstand = pgd_through(denoiser, trusted, images, labels, strength, **effort)
            robust[row] &= withstand.cpu().numpy()
        rows += _rows("adaptive", "accuracy", worst_case(robust), attacked.eps)
    return pd.DataFrame(rows)


def _rows_of(
    measurement: Measurement, metrics: Iterable[str], eps: Sequence[float]
) -> list[dict[str, Any]]:
    """Rows of each metric under the gray-box attacker, and in its worst case over ε' ≤ ε."""
    rows = []
    for metric in metrics:
        right = metric == "accuracy"
        values = measurement.correct() if right else getattr(measurement, metric).numpy()
        rows += _rows("pgd", metric, values, eps)
        rows += _rows(ENVELOPE, metric, worst_case(values), eps)
    return rows


def _rows(attack: str, metric: str, values: PerImage, eps: Sequence[float]) -> list[dict[str, Any]]:
    same = {"attack": attack, "metric": metric, "n": values.shape[1]}
    means = zip(eps, values.mean(axis=1).tolist(), strict=True)
    return [same | {"eps": strength, "value": value} for strength, value in means]


# -- one defence on attacked images --------------------------------------------------------------


@torch.no_grad()
def measure_images(
    classifier: Classifier, denoiser: nn.Module, attacked: AttackedSet
) -> dict[str, Shaped[Tensor, "strengths n"]]:
    """Everything in a `Measurement` but the labels."""

    def run(number: int) -> dict[str, Tensor]:
        found = []
        for eps in attacked.eps:
            pairs = zip(attacked.at(eps).split(number), attacked.images.split(number), strict=True)
            with full_precision(classifier.mean.device):
                found += [_measure(classifier, denoiser, *pair) for pair in pairs]
        whole = {name: torch.cat([each[name] for each in found]) for name in found[0]}
        return {name: values.view(len(attacked.eps), -1) for name, values in whole.items()}

    return halve_on_out_of_memory(run, AT_ONCE)


def _measure(
    classifier: Classifier, denoiser: nn.Module, images: Tensor, clean: Tensor
) -> dict[str, Tensor]:
    images, clean = images.to(classifier.mean.device), clean.to(classifier.mean.device)
    denoised = denoiser(images)
    found = dict(zip(("psnr", "ssim"), quality(denoised, clean), strict=True))
    found["predictions"] = classifier(denoised).argmax(dim=1)
    found["change"] = (denoised - images).abs().mean(dim=(1, 2, 3))
    if isinstance(denoiser, PAFilter):
        found["weight"] = denoiser.parts(images).weight.mean(dim=(1, 2, 3))
    elif isinstance(denoiser, KernelDenoiser):
        kernels = denoiser.kernels(images)
        found["uncertainty"] = uncertainty_map(kernels).mean(dim=(1, 2, 3))
        found["kernel_distance"] = distance_from_identity(kernels).mean(dim=(1, 2, 3))
    return {name: values.cpu() for name, values in found.items()}


def quality(images: Images, clean: Images) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
    """PSNR in dB (∞ where equal up to rounding) and SSIM of each image against the clean one."""
    against: Any = dict(preds=images, target=clean, data_range=1.0, reduction="none")
    ssim: Any = structural_similarity_index_measure(**against)
    psnr = peak_signal_noise_ratio(**against, dim=(1, 2, 3))
    return psnr.masked_fill(psnr > EQUAL, float("inf")), ssim.view(len(images))


def _measurement(labels: Tensor, tensors: dict[str, Tensor]) -> Measurement:
    every = {name: tensors.pop(name) for name in ("predictions", "psnr", "ssim", "change")}
    return Measurement(labels=labels, extra=tensors, **every)


# -- the methods of a study ----------------------------------------------------------------------


@once
def measure(
    experiment: Experiment, method: str, steps: Steps = None, eps: Strengths = None,
    victim: str = "standard",
) -> Measurement:  # fmt: skip
    """A method of the tables on the study's test images, kept in the store.

    PGD's n and the strengths above 0 are the study's where None; PGD attacks the classifier `victim`.
    Raises `ValueError` if there is no such method.
    """
    denoiser = experiment.denoiser(method)
    classifier = experiment.classifier(split_method(method)[1])
    attacked = experiment.attacked(_split(victim), steps, eps, victim)
    specification = measurement_specification(experiment, method, steps, eps, victim)
    tensors, _ = experiment.store.tensors(
        depend_on(specification, denoiser, classifier, experiment.classifier(victim)),
        lambda scratch: (measure_images(classifier, denoiser, attacked), {}),
    )
    return _measurement(attacked.labels, tensors)


def measurement_specification(
    experiment: Experiment, method: str, steps: Steps = None, eps: Strengths = None,
    victim: str = "standard",
) -> dict[str, Any]:  # fmt: skip
    """Everything that a measurement depends on."""
    attacked = experiment.attacked_specification(_split(victim), steps, eps, victim)
    specification = {"kind": "measurement", "name": method, "version": VERSION}
    return specification | {"method": experiment.specification(method), "attacked": attacked}


def _split(victim: str) -> str:
    return "test" if victim == "standard" else "self_attack"


def attack_itself(experiment: Experiment, classifier: str) -> Bool[np.ndarray, "strengths n"]:
    """Which images a bare classifier gets right when PGD attacks that classifier."""
    if classifier == "standard":
        return measure(experiment, "attacked").correct()[:, : experiment.study.self_attack_images]
    return measure(experiment, classifier, victim=classifier).correct()


def failure(experiment: Experiment, method: str) -> str | None:
    """Why a method has no row, or None: a constant W, or a robust classifier that is not robust."""
    study, (denoiser, classifier) = experiment.study, split_method(method)
    if denoiser.startswith("PA-Filt") and denoiser not in VIEWS:
        spread = experiment.report(denoiser)["weight_std"]
        if not spread >= CONSTANT:  # NaN is a failure, too
            return (
                f"{denoiser}: training failed. Its W is constant (standard deviation {spread:.1e} over "
                "pixels, images and strengths), so the fusion repeats one mixture of its parts."
            )
    if classifier == "standard":
        return None
    weaker = [eps for eps in study.attacked_eps if eps <= study.adversarial_eps]
    learned = max(weaker, default=study.attacked_eps[0])
    curves = (worst_case(attack_itself(experiment, name)) for name in (classifier, "standard"))
    robust, standard = (curve[study.eps.index(learned)].mean() for curve in curves)
    if robust > standard:
        return None
    return (
        f"{classifier}: training failed. PGD on itself at ε = {learned:g}, a strength it was trained "
        f"against, leaves it no more robust than the standard one ({robust:.3f} against {standard:.3f})."
    )


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
        found = _rows_of(measure(experiment, method), metrics, study.eps)
        if split_method(method) == ("attacked", method):  # a robust classifier alone
            robust = worst_case(attack_itself(experiment, method))
            found += _rows(ITSELF, "accuracy", robust, study.eps)
        if number == 5:
            found += _sweep(experiment, method)
        rows += [same | {"method": method} | row for row in found]
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.sort_values(
        "steps", key=lambda n: n != study.steps, kind="stable", ignore_index=True
    )


def strength_at_half(experiment: Experiment) -> float:
    """The strength at which Adv's accuracy is nearest to half of its clean accuracy."""
    accuracy = measure(experiment, "Adv").correct().mean(axis=1)
    return experiment.study.attacked_eps[int(np.abs(accuracy[1:] - accuracy[0] / 2).argmin())]


def curve_over_steps(
    experiment: Experiment, method: str, eps: float
) -> Bool[np.ndarray, "steps n"]:
    """Which test images are classified correctly after PGD with each n of the study's `sweep_steps`."""
    steps = experiment.study.sweep_steps
    return np.stack([measure(experiment, method, n, (eps,)).correct()[1] for n in steps])


def _sweep(experiment: Experiment, method: str) -> list[dict[str, Any]]:
    """The second half of Table 5: over n, at the paper's ε and where Adv keeps half its accuracy."""
    study, rows = experiment.study, list[dict[str, Any]]()
    for eps in dict.fromkeys((study.sweep_eps, strength_at_half(experiment))):
        curve = curve_over_steps(experiment, method, eps)
        for steps, values in zip(study.sweep_steps, curve, strict=True):
            (row,) = _rows("pgd", "accuracy", values[None], (eps,))
            rows.append(row | {"steps": steps})
    return rows
