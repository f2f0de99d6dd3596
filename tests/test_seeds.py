"""The headline comparisons over seeds: what another seed changes, the interval, and what the table says."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from nbsupport.experiments.artifacts import Artefacts
from nbsupport.experiments.evaluation import Evaluation
from nbsupport.results import seeds
from nbsupport.results.seed_plot import draw_differences
from nbsupport.results.seeds import COMPARISONS, MEAN, compare, interval, trainings
from nbsupport.study import Study

DRAWN = np.random.default_rng(0).integers(-1, 2, (3, 40)).astype(float)


@pytest.fixture(scope="module")
def two(artefacts):
    """Two trainings; none counts as failed, though a fusion of the smallest study may."""
    evaluations = trainings(Evaluation(artefacts), (0, 1))
    for each in evaluations:
        each.failure = lambda method: None
    return evaluations


@pytest.fixture(scope="module")
def rows(two):
    return compare(two)


# -- the interval --------------------------------------------------------------------------------


def test_seeds_that_agree_leave_the_interval_over_images():
    alike = np.tile(DRAWN[:1], (3, 1))
    expected = stats.ttest_1samp(DRAWN[0], 0).confidence_interval()
    assert interval(alike) == pytest.approx((DRAWN[0].mean(), *expected))


def test_images_that_agree_leave_the_interval_over_seeds():
    each = np.array([0.1, 0.2, 0.6])
    expected = stats.ttest_1samp(each, 0).confidence_interval()
    assert interval(np.tile(each[:, None], (1, 40))) == pytest.approx((0.3, *expected))


def test_two_variances_add_up_as_in_welchs_test():
    """A mean over seeds and a mean over images, each with its own error: Welch's interval of two samples."""
    over_seeds, over_images = DRAWN.mean(axis=1), DRAWN.mean(axis=0)
    welch = stats.ttest_ind(over_seeds, -over_images, equal_var=False).confidence_interval()
    low, high = (limit - DRAWN.mean() for limit in welch)
    assert interval(DRAWN) == pytest.approx((DRAWN.mean(), low, high))


def test_one_seed_has_no_interval():
    mean, low, high = interval(DRAWN[:1])
    assert mean == pytest.approx(DRAWN[0].mean())
    assert np.isnan([low, high]).all()


def test_no_difference_at_all_is_certain():
    assert interval(np.zeros((3, 5))) == (0, 0, 0)


# -- the trainings -------------------------------------------------------------------------------


def test_another_seed_is_another_denoiser_for_the_same_attacks(two):
    first, second = (each.artefacts for each in two)
    assert first.attacked_specification("train") == second.attacked_specification("train")
    assert first.classifier_specification() == second.classifier_specification()
    ours, theirs = (each.trained("Filt(L_img)")[0].state_dict() for each in (first, second))
    assert not any(
        torch.equal(ours[name], theirs[name]) for name in ours if name.endswith("0.weight")
    )


def test_the_studys_own_seed_is_not_trained_again(artefacts):
    (same,) = trainings(Evaluation(artefacts), (0,))
    assert same.artefacts.denoiser_specification("Filt(L_img)") == artefacts.denoiser_specification(
        "Filt(L_img)"
    )


def test_the_fusion_of_a_seed_starts_from_its_own_parts(two):
    specification = two[1].artefacts.denoiser_specification("PA-Filt(L_img)")
    assert (
        specification["seed"],
        specification["base"]["seed"],
        specification["attacked"]["seed"],
    ) == (1, 1, 0)


def test_a_seed_may_be_zero():
    assert Study.named("digits", "smoke", seed=3, denoiser_seed=0).denoiser_seed == 0


# -- what is compared ----------------------------------------------------------------------------


def test_values_are_mean_differences_of_accuracy(two, rows):
    for method, other in COMPARISONS:
        part = rows[(rows["method"] == method) & (rows["other"] == other)].set_index("eps")
        curves = [
            [each.measurement(name).correct().mean(axis=1) for each in two]
            for name in (method, other)
        ]  # method, seed, eps
        expected = np.mean(curves[0], axis=0) - np.mean(curves[1], axis=0)
        assert part.drop(MEAN)["value"].tolist() == pytest.approx(expected)
        assert part.loc[MEAN, "value"] == pytest.approx(expected.mean())
        first = float(part.loc[MEAN, "per_seed"].split()[0])
        assert first == pytest.approx(np.mean(curves[0][0]) - np.mean(curves[1][0]), abs=1e-4)


def test_outcomes_follow_from_intervals(rows):
    for row in rows.itertuples():
        expected = "better" if row.low > 0 else "worse" if row.high < 0 else "undecided"
        assert row.outcome == expected


def test_a_failed_training_has_no_part(two, monkeypatch):
    monkeypatch.setattr(
        two[1], "failure", lambda method: "failed" if method == "PA-Filt(L_img)" else None
    )
    rows = compare(two)
    assert set(rows.loc[rows["method"] == "PA-Filt(L_img)", "seeds"]) == {"0"}
    assert set(rows.loc[rows["method"] != "PA-Filt(L_img)", "seeds"]) == {"0 1"}


def test_a_comparison_of_nothing_but_failures_is_left_out(two, monkeypatch):
    for each in two:
        monkeypatch.setattr(
            each, "failure", lambda method: "failed" if method == "PA-Filt(L_img)" else None
        )
    assert set(compare(two)["method"]) == {"Filt(L_img)", "Filt(L_sem)"}


def made(value, low, high, outcome):
    same = {"study": "digits", "per_seed": "+0.1000 +0.3000", "seeds": "0 1", "n": 24}
    return {
        "method": "A*",
        "other": "B",
        "value": value,
        "low": low,
        "high": high,
        "outcome": outcome,
    } | same


MADE = pd.DataFrame(
    [
        made(0.2, 0.1, 0.3, "better") | {"eps": MEAN},
        made(0.2, 0.15, 0.25, "better") | {"eps": 0.0},
        made(0.2, -0.05, 0.45, "undecided") | {"eps": 0.001},
        made(-0.2, -0.3, -0.1, "worse") | {"eps": 0.1},
    ]
)


def test_the_table_has_a_line_for_each_comparison():
    line = seeds.wide(MADE).loc["A* − B"]
    assert line["mean"] == "+0.200"
    assert line["interval"] == "+0.100 … +0.300"
    assert line["each"] == "+0.100, +0.300"
    assert (line["better"], line["worse"]) == (1, 1)


def test_the_page_has_every_interval():
    text = seeds.markdown(MADE, Study.named("digits", "smoke"))
    assert "| **A\\* − B** | +0.200 | +0.100 … +0.300 |" in text
    assert "| 1e-3 | -0.050 … +0.450 |" in text


def test_the_picture_has_a_line_for_each_seed_and_their_mean(rows):
    figure = draw_differences(rows)
    assert len(figure.axes) == len(COMPARISONS)
    for axes, (method, other) in zip(figure.axes, COMPARISONS, strict=True):
        part = rows[(rows["method"] == method) & (rows["other"] == other) & (rows["eps"] != MEAN)]
        *each, mean, _ = axes.get_lines()
        assert len(each) == 2
        assert mean.get_ydata() == pytest.approx(part["value"].to_numpy(float))


def test_a_users_own_classifier_stays(artefacts):
    own = artefacts.classifier()
    study = replace(artefacts.study, classifier="resnet20")
    (again,) = trainings(Evaluation(Artefacts(study, artefacts.store, own)), (1,))
    assert again.artefacts.own is own
