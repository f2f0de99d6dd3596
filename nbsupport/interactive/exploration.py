"""What the explorer shows, computed before it is shown: images, attacks, denoised images, maps, kernels, words."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..attacks.pgd import AttackedSet, ratios
from ..classifiers.models import Classifier, wrap
from ..data.benchmarks import check_images, check_labels
from ..denoisers.filtering import uncertainty_map
from ..denoisers.models import KernelDenoiser, PAFilter
from ..experiments.measurement import quality
from ..study import EPS, STEPS

ATTACKED = "attacked"
TOP = 5
MOST_BYTES = 4 * 2**30


class Frame(NamedTuple):
    """One image under one attack behind one denoiser; all that its view needs, on the CPU.

    Attributes
    ----------
    denoised
        Ĩ in [0, 1].
    maps
        W and the uncertainty maps (eq. 9), where the denoiser has them.
    kernels
        Of each filter of the denoiser: 3·K·K taps per pixel, in half precision.
    probabilities
        The classifier's, of Ĩ.
    psnr, ssim
        Of Ĩ against the clean image.
    """

    denoised: Float[Tensor, "3 h w"]
    maps: dict[str, Float[Tensor, "h w"]]
    kernels: dict[str, Float[Tensor, "taps h w"]]
    probabilities: Float[Tensor, "classes"]
    psnr: float
    ssim: float


class Exploration:
    """Every image at every strength behind every denoiser.

    An interruption keeps the images that are done.

    Parameters
    ----------
    classifier
        From images in [0, 1] to logits, in evaluation mode; see `nbsupport.classifiers.models.wrap`.
    denoisers
        Denoisers by name, in evaluation mode; ``attacked``, no denoiser, is always there.
    images, labels
        RGB images in [0, 1] and their classes from 0.
    classes
        The names of the classes; numbers stand for those that are missing.
    eps
        Attack strengths, increasing from 0.
    steps, seed
        Of PGD.

    Raises
    ------
    TypeError, ValueError
        If the images, labels or the classifier are refused, the strengths do not rise from 0, or what is to
        be kept exceeds 4 GiB.
    """

    def __init__(
        self,
        classifier: nn.Module,
        denoisers: Mapping[str, nn.Module],
        images: Float[Tensor, "n 3 h w"],
        labels: Int[Tensor, "n"],
        classes: Sequence[str] = (),
        *,
        eps: Sequence[float] = EPS,
        steps: int = STEPS,
        seed: int = 0,
    ) -> None:
        check_images(images, caller="explore")
        check_labels(labels, images=images, classes=None, caller="explore")
        if not (len(eps) > 1 and eps[0] == 0 and list(eps) == sorted(set(eps)) and eps[-1] <= 1):
            raise ValueError(
                f"explore: expected at least two strengths that rise from 0 and stay within 1, got {eps}"
            )
        self.classifier = (
            classifier if isinstance(classifier, Classifier) else wrap(classifier, images, labels)
        )
        self.denoisers = {ATTACKED: nn.Identity()} | dict(denoisers)
        self.classes, self.eps, self.steps, self.seed = tuple(classes), tuple(eps), steps, seed
        self._refuse_too_much(images)
        rows: list[Tensor] = []
        self.frames: dict[tuple[int, int, str], Frame] = {}
        try:
            for number in tqdm(
                range(len(images)), desc="attacking and denoising", unit="image", leave=False
            ):
                row = self._attack(
                    images[number : number + 1], labels[number : number + 1], self.eps[1:]
                )
                frames = self._frames(images[number], row, number)
                rows.append(row)
                self.frames |= frames
        except KeyboardInterrupt:
            if not rows:
                raise
        done = len(rows)
        self.attacked = AttackedSet(images[:done], labels[:done], torch.cat(rows, dim=1), self.eps)

    def attack_again(self, image: int, strength: int) -> None:
        """Attack one image at one strength from another random start, and denoise it anew."""
        if strength == 0:
            return
        self.seed += 1
        part = self.attacked
        row = self._attack(
            part.images[image : image + 1], part.labels[image : image + 1], (self.eps[strength],)
        )
        part.ratios[strength - 1, image] = row[0, 0]
        whole = part.ratios[:, image : image + 1]
        self.frames |= self._frames(part.images[image], whole, image, strength)

    def accuracy(self) -> dict[str, list[float]]:
        """For each method the share of these images that the classifier names correctly, over ε."""
        labels = self.attacked.labels.tolist()

        def right(strength: int, method: str) -> float:
            said = (
                int(self.frames[number, strength, method].probabilities.argmax())
                for number in range(len(labels))
            )
            return sum(word == label for word, label in zip(said, labels, strict=True)) / len(
                labels
            )

        return {
            method: [right(strength, method) for strength in range(len(self.eps))]
            for method in self.denoisers
        }

    def top(self, image: int, strength: int, method: str) -> list[tuple[str, float]]:
        """The five most probable classes with their probabilities."""
        values, numbers = self.frames[image, strength, method].probabilities.sort(descending=True)
        pairs = zip(numbers.tolist()[:TOP], values.tolist()[:TOP], strict=True)
        return [(self.word(number), value) for number, value in pairs]

    def word(self, number: int) -> str:
        """The name of a class."""
        return self.classes[number] if number < len(self.classes) else str(number)

    def limits(self, method: str) -> tuple[float, float]:
        """The smallest and the largest uncertainty of a method, so that all its maps share one scale."""
        maps = [map for key, frame in self.frames.items() if key[2] == method
                for name, map in frame.maps.items() if name != "W"]  # fmt: skip
        return (
            (min(float(map.min()) for map in maps), max(float(map.max()) for map in maps))
            if maps
            else (0.0, 1.0)
        )

    def _attack(self, images: Tensor, labels: Tensor, eps: tuple[float, ...]) -> Tensor:
        device = self.classifier.mean.device
        images, labels = images.to(device), labels.to(device)
        return ratios(self.classifier, images, labels, eps, steps=self.steps, seed=self.seed).cpu()

    @torch.no_grad()
    def _frames(
        self, clean: Tensor, row: Tensor, number: int, only: int | None = None
    ) -> dict[Any, Frame]:
        """Of one image, for all strengths or one."""
        device = self.classifier.mean.device
        alone = AttackedSet(clean[None], torch.zeros(1, dtype=torch.long), row, self.eps)
        strengths = range(len(self.eps)) if only is None else [only]
        hats = torch.cat([alone.at(self.eps[strength]) for strength in strengths]).to(device)
        found = {}
        for name, denoiser in self.denoisers.items():
            denoised, maps, kernels = _denoised(denoiser, hats)
            psnr, ssim = quality(denoised, clean.to(device).expand_as(denoised))
            probabilities = self.classifier(denoised).softmax(dim=1).cpu()
            for place, (strength, image) in enumerate(zip(strengths, denoised.cpu(), strict=True)):
                own, taps = (
                    {part: batch[place] for part, batch in every.items()}
                    for every in (maps, kernels)
                )
                said = probabilities[place], float(psnr[place]), float(ssim[place])
                found[number, strength, name] = Frame(image, own, taps, *said)
        return found

    @torch.no_grad()
    def _refuse_too_much(self, images: Tensor) -> None:
        each = 0
        for denoiser in self.denoisers.values():
            denoised, maps, kernels = _denoised(
                denoiser, images[:1].to(self.classifier.mean.device)
            )
            each += sum(tensor.nbytes for tensor in (denoised, *maps.values(), *kernels.values()))
        if (needed := each * len(self.eps) * len(images)) > MOST_BYTES:
            raise ValueError(
                f"explore: {len(images)} images at {len(self.eps)} strengths would keep {needed / 2**30:.1f} GiB, "
                f"more than {MOST_BYTES / 2**30:.0f}; give fewer or smaller images, strengths or denoisers"
            )


def _denoised(
    denoiser: nn.Module, hat: Tensor
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Ĩ, and the maps and kernels that a denoiser has."""
    if isinstance(denoiser, PAFilter):
        parts = denoiser.parts(hat)
        kernels = {"sl": parts.kernels_sl, "m": parts.kernels_m}
        maps = {
            "W": parts.weight,
            "uncertainty, sl": parts.uncertainty_sl,
            "uncertainty, m": parts.uncertainty_m,
        }
    elif isinstance(denoiser, KernelDenoiser):
        kernels = {"": denoiser.kernels(hat)}
        maps = {"uncertainty": uncertainty_map(kernels[""])}
    else:
        kernels, maps = {}, {}
    half = {name: taps.half().cpu() for name, taps in kernels.items()}
    return denoiser(hat), {name: map[:, 0].cpu() for name, map in maps.items()}, half
