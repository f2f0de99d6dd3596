"""A denoiser before a classifier, in a file, and exported."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import nbsupport
from nbsupport.attacks import pgd as attacks
from nbsupport.classifiers.models import build
from nbsupport.denoisers.defended import defend, export, load_denoiser, save_denoiser
from nbsupport.denoisers.models import (
    Additive,
    Denoiser,
    Filtering,
    MultiHead,
    PAFilter,
    View,
    YNet,
)

KINDS = (Additive, Filtering, MultiHead, YNet, PAFilter)
every_kind = pytest.mark.parametrize("kind", KINDS, ids=[kind.__name__ for kind in KINDS])


def trained(kind, width=2, kernel_size=3, literal=False):
    """As after a training: no weight is where it began."""
    torch.manual_seed(1)
    denoiser = kind(width=width, kernel_size=kernel_size, literal=literal)
    for parameter in denoiser.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return denoiser.eval().requires_grad_(False)


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return build("small_resnet", 10, 16).eval().requires_grad_(False)


# -- before a classifier -------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "size"), [(1, 16), (3, 17)])
def test_the_classifier_sees_denoised_images(number, size, classifier):
    denoiser, images = trained(Filtering), torch.rand(number, 3, size, size + 2)
    defended = nbsupport.defend(classifier, denoiser)
    assert torch.equal(defended(images), classifier(denoiser(images)))
    assert not any(part.training for part in defended.modules())


def test_it_is_the_packages_own_name():
    assert nbsupport.defend is defend


def test_an_attacker_who_knows_gets_through_it(classifier):
    images, defended = torch.rand(4, 3, 16, 16), defend(classifier, trained(PAFilter))
    labels = defended(images).argmax(dim=1)
    attacked = attacks.pgd(defended, images, labels, 0.1, steps=5)
    loss = nn.CrossEntropyLoss()
    assert loss(defended(attacked), labels) > loss(defended(images), labels)


@pytest.mark.parametrize("role", ["classifier", "denoiser"])
def test_training_mode_is_refused(role, classifier):
    both = {"classifier": classifier, "denoiser": trained(Filtering)}
    both[role].train()
    with pytest.raises(
        ValueError, match=rf"defend, {role}: it is in training mode; call .eval\(\)"
    ):
        defend(**both)


def test_the_wrong_way_round_is_refused(classifier):
    with pytest.raises(
        TypeError, match=r"the classifier comes first: defend\(classifier, denoiser\)"
    ):
        defend(trained(Filtering), classifier)


def test_what_is_no_module_is_refused(classifier, monkeypatch):
    monkeypatch.setattr("jaxtyping.config.jaxtyping_disable", True)
    with pytest.raises(
        TypeError, match=r"defend: expected an nn\.Module as denoiser, got function"
    ):
        defend(classifier, lambda images: images)


def test_different_devices_are_refused(classifier):
    with pytest.raises(
        ValueError, match="the classifier is on meta, the denoiser on cpu; move one"
    ):
        defend(classifier.to("meta"), trained(Filtering))


def test_a_denoiser_that_changes_the_shape_is_refused(classifier):
    with pytest.raises(
        ValueError, match=r"expected denoised images of \(1, 3, 16, 16\), got \(1, 3, 8, 8\)"
    ):
        defend(classifier, nn.AvgPool2d(2).eval())(torch.rand(1, 3, 16, 16))


# -- in a file -----------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("literal", [False, True])
@pytest.mark.parametrize(("width", "kernel_size"), [(2, 3), (3, 5), (1, 1)])
def test_a_saved_denoiser_comes_back(kind, literal, width, kernel_size, tmp_path):
    denoiser, images = trained(kind, width, kernel_size, literal), torch.rand(2, 3, 9, 11)
    again = load_denoiser(save_denoiser(denoiser, tmp_path / "denoiser.safetensors"))
    assert type(again) is kind
    assert torch.equal(again(images), denoiser(images))
    assert not any(part.training for part in again.modules())
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_the_file_says_what_it_is(tmp_path):
    from safetensors import safe_open

    path = save_denoiser(
        trained(PAFilter, 3, 5), tmp_path / "x.safetensors", {"classifier": "mine"}
    )
    with safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()["record"])
    assert record == {
        "class": "PAFilter",
        "arguments": {"width": 3, "kernel_size": 5, "literal": False},
        "about": {"classifier": "mine"},
    }


def test_altered_weights_are_refused(tmp_path):
    path = save_denoiser(trained(Filtering), tmp_path / "x.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"load_denoiser: .*x.safetensors was altered \(its checksum differs\)"
    ):
        load_denoiser(path)


def test_altered_arguments_are_refused(tmp_path):
    path = save_denoiser(trained(PAFilter), tmp_path / "x.safetensors")
    content = path.read_bytes()
    assert content.count(b"false") == 1
    path.write_bytes(content.replace(b"false", b"true ", 1))
    with pytest.raises(ValueError, match="was altered"):
        load_denoiser(path)


@pytest.mark.parametrize("length", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(length, tmp_path):
    path = save_denoiser(trained(Filtering), tmp_path / "x.safetensors")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(
        ValueError, match=r"load_denoiser: .* is damaged or no safetensors file .*; save it again"
    ):
        load_denoiser(path)


def test_another_safetensors_file_is_refused(tmp_path):
    save_file({"weight": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(
        ValueError, match=r"is no 'nbsupport denoiser 1' file, got None; save it with save_denoiser"
    ):
        load_denoiser(tmp_path / "x.safetensors")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"load_denoiser: there is no file .*absent"):
        load_denoiser(tmp_path / "absent")


class Unknown(Denoiser):
    """Somebody's own."""


@pytest.mark.parametrize(
    "denoiser", [View(trained(YNet), "m"), Unknown()], ids=["a view", "an unknown one"]
)
def test_what_cannot_be_built_again_is_refused(denoiser, tmp_path):
    with pytest.raises(
        TypeError, match=f"denoiser: {type(denoiser).__name__} is no class of nbsupport.denoisers"
    ):
        save_denoiser(denoiser.eval(), tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_denoiser_that_was_changed_is_refused(tmp_path):
    denoiser = trained(Filtering)
    denoiser.extra = nn.Linear(2, 2)
    with pytest.raises(TypeError, match="this Filtering was changed after it was built"):
        save_denoiser(denoiser, tmp_path / "x.safetensors")


def test_weights_are_readable_by_others(tmp_path):
    denoiser = trained(Filtering)
    weights = load_file(save_denoiser(denoiser, tmp_path / "x.safetensors"))
    assert weights.keys() == denoiser.state_dict().keys()


# -- exported ------------------------------------------------------------------------------------

ALONE = """
import sys, torch
program = torch.export.load(sys.argv[1]).module()
images = torch.load(sys.argv[2])
torch.save([program(part) for part in images], sys.argv[3])
assert not any(name.startswith("nbsupport") for name in sys.modules)
"""


def test_an_exported_denoiser_needs_pytorch_alone(tmp_path):
    denoiser = trained(PAFilter)
    images = [torch.rand(number, 3, 9, 14) for number in (1, 2, 7)]
    torch.save(images, tmp_path / "images.pt")
    path = export(denoiser, tmp_path / "denoiser.pt2", (9, 14))
    arguments = [path, tmp_path / "images.pt", tmp_path / "denoised.pt"]
    subprocess.run([sys.executable, "-c", ALONE, *map(str, arguments)], check=True)
    for exported, batch in zip(torch.load(tmp_path / "denoised.pt"), images, strict=True):
        torch.testing.assert_close(exported, denoiser(batch), atol=1e-6, rtol=0)


@every_kind
def test_every_denoiser_can_be_exported(kind, tmp_path):
    denoiser, images = trained(kind), torch.rand(5, 3, 8, 8)
    exported = torch.export.load(export(denoiser, tmp_path / "x.pt2", 8)).module()
    torch.testing.assert_close(exported(images), denoiser(images), atol=1e-6, rtol=0)


def test_what_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    denoiser = trained(Filtering)
    monkeypatch.setattr(
        "nbsupport.denoisers.defended._Unchecked.forward", lambda self, images: 0.5 * images
    )
    with pytest.raises(
        RuntimeError, match=r"export: the exported denoiser differs by .* from the original"
    ):
        export(denoiser, tmp_path / "x.pt2", 8)
    assert not list(tmp_path.iterdir())


def test_export_refuses_training_mode_and_other_endings(tmp_path):
    with pytest.raises(ValueError, match="export: it is in training mode"):
        export(trained(Filtering).train(), tmp_path / "x.pt2", 8)
    with pytest.raises(
        ValueError, match=r"export: expected a file that ends in .pt2, .* got .*x.onnx"
    ):
        export(trained(Filtering), tmp_path / "x.onnx", 8)
