"""How denoisers learn: the oblivious from stored attacks, PA-Filt(L_adv) against PGD through itself."""

import dataclasses
from itertools import pairwise

import pytest
import torch
from torch import nn

from nbsupport.attacks.pgd import AttackedSet, pgd
from nbsupport.classifiers.models import Classifier
from nbsupport.denoisers.models import Additive, Filtering, MultiHead, PAFilter, YNet
from nbsupport.denoisers.unet import Decoder
from nbsupport.experiments.methods import LITERAL, RECIPES
from nbsupport.study import STRONG_EPS, Study
from nbsupport.training import denoisers as denoiser_training
from nbsupport.training.denoisers import budget, health, train
from nbsupport.training.losses import fusion_loss

EPS, NUMBER, SIDE, CLASSES = (0.0, 0.01, 0.1, 0.3, 0.5), 10, 9, 3
STUDY = Study.named(
    "digits", "smoke", eps=EPS, width=2, kernel_size=3, batch_size=4, knowing_epochs=2, epochs=2, fusion_epochs=3,
    adversarial_eps=0.2, adversarial_steps=2,
)  # fmt: skip
KNOWING = "PA-Filt(L_adv)"


def rand(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, CLASSES))
    return Classifier(network).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def attacked():
    ratios = 2 * rand(len(EPS) - 1, NUMBER, 3, SIDE, SIDE, seed=1) - 1
    return AttackedSet(
        rand(NUMBER, 3, SIDE, SIDE), torch.arange(NUMBER) % CLASSES, ratios.half(), EPS
    )


def untrained(name):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        denoiser = RECIPES[name].build(width=2, kernel_size=3)
        for parameter in denoiser.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
        return denoiser


def weights(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def run(name, scratch, classifier, attacked, study=STUDY):
    denoiser = untrained(name)
    scratch.mkdir(exist_ok=True)
    return denoiser, train(name, denoiser, classifier, attacked, study, scratch)


# -- budgets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_who_only_adjusts_a_trained_denoiser_has_a_budget_of_its_own(name):
    expected = {"PA-Filt(L_img)": (3, 5e-4), LITERAL: (3, 2e-3), KNOWING: (2, 5e-4)}.get(
        name, (2, 2e-3)
    )
    found = budget(name, STUDY)
    assert (found.pop("epochs"), found.pop("learning_rate")) == expected
    attack = {"eps": 0.2, "steps": 2, "rel_step": 0.25}
    assert found == {KNOWING: {"against": attack}, LITERAL: {"literal": True}}.get(name, {})


# -- against PGD through itself ------------------------------------------------------------------


@pytest.fixture
def seen(monkeypatch):
    """The attacks in a training, and what its objective got."""
    attacks, objectives, objective = [], [], RECIPES[KNOWING].objective

    def attack(network, images, labels, eps, **options):
        made = pgd(network, images, labels, eps, **options)
        copy = weights(network[0])
        attacks.append(
            (
                network,
                any(m.training for m in network.modules()),
                copy,
                images,
                labels,
                eps,
                made,
                options,
            )
        )
        return made

    def spy(denoiser, classifier, *tensors):
        objectives.append((denoiser.training, classifier.training, *tensors))
        return objective(denoiser, classifier, *tensors)

    monkeypatch.setattr(denoiser_training, "pgd", attack)
    monkeypatch.setitem(RECIPES, KNOWING, dataclasses.replace(RECIPES[KNOWING], objective=spy))
    return attacks, objectives


def test_it_is_attacked_through_itself_as_it_is_by_then(seen, tmp_path, classifier, attacked):
    denoiser, _ = run(KNOWING, tmp_path, classifier, attacked)
    attacks, _ = seen
    assert len(attacks) == 2 * 3  # epochs of 4, 4 and 2 images
    assert all(list(network) == [denoiser, classifier] for network, *_ in attacks)
    assert not any(in_training for _, in_training, *_ in attacks)
    states = [state for _, _, state, *_ in attacks]
    for before, after in pairwise(states):
        assert any(not torch.equal(before[name], after[name]) for name in before)


def test_what_it_learns_from_is_what_the_attack_made(seen, tmp_path, classifier, attacked):
    run(KNOWING, tmp_path, classifier, attacked)
    for (*_, images, labels, eps, made, options), objective in zip(*seen, strict=True):
        learning, frozen, shown, clean, strengths = objective
        assert learning and not frozen
        assert (
            torch.equal(shown, made) and torch.equal(clean, images) and torch.equal(strengths, eps)
        )
        for image, label in zip(images, labels.tolist(), strict=True):
            (row,) = (attacked.images == image).flatten(1).all(dim=1).nonzero()[:, 0]
            assert attacked.labels[row] == label
        assert options | {"seed": 0} == {"steps": 2, "rel_step": 0.25, "seed": 0}
        assert ((made - images).abs().amax(dim=(1, 2, 3)) <= eps + 1e-6).all()
        assert ((made - images).abs().amax(dim=(1, 2, 3)) > 0.3 * eps).all()


def test_every_image_has_a_strength_of_its_own_below_that_of_the_study(
    seen, tmp_path, classifier, attacked
):
    run(KNOWING, tmp_path, classifier, attacked, dataclasses.replace(STUDY, knowing_epochs=15))
    eps = torch.cat([each[5] for each in seen[0]])
    assert len(eps.unique()) > 145
    assert 0 <= eps.min() < 0.02 and 0.18 < eps.max() <= 0.2
    assert float(eps.mean()) == pytest.approx(0.1, abs=0.02)


def test_every_image_is_seen_once_in_an_epoch(seen, tmp_path, classifier, attacked):
    run(KNOWING, tmp_path, classifier, attacked)
    for epoch in (seen[0][:3], seen[0][3:]):
        images = torch.cat([each[3] for each in epoch])
        assert len(images) == len(images.unique(dim=0)) == NUMBER


def test_every_attack_starts_elsewhere(seen, tmp_path, classifier, attacked):
    run(KNOWING, tmp_path, classifier, attacked)
    assert len({each[-1]["seed"] for each in seen[0]}) == 6


def test_all_of_it_learns_and_the_classifier_does_not(tmp_path, classifier, attacked):
    before = weights(classifier)
    denoiser, _ = run(KNOWING, tmp_path, classifier, attacked)
    start = untrained(KNOWING).state_dict()
    for part in ("ynet.encoder", "ynet.decoders.sl", "ynet.decoders.m", "ynet.outputs", "fusion"):
        named = {
            name: tensor for name, tensor in denoiser.state_dict().items() if name.startswith(part)
        }
        assert named and any(
            not torch.equal(tensor, start[name]) for name, tensor in named.items()
        ), part
    torch.testing.assert_close(weights(classifier), before, rtol=0, atol=0)


def test_without_knowing_only_the_fusion_learns(tmp_path, classifier, attacked):
    denoiser, _ = run("PA-Filt(L_img)", tmp_path, classifier, attacked)
    start = untrained("PA-Filt(L_img)").state_dict()
    changed = {
        name
        for name, tensor in denoiser.state_dict().items()
        if not torch.equal(tensor, start[name])
    }
    assert changed and all(name.startswith("fusion.") for name in changed)


@pytest.mark.parametrize("name", ["PA-Filt(L_img)", KNOWING, "Add(L_img)"])
def test_it_comes_back_in_evaluation_mode(name, tmp_path, classifier, attacked):
    denoiser, _ = run(name, tmp_path, classifier, attacked)
    assert not any(module.training for module in denoiser.modules())


@pytest.mark.parametrize("name", sorted(set(RECIPES) - {KNOWING}))
def test_the_oblivious_are_attacked_by_nobody(name, seen, tmp_path, classifier, attacked):
    run(name, tmp_path, classifier, attacked)
    assert seen[0] == []


# -- interruptions -------------------------------------------------------------------------------


class Interrupted(BaseException):
    """As KeyboardInterrupt, which nothing but the test catches."""


@pytest.mark.parametrize("stop", [0, 2, 3, 5])
def test_interrupted_and_resumed_ends_at_the_same_weights(
    stop, tmp_path, classifier, attacked, monkeypatch
):
    expected, report = run(KNOWING, tmp_path / "undisturbed", classifier, attacked)
    count = []

    def interrupting(*arguments, **options):
        if len(count) == stop:
            raise Interrupted
        count.append(1)
        return pgd(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(denoiser_training, "pgd", interrupting)
        with pytest.raises(Interrupted):
            run(KNOWING, tmp_path / "interrupted", classifier, attacked)
    torch.manual_seed(99)
    again, resumed = run(KNOWING, tmp_path / "interrupted", classifier, attacked)
    assert resumed == report
    torch.testing.assert_close(weights(again), weights(expected), rtol=0, atol=0)


# -- strengths -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Filt(L_img*)", "Y-Net"])
def test_a_study_without_the_strong_attacks_cannot_teach_them(name, tmp_path, classifier, attacked):
    study = dataclasses.replace(STUDY, eps=(0.0, 0.01, 0.1))
    with pytest.raises(
        ValueError, match=r"learns from ε = \(0.1, 0.3, 0.5\), but the study's strengths are"
    ):
        run(name, tmp_path, classifier, attacked, study)


def test_strengths_are_those_of_the_stored_attacks(monkeypatch, tmp_path, classifier, attacked):
    shown, objective = [], RECIPES["Filt(L_img*)"].objective

    def spy(denoiser, classifier, images, clean, eps):
        shown.append((images, clean, eps))
        return objective(denoiser, classifier, images, clean, eps)

    monkeypatch.setitem(
        RECIPES, "Filt(L_img*)", dataclasses.replace(RECIPES["Filt(L_img*)"], objective=spy)
    )
    run("Filt(L_img*)", tmp_path, classifier, attacked)
    images, clean, eps = (torch.cat(parts) for parts in zip(*shown, strict=True))
    assert len(eps) == 2 * NUMBER * 4
    for image, original, strength in zip(images, clean, eps.tolist(), strict=True):
        (row,) = (attacked.images == original).flatten(1).all(dim=1).nonzero()[:, 0]
        nearest = min(STRONG_EPS, key=lambda each: abs(each - strength))
        assert strength == pytest.approx(nearest)
        assert torch.equal(image, attacked.at(nearest)[row])


# -- the fusion's balance ------------------------------------------------------------------------


def test_the_literal_fusion_has_the_rate_of_all_others():
    assert budget("PA-Filt(L_img)_literal", STUDY)["learning_rate"] == STUDY.learning_rate
    assert budget("PA-Filt(L_img)", STUDY)["learning_rate"] == STUDY.fusion_learning_rate
    balanced = dataclasses.replace(STUDY, fusion="balanced")
    assert budget("PA-Filt(L_img)_literal", balanced) == budget("PA-Filt(L_img)_literal", STUDY)
    assert budget("PA-Filt(L_img)", balanced) == budget("PA-Filt(L_img)", STUDY) | {
        "fusion": "balanced"
    }
    assert budget("Y-Net", balanced) == budget("Y-Net", STUDY)


def test_balanced_every_strength_starts_at_1(classifier, attacked):
    denoiser = PAFilter(untrained("Y-Net")).eval()  # its W is one half
    objective = denoiser_training._balanced(denoiser, classifier, attacked)
    for eps in EPS:
        strengths = torch.full((NUMBER,), eps)
        loss = objective(denoiser, classifier, attacked.at(eps), attacked.images, strengths)
        assert loss.item() == pytest.approx(1, rel=1e-4)


def test_balanced_is_relative_to_the_start_at_each_strength(classifier, attacked):
    denoiser, other = PAFilter(untrained("Y-Net")).eval(), untrained("PA-Filt(L_img)").eval()
    objective = denoiser_training._balanced(denoiser, classifier, attacked)
    rows, numbers = torch.arange(NUMBER) % len(EPS), torch.arange(NUMBER)
    images = attacked.pick(rows, numbers)
    parts = []
    for number, row in enumerate(rows.tolist()):
        alone = fusion_loss(
            classifier, other(images[number : number + 1]), attacked.images[number : number + 1]
        )
        parts.append(
            alone / fusion_loss(classifier, denoiser(attacked.at(EPS[row])), attacked.images)
        )
    loss = objective(other, classifier, images, attacked.images, torch.tensor(EPS)[rows])
    assert loss.item() == pytest.approx(torch.stack(parts).mean().item(), rel=1e-4)


def test_a_balanced_study_trains_another_fusion(tmp_path, classifier, attacked):
    fusions = [
        run(
            name,
            tmp_path / f"{name}{fusion}",
            classifier,
            attacked,
            dataclasses.replace(STUDY, fusion=fusion),
        )[0]
        for name in ("PA-Filt(L_img)", "PA-Filt(L_img)_literal")
        for fusion in ("mean", "balanced")
    ]
    ours, balanced, literal, same = (fusion.fusion[0].weight for fusion in fusions)
    assert not torch.equal(ours, balanced)
    assert torch.equal(literal, same)


# -- health --------------------------------------------------------------------------------------


def test_health_is_the_change_per_strength(attacked):
    denoiser = untrained("Add(L_img)").eval()
    with torch.no_grad():
        expected = [
            float((denoiser(attacked.at(eps)) - attacked.at(eps)).abs().mean()) for eps in EPS
        ]
    found = health(denoiser, attacked)
    assert found["change"] == pytest.approx(expected)
    assert set(found) == {"change", "alive"}
    assert min(expected) > 0
    assert isinstance(denoiser, Additive)


def test_and_for_pa_filt_mean_and_spread_of_its_weight(attacked):
    denoiser = untrained(KNOWING).eval()
    assert isinstance(denoiser, PAFilter)
    with torch.no_grad():
        everything = torch.stack([denoiser.parts(attacked.at(eps)).weight for eps in EPS]).double()
    found = health(denoiser, attacked)
    assert found["weight_mean"] == pytest.approx([float(each.mean()) for each in everything])
    assert found["weight_std"] == pytest.approx(float(everything.std()), rel=1e-3)
    assert found["weight_std"] > 0


def test_health_looks_at_the_first_images_only(attacked, monkeypatch):
    monkeypatch.setattr(denoiser_training, "HEALTH_IMAGES", 3)
    denoiser = untrained("Add(L_img)").eval()
    with torch.no_grad():
        first = [attacked.at(eps)[:3] for eps in EPS]
        expected = [float((denoiser(images) - images).abs().mean()) for images in first]
    assert health(denoiser, attacked)["change"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        (Additive, ["output"]),
        (Filtering, ["output"]),
        (MultiHead, [f"outputs.{head}" for head in range(4)]),
        (YNet, ["outputs.sl", "outputs.m"]),
        (PAFilter, ["ynet.outputs.sl", "ynet.outputs.m"]),
    ],
)
def test_a_dead_decoder_is_seen(kind, layers, attacked):
    torch.manual_seed(0)
    denoiser = kind(width=2, kernel_size=3).eval()
    alive = health(denoiser, attacked)["alive"]
    assert sorted(alive) == sorted(layers)
    assert all(0.05 < share <= 1 for share in alive.values())
    last = next(module for module in denoiser.modules() if isinstance(module, Decoder)).blocks[-1][
        -2
    ]
    last.bias.data.fill_(-1e3)  # its ReLUs never open again
    alive = health(denoiser, attacked)["alive"]
    dead = [name for name, share in alive.items() if share == 0]
    assert dead == (layers if kind is MultiHead else layers[:1])
