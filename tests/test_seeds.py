"""The main comparisons over seeds: another seed's denoisers, the interval, and the rows."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from nbsupport.experiments.artifacts import Experiment
from nbsupport.experiments.evaluation import measure
from nbsupport.results import seeds
from nbsupport.results.plots import draw_differences
from nbsupport.results.seeds import COMPARISONS, MEAN, compare, estimate, retrain, wide

DRAWN = np.random.default_rng(0).integers(-1, 2, (3, 40)).astype(float)
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


# -- the interval --------------------------------------------------------------------------------


def test_seeds_that_agree_leave_the_interval_over_images():
    alike = np.tile(DRAWN[:1], (3, 1))
    expected = stats.ttest_1samp(DRAWN[0], 0).confidence_interval()
    assert estimate(alike) == pytest.approx((DRAWN[0].mean(), *expected))


def test_images_that_agree_leave_the_interval_over_seeds():
    each = np.array([0.1, 0.2, 0.6])
    expected = stats.ttest_1samp(each, 0).confidence_interval()
    assert estimate(np.tile(each[:, None], (1, 40))) == pytest.approx((0.3, *expected))


def test_two_variances_add_up_as_in_welchs_test():
    """A mean over seeds and a mean over images, each with its own error: Welch's interval of two samples."""
    over_seeds, over_images = DRAWN.mean(axis=1), DRAWN.mean(axis=0)
    welch = stats.ttest_ind(over_seeds, -over_images, equal_var=False).confidence_interval()
    low, high = (limit - DRAWN.mean() for limit in welch)
    assert estimate(DRAWN) == pytest.approx((DRAWN.mean(), low, high))


def test_one_seed_has_no_interval_and_no_difference_at_all_is_certain():
    mean, *interval = estimate(DRAWN[:1])
    assert mean == pytest.approx(DRAWN[0].mean())
    assert np.isnan(interval).all()
    assert estimate(np.zeros((3, 5))) == (0, 0, 0)


# -- the trainings -------------------------------------------------------------------------------


def test_another_seed_is_another_denoiser_for_the_same_attacks(two, experiment):
    first, second = two
    wanted = experiment.denoiser_specification("Filt(L_img)")
    assert (
        first.denoiser_specification("Filt(L_img)") == wanted
    )  # the study's seed: not trained again
    assert first.attacked_specification("train") == second.attacked_specification("train")
    assert first.classifier_specification() == second.classifier_specification()
    ours, theirs = (each.trained("Filt(L_img)")[0].state_dict() for each in (first, second))
    weights = [name for name in ours if name.endswith("0.weight")]
    assert not any(torch.equal(ours[name], theirs[name]) for name in weights)


def test_the_fusion_of_a_seed_starts_from_the_parts_of_that_seed(two):
    specification = two[1].denoiser_specification(FUSED)
    assert specification["seed"] == specification["base"]["seed"] == 1
    assert specification["attacked"]["seed"] == 0


def test_a_custom_classifier_stays(experiment):
    custom = experiment.classifier()
    study = replace(experiment.study, classifier="resnet20")
    (again,) = retrain(Experiment(study, experiment.store, custom), (1,))
    assert again.custom is custom


# -- the comparisons -----------------------------------------------------------------------------


def test_values_are_mean_differences_of_accuracy(two, fail):
    fail()
    rows = compare(two)
    parts = rows.groupby(["method", "other"], sort=False)
    assert list(parts.groups) == list(COMPARISONS)
    for pair, part in parts:
        part = part.set_index("eps")
        ours, theirs = (
            np.array([measure(each, name).correct().mean(axis=1) for each in two]) for name in pair
        )
        difference = ours - theirs
        assert part.drop(MEAN)["value"].tolist() == pytest.approx(difference.mean(axis=0))
        assert part.loc[MEAN, "value"] == pytest.approx(difference.mean())
        each = [float(text) for text in part.loc[MEAN, "per_seed"].split()]
        assert each == pytest.approx(difference.mean(axis=1), abs=1e-4)
    for row in rows.itertuples():
        expected = "better" if row.low > 0 else "worse" if row.high < 0 else "undecided"
        assert row.outcome == expected


def test_a_failed_training_is_left_out(two, fail):
    fail((1, FUSED))
    rows = compare(two)
    assert set(rows.loc[rows["method"] == FUSED, "seeds"]) == {"0"}
    assert set(rows.loc[rows["method"] != FUSED, "seeds"]) == {"0 1"}
    fail((None, FUSED), (1, FUSED))
    assert set(compare(two)["method"]) == {"Filt(L_img)", "Filt(L_sem)"}


def test_the_table_has_a_line_for_each_comparison():
    same = {"method": "A", "other": "B", "per_seed": "+0.1000 +0.3000", "seeds": "0 1"}
    lines = [
        (MEAN, 0.2, 0.1, 0.3, "better"),
        (0.0, 0.2, 0.15, 0.25, "better"),
        (0.001, 0.2, -0.05, 0.45, "undecided"),
        (0.1, -0.2, -0.3, -0.1, "worse"),
    ]
    rows = pd.DataFrame(lines, columns=["eps", "value", "low", "high", "outcome"]).assign(**same)
    line = wide(rows).loc["A − B"]
    assert (line["mean"], line["interval"]) == ("+0.200", "+0.100 … +0.300")
    assert line["each"] == "+0.100, +0.300"
    assert (line["better"], line["worse"]) == (1, 1)


def test_the_picture_has_a_line_for_each_seed_and_their_mean(two, fail):
    fail()
    rows = compare(two)
    parts = rows[rows["eps"] != MEAN].groupby(["method", "other"], sort=False)
    for axes, (_, part) in zip(draw_differences(rows).axes, parts, strict=True):
        *each, mean, _ = axes.get_lines()
        assert len(each) == 2
        assert mean.get_ydata() == pytest.approx(part["value"].to_numpy(float))
