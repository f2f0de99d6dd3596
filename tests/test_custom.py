"""Classifiers from elsewhere: what passes the trial, what is refused, what a study makes of them."""

import copy
import sys

import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

from nbsupport import wrap
from nbsupport.classifiers.custom import (
    NORMALISATIONS,
    check_normalisation,
    class_name,
    describe_public,
    is_downloaded,
    is_reference,
    load,
    load_public,
)
from nbsupport.classifiers.models import Classifier, build
from nbsupport.data.images import Split
from nbsupport.experiments.artifacts import Experiment
from nbsupport.experiments.evaluation import measure, table
from nbsupport.study import Study

SIZE, CLASSES = 5, 4


class Tiny(nn.Module):
    """The class of an image is the quarter of [0, 1] that its brightness lies in."""

    def __init__(self, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)):
        super().__init__()
        self.centres = nn.Parameter((torch.arange(CLASSES) + 0.5) / CLASSES)
        self.mean, self.std = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))

    def forward(self, images):
        brightness = (images * self.std + self.mean).mean(dim=(1, 2, 3))
        return self.compare(brightness[:, None])

    def compare(self, brightness):
        return -50 * (brightness - self.centres).square()


class Halves(Tiny):
    """Of two classes, and so sure of them that its probabilities are 0 and 1."""

    def compare(self, brightness):
        return 1e4 * (brightness - 0.5) * torch.tensor([-1.0, 1.0]) * self.centres.sum()


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


def before(function):
    return nn.Sequential(Call(function), Tiny()).eval()


def after(function):
    return nn.Sequential(Tiny(), Call(function)).eval()


def bright(number, seed=0):
    """Images of every brightness, and the classes that `Tiny` gives them."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.linspace(0.02, 0.98, number)
    noise = 0.02 * (torch.rand(number, 3, SIZE, SIZE, generator=generator) - 0.5)
    images = (level.view(-1, 1, 1, 1) + noise).clamp(0, 1)
    labels = (images.mean(dim=(1, 2, 3)) * CLASSES).long().clamp(max=CLASSES - 1)
    order = torch.randperm(number, generator=generator)
    return images[order], labels[order]


# -- wrap ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 40])
def test_a_wrapped_network_is_a_frozen_copy_with_the_same_logits(number):
    (images, labels), module = bright(number), Tiny().eval()
    wrapped = wrap(module, images, labels, classes=CLASSES)
    assert isinstance(wrapped, Classifier)
    assert torch.equal(wrapped(images), module(images))
    assert module.centres.requires_grad
    assert not any(parameter.requires_grad for parameter in wrapped.parameters())
    assert not any(part.training for part in wrapped.modules())
    module.centres.data += 1
    assert not torch.equal(wrapped.network.centres, module.centres)


def test_a_normalisation_is_applied_and_kept():
    mean, std = NORMALISATIONS["ImageNet's"]
    images, labels = bright(32)
    wrapped = wrap(Tiny(mean, std).eval(), images, labels, mean=mean, std=std)
    torch.testing.assert_close(wrapped(images), Tiny()(images), atol=1e-4, rtol=1e-4)
    assert torch.equal(wrap(wrapped, images, labels)(images), wrapped(images))


@pytest.mark.parametrize("seed", range(3))
def test_an_untrained_network_passes(seed):
    torch.manual_seed(seed)
    images, labels = torch.rand(24, 3, 16, 16), torch.randint(10, (24,))
    wrap(build("small_resnet", 10, 16).network.eval(), images, labels, classes=10)


def test_saturated_logits_are_differentiable():
    wrap(after(lambda logits: 1e4 * logits), *bright(8))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (after(lambda x: x.softmax(dim=1)), "probabilities"),
        (before(lambda x: (x * 255).round() / 255), "not differentiable"),
        (after(lambda x: x.detach()), "not differentiable"),
        (after(lambda x: nn.functional.one_hot(x.argmax(1), 4) + 0.1), "not differentiable"),
        (after(lambda x: x + (x * 0).sqrt()), "not differentiable"),
        (before(lambda x: torch.from_numpy(x.numpy())), "failed with RuntimeError.*detach"),
        (after(lambda x: x.argmax(dim=1).float()), "shape"),
        (after(lambda x: x.sigmoid()), "from 0 to 1"),
        (after(lambda x: nn.functional.one_hot(x.argmax(1), 4).float()), "argmax"),
        (after(lambda x: x[:3]), "8 rows"),
        (after(lambda x: x[:, :3]), "4 logits.*got 3"),
        (after(lambda x: x - x.mean(dim=0)), "batch"),
        (after(lambda x: x * torch.rand(x.shape)), "batch"),
        (nn.Sequential(nn.Flatten(), nn.Linear(7, 4)).eval(), "failed.*--image-size"),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten()).eval(), "failed.*images are RGB"),
    ],
)
def test_what_cannot_be_attacked_is_refused(module, message, no_shape_checker):
    with pytest.raises(ValueError, match=f"(?s)^classifier: .*({message})"):
        wrap(module, *bright(8), classes=CLASSES)


def test_training_mode_and_functions_are_refused(no_shape_checker):
    partly = after(lambda x: x)
    partly[0].train()
    for module in (Tiny(), partly):
        with pytest.raises(ValueError, match="training mode"):
            wrap(module)
    with pytest.raises(TypeError, match=r"nn\.Module"):
        wrap(lambda images: images)
    with pytest.raises(ValueError, match="divide by 255"):
        wrap(Tiny().eval(), 255 * bright(8)[0])


def test_labels_that_start_at_1_are_refused():
    images, labels = bright(40)
    with pytest.raises(ValueError, match="labels - 1"):
        wrap(Tiny().eval(), images, labels + 1)
    images, labels = images[labels < 3], labels[labels < 3]
    with pytest.raises(ValueError, match=r"0%.*100% with labels lowered by 1"):
        wrap(Tiny().eval(), images, labels + 1)


@pytest.mark.parametrize("name", [name for name in NORMALISATIONS if name != "none"])
def test_a_normalisation_that_is_missing_is_refused_and_named(name):
    mean, std = NORMALISATIONS[name]
    images, labels = bright(64)
    with pytest.raises(ValueError, match=r"normalisation.*mean=\(") as error:
        wrap(Tiny(mean, std).eval(), images, labels)
    if name not in ("ImageNet's", "CIFAR-10's"):  # these two are nearly the same
        assert name in str(error.value)
    wrap(Tiny(mean, std).eval(), images, labels, mean=mean, std=std)


def test_it_is_noticed_in_a_saturated_network_but_not_on_a_few_images():
    images, labels = bright(64)
    with pytest.raises(ValueError, match=r"50%.*100% after 0 to 255 normalisation"):
        wrap(Halves(*NORMALISATIONS["0 to 255"]).eval(), images, labels // 2)
    check_normalisation(Tiny(*NORMALISATIONS["[-1, 1]"]), images[:5], labels[:5])


@pytest.mark.parametrize(
    ("mean", "std"), [((123.0,) * 3, (58.0,) * 3), ((0.5,), (0.5,)), (None, (0.0, 1.0, 1.0))]
)
def test_a_normalisation_that_makes_no_sense_is_refused(mean, std):
    with pytest.raises(ValueError, match="std"):
        wrap(Tiny().eval(), mean=mean, std=std)
    with pytest.raises(ValueError, match="inside"):
        wrap(wrap(Tiny().eval()), mean=mean, std=std)


# -- path/to/file.py:factory ---------------------------------------------------------------------

TEXT = """
import torch
from torch import nn

import neighbour


class Mine(nn.Module):
    def __init__(self, classes):
        super().__init__()
        torch.manual_seed(neighbour.SEED)
        self.layer = nn.Linear(3, classes)
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)

    def forward(self, images):
        return self.layer(self.scale * images.mean(dim=(2, 3)))


def factory():
    return Mine(3).eval()


def larger():
    return Mine(5).eval()


training, failing, nothing = lambda: Mine(3), lambda: 1 / 0, lambda: None
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A user's file, which imports its neighbour."""
    monkeypatch.delitem(sys.modules, "neighbour", raising=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/neighbour.py").write_text("SEED = 3")
    path = tmp_path / "mine/model.py"
    path.write_text(TEXT)
    return path


@pytest.fixture
def tree(tmp_path):
    """Three classes of 8 images."""
    generator = torch.Generator().manual_seed(0)
    for label, word in enumerate(("ant", "bee", "cat")):
        (tmp_path / "tree" / word).mkdir(parents=True)
        for number in range(8):
            pixels = torch.randint(256, (11, 13, 3), generator=generator, dtype=torch.uint8)
            pixels[..., label] = 255
            Image.fromarray(pixels.numpy()).save(tmp_path / "tree" / word / f"{number}.png")
    return tmp_path / "tree"


def experiment(file, tree, factory="factory", module=None, **changes):
    reference = {} if module else {"classifier": f"{file}:{factory}"}
    study = Study.named("folder", "smoke", data=str(tree), image_size=11, **reference, **changes)
    return Experiment(study, classifier=module)


def test_a_factory_is_called(file):
    images, network = torch.rand(2, 3, 4, 5), load(f"{file}:factory")
    torch.manual_seed(3)
    torch.testing.assert_close(network(images), nn.Linear(3, 3)(2 * images.mean(dim=(2, 3))))


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("{file}:absent", "absent.*factory, larger"),
        ("{file}:failing", r"model.py:failing\(\) failed with ZeroDivisionError"),
        ("{file}:nothing", r"nn\.Module.*NoneType"),
        ("{file}", "file.py:factory"),
        ("{file}:", "file.py:factory"),
        ("model.txt:factory", "file.py:factory"),
    ],
)
def test_other_references_are_refused(reference, message, file):
    with pytest.raises(ValueError, match=f"^classifier: .*{message}"):
        load(reference.format(file=file))


def test_a_file_that_is_missing_or_fails_is_named(file):
    with pytest.raises(FileNotFoundError, match=r"absent\.py"):
        load(f"{file.parent}/absent.py:factory")
    file.write_text("import a_package_that_nobody_has")
    with pytest.raises(ValueError, match=r"model\.py failed with ModuleNotFoundError"):
        load(f"{file}:factory")


def test_references_differ_from_architectures():
    assert is_reference("a/b.py:f") and is_reference("b.py")
    assert not is_reference("resnet50") and not is_reference("")


# -- in a study ----------------------------------------------------------------------------------


def test_it_is_attacked_and_defended(file, tree):
    made = experiment(file, tree, steps=1)
    rows = table(made, 4, "attacked", "PA-Filt(L_img)_sl")
    assert set(rows["classifier"]) == {"model.py:factory"}
    expected = made.classifier()(made.images("test").images).argmax(dim=1)
    assert torch.equal(measure(made, "attacked").predictions[0], expected)
    assert not (made.store.home / "classifier").exists()


def test_keys_name_no_place_and_follow_weights_and_text(file, tree, tmp_path, monkeypatch):
    specification = experiment(file, tree).attacked_specification("train")
    assert specification["classifier"]["name"] == "model.py:factory"
    assert str(tmp_path) not in str(specification)
    assert experiment(file, tree).study.specification()["classifier"] == "model.py:factory"
    moved = file.parent.rename(tmp_path / "elsewhere") / file.name
    assert experiment(moved, tree).attacked_specification("train") == specification
    moved.write_text(TEXT.replace("mean(dim=(2, 3))", "amax(dim=(2, 3))"))
    assert experiment(moved, tree).attacked_specification("train") != specification
    moved.write_text(TEXT)
    moved.with_name("neighbour.py").write_text("SEED = 4444")
    monkeypatch.delitem(sys.modules, "neighbour")
    assert experiment(moved, tree).attacked_specification("train") != specification


def test_a_module_can_be_given_instead(file, tree):
    module = load(f"{file}:factory")
    made = experiment(file, tree, module=module)
    images = made.images("test").images
    assert torch.equal(made.classifier()(images), module(images))
    specification = made.classifier_specification()
    assert made.study.classifier == specification["name"] == class_name(module) == "Mine"

    others = [copy.deepcopy(module) for _ in range(3)]
    others[0].layer.weight.data[0, 0] += 1e-6
    others[1].scale += 1  # which no state_dict has
    others[2].extra = nn.ReLU().eval()
    for other in others:
        assert experiment(file, tree, module=other).classifier_specification() != specification


@pytest.mark.parametrize(
    ("factory", "message"), [("larger", "3 logits.*got 5"), ("training", "training mode")]
)
def test_it_is_tried_before_it_is_used(factory, message, file, tree):
    with pytest.raises(ValueError, match=message):
        experiment(file, tree, factory).attacked_specification("test")


def test_it_may_have_more_classes_where_the_data_leave_some_out(file, tree):
    for word, number in {"ant": "0", "bee": "2", "cat": "3"}.items():
        (tree / word).rename(tree / number)
    test = (made := experiment(file, tree, "larger")).images("test")
    assert test.labels.unique().tolist() == [0, 2, 3]
    assert made.classifier()(test.images).shape[1] == 5


# -- torchvision's public weights ----------------------------------------------------------------

NAME, FILE = "mobilenet_v3_small", "mobilenet_v3_small-047dcff4.pth"


@pytest.fixture
def clean(tmp_path, monkeypatch):
    """40 images and their logits from random weights, whose file is where torch.hub downloads to."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.manual_seed(0)
    network = torchvision.models.get_model(NAME).eval()
    network.classifier[-1].weight.data.mul_(30)  # so that classes differ between images
    torch.save(network.state_dict(), tmp_path / "hub" / "checkpoints" / FILE)
    images = torch.rand(40, 3, 64, 64)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in NORMALISATIONS["ImageNet's"])
    with torch.no_grad():
        return images, network((images - mean) / std)


def test_public_weights_come_with_their_normalisation(clean, capsys):
    images, logits = clean
    found = load_public(NAME, images, logits.argmax(dim=1))(images)
    torch.testing.assert_close(found, logits, atol=1e-4, rtol=1e-4)
    assert "100.0% on 40 clean images" in capsys.readouterr().out
    assert describe_public(NAME)["file"] == FILE
    assert is_downloaded(NAME)


@pytest.mark.parametrize("shift", [1, 500])
def test_labels_of_other_classes_are_refused(shift, clean):
    images, logits = clean
    with pytest.raises(ValueError, match="labels"):
        load_public(NAME, images, (logits.argmax(dim=1) + shift) % 1000)


def test_what_cannot_be_read_or_downloaded_is_named(clean, tmp_path, monkeypatch):
    images, labels = clean[0], clean[1].argmax(dim=1)
    path = tmp_path / "hub" / "checkpoints" / FILE
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(FileNotFoundError, match=f"remove {path}"):
        load_public(NAME, images, labels)
    path.unlink()
    assert not is_downloaded(NAME)

    def unreachable(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(FileNotFoundError, match=r"no route to host.* https://download.pytorch.org"):
        load_public(NAME, images, labels)
    with pytest.raises(ValueError, match="no classifier named 'resnet51'"):
        describe_public("resnet51")


def test_a_study_of_neurips_takes_the_public_classifier(clean, monkeypatch):
    images, logits = clean
    split = Split(images, logits.argmax(dim=1), ("a",) * 1000, {"data": "noise"})
    monkeypatch.setattr("nbsupport.experiments.artifacts.fit_to_images", lambda study: study)
    monkeypatch.setattr(Experiment, "images", lambda self, name: split)
    study = Study.named("neurips2017dev", "smoke", classifier=NAME, image_size=64)
    made = Experiment(study)
    torch.testing.assert_close(made.classifier()(images), logits, atol=1e-4, rtol=1e-4)
    assert made.classifier_specification() == describe_public(NAME)
    assert made.public_name("second") == "vgg16"
