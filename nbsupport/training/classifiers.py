"""Training of classifiers: plain, or adversarial (Madry et al. 2018), FD and FPD among them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attacks.pgd import pgd
from ..classifiers import feature_denoising, feature_pyramid, models
from ..classifiers.feature_pyramid import FeaturePyramidDecoder, attack_target
from ..classifiers.models import Classifier
from ..data.images import Images, Labels
from ..study import Study
from .loop import fit

BATCH_SIZE = 64
FPD_NOISE = 0.01  # the authors'
SETTINGS = "eps", "steps", "rel_step", "epochs"  # of adversarial training
PLAIN, MADRY = {"plain": 1e-2}, {"adversarial": 1e-2}  # phases and their learning rates
# with the authors' 2e-3 in the last phase, and gradients up to 5, rounding decided robustness
FPD = {"restoration": 2e-3, "both losses": 2e-3, "adversarial": 1e-3}


@dataclass(frozen=True)
class Kind:
    """A classifier of a study: its architecture and its training."""

    phases: dict[str, float]
    ending: str = ""  # of the architecture's name, after the study's
    build: Callable[[str, int, int], Classifier] = models.build  # from name, classes, image size
    seed: int = 0  # added to the study's
    clip_norm: float | None = None
    loss: str = "cross-entropy"  # of PGD on this classifier; margin where logits are squashed

    @property
    def split(self) -> str:
        """The study's images that it learns from: ``adversarial`` or ``classifier``."""
        return "adversarial" if "adversarial" in self.phases else "classifier"


# standard is under attack everywhere; second, of another family, shows what carries over
KINDS = {
    "standard": Kind(PLAIN),
    "second": Kind({"plain": 2e-3}, seed=1),
    "Adv": Kind(MADRY),
    "FD": Kind(MADRY, "_fd", feature_denoising.build),
    "FPD": Kind(FPD, "_fpd", feature_pyramid.build, clip_norm=1.0, loss="margin"),
}


def specify_training(name: str, study: Study) -> dict[str, Any]:
    """The adversarial training of a classifier of `KINDS`, for its key; empty if it is plain."""
    if name not in KINDS:
        raise ValueError(f"no classifier named {name!r}; there are: {', '.join(KINDS)}")
    if KINDS[name].split == "classifier":
        return {}
    attack = {key: getattr(study, f"adversarial_{key}") for key in SETTINGS}
    return attack | {"phases": KINDS[name].phases, "clip_norm": KINDS[name].clip_norm}


def train(
    name: str, classifier: Classifier, images: Images, labels: Labels, study: Study, scratch: Path
) -> dict[str, list[float]]:
    """Train a classifier of `KINDS` in place; return the mean loss of each epoch by phase.

    Checkpoints lie in `scratch`, see `fit`. FPD's two passes share their batch norms. With the
    statistics of the first pass alone, the features of the second grow a thousandfold, and the tanh
    leaves them no gradient. So all phases run both passes, and the last one keeps the statistics.
    """
    kind, device, history = KINDS[name], classifier.mean.device, {}
    augment = {"shift": _shift, "crop": _crop}[study.augmentation]
    for number, (phase, learning_rate) in enumerate(kind.phases.items()):
        pyramid = isinstance(classifier, FeaturePyramidDecoder)
        classifier.train(not pyramid or phase != "adversarial").requires_grad_(True)
        if phase == "restoration":
            classifier.get_submodule("head").requires_grad_(False)
        folder = scratch / f"phase{number}"
        folder.mkdir(exist_ok=True)

        def loss(batch: Tensor, generator: torch.Generator, phase: str = phase) -> Tensor:
            truth = labels[batch].to(device)
            clean = augment(images[batch].to(device), generator)
            inputs = _disturb(phase, classifier, clean, truth, generator, study)
            if not isinstance(classifier, FeaturePyramidDecoder):
                return F.cross_entropy(classifier(inputs), truth)
            restored, logits = classifier.outputs(inputs)
            distance = F.mse_loss(restored, clean)
            if phase == "restoration":
                return distance
            return distance + F.cross_entropy(logits.tanh(), truth)

        prefix = "adversarial" if phase == "adversarial" else "classifier"
        history[phase] = fit(
            classifier, loss, examples=len(labels), batch_size=BATCH_SIZE, seed=study.seed,
            epochs=getattr(study, f"{prefix}_epochs"), learning_rate=learning_rate,
            clip_norm=kind.clip_norm, scratch=folder, precision=study.precision,
            label=f"training the {name} classifier: {phase}",
        )  # fmt: skip
    return history


def _disturb(
    phase: str, classifier: Classifier, images: Images, labels: Labels, generator: torch.Generator,
    study: Study,
) -> Images:  # fmt: skip
    """The inputs of a phase. Each attack is on the classifier as it is, from a new random start."""
    if phase == "plain":
        return images
    if phase != "adversarial":
        noise = torch.rand(images.shape, generator=generator).to(images) * 2 - 1
        return (images + FPD_NOISE * noise).clamp(0, 1)
    training, seed = classifier.training, int(torch.randint(2**31, (), generator=generator))
    eps = torch.full((len(images),), study.adversarial_eps)
    if isinstance(classifier, FeaturePyramidDecoder):  # at full strength it does not start to learn
        eps = eps * torch.rand(len(images), generator=generator)
    attack = partial(pgd, steps=study.adversarial_steps, rel_step=study.adversarial_rel_step)
    network = attack_target(classifier.eval())
    attacked = attack(network, images, labels, eps.to(images), seed=seed)
    classifier.train(training)
    return attacked


def _shift(images: Images, generator: torch.Generator) -> Images:
    """Shift the whole batch by up to one pixel; borders repeat."""
    top, left = (int(torch.randint(3, (), generator=generator)) for _ in range(2))
    padded, (height, width) = F.pad(images, (1, 1, 1, 1), mode="replicate"), images.shape[-2:]
    return padded[..., top : top + height, left : left + width]


def _crop(images: Images, generator: torch.Generator) -> Images:
    """Shift each image by up to an eighth of its side, borders repeating; mirror half of them."""
    number, _, height, width = images.shape
    most, device = max(height, width) // 8, images.device
    padded = F.pad(images, (most, most, most, most), mode="replicate")
    top, left = (torch.randint(2 * most + 1, (number, 1, 1), generator=generator) for _ in range(2))
    rows, columns = top + torch.arange(height)[:, None], left + torch.arange(width)
    mirrored = torch.rand(number, 1, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(-1), columns)
    indices = torch.arange(number)[:, None, None].to(device), rows.to(device), columns.to(device)
    return padded.permute(0, 2, 3, 1)[indices].permute(0, 3, 1, 2)
