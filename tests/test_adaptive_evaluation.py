"""The smallest ε per image against closed forms, kept in blocks; and gains against a paired bootstrap."""

import dataclasses

import numpy as np
import pytest
import torch
from small import STUDY, SmallExperiment, linear, radii

from nbsupport.denoisers.baselines import Baseline
from nbsupport.experiments import adaptive_evaluation as module
from nbsupport.experiments.adaptive_evaluation import evaluate_adaptively, gain

CHEAP = dataclasses.replace(
    STUDY, adaptive_images=6, adaptive_steps=20, adaptive_iterations=2, adaptive_queries=5
)


def small(home, **changes):
    study = dataclasses.replace(CHEAP, **changes)
    return SmallExperiment(home, study=study, blurred=Baseline("Gaussian blur"))


def test_a_linear_classifier_falls_where_its_closed_form_says(tmp_path):
    experiment = SmallExperiment(tmp_path)
    found, part = evaluate_adaptively(experiment, "attacked"), experiment.images("adaptive")
    exact = radii(experiment.victim, part.images, part.labels, 1).numpy()
    exact[0] = 0  # wrong from the beginning
    assert found.eps == experiment.study.evaluated_eps and found.smallest.shape == (12,)
    robust, gray_box = found.robust(), found.gray_box
    for row, eps in enumerate(found.eps):
        sure = np.abs(exact - eps) > 0.05 * exact
        np.testing.assert_array_equal(robust[row, sure], exact[sure] > eps)
    assert not (robust[1:] & ~robust[:-1]).any()
    assert gray_box.shape == robust.shape and not (robust & ~gray_box).any()
    assert (found.classes, found.logits, found.deterministic) == (4, True, True)
    assert found.gradients >= 60 and found.forwards > 0 and found.seconds > 0


def test_transferred_attacks_count(tmp_path, monkeypatch):
    """Even where the attacks through the defence find nothing."""
    experiment = small(tmp_path)
    nothing = lambda target, steps: torch.full((2, len(target.images)), torch.inf)  # noqa: E731
    monkeypatch.setattr(module, "minimal_eps", nothing)
    monkeypatch.setattr(module, "plan_ensemble", lambda target, **options: [])
    found, eps = evaluate_adaptively(experiment, "blurred"), experiment.study.evaluated_eps
    survived = [
        module.aim(experiment, "blurred", "adaptive").withstands(attacked.at(strength, 6)).numpy()
        for attacked in module.transferred(experiment).values()
        for strength in eps[1:]
    ]
    both = np.logical_and(*np.split(np.array(survived), 2))
    clean = found.gray_box[0]
    expected = np.logical_and.accumulate(both, axis=0)
    np.testing.assert_array_equal(found.robust()[1:, clean], expected[:, clean])


def test_an_interrupted_evaluation_goes_on_with_the_next_block(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 4)
    expected = evaluate_adaptively(small(tmp_path / "whole"), "blurred")
    honest, sizes = module.descend, []

    def attack(target, *arguments):
        if len(sizes) == 1:
            sizes.append(0)
            raise KeyboardInterrupt
        sizes.append(len(target.images))
        return honest(target, *arguments)

    monkeypatch.setattr(module, "descend", attack)
    with pytest.raises(KeyboardInterrupt):
        evaluate_adaptively(small(tmp_path / "again"), "blurred")
    found = evaluate_adaptively(small(tmp_path / "again"), "blurred")
    assert sizes == [4, 0, 2]
    np.testing.assert_array_equal(found.smallest, expected.smallest)
    assert found.gradients == expected.gradients


def test_a_second_session_attacks_nothing_and_other_weights_are_attacked_anew(
    tmp_path, monkeypatch
):
    evaluate_adaptively(small(tmp_path), "blurred")
    monkeypatch.setattr(module, "minimal_eps", None)
    evaluate_adaptively(small(tmp_path), "blurred")
    other = small(tmp_path)
    other.victim = linear(5)
    with pytest.raises(TypeError):
        evaluate_adaptively(other, "blurred")


def test_a_key_changes_with_the_studys_effort(tmp_path):
    same = module.minimal_specification(small(tmp_path), "blurred")
    for name in ("adaptive_steps", "adaptive_iterations", "adaptive_queries", "seed"):
        changed = small(tmp_path, **{name: 7})
        assert module.minimal_specification(changed, "blurred") != same


def test_a_gain_is_paired_over_images():
    """Beside an unpaired one it is as narrow as the images that differ allow."""
    rng = np.random.default_rng(0)
    smallest = rng.exponential(0.05, 400)
    better = smallest * rng.choice([1.0, 2.0], 400)
    one, other = (x > np.array([0.0, 0.03, 0.1, 0.5])[:, None] for x in (better, smallest))
    value, low, high = gain(one, other, np.arange(400))
    for row, difference in enumerate(one.astype(float) - other):
        assert value[row] == pytest.approx(difference.mean())
        won, lost = ((sign * difference > 0).sum() + 1 for sign in (1, -1))
        center, number = (won - lost) / 402, 402  # Bonett and Price 2012, equation (5)
        half = 1.96 * ((won + lost) / number - center**2) ** 0.5 / number**0.5
        assert (low[row], high[row]) == pytest.approx((center - half, center + half), abs=0.006)


def test_the_interval_of_no_difference_is_symmetric():
    same = np.random.default_rng(0).random((3, 160)) > 0.5
    _, low, high = gain(same, same, np.arange(160) % 10)
    np.testing.assert_array_equal(low, -high)
    assert (high > 0).all()


def test_images_of_one_group_carry_no_more_than_one_of_them():
    rng = np.random.default_rng(0)
    one, other = (rng.random((3, 30)) > share for share in (0.3, 0.6))
    alone = gain(one, other, np.arange(30))
    copies = gain(*(np.repeat(x, 9, axis=1) for x in (one, other)), np.repeat(np.arange(30), 9))
    np.testing.assert_allclose(copies[0], alone[0])
    np.testing.assert_allclose(copies[1:], alone[1:], atol=0.06)  # two images more, of 32 or 272
