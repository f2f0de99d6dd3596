"""The whole protocol of the attacker who knows, on each defence of a study: attacked once, kept, judged."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import foolbox
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..attacks import adaptive
from ..attacks.adaptive import AUTOATTACK, chain, withstands
from ..attacks.pgd import prepare
from ..classifiers.models import are_probabilities
from .artifacts import VERSION
from .disk import write_atomically
from .evaluation import Evaluation, envelope
from .fingerprints import made_from
from .methods import parts

KNOWING = ("PGD", "AutoAttack", "Square")
"""Attacks on the whole defence; the first two follow gradients."""
TRANSFERRED = ("oblivious", "transfer")
"""Attacks on the bare standard classifier, and on a second one."""
UNSEEN = ("FGSM", "Gaussian noise", "uniform noise")
"""Not on the whole defence either, and never seen in training."""
TRACE = (10, 40, 100)
"""Numbers of PGD steps at which its progress is looked at, before the study's largest and twice as many."""

REPORTED = ("zero_gradients", "deterministic", "logits", "classes")


@dataclass(frozen=True)
class Outcome:
    """One defence under all attacks; axis 0 of `robust` is ε, from 0 (clean), axis 1 the image.

    Attributes
    ----------
    method
        The defence, named as in the tables.
    eps
        The strengths, from 0.
    robust
        Which images each of `KNOWING`, `TRANSFERRED` and `UNSEEN` leaves correct.
    envelope
        As ``oblivious``, in the worst of all strengths of the study up to ε.
    norms
        Per L2 attack and image the smallest perturbation that deceives the defence.
    steps, trace, margins, trace_eps
        Numbers of PGD steps from 0, which images withstand each, the margins reached, and at which ε.
    zero_gradients
        Share of images without any gradient.
    deterministic
        Whether the defence says the same twice, alone and in a batch.
    logits
        Whether it says logits, not probabilities.
    classes
        How many classes there are.
    """

    method: str
    eps: tuple[float, ...]
    robust: dict[str, Bool[np.ndarray, "strengths n"]]
    envelope: Bool[np.ndarray, "strengths n"]
    norms: dict[str, Float[np.ndarray, "n"]]
    steps: tuple[int, ...]
    trace: Bool[np.ndarray, "steps n"]
    margins: Float[np.ndarray, "steps n"]
    trace_eps: float
    zero_gradients: float
    deterministic: bool
    logits: bool
    classes: int

    def white_box(self) -> Bool[np.ndarray, "strengths n"]:
        """Which images the attacks that follow the defence's gradients leave correct."""
        return self.robust["PGD"] & self.robust["AutoAttack"]

    def worst(self) -> Bool[np.ndarray, "strengths n"]:
        """Which images withstand everything of the protocol at this and every smaller ε."""
        everything = [self.envelope, *(self.robust[name] for name in (*KNOWING, *TRANSFERRED))]
        return envelope(np.logical_and.reduce(everything))


class Protocol:
    """The outcomes of a study's defences, each made once and kept in the store.

    Parameters
    ----------
    evaluation
        Of the study.

    Raises
    ------
    ValueError
        If the study's `adaptive_eps` are not among its strengths, or its `adaptive_trace_eps` not among them.
    """

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation, self.study = evaluation, evaluation.study
        strengths = self.study.adaptive_eps
        if self.study.adaptive_trace_eps not in strengths or not set(strengths) <= set(
            self.study.eps
        ):
            raise ValueError(
                f"Protocol: expected adaptive_eps among the study's strengths {self.study.eps}, and adaptive_trace_eps "
                f"among those, got {strengths} and {self.study.adaptive_trace_eps}"
            )
        self.outcome = cache(self._outcome)

    def specification(self, method: str) -> dict[str, Any]:
        """What an outcome is a function of."""
        study, artefacts = self.study, self.evaluation.artefacts
        return {
            "kind": "adaptive",
            "name": method,
            "version": VERSION,
            "method": artefacts.specification(method),
            "classifier": artefacts.classifier_specification(),
            "second": artefacts.classifier_specification("second"),
            "data": artefacts.images("test").specification,
            "images": study.adaptive_images,
            "eps": list(study.adaptive_eps),
            "trace_eps": study.adaptive_trace_eps,
            "steps": study.adaptive_steps,
            "restarts": study.adaptive_restarts,
            "iterations": study.adaptive_iterations,
            "queries": study.adaptive_queries,
            "seed": study.seed,
        }

    def _outcome(self, method: str) -> Outcome:
        """A defence of the study under the whole protocol.

        Raises
        ------
        ValueError
            If there is no such method.
        """
        artefacts, study = self.evaluation.artefacts, self.study
        networks = [artefacts.classifier(name) for name in (parts(method)[1], "standard", "second")]
        specification = made_from(self.specification(method), artefacts.denoiser(method), *networks)
        tensors, report = artefacts.store.tensors(
            specification, lambda scratch: self._make(method, scratch)
        )
        steps, trace = self._trace(method)
        names = [*KNOWING, *TRANSFERRED, *UNSEEN]
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        whole = envelope(self.evaluation.measurement(method).correct()[:, : study.adaptive_images])
        eps = (0.0, *study.adaptive_eps)
        return Outcome(
            method=method, eps=eps, robust={name: arrays[name] for name in names},
            envelope=whole[[study.eps.index(strength) for strength in eps]],
            norms={name.removeprefix("norm "): arrays[name] for name in sorted(arrays) if name.startswith("norm ")},
            steps=(0, *steps), trace=trace["trace"].numpy(), margins=trace["margins"].numpy(),
            trace_eps=study.adaptive_trace_eps, **{name: report[name] for name in REPORTED},
        )  # fmt: skip

    def _trace(self, method: str) -> tuple[tuple[int, ...], dict[str, Tensor]]:
        """PGD over its number of steps, by itself: also beyond the study's, to see whether more would gain more."""
        artefacts, study, name = self.evaluation.artefacts, self.study, parts(method)[1]
        test, number, largest = (
            artefacts.images("test"),
            study.adaptive_images,
            study.adaptive_steps,
        )
        steps = (*(n for n in TRACE if n < largest), largest, 2 * largest)
        specification = {
            "kind": "trace", "name": method, "version": VERSION, "method": artefacts.specification(method),
            "classifier": artefacts.classifier_specification(name), "data": test.specification, "images": number,
            "eps": study.adaptive_trace_eps, "steps": list(steps),
        }  # fmt: skip
        denoiser, classifier = artefacts.denoiser(method), artefacts.classifier(name)

        def make(scratch: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
            images, labels = (
                test.images[:number].to(artefacts.device),
                test.labels[:number].to(artefacts.device),
            )
            attacked = denoiser, classifier, images, labels, study.adaptive_trace_eps
            trace, margins = adaptive.over_steps(*attacked, steps=steps)
            return {"trace": trace, "margins": margins}, {}

        return steps, artefacts.store.tensors(made_from(specification, denoiser, classifier), make)[
            0
        ]

    def _make(self, method: str, scratch: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        artefacts, study, number = self.evaluation.artefacts, self.study, self.study.adaptive_images
        test = artefacts.images("test")
        images, labels = (
            test.images[:number].to(artefacts.device),
            test.labels[:number].to(artefacts.device),
        )
        denoiser, classifier = artefacts.denoiser(method), artefacts.classifier(parts(method)[1])
        defence = chain(denoiser, classifier)
        clean, jobs = (
            withstands(defence, images, labels),
            dict(self._jobs(denoiser, classifier, images, labels)),
        )
        tensors: dict[str, Tensor] = {}
        with tqdm(
            total=len(jobs) * len(study.adaptive_eps), desc=f"attacking {method}", unit="attack"
        ) as bar:
            for name, attack in jobs.items():
                rows = [clean.cpu()]
                for eps in study.adaptive_eps:
                    rows.append(_kept(scratch / f"{name}-{eps}.json", attack, eps))
                    bar.update()
                tensors[name] = torch.stack(rows)
        norms = adaptive.minimal_norms(
            denoiser, classifier, images, labels, steps=study.adaptive_iterations
        )
        tensors |= {f"norm {name}": values for name, values in norms.items()}
        with torch.no_grad():
            logits, again, alone = (
                defence(images),
                defence(images),
                torch.cat([defence(x[None]) for x in images]),
            )
        return tensors, {
            "zero_gradients": adaptive.zero_gradients(denoiser, classifier, images, labels),
            "deterministic": torch.equal(logits, again)
            and torch.allclose(logits, alone, rtol=1e-3, atol=1e-3),
            "logits": not are_probabilities(logits),
            "classes": logits.shape[1],
        }

    def _jobs(
        self, denoiser: nn.Module, classifier: nn.Module, images: Tensor, labels: Tensor
    ) -> Iterator[tuple[str, Callable[[float], Bool[Tensor, "n"]]]]:
        """Each attack by name: from ε to which images withstand it."""
        artefacts, study = self.evaluation.artefacts, self.study
        defence, whole = chain(denoiser, classifier), (denoiser, classifier, images, labels)
        limits: dict[str, Any] = {
            "iterations": study.adaptive_iterations,
            "queries": study.adaptive_queries,
        }

        def transferred(classifier: str) -> Callable[[float], Tensor]:
            # at all strengths of the study for the one that the tables use anyway
            strengths = None if classifier == "standard" else study.adaptive_eps
            attacked = artefacts.attacked("test", None, strengths, classifier)
            return lambda eps: withstands(defence, attacked.at(eps, len(images)).to(images), labels)

        bare = foolbox.PyTorchModel(prepare(artefacts.classifier(), images[:2]), bounds=(0, 1))
        criterion = foolbox.criteria.Misclassification(labels)

        @torch.enable_grad()
        def fgsm(eps: float) -> Tensor:
            attack = foolbox.attacks.LinfFastGradientAttack(random_start=False)
            return withstands(defence, attack.run(bare, images, criterion, epsilon=eps), labels)

        def noise(draw: Callable[..., Tensor]) -> Callable[[float], Tensor]:
            unit = draw(images.shape, generator=torch.Generator().manual_seed(study.seed)).to(
                images
            )
            return lambda eps: withstands(defence, (images + eps * unit).clamp(0, 1), labels)

        options: dict[str, Any] = {
            "steps": study.adaptive_steps,
            "restarts": study.adaptive_restarts,
        }
        yield "PGD", lambda eps: adaptive.pgd_through(*whole, eps, seed=study.seed, **options)
        yield (
            "AutoAttack",
            lambda eps: adaptive.autoattack(
                *whole, eps, attacks=AUTOATTACK, seed=study.seed, **limits
            ),
        )
        yield (
            "Square",
            lambda eps: adaptive.autoattack(
                *whole, eps, attacks=["square"], seed=study.seed, **limits
            ),
        )
        yield "oblivious", transferred("standard")
        yield "transfer", transferred("second")
        yield "FGSM", fgsm
        yield (
            "Gaussian noise",
            noise(lambda *shape, **how: torch.randn(*shape, **how) / 3**0.5),
        )  # the same rms
        yield "uniform noise", noise(lambda *shape, **how: torch.rand(*shape, **how) * 2 - 1)


def _kept(
    path: Path, attack: Callable[[float], Bool[Tensor, "n"]], eps: float
) -> Bool[Tensor, "n"]:
    """What the attack leaves correct, or what an interrupted run had already found."""
    if not path.exists():
        found = json.dumps(attack(eps).tolist())
        write_atomically(path, lambda temporary: temporary.write_text(found, encoding="utf-8"))
    return torch.tensor(json.loads(path.read_text(encoding="utf-8")), dtype=torch.bool)
