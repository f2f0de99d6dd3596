"""What the explorer shows: every frame against the networks called one by one, and what is refused."""

import math

import pytest
import torch
from small import CLASSES, SIDE, linear, pictures
from torch import nn

from nbsupport.attacks.pgd import pgd
from nbsupport.denoisers.filtering import filter_pixels, uncertainty_map
from nbsupport.denoisers.models import Additive, Filtering, PAFilter
from nbsupport.interactive import exploration
from nbsupport.interactive.exploration import Exploration

EPS = (0.0, 0.02, 0.1)
WORDS = ("one", "two", "three", "four")


def trained(kind, seed=0):
    """A denoiser that has left the identity."""
    torch.manual_seed(seed)
    denoiser = kind(width=2, kernel_size=3)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return denoiser.eval().requires_grad_(False)


def explored(number=3, eps=EPS, **denoisers):
    images = pictures(number)
    return Exploration(
        linear(), denoisers, images, torch.arange(number) % CLASSES, WORDS, eps=eps, steps=4
    )


@pytest.fixture(scope="module")
def found():
    return explored(
        additive=trained(Additive), filtering=trained(Filtering), pa_filter=trained(PAFilter)
    )


def test_there_is_a_frame_for_everything(found):
    methods = ["attacked", "additive", "filtering", "pa_filter"]
    assert list(found.denoisers) == methods
    assert set(found.frames) == {(i, e, m) for i in range(3) for e in range(3) for m in methods}


@pytest.mark.parametrize("strength", range(3))
@pytest.mark.parametrize("number", range(3))
def test_a_frame_is_what_the_networks_say(found, number, strength):
    clean, eps = found.attacked.images[number : number + 1], EPS[strength]
    hat = found.frames[number, strength, "attacked"].denoised[None]
    assert (hat - clean).abs().max() <= eps + 1e-6
    if eps:
        stock = pgd(linear(), clean, torch.tensor([number % CLASSES]), eps, steps=4)
        assert torch.allclose(hat, stock, atol=eps / 1000)
    for name, denoiser in found.denoisers.items():
        frame = found.frames[number, strength, name]
        assert torch.allclose(frame.denoised, denoiser(hat)[0], atol=1e-6)
        assert torch.allclose(frame.probabilities, linear()(denoiser(hat))[0].softmax(0), atol=1e-5)
        error = float(((denoiser(hat) - clean) ** 2).mean())
        assert frame.psnr == (
            math.inf if error == 0 else pytest.approx(-10 * math.log10(error), abs=0.01)
        )
    kernels = found.denoisers["filtering"].kernels(hat)
    frame = found.frames[number, strength, "filtering"]
    assert torch.allclose(frame.kernels[""].float(), kernels[0], atol=1e-3)
    assert torch.allclose(frame.maps["uncertainty"], uncertainty_map(kernels)[0, 0], atol=1e-6)


def test_the_parts_of_pa_filt_make_its_image(found):
    for number in range(3):
        frame = found.frames[number, 2, "pa_filter"]
        hat = found.frames[number, 2, "attacked"].denoised[None]
        sl, m = (
            filter_pixels(hat, frame.kernels[name].float()[None]).clamp(0, 1)[0]
            for name in ("sl", "m")
        )
        weight = frame.maps["W"]
        assert torch.allclose(weight * sl + (1 - weight) * m, frame.denoised, atol=2e-3)
        assert set(frame.maps) == {"W", "uncertainty, sl", "uncertainty, m"}


def test_accuracy_counts_right_words(found):
    for method, curve in found.accuracy().items():
        for strength, share in enumerate(curve):
            right = [found.top(i, strength, method)[0][0] == WORDS[i % CLASSES] for i in range(3)]
            assert share == pytest.approx(sum(right) / 3)


def test_the_most_probable_classes_come_first(found):
    pairs = found.top(0, 1, "filtering")
    assert [value for _, value in pairs] == sorted((value for _, value in pairs), reverse=True)
    assert {word for word, _ in pairs} == set(WORDS)


def test_classes_without_a_name_are_numbers():
    images = pictures(1)
    found = Exploration(linear(), {}, images, torch.tensor([3]), ("one",), eps=EPS, steps=2)
    assert {word for word, _ in found.top(0, 0, "attacked")} == {"one", "1", "2", "3"}


def test_attacking_again_changes_that_frame_alone():
    found = explored(filtering=trained(Filtering))
    before = {key: frame.denoised.clone() for key, frame in found.frames.items()}
    found.attack_again(1, 2)
    changed = {
        key for key, frame in found.frames.items() if not torch.equal(frame.denoised, before[key])
    }
    assert changed == {(1, 2, "attacked"), (1, 2, "filtering")}
    assert torch.allclose(found.attacked.at(EPS[2])[1], found.frames[1, 2, "attacked"].denoised)


def test_clean_images_are_not_attacked_again():
    found = explored()
    before = found.frames[0, 0, "attacked"].denoised
    found.attack_again(0, 0)
    assert found.frames[0, 0, "attacked"].denoised is before


def test_limits_enclose_all_maps(found):
    low, high = found.limits("pa_filter")
    maps = [
        map
        for key, frame in found.frames.items()
        if key[2] == "pa_filter"
        for map in frame.maps.values()
    ]
    uncertain = [map for map in maps if map.max() > 1]
    assert low == min(float(map.min()) for map in uncertain)
    assert high == max(float(map.max()) for map in uncertain)
    assert found.limits("additive") == (0.0, 1.0)


def test_an_interruption_keeps_what_is_done(monkeypatch):
    calls, attack = [], Exploration._attack

    def interrupted(self, *arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return attack(self, *arguments)

    monkeypatch.setattr(Exploration, "_attack", interrupted)
    found = explored()
    assert len(found.attacked.images) == 2
    assert {key[0] for key in found.frames} == {0, 1}
    assert len(found.accuracy()["attacked"]) == len(EPS)


def test_an_interruption_at_the_start_is_one(monkeypatch):
    def interrupted(self, *arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(Exploration, "_attack", interrupted)
    with pytest.raises(KeyboardInterrupt):
        explored()


@pytest.mark.parametrize("eps", [(0.1, 0.2), (0.0,), (0.0, 0.2, 0.1), (0.0, 0.1, 0.1), (0.0, 2.0)])
def test_other_strengths_are_refused(eps):
    with pytest.raises(
        ValueError, match="explore: expected at least two strengths that rise from 0"
    ):
        explored(eps=eps)


def test_images_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"explore: expected finite values in \[0, 1\]"):
        Exploration(linear(), {}, 255 * pictures(1), torch.tensor([0]))


def test_too_much_is_refused_before_anything_is_attacked(monkeypatch):
    monkeypatch.setattr(exploration, "MOST_BYTES", 1000)
    monkeypatch.setattr(Exploration, "_attack", lambda *arguments: pytest.fail("attacked"))
    with pytest.raises(
        ValueError, match=r"3 images at 3 strengths would keep .*; give fewer or smaller images"
    ):
        explored()


def test_ones_own_network_is_tried_first():
    class Softmax(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = linear()

        def forward(self, images):
            return self.inner(images).softmax(dim=1)

    with pytest.raises(ValueError, match="probabilities"):
        Exploration(Softmax().eval(), {}, pictures(4), torch.arange(4) % CLASSES)


def test_a_plain_network_is_wrapped():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = linear().network[1]

        def forward(self, images):
            return self.layer((images.flatten(1) - 0.5) / 0.5)

    found = Exploration(
        Plain().eval(), {}, pictures(CLASSES), torch.arange(CLASSES), eps=EPS, steps=2
    )
    same = linear()(pictures(CLASSES)).softmax(dim=1)
    assert torch.allclose(found.frames[1, 0, "attacked"].probabilities, same[1], atol=1e-5)
    assert found.attacked.images.shape == (CLASSES, 3, SIDE, SIDE)
