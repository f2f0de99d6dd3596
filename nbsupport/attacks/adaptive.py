"""The attacker who knows the denoiser: every attack of the protocol on one defence, image by image.

A defence is a denoiser before a classifier, attacked as a whole. Where it has no useful gradient, or
offers several, the attacker follows `surrogates` and is judged on the defence itself. Attacks at
different ε know nothing of each other, so that `nbsupport.experiments.soundness` can tell whether they make sense.
"""

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import foolbox
import torch
from jaxtyping import Bool, Float, Int
from pyautoattack import AutoAttack
from torch import Tensor, nn

from ..denoisers.baselines import Baseline
from ..denoisers.models import PAFilter, View
from ..study import REL_STEP
from ..training.classifiers import target
from .pgd import margin, pgd, prepare

Images = Float[Tensor, "b c h w"]
Labels = Int[Tensor, "b"]
Robust = Bool[Tensor, "b"]

LOSSES = ("cross-entropy", "margin")
REL_STEPS = (0.25, REL_STEP, 0.01)
"""Steps relative to ε; the middle one is Foolbox's, hence the paper's."""
RESTART_STEPS = 40
AUTOATTACK = ["apgd-ce", "apgd-t", "fab-t"]
"""Of AutoAttack's standard version those that follow gradients; Square, its fourth, stands alone here."""


class StraightThrough(nn.Module):
    """A denoiser without a gradient, with that of the identity in its place (BPDA, Athalye et al. 2018)."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, images: Images) -> Images:
        return images + (self.denoiser(images) - images).detach()


def chain(denoiser: nn.Module, classifier: nn.Module) -> nn.Sequential:
    """Denoiser and classifier as one network, in evaluation mode; FPD before its tanh."""
    return nn.Sequential(denoiser, target(classifier)).eval()


def surrogates(denoiser: nn.Module) -> list[nn.Module]:
    """What an attacker differentiates in the place of a denoiser.

    Itself, unless it is a baseline without gradient (`StraightThrough`); for PA-Filt also both of its
    parts, since an image that deceives a part may deceive their mixture where W hides the gradient.
    """
    if isinstance(denoiser, PAFilter):
        return [denoiser, View(denoiser.ynet, "sl").eval(), View(denoiser.ynet, "m").eval()]
    if isinstance(denoiser, Baseline) and not denoiser.differentiable:
        return [StraightThrough(denoiser)]
    return [denoiser]


@torch.no_grad()
def withstands(defence: nn.Module, images: Images, labels: Labels) -> Robust:
    """Which images the defence classifies correctly."""
    return defence(images).argmax(dim=1) == labels


def _survivors(
    defence: nn.Module,
    images: Images,
    labels: Labels,
    robust: Robust,
    attack: Callable[[Images, Labels], Images],
) -> Robust:
    """Of the images that are robust so far, those that withstand one more attack; the others are not attacked."""
    left = robust.clone()
    if robust.any():
        left[robust] = withstands(defence, attack(images[robust], labels[robust]), labels[robust])
    return left


def pgd_through(
    denoiser: nn.Module,
    classifier: nn.Module,
    images: Images,
    labels: Labels,
    eps: float,
    *,
    steps: int,
    restarts: int,
    seed: int = 0,
) -> Robust:
    """Which images withstand PGD through the whole defence, in the worst of all its variants.

    For every surrogate and loss: `restarts` starts with n = 40 for each size of step, then one with
    n = `steps`. An image that one variant deceives is not attacked by the next.
    """
    defence = chain(denoiser, classifier)
    robust = withstands(defence, images, labels)
    networks = [chain(surrogate, classifier) for surrogate in surrogates(denoiser)]
    short = product(range(restarts), REL_STEPS)
    plan = [(min(RESTART_STEPS, steps), rel_step, seed + restart) for restart, rel_step in short]
    plan.append((steps, REL_STEP, seed + restarts))
    for (n, rel_step, start), network, loss in product(plan, networks, LOSSES):
        attack = partial(pgd, network, eps=eps, steps=n, rel_step=rel_step, seed=start, loss=loss)
        robust = _survivors(defence, images, labels, robust, attack)
    return robust


def autoattack(
    denoiser: nn.Module,
    classifier: nn.Module,
    images: Images,
    labels: Labels,
    eps: float,
    *,
    attacks: list[str],
    iterations: int = 100,
    queries: int = 5000,
    seed: int = 0,
) -> Robust:
    """Which images withstand attacks of AutoAttack's standard version (Croce and Hein 2020)."""

    def attack(x: Images, y: Labels) -> Images:
        network = prepare(chain(surrogates(denoiser)[0], classifier), images[:2])
        classes = network(images[:1]).shape[1]
        ensemble = AutoAttack(network, eps=eps, seed=seed, device=images.device, version="standard")
        ensemble.attacks_to_run, ensemble.verbose = attacks, False
        for part in (ensemble.apgd, ensemble.apgd_targeted, ensemble.fab):
            part.n_iter = iterations
        for part in (ensemble.apgd_targeted, ensemble.fab):
            part.n_target_classes = min(part.n_target_classes, classes - 1)
        ensemble.square.n_queries = queries
        with torch.random.fork_rng(range(torch.cuda.device_count())), torch.enable_grad():
            return ensemble.run_standard_evaluation(x, y)[0]

    defence = chain(denoiser, classifier)
    return _survivors(defence, images, labels, withstands(defence, images, labels), attack)


def over_steps(
    denoiser: nn.Module,
    classifier: nn.Module,
    images: Images,
    labels: Labels,
    eps: float,
    *,
    steps: tuple[int, ...],
) -> tuple[Bool[Tensor, "n b"], Float[Tensor, "n b"]]:
    """PGD through the defence for several numbers of steps, from the same start.

    Returns
    -------
    Which images withstand, and the margin reached (`nbsupport.attacks.pgd.margin`); the first row is for
    the clean images.
    """
    defence, network = chain(denoiser, classifier), chain(surrogates(denoiser)[0], classifier)
    tries = [images, *(pgd(network, images, labels, eps, steps=n, loss="margin") for n in steps)]
    with torch.no_grad():
        margins = torch.stack([margin(defence(x), labels) for x in tries])
    return margins <= 0, margins


@torch.enable_grad()
def zero_gradients(
    denoiser: nn.Module, classifier: nn.Module, images: Images, labels: Labels
) -> float:
    """The share of images whose margin has no gradient at all through the defence."""
    inputs = images.clone().requires_grad_(True)
    network = chain(surrogates(denoiser)[0], classifier)
    (gradient,) = torch.autograd.grad(margin(network(inputs), labels).sum(), inputs)
    return float((gradient.flatten(1) == 0).all(dim=1).float().mean())


L2_RADII = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)


def minimal_norms(
    denoiser: nn.Module, classifier: nn.Module, images: Images, labels: Labels, *, steps: int = 100
) -> dict[str, Float[Tensor, "b"]]:
    """For L2 attacks through the defence, the norm of the smallest perturbation found per image.

    0 where the clean image is misclassified, infinite where nothing was found.
    """
    defence = chain(denoiser, classifier)
    network = prepare(chain(surrogates(denoiser)[0], classifier), images[:2])
    model, criterion = (
        foolbox.PyTorchModel(network, bounds=(0, 1)),
        foolbox.criteria.Misclassification(labels),
    )
    attacks: dict[str, tuple[Any, Any]] = {
        "DeepFool": (foolbox.attacks.L2DeepFoolAttack(steps=min(steps, 50)), [None]),
        "C&W": (
            foolbox.attacks.L2CarliniWagnerAttack(
                binary_search_steps=5, steps=steps, stepsize=0.01
            ),
            [None],
        ),
        "L2-PGD": (foolbox.attacks.L2PGD(steps=min(steps, 50)), L2_RADII),
    }
    norms, clean = {}, withstands(defence, images, labels)
    for name, (attack, radii) in attacks.items():
        with torch.random.fork_rng(range(torch.cuda.device_count())), torch.enable_grad():
            torch.manual_seed(0)
            _, found, _ = attack(model, images, criterion, epsilons=list(radii))
        lengths = torch.stack([(x - images).flatten(1).norm(dim=1) for x in found])
        deceived = torch.stack([~withstands(defence, x.clamp(0, 1), labels) for x in found])
        best = lengths.masked_fill(~deceived, torch.inf).amin(dim=0)
        norms[name] = best.masked_fill(~clean, 0.0)
    return norms
