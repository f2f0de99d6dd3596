"""How far the study's work is from what the machine can do."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from nbsupport.attacks.pgd import pgd, prepare
from nbsupport.experiments.methods import RECIPES
from nbsupport.training.loop import fit

STEPS, BATCH = 10, 120
NAMES = ("Add(L_img)", "Filt(L_img)", "Filt(L_sem)", "Multi-head-Filt(L_img)", "Y-Net")


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


@pytest.mark.parametrize("way", ["ours", "plain float32 loop"])
@pytest.mark.parametrize("name", NAMES)
def test_training(benchmark, cifar_resnet20, name, way, tmp_path):
    """One epoch of eight batches."""
    classifier, images, _ = cifar_resnet20
    classifier = classifier.requires_grad_(False)
    clean, eps = images[:BATCH], torch.tensor([1e-3, 1e-2, 1e-1, 0.3]).repeat(BATCH // 4)
    attacked = (clean + eps.view(-1, 1, 1, 1) * torch.randn_like(clean).sign()).clamp(0, 1)
    denoiser = RECIPES[name].build(width=12, kernel_size=5)

    def loss(batch, generator=None):
        chosen = batch % BATCH
        return RECIPES[name].objective(
            denoiser, classifier, attacked[chosen], clean[chosen], eps[chosen]
        )

    def ours():
        (tmp_path / "checkpoint.pt").unlink(missing_ok=True)
        fit(
            denoiser, loss, examples=8 * BATCH, epochs=1, batch_size=BATCH, learning_rate=1e-3, seed=0,
            scratch=tmp_path, label="", precision="bfloat16",
        )  # fmt: skip

    def plain():
        optimiser = torch.optim.Adam(denoiser.parameters(), 1e-3)
        for batch in torch.randperm(8 * BATCH).split(BATCH):
            optimiser.zero_grad()
            loss(batch).backward()
            optimiser.step()

    benchmark.group = f"training {name}, width 12, 32x32"
    benchmark.pedantic(ours if way == "ours" else plain, rounds=3, warmup_rounds=1)
    print(f"\n{name}, {way}: {8 * BATCH / benchmark.stats.stats.median:.0f} images/s")
