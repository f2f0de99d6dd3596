"""Training of denoisers: the paper's losses, a recipe for each denoiser, signs of a collapse."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ..attacks.pgd import AttackedSet, pgd
from ..classifiers.models import Classifier
from ..data.images import Images
from ..denoisers.models import Additive, Denoiser, Filtering, MultiHead, PAFilter, View, YNet
from ..study import STRONG_EPS, Study
from .loop import choose_precision, fit

HEALTH_IMAGES = 128
ATTACK = "adversarial_eps", "adversarial_steps", "adversarial_rel_step"
Scalar = Float[Tensor, ""]


def image_loss(denoised: Images, clean: Images) -> Scalar:
    """L_img = ‖I − Ĩ‖₁ (eq. 4), averaged over all values."""
    return F.l1_loss(denoised, clean)


def semantic_loss(classifier: Classifier, denoised: Images, clean: Images) -> Scalar:
    """L_sem = ‖φ(I) − φ(Ĩ)‖₁ for the logits φ (eq. 5), averaged over all values."""
    return F.l1_loss(classifier(denoised), classifier(clean).detach())


def fusion_loss(
    classifier: Classifier, fused: Images, clean: Images, weights: Float[Tensor, "b"] | None = None
) -> Scalar:
    """Cross-entropy of fused images with clean ones' probabilities, weighted mean (section 4.2)."""
    probabilities = classifier(clean).detach().softmax(dim=1)
    losses = F.cross_entropy(classifier(fused), probabilities, reduction="none")
    return (losses if weights is None else losses * weights).mean()


Objective = Callable[[Denoiser, Classifier, Tensor, Tensor, Tensor], Tensor]
"""A loss of (denoiser, classifier, attacked images, clean images, ε of each)."""


def _compare(loss: Callable[[Classifier, Images, Images], Tensor]) -> Objective:
    """The objective that compares all denoised images with the clean ones."""
    return lambda denoiser, classifier, images, clean, _: loss(classifier, denoiser(images), clean)


def _heads(denoiser: Any, _: Classifier, images: Tensor, clean: Tensor, eps: Tensor) -> Tensor:
    """Each image trains the head for its strength (section 3.4)."""
    bands, losses = torch.tensor([MultiHead.band(each) for each in eps.tolist()]), []
    for head in bands.unique().tolist():
        rows = (bands == head).to(images.device)
        loss = image_loss(View(denoiser, head)(images[rows]), clean[rows])
        losses.append(loss * rows.sum() / len(images))
    return torch.stack(losses).sum()


def _branches(denoiser: Any, _: Classifier, images: Tensor, clean: Tensor, eps: Tensor) -> Tensor:
    """All images train φ_sl, those under strong attacks also φ_m (section 4.2)."""
    loss = image_loss(View(denoiser, "sl")(images), clean)
    strong = torch.isin(eps, torch.tensor(STRONG_EPS)).to(images.device)
    if strong.any():
        loss = loss + image_loss(View(denoiser, "m")(images[strong]), clean[strong])
    return loss


@dataclass(frozen=True)
class Recipe:
    """How a denoiser is built and trained."""

    build: Callable[..., Denoiser]  # takes width and kernel_size
    objective: Objective
    settings: tuple[str, ...] = ("epochs", "learning_rate")  # the study's for these two, and more
    strong_only: bool = False  # learns from the attacks of STRONG_EPS only
    base: str | None = None  # the recipe whose denoiser it starts from
    adaptive: bool = False  # learns from PGD through itself and the classifier


_IMAGE = _compare(lambda classifier, denoised, clean: image_loss(denoised, clean))
_SEMANTIC, _FUSION = _compare(semantic_loss), _compare(fusion_loss)
_FUSED = ("fusion_epochs", "fusion_learning_rate", "fusion")
_PUBLISHED = partial(PAFilter, as_published=True), _FUSION, ("fusion_epochs", "learning_rate")
_ADAPTIVE = ("adaptive_epochs", "fusion_learning_rate", *ATTACK)
RECIPES = {
    "Add(L_img)": Recipe(Additive, _IMAGE),
    "Add(L_sem)": Recipe(Additive, _SEMANTIC),
    "Filt(L_img)": Recipe(Filtering, _IMAGE),
    "Filt(L_sem)": Recipe(Filtering, _SEMANTIC),
    "Filt(L_img*)": Recipe(Filtering, _IMAGE, strong_only=True),
    "Multi-head-Filt(L_img)": Recipe(MultiHead, _heads),
    "Y-Net": Recipe(YNet, _branches),
    "PA-Filt(L_img)": Recipe(PAFilter, _FUSION, _FUSED, base="Y-Net"),
    "PA-Filt(L_img)_as_published": Recipe(*_PUBLISHED, base="Y-Net"),
    "PA-Filt(L_adv)": Recipe(PAFilter, _FUSION, _ADAPTIVE, base="PA-Filt(L_img)", adaptive=True),
}


def training_seed(study: Study) -> int:
    """The seed of the denoisers' trainings."""
    return study.seed if study.denoiser_seed is None else study.denoiser_seed


def specify_training(name: str, study: Study) -> dict[str, Any]:
    """The settings of a recipe's training, for its key."""
    keys = "epochs", "learning_rate", *RECIPES[name].settings[2:]
    pairs = zip(keys, RECIPES[name].settings, strict=True)
    return {key: getattr(study, setting) for key, setting in pairs}


def train(
    name: str, denoiser: Denoiser, classifier: Classifier, attacked: AttackedSet, study: Study,
    scratch: Path,
) -> dict[str, Any]:  # fmt: skip
    """Train the denoiser of a recipe in place; return its losses and `health`.

    The classifier is frozen, and the denoiser holds the weights of its base; `scratch` as in `fit`.
    Raises `ValueError` if the study lacks strengths that the recipe needs.
    """
    recipe, settings, device = RECIPES[name], specify_training(name, study), classifier.mean.device
    if (recipe.strong_only or name == "Y-Net") and not set(STRONG_EPS) <= set(study.eps):
        raise ValueError(f"{name} needs ε = {STRONG_EPS}, but the study has {study.eps}")
    if isinstance(denoiser, PAFilter) and not recipe.adaptive:
        denoiser.ynet.requires_grad_(False)
    balanced = settings.get("fusion") == "balanced"
    objective = _balance(denoiser, classifier, attacked) if balanced else recipe.objective
    strengths = STRONG_EPS if recipe.strong_only else study.attacked_eps
    rows, number = torch.tensor([study.eps.index(eps) for eps in strengths]), len(attacked.images)
    chain = nn.Sequential(denoiser, classifier)
    attack = partial(pgd, steps=study.adversarial_steps, rel_step=study.adversarial_rel_step)

    def learn_from_stored(batch: Tensor, _: torch.Generator) -> Tensor:
        # each image comes once per strength of the study, at fewer strengths more than once
        numbers, chosen = batch % number, rows[batch // number % len(rows)]
        clean, eps = attacked.images[numbers].to(device), torch.tensor(study.eps)[chosen]
        images = attacked.pick(chosen, numbers).to(device)
        return objective(denoiser, classifier, images, clean, eps)

    def learn_adaptively(batch: Tensor, generator: torch.Generator) -> Tensor:
        clean, labels = attacked.images[batch].to(device), attacked.labels[batch].to(device)
        eps = (study.adversarial_eps * torch.rand(len(batch), generator=generator)).to(device)
        seed = int(torch.randint(2**31, (), generator=generator))
        images = attack(chain.eval(), clean, labels, eps, seed=seed)
        return objective(denoiser.train(), classifier, images, clean, eps)

    losses = fit(
        denoiser.train(), learn_adaptively if recipe.adaptive else learn_from_stored,
        examples=number * (1 if recipe.adaptive else len(study.attacked_eps)),
        epochs=settings["epochs"], learning_rate=settings["learning_rate"],
        batch_size=study.batch_size, seed=training_seed(study), scratch=scratch,
        label=f"training {name}", precision=study.precision,
    )  # fmt: skip
    report = {"loss": losses, "precision": choose_precision(study.precision, device)}
    return report | health(denoiser.eval(), attacked)


def _batches(attacked: AttackedSet, denoiser: Denoiser) -> list[Images]:
    """The first images at each strength."""
    device = next(denoiser.parameters()).device
    return [attacked.at(eps, HEALTH_IMAGES).to(device) for eps in attacked.eps]


@torch.no_grad()
def _balance(denoiser: Denoiser, classifier: Classifier, attacked: AttackedSet) -> Objective:
    """The fusion's loss relative to the mean at the same strength before training (W = ½)."""
    clean, *_ = batches = _batches(attacked, denoiser)
    start = torch.stack([fusion_loss(classifier, denoiser(x), clean) for x in batches])
    strengths = torch.tensor(attacked.eps)

    def objective(denoiser: Any, _: Any, images: Tensor, clean: Tensor, eps: Tensor) -> Tensor:
        weights = 1 / start[torch.searchsorted(strengths, eps).to(start.device)]
        return fusion_loss(classifier, denoiser(images), clean, weights)

    return objective


@torch.no_grad()
def health(denoiser: Denoiser, attacked: AttackedSet) -> dict[str, Any]:
    """Signs of a collapse: mean |Ĩ − Î| and mean W at each strength, W's standard deviation."""
    batches = _batches(attacked, denoiser)
    report: dict[str, Any] = {"change": [float((denoiser(x) - x).abs().mean()) for x in batches]}
    if isinstance(denoiser, PAFilter):
        weights = torch.stack([denoiser.parts(x).weight for x in batches])
        report["weight_mean"] = weights.flatten(1).mean(dim=1).tolist()
        report["weight_std"] = float(weights.std())
    return report
