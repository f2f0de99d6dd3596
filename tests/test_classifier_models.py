"""The classifiers under attack: their logits, their refusals, the architectures by name."""

import pytest
import torch
from small import Call
from torch import nn

from nbsupport.classifiers.models import (
    Classifier,
    SmallResNet,
    build,
    check_logits,
    predicted_classes,
)


def test_normalisation_is_inside_and_travels_with_the_weights():
    mean, std, images = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0), torch.rand(2, 3, 4, 5)
    normalised = torch.stack([(images[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    there, here = Classifier(nn.Flatten(), mean, std), Classifier(nn.Flatten())
    here.load_state_dict(there.state_dict())
    for classifier in (there, here):
        torch.testing.assert_close(classifier(images), normalised.flatten(1))


def test_classes_without_a_name_are_numbers():
    logits = torch.eye(4)[[0, 3, 1]]
    found = predicted_classes(Call(lambda images: logits), torch.rand(3, 3, 2, 2), ("cat", "dog"))
    assert found == ["cat", "3", "dog"]


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (torch.rand(2, 5).softmax(dim=1), "probabilities"),
        (torch.tensor([[0.0, torch.nan]]), "finite"),
        (torch.zeros(2, 5, 1, 1), "shape"),
        ({"logits": torch.zeros(2, 5)}, "got dict"),
    ],
)
def test_other_outputs_are_refused(logits, message, no_shape_checker):
    with pytest.raises(ValueError, match=message):
        Classifier(Call(lambda images: logits))(torch.rand(2, 3, 2, 2))


@pytest.mark.parametrize(
    "logits",
    [
        [[0.5, 0.5], [0.5, 0.6]],  # only one row sums to 1
        [[1.5, -0.5], [0.5, 0.5]],
        [[1.0], [1.0]],
    ],
)
def test_logits_that_resemble_probabilities_pass(logits):
    check_logits(torch.tensor(logits))


@pytest.mark.parametrize("images", [torch.zeros(1, 1, 2, 2), torch.full((1, 3, 2, 2), 255.0)])
def test_other_images_are_refused(images, no_shape_checker):
    with pytest.raises(ValueError, match="classifier: "):
        Classifier(nn.Flatten())(images)


@pytest.mark.parametrize("name", ["small_resnet", "mobilenet_v2"])
def test_logits_are_the_same_without_the_checks_and_for_one_image(name):
    classifier, images = build(name, 10, 32).eval(), torch.rand(2, 3, 32, 32)
    assert classifier(images).shape == (2, 10)
    assert torch.equal(classifier.unchecked(images), classifier(images))
    torch.testing.assert_close(classifier(images[:1]), classifier(images)[:1])
    assert classifier.unchecked(images - 5).shape == (2, 10)


@pytest.mark.parametrize("size", [63, 64, 224])
def test_the_papers_networks_fit_the_size_of_the_images(size):
    small, images = size < 64, torch.empty(2, 3, size, size, device="meta")
    with torch.device("meta"):  # shapes without weights
        resnet, vgg = (build(name, 7, size).eval() for name in ("resnet50", "vgg16"))
    assert resnet.unchecked(images).shape == vgg.unchecked(images).shape == (2, 7)
    assert resnet.network.conv1.stride == ((1, 1) if small else (2, 2))
    assert isinstance(resnet.network.maxpool, nn.Identity if small else nn.MaxPool2d)
    assert vgg.network.classifier[0].in_features == (512 if small else 512 * 7 * 7)


def test_the_small_resnet_of_3_blocks_is_resnet_20():
    network = SmallResNet(10, width=16, blocks=3)
    sizes = [getattr(layer, "kernel_size", None) for layer in network.modules()]
    assert sizes.count((3, 3)) + 1 == 20  # and the last, linear one
    assert network.stages(network.stem(torch.rand(2, 3, 16, 16))).shape == (2, 64, 4, 4)


@pytest.mark.parametrize("name", ["resnet51", "", "fcn_resnet50"])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(ValueError, match=f"no classifier named '{name}'"):
        build(name, 10, 32)
