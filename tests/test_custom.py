"""Classifiers from elsewhere: what passes the trial, what is refused, what a study makes of them."""

import copy
import sys

import pytest
import torch
import torchvision
from PIL import Image
from small import Call, write_yours
from torch import nn

from nbsupport import wrap
from nbsupport.classifiers.custom import (
    NORMALISATIONS,
    class_name,
    fingerprint,
    load,
    load_public,
)
from nbsupport.classifiers.models import Classifier
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
        return -50 * (brightness[:, None] - self.centres).square()


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


def test_a_wrapped_network_is_a_frozen_copy_with_the_same_logits():
    (images, labels), module = bright(40), Tiny().eval()
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


@pytest.mark.parametrize(("scale", "spoken"), [(0.1, False), (1e6, True)])
def test_saturated_logits_pass_with_a_word(scale, spoken, capsys):
    wrap(after(lambda logits: scale * logits), *bright(8))
    assert ("of 8 images" in capsys.readouterr().out) == spoken


def asserts(low, high):
    def function(images):
        assert images.min() >= low and images.max() <= high
        return images

    return before(function)


@pytest.mark.parametrize(
    "module",
    [asserts(0, 1), before(lambda x: x.sub_(0.5).add_(0.5)), Tiny().double().eval(),
     torch.compile(Tiny().eval(), backend="eager")],
)  # fmt: skip
def test_any_module_passes_and_leaves_images_alone(module):
    images, labels = bright(40)
    given = images.clone()
    wrapped = wrap(module, images, labels if isinstance(module, nn.Sequential) else None)
    assert torch.equal(images, given) and wrapped(images).dtype in (torch.float32, torch.float64)
    for cast in (torch.Tensor.byte, torch.Tensor.tolist, torch.Tensor.numpy):
        wrap(before(torch.clone), images.double(), cast(labels), classes=CLASSES)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_a_fingerprint_follows_the_answers_and_no_rounding(scale):
    images, changed = bright(64)[0], 0
    module = after(lambda logits: scale * logits)
    expected = fingerprint(module, images)
    generator = torch.Generator().manual_seed(0)

    def disturb(logits):
        size = 1e-5 * logits.abs().max()
        return logits + size * torch.randn(logits.shape, generator=generator)

    for _ in range(100):
        changed += fingerprint(nn.Sequential(module, Call(disturb)), images) != expected
    assert changed <= 2
    for other in (lambda z: 1.2 * z, lambda z: z.roll(1, 1), lambda z: z + 2 * scale):
        assert fingerprint(nn.Sequential(module, Call(other)), images) != expected


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (after(lambda x: x.softmax(dim=1)), "probabilities"),
        (before(lambda x: (x * 255).round() / 255), "not differentiable"),
        (after(lambda x: x + (x * 0).sqrt()), "not differentiable"),
        (before(lambda x: torch.from_numpy(x.numpy())), "failed with RuntimeError.*detach"),
        (after(lambda x: x.sigmoid()), "from 0 to 1"),
        (after(lambda x: nn.functional.one_hot(x.argmax(1), 4).float()), "softmax"),
        (after(lambda x: x[:3]), "8 rows"),
        (after(lambda x: x[:, :3]), "4 logits.*got 3"),
        (after(lambda x: x - x.mean(dim=0)), "batch"),
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
    """Three classes of 4 images."""
    return write_yours(tmp_path) / "photos"


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
    ],
)
def test_other_references_are_refused(reference, message, file):
    with pytest.raises(ValueError, match=f"^classifier: .*{message}"):
        load(reference.format(file=file))


def test_a_file_that_is_missing_is_named(file):
    with pytest.raises(FileNotFoundError, match=r"absent\.py"):
        load(f"{file.parent}/absent.py:factory")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"import a_package_that_nobody_has", "failed with ModuleNotFoundError"),
        (b"import sys; sys.exit(3)", "exits with 3"),
        (b"name = '\xfc'", "SyntaxError"),
        (b"raise OSError('two\\nlines')", "OSError: two lines"),
    ],
)  # fmt: skip
def test_what_cannot_be_imported_is_refused_in_one_line(text, message, file):
    file.write_bytes(text)
    with pytest.raises(ValueError, match=rf"^classifier: model\.py .*{message}[^\n]*$"):
        load(f"{file}:factory")


# -- in a study ----------------------------------------------------------------------------------


def test_it_is_attacked_and_defended(file, tree):
    made = experiment(file, tree, steps=1)
    rows = table(made, 4, "attacked", "PA-Filt(L_img)_sl")
    assert set(rows["classifier"]) == {"model.py:factory"}
    expected = made.classifier()(made.images("test").images).argmax(dim=1)
    right = (expected == made.images("test").labels).numpy()
    assert (measure(made, "attacked")["accuracy"][0] == right).all()
    assert not (made.store.home / "classifier").exists()


def test_keys_name_no_place_and_follow_weights_and_text(file, tree, tmp_path, monkeypatch):
    specification = experiment(file, tree).attacked_specification("train")
    assert specification["classifier"]["name"] == "model.py:factory"
    assert str(tmp_path) not in str(specification)
    assert experiment(file, tree).study.specification()["classifier"] == "model.py:factory"
    moved = file.parent.rename(tmp_path / "elsewhere") / file.name
    assert experiment(moved, tree).attacked_specification("train") == specification
    moved.write_text(TEXT.replace("self.scale *", "self.scale**2 *"))
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
    for word, number in {"red": "0", "green": "2", "blue": "3"}.items():
        (tree / word).rename(tree / number)
    test = (made := experiment(file, tree, "larger")).images("test")
    assert test.labels.unique().tolist() == [0, 2, 3]
    assert made.classifier()(test.images).shape[1] == 5


def test_classes_in_the_order_of_torchvision_are_noticed(tmp_path):
    """Images of one grey per class folder 0 to 11; the network numbers the folders as text."""
    for number in range(12):
        folder = tmp_path / "tree" / str(number)
        folder.mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (16, 16), (20 * number + i,) * 3).save(folder / f"{i}.png")

    def classifier(order):
        greys = (torch.tensor([*order]) * 20 + 2.5) / 255
        module = Call(lambda x: -100 * (x.mean(dim=(1, 2, 3))[:, None] - greys) ** 2).eval()
        return experiment(None, tmp_path / "tree", module=module).classifier()

    with pytest.raises(ValueError, match="but 100% if the class folders"):
        classifier(sorted(range(12), key=str))
    classifier(range(12))


# -- torchvision's public weights ----------------------------------------------------------------

NAME, FILE = "mobilenet_v3_small", "mobilenet_v3_small-047dcff4.pth"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A network whose random weights lie where torch.hub downloads public ones to."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.manual_seed(0)
    network = torchvision.models.get_model(NAME).eval()
    torch.save(network.state_dict(), tmp_path / "hub" / "checkpoints" / FILE)
    return network, tmp_path / "hub" / "checkpoints" / FILE


def test_public_weights_come_with_their_normalisation(hub):
    images, classifier = torch.rand(2, 3, 64, 64), load_public(NAME)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in NORMALISATIONS["ImageNet's"])
    expected = hub[0]((images - mean) / std)
    torch.testing.assert_close(classifier(images), expected, atol=1e-4, rtol=1e-4)
    assert not any(each.requires_grad for each in classifier.parameters())


def test_what_cannot_be_read_or_downloaded_is_named(hub, monkeypatch):
    path = hub[1]
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(FileNotFoundError, match=f"remove {path}"):
        load_public(NAME)
    path.unlink()

    def unreachable(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(FileNotFoundError, match=r"no route to host.* https://download.pytorch.org"):
        load_public(NAME)
    with pytest.raises(ValueError, match="no classifier named 'resnet51'"):
        load_public("resnet51")


def test_a_custom_classifier_keeps_its_precision_under_autocast():
    images, _ = bright(20)
    classifier = wrap(
        nn.Sequential(Call(lambda x: x.flatten(1)), nn.Linear(3 * SIZE**2, CLASSES)).eval()
    )
    with torch.autocast("cpu", torch.bfloat16):
        low = nn.functional.conv2d(images, torch.ones(3, 3, 1, 1) / 3)  # as a denoiser returns them
        logits = classifier(images)
        assert classifier.unchecked(low).dtype == torch.float32
    assert torch.equal(logits, classifier(images))
