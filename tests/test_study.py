"""What is to be run: names, scales, changes, and the notebooks' two environment variables."""

import re
from dataclasses import FrozenInstanceError, fields

import pytest

from nbsupport.study import EPS, STRONG_EPS, STUDIES, Study, eps_label

every_study = pytest.mark.parametrize("name", STUDIES)


@every_study
def test_every_study_comes_in_three_scales(name):
    assert list(STUDIES[name]) == ["smoke", "quick", "paper"]


@every_study
def test_a_scale_has_all_fields_and_changes_sizes_only(name):
    specifications = [Study.named(name, scale).specification() for scale in STUDIES[name]]
    for specification in specifications:
        assert list(specification) == [field.name for field in fields(Study)]
        assert all(
            specification[field] == specifications[0][field] for field in ("name", "eps", "seed")
        )


def test_scales_grow():
    sizes = (
        "train_images",
        "test_images",
        "width",
        "epochs",
        "classifier_epochs",
        "fusion_epochs",
        "steps",
    )
    smoke, quick, paper = (Study.named("digits", scale) for scale in ("smoke", "quick", "paper"))
    assert all(
        getattr(smoke, size) <= getattr(quick, size) <= getattr(paper, size) for size in sizes
    )


def test_the_paper_scale_is_the_papers():
    study = Study.named("digits", "paper")
    assert (study.width, study.kernel_size, study.steps) == (64, 5, 40)


def test_the_strengths_are_the_papers():
    attacked = [float(f"{digit}e-{power}") for power in (4, 3, 2, 1) for digit in (1, 3, 5)]
    assert [0, *attacked] == list(EPS)
    assert set(STRONG_EPS) == {0.1, 0.3, 0.5}
    assert Study.named().eps == EPS
    assert Study.named().attacked_eps == EPS[1:]


def test_the_default_is_the_offline_study_on_a_cpu():
    assert Study.named() == Study.named("digits", "quick") == Study.chosen()


def test_changes_replace_single_attributes():
    study = Study.named("digits", "smoke", width=6, eps=(0.0, 0.25))
    assert (study.width, study.eps, study.attacked_eps) == (6, (0.0, 0.25), (0.25,))
    assert (
        study.specification() | {"width": 4, "eps": EPS}
        == Study.named("digits", "smoke").specification()
    )


def test_the_environment_overrides_the_cell_of_a_notebook(monkeypatch):
    monkeypatch.setenv("NBSUPPORT_STUDY", "digits")
    monkeypatch.setenv("NBSUPPORT_SCALE", "smoke")
    assert Study.chosen("cifar10", "paper", seed=3) == Study.named("digits", "smoke", seed=3)


def test_it_also_chooses_classifier_images_and_their_size(monkeypatch):
    for name, value in {
        "CLASSIFIER": "mine.py:factory",
        "DATA": "photos",
        "IMAGE_SIZE": "24",
    }.items():
        monkeypatch.setenv(f"NBSUPPORT_{name}", value)
    own = dict(classifier="mine.py:factory", image_size=24)
    assert Study.chosen("folder", "smoke", seed=3) == Study.named(
        "folder", "smoke", seed=3, data="photos", **own
    )
    assert Study.chosen("digits", "smoke") == Study.named("digits", "smoke", **own)
    monkeypatch.setenv("NBSUPPORT_IMAGE_SIZE", "1e2")
    with pytest.raises(
        ValueError, match=r"Study.image_size: expected a number of pixels such as 224, got '1e2'"
    ):
        Study.chosen()


def test_without_it_the_cell_decides():
    assert Study.chosen("digits", "smoke", seed=3) == Study.named("digits", "smoke", seed=3)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("NBSUPPORT_STUDY", "digit", "no study named 'digit'; there are: digits"),
        ("NBSUPPORT_SCALE", "large", "has no scale 'large'; there are: smoke, quick, paper"),
    ],
)
def test_the_environment_is_checked_too(variable, value, message, monkeypatch):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=message):
        Study.chosen()


def test_only_chosen_looks_at_the_environment(monkeypatch):
    monkeypatch.setenv("NBSUPPORT_SCALE", "smoke")
    assert Study.named().scale == "quick"


def test_an_unknown_study_is_refused():
    with pytest.raises(ValueError, match="no study named 'mnist'; there are: digits"):
        Study.named("mnist")


def test_an_unknown_scale_is_refused():
    with pytest.raises(
        ValueError, match="the study 'digits' has no scale 'huge'; there are: smoke, quick, paper"
    ):
        Study.named("digits", "huge")


def test_an_unknown_attribute_is_refused():
    with pytest.raises(TypeError, match="widht"):
        Study.named(widht=8)


@pytest.mark.parametrize(
    "eps",
    [
        (0.1, 0.3),
        (0.0, 0.3, 0.1),
        (0.0, 0.1, 0.1),
        (0.0, 8.0),
        (-0.1, 0.0, 0.1),
        (0.0, float("nan")),
        (),
    ],
    ids=["no 0", "falls", "repeats", "above 1", "negative", "NaN", "empty"],
)
def test_strengths_rise_from_0_and_stay_within_1(eps):
    with pytest.raises(
        ValueError, match=r"Study.eps: expected strengths that rise from 0 and stay within 1, got"
    ):
        Study.named(eps=eps)


@pytest.mark.parametrize(
    "field",
    [
        "train_images", "test_images", "image_size", "width", "kernel_size", "epochs", "batch_size",
        "classifier_epochs", "fusion_epochs", "steps",
    ],
)  # fmt: skip
@pytest.mark.parametrize("value", [0, -1])
def test_sizes_are_positive(field, value):
    with pytest.raises(ValueError, match=f"Study.{field}: expected a positive number, got {value}"):
        Study.named(**{field: value})


@pytest.mark.parametrize("field", [field.name for field in fields(Study) if field.type is float])
@pytest.mark.parametrize("value", [0.0, -2e-3, float("nan")])
def test_learning_rates_are_positive(field, value):
    with pytest.raises(ValueError, match=f"Study.{field}: expected a positive number, got {value}"):
        Study.named(**{field: value})


def test_the_sweep_has_other_numbers_of_steps():
    with pytest.raises(
        ValueError, match=r"Study.sweep_steps: expected other numbers than steps = 30, got \(10, 30"
    ):
        Study.named("digits", "quick", steps=30)


def test_kernels_have_a_middle():
    with pytest.raises(ValueError, match=r"Study.kernel_size: expected an odd number, got 4"):
        Study.named(kernel_size=4)


@pytest.mark.parametrize("seed", [0, -1, 2**31])
def test_any_seed_will_do(seed):
    assert Study.named(seed=seed).seed == seed


def test_a_study_does_not_change():
    with pytest.raises(FrozenInstanceError):
        Study.named().width = 5


def test_equal_studies_are_one_key():
    assert len({Study.named(), Study.named(), Study.named(seed=1)}) == 2


def test_clean_images_have_a_label():
    assert eps_label(0) == eps_label(0.0) == "0 (clean)"


@pytest.mark.parametrize("eps", EPS[1:])
def test_a_label_gives_the_strength_in_both_units(eps):
    strength, units = re.fullmatch(r"(\de-\d) \((\d+(?:\.\d+)?)/255\)", eps_label(eps)).groups()
    assert float(strength) == eps
    assert float(units) == pytest.approx(255 * eps, rel=0.03)


def test_in_a_notebook_it_is_one_line_that_opens():
    study = Study.named("digits", "smoke", classifier="a<b")
    shown = study._repr_html_()
    summary, rest = shown.removeprefix("<details><summary>").split("</summary>")
    assert summary == f"digits at smoke: a&lt;b, {study.test_images} test images, seed 0"
    assert rest.count("<tr>") == len(study.specification())
    assert "<tr><th>learning_rate</th><td>0.002</td></tr>" in rest
