"""The artefacts of a study: their specifications name what they are made from, and trainings see what they should."""

import dataclasses
import functools
import shutil

import pytest
import torch

from nbsupport.denoisers.models import Additive, Filtering, MultiHead, PAFilter, YNet
from nbsupport.experiments import artifacts as module
from nbsupport.experiments import classifier_artifacts as classifier_artefacts
from nbsupport.experiments.artifacts import CONSTANT, Artefacts
from nbsupport.experiments.fingerprints import made_from
from nbsupport.experiments.methods import COMBINATIONS, LITERAL, RECIPES, TABLES
from nbsupport.experiments.store import Store
from nbsupport.study import STRONG_EPS, Study
from nbsupport.training import classifiers as classifier_training
from nbsupport.training import denoisers as denoiser_training
from nbsupport.training.classifiers import KINDS
from nbsupport.training.losses import fusion_loss, image_loss, semantic_loss

METHODS = sorted({method for methods in TABLES.values() for method in methods} | {"PA-Filt(L_adv)"})
FUSED = {"PA-Filt(L_img)", LITERAL, "PA-Filt(L_adv)"}
BANDS = {1: (1e-4, 3e-4, 5e-4), 2: (1e-3, 3e-3, 5e-3), 3: (1e-2, 3e-2, 5e-2), 4: (1e-1, 3e-1, 5e-1)}


def of(**changes):
    return Artefacts(dataclasses.replace(Study.named("digits", "smoke"), **changes))


@pytest.fixture(autouse=True, scope="module")
def _data_once():
    """Images are read once and not again for every specification."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier_artefacts, "load", functools.cache(classifier_artefacts.load))
        yield


@pytest.fixture
def untrained(artefacts, tmp_path):
    """The artefacts with classifier and attacked images, but no denoiser yet."""
    artefacts.attacked("train")
    for kind in ("classifier", "attacked"):
        shutil.copytree(artefacts.store.home / kind, tmp_path / "store" / kind)
    return Artefacts(artefacts.study, Store(tmp_path / "store"))


# -- specifications --------------------------------------------------------------------------

OTHER = dict(classifier_epochs=3, image_size=20, classifier="resnet18", seed=1)
ATTACK = dict(steps=5, train_images=49, eps=(0.0, 0.1, 0.3, 0.5))
TRAINING = dict(width=5, kernel_size=5, epochs=2, batch_size=47, learning_rate=1e-3)


@pytest.mark.parametrize("change", OTHER.items(), ids=str)
def test_a_classifier_changes_with(change):
    assert of(**dict([change])).classifier_specification() != of().classifier_specification()


@pytest.mark.parametrize(
    "change", (ATTACK | TRAINING | dict(test_images=25, fusion_epochs=2)).items(), ids=str
)
def test_a_classifier_does_not_change_with(change):
    assert of(**dict([change])).classifier_specification() == of().classifier_specification()


@pytest.mark.parametrize("change", (OTHER | ATTACK).items(), ids=str)
def test_attacked_images_change_with(change):
    assert of(**dict([change])).attacked_specification("train") != of().attacked_specification(
        "train"
    )


@pytest.mark.parametrize(
    "change", (TRAINING | dict(test_images=25, fusion_epochs=2)).items(), ids=str
)
def test_attacked_images_do_not_change_with(change):
    assert of(**dict([change])).attacked_specification("train") == of().attacked_specification(
        "train"
    )


def test_attacked_test_images_change_with_their_number():
    assert of(test_images=25).attacked_specification("test") != of().attacked_specification("test")


def changed(**changes):
    """The denoisers that a change of the study changes."""
    return {
        name
        for name in RECIPES
        if of(**changes).denoiser_specification(name) != of().denoiser_specification(name)
    }


@pytest.mark.parametrize("change", (OTHER | ATTACK | TRAINING).items(), ids=str)
def test_every_denoiser_changes_with(change):
    assert changed(**dict([change])) == set(RECIPES)


@pytest.mark.parametrize("change", dict(test_images=25, scale="quick").items(), ids=str)
def test_no_denoiser_changes_with(change):
    assert changed(**dict([change])) == set()


@pytest.mark.parametrize(
    "change", dict(fusion="balanced", fusion_learning_rate=1e-4).items(), ids=str
)
def test_only_our_fusion_changes_with(change):
    assert changed(**dict([change])) == FUSED - {LITERAL}


def test_every_fusion_changes_with_its_epochs():
    assert changed(fusion_epochs=2) == FUSED


AGAINST = dict(adversarial_eps=0.2, adversarial_steps=3, adversarial_rel_step=0.1)


@pytest.mark.parametrize("change", (AGAINST | dict(knowing_epochs=2)).items(), ids=str)
def test_only_who_learns_against_attacks_on_itself_changes_with(change):
    assert changed(**dict([change])) == {"PA-Filt(L_adv)"}


@pytest.mark.parametrize("change", (AGAINST | dict(adversarial_epochs=2)).items(), ids=str)
@pytest.mark.parametrize("name", ["standard", "second", "Adv", "FD", "FPD"])
def test_only_robust_classifiers_change_with(name, change):
    other = of(**dict([change])).classifier_specification(name) != of().classifier_specification(
        name
    )
    assert other == (name not in ("standard", "second"))


@pytest.mark.parametrize(
    "change", (AGAINST | dict(adversarial_epochs=2, knowing_epochs=2)).items(), ids=str
)
def test_no_attacked_images_change_with(change):
    assert of(**dict([change])).attacked_specification("test") == of().attacked_specification(
        "test"
    )


def test_a_specification_holds_those_of_all_it_is_made_from():
    fused = of().denoiser_specification("PA-Filt(L_img)")
    assert fused["base"] == of().denoiser_specification("Y-Net")
    assert fused["attacked"] == of().attacked_specification("train")
    assert fused["attacked"]["classifier"] == of().classifier_specification()
    assert fused["attacked"]["classifier"]["data"]["data"] == "digits"


def test_no_two_artefacts_share_a_folder():
    all_of = [*(of().classifier_specification(name) for name in KINDS)]
    all_of += [
        of().attacked_specification("test", classifier=name)
        for name in ("second", "Adv", "FD", "FPD")
    ]
    all_of += [
        of().attacked_specification("test", 5),
        of().attacked_specification("test", None, (0.1,)),
    ]
    all_of += [*(of().attacked_specification(split) for split in ("train", "test"))]
    all_of += [of().denoiser_specification(name) for name in RECIPES]
    assert len({Store("home").folder(each) for each in all_of}) == len(all_of)


# -- made once -------------------------------------------------------------------------------


def test_asking_twice_gives_the_same_object(artefacts):
    assert artefacts.classifier() is artefacts.classifier()
    assert artefacts.attacked("train") is artefacts.attacked("train")
    assert artefacts.denoiser("Filt(L_img)") is artefacts.denoiser("Filt(L_img)")


def test_views_share_the_weights_of_their_whole(artefacts):
    assert (
        artefacts.denoiser("head_1").whole
        is artefacts.denoiser("head_4").whole
        is artefacts.trained("Multi-head-Filt(L_img)")[0]
    )


@pytest.fixture
def second_session(artefacts, monkeypatch):
    """Another session over the same store, which may make nothing, once the first has made everything."""
    for name in RECIPES:
        artefacts.trained(name)
    for split in ("train", "test"):
        artefacts.attacked(split)
    for name in KINDS:
        artefacts.classifier(name)

    def make(*arguments, **options):
        raise AssertionError("made again")

    monkeypatch.setattr(classifier_training, "fit", make)
    monkeypatch.setattr(denoiser_training, "fit", make)
    monkeypatch.setattr(module, "ratios", make)
    return Artefacts(artefacts.study, Store(artefacts.store.home))


@pytest.mark.parametrize("name", RECIPES)
def test_a_second_session_loads_the_same_denoiser(artefacts, second_session, name):
    (first, report), (second, again) = artefacts.trained(name), second_session.trained(name)
    assert first is not second
    torch.testing.assert_close(dict(second.state_dict()), dict(first.state_dict()), rtol=0, atol=0)
    assert again == report


@pytest.mark.parametrize("name", KINDS)
def test_a_second_session_loads_the_same_classifier(artefacts, second_session, name):
    first, second = (
        artefacts.classifier(name).state_dict(),
        second_session.classifier(name).state_dict(),
    )
    torch.testing.assert_close(dict(second), dict(first), rtol=0, atol=0)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_second_session_loads_the_same_attacked_images(artefacts, second_session, split):
    assert torch.equal(second_session.attacked(split).ratios, artefacts.attacked(split).ratios)


def test_training_twice_gives_equal_weights(artefacts, untrained):
    torch.manual_seed(7)  # of the session, which does not matter
    first, second = artefacts.denoiser("Filt(L_img)"), untrained.denoiser("Filt(L_img)")
    torch.testing.assert_close(dict(second.state_dict()), dict(first.state_dict()), rtol=0, atol=0)


@pytest.mark.parametrize("name", [*KINDS, *RECIPES])
def test_what_is_handed_out_is_frozen(artefacts, name):
    made = artefacts.classifier(name) if name in KINDS else artefacts.trained(name)[0]
    assert not any(each.training for each in made.modules())
    assert not any(parameter.requires_grad for parameter in made.parameters())


# -- attacked images -------------------------------------------------------------------------


@pytest.fixture
def asked(untrained, monkeypatch):
    """What `ratios` was asked for, in an empty store of attacked images; it answers with ε itself."""
    shutil.rmtree(untrained.store.home / "attacked")
    calls = []

    def spy(classifier, images, labels, eps, **options):
        calls.append((images, labels, eps, options))
        return torch.tensor(eps).view(-1, 1, 1, 1, 1).expand(-1, *images.shape).half()

    monkeypatch.setattr(module, "ratios", spy)
    return calls


def test_every_strength_has_its_row(untrained, asked):
    attacked = untrained.attacked("test")
    assert attacked.ratios.dtype == torch.float16
    assert torch.equal(attacked.ratios[:, 0, 0, 0, 0], torch.tensor(untrained.study.eps[1:]).half())


def test_the_attack_is_that_of_the_study(untrained, asked):
    untrained.attacked("test")
    assert torch.equal(torch.cat([images for images, *_ in asked]), untrained.images("test").images)
    assert torch.equal(
        torch.cat([labels for _, labels, *_ in asked]), untrained.images("test").labels
    )
    for images, _, eps, options in asked:
        assert len(images) * len(eps) <= 64  # on a CPU, so that the progress bar moves
        assert eps == untrained.study.eps[1:]
        assert options == {
            "steps": untrained.study.steps,
            "seed": untrained.study.seed,
            "loss": "cross-entropy",
        }


def test_only_a_missing_strength_is_attacked_again(untrained, asked):
    untrained.attacked("test")
    specification = made_from(untrained.attacked_specification("test"), untrained.classifier())
    folder = untrained.store.folder(specification)
    shutil.rmtree(folder / "array.zarr/c/3")
    asked.clear()
    Artefacts(untrained.study, untrained.store).attacked("test")
    assert [eps for _, _, eps, _ in asked] == [(untrained.study.eps[4],)]


def test_nothing_made_from_other_weights_is_used(artefacts, tmp_path, monkeypatch):
    """A classifier trained again elsewhere ends at other weights: its attacks and denoisers are made anew."""
    study, home = artefacts.study, tmp_path / "home"
    artefacts.denoiser("PA-Filt(L_img)")
    shutil.copytree(artefacts.store.home, home)
    other, calls = Artefacts(study, Store(home)), []
    folder = other.store.folder(other.classifier_specification())
    (folder / "artefact.json").unlink()
    plain = classifier_training.train

    def elsewhere(name, classifier, *arguments):
        history = plain(name, classifier, *arguments)
        next(classifier.parameters()).data.mul_(1 + 1e-6)
        return history

    monkeypatch.setattr(classifier_artefacts, "train", elsewhere)
    spied = denoiser_training.train
    monkeypatch.setattr(
        denoiser_training, "train", lambda name, *rest: calls.append(name) or spied(name, *rest)
    )
    other.denoiser("PA-Filt(L_img)")
    assert calls == ["Y-Net", "PA-Filt(L_img)"]
    assert len(list((home / "attacked").glob("pgd4-train-*"))) == 2
    again = Artefacts(study, Store(home))
    again.denoiser("PA-Filt(L_img)")
    assert calls == ["Y-Net", "PA-Filt(L_img)"]


# -- what a training sees --------------------------------------------------------------------


@pytest.fixture
def seen(untrained, monkeypatch):
    """From a denoiser's name to all that its objective got in training."""

    def train(name):
        calls = []

        def spy(denoiser, classifier, *tensors):
            calls.append(tensors)
            return objective(denoiser, classifier, *tensors)

        objective = RECIPES[name].objective
        monkeypatch.setitem(RECIPES, name, dataclasses.replace(RECIPES[name], objective=spy))
        untrained.trained(name)
        return [torch.cat(parts) for parts in zip(*calls, strict=True)]

    return train


@pytest.mark.parametrize(
    ("name", "strengths"), [("Filt(L_img)", Study.eps[1:]), ("Filt(L_img*)", STRONG_EPS)]
)
def test_every_image_is_seen_equally_often_at_each_strength(untrained, seen, name, strengths):
    _, clean, eps = seen(name)
    pairs = torch.cat([clean.flatten(1), eps[:, None]], dim=1)
    distinct, times = pairs.unique(dim=0, return_counts=True)
    assert torch.equal(distinct[:, -1].unique(), torch.tensor(strengths))
    assert len(distinct) == len(strengths) * len(untrained.images("train").images.unique(dim=0))
    assert set(times.tolist()) == {len(pairs) // (untrained.study.train_images * len(strengths))}
    assert len(pairs) == untrained.study.train_images * len(untrained.study.attacked_eps)


def test_the_attacked_image_belongs_to_its_clean_one_and_its_strength(untrained, seen):
    images, clean, eps = seen("Filt(L_img*)")
    attacked, numbers = untrained.attacked("train"), range(0, len(eps), 17)
    for number in numbers:
        (row,) = (attacked.images == clean[number]).flatten(1).all(dim=1).nonzero()[:, 0]
        strength = min(STRONG_EPS, key=lambda each: abs(each - eps[number]))
        assert torch.equal(images[number], attacked.at(strength)[row])


@pytest.mark.parametrize("name", RECIPES)
def test_a_training_is_what_its_specification_says(untrained, monkeypatch, name):
    calls = []

    def spy(trained, loss, **options):
        calls.append(options)
        return [0.0] * options["epochs"]

    monkeypatch.setattr(denoiser_training, "fit", spy)
    study = dataclasses.replace(untrained.study, epochs=2, fusion_epochs=3, knowing_epochs=4)
    changed = Artefacts(study, untrained.store)
    losses, specification = changed.report(name)["loss"], changed.denoiser_specification(name)
    assert (
        len(losses)
        == specification["epochs"]
        == {"PA-Filt(L_img)": 3, LITERAL: 3, "PA-Filt(L_adv)": 4}.get(name, 2)
    )
    said = ("epochs", "batch_size", "learning_rate", "seed")
    assert [calls[-1][each] for each in said] == [specification[each] for each in said]
    strengths = (
        1 if name == "PA-Filt(L_adv)" else len(study.attacked_eps)
    )  # who is attacked anew sees each image once
    assert calls[-1]["examples"] == study.train_images * strengths


@pytest.mark.parametrize("name", RECIPES)
def test_a_report_has_the_change_at_every_strength(artefacts, name):
    denoiser, attacked = artefacts.denoiser(name), artefacts.attacked("train")
    expected = [
        float((denoiser(attacked.at(eps)) - attacked.at(eps)).abs().mean())
        for eps in artefacts.study.eps
    ]
    assert artefacts.report(name)["change"] == pytest.approx(expected)


@pytest.mark.parametrize("name", sorted(FUSED))
def test_the_report_of_pa_filt_has_mean_and_spread_of_its_weight(artefacts, name):
    denoiser, attacked = artefacts.denoiser(name), artefacts.attacked("train")
    weights = torch.stack([denoiser.parts(attacked.at(eps)).weight for eps in artefacts.study.eps])
    report = artefacts.report(name)
    assert report["weight_mean"] == pytest.approx([float(each.mean()) for each in weights])
    assert report["weight_std"] == pytest.approx(float(weights.std()))


@pytest.mark.parametrize("name", sorted({*RECIPES} - FUSED))
def test_only_the_report_of_pa_filt_has_a_weight(artefacts, name):
    assert artefacts.report(name).keys() == {"loss", "change", "precision", "alive"}


def test_the_report_of_a_view_is_that_of_its_whole(artefacts):
    assert artefacts.report("head_2") == artefacts.report("Multi-head-Filt(L_img)")


WEIGHTED = {name: name for name in sorted(FUSED)} | {"PA-Filt+Adv": "PA-Filt(L_img)"}


@pytest.mark.parametrize("spread", [0.0, CONSTANT / 2, float("nan")])
@pytest.mark.parametrize("method", WEIGHTED)
def test_a_constant_weight_is_a_failure(artefacts, monkeypatch, method, spread):
    spreads = {WEIGHTED[method]: spread}
    monkeypatch.setattr(artefacts, "report", lambda method: {"weight_std": spreads[method]})
    reason = f"{WEIGHTED[method]}: training failed. Its W is the same everywhere"
    assert artefacts.failure(method).startswith(reason)


@pytest.mark.parametrize("method", WEIGHTED)
def test_a_weight_that_varies_is_none(artefacts, monkeypatch, method):
    monkeypatch.setattr(artefacts, "report", lambda method: {"weight_std": CONSTANT})
    assert artefacts.failure(method) is None


@pytest.mark.parametrize("method", sorted({*METHODS} - {*WEIGHTED}))
def test_no_other_method_fails_by_its_weight(artefacts, monkeypatch, method):
    monkeypatch.setattr(artefacts, "report", lambda method: {"weight_std": 0.0})
    assert artefacts.failure(method) is None


# -- recipes ---------------------------------------------------------------------------------


def test_pa_filt_is_made_of_the_trained_y_net(artefacts):
    ynet, fused = artefacts.denoiser("Y-Net"), artefacts.denoiser("PA-Filt(L_img)")
    assert isinstance(ynet, YNet) and isinstance(fused, PAFilter)
    torch.testing.assert_close(
        dict(fused.ynet.state_dict()), dict(ynet.state_dict()), rtol=0, atol=0
    )


def test_pa_filt_that_knows_starts_from_the_trained_pa_filt(artefacts, untrained, monkeypatch):
    monkeypatch.setattr(denoiser_training, "fit", lambda *arguments, **options: [])
    base, denoiser = untrained.denoiser("PA-Filt(L_img)"), untrained.denoiser("PA-Filt(L_adv)")
    torch.testing.assert_close(dict(denoiser.state_dict()), dict(base.state_dict()), rtol=0, atol=0)


def test_and_learns_all_of_it(artefacts):
    base, denoiser = artefacts.denoiser("PA-Filt(L_img)"), artefacts.denoiser("PA-Filt(L_adv)")
    for part in ("ynet", "fusion"):
        before, after = (
            base.get_submodule(part).state_dict(),
            denoiser.get_submodule(part).state_dict(),
        )
        assert not all(torch.equal(after[name], before[name]) for name in after), part


def test_the_fusion_of_pa_filt_learns(artefacts):
    fresh = artefacts._seeded(
        lambda: PAFilter(width=artefacts.study.width, kernel_size=artefacts.study.kernel_size)
    )
    learnt = artefacts.denoiser("PA-Filt(L_img)")
    assert not torch.equal(learnt.fusion[-2].weight, fresh.fusion[-2].weight)


@pytest.fixture
def batch():
    """Attacked and clean images that differ everywhere, four of them."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(4, 3, 16, 16, generator=generator), torch.rand(
        4, 3, 16, 16, generator=generator
    )


def loss(name, denoiser, classifier, batch, eps):
    return RECIPES[name].objective(denoiser, classifier, *batch, torch.tensor(eps))


def taught(parts):
    """The names of the parts that have a gradient."""
    return {
        name
        for name, part in parts
        if any(p.grad is not None and p.grad.any() for p in part.parameters())
    }


@pytest.mark.parametrize(("head", "eps"), [(head, eps) for head in BANDS for eps in BANDS[head]])
def test_a_strength_teaches_the_head_of_its_band(artefacts, batch, head, eps):
    heads = MultiHead(4, 3)
    loss("Multi-head-Filt(L_img)", heads, artefacts.classifier(), batch, [eps] * 4).backward()
    assert taught(enumerate(heads.outputs, 1)) == {head}


def test_each_head_gets_its_own_images(artefacts, batch):
    heads = MultiHead(4, 3)
    for number, output in enumerate(heads.outputs, 1):
        output.bias.data *= number  # head i multiplies the image by i
    expected = sum(
        image_loss((number * image[None]).clamp(0, 1), clean[None])
        for number, image, clean in zip((4, 1, 3, 4), *batch, strict=True)
    )
    value = loss(
        "Multi-head-Filt(L_img)", heads, artefacts.classifier(), batch, [0.5, 1e-4, 0.01, 0.1]
    )
    torch.testing.assert_close(value, expected / 4)


@pytest.mark.parametrize(
    ("eps", "branches"),
    [((1e-4, 1e-3, 0.01, 0.05), ["sl"]), ((1e-4, 0.1, 0.01, 0.05), ["m", "sl"])],
    ids=str,
)
def test_only_strong_attacks_teach_the_branch_for_middle_strengths(artefacts, batch, eps, branches):
    ynet = YNet(4, 3)
    loss("Y-Net", ynet, artefacts.classifier(), batch, eps).backward()
    assert taught(ynet.outputs.items()) == set(branches)


def test_the_branches_get_their_own_images(artefacts, batch):
    ynet = YNet(4, 3)
    ynet.outputs["m"].bias.data *= 2
    (images, clean), eps = batch, [0.1, 0.05, 0.5, 1e-4]
    expected = image_loss(images, clean) + image_loss(
        (2 * images[[0, 2]]).clamp(0, 1), clean[[0, 2]]
    )
    torch.testing.assert_close(loss("Y-Net", ynet, artefacts.classifier(), batch, eps), expected)


@pytest.mark.parametrize("name", ["Add(L_img)", "Filt(L_img)", "Filt(L_img*)"])
def test_image_losses_compare_images(artefacts, batch, name):
    denoiser = RECIPES[name].build(width=4, kernel_size=3)  # starts as the identity
    torch.testing.assert_close(
        loss(name, denoiser, artefacts.classifier(), batch, [0.1] * 4), image_loss(*batch)
    )


@pytest.mark.parametrize("name", ["Add(L_sem)", "Filt(L_sem)"])
def test_semantic_losses_compare_logits(artefacts, batch, name):
    denoiser, classifier = RECIPES[name].build(width=4, kernel_size=3), artefacts.classifier()
    torch.testing.assert_close(
        loss(name, denoiser, classifier, batch, [0.1] * 4), semantic_loss(classifier, *batch)
    )


def test_the_fusion_compares_classes(artefacts, batch):
    classifier, denoiser = (
        artefacts.classifier(),
        PAFilter(None, 4, 3),
    )  # its two parts start as the identity
    torch.testing.assert_close(
        loss("PA-Filt(L_img)", denoiser, classifier, batch, [0.1] * 4),
        fusion_loss(classifier, *batch),
    )


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_builds_what_its_name_says(artefacts, name):
    kinds = {"Add": Additive, "Filt": Filtering, "Multi": MultiHead, "Y": YNet, "PA": PAFilter}
    assert type(artefacts.denoiser(name)) is kinds[name.partition("-")[0].partition("(")[0]]


# -- methods ---------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [0.0, 1e-4, 0.5])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_the_tables_makes_images(artefacts, method, eps):
    images = artefacts.attacked("test").at(eps)
    with torch.no_grad():
        restored = artefacts.denoiser(method)(images)
    assert restored.shape == images.shape
    assert restored.min() >= 0 and restored.max() <= 1  # False for NaN, too


def test_attacked_leaves_images_as_they_are(artefacts):
    images = artefacts.attacked("test").at(0.1)
    assert torch.equal(artefacts.denoiser("attacked")(images), images)


@pytest.mark.parametrize(
    ("method", "name", "output"),
    [
        *((f"head_{head}", "Multi-head-Filt(L_img)", head) for head in BANDS),
        ("PA-Filt(L_img)_sl", "Y-Net", "sl"),
        ("PA-Filt(L_img)_m", "Y-Net", "m"),
    ],
)
def test_a_view_is_one_output_of_its_whole(artefacts, method, name, output):
    images = artefacts.attacked("test").at(0.1)
    expected = artefacts.trained(name)[0].kernels(images, output)
    assert torch.equal(artefacts.denoiser(method).kernels(images), expected)


def test_an_unknown_method_is_refused_with_the_known_ones(artefacts):
    with pytest.raises(
        ValueError,
        match=r"no method named 'Filt'; there are: attacked, Add\(L_img\), .*head_1.*JPEG 75",
    ):
        artefacts.denoiser("Filt")


@pytest.mark.parametrize("method", COMBINATIONS)
def test_a_combination_is_its_denoiser_before_its_classifier(artefacts, method):
    denoiser, _, classifier = method.rpartition("+")
    name = f"{denoiser}(L_img)" if denoiser else "attacked"
    made, expected = artefacts.denoiser(method), artefacts.denoiser(name)
    assert made is expected if denoiser else isinstance(made, torch.nn.Identity)
    specification = artefacts.specification(method)
    assert specification["classifier"] == artefacts.classifier_specification(classifier)
    assert specification["trained"] == artefacts.specification(name)["trained"]


@pytest.mark.parametrize("method", ["attacked", "Filt(L_img)", "8-bit", "PA-Filt(L_adv)"])
def test_what_stands_before_the_standard_classifier_names_no_other(artefacts, method):
    assert "classifier" not in artefacts.specification(method)


def test_a_target_of_the_attack_is_attacked(untrained, asked_of):
    untrained.attacked("test", 3, (0.1, 0.2), "FPD")
    ((network, eps, options),) = asked_of
    assert isinstance(network, classifier_training.Unsquashed)
    assert network.classifier is untrained.classifier("FPD")
    assert (eps, options["steps"], options["loss"]) == ((0.1, 0.2), 3, "margin")
    assert untrained.attacked_specification("own", classifier="FPD")["attack"]["loss"] == "margin"
    assert "loss" not in untrained.attacked_specification("own", classifier="FD")["attack"]


@pytest.fixture
def asked_of(monkeypatch):
    """Which networks `ratios` was to attack, how."""
    calls = []

    def spy(classifier, images, labels, eps, **options):
        calls.append((classifier, eps, options))
        return torch.zeros(len(eps), *images.shape).half()

    monkeypatch.setattr(module, "ratios", spy)
    return calls


@pytest.mark.parametrize("name", ["robust", "adv", ""])
def test_an_unknown_classifier_is_refused(artefacts, name):
    with pytest.raises(
        ValueError, match=f"no classifier named '{name}'; there are: standard, second, Adv, FD, FPD"
    ):
        artefacts.classifier(name)
