"""The explorer's frames against networks called one by one, its refusals, and its screen."""

import copy
import math
import time
from contextlib import nullcontext
from unittest.mock import Mock

import ipywidgets
import matplotlib
import numpy as np
import pytest
import torch
from exercise import exercise
from small import CLASSES, SIDE, linear, pictures
from torch import nn
from torchvision.transforms import Normalize

from nbsupport.attacks.pgd import pgd
from nbsupport.denoisers.filtering import filter_pixels, uncertainty_map
from nbsupport.denoisers.models import Additive, Filtering, PAFilter
from nbsupport.interactive import explorer as module
from nbsupport.interactive.explorer import Exploration, Explorer, explore
from nbsupport.study import eps_label

EPS, NUMBER = (0.0, 0.02, 0.1), 3
KINDS = {"Add(L_img)": Additive, "Filt(L_img)": Filtering, "PA-Filt(L_img)": PAFilter}
METHODS = ["attacked", *KINDS]
MAPS = {
    "PA-Filt(L_img)": ["W", "uncertainty, sl", "uncertainty, m"],
    "Filt(L_img)": ["uncertainty"],
}


@pytest.fixture(autouse=True)
def _no_widgets_left():
    yield
    ipywidgets.Widget.close_all()


def trained(kind):
    """A denoiser that has left the identity."""
    torch.manual_seed(0)
    denoiser = kind(width=2, kernel_size=3)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return denoiser.eval().requires_grad_(False)


def explored(number=NUMBER, eps=EPS, classes=("one", "two"), classifier=None, **denoisers):
    labels = torch.arange(number) % CLASSES
    return explore(classifier or linear(), denoisers, pictures(number), labels, classes, eps=eps)


@pytest.fixture(scope="module")
def exploration():
    return explored(**{name: trained(kind) for name, kind in KINDS.items()}).exploration


@pytest.fixture
def explorer(exploration):
    return Explorer(copy.deepcopy(exploration), ("one", "two"))


def pixels(picture):
    return np.frombuffer(picture["rgba"], np.uint8).reshape(picture["height"], picture["width"], 4)


# -- frames --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "strength"), [(0, 2), (1, 1), (2, 0)])
def test_a_frame_agrees_with_networks_called_one_by_one(exploration, number, strength):
    clean, eps = exploration.images[number : number + 1], EPS[strength]
    hat = exploration.frames[number, strength, "attacked"].pictures["denoised"][None]
    attacked = pgd(linear(), clean, exploration.labels[number : number + 1], eps)
    assert torch.allclose(hat, attacked, atol=1e-6)
    for name, denoiser in exploration.denoisers.items():
        frame, denoised = exploration.frames[number, strength, name], denoiser(hat)
        probabilities = linear()(denoised)[0].softmax(0)
        assert torch.allclose(frame.pictures["denoised"], denoised[0], atol=1e-6)
        assert torch.allclose(frame.probabilities, probabilities, atol=1e-5)
        assert frame.correct == (probabilities.argmax() == number % CLASSES)
        error = float(((denoised - clean) ** 2).mean())
        psnr = -10 * math.log10(error) if error else math.inf
        assert frame.psnr == pytest.approx(psnr, abs=0.01)
    kernels = exploration.denoisers["Filt(L_img)"].kernels(hat)
    frame = exploration.frames[number, strength, "Filt(L_img)"]
    assert torch.allclose(frame.kernels[""].float(), kernels[0], atol=1e-3)
    assert torch.allclose(frame.pictures["uncertainty"], uncertainty_map(kernels)[0], atol=1e-6)


def test_w_and_both_kernels_of_pa_filt_make_its_image(exploration):
    hat = exploration.frames[0, 2, "attacked"].pictures["denoised"][None]
    frame = exploration.frames[0, 2, "PA-Filt(L_img)"]
    kernels, weight = frame.kernels, frame.pictures["W"]
    sl, m = (filter_pixels(hat, kernels[name].float()[None]).clamp(0, 1)[0] for name in ("sl", "m"))
    assert torch.allclose(weight * sl + (1 - weight) * m, frame.pictures["denoised"], atol=2e-3)


def test_accuracy_and_limits_are_those_of_all_frames_of_a_method(exploration):
    assert set(exploration.accuracy()) == set(METHODS)
    for method, curve in exploration.accuracy().items():
        for strength, share in enumerate(curve):
            frames = [exploration.frames[i, strength, method] for i in range(NUMBER)]
            assert share == pytest.approx(sum(frame.correct for frame in frames) / NUMBER)
    frames = [frame for key, frame in exploration.frames.items() if key[2] == "Filt(L_img)"]
    maps = torch.stack([frame.pictures["uncertainty"] for frame in frames])
    assert exploration.limits("Filt(L_img)") == (float(maps.min()), float(maps.max()))


@pytest.mark.parametrize("done", [0, 2])
def test_an_interruption_keeps_the_images_that_are_done(done, monkeypatch):
    attacks = iter([*[pgd] * done, Mock(side_effect=KeyboardInterrupt)])
    monkeypatch.setattr(module, "pgd", lambda *given, seed: next(attacks)(*given, seed=seed))
    with nullcontext() if done else pytest.raises(KeyboardInterrupt):
        explorer = explored()
        assert len(explorer.fixed["thumbnails"]) == len(explorer.fixed["labels"]) == done
        assert {key[0] for key in explorer.exploration.frames} == set(range(done))


# -- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [(0.1, 0.2), (0.0,), (0.0, 0.2, 0.1), (0.0, 0.1, 0.1), (0.0, 2.0)])
def test_other_strengths_are_refused(eps):
    with pytest.raises(ValueError, match="strengths"):
        explored(eps=eps)


def test_images_out_of_range_are_refused():
    with pytest.raises(ValueError, match="divide by 255"):
        explore(linear(), {}, 255 * pictures(1), torch.tensor([0]))


def test_too_much_is_refused_before_anything_is_attacked(monkeypatch):
    monkeypatch.setattr(module, "MOST_GIB", 1e-6)
    monkeypatch.setattr(module, "pgd", lambda *arguments, **options: pytest.fail("attacked"))
    with pytest.raises(ValueError, match="fewer or smaller images"):
        explored()


def test_a_custom_classifier_is_checked_and_wrapped():
    plain = nn.Sequential(Normalize((0.5,) * 3, (0.5,) * 3), linear().network).eval()
    with pytest.raises(ValueError, match="probabilities"):
        explored(CLASSES, classifier=nn.Sequential(plain, nn.Softmax(dim=1)).eval())
    frames = explored(CLASSES, classifier=plain).exploration.frames
    same = linear()(pictures(CLASSES)).softmax(dim=1)
    assert torch.allclose(frames[1, 0, "attacked"].probabilities, same[1], atol=1e-5)


# -- the screen ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "strength"), [*zip(METHODS, (0, 1, 2, 1), strict=True)])
def test_the_screen_is_that_of_the_choice(explorer, strength, method):
    explorer.image, explorer.strength, explorer.method = 2, strength, method
    exploration, shown = explorer.exploration, explorer.shown["pictures"]
    hat, frame = (exploration.frames[2, strength, name] for name in ("attacked", method))
    clean, attacked = exploration.images[2], hat.pictures["denoised"]
    change = ((attacked - clean) / (EPS[strength] or 1) + 1) / 2
    wanted = {"clean": clean, "attacked": attacked, "perturbation": change}
    wanted["denoised"] = frame.pictures["denoised"]
    for name, tensor in wanted.items():
        values = pixels(shown[name])
        assert np.allclose(values[..., :3] / 255, tensor.permute(1, 2, 0), rtol=0, atol=0.501 / 255)
        assert (values[..., 3] == 255).all()
    assert list(shown) == ["clean", "attacked", "perturbation", "denoised", *MAPS.get(method, [])]
    low, high = exploration.limits(method)
    for name in MAPS.get(method, []):
        map = frame.pictures[name][0].numpy()
        colours = matplotlib.colormaps["cividis" if name == "W" else "viridis"]
        scaled = map if name == "W" else (map - low) / (high - low)
        assert np.array_equal(pixels(shown[name]), colours(scaled, bytes=True))
    assert explorer.shown["label"] == 2
    assert explorer.shown["probabilities"][1] == frame.probabilities.tolist()
    assert explorer.shown["quality"][1] == f"{frame.psnr:.1f} dB, SSIM {frame.ssim:.3f}"


def test_the_kernels_are_those_of_the_pixel(explorer):
    explorer.row, explorer.column = 2, 5
    frame = explorer.exploration.frames[0, 2, "PA-Filt(L_img)"]
    taps = frame.kernels["m"][:, 2, 5].float().view(3, 3, 3)
    shown = explorer.shown["kernels"][1]
    assert shown["name"] == "m"
    for kernel, picture, total in zip(taps, shown["kernels"], shown["sums"], strict=True):
        coloured = matplotlib.colormaps["RdBu_r"]((kernel.numpy() + 1.2) / 2.4, bytes=True)
        assert np.array_equal(pixels(picture), coloured)
        assert float(total) == pytest.approx(float(kernel.sum()), abs=0.006)
    explorer.method = "Add(L_img)"
    assert explorer.shown["kernels"] == []


def test_moving_computes_nothing(explorer, monkeypatch):
    monkeypatch.setattr(nn.Module, "__call__", lambda *arguments: pytest.fail("computed"))
    explorer.image, explorer.strength, explorer.method, explorer.row = 2, 1, "Filt(L_img)", 0
    assert explorer.message == ""


@pytest.mark.parametrize("choice", [{"row": 0}, {"image": 99}, {"again": 1}], ids=str)
def test_every_choice_is_answered(explorer, choice):
    explorer.method = "Add(L_img)"
    before = explorer.answers
    explorer.set_trait(*choice.popitem())
    assert explorer.answers > before


def test_attacking_again_runs_in_a_thread_and_changes_its_frames_alone(explorer):
    before, frames = explorer.shown, dict(explorer.exploration.frames)
    explorer.again += 1
    deadline = time.monotonic() + 60
    while explorer.busy and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not explorer.busy
    assert explorer.message == ""
    assert explorer.shown["pictures"]["attacked"] != before["pictures"]["attacked"]
    again = explorer.exploration.frames
    changed = {key for key in frames if again[key] is not frames[key]}
    assert changed == {(0, 2, method) for method in METHODS}


def test_an_error_is_shown_and_the_screen_goes_on(explorer, monkeypatch):
    explorer.image = 99
    assert explorer.message.startswith("KeyError")
    explorer.image = 1
    assert explorer.message == ""
    assert explorer.shown["label"] == 1
    monkeypatch.setattr(Exploration, "attack_again", lambda *arguments: 1 / 0)
    explorer._attack(0, 1)
    assert explorer.message.startswith("ZeroDivisionError")
    assert not explorer.busy


@pytest.mark.parametrize("broken", ["deaf", "failing"])
def test_exercise_moves_it_and_finds_a_broken_one(explorer, broken):
    assert exercise() == 1
    assert (explorer.image, explorer.strength, explorer.method) == (0, 2, "PA-Filt(L_img)")
    assert (explorer.row, explorer.column) == (SIDE // 2, SIDE // 2)
    assert explorer.fixed["eps"] == [eps_label(eps) for eps in EPS]
    if broken == "deaf":
        explorer.unobserve_all()
    else:
        explorer.exploration.frames.clear()
    with pytest.raises(RuntimeError, match="explorer: "):
        exercise()
