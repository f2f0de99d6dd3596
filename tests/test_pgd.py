"""PGD against ten lines of plain PyTorch, and its storage as δ/ε."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nbsupport.attacks import pgd
from nbsupport.attacks.pgd import (
    CHUNK,
    AttackedSet,
    halve_on_out_of_memory,
    margin,
    prepare,
    random_starts,
    ratios,
)
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
    def block(self, x):
        return torch.cat([super(LoopsOverTheBatch, self).block(image[None]) for image in x])


NETWORKS = [Twice, ConvolvesTwice, AddsWhatItNormalises, BranchesOnValues, LoopsOverTheBatch]


@pytest.fixture
def classifier():
    return Classifier(Network()).eval()


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(6, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)


@pytest.fixture
def labels():
    return torch.arange(6) % CLASSES


def other_margin(logits, labels):
    rows = zip(logits, labels, strict=True)
    return sum(torch.cat([row[:y], row[y + 1 :]]).max() - row[y] for row, y in rows)


def reference(classifier, images, labels, eps, steps, *, seed=0, rel_step=REL_STEP, loss=None):
    """PGD(n, ε) from the same start, one strength for all."""
    x = random_starts(images, torch.full((len(images),), eps, dtype=images.dtype), seed)
    for _ in range(steps):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad((loss or F.cross_entropy)(classifier(x), labels), x)
        x = x + rel_step * eps * gradient.sign()
        x = x.clamp(images - eps, images + eps).clamp(0, 1)
    return x.detach()


@pytest.mark.parametrize(("steps", "rel_step"), [(1, 0.25), (7, 0.1), (40, REL_STEP)])
@pytest.mark.parametrize("eps", [0.0, 1e-4, 0.03, 0.5])
@pytest.mark.parametrize("loss", ["cross-entropy", "margin"])
def test_pgd_follows_the_papers_equation(loss, eps, steps, rel_step, classifier, images, labels):
    options = dict(steps=steps, rel_step=rel_step, seed=3)
    slow = {"cross-entropy": F.cross_entropy, "margin": other_margin}[loss]
    expected = reference(classifier, images, labels, eps, loss=slow, **options)
    before = images.clone()
    with torch.no_grad():  # as in a cell that only evaluates
        found = pgd(classifier, images, labels, eps, loss=loss, **options)
    torch.testing.assert_close(found, expected)
    assert torch.equal(images, before)


@pytest.mark.parametrize("network", NETWORKS)
def test_pgd_attacks_any_network(network, images, labels):
    classifier = Classifier(network()).eval()
    expected = reference(classifier, images, labels, 0.1, 5)
    torch.testing.assert_close(pgd(classifier, images, labels, 0.1, steps=5), expected)


def test_one_strength_per_image_is_one_call_per_strength(classifier, images, labels):
    eps = [0.0, 1e-4, 1e-2, 0.1, 0.3, 0.5]
    together = pgd(classifier, images, labels, torch.tensor(eps, dtype=torch.float64), steps=5)
    one = [pgd(classifier, images[[i]], labels[[i]], eps[i], steps=5) for i in range(6)]
    torch.testing.assert_close(together, torch.cat(one))


def test_order_and_size_of_passes_do_not_matter(classifier, images, labels, monkeypatch):
    whole, order = pgd(classifier, images, labels, 0.1, steps=5), torch.tensor([3, 0, 5, 1, 4, 2])
    monkeypatch.setitem(CHUNK, "cpu", 4)
    shuffled = pgd(classifier, images[order], labels[order], 0.1, steps=5)
    torch.testing.assert_close(shuffled, whole[order])


def test_the_seed_decides_and_the_global_random_state_does_not(classifier, images, labels):
    before = torch.get_rng_state()
    first, other = (pgd(classifier, images, labels, 0.1, steps=2, seed=seed) for seed in (0, 1))
    assert ((first - other).flatten(1).abs().amax(dim=1) > 0.01).all()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    assert torch.equal(pgd(classifier, images, labels, 0.1, steps=2), first)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_classifier_is_not_changed(frozen, classifier, images, labels):
    classifier.requires_grad_(not frozen)
    weights = copy.deepcopy(classifier.state_dict())
    pgd(classifier, images, labels, 0.1, steps=2)
    for name, tensor in classifier.state_dict().items():
        assert torch.equal(tensor, weights[name])
    for parameter in classifier.parameters():
        assert parameter.requires_grad != frozen and parameter.grad is None
    with pytest.raises(ValueError, match="finite values"):  # it still checks its input
        classifier(images + 1)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_of_any_integer_type_will_do(dtype, classifier, images, labels, no_shape_checker):
    attacked = pgd(classifier, images, labels.to(dtype), 0.1, steps=2)
    assert torch.equal(attacked, pgd(classifier, images, labels, 0.1, steps=2))


def test_attacks_stay_in_float32_within_bfloat16_training():
    classifier = build("small_resnet", 4, 8).eval()
    images, labels = torch.rand(3, 3, 8, 8), torch.tensor([0, 1, 2])
    plain = pgd(classifier, images, labels, 0.1, steps=3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pgd(classifier, images, labels, 0.1, steps=3), plain)


@pytest.mark.parametrize("shape", [(1, 2), (50, 4)])
def test_the_margin_is_the_best_wrong_logit_minus_the_true_one(shape):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=shape), rng.integers(shape[1], size=shape[0])
    rows = zip(logits, labels, strict=True)
    expected = [max(np.delete(row, label)) - row[label] for row, label in rows]
    found = margin(torch.tensor(logits), torch.tensor(labels))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert ((found > 0).numpy() == (logits.argmax(axis=1) != labels)).all()


def test_the_margin_has_a_gradient_where_cross_entropy_has_none(images, labels):
    confident = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, CLASSES)).double().eval()
    with torch.no_grad():
        confident[1].weight.mul_(0.1)
        confident[1].bias.copy_(torch.tensor([0.0, 2000, 0, 0, 0]))
    one, eps = torch.ones(6, dtype=torch.long), torch.full((6,), 0.1, dtype=torch.float64)
    start = random_starts(images, eps)
    torch.testing.assert_close(pgd(confident, images, one, 0.1, steps=3), start)
    assert (pgd(confident, images, one, 0.1, steps=3, loss="margin") - start).abs().max() > 0.005


LABELS = {
    "from 1": lambda labels: labels + 1,
    "negative": lambda labels: labels - 1,
    "floating-point": lambda labels: labels.double(),
    "too few": lambda labels: labels[:3],
    "one-hot": lambda labels: F.one_hot(labels),
}


@pytest.mark.parametrize("change", LABELS.values(), ids=LABELS)
def test_labels_that_do_not_fit_are_refused(change, classifier, images, labels, no_shape_checker):
    with pytest.raises(ValueError, match=r"^pgd: .*labels"):
        pgd(classifier, images, change(labels), 0.1)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        *(({"eps": eps}, "ε from 0 to 1") for eps in (-0.1, 8, float("nan"), float("inf"))),
        ({"eps": torch.tensor([0.1] * 5 + [8.0])}, "ε from 0 to 1"),
        ({"eps": torch.full((5,), 0.1)}, "one ε"),
        ({"eps": torch.full((6, 1), 0.1)}, "one ε"),
        ({"steps": 0}, "step"),
        ({"rel_step": -0.1}, "step"),
        ({"loss": "dlr"}, "loss"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(
    options, word, classifier, images, labels, no_shape_checker
):
    with pytest.raises(ValueError, match=f"^pgd: expected .*{word}"):
        pgd(classifier, images, labels, **{"eps": 0.1} | options)


def test_images_and_classifiers_that_do_not_fit_are_refused(classifier, images, labels):
    with pytest.raises(ValueError, match=r"^pgd: .*\[0, 1\]"):
        pgd(classifier, 255 * images, labels, 0.1)
    with pytest.raises(ValueError, match="probabilities"):
        pgd(nn.Sequential(classifier, nn.Softmax(dim=1)).eval(), images, labels, 0.1)
    classifier.network.norm.train()
    with pytest.raises(ValueError, match="training mode"):
        pgd(classifier, images, labels, 0.1)


def test_starts_fill_the_ball():
    images, eps = torch.full((2, 3, 16, 16), 0.5), torch.tensor([0.1, 0.4])
    ratio = (random_starts(images, eps) - images) / eps.view(-1, 1, 1, 1)
    extreme = random_starts(images, 2 * eps + 0.1)
    assert extreme.min() == 0 and extreme.max() == 1
    assert 0.98 < ratio.abs().max() <= 1 + 1e-6
    assert ((ratio.abs().mean(dim=(1, 2, 3)) - 0.5).abs() < 0.05).all()
    assert (ratio.mean(dim=(1, 2, 3)).abs() < 0.1).all()


def test_a_start_depends_on_image_strength_and_seed_alone(images):
    eps = torch.tensor([0.1, 0.2, 0.3, 0.1, 0.2, 0.3])
    one = torch.cat([random_starts(images[[i]], eps[[i]], seed=4) for i in range(6)])
    assert torch.equal(random_starts(images, eps, seed=4), one)
    last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(random_starts(last, eps, seed=4), one)


@pytest.mark.parametrize("changed", ["image", "strength", "seed"])
def test_a_start_depends_on_each_of_them(changed):
    image, eps = torch.full((1, 3, 8, 8), 0.5), torch.tensor([0.1])
    noise = (random_starts(image, eps) - image) / eps
    image, eps = image + 1e-3 * (changed == "image"), eps + 1e-3 * (changed == "strength")
    other = (random_starts(image, eps, seed=int(changed == "seed")) - image) / eps
    assert (noise - other).abs().mean() > 0.1


@pytest.mark.parametrize("network", NETWORKS)
def test_a_prepared_classifier_returns_the_same_logits(network, images):
    classifier = Classifier(network(), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)).eval()
    found = prepare(classifier, images)(images)
    torch.testing.assert_close(found, classifier(images), atol=1e-5, rtol=1e-5)


def with_statistics(name):
    """An architecture whose batch norms have seen images."""
    torch.manual_seed(0)
    classifier = build(name, 10, 32)
    with torch.no_grad():
        classifier(torch.rand(16, 3, 32, 32))
    return classifier.eval()


@pytest.mark.parametrize("name", ["small_resnet", "mobilenet_v2", "densenet121"])
def test_a_prepared_architecture_returns_the_same_logits_without_batch_norm(name):
    classifier, images = with_statistics(name).requires_grad_(False), torch.rand(2, 3, 32, 32)
    prepared = prepare(classifier.requires_grad_(), images)
    assert not any(parameter.requires_grad for parameter in prepared.parameters())
    torch.testing.assert_close(prepared(images), classifier(images), atol=1e-5, rtol=1e-4)
    if name != "densenet121":  # whose norms come before the convolutions
        assert not any(isinstance(layer, nn.BatchNorm2d) for layer in prepared.modules())


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
    assert eps or torch.equal(attacked_set.at(eps), attacked_set.images)
    torch.testing.assert_close(attacked_set.at(eps, 2), expected[:2])
    with pytest.raises(ValueError, match=r"ε = 0\.2"):
        attacked_set.at(0.2)


def test_pick_gives_every_image_its_own_strength(attacked_set):
    picked = attacked_set.pick(torch.tensor([2, 0, 1, 1]), torch.tensor([1, 1, 2, 0]))
    torch.testing.assert_close(picked[:, 0, 0, 0], torch.tensor([0.0, 0.5, 0.55, 0.6]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ratios_keep_every_perturbation_to_a_2048th_of_its_strength(dtype, images, labels):
    classifier, images = Classifier(Network()).eval().to(dtype), images.to(dtype)
    stored = ratios(classifier, images, labels, EPS[1:], steps=5, seed=3)
    assert stored.dtype == torch.float16
    assert stored.shape == (12, *images.shape)
    assert stored.abs().max() <= 1
    attacked = AttackedSet(images, labels, stored, EPS)
    for eps in EPS[1:]:
        fresh = pgd(classifier, images, labels, float(torch.tensor(eps)), steps=5, seed=3)
        assert (attacked.at(eps) - fresh).abs().max() <= eps / 2048 + 1e-7
        guesses = (classifier(x).argmax(dim=1) for x in (attacked.at(eps), fresh))
        assert torch.equal(*guesses)


def full(number):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")


def allocate_too_much(number):
    torch.empty(2**45)


@pytest.mark.parametrize("run", [full, allocate_too_much])
def test_images_halve_down_to_one(run):
    tried = []
    with pytest.raises(RuntimeError, match="memory"):
        halve_on_out_of_memory(lambda number: tried.append(number) or run(number), 13)
    assert tried == [13, 6, 3, 1]


def test_other_errors_are_not_tried_again():
    tried = []
    with pytest.raises(RuntimeError, match="size"):
        halve_on_out_of_memory(lambda n: tried.append(n) or torch.zeros(2) @ torch.zeros(3), 8)
    assert tried == [8]


def test_an_attack_halves_its_passes_until_memory_suffices(monkeypatch):
    monkeypatch.setitem(CHUNK, "cpu", 16)
    network, images, sizes = Network().eval(), torch.rand(19, 3, SIDE, SIDE).double(), []
    labels = torch.arange(19) % CLASSES
    whole = pgd(network, images, labels, 0.1, steps=2)

    class Small(Network):
        """A network on a device with memory for five images."""

        def forward(self, inputs):
            sizes.append(len(inputs))
            return super().forward(inputs) if len(inputs) <= 5 else full(len(inputs))

    small = Small().eval()
    small.load_state_dict(network.state_dict())
    assert torch.equal(pgd(small, images, labels, 0.1, steps=2), whole)
    assert list(dict.fromkeys(sizes)) == [2, 1, 16, 8, 4, 3]  # 2 and 1: those that it looks at
