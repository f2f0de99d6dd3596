"""The operating point: every point against a measurement of its own."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from small import STUDY, SmallExperiment

from nbsupport.denoisers.baselines import BASELINES, Baseline
from nbsupport.experiments.evaluation import measure
from nbsupport.experiments.methods import BOTH_LOSSES, CLEAN_PSNR
from nbsupport.results import operating_points
from nbsupport.results.operating_points import DIAL, JPEG, SWEEPS, TRAINED, curve, list_dial
from nbsupport.results.plots import draw_operating_points

FAILED, EPS = "Filt(L_img*)", (0.02, 0.1)
STEPS = {3: "Gaussian blur 1", 7: "median 3x3", 12: "8-bit"}


class Blurring(SmallExperiment):
    """Filt(L_img) blurs, its training as published blurs less and less; the rest is as named."""

    def trained(self, recipe):
        assert recipe == TRAINED
        psnr = {"7": 20.0, "12": 25.0, "3": 15.0, "2": 14.9}
        return SimpleNamespace(report={"clean_psnr": {"kernels": psnr}})

    def denoiser(self, method):
        step = method.removeprefix(f"{TRAINED}@")
        name = STEPS[int(step)] if step.isdecimal() else method
        return super().denoiser(method) if name in self.denoisers else Baseline(name)

    def changed(self, image_weight):
        """Each λ has another blur as PA-Filt(L_img+KL)."""
        study = replace(self.study, image_weight=image_weight)
        blur = Baseline(f"Gaussian blur {image_weight / 100:g}")
        return Blurring(self.store.home / f"{image_weight:g}", study=study, **{BOTH_LOSSES: blur})


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    study = replace(STUDY, images_from="JPEG copies")
    blur = Baseline("Gaussian blur 0.7")
    return Blurring(tmp_path_factory.mktemp("store"), study=study, **{"Filt(L_img)": blur})


@pytest.fixture(scope="module")
def rows(experiment):
    with pytest.MonkeyPatch.context() as patch:
        methods = ("attacked", "Filt(L_img)", FAILED, *BASELINES)
        patch.setattr(operating_points, "METHODS", methods)
        patch.setattr(operating_points, "failure", lambda _, method: "!" * (method == FAILED))
        return curve(experiment, EPS)


def test_every_point_is_what_was_measured(rows, experiment):
    measured = rows[rows["series"] != "published"]
    wanted = [f"{TRAINED}@{step}" for step in STEPS]
    wanted += [f"{name} {value:g}" for name, values in SWEEPS.items() for value in values]
    wanted += ["attacked", "Filt(L_img)", *BASELINES]
    per_method = measured.groupby("method", sort=False).size()
    assert set(per_method.index) == set(wanted)  # no failed training, nothing below 15 dB
    assert list(measured["parameter"].dropna().unique()[: len(STEPS)]) == [*STEPS]
    assert per_method.sum() == len(wanted) * 2 * len(EPS)
    for row in measured.itertuples():
        found = measure(experiment, row.method)["accuracy"]
        at = experiment.study.evaluated_eps.index(row.eps)
        plain, worst = found[at].mean(), found[: at + 1].all(axis=0).mean()
        assert row.accuracy == {"pgd": plain, "pgd-envelope": worst}[row.attack]
        assert (row.n, row.study, row.seed) == (24, "photographs", 0)


def test_the_dial_has_a_point_for_each_training_that_did_not_fail(experiment, monkeypatch):
    failure = lambda each, _: "!" * (each.study.image_weight == DIAL[0])  # noqa: E731
    monkeypatch.setattr(operating_points, "failure", failure)
    rows = curve(experiment, EPS, list_dial)
    found = rows[rows["series"] == BOTH_LOSSES]
    assert list(found["parameter"].unique()) == [*DIAL[1:]]
    for row in found[found["attack"] == "pgd"].itertuples():
        blurred = measure(experiment.changed(row.parameter), BOTH_LOSSES)
        at = experiment.study.evaluated_eps.index(row.eps)
        assert row.accuracy == blurred["accuracy"][at].mean()


@pytest.mark.parametrize("method", ["Filt(L_img)", "JPEG 20", f"{TRAINED}@3"])
def test_the_clean_psnr_is_the_mean_over_the_clean_images(method, rows, experiment):
    clean = experiment.images("test").images
    errors = (experiment.denoiser(method)(clean) - clean).double().square().mean(dim=(1, 2, 3))
    found = rows[rows["series"] != "published"].set_index("method")[CLEAN_PSNR]
    assert found[method].to_numpy() == pytest.approx(float((-10 * errors.log10()).mean()), rel=1e-5)
    assert np.isposinf(found["attacked"]).all()


def test_jpeg_is_an_artefact_from_70_on_where_the_images_are_jpeg_copies(
    rows, experiment, monkeypatch
):
    marked = rows[rows["artefact"]]
    assert set(marked["series"]) == {JPEG}
    assert set(marked["parameter"]) == {50, 70, 75, 85, 95}
    monkeypatch.setattr(experiment, "study", replace(experiment.study, images_from=""))
    monkeypatch.setattr(operating_points, "METHODS", ())
    assert not curve(experiment, EPS)["artefact"].any()


def test_other_strengths_are_refused(experiment):
    with pytest.raises(ValueError, match=r"curve: expected ε among 0, 2e-2, .* got 3e-3"):
        curve(experiment, (3e-3,))


def test_the_figure_has_every_number(rows):
    for axis, eps in zip(draw_operating_points(rows).axes, EPS, strict=True):
        lines = [line.get_xydata().tolist() for line in axis.lines]
        heights = {line[0][1] for line in lines if len(line) == 2 and line[0][1] == line[1][1]}
        points = [point for line in lines for point in line]
        part = rows[(rows["eps"] == eps) & (rows["attack"] == "pgd")]
        for row in part.rename(columns={CLEAN_PSNR: "psnr"}).itertuples():
            if np.isnan(row.psnr) or row.method == "attacked":
                assert row.accuracy in heights
            else:
                assert [min(row.psnr, 50), row.accuracy] in points
