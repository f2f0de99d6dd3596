"""The attacks on whole defences, against closed forms of a linear classifier and loops of our own."""

import numpy as np
import pytest
import torch
from small import CLASSES, gaps, linear, pictures, radii
from torch import nn

from nbsupport.attacks import adaptive, pgd
from nbsupport.attacks.adaptive import (
    AUTOATTACK,
    LOSSES,
    StraightThrough,
    autoattack,
    chain,
    minimal_norms,
    over_steps,
    pgd_through,
    surrogates,
    withstands,
    zero_gradients,
)
from nbsupport.classifiers.models import Classifier, feature_pyramid
from nbsupport.denoisers.baselines import BASELINES, Baseline
from nbsupport.denoisers.models import Filtering, PAFilter, View


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


def disturbed(denoiser, seed=0, scale=0.1):
    """Away from the identity."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in denoiser.requires_grad_(False).parameters():
        parameter += scale * torch.randn(parameter.shape, generator=generator)
    return denoiser.eval()


# -- straight through ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", BASELINES)
@pytest.mark.parametrize("shape", [(1, 3, 7, 9), (3, 3, 8, 8)])
def test_straight_through_has_the_denoisers_value_and_the_identitys_gradient(name, shape):
    inputs = torch.rand(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    denoiser = Baseline(name)
    through = StraightThrough(denoiser)(inputs)
    torch.testing.assert_close(through, denoiser(inputs.detach()), atol=1e-6, rtol=0)
    weights = torch.randn(shape)
    (gradient,) = torch.autograd.grad((weights * through).sum(), inputs)
    assert torch.equal(gradient, weights)


def test_straight_through_stays_in_the_box():
    """Exact arithmetic would; what rounds to more than 1 would be refused by the classifier."""
    inputs = torch.rand(50, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for value in (0.0, 1.0, 1 - 2**-24, 2**-30):
        through = StraightThrough(nn.Hardtanh(value, value + 2**-40))(inputs)
        assert through.min() >= 0 and through.max() <= 1


# -- what is differentiated ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "denoiser", [nn.Identity(), Filtering(2, 3)], ids=lambda each: type(each).__name__
)
def test_a_denoiser_with_a_gradient_is_differentiated_itself(denoiser):
    (found,) = surrogates(denoiser)
    assert found is denoiser


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_is_differentiated_where_it_can_be(name):
    denoiser = Baseline(name)
    (found,) = surrogates(denoiser)
    inputs = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    if name in ("median 3x3", "Gaussian blur"):
        assert found is denoiser
    else:
        assert isinstance(found, StraightThrough) and found.denoiser is denoiser
    (gradient,) = torch.autograd.grad(found(inputs).square().sum(), inputs)
    assert (gradient != 0).flatten(1).any(dim=1).all()


def test_pa_filt_is_differentiated_as_a_whole_and_in_both_its_parts():
    denoiser = disturbed(PAFilter(None, 2, 3))
    found, inputs = surrogates(denoiser), torch.rand(2, 3, 9, 8)
    parts = denoiser.parts(inputs)
    expected = [parts.weight * parts.sl + (1 - parts.weight) * parts.m, parts.sl, parts.m]
    assert len(found) == 3
    for surrogate, image in zip(found, expected, strict=True):
        assert not surrogate.training
        torch.testing.assert_close(surrogate(inputs), image)
    assert not torch.allclose(parts.sl, parts.m)


# -- the defence as a whole ----------------------------------------------------------------------


def test_a_chain_is_the_classifier_after_the_denoiser_in_evaluation_mode(victim, images):
    blur = Baseline("Gaussian blur")
    defence = chain(blur.train(), victim.train())
    assert not any(module.training for module in defence.modules())
    assert torch.equal(defence(images), victim(blur(images)))


def test_of_fpd_it_is_what_comes_before_the_tanh():
    fpd = feature_pyramid.build("small_resnet_fpd", CLASSES, 8)
    inputs = torch.rand(2, 3, 8, 8)
    logits = chain(nn.Identity(), fpd)(inputs)
    torch.testing.assert_close(logits.tanh(), fpd.eval()(inputs))
    assert not torch.allclose(logits, logits.tanh())


def test_what_withstands_is_what_is_right(victim, images, labels):
    expected = [
        int(victim(image[None]).argmax()) == label
        for image, label in zip(images, labels.tolist(), strict=True)
    ]
    assert withstands(victim, images, labels).tolist() == expected == [True] * 17 + [False] * 3


# -- PGD through the defence ---------------------------------------------------------------------


def survivors_of_every_variant(denoiser, victim, images, labels, eps, steps, restarts, seed):
    """Every variant on every image, one image at a time."""
    defence = nn.Sequential(denoiser, victim).eval()
    robust = torch.ones(len(images), dtype=torch.bool)
    runs = [
        (min(40, steps), rel, seed + k) for k in range(restarts) for rel in (0.25, 0.01 / 0.3, 0.01)
    ]
    for n, rel_step, start in [*runs, (steps, 0.01 / 0.3, seed + restarts)]:
        for surrogate in surrogates(denoiser):
            network = nn.Sequential(surrogate, victim).eval()
            for loss in ("cross-entropy", "margin"):
                for i in range(len(images)):
                    one = images[[i]], labels[[i]]
                    attacked = pgd(
                        network, *one, eps, steps=n, rel_step=rel_step, seed=start, loss=loss
                    )
                    both = torch.cat([defence(images[[i]]), defence(attacked)]).argmax(dim=1)
                    robust[i] &= bool((both == labels[i]).all())
    return robust


DENOISERS = {
    "none": nn.Identity,
    "8-bit": lambda: Baseline("8-bit"),
    "Filt": lambda: disturbed(Filtering(2, 3), scale=0.02),
    "PA-Filt": lambda: disturbed(PAFilter(None, 2, 3), scale=0.02),
}


@pytest.mark.parametrize(("steps", "restarts"), [(3, 1), (2, 2)])
@pytest.mark.parametrize("make", DENOISERS.values(), ids=DENOISERS)
def test_survivors_are_those_that_no_variant_deceives(make, steps, restarts, victim, images):
    denoiser, images = make(), images[:5]
    with torch.no_grad():
        labels = victim(denoiser(images)).argmax(dim=1)
    labels[0] = (labels[0] + 1) % CLASSES
    eps = 1.2 * float(radii(victim, denoiser(images), labels, 1).median())
    arguments = denoiser, victim, images, labels, eps
    found = pgd_through(*arguments, steps=steps, restarts=restarts, seed=5)
    assert torch.equal(found, survivors_of_every_variant(*arguments, steps, restarts, 5))
    assert 0 < found.sum() < 4 and not found[0]


@pytest.mark.parametrize(("steps", "long"), [(3, 3), (100, 100)])
def test_the_plan_of_pgd(steps, long, victim, images, labels, monkeypatch):
    calls = []

    def spy(network, x, y, eps, **options):
        calls.append((options["steps"], options["rel_step"], options["seed"], options["loss"]))
        return x  # which deceives nobody

    monkeypatch.setattr(adaptive, "pgd", spy)
    found = pgd_through(nn.Identity(), victim, images, labels, 0.1, steps=steps, restarts=2, seed=7)
    short = [(min(40, steps), rel, seed) for seed in (7, 8) for rel in (0.25, 0.01 / 0.3, 0.01)]
    assert calls == [(*run, loss) for run in [*short, (long, 0.01 / 0.3, 9)] for loss in LOSSES]
    assert found.tolist() == [True] * 17 + [False] * 3


def test_every_surrogate_is_attacked_and_the_defence_itself_judges(images, monkeypatch):
    denoiser, victim, attacked = disturbed(PAFilter(None, 2, 3)), linear(), []
    labels = victim(denoiser(images)).argmax(dim=1)

    def spy(network, x, y, eps, **options):
        attacked.append(network[0])
        return x

    monkeypatch.setattr(adaptive, "pgd", spy)
    assert pgd_through(denoiser, victim, images, labels, 0.1, steps=2, restarts=1).all()
    assert {type(each) for each in attacked} == {PAFilter, View}
    assert {each.output for each in attacked if isinstance(each, View)} == {"sl", "m"}
    assert len(attacked) == 4 * 3 * 2


def test_what_is_wrong_when_clean_is_never_robust(victim, images, labels, monkeypatch):
    wrong = (labels + 1) % CLASSES
    right = torch.stack(
        [images[(victim(images).argmax(dim=1) == label).nonzero()[0, 0]] for label in wrong]
    )
    monkeypatch.setattr(adaptive, "pgd", lambda network, x, y, eps, **options: right[: len(x)])
    assert not pgd_through(
        nn.Identity(), victim, images[:17], wrong[:17], 0.1, steps=2, restarts=1
    ).any()


@pytest.mark.parametrize("eps", [1e-4, 0.02, 0.05, 0.2])
def test_pgd_finds_the_closed_form(eps, victim, images, labels):
    """The corner of the ball: cross-entropy may prefer another class, the margin does not near the border."""
    exact = radii(victim, images, labels, 1)
    found = pgd_through(nn.Identity(), victim, images, labels, eps, steps=100, restarts=1)
    sure = (exact / eps - 1).abs() > 0.05
    assert sure.sum() > 10
    assert torch.equal(found[sure], exact[sure] > eps)


def test_one_image_is_attacked_too(victim, images, labels):
    for at in (0, -1):
        alone = pgd_through(
            nn.Identity(), victim, images[[at]], labels[[at]], 1e-4, steps=2, restarts=1
        )
        assert alone.tolist() == [at == 0]


# -- AutoAttack ----------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [0.015, 0.03])
@pytest.mark.parametrize(
    ("attacks", "within"), [(AUTOATTACK, 0.03), (["apgd-ce"], 0.1), (["fab-t"], 0.03)], ids=str
)
def test_autoattack_finds_the_closed_form(attacks, within, eps, victim, images, labels):
    exact = radii(victim, images, labels, 1)
    found = autoattack(nn.Identity(), victim, images, labels, eps, attacks=attacks, iterations=20)
    sure = (exact / eps - 1).abs() > within
    assert sure.sum() > 10 and 0 < (exact[:-3] > eps).sum() < 17
    assert torch.equal(found[sure], exact[sure] > eps)


def test_square_finds_it_without_a_gradient(victim, images, labels):
    exact, eps = radii(victim, images, labels, 1), 0.02
    found = autoattack(nn.Identity(), victim, images, labels, eps, attacks=["square"], queries=1000)
    assert found[exact > eps].all() and not found[-3:].any()
    assert not found[exact < 0.5 * eps].any()
    assert (exact[:-3] < 0.5 * eps).any() and (exact > eps).any()


def test_square_goes_through_a_defence_without_a_gradient(victim, images, labels):
    eps = 4 * float(radii(victim, images, labels, 1).max())
    arguments = Masked(), victim, images, labels, eps
    assert not autoattack(*arguments, attacks=["square"], queries=1000).any()


class Masked(nn.Module):
    """Leaves images as they are and shows no gradient."""

    def forward(self, images):
        return images + 0 * images.detach() - (images - images.detach())


@pytest.fixture
def limits(monkeypatch):
    """What AutoAttack was set to before it ran."""
    seen = []

    def run(self, x, y):
        parts = self.apgd, self.apgd_targeted, self.fab
        classes = [part.n_target_classes for part in parts[1:]]
        seen.append(
            (
                self.attacks_to_run,
                self.epsilon,
                [part.n_iter for part in parts],
                classes,
                self.square.n_queries,
            )
        )
        return (x,)

    monkeypatch.setattr(adaptive.AutoAttack, "run_standard_evaluation", run)
    return seen


@pytest.mark.parametrize(("classes", "targets"), [(4, 3), (20, 9)])
def test_autoattack_runs_as_asked(classes, targets, images, limits):
    victim = linear(classes=classes)
    labels = victim(images).argmax(dim=1)
    autoattack(
        nn.Identity(), victim, images, labels, 0.1, attacks=AUTOATTACK, iterations=7, queries=11
    )
    assert limits == [(["apgd-ce", "apgd-t", "fab-t"], 0.1, [7, 7, 7], [targets, targets], 11)]


def test_only_what_is_right_when_clean_is_attacked(victim, images, labels, monkeypatch):
    attacked = []
    monkeypatch.setattr(
        adaptive.AutoAttack,
        "run_standard_evaluation",
        lambda self, x, y: (attacked.append(x) or torch.full_like(x, 0.9),),
    )
    found = autoattack(nn.Identity(), victim, images, labels, 0.1, attacks=AUTOATTACK)
    assert torch.equal(attacked[0], images[:17])
    alike = int(victim(torch.full_like(images[:1], 0.9)).argmax())
    assert torch.equal(found, (labels == alike) & (torch.arange(20) < 17))


def test_where_all_is_wrong_nothing_is_attacked(victim, images, labels, limits):
    wrong = (victim(images).argmax(dim=1) + 1) % CLASSES
    assert not autoattack(nn.Identity(), victim, images, wrong, 0.1, attacks=AUTOATTACK).any()
    assert limits == []


@pytest.mark.parametrize("attacks", [AUTOATTACK, ["square"]], ids=str)
def test_the_seed_decides_and_the_sessions_random_state_does_not(attacks, victim, images, labels):
    results = []
    for state in (1, 2):
        torch.manual_seed(state)
        before = torch.get_rng_state()
        options = dict(attacks=attacks, iterations=3, queries=15, seed=3)
        results.append(autoattack(nn.Identity(), victim, images, labels, 0.04, **options))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*results)


# -- traces --------------------------------------------------------------------------------------


def test_the_trace_is_that_of_pgd_with_the_margin_loss(victim, images, labels):
    steps = (1, 3, 8)
    correct, margins = over_steps(nn.Identity(), victim, images, labels, 0.05, steps=steps)
    tries = [images, *(pgd(victim, images, labels, 0.05, steps=n, loss="margin") for n in steps)]
    for row, tried in enumerate(tries):
        expected = -gaps(victim, tried, labels)[0].amin(dim=1)
        np.testing.assert_allclose(margins[row], expected, atol=1e-4)
        assert torch.equal(correct[row], withstands(victim, tried, labels))


def test_it_is_judged_by_the_defence_and_not_by_its_surrogate(victim, images, labels):
    denoiser = Baseline("8-bit")
    coarse = StraightThrough(denoiser)
    _, margins = over_steps(denoiser, victim, images, labels, 0.003, steps=(4,))
    attacked = pgd(
        nn.Sequential(coarse, victim).eval(), images, labels, 0.003, steps=4, loss="margin"
    )
    expected = -gaps(victim, denoiser(attacked), labels)[0].amin(dim=1)
    np.testing.assert_allclose(margins[1], expected, atol=1e-4)


# -- gradients -----------------------------------------------------------------------------------


class MaskedFor(nn.Module):
    """No gradient for the first `number` images."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def forward(self, images):
        return torch.cat([images[: self.number].detach(), images[self.number :]])


@pytest.mark.parametrize("number", [0, 5, 20])
def test_zero_gradients_are_counted(number, victim, images, labels):
    assert zero_gradients(MaskedFor(number), victim, images, labels) == pytest.approx(number / 20)


@pytest.mark.parametrize("name", BASELINES)
def test_no_baseline_hides_its_gradient(name, victim, images, labels):
    with torch.no_grad():
        assert zero_gradients(Baseline(name), victim, images, labels) == 0


# -- minimal norms -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def norms():
    victim, images = linear(), pictures(20)
    labels = victim(images).argmax(dim=1)
    labels[-3:] = (labels[-3:] + 1) % CLASSES
    found = minimal_norms(nn.Identity(), victim, images, labels, steps=100)
    return (
        {name: values[:-3] for name, values in found.items()},
        radii(victim, images, labels, 2)[:-3].float(),
        found,
    )


def test_deepfool_finds_the_distance_to_the_hyperplane(norms):
    found, exact, _ = norms
    torch.testing.assert_close(
        found["DeepFool"], exact, rtol=0.03, atol=0
    )  # it goes 2 % too far on purpose


def test_carlini_and_wagner_come_near(norms):
    found, exact, _ = norms
    assert (found["C&W"] >= 0.9999 * exact).all()
    assert (
        float((found["C&W"] / exact).median()) < 1.05
    )  # steps that are too large find one distance for all


def test_pgd_finds_the_next_radius(norms):
    found, exact, _ = norms
    for value, distance in zip(found["L2-PGD"].tolist(), exact.tolist(), strict=True):
        reachable = [
            radius for radius in (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2) if radius > 1.3 * distance
        ]
        assert 0.9999 * distance <= value <= 1.001 * min(reachable)


def test_what_is_wrong_when_clean_has_norm_0(norms):
    assert all(values[-3:].tolist() == [0, 0, 0] for values in norms[2].values())
    assert all((values > 0).all() for values in norms[0].values())


def test_what_nothing_deceives_has_an_infinite_norm(images):
    victim = linear(scale=1e-3)
    victim.network[1].bias.data[2] = 10
    found = minimal_norms(nn.Identity(), victim, images, torch.full((20,), 2), steps=5)
    assert all(torch.isposinf(values).all() for values in found.values())


def test_norms_are_judged_by_the_defence(victim, images):
    """What deceives the straight-through surrogate alone does not count."""
    denoiser = Baseline("8-bit")
    labels = victim(denoiser(images)).argmax(dim=1)
    exact = radii(victim, denoiser(images), labels, 2)
    found = minimal_norms(denoiser, victim, images, labels, steps=20)
    for values in found.values():
        assert (values >= 0.8 * exact.float()).all()


def test_they_leave_the_random_state(victim, images, labels):
    before = torch.get_rng_state()
    minimal_norms(nn.Identity(), victim, images, labels, steps=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_softmax_classifiers_are_refused(images, labels):
    softmax = Classifier(nn.Sequential(linear().network, nn.Softmax(dim=1))).eval()
    with pytest.raises(ValueError, match="it returns probabilities"):
        pgd_through(nn.Identity(), softmax, images, labels, 0.1, steps=2, restarts=1)
