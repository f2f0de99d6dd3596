"""What is to be run: a `Study` names the data, the classifier, the attack and all sizes.

There is one study per data set and three scales of each: ``smoke`` (seconds, for continuous
integration), ``quick`` (minutes on a CPU) and ``paper`` (a GPU). A scale changes sizes only.
"""

import os
from dataclasses import asdict, dataclass, fields, replace
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from .scales import STUDIES

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
        The architecture under attack, see `nbsupport.classifiers.models.build`; or one that is trained
        already and not known here, as ``path/to/file.py:factory``, see `nbsupport.classifiers.custom.load`.
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
    classifier_epochs, classifier_images
        Training of the classifiers: epochs, and how many images (all there are where None).
    fusion_epochs, fusion_learning_rate
        Training of PA-Filt's fusion alone, the Y-Net frozen. At the denoisers' rate the strongest
        attacks drive its sigmoid to 0 everywhere in the first epoch, where no gradient brings it back.
    fusion
        Its loss: ``mean`` over all attacks, or ``balanced``, relative to that of W = ½ at each strength, so
        that the strongest attacks, which cost most, do not decide alone.
    adversarial_eps, adversarial_steps, adversarial_rel_step, adversarial_epochs, adversarial_images
        PGD adversarial training of the robust classifiers: ε, steps, step relative to ε, epochs, and how
        many images (all there are where None).
    own_images
        On how many of the test images the robust classifiers are attacked themselves (all where None).
    knowing_epochs
        Epochs of PA-Filt(L_adv), which learns against attacks on the whole chain, with the same PGD.
    sweep_eps, sweep_steps
        The ε and the PGD steps n of the second half of Table 5.
    adaptive_images, adaptive_eps, adaptive_steps, adaptive_restarts, adaptive_iterations, adaptive_queries
        The attacker who knows: how many test images, at which strengths above 0, the largest n of PGD
        and its restarts, the iterations of AutoAttack's parts, Square's queries.
    adaptive_trace_eps
        The strength, one of those, that the table shows in full and at which PGD's progress is checked.
    augmentation
        Of the classifier's training images: ``shift`` by up to one pixel, the whole batch alike, or
        ``crop``: each image shifted by up to an eighth of its side, and half of them mirrored.
    precision
        Of trainings: ``float32``, or ``bfloat16`` where the hardware has it. Attacks and results are always
        in float32.
    seed
        Seed of everything random.
    denoiser_seed
        Of the trainings of denoisers alone; `seed` where None. Another one gives other denoisers for the same
        classifier and the same attacks, see `nbsupport.results.seeds`.
    data
        The image tree of the study ``folder``, see `nbsupport.data.image_folder`; other studies have none.
    images_from
        What the images of a public data set are, for captions; found by `nbsupport.data.benchmarks.fitted`.
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
    adversarial_epochs: int
    knowing_epochs: int
    adaptive_images: int
    learning_rate: float = 2e-3
    fusion_learning_rate: float = 5e-4
    fusion: str = "mean"
    adversarial_eps: float = 8 / 255
    adversarial_steps: int = 10
    adversarial_rel_step: float = 0.25
    sweep_eps: float = 0.3
    sweep_steps: tuple[int, ...] = (10, 30, 50, 70, 90)
    adaptive_eps: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 0.5)
    adaptive_trace_eps: float = 1e-2
    adaptive_steps: int = 400
    adaptive_restarts: int = 5
    adaptive_iterations: int = 100
    adaptive_queries: int = 5000
    classifier_images: int | None = None
    adversarial_images: int | None = None
    own_images: int | None = None
    augmentation: str = "shift"
    precision: str = "float32"
    steps: int = STEPS
    eps: tuple[float, ...] = EPS
    seed: int = 0
    denoiser_seed: int | None = None
    data: str = ""
    images_from: str = ""

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in pairwise(self.eps))
        if not (self.eps and self.eps[0] == 0 and rising and self.eps[-1] <= 1):
            raise ValueError(
                f"Study.eps: expected strengths that rise from 0 and stay within 1, got {self.eps}"
            )
        for field in fields(self):
            value = getattr(self, field.name)
            if (
                isinstance(value, (int, float))
                and not field.name.endswith("seed")
                and not value > 0
            ):
                raise ValueError(f"Study.{field.name}: expected a positive number, got {value}")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"Study.kernel_size: expected an odd number, got {self.kernel_size}")
        if self.steps in self.sweep_steps:
            raise ValueError(
                f"Study.sweep_steps: expected other numbers than steps = {self.steps}, got {self.sweep_steps}"
            )
        if self.augmentation not in ("shift", "crop"):
            raise ValueError(
                f"Study.augmentation: expected 'shift' or 'crop', got {self.augmentation!r}"
            )
        if self.fusion not in ("mean", "balanced"):
            raise ValueError(f"Study.fusion: expected 'mean' or 'balanced', got {self.fusion!r}")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(
                f"Study.precision: expected 'float32' or 'bfloat16', got {self.precision!r}"
            )
        if self.data and self.name != "folder":
            raise ValueError(
                f"Study.data: a folder of images belongs to the study 'folder', not to {self.name!r}"
            )

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
            raise ValueError(
                f"the study {name!r} has no scale {scale!r}; there are: {', '.join(STUDIES[name])}"
            )
        return replace(cls(name=name, scale=scale, **STUDIES[name][scale]), **changes)

    @classmethod
    def chosen(cls, name: str = "digits", scale: str = "quick", **changes: Any) -> "Study":
        """As `named`, but the environment overrides: ``NBSUPPORT_STUDY``, ``NBSUPPORT_SCALE``,
        ``NBSUPPORT_CLASSIFIER``, ``NBSUPPORT_IMAGE_SIZE``, and for ``folder`` ``NBSUPPORT_DATA``.

        This is what the first cell of each notebook calls, so that one command can run them all
        at another scale.
        """
        name, scale = (
            os.environ.get("NBSUPPORT_STUDY", name),
            os.environ.get("NBSUPPORT_SCALE", scale),
        )
        names = ("classifier", "image_size", *(["data"] if name == "folder" else []))
        chosen = {
            key: value for key in names if (value := os.environ.get(f"NBSUPPORT_{key.upper()}"))
        }
        return cls.named(name, scale, **changes | sizes(chosen))

    @property
    def attacked_eps(self) -> tuple[float, ...]:
        """The strengths above 0."""
        return self.eps[1:]

    @property
    def classifier_name(self) -> str:
        """The classifier without the folders it lies in, for tables."""
        return Path(self.classifier).name if ":" in self.classifier else self.classifier

    def specification(self) -> dict[str, Any]:
        """All attributes, for provenance; files and folders by their names, wherever they lie."""
        return asdict(self) | {"classifier": self.classifier_name, "data": Path(self.data).name}

    def _repr_html_(self) -> str:
        """In a notebook one line, which opens to show everything."""
        rows = "".join(
            f"<tr><th>{name}</th><td>{escape(str(value))}</td></tr>"
            for name, value in self.specification().items()
        )
        said = f"{self.name} at {self.scale}: {self.classifier_name}, {self.test_images} test images, seed {self.seed}"
        return f"<details><summary>{escape(said)}</summary><table>{rows}</table></details>"


def sizes(chosen: dict[str, str]) -> dict[str, Any]:
    """What a command line or an environment says, with sizes as numbers.

    Raises
    ------
    ValueError
        If a size is none.
    """
    size = chosen.get("image_size", "1")
    if not size.isdecimal():
        raise ValueError(f"Study.image_size: expected a number of pixels such as 224, got {size!r}")
    return chosen | ({"image_size": int(size)} if "image_size" in chosen else {})


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
