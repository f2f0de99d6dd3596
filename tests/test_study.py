"""Settings of an experiment: named studies, changes, environment variables, refusals, labels."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from torch import nn

from nbsupport.experiments.evaluation import evaluate
from nbsupport.results.save import roots
from nbsupport.study import (
    EPS,
    SMALLEST,
    STRONG_EPS,
    STUDIES,
    Study,
    default_home,
    eps_label,
    short,
)


@pytest.mark.parametrize("name", STUDIES)
def test_a_scale_changes_sizes_only(name):
    standard = ["standard"] * (name in ("cifar10", "neurips2017dev"))
    scales = ["smoke", "quick", *standard, "paper"]
    assert list(STUDIES[name]) == scales
    specifications = [Study.named(name, scale).specification() for scale in scales]
    for specification in specifications:
        assert list(specification) == [field.name for field in fields(Study)]
        for field in ("name", "eps", "seed"):
            assert specification[field] == specifications[0][field]


def test_the_strengths_are_the_papers():
    attacked = [float(f"{digit}e-{power}") for power in (4, 3, 2, 1) for digit in (1, 3, 5)]
    assert [0, *attacked] == list(EPS) == list(Study.named().eps)
    assert set(STRONG_EPS) == {0.1, 0.3, 0.5}
    assert Study.named().attacked_eps == EPS[1:]


def test_the_environment_overrides_the_cell_of_a_notebook(monkeypatch):
    assert Study.chosen(scale="smoke", seed=3) == Study.named(scale="smoke", seed=3)
    monkeypatch.setenv("NBSUPPORT_STUDY", "photographs")
    monkeypatch.setenv("NBSUPPORT_SCALE", "smoke")
    assert Study.chosen("cifar10", "paper", seed=3) == Study.named("photographs", "smoke", seed=3)
    assert Study.named().scale == "quick"  # only `chosen` looks at it


def test_the_default_home_is_below_the_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("NBSUPPORT_HOME", "~/here")
    assert default_home() == Path.home() / "here"
    monkeypatch.delenv("NBSUPPORT_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_home() == tmp_path / "nbsupport"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert default_home() == Path.home() / ".cache" / "nbsupport"
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    here = default_home()
    monkeypatch.chdir(tmp_path)  # a notebook runs in another folder
    assert default_home() == here


def test_relative_paths_mean_the_same_in_the_shell_and_in_a_notebook(monkeypatch, tmp_path):
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    monkeypatch.setenv("PWD", str(tmp_path))
    monkeypatch.setenv("NBSUPPORT_CLASSIFIER", "model.py:factory")
    monkeypatch.setenv("NBSUPPORT_ROBUST", "robustbench:Wang2023Better_WRN-28-10")
    monkeypatch.setenv("NBSUPPORT_FIGURES", "mine")
    study = Study.chosen("cifar10", "smoke")
    assert study.classifier == f"{tmp_path}/model.py:factory"
    assert study.robust == "robustbench:Wang2023Better_WRN-28-10"
    assert roots() == [tmp_path / "mine"]


@pytest.mark.parametrize("choose", [Study.named, Study.chosen])
def test_an_unknown_study_scale_or_setting_is_refused(choose):
    with pytest.raises(ValueError, match=r"mnist.*photographs"):
        choose("mnist")
    with pytest.raises(ValueError, match=r"huge.*smoke, quick, paper"):
        choose("photographs", "huge")
    with pytest.raises(TypeError, match="widht"):
        choose(widht=8)


@pytest.mark.parametrize("eps", [(0.1, 0.3), (0.0, 0.3, 0.1), (0.0, 8.0), (0.0, float("nan")), ()])
def test_strengths_rise_from_0_to_at_most_1(eps):
    with pytest.raises(ValueError, match=r"Study\.eps"):
        Study.named(eps=eps)


def test_numbers_are_positive():
    numbers = {field.name for field in fields(Study) if field.type in (int, float)} - {"seed"}
    for field in sorted(numbers):
        with pytest.raises(ValueError, match=rf"Study\.{field}"):
            Study.named(**{field: 0})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kernel_size", 4),
        ("image_size", 5),
        ("sweep_steps", (10, 40)),  # 40 is `steps`
        ("precision", "float16"),
        ("data", "photos"),  # photographs need no folder
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(field, value, no_shape_checker):
    with pytest.raises(ValueError, match=rf"Study\.{field}"):
        Study.named("photographs", "quick", **{field: value})


def test_images_that_ssim_cannot_measure_are_refused_before_any_work():
    shape = (2, 3, 32, 4)
    network = nn.Identity()  # is not even called, so it need not return logits
    with pytest.raises(ValueError, match=f"^evaluate: .* {SMALLEST} pixels or more"):
        evaluate(network, None, torch.rand(shape), torch.zeros(shape[0], dtype=torch.long))


def test_a_label_gives_the_strength_in_both_units():
    assert eps_label(0) == eps_label(0.0) == "0 (clean)"
    for eps in EPS[1:]:
        strength, units = re.fullmatch(r"(\de-\d) \((\d+(?:\.\d+)?)/255\)", eps_label(eps)).groups()
        assert float(strength) == eps and strength == short(eps)
        assert float(units) == pytest.approx(255 * eps, rel=0.03)


REFERENCES = {"{}mine.py:factory": "Adv", "robustbench:Someone2020Robust_WRN-28-10": "Adv"}
REFERENCES |= {"fd:{}R152-Denoise.npz": "FD", "fpd:{}svhn.pth": "FPD", "": ""}


@pytest.mark.parametrize(("name", "replaced"), REFERENCES.items())
def test_a_specification_names_files_wherever_they_are(name, replaced, tmp_path):
    long, short = name.format(f"{tmp_path}/some: place/"), name.format("")
    custom = dict(classifier=long, robust=long, data=str(tmp_path / "photos"))
    found = (study := Study.named("folder", **custom)).specification()
    assert (found["classifier"], found["robust"], found["data"]) == (short, short, "photos")
    assert study.replaced == replaced
