"""The classifiers under attack: what they compute, and what they refuse."""

import pytest
import torch
from torch import nn

from nbsupport.classifiers.models import Classifier, SmallResNet, build, check_logits


class Constant(nn.Module):
    """Says the same of every image."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, images):
        return self.output


def small(name="small_resnet", size=16):
    torch.manual_seed(0)
    return build(name, 10, size).eval().requires_grad_(False)


def on_meta(name, size, classes=10):
    """Shapes without weights: the largest networks in no time."""
    with torch.device("meta"):
        return build(name, classes, size).eval()


# -- what they compute ---------------------------------------------------------------------------


def test_normalisation_is_inside():
    mean, std, images = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0), torch.rand(2, 3, 4, 5)
    normalised = torch.stack([(images[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(Classifier(nn.Flatten(), mean, std)(images), normalised.flatten(1))


def test_normalisation_travels_with_the_weights():
    there, here = (
        Classifier(nn.Flatten(), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
        Classifier(nn.Flatten()),
    )
    here.load_state_dict(there.state_dict())
    images = torch.rand(1, 3, 2, 2)
    assert torch.equal(here(images), there(images))


def test_networks_of_torchvision_get_imagenets_normalisation():
    classifier = small("resnet18", 32)
    torch.testing.assert_close(classifier.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
    torch.testing.assert_close(classifier.std.flatten(), torch.tensor([0.229, 0.224, 0.225]))


def test_unchecked_is_the_same_without_the_checks():
    classifier, images = small(), torch.rand(2, 3, 16, 16)
    assert torch.equal(classifier.unchecked(images), classifier(images))
    assert classifier.unchecked(images - 5).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "features"), [("small_resnet", 64), ("resnet18", 512), ("mobilenet_v2", 1280)]
)
def test_features_enter_the_last_linear_layer(name, features):
    classifier, images = small(name), torch.rand(2, 3, 16, 16)
    last = [layer for layer in classifier.network.modules() if isinstance(layer, nn.Linear)][-1]
    found = classifier.features(images)
    assert found.shape == (2, features)
    torch.testing.assert_close(last(found), classifier(images))


def test_features_leave_no_hook_behind():
    classifier = small()
    with pytest.raises(ValueError, match="classifier: expected finite values"):
        classifier.features(torch.full((1, 3, 16, 16), 2.0))
    classifier.features(torch.rand(1, 3, 16, 16))
    assert not any(layer._forward_pre_hooks for layer in classifier.modules())


# -- what they refuse ----------------------------------------------------------------------------


def test_features_need_a_linear_layer():
    with pytest.raises(ValueError, match="features: expected a network with a linear layer"):
        Classifier(nn.Flatten()).features(torch.rand(1, 3, 2, 2))


def test_probabilities_are_refused():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Softmax(dim=1))
    with pytest.raises(ValueError, match=r"it returns probabilities .* remove its last softmax"):
        Classifier(network)(torch.rand(3, 3, 2, 2))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_logits_are_finite(value):
    logits = torch.zeros(2, 5)
    logits[1, 3] = value
    with pytest.raises(ValueError, match="its logits are not finite"):
        Classifier(Constant(logits))(torch.rand(2, 3, 2, 2))


@pytest.mark.parametrize("shape", [(2,), (2, 5, 1, 1)])
def test_logits_have_two_dimensions(shape):
    with pytest.raises(ValueError, match=r"expected logits of shape \(b, classes\), got \(2,"):
        Classifier(Constant(torch.zeros(shape)))(torch.rand(2, 3, 2, 2))


@pytest.mark.parametrize(
    "logits",
    [
        [[0.5, 0.5], [0.5, 0.6]],
        [[1.5, -0.5], [0.5, 0.5]],
        [[1.0], [1.0]],
        [[-0.7, -0.7], [-0.1, -2.3]],
    ],
    ids=["one row that sums to 1", "a negative value", "a single class", "log-probabilities"],
)
def test_what_only_resembles_probabilities_passes(logits):
    check_logits(torch.tensor(logits))


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(1, 1, 16, 16), ValueError, "images.expand"),
        (torch.zeros(3, 16, 16), ValueError, "batch dimension"),
        (torch.full((1, 3, 16, 16), 255.0), ValueError, "divide by 255"),
        (torch.full((1, 3, 16, 16), -1.0), ValueError, "do not normalise, the classifier does"),
        (torch.full((1, 3, 16, 16), torch.nan), ValueError, "finite values"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), TypeError, r"images.float\(\) / 255"),
    ],
    ids=["grayscale", "no batch", "0 to 255", "normalised", "NaN", "8-bit"],
)
def test_what_is_no_rgb_image_is_refused(images, error, message, no_shape_checker):
    classifier = small()
    for method in (classifier, classifier.features):
        with pytest.raises(error, match=f"^classifier: .*{message}"):
            method(images)


# -- the architectures ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["small_resnet", "resnet18", "mobilenet_v2"])
@pytest.mark.parametrize("number", [1, 2])
def test_there_is_one_row_of_logits_per_image(name, number):
    assert small(name, 32)(torch.rand(number, 3, 32, 32)).shape == (number, 10)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet50", 32),
        ("vgg16", 32),
        ("vgg16", 63),
        ("resnet50", 64),
        ("vgg16", 64),
        ("resnet50", 224),
    ],
)
@pytest.mark.parametrize("number", [1, 2])
def test_the_papers_networks_take_images_of_the_data_sets_sizes(name, size, number):
    classifier = on_meta(name, size, classes=7)
    assert classifier.unchecked(torch.empty(number, 3, size, size, device="meta")).shape == (
        number,
        7,
    )


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_small_images_meet_a_stem_that_does_not_shrink_them(name):
    network = on_meta(name, 32).network
    assert (network.conv1.kernel_size, network.conv1.stride, network.conv1.padding) == (
        (3, 3),
        (1, 1),
        (1, 1),
    )
    assert isinstance(network.maxpool, nn.Identity)


def test_images_from_64_on_meet_the_stem_for_imagenet():
    network = on_meta("resnet50", 64).network
    assert (network.conv1.kernel_size, network.conv1.stride) == ((7, 7), (2, 2))
    assert isinstance(network.maxpool, nn.MaxPool2d)


@pytest.mark.parametrize(("size", "features"), [(32, 512), (64, 512 * 7 * 7)])
def test_the_head_of_a_vgg_fits_what_is_left_of_the_image(size, features):
    assert on_meta("vgg16", size).network.classifier[0].in_features == features


def test_the_small_resnet_of_3_blocks_is_resnet_20():
    layers = [
        layer
        for layer in SmallResNet(10, width=16, blocks=3).modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    assert (
        sum(isinstance(layer, nn.Linear) or layer.kernel_size == (3, 3) for layer in layers) == 20
    )


def test_the_small_resnet_halves_the_image_twice():
    network = SmallResNet(10, width=4)
    assert network.stages(network.stem(torch.rand(2, 3, 16, 16))).shape == (2, 16, 4, 4)


@pytest.mark.parametrize("name", ["resnet51", "", "SmallResNet", "fcn_resnet50"])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(
        ValueError, match=f"no classifier named '{name}'; there are small_resnet, resnet20 and"
    ):
        build(name, 10, 32)
