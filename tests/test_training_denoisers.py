"""How denoisers learn: losses against NumPy, stored attacks, PGD through the whole defence."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from small import rand, weights
from torch import nn

from nbsupport.attacks.pgd import AttackedSet, pgd
from nbsupport.classifiers.models import Classifier
from nbsupport.study import STRONG_EPS, Study
from nbsupport.training import denoisers as module
from nbsupport.training.denoisers import (
    RECIPES,
    find_collapse,
    fusion_loss,
    image_loss,
    logit_divergence,
)
from nbsupport.training.loop import read_checkpoints

EPS, NUMBER, SIDE, CLASSES = (0.0, 0.01, 0.1, 0.3, 0.5), 10, 9, 3
STUDY = Study.named(
    "photographs", "smoke", eps=EPS, width=2, kernel_size=3, batch_size=4, adaptive_epochs=2, epochs=2,
    fusion_epochs=3, adversarial_eps=0.2, adversarial_steps=2, fusion="mean",
    fusion_learning_rate=5e-4,
)  # fmt: skip
ADAPTIVE, FUSED, PUBLISHED = "PA-Filt(L_adv)", "PA-Filt(L_img)", "PA-Filt(L_img)_as_published"
BOTH = "PA-Filt(L_img+KL)"


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, CLASSES))
    return Classifier(network).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def attacked():
    ratios = 2 * rand(len(EPS) - 1, NUMBER, 3, SIDE, SIDE, seed=1) - 1
    labels = torch.arange(NUMBER) % CLASSES
    return AttackedSet(rand(NUMBER, 3, SIDE, SIDE), labels, ratios.half(), EPS)


def untrained(name):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        denoiser = RECIPES[name].build(width=2, kernel_size=3)
        for parameter in denoiser.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
        return denoiser


def run(name, scratch, classifier, attacked, **changes):
    denoiser, study = untrained(name), dataclasses.replace(STUDY, **changes)
    scratch.mkdir(exist_ok=True)
    return denoiser, module.train(name, denoiser, classifier, attacked, study, scratch)


@pytest.fixture
def images():
    """Denoised and clean ones."""
    return [rand(6, 3, SIDE, SIDE, seed=seed).requires_grad_() for seed in (1, 2)]


@pytest.mark.parametrize("weighted", [False, True])
def test_fusion_loss_is_the_cross_entropy_with_soft_labels(weighted, classifier, images):
    denoised, clean = (classifier(each).detach().double().numpy() for each in images)
    losses = -(softmax(clean, axis=1) * log_softmax(denoised, axis=1)).sum(axis=1)
    factors = torch.linspace(0.5, 2, len(losses))
    expected = np.mean(losses * factors.numpy() if weighted else losses)
    value = fusion_loss(classifier, *images, factors if weighted else None)
    assert value.item() == pytest.approx(expected, rel=1e-5)


def test_a_study_without_strong_attacks_is_refused(tmp_path, classifier, attacked):
    with pytest.raises(ValueError, match="needs"):
        run("Y-Net", tmp_path, classifier, attacked, eps=(0.0, 0.01, 0.1))


@pytest.fixture
def seen(monkeypatch):
    """The attacks in a training, and what its objective received."""
    attacks, objectives, objective = [], [], RECIPES[ADAPTIVE].objective

    def attack(network, images, labels, eps, *, seed, **options):
        found = pgd(network, images, labels, eps, seed=seed, **options)
        assert options == {"steps": 2, "rel_step": 0.25}
        assert not any(each.training for each in network.modules())
        attacks.append((network, weights(network[0]), images, labels, eps, found, seed))
        return found

    def spy(denoiser, classifier, *tensors):
        objectives.append((denoiser.training, classifier.training, *tensors))
        return objective(denoiser, classifier, *tensors)

    monkeypatch.setattr(module, "pgd", attack)
    monkeypatch.setitem(RECIPES, ADAPTIVE, dataclasses.replace(RECIPES[ADAPTIVE], objective=spy))
    return attacks, objectives


def test_it_is_attacked_through_itself_as_it_is_by_then(seen, tmp_path, classifier, attacked):
    before = weights(classifier)
    denoiser, _ = run(ADAPTIVE, tmp_path, classifier, attacked)
    attacks, objectives = seen
    assert len(attacks) == 2 * 3  # epochs of 4, 4 and 2 images
    assert len({seed for *_, seed in attacks}) == 6
    assert all(list(network) == [denoiser, classifier] for network, *_ in attacks)
    for (_, first, *_), (_, second, *_) in pairwise(attacks):
        assert any(not torch.equal(first[name], second[name]) for name in first)
    for (*_, images, labels, eps, found, _), objective in zip(attacks, objectives, strict=True):
        learning, frozen, *tensors = objective
        assert learning and not frozen
        assert all(map(torch.equal, tensors, (found, images, eps)))
        for image, label in zip(images, labels.tolist(), strict=True):
            (row,) = (attacked.images == image).flatten(1).all(dim=1).nonzero()[:, 0]
            assert attacked.labels[row] == label
        distance = (found - images).abs().amax(dim=(1, 2, 3))
        assert (distance <= eps + 1e-6).all() and (distance > 0.3 * eps).all()
    strengths = torch.cat([each[4] for each in attacks])
    assert len(strengths.unique()) == 20 and strengths.min() < 0.06 and strengths.max() > 0.14
    for epoch in (attacks[:3], attacks[3:]):
        assert len(torch.cat([each[2] for each in epoch]).unique(dim=0)) == NUMBER
    start = untrained(ADAPTIVE).state_dict()
    for part in ("ynet.encoder", "ynet.decoders.sl", "ynet.decoders.m", "ynet.outputs", "fusion"):
        after = {name: each for name, each in weights(denoiser).items() if name.startswith(part)}
        assert any(not torch.equal(tensor, start[name]) for name, tensor in after.items()), part
    torch.testing.assert_close(weights(classifier), before, rtol=0, atol=0)


def test_resumed_it_ends_at_the_same_weights(tmp_path, classifier, attacked, monkeypatch):
    stop = 5
    expected, report = run(ADAPTIVE, tmp_path / "undisturbed", classifier, attacked)
    calls = iter([pgd] * stop)
    with monkeypatch.context() as patch, pytest.raises(StopIteration):
        patch.setattr(module, "pgd", lambda *each, **options: next(calls)(*each, **options))
        run(ADAPTIVE, tmp_path / "interrupted", classifier, attacked)
    torch.manual_seed(99)
    again, resumed = run(ADAPTIVE, tmp_path / "interrupted", classifier, attacked)
    assert resumed == report
    torch.testing.assert_close(weights(again), weights(expected), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["Add(L_sem)", "Multi-head-Filt(L_img)", "Y-Net", FUSED, BOTH])
def test_the_others_learn_from_stored_attacks(name, seen, tmp_path, classifier, attacked):
    denoiser, _ = run(name, tmp_path, classifier, attacked)
    assert seen[0] == []
    assert not any(each.training for each in denoiser.modules())
    start = untrained(name).state_dict()
    changed = {key for key, each in weights(denoiser).items() if not torch.equal(each, start[key])}
    fusion = {key for key in changed if key.startswith("fusion.")}
    if name == BOTH:  # end to end
        assert fusion and any(key.startswith("ynet.encoder") for key in changed)
    else:
        assert changed and (changed == fusion if RECIPES[name].base else not fusion)


def test_strengths_are_those_of_the_stored_attacks(monkeypatch, tmp_path, classifier, attacked):
    shown, recipe = [], RECIPES["Filt(L_img*)"]

    def spy(denoiser, classifier, *tensors):
        shown.append(tensors)
        return recipe.objective(denoiser, classifier, *tensors)

    monkeypatch.setitem(RECIPES, "Filt(L_img*)", dataclasses.replace(recipe, objective=spy))
    run("Filt(L_img*)", tmp_path, classifier, attacked)
    images, clean, eps, each = (torch.cat(each) for each in zip(*shown, strict=True))
    assert len(eps) == 2 * NUMBER * 4 and each.eq(1).all()
    for image, original, strength in zip(images, clean, eps.tolist(), strict=True):
        (row,) = (attacked.images == original).flatten(1).all(dim=1).nonzero()[:, 0]
        nearest = min(STRONG_EPS, key=lambda each: abs(each - strength))
        assert strength == pytest.approx(nearest)
        assert torch.equal(image, attacked.at(nearest)[row])


def test_each_image_has_the_weight_of_its_strength(monkeypatch, tmp_path, classifier, attacked):
    recipe = RECIPES["PA-Filt(L_img)"]

    def spy(denoiser, classifier, images, clean, eps, weights):
        assert [EPS[int(row)] for row in weights] == pytest.approx(eps.tolist())
        return recipe.objective(denoiser, classifier, images, clean, eps, weights)

    monkeypatch.setattr(module, "weigh_fusion_losses", lambda *_: torch.arange(float(len(EPS))))
    monkeypatch.setitem(RECIPES, "PA-Filt(L_img)", dataclasses.replace(recipe, objective=spy))
    run("PA-Filt(L_img)", tmp_path, classifier, attacked)


def test_both_losses_are_those_of_the_mixture_and_of_the_part_for_each_strength(classifier):
    """The divergence with the weight of each image's strength, in a loop over the images."""
    weight = 50.0
    denoiser, strengths = untrained(BOTH).eval(), torch.tensor([0.01, 0.5, 0.3, 0.1, 0.01, 0.5])
    weights = torch.tensor([3.0, 2.0, 0.5, 1.5, 0.25])
    images, clean = rand(6, 3, SIDE, SIDE, seed=3), rand(6, 3, SIDE, SIDE, seed=4)
    rows = [min(range(len(EPS)), key=lambda row: abs(EPS[row] - eps)) for eps in strengths.tolist()]
    inputs = denoiser, classifier, images, clean, strengths
    found = RECIPES[BOTH].objective(weight, *inputs, weights[rows])
    losses = []
    every = zip(images[:, None], clean[:, None], strengths.tolist(), rows, strict=True)
    for image, truth, eps, row in every:
        parts = denoiser.parts(image)
        mixed = parts.weight * parts.sl + (1 - parts.weight) * parts.m
        for learned in (mixed.clamp(0, 1), parts.sl if eps < 0.1 else parts.m):
            losses.append(weight * image_loss(learned, truth))
            losses[-1] += weights[row] * logit_divergence(classifier, learned, truth)
    assert found.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_a_strength_weighs_less_the_more_it_diverges(classifier):
    """By NumPy; the clean images, which do not diverge, and another at the limit of ten times."""
    batches = [rand(4, 3, SIDE, SIDE, seed=0)]
    batches += [(batches[0] + x * rand(4, 3, SIDE, SIDE, seed=1)).clamp(0, 1) for x in (1e-3, 1, 2)]
    logs = [log_softmax(classifier(x).detach().double().numpy(), axis=1) for x in batches]
    scales = [(np.exp(logs[0]) * (logs[0] - each)).sum(axis=1).mean() for each in logs]
    expected = 1 / np.sqrt(np.maximum(scales, np.max(scales) / 100))
    found = module.weigh_divergences(classifier, batches)
    np.testing.assert_allclose(found.numpy(), expected / expected.mean(), rtol=1e-3)


def test_checkpoints_are_the_weights_on_the_way(tmp_path, classifier, attacked):
    """The last is the result, and each has the clean PSNR of a denoiser with its weights."""
    denoiser, _ = run("Y-Net_as_published", tmp_path, classifier, attacked)
    kept = read_checkpoints(tmp_path)
    steps = 2 * -(-NUMBER * 4 // 4)
    assert [*kept] == sorted(kept) and max(kept) == steps and min(kept) == 1
    torch.testing.assert_close(kept[steps], weights(denoiser), rtol=0, atol=0)
    clean, curves = attacked.images, module.clean_psnr(denoiser, kept, attacked.images)
    assert {*curves} == {"sl", "m"}
    again = untrained("Y-Net_as_published").eval()
    for step, tensors in kept.items():
        again.load_state_dict(tensors)
        difference = module.View(again, "m")(clean).detach().double() - clean
        expected = -10 * np.log10(difference.square().mean(dim=(1, 2, 3)).numpy()).mean()
        assert curves["m"][str(step)] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("kind", ["mean", "balanced", "kl", "regret"])
def test_a_strength_weighs_what_its_kind_says(kind, classifier, attacked):
    """Divergences and cross-entropies by NumPy, of all images at once."""
    denoiser, clean = untrained(FUSED).eval().requires_grad_(False), attacked.images

    def compare(images):
        logits = (classifier(x).detach().double().numpy() for x in (clean, images))
        expected, found = (log_softmax(each, axis=1) for each in logits)
        cross_entropy = -(np.exp(expected) * found).sum(axis=1).mean()
        return cross_entropy, (np.exp(expected) * (expected - found)).sum(axis=1).mean()

    scales = []
    for eps in EPS:
        parts = denoiser.parts(attacked.at(eps))
        half, sl, m = (compare(x) for x in ((parts.sl + parts.m) / 2, parts.sl, parts.m))
        kinds = {"mean": 1, "balanced": half[0], "kl": half[1], "regret": abs(sl[0] - m[0])}
        scales.append(kinds[kind])
    expected = 1 / np.maximum(scales, np.max(scales) / 100)
    weights = module.weigh_fusion_losses(kind, denoiser, classifier, attacked)
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-3)


def test_balance_changes_only_the_fusion_that_is_not_as_published(tmp_path, classifier, attacked):
    def fused(name, fusion):
        place = tmp_path / f"{name}{fusion}"
        return run(name, place, classifier, attacked, fusion=fusion)[0].fusion[0].weight

    assert not torch.equal(fused(FUSED, "mean"), fused(FUSED, "balanced"))
    assert torch.equal(fused(PUBLISHED, "mean"), fused(PUBLISHED, "balanced"))


@pytest.mark.parametrize("name", ["Add(L_img)", ADAPTIVE])
def test_health_is_the_change_and_the_weight_at_each_strength(name, attacked, monkeypatch):
    monkeypatch.setattr(module, "HEALTH_IMAGES", 3)
    denoiser = untrained(name).eval().requires_grad_(False)
    batches, report = [attacked.at(eps)[:3] for eps in EPS], module.health(denoiser, attacked)
    change = [float((denoiser(images) - images).abs().mean()) for images in batches]
    assert report.pop("change") == pytest.approx(change) and min(change) > 0
    assert report.pop("alive") == [1.0] * len(EPS)
    if name == ADAPTIVE:
        every = torch.stack([denoiser.parts(images).weight for images in batches]).double()
        assert report.pop("weight_mean") == pytest.approx([float(each.mean()) for each in every])
        assert report.pop("weight_std") == pytest.approx(float(every.std()), rel=1e-3)
        assert every.std() > 0
    assert report == {}


def test_health_is_that_of_the_weakest_decoder_and_output(attacked):
    """Of the m decoder's last 27 features, 26 are cut off; its output layer repeats the image."""
    denoiser = untrained("Y-Net_as_published").eval().requires_grad_(False)
    denoiser.decoders["m"].blocks[-1][-2].bias[1:] = -1e6
    denoiser.outputs["m"].weight.zero_()
    identity = torch.eye(9)[4].repeat(3)
    denoiser.outputs["m"].bias.copy_(identity)
    report = module.health(denoiser, attacked)
    assert max(report["alive"]) <= 1 / 27 + 1e-6
    assert report["change"] == pytest.approx([0] * len(EPS), abs=1e-6)


SOUND = {"alive": [0.5, 0.2], "change": [0.0, 0.01], "weight_std": 0.1}
COLLAPSED = {
    "dead": {"alive": [0.5, 0.05]},
    "dead at no strength that is a number": {"alive": [float("nan")] * 2},
    "changes nothing": {"change": [0.0, 7e-5]},
    "constant": {"weight_std": 1e-3},
    "constant, not a number": {"weight_std": float("nan")},
}


def test_a_sound_training_has_not_collapsed():
    assert find_collapse(SOUND) is None
    assert find_collapse({key: SOUND[key] for key in ("alive", "change")}) is None


@pytest.mark.parametrize("report", COLLAPSED.values(), ids=COLLAPSED)
def test_a_collapsed_training_says_why(report):
    assert find_collapse(SOUND | report)
