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
from .filtering import distance_from_identity, uncertainty_map
from .recipes import TABLES

COLUMNS = ["table", "study", "classifier", "method", "attack", "steps", "eps", "metric", "value", "n", "seed"]
ENVELOPE = "pgd-envelope"


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
    columns: list[dict[str, Tensor]] = []
    for eps in attacked.eps:
        images = attacked.at(eps).to(next(classifier.parameters()).device)
        clean, denoised = attacked.images.to(images), denoiser(images)
        against = {"preds": denoised, "target": clean, "data_range": 1.0, "reduction": "none"}
        column = {
            "predictions": classifier(denoised).argmax(dim=1),
            "psnr": peak_signal_noise_ratio(**against, dim=(1, 2, 3)),
            "ssim": structural_similarity_index_measure(**against),
            "change": (denoised - images).abs().mean(dim=(1, 2, 3)),
        }
        columns.append(column | _extra(denoiser, images))
    return {name: torch.stack([column[name].cpu() for column in columns]) for name in columns[0]}


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

    def specification(self, method: str) -> dict[str, Any]:
        """What a measurement is a function of."""
        return {
            "kind": "measurement",
            "name": method,
            "version": VERSION,
            "method": self.artefacts.specification(method),
            "attacked": self.artefacts.attacked_specification("test"),
        }

    def _measurement(self, method: str) -> Measurement:
        """A method of the tables on the test images at all strengths.

        Raises
        ------
        ValueError
            If there is no such method.
        """
        denoiser, attacked = self.artefacts.denoiser(method), self.artefacts.attacked("test")
        tensors, _ = self.artefacts.store.tensors(
            self.specification(method), lambda scratch: (measure(self.artefacts.classifier(), denoiser, attacked), {})
        )
        shared = {name: tensors.pop(name) for name in ("predictions", "psnr", "ssim", "change")}
        return Measurement(labels=attacked.labels, extra=tensors, **shared)

    def failures(self, methods: tuple[str, ...]) -> list[str]:
        """Why the trainings of some methods count as failed, one sentence each."""
        return [reason for method in methods if (reason := self.artefacts.failure(method))]

    def table(self, number: int, *chosen: str) -> pd.DataFrame:
        """The rows of one of the paper's tables, 1 to 4, for this study, as tidy data.

        Methods may be chosen from it; what the others need is then not made.
        A method whose training failed has no rows; `failures` says why.

        Raises
        ------
        ValueError
            If there is no such table.
        """
        if number not in TABLES:
            raise ValueError(f"expected one of the tables {', '.join(map(str, TABLES))}, got {number}")
        methods = [method for method in chosen or TABLES[number] if not self.artefacts.failure(method)]
        rows = [row for method in methods for row in self._rows(number, method)]
        return pd.DataFrame(rows, columns=COLUMNS)

    def _rows(self, number: int, method: str) -> list[dict[str, Any]]:
        measurement, study = self.measurement(method), self.study
        same = {"table": number, "study": study.name, "classifier": study.classifier, "method": method}
        same |= {"steps": study.steps, "n": study.test_images, "seed": study.seed}
        if number == 2:
            series = [("psnr", measurement.psnr.numpy()), ("ssim", measurement.ssim.numpy())]
        else:
            series = [("accuracy", measurement.correct())]
        return [
            same | {"attack": attack, "metric": metric, "eps": eps, "value": float(values.mean())}
            for metric, per_image in series
            for attack, curves in (("pgd", per_image), (ENVELOPE, envelope(per_image)))
            for eps, values in zip(study.eps, curves, strict=True)
        ]


@torch.no_grad()
def predicted_classes(classifier: nn.Module, images: Float[Tensor, "b c h w"], classes: tuple[str, ...]) -> list[str]:
    """What the classifier sees in each image, in words."""
    return [classes[number] for number in classifier(images).argmax(dim=1).tolist()]
