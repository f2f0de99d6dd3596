"""Measurements per image against independent libraries and loops, and the tidy rows made of them."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import skimage.metrics
import torch
from torch import nn

import nbsupport.experiments.artifacts
import nbsupport.experiments.evaluation
from nbsupport.attacks.pgd import AttackedSet, pgd
from nbsupport.classifiers.models import Classifier, predicted_classes
from nbsupport.denoisers.baselines import BASELINES, Baseline
from nbsupport.denoisers.models import (
    Additive,
    Denoiser,
    Filtering,
    MultiHead,
    PAFilter,
    View,
    YNet,
)
from nbsupport.experiments.artifacts import Artefacts
from nbsupport.experiments.evaluation import Evaluation, envelope
from nbsupport.experiments.measurement import measure, quality
from nbsupport.experiments.methods import LITERAL, TABLES
from nbsupport.experiments.store import Store
from nbsupport.results.tables import PAPERS, caption, published
from nbsupport.study import Study

EPS, NUMBER, SIZE, CLASSES = (0.0, 0.01, 0.3), 4, (17, 12), 5
FUSED, REASON = "PA-Filt(L_img)", "its W is the same everywhere"
METRICS = dict.fromkeys(TABLES, ("accuracy",)) | {2: ("psnr", "ssim")}
ROBUST = ("Adv", "FPD", "FD")

every_table = pytest.mark.parametrize("number", TABLES)


def rand(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def disturbed(kind):
    """A denoiser away from the identity."""
    torch.manual_seed(0)
    denoiser = kind(width=2, kernel_size=3).requires_grad_(False).eval()
    for parameter in denoiser.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    return denoiser


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE[0] * SIZE[1], CLASSES))).eval()


@pytest.fixture(scope="module")
def attacked():
    ratios = 2 * rand(len(EPS) - 1, NUMBER, 3, *SIZE, seed=1) - 1
    return AttackedSet(rand(NUMBER, 3, *SIZE), torch.arange(NUMBER), ratios.half(), EPS)


@pytest.fixture(scope="module")
def filtering():
    filtering = disturbed(Filtering)
    filtering.output.bias[
        3
    ] = -2  # a negative entry larger than all others, which does not count as uncertainty
    return filtering


@pytest.fixture(scope="module")
def measured(classifier, attacked, filtering):
    return measure(classifier, filtering, attacked)


def each(attacked):
    """Every (strength, image) with the clean and the attacked image, alone in their batches."""
    for row, image in np.ndindex(len(EPS), NUMBER):
        yield (
            (row, image),
            attacked.images[image : image + 1],
            attacked.at(EPS[row])[image : image + 1],
        )


def pixels(image):
    return image[0].double().numpy()


# -- one denoiser before one classifier ----------------------------------------------------------


def test_one_number_per_strength_and_image(measured):
    assert set(measured) == {
        "predictions",
        "psnr",
        "ssim",
        "change",
        "uncertainty",
        "kernel_distance",
    }
    assert all(values.shape == (len(EPS), NUMBER) for values in measured.values())


def test_predictions_are_those_of_single_images(measured, attacked, classifier, filtering):
    assert len(measured["predictions"].unique()) > 1
    for place, _, hat in each(attacked):
        assert measured["predictions"][place] == classifier(filtering(hat)).argmax()


def test_psnr_is_that_of_scikit_image(measured, attacked, filtering):
    for place, clean, hat in each(attacked):
        expected = skimage.metrics.peak_signal_noise_ratio(
            pixels(clean), pixels(filtering(hat)), data_range=1
        )
        assert float(measured["psnr"][place]) == pytest.approx(expected, abs=1e-4)


def test_ssim_is_that_of_scikit_image(measured, attacked, filtering):
    # torchmetrics mirrors 5 pixels beyond the border and takes the mean over all pixels; scikit-image leaves out
    # the 5 at the border, whose windows do not fit in. Of images mirrored beforehand it leaves out what was added.
    options = dict(
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=0, data_range=1
    )
    for place, clean, hat in each(attacked):
        two = (
            np.pad(pixels(image), ((0, 0), (5, 5), (5, 5)), mode="reflect")
            for image in (clean, filtering(hat))
        )
        expected = skimage.metrics.structural_similarity(*two, **options)
        assert float(measured["ssim"][place]) == pytest.approx(expected, abs=1e-5)


def test_change_is_the_mean_distance_from_the_attacked_image(measured, attacked, filtering):
    for place, _, hat in each(attacked):
        expected = np.abs(pixels(filtering(hat)) - pixels(hat)).mean()
        assert float(measured["change"][place]) == pytest.approx(expected, rel=1e-5)


def test_an_image_left_as_it_is_has_infinite_psnr_ssim_1_and_no_change(classifier, attacked):
    untouched = measure(classifier, nn.Identity(), attacked)
    assert torch.isposinf(untouched["psnr"][0]).all()
    assert torch.isfinite(untouched["psnr"][1:]).all()
    torch.testing.assert_close(untouched["ssim"][0], torch.ones(NUMBER))
    assert not untouched["change"].any()


def test_uncertainty_is_the_mean_over_pixels_of_the_largest_entry(measured, attacked, filtering):
    for place, _, hat in each(attacked):
        kernels = pixels(filtering.kernels(hat))
        expected = np.mean([kernels[:, y, x].max() for y, x in np.ndindex(SIZE)])
        assert float(measured["uncertainty"][place]) == pytest.approx(expected, rel=1e-5)


def test_kernel_distance_is_the_mean_over_pixels_and_channels_of_the_absolute_differences(
    measured, attacked, filtering
):
    identity = np.zeros((3, 3))
    identity[1, 1] = 1
    for place, _, hat in each(attacked):
        kernels = pixels(filtering.kernels(hat)).reshape(3, 3, 3, *SIZE)
        expected = np.mean(
            [np.abs(kernels[c, :, :, y, x] - identity).sum() for c, y, x in np.ndindex(3, *SIZE)]
        )
        assert float(measured["kernel_distance"][place]) == pytest.approx(expected, rel=1e-5)


def test_weight_is_the_mean_of_w(classifier, attacked):
    pa_filter = disturbed(PAFilter)
    weights = measure(classifier, pa_filter, attacked)["weight"]
    assert weights.unique().numel() > 1
    for place, _, hat in each(attacked):
        assert float(weights[place]) == pytest.approx(
            pixels(pa_filter.parts(hat).weight).mean(), rel=1e-5
        )


@pytest.mark.parametrize(("kind", "output"), [(MultiHead, 2), (YNet, "m")])
def test_a_view_is_measured_by_its_own_kernels(kind, output, classifier, attacked):
    view = View(disturbed(kind), output)
    measured = measure(classifier, view, attacked)
    for place, _, hat in each(attacked):
        expected = pixels(view.whole.kernels(hat, output)).max(axis=0).mean()
        assert float(measured["uncertainty"][place]) == pytest.approx(expected, rel=1e-5)


def test_an_additive_denoiser_has_nothing_extra(classifier, attacked):
    assert set(measure(classifier, disturbed(Additive), attacked)) == {
        "predictions",
        "psnr",
        "ssim",
        "change",
    }


def test_predictions_in_words(classifier, attacked):
    words = ("ant", "bee", "cat", "dog", "eel")
    expected = [words[int(classifier(image[None]).argmax())] for image in attacked.images]
    assert predicted_classes(classifier, attacked.images, words) == expected


# -- the envelope --------------------------------------------------------------------------------


@pytest.mark.parametrize("boolean", [True, False])
def test_the_envelope_is_the_worst_of_this_and_all_weaker_attacks(boolean):
    values = np.random.default_rng(0).random((6, 20))
    per_image = values < 0.8 if boolean else values
    worst = envelope(per_image)
    assert worst.dtype == per_image.dtype
    for row, image in np.ndindex(per_image.shape):
        assert worst[row, image] == min(per_image[weaker, image] for weaker in range(row + 1))


def test_8_bit_images_are_not_changed_by_rounding_to_8_bit_however_they_were_scaled():
    pixels = torch.randint(
        256, (2, 3, 21, 27), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    for scaled in (pixels.float() / 255, pixels.float() * (1 / 255)):
        assert torch.isposinf(quality(Baseline("8-bit")(scaled), scaled)[0]).all()
        assert torch.isfinite(quality(scaled + 1e-5, scaled)[0]).all()


def test_the_envelope_knows_infinity():
    assert envelope(np.array([[np.inf], [3.0], [np.inf]])).tolist() == [[np.inf], [3.0], [3.0]]


# -- the smoke study's tables --------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluation(artefacts):
    return Evaluation(artefacts)


@pytest.fixture
def counted(evaluation, monkeypatch):
    """Whether or not the smallest study's fusion and classifiers learned anything, they count."""
    monkeypatch.setattr(evaluation, "failure", lambda method: None)


def one_n(evaluation, number):
    """The rows of a table but for those over n."""
    rows = evaluation.table(number)
    return rows[rows["steps"] == evaluation.study.steps]


@every_table
def test_the_columns_of_a_table(number, evaluation):
    columns = [
        "table",
        "study",
        "classifier",
        "method",
        "attack",
        "steps",
        "eps",
        "metric",
        "value",
        "n",
        "seed",
    ]
    assert list(evaluation.table(number)) == columns


@every_table
def test_every_row_names_its_study(number, evaluation):
    rows, study = one_n(evaluation, number), evaluation.study
    same = {
        "table": number,
        "study": "digits",
        "classifier": study.classifier,
        "steps": study.steps,
    }
    same |= {"n": study.test_images, "seed": study.seed}
    assert all((rows[column] == value).all() for column, value in same.items())


@every_table
def test_every_method_has_13_strengths_with_and_without_the_envelope(number, evaluation, counted):
    rows = one_n(evaluation, number)
    assert tuple(dict.fromkeys(rows["method"])) == TABLES[number]
    series = rows.groupby(["method", "metric", "attack"])["eps"].agg(tuple)
    assert set(series.index) == {
        (method, metric, attack)
        for method in TABLES[number]
        for metric in METRICS[number]
        for attack in ("pgd", "pgd-envelope", *["pgd-on-itself"] * (method in ROBUST))
    }
    assert set(series) == {evaluation.study.eps}


def worst_so_far(per_image):
    return [[min(column[: row + 1]) for column in per_image.T] for row in range(len(per_image))]


@every_table
def test_values_are_means_over_images(number, evaluation, counted):
    rows = dict(list(one_n(evaluation, number).groupby(["method", "metric", "attack"])["value"]))
    for method in TABLES[number]:
        measurement = evaluation.measurement(method)
        for metric in METRICS[number]:
            right = measurement.predictions == evaluation.artefacts.images("test").labels
            per_image = (
                (right if metric == "accuracy" else getattr(measurement, metric)).double().numpy()
            )
            expected = per_image.mean(axis=1), np.mean(worst_so_far(per_image), axis=1)
            for attack, values in zip(("pgd", "pgd-envelope"), expected, strict=True):
                np.testing.assert_allclose(rows[method, metric, attack], values, rtol=1e-6)


STACKS = dict.fromkeys(
    ["attacked", "Filt(L_img)", "head_2", "PA-Filt(L_img)_m", "median 3x3"], "standard"
)
STACKS |= {"FD": "FD", "Add+Adv": "Adv", "Filt+FPD": "FPD", "PA-Filt+Adv": "Adv"}


@pytest.mark.parametrize(("method", "classifier"), STACKS.items())
def test_accuracy_is_that_of_the_stored_images_through_denoiser_and_classifier(
    method, classifier, evaluation
):
    artefacts, attacked = evaluation.artefacts, evaluation.artefacts.attacked("test")
    for row, eps in enumerate(attacked.eps):
        classes = artefacts.classifier(classifier)(
            artefacts.denoiser(method)(attacked.at(eps))
        ).argmax(dim=1)
        assert torch.equal(classes, evaluation.measurement(method).predictions[row])


@every_table
def test_the_envelope_is_never_above_the_plain_row(number, evaluation):
    rows = one_n(evaluation, number).pivot(
        index=["method", "metric", "eps"], columns="attack", values="value"
    )
    assert (rows["pgd-envelope"] <= rows["pgd"]).all()


@every_table
def test_methods_are_named_as_in_the_paper(number):
    numbers = published(*PAPERS[number])
    assert set(numbers.loc[numbers["table"] == number, "method"]) <= set(TABLES[number])
    ours = {*(BASELINES if number < 5 else ()), *((LITERAL,) if number == 4 else ())}
    assert set(TABLES[number]) - set(numbers["method"]) == ours


@pytest.mark.parametrize("number", [0, 8, -1])
def test_another_table_is_refused(number, evaluation):
    with pytest.raises(
        ValueError, match=rf"expected one of the tables 1, 2, 3, 4, 5, 6, 7, got {number}"
    ):
        evaluation.table(number)


def test_methods_may_be_chosen(evaluation):
    assert set(evaluation.table(1, "attacked", "8-bit")["method"]) == {"attacked", "8-bit"}


def test_another_method_is_refused(evaluation):
    with pytest.raises(
        ValueError, match=r"no method named 'Filt'; there are: attacked, Add\(L_img\)"
    ):
        evaluation.measurement("Filt")


# -- a training that failed ----------------------------------------------------------------------


@pytest.fixture
def failed(artefacts, monkeypatch):
    monkeypatch.setattr(artefacts, "failure", {FUSED: REASON}.get)


def test_a_failed_training_leaves_no_row(evaluation, failed):
    assert set(evaluation.table(4)["method"]) == set(TABLES[4]) - {FUSED}


def test_and_its_reason_is_told(evaluation, failed):
    assert evaluation.failures(TABLES[4]) == [REASON]
    assert evaluation.failures(TABLES[1]) == []


# -- a classifier attacked itself ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["standard", *ROBUST])
def test_own_robustness_is_that_of_images_which_attack_this_classifier(name, evaluation):
    artefacts, study = evaluation.artefacts, evaluation.study
    test, classifier = artefacts.images("test"), artefacts.classifier(name)
    victim = classifier.unsquashed if name == "FPD" else classifier
    own = evaluation.own(name)
    assert own.shape == (len(study.eps), study.test_images)
    for row in (0, 6, 12):
        if row:
            network = nn.Sequential(Victim(victim)).eval()
            attacked = pgd(
                network,
                test.images,
                test.labels,
                study.eps[row],
                steps=study.steps,
                seed=study.seed,
            )
        else:
            attacked = test.images
        expected = (classifier(attacked).argmax(dim=1) == test.labels).numpy()
        assert (own[row] != expected).sum() <= 1  # images are kept in half precision


class Victim(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, images):
        return self.function(images)


def test_the_row_of_own_robustness_is_its_envelope(evaluation, counted):
    for number, name in {5: "Adv", 6: "FPD", 7: "FD"}.items():
        rows = evaluation.table(number)
        own = rows[rows["attack"] == "pgd-on-itself"]
        assert set(own["method"]) == {name}
        np.testing.assert_allclose(
            own["value"], np.mean(worst_so_far(evaluation.own(name)), axis=1)
        )


def test_a_robust_classifier_may_be_attacked_on_fewer_images_than_all_others(
    evaluation, monkeypatch
):
    study, store = evaluation.study, evaluation.artefacts.store
    fewer = Evaluation(Artefacts(replace(study, own_images=5), store))
    assert (fewer.own("standard") == evaluation.own("standard")[:, :5]).all()
    assert (
        fewer.own("Adv") != evaluation.own("Adv")[:, :5]
    ).sum() <= 1  # beside each other they are rounded otherwise
    monkeypatch.setattr(
        fewer, "failure", lambda method: None
    )  # whatever the smallest study's classifier learned
    rows = fewer.table(5, "Adv")
    assert set(rows[rows["attack"] == "pgd-on-itself"]["n"]) == {5}
    assert set(rows[rows["attack"] != "pgd-on-itself"]["n"]) == {study.test_images}
    assert "this network itself, on the first 5 of them." in caption(rows, fewer.study)
    assert "of them" not in caption(rows, study)


class Crafted(Evaluation):
    """From (method, n, target) to which images are right, (strengths, images); asked for all else, it fails."""

    def __init__(self, given, **changes):
        strengths = {
            "eps": (0.0, 0.1, 0.5),
            "adversarial_eps": 0.3,
        }  # of which the middle one was learned against
        self.given, self.study = given, Study.named("digits", "smoke", **strengths | changes)
        self.artefacts = SimpleNamespace(failure=lambda method: None)

    def measurement(self, method, steps=None, eps=None, target="standard"):
        correct = np.asarray(
            self.given[method, steps, target] if steps is None else self.given[method, steps, eps]
        )
        return SimpleNamespace(correct=lambda: correct.astype(bool))


def shares(*counts, of=10):
    return [np.arange(of) < count for count in counts]


OWN = {
    "standard": ("attacked", (10, 4, 0)),
    "more robust": ("Adv", (6, 5, 0)),
    "as robust": ("Adv", (10, 4, 0)),
    "less robust": ("Adv", (10, 3, 0)),
    "better on clean images only": ("Adv", (10, 2, 0)),
    "better above the strength it learned against only": ("Adv", (10, 2, 2)),
}


def own_of(case):
    """Curves over three strengths, 0 being the clean one."""
    standard, adv = (shares(*OWN[name][1]) for name in ("standard", case))
    return Crafted({("attacked", None, "standard"): standard, ("Adv", None, "Adv"): adv})


@pytest.mark.parametrize("method", ["Adv", "Filt+Adv", "PA-Filt+Adv"])
@pytest.mark.parametrize("case", [*OWN][1:])
def test_a_classifier_without_robustness_of_its_own_has_no_rows(case, method):
    failure = own_of(case).failure(method)
    if case == "more robust":
        assert failure is None
    else:
        said = "Adv: training failed. This classifier is no more robust than the standard one"
        assert failure.startswith(said)
        left = OWN[case][1][1] / 10
        assert f"(accuracy {left:.3f} against 0.400 at ε = 0.1), so it has no rows." in failure


@pytest.mark.parametrize(
    ("learned", "eps"), [(0.05, 0.1), (0.1, 0.1), (0.49, 0.1), (0.5, 0.5), (1.0, 0.5)]
)
def test_its_robustness_is_that_at_the_largest_strength_it_learned_against(learned, eps):
    given = {
        ("attacked", None, "standard"): shares(10, 4, 3),
        ("Adv", None, "Adv"): shares(6, 3, 2),
    }
    assert f"at ε = {eps})" in Crafted(given, adversarial_eps=learned).failure("Adv")


def test_its_robustness_is_that_of_the_envelope():
    # after a clumsy attack at the middle strength, 5 of 10 are right again: nobody is as robust as that
    given = {
        ("attacked", None, "standard"): shares(10, 1, 1),
        ("Adv", None, "Adv"): shares(1, 0, 5),
    }
    assert Crafted(given).failure("Adv") is not None


@pytest.mark.parametrize("method", ["attacked", "Filt(L_img)", "8-bit", "PA-Filt(L_adv)"])
def test_the_standard_classifier_need_not_be_robust(method):
    assert Crafted({}).failure(method) is None


def test_one_sentence_for_all_rows_of_a_classifier():
    assert len(own_of("less robust").failures(("attacked", *TABLES[5][1:]))) == 1


# -- over the number of steps --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "half"),
    [((8, 8, 5, 1), 2), ((8, 6, 3, 0), 2), ((8, 4, 0, 0), 1), ((8, 8, 8, 8), 1), ((8, 8, 8, 4), 3)],
)
def test_half_eps_is_where_adv_is_nearest_to_half_of_its_clean_accuracy(counts, half):
    eps = (0.0, 0.1, 0.2, 0.5)
    assert Crafted({("Adv", None, "standard"): shares(*counts)}, eps=eps).half_eps == eps[half]


def test_a_curve_over_n_has_the_row_of_its_strength():
    given = {("Adv", n, (0.2,)): shares(10, count) for n, count in ((3, 7), (5, 4))}
    curve = Crafted(given, sweep_steps=(3, 5)).steps_curve("Adv", 0.2)
    assert curve.tolist() == [row.tolist() for row in shares(7, 4)]


def test_table_5_has_the_sweep_over_n(evaluation, counted):
    rows, study = evaluation.table(5), evaluation.study
    over = rows[rows["steps"] != study.steps]
    strengths = {study.sweep_eps, evaluation.half_eps}
    assert len(over) == len(TABLES[5]) * len(study.sweep_steps) * len(strengths)
    assert set(over["attack"]) == {"pgd"} and set(over["metric"]) == {"accuracy"}
    assert set(zip(over["method"], over["steps"], over["eps"], strict=True)) == {
        (method, steps, eps)
        for method in TABLES[5]
        for steps in study.sweep_steps
        for eps in strengths
    }


@pytest.mark.parametrize(
    ("method", "classifier"), [("attacked", "standard"), ("Adv", "Adv"), ("Filt+Adv", "Adv")]
)
def test_its_values_are_those_of_an_attack_with_n_steps_on_the_standard_classifier(
    method, classifier, evaluation, counted
):
    artefacts, study = evaluation.artefacts, evaluation.study
    rows, test, denoiser = evaluation.table(5), artefacts.images("test"), artefacts.denoiser(method)
    for steps in study.sweep_steps:
        attacked = pgd(
            artefacts.classifier(),
            test.images,
            test.labels,
            study.sweep_eps,
            steps=steps,
            seed=study.seed,
        )
        right = (
            artefacts.classifier(classifier)(denoiser(attacked)).argmax(dim=1) == test.labels
        ).double()
        place = (
            (rows["method"] == method) & (rows["steps"] == steps) & (rows["eps"] == study.sweep_eps)
        )
        assert abs(float(rows.loc[place, "value"].iloc[0] - right.mean())) < 1.5 / study.test_images


@pytest.mark.parametrize("number", [1, 2, 3, 4, 6, 7])
def test_no_other_table_has_it(number, evaluation, counted):
    assert set(evaluation.table(number)["steps"]) == {evaluation.study.steps}


# -- stored once ---------------------------------------------------------------------------------


def test_a_measurement_is_made_once_and_kept(evaluation):
    assert evaluation.measurement("Filt(L_img)") is evaluation.measurement("Filt(L_img)")


def test_a_second_session_calls_no_network(evaluation, monkeypatch):
    tables = {number: evaluation.table(number) for number in TABLES}

    def never(*arguments):
        raise AssertionError("this was measured before")

    for kind in (Denoiser, Classifier):
        monkeypatch.setattr(kind, "forward", never)
    monkeypatch.setattr(nbsupport.experiments.evaluation, "measure", never)
    monkeypatch.setattr(nbsupport.experiments.artifacts, "ratios", never)
    second = Evaluation(Artefacts(evaluation.study, Store(evaluation.artefacts.store.home)))
    for number, rows in tables.items():
        pd.testing.assert_frame_equal(second.table(number), rows)


def test_a_measurement_depends_on_its_denoiser_and_on_the_test_images(evaluation):
    specification = evaluation.specification("head_3")
    assert specification["attacked"] == evaluation.artefacts.attacked_specification("test")
    assert specification["method"]["output"] == 3
    assert specification["method"]["trained"] == evaluation.artefacts.denoiser_specification(
        "Multi-head-Filt(L_img)"
    )


def test_it_depends_on_the_classifier_and_on_the_attack(evaluation):
    kinds = [
        ("Filt(L_img)",),
        ("Filt+Adv",),
        ("Filt+FD",),
        ("Filt+FPD",),
        ("Adv",),
        ("Adv", 9),
        ("Adv", 9, (0.1,)),
    ]
    kinds += [("Adv", None, None, "Adv"), ("attacked",), ("attacked", None, None, "second")]
    folders = {Store("home").folder(evaluation.specification(*kind)) for kind in kinds}
    assert len(folders) == len(kinds)
