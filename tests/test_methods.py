"""The methods: the recipe behind each."""

import pytest

from nbsupport.experiments.methods import find_recipe


@pytest.mark.parametrize(
    ("method", "recipe"),
    [
        ("head_3", ("Multi-head-Filt(L_img)", 3)),
        ("PA-Filt(L_img)_m@32dB", ("Y-Net_as_published", "m")),
        ("Filt(L_img)_as_published@250", ("Filt(L_img)_as_published", None)),
        ("Filt+FD", ("Filt(L_img)", None)),
        ("Adv", (None, None)),
        ("Gaussian blur 0.45", (None, None)),
    ],
)
def test_the_recipe_of_a_method(method, recipe):
    assert find_recipe(method) == recipe


def test_a_checkpoint_of_a_training_that_keeps_none_is_refused():
    with pytest.raises(ValueError, match=r"'HGD@5': .*keeps checkpoints, got HGD"):
        find_recipe("HGD@5")


@pytest.mark.parametrize(
    "method",
    ["PA-Filt(L_img)_literal", "standard", "JPEG 96", "Gaussian blur 0"],
)
def test_an_unknown_method_is_refused(method):
    with pytest.raises(ValueError, match=r"no method named.*JPEG q .*σ"):
        find_recipe(method)
