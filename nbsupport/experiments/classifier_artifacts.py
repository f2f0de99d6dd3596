"""The classifiers of a study, by name: trained here, public, or the user's own."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..classifiers import custom as outside
from ..classifiers import public_weights
from ..classifiers.models import Classifier, wrap
from ..classifiers.trial import PROBES
from ..data import neurips
from ..data.benchmarks import Split, fitted, load
from ..study import Study
from ..training.classifiers import KINDS, train, training
from ..training.devices import precision
from .cluster import accelerator
from .fingerprints import fingerprint
from .store import Store

Module = TypeVar("Module", bound=nn.Module)
VERSION = 1  # part of every key: raise it when the code makes something else of a specification
SUBSTITUTE = "small_resnet"
SPLITS = {
    "train": "train",
    "classifier": "train",
    "adversarial": "train",
    "test": "test",
    "own": "test",
}
"""From a study's images, by what they are for, to the split of the data set that they come from."""


class ClassifierArtefacts:
    """The classifiers of one study; `nbsupport.experiments.artifacts.Artefacts` has the rest and says more."""

    def __init__(
        self, study: Study, store: Store | None = None, own: nn.Module | None = None
    ) -> None:
        self.store = store or Store()
        self.own = (
            outside.load(study.classifier)
            if own is None and outside.is_reference(study.classifier)
            else own
        )
        self.study = (
            fitted(study) if own is None else replace(fitted(study), classifier=outside.name(own))
        )
        self.device = accelerator().device
        # one object per artefact and session, so that cells which ask again wait for nothing
        self.classifier = cache(self._classifier)
        self.classifier_specification = cache(self._classifier_specification)
        self.fingerprint = cache(lambda: fingerprint(self.classifier(), self.study.classifier))

    def images(self, split: str) -> Split:
        """Images of the study: ``train`` for denoisers, ``classifier`` and ``adversarial`` for classifiers that learn
        plainly or against attacks, ``test`` for results, ``own`` for those of robust classifiers attacked themselves.
        """
        number = getattr(self.study, f"{split}_images") or (
            self.study.test_images if split == "own" else None
        )
        return load(self.study, SPLITS[split], number)

    def _classifier_specification(self, name: str = "standard") -> dict[str, Any]:
        """What a classifier is a function of; for an outside one its weights and text, wherever it lies."""
        if self.own is not None and name == "standard":
            return self.fingerprint()
        if public := self.public(name):
            return public_weights.specification(public)
        augmentation = self.study.augmentation
        said = {
            "trained": training(name, self.study),
            "augmentation": augmentation if augmentation != "shift" else "",
        }
        return {
            "kind": "classifier",
            "name": self.architecture(name),
            "version": VERSION,
            "data": self.images(KINDS[name].split).specification,
            "epochs": self.study.classifier_epochs,
            "seed": self.study.seed + KINDS[name].seed,
        } | {key: value for key, value in said.items() if value}

    def architecture(self, name: str) -> str:
        """What a classifier of the study's own is built as; beside one of the user's it is `SUBSTITUTE`."""
        return (self.study.classifier if self.own is None else SUBSTITUTE) + KINDS[name].ending

    def _classifier(self, name: str = "standard") -> Classifier:
        """A trained classifier of `nbsupport.training.classifiers.KINDS`, frozen and in evaluation mode.

        Beside the user's own, which is the standard one, the others have the architecture `SUBSTITUTE`.

        Raises
        ------
        ValueError
            If there is none of this name.
        """
        if self.own is not None and name == "standard":
            return self._outside(self.own)
        if public := self.public(name):
            classifier, clean = public_weights.load(public).to(self.device), self.images("test")
            public_weights.check(
                classifier, public, clean.images[:PROBES].to(self.device), clean.labels[:PROBES]
            )
            return classifier
        specification, split, kind = (
            self.classifier_specification(name),
            self.images(KINDS[name].split),
            KINDS[name],
        )
        classes = max(
            len(split.classes), int(split.labels.max()) + 1
        )  # more than there are where numbers are left out
        build, size = kind.build, self.study.image_size
        classifier = self._seeded(lambda: build(specification["name"], classes, size), kind.seed)

        def make(scratch: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
            history = train(name, classifier, split.images, split.labels, self.study, scratch)
            used = precision(self.study.precision, self.device)
            return classifier.state_dict(), {"loss": history, "precision": used}

        tensors, _ = self.store.tensors(specification, make)
        classifier.load_state_dict(tensors)
        return classifier.eval().requires_grad_(False)

    def public(self, name: str) -> str | None:
        """The name of torchvision's trained classifier that takes a place in this study, if one does."""
        if self.study.name != neurips.NAME or self.own is not None:
            return None
        return {
            "standard": self.study.classifier,
            "second": "resnet50" if "vgg" in self.study.classifier else "vgg16",
        }.get(name)

    def _outside(self, own: nn.Module) -> Classifier:
        """The user's classifier: not trained, but tried on images that the denoisers learn from."""
        split = load(self.study, "train", min(self.study.train_images, PROBES))
        classes = None if split.specification.get("gaps") else len(split.classes)
        images, labels = split.images.to(self.device), split.labels.to(self.device)
        return wrap(own.to(self.device), images, labels, classes=classes)

    def _seeded(self, make: Callable[[], Module], added: int = 0) -> Module:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(self.study.seed + added)
            return make().to(self.device)
