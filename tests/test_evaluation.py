"""Measurements per image against independent libraries and loops, and the tidy rows made of them."""

import numpy as np
import pandas as pd
import pytest
import skimage.metrics
import torch
from scipy.stats import sem
from scipy.stats import t as student
from small import Call, SmallExperiment, disturbed, linear, pictures, radii, rand, rows
from torch import nn

from nbsupport.attacks.pgd import AttackedSet, pgd
from nbsupport.classifiers.feature_pyramid import attack_target, build
from nbsupport.classifiers.models import Classifier
from nbsupport.denoisers.baselines import Baseline
from nbsupport.denoisers.models import Filtering, PAFilter
from nbsupport.experiments import evaluation
from nbsupport.experiments.artifacts import Experiment, Trained
from nbsupport.experiments.evaluation import (
    COLUMNS,
    attack_itself,
    evaluate,
    failure,
    failures,
    groups,
    measure,
    measure_images,
    measurement_specification,
    quality,
    resample,
    standard_error,
    strength_at_half,
    table,
    worst_case,
)  # fmt: skip
from nbsupport.experiments.methods import AS_PUBLISHED, BOTH_LOSSES, TABLES
from nbsupport.experiments.store import Store
from nbsupport.study import Study

EPS, NUMBER, SIZE, CLASSES = (0.0, 0.01, 0.3), 4, (17, 12), 5
FUSED, ROBUST = "PA-Filt(L_img)", ("Adv", "FPD", "FD")
METRICS = dict.fromkeys(TABLES, ("accuracy",)) | {2: ("psnr", "ssim")}

every_table = pytest.mark.parametrize("number", TABLES)


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE[0] * SIZE[1], CLASSES))).eval()


@pytest.fixture(scope="module")
def attacked():
    ratios = 2 * rand(len(EPS) - 1, NUMBER, 3, *SIZE, seed=1) - 1
    return AttackedSet(rand(NUMBER, 3, *SIZE), torch.arange(NUMBER) % 2, ratios.half(), EPS)


@pytest.fixture(scope="module")
def filtering():
    filtering = disturbed(Filtering)
    # larger than all others, but negative: no uncertainty
    filtering.outputs["kernels"].bias[3] = -2
    return filtering


@pytest.fixture(scope="module")
def measured(classifier, attacked, filtering):
    return measure_images(classifier, filtering, attacked)


def each(attacked):
    """Every (strength, image) with the clean and the attacked image, alone in their batches."""
    for row, image in np.ndindex(len(EPS), NUMBER):
        one = slice(image, image + 1)
        yield (row, image), attacked.images[one], attacked.at(EPS[row])[one]


def pixels(image):
    return image[0].double().numpy()


# -- one denoiser before one classifier ----------------------------------------------------------


def test_accuracy_is_that_of_single_images(measured, attacked, classifier, filtering):
    assert all(values.shape == (len(EPS), NUMBER) for values in measured.values())
    assert 0 < measured["accuracy"].sum() < len(EPS) * NUMBER
    for place, _, hat in each(attacked):
        right = classifier(filtering(hat)).argmax() == attacked.labels[place[1]]
        assert measured["accuracy"][place] == right


def test_psnr_and_ssim_are_those_of_scikit_image(measured, attacked, filtering):
    # torchmetrics mirrors 5 pixels beyond the border and takes the mean over all pixels; scikit-image omits the
    # 5 at the border, whose windows do not fit. Of images mirrored beforehand it omits the mirrored ones.
    options = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, channel_axis=0)
    border = ((0, 0), (5, 5), (5, 5))
    for place, clean, hat in each(attacked):
        both = pixels(clean), pixels(filtering(hat))
        psnr = skimage.metrics.peak_signal_noise_ratio(*both, data_range=1)
        assert float(measured["psnr"][place]) == pytest.approx(psnr, abs=1e-4)
        mirrored = (np.pad(image, border, mode="reflect") for image in both)
        ssim = skimage.metrics.structural_similarity(*mirrored, data_range=1, **options)
        assert float(measured["ssim"][place]) == pytest.approx(ssim, abs=1e-5)


def test_change_uncertainty_and_kernel_distance_are_those_of_loops(measured, attacked, filtering):
    identity = np.zeros((3, 3))
    identity[1, 1] = 1
    for place, _, hat in each(attacked):
        change = np.abs(pixels(filtering(hat)) - pixels(hat)).mean()
        kernels = pixels(filtering.kernels(hat))
        largest = np.mean([kernels[:, y, x].max() for y, x in np.ndindex(SIZE)])
        square = kernels.reshape(3, 3, 3, *SIZE)
        places = np.ndindex(3, *SIZE)
        distance = np.mean([np.abs(square[c, :, :, y, x] - identity).sum() for c, y, x in places])
        expected = {"change": change, "uncertainty": largest, "kernel_distance": distance}
        found = {name: float(measured[name][place]) for name in expected}
        assert found == pytest.approx(expected, rel=1e-5)


def test_weight_is_the_mean_of_w(classifier, attacked):
    pa_filter = disturbed(PAFilter)
    weights = measure_images(classifier, pa_filter, attacked)["weight"]
    assert len(np.unique(weights)) > 1
    for place, _, hat in each(attacked):
        expected = pixels(pa_filter.parts(hat).weight).mean()
        assert float(weights[place]) == pytest.approx(expected, rel=1e-5)


def test_rounding_leaves_8_bit_images_equal_however_they_were_scaled():
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(256, (2, 3, 21, 27), dtype=torch.uint8, generator=generator).float()
    for scaled in (levels / 255, levels * (1 / 255)):
        assert torch.isposinf(quality(Baseline("8-bit")(scaled), scaled)[0]).all()
        assert torch.isfinite(quality(scaled + 1e-5, scaled)[0]).all()


def worst_so_far(per_image):
    return [[min(column[: row + 1]) for column in per_image.T] for row in range(len(per_image))]


def test_the_worst_case_is_that_of_this_and_all_weaker_attacks():
    values = np.random.default_rng(0).random((6, 20))
    for per_image in (values, values < 0.8):
        worst = worst_case(per_image)
        assert worst.dtype == per_image.dtype and worst.tolist() == worst_so_far(per_image)
    assert worst_case(np.array([[np.inf], [3.0], [np.inf]])).tolist() == [[np.inf], [3.0], [3.0]]


# -- any classifier, without a study -------------------------------------------------------------


@pytest.fixture
def two_classes():
    """A linear classifier, images with one wrong label, and strengths between the images' radii."""
    classifier, images = linear(classes=2), pictures()
    labels = classifier(images).argmax(dim=1)
    labels[0] = 1 - labels[0]
    found = radii(classifier, images, labels, norm=1).sort().values
    eps = (found[[6, 12, 18]] + found[[7, 13, 19]]) / 2
    return classifier, images, labels, tuple(eps.tolist())


def lookup(frame, attack, metric):
    chosen = frame[(frame["attack"] == attack) & (frame["metric"] == metric)]
    return chosen.set_index("eps")["value"]


def test_evaluate_gives_the_closed_form_of_a_linear_classifier(two_classes):
    classifier, images, labels, eps = two_classes
    frame = evaluate(classifier, None, images, labels, eps, adaptive=True, steps=100)
    radius = radii(classifier, images, labels, norm=1)
    accuracy = {strength: float((radius > strength).float().mean()) for strength in (0.0, *eps)}
    assert 0 < accuracy[eps[-1]] < accuracy[0.0] < 1
    for attack in ("pgd", "pgd-envelope", "adaptive"):
        assert lookup(frame, attack, "accuracy").to_dict() == pytest.approx(accuracy)
    # every pixel of an attacked image is ε away, so PSNR is −20 log ε; the worst case keeps the order
    psnr = [np.inf, *(-20 * np.log10(eps))]
    assert lookup(frame, "pgd", "psnr").tolist() == pytest.approx(psnr, abs=0.05)
    assert list(frame) == ["attack", "metric", "n", "eps", "value"] and set(frame["n"]) == {24}


def test_evaluate_gives_the_adaptive_attacker_the_whole_chain(two_classes):
    classifier, images, _, eps = two_classes
    labels = classifier(1 - images).argmax(dim=1)
    inverted = Call(lambda x: 1 - x).eval()  # the gray-box attack goes the wrong way
    frame = evaluate(classifier, inverted, images, labels, eps, adaptive=True, steps=100)
    radius = radii(classifier, 1 - images, labels, norm=1)
    white_box = lookup(frame, "adaptive", "accuracy")
    for strength in eps:
        assert white_box[strength] == pytest.approx(float((radius > strength).float().mean()))
    assert (white_box < lookup(frame, "pgd-envelope", "accuracy")).any()


def test_evaluate_agrees_with_the_tables_of_a_study(experiment):
    study, test = experiment.study, experiment.images("test")
    networks = experiment.classifier(), experiment.denoiser("Filt(L_img)")
    options = dict(steps=study.steps, seed=study.seed)
    frame = evaluate(*networks, test.images, test.labels, study.evaluated_eps[1:], **options)
    rows = pd.concat([table(experiment, number, "Filt(L_img)") for number in (1, 2)])
    rows = rows[rows["metric"] != "clean PSNR"]
    columns = ["attack", "metric", "eps", "value", "n"]
    ours, theirs = (x[columns].sort_values(columns[:3], ignore_index=True) for x in (frame, rows))
    pd.testing.assert_frame_equal(ours, theirs, atol=1e-3, check_dtype=False)


@pytest.mark.usefixtures("no_shape_checker")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(images=pictures() * 255), r"\[0, 1\]"),
        (dict(labels=torch.full((24,), 4)), "labels from 0"),
        (dict(classifier=linear().train()), "training mode"),
        (dict(denoiser=nn.BatchNorm2d(3)), "training mode"),
        (dict(eps=(0.1, -0.1)), "from 0 to 1"),
        (dict(eps=(0.0,)), "above 0"),
    ],
)
def test_evaluate_refuses(change, message):
    given = dict(classifier=linear(), denoiser=None, images=pictures(), eps=0.1)
    given |= dict(labels=torch.arange(24) % 4) | change
    with pytest.raises(ValueError, match=message):
        evaluate(**given)


# -- the smoke study's tables --------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch):
    """No training counts as failed, whatever the smallest study's networks learned."""
    monkeypatch.setattr(evaluation, "failure", lambda experiment, method: None)


@every_table
def test_a_table_has_every_method_at_all_strengths_with_and_without_the_worst_case(
    number, experiment, counted
):
    every, study = table(experiment, number), experiment.study
    rows = every[every["steps"] == study.steps]
    assert list(rows) == COLUMNS
    same = {"table": number, "study": study.name, "classifier": study.classifier}
    same |= {"seed": study.seed}
    assert all((rows[column] == value).all() for column, value in same.items())
    assert tuple(dict.fromkeys(rows["method"])) == TABLES[number]
    assert len(every) == len(rows) or number == 5
    series = dict(list(rows.groupby(["method", "metric", "attack"])))
    for method in TABLES[number] if number in (1, 3, 4) else ():
        clean = series.pop((method, "clean PSNR", "pgd"))
        assert [*clean["eps"]] == [0.0]
        expected = np.mean(measure(experiment, method)["psnr"][0])
        np.testing.assert_allclose(clean["value"], [expected])
    assert all(tuple(each["eps"]) == study.evaluated_eps for each in series.values())
    for method in TABLES[number]:
        measurement = measure(experiment, method)
        for metric in METRICS[number]:
            values = measurement[metric].astype(float)
            for attack, per_image in (("pgd", values), ("pgd-envelope", worst_so_far(values))):
                found = series.pop((method, metric, attack))
                assert set(found["n"]) == {study.test_images}
                np.testing.assert_allclose(found["value"], np.mean(per_image, axis=1), rtol=1e-6)
    assert set(series) == {(m, "accuracy", "pgd-on-itself") for m in ROBUST if m in TABLES[number]}
    for (method, *_), found in series.items():
        values = np.mean(worst_so_far(attack_itself(experiment, method)), axis=1)
        np.testing.assert_allclose(found["value"], values)


STACKS = {"head_2": "standard", "FD": "FD", "Filt+FPD": "FPD"}


@pytest.mark.parametrize(("method", "name"), STACKS.items())
def test_predictions_are_those_of_the_stored_images_through_the_defence(method, name, experiment):
    attacked, classifier = experiment.attacked("test"), experiment.classifier(name)
    for row, eps in enumerate(attacked.eps):
        classes = classifier(experiment.denoiser(method)(attacked.at(eps))).argmax(dim=1)
        right = (classes == attacked.labels).numpy()
        assert (measure(experiment, method)["accuracy"][row] == right).all()


def test_methods_may_be_chosen_and_unknown_tables_and_methods_are_refused(experiment):
    assert set(table(experiment, 1, "attacked", "8-bit")["method"]) == {"attacked", "8-bit"}
    with pytest.raises(ValueError, match="got 8"):
        table(experiment, 8)


def test_a_failed_training_has_no_row_and_a_reason(experiment, monkeypatch):
    reasons = {FUSED: "constant"}
    monkeypatch.setattr(evaluation, "failure", lambda experiment, method: reasons.get(method))
    assert set(table(experiment, 4)["method"]) == set(TABLES[4]) - {FUSED}
    assert failures(experiment, TABLES[4]) == ["constant"] and not failures(experiment, TABLES[1])


# -- a collapsed denoiser, and a training without a checkpoint near 32 dB -------------------------

EVERY = {method for methods in TABLES.values() for method in methods}
PUBLISHED_PARTS = {f"PA-Filt(L_img)_{part}@32dB" for part in ("sl", "m")}
DEPENDENT = {
    "Add(L_sem)": {"Add(L_sem)"},
    "Filt(L_img)": {"Filt(L_img)", "Filt+Adv", "Filt+FPD", "Filt+FD"},
    FUSED: {FUSED, "PA-Filt+Adv"},
    BOTH_LOSSES: {BOTH_LOSSES},
    "Y-Net": {FUSED, "PA-Filt+Adv", f"{FUSED}_sl", f"{FUSED}_m"},
    "Y-Net_as_published": {AS_PUBLISHED},  # what starts from a checkpoint on the way does not fail
    "Filt(L_img)_as_published": {"Filt(L_img)_as_published"},
}


@pytest.fixture
def reported(experiment, monkeypatch):
    """Trainings of which only that of `failed` collapsed, and whose checkpoints have some PSNR."""

    def report(failed, psnr=32.0):
        def trained(recipe):
            curves = {output: {"7": psnr} for output in ("kernels", "sl", "m")}
            sound = {"alive": [1.0], "change": [1.0], "clean_psnr": curves}
            return Trained(nn.Identity(), sound | {"alive": [float(recipe != failed)]}, {})

        strengths = len(experiment.study.evaluated_eps)
        itself = {"standard": np.zeros((strengths, 4))}  # all others are robust
        robust = lambda experiment, name: itself.get(name, np.ones((strengths, 4)))  # noqa: E731
        monkeypatch.setattr(evaluation, "attack_itself", robust)
        monkeypatch.setattr(experiment, "trained", trained)

    return report


@pytest.mark.parametrize("failed", DEPENDENT)
def test_a_collapse_is_a_failure_of_all_that_builds_on_it(failed, experiment, reported):
    reported(failed)
    reasons = {method: failure(experiment, method) for method in EVERY}
    assert {method for method, reason in reasons.items() if reason} == DEPENDENT[failed]
    assert all(reasons[method].startswith(f"{failed}: ") for method in DEPENDENT[failed])


@pytest.mark.parametrize(("psnr", "near"), [(31.0, True), (33.9, True), (29.9, False)])
def test_a_row_at_32_db_needs_a_checkpoint_near_it(psnr, near, experiment, reported):
    reported("none", psnr)
    failed = {method for method in EVERY if failure(experiment, method)}
    assert failed == (set() if near else PUBLISHED_PARTS | {"Filt(L_img)@32dB"})


# -- a classifier attacked itself ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["Adv", "FPD"])
def test_a_classifier_attacked_itself_withstands_the_images_that_a_fresh_attack_gives(
    name, experiment
):
    study, test = experiment.study, experiment.images("test")
    classifier = experiment.classifier(name)
    victim = attack_target(classifier)
    options = dict(steps=study.steps, seed=study.seed)
    found = attack_itself(experiment, name)
    assert found.shape == (len(study.evaluated_eps), study.test_images)
    for row in (0, 13):
        attacked = test.images
        if row:
            attacked = pgd(victim, attacked, test.labels, study.evaluated_eps[row], **options)
        expected = (classifier(attacked).argmax(dim=1) == test.labels).numpy()
        assert (found[row] != expected).sum() <= 1  # images are kept in half precision


@pytest.fixture
def crafted(tmp_path, monkeypatch):
    """From (method, n, victim or strengths) to which images are right: an experiment that has measured that."""

    def craft(given, **changes):
        def answer(experiment, method, steps=None, eps=None, victim="standard"):
            return {"accuracy": given[method, steps, eps or victim]}

        monkeypatch.setattr(evaluation, "measure", answer)
        monkeypatch.setattr(evaluation, "find_collapse", lambda report: None)
        strengths = {"eps": (0.0, 0.1, 0.5), "adversarial_eps": 0.3}  # 0.1 was trained against
        strengths |= {"unseen_eps": ()}
        return SmallExperiment(tmp_path, Study.named("photographs", "smoke", **strengths | changes))

    return craft


def curves(standard, adv):
    """Images right at the three strengths, when PGD attacks the standard classifier and Adv themselves."""
    places = ("attacked", None, "standard"), ("Adv", None, "Adv")
    return {at: rows(*each, of=10) for at, each in zip(places, (standard, adv), strict=True)}


@pytest.mark.parametrize(
    ("adv", "robust"),
    [
        ((6, 5, 0), True),
        ((10, 4, 0), False),
        ((10, 2, 2), False),  # better above the strength it was trained against only
        ((3, 5, 0), False),  # the worst case at ε' ≤ ε counts, not a clumsy attack
    ],
)
def test_a_classifier_without_robustness_has_no_rows_and_one_reason(crafted, adv, robust):
    experiment = crafted(curves((10, 4, 0), adv))
    reasons = failures(experiment, ("attacked", "Filt(L_img)", "Adv", "Add+Adv", "Filt+Adv"))
    if robust:
        assert reasons == []
    else:
        (reason,) = reasons
        assert reason.startswith("Adv: training failed") and "ε = 0.1" in reason
        assert f"{min(adv[:2]) / 10:.3f}" in reason and "0.400" in reason


@pytest.mark.parametrize(("learned", "eps"), [(0.05, 0.1), (0.49, 0.1), (0.5, 0.5)])
def test_robustness_counts_at_the_largest_strength_trained_against(crafted, learned, eps):
    experiment = crafted(curves((10, 4, 3), (6, 3, 2)), adversarial_eps=learned)
    assert f"at ε = {eps}," in failure(experiment, "Adv")


# -- over the number of steps --------------------------------------------------------------------


@pytest.mark.parametrize(("counts", "half"), [((8, 8, 5, 1), 2), ((8, 8, 8, 8), 1)])
def test_the_strength_at_half_is_where_adv_has_half_of_its_clean_accuracy(crafted, counts, half):
    eps = (0.0, 0.1, 0.2, 0.5)
    experiment = crafted({("Adv", None, "standard"): rows(*counts, of=10)}, eps=eps)
    assert strength_at_half(experiment) == eps[half]


def test_table_5_has_the_sweep_over_n_of_attacks_on_the_standard_classifier(experiment, counted):
    rows, study, test = table(experiment, 5), experiment.study, experiment.images("test")
    over = rows[rows["steps"] != study.steps]
    strengths = study.sweep_eps, strength_at_half(experiment)
    assert set(over["attack"]) == {"pgd"} and set(over["metric"]) == {"accuracy"}
    places = [(m, n, eps) for m in TABLES[5] for n in study.sweep_steps for eps in set(strengths)]
    values = over.set_index(["method", "steps", "eps"])["value"]
    assert set(values.index) == set(places) and len(values) == len(places)
    for steps in study.sweep_steps:
        given = test.images, test.labels, study.sweep_eps
        attacked = pgd(experiment.classifier(), *given, steps=steps, seed=study.seed)
        for method, name in {"attacked": "standard", "Adv": "Adv", "Filt+Adv": "Adv"}.items():
            denoised = experiment.denoiser(method)(attacked)
            right = experiment.classifier(name)(denoised).argmax(dim=1) == test.labels
            value = values[method, steps, study.sweep_eps]
            assert abs(value - float(right.double().mean())) < 1.5 / study.test_images


# -- stored once ---------------------------------------------------------------------------------


def test_a_measurement_depends_on_denoiser_classifier_images_and_attack(experiment):
    specification = measurement_specification(experiment, "head_3")
    assert specification["attacked"] == experiment.attacked_specification("test")
    assert specification["method"] == experiment.specification("head_3")
    assert specification["method"]["output"] == 3
    kinds = [("Filt(L_img)",), ("Filt+Adv",), ("Filt+FD",), ("Adv",), ("Adv", 9), ("attacked",)]
    kinds += [("Adv", 9, (0.1,)), ("Adv", None, None, "Adv"), ("attacked", None, None, "second")]
    folders = {Store("home").folder(measurement_specification(experiment, *kind)) for kind in kinds}
    assert len(folders) == len(kinds)


def test_a_measurement_with_other_weights_is_not_used(tmp_path):
    first, second = (SmallExperiment(tmp_path, classifier=linear(seed)) for seed in (0, 5))
    second.split = first.split
    one, other = (measure(each, "attacked")["accuracy"] for each in (first, second))
    assert (one != other).any()


def test_the_standard_error_counts_a_group_as_one_image():
    values, alone = np.random.default_rng(0).normal(size=(2, 40)), np.arange(40)
    np.testing.assert_allclose(standard_error(values, alone), sem(values, axis=1))
    means = values.reshape(2, 8, 5).mean(axis=2)
    found = standard_error(values, np.repeat(np.arange(8), 5))
    np.testing.assert_allclose(found, sem(means, axis=1))


def test_a_resample_draws_whole_groups():
    labels = np.array([0, 1, 0, 2, 1, 0])
    drawn = resample(labels, resamples=100)[:-2]
    for group in range(3):
        assert (drawn[labels == group] == drawn[labels == group][0]).all()


@pytest.mark.parametrize("number", [10, 200])
def test_the_interval_of_a_mean_over_groups_is_students(number):
    means = np.random.default_rng(0).normal(size=number)
    drawn = resample(np.repeat(np.arange(number), 3), resamples=20_000)[:-2:3]
    assert len({*drawn.sum(axis=0)}) == 1  # multinomial: the same number of groups each time
    found = np.quantile(means @ drawn / drawn.sum(axis=0), (0.025, 0.975))
    expected = student.interval(0.95, number - 1, means.mean(), sem(means))
    np.testing.assert_allclose(found, expected, atol=0.05 * np.ptp(expected))


def test_patches_of_one_photograph_are_a_group(tmp_path):
    experiment = Experiment(Study.named("photographs", "smoke"), Store(tmp_path))
    found, labels = groups(experiment), experiment.images("test").labels.numpy()
    np.testing.assert_array_equal(found, labels)
    other = SmallExperiment(tmp_path, Study.named("cifar10", "smoke"))
    assert len(set(groups(other))) == len(other.images("test"))


def test_an_fpd_whose_features_overflow_is_wrong(tmp_path):
    """Also about images of class 0, which argmax returns for NaN."""
    torch.manual_seed(0)
    fpd = build("small_resnet_fpd", CLASSES, 8).eval()
    images, labels = pictures(4), torch.zeros(4, dtype=torch.long)
    attacked = AttackedSet(images, labels, torch.zeros(1, *images.shape).half(), (0.0, 0.1))
    assert torch.isfinite(fpd(images)).all()
    with torch.no_grad():
        fpd.decoder.enlarge[-1].weight.mul_(1e20)
    assert torch.isnan(fpd(images)).all()
    assert not measure_images(fpd, nn.Identity().eval(), attacked)["accuracy"].any()
