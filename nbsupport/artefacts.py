"""Everything expensive in a study, by name: asked for, it is taken from the store or made."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attacks import AttackedSet, ratios
from .baselines import BASELINES, Baseline
from .classifiers import Classifier, build
from .data import Split, load
from .denoisers import Denoiser, PAFilter, View
from .recipes import RECIPES, VIEWS
from .store import Store
from .study import REL_STEP, STRONG_EPS, Study
from .training import fit

Module = TypeVar("Module", bound=nn.Module)
VERSION = 1  # part of every key: raise it when the code makes something else of a specification
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
        The study.
    store
        Where they are kept; the default store where None.
    """

    def __init__(self, study: Study, store: Store | None = None) -> None:
        self.study, self.store = study, store or Store()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        # one object per artefact and session, so that cells which ask again wait for nothing
        self.classifier = cache(self._classifier)
        self.attacked = cache(self._attacked)
        self.trained = cache(self._trained)

    def images(self, split: str) -> Split:
        """The images of the study's size: ``train`` for the denoisers, ``test`` for results."""
        return load(self.study, split, self.study.train_images if split == "train" else self.study.test_images)

    # -- the classifier under attack ---------------------------------------------------------

    def classifier_specification(self) -> dict[str, Any]:
        """What the classifier is a function of."""
        return {
            "kind": "classifier",
            "name": self.study.classifier,
            "version": VERSION,
            "data": load(self.study, "train").specification,
            "epochs": self.study.classifier_epochs,
            "seed": self.study.seed,
        }

    def _classifier(self) -> Classifier:
        """The trained classifier, frozen and in evaluation mode."""
        split = load(self.study, "train")
        classifier = self._seeded(lambda: build(self.study.classifier, len(split.classes), self.study.image_size))
        images, labels = split.images.to(self.device), split.labels.to(self.device)

        def loss(batch: Tensor, generator: torch.Generator) -> Tensor:
            shift_y, shift_x = (int(torch.randint(3, (), generator=generator)) for _ in range(2))
            padded = F.pad(images[batch], (1, 1, 1, 1), mode="replicate")
            height, width = images.shape[-2:]
            shifted = padded[..., shift_y : shift_y + height, shift_x : shift_x + width]
            return F.cross_entropy(classifier(shifted), labels[batch])

        def make(scratch: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
            history = fit(
                classifier.train(), loss, examples=len(split), epochs=self.study.classifier_epochs, batch_size=64,
                learning_rate=1e-2, seed=self.study.seed, scratch=scratch, label="training the classifier",
            )  # fmt: skip
            return classifier.state_dict(), {"loss": history}

        tensors, _ = self.store.tensors(self.classifier_specification(), make)
        classifier.load_state_dict(tensors)
        return classifier.eval().requires_grad_(False)

    # -- attacked images ---------------------------------------------------------------------

    def attacked_specification(self, split: str) -> dict[str, Any]:
        """What a set of attacked images is a function of."""
        return {
            "kind": "attacked",
            "name": f"pgd{self.study.steps}-{split}",
            "version": VERSION,
            "attack": {"name": "LinfPGD", "steps": self.study.steps, "rel_step": REL_STEP},
            "eps": list(self.study.attacked_eps),
            "seed": self.study.seed,
            "data": self.images(split).specification,
            "classifier": self.classifier_specification(),
        }

    def _attacked(self, split: str) -> AttackedSet:
        """The images of a split, attacked with PGD(n, ε) at all strengths."""
        part = self.images(split)
        strengths = self.study.attacked_eps

        def make(block: slice, missing: list[int]) -> Any:
            images, labels = part.images[block].to(self.device), part.labels[block].to(self.device)
            eps = tuple(strengths[row] for row in missing)
            options = dict(steps=self.study.steps, seed=self.study.seed)
            return ratios(self.classifier(), images, labels, eps, **options).cpu().numpy()

        shape = (len(strengths), *part.images.shape)
        array = self.store.array(self.attacked_specification(split), shape, make, f"attacking the {split} images")
        return AttackedSet(part.images, part.labels, array, self.study.eps)

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
            "epochs": study.fusion_epochs if base else study.epochs,
            "batch_size": study.batch_size,
            "learning_rate": study.fusion_learning_rate if base else study.learning_rate,
            "strong_eps": list(STRONG_EPS),
            "seed": study.seed,
            "attacked": self.attacked_specification("train"),
        }
        return specification | ({"base": self.denoiser_specification(base)} if base else {})

    def specification(self, method: str) -> dict[str, Any]:
        """What the denoiser of a table's row is a function of."""
        name, output = VIEWS.get(method, (method, None))
        trained = self.denoiser_specification(name) if name in RECIPES else None
        return {"name": method, "output": output, "trained": trained}

    def denoiser(self, method: str) -> nn.Module:
        """The denoiser of a table's row, trained and frozen; the identity for ``attacked``.

        Raises
        ------
        ValueError
            If there is no such method.
        """
        if method == "attacked":
            return nn.Identity()
        if method in BASELINES:
            return Baseline(method)
        name, output = _recipe(method)
        trained = self.trained(name)[0]
        return trained if output is None else View(trained, output).eval()  # type: ignore[arg-type]

    def report(self, method: str) -> dict[str, Any]:
        """How the training of a denoiser went: its losses, and the signs of a collapse (`_health`)."""
        return self.trained(_recipe(method)[0])[1]

    def failure(self, method: str) -> str | None:
        """Why a method's training counts as failed, or None."""
        if method != "PA-Filt(L_img)" or (spread := self.report(method)["weight_std"]) >= CONSTANT:
            return None
        return (
            f"{method}: training failed. Its W is the same everywhere (standard deviation {spread:.1e} over pixels, "
            f"images and strengths), so it only repeats a mixture of its two parts and is no row of a table."
        )

    def _trained(self, name: str) -> tuple[Denoiser, dict[str, Any]]:
        recipe, study = RECIPES[name], self.study
        denoiser = self._seeded(lambda: recipe.build(width=study.width, kernel_size=study.kernel_size))
        tensors, report = self.store.tensors(
            self.denoiser_specification(name), lambda scratch: self._train(name, denoiser, scratch)
        )
        denoiser.load_state_dict(tensors)
        return denoiser.to(self.device).eval().requires_grad_(False), report

    def _train(self, name: str, denoiser: Denoiser, scratch: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
        study, recipe, attacked = self.study, RECIPES[name], self.attacked("train")
        if isinstance(denoiser, PAFilter) and recipe.base:
            denoiser.ynet.load_state_dict(self.trained(recipe.base)[0].state_dict())
            denoiser.ynet.requires_grad_(False)
        if (recipe.strong_only or name == "Y-Net") and not set(STRONG_EPS) <= set(study.eps):
            raise ValueError(f"{name} learns from ε = {STRONG_EPS}, but the study's strengths are {study.eps}")
        objective = recipe.objective
        strengths = [study.eps.index(eps) for eps in (STRONG_EPS if recipe.strong_only else study.attacked_eps)]

        def loss(batch: Tensor, generator: torch.Generator) -> Tensor:
            # Every image comes once per strength and epoch; who has fewer strengths sees each more often.
            numbers, slots = batch % study.train_images, batch // study.train_images
            rows = torch.tensor(strengths)[slots % len(strengths)]
            clean, images = (x.to(self.device) for x in (attacked.images[numbers], attacked.pick(rows, numbers)))
            return objective(denoiser, self.classifier(), images, clean, torch.tensor(study.eps)[rows])

        wanted = self.denoiser_specification(name)
        history = fit(
            denoiser.to(self.device).train(), loss, examples=study.train_images * len(study.attacked_eps),
            epochs=wanted["epochs"], batch_size=study.batch_size, learning_rate=wanted["learning_rate"],
            seed=study.seed, scratch=scratch, label=f"training {name}",
        )  # fmt: skip
        return denoiser.state_dict(), {"loss": history} | self._health(denoiser.eval(), attacked)

    @torch.no_grad()
    def _health(self, denoiser: Denoiser, attacked: AttackedSet) -> dict[str, Any]:
        """Per strength the mean distance of Ĩ from Î, and W's mean; and W's spread over everything."""
        numbers = range(min(128, len(attacked.images)))
        batches = [attacked.at(eps, len(numbers)).to(self.device) for eps in self.study.eps]
        health: dict[str, Any] = {"change": [float((denoiser(x) - x).abs().mean()) for x in batches]}
        if isinstance(denoiser, PAFilter):
            weights = torch.stack([denoiser.parts(x).weight for x in batches])
            health["weight_mean"] = weights.flatten(1).mean(dim=1).tolist()
            health["weight_std"] = float(weights.std())
        return health

    def _seeded(self, make: Callable[[], Module]) -> Module:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(self.study.seed)
            return make().to(self.device)
