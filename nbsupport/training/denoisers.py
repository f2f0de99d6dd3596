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
    """Cross-entropy on the fused images against the probabilities on the clean ones (section 4.2).

    The mean over images, each multiplied by its weight first.
    """
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
    strong_only: bool = False  # learns from the attacks of STRONG_EPS only
    base: str | None = None  # the recipe whose denoiser it starts from
    adaptive: bool = False  # learns from PGD through itself and the classifier
    as_published: bool = False  # the paper's fusion: its inputs, loss and learning rate


_IMAGE = _compare(lambda classifier, denoised, clean: image_loss(denoised, clean))
_SEMANTIC, _FUSION = _compare(semantic_loss), _compare(fusion_loss)
_PUBLISHED = partial(PAFilter, as_published=True)
RECIPES = {
    "Add(L_img)": Recipe(Additive, _IMAGE),
    "Add(L_sem)": Recipe(Additive, _SEMANTIC),
    "Filt(L_img)": Recipe(Filtering, _IMAGE),
    "Filt(L_sem)": Recipe(Filtering, _SEMANTIC),
    "Filt(L_img*)": Recipe(Filtering, _IMAGE, strong_only=True),
    "Multi-head-Filt(L_img)": Recipe(MultiHead, _heads),
    "Y-Net": Recipe(YNet, _branches),
    "PA-Filt(L_img)": Recipe(PAFilter, _FUSION, base="Y-Net"),
    "PA-Filt(L_img)_as_published": Recipe(_PUBLISHED, _FUSION, base="Y-Net", as_published=True),
    "PA-Filt(L_adv)": Recipe(PAFilter, _FUSION, base="PA-Filt(L_img)", adaptive=True),
}


def training_seed(study: Study) -> int:
    """The seed of the denoisers' trainings."""
    return study.seed if study.denoiser_seed is None else study.denoiser_seed


def specify_training(name: str, study: Study) -> dict[str, Any]:
    """The settings of a recipe's training, for its key."""
    recipe, keys = RECIPES[name], ("eps", "steps", "rel_step")
    if recipe.base is None or recipe.as_published:
        epochs = study.fusion_epochs if recipe.base else study.epochs
        return {"epochs": epochs, "learning_rate": study.learning_rate}
    rate = {"learning_rate": study.fusion_learning_rate}
    if recipe.adaptive:
        attack = {key: getattr(study, f"adversarial_{key}") for key in keys}
        return {"epochs": study.adaptive_epochs, "against": attack} | rate
    return {"epochs": study.fusion_epochs, "fusion": study.fusion} | rate


def train(
    name: str, denoiser: Denoiser, classifier: Classifier, attacked: AttackedSet, study: Study,
    scratch: Path,
) -> dict[str, Any]:  # fmt: skip
    """Train the denoiser of a recipe in place; return its losses and `health`.

    The classifier is frozen, and the denoiser holds the weights of its base; `scratch` as in `fit`.
    Raises `ValueError` if the study lacks strengths that the recipe needs.
    """
    recipe, options, device = RECIPES[name], specify_training(name, study), classifier.mean.device
    if (recipe.strong_only or name == "Y-Net") and not set(STRONG_EPS) <= set(study.eps):
        raise ValueError(f"{name} needs ε = {STRONG_EPS}, but the study has {study.eps}")
    if isinstance(denoiser, PAFilter) and not recipe.adaptive:
        denoiser.ynet.requires_grad_(False)
    balanced = options.get("fusion") == "balanced"
    objective = _balance(denoiser, classifier, attacked) if balanced else recipe.objective
    strengths = STRONG_EPS if recipe.strong_only else study.attacked_eps
    rows = torch.tensor([study.eps.index(eps) for eps in strengths])
    chain = nn.Sequential(denoiser, classifier)
    steps, rel_step = study.adversarial_steps, study.adversarial_rel_step

    def learn_from_stored(batch: Tensor, _: torch.Generator) -> Tensor:
        # every image comes once per strength of the study; of fewer strengths, each comes more often
        number = len(attacked.images)
        numbers, chosen = batch % number, rows[batch // number % len(rows)]
        clean, eps = attacked.images[numbers].to(device), torch.tensor(study.eps)[chosen]
        images = attacked.pick(chosen, numbers).to(device)
        return objective(denoiser, classifier, images, clean, eps)

    def learn_adaptively(batch: Tensor, generator: torch.Generator) -> Tensor:
        clean, labels = attacked.images[batch].to(device), attacked.labels[batch].to(device)
        eps = (study.adversarial_eps * torch.rand(len(batch), generator=generator)).to(device)
        seed = int(torch.randint(2**31, (), generator=generator))
        images = pgd(chain.eval(), clean, labels, eps, steps=steps, rel_step=rel_step, seed=seed)
        return objective(denoiser.train(), classifier, images, clean, eps)

    losses = fit(
        denoiser.train(), learn_adaptively if recipe.adaptive else learn_from_stored,
        examples=len(attacked.images) * (1 if recipe.adaptive else len(study.attacked_eps)),
        epochs=options["epochs"], learning_rate=options["learning_rate"],
        batch_size=study.batch_size, seed=training_seed(study), scratch=scratch,
        label=f"training {name}", precision=study.precision,
    )  # fmt: skip
    report = {"loss": losses, "precision": choose_precision(study.precision, device)}
    return report | health(denoiser.eval(), attacked)


@torch.no_grad()
def _balance(denoiser: Denoiser, classifier: Classifier, attacked: AttackedSet) -> Objective:
    """The fusion's loss, relative to the mean loss at the same strength before training (W = ½)."""
    number, device = min(HEALTH_IMAGES, len(attacked.images)), classifier.mean.device
    clean, strengths = attacked.images[:number].to(device), torch.tensor(attacked.eps)
    batches = (attacked.at(eps, number).to(device) for eps in attacked.eps)
    start = torch.stack([fusion_loss(classifier, denoiser(x), clean) for x in batches])

    def weigh(eps: Tensor) -> Tensor:
        return 1 / start[(eps[:, None] == strengths).float().argmax(dim=1).to(device)]

    return lambda denoiser, classifier, images, clean, eps: fusion_loss(
        classifier, denoiser(images), clean, weigh(eps)
    )


@torch.no_grad()
def health(denoiser: Denoiser, attacked: AttackedSet) -> dict[str, Any]:
    """Signs of a collapse: at each strength the mean |Ĩ − Î| and the mean of W; W's deviation."""
    number, device = min(HEALTH_IMAGES, len(attacked.images)), next(denoiser.parameters()).device
    batches = [attacked.at(eps, number).to(device) for eps in attacked.eps]
    report: dict[str, Any] = {"change": [float((denoiser(x) - x).abs().mean()) for x in batches]}
    if isinstance(denoiser, PAFilter):
        weights = torch.stack([denoiser.parts(x).weight for x in batches])
        report["weight_mean"] = weights.flatten(1).mean(dim=1).tolist()
        report["weight_std"] = float(weights.std())
    return report
