"""A row of a stored adaptive evaluation is measured again, from stored networks, and nothing is made."""

import dataclasses

import pandas as pd
import pytest
import torch

from nbsupport.denoisers import pretrained
from nbsupport.experiments import audit
from nbsupport.experiments.adaptive_evaluation import evaluate_adaptively
from nbsupport.experiments.artifacts import Experiment
from nbsupport.results import verify as module
from nbsupport.results.save import save_adaptive
from nbsupport.results.verify import verify
from nbsupport.study import Study

METHODS = ("attacked", "8-bit", "Filt(L_img)")


@pytest.fixture
def recorded(experiment, tmp_path, monkeypatch):
    """The smallest ε of the smallest study's images, saved as if its scale were a larger one."""
    monkeypatch.setenv("NBSUPPORT_HOME", str(experiment.store.home))
    monkeypatch.setenv("NBSUPPORT_FIGURES", str(tmp_path))
    experiment = Experiment(dataclasses.replace(experiment.study, scale="quick"), experiment.store)
    found = {method: evaluate_adaptively(experiment, method) for method in METHODS}
    save_adaptive(experiment, found, audit.rows(experiment, found, {}), METHODS)
    return tmp_path / "photographs" / "adaptive_curves.csv"


@pytest.mark.parametrize("method", METHODS)
def test_the_same_networks_fall_at_the_same_strengths(recorded, method):
    found = verify("photographs", method)
    assert found[:2] == (4, 4) and "4 of 4 images" in found.report


def test_an_image_that_falls_elsewhere_is_named(recorded):
    table = pd.read_csv(recorded)
    table.loc[1, "8-bit"] = 0.9 - table.loc[1, "8-bit"].clip(0, 0.4)  # withstands every ε
    table.to_csv(recorded, index=False)
    found = verify("photographs", "8-bit", images=2)
    assert found[:2] == (2, 1)
    first, second = found.report.splitlines()
    assert "1 of 2 images" in first and "image 1: recorded withstands every ε, now " in second


def test_what_is_missing_is_refused_and_not_made(recorded, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no adaptive evaluation of 'cifar10'"):
        verify("cifar10", "8-bit")
    with pytest.raises(ValueError, match="no row 'Filt' in"):
        verify("photographs", "Filt")
    record = recorded.with_suffix(".json")
    text = record.read_text("utf-8")
    record.write_text(text.replace('"images_from": ""', '"images_from": "JPEG copies"'), "utf-8")
    with pytest.raises(ValueError, match="measured on JPEG copies"):
        verify("photographs", "8-bit")
    record.write_text(text, "utf-8")
    monkeypatch.setenv("NBSUPPORT_HOME", str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="has no such classifier"):
        verify("photographs", "attacked")
    assert not [*(tmp_path / "empty").rglob("*.safetensors")]


def test_a_pretrained_network_stands_in_for_a_stored_one_of_the_same_training(monkeypatch):
    about = pretrained.about
    monkeypatch.setattr(Experiment, "denoiser_specification",
                        lambda _, x: about(f"cifar10-{x}")["specification"]["trained"])  # fmt: skip
    classifier = about("cifar10-classifier")["specification"]
    monkeypatch.setattr(Experiment, "classifier_specification", lambda *_: classifier)
    images, load = pretrained.samples().images[:2], pretrained.load_pretrained
    filt, pa_filter = load("cifar10-Filt(L_img)"), load("cifar10-PA-Filt(L_img)")
    expected = {"Filt(L_img)": filt(images), "PA-Filt(L_img)_m": pa_filter.parts(images).m}
    for method, filtered in expected.items():
        found, behind = module._load(Experiment(Study.named("cifar10", "smoke")), method)
        assert torch.equal(found(images), filtered)
        assert str(behind) == str(load("cifar10-classifier"))
