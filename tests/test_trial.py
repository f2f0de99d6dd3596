"""Classifiers from outside as the threat model: what passes the trial, and what is refused."""

import pytest
import torch
from torch import nn

from nbsupport.attacks import pgd as attacks
from nbsupport.classifiers.models import Classifier, build, wrap
from nbsupport.classifiers.trial import NORMALISATIONS, check_meaning

SIZE, CLASSES = 5, 4


class Tiny(nn.Module):
    """Nobody here knows it: the class of an image is the quarter of [0, 1] that its brightness lies in."""

    def __init__(self, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)):
        super().__init__()
        self.centres = nn.Parameter((torch.arange(CLASSES) + 0.5) / CLASSES)
        self.mean, self.std = (
            torch.tensor(mean).view(1, 3, 1, 1),
            torch.tensor(std).view(1, 3, 1, 1),
        )

    def forward(self, images):
        brightness = (images * self.std + self.mean).mean(dim=(1, 2, 3))
        return -50 * (brightness[:, None] - self.centres).square()


def bright(number, seed=0):
    """Images of every brightness, and the classes that `Tiny` gives them."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.linspace(0.02, 0.98, number)
    noise = 0.02 * (torch.rand(number, 3, SIZE, SIZE, generator=generator) - 0.5)
    images = (level.view(-1, 1, 1, 1) + noise).clamp(0, 1)
    labels = (images.mean(dim=(1, 2, 3)) * CLASSES).long().clamp(max=CLASSES - 1)
    order = torch.randperm(number, generator=generator)
    return images[order], labels[order]


class Around(nn.Module):
    """A network with something done before or after it."""

    def __init__(self, before=nn.Identity(), after=nn.Identity()):  # noqa: B008
        super().__init__()
        self.network, self.before, self.after = Tiny(), before, after

    def forward(self, images):
        return self.after(self.network(self.before(images)))


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


# -- what passes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 40])
def test_a_wrapped_network_says_what_it_said(number):
    (images, labels), module = bright(number), Tiny().eval()
    wrapped = wrap(module, images, labels, classes=CLASSES)
    assert isinstance(wrapped, Classifier)
    assert torch.equal(wrapped(images), module(images))
    assert torch.equal(wrapped(images).argmax(dim=1), labels)


def test_it_is_a_frozen_copy():
    module = Tiny().eval()
    wrapped = wrap(module)
    assert module.centres.requires_grad
    assert not any(parameter.requires_grad for parameter in wrapped.parameters())
    module.centres.data += 1
    assert not torch.equal(wrapped.network.centres, module.centres)
    assert not any(part.training for part in wrapped.modules())


def test_a_normalisation_that_is_given_is_applied():
    mean, std = NORMALISATIONS["ImageNet's"]
    images, labels = bright(32)
    wrapped = wrap(Tiny(mean, std).eval(), images, labels, mean=mean, std=std)
    torch.testing.assert_close(wrapped(images), Tiny()(images), atol=1e-4, rtol=1e-4)


def test_what_is_wrapped_keeps_its_normalisation():
    images, labels = bright(32)
    mean, std = NORMALISATIONS["CIFAR-10's"]
    wrapped = wrap(Tiny(mean, std).eval(), images, labels, mean=mean, std=std)
    assert torch.equal(wrap(wrapped, images, labels)(images), wrapped(images))


def test_it_can_be_attacked():
    images, labels = bright(16)
    wrapped = wrap(Tiny().eval(), images, labels)
    attacked = attacks.pgd(wrapped, images, labels, 0.3, steps=20)
    assert (wrapped(attacked).argmax(dim=1) == labels).float().mean() < 0.2


def test_an_untrained_network_is_not_taken_for_a_mistake():
    generator = torch.Generator().manual_seed(1)
    images, labels = (
        torch.rand(24, 3, 16, 16, generator=generator),
        torch.randint(10, (24,), generator=generator),
    )
    for seed in range(5):
        torch.manual_seed(seed)
        wrap(build("small_resnet", 10, 16).network.eval(), images, labels, classes=10)


def test_saturated_logits_are_differentiable():
    images, labels = bright(8)
    wrap(Around(after=Call(lambda logits: 1e4 * logits)).eval(), images, labels)


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Around(after=nn.Softmax(dim=1)), "it returns probabilities"),
        (Around(before=Call(lambda x: (x * 255).round() / 255)), "the gradient at the images is zero"),
        (Around(before=Call(lambda x: x.detach())), "not differentiable: its logits have no gradient|is zero"),
        (Around(after=Call(lambda x: x.detach())), "not differentiable: its logits have no gradient"),
        (Around(after=Call(lambda x: nn.functional.one_hot(x.argmax(1), 4) + 0.1)), "not differentiable"),
        (Around(before=Call(lambda x: torch.from_numpy(x.numpy()))), r"it fails on images of .*RuntimeError.*detach"),
        (Around(after=Call(lambda x: x * torch.nan)), "its logits are not finite"),
        (Around(after=Call(lambda x: x.argmax(dim=1).float())), r"expected logits of shape \(b, classes\), got \(8,\)"),
        (Around(after=Call(lambda x: {"logits": x})), "expected a tensor of logits, got dict"),
        (Around(after=Call(lambda x: (x, x))), "expected a tensor of logits, got tuple; return the logits alone"),
        (Around(after=nn.Sigmoid()), r"all that it returns lies in \[0, 1\], like probabilities"),
        (Around(after=Call(lambda x: x.softmax(dim=1)[:, :3])), r"all that it returns lies in \[0, 1\]"),
        (Around(after=Call(lambda x: nn.functional.one_hot(x.argmax(1), 4).float())), "last softmax or argmax"),
        (Around(after=Call(lambda x: x[:3])), "expected a row of logits for each of 8 images, got 3"),
        (Around(after=Call(lambda x: x[:, :3])), "the data have 4 classes, but it returns 3 logits"),
        (Around(after=Call(lambda x: x - x.mean(dim=0))), "change with the other images of a batch"),
        (Around(after=Call(lambda x: x * torch.rand(x.shape))), "change with the other images of a batch"),
        (nn.Sequential(nn.Flatten(), nn.Linear(7, 4)), r"it fails on images of shape \(8, 3, 5, 5\).*--image-size"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten()), r"it fails on images of shape .* images are RGB"),
    ],
    ids=[
        "probabilities", "rounding", "detached images", "detached logits", "one-hot", "NumPy", "NaN", "numbers",
        "a dictionary", "a tuple", "sigmoid", "a class cut off", "only ones and zeros",
        "too few rows", "too few classes", "depends on the batch", "random", "another size", "grayscale",
    ],
)  # fmt: skip
def test_what_cannot_be_attacked_is_refused(module, message, monkeypatch):
    monkeypatch.setattr(
        "jaxtyping.config.jaxtyping_disable", True
    )  # as for a user, who has no shape checker
    images, labels = bright(8)
    with pytest.raises(ValueError, match=f"(?s)^classifier: .*({message})"):
        wrap(module.eval(), images, labels, classes=CLASSES)


def test_training_mode_is_refused():
    part = Around().eval()
    part.network.train()
    for module in (Tiny(), part):
        with pytest.raises(
            ValueError, match=r"wrap: it is in training mode; call .eval\(\) on it first"
        ):
            wrap(module)


def test_what_is_no_module_is_refused(monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    with pytest.raises(TypeError, match=r"wrap: expected an nn\.Module, got function"):
        wrap(lambda images: images)


@pytest.mark.parametrize(("factor", "shift"), [(255, 0), (1, -0.5)])
def test_images_outside_of_0_to_1_are_refused(factor, shift):
    images, labels = bright(8)
    with pytest.raises(ValueError, match=r"^classifier: expected finite values in \[0, 1\]"):
        wrap(Tiny().eval(), images * factor + shift, labels)
    with pytest.raises(ValueError, match=r"^classifier: expected finite values in \[0, 1\]"):
        wrap(Tiny().eval())(images * factor + shift)


def test_labels_beyond_the_classes_are_refused():
    images, labels = bright(8)
    with pytest.raises(
        ValueError,
        match=r"classifier: expected labels from 0 to 3, got 1 to 4; labels that start at 1",
    ):
        wrap(Tiny().eval(), images, labels + 1)


def test_labels_of_a_part_of_the_classes_that_start_at_1_are_refused():
    images, labels = bright(40)
    images, labels = images[labels < 3], labels[labels < 3]
    with pytest.raises(
        ValueError,
        match=r"it names 0% of \d+ images, but 100% with labels lowered by 1; .* subtract 1",
    ):
        wrap(Tiny().eval(), images, labels + 1)


@pytest.mark.parametrize("name", [name for name in NORMALISATIONS if name != "none"])
def test_normalisation_that_is_expected_outside_is_refused_and_named(name):
    mean, std = NORMALISATIONS[name]
    images, labels = bright(64)
    with pytest.raises(
        ValueError, match=r"^classifier: it names .* Normalisation belongs inside: .* mean=\("
    ) as error:
        wrap(Tiny(mean, std).eval(), images, labels)
    if name not in ("ImageNet's", "CIFAR-10's"):  # these two are nearly the same
        assert f"with {name} normalisation before it" in str(error.value)
    wrap(Tiny(mean, std).eval(), images, labels, mean=mean, std=std)


class Halves(Tiny):
    """Of two classes, and so sure of them that its probabilities are 0 and 1."""

    def forward(self, images):
        brightness = (images * self.std + self.mean).mean(dim=(1, 2, 3))
        return 1e4 * torch.stack([0.5 - brightness, brightness - 0.5], dim=1) * self.centres.sum()


def test_it_is_noticed_of_two_classes_and_a_saturated_network():
    images, labels = bright(64)
    network = Halves((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)).eval()
    with pytest.raises(
        ValueError, match=r"it names 50% of 64 images, but 100% with 0 to 255 normalisation"
    ):
        wrap(network, images, labels // 2)


def test_the_usual_normalisations_are_tried():
    assert set(NORMALISATIONS) == {"none", "ImageNet's", "CIFAR-10's", "[-1, 1]", "0 to 255"}


def test_a_few_images_prove_nothing():
    mean, std = NORMALISATIONS["[-1, 1]"]
    images, labels = bright(64)
    check_meaning(Tiny(mean, std), images[:5], labels[:5])


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((123.0, 117.0, 104.0), (58.0, 57.0, 57.0)),
        ((0.5,), (0.5,)),
        (None, (0.0, 1.0, 1.0)),
        (None, (-1.0, 1.0, 1.0)),
    ],
    ids=["for 0 to 255", "one channel", "zero", "negative"],
)
def test_a_normalisation_that_makes_no_sense_is_refused(mean, std):
    with pytest.raises(
        ValueError, match=r"wrap: expected a mean and a positive standard deviation for each of 3"
    ):
        wrap(Tiny().eval(), mean=mean, std=std)


def test_a_second_normalisation_is_refused():
    with pytest.raises(ValueError, match="wrap: this classifier has its normalisation inside"):
        wrap(wrap(Tiny().eval()), mean=(0.5, 0.5, 0.5))
