"""The settings of one experiment. ``studies.toml`` names a study per data set and its scales."""

import os
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from html import escape
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

# The attack strengths of the paper, for images in [0, 1]: the 13 columns of its tables.
EPS = (0.0, 1e-4, 3e-4, 5e-4, 1e-3, 3e-3, 5e-3, 1e-2, 3e-2, 5e-2, 1e-1, 3e-1, 5e-1)
STRONG_EPS = (0.1, 0.3, 0.5)  # train Filt(L_img*) and the decoder of Ĩ_m
STEPS = 40
REL_STEP = 0.01 / 0.3  # PGD's step relative to ε: Foolbox's default, hence the paper's
SMALLEST = 6  # height and width that SSIM can measure
_TABLE = tomllib.loads(files(__package__).joinpath("studies.toml").read_text(encoding="utf-8"))


def _merge(study: str, scale: str) -> dict[str, Any]:
    """Settings of a study at a scale, on top of the blocks that its `base` names."""
    entry, settings = _TABLE[study][scale], dict[str, Any]()
    for block in entry.get("base", []):
        settings |= _merge(*block.split("."))
    values = {key: tuple(v) if isinstance(v, list) else v for key, v in entry.items()}
    return {key: value for key, value in (settings | values).items() if key != "base"}


STUDIES = {study: {scale: _merge(study, scale) for scale in _TABLE[study]} for study in _TABLE}
del STUDIES["shared"]


@dataclass(frozen=True, kw_only=True)
class Study:
    """All settings that determine the results of an experiment. A scale changes sizes only."""

    # data; the test images are the same at all strengths
    name: str  # the data set
    scale: str  # smoke (seconds), quick (minutes on a CPU), standard (hours), paper (a GPU)
    data: str = ""  # the image tree of the study `folder`
    images_from: str = ""  # what the images show, for captions; filled in when they are loaded
    image_size: int  # height and width
    train_images: int  # the denoisers learn from these, at each strength above 0
    test_images: int
    validation_images: int = 100  # the training images after those; settings are chosen on them
    seed: int = 0

    # attack
    eps: tuple[float, ...] = EPS  # rising from 0 (clean), for images in [0, 1]
    unseen_eps: tuple[float, ...] = (8 / 255,)  # at which no denoiser learns; tables show them, too
    steps: int = STEPS  # of PGD
    sweep_eps: float = 0.3  # second half of Table 5: ε and the numbers of PGD steps
    sweep_steps: tuple[int, ...] = (10, 30, 50, 70, 90)

    # denoisers
    width: int  # channels of the first block; 64 in the paper
    kernel_size: int  # K
    epochs: int
    batch_size: int
    learning_rate: float = 2e-3
    # PA-Filt's fusion, on a frozen Y-Net; at the rate above, its sigmoid saturates in one epoch
    fusion_epochs: int
    fusion_learning_rate: float = 5e-4
    # how the fusion's losses at different ε are weighed, see `weigh_fusion_losses`
    fusion: Literal["mean", "balanced", "kl", "regret"] = "balanced"
    fusion_inputs: Literal["maps", "all"] = "maps"  # of C, see `PAFilter`
    fusion_start: Literal["half", "default"] = "half"  # of W: ½, or from PyTorch's initialisation
    adaptive_epochs: int  # PA-Filt(L_adv), trained against PGD through denoiser and classifier
    denoiser_seed: int | None = None  # None: seed. Another one only changes the denoisers.
    # PA-Filt(L_img+KL), end to end: λ, of L_img beside the divergence of logits, and the rate
    image_weight: float = 200.0
    joint_learning_rate: float = 5e-4
    precision: Literal["float32", "bfloat16"] = "float32"  # of trainings, if the hardware can

    # classifiers
    classifier: str  # architecture, or the reference of a trained one, see `custom.load`
    classifier_epochs: int
    classifier_images: int | None = None  # None: all
    # shift a batch by up to a pixel; or each image by up to an eighth, and mirror half of them
    augmentation: Literal["shift", "crop"] = "shift"

    # robust classifiers (PGD adversarial training)
    robust: str = ""  # the reference of a trained one, which takes the place of `replaced`
    adversarial_eps: float = 8 / 255
    adversarial_steps: int = 10
    adversarial_rel_step: float = 0.25
    adversarial_epochs: int
    adversarial_images: int | None = None  # None: all
    self_attack_images: int | None = None  # test images on which each is attacked; None: all

    # adaptive evaluation
    adaptive_images: int  # test images, as many as the tables have or not
    adaptive_steps: int = 100  # of the minimal-norm attacks
    adaptive_iterations: int = 30  # AutoAttack's parts
    adaptive_queries: int = 300  # Square
    audit_images: int = 32  # the first of those
    audit_eps: tuple[float, ...] = (3e-3, 1e-2, 3e-2, 0.1)
    audit_trace_eps: float = 3e-3  # one of those, shown in full; PGD's progress is checked there
    audit_steps: int = 100  # PGD, at most
    audit_restarts: int = 2
    audit_iterations: int = 40
    audit_queries: int = 1000

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in pairwise(self.eps)) and self.eps[:1] == (0,)
        unseen = all(0 < eps <= 1 for eps in self.unseen_eps)
        fits = {
            "unseen_eps": (unseen, "values above 0, up to 1"),
            "eps": (rising and self.eps[-1] <= 1, "values rising from 0, up to 1"),
            "kernel_size": (self.kernel_size % 2, "an odd number"),
            "image_size": (self.image_size >= SMALLEST, f"{SMALLEST} pixels or more, for SSIM"),
            "sweep_steps": (self.steps not in self.sweep_steps, f"other than steps = {self.steps}"),
            "data": (not self.data or self.name == "folder", f"none for the study {self.name!r}"),
        }
        for field in fields(self):
            value, choices = getattr(self, field.name), get_args(field.type)
            if get_origin(field.type) is Literal:
                fits[field.name] = value in choices, f"one of {choices}"
            elif isinstance(value, int | float) and "seed" not in field.name and not value > 0:
                fits[field.name] = False, "a positive number"
        for name, (fine, expected) in fits.items():
            if not fine:
                raise ValueError(f"Study.{name}: expected {expected}, got {getattr(self, name)!r}")

    @classmethod
    def named(cls, name: str = "photographs", scale: str = "quick", **changes: Any) -> "Study":
        """A study of ``studies.toml`` at a scale, with some settings changed."""
        if name not in STUDIES:
            raise ValueError(f"no study named {name!r}; there are: {', '.join(STUDIES)}")
        if scale not in STUDIES[name]:
            scales = ", ".join(STUDIES[name])
            raise ValueError(f"the study {name!r} has no scale {scale!r}; there are: {scales}")
        return replace(cls(name=name, scale=scale, **STUDIES[name][scale]), **changes)

    @classmethod
    def recorded(cls, settings: dict[str, Any]) -> "Study":
        """The study of a result's record, without the settings that only an earlier version had."""
        lists = {key: tuple(v) for key, v in settings.items() if isinstance(v, list)}
        known = {field.name for field in fields(cls)}
        return cls.named(**{key: v for key, v in (settings | lists).items() if key in known})

    @classmethod
    def chosen(cls, name: str = "photographs", scale: str = "quick", **changes: Any) -> "Study":
        """As `named`, but NBSUPPORT_STUDY, _SCALE, _CLASSIFIER, _ROBUST, … override."""
        make_paths_absolute()
        name = os.environ.get("NBSUPPORT_STUDY", name)
        scale = os.environ.get("NBSUPPORT_SCALE", scale)
        keys = ("classifier", "robust", "image_size", *(["data"] if name == "folder" else []))
        values = {key: os.environ.get(f"NBSUPPORT_{key.upper()}", "") for key in keys}
        return cls.named(name, scale, **changes | sizes({k: v for k, v in values.items() if v}))

    @property
    def attacked_eps(self) -> tuple[float, ...]:
        """The strengths above 0 from which the denoisers learn."""
        return self.eps[1:]

    @property
    def evaluated_eps(self) -> tuple[float, ...]:
        """All strengths of an evaluation, from 0."""
        return tuple(sorted({*self.eps, *self.unseen_eps}))

    @property
    def classifier_name(self) -> str:
        """The classifier without its folders, for tables."""
        return change_file(self.classifier, lambda file: Path(file).name)

    @property
    def robust_name(self) -> str:
        """The robust classifier from elsewhere without its folders, for tables."""
        return change_file(self.robust, lambda file: Path(file).name)

    @property
    def replaced(self) -> str:
        """The classifier whose place `robust` takes: FD, FPD or Adv, or none where it is empty."""
        return {"": "", "fd": "FD", "fpd": "FPD"}.get(self.robust.partition(":")[0], "Adv")

    def specification(self) -> dict[str, Any]:
        """All settings, for provenance; files and folders by name only."""
        names = {"classifier": self.classifier_name, "robust": self.robust_name}
        return asdict(self) | names | {"data": Path(self.data).name}

    def _repr_html_(self) -> str:
        line = f"{self.name} at {self.scale}: {escape(self.classifier_name)}, {self.test_images}"
        line += f" test images, seed {self.seed}"
        cells = self.specification().items()
        rows = (f"<tr><th>{name}</th><td>{escape(str(value))}</td></tr>" for name, value in cells)
        return f"<details><summary>{line}</summary><table>{''.join(rows)}</table></details>"


def change_file(classifier: str, change: Callable[[str], Any]) -> str:
    """A classifier's name, with the path in it changed if it refers to a file."""
    if classifier.startswith(("fd:", "fpd:")):
        kind, _, file = classifier.partition(":")
        return f"{kind}:{change(file)}"
    file, colon, factory = classifier.rpartition(":")
    return f"{change(file)}:{factory}" if colon and file != "robustbench" else classifier


def sizes(options: dict[str, str]) -> dict[str, Any]:
    """Options of a command line or environment, with the image size as a number."""
    if not (size := options.get("image_size", "1")).isdecimal():
        raise ValueError(f"Study.image_size: expected a number of pixels such as 224, got {size!r}")
    return options | ({"image_size": int(size)} if "image_size" in options else {})


def short(eps: float) -> str:
    """ε as a column's head: ``5e-4``, or ``8/255`` where one digit does not tell it."""
    mantissa, exponent = f"{eps:.0e}".split("e")
    if eps == 0 or float(f"{eps:.0e}") != eps:
        return f"{eps * 255:.4g}/255" if eps else "0"
    return f"{mantissa}e{int(exponent)}"


def eps_label(eps: float) -> str:
    """ε as the paper writes it, and in units of an 8-bit image: ``3e-3 (0.765/255)``."""
    name = "0 (clean)" if eps == 0 else short(eps)
    return name if eps == 0 or "/" in name else f"{name} ({eps * 255:.3g}/255)"


def make_paths_absolute() -> None:
    """Let relative paths in NBSUPPORT_HOME, _DATA, … mean the same in the shell and a notebook."""
    # a kernel runs in its notebook's folder, but inherits PWD from the shell that started Jupyter
    base = os.environ.get("PWD", "") if "JPY_PARENT_PID" in os.environ else ""

    def change(path: str) -> str:
        return str(Path(base, Path(path).expanduser()).absolute())

    for name in ("HOME", "DATA", "FIGURES", "CLASSIFIER", "ROBUST"):
        if value := os.environ.get(f"NBSUPPORT_{name}"):
            refers = name in ("CLASSIFIER", "ROBUST")  # perhaps to a file
            os.environ[f"NBSUPPORT_{name}"] = (
                change_file(value, change) if refers else change(value)
            )


def default_home() -> Path:
    """NBSUPPORT_HOME, or else ``nbsupport`` in the user's cache folder.

    Raises `OSError` if the user has no home folder.
    """
    cache = Path("~/.cache", os.environ.get("XDG_CACHE_HOME", ""), "nbsupport")
    try:
        make_paths_absolute()
        return Path(os.environ.get("NBSUPPORT_HOME") or cache).expanduser().absolute()
    except RuntimeError as error:
        raise OSError("this user has no home folder; name a store in NBSUPPORT_HOME") from error
