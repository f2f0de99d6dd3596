"""PGD(n, ε), the paper's attack, on Foolbox; all strengths at once."""

import copy
import hashlib
import struct
from dataclasses import dataclass
from typing import Any

import eagerpy as ep
import foolbox
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..classifiers.models import Classifier, check_logits
from ..data.benchmarks import check_images, check_labels
from ..study import REL_STEP, STEPS
from ..training.devices import halving
from .folding import fold_batch_norm

CHUNK = {
    "cpu": 64,
    "cuda": 1024,
}  # images per pass: what fits a processor's cache, what fills a GPU


def margin(logits: Float[Tensor, "b classes"], labels: Int[Tensor, "b"]) -> Float[Tensor, "b"]:
    """The largest logit of a wrong class minus that of the true one: above 0 where the attack succeeded."""
    true = F.one_hot(labels, logits.shape[1]).bool()
    return logits.masked_fill(true, -torch.inf).amax(dim=1) - logits[true]


class _PGD(foolbox.attacks.LinfPGD):
    """Foolbox's own PGD, started from given points instead of its global random state."""

    def __init__(self, starts: Tensor, loss: str, **options: float | int) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.starts, self.loss = starts, loss

    def get_loss_fn(self, model: foolbox.Model, labels: ep.Tensor) -> Any:
        if self.loss == "cross-entropy":
            return super().get_loss_fn(model, labels)
        return lambda inputs: ep.astensor(margin(model(inputs).raw, labels.raw).sum())

    def get_random_start(self, x0: ep.Tensor, epsilon: Any) -> ep.Tensor:
        return ep.astensor(self.starts)


def random_starts(
    images: Float[Tensor, "b c h w"], eps: Float[Tensor, "b"], seed: int = 0
) -> Float[Tensor, "b c h w"]:
    """Uniform points of each image's L∞ ball, clipped to [0, 1].

    Each is a function of (seed, image, ε) alone, so neither batches nor processes change it.
    """
    starts = []
    for image, strength in zip(images.cpu(), eps.tolist(), strict=True):
        # float32 bytes, so that an image has one start whatever it was stored as
        content = image.float().contiguous().numpy().tobytes() + struct.pack("<fq", strength, seed)
        number = int.from_bytes(
            hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True
        )
        noise = torch.rand(image.shape, generator=torch.Generator().manual_seed(number))
        starts.append((image + strength * (2 * noise - 1)).clamp(0, 1))
    return torch.stack(starts).to(images)


def per_pass(device: torch.device) -> int:
    """How many images a device attacks in one pass, where its memory has room for them."""
    return CHUNK.get(device.type, CHUNK["cuda"])


@torch.no_grad()
def prepare(classifier: nn.Module, example: Float[Tensor, "b c h w"]) -> nn.Module:
    """A copy made for attacking: frozen, so that no gradient of the weights is computed, laid out
    channels last, and with batch norm folded into the convolutions where that leaves the logits of
    `example` as they are (up to rounding).

    Raises
    ------
    ValueError
        If the classifier is in training mode, where an image's logits depend on its batch.
    """
    if any(module.training for module in classifier.modules()):
        raise ValueError("attack: the classifier is in training mode; call classifier.eval() first")
    frozen, folded = (copy.deepcopy(classifier).requires_grad_(False) for _ in range(2))
    for part in (part for made in (frozen, folded) for part in made.modules()):
        if isinstance(part, Classifier) and type(part).forward is Classifier.forward:
            part.forward = part.unchecked  # type: ignore[method-assign]
    fold_batch_norm(folded, example)
    same = torch.allclose(folded(example), frozen(example), rtol=1e-3, atol=1e-4)
    return (folded if same else frozen).to(memory_format=torch.channels_last)


@torch.enable_grad()
def pgd(
    classifier: nn.Module,
    images: Float[Tensor, "b c h w"],
    labels: Int[Tensor, "b"],
    eps: float | Float[Tensor, "b"],
    *,
    steps: int = STEPS,
    rel_step: float = REL_STEP,
    seed: int = 0,
    loss: str = "cross-entropy",
) -> Float[Tensor, "b c h w"]:
    """Attack images with PGD(n, ε) under L∞, from a random start, without early stopping (eq. 2).

    The attacker knows the classifier and the true labels, and nothing of any denoiser.

    Parameters
    ----------
    classifier
        From images in [0, 1] to logits, in evaluation mode. It is left as it is.
    images
        Clean images in [0, 1].
    labels
        The true classes.
    eps
        The radius, for images in [0, 1]: one for all, or one per image; 0 leaves an image as it is.
    steps
        n.
    rel_step
        The size of a step relative to ε.
    seed
        Of the random starts.
    loss
        What is raised: ``cross-entropy``, the paper's, or ``margin`` (`margin`), whose gradient
        stays where the classifier is confident.

    Returns
    -------
    The attacked images, in [0, 1] and within ε of the clean ones. An image's result depends on
    nothing but that image, its label, its ε and the seed (up to float rounding).

    Raises
    ------
    ValueError
        If images, labels, ε or steps are out of range, or the classifier returns probabilities or
        is in training mode.
    """
    check_images(images, caller="pgd", channels=None)
    images = images.detach()
    strengths = torch.as_tensor(eps, dtype=images.dtype, device=images.device)
    if strengths.ndim and strengths.shape != labels.shape:
        raise ValueError(
            f"pgd: expected one ε, or one for each of the {len(images)} images, got shape {tuple(strengths.shape)}"
        )
    strengths = strengths.expand(len(images))
    if not (torch.isfinite(strengths).all() and strengths.min() >= 0 and strengths.max() <= 1):
        raise ValueError(
            f"pgd: expected ε from 0 to 1, for images in [0, 1], got {eps}; 8/255 is written 8 / 255"
        )
    if steps < 1 or rel_step <= 0:
        raise ValueError(
            f"pgd: expected at least one step of positive size, got steps={steps}, rel_step={rel_step}"
        )
    if loss not in ("cross-entropy", "margin"):
        raise ValueError(f"pgd: expected the loss 'cross-entropy' or 'margin', got {loss!r}")
    prepared = prepare(classifier, images[:2])
    with torch.no_grad():
        logits = prepared(images[:1])
    check_logits(logits)
    check_labels(labels, images=images, classes=logits.shape[1], caller="pgd")
    labels = labels.long()
    model = foolbox.PyTorchModel(prepared, bounds=(0, 1), device=images.device)
    options = dict(rel_stepsize=rel_step, steps=steps, random_start=True)

    def run(number: int) -> Tensor:
        attacked = []
        for part in torch.arange(len(images)).split(number):
            clean, radius = (
                images[part].contiguous(memory_format=torch.channels_last),
                strengths[part],
            )
            attack = _PGD(random_starts(clean, radius, seed), loss, **options)
            criterion = foolbox.criteria.Misclassification(labels[part])
            radii: Any = radius.view(
                -1, 1, 1, 1
            )  # Foolbox's own arithmetic takes one radius per image
            with torch.autocast(
                images.device.type, enabled=False
            ):  # within a training in bfloat16, too
                attacked.append(attack.run(model, clean, criterion, epsilon=radii).contiguous())
        return torch.cat(attacked)

    return halving(run, per_pass(images.device))


@dataclass(frozen=True)
class AttackedSet:
    """Clean images and their attacked versions, kept as δ/ε.

    δ/ε lies in [−1, 1], so float16 keeps each perturbation to 1/2048 of its ε, however small ε is;
    8 bits per pixel, or half-precision pixels, would erase the small ones.

    Attributes
    ----------
    images, labels
        The clean images in [0, 1] and their true classes.
    ratios
        δ/ε in float16, one row per strength above 0.
    eps
        The strengths, from 0; ``eps[i + 1]`` belongs to ``ratios[i]``.
    """

    images: Float[Tensor, "n c h w"]
    labels: Int[Tensor, "n"]
    ratios: Float[Tensor, "strengths n c h w"]
    eps: tuple[float, ...]

    def at(self, eps: float, number: int | None = None) -> Float[Tensor, "n c h w"]:
        """The first `number` images (all where None) as attacked with `eps`; the clean ones for 0.

        Raises
        ------
        ValueError
            If the set holds no images attacked with `eps`.
        """
        if eps not in self.eps:
            raise ValueError(
                f"no images were attacked with ε = {eps}; there are {', '.join(map(str, self.eps))}"
            )
        numbers = torch.arange(len(self.images))[:number]
        return self.pick(torch.full_like(numbers, self.eps.index(eps)), numbers)

    def pick(self, rows: Int[Tensor, "b"], numbers: Int[Tensor, "b"]) -> Float[Tensor, "b c h w"]:
        """Image ``numbers[i]`` as attacked with the strength ``eps[rows[i]]``, for every i."""
        strengths = torch.tensor(self.eps)[rows].view(-1, 1, 1, 1).to(self.images)
        deltas = strengths * self.ratios[(rows - 1).clamp(min=0), numbers].to(self.images)
        return (self.images[numbers] + deltas).clamp(0, 1)


def ratios(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, "n"],
    eps: tuple[float, ...],
    *,
    steps: int = STEPS,
    seed: int = 0,
    loss: str = "cross-entropy",
) -> Float[Tensor, "strengths n c h w"]:
    """δ/ε in float16 of `pgd` at every strength of `eps` (all above 0), in one call."""
    repeated = images.repeat(len(eps), 1, 1, 1)
    strengths = torch.tensor(eps).repeat_interleave(len(images)).to(images)
    attacked = pgd(
        classifier, repeated, labels.repeat(len(eps)), strengths, steps=steps, seed=seed, loss=loss
    )
    deltas = (attacked - repeated) / strengths.view(-1, 1, 1, 1)
    return deltas.clamp(-1, 1).half().view(len(eps), *images.shape)
