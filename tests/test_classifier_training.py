"""How classifiers learn: against attacks on themselves as they are, each phase only what it should."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nbsupport.attacks.pgd import pgd
from nbsupport.classifiers import feature_denoising, feature_pyramid
from nbsupport.classifiers import models as classifiers
from nbsupport.study import Study
from nbsupport.training import classifiers as classifier_training
from nbsupport.training.classifiers import KINDS, Unsquashed, target, train, training

ROBUST = ("Adv", "FD", "FPD")
CLASSES, SIDE, NUMBER = 3, 9, 10
STUDY = Study.named(
    "digits", "smoke", classifier_epochs=2, adversarial_epochs=2, adversarial_eps=0.2
)


def rand(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def images():
    return rand(NUMBER, 3, SIDE, SIDE)


@pytest.fixture
def labels():
    return torch.arange(NUMBER) % CLASSES


def untrained(name):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return KINDS[name].build(f"small_resnet{KINDS[name].ending}", CLASSES, SIDE)


def weights(classifier):
    return {name: tensor.clone() for name, tensor in classifier.state_dict().items()}


def modes(classifier):
    return {name: module.training for name, module in classifier.named_modules()}


# -- kinds and specifications --------------------------------------------------------------------


def test_the_kinds():
    assert list(KINDS) == ["standard", "second", "Adv", "FD", "FPD"]
    assert {name for name, kind in KINDS.items() if kind.adversarial} == set(ROBUST)
    assert any(
        isinstance(each, feature_denoising.DenoisingBlock) for each in untrained("FD").modules()
    )
    assert isinstance(untrained("FPD"), feature_pyramid.FeaturePyramidDecoder)
    assert KINDS["second"].seed != KINDS["standard"].seed


@pytest.mark.parametrize("name", ["standard", "second"])
def test_plain_training_says_nothing_of_attacks(name):
    assert training(name, STUDY) == {}


@pytest.mark.parametrize("name", ROBUST)
def test_the_specification_says_how_it_was_trained(name):
    phases = (
        ["restoration", "restoration and labels", "adversarial"]
        if name == "FPD"
        else ["adversarial"]
    )
    said = {
        "against": "LinfPGD on itself",
        "eps": 0.2,
        "steps": 2,
        "rel_step": 0.25,
        "epochs": 2,
        "phases": phases,
    }
    if name == "FPD":
        said |= {"learning_rates": [2e-3, 2e-3, 1e-3], "clip_norm": 1.0}
    assert training(name, STUDY) == said


@pytest.mark.parametrize(
    "change",
    dict(
        adversarial_eps=0.3, adversarial_steps=3, adversarial_rel_step=0.5, adversarial_epochs=3
    ).items(),
    ids=str,
)
@pytest.mark.parametrize("name", ROBUST)
def test_another_attack_is_another_classifier(name, change):
    assert training(name, dataclasses.replace(STUDY, **dict([change]))) != training(name, STUDY)


@pytest.mark.parametrize("name", ["adv", "attacked", ""])
def test_an_unknown_kind_is_refused(name):
    with pytest.raises(
        ValueError, match=f"no classifier named '{name}'; there are: standard, second, Adv, FD, FPD"
    ):
        training(name, STUDY)


# -- what is attacked ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["standard", "Adv", "FD"])
def test_a_classifier_is_attacked_as_it_is(name):
    classifier = untrained(name)
    assert target(classifier) is classifier


@pytest.mark.parametrize("mode", [True, False])
def test_fpd_is_attacked_before_its_tanh(mode, images):
    classifier = untrained("FPD").train(mode)
    victim = target(classifier)
    assert isinstance(victim, Unsquashed)
    assert all(each.training is mode for each in victim.modules())
    classifier.eval()
    torch.testing.assert_close(victim(images).tanh(), classifier(images))


@pytest.fixture
def attacks(monkeypatch):
    """Every attack in a training: the network, its modes, its weights, what came and what went, how."""
    seen = []

    def spy(network, images, labels, eps, **options):
        attacked = pgd(network, images, labels, eps, **options)
        seen.append(
            (
                network,
                any(m.training for m in network.modules()),
                weights(network),
                images,
                attacked,
                options,
            )
        )
        return attacked

    monkeypatch.setattr(classifier_training, "pgd", spy)
    return seen


def one_batch(name, loss, images, labels, seed=0):
    classifier = untrained(name).train()
    return classifier, loss(classifier, images, labels, torch.Generator().manual_seed(seed), STUDY)


def test_the_loss_is_that_of_the_attacked_images_in_training_mode(attacks, images, labels):
    classifier, value = one_batch("Adv", classifier_training._madry, images, labels)
    ((_, in_training, _, clean, attacked, options),) = attacks
    assert not in_training
    assert torch.equal(clean, images)
    assert (options["steps"], options["rel_step"]) == (2, 0.25)
    fresh = untrained("Adv").eval()
    expected = pgd(fresh, images, labels, 0.2, steps=2, rel_step=0.25, seed=options["seed"])
    torch.testing.assert_close(attacked, expected)
    assert (attacked - images).abs().max() > 0.05
    torch.testing.assert_close(value, F.cross_entropy(fresh.train()(attacked), labels))


def test_the_loss_of_fpd_is_restoration_and_labels_of_the_attacked_images(attacks, images, labels):
    classifier, value = one_batch("FPD", classifier_training._robust, images, labels)
    network, in_training, *_, attacked, _ = attacks[0]
    assert isinstance(network, Unsquashed) and not in_training
    fresh = untrained("FPD").train()
    logits = fresh(attacked)
    fresh = untrained("FPD").train()
    restored = fresh.restoration(attacked)
    torch.testing.assert_close(
        value, (restored - images).square().mean() + F.cross_entropy(logits, labels)
    )


@pytest.mark.parametrize("phase", ["_restoring", "_joint"])
def test_before_that_fpd_learns_from_noise_and_restores_the_clean_image(
    phase, attacks, images, labels
):
    classifier = untrained("FPD").eval()
    value = getattr(classifier_training, phase)(
        classifier, images, labels, torch.Generator().manual_seed(3), STUDY
    )
    noise = 2 * torch.rand(images.shape, generator=torch.Generator().manual_seed(3)) - 1
    noisy = (images + 0.01 * noise).clamp(0, 1)
    expected = (classifier.restoration(noisy) - images).square().mean()
    if phase == "_joint":
        expected = expected + F.cross_entropy(classifier(noisy), labels)
    torch.testing.assert_close(value, expected)
    assert attacks == []


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("frozen", ["", "network", "all"])
def test_an_attack_leaves_every_training_flag_as_it_was(name, frozen, images, labels):
    classifier = untrained(name).train()
    if frozen == "network":
        classifier.network.eval()
    elif frozen:
        classifier.eval()
    before, tensors = modes(classifier), weights(classifier)
    classifier_training._attacked(
        classifier, images, labels, torch.Generator().manual_seed(0), STUDY
    )
    assert modes(classifier) == before
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in classifier.state_dict().items())


def test_every_attack_starts_elsewhere(attacks, images, labels):
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        classifier_training._attacked(untrained("Adv"), images, labels, generator, STUDY)
    assert attacks[0][-1]["seed"] != attacks[1][-1]["seed"]
    assert not torch.equal(attacks[0][4], attacks[1][4])


# -- shifts --------------------------------------------------------------------------------------


def test_images_are_shifted_by_up_to_a_pixel_with_repeated_borders():
    images, generator, seen = rand(2, 3, 5, 4), torch.Generator().manual_seed(0), set()
    for _ in range(60):
        shifted = classifier_training._shifted(images, generator)
        for dy, dx in [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
            rows, columns = (torch.arange(n).add(d).clamp(0, n - 1) for n, d in ((5, dy), (4, dx)))
            if torch.equal(shifted, images[:, :, rows][..., columns]):
                seen.add((dy, dx))
                break
        else:
            raise AssertionError("shifted further, or by something else")
    assert len(seen) == 9


# -- trainings -----------------------------------------------------------------------------------


class Interrupted(BaseException):
    """As KeyboardInterrupt, which nothing but the test catches."""


def run(name, scratch, images, labels, study=STUDY):
    classifier = untrained(name)
    scratch.mkdir(exist_ok=True)
    history = train(name, classifier, images, labels, study, scratch)
    return classifier, history


@pytest.mark.parametrize("name", KINDS)
def test_a_training_has_its_phases_with_their_epochs(name, tmp_path, images, labels):
    study = dataclasses.replace(STUDY, classifier_epochs=3, adversarial_epochs=1)
    _, history = run(name, tmp_path, images, labels, study)
    expected = {"FPD": {"restoration": 3, "restoration and labels": 3, "adversarial": 1}}
    plain = {"adversarial": 1} if name in ROBUST else {"plain": 3}
    assert {phase: len(losses) for phase, losses in history.items()} == expected.get(name, plain)


def test_plain_training_attacks_nobody(attacks, tmp_path, images, labels):
    run("standard", tmp_path, images, labels)
    assert attacks == []


def test_adversarial_training_attacks_every_batch_as_the_classifier_is_by_then(
    attacks, tmp_path, images, labels
):
    classifier, _ = run("Adv", tmp_path, images, labels)
    assert len(attacks) == 2  # epochs of one batch
    first, second = (each[2] for each in attacks)
    assert any(not torch.equal(first[name], second[name]) for name in first if "weight" in name)
    assert classifier.network.stem[1].num_batches_tracked == 2  # the attack's passes leave no trace


@pytest.fixture
def fitted(monkeypatch):
    """What `fit` was asked for, and which parameters could learn in which mode, phase by phase."""
    seen = []

    def spy(trained, loss, **options):
        learning = {
            name for name, parameter in trained.named_parameters() if parameter.requires_grad
        }
        seen.append((learning, {module.training for module in trained.modules()}, options))
        return honest(trained, loss, **options)

    honest = classifier_training.fit
    monkeypatch.setattr(classifier_training, "fit", spy)
    return seen


def test_the_phases_of_fpd_train_what_they_should(fitted, tmp_path, images, labels):
    run("FPD", tmp_path, images, labels)
    every = {name for name, _ in untrained("FPD").named_parameters()}
    head = {name for name in every if name.startswith("head.")}
    assert [learning for learning, _, _ in fitted] == [every - head, every, every]
    assert [training for _, training, _ in fitted] == [{True}, {False}, {False}]
    assert head and head < every


@pytest.fixture
def phases(monkeypatch):
    """The weights before each phase."""
    found, honest = [], classifier_training.fit

    def spy(trained, loss, **options):
        found.append(weights(trained))
        return honest(trained, loss, **options)

    monkeypatch.setattr(classifier_training, "fit", spy)
    return found


def changed(before, after, part):
    return {name for name in before if part in name and not torch.equal(before[name], after[name])}


def test_what_the_phases_of_fpd_change(phases, tmp_path, images, labels):
    classifier, _ = run("FPD", tmp_path, images, labels)
    start, restored, joint, robust = [*phases, weights(classifier)]
    assert not changed(start, restored, "head.")
    assert changed(start, restored, "network.") and changed(start, restored, "decoder.")
    assert changed(restored, joint, "head.") and changed(restored, joint, "network.")
    assert changed(joint, robust, "head.") and changed(joint, robust, "network.")
    for statistic in ("running_mean", "running_var", "num_batches_tracked"):
        assert changed(start, restored, statistic)
        assert not changed(restored, robust, statistic)


@pytest.mark.parametrize("name", ["standard", "Adv", "FD"])
def test_the_others_learn_all_at_once(name, fitted, tmp_path, images, labels):
    run(name, tmp_path, images, labels)
    ((learning, modes, options),) = fitted
    assert learning == {key for key, _ in untrained(name).named_parameters()}
    assert modes == {True}
    assert options["clip_norm"] is None and options["learning_rate"] == 1e-2


def test_gradients_of_fpd_are_clipped(fitted, tmp_path, images, labels):
    run("FPD", tmp_path, images, labels)
    said = [(options["clip_norm"], options["learning_rate"]) for *_, options in fitted]
    assert said == [(1.0, 2e-3), (1.0, 2e-3), (1.0, 1e-3)]


@pytest.mark.parametrize(
    ("name", "stop"), [("Adv", 1), ("FD", 1), ("FPD", 1), ("FPD", 2), ("FPD", 3), ("FPD", 5)]
)
def test_interrupted_and_resumed_ends_at_the_same_weights(
    name, stop, tmp_path, images, labels, monkeypatch
):
    expected, history = run(name, tmp_path / "undisturbed", images, labels)
    count, honest = [], classifier_training._shifted

    def interrupting(batch, generator):
        if len(count) == stop:
            raise Interrupted
        count.append(1)
        return honest(batch, generator)

    with monkeypatch.context() as patch:
        patch.setattr(classifier_training, "_shifted", interrupting)
        with pytest.raises(Interrupted):
            run(name, tmp_path / "interrupted", images, labels)
    torch.manual_seed(99)  # whatever the next session's state is
    again, resumed = run(name, tmp_path / "interrupted", images, labels)
    assert resumed == history
    torch.testing.assert_close(weights(again), weights(expected), rtol=0, atol=0)


def test_one_image_and_odd_sizes_will_do(tmp_path):
    for name in ("Adv", "FPD"):
        place = tmp_path / name
        run(
            name,
            place,
            rand(2, 3, 11, 9),
            torch.tensor([0, 2]),
            dataclasses.replace(STUDY, classifier_epochs=1),
        )


def test_training_against_attacks_makes_robust(tmp_path):
    """Two classes by a strong feature of one pixel and a weak one of all: only the strong one survives ε = 0.2."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 2
    sign = (2 * labels - 1).view(-1, 1, 1, 1)
    images = (
        0.5
        + 0.03 * sign * torch.ones(64, 3, 5, 5)
        + 0.1 * (torch.rand(64, 3, 5, 5, generator=generator) - 0.5)
    )
    images[:, :, 2, 2] = (0.5 + 0.4 * sign)[:, :, 0, 0]
    study = dataclasses.replace(
        STUDY,
        classifier_epochs=40,
        adversarial_epochs=40,
        adversarial_steps=4,
        adversarial_rel_step=0.5,
    )

    def robust(name):
        torch.manual_seed(0)
        classifier = classifiers.Classifier(nn.Sequential(nn.Flatten(), nn.Linear(75, 2)))
        (tmp_path / name).mkdir()
        train(name, classifier, images, labels, study, tmp_path / name)
        layer = classifier.network[1].weight.detach()
        difference = (layer[1] - layer[0]).view(3, 5, 5).abs().sum(dim=0)
        return float(difference[2, 2] / difference.sum())

    assert robust("Adv") > 2 * robust("standard")


# -- augmentation --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(32, 32), (9, 16)])
def test_every_crop_is_a_shift_of_its_image_and_half_are_mirrored(size):
    height, width = size
    most = max(size) // 8
    images = torch.rand(60, 3, *size)
    cropped = classifier_training._cropped(images, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images, (most,) * 4, mode="replicate")
    found = []
    for image, whole in zip(cropped, padded, strict=True):
        windows = {
            (top, left, mirrored): whole[:, top : top + height, left : left + width].flip(
                -1 if mirrored else ()
            )
            for top in range(2 * most + 1)
            for left in range(2 * most + 1)
            for mirrored in (False, True)
        }
        (place,) = (place for place, window in windows.items() if torch.equal(window, image))
        found.append(place)
    assert 15 < sum(mirrored for _, _, mirrored in found) < 45
    assert len({place[:2] for place in found}) > 5
