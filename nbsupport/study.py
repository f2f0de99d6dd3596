"""What is to be run: a `Study` names the data, the classifier, the attack and all sizes.

There is one study per data set and three scales of each: ``smoke`` (seconds, for continuous
integration), ``quick`` (minutes on a CPU) and ``paper`` (a GPU). A scale changes sizes only.
"""

import os
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from typing import Any

EPS = (0.0, 1e-4, 3e-4, 5e-4, 1e-3, 3e-3, 5e-3, 1e-2, 3e-2, 5e-2, 1e-1, 3e-1, 5e-1)
"""The attack strengths of the paper, for images in [0, 1]: the 13 columns of its tables."""

STRONG_EPS = (0.1, 0.3, 0.5)
"""The strengths on which Filt(L_img*) and the decoder of Ĩ_m are trained."""

STEPS = 40
REL_STEP = 0.01 / 0.3
"""PGD's step relative to ε: Foolbox's default, hence the paper's."""


@dataclass(frozen=True)
class Study:
    """All that determines the results of a study, apart from the code.

    Attributes
    ----------
    name
        The data set.
    scale
        ``smoke``, ``quick`` or ``paper``.
    classifier
        The architecture under attack, see `nbsupport.classifiers.build`.
    eps
        Attack strengths for images in [0, 1], increasing, from 0 (clean).
    steps
        PGD steps.
    train_images, test_images
        How many images the denoisers learn from (each at the 12 strengths above 0), and how many
        every result is measured on. The test images are the same for all strengths.
    image_size
        Height and width of an image.
    width
        Channels of the denoisers' first block; 64 in the paper.
    kernel_size
        K of the filtering denoisers.
    epochs, batch_size, learning_rate
        Training of the denoisers, the same for all of them.
    classifier_epochs
        Epochs for the classifier.
    fusion_epochs, fusion_learning_rate
        Training of PA-Filt's fusion alone, the Y-Net frozen. At the denoisers' rate the strongest
        attacks drive its sigmoid to 0 everywhere in the first epoch, where no gradient brings it back.
    seed
        Seed of everything random.
    """

    name: str
    scale: str
    classifier: str
    train_images: int
    test_images: int
    image_size: int
    width: int
    kernel_size: int
    epochs: int
    batch_size: int
    classifier_epochs: int
    fusion_epochs: int
    learning_rate: float = 2e-3
    fusion_learning_rate: float = 5e-4
    steps: int = STEPS
    eps: tuple[float, ...] = EPS
    seed: int = 0

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in pairwise(self.eps))
        if not (self.eps and self.eps[0] == 0 and rising and self.eps[-1] <= 1):
            raise ValueError(f"Study.eps: expected strengths that rise from 0 and stay within 1, got {self.eps}")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (int, float)) and field.name != "seed" and not value > 0:
                raise ValueError(f"Study.{field.name}: expected a positive number, got {value}")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"Study.kernel_size: expected an odd number, got {self.kernel_size}")

    @classmethod
    def named(cls, name: str = "digits", scale: str = "quick", **changes: Any) -> "Study":
        """The study `name` at `scale`, with single attributes replaced by `changes`.

        Raises
        ------
        ValueError
            If there is no such study or scale, or a change makes no sense.
        TypeError
            If a change names no attribute of a study.
        """
        if name not in STUDIES:
            raise ValueError(f"no study named {name!r}; there are: {', '.join(STUDIES)}")
        if scale not in STUDIES[name]:
            raise ValueError(f"the study {name!r} has no scale {scale!r}; there are: {', '.join(STUDIES[name])}")
        return replace(cls(name=name, scale=scale, **STUDIES[name][scale]), **changes)

    @classmethod
    def chosen(cls, name: str = "digits", scale: str = "quick", **changes: Any) -> "Study":
        """As `named`, but ``NBSUPPORT_STUDY`` and ``NBSUPPORT_SCALE`` override `name` and `scale`.

        This is what the first cell of each notebook calls, so that one command can run them all
        at another scale.
        """
        return cls.named(os.environ.get("NBSUPPORT_STUDY", name), os.environ.get("NBSUPPORT_SCALE", scale), **changes)

    @property
    def attacked_eps(self) -> tuple[float, ...]:
        """The strengths above 0."""
        return self.eps[1:]

    def specification(self) -> dict[str, Any]:
        """All attributes, for provenance."""
        return asdict(self)


STUDIES: dict[str, dict[str, dict[str, Any]]] = {
    "digits": {
        "smoke": dict(
            classifier="small_resnet", train_images=48, test_images=24, image_size=16, width=4, kernel_size=3,
            epochs=1, batch_size=48, classifier_epochs=2, fusion_epochs=1, steps=4,
        ),
        "quick": dict(
            classifier="small_resnet", train_images=1000, test_images=500, image_size=16, width=8, kernel_size=5,
            epochs=5, batch_size=120, classifier_epochs=15, fusion_epochs=3,
        ),
        "paper": dict(
            classifier="small_resnet", train_images=1200, test_images=500, image_size=16, width=64, kernel_size=5,
            epochs=40, batch_size=240, classifier_epochs=40, fusion_epochs=10,
        ),
    },
}  # fmt: skip


def eps_label(eps: float) -> str:
    """ε as the paper writes it and in units of an 8-bit image.

    >>> eps_label(0.003)
    '3e-3 (0.765/255)'
    >>> eps_label(0)
    '0 (clean)'
    """
    if eps == 0:
        return "0 (clean)"
    mantissa, exponent = f"{eps:.0e}".split("e")
    return f"{mantissa}e{int(exponent)} ({eps * 255:.3g}/255)"
