"""The methods: the tables' rows, written out here once more, and the recipe behind each."""

import pytest

from nbsupport.experiments.methods import DEFENCES, TABLES, find_recipe, split_method

BASELINES = ("8-bit", "JPEG 50", "median 3x3", "Gaussian blur", "total variation")
FOUR = ("Add(L_sem)", "Filt(L_sem)", "Add(L_img)", "Filt(L_img)")
HEADS = ("head_1", "head_2", "head_3", "head_4")
FUSED = ("PA-Filt(L_img)_sl", "PA-Filt(L_img)_m", "PA-Filt(L_img)", "PA-Filt(L_img+KL)")
AT_32_DB = ("Filt(L_img)@32dB", "PA-Filt(L_img)_sl@32dB", "PA-Filt(L_img)_m@32dB")
PUBLISHED = ("Add(L_img)_as_published", "Filt(L_img)_as_published")
ROWS = {
    1: {"attacked", *FOUR, "Filt(L_img*)", "HGD", *PUBLISHED, AT_32_DB[0], *BASELINES},
    2: {"attacked", *FOUR, "Filt(L_img*)", "HGD", *PUBLISHED, AT_32_DB[0], *BASELINES},
    3: {"attacked", *HEADS, *BASELINES},
    4: {
        "attacked",
        *FUSED,
        "PA-Filt(L_img)_as_published",
        "Filt(L_img)",
        *AT_32_DB[1:],
        *BASELINES,
    },
    5: {"attacked", "Adv", "Add+Adv", "Filt+Adv", "PA-Filt+Adv"},
    6: {"attacked", "FPD", "Add+FPD", "Filt+FPD"},
    7: {"attacked", "FD", "Add+FD", "Filt+FD"},
}


def test_a_table_has_the_papers_rows_and_the_simple_baselines():
    assert {number: set(methods) for number, methods in TABLES.items()} == ROWS


def test_the_adaptive_evaluation_covers_tables_1_to_5():
    expected = {*FOUR, "Filt(L_img*)", "HGD", *HEADS, *FUSED, *AT_32_DB, *ROWS[5], *BASELINES}
    expected |= {"PA-Filt(L_adv)"}
    assert set(DEFENCES) == expected


@pytest.mark.parametrize(
    ("method", "denoiser", "classifier"),
    [
        ("8-bit", "8-bit", "standard"),
        ("Adv", "attacked", "Adv"),
        ("Filt+FD", "Filt(L_img)", "FD"),
        ("PA-Filt+Adv", "PA-Filt(L_img)", "Adv"),
    ],
)
def test_a_method_is_a_denoiser_before_a_classifier(method, denoiser, classifier):
    assert split_method(method) == (denoiser, classifier)


@pytest.mark.parametrize(
    ("method", "recipe"),
    [
        ("Filt(L_img*)", ("Filt(L_img*)", None)),
        ("head_3", ("Multi-head-Filt(L_img)", 3)),
        ("PA-Filt(L_img)_m", ("Y-Net", "m")),
        ("PA-Filt(L_img)_m@32dB", ("Y-Net_as_published", "m")),
        ("Filt(L_img)_as_published@250", ("Filt(L_img)_as_published", None)),
        ("Filt+FD", ("Filt(L_img)", None)),
        ("Adv", (None, None)),
        ("JPEG 7", (None, None)),
        ("Gaussian blur 0.45", (None, None)),
    ],
)
def test_the_recipe_of_a_method(method, recipe):
    assert find_recipe(method) == recipe


@pytest.mark.parametrize(
    "method",
    ["PA-Filt(L_img)_literal", "standard", "JPEG 96", "Gaussian blur 0"],
)
def test_an_unknown_method_is_refused(method):
    with pytest.raises(ValueError, match=r"no method named.*JPEG q .*σ"):
        find_recipe(method)
