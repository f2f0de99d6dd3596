"""How the denoisers learn: from stored attacks on the bare classifier, or against attacks through themselves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..attacks.pgd import AttackedSet, pgd
from ..classifiers.models import Classifier
from ..denoisers.models import HEADS, Denoiser, MultiHead, PAFilter, View, YNet
from ..denoisers.unet import OutputLayer
from ..experiments.methods import RECIPES, Objective
from ..study import STRONG_EPS, Study
from .devices import precision
from .loop import Loss, fit
from .losses import fusion_loss

HEALTH_IMAGES, ALIVE_IMAGES = 128, 16


def training_seed(study: Study) -> int:
    """The seed of the denoisers' trainings."""
    return study.seed if study.denoiser_seed is None else study.denoiser_seed


def budget(name: str, study: Study) -> dict[str, Any]:
    """Epochs and learning rate of a recipe: the same for all, but for what only adjusts a trained denoiser."""
    recipe = RECIPES[name]
    if recipe.knowing:
        epochs, rate = study.knowing_epochs, study.fusion_learning_rate
        attack = {
            "eps": study.adversarial_eps,
            "steps": study.adversarial_steps,
            "rel_step": study.adversarial_rel_step,
        }
        return {"epochs": epochs, "learning_rate": rate, "against": attack}
    if recipe.literal:
        return {
            "epochs": study.fusion_epochs,
            "learning_rate": study.learning_rate,
            "literal": True,
        }
    if recipe.base:
        balanced = {"fusion": study.fusion} if study.fusion != "mean" else {}
        return {
            "epochs": study.fusion_epochs,
            "learning_rate": study.fusion_learning_rate,
        } | balanced
    return {"epochs": study.epochs, "learning_rate": study.learning_rate}


def train(
    name: str,
    denoiser: Denoiser,
    classifier: Classifier,
    attacked: AttackedSet,
    study: Study,
    scratch: Path,
) -> dict[str, Any]:
    """Train the denoiser of a recipe in place; go on from `scratch` after an interruption.

    Parameters
    ----------
    name, denoiser
        Of `nbsupport.experiments.methods.RECIPES`; the weights of its base, where it has one, are in it.
    classifier
        Frozen.
    attacked
        The training images.
    study, scratch
        Sizes and seed; the folder for checkpoints.

    Returns
    -------
    Its losses, and the signs of a collapse (`health`).

    Raises
    ------
    ValueError
        If the recipe learns from strengths that the study does not have.
    """
    recipe = RECIPES[name]
    if (recipe.strong_only or name == "Y-Net") and not set(STRONG_EPS) <= set(study.eps):
        raise ValueError(
            f"{name} learns from ε = {STRONG_EPS}, but the study's strengths are {study.eps}"
        )
    if isinstance(denoiser, PAFilter) and not recipe.knowing:
        denoiser.ynet.requires_grad_(False)
    loss = (_knowing if recipe.knowing else _oblivious)(name, denoiser, classifier, attacked, study)
    wanted = budget(name, study)
    history = fit(
        denoiser.train(), loss, examples=len(attacked.images) * (1 if recipe.knowing else len(study.attacked_eps)),
        epochs=wanted["epochs"], batch_size=study.batch_size, learning_rate=wanted["learning_rate"],
        seed=training_seed(study), scratch=scratch, label=f"training {name}", precision=study.precision,
    )  # fmt: skip
    used = precision(study.precision, next(denoiser.parameters()).device)
    return {"loss": history, "precision": used} | health(denoiser.eval(), attacked)


def _oblivious(
    name: str, denoiser: Denoiser, classifier: Classifier, attacked: AttackedSet, study: Study
) -> Loss:
    recipe, device = RECIPES[name], next(denoiser.parameters()).device
    balanced = study.fusion == "balanced" and recipe.base == "Y-Net" and not recipe.literal
    objective = _balanced(denoiser, classifier, attacked) if balanced else recipe.objective
    strengths = [
        study.eps.index(eps) for eps in (STRONG_EPS if recipe.strong_only else study.attacked_eps)
    ]

    def loss(batch: Tensor, generator: torch.Generator) -> Tensor:
        # Every image comes once per strength and epoch; who has fewer strengths sees each more often.
        numbers, slots = batch % len(attacked.images), batch // len(attacked.images)
        rows = torch.tensor(strengths)[slots % len(strengths)]
        clean, images = (
            x.to(device) for x in (attacked.images[numbers], attacked.pick(rows, numbers))
        )
        return objective(denoiser, classifier, images, clean, torch.tensor(study.eps)[rows])

    return loss


@torch.no_grad()
def _balanced(denoiser: Denoiser, classifier: Classifier, attacked: AttackedSet) -> Objective:
    """The fusion's loss over that of the untrained fusion, W = ½, on average at the same strength."""
    number, device = min(HEALTH_IMAGES, len(attacked.images)), classifier.mean.device
    clean, strengths = attacked.images[:number].to(device), torch.tensor(attacked.eps)
    start = torch.stack([fusion_loss(classifier, denoiser(attacked.at(eps, number).to(device)), clean)
                         for eps in attacked.eps])  # fmt: skip

    def objective(
        denoiser: Denoiser, classifier: Classifier, images: Tensor, clean: Tensor, eps: Tensor
    ) -> Tensor:
        rows = (eps[:, None] == strengths).float().argmax(dim=1)
        return fusion_loss(classifier, denoiser(images), clean, 1 / start[rows.to(device)])

    return objective


def _knowing(
    name: str, denoiser: Denoiser, classifier: Classifier, attacked: AttackedSet, study: Study
) -> Loss:
    """Against PGD through denoiser and classifier as they are now, with a strength of its own for each image."""
    chain, device = nn.Sequential(denoiser, classifier), next(denoiser.parameters()).device

    def loss(batch: Tensor, generator: torch.Generator) -> Tensor:
        clean, labels = attacked.images[batch].to(device), attacked.labels[batch].to(device)
        eps = (study.adversarial_eps * torch.rand(len(batch), generator=generator)).to(device)
        seed = int(torch.randint(2**31, (), generator=generator))
        options: dict[str, Any] = {
            "steps": study.adversarial_steps,
            "rel_step": study.adversarial_rel_step,
        }
        images = pgd(chain.eval(), clean, labels, eps, seed=seed, **options)
        return RECIPES[name].objective(denoiser.train(), classifier, images, clean, eps)

    return loss


@torch.no_grad()
def health(denoiser: Denoiser, attacked: AttackedSet) -> dict[str, Any]:
    """Per strength the mean distance of Ĩ from Î and, where there is a W, its mean; and W's spread over everything.

    Also, for each output layer, the share of the features before it that are above 0: none are where the
    ReLUs of a decoder died, which then says the same of every pixel.
    """
    number, device = min(HEALTH_IMAGES, len(attacked.images)), next(denoiser.parameters()).device
    batches = [attacked.at(eps, number).to(device) for eps in attacked.eps]
    found: dict[str, Any] = {"change": [float((denoiser(x) - x).abs().mean()) for x in batches]}
    found["alive"] = _alive(denoiser, torch.cat([batch[:ALIVE_IMAGES] for batch in batches]))
    if isinstance(denoiser, PAFilter):
        weights = torch.stack([denoiser.parts(x).weight for x in batches])
        found["weight_mean"] = weights.flatten(1).mean(dim=1).tolist()
        found["weight_std"] = float(weights.std())
    return found


def _alive(denoiser: Denoiser, images: Tensor) -> dict[str, float]:
    found: dict[str, float] = {}
    layers = {
        name: layer for name, layer in denoiser.named_modules() if isinstance(layer, OutputLayer)
    }

    def noting(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        return lambda layer, inputs: found.update({name: float((inputs[0] > 0).float().mean())})

    hooks = [layer.register_forward_pre_hook(noting(name)) for name, layer in layers.items()]
    outputs = range(1, HEADS + 1) if isinstance(denoiser, MultiHead) else ("sl", "m")
    views = (
        [View(denoiser, output) for output in outputs]
        if isinstance(denoiser, MultiHead | YNet)
        else [denoiser]
    )
    for view in views:
        view(images)
    for hook in hooks:
        hook.remove()
    return found
