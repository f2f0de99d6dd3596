"""White-box attacks: the attacker knows denoiser and classifier and attacks both as one defence.

Where a denoiser has no useful gradient, or offers several, the attacks differentiate its
`surrogates`; the defence itself decides whether they succeed.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import product
from typing import Any

import foolbox
import torch
from jaxtyping import Bool, Float, Int
from pyautoattack import AutoAttack
from torch import Tensor, nn

from ..classifiers.feature_pyramid import attack_target
from ..data.images import Images, Labels, Logits
from ..denoisers.baselines import Baseline
from ..denoisers.models import PAFilter, View
from ..study import REL_STEP, STEPS
from .pgd import LOSSES, full_precision, margin, per_pass, pgd, prepare

Robust = Bool[Tensor, "b"]

REL_STEPS = (0.25, REL_STEP, 0.01)  # relative to ε; the middle one is Foolbox's and the paper's
CONFIRMING = {"cross-entropy": 0.25, "margin": REL_STEP}  # PGD's losses and relative steps
RESTART_STEPS = 40
AUTOATTACK = ["apgd-ce", "apgd-t", "fab-t"]  # AutoAttack's standard attacks that use gradients
DLR_CLASSES = 4  # the fewest that APGD-T's loss is defined for
TARGETS = 3  # classes that APGD-T and FAB-T aim at while they confirm a minimal ε
L2_RADII = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
FMN_STEPS = (1.0, 0.1)  # L2 lengths of FMN's first steps, one run for each
OVERSHOOT = (1.001, 1.01, 1.05)  # FMN ends on the boundary, where rounding may undo its success
AGREE, CLEAR = 1.1, 1.25  # two runs within this factor agree; ε this far below needs no second look
PROBES, SAMPLES = 16, 10  # images that show whether a defence is random; passes if it is


class StraightThrough(nn.Module):
    """A denoiser with the identity's gradient (BPDA, Athalye et al. 2018)."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, images: Images) -> Images:
        return images + (self.denoiser(images) - images).detach()


class Expectation(nn.Module):
    """The mean logits of a random network over `SAMPLES` passes (EOT, Athalye et al. 2018)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Images) -> Logits:
        return torch.stack([self.network(images) for _ in range(SAMPLES)]).mean(dim=0)


@dataclass
class Cost:
    """How many images passed a defence with a gradient, and without one. Copies share it."""

    gradients: int = 0
    forwards: int = 0

    def __deepcopy__(self, memo: Any) -> "Cost":
        return self


class _Counted(nn.Module):
    """The identity, which counts its images."""

    def __init__(self, cost: Cost) -> None:
        super().__init__()
        self.cost = cost

    def forward(self, images: Images) -> Images:
        if torch.is_grad_enabled() and images.requires_grad:
            self.cost.gradients += len(images)
        else:
            self.cost.forwards += len(images)
        return images


def chain(denoiser: nn.Module, classifier: nn.Module) -> nn.Sequential:
    """Join denoiser and classifier (FPD before its tanh) as one network in evaluation mode."""
    return nn.Sequential(denoiser, attack_target(classifier)).eval()


def surrogates(denoiser: nn.Module) -> list[nn.Module]:
    """Return the denoisers that an attacker differentiates in place of `denoiser`.

    PA-Filt has both branches as further surrogates: an image that fools a branch may fool their
    mixture where W hides the gradient. Baselines without a useful gradient get `StraightThrough`,
    and their differentiable approximation where there is one.
    """
    if isinstance(denoiser, PAFilter):
        return [denoiser, View(denoiser.ynet, "sl").eval(), View(denoiser.ynet, "m").eval()]
    if isinstance(denoiser, Baseline) and not denoiser.differentiable:
        approximation = [denoiser.approximation] if denoiser.approximation else []
        return [StraightThrough(denoiser), *approximation]
    return [denoiser]


@dataclass(eq=False)
class Target:
    """Labelled images behind a denoiser and a classifier, both of which the attacker knows.

    A defence that answers at random is judged, and attacked, by its expected logits.
    """

    denoiser: nn.Module
    classifier: nn.Module
    images: Images
    labels: Labels
    cost: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        self.images = self.images.contiguous()  # AutoAttack takes views of gradients

    @cached_property
    @torch.no_grad()
    def deterministic(self) -> bool:
        """Whether the defence answers the same twice, alone and in a batch."""
        defence, images = chain(self.denoiser, self.classifier), self.images[:PROBES]
        logits, again = defence(images.clone()), defence(images.clone())
        alone = torch.cat([defence(image[None].clone()) for image in images])
        near = torch.allclose(logits, alone, rtol=1e-3, atol=1e-3)
        return torch.equal(logits, again) and near

    def _join(self, denoiser: nn.Module) -> nn.Module:
        network = chain(denoiser, self.classifier)
        expected = network if self.deterministic else Expectation(network)
        return nn.Sequential(_Counted(self.cost), expected).eval()

    @cached_property
    def defence(self) -> nn.Module:
        """What decides whether an attack succeeds."""
        return self._join(self.denoiser)

    @cached_property
    def networks(self) -> list[nn.Module]:
        """What the attacks differentiate in its place, see `surrogates`, prepared for them."""
        networks = [self._join(each) for each in surrogates(self.denoiser)]
        return [prepare(network, self.images[:2]) for network in networks]

    def select(self, rows: Int[Tensor, "b"]) -> "Target":
        """The same defence, and the same networks, with some of the images."""
        self.networks, self.defence  # noqa: B018 - built now, once for all parts
        part = copy.copy(self)
        part.images, part.labels = self.images[rows], self.labels[rows]
        return part

    @torch.no_grad()
    def withstands(self, images: Images) -> Robust:
        """Which images in the place of `images` the defence classifies correctly."""
        parts = [self.defence(x.clone()) for x in images.split(per_pass(images.device))]
        return torch.cat(parts).argmax(dim=1) == self.labels


Attack = Callable[[Target, Float[Tensor, "b"]], Images]
"""Attacked images for the images of a target, each within its own ε."""


def survive(target: Target, eps: float | Float[Tensor, "b"], attacks: Iterable[Attack]) -> Robust:
    """Return which images the defence classifies correctly, clean and after each of the attacks.

    `eps` is one for all images or one per image. An image that falls is not attacked again.
    """
    strengths = torch.as_tensor(eps, dtype=torch.float64).to(target.images.device)
    strengths, robust = strengths.expand(len(target.images)), target.withstands(target.images)
    for attack in attacks:
        if len(left := robust.nonzero()[:, 0]):
            rest = target.select(left)
            robust[left] = rest.withstands(attack(rest, strengths[left]))
    return robust


def plan_pgd(target: Target, *, steps: int, restarts: int, seed: int = 0) -> Iterator[Attack]:
    """Yield every variant of PGD through the defence.

    For each of the target's networks and each loss: `restarts` starts with n = 40 for each step
    size, then one start with n = `steps`.
    """
    short = product(range(restarts), REL_STEPS)
    plan = [(min(RESTART_STEPS, steps), rel_step, seed + restart) for restart, rel_step in short]
    plan.append((steps, REL_STEP, seed + restarts))
    for (n, rel_step, start), network, loss in product(plan, target.networks, LOSSES):
        yield _through(network, steps=n, rel_step=rel_step, seed=start, loss=loss)


def _through(network: nn.Module, **options: Any) -> Attack:
    return lambda target, eps: pgd(network, target.images, target.labels, eps, **options)


def autoattack(
    *attacks: str, iterations: int = 100, queries: int = 5000, targets: int = 9, seed: int = 0
) -> Attack:
    """Return an attack by parts of standard AutoAttack (Croce and Hein 2020)."""

    def run(target: Target, eps: float) -> Images:
        network, device = target.networks[0], target.images.device
        classes = network(target.images[:1]).shape[1]
        ensemble = AutoAttack(network, eps=eps, seed=seed, device=device, version="standard")
        ensemble.attacks_to_run, ensemble.verbose = [*attacks], False
        if classes < DLR_CLASSES and "apgd-t" in attacks:
            ensemble.attacks_to_run.remove("apgd-t")
        for member in (ensemble.apgd, ensemble.apgd_targeted, ensemble.fab):
            member.n_iter = iterations
        for member in (ensemble.apgd_targeted, ensemble.fab):
            member.n_target_classes = min(targets, classes - 1)
        ensemble.square.n_queries = queries
        with torch.random.fork_rng(range(torch.cuda.device_count())), torch.enable_grad():
            return ensemble.run_standard_evaluation(target.images, target.labels)[0]

    def attack(target: Target, eps: Float[Tensor, "b"]) -> Images:
        found = target.images.clone()
        for strength in eps.unique():  # AutoAttack takes one ε for all images
            rows = (eps == strength).nonzero()[:, 0]
            found[rows] = run(target.select(rows), float(strength))
        return found

    return attack


# -- all strengths at once -----------------------------------------------------------------------


def minimal_eps(target: Target, *, steps: int = 100) -> Float[Tensor, "runs b"]:
    """Return per run and image the ε of the smallest successful perturbation; ∞ if there is none.

    Each run is a minimal-norm attack under L∞ (FMN, Pintor et al. 2021) through one of the target's
    networks with one of `FMN_STEPS`. An ε counts once the defence itself is fooled; it is 0 for an
    image that is misclassified anyway.
    """
    clean = target.withstands(target.images)
    ways = [*product(target.networks, FMN_STEPS)]
    runs = target.images.new_zeros(len(ways), len(clean))
    if not clean.any():
        return runs
    part, chunk = target.select(clean.nonzero()[:, 0]), per_pass(target.images.device)
    for run, (network, length) in zip(runs, ways, strict=True):
        model = foolbox.PyTorchModel(network, bounds=(0, 1), device=part.images.device)
        attack = foolbox.attacks.LInfFMNAttack(steps=steps, max_stepsize=length)
        found = []
        for images, labels in zip(part.images.split(chunk), part.labels.split(chunk), strict=True):
            criterion = foolbox.criteria.Misclassification(labels)
            with torch.enable_grad(), full_precision(images.device):
                found.append(attack.run(model, images, criterion))
        run[clean] = _smallest(part, torch.cat(found))
    return runs


def _smallest(target: Target, attacked: Images) -> Float[Tensor, "b"]:
    """The ε of each attacked image, or a little more, where that fools the defence; ∞ elsewhere."""
    smallest = torch.full((len(attacked),), torch.inf, device=attacked.device)
    for factor in OVERSHOOT:
        tried = (target.images + factor * (attacked - target.images)).clamp(0, 1)
        eps = (tried - target.images).abs().amax(dim=(1, 2, 3))
        eps = eps.masked_fill(target.withstands(tried), torch.inf)
        smallest = torch.minimum(smallest, eps)
    return smallest


def plan_ensemble(
    target: Target, *, steps: int = STEPS, iterations: int = 30, queries: int = 300, seed: int = 0
) -> Iterator[Attack]:
    """Yield the attacks that confirm a minimal ε: PGD with both losses, and all of AutoAttack's."""
    for network, (loss, rel_step) in product(target.networks, CONFIRMING.items()):
        yield _through(network, steps=steps, rel_step=rel_step, seed=seed, loss=loss)
    limits: Any = dict(iterations=iterations, queries=queries, targets=TARGETS, seed=seed)
    yield autoattack(*AUTOATTACK, "square", **limits)


def descend(
    target: Target, found: Float[Tensor, "runs b"], grid: tuple[float, ...],
    plan: Callable[[Target], Iterable[Attack]],
) -> Float[Tensor, "b"]:  # fmt: skip
    """Return each image's minimal ε after attacking at the largest ε of `grid` below it.

    `found` has the minimal ε of several runs. An image whose two best runs agree, and which is
    clearly above that ε, keeps it. All others are attacked there by `plan`, each at its own ε; the
    ones that fall are attacked at the next lower ε, until they withstand.
    """
    strengths = torch.tensor(grid, dtype=torch.float64, device=found.device)
    best, *others = found.double().sort(dim=0).values
    second = others[0] if others else best.new_full(best.shape, torch.inf)

    def levels() -> Int[Tensor, "b"]:
        return torch.searchsorted(strengths, best)  # how many strengths are below

    below = strengths[(levels() - 1).clamp(min=0)]
    agree = torch.isfinite(best) & (second <= AGREE * best)
    settled = (levels() == 0) | (agree & (best >= CLEAR * below))
    while len(left := (~settled).nonzero()[:, 0]):
        eps = strengths[levels()[left] - 1]
        part = target.select(left)
        robust = survive(part, eps, plan(part))
        best[left[~robust]] = eps[~robust]
        settled[left[robust]] = True
        settled |= levels() == 0
    return best


# -- other measures ------------------------------------------------------------------------------


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
    model = foolbox.PyTorchModel(target.networks[0], bounds=(0, 1))
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
