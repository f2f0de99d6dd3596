"""Training of denoisers: the paper's losses, a recipe for each denoiser, signs of a collapse."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio

from ..attacks.pgd import AttackedSet, pgd
from ..classifiers.models import Classifier
from ..data.images import Images
from ..denoisers.models import (
    HGD,
    Additive,
    Denoiser,
    Filtering,
    MultiHead,
    PAFilter,
    View,
    YNet,
)
from ..denoisers.unet import Decoder
from ..study import STRONG_EPS, Study
from .loop import choose_precision, fit

HEALTH_IMAGES = 64
ALIVE = 0.1  # of a decoder's last features must vary, over images and pixels at every strength
MOTION = 1e-4  # the least mean |Ĩ − Î| at the strongest attack
EQUAL = 140.0  # dB: above it two images differ by rounding in float32 only
CONSTANT = 1e-2  # a W of smaller standard deviation over pixels, images and strengths is constant
ATTACK = "adversarial_eps", "adversarial_steps", "adversarial_rel_step"
Scalar = Float[Tensor, ""]


def image_loss(denoised: Images, clean: Images) -> Scalar:
    """L_img = ‖I − Ĩ‖₁ (eq. 4), averaged over all values."""
    return F.l1_loss(denoised, clean)


def semantic_loss(classifier: Classifier, denoised: Images, clean: Images) -> Scalar:
    """L_sem = ‖φ(I) − φ(Ĩ)‖₁ for the logits φ (eq. 5), averaged over all values."""
    return F.l1_loss(classifier.unchecked(denoised), classifier.unchecked(clean).detach())


def fusion_loss(
    classifier: Classifier, fused: Images, clean: Images, weights: Float[Tensor, "b"] | None = None
) -> Scalar:
    """Cross-entropy of fused images with clean ones' probabilities, weighted mean (section 4.2)."""
    probabilities = classifier.unchecked(clean).detach().softmax(dim=1)
    losses = F.cross_entropy(classifier.unchecked(fused), probabilities, reduction="none")
    return (losses if weights is None else losses * weights).mean()


def logit_divergence(
    classifier: Classifier,
    denoised: Images,
    clean: Images,
    weights: Float[Tensor, "b"] | None = None,
) -> Scalar:
    """KL(classifier on clean ‖ on denoised images), weighted mean over images."""
    expected, found = (classifier.unchecked(x).log_softmax(dim=1) for x in (clean, denoised))
    losses = F.kl_div(found, expected.detach(), reduction="none", log_target=True).sum(dim=1)
    return (losses if weights is None else losses * weights).mean()


Objective = Callable[..., Tensor]
"""A loss of (denoiser, classifier, attacked images, clean images, ε of each, weight of each)."""


def _compare(loss: Callable[[Classifier, Images, Images], Tensor]) -> Objective:
    """The objective that compares all denoised images with the clean ones."""
    return lambda denoiser, classifier, images, clean, *_: loss(classifier, denoiser(images), clean)


def _heads(
    denoiser: Any, _: Classifier, images: Tensor, clean: Tensor, eps: Tensor, *_weights: Tensor
) -> Tensor:
    """Each image trains the head for its strength (section 3.4)."""
    bands, losses = torch.tensor([MultiHead.band(each) for each in eps.tolist()]), []
    for head in bands.unique().tolist():
        rows = (bands == head).to(images.device)
        loss = image_loss(View(denoiser, head)(images[rows]), clean[rows])
        losses.append(loss * rows.sum() / len(images))
    return torch.stack(losses).sum()


def _branches(
    denoiser: Any, _: Classifier, images: Tensor, clean: Tensor, eps: Tensor, *_weights: Tensor
) -> Tensor:
    """All images train φ_sl, those under strong attacks also φ_m (section 4.2)."""
    loss = image_loss(View(denoiser, "sl")(images), clean)
    strong = torch.isin(eps, torch.tensor(STRONG_EPS)).to(images.device)
    if strong.any():
        loss = loss + image_loss(View(denoiser, "m")(images[strong]), clean[strong])
    return loss


def _fused(
    denoiser: Any, classifier: Any, images: Tensor, clean: Tensor, _: Tensor, *weights: Tensor
) -> Tensor:
    """The fused images alone (section 4.2)."""
    return fusion_loss(classifier, denoiser(images), clean, *weights)


def _fused_and_parts(
    image_weight: float, denoiser: Any, classifier: Any, images: Tensor, clean: Tensor,
    eps: Tensor, weights: Tensor,
) -> Tensor:  # fmt: skip
    """Both losses of the fused image and of the part for its ε: images and logits that stay.

    Without the second, sl and m learn the same, and W has nothing to choose.
    """
    parts = denoiser.parts(images)
    strong = torch.isin(eps, torch.tensor(STRONG_EPS)).to(images.device)
    part = torch.where(strong[:, None, None, None], parts.m, parts.sl)
    losses = (
        image_weight * image_loss(x, clean) + logit_divergence(classifier, x, clean, weights)
        for x in (denoiser.fuse(parts).clamp(0, 1), part)
    )
    return torch.stack([*losses]).mean()


@dataclass(frozen=True)
class Recipe:
    """How a denoiser is built and trained."""

    build: Callable[..., Denoiser]  # takes width and kernel_size
    objective: Objective
    settings: tuple[str, ...] = ("epochs", "learning_rate")  # the study's for these two, and more
    strong_only: bool = False  # learns from the attacks of STRONG_EPS only
    base: str | None = None  # the recipe whose denoiser it starts from
    at_operating_point: bool = False  # from its base's checkpoint near the published clean PSNR
    adaptive: bool = False  # learns from PGD through itself and the classifier
    checkpoints: bool = False  # keeps its weights from `log_spaced` steps on


_IMAGE = _compare(lambda classifier, denoised, clean: image_loss(denoised, clean))
_SEMANTIC = _compare(semantic_loss)
_FUSED = ("fusion_epochs", "fusion_learning_rate", "fusion", "fusion_inputs", "fusion_start")
_PUBLISHED = partial(PAFilter, as_published=True), _fused, ("fusion_epochs", "learning_rate")
_BOTH = ("epochs", "joint_learning_rate", "image_weight", "fusion_inputs")
_ADAPTIVE = ("adaptive_epochs", "fusion_learning_rate", "fusion_inputs", *ATTACK)
RECIPES = {
    "Add(L_img)": Recipe(Additive, _IMAGE),
    "Add(L_sem)": Recipe(Additive, _SEMANTIC),
    "Filt(L_img)": Recipe(Filtering, _IMAGE),
    "Filt(L_sem)": Recipe(Filtering, _SEMANTIC),
    "Filt(L_img*)": Recipe(Filtering, _IMAGE, strong_only=True),
    "HGD": Recipe(lambda width, kernel_size: HGD(width), _SEMANTIC),
    "Multi-head-Filt(L_img)": Recipe(MultiHead, _heads),
    "Y-Net": Recipe(YNet, _branches),
    "PA-Filt(L_img)": Recipe(PAFilter, _fused, _FUSED, base="Y-Net"),
    # from the identity, it stays there
    "PA-Filt(L_img+KL)": Recipe(
        PAFilter, _fused_and_parts, _BOTH, base="Y-Net_as_published", at_operating_point=True
    ),
    "Add(L_img)_as_published": Recipe(partial(Additive, as_published=True), _IMAGE),
    "Filt(L_img)_as_published": Recipe(
        partial(Filtering, as_published=True), _IMAGE, checkpoints=True
    ),
    "Y-Net_as_published": Recipe(partial(YNet, as_published=True), _branches, checkpoints=True),
    "PA-Filt(L_img)_as_published": Recipe(*_PUBLISHED, base="Y-Net_as_published"),
    "PA-Filt(L_adv)": Recipe(PAFilter, _fused, _ADAPTIVE, base="PA-Filt(L_img)", adaptive=True),
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

    The classifier is frozen, and the denoiser holds the weights of its base; `scratch` as in `fit`,
    where a recipe with `checkpoints` leaves them. Raises `ValueError` if the study lacks strengths
    that the recipe needs, `FloatingPointError` if the training diverges.
    """
    recipe, settings, device = RECIPES[name], specify_training(name, study), classifier.mean.device
    if (recipe.strong_only or isinstance(denoiser, YNet)) and not set(STRONG_EPS) <= set(study.eps):
        raise ValueError(f"{name} needs ε = {STRONG_EPS}, but the study has {study.eps}")
    objective, weights = recipe.objective, torch.ones(len(study.eps), device=device)
    if "image_weight" in settings:
        weights = weigh_divergences(classifier, _batches(attacked, denoiser))
        objective = partial(objective, settings["image_weight"])
    elif isinstance(denoiser, PAFilter) and not recipe.adaptive:
        denoiser.ynet.requires_grad_(False)
    if "fusion" in settings:
        weights = weigh_fusion_losses(settings["fusion"], denoiser, classifier, attacked)
    strengths = STRONG_EPS if recipe.strong_only else study.attacked_eps
    rows, number = torch.tensor([study.eps.index(eps) for eps in strengths]), len(attacked.images)
    chain = nn.Sequential(denoiser, classifier)
    attack = partial(pgd, steps=study.adversarial_steps, rel_step=study.adversarial_rel_step)

    def learn_from_stored(batch: Tensor, _: torch.Generator) -> Tensor:
        # each image comes once per strength of the study, at fewer strengths more than once
        numbers, chosen = batch % number, rows[batch // number % len(rows)]
        clean, eps = attacked.images[numbers].to(device), torch.tensor(study.eps)[chosen]
        images = attacked.pick(chosen, numbers).to(device)
        return objective(denoiser, classifier, images, clean, eps, weights[chosen.to(device)])

    def learn_adaptively(batch: Tensor, generator: torch.Generator) -> Tensor:
        clean, labels = attacked.images[batch].to(device), attacked.labels[batch].to(device)
        eps = (study.adversarial_eps * torch.rand(len(batch), generator=generator)).to(device)
        seed = int(torch.randint(2**31, (), generator=generator))
        images = attack(chain.eval(), clean, labels, eps, seed=seed)
        return objective(denoiser.train(), classifier, images, clean, eps)

    examples = number * (1 if recipe.adaptive else len(study.attacked_eps))
    steps = settings["epochs"] * -(-examples // study.batch_size)
    losses = fit(
        denoiser.train(), learn_adaptively if recipe.adaptive else learn_from_stored,
        examples=examples, keep=log_spaced(steps) if recipe.checkpoints else (),
        epochs=settings["epochs"], learning_rate=settings["learning_rate"],
        batch_size=study.batch_size, seed=training_seed(study), scratch=scratch,
        label=f"training {name}", precision=study.precision,
    )  # fmt: skip
    report: dict[str, Any] = {"loss": losses}
    report["precision"] = choose_precision(study.precision, device)
    report |= health(denoiser.eval(), attacked)
    if not np.isfinite(report["change"]).all():
        raise FloatingPointError(f"training {name}: it denoises to NaN; lower the learning rate")
    return report


def _batches(attacked: AttackedSet, denoiser: Denoiser) -> list[Images]:
    """The first images at each strength."""
    device = next(denoiser.parameters()).device
    return [attacked.at(eps, HEALTH_IMAGES).to(device) for eps in attacked.eps]


def log_spaced(steps: int) -> tuple[int, ...]:
    """Numbers of steps from 1/256 of a training to its end, each √2 times the one before."""
    return tuple(np.unique(np.maximum(steps * 2.0 ** (-np.arange(17) / 2), 1).astype(int)).tolist())


@torch.no_grad()
def weigh_divergences(classifier: Classifier, batches: list[Images]) -> Float[Tensor, "strengths"]:
    """1/√ of the divergence that each strength causes, from 0; at most ten times another, mean 1.

    Without √, or unweighted, strong attacks, whose logits cannot be repaired, decide the gradient.
    """
    scale = torch.stack([logit_divergence(classifier, x, batches[0]) for x in batches])
    weights = scale.clamp(min=scale.max() / 100).rsqrt()
    return weights / weights.mean()


@torch.no_grad()
def weigh_fusion_losses(
    kind: str, denoiser: Any, classifier: Classifier, attacked: AttackedSet
) -> Float[Tensor, "strengths"]:
    """The weight of each strength in a PA-Filt's fusion loss, from 0; a `kind` is

    ``mean``: 1; ``balanced`` and ``kl``: 1 over the cross-entropy, or the divergence of logits, of
    W = ½; ``regret``: 1 over the difference that choosing the wrong part makes in cross-entropy.
    No weight is more than 100 times another.
    """
    clean, *_ = batches = _batches(attacked, denoiser)
    if kind == "mean":
        return torch.ones(len(batches)).to(clean)
    loss = partial(logit_divergence if kind == "kl" else fusion_loss, classifier)

    def cost(images: Images) -> Scalar:
        parts = denoiser.parts(images)  # with all kernels: too large to keep for every strength
        if kind == "regret":
            return (loss(parts.sl, clean) - loss(parts.m, clean)).abs()
        return loss((parts.sl + parts.m) / 2, clean)

    scale = torch.stack([cost(images) for images in batches])
    return 1 / scale.clamp(min=scale.max() / 100)


@torch.no_grad()
def health(denoiser: Denoiser, attacked: AttackedSet) -> dict[str, Any]:
    """Signs of a collapse at each strength, of the weakest decoder or output.

    ``alive``: the share of a decoder's last features that vary over images and pixels; ``change``:
    the mean |Ĩ − Î|; and of PA-Filt the mean of W and its standard deviation over all strengths.
    """
    alive, change = list[float](), list[float]()
    shares, weights = list[float](), list[Tensor]()

    def look(module: Any, _: Any, found: Tensor) -> None:
        if isinstance(module, Decoder):
            low, high = found.transpose(0, 1).flatten(1).aminmax(dim=1)
            shares.append(float((high > low).float().mean()))
        else:
            weights.append(found)

    with contextlib.ExitStack() as hooks:
        for module in denoiser.modules():
            if isinstance(module, Decoder) or module is getattr(denoiser, "fusion", None):
                hooks.enter_context(module.register_forward_hook(look))
        for x in _batches(attacked, denoiser):
            shares.clear()
            change.append(min(float((y(x) - x).abs().mean()) for y in list_outputs(denoiser)))
            alive.append(min(shares, default=1.0))
    report: dict[str, Any] = {"alive": alive, "change": change}
    if weights:
        every = torch.stack(weights)
        report["weight_mean"] = every.flatten(1).mean(dim=1).tolist()
        report["weight_std"] = float(every.std())
    return report


@torch.no_grad()
def clean_psnr(
    denoiser: Denoiser, checkpoints: dict[int, dict[str, Tensor]], clean: Images
) -> dict[str, dict[str, float]]:
    """Mean PSNR in dB of denoised clean images, by output and number of steps (at most `EQUAL`).

    The denoiser is left at the last of the checkpoints.
    """
    device = next(denoiser.parameters()).device
    curves: dict[str, dict[str, float]] = {}
    against: Any = dict(data_range=1.0, reduction="none", dim=(1, 2, 3))
    for step, weights in checkpoints.items():
        denoiser.load_state_dict(weights)
        for output in list_outputs(denoiser):
            parts = (x.to(device) for x in clean.split(50))
            psnr = torch.cat([peak_signal_noise_ratio(output(x), x, **against) for x in parts])
            curve = curves.setdefault(str(getattr(output, "output", "")), {})
            curve[str(step)] = float(psnr.clamp(max=EQUAL).mean())
    return curves


def list_outputs(denoiser: Any) -> list[Denoiser]:
    """A denoiser's outputs, each as a denoiser; or itself where it has one."""
    return [View(denoiser, each) for each in getattr(denoiser, "OUTPUTS", ())] or [denoiser]


def find_collapse(report: dict[str, Any]) -> str | None:
    """The sentence that says why a training failed, from its report; None if it did not."""
    if "diverged" in report:
        return f"It diverged: {report['diverged']}."
    alive, change = min(report["alive"]), report["change"][-1]
    if not alive >= ALIVE:  # NaN is a failure, too
        return f"Its decoder is dead: {alive:.1%} of its last features vary."
    if not change >= MOTION:
        return f"It changes nothing: by {change:.1e} on average under the strongest attack."
    spread = report.get("weight_std", np.inf)
    if not spread >= CONSTANT:
        what = f"Its W is constant (standard deviation {spread:.1e} over pixels, images and ε)"
        return f"{what}, so it mixes its parts alike everywhere."
    return None
