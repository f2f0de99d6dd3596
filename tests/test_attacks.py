"""PGD against ten lines of our own, and what is stored of it."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nbsupport.attacks import pgd as attacks
from nbsupport.attacks.pgd import AttackedSet, margin, pgd, prepare, random_starts, ratios
from nbsupport.classifiers.models import Classifier, build
from nbsupport.study import EPS, REL_STEP

CLASSES, SIDE = 5, 6


class Network(nn.Module):
    """Smooth, and of double precision, so that rounding decides no sign of a gradient."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.linear = nn.Linear(3 * SIDE**2, CLASSES)
        self.norm.running_mean.uniform_(-1, 1)
        self.norm.running_var.uniform_(0.2, 2)
        self.double()

    def forward(self, images):
        return self.linear(self.block(images).flatten(1))

    def block(self, x):
        return torch.tanh(self.norm(self.conv(x)))


class Twice(Network):
    def forward(self, images):
        return self.linear(self.block(self.block(images)).flatten(1))


class ConvolvesTwice(Network):
    def block(self, x):
        return torch.tanh(self.norm(self.conv(x)) + self.conv(x))


class AddsWhatItNormalises(Network):
    def block(self, x):
        x = self.conv(x)
        return torch.tanh(self.norm(x) + x)


class BranchesOnValues(Network):
    def forward(self, images):
        return super().forward(images if images.sum() > 0 else -images)


class LoopsOverTheBatch(Network):
    def forward(self, images):
        return torch.cat(
            [super(LoopsOverTheBatch, self).forward(images[[i]]) for i in range(len(images))]
        )


class LoopsOverTheShape(Network):
    def forward(self, images):
        return torch.cat(
            [super(LoopsOverTheShape, self).forward(images[[i]]) for i in range(images.shape[0])]
        )


class AssertsItsInput(Network):
    def forward(self, images):
        assert isinstance(images, torch.Tensor)
        return super().forward(images)


class BranchesOnTheType(Network):
    def forward(self, images):
        return super().forward(images if isinstance(images, torch.Tensor) else -images)


NETWORKS = [
    Network,
    Twice,
    ConvolvesTwice,
    AddsWhatItNormalises,
    BranchesOnValues,
    LoopsOverTheBatch,
    LoopsOverTheShape,
    AssertsItsInput,
    BranchesOnTheType,
]


@pytest.fixture
def classifier():
    return Classifier(Network()).eval()


@pytest.fixture
def images():
    return torch.rand(
        6, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )


@pytest.fixture
def labels():
    return torch.arange(6) % CLASSES


def reference(classifier, images, labels, eps, steps, seed=0):
    """PGD(n, ε) from the same start, one strength for all."""
    x = random_starts(images, torch.full((len(images),), eps, dtype=images.dtype), seed)
    for _ in range(steps):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(classifier(x), labels), x)
        x = x + REL_STEP * eps * gradient.sign()
        x = x.clamp(images - eps, images + eps).clamp(0, 1)
    return x.detach()


# -- PGD(n, ε) -----------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 7, 40])
@pytest.mark.parametrize("eps", [1e-4, 0.03, 0.5])
def test_pgd_is_what_the_paper_says(steps, eps, classifier, images, labels):
    expected = reference(classifier, images, labels, eps, steps)
    torch.testing.assert_close(pgd(classifier, images, labels, eps, steps=steps), expected)


@pytest.mark.parametrize("network", NETWORKS)
def test_pgd_attacks_any_network(network, images, labels):
    classifier = Classifier(network()).eval()
    expected = reference(classifier, images, labels, 0.1, 5)
    torch.testing.assert_close(pgd(classifier, images, labels, 0.1, steps=5), expected)


@pytest.mark.parametrize("eps", EPS[1:])
def test_attacked_images_stay_in_the_ball_and_in_the_box(eps, images, labels):
    classifier, images = Classifier(Network()).eval().float(), images.float()
    attacked = pgd(classifier, images, labels, eps, steps=10)
    assert (attacked - images).abs().max() <= eps + 1e-7
    assert attacked.min() >= 0
    assert attacked.max() <= 1


def test_0_leaves_images_alone(classifier, images, labels):
    assert torch.equal(pgd(classifier, images, labels, 0, steps=3), images)


def test_40_steps_reach_the_border_of_the_ball(classifier, images, labels):
    gray = 0.25 + 0.5 * images
    deltas = pgd(classifier, gray, labels, 0.1) - gray
    torch.testing.assert_close(
        deltas.flatten(1).abs().amax(dim=1), torch.full((6,), 0.1, dtype=torch.float64)
    )


def test_10_steps_move_a_third_of_the_radius(classifier, images, labels):
    gray, eps = 0.25 + 0.5 * images, torch.full((6,), 0.1, dtype=torch.float64)
    moved = (pgd(classifier, gray, labels, eps, steps=10) - random_starts(gray, eps)).abs()
    assert float(moved.max()) == pytest.approx(0.1 / 3)


def test_the_size_of_a_step_can_be_chosen(classifier, images, labels):
    gray, eps = 0.25 + 0.5 * images, torch.full((6,), 0.1, dtype=torch.float64)
    moved = (
        pgd(classifier, gray, labels, eps, steps=1, rel_step=0.25) - random_starts(gray, eps)
    ).abs()
    assert float(moved.max()) == pytest.approx(0.25 * 0.1)


def test_one_strength_per_image_is_one_call_per_strength(classifier, images, labels):
    eps = [0.0, 1e-4, 1e-2, 0.1, 0.3, 0.5]
    together = pgd(classifier, images, labels, torch.tensor(eps, dtype=torch.float64), steps=5)
    alone = [
        pgd(classifier, images[[i]], labels[[i]], strength, steps=5)
        for i, strength in enumerate(eps)
    ]
    torch.testing.assert_close(together, torch.cat(alone))


def test_the_size_of_a_pass_does_not_matter(classifier, images, labels, monkeypatch):
    whole = pgd(classifier, images, labels, 0.1, steps=5)
    monkeypatch.setitem(attacks.CHUNK, "cpu", 4)
    torch.testing.assert_close(pgd(classifier, images, labels, 0.1, steps=5), whole)


def test_the_order_of_images_does_not_matter(classifier, images, labels):
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = pgd(classifier, images[order], labels[order], 0.1, steps=5)
    torch.testing.assert_close(shuffled, pgd(classifier, images, labels, 0.1, steps=5)[order])


def test_the_seed_decides(classifier, images, labels):
    first, again, other = (
        pgd(classifier, images, labels, 0.1, steps=2, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert ((first - other).flatten(1).abs().amax(dim=1) > 0.01).all()


def test_no_global_randomness_is_used(classifier, images, labels):
    before = torch.get_rng_state()
    first = pgd(classifier, images, labels, 0.1, steps=2)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    assert torch.equal(pgd(classifier, images, labels, 0.1, steps=2), first)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_classifier_is_left_as_it_is(frozen, classifier, images, labels):
    classifier.requires_grad_(not frozen)
    weights = copy.deepcopy(classifier.state_dict())
    pgd(classifier, images, labels, 0.1, steps=2)
    assert all(
        torch.equal(tensor, weights[name]) for name, tensor in classifier.state_dict().items()
    )
    assert all(
        parameter.requires_grad != frozen and parameter.grad is None
        for parameter in classifier.parameters()
    )
    assert not classifier.training
    with pytest.raises(ValueError, match="expected finite values"):  # its checks are still there
        classifier(images + 1)


def test_images_and_labels_are_left_as_they_are(classifier, images, labels):
    before = images.clone(), labels.clone()
    pgd(classifier, images, labels, 0.1, steps=2)
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])


def test_the_loss_rises_with_the_strength():
    """On a linear classifier between two kinds of images, where the best attack is known: one corner of the ball."""
    torch.manual_seed(0)
    labels = torch.arange(64) % 2
    images = (
        0.5
        + 0.1 * (2 * labels - 1).view(-1, 1, 1, 1) * torch.rand(3, 4, 4)
        + 0.1 * torch.randn(64, 3, 4, 4)
    ).clamp(0, 1)
    classifier = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)))
    optimiser = torch.optim.Adam(classifier.parameters(), 0.01)
    for _ in range(50):
        optimiser.zero_grad()
        F.cross_entropy(classifier(images), labels).backward()
        optimiser.step()
    classifier, images = classifier.double().eval().requires_grad_(False), images.double()
    losses = [
        float(F.cross_entropy(classifier(pgd(classifier, images, labels, eps)), labels))
        for eps in EPS
    ]
    assert all(weak < strong for weak, strong in pairwise(losses))


@pytest.mark.parametrize(
    "wrap", [lambda c: nn.Sequential(c.network), lambda c: nn.Sequential(nn.Identity(), c)]
)
def test_any_module_from_images_to_logits_can_be_attacked(wrap, images, labels):
    classifier = Classifier(Network(), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)).eval()
    attacked = pgd(wrap(classifier).eval(), images, labels, 0.1, steps=5)
    torch.testing.assert_close(attacked, pgd(classifier, images, labels, 0.1, steps=5))


@pytest.mark.parametrize("channels", [1, 4])
def test_images_need_not_be_rgb_where_the_classifier_takes_others(channels, labels):
    network, images = (
        nn.Sequential(nn.Flatten(), nn.Linear(channels * 4, CLASSES)),
        torch.rand(6, channels, 2, 2),
    )
    assert pgd(network.eval(), images, labels, 0.1, steps=2).shape == images.shape


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_of_any_integer_type_will_do(dtype, classifier, images, labels, no_shape_checker):
    attacked = pgd(classifier, images, labels.to(dtype), 0.1, steps=2)
    assert torch.equal(attacked, pgd(classifier, images, labels, 0.1, steps=2))


def test_images_may_need_a_gradient(classifier, images, labels):
    attacked = pgd(classifier, images.clone().requires_grad_(), labels, 0.1, steps=2)
    assert torch.equal(attacked, pgd(classifier, images, labels, 0.1, steps=2))


def test_gradients_may_be_off(classifier, images, labels):
    with torch.no_grad():
        attacked = pgd(classifier, images, labels, 0.1, steps=2)
    assert torch.equal(attacked, pgd(classifier, images, labels, 0.1, steps=2))


# -- the margin ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 2), (1, 5), (50, 4)])
def test_the_margin_is_the_best_wrong_logit_minus_the_true_one(shape):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=shape), rng.integers(shape[1], size=shape[0])
    expected = [
        max(np.delete(row, label)) - row[label] for row, label in zip(logits, labels, strict=True)
    ]
    found = margin(torch.tensor(logits), torch.tensor(labels))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert ((found > 0).numpy() == (logits.argmax(axis=1) != labels)).all()


def test_the_gradient_of_the_margin_does_not_fade():
    logits = torch.tensor([[80.0, 0.0, -5.0], [0.0, 90.0, 1.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(margin(logits, torch.tensor([0, 1])).sum(), logits)
    assert gradient.tolist() == [[-1, 1, 0], [0, -1, 1]]
    (faded,) = torch.autograd.grad(F.cross_entropy(logits, torch.tensor([0, 1])), logits)
    assert faded.abs().max() < 1e-30


def raised(classifier, images, labels, eps, steps, rel_step):
    """Ten lines of PGD on the margin."""
    x = random_starts(images, torch.full((len(images),), eps, dtype=images.dtype), 3)
    for _ in range(steps):
        x = x.detach().requires_grad_()
        logits = classifier(x)
        others = torch.stack(
            [torch.cat([row[:y], row[y + 1 :]]) for row, y in zip(logits, labels, strict=True)]
        )
        value = others.max(dim=1).values - logits[torch.arange(len(x)), labels]
        (gradient,) = torch.autograd.grad(value.sum(), x)
        x = (x + rel_step * eps * gradient.sign()).clamp(images - eps, images + eps).clamp(0, 1)
    return x.detach()


@pytest.mark.parametrize(("steps", "rel_step"), [(1, 0.25), (9, 0.1), (40, REL_STEP)])
@pytest.mark.parametrize("eps", [1e-3, 0.1, 0.5])
def test_pgd_raises_the_margin(eps, steps, rel_step, classifier, images, labels):
    expected = raised(classifier, images, labels, eps, steps, rel_step)
    options = dict(steps=steps, rel_step=rel_step, seed=3)
    torch.testing.assert_close(
        pgd(classifier, images, labels, eps, loss="margin", **options), expected
    )
    if steps == 40 and eps > 0.01:
        assert not torch.allclose(pgd(classifier, images, labels, eps, **options), expected)


def test_the_margin_goes_on_where_cross_entropy_has_no_gradient(images, labels):
    confident = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, CLASSES)).double().eval()
    with torch.no_grad():
        confident[1].weight.mul_(0.1)
        confident[1].bias.copy_(torch.tensor([0.0, 2000, 0, 0, 0]))
    one, eps = torch.ones(6, dtype=torch.long), torch.full((6,), 0.1, dtype=torch.float64)
    start = random_starts(images, eps)
    torch.testing.assert_close(pgd(confident, images, one, 0.1, steps=3), start)
    assert (pgd(confident, images, one, 0.1, steps=3, loss="margin") - start).abs().max() > 0.005


@pytest.mark.parametrize("loss", ["dlr", "", "Margin"])
def test_another_loss_is_refused(loss, classifier, images, labels):
    with pytest.raises(
        ValueError, match=f"pgd: expected the loss 'cross-entropy' or 'margin', got '{loss}'"
    ):
        pgd(classifier, images, labels, 0.1, steps=2, loss=loss)


# -- what it refuses -----------------------------------------------------------------------------


def test_a_classifier_in_training_mode_is_refused(classifier, images, labels):
    with pytest.raises(
        ValueError,
        match=r"attack: the classifier is in training mode; call classifier.eval\(\) first",
    ):
        pgd(classifier.train(), images, labels, 0.1)


def test_so_is_one_of_which_a_part_is(classifier, images, labels):
    classifier.network.norm.train()
    with pytest.raises(ValueError, match="attack: the classifier is in training mode"):
        pgd(classifier, images, labels, 0.1)


@pytest.mark.parametrize("wrap", [Classifier, nn.Sequential])
def test_probabilities_are_refused(wrap, images, labels):
    with pytest.raises(ValueError, match="it returns probabilities"):
        pgd(wrap(nn.Sequential(Network(), nn.Softmax(dim=1))).eval(), images, labels, 0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda labels: labels + 1,
            "expected labels from 0 to 4, got 1 to 5; labels that start at 1 need labels - 1",
        ),
        (lambda labels: labels + 7, "expected labels from 0 to 4, got 7 to 11"),
        (lambda labels: labels - 1, "expected labels from 0 to 4, got -1 to 3"),
        (
            lambda labels: labels.double(),
            "expected 6 integer labels for 6 images, got torch.float64",
        ),
        (
            lambda labels: labels[:3],
            r"expected 6 integer labels for 6 images, got torch.int64 of shape \(3,\)",
        ),
        (lambda labels: F.one_hot(labels), r"expected 6 integer labels .* of shape \(6, 5\)"),
    ],
    ids=["from 1", "too large", "negative", "floating-point", "too few", "one-hot"],
)
def test_labels_that_do_not_fit_are_refused(
    change, message, classifier, images, labels, no_shape_checker
):
    with pytest.raises(ValueError, match=f"^pgd: {message}"):
        pgd(classifier, images, change(labels), 0.1)


@pytest.mark.parametrize(
    "eps", [-0.1, 1.5, 8, float("nan"), float("inf"), torch.tensor([0.1] * 5 + [8.0])], ids=str
)
def test_strengths_are_for_images_in_0_to_1(eps, classifier, images, labels):
    with pytest.raises(
        ValueError, match=r"pgd: expected ε from 0 to 1, .*; 8/255 is written 8 / 255"
    ):
        pgd(classifier, images, labels, eps)


@pytest.mark.parametrize(
    "eps", [torch.full((5,), 0.1), torch.full((6, 1), 0.1)], ids=["too few", "a column"]
)
def test_there_is_one_strength_or_one_per_image(eps, classifier, images, labels, no_shape_checker):
    with pytest.raises(ValueError, match=r"^pgd: "):
        pgd(classifier, images, labels, eps)


@pytest.mark.parametrize(
    "options", [{"steps": 0}, {"steps": -1}, {"rel_step": 0.0}, {"rel_step": -0.1}], ids=str
)
def test_there_is_at_least_one_step(options, classifier, images, labels):
    with pytest.raises(
        ValueError, match="pgd: expected at least one step of positive size, got steps="
    ):
        pgd(classifier, images, labels, 0.1, **options)


def test_images_are_in_0_to_1(classifier, images, labels):
    with pytest.raises(
        ValueError, match=r"pgd: expected finite values in \[0, 1\], .* divide by 255"
    ):
        pgd(classifier, 255 * images, labels, 0.1)


# -- random starts -------------------------------------------------------------------------------


def test_starts_fill_the_ball():
    images, eps = torch.full((2, 3, 16, 16), 0.5), torch.tensor([0.1, 0.4])
    ratio = (random_starts(images, eps) - images) / eps.view(-1, 1, 1, 1)
    assert 0.98 < ratio.abs().max() <= 1 + 1e-6
    torch.testing.assert_close(
        ratio.abs().mean(dim=(1, 2, 3)), torch.full((2,), 0.5), atol=0.05, rtol=0
    )
    torch.testing.assert_close(ratio.mean(dim=(1, 2, 3)), torch.zeros(2), atol=0.1, rtol=0)


def test_starts_stay_in_the_box(images):
    starts = random_starts(images, torch.full((6,), 0.9))
    assert starts.min() == 0
    assert starts.max() == 1


def test_a_start_depends_on_image_strength_and_seed_alone(images):
    eps = torch.tensor([0.1, 0.2, 0.3, 0.1, 0.2, 0.3])
    alone = [random_starts(images[[i]], eps[[i]], seed=4) for i in range(6)]
    assert torch.equal(random_starts(images, eps, seed=4), torch.cat(alone))


@pytest.mark.parametrize("changed", ["image", "strength", "seed"])
def test_a_start_depends_on_each_of_them(changed):
    image, eps = torch.full((1, 3, 8, 8), 0.5), torch.tensor([0.1])
    other_image, other_eps = (
        image + 1e-3 * (changed == "image"),
        eps + 1e-3 * (changed == "strength"),
    )
    noise = (random_starts(image, eps) - image) / eps
    other = (
        random_starts(other_image, other_eps, seed=int(changed == "seed")) - other_image
    ) / other_eps
    assert (noise - other).abs().mean() > 0.1


def test_a_start_does_not_depend_on_the_layout_in_memory(images):
    eps = torch.full((6,), 0.1)
    last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(random_starts(last, eps), random_starts(images, eps))


# -- prepare -------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
def test_a_prepared_classifier_says_the_same(network, images):
    classifier = Classifier(network(), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)).eval()
    torch.testing.assert_close(
        prepare(classifier, images)(images), classifier(images), atol=1e-5, rtol=1e-5
    )


def with_statistics(name):
    """An architecture whose batch norms have seen images."""
    torch.manual_seed(0)
    classifier = build(name, 10, 32)
    with torch.no_grad():
        classifier(torch.rand(16, 3, 32, 32))
    return classifier.eval()


@pytest.mark.parametrize("name", ["small_resnet", "resnet18", "mobilenet_v2", "densenet121"])
def test_a_prepared_architecture_says_the_same(name):
    classifier, images = with_statistics(name).requires_grad_(False), torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(
        prepare(classifier, images)(images), classifier(images), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("name", ["small_resnet", "resnet18", "mobilenet_v2"])
def test_batch_norm_costs_an_attack_nothing(name):
    layers = prepare(with_statistics(name), torch.rand(2, 3, 32, 32)).modules()
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in layers)


def test_a_prepared_classifier_is_a_frozen_copy(classifier, images):
    prepared = prepare(classifier, images)
    assert not any(parameter.requires_grad for parameter in prepared.parameters())
    own = {tensor.data_ptr() for tensor in classifier.state_dict().values()}
    assert not own & {tensor.data_ptr() for tensor in prepared.state_dict().values()}


# -- sets of attacked images ---------------------------------------------------------------------


@pytest.fixture
def attacked_set():
    images = torch.full((3, 3, 2, 2), 0.5)
    signs = torch.tensor([1.0, -1.0, 0.5]).view(1, 3, 1, 1, 1)
    return AttackedSet(
        images, torch.tensor([0, 1, 2]), signs.expand(2, 3, 3, 2, 2).half(), (0.0, 0.1, 0.75)
    )


@pytest.mark.parametrize(
    ("eps", "values"), [(0.0, [0.5, 0.5, 0.5]), (0.1, [0.6, 0.4, 0.55]), (0.75, [1.0, 0.0, 0.875])]
)
def test_at_gives_all_images_of_one_strength(eps, values, attacked_set):
    expected = torch.tensor(values).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    torch.testing.assert_close(attacked_set.at(eps), expected)
    torch.testing.assert_close(attacked_set.at(eps, 2), expected[:2])


def test_pick_gives_every_image_its_own_strength(attacked_set):
    picked = attacked_set.pick(torch.tensor([2, 0, 1, 1]), torch.tensor([1, 1, 2, 0]))
    torch.testing.assert_close(picked[:, 0, 0, 0], torch.tensor([0.0, 0.5, 0.55, 0.6]))


def test_clean_images_come_back_bit_by_bit(artefacts):
    attacked = artefacts.attacked("test")
    assert torch.equal(attacked.at(0.0), attacked.images)


@pytest.mark.parametrize("eps", [0.2, 1e-4, -0.1])
def test_a_strength_that_is_not_there_is_refused(eps, attacked_set):
    with pytest.raises(
        ValueError, match=f"no images were attacked with ε = {eps}; there are 0.0, 0.1, 0.75"
    ):
        attacked_set.at(eps)


def test_ratios_keep_every_perturbation_to_a_2048th_of_its_strength(classifier, images, labels):
    stored = ratios(classifier, images, labels, EPS[1:], steps=5, seed=3)
    assert stored.dtype == torch.float16
    assert stored.shape == (12, *images.shape)
    assert stored.abs().max() <= 1
    attacked = AttackedSet(images, labels, stored, EPS)
    for eps in EPS[1:]:
        fresh = pgd(classifier, images, labels, float(torch.tensor(eps)), steps=5, seed=3)
        assert (attacked.at(eps) - fresh).abs().max() <= eps / 2048


def test_the_classifier_decides_the_same_on_stored_and_on_fresh_images(artefacts):
    classifier, attacked, study = (
        artefacts.classifier(),
        artefacts.attacked("test"),
        artefacts.study,
    )
    for eps in study.attacked_eps:
        fresh = pgd(
            classifier, attacked.images, attacked.labels, eps, steps=study.steps, seed=study.seed
        )
        assert torch.equal(
            classifier(attacked.at(eps)).argmax(dim=1), classifier(fresh).argmax(dim=1)
        )


@pytest.mark.parametrize("eps", [eps for eps in EPS[1:] if eps < 1 / 510])
def test_8_bit_images_would_not_keep_what_ratios_keep(eps, artefacts):
    attacked = artefacts.attacked("test")
    images = (attacked.images * 255).round() / 255
    kept = AttackedSet(images, attacked.labels, attacked.ratios, attacked.eps).at(eps)
    assert torch.equal((kept * 255).round() / 255, images)
    torch.testing.assert_close((kept - images).abs().max(), torch.tensor(eps), atol=1e-7, rtol=0)


def test_chunks_halve_until_memory_suffices(monkeypatch):
    monkeypatch.setitem(attacks.CHUNK, "cpu", 16)
    network, images, labels, sizes = (
        Network().eval(),
        torch.rand(19, 3, SIDE, SIDE).double(),
        torch.arange(19) % CLASSES,
        [],
    )
    whole = pgd(network, images, labels, 0.1, steps=2)

    class Small(Network):
        """A network on a device that has room for five images."""

        def forward(self, inputs):
            sizes.append(len(inputs))
            if len(inputs) > 5:
                raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")
            return super().forward(inputs)

    small = Small().eval()
    small.load_state_dict(network.state_dict())
    assert torch.equal(pgd(small, images, labels, 0.1, steps=2), whole)
    assert list(dict.fromkeys(sizes)) == [
        2,
        1,
        16,
        8,
        4,
        3,
    ]  # first the two images that are looked at; the rest is 3
