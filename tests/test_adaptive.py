"""White-box attacks against closed forms of a linear classifier, and against loops."""

from itertools import product

import numpy as np
import pytest
import torch
from small import CLASSES, disturbed, gaps, linear, pictures, radii
from torch import nn

from nbsupport.attacks import adaptive
from nbsupport.attacks.adaptive import (
    AUTOATTACK,
    FMN_STEPS,
    LOSSES,
    SAMPLES,
    Target,
    autoattack,
    chain,
    descend,
    minimal_eps,
    minimal_norms,
    over_steps,
    plan_ensemble,
    plan_pgd,
    surrogates,
    survive,
    zero_gradients,
)
from nbsupport.attacks.pgd import pgd
from nbsupport.classifiers import feature_pyramid
from nbsupport.denoisers.baselines import BASELINES, Baseline
from nbsupport.denoisers.models import PAFilter


@pytest.fixture
def victim():
    return linear()


@pytest.fixture
def images():
    return pictures(20)


@pytest.fixture
def labels(victim, images):
    """Right but for the last three."""
    labels = victim(images).argmax(dim=1)
    labels[-3:] = (labels[-3:] + 1) % CLASSES
    return labels


def pgd_through(target, eps, **options):
    return survive(target, eps, plan_pgd(target, **options))


def run_autoattack(target, eps, attacks, **options):
    return survive(target, eps, [autoattack(*attacks, **options)])


class Masked(nn.Module):
    """The identity without a gradient for the first `number` images."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def forward(self, images):
        hidden = images[: self.number]
        hidden = hidden + 0 * hidden.detach() - (hidden - hidden.detach())
        return torch.cat([hidden, images[self.number :]])


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_without_a_useful_gradient_gets_the_identitys(name):
    denoiser, inputs = Baseline(name), torch.rand(3, 3, 7, 9).requires_grad_()
    found, *approximations = surrogates(denoiser)
    value, weights = found(inputs), torch.randn(inputs.shape)
    torch.testing.assert_close(value, denoiser(inputs.detach()), atol=1e-6, rtol=0)
    (gradient,) = torch.autograd.grad((weights * value).sum(), inputs)
    if name in ("median 3x3", "Gaussian blur"):
        assert found is denoiser and gradient.any()
    else:
        assert torch.equal(gradient, weights)
    assert len(approximations) == name.startswith("JPEG")


def test_jpeg_is_also_attacked_through_a_differentiable_approximation():
    images = pictures(4).detach().requires_grad_()
    denoiser = Baseline("JPEG 40")
    _, found = surrogates(denoiser)
    value, exact = found(images), denoiser(images.detach())
    assert (value - exact).abs().mean() < 0.3 * (exact - images).abs().mean()
    (gradient,) = torch.autograd.grad((value * torch.randn(value.shape)).sum(), images)
    assert gradient.flatten(1).any(dim=1).all()


def test_pa_filt_is_attacked_as_a_whole_and_through_both_branches():
    denoiser = disturbed(PAFilter)
    found, inputs = surrogates(denoiser), torch.rand(2, 3, 9, 8)
    parts = denoiser.parts(inputs)
    expected = [parts.weight * parts.sl + (1 - parts.weight) * parts.m, parts.sl, parts.m]
    assert len(found) == 3
    for surrogate, image in zip(found, expected, strict=True):
        assert not surrogate.training
        torch.testing.assert_close(surrogate(inputs), image)
    assert not torch.allclose(parts.sl, parts.m)


def test_a_chain_is_the_classifier_after_the_denoiser_in_evaluation_mode(victim, images):
    blur = Baseline("Gaussian blur")
    defence = chain(blur.train(), victim.train())
    assert not any(module.training for module in defence.modules())
    assert torch.equal(defence(images), victim(blur(images)))
    fpd = feature_pyramid.build("small_resnet_fpd", CLASSES, 8)
    logits = chain(nn.Identity(), fpd)(images)  # before its tanh
    torch.testing.assert_close(logits.tanh(), fpd.eval()(images))
    assert not torch.allclose(logits, logits.tanh())


def survivors_of_every_variant(denoiser, victim, images, labels, eps, steps, restarts, seed):
    """Every variant on every image, one image at a time."""
    defence = nn.Sequential(denoiser, victim).eval()
    robust = torch.ones(len(images), dtype=torch.bool)
    rates = (0.25, 0.01 / 0.3, 0.01)
    runs = [(min(40, steps), rate, seed + k) for k in range(restarts) for rate in rates]
    runs.append((steps, 0.01 / 0.3, seed + restarts))
    for (n, rate, start), surrogate, loss in product(runs, surrogates(denoiser), LOSSES):
        network = nn.Sequential(surrogate, victim).eval()
        options = dict(steps=n, rel_step=rate, seed=start, loss=loss)
        for i in range(len(images)):
            attacked = pgd(network, images[[i]], labels[[i]], eps, **options)
            both = torch.cat([defence(images[[i]]), defence(attacked)]).argmax(dim=1)
            robust[i] &= bool((both == labels[i]).all())
    return robust


DENOISERS = {
    "8-bit": lambda: Baseline("8-bit"),
    "PA-Filt": lambda: disturbed(PAFilter, 0.02),
}


@pytest.mark.parametrize("make", DENOISERS.values(), ids=DENOISERS)
def test_survivors_are_those_that_no_variant_fools(make, victim, images):
    denoiser, images = make(), images[:5]
    with torch.no_grad():
        labels = victim(denoiser(images)).argmax(dim=1)
    labels[0] = (labels[0] + 1) % CLASSES
    eps = 1.2 * float(radii(victim, denoiser(images), labels, 1).median())
    arguments = denoiser, victim, images, labels, eps
    found = pgd_through(Target(*arguments[:-1]), eps, steps=2, restarts=2, seed=5)
    assert torch.equal(found, survivors_of_every_variant(*arguments, 2, 2, 5))
    assert 0 < found.sum() < 4 and not found[0]


def test_pgd_finds_the_closed_form(victim, images, labels):
    """The corner of the ball: cross-entropy may prefer another class, the margin does not near the border."""
    exact, eps = radii(victim, images, labels, 1), 0.02
    found = pgd_through(Target(nn.Identity(), victim, images, labels), eps, steps=100, restarts=1)
    sure = (exact / eps - 1).abs() > 0.05
    assert sure.sum() > 10
    assert torch.equal(found[sure], exact[sure] > eps)


def test_autoattack_finds_the_closed_form(victim, images, labels):
    exact, eps = radii(victim, images, labels, 1), 0.03
    target = Target(nn.Identity(), victim, images, labels)
    found = run_autoattack(target, eps, attacks=AUTOATTACK, iterations=20)
    sure = (exact / eps - 1).abs() > 0.03
    assert sure.sum() > 10 and 0 < (exact[:-3] > eps).sum() < 17
    assert torch.equal(found[sure], exact[sure] > eps)


def test_square_finds_it_without_a_gradient(victim, images, labels):
    target, exact = Target(Masked(20), victim, images, labels), radii(victim, images, labels, 1)
    eps = 0.02
    found = run_autoattack(target, eps, attacks=["square"], queries=1000)
    assert found[exact > eps].all() and not found[-3:].any()
    assert not found[exact < 0.5 * eps].any()
    assert (exact[:-3] < 0.5 * eps).any() and (exact > eps).any()


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_are_attacked_without_the_loss_that_needs_four(classes, images):
    victim = linear(classes=classes)
    labels = victim(images).argmax(dim=1)
    exact = radii(victim, images, labels, 1)
    for factor, left in ((0.95, 20), (1.05, 0)):
        attack = autoattack(*AUTOATTACK, iterations=20)
        target = Target(nn.Identity(), victim, images, labels)
        assert survive(target, factor * exact, [attack]).sum() == left


@pytest.mark.parametrize(("classes", "targets"), [(4, 3), (20, 9)])
def test_autoattack_runs_as_configured(classes, targets, images, monkeypatch):
    seen = []

    def run(self, x, y):
        assert torch.equal(x, images[:17])  # the rest is misclassified anyway
        members = self.apgd, self.apgd_targeted, self.fab
        counts = [member.n_target_classes for member in members[1:]]
        iterations = [member.n_iter for member in members]
        seen.append((self.attacks_to_run, self.epsilon, iterations, counts, self.square.n_queries))
        return (x,)

    monkeypatch.setattr(adaptive.AutoAttack, "run_standard_evaluation", run)
    arguments = nn.Identity(), linear(classes=classes), images
    labels = arguments[1](images).argmax(dim=1)
    labels[17:] = (labels[17:] + 1) % classes
    options = dict(attacks=AUTOATTACK, iterations=7, queries=11)
    found = run_autoattack(Target(*arguments, labels), 0.1, **options)
    assert found.tolist() == [True] * 17 + [False] * 3
    assert seen == [(["apgd-ce", "apgd-t", "fab-t"], 0.1, [7, 7, 7], [targets, targets], 11)]


def test_the_seed_decides_and_the_global_random_state_does_not(victim, images, labels):
    results, attacks = [], [*AUTOATTACK, "square"]
    for state in (1, 2):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        target = Target(nn.Identity(), victim, images, labels)
        options = dict(attacks=attacks, iterations=3, queries=15, seed=3)
        results.append(run_autoattack(target, 0.04, **options))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*results)


def test_the_trace_is_that_of_pgd_with_the_margin_loss(victim, images, labels):
    steps = (1, 3, 8)
    correct, margins = over_steps(Target(nn.Identity(), victim, images, labels), 0.05, steps)
    tries = [images, *(pgd(victim, images, labels, 0.05, steps=n, loss="margin") for n in steps)]
    for row, tried in enumerate(tries):
        expected = -gaps(victim, tried, labels)[0].amin(dim=1)
        np.testing.assert_allclose(margins[row], expected, atol=1e-4)
        assert torch.equal(correct[row], victim(tried).argmax(dim=1) == labels)


def test_zero_gradients_are_counted(victim, images, labels):
    assert zero_gradients(Target(Masked(5), victim, images, labels)) == pytest.approx(5 / 20)


def test_l2_attacks_find_the_distance_to_the_hyperplane(victim, images, labels):
    exact = radii(victim, images, labels, 2)[:17].float()
    norms = minimal_norms(Target(nn.Identity(), victim, images, labels), steps=100)
    assert all(values[17:].tolist() == [0, 0, 0] for values in norms.values())
    found = {name: values[:17] for name, values in norms.items()}
    torch.testing.assert_close(found["DeepFool"], exact, rtol=0.03, atol=0)  # overshoots by 2 %
    assert (found["C&W"] >= 0.9999 * exact).all()
    assert float((found["C&W"] / exact).median()) < 1.05  # too large steps find one distance
    for value, distance in zip(found["L2-PGD"].tolist(), exact.tolist(), strict=True):
        reachable = [radius for radius in adaptive.L2_RADII if radius > 1.3 * distance]
        assert 0.9999 * distance <= value <= 1.001 * min(reachable)


def test_an_image_that_nothing_fools_has_an_infinite_norm(images):
    victim = linear(scale=1e-3)
    victim.network[1].bias.data[2] = 10
    found = minimal_norms(Target(nn.Identity(), victim, images, torch.full((20,), 2)), steps=5)
    assert all(torch.isposinf(values).all() for values in found.values())


def test_norms_are_judged_by_the_defence(victim, images):
    """Fooling the straight-through surrogate alone does not count."""
    denoiser = Baseline("8-bit")
    labels = victim(denoiser(images)).argmax(dim=1)
    exact = radii(victim, denoiser(images), labels, 2)
    found = minimal_norms(Target(denoiser, victim, images, labels), steps=20)
    for values in found.values():
        assert (values >= 0.8 * exact.float()).all()


# -- all strengths at once -----------------------------------------------------------------------

GRID = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.1, 0.5)


def ensemble(target):
    return plan_ensemble(target, steps=20, iterations=10, queries=20)


def test_every_run_finds_the_closed_form_from_above(victim, images, labels):
    exact = radii(victim, images, labels, 1).float()
    found = minimal_eps(Target(nn.Identity(), victim, images, labels), steps=100)
    assert found.shape == (len(FMN_STEPS), 20) and not found[:, -3:].any()
    assert (found[:, :17] >= 0.999 * exact[:17]).all()
    # it aims at the class with the nearest logit, whose border may be a little further away
    assert (found.amin(dim=0)[:17] <= 1.1 * exact[:17]).all()


def test_the_smallest_eps_fools_the_defence_and_not_only_its_surrogate(victim, images):
    denoiser = Baseline("8-bit")
    labels = victim(denoiser(images)).argmax(dim=1)
    exact = radii(victim, denoiser(images), labels, 1).float()
    found = minimal_eps(Target(denoiser, victim, images, labels), steps=50)
    assert (found >= exact - 0.5 / 255).all()  # rounding moves a value by half a step at most


@pytest.mark.parametrize("factor", [1.0, float("inf")])
def test_descending_corrects_what_the_first_attack_missed(factor, victim, images, labels):
    exact = radii(victim, images, labels, 1).float()
    exact[-3:] = 0
    missed = torch.stack([factor * exact, 2 * factor * exact]).nan_to_num(nan=0.0, posinf=torch.inf)
    target = Target(nn.Identity(), victim, images, labels)
    found = descend(target, missed, GRID, ensemble)
    for eps in GRID:
        sure = (exact / eps - 1).abs() > 0.05
        assert torch.equal((found > eps)[sure], (exact > eps)[sure])


def test_only_uncertain_images_are_attacked_again(victim, images, labels):
    """Each at the largest ε of the grid below its own; agreeing runs that are clear of it are kept."""
    target, asked = Target(nn.Identity(), victim, images, labels), []
    runs = torch.full((2, 20), 0.0175)
    runs[:, 17:] = 0.0  # wrong anyway
    runs[1, 0] = 0.03  # disagrees
    runs[:, 1] = 0.0152  # hardly above .015
    runs[:, 2] = torch.inf
    runs[:, 3] = 0.0015  # below the grid

    def plan(part):
        def attack(rest, eps):
            asked.extend(zip(rest.images.sum(dim=(1, 2, 3)).tolist(), eps.tolist(), strict=True))
            return rest.images  # which fools nobody

        return [attack]

    runs[:, 4:17] = 0.019  # 1.27 times .015
    found = descend(target, runs, GRID, plan)
    assert torch.equal(found, runs.amin(dim=0))
    sums = images.sum(dim=(1, 2, 3)).tolist()
    expected = {(sums[0], 0.015), (sums[1], 0.015), (sums[2], 0.5)}
    assert {(image, round(eps, 6)) for image, eps in asked} == expected


def test_what_an_attack_costs_is_counted_per_image(victim, images, labels):
    target = Target(nn.Identity(), victim, images, labels)
    minimal_eps(target, steps=7)
    attacked = int(target.withstands(images).sum())  # what is wrong when clean needs no attack
    assert attacked < len(images)
    steps = 7 * len(FMN_STEPS) * attacked
    assert steps <= target.cost.gradients <= steps + 10  # and a few to prepare the network
    before = target.cost.forwards
    target.select(torch.arange(5)).withstands(images[:5])
    assert target.cost.forwards == before + 5


class Noise(nn.Module):
    def forward(self, images):
        return (images + 0.1 * torch.randn_like(images)).clamp(0, 1)


def test_a_random_defence_is_attacked_and_judged_by_its_expected_logits(victim, images, labels):
    target = Target(Noise().eval(), victim, images, labels)
    assert not target.deterministic
    for network in (target.defence, target.networks[0]):
        torch.manual_seed(0)
        found = network(images.clone())
        torch.manual_seed(0)
        every = [victim(Noise()(images)) for _ in range(SAMPLES)]
        torch.testing.assert_close(found, torch.stack(every).mean(dim=0), rtol=1e-3, atol=1e-3)
    assert Target(Baseline("8-bit"), victim, images, labels).deterministic


class OfTheBatch(nn.Module):
    def forward(self, images):
        return (images + 0.2 * (images.mean(dim=0) - images.mean())).clamp(0, 1)


def test_a_defence_that_depends_on_the_batch_is_noticed(victim, images, labels):
    assert not Target(OfTheBatch().eval(), victim, images, labels).deterministic


def test_images_of_any_memory_layout_are_attacked(victim, images, labels):
    shuffled = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    target = Target(nn.Identity(), victim, shuffled, labels)
    assert not shuffled.is_contiguous() and len(survive(target, 0.01, ensemble(target))) == 20
