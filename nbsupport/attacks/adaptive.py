"""White-box attacks: the attacker knows denoiser and classifier and attacks both as one defence.

Where a denoiser has no useful gradient, or offers several, the attacks differentiate its
`surrogates`; the defence itself decides whether they succeed.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
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


@dataclass(frozen=True, eq=False)
class Target:
    """Labelled images behind a denoiser and a classifier, both of which the attacker knows."""

    denoiser: nn.Module
    classifier: nn.Module
    images: Images
    labels: Labels

    @cached_property
    def defence(self) -> nn.Module:
        """What decides whether an attack succeeds."""
        return chain(self.denoiser, self.classifier)

    @cached_property
    def networks(self) -> list[nn.Module]:
        """What the attacks differentiate in its place, see `surrogates`."""
        return [chain(each, self.classifier) for each in surrogates(self.denoiser)]

    def prepare(self) -> nn.Module:
        """The first of `networks`, prepared for attacks of libraries."""
        return prepare(self.networks[0], self.images[:2])

    @torch.no_grad()
    def withstands(self, images: Images) -> Robust:
        """Which images in the place of `images` the defence classifies correctly."""
        return self.defence(images.clone()).argmax(dim=1) == self.labels

    def attack_survivors(self, attack: Attack, robust: Robust | None = None) -> Robust:
        """Attack the images that are robust so far (None: right when clean); which stay so?"""
        left = self.withstands(self.images) if robust is None else robust.clone()
        if left.any():
            rest = replace(self, images=self.images[left], labels=self.labels[left])
            left[left.clone()] = rest.withstands(attack(rest.images, rest.labels))
        return left


def pgd_through(target: Target, eps: float, *, steps: int, restarts: int, seed: int = 0) -> Robust:
    """Return which images withstand every variant of PGD through the defence.

    For each surrogate and loss: `restarts` starts with n = 40 for each step size, then one start
    with n = `steps`. An image that one variant fools is not attacked again.
    """
    short = product(range(restarts), REL_STEPS)
    plan = [(min(RESTART_STEPS, steps), rel_step, seed + restart) for restart, rel_step in short]
    plan.append((steps, REL_STEP, seed + restarts))
    robust = None
    for (n, rel_step, start), network, loss in product(plan, target.networks, LOSSES):
        attack = partial(pgd, network, eps=eps, steps=n, rel_step=rel_step, seed=start, loss=loss)
        robust = target.attack_survivors(attack, robust)
    assert robust is not None
    return robust


def autoattack(
    target: Target, eps: float, *, attacks: list[str], iterations: int = 100,
    queries: int = 5000, seed: int = 0,
) -> Robust:  # fmt: skip
    """Return which images withstand `attacks` of standard AutoAttack (Croce and Hein 2020)."""

    def attack(x: Images, y: Labels) -> Images:
        network = target.prepare()
        classes = network(x[:1]).shape[1]
        ensemble = AutoAttack(network, eps=eps, seed=seed, device=x.device, version="standard")
        ensemble.attacks_to_run, ensemble.verbose = attacks, False
        for member in (ensemble.apgd, ensemble.apgd_targeted, ensemble.fab):
            member.n_iter = iterations
        for member in (ensemble.apgd_targeted, ensemble.fab):
            member.n_target_classes = min(member.n_target_classes, classes - 1)
        ensemble.square.n_queries = queries
        with torch.random.fork_rng(range(torch.cuda.device_count())), torch.enable_grad():
            return ensemble.run_standard_evaluation(x, y)[0]

    return target.attack_survivors(attack)


def over_steps(
    target: Target, eps: float, steps: tuple[int, ...]
) -> tuple[Bool[Tensor, "n b"], Float[Tensor, "n b"]]:
    """Attack with PGD for several numbers of steps; return which images withstand, and margins.

    The first row is that of the clean images. All attacks maximise the `margin` from one start.
    """
    attack = partial(pgd, target.networks[0], target.images, target.labels, eps, loss="margin")
    tries = [target.images, *(attack(steps=n) for n in steps)]
    with torch.no_grad():
        margins = torch.stack([margin(target.defence(x.clone()), target.labels) for x in tries])
    return margins <= 0, margins


@torch.enable_grad()
def zero_gradients(target: Target) -> float:
    """Return the fraction of images whose margin has a zero gradient through the defence."""
    inputs = target.images.clone().requires_grad_(True)
    margins = margin(target.networks[0](inputs.clone()), target.labels)
    (gradient,) = torch.autograd.grad(margins.sum(), inputs)
    return float((gradient.flatten(1) == 0).all(dim=1).float().mean())


def minimal_norms(target: Target, *, steps: int = 100) -> dict[str, Float[Tensor, "b"]]:
    """Return, per L2 attack and image, the norm of the smallest perturbation found.

    It is 0 for a misclassified clean image, infinite if none was found.
    """
    images, criterion = target.images, foolbox.criteria.Misclassification(target.labels)
    model = foolbox.PyTorchModel(target.prepare(), bounds=(0, 1))
    options: Any = dict(binary_search_steps=5, steps=steps, stepsize=0.01)
    attacks: dict[str, tuple[Any, Any]] = {
        "DeepFool": (foolbox.attacks.L2DeepFoolAttack(steps=min(steps, 50)), [None]),
        "C&W": (foolbox.attacks.L2CarliniWagnerAttack(**options), [None]),
        "L2-PGD": (foolbox.attacks.L2PGD(steps=min(steps, 50)), L2_RADII),
    }
    norms, clean = {}, target.withstands(images)
    for name, (attack, radii) in attacks.items():
        with torch.random.fork_rng(range(torch.cuda.device_count())), torch.enable_grad():
            torch.manual_seed(0)
            _, found, _ = attack(model, images, criterion, epsilons=list(radii))
        lengths = torch.stack([(x - images).flatten(1).norm(dim=1) for x in found])
        fooled = torch.stack([~target.withstands(x.clamp(0, 1)) for x in found])
        best = lengths.masked_fill(~fooled, torch.inf).amin(dim=0)
        norms[name] = best.masked_fill(~clean, 0.0)
    return norms
