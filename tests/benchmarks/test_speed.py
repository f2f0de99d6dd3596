"""`make bench`: ours beside the usual ways, on the same inputs. Not part of `make test`."""

import re
import subprocess
import sys
from functools import partial

import foolbox
import pytest
import torch
import torch.nn.functional as F

from nbsupport.attacks.pgd import pgd, prepare
from nbsupport.denoisers.filtering import filter_pixels

SHAPES = [(64, 3, 32, 32), (4, 3, 224, 224)]


def unfold(images, kernels):
    b, c, h, w = images.shape
    size = round((kernels.shape[1] / c) ** 0.5)
    windows = F.unfold(images, size, padding=size // 2).view(b, c, -1, h, w)
    return (windows * kernels.view(b, c, -1, h, w)).sum(dim=2)


def stack_of_shifts(images, kernels):
    b, c, h, w = images.shape
    size = round((kernels.shape[1] / c) ** 0.5)
    padded = F.pad(images, (size // 2,) * 4)
    shifts = [padded[..., y : y + h, x : x + w] for y in range(size) for x in range(size)]
    return (torch.stack(shifts, dim=2) * kernels.view(b, c, -1, h, w)).sum(dim=2)


WAYS = {"ours": filter_pixels, "F.unfold": unfold, "stack of shifts": stack_of_shifts}


@pytest.fixture(params=SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def shape(request):
    return request.param


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
def test_filter_pixels(benchmark, shape, size, backward, way):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(shape, generator=generator).requires_grad_(backward)
    kernels = torch.randn(shape[0], 3 * size**2, *shape[2:], generator=generator)
    kernels.requires_grad_(backward)
    assert torch.allclose(WAYS[way](images, kernels), unfold(images, kernels), atol=1e-4)

    def run():
        images.grad = kernels.grad = None
        filtered = WAYS[way](images, kernels)
        if backward:
            filtered.sum().backward()

    passes = "forward+backward" if backward else "forward"
    benchmark.group = f"filter_pixels {shape[-1]} K={size} {passes}"
    benchmark.pedantic(run, rounds=15, warmup_rounds=3)


PEAK = """
import torch
from pathlib import Path
from nbsupport.denoisers.filtering import filter_pixels
def kilobytes(name):
    return int(next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(name)).split()[1])
images, kernels = torch.rand(16, 3, 224, 224), torch.rand(16, 3 * {size} ** 2, 224, 224)
small = [t[:1, :, :8, :8].clone().requires_grad_() for t in (images, kernels)]
filter_pixels(*small).sum().backward()
images.requires_grad_({backward}), kernels.requires_grad_({backward})
Path("/proc/self/clear_refs").write_text("5")
before = kilobytes("VmRSS")
total = filter_pixels(images, kernels).sum()
if {backward}:
    total.backward()
print("ratio", (kilobytes("VmHWM") - before) * 1024 / (kernels.numel() * 4))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize("way", ["ours"])
def test_memory_of_filter_pixels(benchmark, size, backward, way):
    """The peak of extra memory, relative to the kernels'."""
    code = PEAK.format(size=size, backward=backward)

    def peak():
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(re.search(r"ratio (\S+)", done.stdout)[1])

    benchmark.group = f"memory K={size} {'forward+backward' if backward else 'forward'}"
    ratio = benchmark.pedantic(peak, rounds=1)
    benchmark.extra_info["memory / kernels"] = ratio
    print(f"\n{benchmark.group}: extra memory {ratio:.2f} × the kernels'")
    assert ratio < 1.2


EPS, ATTACK = (1e-2, 3e-2), 10  # steps enough for the rate of steps


def stock(classifier, images, labels):
    """Foolbox as its documentation uses it: one call per ε."""
    model = foolbox.PyTorchModel(classifier, bounds=(0, 1))
    attack = foolbox.attacks.LinfPGD(steps=ATTACK)
    criterion = foolbox.criteria.Misclassification(labels)
    return [attack.run(model, images, criterion, epsilon=eps) for eps in EPS]


def ours(classifier, images, labels):
    strengths = torch.tensor(EPS).repeat_interleave(len(images))
    repeated = images.repeat(len(EPS), 1, 1, 1), labels.repeat(len(EPS))
    return pgd(classifier, *repeated, strengths, steps=ATTACK).split(len(images))


@pytest.mark.parametrize("way", ["ours", "stock Foolbox, once per ε"])
def test_pgd(benchmark, cifar_resnet20, way):
    """Image-steps per second; the success rates agree within two standard errors."""
    classifier, images, labels = cifar_resnet20
    attack = ours if way == "ours" else stock
    benchmark.group = "pgd, ResNet-20, 32x32"
    attacked = benchmark.pedantic(attack, args=(classifier, images, labels), rounds=3)
    benchmark.extra_info["image-steps"] = len(EPS) * len(images) * ATTACK
    if way != "ours":
        for theirs, mine in zip(attacked, ours(classifier, images, labels), strict=True):
            wrong = [classifier(x).argmax(dim=1) != labels for x in (theirs, mine)]
            one, other = (float(each.float().mean()) for each in wrong)
            mean = (one + other) / 2
            error = (2 * mean * (1 - mean) / len(images)) ** 0.5
            assert abs(one - other) <= 2 * error + 1e-9


STEPS = 10


def bare(network, images, labels):
    """Forward and backward alone: what no attack by gradients can do without."""
    for part, truth in zip(images.split(64), labels.split(64), strict=True):
        for _ in range(STEPS):
            inputs = part.contiguous(memory_format=torch.channels_last).requires_grad_()
            torch.autograd.grad(F.cross_entropy(network(inputs), truth, reduction="sum"), inputs)


@pytest.mark.parametrize("way", ["ours", "bare forward + backward", "the same after torch.compile"])
def test_an_attack_beside_its_limit(benchmark, cifar_resnet20, way):
    classifier, images, labels = cifar_resnet20
    network = prepare(classifier, images[:2])
    limits = {
        "bare forward + backward": network,
        "the same after torch.compile": torch.compile(network),
    }
    ours = partial(pgd, classifier, images, labels, 0.01, steps=STEPS)
    attack = partial(bare, limits[way], images, labels) if way in limits else ours
    benchmark.group = "pgd beside its limit, ResNet-20"
    benchmark.pedantic(
        attack, rounds=3, warmup_rounds=1
    )  # compilation belongs to the warm-up, and takes a minute
    print(f"\n{way}: {len(images) * STEPS / benchmark.stats.stats.median:.0f} image-steps/s")
