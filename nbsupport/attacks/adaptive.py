"""White-box attacks: the attacker knows denoiser and classifier and attacks both as one defence.

Where a denoiser has no useful gradient, or offers several, the attacks differentiate its
`surrogates`; the defence itself decides whether they succeed.
"""

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import foolbox
import torch
from jaxtyping import Bool, Float
from pyautoattack import AutoAttack
from torch import Tensor, nn

from ..classifiers.feature_pyramid import attack_target
from ..data.images import Images, Labels
from ..denoisers.baselines import Baseline
from ..denoisers.models import PAFilter, View
from ..study import REL_STEP
from .pgd import margin, pgd, prepare

Robust = Bool[Tensor, "b"]
Attack = Callable[[Images, Labels], Images]

LOSSES = ("cross-entropy", "margin")
REL_STEPS = (0.25, REL_STEP, 0.01)  # relative to ε; the middle one is Foolbox's and the paper's
RESTART_STEPS = 40
AUTOATTACK = ["apgd-ce", "apgd-t", "fab-t"]  # AutoAttack's standard attacks that use gradients
L2_RADII = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)


class StraightThrough(nn.Module):
    """A denoiser with the identity's gradient (BPDA, Athalye et al. 2018)."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, images: Images) -> Images:
        return images + (self.denoiser(images) - images).detach()


def chain(denoiser: nn.Module, classifier: nn.Module) -> nn.Sequential:
    """Join denoiser and classifier (FPD before its tanh) as one network in evaluation mode."""
    return nn.Sequential(denoiser, attack_target(classifier)).eval()


def surrogates(denoiser: nn.Module) -> list[nn.Module]:
    """Return the denoisers that an attacker differentiates in place of `denoiser`.

    PA-Filt has both branches as further surrogates: an image that fools a branch may fool their
    mixture where W hides the gradient. Baselines without a useful gradient get `StraightThrough`.
    """
    if isinstance(denoiser, PAFilter):
        return [denoiser, View(denoiser.ynet, "sl").eval(), View(denoiser.ynet, "m").eval()]
    if isinstance(denoiser, Baseline) and not denoiser.differentiable:
        return [StraightThrough(denoiser)]
    return [denoiser]


@torch.no_grad()
def withstands(defence: nn.Module, images: Images, labels: Labels) -> Robust:
    """Return which images the defence classifies correctly."""
    return defence(images).argmax(dim=1) == labels


def _survivors(
    defence: nn.Module, images: Images, labels: Labels, robust: Robust, attack: Attack
) -> Robust:
    """Attack the images that are robust so far; return those that stay so."""
    left = robust.clone()
    if robust.any():
        left[robust] = withstands(defence, attack(images[robust], labels[robust]), labels[robust])
    return left


def pgd_through(
    denoiser: nn.Module, classifier: nn.Module, images: Images, labels: Labels, eps: float,
    *, steps: int, restarts: int, seed: int = 0,
) -> Robust:  # fmt: skip
    """Return which images withstand every variant of PGD through the defence.

    For each surrogate and loss: `restarts` starts with n = 40 for each step size, then one start
    with n = `steps`. An image that one variant fools is not attacked again.
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
    denoiser: nn.Module, classifier: nn.Module, images: Images, labels: Labels, eps: float,
    *, attacks: list[str], iterations: int = 100, queries: int = 5000, seed: int = 0,
) -> Robust:  # fmt: skip
    """Return which images withstand `attacks` of standard AutoAttack (Croce and Hein 2020)."""

    def attack(x: Images, y: Labels) -> Images:
        network = prepare(chain(surrogates(denoiser)[0], classifier), images[:2])
        classes = network(images[:1]).shape[1]
        ensemble = AutoAttack(network, eps=eps, seed=seed, device=images.device, version="standard")
        ensemble.attacks_to_run, ensemble.verbose = attacks, False
        for member in (ensemble.apgd, ensemble.apgd_targeted, ensemble.fab):
            member.n_iter = iterations
        for member in (ensemble.apgd_targeted, ensemble.fab):
            member.n_target_classes = min(member.n_target_classes, classes - 1)
        ensemble.square.n_queries = queries
        with torch.random.fork_rng(range(torch.cuda.device_count())), torch.enable_grad():
            return ensemble.run_standard_evaluation(x, y)[0]

    defence = chain(denoiser, classifier)
    return _survivors(defence, images, labels, withstands(defence, images, labels), attack)


def over_steps(
    denoiser: nn.Module, classifier: nn.Module, images: Images, labels: Labels, eps: float,
    *, steps: tuple[int, ...],
) -> tuple[Bool[Tensor, "n b"], Float[Tensor, "n b"]]:  # fmt: skip
    """Attack with PGD for several numbers of steps; return which images withstand, and margins.

    The first row is that of the clean images. All attacks maximise the `margin` from one start.
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
    """Return the fraction of images whose margin has a zero gradient through the defence."""
    inputs = images.clone().requires_grad_(True)
    network = chain(surrogates(denoiser)[0], classifier)
    (gradient,) = torch.autograd.grad(margin(network(inputs), labels).sum(), inputs)
    return float((gradient.flatten(1) == 0).all(dim=1).float().mean())


def minimal_norms(
    denoiser: nn.Module, classifier: nn.Module, images: Images, labels: Labels, *, steps: int = 100
) -> dict[str, Float[Tensor, "b"]]:
    """Return, per L2 attack and image, the norm of the smallest perturbation found.

    It is 0 for a misclassified clean image, infinite if none was found.
    """
    defence = chain(denoiser, classifier)
    network = prepare(chain(surrogates(denoiser)[0], classifier), images[:2])
    model = foolbox.PyTorchModel(network, bounds=(0, 1))
    criterion = foolbox.criteria.Misclassification(labels)
    options: Any = dict(binary_search_steps=5, steps=steps, stepsize=0.01)
    attacks: dict[str, tuple[Any, Any]] = {
        "DeepFool": (foolbox.attacks.L2DeepFoolAttack(steps=min(steps, 50)), [None]),
        "C&W": (foolbox.attacks.L2CarliniWagnerAttack(**options), [None]),
        "L2-PGD": (foolbox.attacks.L2PGD(steps=min(steps, 50)), L2_RADII),
    }
    norms, clean = {}, withstands(defence, images, labels)
    for name, (attack, radii) in attacks.items():
        with torch.random.fork_rng(range(torch.cuda.device_count())), torch.enable_grad():
            torch.manual_seed(0)
            _, found, _ = attack(model, images, criterion, epsilons=list(radii))
        lengths = torch.stack([(x - images).flatten(1).norm(dim=1) for x in found])
        fooled = torch.stack([~withstands(defence, x.clamp(0, 1), labels) for x in found])
        best = lengths.masked_fill(~fooled, torch.inf).amin(dim=0)
        norms[name] = best.masked_fill(~clean, 0.0)
    return norms
