"""What is measured of a study's methods: per image first, then one tidy row per number."""

from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Shaped

from .artifacts import VERSION, Artefacts
from .cluster import share_out
from .fingerprints import made_from
from .measurement import Measurement, measure
from .methods import TABLES, parts

COLUMNS = [
    "table",
    "study",
    "classifier",
    "method",
    "attack",
    "steps",
    "eps",
    "metric",
    "value",
    "n",
    "seed",
]
ENVELOPE, OWN = "pgd-envelope", "pgd-on-itself"


def envelope(per_image: Shaped[np.ndarray, "strengths n"]) -> Shaped[np.ndarray, "strengths n"]:
    """For each image and ε the worst value at this and all smaller ε.

    L∞ balls are nested, so an attacker of strength ε may use any weaker attack as well: robust
    accuracy at ε is the mean of the envelope, and a curve above it exploits a clumsy attack.
    """
    return np.minimum.accumulate(per_image, axis=0)


def _split(target: str) -> str:
    """Where images lie on which a classifier is attacked."""
    return "test" if target == "standard" else "own"


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
        self,
        method: str,
        steps: int | None = None,
        eps: tuple[float, ...] | None = None,
        target: str = "standard",
    ) -> dict[str, Any]:
        """What a measurement is a function of."""
        return {
            "kind": "measurement",
            "name": method,
            "version": VERSION,
            "method": self.artefacts.specification(method),
            "attacked": self.artefacts.attacked_specification(_split(target), steps, eps, target),
        }

    def _measurement(
        self,
        method: str,
        steps: int | None = None,
        eps: tuple[float, ...] | None = None,
        target: str = "standard",
    ) -> Measurement:
        """A method of the tables on the attacked test images.

        Parameters
        ----------
        method
            Its name in the tables.
        steps, eps, target
            PGD's n, the strengths above 0 and the classifier that was attacked: by default the study's
            and ``standard``; see `nbsupport.experiments.artifacts.Artefacts.attacked`.

        Raises
        ------
        ValueError
            If there is no such method.
        """
        artefacts, (_, name) = self.artefacts, parts(method)
        denoiser, classifier = artefacts.denoiser(method), artefacts.classifier(name)
        attacked = artefacts.attacked(_split(target), steps, eps, target)
        specification = self.specification(method, steps, eps, target)
        tensors, _ = artefacts.store.tensors(
            made_from(specification, denoiser, classifier, artefacts.classifier(target)),
            lambda scratch: (measure(classifier, denoiser, attacked), {}),
        )
        shared = {name: tensors.pop(name) for name in ("predictions", "psnr", "ssim", "change")}
        return Measurement(labels=attacked.labels, extra=tensors, **shared)

    def share(self, methods: tuple[str, ...]) -> None:
        """Make what some methods need and measure them, shared out among all processes that were started together."""
        share_out(dict.fromkeys(parts(method)[1] for method in methods), self.artefacts.classifier)
        self.artefacts.train(methods)
        self.artefacts.attacked("test")
        share_out(methods, self.measurement)

    def own(self, classifier: str) -> Bool[np.ndarray, "strengths n"]:
        """Which images of ``own`` a classifier still recognises, without denoiser, when itself is the one attacked."""
        if classifier == "standard":
            return self.measurement("attacked").correct()[:, : self.study.own_images]
        return self.measurement(classifier, target=classifier).correct()

    def failure(self, method: str) -> str | None:
        """Why a method is no row of a table, or None: a failed training, or a robust classifier that is not."""
        return self.artefacts.failure(method) or self.defect(method)

    def defect(self, method: str) -> str | None:
        """Why the classifier of a method is not robust, although it should be, or None."""
        _, classifier = parts(method)
        if classifier == "standard":
            return None
        weaker = [eps for eps in self.study.attacked_eps if eps <= self.study.adversarial_eps]
        learned = max(weaker, default=self.study.attacked_eps[0])
        row = self.study.eps.index(learned)
        robust, standard = (
            envelope(self.own(name))[row].mean() for name in (classifier, "standard")
        )
        if robust > standard:
            return None
        return (
            f"{classifier}: training failed. This classifier is no more robust than the standard one when both are "
            f"attacked themselves at a strength against which it learned (accuracy {robust:.3f} against "
            f"{standard:.3f} at ε = {learned:g}), so it has no rows."
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
            raise ValueError(
                f"expected one of the tables {', '.join(map(str, TABLES))}, got {number}"
            )
        methods = [method for method in chosen or TABLES[number] if not self.failure(method)]
        rows = [row for method in methods for row in self._rows(number, method)]
        if number == 5:
            rows += [row for method in methods for row in self._sweep(method)]
        return pd.DataFrame(rows, columns=COLUMNS)

    def _same(self, number: int, method: str) -> dict[str, Any]:
        study = self.study
        same = {
            "table": number,
            "study": study.name,
            "classifier": study.classifier_name,
            "method": method,
        }
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
            self._same(number, method)
            | {
                "attack": attack,
                "metric": metric,
                "eps": eps,
                "value": float(values.mean()),
                "n": len(values),
            }
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
            for steps, values in zip(
                self.study.sweep_steps, self.steps_curve(method, eps), strict=True
            )
        ]
