"""The networks that come with the package, and denoisers saved by a user."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from nbsupport.attacks.pgd import pgd
from nbsupport.classifiers.models import Classifier
from nbsupport.denoisers import models, pretrained
from nbsupport.denoisers.models import Denoiser, Filtering, MultiHead, View, YNet
from nbsupport.denoisers.pretrained import about, load_pretrained, names, samples

STRENGTHS = (0.0, 3e-3, 1e-2, 3e-2, 0.1)
APART = 2  # of 20 images: 40 steps of signs amplify the rounding of different machines
KINDS = pretrained.DENOISERS

each = pytest.mark.parametrize("name", names())


@pytest.fixture(scope="module")
def attacked():
    """The classifier, and the samples under PGD(40, ε) for each strength."""
    classifier, split = load_pretrained("cifar10-classifier"), samples()
    return classifier, [pgd(classifier, split.images, split.labels, eps) for eps in STRENGTHS]


def correct(attacked, denoiser):
    classifier, images = attacked
    with torch.no_grad():
        guesses = [classifier(denoiser(x)).argmax(dim=1) for x in images]
    return [int((guess == samples().labels).sum()) for guess in guesses]


@each
def test_a_network_is_ready_for_use(name):
    network, is_classifier = load_pretrained(name), name.endswith("classifier")
    assert isinstance(network, Classifier if is_classifier else Denoiser)
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    stored = load_file(pretrained.FOLDER / name / models.WEIGHTS)
    floating = {tensor.dtype for tensor in stored.values() if tensor.is_floating_point()}
    assert is_classifier or floating == {torch.float16}
    for weight, tensor in network.state_dict().items():
        assert torch.equal(tensor, stored[weight].to(tensor.dtype))
    assert network(samples().images[:1]).shape == ((1, 10) if is_classifier else (1, 3, 32, 32))


@each
def test_it_is_as_accurate_as_recorded(name, attacked):
    recorded = about(name)["accuracy"]
    assert recorded["sample_strengths"] == list(STRENGTHS)
    denoiser = nn.Identity() if name.endswith("classifier") else load_pretrained(name)
    found = correct(attacked, denoiser)
    assert found[0] == recorded["samples"][0]
    assert np.abs(np.subtract(found, recorded["samples"])).max() <= APART

    record = about(name)
    assert record["again"].startswith("python -m nbsupport compute --study cifar10")
    assert record["study"]["name"] == "cifar10" and record["specification"]
    assert len(record["accuracy"]["test"]) == 13 and record["accuracy"]["test_images"] >= 500


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"'resnet'; choose from cifar10-Add\(L_img\), "):
        load_pretrained("resnet")


def trained(kind, *arguments):
    """As after training: no weight is where it started."""
    torch.manual_seed(1)
    denoiser = kind(*arguments or (2, 3)) if kind is not models.HGD else kind(2)
    for parameter in denoiser.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return denoiser.eval().requires_grad_(False)


def saved(denoiser, folder):
    denoiser.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_denoiser_comes_back(kind, tmp_path):
    kind, images = getattr(models, kind), torch.rand(2, 3, 9, 11)
    denoiser = trained(kind, 1, 5, True)
    denoiser.about, expected = {"classifier": "mine"}, denoiser(images)
    saved(denoiser.train().requires_grad_(), tmp_path)
    for again in (kind.from_pretrained(tmp_path), load_pretrained(tmp_path)):
        assert type(again) is kind
        assert torch.equal(again(images), expected)
        assert not any(module.training for module in again.modules())
        assert not any(parameter.requires_grad for parameter in again.parameters())
        assert again.about == about(tmp_path) == {"classifier": "mine"}


DAMAGES = [
    *((name, lambda content: content[:-1]) for name in (models.WEIGHTS, models.CONFIG)),
    (models.WEIGHTS, lambda content: content[:-1] + bytes([content[-1] ^ 1])),
    (models.CONFIG, lambda content: content.replace(b"false", b"true")),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_a_damaged_or_altered_file_is_refused(name, damage, tmp_path):
    file = saved(trained(Filtering), tmp_path) / name
    file.write_bytes(damage(file.read_bytes()))
    for load in (load_pretrained, Filtering.from_pretrained):
        with pytest.raises(ValueError):
            load(tmp_path)


def test_another_class_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected a MultiHead, got a Filtering"):
        MultiHead.from_pretrained(saved(trained(Filtering), tmp_path))


def test_a_view_cannot_be_saved(tmp_path):
    with pytest.raises(TypeError, match="View"):
        View(trained(YNet), "m").save_pretrained(tmp_path)


class Custom(Denoiser):
    def __init__(self, gain=1.0):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def denoise(self, images):
        return self.gain * images


def test_a_custom_denoiser_is_loaded_by_its_own_class(tmp_path):
    saved(Custom(0.5), tmp_path)
    assert Custom.from_pretrained(tmp_path)(torch.ones(1, 3, 2, 2)).unique() == 0.5
    with pytest.raises(ValueError, match="Custom"):
        load_pretrained(tmp_path)
