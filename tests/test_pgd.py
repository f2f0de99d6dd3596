"""PGD against ten lines of plain PyTorch, and its storage as δ/ε."""

import copy
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import linear
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

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
from nbsupport.classifiers.custom import Apart, precisions
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


class AddsWhatItNormalises(Network):
    def block(self, x):
        x = self.conv(x)
        return torch.tanh(self.norm(x) + x)


class LoopsOverTheBatch(Network):
    def block(self, x):
        return torch.cat([super(LoopsOverTheBatch, self).block(image[None]) for image in x])


NETWORKS = [Twice, AddsWhatItNormalises, LoopsOverTheBatch]


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


@pytest.mark.parametrize(("steps", "rel_step"), [(7, 0.1), (40, REL_STEP)])
@pytest.mark.parametrize("eps", [1e-4, 0.5])
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


def test_attacks_stay_in_float32_within_bfloat16_training():
    classifier = build("small_resnet", 4, 8).eval()
    images, labels = torch.rand(3, 3, 8, 8), torch.tensor([0, 1, 2])
    plain = pgd(classifier, images, labels, 0.1, steps=3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pgd(classifier, images, labels, 0.1, steps=3), plain)


def test_the_margin_is_the_best_wrong_logit_minus_the_true_one():
    rng, shape = np.random.default_rng(0), (50, 4)
    logits, labels = rng.normal(size=shape), rng.integers(shape[1], size=shape[0])
    rows = zip(logits, labels, strict=True)
    expected = [max(np.delete(row, label)) - row[label] for row, label in rows]
    found = margin(torch.tensor(logits), torch.tensor(labels))
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert ((found > 0).numpy() == (logits.argmax(axis=1) != labels)).all()


@pytest.mark.parametrize("scale", [1e-6, 30.0, 1e8])
def test_the_scale_of_the_logits_does_not_matter(scale, images):
    images, network = images.float(), linear(classes=2, side=SIDE, scale=scale)
    labels = network(images).argmax(dim=1)
    found = pgd(network, images, labels, 0.1, steps=25, rel_step=0.1)
    weight = network.network[1].weight
    towards = (weight[1] - weight[0]).sign().view(3, SIDE, SIDE)
    corner = (images + 0.1 * (1 - 2 * labels.view(-1, 1, 1, 1)) * towards).clamp(0, 1)
    torch.testing.assert_close(found, corner)


def test_only_saturated_images_are_attacked_otherwise_than_by_cross_entropy(classifier, images):
    class Mixed(nn.Module):
        """Sure of bright images alone."""

        def forward(self, x):
            bright = x.flatten(1).mean(dim=1, keepdim=True).detach() > 0.5
            return classifier(x) * torch.where(bright, 1e5, 1.0)

    images = 0.3 * images + torch.tensor([0.0, 0.6]).repeat(3).view(6, 1, 1, 1)
    network = Mixed().eval()
    labels = network(images).argmax(dim=1)
    found = pgd(network, images, labels, 0.05, steps=7)
    plain = reference(network, images, labels, 0.05, 7)
    torch.testing.assert_close(found[::2], plain[::2])
    margins = [margin(classifier(x), labels).detach() for x in (found, plain)]
    assert (margins[0] >= margins[1] - 1e-6).all() and (margins[0] > margins[1] + 1e-3)[1::2].any()


# -- unusual modules and types -------------------------------------------------------------------


def small():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh()
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * SIDE**2, CLASSES)).eval()


class Around(nn.Module):
    """`small` in any Python code."""

    def __init__(self, run, **attributes):
        super().__init__()
        self.network, self.run = small(), run
        vars(self).update(attributes)

    def forward(self, x):
        return self.run(self, x)


def hook_on_the_original():
    module = Around(lambda self, x: (self.network(x), self.network[4](self.seen.flatten(1)))[1])
    module.network[2].register_forward_hook(lambda *given: vars(module).update(seen=given[2]))
    module(torch.rand(1, 3, SIDE, SIDE))
    return module


def changed(change, number=0):
    network = small()
    change(network[number])
    network(torch.rand(2, 3, SIDE, SIDE))  # leaves tensors with a history in some layers
    return network.eval()


def checkpointed(self, x):
    return self.network[3:](checkpoint(self.network[:3], x, use_reentrant=self.reentrant))


UNUSUAL = {
    "spectral norm, old": lambda: changed(nn.utils.spectral_norm, 4),
    "weight norm": lambda: changed(parametrizations.weight_norm),
    "pruned": lambda: changed(lambda layer: prune.l1_unstructured(layer, "weight", 0.4)),
    "checkpoint": lambda: Around(checkpointed, reentrant=True),
    "data parallel": lambda: nn.DataParallel(small()),
    "in place": lambda: Around(lambda self, x: self.network(x.sub_(0.5).mul_(2))),
    "lock": lambda: Around(lambda self, x: self.network(x), lock=threading.Lock()),
    "hook": hook_on_the_original,
    "compiled": lambda: torch.compile(small(), backend="eager"),
    "scripted": lambda: torch.jit.script(small()),
    "double": lambda: small().double(),
    "half": lambda: small().half(),
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", UNUSUAL)
def test_any_differentiable_module_is_attacked_and_left_as_it_was(name, images, labels):
    module, images = UNUSUAL[name]().eval(), images.float()
    kind = next(iter(precisions(module)), torch.float32)
    precise = Apart(getattr(module, "_orig_mod", module), kind)
    x = random_starts(images, torch.full((6,), 0.1))
    for _ in range(3):
        x = x.detach().requires_grad_()
        F.cross_entropy(precise(x), labels).backward()
        x = (x + 0.01 * x.grad.sign()).clamp(images - 0.1, images + 0.1).clamp(0, 1)
    module.zero_grad()
    before, weights = images.clone(), copy.deepcopy(module.state_dict())
    found = pgd(module, images, labels, 0.1, steps=3, rel_step=0.1)
    share = 0.8 if name == "half" else 0.99  # few gradients' signs are rounding
    assert ((found - x).abs() < 1e-6).float().mean() > share
    assert torch.equal(images, before)
    for key, tensor in module.state_dict().items():
        assert torch.equal(tensor, weights[key])
    assert all(each.grad is None and each.requires_grad for each in module.parameters())


FLOATS = [(torch.float16, torch.float32), (torch.bfloat16, torch.float64)]


@pytest.mark.parametrize("eps", [1e-6, 0.013, 0.1])
@pytest.mark.parametrize(("given", "network"), [*FLOATS, *(pair[::-1] for pair in FLOATS)])
def test_the_result_is_in_the_ball_in_every_precision(given, network, eps, images, labels):
    images = images.to(given)
    found = pgd(small().to(network), images, labels, eps, steps=3, rel_step=0.5)
    assert found.dtype == torch.promote_types(given, network)
    strength = torch.tensor(eps, dtype=torch.promote_types(found.dtype, torch.float32)).double()
    assert ((found.double() - images.double()).abs() <= strength).all()
    assert found.min() >= 0 and found.max() <= 1
    assert (found != images).any() or eps < 1e-3


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"eps": "8/255"}, "ε as .*str"),
        ({"eps": [0.1, "0.2"]}, "ε as .*list"),
        *(({"eps": eps}, "ε from 0 to 1") for eps in (-0.1, 8, float("nan"))),
        ({"eps": torch.full((5,), 0.1)}, "one ε"),
        ({"steps": 0}, "step"),
        ({"loss": "dlr"}, "loss"),
    ],
    ids=str,
)
def test_other_options_are_refused(options, word, classifier, images, labels, no_shape_checker):
    error = TypeError if "as" in word else ValueError
    with pytest.raises(error, match=f"^pgd: expected .*{word}"):
        pgd(classifier, images, labels, **{"eps": 0.1} | options)


def test_images_and_classifiers_that_do_not_fit_are_refused(classifier, images, labels):
    with pytest.raises(ValueError, match=r"^pgd: .*\[0, 1\]"):
        pgd(classifier, 255 * images, labels, 0.1)
    with pytest.raises(ValueError, match="probabilities"):
        pgd(nn.Sequential(classifier, nn.Softmax(dim=1)).eval(), images, labels, 0.1)
    with pytest.raises(ValueError, match=r"^pgd: .*labels"):
        pgd(classifier, images, labels + 1, 0.1)
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


def with_statistics(name):
    """An architecture whose batch norms have seen images."""
    torch.manual_seed(0)
    classifier = build(name, 10, 32)
    with torch.no_grad():
        classifier(torch.rand(16, 3, 32, 32))
    return classifier.eval()


@pytest.mark.parametrize("name", ["small_resnet", "densenet121"])
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


def test_ratios_keep_every_perturbation_to_a_2048th_of_its_strength(images, labels):
    classifier, images = Classifier(Network()).eval().float(), images.float()
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
