"""The main comparisons over seeds: another seed's denoisers, the interval, and the rows."""

import numpy as np
import pytest
import torch
from scipy import stats

from nbsupport.experiments.evaluation import measure
from nbsupport.results import seeds
from nbsupport.results.seeds import COMPARISONS, MEAN, compare, estimate, retrain

DRAWN = np.random.default_rng(0).integers(-1, 2, (3, 40)).astype(float)
ALONE = np.arange(40)
FUSED = "PA-Filt(L_img)"


@pytest.fixture(scope="module")
def two(experiment):
    return retrain(experiment, (0, 1))


@pytest.fixture
def fail(monkeypatch):
    """Let only these trainings (denoiser seed, method) count as failed."""

    def set_failures(*failures):
        def failure(experiment, method):
            return "failed" if (experiment.study.denoiser_seed, method) in failures else None

        monkeypatch.setattr(seeds, "failure", failure)

    return set_failures


def test_the_interval_is_over_images_over_seeds_or_over_both():
    over_seeds, over_images = DRAWN.mean(axis=1), DRAWN.mean(axis=0)
    alike = np.tile(DRAWN[:1], (3, 1)), np.tile(over_seeds[:, None], (1, 40))
    for differences, values in zip(alike, (DRAWN[0], over_seeds), strict=True):
        expected = stats.ttest_1samp(values, 0).confidence_interval()
        assert estimate(differences, ALONE) == pytest.approx((values.mean(), *expected))
    # a mean over seeds and one over images, each with its own error: two samples of Welch's
    welch = stats.ttest_ind(over_seeds, -over_images, equal_var=False).confidence_interval()
    low, high = (limit - DRAWN.mean() for limit in welch)
    assert estimate(DRAWN, ALONE) == pytest.approx((DRAWN.mean(), low, high))


def test_groups_of_images_count_as_one_image_each():
    groups = np.repeat(np.arange(8), 5)
    means = DRAWN.reshape(3, 8, 5).mean(axis=2)
    assert estimate(DRAWN, groups) == pytest.approx(estimate(means, np.arange(8)))


def test_one_seed_has_no_interval_and_no_difference_at_all_is_certain():
    mean, *interval = estimate(DRAWN[:1], ALONE)
    assert mean == pytest.approx(DRAWN[0].mean()) and np.isnan(interval).all()
    assert estimate(np.zeros((3, 5)), np.arange(5)) == (0, 0, 0)


def test_another_seed_is_another_denoiser_for_the_same_attacks(two, experiment):
    first, second = two
    wanted = experiment.denoiser_specification("Filt(L_img)")
    assert first.denoiser_specification("Filt(L_img)") == wanted  # not trained again
    assert first.attacked_specification("train") == second.attacked_specification("train")
    assert first.classifier_specification() == second.classifier_specification()
    ours, theirs = (each.trained("Filt(L_img)")[0].state_dict() for each in (first, second))
    weights = [name for name in ours if name.endswith("0.weight")]
    assert not any(torch.equal(ours[name], theirs[name]) for name in weights)
    fusion = second.denoiser_specification(FUSED)
    assert fusion["seed"] == fusion["base"]["seed"] == 1 and fusion["attacked"]["seed"] == 0


def test_values_are_mean_differences_of_accuracy(two, fail, monkeypatch):
    fail()
    assert set(compare(two)["outcome"]) == {"inconclusive"}  # two trainings may agree by luck
    monkeypatch.setattr(seeds, "FEWEST", 2)
    rows = compare(two)
    parts = rows.groupby(["method", "other"], sort=False)
    assert list(parts.groups) == list(COMPARISONS)
    for pair, part in parts:
        part = part.set_index("eps")
        ours, theirs = ([measure(e, name)["accuracy"].mean(axis=1) for e in two] for name in pair)
        difference, study = np.subtract(ours, theirs), two[0].study
        assert part.drop(MEAN)["value"].tolist() == pytest.approx(difference.mean(axis=0))
        difference = difference[:, np.isin(study.evaluated_eps, study.eps)]  # without 8/255
        assert part.loc[MEAN, "value"] == pytest.approx(difference.mean())
        each = [float(text) for text in part.loc[MEAN, "per_seed"].split()]
        assert each == pytest.approx(difference.mean(axis=1), abs=1e-4)
    for row in rows.itertuples():
        expected = "better" if row.low > 0 else "worse" if row.high < 0 else "inconclusive"
        assert row.outcome == expected


def test_a_failed_training_is_left_out(two, fail):
    fail((1, FUSED))
    rows = compare(two)
    assert set(rows.loc[rows["method"] == FUSED, "seeds"]) == {"0"}
    assert set(rows.loc[rows["method"] != FUSED, "seeds"]) == {"0 1"}
    fail((None, FUSED), (1, FUSED))
    assert set(compare(two)["method"]) == {"Filt(L_img)", "Filt(L_sem)"}
