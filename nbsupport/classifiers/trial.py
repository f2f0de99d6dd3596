"""The trial of a classifier: refused is what no attack on it would mean anything for."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from scipy.stats import binomtest
from torch import Tensor, nn

from ..data.benchmarks import check_images, check_labels

PROBES = 64  # images that a classifier is tried on
NORMALISATIONS = {
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10's": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    "[-1, 1]": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "0 to 255": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
}
"""What is often done to images in [0, 1] before a network sees them: means and standard deviations."""
SIGNIFICANT, BETTER = (
    0.01,
    0.1,
)  # when another reading counts as what was meant: p-values, gain in accuracy


def check(
    classifier: nn.Module,
    images: Float[Tensor, "n c h w"],
    labels: Int[Tensor, "n"] | None = None,
    classes: int | None = None,
) -> None:
    """Try a classifier on images and refuse it where its logits or gradients are none.

    Parameters
    ----------
    classifier
        From images in [0, 1] to logits.
    images
        Some images in [0, 1], of the size that it is meant for.
    labels
        Their true classes, from 0.
    classes
        The number of logits; None for any.

    Raises
    ------
    ValueError
        If it is in training mode, fails, returns something else than finite logits for every image, changes
        its mind, has another number of classes, or if no gradient reaches the images.
    """
    check_images(images, caller="classifier")
    check_mode(classifier)
    images = images[:PROBES].detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = _run(classifier, images)
    if logits.shape[:1] != images.shape[:1]:
        raise ValueError(
            f"classifier: expected a row of logits for each of {len(images)} images, got {len(logits)}"
        )
    if logits.min() >= 0 and logits.max() <= 1:
        raise ValueError(
            "classifier: all that it returns lies in [0, 1], like probabilities of a sigmoid, or of a softmax of which "
            "a class was cut off, but logits are expected; return what comes before"
        )
    if classes is not None and logits.shape[1] != classes:
        raise ValueError(
            f"classifier: the data have {classes} classes, but it returns {logits.shape[1]} logits"
        )
    if labels is not None:
        check_labels(labels[:PROBES], images=images, classes=logits.shape[1], caller="classifier")
    with torch.no_grad():
        alone = _run(classifier, images[:1])
    if not torch.allclose(
        alone[0], logits.detach()[0], rtol=1e-2, atol=1e-2 * float(logits.detach().abs().max())
    ):
        raise ValueError(
            "classifier: its logits for an image change with the other images of a batch or from call to call; switch "
            "off dropout, noise and statistics of batches"
        )
    _check_gradient(logits, images)


def check_mode(module: nn.Module, caller: str = "classifier") -> None:
    """Refuse training mode, where an image's logits depend on its batch or on chance."""
    if any(part.training for part in module.modules()):
        raise ValueError(f"{caller}: it is in training mode; call .eval() on it first")


def _run(classifier: nn.Module, images: Tensor) -> Tensor:
    try:
        logits: Tensor = classifier(images)
    except ValueError:  # the package's own refusals say enough
        raise
    except Exception as error:  # whatever the network raises
        raise ValueError(
            f"classifier: it fails on images of shape {tuple(images.shape)} ({type(error).__name__}: {error}); images "
            "are RGB, so a network for one channel needs its conversion inside; if it needs another size, say so with "
            "--image-size or Study.named(…, image_size=…)"
        ) from error
    return logits


def _check_gradient(logits: Tensor, images: Tensor) -> None:
    why = "; look for argmax, rounding, detach(), no_grad() or NumPy in its forward pass"
    if not logits.requires_grad:
        raise ValueError(f"classifier: it is not differentiable: its logits have no gradient{why}")
    # of random sums of logits, not of a loss: a loss that is saturated has none either
    sums = (
        logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).to(logits)
    ).sum()
    (gradient,) = torch.autograd.grad(sums, images, allow_unused=True)
    if gradient is None or not gradient.any():
        raise ValueError(
            f"classifier: it is not differentiable: the gradient at the images is zero{why}"
        )
    if not torch.isfinite(gradient).all():
        raise ValueError("classifier: its gradient at the images is not finite (NaN or infinity)")


@torch.no_grad()
def check_meaning(
    logits: Callable[[Tensor], Tensor], images: Float[Tensor, "n c h w"], labels: Int[Tensor, "n"]
) -> None:
    """Refuse what names images significantly better if they are normalised first, or labels counted from 1.

    Parameters
    ----------
    logits
        The network without any check of its input.
    images, labels
        In [0, 1], and their true classes.

    Raises
    ------
    ValueError
        If another reading of the images or labels has an accuracy that is higher by a tenth at least and above
        chance, and it names significantly more images right that the other does not than the other way round, or
        gives the true class of significantly many a higher probability (one-sided sign tests).
    """
    images, labels = images[:PROBES], labels[:PROBES]
    right, likely = {}, {}
    for kind, (mean, std) in NORMALISATIONS.items():
        shape = (1, -1, 1, 1)
        said = logits(
            (images - images.new_tensor(mean).view(shape)) / images.new_tensor(std).view(shape)
        )
        for reading, truth in {kind: labels, "labels - 1": labels - 1}.items():
            if reading == kind or kind == "none":
                right[reading] = said.argmax(dim=1) == truth
                likely[reading] = said.log_softmax(dim=1).gather(1, truth.clamp(min=0)[:, None])
    given = right.pop("none")
    reading, best = max(right.items(), key=lambda item: int(item[1].sum()))
    gain = (best.float() - given.float()).mean()
    more = likely[reading] > likely["none"]
    # which images it names differently says it where its probabilities are all 0 or 1; the probabilities, where it
    # names few images differently
    better = min(_sign_test(best > given, best < given), _sign_test(more, ~more))
    by_chance = binomtest(
        int(best.sum()), len(labels), 1 / said.shape[1], alternative="greater"
    ).pvalue
    if gain < BETTER or max(better, by_chance) >= SIGNIFICANT:
        return
    found = f"classifier: it names {given.float().mean():.0%} of {len(labels)} images, but {best.float().mean():.0%}"
    if reading == "labels - 1":
        raise ValueError(
            f"{found} with labels lowered by 1; labels start at 0: subtract 1 (class folders: rename them)"
        )
    mean, std = NORMALISATIONS[reading]
    raise ValueError(
        f"{found} with {reading} normalisation before it. Normalisation belongs inside: "
        f"classifiers.wrap(module, …, mean={mean}, std={tuple(float(f'{x:.6g}') for x in std)})"
    )


def _sign_test(better: Tensor, worse: Tensor) -> float:
    """How probably so many of these images are better by chance."""
    number = int(better.sum() + worse.sum())
    return binomtest(int(better.sum()), number, alternative="greater").pvalue if number else 1.0
