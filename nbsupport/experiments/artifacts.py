"""The artifacts of a study by name: classifiers, attacked images, denoisers."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from ..attacks.pgd import AttackedSet, per_pass, ratios
from ..classifiers import custom
from ..classifiers.feature_pyramid import attack_target
from ..classifiers.models import Classifier
from ..data.benchmarks import fit_to_images, load
from ..data.images import Split
from ..denoisers.baselines import Baseline
from ..denoisers.models import Denoiser, View, YNet
from ..study import REL_STEP, STRONG_EPS, Study
from ..training import classifiers, denoisers
from ..training.classifiers import KINDS
from ..training.denoisers import training_seed
from ..training.loop import choose_precision
from .methods import RECIPES, find_recipe, split_method
from .store import Store, Tensors, depend_on, hash_weights

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Steps = int | None
Strengths = tuple[float, ...] | None
VERSION = 1  # part of every key: raise it when the code makes something else of a specification
SUBSTITUTE = "small_resnet"  # the architecture of the other classifiers beside a custom one
SPLITS = dict.fromkeys(("train", "classifier", "adversarial"), "train")
SPLITS |= dict.fromkeys(("test", "self_attack"), "test")
"""Each use of a study's images, and the split of the data set that serves it."""


def once(make: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Keep each result for the session, in the experiment, which is the first argument."""
    signature = inspect.signature(make)

    @functools.wraps(make)
    def remembered(*arguments: Parameters.args, **options: Parameters.kwargs) -> Result:
        bound = signature.bind(*arguments, **options)
        bound.apply_defaults()
        experiment, *rest = bound.arguments.values()
        name = (make.__qualname__, *rest)
        if name not in experiment.session:
            experiment.session[name] = make(*arguments, **options)
        return experiment.session[name]

    return remembered


class Experiment:
    """One study and its artifacts: each is taken from the store, or trained or attacked now.

    A custom `classifier` takes the place of the study's standard one (see `nbsupport.wrap`). Each
    artifact is read once per session.
    """

    def __init__(
        self, study: Study, store: Store | None = None, classifier: nn.Module | None = None
    ) -> None:
        self.store, self.session = store or Store(), dict[Any, Any]()
        self.study, self.custom = fit_to_images(study), classifier
        if classifier is not None:
            self.study = replace(self.study, classifier=custom.class_name(classifier))
        elif custom.is_reference(study.classifier):
            self.custom = custom.load(study.classifier)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @classmethod
    def open(cls, name: str = "digits", scale: str = "quick", **changes: Any) -> "Experiment":
        """The experiment of `Study.chosen`: a named study, unless the environment names another."""
        return cls(Study.chosen(name, scale, **changes))

    @once
    def images(self, split: str) -> Split:
        """The images for one use of `SPLITS`."""
        number = getattr(self.study, f"{split}_images")
        if split == "self_attack" and number is None:
            number = self.study.test_images
        return load(self.study, SPLITS[split], number)

    # -- classifiers -----------------------------------------------------------------------------

    @once
    def classifier(self, name: str = "standard") -> Classifier:
        """A trained classifier of `nbsupport.training.classifiers.KINDS`, frozen.

        A custom classifier is the ``standard`` one. Raises `ValueError` if there is no such name.
        """
        if self.custom is not None and name == "standard":
            return self._try_custom(self.custom)
        if public := self.public_name(name):
            return custom.load_public(public, *self._probes(self.images("test")))
        specification, kind = self.classifier_specification(name), KINDS[name]
        split = self.images(kind.split)
        # class numbers may have gaps, so there can be more classes than names
        classes = max(len(split.classes), int(split.labels.max()) + 1)
        sizes = specification["name"], classes, self.study.image_size
        classifier = self._seeded(lambda: kind.build(*sizes), specification["seed"])

        def make(scratch: Path) -> Tensors:
            inputs = classifier, split.images, split.labels
            losses = classifiers.train(name, *inputs, self.study, scratch)
            used = choose_precision(self.study.precision, self.device)
            return classifier.state_dict(), {"loss": losses, "precision": used}

        classifier.load_state_dict(self.store.tensors(specification, make)[0])
        return classifier.eval().requires_grad_(False)

    @once
    def classifier_specification(self, name: str = "standard") -> dict[str, Any]:
        """Everything that a classifier depends on. Paths are no part of it."""
        if self.custom is not None and name == "standard":
            return self._describe_custom()
        if public := self.public_name(name):
            return custom.describe_public(public)
        trained = classifiers.specify_training(name, self.study)
        return {
            "kind": "classifier", "name": self.architecture(name), "version": VERSION,
            "data": self.images(KINDS[name].split).specification, "trained": trained,
            "epochs": self.study.classifier_epochs, "augmentation": self.study.augmentation,
            "seed": self.study.seed + KINDS[name].seed,
        }  # fmt: skip

    def architecture(self, name: str) -> str:
        """The architecture of a classifier that is trained here."""
        return (self.study.classifier if self.custom is None else SUBSTITUTE) + KINDS[name].ending

    def public_name(self, name: str) -> str | None:
        """The torchvision classifier with public weights that is this study's `name`, if any."""
        if self.study.name != "neurips2017dev" or self.custom is not None:
            return None
        second = "resnet50" if "vgg" in self.study.classifier else "vgg16"
        return {"standard": self.study.classifier, "second": second}.get(name)

    def _try_custom(self, network: nn.Module) -> Classifier:
        """The custom classifier, tried on images that the denoisers learn from."""
        split = load(self.study, "train", min(self.study.train_images, custom.PROBES))
        classes = None if split.specification.get("gaps") else len(split.classes)
        return custom.wrap(network.to(self.device), *self._probes(split), classes=classes)

    def _probes(self, split: Split) -> Iterator[Tensor]:
        return (x[: custom.PROBES].to(self.device) for x in (split.images, split.labels))

    def _describe_custom(self) -> dict[str, Any]:
        """Hashes of a custom classifier's weights, structure and source text."""
        classifier, reference = self.classifier(), self.study.classifier
        if custom.is_reference(reference):
            path, _, factory = reference.rpartition(":")
            file = Path(path).expanduser()
            name, text = f"{file.name}:{factory}", file.read_text(encoding="utf-8")
        else:
            name, text = custom.class_name(classifier), _read_source(classifier)
        return {
            "kind": "classifier", "name": name, "weights": hash_weights(classifier),
            "text": sha256(text.encode()).hexdigest(),
            "structure": sha256(repr(classifier).encode()).hexdigest(),
        }  # fmt: skip

    def _seeded(self, build: Callable[[], Any], seed: int) -> Any:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(seed)
            return build().to(self.device)

    # -- attacked images -------------------------------------------------------------------------

    @once
    def attacked(
        self, split: str, steps: Steps = None, eps: Strengths = None, classifier: str = "standard"
    ) -> AttackedSet:
        """The ``train``, ``test`` or ``self_attack`` images under PGD(n, ε) on a bare classifier.

        n and the strengths above 0 are the study's where None.
        """
        specification = self.attacked_specification(split, steps, eps, classifier)
        return self._attacked(specification, split, classifier)

    def attack_block(self, split: str, start: int) -> None:
        """Attack the images of one chunk, from number `start` on, as `attacked` would."""
        self._attacked(self.attacked_specification(split), split, "standard", start)

    def _attacked(
        self, specification: dict[str, Any], split: str, classifier: str, only: int | None = None
    ) -> AttackedSet:
        network, images = self.classifier(classifier), self.images(split)
        strengths, attack = tuple(specification["eps"]), specification["attack"]
        options = dict(steps=attack["steps"], loss=attack["loss"], seed=self.study.seed)

        def make(block: slice, missing: list[int]) -> Any:
            clean, labels = (x[block].to(self.device) for x in (images.images, images.labels))
            chosen = tuple(strengths[row] for row in missing)
            return ratios(attack_target(network), clean, labels, chosen, **options).cpu().numpy()

        victim = "" if classifier == "standard" else f" ({classifier})"
        label, shape = f"attacking the {SPLITS[split]} images{victim}", images.images.shape
        key, at_once = depend_on(specification, network), per_pass(self.device)
        array = self.store.array(key, (len(strengths), *shape), make, label, at_once, only)
        return AttackedSet(images.images, images.labels, array, (0.0, *strengths))

    def attacked_specification(
        self, split: str, steps: Steps = None, eps: Strengths = None, classifier: str = "standard"
    ) -> dict[str, Any]:
        """Everything that a set of attacked images depends on."""
        n, loss = steps or self.study.steps, KINDS[classifier].loss
        return {
            "kind": "attacked", "name": f"pgd{n}-{SPLITS[split]}", "version": VERSION,
            "attack": {"name": "LinfPGD", "steps": n, "rel_step": REL_STEP, "loss": loss},
            "eps": list(eps or self.study.attacked_eps), "seed": self.study.seed,
            "data": self.images(split).specification,
            "classifier": self.classifier_specification(classifier),
        }  # fmt: skip

    # -- denoisers -------------------------------------------------------------------------------

    def denoiser(self, method: str) -> nn.Module:
        """A method's denoiser, trained and frozen. Raises `ValueError` if there is no such method."""
        name, output = find_recipe(method)
        if name is None:
            baseline, _ = split_method(method)
            return nn.Identity() if baseline == "attacked" else Baseline(baseline)
        denoiser, _ = self.trained(name)
        return denoiser if output is None else View(denoiser, output).eval()  # type: ignore[arg-type]

    @once
    def trained(self, recipe: str) -> tuple[Denoiser, dict[str, Any]]:
        """The denoiser of a recipe and the report of its training."""
        study, base = self.study, RECIPES[recipe].base
        sizes = {"width": study.width, "kernel_size": study.kernel_size}
        denoiser = self._seeded(lambda: RECIPES[recipe].build(**sizes), training_seed(study))

        def make(scratch: Path) -> Tensors:
            if base:
                start, _ = self.trained(base)
                part = denoiser.get_submodule("ynet") if isinstance(start, YNet) else denoiser
                part.load_state_dict(start.state_dict())
            classifier, attacked = self.classifier(), self.attacked("train")
            report = denoisers.train(recipe, denoiser, classifier, attacked, study, scratch)
            return denoiser.state_dict(), report

        tensors, report = self.store.tensors(self.trained_specification(recipe), make)
        denoiser.load_state_dict(tensors)
        return denoiser.eval().requires_grad_(False), report

    def trained_specification(self, recipe: str) -> dict[str, Any]:
        """`denoiser_specification` with the weights of the networks that the training uses."""
        specification, base = self.denoiser_specification(recipe), RECIPES[recipe].base
        bases = [self.trained(base)[0]] if base else []
        return depend_on(specification, self.classifier(), *bases)

    def denoiser_specification(self, recipe: str) -> dict[str, Any]:
        """Everything that a trained denoiser depends on."""
        study, base = self.study, RECIPES[recipe].base
        return {
            "kind": "denoiser", "name": recipe, "version": VERSION, "seed": training_seed(study),
            "width": study.width, "kernel_size": study.kernel_size, "batch_size": study.batch_size,
            "strong_eps": list(STRONG_EPS), "attacked": self.attacked_specification("train"),
            "base": self.denoiser_specification(base) if base else None,
            **denoisers.specify_training(recipe, study),
        }  # fmt: skip

    def specification(self, method: str) -> dict[str, Any]:
        """Everything that a table's row depends on, apart from the attacked images."""
        (name, output), (_, classifier) = find_recipe(method), split_method(method)
        trained = self.denoiser_specification(name) if name else None
        specification = self.classifier_specification(classifier)
        return {"name": method, "output": output, "trained": trained, "classifier": specification}

    def inventory(self) -> dict[str, bool]:
        """Which of the classifier, the attacked images and some denoisers are stored."""
        stored, has = {}, self.store.has
        if public := self.public_name("standard"):
            stored["classifier"] = custom.is_downloaded(public)
        elif self.custom is None:
            stored["classifier"] = has(self.classifier_specification())
        ready = all(stored.values())
        for split in ("train", "test"):
            wanted = self.attacked_specification(split)
            stored[f"{split} images"] = ready and has(depend_on(wanted, self.classifier()))
        for name in ("Filt(L_img)", "Y-Net", "PA-Filt(L_img)"):
            possible = ready and stored.get(RECIPES[name].base or "", True)
            stored[name] = possible and has(self.trained_specification(name))
        return stored

    def report(self, method: str) -> dict[str, Any]:
        """The report of a denoiser's training: its losses, and the signs of a collapse."""
        recipe, _ = find_recipe(method)
        if recipe is None:
            raise ValueError(f"report: expected a method that is trained, got {method!r}")
        return self.trained(recipe)[1]


def _read_source(network: nn.Module) -> str:
    """The source text of all classes in a network; classes defined in some terminals have none."""
    kinds, text = {type(module) for module in network.modules()}, ""
    for kind in sorted(kinds, key=lambda kind: kind.__qualname__):
        if not kind.__module__.startswith(("torch.", "torchvision.")):
            with contextlib.suppress(OSError, TypeError):
                text += inspect.getsource(kind)
    return text
