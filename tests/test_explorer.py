"""The explorer without a browser: what it would show for every choice. In a browser: tests/browser."""

import copy
import time

import ipywidgets
import matplotlib
import numpy as np
import pytest
import torch
from small import CLASSES, SIDE, linear, pictures
from test_exploration import EPS, WORDS, trained

from nbsupport.denoisers.models import Additive, Filtering, PAFilter
from nbsupport.interactive.exploration import Exploration
from nbsupport.interactive.explorer import Explorer
from nbsupport.interactive.widgets import exercise, explore
from nbsupport.study import eps_label


@pytest.fixture(autouse=True)
def _no_widgets_left():
    yield
    ipywidgets.Widget.close_all()


@pytest.fixture(scope="module")
def found():
    kinds = {"Add(L_img)": Additive, "Filt(L_img)": Filtering, "PA-Filt(L_img)": PAFilter}
    denoisers = {name: trained(kind) for name, kind in kinds.items()}
    return Exploration(
        linear(), denoisers, pictures(3), torch.arange(3) % CLASSES, WORDS, eps=EPS, steps=4
    )


@pytest.fixture
def explorer(found):
    return Explorer(copy.deepcopy(found))


def test_one_call_computes_and_shows():
    images, labels = pictures(1), torch.tensor([2])
    one = explore(linear(), {"Filt(L_img)": trained(Filtering)}, images, labels, WORDS, eps=EPS)
    assert one.shown["truth"] == "three"
    assert one.fixed["methods"] == ["attacked", "Filt(L_img)"]


def pixels(picture):
    return np.frombuffer(picture["rgba"], np.uint8).reshape(picture["height"], picture["width"], 4)


def test_it_starts_above_the_middle_of_the_strengths_with_the_last_method(explorer):
    assert (explorer.image, explorer.strength, explorer.method) == (0, 2, "PA-Filt(L_img)")
    assert (explorer.row, explorer.column) == (SIDE // 2, SIDE // 2)
    assert explorer.fixed["eps"] == [eps_label(eps) for eps in EPS]
    assert explorer.fixed["names"] == list(WORDS[:3])
    assert len(explorer.fixed["thumbnails"]) == 3


@pytest.mark.parametrize("image", range(3))
@pytest.mark.parametrize("strength", range(3))
@pytest.mark.parametrize("method", ["attacked", "Add(L_img)", "Filt(L_img)", "PA-Filt(L_img)"])
def test_pictures_are_those_of_the_choice(explorer, image, strength, method):
    explorer.image, explorer.strength, explorer.method = image, strength, method
    found = explorer.exploration
    wanted = {
        "clean": found.attacked.images[image],
        "attacked": found.attacked.at(EPS[strength])[image],
        "denoised": found.frames[image, strength, method].denoised,
    }
    shown = explorer.shown["pictures"]
    for name, tensor in wanted.items():
        values = pixels(shown[name])
        assert (
            np.abs(values[..., :3] / 255 - tensor.permute(1, 2, 0).numpy()).max()
            <= 0.5 / 255 + 1e-6
        )
        assert (values[..., 3] == 255).all()
    maps = {
        "PA-Filt(L_img)": ["W", "uncertainty, sl", "uncertainty, m"],
        "Filt(L_img)": ["uncertainty"],
    }.get(method, [])
    assert list(shown) == ["clean", "attacked", "perturbation", "denoised", *maps]
    assert explorer.shown["truth"] == WORDS[image]


def test_the_perturbation_is_signed_and_amplified(explorer):
    explorer.strength = 1
    found = explorer.exploration
    ratio = (found.attacked.at(EPS[1])[0] - found.attacked.images[0]) / EPS[1]
    values = pixels(explorer.shown["pictures"]["perturbation"])[..., :3]
    assert np.abs(values / 255 - (ratio.permute(1, 2, 0).numpy() + 1) / 2).max() < 0.01
    explorer.strength = 0
    assert set(np.unique(pixels(explorer.shown["pictures"]["perturbation"])[..., :3])) == {128}


def test_the_kernels_are_those_of_the_pixel(explorer):
    explorer.row, explorer.column = 2, 5
    taps = (
        explorer.exploration.frames[0, 2, "PA-Filt(L_img)"]
        .kernels["m"][:, 2, 5]
        .float()
        .view(3, 3, 3)
    )
    shown = explorer.shown["kernels"][1]
    assert shown["name"] == "m"
    for kernel, picture, total in zip(taps, shown["kernels"], shown["sums"], strict=True):
        coloured = matplotlib.colormaps["RdBu_r"]((kernel.numpy() + 1.2) / 2.4, bytes=True)
        assert np.array_equal(pixels(picture), coloured)
        assert float(total) == pytest.approx(float(kernel.sum()), abs=0.006)


def test_a_method_without_kernels_shows_none(explorer):
    explorer.method = "Add(L_img)"
    assert explorer.shown["kernels"] == []


def test_moving_computes_nothing(explorer, monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "__call__", lambda *arguments: pytest.fail("computed"))
    monkeypatch.setattr(Exploration, "_attack", lambda *arguments: pytest.fail("attacked"))
    explorer.image, explorer.strength, explorer.method, explorer.row = 2, 1, "Filt(L_img)", 0
    assert explorer.message == ""


@pytest.mark.parametrize(
    "choice", [{"strength": 1}, {"row": 0}, {"image": 99}, {"again": 1}], ids=str
)
def test_every_choice_is_answered(explorer, choice):
    """Also one after which the screen is the same as before, and one that fails."""
    explorer.method = "Add(L_img)"
    before = explorer.answers
    explorer.set_trait(*choice.popitem())
    assert explorer.answers > before


def test_attacking_again_happens_beside_and_ends(explorer):
    before = explorer.shown["pictures"]["attacked"]["rgba"]
    explorer.again += 1
    deadline = time.monotonic() + 60
    while explorer.busy and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not explorer.busy
    assert explorer.message == ""
    assert explorer.shown["pictures"]["attacked"]["rgba"] != before


def test_an_error_is_shown_and_not_the_end(explorer):
    explorer.image = 99
    assert explorer.message.startswith("KeyError") or explorer.message.startswith("IndexError")
    explorer.image = 1
    assert explorer.message == ""
    assert explorer.shown["truth"] == WORDS[1]


def test_an_error_while_attacking_is_shown(explorer, monkeypatch):
    def broken(*arguments):
        raise RuntimeError("no memory left")

    monkeypatch.setattr(Exploration, "attack_again", broken)
    explorer._attack(0, 1)
    assert explorer.message == "RuntimeError: no memory left"
    assert not explorer.busy


def test_it_is_exercised_with_all_sliders(explorer):
    state = (explorer.image, explorer.strength, explorer.method)
    assert exercise() == 1
    assert state == (explorer.image, explorer.strength, explorer.method)


def test_exercising_sees_a_broken_one(explorer):
    explorer.unobserve_all()
    with pytest.raises(RuntimeError, match="explorer: the screen does not change"):
        exercise()


def test_exercising_sees_an_error(explorer, monkeypatch):
    def broken(self):
        raise RuntimeError("lost")

    monkeypatch.setattr(type(explorer), "_screen", broken)
    with pytest.raises(RuntimeError, match="explorer: RuntimeError: lost"):
        exercise()
