"""The artifacts of a study: their specifications name everything they are made from, and each is made once."""

import dataclasses
import functools
import json
import shutil

import pytest
import torch
from small import SmallExperiment
from torch import nn

from nbsupport.attacks.pgd import ratios
from nbsupport.denoisers.models import MultiHead, YNet
from nbsupport.experiments import artifacts as module
from nbsupport.experiments.artifacts import Experiment
from nbsupport.experiments.evaluation import failure
from nbsupport.experiments.methods import AS_PUBLISHED, RECIPES
from nbsupport.experiments.store import Store
from nbsupport.study import Study
from nbsupport.training import classifiers as classifier_training
from nbsupport.training import denoisers as denoiser_training
from nbsupport.training.classifiers import KINDS
from nbsupport.training.denoisers import fusion_loss, image_loss, semantic_loss

FUSED = {"PA-Filt(L_img)", AS_PUBLISHED, "PA-Filt(L_adv)"}
BOTH = "PA-Filt(L_img+KL)"


def of(**changes):
    return Experiment(dataclasses.replace(Study.named("photographs", "smoke"), **changes))


@pytest.fixture(autouse=True, scope="module")
def _data_once():
    """Images are read once and not again for every specification."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load", functools.cache(module.load))
        yield


@pytest.fixture
def untrained(experiment, tmp_path):
    """The experiment with classifier and attacked images, but no denoiser yet."""
    experiment.attacked("train")
    for kind in ("classifier", "attacked"):
        shutil.copytree(experiment.store.home / kind, tmp_path / "store" / kind)
    return Experiment(experiment.study, Store(tmp_path / "store"))


def equal_weights(one, other):
    one, other = one.state_dict(), other.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_adaptive_evaluation_has_its_own_number_of_images(tmp_path):
    sizes = dict(test_images=5, adaptive_images=9, audit_images=20, self_attack_images=None)
    experiment = Experiment(Study.named("photographs", "smoke", **sizes), Store(tmp_path))
    numbers = {split: len(experiment.images(split)) for split in ("test", "adaptive")}
    assert numbers == {"test": 5, "adaptive": 9}
    assert [len(experiment.images(split)) for split in ("audit", "self_attack")] == [9, 5]


@pytest.mark.parametrize("recipe", ["Filt(L_img)", "Filt(L_img)_as_published"])
def test_a_training_that_diverges_is_a_failed_training(recipe, untrained, monkeypatch):
    fit, infinite = denoiser_training.fit, lambda loss: lambda *batch: loss(*batch) * float("inf")
    diverge = lambda network, loss, **rest: fit(network, infinite(loss), **rest)  # noqa: E731
    monkeypatch.setattr(denoiser_training, "fit", diverge)
    diverging = untrained.changed(learning_rate=1e-3)
    assert "lower the learning rate" in failure(diverging, recipe)
    again = Experiment(diverging.study, diverging.store)  # the same after a restart
    assert failure(again, recipe) == failure(diverging, recipe)
    for parameter in again.denoiser(recipe).parameters():
        assert torch.isfinite(parameter).all()


# -- specifications ------------------------------------------------------------------------------

CLASSIFIER = dict(classifier_epochs=3, image_size=20, seed=1)
TRAINING = dict(width=5, kernel_size=5, epochs=2, batch_size=47, learning_rate=1e-3)
AGAINST = dict(adversarial_eps=0.2, adversarial_steps=3, adversarial_rel_step=0.1)
ROBUST = {"Adv", "FD", "FPD"}
SPECIFICATIONS = {name: lambda e, name=name: e.classifier_specification(name) for name in KINDS}
ATTACKED = {"train", "test"}
SPECIFICATIONS |= {name: lambda e, name=name: e.attacked_specification(name) for name in ATTACKED}
SPECIFICATIONS |= {name: lambda e, name=name: e.denoiser_specification(name) for name in RECIPES}
EVERYTHING = set(SPECIFICATIONS)
CHECKPOINTS = {x for x in RECIPES if RECIPES[x].checkpoints} | {AS_PUBLISHED, BOTH}
DEPENDENCIES = [
    (CLASSIFIER, EVERYTHING),
    (dict(classifier="resnet18"), EVERYTHING - {"second"}),
    (dict(steps=5, eps=(0.0, 0.1, 0.3, 0.5)), ATTACKED | {*RECIPES}),
    (dict(train_images=49), {"train", *RECIPES}),
    (TRAINING, {*RECIPES}),
    (dict(denoiser_seed=3), {*RECIPES}),
    (dict(fusion="mean", fusion_learning_rate=5e-4), FUSED - {AS_PUBLISHED}),
    (dict(fusion_start="default"), FUSED - {AS_PUBLISHED}),
    (dict(fusion_inputs="all"), FUSED - {AS_PUBLISHED} | {BOTH}),
    (dict(image_weight=5.0), {BOTH}),
    (dict(validation_images=11), CHECKPOINTS),
    (dict(fusion_epochs=2), FUSED),
    (AGAINST, ROBUST | {"PA-Filt(L_adv)"}),
    (dict(adversarial_epochs=2), ROBUST),
    (dict(adaptive_epochs=2), {"PA-Filt(L_adv)"}),
    (dict(test_images=25), {"test"}),
    (dict(scale="quick"), set()),
]


@pytest.mark.parametrize(
    ("change", "expected"),
    [({name: value}, out) for each, out in DEPENDENCIES for name, value in each.items()],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_change_of_the_study_changes_exactly_the_artifacts_that_depend_on_it(change, expected):
    one, other = of(), of(**change)
    assert {name for name, get in SPECIFICATIONS.items() if get(one) != get(other)} == expected


def test_no_two_artifacts_share_a_folder():
    experiment = of()
    every = [get(experiment) for get in SPECIFICATIONS.values()]
    every += [experiment.attacked_specification("test", classifier=name) for name in [*KINDS][1:]]
    every += [experiment.attacked_specification("test", *rest) for rest in ((5,), (None, (0.1,)))]
    assert len({Store("home").folder(each) for each in every}) == len(every)


def test_a_combination_is_its_denoiser_before_its_classifier(experiment):
    assert isinstance(experiment.denoiser("FPD"), nn.Identity)
    assert experiment.denoiser("Filt+FD") is experiment.denoiser("Filt(L_img)")
    specification = experiment.specification("Filt+FD")
    assert specification["classifier"] == experiment.classifier_specification("FD")
    assert specification["trained"] == experiment.denoiser_specification("Filt(L_img)")


# -- made once -----------------------------------------------------------------------------------


def test_a_second_session_loads_everything_and_makes_nothing(experiment, monkeypatch):
    first = {name: experiment.trained(name) for name in RECIPES}
    classifiers = {name: experiment.classifier(name) for name in KINDS}
    attacked = {split: experiment.attacked(split) for split in ("train", "test")}

    def make(*arguments, **options):
        raise AssertionError("made again")

    monkeypatch.setattr(classifier_training, "fit", make)
    monkeypatch.setattr(denoiser_training, "fit", make)
    monkeypatch.setattr(module, "ratios", make)
    second = Experiment(experiment.study, Store(experiment.store.home))
    for name, (denoiser, report, checkpoints) in first.items():
        again, as_stored, kept = second.trained(name)
        assert again is not denoiser and equal_weights(again, denoiser) and as_stored == report
        torch.testing.assert_close(kept, checkpoints, rtol=0, atol=0)
    assert all(equal_weights(second.classifier(name), classifiers[name]) for name in KINDS)
    for split, images in attacked.items():
        assert torch.equal(second.attacked(split).ratios, images.ratios)


def test_networks_are_frozen(experiment):
    networks = [experiment.classifier(name) for name in KINDS]
    for network in networks + [experiment.trained(name)[0] for name in RECIPES]:
        assert not any(module.training for module in network.modules())
        assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize(("lost", "attacks"), [("standard", 1), ("Y-Net", 0)])
def test_nothing_made_from_other_weights_is_used(lost, attacks, untrained, monkeypatch):
    """A network trained again ends at other weights: what depends on them is made anew, once."""
    home, calls = untrained.store.home, []

    def elsewhere(train):
        def train_elsewhere(name, network, *arguments):
            report = train(name, network, *arguments)
            calls.append(name)
            next(network.parameters()).data.mul_(1 + 1e-6 * len(calls))
            return report

        return train_elsewhere

    for each in (classifier_training, denoiser_training):
        monkeypatch.setattr(each, "train", elsewhere(each.train))
    untrained.denoiser("PA-Filt(L_img)")
    folder = untrained.store.folder(untrained.classifier_specification())
    if lost == "Y-Net":
        (folder,) = home.glob("denoiser/Y-Net-*")
    (folder / "artifact.json").unlink()
    before = len([*home.glob("attacked/*")])
    for _ in range(2):
        Experiment(untrained.study, untrained.store).denoiser("PA-Filt(L_img)")
    both = ["Y-Net", "PA-Filt(L_img)"]
    assert calls == [*both, *["standard"] * attacks, *both]
    assert len([*home.glob("attacked/*")]) == before + attacks


# -- attacked images -----------------------------------------------------------------------------


@pytest.fixture
def asked(untrained, monkeypatch):
    """The calls of `ratios` on an empty store of attacked images; it answers with ε itself."""
    shutil.rmtree(untrained.store.home / "attacked")
    calls = []

    def spy(classifier, images, labels, eps, **options):
        calls.append((classifier, images, labels, eps, options))
        return torch.tensor(eps).view(-1, 1, 1, 1, 1).expand(-1, *images.shape).half()

    monkeypatch.setattr(module, "ratios", spy)
    return calls


def test_all_strengths_are_attacked_as_the_study_says(untrained, asked):
    attacked, study, test = untrained.attacked("test"), untrained.study, untrained.images("test")
    assert attacked.ratios.dtype == torch.float16
    strengths = sorted({*study.eps[1:], 8 / 255})
    assert torch.equal(attacked.ratios[:, 0, 0, 0, 0], torch.tensor(strengths).half())
    assert [e for *_, eps, _ in asked for e in eps] == strengths
    for _, images, labels, *_ in asked:
        assert torch.equal(images, test.images) and torch.equal(labels, test.labels)
    expected = {"steps": study.steps, "seed": study.seed, "loss": "cross-entropy"}
    for _, images, _, eps, options in asked:
        assert len(images) * len(eps) <= 64  # on a CPU, so that the progress bar moves
        assert set(eps) <= set(strengths) and options == expected


def test_only_a_missing_block_is_attacked_again(untrained, asked, monkeypatch):
    blocks = [slice(0, 10), slice(10, 20), slice(20, 24)]
    monkeypatch.setattr(Experiment, "blocks", lambda experiment, split: blocks)
    found = untrained.attacked("test").ratios
    every = (untrained.store.home / "attacked").iterdir()
    stored = sorted(every, key=lambda each: each.stat().st_mtime_ns)
    assert len(stored) == 3
    shutil.rmtree(stored[1])
    asked.clear()
    again = Experiment(untrained.study, untrained.store).attacked("test").ratios
    assert torch.equal(again, found)
    images = untrained.images("test").images
    assert asked and all(torch.equal(part, images[10:20]) for _, part, *_ in asked)


@pytest.mark.parametrize(("size", "expected"), [(64, 64), (65, 8)])
def test_blocks_cover_all_images_once(size, expected):
    experiment = of(image_size=size, test_images=130)
    blocks = experiment.blocks("test")
    assert [i for block in blocks for i in range(130)[block]] == list(range(130))
    assert {block.stop - block.start for block in blocks[:-1]} == {expected}


def test_fpd_is_attacked_before_its_tanh_with_the_margin(untrained, asked):
    untrained.attacked("test", 3, (0.1, 0.2), "FPD")
    images, classifier = untrained.images("test").images[:2], untrained.classifier("FPD")
    for network, _, _, eps, options in asked:
        assert torch.allclose(network(images).tanh(), classifier(images), atol=1e-6)
        assert not torch.equal(network(images), classifier(images))
        assert (eps, options["steps"], options["loss"]) == ((0.1, 0.2), 3, "margin")


# -- trainings -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Filt(L_img)", AS_PUBLISHED, "PA-Filt(L_adv)", BOTH])
def test_a_training_is_that_of_its_specification(untrained, monkeypatch, name):
    calls = []

    def spy(trained, loss, **options):
        calls.append(options)
        return [0.0] * options["epochs"]

    study = dataclasses.replace(untrained.study, epochs=2, fusion_epochs=3, adaptive_epochs=4)
    changed = Experiment(study, untrained.store)
    if RECIPES[name].at_operating_point:
        changed.trained(RECIPES[name].base)  # it needs real checkpoints
    monkeypatch.setattr(denoiser_training, "fit", spy)
    losses, specification = changed.report(name)["loss"], changed.denoiser_specification(name)
    epochs = {AS_PUBLISHED: 3, "PA-Filt(L_adv)": 4}.get(name, 2)
    assert len(losses) == specification["epochs"] == epochs
    for option in ("epochs", "batch_size", "learning_rate", "seed"):
        assert calls[-1][option] == specification[option]
    strengths = 1 if name == "PA-Filt(L_adv)" else len(study.attacked_eps)  # it attacks anew
    assert calls[-1]["examples"] == study.train_images * strengths


def test_pa_filt_starts_from_the_trained_y_net_and_learns_its_fusion_only(experiment):
    ynet, fused = experiment.denoiser("Y-Net"), experiment.denoiser("PA-Filt(L_img)")
    assert equal_weights(fused.ynet, ynet)


def test_both_losses_start_from_the_checkpoint_at_the_operating_point(untrained, monkeypatch):
    step = untrained.find_step("PA-Filt(L_img)_sl@32dB")
    checkpoint = untrained.trained("Y-Net_as_published").checkpoints[step]
    monkeypatch.setattr(denoiser_training, "fit", lambda *arguments, **options: [])
    found = untrained.denoiser(BOTH).ynet.state_dict()
    torch.testing.assert_close(found, checkpoint, rtol=0, atol=0)


def test_the_adversarially_trained_pa_filt_starts_from_the_trained_one(untrained, monkeypatch):
    monkeypatch.setattr(denoiser_training, "fit", lambda *arguments, **options: [])
    assert equal_weights(untrained.denoiser("PA-Filt(L_adv)"), untrained.denoiser("PA-Filt(L_img)"))


# -- objectives ----------------------------------------------------------------------------------


@pytest.fixture
def batch():
    """Attacked and clean images that differ everywhere, four of them."""
    return torch.rand(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0)).unbind()


def loss(name, denoiser, classifier, batch, eps):
    return RECIPES[name].objective(denoiser, classifier, *batch, torch.tensor(eps))


@pytest.mark.parametrize(
    ("eps", "bands"),
    [([0.5, 1e-4, 0.01, 0.1], (4, 1, 3, 4)), ([1e-3, 5e-4, 5e-3, 5e-2], (2, 1, 2, 3))],
)
def test_each_head_gets_its_images(experiment, batch, eps, bands):
    heads = MultiHead(4, 3)
    for number, output in enumerate(reversed(heads.outputs.values()), 1):
        output.bias.data *= number  # head i multiplies the image by i
    pairs = zip(bands, *batch, strict=True)
    expected = sum(image_loss((n * x[None]).clamp(0, 1), clean[None]) for n, x, clean in pairs)
    value = loss("Multi-head-Filt(L_img)", heads, experiment.classifier(), batch, eps)
    torch.testing.assert_close(value, expected / 4)


def test_each_branch_gets_its_images(experiment, batch):
    ynet, (images, clean), strong = YNet(4, 3), batch, [0, 2]
    ynet.outputs["m"].bias.data *= 2
    expected = image_loss((2 * images[strong]).clamp(0, 1), clean[strong])
    value = loss("Y-Net", ynet, experiment.classifier(), batch, [0.1, 0.05, 0.5, 1e-4])
    torch.testing.assert_close(value, image_loss(images, clean) + expected)


CASES = dict.fromkeys(("Add(L_img)", "Filt(L_img)", "Filt(L_img*)"), image_loss)
CASES |= {"Add(L_sem)": semantic_loss, "Filt(L_sem)": semantic_loss, "PA-Filt(L_img)": fusion_loss}


@pytest.mark.parametrize("name", CASES)
def test_a_recipe_minimises_the_loss_in_its_name(experiment, batch, name):
    denoiser, classifier = RECIPES[name].build(width=4, kernel_size=3), experiment.classifier()
    network = () if CASES[name] is image_loss else (classifier,)  # denoisers start as identities
    expected = CASES[name](*network, *batch)
    torch.testing.assert_close(loss(name, denoiser, classifier, batch, [0.1] * 4), expected)


# -- methods -------------------------------------------------------------------------------------


def test_unknown_methods_and_classifiers_are_refused(experiment):
    with pytest.raises(ValueError, match=r"'Filt'.*Add\(L_img\), .*head_1.*JPEG 40"):
        experiment.denoiser("Filt")
    with pytest.raises(ValueError, match=r"'robust'.*standard, second, Adv, FD, FPD"):
        experiment.classifier("robust")


def test_some_strengths_are_taken_from_the_stored_ones_and_others_attacked(tmp_path):
    """As if all of them had been attacked anew."""
    experiment = SmallExperiment(tmp_path)
    experiment.attacked("test")
    eps, part = (0.01, 0.02, 0.5), experiment.images("test")
    found = experiment.attacked("test", eps=eps)
    given = experiment.victim, part.images, part.labels, eps
    expected = ratios(*given, steps=experiment.study.steps)
    assert found.eps == (0.0, *eps) and torch.equal(found.ratios, expected)
    stored = [json.loads(path.read_text()) for path in tmp_path.glob("attacked/*/artifact.json")]
    strengths = {tuple(record["specification"]["eps"]) for record in stored}
    assert strengths == {experiment.study.evaluated_eps[1:], (0.01,)}


def test_studies_of_other_sizes_share_the_attacks_on_the_same_images(tmp_path):
    experiment = Experiment(Study.named("photographs", "smoke", test_images=130), Store(tmp_path))
    larger = experiment.changed(test_images=192)
    small, large = (each.attacked("test").ratios for each in (experiment, larger))
    assert torch.equal(small, large[:, :130])
    assert len([*tmp_path.glob("attacked/*")]) == 3 + 1  # the last block of the smaller one has two
