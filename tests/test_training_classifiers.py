"""How classifiers learn: against attacks on themselves, each phase only what it should."""

import pytest
import torch
import torch.nn.functional as F
from small import weights

from nbsupport.attacks.pgd import pgd
from nbsupport.study import Study
from nbsupport.training import classifiers as module
from nbsupport.training.classifiers import KINDS, train

CLASSES, SIDE, NUMBER = 3, 9, 10
EPOCHS = dict(classifier_epochs=3, adversarial_epochs=2)
STUDY = Study.named("photographs", "smoke", adversarial_eps=0.2, augmentation="shift", **EPOCHS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


IMAGES = torch.rand(NUMBER, 3, SIDE, SIDE, generator=generator())
LABELS = torch.arange(NUMBER) % CLASSES


def untrained(name):
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return KINDS[name].build(f"small_resnet{KINDS[name].ending}", CLASSES, SIDE)


def run(name, scratch):
    classifier = untrained(name)
    scratch.mkdir(exist_ok=True)
    return classifier, train(name, classifier, IMAGES, LABELS, STUDY, scratch)


@pytest.fixture
def attacks(monkeypatch):
    """Every attack in a training: network, its mode and weights, inputs, outputs, seed."""
    seen = []

    def spy(network, images, labels, eps, *, seed, **options):
        attacked = pgd(network, images, labels, eps, seed=seed, **options)
        mode, state = any(m.training for m in network.modules()), weights(network)
        seen.append((network, mode, state, images, attacked, seed))
        assert options == {"steps": 2, "rel_step": 0.25} and (eps <= 0.2).all()
        return attacked

    monkeypatch.setattr(module, "pgd", spy)
    return seen


@pytest.fixture
def fitted(monkeypatch):
    """By phase: weights before, parameters that learn, modes, options, the loss."""
    seen, honest = [], module.fit

    def spy(network, loss, **options):
        learning = {name for name, weight in network.named_parameters() if weight.requires_grad}
        modes = {each.training for each in network.modules()}
        seen.append((weights(network), learning, modes, options, loss))
        return honest(network, loss, **options)

    monkeypatch.setattr(module, "fit", spy)
    monkeypatch.setattr(module, "_shift", lambda images, generator: images)
    return seen


def first_loss(fitted, phase, network, name):
    """The loss of all images in a phase, for untrained weights, in the modes of that phase."""
    network.load_state_dict(untrained(name).state_dict())
    network.train(fitted[phase][2] == {True})
    return fitted[phase][-1](torch.arange(NUMBER), generator(3))


def test_the_loss_is_that_of_attacked_images(attacks, fitted, tmp_path):
    name = "FD"
    classifier, _ = run(name, tmp_path)
    attacks.clear()
    value = first_loss(fitted, 0, classifier, name)
    ((_, in_training, _, clean, attacked, seed),) = attacks
    assert not in_training and torch.equal(clean, IMAGES)
    fresh, options = untrained(name), dict(steps=2, rel_step=0.25, seed=seed)
    torch.testing.assert_close(attacked, pgd(fresh.eval(), IMAGES, LABELS, 0.2, **options))
    torch.testing.assert_close(value, F.cross_entropy(fresh.train()(attacked), LABELS))


def test_fpd_restores_then_also_classifies(attacks, fitted, tmp_path):
    classifier, _ = run("FPD", tmp_path)
    noise = 2 * torch.rand(IMAGES.shape, generator=generator(3)) - 1
    for phase in range(3):
        attacks.clear()
        value = first_loss(fitted, phase, classifier, "FPD")
        inputs = (IMAGES + 0.01 * noise).clamp(0, 1)
        if phase == 2:
            ((network, in_training, _, _, inputs, _),) = attacks
            assert not (network.squashed or in_training)
        fresh = untrained("FPD").train(phase < 2)
        restored, logits = fresh.outputs(inputs)
        expected = (restored - IMAGES).square().mean()
        if phase > 0:
            expected = expected + F.cross_entropy(logits.tanh(), LABELS)
        torch.testing.assert_close(value, expected)
        assert len(attacks) == (phase == 2)


def test_the_phases_of_fpd_train_what_they_should(fitted, tmp_path):
    classifier, history = run("FPD", tmp_path)
    assert [len(losses) for losses in history.values()] == [3, 3, 2]
    every = {name for name, _ in untrained("FPD").named_parameters()}
    head = {name for name in every if name.startswith("head.")}
    assert [learning for _, learning, *_ in fitted] == [every - head, every, every]
    assert [modes for _, _, modes, *_ in fitted] == [{True}, {True}, {False}]
    rates = [(options["clip_norm"], options["learning_rate"]) for *_, options, _ in fitted]
    assert rates == [(1.0, 2e-3), (1.0, 2e-3), (1.0, 1e-3)]

    start, restored, joint, robust = [*(state for state, *_ in fitted), weights(classifier)]

    def changed(a, b, part):
        return any(part in name and not torch.equal(a[name], b[name]) for name in a)

    assert head and not changed(start, restored, "head.")
    assert changed(start, restored, "network.") and changed(start, restored, "decoder.")
    for before, after in ((restored, joint), (joint, robust)):
        assert changed(before, after, "head.") and changed(before, after, "network.")
    updates = {int(x) for name, x in restored.items() if name.endswith("num_batches_tracked")}
    assert updates == {2 * STUDY.classifier_epochs}  # both passes, in one batch per epoch
    for statistic in ("running_mean", "running_var", "num_batches_tracked"):
        assert changed(start, restored, statistic) and changed(restored, joint, statistic)
        assert not changed(joint, robust, statistic)


@pytest.mark.parametrize("name", ["standard", "Adv"])
def test_the_others_learn_everything_at_once(name, fitted, attacks, tmp_path):
    classifier, history = run(name, tmp_path)
    assert [len(losses) for losses in history.values()] == [3 if name == "standard" else 2]
    ((_, learning, modes, options, _),) = fitted
    assert learning == {key for key, _ in untrained(name).named_parameters()}
    assert modes == {True}
    assert options["clip_norm"] is None and options["learning_rate"] == 1e-2
    if name == "standard":
        assert attacks == []
        return
    (_, _, first, _, attacked, seed), (_, _, second, _, again, other) = attacks  # one per epoch
    assert any(not torch.equal(first[key], second[key]) for key in first if "weight" in key)
    assert seed != other and not torch.equal(attacked, again)
    counts = [value for key, value in weights(classifier).items() if "num_batches" in key]
    assert counts and all(count == 2 for count in counts)  # the attack's passes leave no trace


@pytest.mark.parametrize(("name", "stop"), [("FD", 1), ("FPD", 4)])
def test_resumed_it_ends_at_the_same_weights(name, stop, tmp_path, monkeypatch):
    expected, history = run(name, tmp_path / "undisturbed")
    calls = iter([module._shift] * stop)
    with monkeypatch.context() as patch, pytest.raises(StopIteration):
        patch.setattr(module, "_shift", lambda *batch: next(calls)(*batch))
        run(name, tmp_path / "interrupted")
    torch.manual_seed(99)  # whatever the next session's state is
    again, resumed = run(name, tmp_path / "interrupted")
    assert resumed == history
    torch.testing.assert_close(weights(again), weights(expected), rtol=0, atol=0)


def windows(image, most):
    """All shifts of an image by up to `most` pixels, borders repeating."""
    height, width = image.shape[-2:]
    padded = F.pad(image[None], (most,) * 4, mode="replicate")[0]
    for top in range(2 * most + 1):
        for left in range(2 * most + 1):
            yield (top, left), padded[:, top : top + height, left : left + width]


def test_batches_are_shifted_by_up_to_a_pixel():
    images, draws, seen = torch.rand(2, 3, 5, 4), generator(), set()
    for _ in range(60):
        shifted = module._shift(images, draws)
        places = zip(windows(images[0], 1), windows(images[1], 1), strict=True)
        seen |= {at for (at, a), (_, b) in places if torch.equal(torch.stack([a, b]), shifted)}
    assert len(seen) == 9


def test_every_crop_is_a_shift_of_its_image_and_half_are_mirrored():
    images, found = torch.rand(60, 3, 9, 16), []
    for image, cropped in zip(images, module._crop(images, generator()), strict=True):
        for place, window in windows(image, 2):
            for mirrored in (False, True):
                if torch.equal(window.flip(-1) if mirrored else window, cropped):
                    found.append((*place, mirrored))
    assert len(found) == 60
    assert 15 < sum(mirrored for *_, mirrored in found) < 45
    assert len({place[:2] for place in found}) > 5
