"""Which rows the tables have, and what the attacker who knows is set upon: written out here once more."""

import pytest

from nbsupport.attacks.adaptive import LOSSES, REL_STEPS
from nbsupport.experiments.methods import DEFENCES, TABLES, parts, trainings
from nbsupport.study import Study

BASELINES = ("8-bit", "JPEG 75", "median 3x3", "Gaussian blur", "total variation")
FOUR = ("Add(L_sem)", "Filt(L_sem)", "Add(L_img)", "Filt(L_img)")
HEADS = ("head_1", "head_2", "head_3", "head_4")
FUSED = ("PA-Filt(L_img)_sl", "PA-Filt(L_img)_m", "PA-Filt(L_img)")
ROWS = {
    1: ("attacked", *FOUR, "Filt(L_img*)", *BASELINES),
    2: ("attacked", *FOUR, "Filt(L_img*)", *BASELINES),
    3: ("attacked", *HEADS, *BASELINES),
    4: ("attacked", *FUSED, "PA-Filt(L_img)_literal", "Filt(L_img)", *BASELINES),
    5: ("attacked", "Adv", "Add+Adv", "Filt+Adv", "PA-Filt+Adv"),
    6: ("attacked", "FPD", "Add+FPD", "Filt+FPD"),
    7: ("attacked", "FD", "Add+FD", "Filt+FD"),
}


@pytest.mark.parametrize("number", ROWS)
def test_a_table_has_the_papers_rows_and_the_simple_baselines(number):
    assert TABLES[number] == ROWS[number]


@pytest.mark.parametrize(
    ("methods", "names"),
    [
        (TABLES[4], ["Y-Net", "PA-Filt(L_img)", "PA-Filt(L_img)_literal", "Filt(L_img)"]),
        (TABLES[3], ["Multi-head-Filt(L_img)"]),
        (
            ("PA-Filt(L_adv)", "Filt+FD", "Filt+Adv"),
            ["Y-Net", "PA-Filt(L_img)", "PA-Filt(L_adv)", "Filt(L_img)"],
        ),
        (("attacked", "FPD", "median 3x3"), []),
    ],
)
def test_what_a_training_starts_from_comes_before_it_and_long_chains_first(methods, names):
    assert trainings(methods) == names


def test_the_attacker_who_knows_is_set_upon_everything():
    robust = ("Adv", "Add+Adv", "Filt+Adv", "PA-Filt+Adv")
    assert sorted(DEFENCES) == sorted(
        ("attacked", *FOUR, "Filt(L_img*)", *HEADS, *FUSED, *robust, *BASELINES, "PA-Filt(L_adv)")
    )


@pytest.mark.parametrize(
    ("method", "denoiser", "classifier"),
    [
        ("Filt(L_img)", "Filt(L_img)", "standard"),
        ("8-bit", "8-bit", "standard"),
        ("Adv", "attacked", "Adv"),
        ("Add+FPD", "Add(L_img)", "FPD"),
        ("Filt+FD", "Filt(L_img)", "FD"),
        ("PA-Filt+Adv", "PA-Filt(L_img)", "Adv"),
    ],
)
def test_a_row_is_a_denoiser_before_a_classifier(method, denoiser, classifier):
    assert parts(method) == (denoiser, classifier)


@pytest.mark.parametrize("name", ["digits", "cifar10", "svhn", "neurips2017dev"])
def test_at_the_papers_scale_nothing_is_spared(name):
    study = Study.named(name, "paper")
    assert (study.steps, study.sweep_eps, study.sweep_steps) == (40, 0.3, (10, 30, 50, 70, 90))
    assert (study.adaptive_steps, study.adaptive_restarts) == (400, 5)
    assert (study.adaptive_iterations, study.adaptive_queries) == (100, 5000)
    assert len(study.eps) == 13


def test_three_sizes_of_step_and_two_losses():
    assert REL_STEPS == (0.25, 0.01 / 0.3, 0.01)
    assert set(LOSSES) == {"cross-entropy", "margin"}
