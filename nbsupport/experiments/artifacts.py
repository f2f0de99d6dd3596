"""Everything expensive in a study, by name: asked for, it is taken from the store or made."""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..attacks.pgd import AttackedSet, per_pass, ratios
from ..denoisers.baselines import BASELINES, Baseline
from ..denoisers.models import Denoiser, View
from ..study import REL_STEP, STRONG_EPS, Study
from ..training import denoisers as denoiser_training
from ..training.classifiers import KINDS, target
from ..training.denoisers import training_seed
from .classifier_artifacts import SPLITS, VERSION, ClassifierArtefacts
from .cluster import share_out, team, wait_for_team
from .fingerprints import made_from
from .methods import RECIPES, VIEWS, parts, trainings
from .store import Store

CONSTANT = (
    1e-2  # a W whose standard deviation over pixels, images and strengths is below this is constant
)


def _recipe(method: str) -> tuple[str, int | str | None]:
    """The recipe that makes a method, and which of its outputs the method is (None for all)."""
    name, output = VIEWS.get(method, (method, None))
    if name not in RECIPES:
        known = ["attacked", *RECIPES, *VIEWS, *BASELINES]
        raise ValueError(f"no method named {method!r}; there are: {', '.join(known)}")
    return name, output


class Artefacts(ClassifierArtefacts):
    """The artefacts of one study.

    Parameters
    ----------
    study
        The study. It is told how many images there are where those are the user's own.
    store
        Where they are kept; the default store where None.
    own
        A trained classifier to put in the place of the study's, see `nbsupport.classifiers.models.wrap`.
    """

    def __init__(
        self, study: Study, store: Store | None = None, own: nn.Module | None = None
    ) -> None:
        super().__init__(study, store, own)
        # one object per artefact and session, so that cells which ask again wait for nothing
        self.attacked = cache(self._attacked)
        self.trained = cache(self._trained)

    # -- attacked images ---------------------------------------------------------------------

    def attacked_specification(
        self,
        split: str,
        steps: int | None = None,
        eps: tuple[float, ...] | None = None,
        classifier: str = "standard",
    ) -> dict[str, Any]:
        """What a set of attacked images is a function of."""
        steps, loss = steps or self.study.steps, KINDS[classifier].loss
        attack = {"name": "LinfPGD", "steps": steps, "rel_step": REL_STEP}
        return {
            "kind": "attacked",
            "name": f"pgd{steps}-{SPLITS[split]}",
            "version": VERSION,
            "attack": attack if loss == "cross-entropy" else attack | {"loss": loss},
            "eps": list(eps or self.study.attacked_eps),
            "seed": self.study.seed,
            "data": self.images(split).specification,
            "classifier": self.classifier_specification(classifier),
        }

    def _attacked(
        self,
        split: str,
        steps: int | None = None,
        eps: tuple[float, ...] | None = None,
        classifier: str = "standard",
    ) -> AttackedSet:
        """The images of a split, attacked with PGD(n, ε).

        Parameters
        ----------
        split
            ``train``, ``test`` or ``own``, see `images`.
        steps
            n; the study's where None.
        eps
            Strengths above 0; all of the study where None.
        classifier
            Which one is attacked. The denoisers and all tables use ``standard``.
        """
        part, specification = (
            self.images(split),
            self.attacked_specification(split, steps, eps, classifier),
        )
        strengths: tuple[float, ...] = tuple(specification["eps"])
        attacked = self.classifier(classifier)

        def make(block: slice, missing: list[int]) -> Any:
            images, labels = part.images[block].to(self.device), part.labels[block].to(self.device)
            eps = tuple(strengths[row] for row in missing)
            how = {
                "steps": specification["attack"]["steps"],
                "seed": self.study.seed,
                "loss": KINDS[classifier].loss,
            }
            return ratios(target(attacked), images, labels, eps, **how).cpu().numpy()

        victim = "" if classifier == "standard" else f" ({classifier})"
        label = f"attacking the {SPLITS[split]} images{victim}"
        shape = (len(strengths), *part.images.shape)
        array = self.store.array(
            made_from(specification, attacked), shape, make, label, per_pass(self.device)
        )
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
            "seed": training_seed(study),
            "attacked": self.attacked_specification("train"),
        } | denoiser_training.budget(name, study)
        return specification | ({"base": self.denoiser_specification(base)} if base else {})

    def specification(self, method: str) -> dict[str, Any]:
        """What the denoiser of a table's row is a function of."""
        denoiser, classifier = parts(method)
        name, output = VIEWS.get(denoiser, (denoiser, None))
        trained = self.denoiser_specification(name) if name in RECIPES else None
        before = (
            {}
            if classifier == "standard"
            else {"classifier": self.classifier_specification(classifier)}
        )
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

    def train(self, methods: Iterable[str]) -> None:
        """Train all denoisers that some methods of the tables need, by all processes that were started together.

        Each trains others, because who works alone sends nothing; those that are fewer than the processes, all
        train together.
        """
        names = trainings(methods)
        missing = [name for name in names if not self._is_trained(name)]
        wait_for_team()  # until everyone has seen what is missing
        if missing:
            self.attacked("train")
        if len(missing) >= team()[1]:
            share_out(missing, self.trained)
        for name in names:
            self.trained(name)

    def _is_trained(self, name: str) -> bool:
        base = RECIPES[name].base
        return (base is None or self._is_trained(base)) and self.store.has(
            self._trained_specification(name)
        )

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

    def _bases(self, name: str) -> list[Denoiser]:
        base = RECIPES[name].base
        return [self.trained(base)[0]] if base else []

    def _trained_specification(self, name: str) -> dict[str, Any]:
        return made_from(self.denoiser_specification(name), self.classifier(), *self._bases(name))

    def _trained(self, name: str) -> tuple[Denoiser, dict[str, Any]]:
        recipe, study = RECIPES[name], self.study
        added = training_seed(study) - study.seed
        denoiser = self._seeded(
            lambda: recipe.build(width=study.width, kernel_size=study.kernel_size), added
        )

        def make(scratch: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
            for trained in self._bases(name):
                part = denoiser.get_submodule("ynet") if recipe.base == "Y-Net" else denoiser
                part.load_state_dict(trained.state_dict())
            report = denoiser_training.train(
                name, denoiser, self.classifier(), self.attacked("train"), study, scratch
            )
            return denoiser.state_dict(), report

        # who learns against attacks as it goes draws their strengths, which would differ with the shares of a batch
        tensors, report = self.store.tensors(
            self._trained_specification(name), make, together=not recipe.knowing
        )
        denoiser.load_state_dict(tensors)
        return denoiser.to(self.device).eval().requires_grad_(False), report
