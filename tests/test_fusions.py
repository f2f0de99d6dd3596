"""The comparison of fusions: against loops over images, on made-up measurements."""

import numpy as np
import pytest

from nbsupport.results import fusions
from nbsupport.results.tables import summarize_fusions

PARTS = fusions.PARTS
RIGHT = {method: np.random.default_rng(n).random((13, 40)) < 0.4 + n / 10
         for n, method in enumerate((*PARTS, fusions.FUSED))}  # fmt: skip


@pytest.fixture
def measured(experiment, monkeypatch):
    """Made-up accuracies; the fusion of a changed study is right where its seed says so."""

    def measure(changed, method, split):
        assert split == "validation"
        right = RIGHT[method]
        if method == fusions.FUSED and changed.study.fusion == "regret":
            right = np.roll(right, changed.study.denoiser_seed or 0)
        return {"accuracy": right}

    def report(changed, method):
        spread = 1e-4 if changed.study.fusion_start == "default" else 0.2
        return {"alive": [1.0], "change": [1.0], "weight_std": spread}

    monkeypatch.setattr(fusions, "measure", measure)
    monkeypatch.setattr("nbsupport.experiments.artifacts.Experiment.report", report)
    return experiment


def test_the_headroom_is_that_of_a_choice_by_strength_and_by_image(measured):
    found = fusions.headroom(measured)
    for row, eps in enumerate(measured.study.eps):
        sl, m = (RIGHT[part][row] for part in PARTS)
        either = sum(bool(a or b) for a, b in zip(sl, m, strict=True)) / len(sl)
        expected = [sl.mean(), m.mean(), max(sl.mean(), m.mean()), either]
        assert found.loc[eps].tolist() == pytest.approx(expected)


def test_every_variant_is_compared_with_the_better_part_on_the_same_images(measured, monkeypatch):
    monkeypatch.setattr(fusions, "groups", lambda _, split: np.arange(40))
    rows = fusions.compare(measured, seeds=(0, 1))
    assert {*rows["variant"]} == {*fusions.VARIANTS} and len(rows) == 2 * len(fusions.VARIANTS)
    better = max((RIGHT[part] for part in PARTS), key=np.mean)
    for row in rows.to_dict("records"):
        right = RIGHT[fusions.FUSED]
        if "regret" in row["variant"]:
            right = np.roll(right, row["seed"])
        gains = [sum(right[:, i] * 1.0 - better[:, i]) / 13 for i in range(40)]
        assert row["accuracy"] == pytest.approx(right.mean())
        assert row["gain"] == pytest.approx(np.mean(gains))
        assert row["error"] == pytest.approx(np.std(gains, ddof=1) / 40**0.5)
        assert row["collapsed"] == ("start" in row["variant"])
    summary = summarize_fusions(rows)
    assert summary["collapsed"].sum() == 2
    assert summary.loc["loss: mean", "accuracy"] == pytest.approx(RIGHT[fusions.FUSED].mean())
