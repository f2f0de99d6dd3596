"""Everything expensive in a study, by name: asked for, it is taken from the store or made."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from . import denoiser_training, outside
from .attacks import AttackedSet, ratios
from .baselines import BASELINES, Baseline
from .classifier_training import KINDS, target, train, training
from .classifiers import Classifier, wrap
from .data import Split, fitted, load
from .denoisers import Denoiser, View
from .fingerprints import fingerprint, made_from
from .recipes import RECIPES, VIEWS, parts
from .store import Store
from .study import REL_STEP, STRONG_EPS, Study
from .trial import PROBES

Module = TypeVar("Module", bound=nn.Module)
VERSION = 1  # part of every key: raise it when the code makes something else of a specification
SUBSTITUTE = "small_resnet"
CONSTANT = 1e-2  # a W whose standard deviation over pixels, images and strengths is below this is constant


def _recipe(method: str) -> tuple[str, int | str | None]:
    """The recipe that makes a method, and which of its outputs the method is (None for all)."""
    name, output = VIEWS.get(method, (method, None))
    if name not in RECIPES:
        known = ["attacked", *RECIPES, *VIEWS, *BASELINES]
        raise ValueError(f"no method named {method!r}; there are: {', '.join(known)}")
    return name, output


class Artefacts:
    """The artefacts of one study.

    Parameters
    ----------
    study
        The study. It is told how many images there are where those are the user's own.
    store
        Where they are kept; the default store where None.
    own
        A trained classifier to put in the place of the study's, see `nbsupport.classifiers.wrap`.
    """

    def __init__(self, study: Study, store: Store | None = None, own: nn.Module | None = None) -> None:
        self.store = store or Store()
        self.own = outside.load(study.classifier) if own is None and outside.is_reference(study.classifier) else own
        self.study = fitted(study) if own is None else replace(fitted(study), classifier=outside.name(own))
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # one object per artefact and session, so that cells which ask again wait for nothing
        self.classifier = cache(self._classifier)
        self.attacked = cache(self._attacked)
        self.trained = cache(self._trained)
        self.fingerprint = cache(lambda: fingerprint(self.classifier(), self.study.classifier))

    def images(self, split: str) -> Split:
        """The images of the study's size: ``train`` for the denoisers, ``test`` for results."""
        return load(self.study, split, self.study.train_images if split == "train" else self.study.test_images)

    # -- classifiers -------------------------------------------------------------------------

    def classifier_specification(self, name: str = "standard") -> dict[str, Any]:
        """What a classifier is a function of; for an outside one its weights and text, wherever it lies."""
        if self.own is not None and name == "standard":
            return self.fingerprint()
        trained = training(name, self.study)
        architecture = self.study.classifier if self.own is None else SUBSTITUTE
        return {
            "kind": "classifier",
            "name": architecture + KINDS[name].ending,
            "version": VERSION,
            "data": load(self.study, "train").specification,
            "epochs": self.study.classifier_epochs,
            "seed": self.study.seed + KINDS[name].seed,
        } | ({"trained": trained} if trained else {})

    def _classifier(self, name: str = "standard") -> Classifier:
        """A trained classifier of `nbsupport.classifier_training.KINDS`, frozen and in evaluation mode.

        Beside the user's own, which is the standard one, the others have the architecture `SUBSTITUTE`.

        Raises
        ------
        ValueError
            If there is none of this name.
        """
        if self.own is not None and name == "standard":
            return self._outside(self.own)
        specification, split, kind = self.classifier_specification(name), load(self.study, "train"), KINDS[name]
        classes = max(len(split.classes), int(split.labels.max()) + 1)  # more than there are where numbers are left out
        build, size = kind.build, self.study.image_size
        classifier = self._seeded(lambda: build(specification["name"], classes, size), kind.seed)
        images, labels = split.images.to(self.device), split.labels.to(self.device)

        def make(scratch: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
            history = train(name, classifier, images, labels, self.study, scratch)
            return classifier.state_dict(), {"loss": history}

        tensors, _ = self.store.tensors(specification, make)
        classifier.load_state_dict(tensors)
        return classifier.eval().requires_grad_(False)

    def _outside(self, own: nn.Module) -> Classifier:
        """The user's classifier: not trained, but tried on images that the denoisers learn from."""
        split = load(self.study, "train", min(self.study.train_images, PROBES))
        classes = None if split.specification.get("gaps") else len(split.classes)
        images, labels = split.images.to(self.device), split.labels.to(self.device)
        return wrap(own.to(self.device), images, labels, classes=classes)

    # -- attacked images ---------------------------------------------------------------------

    def attacked_specification(
        self, split: str, steps: int | None = None, eps: tuple[float, ...] | None = None, classifier: str = "standard"
    ) -> dict[str, Any]:
        """What a set of attacked images is a function of."""
        steps = steps or self.study.steps
        return {
            "kind": "attacked",
            "name": f"pgd{steps}-{split}",
            "version": VERSION,
            "attack": {"name": "LinfPGD", "steps": steps, "rel_step": REL_STEP},
            "eps": list(eps or self.study.attacked_eps),
            "seed": self.study.seed,
            "data": self.images(split).specification,
            "classifier": self.classifier_specification(classifier),
        }

    def _attacked(
        self, split: str, steps: int | None = None, eps: tuple[float, ...] | None = None, classifier: str = "standard"
    ) -> AttackedSet:
        """The images of a split, attacked with PGD(n, ε).

        Parameters
        ----------
        split
            ``train`` or ``test``.
        steps
            n; the study's where None.
        eps
            Strengths above 0; all of the study where None.
        classifier
            Which one is attacked. The denoisers and all tables use ``standard``.
        """
        part, specification = self.images(split), self.attacked_specification(split, steps, eps, classifier)
        strengths: tuple[float, ...] = tuple(specification["eps"])
        attacked = self.classifier(classifier)

        def make(block: slice, missing: list[int]) -> Any:
            images, labels = part.images[block].to(self.device), part.labels[block].to(self.device)
            eps = tuple(strengths[row] for row in missing)
            options = dict(steps=specification["attack"]["steps"], seed=self.study.seed)
            return ratios(target(attacked), images, labels, eps, **options).cpu().numpy()

        label = f"attacking the {split} images" + ("" if classifier == "standard" else f" ({classifier})")
        shape = (len(strengths), *part.images.shape)
        array = self.store.array(made_from(specification, attacked), shape, make, label)
        return AttackedSet(part.images, part.labels, array, (0.0, *strengths))

    # -- denoisers ---------------------------------------------------------------------------

    def denoiser_specification(self, name: str) -> dict[str, Any]:
        """What a trained denoiser is a function of."""
        study, base = self.study, RECIPES[name].base
        specification = {
            "kind": "denoiser",
            "name": name,
            "version": VERSION,
            "width": study.width,
            "kernel_size": study.kernel_size,
            "batch_size": study.batch_size,
            "strong_eps": list(STRONG_EPS),
            "seed": study.seed,
            "attacked": self.attacked_specification("train"),
        } | denoiser_training.budget(name, study)
        return specification | ({"base": self.denoiser_specification(base)} if base else {})

    def specification(self, method: str) -> dict[str, Any]:
        """What the denoiser of a table's row is a function of."""
        denoiser, classifier = parts(method)
        name, output = VIEWS.get(denoiser, (denoiser, None))
        trained = self.denoiser_specification(name) if name in RECIPES else None
        before = {} if classifier == "standard" else {"classifier": self.classifier_specification(classifier)}
        return {"name": method, "output": output, "trained": trained} | before

    def denoiser(self, method: str) -> nn.Module:
        """The denoiser of a table's row, trained and frozen; the identity where there is none.

        Raises
        ------
        ValueError
            If there is no such method.
        """
        method, _ = parts(method)
        if method == "attacked":
            return nn.Identity()
        if method in BASELINES:
            return Baseline(method)
        name, output = _recipe(method)
        trained = self.trained(name)[0]
        return trained if output is None else View(trained, output).eval()  # type: ignore[arg-type]

    def report(self, method: str) -> dict[str, Any]:
        """How the training of a denoiser went: its losses, and the signs of a collapse."""
        return self.trained(_recipe(method)[0])[1]

    def failure(self, method: str) -> str | None:
        """Why a denoiser's training counts as failed, or None."""
        method, _ = parts(method)
        if (
            not method.startswith("PA-Filt")
            or method in VIEWS
            or (spread := self.report(method)["weight_std"]) >= CONSTANT
        ):
            return None
        return (
            f"{method}: training failed. Its W is the same everywhere (standard deviation {spread:.1e} over pixels, "
            f"images and strengths), so it only repeats a mixture of its two parts and is no row of a table."
        )

    def _trained(self, name: str) -> tuple[Denoiser, dict[str, Any]]:
        recipe, study = RECIPES[name], self.study
        denoiser = self._seeded(lambda: recipe.build(width=study.width, kernel_size=study.kernel_size))

        base = [self.trained(recipe.base)[0]] if recipe.base else []

        def make(scratch: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
            for trained in base:
                part = denoiser.get_submodule("ynet") if recipe.base == "Y-Net" else denoiser
                part.load_state_dict(trained.state_dict())
            report = denoiser_training.train(name, denoiser, self.classifier(), self.attacked("train"), study, scratch)
            return denoiser.state_dict(), report

        specification = made_from(self.denoiser_specification(name), self.classifier(), *base)
        tensors, report = self.store.tensors(specification, make)
        denoiser.load_state_dict(tensors)
        return denoiser.to(self.device).eval().requires_grad_(False), report

    def _seeded(self, make: Callable[[], Module], added: int = 0) -> Module:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(self.study.seed + added)
            return make().to(self.device)
