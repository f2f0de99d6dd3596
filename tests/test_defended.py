"""A denoiser before a classifier, and exported."""

import subprocess
import sys

import pytest
import torch
from small import disturbed
from torch import nn

from nbsupport.attacks import pgd
from nbsupport.classifiers.models import build
from nbsupport.denoisers.defended import defend, export
from nbsupport.denoisers.models import Additive, Filtering, MultiHead, PAFilter


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return build("small_resnet", 10, 16).eval().requires_grad_(False)


def test_a_white_box_attacker_gets_through_it(classifier):
    images, defended = torch.rand(4, 3, 16, 16), defend(classifier, disturbed(PAFilter))
    labels = defended(images).argmax(dim=1)
    attacked, loss = pgd(defended, images, labels, 0.1, steps=5), nn.CrossEntropyLoss()
    assert loss(defended(attacked), labels) > loss(defended(images), labels)


REFUSED = {
    "classifier in training": (lambda c, d: (c.train(), d), ValueError, "classifier.* training"),
    "denoiser in training": (lambda c, d: (c, d.train()), ValueError, "denoiser.* training"),
    "order": (lambda c, d: (d, c), TypeError, "classifier comes first"),
    "function": (lambda c, d: (c, lambda images: images), TypeError, r"nn\.Module as denoiser"),
    "devices": (lambda c, d: (c.to("meta"), d), ValueError, "one device"),
}


@pytest.mark.parametrize(("change", "error", "word"), REFUSED.values(), ids=REFUSED)
def test_networks_that_do_not_fit_are_refused(change, error, word, classifier, no_shape_checker):
    with pytest.raises(error, match=word):
        defend(*change(classifier, disturbed(Filtering)))


def test_a_denoiser_that_changes_the_shape_is_refused(classifier):
    with pytest.raises(ValueError, match="shape"):
        defend(classifier, nn.AvgPool2d(2).eval())(torch.rand(1, 3, 16, 16))


ALONE = """
import sys, torch
program = torch.export.load(sys.argv[1]).module()
images = torch.load(sys.argv[2])
torch.save([program(part) for part in images], sys.argv[3])
assert not any(name.startswith("nbsupport") for name in sys.modules)
"""


def test_an_exported_denoiser_needs_pytorch_alone(tmp_path):
    denoiser = disturbed(PAFilter)
    images = [torch.rand(number, 3, 9, 14) for number in (1, 2, 7)]
    torch.save(images, tmp_path / "images.pt")
    path = export(denoiser, tmp_path / "denoiser.pt2", (9, 14))
    arguments = [path, tmp_path / "images.pt", tmp_path / "denoised.pt"]
    subprocess.run([sys.executable, "-c", ALONE, *map(str, arguments)], check=True)
    for exported, batch in zip(torch.load(tmp_path / "denoised.pt"), images, strict=True):
        torch.testing.assert_close(exported, denoiser(batch), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", [Additive, MultiHead])
def test_every_denoiser_can_be_exported(kind, tmp_path):
    denoiser, images = disturbed(kind), torch.rand(5, 3, 8, 8)
    exported = torch.export.load(export(denoiser, tmp_path / "x.pt2", 8)).module()
    torch.testing.assert_close(exported(images), denoiser(images), atol=1e-6, rtol=0)
    assert [file.name for file in tmp_path.iterdir()] == ["x.pt2"]


def test_export_refuses_training_mode_and_other_suffixes(tmp_path):
    with pytest.raises(ValueError, match="training mode"):
        export(disturbed(Filtering).train(), tmp_path / "x.pt2", 8)
    with pytest.raises(ValueError, match=r"\.pt2"):
        export(disturbed(Filtering), tmp_path / "x.onnx", 8)
