"""What is measured: per image first, then one tidy row per number."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from .artefacts import VERSION, Artefacts
from .attacks import AttackedSet
from .classifiers import Classifier
from .denoisers import KernelDenoiser, PAFilter
from .devices import halving
from .filtering import distance_from_identity, uncertainty_map
from .fingerprints import made_from
from .recipes import TABLES, parts

COLUMNS = ["table", "study", "classifier", "method", "attack", "steps", "eps", "metric", "value", "n", "seed"]
ENVELOPE, OWN = "pgd-envelope", "pgd-on-itself"
AT_ONCE = 50  # images; many at once leave the processor's caches, and SSIM alone takes eight times longer
Images = Float[Tensor, "b c h w"]


@dataclass(frozen=True)
class Measurement:
    """One method on all attacked test images; axis 0 is ε, axis 1 the image.

    Attributes
    ----------
    predictions
        The classifier's class for the denoised image.
    labels
        The true classes.
    psnr, ssim
        Of the denoised image against the clean one, data range 1; infinite and 1 where they are equal.
    change
        Mean distance of the denoised from the attacked image.
    extra
        Per-image means of what else the method has: ``uncertainty`` (eq. 9) and ``kernel_distance``
        for filtering, ``weight`` for PA-Filt.
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


def envelope(per_image: Shaped[np.ndarray, "strengths n"]) -> Shaped[np.ndarray, "strengths n"]:
    """For each image and ε the worst value at this and all smaller ε.

    L∞ balls are nested, so an attacker of strength ε may use any weaker attack as well: robust
    accuracy at ε is the mean of the envelope, and a curve above it exploits a clumsy attack.
    """
    return np.minimum.accumulate(per_image, axis=0)


@torch.no_grad()
def measure(classifier: Classifier, denoiser: nn.Module, attacked: AttackedSet) -> dict[str, Tensor]:
    """Everything that `Measurement` holds but the labels, for one denoiser before one classifier."""

    def run(number: int) -> dict[str, Tensor]:
        columns = []
        for eps in attacked.eps:
            pairs = zip(attacked.at(eps).split(number), attacked.images.split(number), strict=True)
            found = [_measured(classifier, denoiser, images, clean) for images, clean in pairs]
            columns.append({name: torch.cat([part[name].cpu() for part in found]) for name in found[0]})
        return {name: torch.stack([column[name] for column in columns]) for name in columns[0]}

    return halving(run, AT_ONCE)


def _measured(classifier: Classifier, denoiser: nn.Module, images: Tensor, clean: Tensor) -> dict[str, Tensor]:
    images, clean = images.to(classifier.mean.device), clean.to(classifier.mean.device)
    denoised = denoiser(images)
    psnr, ssim = quality(denoised, clean)
    said, change = classifier(denoised).argmax(dim=1), (denoised - images).abs().mean(dim=(1, 2, 3))
    return {"predictions": said, "psnr": psnr, "ssim": ssim, "change": change} | _extra(denoiser, images)


def quality(images: Images, clean: Images) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
    """PSNR in dB and SSIM of images in [0, 1] against the clean ones, each by itself."""
    against: Any = {"preds": images, "target": clean, "data_range": 1.0, "reduction": "none"}
    ssim: Any = structural_similarity_index_measure(**against)
    return peak_signal_noise_ratio(**against, dim=(1, 2, 3)), ssim.view(len(images))


def _extra(denoiser: nn.Module, images: Tensor) -> dict[str, Tensor]:
    if isinstance(denoiser, PAFilter):
        return {"weight": denoiser.parts(images).weight.mean(dim=(1, 2, 3))}
    if isinstance(denoiser, KernelDenoiser):
        kernels = denoiser.kernels(images)
        return {
            "uncertainty": uncertainty_map(kernels).mean(dim=(1, 2, 3)),
            "kernel_distance": distance_from_identity(kernels).mean(dim=(1, 2, 3)),
        }
    return {}


class Evaluation:
    """The measurements of a study, each made once and kept in the store.

    Parameters
    ----------
    artefacts
        The study's artefacts.
    """

    def __init__(self, artefacts: Artefacts) -> None:
        self.artefacts, self.study = artefacts, artefacts.study
        self.measurement = cache(self._measurement)

    def specification(
        self, method: str, steps: int | None = None, eps: tuple[float, ...] | None = None, target: str = "standard"
    ) -> dict[str, Any]:
        """What a measurement is a function of."""
        return {
            "kind": "measurement",
            "name": method,
            "version": VERSION,
            "method": self.artefacts.specification(method),
            "attacked": self.artefacts.attacked_specification("test", steps, eps, target),
        }

    def _measurement(
        self, method: str, steps: int | None = None, eps: tuple[float, ...] | None = None, target: str = "standard"
    ) -> Measurement:
        """A method of the tables on the attacked test images.

        Parameters
        ----------
        method
            Its name in the tables.
        steps, eps, target
            PGD's n, the strengths above 0 and the classifier that was attacked: by default the study's
            and ``standard``; see `nbsupport.artefacts.Artefacts.attacked`.

        Raises
        ------
        ValueError
            If there is no such method.
        """
        artefacts, (_, name) = self.artefacts, parts(method)
        denoiser, classifier = artefacts.denoiser(method), artefacts.classifier(name)
        attacked = artefacts.attacked("test", steps, eps, target)
        specification = self.specification(method, steps, eps, target)
        tensors, _ = artefacts.store.tensors(
            made_from(specification, denoiser, classifier, artefacts.classifier(target)),
            lambda scratch: (measure(classifier, denoiser, attacked), {}),
        )
        shared = {name: tensors.pop(name) for name in ("predictions", "psnr", "ssim", "change")}
        return Measurement(labels=attacked.labels, extra=tensors, **shared)

    def own(self, classifier: str) -> Bool[np.ndarray, "strengths n"]:
        """Which test images a classifier still recognises, without denoiser, when it is itself the one attacked."""
        method = "attacked" if classifier == "standard" else classifier
        return self.measurement(method, target=classifier).correct()

    def failure(self, method: str) -> str | None:
        """Why a method is no row of a table, or None: a failed training, or a robust classifier that is not."""
        if failure := self.artefacts.failure(method):
            return failure
        _, classifier = parts(method)
        if classifier == "standard":
            return None
        robust, standard = (envelope(self.own(name))[1:].mean() for name in (classifier, "standard"))
        if robust > standard:
            return None
        return (
            f"{classifier}: training failed. This classifier is no more robust than the standard one when both are "
            f"attacked themselves (mean accuracy over ε {robust:.3f} against {standard:.3f}), so it has no rows."
        )

    def failures(self, methods: tuple[str, ...]) -> list[str]:
        """Why some methods are no rows, one sentence for each reason."""
        return list(dict.fromkeys(reason for method in methods if (reason := self.failure(method))))

    def table(self, number: int, *chosen: str) -> pd.DataFrame:
        """The rows of one of the paper's tables, 1 to 7, for this study, as tidy data.

        Methods may be chosen from it; what the others need is then not made.
        A method whose training failed has no rows; `failures` says why.

        Raises
        ------
        ValueError
            If there is no such table.
        """
        if number not in TABLES:
            raise ValueError(f"expected one of the tables {', '.join(map(str, TABLES))}, got {number}")
        methods = [method for method in chosen or TABLES[number] if not self.failure(method)]
        rows = [row for method in methods for row in self._rows(number, method)]
        if number == 5:
            rows += [row for method in methods for row in self._sweep(method)]
        return pd.DataFrame(rows, columns=COLUMNS)

    def _same(self, number: int, method: str) -> dict[str, Any]:
        study = self.study
        same = {"table": number, "study": study.name, "classifier": study.classifier_name, "method": method}
        return same | {"steps": study.steps, "n": study.test_images, "seed": study.seed}

    def _rows(self, number: int, method: str) -> list[dict[str, Any]]:
        measurement, study = self.measurement(method), self.study
        if number == 2:
            series = [("psnr", measurement.psnr.numpy()), ("ssim", measurement.ssim.numpy())]
        else:
            series = [("accuracy", measurement.correct())]
        rows = [
            (attack, metric, values)
            for metric, per_image in series
            for attack, values in (("pgd", per_image), (ENVELOPE, envelope(per_image)))
        ]
        if parts(method) == ("attacked", method):  # a robust classifier, by itself
            rows.append((OWN, "accuracy", envelope(self.own(method))))
        return [
            self._same(number, method) | {"attack": attack, "metric": metric, "eps": eps, "value": float(values.mean())}
            for attack, metric, curves in rows
            for eps, values in zip(study.eps, curves, strict=True)
        ]

    @property
    def half_eps(self) -> float:
        """The strength at which Adv's accuracy is nearest to half of its clean one."""
        accuracy = self.measurement("Adv").correct().mean(axis=1)
        return self.study.attacked_eps[int(np.abs(accuracy[1:] - accuracy[0] / 2).argmin())]

    def steps_curve(self, method: str, eps: float) -> Bool[np.ndarray, "steps n"]:
        """Which test images are classified correctly after PGD of each n of the study's `sweep_steps`."""
        measured = [self.measurement(method, steps, (eps,)) for steps in self.study.sweep_steps]
        return np.stack([measurement.correct()[1] for measurement in measured])

    def _sweep(self, method: str) -> list[dict[str, Any]]:
        """The second half of Table 5: over n, at the paper's ε and where Adv is half as good as on clean images."""
        same = self._same(5, method) | {"attack": "pgd", "metric": "accuracy"}
        return [
            same | {"steps": steps, "eps": eps, "value": float(values.mean())}
            for eps in dict.fromkeys((self.study.sweep_eps, self.half_eps))
            for steps, values in zip(self.study.sweep_steps, self.steps_curve(method, eps), strict=True)
        ]
