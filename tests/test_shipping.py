"""Networks of a study, as they are shipped, come back."""

import pytest
import torch

from nbsupport import shipped
from nbsupport.evaluation import Evaluation
from nbsupport.shipped import about, load_pretrained, names
from nbsupport.shipping import METHODS, ship


@pytest.fixture(scope="module")
def evaluation(artefacts):
    return Evaluation(artefacts)


@pytest.fixture
def folder(evaluation, tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "pretrained")
    ship(evaluation, shipped.FOLDER)
    return shipped.FOLDER


def test_what_is_shipped_comes_back(evaluation, folder):
    artefacts = evaluation.artefacts
    assert names() == sorted(["digits-classifier", *(f"digits-{method}" for method in METHODS)])
    images = artefacts.images("test").images
    assert torch.equal(load_pretrained("digits-classifier")(images), artefacts.classifier()(images))
    for method in METHODS:  # at half precision
        again, denoiser = load_pretrained(f"digits-{method}"), artefacts.denoiser(method)
        for name, weight in denoiser.state_dict().items():
            assert torch.equal(again.state_dict()[name], weight.half().float())
        assert torch.allclose(again(images), denoiser(images), atol=5e-3)


def test_accuracy_is_that_of_the_study_but_for_rounding(evaluation, folder):
    for method in ("attacked", *METHODS):
        known = about("digits-classifier" if method == "attacked" else f"digits-{method}")["accuracy"]["test"]
        curve = evaluation.measurement(method).correct().mean(axis=1)
        assert list(known) == [str(eps) for eps in evaluation.study.eps]
        assert list(known.values()) == pytest.approx(list(curve), abs=1.5 / evaluation.study.test_images)


def test_it_says_what_it_was_made_from(evaluation, folder):
    known = about("digits-Filt(L_img)")
    assert known["specification"] == evaluation.artefacts.specification("Filt(L_img)")
    assert known["again"] == "python -m nbsupport compute --study digits --scale smoke --tables 1 3 4"
