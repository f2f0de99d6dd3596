"""How the classifiers learn: plainly, or against attacks on themselves (Madry et al. 2018), FD and FPD included."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..attacks.pgd import pgd
from ..classifiers import feature_denoising, feature_pyramid
from ..classifiers import models as classifiers
from ..classifiers.feature_pyramid import FeaturePyramidDecoder
from ..classifiers.models import Classifier
from ..study import Study
from .loop import fit

LEARNING_RATE, BATCH_SIZE = 1e-2, 64
FPD_LEARNING_RATES, FPD_NOISE = (2e-3, 2e-3, 1e-3), 0.01  # of its phases; the noise is the authors'
FPD_CLIP_NORM = 1.0  # with the authors' 5, and 2e-3 in the last phase, rounding decided whether it became robust
Images = Float[Tensor, "b c h w"]
Labels = Int[Tensor, "b"]


@dataclass(frozen=True)
class Kind:
    """A classifier of the study.

    Attributes
    ----------
    ending
        Of its architecture's name, after the study's.
    build
        From name, classes and image size to the untrained classifier.
    adversarial
        Whether it learns against attacks.
    seed
        Added to the study's.
    loss
        What PGD raises when this classifier is attacked itself: the margin where logits are flattened in the end.
    """

    ending: str = ""
    build: Callable[[str, int, int], Classifier] = classifiers.build
    adversarial: bool = True
    seed: int = 0
    loss: str = "cross-entropy"

    @property
    def split(self) -> str:
        """Which of the study's images it learns from."""
        return "adversarial" if self.adversarial else "classifier"


KINDS = {
    "standard": Kind(adversarial=False),
    "second": Kind(adversarial=False, seed=1),
    "Adv": Kind(),
    "FD": Kind("_fd", feature_denoising.build),
    "FPD": Kind("_fpd", feature_pyramid.build, loss="margin"),
}
"""``standard`` is the one under attack everywhere, ``second`` the one that attacks are transferred from."""


class Unsquashed(nn.Module):
    """FPD without the tanh on its logits, which flattens the gradient: what its attacker sees."""

    def __init__(self, classifier: FeaturePyramidDecoder) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Images) -> Float[Tensor, "b classes"]:
        return self.classifier.unsquashed(images)


def target(classifier: nn.Module) -> nn.Module:
    """What an attacker of this classifier differentiates: itself, or FPD before its tanh."""
    if isinstance(classifier, FeaturePyramidDecoder):
        return Unsquashed(classifier).train(classifier.training)
    return classifier


def training(name: str, study: Study) -> dict[str, Any]:
    """How the classifier `name` of `KINDS` is trained, for its artefact.

    Raises
    ------
    ValueError
        If there is none of this name.
    """
    if name not in KINDS:
        raise ValueError(f"no classifier named {name!r}; there are: {', '.join(KINDS)}")
    if not KINDS[name].adversarial:
        return {}
    return {
        "against": "LinfPGD on itself",
        "eps": study.adversarial_eps,
        "steps": study.adversarial_steps,
        "rel_step": study.adversarial_rel_step,
        "epochs": study.adversarial_epochs,
        "phases": [phase for phase, _ in _phases(name)],
    } | (
        {"learning_rates": list(FPD_LEARNING_RATES), "clip_norm": FPD_CLIP_NORM}
        if name == "FPD"
        else {}
    )


def _augmented(images: Images, generator: torch.Generator, how: str) -> Images:
    return {"shift": _shifted, "crop": _cropped}[how](images, generator)


def _cropped(images: Images, generator: torch.Generator) -> Images:
    """Each shifted by up to an eighth of its side, borders repeated, and half of them mirrored."""
    number, _, height, width = images.shape
    most = max(height, width) // 8
    padded = F.pad(images, (most, most, most, most), mode="replicate")
    top, left = (
        torch.randint(2 * most + 1, (number, 1, 1), generator=generator).to(images.device)
        for _ in range(2)
    )
    rows = top + torch.arange(height, device=images.device)[:, None]
    columns = left + torch.arange(width, device=images.device)
    mirrored = (torch.rand(number, 1, 1, generator=generator) < 0.5).to(images.device)
    columns = torch.where(mirrored, columns.flip(-1), columns)
    picked = padded.permute(0, 2, 3, 1)[
        torch.arange(number, device=images.device)[:, None, None], rows, columns
    ]
    return picked.permute(0, 3, 1, 2)


def _shifted(images: Images, generator: torch.Generator) -> Images:
    """Shifted by up to one pixel, all alike, borders repeated."""
    shift_y, shift_x = (int(torch.randint(3, (), generator=generator)) for _ in range(2))
    padded, (height, width) = F.pad(images, (1, 1, 1, 1), mode="replicate"), images.shape[-2:]
    return padded[..., shift_y : shift_y + height, shift_x : shift_x + width]


Loss = Callable[[Classifier, Images, Labels, torch.Generator, Study], Tensor]


def _plain(
    classifier: Classifier, images: Images, labels: Labels, generator: torch.Generator, study: Study
) -> Tensor:
    return F.cross_entropy(classifier(images), labels)


def _attacked(
    classifier: Classifier, images: Images, labels: Labels, generator: torch.Generator, study: Study
) -> Images:
    """PGD on the classifier as it is now, in evaluation mode, from another start each time."""
    modes = [(module, module.training) for module in classifier.modules()]
    seed = int(torch.randint(2**31, (), generator=generator))
    options: dict[str, Any] = {
        "steps": study.adversarial_steps,
        "rel_step": study.adversarial_rel_step,
        "seed": seed,
    }
    eps = torch.full((len(images),), study.adversarial_eps)
    if isinstance(
        classifier, FeaturePyramidDecoder
    ):  # at the full strength from the start it does not begin to learn
        eps = eps * torch.rand(len(images), generator=generator)
    attacked = pgd(target(classifier.eval()), images, labels, eps.to(images), **options)
    for module, mode in modes:
        module.training = mode
    return attacked


def _madry(
    classifier: Classifier, images: Images, labels: Labels, generator: torch.Generator, study: Study
) -> Tensor:
    return F.cross_entropy(
        classifier(_attacked(classifier, images, labels, generator, study)), labels
    )


def _fpd_loss(
    classifier: Classifier, images: Images, clean: Images, labels: Labels | None
) -> Tensor:
    assert isinstance(classifier, FeaturePyramidDecoder)
    if labels is None:
        return F.mse_loss(classifier.restoration(images), clean)
    restored, logits = classifier.outputs(images)
    return F.mse_loss(restored, clean) + F.cross_entropy(logits.tanh(), labels)


def _noisy(images: Images, generator: torch.Generator) -> Images:
    noise = torch.rand(images.shape, generator=generator).to(images) * 2 - 1
    return (images + FPD_NOISE * noise).clamp(0, 1)


def _restoring(
    classifier: Classifier, images: Images, labels: Labels, generator: torch.Generator, _: Study
) -> Tensor:
    return _fpd_loss(classifier, _noisy(images, generator), images, None)


def _joint(
    classifier: Classifier, images: Images, labels: Labels, generator: torch.Generator, _: Study
) -> Tensor:
    return _fpd_loss(classifier, _noisy(images, generator), images, labels)


def _robust(
    classifier: Classifier, images: Images, labels: Labels, generator: torch.Generator, study: Study
) -> Tensor:
    return _fpd_loss(
        classifier, _attacked(classifier, images, labels, generator, study), images, labels
    )


def _phases(name: str) -> Iterator[tuple[str, Loss]]:
    if name == "FPD":
        yield from {
            "restoration": _restoring,
            "restoration and labels": _joint,
            "adversarial": _robust,
        }.items()
    else:
        yield ("adversarial", _madry) if KINDS[name].adversarial else ("plain", _plain)


def train(
    name: str, classifier: Classifier, images: Images, labels: Labels, study: Study, scratch: Path
) -> dict[str, list[float]]:
    """Train a classifier of `KINDS` in place, phase by phase; go on from `scratch` after an interruption.

    FPD's batch norms keep the statistics of its first phase, which runs one pass only: both passes
    share them, and a mixture of the two would fit neither.

    Returns
    -------
    The mean loss of each epoch, for each phase.
    """
    history, device = {}, classifier.mean.device
    for number, (phase, loss) in enumerate(_phases(name)):
        adversarial = loss in (_madry, _robust)
        classifier.train(loss not in (_joint, _robust)).requires_grad_(loss is not _restoring)
        if loss is _restoring and isinstance(classifier, FeaturePyramidDecoder):
            for parameter in classifier.restoration_parameters():
                parameter.requires_grad_(True)
        place = scratch / f"phase{number}"
        place.mkdir(exist_ok=True)

        def batch_loss(batch: Tensor, generator: torch.Generator, loss: Loss = loss) -> Tensor:
            part, truth = images[batch].to(device), labels[batch].to(device)
            return loss(
                classifier, _augmented(part, generator, study.augmentation), truth, generator, study
            )

        history[phase] = fit(
            classifier, batch_loss, examples=len(labels),
            epochs=study.adversarial_epochs if adversarial else study.classifier_epochs, batch_size=BATCH_SIZE,
            learning_rate=FPD_LEARNING_RATES[number] if name == "FPD" else LEARNING_RATE, seed=study.seed,
            clip_norm=FPD_CLIP_NORM if name == "FPD" else None, label=f"training the {name} classifier: {phase}",
            precision=study.precision, scratch=place,
        )  # fmt: skip
    return history
