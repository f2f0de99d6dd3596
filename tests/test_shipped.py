"""The networks that come with the package: whole, small, and as accurate as it is written in them."""

import shutil

import numpy as np
import pytest
import torch
from foolbox.attacks import LinfPGD
from PIL import Image

import nbsupport
from nbsupport.classifiers.models import Classifier
from nbsupport.denoisers import pretrained as shipped
from nbsupport.denoisers.models import Denoiser
from nbsupport.denoisers.pretrained import (
    SAMPLE_STRENGTHS,
    about,
    load_pretrained,
    names,
    right_on_samples,
    samples,
)

MOST_BYTES = 12_000_000
APART = 2  # of 20 images: rounding differs between machines, and 40 steps of signs amplify it


@pytest.fixture(scope="module")
def classifier():
    return load_pretrained(shipped.CLASSIFIER)


each = pytest.mark.parametrize("name", names())


def test_a_classifier_and_its_denoisers_come_with_the_package():
    methods = ("Add(L_img)", "Filt(L_img)", "Multi-head-Filt(L_img)", "PA-Filt(L_img)")
    assert names() == [*(f"cifar10-{method}" for method in methods), "cifar10-classifier"]
    assert nbsupport.load_pretrained is load_pretrained


def test_they_are_small():
    assert sum(path.stat().st_size for path in shipped.FOLDER.iterdir()) <= MOST_BYTES


@each
def test_a_network_comes_ready(name):
    network = load_pretrained(name)
    assert isinstance(network, Classifier if name == shipped.CLASSIFIER else Denoiser)
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    output = network(samples().images[:1])
    assert output.shape == ((1, 10) if name == shipped.CLASSIFIER else (1, 3, 32, 32))


@each
def test_it_is_as_accurate_as_it_says(name, classifier):
    known = about(name)["accuracy"]
    assert known["sample_strengths"] == list(SAMPLE_STRENGTHS)
    denoiser = torch.nn.Identity() if name == shipped.CLASSIFIER else load_pretrained(name)
    found = right_on_samples(classifier, denoiser)
    assert found[0] == known["samples"][0]
    assert np.abs(np.subtract(found, known["samples"])).max() <= APART


@each
def test_it_says_what_it_was_made_from_and_how_to_make_it_again(name):
    known = about(name)
    assert (
        known["again"] == "python -m nbsupport compute --study cifar10 --scale quick --tables 1 3 4"
    )
    assert known["study"]["name"] == "cifar10"
    assert known["study"]["images_from"]
    assert known["specification"]
    assert len(known["accuracy"]["test"]) == 13
    assert known["accuracy"]["test_images"] >= 500


def test_the_samples_are_foolboxs():
    part = samples()
    folder = shipped.Path(shipped.foolbox.__file__).parent / "data"
    for number, (image, label) in enumerate(zip(part.images, part.labels, strict=True)):
        pixels = np.asarray(Image.open(folder / f"cifar10_{number:02d}_{label}.png"))
        assert np.array_equal((image * 255).round().byte().permute(1, 2, 0).numpy(), pixels)
    assert part.classes[3] == "cat"


def test_the_samples_are_attacked_as_hard_as_foolbox_does(classifier):
    part = samples()
    model = shipped.foolbox.PyTorchModel(classifier, bounds=(0, 1), device="cpu")
    _, stock, _ = LinfPGD()(model, part.images, part.labels, epsilons=SAMPLE_STRENGTHS[2])
    theirs = int((classifier(stock).argmax(dim=1) == part.labels).sum())
    ours = right_on_samples(classifier, torch.nn.Identity())[2]
    assert abs(ours - theirs) <= APART


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(
        ValueError, match=r"there is no 'resnet'; there are: cifar10-Add\(L_img\), "
    ):
        load_pretrained("resnet")


@each
def test_an_altered_file_is_refused(name, tmp_path, monkeypatch):
    for path in shipped.FOLDER.glob("*.safetensors"):
        shutil.copy(path, tmp_path)
    content = bytearray((tmp_path / f"{name}.safetensors").read_bytes())
    content[-5] ^= 1
    (tmp_path / f"{name}.safetensors").write_bytes(content)
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    with pytest.raises(ValueError, match=r"was altered \(its checksum differs\)"):
        load_pretrained(name)
